//! What the job of a drill or a failover tells of its VMs: states, times, and the figures of recovery (RTO, RPO).

use arm_model::job::{JobState, Task};
use arm_model::test_failover::DrillVm;
use engine_protocol::v1::recovered_vm_status::State;
use engine_protocol::v1::{self, recovery_point::Kind};

use super::Run;
use super::drill::{BEFORE_GROUPS, DrillInput, chosen};
use super::enable_protection::item_name;
use super::state::children;
use super::steps::position;
use crate::app::App;
use crate::azure_target;
use crate::fault::Fault;
use crate::fleet::Live;
use crate::store::records::{self, Item, Policy};

/// Writes what is known of the VMs into the job.
pub(super) async fn show(run: &mut Run<'_>, input: &DrillInput) -> Result<(), Fault> {
    let app = run.app;
    let mut details = Vec::new();
    let mut states = Vec::new();
    for vm in chosen(run) {
        let Some(item) = records::get::<Item>(app.store.as_ref(), &vm.item).await? else {
            continue;
        };
        let live = app.fleet.get(&vm.engine_id).unwrap_or_default();
        let request = &item.record.request;
        let target = request.target_azure_vm_name.as_ref();
        let shown = Shown {
            id: vm.vm_id.clone(),
            name: format!("{}-test", target.unwrap_or(&item.record.vm_name)),
            point_id: &vm.point_id,
            point_ms: vm.point_ms,
            group: vm.group,
            requested_ms: input.requested_unix_ms,
            late: app.patience.boot_ms < run.waited_ms(),
            in_azure: azure_target::is_engine(&vm.engine_id),
        };
        let mut detail = detail(&shown, &item.record, &live);
        facts(app, &item.record, known(run, &vm.vm_id), &mut detail).await?;
        keep_answers(run, &mut detail);
        let network = input.network_id.as_deref().filter(|_| !input.isolated);
        if let Some(network) = network.filter(|_| detail.private_network) {
            detail.private_network = false;
            "Connected".clone_into(&mut detail.network_connection_status);
            item_name(network).clone_into(&mut detail.network_friendly_name);
        }
        states.push((vm.group, item.record.vm_name.clone(), detail.state.clone()));
        details.push(detail);
    }
    run.job.properties.custom_details.protected_item_details = Some(details);
    run.job.properties.custom_details.test_failover_status = Some("Active".to_owned());
    let now = app.now_text();
    for group in 0..input.groups.len() {
        let Some(task) = run
            .job
            .properties
            .tasks
            .get_mut(position(&input.steps, BEFORE_GROUPS + group))
        else {
            continue;
        };
        let members: Vec<(String, String)> = states
            .iter()
            .filter(|(member, _, _)| *member == group)
            .map(|(_, name, state)| (name.clone(), state.clone()))
            .collect();
        mark_children(task, &members, &now);
    }
    Ok(())
}

/// What actions have told of a VM's guest stays.
pub(super) fn keep_answers(run: &Run<'_>, detail: &mut DrillVm) {
    if let Some(known) = known(run, &detail.test_vm_name) {
        detail.guest_agent_time.clone_from(&known.guest_agent_time);
        detail.guest_agent_silent = known.guest_agent_silent;
        detail.ports.clone_from(&known.ports);
    }
}

/// What the job has said of a VM so far.
fn known<'a>(run: &'a Run<'_>, vm_id: &str) -> Option<&'a DrillVm> {
    let known = run
        .job
        .properties
        .custom_details
        .protected_item_details
        .as_ref()?;
    known.iter().find(|vm| vm.test_vm_name == vm_id)
}

/// What the report of a drill needs and nobody can tell later: the point may be retired, the policy changed, the engine
/// replaced.
async fn facts(
    app: &App,
    item: &Item,
    known: Option<&DrillVm>,
    detail: &mut DrillVm,
) -> Result<(), Fault> {
    let live = app.fleet.get(&item.engine_id).unwrap_or_default();
    let points = live
        .replication(item_name(&item.id))
        .map(|status| &status.recovery_points);
    let point = detail
        .recovery_point_id
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let point = points.and_then(|points| {
        points
            .iter()
            .find(|known| known.id.eq_ignore_ascii_case(point))
    });
    detail.recovery_point_type = match (point.map(v1::RecoveryPoint::kind), known) {
        (Some(Kind::ApplicationConsistent), _) => "ApplicationConsistent".to_owned(),
        (Some(Kind::CrashConsistent), _) => "CrashConsistent".to_owned(),
        (_, known) => known
            .map(|vm| vm.recovery_point_type.clone())
            .unwrap_or_default(),
    };
    if let Some(known) = known.filter(|known| !known.policy_id.is_empty()) {
        detail.policy_id.clone_from(&known.policy_id);
        detail.replication_frequency_in_seconds = known.replication_frequency_in_seconds;
        return Ok(());
    }
    let key = item.policy_id.to_ascii_lowercase();
    if let Some(policy) = records::get::<Policy>(app.store.as_ref(), &key).await? {
        detail.policy_id = policy.record.id;
        detail.replication_frequency_in_seconds = policy.record.details.replication_interval;
    }
    Ok(())
}

/// A recovered VM that a job tells of.
pub(super) struct Shown<'a> {
    /// VM id on the recovery host.
    pub(super) id: String,
    /// VM name there.
    pub(super) name: String,
    /// Recovery point that was chosen.
    pub(super) point_id: &'a str,
    /// Its instant; 0 = not known.
    pub(super) point_ms: i64,
    /// Group, from 0.
    pub(super) group: usize,
    /// When the job was asked for.
    pub(super) requested_ms: i64,
    /// It has had its time to boot.
    pub(super) late: bool,
    /// It is in Azure.
    pub(super) in_azure: bool,
}

/// What is known of it.
pub(super) fn detail(vm: &Shown<'_>, item: &Item, live: &Live) -> DrillVm {
    let status = live.recovered(&vm.id).cloned().unwrap_or_default();
    let instant = arm_model::timestamp::from_unix_ms;
    let point_ms = if status.point_time_unix_ms > 0 {
        status.point_time_unix_ms
    } else {
        vm.point_ms
    };
    let up = Some(status.first_output_unix_ms)
        .filter(|ms| *ms > 0)
        .or(Some(status.started_unix_ms).filter(|ms| *ms > 0));
    let seconds = |ms: i64| {
        std::time::Duration::from_millis(u64::try_from(ms.max(0)).unwrap_or_default()).as_secs_f64()
    };
    DrillVm {
        name: item_name(&item.id).to_owned(),
        friendly_name: item.vm_name.clone(),
        test_vm_name: vm.id.clone(),
        test_vm_friendly_name: vm.name.clone(),
        // Nothing of a recovery host's own networks; a VM in Azure is always in one.
        network_connection_status: if vm.in_azure {
            "Connected"
        } else {
            "NotConnected"
        }
        .to_owned(),
        recovery_point_id: format!(
            "{}/recoveryPoints/{}",
            item.id,
            if status.point_id.is_empty() {
                vm.point_id
            } else {
                &status.point_id
            }
        ),
        recovery_point_time: Some(point_ms).filter(|ms| *ms > 0).and_then(instant),
        group: u32::try_from(vm.group + 1).unwrap_or(u32::MAX),
        requested_time: instant(vm.requested_ms),
        started_time: instant(status.started_unix_ms),
        first_output_time: instant(status.first_output_unix_ms),
        rto_in_seconds: up.map(|up| seconds(up - vm.requested_ms)),
        rpo_in_seconds: Some(seconds(vm.requested_ms - point_ms)).filter(|_| point_ms > 0),
        recovery_host: live.host_name().to_owned(),
        engine_version: live
            .report
            .host
            .as_ref()
            .map_or_else(String::new, |host| host.engine_version.clone()),
        console_path: status.console_path.clone(),
        private_network: status.connected_adapters > 0,
        state: match status.state() {
            State::Unspecified => "",
            State::Preparing => "Preparing",
            State::Running => "Running",
            State::Booted => "Booted",
            State::Off => "Off",
            State::Failed => "Failed",
        }
        .to_owned(),
        note: (vm.late && status.state() == State::Running)
            .then(|| "The VM runs but has written nothing to its console.".to_owned()),
        ..DrillVm::default()
    }
}

/// Marks a group's child tasks by the states of its VMs, which come in the order of the tasks.
pub(super) fn mark_children(task: &mut Task, members: &[(String, String)], now: &str) {
    for (child, (name, state)) in children(task).iter_mut().zip(members) {
        child.friendly_name = format!("Start {name}");
        let (job_state, text) = match state.as_str() {
            "Booted" => (JobState::Succeeded, "Completed"),
            "Failed" => (JobState::Failed, "Failed"),
            "Preparing" | "Running" => (JobState::InProgress, "InProgress"),
            _ => (JobState::NotStarted, "NotStarted"),
        };
        if child.state != job_state {
            if child.state == JobState::NotStarted {
                now.clone_into(&mut child.start_time);
            }
            if job_state.is_final() {
                now.clone_into(&mut child.end_time);
            }
            child.state = job_state;
            text.clone_into(&mut child.state_description);
        }
    }
}
