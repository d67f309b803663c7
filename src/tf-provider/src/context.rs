//! What every handler gets beside its values: the configured client, cancellation, the caller's abilities.

use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::diagnostics::{Diagnostic, Diagnostics};

/// Says that the user wants to stop; fired by the first interrupt of Terraform.
///
/// Long work should watch it and return soon with an error and the state it knows. The server keeps serving.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<watch::Sender<bool>>);

impl Default for Cancel {
    fn default() -> Self {
        Self::new()
    }
}

impl Cancel {
    /// Not cancelled.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    /// Fires it, for good.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }

    /// True once fired.
    pub fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }

    /// Resolves once fired.
    pub async fn cancelled(&self) {
        let mut receiver = self.0.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = receiver.wait_for(|fired| *fired).await;
    }

    /// Runs `work` until it ends or the user stops; the latter gives an error that says so.
    pub async fn guard<T>(&self, work: impl Future<Output = T>) -> Result<T, Diagnostics> {
        tokio::select! {
            outcome = work => Ok(outcome),
            () = self.cancelled() => Err(Self::error()),
        }
    }

    /// The error for work that was stopped by the user.
    pub fn error() -> Diagnostics {
        Diagnostics::error(
            "Interrupted",
            "The operation was stopped because Terraform was interrupted. Run it again to finish.",
        )
    }
}

/// What the calling Terraform can do; all false for old ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientCapabilities {
    /// Answers may be deferred.
    pub deferral_allowed: bool,
    /// Write-only arguments are understood (1.11 and later).
    pub write_only_attributes_allowed: bool,
    /// Private data of a plan comes back in the plan during apply (1.16 and later).
    pub store_planned_private: bool,
    /// Computed blocks are understood (1.16 and later).
    pub computed_blocks_allowed: bool,
}

/// Context of one call.
#[derive(Debug)]
pub struct Context<C> {
    client: Option<Arc<C>>,
    cancel: Cancel,
    capabilities: ClientCapabilities,
    terraform_version: String,
    warnings: Arc<Mutex<Diagnostics>>,
}

impl<C> Context<C> {
    /// For tests of handlers; the server makes its own.
    pub fn new(client: Option<Arc<C>>, cancel: Cancel, capabilities: ClientCapabilities) -> Self {
        Self {
            client,
            cancel,
            capabilities,
            terraform_version: String::new(),
            warnings: Arc::default(),
        }
    }

    pub(crate) fn for_call(
        mut self,
        terraform_version: String,
        warnings: Arc<Mutex<Diagnostics>>,
    ) -> Self {
        self.terraform_version = terraform_version;
        self.warnings = warnings;
        self
    }

    /// What `configure` returned; an error while the provider is not configured (its configuration has values that
    /// are not known yet, or this is `terraform validate`).
    pub fn client(&self) -> Result<Arc<C>, Diagnostics> {
        self.client.clone().ok_or_else(|| {
            Diagnostics::error(
                "Provider is not configured",
                "The provider's configuration depends on values that are not known yet, so the remote system cannot be \
                 asked. Apply what they depend on first (for example with -target), or use known values.",
            )
        })
    }

    /// Like [`Context::client`], for calls that can do without.
    pub fn client_if_configured(&self) -> Option<Arc<C>> {
        self.client.clone()
    }

    /// Fires when the user interrupts Terraform.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// What the caller can do.
    pub fn capabilities(&self) -> ClientCapabilities {
        self.capabilities
    }

    /// Version text of the caller, empty before configuration; good for a user agent.
    pub fn terraform_version(&self) -> &str {
        &self.terraform_version
    }

    /// Shows a warning beside whatever the handler returns.
    pub fn warn(&self, warning: Diagnostic) {
        // A poisoned lock only means that another warning panicked half way; the list is still good.
        self.warnings
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .push(warning);
    }
}
