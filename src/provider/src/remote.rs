//! The calls of one resource, with its names in the errors, its time limit, and the user's interrupt.

use std::sync::Arc;
use std::time::Duration;

use arm_client::{CancellationToken, ClientError, Method, Operation, Progress, Retry, Wait};
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use tf_provider::{Cancel, Context, Diagnostics, ResourceState};

use crate::Session;
use crate::errors::{Fields, failed};

/// Calls for one object.
pub(crate) struct Remote<'a> {
    pub(crate) session: Arc<Session>,
    cancel: &'a Cancel,
    /// What the object is, such as `vault`.
    what: &'static str,
    fields: Fields,
    limit: Duration,
}

impl<'a> Remote<'a> {
    pub(crate) fn new(
        cx: &'a Context<Session>,
        what: &'static str,
        fields: Fields,
        limit: Duration,
    ) -> Result<Self, Diagnostics> {
        Ok(Remote {
            session: cx.client()?,
            cancel: cx.cancel(),
            what,
            fields,
            limit,
        })
    }

    /// Reads a resource; `None` when it doesn't exist.
    pub(crate) async fn find<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<Option<T>, Diagnostics> {
        let found = self.cancel.guard(self.session.api.find(path)).await?;
        found.map_err(|error| self.failed("Reading", &error))
    }

    /// Reads a list to its end.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<Vec<T>, Diagnostics> {
        let found = self.cancel.guard(self.session.api.list(path)).await?;
        found.map_err(|error| self.failed("Listing", &error))
    }

    /// Makes sure that a name is free: PUT would otherwise take over what somebody else manages.
    pub(crate) async fn must_not_exist(&self, id: &str, at: &str) -> Result<(), Diagnostics> {
        match self.find::<Json>(id).await? {
            None => Ok(()),
            Some(_) => Err(Diagnostics::error_at(
                at,
                format!("The {} exists already", self.what),
                format!(
                    "There is one with the id {id}.\nWhat to do: choose another name, or bring it under Terraform's \
                     care with an import block:\n\n  import {{\n    to = <address of this resource>\n    id = \"{id}\"\n  }}"
                ),
            )),
        }
    }

    /// Creates an object. Its id goes into the state as soon as it may exist, so that it is never lost.
    pub(crate) async fn create<T: DeserializeOwned>(
        &self,
        state: &mut ResourceState,
        id: &str,
        body: &Json,
    ) -> Result<T, Diagnostics> {
        state.value.set("id", id);
        let operation = self.begin_tracked(state, Method::Put, id, body).await?;
        let answer = self.finish("Creating", &operation).await?;
        self.decode("Creating", answer)
    }

    /// The first half of a creation: from a request that may have been carried out on, the state is kept.
    pub(crate) async fn begin_tracked(
        &self,
        state: &mut ResourceState,
        method: Method,
        path: &str,
        body: &Json,
    ) -> Result<Operation, Diagnostics> {
        match self
            .cancel
            .guard(self.session.api.begin(method, path, Some(body)))
            .await
        {
            Ok(Ok(operation)) => {
                state.keep();
                Ok(operation)
            }
            Ok(Err(error)) => {
                if error.retry() == Retry::UnknownOutcome {
                    state.keep();
                }
                Err(self.failed("Creating", &error))
            }
            Err(interrupted) => {
                state.keep();
                Err(interrupted)
            }
        }
    }

    /// Waits for the end of an operation and logs its progress.
    pub(crate) async fn finish(
        &self,
        verb: &str,
        operation: &Operation,
    ) -> Result<Json, Diagnostics> {
        let show = |progress: &Progress| show(self.what, progress);
        let mut wait = Wait::new(self.limit, CancellationToken::new());
        wait.progress = Some(&show);
        let outcome = self
            .cancel
            .guard(self.session.api.finish(operation, &wait))
            .await?;
        outcome.map_err(|error| self.failed(verb, &error))
    }

    /// Changes an object and gives it back as it is then.
    pub(crate) async fn update<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &Json,
    ) -> Result<T, Diagnostics> {
        let answer = self.operate("Changing", method, path, Some(body)).await?;
        self.decode("Changing", answer)
    }

    /// An action with an answer.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Json,
    ) -> Result<T, Diagnostics> {
        let answer = self
            .operate("Asking for", Method::Post, path, Some(body))
            .await?;
        self.decode("Asking for", answer)
    }

    /// Removes an object; one that is gone is fine.
    pub(crate) async fn remove(
        &self,
        method: Method,
        path: &str,
        body: Option<&Json>,
    ) -> Result<(), Diagnostics> {
        self.try_remove(method, path, body)
            .await?
            .map_err(|error| self.failed("Removing", &error))
    }

    /// Like [`Remote::remove`], with the error for a caller that knows another way.
    pub(crate) async fn try_remove(
        &self,
        method: Method,
        path: &str,
        body: Option<&Json>,
    ) -> Result<Result<(), ClientError>, Diagnostics> {
        let show = |progress: &Progress| show(self.what, progress);
        let mut wait = Wait::new(self.limit, CancellationToken::new());
        wait.progress = Some(&show);
        Ok(
            match self
                .cancel
                .guard(self.session.api.operate(method, path, body, &wait))
                .await?
            {
                Ok(_) => Ok(()),
                Err(error) if error.is_not_found() => Ok(()),
                Err(error) => Err(error),
            },
        )
    }

    async fn operate(
        &self,
        verb: &str,
        method: Method,
        path: &str,
        body: Option<&Json>,
    ) -> Result<Json, Diagnostics> {
        let show = |progress: &Progress| show(self.what, progress);
        let mut wait = Wait::new(self.limit, CancellationToken::new());
        wait.progress = Some(&show);
        let outcome = self
            .cancel
            .guard(self.session.api.operate(method, path, body, &wait))
            .await?;
        outcome.map_err(|error| self.failed(verb, &error))
    }

    /// Waits a moment, or ends when the user interrupts.
    pub(crate) async fn pause(&self, pause: Duration) -> Result<(), Diagnostics> {
        self.cancel.guard(tokio::time::sleep(pause)).await
    }

    /// The same calls, whether the user interrupts or not: for what must not be left half done. `calm` is never fired.
    pub(crate) fn undisturbed<'b>(&self, calm: &'b Cancel, limit: Duration) -> Remote<'b> {
        Remote {
            session: Arc::clone(&self.session),
            cancel: calm,
            limit,
            ..*self
        }
    }

    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    pub(crate) fn interrupted(&self) -> bool {
        self.cancel.is_cancelled()
    }

    pub(crate) fn failed(&self, verb: &str, error: &ClientError) -> Diagnostics {
        failed(
            format!("{verb} the {} failed", self.what),
            error,
            self.fields,
        )
    }

    pub(crate) fn decode<T: DeserializeOwned>(
        &self,
        verb: &str,
        answer: Json,
    ) -> Result<T, Diagnostics> {
        serde_json::from_value(answer).map_err(|error| {
            Diagnostics::error(
                format!("{verb} the {} gave an answer that can't be read", self.what),
                format!("{error}. Check that the provider's endpoint is an orchestrator's, and that both are of the same version."),
            )
        })
    }
}

/// One line for people: what the job is at.
fn show(what: &str, progress: &Progress) {
    let running = progress
        .tasks
        .iter()
        .find(|task| task.state == "InProgress");
    let target = if progress.target.is_empty() {
        what
    } else {
        progress.target.as_str()
    };
    match running {
        Some(task) => tracing::info!(
            "{target}: {}: {} ({} % of the tasks done)",
            progress.title,
            task.title,
            progress.percent()
        ),
        None => tracing::info!("{target}: {}: {}", progress.title, progress.state),
    }
}
