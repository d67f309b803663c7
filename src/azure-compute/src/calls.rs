//! Calls of ARM, each with one of three outcomes: done, not done, unknown.
//!
//! Reads and polls are repeated by the client. A write is sent once; what became of it is decided by looking at the resource, never by sending
//! it again blindly: a second PUT beside a running first one is refused by some types and begins anew with others.

use std::time::Duration;

use arm_client::{CancellationToken, Client, ClientError, ClientErrorKind, Method, Retry, Wait};
use serde_json::Value;
use tokio::time::Instant;

use crate::error::{TargetError, TargetErrorKind};

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Time allowed for one resource to be made, changed or removed.
    pub resource: Duration,
    /// Pause between two looks at a resource, and first pause before a write is tried again; that one doubles, up to 20 times.
    pub pause: Duration,
    /// How often a write is tried in all; at least 1.
    pub attempts: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            resource: Duration::from_secs(30 * 60),
            pause: Duration::from_secs(2),
            attempts: 6,
        }
    }
}

/// The object and step of a call, for errors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) step: &'static str,
    pub(crate) about: &'a str,
}

impl At<'_> {
    pub(crate) fn failed(&self, error: ClientError) -> TargetError {
        TargetError::of(self.step, self.about, error)
    }
}

#[derive(Debug)]
pub(crate) struct Calls {
    reads: Client,
    writes: Client,
    limits: Limits,
}

impl Calls {
    pub(crate) fn new(client: Client, limits: Limits) -> Self {
        Calls {
            writes: client.with_attempts(1),
            reads: client,
            limits,
        }
    }

    pub(crate) fn attempts(&self) -> u32 {
        self.limits.attempts.max(1)
    }

    /// Reads; `None` when it does not exist.
    pub(crate) async fn find(&self, at: At<'_>, path: &str) -> Result<Option<Value>, TargetError> {
        self.reads.find(path).await.map_err(|e| at.failed(e))
    }

    /// Reads all pages; nothing when what would hold the list does not exist.
    pub(crate) async fn list(&self, at: At<'_>, path: &str) -> Result<Vec<Value>, TargetError> {
        match self.reads.list(path).await {
            Ok(all) => Ok(all),
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(at.failed(error)),
        }
    }

    /// Reads a resource once nothing runs on it any more; `None` when it does not exist then.
    pub(crate) async fn settled(
        &self,
        at: At<'_>,
        path: &str,
        cancel: &CancellationToken,
    ) -> Result<Option<Value>, TargetError> {
        let until = Instant::now() + self.limits.resource;
        loop {
            let Some(found) = self.find(at, path).await? else {
                return Ok(None);
            };
            if !is_running(&found) {
                return Ok(Some(found));
            }
            if Instant::now() >= until {
                return Err(TargetError::new(
                    TargetErrorKind::TimedOut,
                    at.step,
                    at.about,
                    format!(
                        "it is still `{}` after {} minutes",
                        state_of(&found),
                        self.limits.resource.as_secs() / 60
                    ),
                    "it may still end well: try again, which looks first",
                ));
            }
            self.sleep(at, self.limits.pause, cancel).await?;
        }
    }

    /// Sends a write once and waits for its end.
    pub(crate) async fn send(
        &self,
        at: At<'_>,
        method: Method,
        path: &str,
        body: Option<&Value>,
        cancel: &CancellationToken,
    ) -> Result<Value, Sent> {
        if cancel.is_cancelled() {
            return Err(Sent::Failed(interrupted(at)));
        }
        // Not cut short by a cancellation: a request that is on its way is better known than unknown.
        let operation = match self.writes.begin(method, path, body).await {
            Ok(operation) => operation,
            Err(error) => {
                let again = error.retry() != Retry::No;
                let error = at.failed(error);
                return Err(if again || error.kind() == TargetErrorKind::Busy {
                    Sent::LookAgain(error)
                } else {
                    Sent::Failed(error)
                });
            }
        };
        let wait = Wait::new(self.limits.resource, cancel.clone());
        self.reads.finish(&operation, &wait).await.map_err(|error| {
            use ClientErrorKind as K;
            let final_word = matches!(
                error.kind(),
                K::OperationFailed | K::OperationCancelled | K::TimedOut | K::Interrupted
            );
            let error = at.failed(error);
            if final_word && error.kind() != TargetErrorKind::Busy {
                Sent::Failed(error)
            } else {
                // The operation was accepted; that its status can't be read says nothing about it.
                Sent::LookAgain(error)
            }
        })
    }

    /// The pause before a write is tried again.
    pub(crate) async fn back_off(
        &self,
        at: At<'_>,
        attempt: u32,
        asked: Option<Duration>,
        cancel: &CancellationToken,
    ) -> Result<(), TargetError> {
        let doubled = self
            .limits
            .pause
            .saturating_mul(1 << attempt.saturating_sub(1).min(10));
        let most = self.limits.pause.saturating_mul(20);
        self.sleep(at, asked.unwrap_or(doubled.min(most)), cancel)
            .await
    }

    async fn sleep(
        &self,
        at: At<'_>,
        pause: Duration,
        cancel: &CancellationToken,
    ) -> Result<(), TargetError> {
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = cancel.cancelled() => Err(interrupted(at)),
        }
    }
}

/// How a write ended that did not end well.
#[derive(Debug)]
pub(crate) enum Sent {
    /// It is refused or failed, and would again.
    Failed(TargetError),
    /// It may have been done or not, or may work later: look.
    LookAgain(TargetError),
}

fn interrupted(at: At<'_>) -> TargetError {
    TargetError::new(
        TargetErrorKind::Interrupted,
        at.step,
        at.about,
        "the caller asked to stop",
        "what was begun goes on in Azure; make again or remove",
    )
}

/// `provisioningState`, empty without one.
pub(crate) fn state_of(resource: &Value) -> &str {
    resource
        .pointer("/properties/provisioningState")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Whether an operation runs on the resource.
pub(crate) fn is_running(resource: &Value) -> bool {
    let state = state_of(resource);
    !["", "Succeeded", "Failed", "Canceled"]
        .iter()
        .any(|s| s.eq_ignore_ascii_case(state))
}

/// Whether it is made and whole.
pub(crate) fn is_good(resource: &Value) -> bool {
    matches!(
        state_of(resource).to_ascii_lowercase().as_str(),
        "" | "succeeded"
    )
}
