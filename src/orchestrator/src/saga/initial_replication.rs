//! Waits for the end of the first copy and shows its progress. Input: `{item, generation}`. Holds no lock:
//! protection can be switched off in the meantime, which ends this job too.

use arm_model::ArmError;
use arm_model::job::Task;
use async_trait::async_trait;

use super::enable_protection::item_name;
use super::state::fresh_task;
use super::{Outcome, Run, Workflow};
use crate::fault::Fault;
use crate::store::records::{self, Item};

/// See the module.
pub struct InitialReplication;

/// Tasks.
#[must_use]
pub fn tasks() -> Vec<Task> {
    vec![
        fresh_task("WaitForInitialReplicationTask", "Initial replication"),
        fresh_task("FinalizeProtectionTask", "Finalizing protection"),
    ]
}

#[async_trait]
impl Workflow for InitialReplication {
    async fn act(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        let key = run.input("item").to_ascii_lowercase();
        let generation = run
            .job
            .input
            .get("generation")
            .and_then(serde_json::Value::as_u64);
        let item = records::get::<Item>(run.app.store.as_ref(), &key).await?;
        let item = item
            .filter(|item| {
                item.record.life.item.is_active()
                    && Some(item.record.life.item.generation.0) == generation
            })
            .ok_or_else(|| {
                Fault::refuse(
                    409,
                    ArmError::new(
                        "ProtectionDisabled",
                        "Protection was switched off before the first copy was finished.",
                    ),
                )
            })?;
        if node > 0 || item.record.life.item.copied_once {
            run.job.properties.percent_complete = Some(100.0);
            return Ok(Outcome::Done);
        }
        let live = run
            .app
            .fleet
            .get(&item.record.engine_id)
            .unwrap_or_default();
        if let Some(status) = live.replication(item_name(&item.record.id))
            && let Some(percent) = percent(status.progress_done_bytes, status.progress_total_bytes)
        {
            run.job.properties.percent_complete = Some(f64::from(percent));
        }
        Ok(Outcome::Wait)
    }

    async fn undo(&self, _run: &mut Run<'_>, _node: usize) -> Result<Outcome, Fault> {
        Ok(Outcome::Done)
    }
}

/// Whole percent, 99 until all is done.
#[must_use]
pub fn percent(done: u64, total: u64) -> Option<u8> {
    if total == 0 {
        return None;
    }
    let share = u128::from(done.min(total)) * 100 / u128::from(total);
    u8::try_from(share).ok()
}
