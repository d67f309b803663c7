//! Drills: start and cleanup, of an item and of a plan.

use arm_model::job::{DRILL_DETAILS, JobDetails, JobError};
use arm_model::test_failover::{
    NO_NETWORK, PlanTestFailover, TestFailover, TestFailoverCleanup, VM_NETWORK,
};
use arm_model::{ArmError, ArmId, RecoveryPointId, VaultId};
use protection::{DrillState, Event};
use serde_json::json;

use super::entry::Call;
use super::reply::Reply;
use super::{enable, item_answer, load, plan_part, plans};
use crate::fault::Fault;
use crate::networks;
use crate::report;
use crate::saga::drill::{self, DrillInput};
use crate::saga::drill_cleanup;
use crate::saga::start::{self, NewJob};
use crate::saga::steps::{Arranged, Scenario};
use crate::store::records::{self, Item, Plan};

/// Network of a drill, checked.
struct DrillNetwork {
    isolated: bool,
    /// ARM id.
    id: Option<String>,
    name: Option<String>,
    kind: String,
}

/// `I/testFailover`.
///
/// # Errors
/// What is refused.
pub async fn start_item(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, id, stored) = load::item(call).await?;
    let body: TestFailover = call.properties()?;
    direction(body.failover_direction.as_deref())?;
    let network = network(
        call,
        body.network_type.as_deref(),
        body.network_id.as_deref(),
    )
    .await?;
    protection::step(stored.record.life, Event::DrillStart)?;
    let wanted = body
        .provider_specific_details
        .and_then(|details| details.recovery_point_id)
        .filter(|id| !id.is_empty());
    let point = match wanted {
        None => None,
        Some(wanted) => {
            let target = "properties.providerSpecificDetails.recoveryPointId";
            Some(point_name(call, &id, &stored.record, &wanted, target)?)
        }
    };
    let input = DrillInput {
        plan: None,
        groups: vec![vec![stored.record.id.clone()]],
        point,
        application_consistent: false,
        isolated: network.isolated,
        network_id: network.id.clone(),
        requested_unix_ms: call.app.now_ms(),
        steps: Vec::new(),
    };
    let details = item_answer::job_details(&stored.record);
    begin(
        call,
        &vault,
        &id,
        &stored.record.vm_name,
        "ProtectionEntity",
        input,
        network,
        details,
        vec![id.key()],
    )
    .await
}

/// `V/replicationRecoveryPlans/{plan}/testFailover`.
///
/// # Errors
/// What is refused.
pub async fn start_plan(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    let id = load::plan_id(call, &vault)?;
    let plan = load::require::<Plan>(call.app, id.as_str()).await?.record;
    let body: PlanTestFailover = call.properties()?;
    direction(body.failover_direction.as_deref())?;
    let network = network(
        call,
        body.network_type.as_deref(),
        body.network_id.as_deref(),
    )
    .await?;
    let choice = body
        .provider_specific_details
        .iter()
        .find_map(|choice| choice.recovery_point_type.as_deref());
    let application_consistent = match choice {
        None | Some("Latest" | "LatestProcessed") => false,
        Some("LatestApplicationConsistent") => true,
        Some(other) => {
            return Err(Fault::invalid(
                "properties.providerSpecificDetails[0].recoveryPointType",
                format!("`{other}` is no choice of recovery points."),
            ));
        }
    };
    if plan.drill_job.is_some() {
        return Err(Fault::conflict(
            "OperationNotAllowed",
            id.as_str(),
            "A test failover of the plan waits for its cleanup.",
            "Clean the test failover up first.",
        ));
    }
    let groups = plans::boot_order(&plan.groups)
        .map_err(|error| Fault::invalid("groups", format!("{error}.")))?;
    let mut locks = vec![id.key()];
    let part = plan_part::read(call, &plan.groups)?;
    for item in groups.iter().flatten().filter(|id| part.has(id)) {
        let stored = load::require::<Item>(call.app, item).await?;
        protection::step(stored.record.life, Event::DrillStart)?;
        locks.push(stored.key);
    }
    let arranged = Arranged::new(&plan.groups, Scenario::Test, |id| part.has(id), |_| true);
    let input = DrillInput {
        plan: Some(plan.id.clone()),
        groups: arranged.groups(),
        steps: arranged.away(Scenario::Test),
        point: None,
        application_consistent,
        isolated: network.isolated,
        network_id: network.id.clone(),
        requested_unix_ms: call.app.now_ms(),
    };
    begin(
        call,
        &vault,
        &id,
        id.name(),
        "RecoveryPlan",
        input,
        network,
        JobDetails::default(),
        locks,
    )
    .await
}

#[expect(clippy::too_many_arguments, reason = "all of it is the job's head")]
async fn begin(
    call: &Call<'_>,
    vault: &VaultId,
    id: &ArmId,
    name: &str,
    kind: &'static str,
    input: DrillInput,
    network: DrillNetwork,
    details: JobDetails,
    locks: Vec<String>,
) -> Result<Reply, Fault> {
    let mut tasks = drill::tasks(&input);
    if let (Some(warning), Some(first)) = (
        in_production(call, &input, &network).await?,
        tasks.first_mut(),
    ) {
        let now = call.app.now_text();
        let warning = JobError::warning(&warning, &first.task_id, &now, call.request_id.as_str());
        first.errors.push(warning);
    }
    let input = serde_json::to_value(&input)
        .map_err(|error| Fault::refuse(500, ArmError::new("InternalError", error.to_string())))?;
    let job = start::start(
        call.app,
        NewJob {
            vault,
            resource: id,
            removes: false,
            scenario: "TestFailover",
            friendly_name: "Test failover",
            target_name: name,
            target_type: kind,
            workflow: "testFailover",
            input,
            tasks,
            details: report::asked_by(
                &call.client_id,
                JobDetails {
                    instance_type: DRILL_DETAILS.to_owned(),
                    test_failover_status: Some("Active".to_owned()),
                    network_name: network.name,
                    network_type: Some(network.kind),
                    protected_item_details: Some(Vec::new()),
                    ..details
                },
            ),
            locks,
            request_id: &call.request_id,
            changes: Vec::new(),
            name: None,
        },
    )
    .await?;
    Ok(Reply::accepted(job, id))
}

/// A drill in the network that failovers use: two machines with one identity may meet there.
async fn in_production(
    call: &Call<'_>,
    input: &DrillInput,
    network: &DrillNetwork,
) -> Result<Option<ArmError>, Fault> {
    let Some(drill) = &network.id else {
        return Ok(None);
    };
    let mut members = Vec::new();
    for id in input.groups.iter().flatten() {
        let item = load::require::<Item>(call.app, id).await?.record;
        let live = call.app.fleet.get(&item.engine_id).unwrap_or_default();
        let production = networks::of_item(call.app, &item, &live).await?;
        if production.is_some_and(|production| production.id.eq_ignore_ascii_case(drill)) {
            members.push(item.vm_name);
        }
    }
    Ok((!members.is_empty()).then(|| {
        ArmError::new(
            "TestFailoverInProductionNetwork",
            format!(
                "The network `{}` of this test failover is the one that a failover uses for: {}.",
                network.name.as_deref().unwrap_or_default(),
                members.join(", ")
            ),
        )
        .at("properties.networkId")
        .advise(
            "Test VMs and the VMs that they are copies of may meet there: two machines with one name and one address.",
            "Use no network, or one that is kept for test failovers; or shut the source VMs down first.",
        )
    }))
}

fn direction(direction: Option<&str>) -> Result<(), Fault> {
    match direction {
        None | Some("PrimaryToRecovery") => Ok(()),
        Some(other) => Err(Fault::invalid(
            "properties.failoverDirection",
            format!("A test failover goes `PrimaryToRecovery`, not `{other}`."),
        )),
    }
}

async fn network(
    call: &Call<'_>,
    kind: Option<&str>,
    id: Option<&str>,
) -> Result<DrillNetwork, Fault> {
    match kind.filter(|kind| !kind.is_empty()).unwrap_or(NO_NETWORK) {
        NO_NETWORK => Ok(DrillNetwork {
            isolated: true,
            id: None,
            name: None,
            kind: NO_NETWORK.to_owned(),
        }),
        VM_NETWORK => {
            let Some(id) = id else {
                return Err(Fault::invalid(
                    "properties.networkId",
                    format!("`{VM_NETWORK}` needs the id of a virtual network."),
                ));
            };
            let (_, vault) = load::vault(call).await?;
            let network =
                enable::network(call, id, &vault.record.0.location, "properties.networkId").await?;
            let name = network.0.id.rsplit('/').next().map(str::to_owned);
            Ok(DrillNetwork {
                isolated: false,
                id: Some(network.0.id),
                name,
                kind: VM_NETWORK.to_owned(),
            })
        }
        other => Err(Fault::invalid(
            "properties.networkType",
            format!("`{other}` is not possible; use `{NO_NETWORK}` or `{VM_NETWORK}`."),
        )),
    }
}

/// The name of a listed recovery point that a request gives by its id.
///
/// # Errors
/// 400 at `target` for a point of another item, or one that is not there.
pub(super) fn point_name(
    call: &Call<'_>,
    item: &ArmId,
    record: &Item,
    wanted: &str,
    target: &str,
) -> Result<String, Fault> {
    let id = RecoveryPointId::parse(wanted)
        .map_err(|error| Fault::invalid(target, format!("{error}.")))?;
    if id.parent().is_none_or(|parent| parent != *item) {
        return Err(Fault::invalid(
            target,
            "The recovery point belongs to another item.",
        ));
    }
    let live = call.app.fleet.get(&record.engine_id).unwrap_or_default();
    let known = live.replication(item.name()).is_some_and(|status| {
        status
            .recovery_points
            .iter()
            .any(|point| point.id.eq_ignore_ascii_case(id.name()))
    });
    if !known {
        return Err(Fault::refuse(
            400,
            ArmError::new(
                "RecoveryPointNotFound",
                format!("The item has no recovery point `{}`.", id.name()),
            )
            .at(target)
            .advise(
                "The point is older than the retention of the policy.",
                "Choose one of the listed recovery points.",
            ),
        ));
    }
    Ok(id.name().to_owned())
}

/// `I/testFailoverCleanup`.
///
/// # Errors
/// What is refused.
pub async fn clean_item(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, id, stored) = load::item(call).await?;
    let body: TestFailoverCleanup = call.properties()?;
    protection::step(stored.record.life, Event::CleanupStart)?;
    let item = stored.record.id.clone();
    clean(
        call,
        &vault,
        &id,
        &stored.record.vm_name,
        "ProtectionEntity",
        None,
        vec![item],
        body.comments,
    )
    .await
}

/// `V/replicationRecoveryPlans/{plan}/testFailoverCleanup`.
///
/// # Errors
/// What is refused.
pub async fn clean_plan(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    let id = load::plan_id(call, &vault)?;
    let plan = load::require::<Plan>(call.app, id.as_str()).await?.record;
    let body: TestFailoverCleanup = call.properties()?;
    let Some(drill) = &plan.drill_job else {
        return Err(Fault::conflict(
            "OperationNotAllowed",
            id.as_str(),
            "There is no test failover of the plan to clean up.",
            "Start a test failover first.",
        ));
    };
    // Members whose test VM was cleaned up one by one are left out.
    let mut items = Vec::new();
    for item in records::list::<Item>(call.app.store.as_ref(), &format!("{}/", vault.key())).await?
    {
        if item.record.drill_job.as_deref() == Some(drill.as_str())
            && item.record.life.item.drill != DrillState::None
        {
            items.push(item.record.id);
        }
    }
    clean(
        call,
        &vault,
        &id,
        id.name(),
        "RecoveryPlan",
        Some(plan.id.clone()),
        items,
        body.comments,
    )
    .await
}

#[expect(clippy::too_many_arguments, reason = "all of it is the job's head")]
async fn clean(
    call: &Call<'_>,
    vault: &VaultId,
    id: &ArmId,
    name: &str,
    kind: &'static str,
    plan: Option<String>,
    items: Vec<String>,
    comments: Option<String>,
) -> Result<Reply, Fault> {
    let mut locks: Vec<String> = items.iter().map(|item| item.to_ascii_lowercase()).collect();
    if plan.is_some() {
        locks.push(id.key());
    }
    let job = start::start(
        call.app,
        NewJob {
            vault,
            resource: id,
            removes: false,
            scenario: "TestFailoverCleanup",
            friendly_name: "Test failover cleanup",
            target_name: name,
            target_type: kind,
            workflow: "testFailoverCleanup",
            input: json!({ "plan": plan, "items": items, "comments": comments }),
            tasks: drill_cleanup::tasks(),
            details: report::asked_by(
                &call.client_id,
                JobDetails {
                    comments,
                    ..JobDetails::default()
                },
            ),
            locks,
            request_id: &call.request_id,
            changes: Vec::new(),
            name: call.job_name.clone(),
        },
    )
    .await?;
    Ok(Reply::accepted(job, id))
}
