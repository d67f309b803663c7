//! Failback of items to their source. Input: [`FailbackInput`].
//!
//! ```text
//!  preflight ─► synchronise ─► wait for a person ─► stop the recovered VMs ─► receive the rest ─► start the sources
//!               (VM runs on)   (job is suspended)   └────────────── downtime ──────────────┘
//!               └──── only while downtime is to be short ────┘
//! ```
//!
//! As with a failover, who may run where is decided by [`protection::life`] alone. A job that fails or is cancelled brings
//! the items back to the recovery side, where they were; a source that runs already stays, unless the job is
//! cancelled anywhere but at an action of its plan.

use arm_model::ArmError;
use arm_model::job::Task;
use async_trait::async_trait;
use engine_protocol::v1;
use protection::life::{DataOption, Event, Phase, Request};
use serde::{Deserialize, Serialize};

use super::enable_protection::{host_disconnected, item_name};
use super::state::fresh_task;
use super::steps::{self, Scenario, Step};
use super::{Outcome, Run, Workflow, person, plan_action};
use crate::failover;
use crate::fault::Fault;

/// See the module.
pub struct Failback;

/// The node that waits for a person.
const WAITS: usize = 2;
/// The node that has the recovered VMs stopped, if they run until then.
const STOPS: usize = 3;

/// Parameters.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FailbackInput {
    /// ARM id of the plan, for a plan's failback.
    #[serde(default)]
    pub plan: Option<String>,
    /// Nodes; none = those of an item.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// ARM ids of the items.
    pub items: Vec<String>,
    /// The recovered VMs run while most of the data moves, and a person says when they stop.
    pub minimise_downtime: bool,
}

/// Own nodes.
pub const NODES: usize = 6;

/// Tasks.
#[must_use]
pub fn tasks(input: &FailbackInput) -> Vec<Task> {
    let own = vec![
        fresh_task(
            "PlannedFailoverPreflightChecksTask",
            "Prerequisites check for failback",
        ),
        fresh_task("DataSynchronizationTask", "Synchronizing data"),
        fresh_task("WaitForUserInputTask", "Waiting for user input"),
        fresh_task(
            "ShutdownVmOnSecondary",
            "Shutting down the recovered virtual machine",
        ),
        fresh_task("FailoverTask", "Receiving the last changes"),
        fresh_task("StartVmOnPrimary", "Starting the virtual machine"),
    ];
    steps::tasks(&input.steps, own)
}

#[async_trait]
impl Workflow for Failback {
    async fn act(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        let input: FailbackInput = run.request()?;
        let own = match steps::at(&input.steps, node) {
            Step::Own(own) => own,
            Step::Action(step) => {
                let groups = [input.items.clone()];
                let of = plan_action::Of {
                    plan: input.plan.as_deref().unwrap_or_default(),
                    scenario: Scenario::Back,
                    groups: &groups,
                };
                return plan_action::act(run, &of, &step).await;
            }
        };
        match own {
            0 => preflight(run, &input).await,
            1 => {
                let option = input.option();
                ask(run, &input, Request::Failback(option), |phase| {
                    matches!(phase, Phase::Committed(_))
                })
                .await?;
                follow(run, &input, |phase| {
                    matches!(phase, Phase::Synchronising(_))
                })
                .await
            }
            WAITS => {
                if input.minimise_downtime && person::comments(run.job).is_none() {
                    person::suspend(run.job, "Waiting for user input");
                    return Ok(Outcome::Wait);
                }
                Ok(Outcome::Done)
            }
            STOPS => {
                if input.minimise_downtime {
                    ask(run, &input, Request::FinalizeFailback, |phase| {
                        matches!(phase, Phase::Synchronised(_))
                    })
                    .await?;
                }
                follow(run, &input, |phase| {
                    matches!(phase, Phase::StoppingRecovered(_))
                })
                .await
            }
            4 => follow(run, &input, |phase| matches!(phase, Phase::Receiving(_))).await,
            _ => {
                follow(run, &input, |phase| {
                    matches!(phase, Phase::StartingSource(_))
                })
                .await
            }
        }
    }

    async fn undo(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        match steps::at(&run.request::<FailbackInput>()?.steps, node) {
            Step::Own(1) => take_back(run).await,
            Step::Own(_) => Ok(Outcome::Done),
            Step::Action(step) => plan_action::undo(run, &step).await,
        }
    }

    fn cancelled(&self, run: &Run<'_>) -> Option<ArmError> {
        let steps = run.request::<FailbackInput>().ok()?.steps;
        let ways = "Commit the failback of these VMs, or cancel it: `allowedOperations` of each tells what is possible.";
        steps::stopped(&steps, run.job, "at their source", ways)
    }
}

// === impl FailbackInput ===

impl FailbackInput {
    /// The own node from which the recovered VMs stop.
    #[must_use]
    pub fn stops_at(minimise_downtime: bool) -> usize {
        if minimise_downtime { STOPS } else { 1 }
    }

    fn option(&self) -> DataOption {
        if self.minimise_downtime {
            DataOption::MinimiseDowntime
        } else {
            DataOption::FullDownload
        }
    }
}

async fn preflight(run: &mut Run<'_>, input: &FailbackInput) -> Result<Outcome, Fault> {
    let app = run.app;
    for id in &input.items {
        let item = run.item(id).await?;
        let request = Event::Request(Request::Failback(input.option()));
        protection::step(item.life, request)?;
        let recovery = item.recovery.as_ref().map(|side| &side.engine_id);
        for engine in [Some(&item.engine_id), recovery].into_iter().flatten() {
            if !app.fleet.connected(engine, app.now_ms()) {
                return Err(host_disconnected(app, engine));
            }
        }
        let live = app.fleet.get(&item.engine_id).unwrap_or_default();
        if live.machine(&item.vm_id).is_none() {
            return Err(Fault::refuse(
                409,
                ArmError::new(
                    "SourceVirtualMachineNotFound",
                    format!(
                        "The VM `{}` is no longer on host `{}`.",
                        item.vm_name,
                        live.host_name()
                    ),
                )
                .at(item.id.clone())
                .advise(
                    "It was removed, or moved to another host.",
                    "Put the VM back, with the disks it had; their contents don't matter.",
                ),
            ));
        }
    }
    Ok(Outcome::Done)
}

/// Asks each item that is still where the request begins.
async fn ask(
    run: &Run<'_>,
    input: &FailbackInput,
    request: Request,
    begins: fn(Phase) -> bool,
) -> Result<(), Fault> {
    for id in &input.items {
        let item = run.item(id).await?;
        if begins(item.life.phase) {
            failover::ask(run.app, &id.to_ascii_lowercase(), Event::Request(request)).await?;
        }
    }
    Ok(())
}

/// Waits while any item is in a phase; a host that is away for too long ends it.
async fn follow(
    run: &mut Run<'_>,
    input: &FailbackInput,
    present: fn(Phase) -> bool,
) -> Result<Outcome, Fault> {
    let app = run.app;
    let mut texts = Vec::new();
    for id in &input.items {
        let item = run.item(id).await?;
        if matches!(
            item.life.phase,
            Phase::Committed(_) | Phase::UndoingFailback(_)
        ) {
            return Err(Fault::conflict(
                "OperationNotAllowed",
                &item.id,
                format!(
                    "The failback of `{}` was taken back meanwhile.",
                    item.vm_name
                ),
                "Start it again.",
            ));
        }
        if !present(item.life.phase) {
            continue;
        }
        let live = app.fleet.get(&item.engine_id).unwrap_or_default();
        let status = live.replication(item_name(&item.id));
        let recovery = item.recovery.as_ref().map(|side| &side.engine_id);
        for engine in [Some(&item.engine_id), recovery].into_iter().flatten() {
            if run.is_away(engine, app.patience.engine_ms) {
                return Err(host_disconnected(app, engine));
            }
        }
        let host = recovery.and_then(|engine| app.fleet.get(engine));
        let id = failover::vm_id(&item).map(|id| id.to_string());
        let recovered = host
            .as_ref()
            .zip(id.as_ref())
            .and_then(|(host, id)| host.recovered(id));
        texts.push(progress(&item.vm_name, status, recovered));
    }
    if texts.is_empty() {
        return Ok(Outcome::Done);
    }
    let node = run.job.node;
    if let Some(task) = run.job.properties.tasks.get_mut(node) {
        task.state_description = format!("InProgress, {}", texts.join("; "));
    }
    Ok(Outcome::Wait)
}

/// How far an item is, and what holds it up: engines try again by themselves, and a person may cancel.
fn progress(
    name: &str,
    source: Option<&v1::ReplicationStatus>,
    recovered: Option<&v1::RecoveredVmStatus>,
) -> String {
    let shipped = recovered.map_or(0, |vm| vm.shipped_bytes);
    let mut text = format!("{name}: {shipped} bytes shipped");
    if let Some(report) = source.and_then(|status| status.source.as_ref()) {
        let (there, to_go) = (report.received_bytes, report.to_receive_bytes);
        text.push_str(&format!(", {there} received, {to_go} to go"));
    }
    let findings = source.map(|status| &status.findings).into_iter();
    let findings = findings.chain(recovered.map(|vm| &vm.findings)).flatten();
    for finding in findings.take(1) {
        text.push_str(&format!(" ({})", finding.summary));
    }
    text
}

/// Back to the recovery side. After a failure a VM that runs at its source already stays there.
async fn take_back(run: &mut Run<'_>) -> Result<Outcome, Fault> {
    let input = run.request::<FailbackInput>()?;
    let all = run.job.cancel && steps::stopped_at(&input.steps, run.job).is_none();
    let mut is_back = true;
    for id in &input.items {
        let item = run.item(id).await?;
        let phase = match item.life.phase {
            Phase::FailedBack(_) if !all => continue,
            Phase::Synchronising(_)
            | Phase::Synchronised(_)
            | Phase::StoppingRecovered(_)
            | Phase::Receiving(_)
            | Phase::StartingSource(_)
            | Phase::FailedBack(_) => {
                let cancel = Event::Request(Request::CancelFailover);
                let key = id.to_ascii_lowercase();
                failover::ask(run.app, &key, cancel).await?.life.phase
            }
            other => other,
        };
        is_back &= !matches!(phase, Phase::UndoingFailback(_));
    }
    // The VM's life goes on by itself, whether this job waits or not.
    let give_up = run.waited_ms() > run.app.patience.removal_ms;
    Ok(if is_back || give_up {
        Outcome::Done
    } else {
        Outcome::Wait
    })
}
