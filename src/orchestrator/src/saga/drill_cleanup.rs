//! Clean up a test failover of an item or a plan. Input: `{plan?, items: [id], comments}`. Test VMs and their
//! files go; when a host doesn't confirm it in time, the drill stays as it is and the request can be repeated.

use arm_model::ArmError;
use arm_model::job::Task;
use async_trait::async_trait;
use protection::{DrillState, Event};
use serde_json::{Value, json};

use super::state::{JobRecord, fresh_task};
use super::{Outcome, Run, Workflow, drill};
use crate::fault::Fault;
use crate::store::records::{self, Item, Plan, Recovered};

/// See the module.
pub struct TestFailoverCleanup;

/// Tasks.
#[must_use]
pub fn tasks() -> Vec<Task> {
    vec![
        fresh_task(
            "TestFailoverCleanupPreflightChecksTask",
            "Prerequisites check for test failover cleanup",
        ),
        fresh_task(
            "DeleteTestVirtualMachinesTask",
            "Deleting the test virtual machines",
        ),
        fresh_task("CompleteTestFailoverTask", "Completing the test failover"),
    ]
}

#[async_trait]
impl Workflow for TestFailoverCleanup {
    async fn act(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        match node {
            0 => {
                advance(run, Event::CleanupStart, true).await?;
                Ok(Outcome::Done)
            }
            1 => delete(run).await,
            _ => complete(run).await,
        }
    }

    async fn undo(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        if node == 0 {
            advance(run, Event::CleanupFail, false).await?;
        }
        Ok(Outcome::Done)
    }
}

fn items(run: &Run<'_>) -> Vec<String> {
    let list = run.job.input.get("items").and_then(Value::as_array);
    list.map(|list| {
        list.iter()
            .filter_map(|id| id.as_str().map(str::to_ascii_lowercase))
            .collect()
    })
    .unwrap_or_default()
}

async fn advance(run: &Run<'_>, event: Event, strict: bool) -> Result<(), Fault> {
    let store = run.app.store.as_ref();
    for key in items(run) {
        let Some(item) = records::get::<Item>(store, &key).await? else {
            continue;
        };
        if item.record.life.item.drill == DrillState::None {
            // Cleaned up already, by a run that failed afterwards.
            continue;
        }
        match protection::step(item.record.life, event) {
            Ok((life, _)) => {
                let changed = Item {
                    life,
                    ..item.record
                };
                store
                    .apply(vec![records::put(
                        key,
                        &changed,
                        crate::store::Expect::Etag(item.etag),
                    )?])
                    .await?;
            }
            Err(refusal) if strict => return Err(refusal.into()),
            Err(_) => {}
        }
    }
    Ok(())
}

async fn delete(run: &mut Run<'_>) -> Result<Outcome, Fault> {
    let vms: Vec<(String, String)> = if let Some(memo) = run.job.recall("vms") {
        serde_json::from_value(memo.clone()).unwrap_or_default()
    } else {
        let wanted = items(run);
        let all = records::list::<Recovered>(run.app.store.as_ref(), "~recovered/").await?;
        let ours: Vec<(String, String)> = all
            .into_iter()
            .filter(|vm| wanted.contains(&vm.record.item.to_ascii_lowercase()))
            .map(|vm| (vm.record.engine_id, vm.record.id))
            .collect();
        // Kept before anything is removed: a restart must still know whom to wait for.
        run.job
            .remember("vms", serde_json::to_value(&ours).unwrap_or_default());
        return Ok(Outcome::Wait);
    };
    let outcome = drill::remove(run.app, &vms, false).await?;
    if outcome == Outcome::Wait && run.waited_ms() > run.app.patience.removal_ms {
        return Err(Fault::refuse(
            504,
            ArmError::new(
                "EngineSilent",
                "The recovery host did not confirm that the test VMs are gone.",
            )
            .advise(
                "The recovery host is away.",
                "Start its engine and repeat the cleanup.",
            ),
        ));
    }
    Ok(outcome)
}

async fn complete(run: &mut Run<'_>) -> Result<Outcome, Fault> {
    let store = run.app.store.as_ref();
    let comments = Some(run.input("comments").to_owned()).filter(|text| !text.is_empty());
    // For the drill's report.
    let asked_by = run.job.properties.custom_details.extra.get("requestedBy");
    let cleanup = json!({ "job": run.job.id, "time": run.app.now_text(), "requestedBy": asked_by });
    let mut jobs = Vec::new();
    for key in items(run) {
        if let Some(item) = records::get::<Item>(store, &key).await? {
            jobs.extend(item.record.drill_job.clone());
        }
    }
    // Drill jobs first: once the item has forgotten its job, a repeat would not find it.
    jobs.sort();
    jobs.dedup();
    for job in jobs {
        records::update::<JobRecord>(store, &job.to_ascii_lowercase(), |job| {
            let mut job = job.clone();
            let details = &mut job.properties.custom_details;
            details.extra.insert("cleanup".to_owned(), cleanup.clone());
            details.test_failover_status = Some("Completed".to_owned());
            details.comments.clone_from(&comments);
            for vm in details.protected_item_details.iter_mut().flatten() {
                "Removed".clone_into(&mut vm.state);
            }
            Some(job)
        })
        .await?;
    }
    for key in items(run) {
        records::update::<Item>(store, &key, |item| {
            if item.life.item.drill == DrillState::None && item.drill_job.is_none() {
                return None;
            }
            let (life, _) = protection::step(item.life, Event::CleanupDone).ok()?;
            Some(Item {
                life,
                drill_job: None,
                ..item.clone()
            })
        })
        .await?;
    }
    let plan = run.input("plan").to_ascii_lowercase();
    if !plan.is_empty() {
        records::update::<Plan>(store, &plan, |plan| {
            Some(Plan {
                drill_job: None,
                ..plan.clone()
            })
        })
        .await?;
    }
    run.job.properties.custom_details.comments = comments;
    Ok(Outcome::Done)
}
