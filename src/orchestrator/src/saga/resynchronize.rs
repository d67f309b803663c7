//! A comparison of source and replica on request (`repairReplication`). Input: `{item}`. The engine makes one for each
//! value of a counter; the job ends when it says that ours was carried out.

use arm_model::ArmError;
use arm_model::job::Task;
use async_trait::async_trait;
use protection::Event;
use serde_json::Value;

use super::enable_protection::{host_disconnected, item_name};
use super::initial_replication::percent;
use super::state::fresh_task;
use super::{Outcome, Run, Workflow};
use crate::fault::Fault;
use crate::store::Expect;
use crate::store::records::{self, Item};

/// See the module.
pub struct Resynchronize;

/// Tasks.
#[must_use]
pub fn tasks() -> Vec<Task> {
    vec![
        fresh_task(
            "RepairReplicationPreflightChecksTask",
            "Prerequisites check for resynchronization",
        ),
        fresh_task("RepairReplicationTask", "Starting resynchronization"),
        fresh_task("WaitForResynchronizationTask", "Resynchronization"),
    ]
}

#[async_trait]
impl Workflow for Resynchronize {
    async fn act(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        let app = run.app;
        let key = run.input("item").to_ascii_lowercase();
        let item = records::get::<Item>(app.store.as_ref(), &key)
            .await?
            .filter(|item| item.record.life.item.is_active())
            .ok_or_else(|| {
                Fault::refuse(
                    409,
                    ArmError::new(
                        "ProtectionDisabled",
                        "Protection was switched off before the resynchronization was finished.",
                    ),
                )
            })?;
        match node {
            0 => {
                if !app.fleet.connected(&item.record.engine_id, app.now_ms()) {
                    return Err(host_disconnected(app, &item.record.engine_id));
                }
                // Chosen before it is written: a repeated node asks for the same comparison, not for another one.
                run.job.remember("wanted", item.record.resynchronize + 1);
                Ok(Outcome::Done)
            }
            1 => {
                let wanted = wanted(run);
                if item.record.resynchronize < wanted {
                    protection::step(item.record.life, Event::Resynchronise)?;
                    let changed = Item {
                        resynchronize: wanted,
                        ..item.record
                    };
                    app.store
                        .apply(vec![records::put(key, &changed, Expect::Etag(item.etag))?])
                        .await?;
                }
                app.ring();
                Ok(Outcome::Done)
            }
            _ => {
                let live = app.fleet.get(&item.record.engine_id).unwrap_or_default();
                let Some(status) = live.replication(item_name(&item.record.id)) else {
                    return Ok(Outcome::Wait);
                };
                if status.resynchronized >= wanted(run) {
                    run.job.properties.percent_complete = Some(100.0);
                    return Ok(Outcome::Done);
                }
                if let Some(percent) =
                    percent(status.progress_done_bytes, status.progress_total_bytes)
                {
                    run.job.properties.percent_complete = Some(f64::from(percent.min(99)));
                }
                Ok(Outcome::Wait)
            }
        }
    }

    /// A comparison that was asked for does no harm: it is not taken back.
    async fn undo(&self, _run: &mut Run<'_>, _node: usize) -> Result<Outcome, Fault> {
        Ok(Outcome::Done)
    }
}

fn wanted(run: &Run<'_>) -> u64 {
    run.job
        .recall("wanted")
        .and_then(Value::as_u64)
        .unwrap_or_default()
}
