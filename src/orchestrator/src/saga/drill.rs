//! Test failover of an item or a plan. Input: [`DrillInput`].
//!
//! ```text
//!  preflight ─► begin (points, hosts; items marked) ─► prepare (VMs of later groups are made, not started)
//!            ─► boot group 1 ─► boot group 2 ─► …   (next one when all of the present have booted)
//! ```
//!
//! Replication is not touched: the drill has its own state axis and its own desired state entries.
//! A node that fails takes all test VMs away again.

use arm_model::ArmError;
use arm_model::job::{GroupTaskDetails, Task, TaskDetails};
use async_trait::async_trait;
use engine_protocol::v1::{self, recovered_vm_status::State};
use protection::{DrillState, Event};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::choose::{self, PointChoice};
use super::drill_report::show;
use super::enable_protection::{from_finding, host_disconnected, item_name};
use super::state::fresh_task;
use super::steps::{self, Scenario, Step};
use super::{Outcome, Run, Workflow, plan_action};
use crate::app::App;
use crate::azure_target;
use crate::fault::Fault;
use crate::fleet::Live;
use crate::store::records::{self, Item, Plan, Recovered};

/// Nodes before the boot groups.
pub(super) const BEFORE_GROUPS: usize = 3;
/// A VM that is made without being started may take so long before we go on without it.
const PREPARE_MS: i64 = 30_000;

/// See the module.
pub struct TestFailover;

/// Parameters.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DrillInput {
    /// ARM id of the plan, for a plan's drill.
    pub plan: Option<String>,
    /// ARM ids of the items by group.
    pub groups: Vec<Vec<String>>,
    /// Point of a single item's drill.
    pub point: Option<String>,
    /// Whether only application-consistent points count.
    pub application_consistent: bool,
    /// No adapter is connected.
    pub isolated: bool,
    /// ARM id of the network that it was asked for.
    #[serde(default)]
    pub network_id: Option<String>,
    /// When it was asked for.
    pub requested_unix_ms: i64,
    /// Nodes of a plan; none = those of the groups alone.
    #[serde(default)]
    pub steps: Vec<Step>,
}

/// What `begin` decides for each VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Chosen {
    /// Item's key.
    pub(super) item: String,
    /// Id of the test VM.
    pub(super) vm_id: String,
    /// Recovery host's engine.
    pub(super) engine_id: String,
    /// Recovery point.
    pub(super) point_id: String,
    /// Instant of that point.
    pub(super) point_ms: i64,
    /// Group, from 0.
    pub(super) group: usize,
}

/// Tasks of a drill.
#[must_use]
pub fn tasks(input: &DrillInput) -> Vec<Task> {
    let mut tasks = vec![
        fresh_task(
            "TestFailoverPreflightChecksTask",
            "Prerequisites check for test failover",
        ),
        fresh_task("BeginTestFailoverTask", "Create test virtual machine"),
        fresh_task(
            "PrepareTestProtectedEntitiesTask",
            "Preparing the virtual machine",
        ),
    ];
    if input.plan.is_some() {
        tasks.extend(
            input
                .groups
                .iter()
                .enumerate()
                .map(|(index, group)| group_task(index, group, "BootTestProtectedEntitiesTask")),
        );
    } else {
        tasks.push(fresh_task(
            "BootTestProtectedEntitiesTask",
            "Start the virtual machine",
        ));
    }
    steps::tasks(&input.steps, tasks)
}

/// The task of a plan's group, with a child for each VM.
pub(super) fn group_task(index: usize, group: &[String], child: &str) -> Task {
    let name = format!("Group {}", index + 1);
    let children = group.iter().map(|item| Task {
        custom_details: Some(TaskDetails {
            instance_type: "VirtualMachineTaskDetails".to_owned(),
            ..TaskDetails::default()
        }),
        ..fresh_task(child, item_name(item))
    });
    Task {
        task_type: "RecoveryPlanGroupTask".to_owned(),
        group_task_custom_details: Some(GroupTaskDetails {
            instance_type: "RecoveryPlanGroupTaskDetails".to_owned(),
            child_tasks: children.collect(),
            group_id: (index + 1).to_string(),
            rp_group_type: "Boot".to_owned(),
            name: name.clone(),
        }),
        ..fresh_task(
            &format!("RecoveryPlanBootGroup{}Task", index + 1),
            &format!("{name}: start"),
        )
    }
}

#[async_trait]
impl Workflow for TestFailover {
    async fn act(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        let input = run.request::<DrillInput>()?;
        let own = match steps::at(&input.steps, node) {
            Step::Own(own) => own,
            Step::Action(step) => {
                let of = plan_action::Of {
                    plan: input.plan.as_deref().unwrap_or_default(),
                    scenario: Scenario::Test,
                    groups: &input.groups,
                };
                return plan_action::act(run, &of, &step).await;
            }
        };
        match own {
            0 => {
                for vm in choose(run, &input).await? {
                    let item = run.item(&vm.item).await?;
                    let network = input.network_id.clone().filter(|_| !input.isolated);
                    azure_target::check::drill(run, &item, &vm.engine_id, network).await?;
                }
                Ok(Outcome::Done)
            }
            1 => begin(run, &input).await,
            2 => prepare(run, &input).await,
            _ => boot(run, &input, own - BEFORE_GROUPS).await,
        }
    }

    async fn undo(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        let input = run.request::<DrillInput>()?;
        match steps::at(&input.steps, node) {
            Step::Action(step) => plan_action::undo(run, &step).await,
            Step::Own(2) => {
                remove_vms(
                    run.app,
                    &chosen(run),
                    run.waited_ms() > run.app.patience.removal_ms,
                )
                .await
            }
            Step::Own(1) => {
                mark_items(run, &input, Event::DrillAbort, None).await?;
                Ok(Outcome::Done)
            }
            Step::Own(_) => Ok(Outcome::Done),
        }
    }

    async fn failed(&self, run: &mut Run<'_>) -> Result<(), Fault> {
        let status = if run.job.cancel {
            "Cancelled"
        } else {
            "Failed"
        };
        // Nothing is left to be cleaned up: a drill that is `Active` would be waited for.
        run.job.properties.custom_details.test_failover_status = Some(status.to_owned());
        Ok(())
    }
}

pub(super) fn chosen(run: &Run<'_>) -> Vec<Chosen> {
    let memo = run.job.recall("vms").cloned().unwrap_or_default();
    serde_json::from_value(memo).unwrap_or_default()
}

/// Looks whether a drill is possible, and decides point and host of each VM.
async fn choose(run: &Run<'_>, input: &DrillInput) -> Result<Vec<Chosen>, Fault> {
    let app = run.app;
    let mut vms = Vec::new();
    for (group, ids) in input.groups.iter().enumerate() {
        for id in ids {
            let key = id.to_ascii_lowercase();
            let item = records::get::<Item>(app.store.as_ref(), &key)
                .await?
                .ok_or_else(|| Fault::not_found(id))?
                .record;
            let ours = item.drill_job.as_deref() == Some(run.job.id.as_str());
            if !ours {
                protection::step(item.life, Event::DrillStart)?;
            }
            let choice = match &input.point {
                Some(id) => PointChoice::Id(id.clone()),
                None if input.application_consistent => PointChoice::NewestApplicationConsistent,
                None => PointChoice::Newest,
            };
            let point = choose::point(app, &item, &choice)?;
            let engine_id = choose::recovery_engine(app, &item).await?;
            vms.push(Chosen {
                // Follows from job and item: a repeated node makes no second VM.
                vm_id: Uuid::new_v5(
                    &Uuid::NAMESPACE_URL,
                    format!("{}|{key}", run.job.id).as_bytes(),
                )
                .to_string(),
                item: key,
                engine_id,
                point_id: point.id,
                point_ms: point.time_unix_ms,
                group,
            });
        }
    }
    Ok(vms)
}

async fn begin(run: &mut Run<'_>, input: &DrillInput) -> Result<Outcome, Fault> {
    if run.job.recall("vms").is_none() {
        let vms = choose(run, input).await?;
        let value = serde_json::to_value(&vms).unwrap_or_default();
        run.job.remember("vms", value);
    }
    let job = run.job.id.clone();
    mark_items(run, input, Event::DrillStart, Some(&job)).await?;
    Ok(Outcome::Done)
}

/// Moves the drill axis of all items and the plan's mark.
async fn mark_items(
    run: &Run<'_>,
    input: &DrillInput,
    event: Event,
    job: Option<&str>,
) -> Result<(), Fault> {
    let store = run.app.store.as_ref();
    for id in input.groups.iter().flatten() {
        records::update::<Item>(store, &id.to_ascii_lowercase(), |item| {
            // Another drill's item is none of our business.
            let foreign = item
                .drill_job
                .as_deref()
                .is_some_and(|owner| owner != run.job.id);
            let repeated =
                event == Event::DrillStart && item.life.item.drill == DrillState::Starting;
            let untouched = job.is_none() && item.drill_job.is_none();
            if foreign || repeated || untouched {
                return None;
            }
            let (life, _) = protection::step(item.life, event).ok()?;
            Some(Item {
                life,
                drill_job: job.map(str::to_owned),
                ..item.clone()
            })
        })
        .await?;
    }
    if let Some(plan) = &input.plan {
        records::update::<Plan>(store, &plan.to_ascii_lowercase(), |plan| {
            let foreign = plan
                .drill_job
                .as_deref()
                .is_some_and(|owner| owner != run.job.id);
            (!foreign).then(|| Plan {
                drill_job: job.map(str::to_owned),
                ..plan.clone()
            })
        })
        .await?;
    }
    Ok(())
}

async fn prepare(run: &mut Run<'_>, input: &DrillInput) -> Result<Outcome, Fault> {
    let app = run.app;
    let vms = chosen(run);
    for vm in &vms {
        let item = records::get::<Item>(app.store.as_ref(), &vm.item)
            .await?
            .ok_or_else(|| Fault::not_found(&vm.item))?
            .record;
        let target = item
            .request
            .target_azure_vm_name
            .clone()
            .unwrap_or_else(|| item.vm_name.clone());
        let record = Recovered {
            id: vm.vm_id.clone(),
            name: format!("{target}-test"),
            engine_id: vm.engine_id.clone(),
            item: item.id.clone(),
            item_id: item_name(&item.id).to_owned(),
            vault_key: item.vault_key.clone(),
            folder: item.folder.clone(),
            azure: item.azure.clone(),
            log: item.log.clone(),
            storage_id: item.storage_id.clone(),
            point_id: vm.point_id.clone(),
            isolated: input.isolated,
            network_id: input.network_id.clone(),
            running: vm.group == 0,
            job: run.job.id.clone(),
        };
        let key = records::recovered_key(&vm.engine_id, &vm.vm_id);
        if app.store.get(&key).await?.is_none() {
            app.store
                .apply(vec![records::put(
                    key,
                    &record,
                    crate::store::Expect::Absent,
                )?])
                .await?;
        }
    }
    app.ring();
    show(run, input).await?;
    // VMs of later groups are made early, so that their points are held while the first group boots.
    let waiting = vms.iter().filter(|vm| vm.group > 0).any(|vm| {
        let live = app.fleet.get(&vm.engine_id).unwrap_or_default();
        live.recovered(&vm.vm_id)
            .is_none_or(|status| matches!(status.state(), State::Unspecified | State::Preparing))
    });
    if waiting && run.waited_ms() < PREPARE_MS {
        return Ok(Outcome::Wait);
    }
    Ok(Outcome::Done)
}

async fn boot(run: &mut Run<'_>, input: &DrillInput, group: usize) -> Result<Outcome, Fault> {
    let app = run.app;
    let vms = chosen(run);
    let mut all_up = true;
    for vm in vms.iter().filter(|vm| vm.group == group) {
        let key = records::recovered_key(&vm.engine_id, &vm.vm_id);
        records::update::<Recovered>(app.store.as_ref(), &key, |vm| {
            (!vm.running).then(|| Recovered {
                running: true,
                ..vm.clone()
            })
        })
        .await?;
        let live = app.fleet.get(&vm.engine_id).unwrap_or_default();
        all_up &= is_up(run, vm, &live)?;
    }
    app.ring();
    show(run, input).await?;
    if !all_up {
        return Ok(Outcome::Wait);
    }
    let last = group + 1 == input.groups.len();
    if last {
        let now = app.now_text();
        for id in input.groups.iter().flatten() {
            records::update::<Item>(app.store.as_ref(), &id.to_ascii_lowercase(), |item| {
                let (life, _) = protection::step(item.life, Event::DrillReady).ok()?;
                Some(Item {
                    life,
                    last_test_failover: Some(now.clone()),
                    ..item.clone()
                })
            })
            .await?;
        }
        if let Some(plan) = &input.plan {
            records::update::<Plan>(app.store.as_ref(), &plan.to_ascii_lowercase(), |plan| {
                Some(Plan {
                    last_test_failover: Some(now.clone()),
                    ..plan.clone()
                })
            })
            .await?;
        }
    }
    Ok(Outcome::Done)
}

/// Whether a VM of the present group has booted, or has been running for as long as we wait.
fn is_up(run: &Run<'_>, vm: &Chosen, live: &Live) -> Result<bool, Fault> {
    let patience = run.app.patience;
    let status = live.recovered(&vm.vm_id);
    match status.map(v1::RecoveredVmStatus::state) {
        Some(State::Booted) => return Ok(true),
        Some(State::Failed) => {
            let finding = status.and_then(|status| status.findings.first());
            return Err(Fault::refuse(
                409,
                finding.map_or_else(
                    || {
                        ArmError::new(
                            "TestVirtualMachineFailed",
                            "The test VM could not be started and the engine gave no reason.",
                        )
                    },
                    |finding| from_finding(finding, &vm.item),
                ),
            ));
        }
        // Running without a word on the console: told as a note, not as a failure.
        Some(State::Running) if run.waited_ms() > patience.boot_ms => return Ok(true),
        _ => {}
    }
    if !live.connected(run.app.now_ms()) && run.waited_ms() > patience.engine_ms {
        return Err(host_disconnected(run.app, &vm.engine_id));
    }
    if run.waited_ms() > patience.boot_ms && !azure_target::takes_its_time(&vm.engine_id, status) {
        return Err(Fault::refuse(
            504,
            ArmError::new(
                "TestVirtualMachineTimeout",
                "The test VM did not start in time.",
            )
            .at(vm.item.clone())
            .advise(
                "The recovery host is busy or the replica can't be read.",
                "See the engine's log on the recovery host.",
            ),
        ));
    }
    Ok(false)
}

/// Takes test VMs off their hosts; done when the hosts say so. `give_up` drops the records alone.
pub async fn remove_vms(app: &App, vms: &[Chosen], give_up: bool) -> Result<Outcome, Fault> {
    let keys: Vec<(String, String)> = vms
        .iter()
        .map(|vm| (vm.engine_id.clone(), vm.vm_id.clone()))
        .collect();
    remove(app, &keys, give_up).await
}

/// The same by (engine, VM).
pub async fn remove(app: &App, vms: &[(String, String)], give_up: bool) -> Result<Outcome, Fault> {
    let changes = vms
        .iter()
        .map(|(engine, vm)| records::delete(records::recovered_key(engine, vm)))
        .collect();
    app.store.apply(changes).await?;
    app.ring();
    for (engine, vm) in vms {
        let Some(live) = app.fleet.get(engine) else {
            continue;
        };
        let generation = crate::gateway::desired::refresh(app, engine)
            .await?
            .generation;
        let gone = live.report.observed_generation >= generation && live.recovered(vm).is_none();
        if !gone && !give_up {
            return Ok(Outcome::Wait);
        }
    }
    Ok(Outcome::Done)
}
