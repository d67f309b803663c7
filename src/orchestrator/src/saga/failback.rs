//! Failback of items to their source. Input: [`FailbackInput`].
//!
//! ```text
//!  preflight ─► [the source becomes another host, which confirms that the VM is off there]
//!            ─► synchronise ─► wait for a person ─► stop the recovered VMs ─► receive the rest ─► start the sources
//!               (VM runs on)   (job is suspended)   └────────────── downtime ──────────────┘
//!               └──── only while downtime is to be short ────┘
//! ```
//!
//! A plan's recovered VMs stop group by group, the last group first; all receive together; then its groups start in order,
//! the VMs of a group together. Until its group's turn a source that has everything is not told that it may run.
//!
//! As with a failover, who may run where is decided by [`protection::life`] alone. A job that fails or is cancelled brings
//! the items back to the recovery side, where they were; a source that runs already stays, unless the job is
//! cancelled anywhere but at an action of its plan.

use arm_model::ArmError;
use arm_model::job::Task;
use async_trait::async_trait;
use engine_protocol::v1;
use engine_protocol::v1::replication_status::State;
use protection::life::{DataOption, Event, Phase, Request, Standing};
use serde::{Deserialize, Serialize};

use super::drill::group_task;
use super::enable_protection::{from_finding, host_disconnected, item_name};
use super::state::fresh_task;
use super::steps::{self, Scenario, Step};
use super::{Outcome, Run, Workflow, person, plan_action};
use crate::alternate_host;
use crate::failover;
use crate::fault::Fault;
use crate::fleet::Live;
use crate::store::records::{self, Item, RecoverySide, WayBack};

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
    /// The same by group of the plan; none = all are one.
    #[serde(default)]
    pub groups: Vec<Vec<String>>,
    /// A VM that is gone from its host, and disks of it that are, are made again.
    #[serde(default)]
    pub creates: bool,
    /// Engine of another host, which has the VM from then on.
    #[serde(default)]
    pub to: Option<String>,
    /// The recovered VMs run while most of the data moves, and a person says when they stop.
    pub minimise_downtime: bool,
}

/// The node that starts the sources; of a plan one for each group.
pub const STARTS: usize = 5;

/// Tasks.
#[must_use]
pub fn tasks(input: &FailbackInput) -> Vec<Task> {
    let mut own = vec![
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
    ];
    if input.groups.is_empty() {
        own.push(fresh_task(
            "StartVmOnPrimary",
            "Starting the virtual machine",
        ));
    } else {
        let groups = input.groups.iter().enumerate();
        own.extend(groups.map(|(index, group)| group_task(index, group, "StartVmOnPrimary")));
    }
    steps::tasks(&input.steps, own)
}

#[async_trait]
impl Workflow for Failback {
    async fn act(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        let input: FailbackInput = run.request()?;
        let own = match steps::at(&input.steps, node) {
            Step::Own(own) => own,
            Step::Action(step) => {
                let of = plan_action::Of {
                    plan: input.plan.as_deref().unwrap_or_default(),
                    scenario: Scenario::Back,
                    groups: &input.groups(),
                };
                return plan_action::act(run, &of, &step).await;
            }
        };
        match own {
            0 => preflight(run, &input).await,
            1 => {
                if let Some(to) = &input.to
                    && arrive(run, &input, to).await? == Outcome::Wait
                {
                    return Ok(Outcome::Wait);
                }
                let request = Request::Failback(input.option());
                let begins = |phase| matches!(phase, Phase::Committed(_));
                if !input.minimise_downtime {
                    return stop(run, &input, request, begins).await;
                }
                ask(run, &input, &input.items, request, begins).await?;
                follow(run, &input.items, |phase| {
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
                if !input.minimise_downtime {
                    return Ok(Outcome::Done);
                }
                let begins = |phase| matches!(phase, Phase::Synchronised(_));
                stop(run, &input, Request::FinalizeFailback, begins).await
            }
            4 => {
                follow(run, &input.items, |phase| {
                    matches!(phase, Phase::Receiving(_))
                })
                .await
            }
            _ => start(run, &input, own - STARTS).await,
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

    /// By group, in the order of their start.
    fn groups(&self) -> Vec<Vec<String>> {
        if self.groups.is_empty() {
            vec![self.items.clone()]
        } else {
            self.groups.clone()
        }
    }

    /// How a request changes the recovery side.
    fn side(&self, item: &Item, request: Request) -> Option<RecoverySide> {
        let mut side = item.recovery.clone();
        if let (Some(side), Request::Failback(_)) = (&mut side, request) {
            side.back = Some(WayBack {
                creates: self.creates,
                due: self.groups.is_empty(),
            });
        }
        side
    }
}

async fn preflight(run: &mut Run<'_>, input: &FailbackInput) -> Result<Outcome, Fault> {
    let app = run.app;
    for id in &input.items {
        let item = run.item(id).await?;
        let begins = match input.to {
            Some(_) => Event::SourceMoved,
            None => Event::Request(Request::Failback(input.option())),
        };
        protection::step(item.life, begins)?;
        let source = input.to.as_ref().unwrap_or(&item.engine_id);
        let recovery = item.recovery.as_ref().map(|side| &side.engine_id);
        for engine in [Some(source), recovery].into_iter().flatten() {
            if !app.fleet.connected(engine, app.now_ms()) {
                return Err(host_disconnected(app, engine));
            }
        }
        let live = app.fleet.get(source).unwrap_or_default();
        if input.to.is_some() {
            is_off(&item, &live)?;
        }
        if !input.creates {
            is_whole(&item, &live)?;
        }
    }
    Ok(Outcome::Done)
}

/// What runs on the named host was carried over by somebody, and would be shut down and written over.
fn is_off(item: &Item, live: &Live) -> Result<(), Fault> {
    let machine = live.machine(&item.vm_id);
    if machine.is_none_or(|machine| machine.power_state() != v1::PowerState::Running) {
        return Ok(());
    }
    let (vm, host) = (&item.vm_name, live.host_name());
    let error = ArmError::new(
        "AlternateHostRunsVirtualMachine",
        format!("The VM `{vm}` runs on host `{host}`, and a failback to it writes over its disks."),
    );
    Err(Fault::refuse(409, error.at(item.id.clone()).advise(
        "Somebody has moved or imported it there while it was failed over.",
        "Save what it has that the recovered VM has not, shut it down, and start the failback again.",
    )))
}

/// Makes the named host the source, and waits until it has confirmed that nothing of the VM runs there.
async fn arrive(run: &mut Run<'_>, input: &FailbackInput, to: &str) -> Result<Outcome, Fault> {
    let app = run.app;
    let mut texts = Vec::new();
    for id in &input.items {
        let item = run.item(id).await?;
        if !matches!(item.life.phase, Phase::Committed(_)) {
            continue;
        }
        let item = alternate_host::move_source(app, &id.to_ascii_lowercase(), to).await?;
        if item.life.standing == Standing::Held {
            continue;
        }
        if run.is_away(to, app.patience.engine_ms) {
            return Err(host_disconnected(app, to));
        }
        let live = app.fleet.get(to).unwrap_or_default();
        let status = live.replication(item_name(&item.id));
        let refused = status.filter(|status| status.state() == State::Blocked);
        if let Some(finding) = refused.and_then(|status| status.findings.first()) {
            let error = from_finding(finding, &item.id);
            return Err(Fault::refuse(409, error));
        }
        let mut held = status
            .map(|status| status.findings.iter())
            .into_iter()
            .flatten();
        let host = live.host_name();
        texts.push(match held.next() {
            Some(finding) => format!("{}: {host} ({})", item.vm_name, finding.summary),
            None => format!("{}: {host} has not confirmed yet", item.vm_name),
        });
    }
    if texts.is_empty() {
        return Ok(Outcome::Done);
    }
    tell(run, &texts);
    Ok(Outcome::Wait)
}

/// Without the wish to make it again the VM must be on its host, with its disks.
fn is_whole(item: &Item, live: &Live) -> Result<(), Fault> {
    let (vm, host) = (&item.vm_name, live.host_name());
    let missing = |code: &str, text: String| {
        let error = ArmError::new(code, text).at(item.id.clone()).advise(
            "It was removed, or moved to another host.",
            "Start the failback with `recoveryVmCreationOption` `CreateVmIfNotFound` (CLI: `--create-vm-if-missing`) to have what is gone made again; or put it back: its contents don't matter.",
        );
        Err(Fault::refuse(409, error))
    };
    let Some(machine) = live.machine(&item.vm_id) else {
        let text = format!("The VM `{vm}` is no longer on host `{host}`.");
        return missing("SourceVirtualMachineNotFound", text);
    };
    let there = |id: &String| {
        let mut disks = machine.disks.iter();
        disks.any(|disk| disk.id.eq_ignore_ascii_case(id))
    };
    let mut wanted = item.disk_ids.iter();
    match wanted.find(|id| !there(id)) {
        Some(id) => {
            let text = format!("The VM `{vm}` on host `{host}` has lost its disk `{id}`.");
            missing("SourceDiskNotFound", text)
        }
        None => Ok(()),
    }
}

/// Has the recovered VMs stopped: the last group first, each when those of the group behind it are off.
async fn stop(
    run: &mut Run<'_>,
    input: &FailbackInput,
    request: Request,
    begins: fn(Phase) -> bool,
) -> Result<Outcome, Fault> {
    for group in input.groups().iter().rev() {
        ask(run, input, group, request, begins).await?;
        let stopping = |phase| matches!(phase, Phase::StoppingRecovered(_));
        if follow(run, group, stopping).await? == Outcome::Wait {
            return Ok(Outcome::Wait);
        }
    }
    Ok(Outcome::Done)
}

/// Has the sources of a group started.
async fn start(run: &mut Run<'_>, input: &FailbackInput, group: usize) -> Result<Outcome, Fault> {
    let groups = input.groups();
    let group = groups.get(group).map(Vec::as_slice).unwrap_or_default();
    for id in group {
        let item = run.item(id).await?;
        if !item.waits_for_its_group() {
            continue;
        }
        let key = id.to_ascii_lowercase();
        records::update::<Item>(run.app.store.as_ref(), &key, |item| {
            let mut next = item.clone();
            let back = next.recovery.as_mut()?.back.as_mut()?;
            back.due = true;
            Some(next)
        })
        .await?;
        run.app.ring();
    }
    follow(run, group, |phase| {
        matches!(phase, Phase::StartingSource(_))
    })
    .await
}

/// Asks each item that is still where the request begins.
async fn ask(
    run: &Run<'_>,
    input: &FailbackInput,
    items: &[String],
    request: Request,
    begins: fn(Phase) -> bool,
) -> Result<(), Fault> {
    for id in items {
        let item = run.item(id).await?;
        if begins(item.life.phase) {
            let side = |item: &Item| input.side(item, request);
            let key = id.to_ascii_lowercase();
            failover::advance(run.app, &key, Event::Request(request), side).await?;
        }
    }
    Ok(())
}

/// Waits while any item is in a phase; a host that is away for too long ends it.
async fn follow(
    run: &mut Run<'_>,
    items: &[String],
    present: fn(Phase) -> bool,
) -> Result<Outcome, Fault> {
    let app = run.app;
    let mut texts = Vec::new();
    for id in items {
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
    tell(run, &texts);
    Ok(Outcome::Wait)
}

/// What the job's task says while it waits.
fn tell(run: &mut Run<'_>, texts: &[String]) {
    let node = run.job.node;
    if let Some(task) = run.job.properties.tasks.get_mut(node) {
        task.state_description = format!("InProgress, {}", texts.join("; "));
    }
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
