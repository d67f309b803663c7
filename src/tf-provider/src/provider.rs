//! The traits of a provider author. Everything is async; handlers run concurrently and must not block.

use std::time::SystemTime;

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::context::Context;
use crate::diagnostics::{Diagnostic, Diagnostics};
use crate::function::Function;
use crate::object::Object;
use crate::resource::Resource;
use crate::schema::Schema;

/// A provider: its configuration and what it offers.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// What `configure` makes and all handlers share, for example an API client.
    type Client: Send + Sync + 'static;

    /// Short name, the prefix of all type names (`siterecovery`).
    fn name(&self) -> &str;

    /// Arguments of the provider block.
    fn schema(&self) -> Schema {
        Schema::new()
    }

    /// Static checks of the provider block beyond the schema's; values may be unknown.
    async fn validate(
        &self,
        _cx: &Context<Self::Client>,
        _config: &Object,
        _report: &mut Diagnostics,
    ) {
    }

    /// Makes the client. Values may be unknown during plan: answer `Ok(None)` when the client cannot be made yet, and
    /// only the calls that need it will fail.
    async fn configure(
        &self,
        cx: &Context<Self::Client>,
        config: &Object,
    ) -> Result<Option<Self::Client>, Diagnostics>;

    /// Managed resources.
    fn resources(&self) -> Vec<Box<dyn Resource<Self::Client>>> {
        Vec::new()
    }

    /// Data sources.
    fn data_sources(&self) -> Vec<Box<dyn DataSource<Self::Client>>> {
        Vec::new()
    }

    /// Ephemeral resources (Terraform 1.10 and later).
    fn ephemeral_resources(&self) -> Vec<Box<dyn EphemeralResource<Self::Client>>> {
        Vec::new()
    }

    /// List resources (Terraform 1.14 and later); each needs a managed resource of its name that has an identity.
    fn list_resources(&self) -> Vec<Box<dyn ListResource<Self::Client>>> {
        Vec::new()
    }

    /// Actions (Terraform 1.14 and later).
    fn actions(&self) -> Vec<Box<dyn Action<Self::Client>>> {
        Vec::new()
    }

    /// Functions (Terraform 1.8 and later); they never see the client.
    fn functions(&self) -> Vec<Box<dyn Function>> {
        Vec::new()
    }
}

/// Reads something that Terraform does not manage.
#[async_trait]
pub trait DataSource<C: Send + Sync + 'static>: Send + Sync {
    /// Full type name with the provider's prefix.
    fn type_name(&self) -> &str;

    /// Arguments and results.
    fn schema(&self) -> Schema;

    /// Static checks beyond the schema's; values may be unknown.
    async fn validate(&self, _cx: &Context<C>, _config: &Object, _report: &mut Diagnostics) {}

    /// Fills the results into `state`, which starts as a copy of the configuration. Not found is an error.
    async fn read(
        &self,
        cx: &Context<C>,
        config: &Object,
        state: &mut Object,
    ) -> Result<(), Diagnostics>;
}

/// What opening an ephemeral resource gave.
#[derive(Debug, Default, Clone)]
pub struct Opened {
    /// Configuration plus results, wholly known.
    pub result: Object,
    /// Bytes for renew and close; put all that close needs here.
    pub private: Vec<u8>,
    /// When to renew; take a safety margin.
    pub renew_at: Option<SystemTime>,
}

/// What a renewal gave.
#[derive(Debug, Default, Clone)]
pub struct Renewed {
    /// Bytes for the next renewal (close gets those of open).
    pub private: Vec<u8>,
    /// When to renew next; `None` ends the renewals.
    pub renew_at: Option<SystemTime>,
}

/// A value that lives during one Terraform command and is never stored.
#[async_trait]
pub trait EphemeralResource<C: Send + Sync + 'static>: Send + Sync {
    /// Full type name with the provider's prefix.
    fn type_name(&self) -> &str;

    /// Arguments and results.
    fn schema(&self) -> Schema;

    /// Static checks beyond the schema's; values may be unknown.
    async fn validate(&self, _cx: &Context<C>, _config: &Object, _report: &mut Diagnostics) {}

    /// Opens it: `opened.result` starts as a copy of the configuration.
    async fn open(
        &self,
        cx: &Context<C>,
        config: &Object,
        opened: &mut Opened,
    ) -> Result<(), Diagnostics>;

    /// Keeps it alive.
    async fn renew(&self, _cx: &Context<C>, private: &[u8]) -> Result<Renewed, Diagnostics> {
        Ok(Renewed {
            private: private.to_vec(),
            renew_at: None,
        })
    }

    /// Ends it; gets the private bytes of open.
    async fn close(&self, _cx: &Context<C>, _private: &[u8]) -> Result<(), Diagnostics> {
        Ok(())
    }
}

/// One object found by a list resource.
#[derive(Debug, Clone)]
pub struct ListItem {
    /// Its identity.
    pub identity: Object,
    /// Text for people.
    pub display_name: String,
    /// The whole object as the managed resource's state, when `include_resource` was asked for.
    pub resource: Option<Object>,
    /// Warning about this object.
    pub warning: Option<Diagnostic>,
}

/// Takes the objects of a listing.
#[derive(Debug)]
pub struct ListSink {
    pub(crate) sender: mpsc::Sender<ListItem>,
    pub(crate) left: u64,
}

impl ListSink {
    /// Sends one; answers `false` when no more are wanted (limit reached or the client has gone): return then.
    pub async fn send(&mut self, item: ListItem) -> bool {
        if self.left == 0 || self.sender.send(item).await.is_err() {
            return false;
        }
        self.left -= 1;
        self.left > 0
    }
}

/// Finds existing objects for `terraform query`.
#[async_trait]
pub trait ListResource<C: Send + Sync + 'static>: Send + Sync {
    /// Type name of the managed resource whose objects it finds.
    fn type_name(&self) -> &str;

    /// Arguments of the inner `config` block.
    fn schema(&self) -> Schema {
        Schema::new()
    }

    /// Static checks beyond the schema's; values may be unknown.
    async fn validate(&self, _cx: &Context<C>, _config: &Object, _report: &mut Diagnostics) {}

    /// Pages lazily through the remote system; `include_resource` asks for [`ListItem::resource`].
    async fn list(
        &self,
        cx: &Context<C>,
        config: &Object,
        include_resource: bool,
        sink: &mut ListSink,
    ) -> Result<(), Diagnostics>;
}

/// Sends progress lines of a running action.
#[derive(Debug, Clone)]
pub struct Progress {
    pub(crate) sender: mpsc::Sender<String>,
}

impl Progress {
    /// Shows a line to the user.
    pub async fn send(&self, message: impl Into<String>) {
        // A client that has gone away no longer reads progress; the action itself goes on.
        let _ = self.sender.send(message.into()).await;
    }

    /// For tests of actions: the receiver gets the lines.
    pub fn channel(capacity: usize) -> (Self, mpsc::Receiver<String>) {
        let (sender, receiver) = mpsc::channel(capacity);
        (Self { sender }, receiver)
    }
}

/// Something to do that is not a resource.
#[async_trait]
pub trait Action<C: Send + Sync + 'static>: Send + Sync {
    /// Full type name with the provider's prefix.
    fn type_name(&self) -> &str;

    /// Arguments of the inner `config` block.
    fn schema(&self) -> Schema;

    /// Static checks beyond the schema's; values may be unknown.
    async fn validate(&self, _cx: &Context<C>, _config: &Object, _report: &mut Diagnostics) {}

    /// Checks with the remote system whether it could be done; values may be unknown, nothing may be changed.
    async fn plan(&self, _cx: &Context<C>, _config: &Object) -> Result<(), Diagnostics> {
        Ok(())
    }

    /// Does it.
    async fn invoke(
        &self,
        cx: &Context<C>,
        config: &Object,
        progress: &Progress,
    ) -> Result<(), Diagnostics>;
}
