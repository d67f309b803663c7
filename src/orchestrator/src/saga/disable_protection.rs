//! Switch protection off. Input: `{item, deleteReplica}`. The engine stops, forgets its tracking, deletes
//! the replica if asked and reports it; then the gateway drops the record. A job that fails leaves the item
//! in state DisablingProtection: the same request again goes on, and DELETE drops the record without the host.

use arm_model::ArmError;
use arm_model::job::Task;
use async_trait::async_trait;
use protection::Event;
use protection::life::{Awaited, Phase};

use super::state::fresh_task;
use super::{Outcome, Run, Workflow};
use crate::app::App;
use crate::failover;
use crate::fault::Fault;
use crate::immutability;
use crate::store::records::{self, Item};

/// What to do about points that nobody may delete yet.
pub const KEEP: &str = "Switch protection off without removing the replica (`deleteReplica`: false), or wait; while the VM replicates, new points come.";

/// See the module.
pub struct DisableProtection;

/// Tasks.
#[must_use]
pub fn tasks() -> Vec<Task> {
    vec![
        fresh_task(
            "DisableProtectionPreflightChecksTask",
            "Prerequisites check for disabling protection",
        ),
        fresh_task(
            "DisableProtectionOnPrimary",
            "Disabling protection on the host",
        ),
        fresh_task("UpdateDraState", "Updating the provider states"),
    ]
}

/// A host that has something to do before the item can go, and is away. After a failover the recovery host makes its VM
/// independent of the replica, which can be done while the source is lost.
#[must_use]
pub fn needed_and_away<'a>(app: &App, item: &'a Item) -> Option<&'a str> {
    let recovery = item.recovery.as_ref().filter(|side| side.due);
    let engine = match recovery {
        Some(side) if item.life.is_at_recovery() => &side.engine_id,
        _ => &item.engine_id,
    };
    (!app.fleet.connected(engine, app.now_ms())).then_some(engine)
}

/// The recovered VM is on its own feet, and the source can't confirm that it stays off.
fn source_is_lost(item: &Item) -> Fault {
    Fault::refuse(
        409,
        ArmError::new(
            "SourceHostDisconnected",
            format!(
                "The recovered VM of `{}` no longer needs the replica; its source is away and could not be told to stay off.",
                item.vm_name
            ),
        )
        .at(item.id.clone())
        .advise(
            "The source's host is lost.",
            "Remove the record with DELETE. Should the host come back, it starts the VM only with the orchestrator's permission.",
        ),
    )
}

#[async_trait]
impl Workflow for DisableProtection {
    async fn act(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        let app = run.app;
        let key = run.input("item").to_ascii_lowercase();
        let Some(item) = records::get::<Item>(app.store.as_ref(), &key).await? else {
            return Ok(Outcome::Done);
        };
        match node {
            0 => {
                match needed_and_away(app, &item.record) {
                    Some(engine) => Err(super::enable_protection::host_disconnected(app, engine)),
                    None => Ok(Outcome::Done),
                }
            }
            1 => {
                let delete_replica = run.job.input.get("deleteReplica").and_then(serde_json::Value::as_bool).unwrap_or(true);
                if matches!(item.record.life.phase, Phase::Leaving(_) | Phase::Gone) {
                    return Ok(Outcome::Done);
                }
                if delete_replica {
                    immutability::allows_deletion(app, &item.record, KEEP).await?;
                }
                failover::ask(app, &key, Event::Disable { delete_replica }.into()).await?;
                Ok(Outcome::Done)
            }
            _ if item.record.life.phase == Phase::Leaving(Awaited::Source)
                && run.is_away(&item.record.engine_id, app.patience.engine_ms) =>
            {
                Err(source_is_lost(&item.record))
            }
            _ if run.waited_ms() > app.patience.removal_ms => Err(Fault::refuse(
                504,
                ArmError::new("EngineSilent", "The engine did not report the end of protection.")
                    .at("replicationProtectedItems")
                    .advise(
                        "The host is away, or the replica can't be deleted.",
                        "Repeat the request when the host is back, or remove the record alone with DELETE.",
                    ),
            )),
            _ => Ok(Outcome::Wait),
        }
    }

    async fn undo(&self, _run: &mut Run<'_>, _node: usize) -> Result<Outcome, Fault> {
        Ok(Outcome::Done)
    }
}
