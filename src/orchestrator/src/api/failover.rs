//! Failover and what follows it, of an item and of a plan: each request is checked here and becomes a job.
//!
//! | request | job | what it asks of the lives |
//! |---|---|---|
//! | `plannedFailover`, away | `PlannedFailover` | the source stops, its rest is sent, the recovered VM starts |
//! | `unplannedFailover` | `UnplannedFailover` | the recovered VM starts from what is in the store |
//! | `applyRecoveryPoint` | `ChangeRecoveryPoint` | the recovered VM is made from another point |
//! | `failoverCommit` | `CommitFailover` | accepted |
//! | `failoverCancel` | `CancelFailover` | taken back |
//! | `plannedFailover`, back | `PlannedFailover` | the source receives what differs, the recovered VM stops, the source starts |
//! | `reProtect` | `ReverseReplication` | protected again after a failback |

use arm_model::failover::{
    ApplyRecoveryPoint, CREATE_VM_IF_NOT_FOUND, FOR_DOWN_TIME, FOR_SYNCHRONIZATION, LATEST,
    LATEST_APPLICATION_CONSISTENT, LATEST_CRASH_CONSISTENT, LATEST_PROCESSED, NO_ACTION,
    PRIMARY_TO_RECOVERY, PlanFailoverDetails, PlanPlannedFailover, PlanUnplannedFailover,
    PlannedFailover, RECOVERY_TO_PRIMARY, ReverseReplication, SOURCE_NOT_REQUIRED, SOURCE_REQUIRED,
    USE_GROUP_POINT, USE_OWN_POINT, UnplannedFailover,
};
use arm_model::job::{FAILOVER_DETAILS, JobDetails};
use arm_model::recovery_plan::PlanGroup;
use arm_model::{ArmError, ArmId, ProtectedItemId, VaultId};
use protection::life::{DataOption, Event, Request};
use serde::Serialize;
use serde_json::Value;

use super::entry::{Call, unknown_path};
use super::reply::Reply;
use super::{item_answer, load, other_host, plan_part, plans, test_failover};
use crate::fault::Fault;
use crate::report;
use crate::saga::choose::PointChoice;
use crate::saga::failback::{self, FailbackInput};
use crate::saga::failover::{self, FailoverInput};
use crate::saga::failover_steps::{self, Step, StepInput};
use crate::saga::start::{self, NewJob};
use crate::saga::steps::{Arranged, Scenario};
use crate::store::records::{Item, Plan, Stored};

const POINT: &str = "properties.providerSpecificDetails.recoveryPointId";

/// The POST actions of this family on an item.
///
/// # Errors
/// What is refused.
pub async fn item(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, id, stored) = load::item(call).await?;
    call.precondition(Some(stored.etag))?;
    let about = About::item(&vault, &id, &stored.record);
    let item = stored.record.id.clone();
    let one = |point, planned, shut_down| FailoverInput {
        plan: None,
        groups: vec![vec![item.clone()]],
        planned,
        shut_down,
        point,
        common_point: false,
        requested_unix_ms: call.app.now_ms(),
        steps: Vec::new(),
    };
    match call.route.tail.as_deref() {
        Some("plannedfailover") => {
            let body: PlannedFailover = call.properties()?;
            let details = body.provider_specific_details;
            if goes_back(body.failover_direction.as_deref())? {
                let at = "properties.providerSpecificDetails.dataSyncOption";
                let details = details.unwrap_or_default();
                let minimise = minimises_downtime(details.data_sync_option.as_deref(), at)?;
                let at = "properties.providerSpecificDetails.recoveryVmCreationOption";
                let how = How {
                    minimise_downtime: minimise,
                    creates: creates(details.recovery_vm_creation_option.as_deref(), at)?,
                    to: other_host::wanted(call, &details, &stored.record).await?,
                };
                return back(call, about, how, &[&stored], &[]).await;
            }
            let wanted = details.and_then(|details| details.recovery_point_id);
            if wanted.is_some_and(|wanted| !wanted.is_empty()) {
                return Err(no_choice(POINT));
            }
            let input = one(PointChoice::Newest, true, true);
            begin(call, about, input, &[&stored], &[]).await
        }
        Some("unplannedfailover") => {
            let body: UnplannedFailover = call.properties()?;
            only_away(body.failover_direction.as_deref())?;
            let shut_down = shuts_down(body.source_site_operations.as_deref())?;
            let details = body.provider_specific_details;
            let wanted = details.and_then(|details| details.recovery_point_id);
            let point = point(call, &id, &stored, wanted.as_deref(), POINT)?;
            let input = one(point, false, shut_down);
            begin(call, about, input, &[&stored], &[]).await
        }
        Some("applyrecoverypoint") => {
            let body: ApplyRecoveryPoint = call.properties()?;
            let target = "properties.recoveryPointId";
            let point = point(
                call,
                &id,
                &stored,
                body.recovery_point_id.as_deref(),
                target,
            )?;
            step(call, about, Step::ChangePoint, &[&stored], Some(point)).await
        }
        Some("failovercommit") => step(call, about, Step::Commit, &[&stored], None).await,
        Some("failovercancel") => step(call, about, Step::Cancel, &[&stored], None).await,
        Some("reprotect") => {
            let body: ReverseReplication = call.properties()?;
            only_away(body.failover_direction.as_deref())?;
            step(call, about, Step::ReProtect, &[&stored], None).await
        }
        _ => Err(unknown_path(&call.path)),
    }
}

/// The POST actions of this family on a plan.
///
/// # Errors
/// What is refused.
pub async fn plan(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    let id = load::plan_id(call, &vault)?;
    let plan = load::require::<Plan>(call.app, id.as_str()).await?.record;
    let groups = plans::boot_order(&plan.groups)
        .map_err(|error| Fault::invalid("groups", format!("{error}.")))?;
    let part = plan_part::read(call, &plan.groups)?;
    let mut members = Vec::new();
    for item in groups.iter().flatten().filter(|id| part.has(id)) {
        members.push(load::require::<Item>(call.app, item).await?);
    }
    let about = About::plan(&vault, &id);
    let all: Vec<&Stored<Item>> = members.iter().collect();
    let of_plan = |details: &[PlanFailoverDetails], planned, shut_down| {
        let (point, common_point) = points(details)?;
        Ok::<_, Fault>(FailoverInput {
            plan: Some(plan.id.clone()),
            groups: Vec::new(),
            planned,
            shut_down,
            point,
            common_point,
            requested_unix_ms: call.app.now_ms(),
            steps: Vec::new(),
        })
    };
    match call.route.tail.as_deref() {
        Some("plannedfailover") => {
            let body: PlanPlannedFailover = call.properties()?;
            if goes_back(body.failover_direction.as_deref())? {
                let at = "properties.providerSpecificDetails[0].dataSyncOption";
                let first = body.provider_specific_details.first();
                let option = first.and_then(|one| one.data_sync_option.as_deref());
                let minimise = minimises_downtime(option, at)?;
                let at = "properties.providerSpecificDetails[0].recoveryVmCreationOption";
                let option = first.and_then(|one| one.recovery_vm_creation_option.as_deref());
                let how = How {
                    minimise_downtime: minimise,
                    creates: creates(option, at)?,
                    to: None,
                };
                return back(call, about, how, &all, &plan.groups).await;
            }
            let input = of_plan(&body.provider_specific_details, true, true)?;
            if input.common_point || input.point != PointChoice::Newest {
                return Err(no_choice("properties.providerSpecificDetails[0]"));
            }
            begin(call, about, input, &all, &plan.groups).await
        }
        Some("unplannedfailover") => {
            let body: PlanUnplannedFailover = call.properties()?;
            only_away(body.failover_direction.as_deref())?;
            let shut_down = shuts_down(body.source_site_operations.as_deref())?;
            let input = of_plan(&body.provider_specific_details, false, shut_down)?;
            begin(call, about, input, &all, &plan.groups).await
        }
        Some(tail) => {
            let one = match tail {
                "failovercommit" => Step::Commit,
                "failovercancel" => Step::Cancel,
                "reprotect" => Step::ReProtect,
                _ => return Err(unknown_path(&call.path)),
            };
            // Members that were handled one by one are left out.
            let ready: Vec<&Stored<Item>> = members
                .iter()
                .filter(|item| possible(&item.record, one))
                .collect();
            if ready.is_empty() {
                return Err(Fault::conflict(
                    "OperationNotAllowed",
                    id.as_str(),
                    format!(
                        "No VM of the plan is where `{}` is possible.",
                        one.request().operation().as_str()
                    ),
                    "See `allowedOperations` of its VMs for what is possible now.",
                ));
            }
            step(call, about, one, &ready, None).await
        }
        None => Err(unknown_path(&call.path)),
    }
}

fn possible(item: &Item, step: Step) -> bool {
    let wanted = step.request().operation();
    item.life.allowed_operations().contains(&wanted)
}

/// What a job is about.
struct About<'a> {
    vault: &'a VaultId,
    resource: &'a ArmId,
    name: String,
    kind: &'static str,
    details: JobDetails,
    is_plan: bool,
}

impl<'a> About<'a> {
    fn item(vault: &'a VaultId, id: &'a ProtectedItemId, item: &Item) -> Self {
        Self {
            vault,
            resource: id,
            name: item.vm_name.clone(),
            kind: "ProtectionEntity",
            details: item_answer::job_details(item),
            is_plan: false,
        }
    }

    fn plan(vault: &'a VaultId, id: &'a ArmId) -> Self {
        Self {
            vault,
            resource: id,
            name: id.name().to_owned(),
            kind: "RecoveryPlan",
            details: JobDetails::default(),
            is_plan: true,
        }
    }
}

async fn begin(
    call: &Call<'_>,
    about: About<'_>,
    mut input: FailoverInput,
    items: &[&Stored<Item>],
    plan: &[PlanGroup],
) -> Result<Reply, Fault> {
    // A plan that failed half-way is started again for the rest; the actions of its groups run again.
    let ready = ready(items, input.request(), about.is_plan)?;
    if about.is_plan {
        let scenario = input.scenario();
        let arranged = arrange(plan, scenario, items, &ready);
        input.groups = arranged.groups();
        input.steps = arranged.away(scenario);
    }
    let items = ready.as_slice();
    let (scenario, friendly) = if input.planned {
        ("PlannedFailover", "Planned failover")
    } else {
        ("UnplannedFailover", "Failover")
    };
    let tasks = failover::tasks(&input);
    let head = (scenario, friendly, "failover");
    job(call, about, head, &input, tasks, items).await
}

/// The plan's nodes: actions of groups with a VM that was asked for, VMs that are ready.
fn arrange(
    plan: &[PlanGroup],
    scenario: Scenario,
    asked: &[&Stored<Item>],
    ready: &[&Stored<Item>],
) -> Arranged {
    let is_among = |items: &[&Stored<Item>], id: &str| {
        let mut ids = items.iter().map(|item| &item.record.id);
        ids.any(|known| known.eq_ignore_ascii_case(id))
    };
    Arranged::new(
        plan,
        scenario,
        |id| is_among(asked, id),
        |id| is_among(ready, id),
    )
}

/// The items that a request is possible for. An item alone has to be; of a plan, those that are at the recovery side
/// already, or have come back already, are left out.
fn ready<'a>(
    items: &[&'a Stored<Item>],
    request: Request,
    is_plan: bool,
) -> Result<Vec<&'a Stored<Item>>, Fault> {
    let asked = |item: &Stored<Item>| protection::step(item.record.life, Event::Request(request));
    let ready: Vec<&Stored<Item>> = items
        .iter()
        .copied()
        .filter(|item| asked(item).is_ok())
        .collect();
    for item in items {
        let is_done = match request {
            Request::Failback(_) => !item.record.life.is_at_recovery(),
            _ => item.record.life.is_at_recovery(),
        };
        if !is_plan || !is_done || ready.is_empty() {
            asked(item)?;
        }
    }
    Ok(ready)
}

async fn step(
    call: &Call<'_>,
    about: About<'_>,
    step: Step,
    items: &[&Stored<Item>],
    point: Option<PointChoice>,
) -> Result<Reply, Fault> {
    for item in items {
        protection::step(item.record.life, Event::Request(step.request()))?;
    }
    let (scenario, friendly) = match step {
        Step::Commit => ("CommitFailover", "Commit"),
        Step::ChangePoint => ("ChangeRecoveryPoint", "Change recovery point"),
        Step::Cancel => ("CancelFailover", "Cancel failover"),
        Step::ReProtect => ("ReverseReplication", "Reverse replicate"),
    };
    let input = StepInput {
        step,
        items: items.iter().map(|item| item.record.id.clone()).collect(),
        point,
    };
    let head = (scenario, friendly, "failoverStep");
    let tasks = failover_steps::tasks(step);
    job(call, about, head, &input, tasks, items).await
}

async fn job(
    call: &Call<'_>,
    about: About<'_>,
    (scenario, friendly_name, workflow): (&'static str, &'static str, &'static str),
    input: &impl Serialize,
    tasks: Vec<arm_model::job::Task>,
    items: &[&Stored<Item>],
) -> Result<Reply, Fault> {
    let input: Value = serde_json::to_value(input)
        .map_err(|error| Fault::refuse(500, ArmError::new("InternalError", error.to_string())))?;
    let mut locks: Vec<String> = items.iter().map(|item| item.key.clone()).collect();
    if about.is_plan {
        locks.push(about.resource.key());
    }
    let job = start::start(
        call.app,
        NewJob {
            vault: about.vault,
            resource: about.resource,
            removes: false,
            scenario,
            friendly_name,
            target_name: &about.name,
            target_type: about.kind,
            workflow,
            input,
            tasks,
            details: report::asked_by(
                &call.client_id,
                JobDetails {
                    instance_type: FAILOVER_DETAILS.to_owned(),
                    protected_item_details: Some(Vec::new()),
                    ..about.details
                },
            ),
            locks,
            request_id: &call.request_id,
            changes: Vec::new(),
            name: None,
        },
    )
    .await?;
    Ok(Reply::accepted(job, about.resource))
}

/// A planned failover loses nothing, so it has no choice.
fn no_choice(target: &str) -> Fault {
    Fault::refuse(
        400,
        ArmError::new(
            "RecoveryPointNotSelectable",
            "A planned failover uses the point that holds the last write at the source.",
        )
        .at(target)
        .advise(
            "A recovery point was chosen.",
            "Leave it out, and change the recovery point before the commit; or start an unplanned failover.",
        ),
    )
}

/// The point of an item that a request names; the newest one when it names none.
fn point(
    call: &Call<'_>,
    id: &ProtectedItemId,
    stored: &Stored<Item>,
    wanted: Option<&str>,
    target: &str,
) -> Result<PointChoice, Fault> {
    match wanted.filter(|wanted| !wanted.is_empty()) {
        None => Ok(PointChoice::Newest),
        Some(wanted) => {
            test_failover::point_name(call, id, &stored.record, wanted, target).map(PointChoice::Id)
        }
    }
}

/// The points of a plan's VMs, and whether all get the newest one that they have in common.
fn points(details: &[PlanFailoverDetails]) -> Result<(PointChoice, bool), Fault> {
    let at = |name: &str| format!("properties.providerSpecificDetails[0].{name}");
    let first = details.first();
    let kind = first.and_then(|one| one.recovery_point_type.as_deref());
    let point = match kind {
        None | Some(LATEST | LATEST_PROCESSED) => PointChoice::Newest,
        Some(LATEST_APPLICATION_CONSISTENT) => PointChoice::NewestApplicationConsistent,
        Some(LATEST_CRASH_CONSISTENT) => PointChoice::NewestCrashConsistent,
        Some(other) => {
            return Err(Fault::invalid(
                &at("recoveryPointType"),
                format!("`{other}` is no choice of recovery points."),
            ));
        }
    };
    let common = match first.and_then(|one| one.multi_vm_sync_point_option.as_deref()) {
        None | Some(USE_OWN_POINT) => false,
        Some(USE_GROUP_POINT) => true,
        Some(other) => {
            return Err(Fault::invalid(
                &at("multiVmSyncPointOption"),
                format!("`{other}` is not possible; use `{USE_GROUP_POINT}` or `{USE_OWN_POINT}`."),
            ));
        }
    };
    Ok((point, common))
}

fn shuts_down(operations: Option<&str>) -> Result<bool, Fault> {
    match operations {
        None | Some(SOURCE_NOT_REQUIRED) => Ok(false),
        Some(SOURCE_REQUIRED) => Ok(true),
        Some(other) => Err(Fault::invalid(
            "properties.sourceSiteOperations",
            format!(
                "`{other}` is not possible; use `{SOURCE_REQUIRED}` or `{SOURCE_NOT_REQUIRED}`."
            ),
        )),
    }
}

/// Whether a planned failover goes back to the source.
fn goes_back(direction: Option<&str>) -> Result<bool, Fault> {
    match direction {
        Some(PRIMARY_TO_RECOVERY) => Ok(false),
        Some(RECOVERY_TO_PRIMARY) => Ok(true),
        None => Err(Fault::invalid(
            "properties.failoverDirection",
            format!("Name the direction: `{PRIMARY_TO_RECOVERY}` or `{RECOVERY_TO_PRIMARY}`."),
        )),
        Some(other) => Err(Fault::invalid(
            "properties.failoverDirection",
            format!(
                "`{other}` is not possible; use `{PRIMARY_TO_RECOVERY}` or `{RECOVERY_TO_PRIMARY}`."
            ),
        )),
    }
}

/// Whether the recovered VM runs on while most of the data moves.
fn minimises_downtime(option: Option<&str>, target: &str) -> Result<bool, Fault> {
    match option {
        None | Some(FOR_DOWN_TIME) => Ok(true),
        Some(FOR_SYNCHRONIZATION) => Ok(false),
        Some(other) => Err(Fault::invalid(
            target,
            format!(
                "`{other}` is not possible; use `{FOR_DOWN_TIME}` (the recovered VM runs while data moves) or `{FOR_SYNCHRONIZATION}` (it is stopped first)."
            ),
        )),
    }
}

/// Whether a VM that is gone from its host is made again there.
fn creates(option: Option<&str>, target: &str) -> Result<bool, Fault> {
    match option {
        None | Some(NO_ACTION) => Ok(false),
        Some(CREATE_VM_IF_NOT_FOUND) => Ok(true),
        Some(other) => Err(Fault::invalid(
            target,
            format!(
                "`{other}` is not possible; use `{NO_ACTION}` (the VM must still be on its host) or `{CREATE_VM_IF_NOT_FOUND}` (what is gone of it is made again)."
            ),
        )),
    }
}

/// How a failback is made.
struct How {
    /// The recovered VM runs on while most of the data moves.
    minimise_downtime: bool,
    /// What is gone of the VM is made again.
    creates: bool,
    /// Engine of another host than the one that the VM came from.
    to: Option<String>,
}

async fn back(
    call: &Call<'_>,
    about: About<'_>,
    how: How,
    items: &[&Stored<Item>],
    plan: &[PlanGroup],
) -> Result<Reply, Fault> {
    let How {
        minimise_downtime,
        creates,
        to,
    } = how;
    let option = if minimise_downtime {
        DataOption::MinimiseDowntime
    } else {
        DataOption::FullDownload
    };
    let ready = &if to.is_some() {
        // Whether the host of before was ever heard of again does not matter.
        for item in items {
            protection::step(item.record.life, Event::SourceMoved)?;
        }
        items.to_vec()
    } else {
        ready(items, Request::Failback(option), about.is_plan)?
    };
    let stops_at = FailbackInput::stops_at(minimise_downtime);
    let (groups, steps) = if about.is_plan {
        let arranged = arrange(plan, Scenario::Back, items, ready);
        let groups = arranged.groups();
        (groups, arranged.back(failback::STARTS, stops_at))
    } else {
        (Vec::new(), Vec::new())
    };
    let input = FailbackInput {
        plan: about.is_plan.then(|| about.resource.as_str().to_owned()),
        steps,
        items: ready.iter().map(|item| item.record.id.clone()).collect(),
        groups,
        creates,
        to,
        minimise_downtime,
    };
    let head = ("PlannedFailover", "Failback", "failback");
    job(call, about, head, &input, failback::tasks(&input), ready).await
}

fn only_away(direction: Option<&str>) -> Result<(), Fault> {
    match direction {
        None | Some(PRIMARY_TO_RECOVERY) => Ok(()),
        Some(other) => Err(Fault::invalid(
            "properties.failoverDirection",
            format!(
                "This goes `{PRIMARY_TO_RECOVERY}`, not `{other}`; the way back is a `plannedFailover`."
            ),
        )),
    }
}
