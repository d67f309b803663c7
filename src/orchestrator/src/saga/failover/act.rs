//! The nodes of a failover.

use arm_model::ArmError;
use engine_protocol::v1::{self, recovered_vm_status::State};
use protection::life::{Event, Phase, Request};

use super::show::show;
use super::{Chosen, FailoverInput, chosen};
use crate::azure_target;
use crate::failover::{self, vm_id};
use crate::fault::Fault;
use crate::fleet::Live;
use crate::saga::choose::{self, PointChoice};
use crate::saga::enable_protection::{from_finding, host_disconnected};
use crate::saga::{Outcome, Run, failures, steps};
use crate::store::records::{self, Item, RecoverySide};

/// How far a group is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The first instruction.
    Running,
    /// The first line on the console, or as long as we wait for it.
    Booted,
}

/// The recovery side that this job made.
fn ours<'a>(run: &Run<'_>, item: &'a Item) -> Option<&'a RecoverySide> {
    item.recovery.as_ref().filter(|side| side.job == run.job.id)
}

/// Looks whether the failover is possible, and decides point and host of each VM.
pub(super) async fn preflight(run: &mut Run<'_>, input: &FailoverInput) -> Result<Outcome, Fault> {
    let app = run.app;
    let mut items = Vec::new();
    for (group, ids) in input.groups.iter().enumerate() {
        for id in ids {
            items.push((group, run.item(id).await?));
        }
    }
    let common = if input.common_point {
        let all: Vec<Item> = items.iter().map(|(_, item)| item.clone()).collect();
        Some(choose::common_point(app, &all)?)
    } else {
        None
    };
    let mut vms = Vec::new();
    for (group, item) in &items {
        protection::step(item.life, Event::Request(input.request()))?;
        if input.planned && !app.fleet.connected(&item.engine_id, app.now_ms()) {
            return Err(source_away(run, item));
        }
        // What is sent after a shutdown makes the newest point; anything else is known now.
        let later = (input.planned || input.shut_down) && input.point == PointChoice::Newest;
        let choice = common.as_ref().map_or_else(
            || input.point.clone(),
            |id| PointChoice::OfGroup(id.clone()),
        );
        let is_open = later && common.is_none();
        match host_and_point(run, item, &choice).await {
            Ok((engine_id, point)) => vms.push(Chosen {
                item: item.id.to_ascii_lowercase(),
                engine_id,
                point_id: if is_open { String::new() } else { point.id },
                point_ms: if is_open { 0 } else { point.time_unix_ms },
                group: *group,
            }),
            // In a disaster one VM without a point does not keep the others down.
            Err(Fault::Refused { error, .. }) if goes_on(input) => {
                failures::note(run, &item.id, error);
            }
            Err(fault) => return Err(fault),
        }
    }
    if vms.is_empty() {
        return Err(failures::first(run).unwrap_or_else(|| Fault::not_found(&run.job.resource)));
    }
    let memo = serde_json::to_value(&vms).unwrap_or_default();
    run.job.remember("vms", memo);
    Ok(Outcome::Done)
}

/// Host and point of one VM.
async fn host_and_point(
    run: &mut Run<'_>,
    item: &Item,
    choice: &PointChoice,
) -> Result<(String, v1::RecoveryPoint), Fault> {
    let point = choose::point(run.app, item, choice)?;
    let engine_id = choose::recovery_engine(run.app, item).await?;
    azure_target::check::failover(run, item, &engine_id).await?;
    Ok((engine_id, point))
}

/// Whether the others go on when one VM can't be recovered: in an unplanned failover of a plan.
fn goes_on(input: &FailoverInput) -> bool {
    input.plan.is_some() && !input.planned
}

fn source_away(run: &Run<'_>, item: &Item) -> Fault {
    let host = run.app.fleet.get(&item.engine_id).unwrap_or_default();
    Fault::refuse(
        409,
        ArmError::new(
            "SourceHostDisconnected",
            format!(
                "The source of `{}`, host `{}`, is away: it can't be shut down, nor can its last changes be sent.",
                item.vm_name,
                host.host_name()
            ),
        )
        .at(item.id.clone())
        .advise(
            "The host is off, its engine is stopped, or the network between is cut.",
            "Bring the host back, or start an unplanned failover, which works from what is in the store.",
        ),
    )
}

/// Asks for the failover of one VM, once.
async fn ask(run: &Run<'_>, input: &FailoverInput, vm: &Chosen) -> Result<Item, Fault> {
    let item = run.item(&vm.item).await?;
    if ours(run, &item).is_some() {
        return Ok(item);
    }
    let (job, now) = (run.job.id.clone(), run.app.now_ms());
    let side = |item: &Item| {
        // The source died while it took the VM back: the recovered VM that is kept goes on, where it is.
        if let (Some(_), Some(kept)) = (item.life.instance, &item.recovery) {
            return Some(RecoverySide {
                job: job.clone(),
                asked_unix_ms: now,
                ..kept.clone()
            });
        }
        let name = item.request.target_azure_vm_name.as_ref();
        Some(RecoverySide {
            engine_id: vm.engine_id.clone(),
            name: name.unwrap_or(&item.vm_name).clone(),
            point_id: vm.point_id.clone(),
            point_ms: vm.point_ms,
            due: false,
            job: job.clone(),
            asked_unix_ms: now,
            back: None,
        })
    };
    failover::advance(run.app, &vm.item, Event::Request(input.request()), side).await
}

/// Shuts the sources down, the last group first, and has their rest sent.
pub(super) async fn shut_down(run: &mut Run<'_>, input: &FailoverInput) -> Result<Outcome, Fault> {
    if !input.planned && !input.shut_down {
        return Ok(Outcome::Done);
    }
    let app = run.app;
    let vms = chosen(run);
    for group in (0..input.groups.len()).rev() {
        let mut is_down = true;
        for vm in vms.iter().filter(|vm| vm.group == group) {
            let item = ask(run, input, vm).await?;
            if !matches!(item.life.phase, Phase::StoppingSource(_)) {
                continue;
            }
            let asked = ours(run, &item).map_or(app.now_ms(), |side| side.asked_unix_ms);
            // While this process was not there, nobody could hear the source.
            let since = asked.max(run.job.node_since_unix_ms);
            let waited = app.now_ms().saturating_sub(since);
            let is_away = run.is_away(&item.engine_id, app.patience.engine_ms);
            if input.planned {
                if is_away {
                    return Err(source_away(run, &item));
                }
                if waited > app.patience.shut_down_ms {
                    return Err(still_runs(run, &item));
                }
            } else if is_away || waited > app.patience.shut_down_ms {
                failover::ask(app, &vm.item, Event::ShutDownFailed).await?;
                continue;
            }
            is_down = false;
        }
        if !is_down {
            show(run, input).await?;
            return Ok(Outcome::Wait);
        }
    }
    Ok(Outcome::Done)
}

/// What the engine says about the guest that does not shut down, or that it says nothing.
fn still_runs(run: &Run<'_>, item: &Item) -> Fault {
    let live = run.app.fleet.get(&item.engine_id).unwrap_or_default();
    let name = crate::saga::enable_protection::item_name(&item.id);
    let finding = live
        .replication(name)
        .and_then(|status| status.findings.first().cloned());
    let error = finding.map_or_else(
        || {
            ArmError::new(
                "ShutdownTimeout",
                format!("`{}` was not shut down, or its last changes were not sent, in time.", item.vm_name),
            )
            .at(item.id.clone())
            .advise(
                "The guest does not react to the power button, or the link to the storage account is slow.",
                "Shut the guest down from inside and repeat the failover, or start an unplanned failover.",
            )
        },
        |finding| from_finding(&finding, &item.id),
    );
    Fault::refuse(504, error)
}

/// From here on no source may run: each one has said so, or was left alone on purpose.
pub(super) async fn prepare(run: &mut Run<'_>, input: &FailoverInput) -> Result<Outcome, Fault> {
    for vm in chosen(run) {
        let item = ask(run, input, &vm).await?;
        if !matches!(
            item.life.phase,
            Phase::StartingRecovered(..) | Phase::FailedOver(_) | Phase::Committed(_)
        ) {
            return Err(Fault::conflict(
                "OperationNotAllowed",
                &item.id,
                format!(
                    "The failover of `{}` was taken back meanwhile.",
                    item.vm_name
                ),
                "Start it again.",
            ));
        }
    }
    show(run, input).await?;
    Ok(Outcome::Done)
}

/// Starts the recovered VMs of a group and follows them.
pub(super) async fn start(
    run: &mut Run<'_>,
    input: &FailoverInput,
    group: usize,
    until: Until,
) -> Result<Outcome, Fault> {
    let vms = chosen(run);
    let mut all_up = true;
    let behind: Vec<String> = failures::all(run)
        .into_iter()
        .map(|(item, _)| item)
        .collect();
    let members = vms.iter().filter(|vm| vm.group == group);
    for vm in members.filter(|vm| !behind.contains(&vm.item)) {
        let up = match due(run, vm).await {
            Ok(item) => is_up(run, &item, until),
            Err(fault) => Err(fault),
        };
        match up {
            Ok(up) => all_up &= up,
            Err(Fault::Refused { error, .. }) if goes_on(input) => {
                failures::note(run, &vm.item, error);
            }
            Err(fault) => return Err(fault),
        }
    }
    run.app.ring();
    show(run, input).await?;
    if !all_up {
        return Ok(Outcome::Wait);
    }
    Ok(Outcome::Done)
}

/// Tells the recovery host of the VM.
async fn due(run: &Run<'_>, vm: &Chosen) -> Result<Item, Fault> {
    let item = run.item(&vm.item).await?;
    let Some(side) = ours(run, &item) else {
        return Err(Fault::conflict(
            "OperationNotAllowed",
            &item.id,
            format!(
                "The failover of `{}` was taken back meanwhile.",
                item.vm_name
            ),
            "Start it again.",
        ));
    };
    if side.due {
        return Ok(item);
    }
    // The source could not be shut down: what is there now is what there is.
    let newest = if side.point_id.is_empty() {
        Some(choose::point(run.app, &item, &PointChoice::Newest)?)
    } else {
        None
    };
    let job = run.job.id.clone();
    let changed = records::update::<Item>(run.app.store.as_ref(), &vm.item, |item| {
        let side = item.recovery.as_ref().filter(|side| side.job == job)?;
        let mut side = RecoverySide {
            due: true,
            ..side.clone()
        };
        if let (true, Some(point)) = (side.point_id.is_empty(), &newest) {
            side.point_id.clone_from(&point.id);
            side.point_ms = point.time_unix_ms;
        }
        Some(Item {
            recovery: Some(side),
            ..item.clone()
        })
    })
    .await?;
    changed.ok_or_else(|| Fault::not_found(&vm.item))
}

/// Whether a recovered VM is as far as it is followed.
pub(super) fn is_up(run: &Run<'_>, item: &Item, until: Until) -> Result<bool, Fault> {
    let (app, patience) = (run.app, run.app.patience);
    let Some(side) = &item.recovery else {
        return Ok(true);
    };
    let live: Live = app.fleet.get(&side.engine_id).unwrap_or_default();
    let id = vm_id(item).map(|id| id.to_string()).unwrap_or_default();
    let status = live.recovered(&id);
    let state = status.map(v1::RecoveredVmStatus::state);
    let runs = match item.life.phase {
        Phase::StartingRecovered(..) => false,
        // A kept VM that is started again: its life does not wait for it.
        Phase::Committed(_) => matches!(state, Some(State::Running | State::Booted)),
        _ => true,
    };
    match state {
        Some(State::Booted) if runs => return Ok(true),
        Some(State::Failed) => {
            let given_up =
                status.and_then(|status| status.findings.iter().find(|finding| finding.critical));
            if let Some(finding) = given_up {
                return Err(Fault::refuse(409, from_finding(finding, &item.id)));
            }
        }
        _ if runs && until == Until::Running => return Ok(true),
        // Running without a word on the console: told as a note, not as a failure.
        _ if runs && run.waited_ms() > patience.boot_ms => return Ok(true),
        _ => {}
    }
    if runs {
        return Ok(false);
    }
    if run.is_away(&side.engine_id, patience.engine_ms) {
        return Err(host_disconnected(app, &side.engine_id));
    }
    if run.waited_ms() > patience.boot_ms && !azure_target::takes_its_time(&side.engine_id, status)
    {
        return Err(Fault::refuse(
            504,
            ArmError::new(
                "RecoveredVirtualMachineTimeout",
                format!("The recovered VM `{}` did not start in time.", side.name),
            )
            .at(item.id.clone())
            .advise(
                "The recovery host is busy or the replica can't be read.",
                "See the engine's log on the recovery host; then start the failover again.",
            ),
        ));
    }
    Ok(false)
}

/// Takes the failover back. After a failure, of an action or of ours, a VM that runs at the recovery side stays there.
pub(super) async fn take_back(run: &mut Run<'_>) -> Result<Outcome, Fault> {
    let steps = run.request::<FailoverInput>()?.steps;
    let all = run.job.cancel && steps::stopped_at(&steps, run.job).is_none();
    let mut is_back = true;
    for vm in chosen(run) {
        let item = run.item(&vm.item).await?;
        if ours(run, &item).is_none() {
            continue;
        }
        let phase = match item.life.phase {
            Phase::FailedOver(_) if !all => continue,
            Phase::StoppingSource(_) | Phase::StartingRecovered(..) | Phase::FailedOver(_) => {
                let cancel = Event::Request(Request::CancelFailover);
                let item = failover::ask(run.app, &vm.item, cancel).await?;
                item.life.phase
            }
            other => other,
        };
        is_back &= phase != Phase::UndoingFailover;
    }
    // The VM's life goes on by itself, whether this job waits or not.
    let give_up = run.waited_ms() > run.app.patience.removal_ms;
    Ok(if is_back || give_up {
        Outcome::Done
    } else {
        Outcome::Wait
    })
}
