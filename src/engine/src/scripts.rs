//! Scripts of recovery plans on this host: orders of the desired state, carried out by `plan_script`, told in reports.
//!
//! A script starts only on an order that the orchestrator has just sent: what the kept state lists may have been withdrawn
//! meanwhile. What was started before we died is told as what it is: its end is not known.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use engine_protocol::v1::{self, script_status::Outcome as Said};
use plan_script::{Order, Outcome, Scripts, Status};
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::config::Config;
use crate::source::Told;

/// See the module.
pub struct PlanScripts {
    scripts: Arc<Scripts>,
    board: Arc<Board>,
    listed: Mutex<BTreeSet<String>>,
}

impl PlanScripts {
    /// Takes up what is noted of earlier runs.
    pub fn open(config: &Config, board: Arc<Board>) -> anyhow::Result<Arc<Self>> {
        let notes = config.state_folder().join("scripts");
        let scripts = Scripts::open(config.scripts_folder.clone(), notes)
            .context("read the notes of recovery plans' scripts")?;
        Ok(Arc::new(Self {
            scripts,
            board,
            listed: Mutex::default(),
        }))
    }

    /// Makes what runs equal to the orders.
    pub async fn apply(&self, orders: &[v1::ScriptOrder], told: Told) {
        let listed: BTreeSet<String> = orders.iter().map(|order| order.id.clone()).collect();
        self.scripts.withdraw_others(&listed);
        *self.listed() = listed;
        if told == Told::Now {
            for order in orders {
                let order = Order {
                    id: order.id.clone(),
                    path: order.path.clone(),
                    context: order.context_json.clone(),
                    limit: Duration::from_secs(u64::from(order.timeout_seconds)),
                    repeatable: order.repeatable,
                };
                self.scripts.take(&order).await;
            }
        }
        self.show();
    }

    /// Tells of each change, until `stop`.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.scripts.watch();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = changes.changed() => self.show(),
            }
        }
    }

    fn show(&self) {
        // Held until the picture is handed over: of two at a time the older would else come last and stay.
        let listed = self.listed();
        let known = listed.iter().filter_map(|id| self.scripts.status(id));
        self.board.set_scripts(known.map(message).collect());
        drop(listed);
    }

    fn listed(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn message(status: Status) -> v1::ScriptStatus {
    let (outcome, exit_code, reason) = match status.outcome {
        Outcome::Running => (Said::Running, 0, String::new()),
        Outcome::Exited(code) => (Said::Exited, code, String::new()),
        Outcome::Signalled(signal) => (Said::Signalled, signal, String::new()),
        Outcome::TimedOut => (Said::TimedOut, 0, String::new()),
        Outcome::Unknown => (Said::Unknown, 0, String::new()),
        Outcome::Withdrawn => (Said::Withdrawn, 0, String::new()),
        Outcome::Refused(reason) => (Said::Refused, 0, reason),
    };
    v1::ScriptStatus {
        id: status.id,
        outcome: outcome.into(),
        exit_code,
        output: status.output,
        started_unix_ms: status.started_unix_ms,
        ended_unix_ms: status.ended_unix_ms,
        reason,
    }
}
