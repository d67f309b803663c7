//! What the job of a failover tells of its VMs.

use arm_model::job::JobState;
use protection::life::Phase;

use super::{BEFORE_START, FailoverInput, chosen};
use crate::azure_target;
use crate::failover::vm_id;
use crate::fault::Fault;
use crate::saga::Run;
use crate::saga::drill_report::{Shown, detail, keep_answers, mark_children};
use crate::saga::steps;
use crate::store::records::{self, Item};

/// Writes what is known of the VMs into the job.
pub(super) async fn show(run: &mut Run<'_>, input: &FailoverInput) -> Result<(), Fault> {
    let app = run.app;
    let (mut details, mut states) = (Vec::new(), Vec::new());
    let mut running = 0;
    for vm in chosen(run) {
        let Some(item) = records::get::<Item>(app.store.as_ref(), &vm.item).await? else {
            continue;
        };
        let item = item.record;
        let live = app.fleet.get(&vm.engine_id).unwrap_or_default();
        let side = item.recovery.as_ref();
        let shown = Shown {
            id: vm_id(&item).map(|id| id.to_string()).unwrap_or_default(),
            name: side.map_or_else(|| item.vm_name.clone(), |side| side.name.clone()),
            point_id: side.map_or(&vm.point_id, |side| &side.point_id),
            point_ms: side.map_or(vm.point_ms, |side| side.point_ms),
            group: vm.group,
            requested_ms: input.requested_unix_ms,
            late: app.patience.boot_ms < run.waited_ms(),
            in_azure: azure_target::is_engine(&vm.engine_id),
        };
        running += usize::from(matches!(item.life.phase, Phase::StoppingSource(_)));
        let mut detail = detail(&shown, &item, &live);
        keep_answers(run, &mut detail);
        states.push((vm.group, item.vm_name.clone(), detail.state.clone()));
        details.push(detail);
    }
    run.job.properties.custom_details.protected_item_details = Some(details);
    let now = app.now_text();
    if let Some(task) = run
        .job
        .properties
        .tasks
        .get_mut(steps::position(&input.steps, 1))
        && task.state == JobState::InProgress
        && running > 0
    {
        task.state_description = format!("InProgress, {running} not shut down yet");
    }
    if input.plan.is_none() {
        return Ok(());
    }
    for group in 0..input.groups.len() {
        let Some(task) = run
            .job
            .properties
            .tasks
            .get_mut(steps::position(&input.steps, BEFORE_START + group))
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
