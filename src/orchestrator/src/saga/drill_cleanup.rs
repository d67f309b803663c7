//! Clean up a test failover of an item or a plan. Input: `{plan?, items: [id], comments}`. Test VMs and their files go; the
//! drill of a plan is over when those of all its members are gone. When a host doesn't confirm it in time, the drill stays as
//! it is and the request can be repeated.

use std::collections::{BTreeMap, BTreeSet};

use arm_model::job::Task;
use arm_model::{ArmError, JobId, VaultId};
use async_trait::async_trait;
use protection::{DrillState, Event};
use serde_json::{Value, json};

use super::enable_protection::item_name;
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
    // First the drill of each item ends, so that of members that are cleaned up at the same time the last one sees it.
    let mut jobs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for key in items(run) {
        let item = records::update::<Item>(store, &key, |item| {
            let (life, _) = protection::step(item.life, Event::CleanupDone).ok()?;
            Some(Item {
                life,
                ..item.clone()
            })
        })
        .await?;
        if let Some((item, job)) = item.and_then(|item| Some((item.id, item.drill_job?))) {
            let members = jobs.entry(job.to_ascii_lowercase()).or_default();
            members.insert(item_name(&item).to_owned());
        }
    }
    // Then the drills' jobs: once an item has forgotten its job, a repeat would not find it.
    let plan = run.input("plan").to_ascii_lowercase();
    for (key, members) in &jobs {
        let is_over = is_over(run, key).await?;
        records::update::<JobRecord>(store, key, |job| {
            let mut job = job.clone();
            let details = &mut job.properties.custom_details;
            for vm in details.protected_item_details.iter_mut().flatten() {
                if is_over || members.contains(&vm.name) {
                    "Removed".clone_into(&mut vm.state);
                }
            }
            if is_over {
                details.extra.insert("cleanup".to_owned(), cleanup.clone());
                details.test_failover_status = Some("Completed".to_owned());
                details.comments.clone_from(&comments);
            }
            Some(job)
        })
        .await?;
        if is_over {
            forget_plan(run, key).await?;
        }
    }
    for key in items(run) {
        records::update::<Item>(store, &key, |item| {
            (item.life.item.drill == DrillState::None && item.drill_job.is_some()).then(|| Item {
                drill_job: None,
                ..item.clone()
            })
        })
        .await?;
    }
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

/// Whether no member of a drill, by the key of its job, has a test VM any more.
async fn is_over(run: &Run<'_>, job: &str) -> Result<bool, Fault> {
    let items = records::list::<Item>(run.app.store.as_ref(), &below(job)).await?;
    Ok(!items.iter().any(|item| {
        let item = &item.record;
        let is_member = |of: &String| of.eq_ignore_ascii_case(job);
        item.life.item.drill != DrillState::None && item.drill_job.as_ref().is_some_and(is_member)
    }))
}

/// A plan whose members were cleaned up one by one has no drill any more either.
async fn forget_plan(run: &Run<'_>, job: &str) -> Result<(), Fault> {
    let store = run.app.store.as_ref();
    for plan in records::list::<Plan>(store, &below(job)).await? {
        records::update::<Plan>(store, &plan.key, |plan| {
            let of = plan.drill_job.as_ref()?;
            of.eq_ignore_ascii_case(job).then(|| Plan {
                drill_job: None,
                ..plan.clone()
            })
        })
        .await?;
    }
    Ok(())
}

/// The vault of a job, as the beginning of keys.
fn below(job: &str) -> String {
    let vault = JobId::parse(job).ok().and_then(|id| VaultId::of(&id));
    vault.map_or_else(String::new, |vault| format!("{}/", vault.key()))
}
