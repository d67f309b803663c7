//! More or less disks of a protected VM, without a new copy of the others. Input: `{item, disks, before}`.
//!
//! ```text
//!  preflight ─► change the record (engine is told) ─► every disk is tracked, and no other
//! ```
//!
//! A job that fails or is cancelled gives the VM its disks of before. Older recovery points stay as they were in any case.

use arm_model::ArmError;
use arm_model::job::Task;
use async_trait::async_trait;
use engine_protocol::v1::{disk_status::Tracking, replication_status::State};
use serde_json::Value;

use super::enable_protection::{from_finding, host_disconnected, item_name};
use super::initial_replication::percent;
use super::state::fresh_task;
use super::{Outcome, Run, Workflow};
use crate::fault::Fault;
use crate::gateway::desired;
use crate::store::records::{self, Item};

/// See the module.
pub struct Reshape;

/// Tasks.
#[must_use]
pub fn tasks() -> Vec<Task> {
    vec![
        fresh_task(
            "ChangeDisksPreflightChecksTask",
            "Prerequisites check for changing the disks",
        ),
        fresh_task("ChangeDisksTask", "Changing the replicated disks"),
        fresh_task("WaitForDisksTask", "Replicating the disks"),
    ]
}

#[async_trait]
impl Workflow for Reshape {
    async fn act(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        let app = run.app;
        let key = run.input("item").to_ascii_lowercase();
        let item = records::get::<Item>(app.store.as_ref(), &key)
            .await?
            .filter(|item| item.record.life.item.is_active())
            .ok_or_else(gone)?
            .record;
        match node {
            0 if !app.fleet.connected(&item.engine_id, app.now_ms()) => {
                Err(host_disconnected(app, &item.engine_id))
            }
            0 => Ok(Outcome::Done),
            1 => {
                let disks = disks(run, "disks");
                set(run, &key, &disks).await?;
                let told = desired::refresh(app, &item.engine_id).await?.generation;
                run.job.remember("told", told);
                Ok(Outcome::Done)
            }
            _ => settled(run, &item),
        }
    }

    async fn undo(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        if node == 1 {
            let key = run.input("item").to_ascii_lowercase();
            let before = disks(run, "before");
            set(run, &key, &before).await?;
        }
        Ok(Outcome::Done)
    }
}

fn gone() -> Fault {
    Fault::refuse(
        409,
        ArmError::new(
            "ProtectionDisabled",
            "Protection was switched off before the disks were changed.",
        ),
    )
}

fn disks(run: &Run<'_>, name: &str) -> Vec<String> {
    let list = run.job.input.get(name).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|disk| disk.as_str().map(str::to_owned))
        .collect()
}

async fn set(run: &Run<'_>, key: &str, disks: &[String]) -> Result<(), Fault> {
    records::update::<Item>(run.app.store.as_ref(), key, |item| {
        (item.disk_ids != disks).then(|| {
            let mut next = item.clone();
            next.disk_ids = disks.to_vec();
            next.request.disks_to_include = Some(disks.to_vec());
            if let Some(seeds) = &mut next.request.seeds {
                seeds.retain(|seed| {
                    disks
                        .iter()
                        .any(|disk| disk.eq_ignore_ascii_case(&seed.disk_id))
                });
            }
            next
        })
    })
    .await?;
    run.app.ring();
    Ok(())
}

/// The engine has taken the change in, and knows of exactly these disks that their changes are known.
fn settled(run: &mut Run<'_>, item: &Item) -> Result<Outcome, Fault> {
    let live = run.app.fleet.get(&item.engine_id).unwrap_or_default();
    let told = run.job.recall("told").and_then(Value::as_u64).unwrap_or(0);
    let Some(status) = live
        .replication(item_name(&item.id))
        .filter(|status| status.generation == item.life.item.generation.0)
        .filter(|_| live.report.observed_generation >= told)
    else {
        return Ok(Outcome::Wait);
    };
    if status.state() == State::Blocked
        && let Some(finding) = status.findings.iter().find(|finding| finding.critical)
    {
        return Err(Fault::refuse(
            409,
            from_finding(finding, "properties.providerSpecificDetails.diskIds"),
        ));
    }
    if let Some(percent) = percent(status.progress_done_bytes, status.progress_total_bytes) {
        run.job.properties.percent_complete = Some(f64::from(percent));
    }
    let wanted = disks(run, "disks");
    let has = |id: &str| wanted.iter().any(|disk| disk.eq_ignore_ascii_case(id));
    let tracked = |id: &String| {
        status.disks.iter().any(|disk| {
            disk.disk_id.eq_ignore_ascii_case(id) && disk.tracking() == Tracking::Tracked
        })
    };
    let done = status.state() == State::Protected
        && wanted.iter().all(tracked)
        && status.disks.iter().all(|disk| has(&disk.disk_id));
    Ok(if done { Outcome::Done } else { Outcome::Wait })
}
