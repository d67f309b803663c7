//! Jobs run as sagas.
//!
//! A workflow is a list of nodes. Each node is idempotent and has an undo; after each one the job is
//! written to the store, so a killed orchestrator goes on where it was: at worst one node is repeated. When
//! a node fails or the job is cancelled, the nodes done so far (and the one that failed, which may be half
//! done) are undone in reverse order.
//!
//! ```text
//!   Forward: node 0 ─► node 1 ─► node 2 ─► Ended (Succeeded)
//!                         │ refused or cancelled
//!                         ▼
//!   Unwinding: undo 1 ─► undo 0 ─► Ended (Failed or Cancelled)
//! ```
//!
//! A node that waits ([`Outcome::Wait`]) is asked again when the bell rings or a second has passed.

pub mod choose;
pub mod disable_protection;
pub mod drill;
pub mod drill_cleanup;
mod drill_report;
pub mod enable_protection;
pub mod failback;
pub mod failover;
pub mod failover_steps;
mod failures;
pub mod fence;
pub mod initial_replication;
pub mod person;
mod plan_action;
pub mod reshape;
pub mod resynchronize;
pub mod runner;
pub mod simple;
pub mod start;
pub mod state;
pub mod steps;

#[cfg(test)]
mod tests;

use arm_model::ArmError;
use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::app::App;
use crate::fault::Fault;
use crate::store::records::{self, Item};
use state::JobRecord;

/// Result of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The node is done.
    Done,
    /// Ask again later.
    Wait,
}

/// What a node works with.
pub struct Run<'a> {
    /// Shared parts.
    pub app: &'a App,
    /// The job; changes are stored after the node.
    pub job: &'a mut JobRecord,
}

// === impl Run ===

impl Run<'_> {
    /// How long the present node has been waiting, over restarts.
    #[must_use]
    pub fn waited_ms(&self) -> i64 {
        self.app
            .now_ms()
            .saturating_sub(self.job.node_since_unix_ms)
    }

    /// Whether an engine has been away for longer than `patience_ms`. Before the present node, or while this process was
    /// not there, nobody could hear it.
    #[must_use]
    pub fn is_away(&self, engine_id: &str, patience_ms: i64) -> bool {
        let now = self.app.now_ms();
        let live = self.app.fleet.get(engine_id).unwrap_or_default();
        let heard = live.last_seen_unix_ms.max(self.job.node_since_unix_ms);
        !live.connected(now) && now.saturating_sub(heard) > patience_ms
    }

    /// All parameters of the workflow.
    ///
    /// # Errors
    /// 500 when they are of another shape than this release stores.
    pub fn request<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        serde_json::from_value(self.job.input.clone()).map_err(|error| {
            Fault::refuse(
                500,
                ArmError::new(
                    "InternalError",
                    format!("The stored request can't be read: {error}."),
                ),
            )
        })
    }

    /// An item by its id or key.
    ///
    /// # Errors
    /// 404; failures of the store.
    pub async fn item(&self, id: &str) -> Result<Item, Fault> {
        let item = records::get::<Item>(self.app.store.as_ref(), &id.to_ascii_lowercase()).await?;
        item.map(|item| item.record)
            .ok_or_else(|| Fault::not_found(id))
    }

    /// Text parameter of the workflow.
    #[must_use]
    pub fn input(&self, name: &str) -> &str {
        self.job
            .input
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }
}

/// One kind of job.
#[async_trait]
pub trait Workflow: Send + Sync {
    /// Does a node. Repeating it must be harmless.
    async fn act(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault>;

    /// Takes a node back, done or half done. Repeating it must be harmless.
    async fn undo(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault>;

    /// What a cancel at the present node is told as, when it is more than the end of the job.
    fn cancelled(&self, _run: &Run<'_>) -> Option<ArmError> {
        None
    }

    /// Called once when the job has failed and everything is undone.
    async fn failed(&self, _run: &mut Run<'_>) -> Result<(), Fault> {
        Ok(())
    }
}

/// The workflow of a name; names are stored, so they never change their meaning.
#[must_use]
pub fn workflow(name: &str) -> Option<&'static dyn Workflow> {
    Some(match name {
        "put" => &simple::Put,
        "remove" => &simple::Remove,
        "refresh" => &simple::Refresh,
        "enableProtection" => &enable_protection::EnableProtection,
        "initialReplication" => &initial_replication::InitialReplication,
        "disableProtection" => &disable_protection::DisableProtection,
        "reshape" => &reshape::Reshape,
        "resynchronize" => &resynchronize::Resynchronize,
        "testFailover" => &drill::TestFailover,
        "failback" => &failback::Failback,
        "failover" => &failover::Failover,
        "failoverStep" => &failover_steps::FailoverStep,
        "testFailoverCleanup" => &drill_cleanup::TestFailoverCleanup,
        _ => return None,
    })
}
