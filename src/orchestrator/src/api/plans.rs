//! Recovery plans.

use arm_model::protected_item::CurrentScenario;
use arm_model::recovery_plan::{
    BOOT, PlanCreation, PlanGroup, PlanProperties, PlanUpdate, action_problems,
};
use arm_model::{
    ArmError, FabricId, HYPER_V_REPLICA_AZURE, MICROSOFT_AZURE, PlanId, ProtectedItemId, Resource,
    ServicesProviderId, VaultId, validate,
};
use axum::http::StatusCode;
use serde_json::json;

use super::entry::{Call, page, unknown_path};
use super::operations::current_job;
use super::reply::Reply;
use super::{fabrics, load};
use crate::fault::Fault;
use crate::saga::start::{self, NewJob};
use crate::saga::state::fresh_task;
use crate::store::records::{self, EngineRecord, Fabric, Item, Plan, Record};

/// PUT, PATCH, GET, DELETE.
///
/// # Errors
/// What is refused.
pub async fn handle(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    let id = load::plan_id(call, &vault)?;
    match call.method {
        "GET" => {
            let stored = load::require::<Plan>(call.app, id.as_str()).await?;
            Reply::versioned(&answer(call, &stored.record).await?, stored.etag)
        }
        "PUT" => put(call, &vault, &id).await,
        "PATCH" => patch(call, &vault, &id).await,
        "DELETE" => delete(call, &vault, &id).await,
        _ => Err(unknown_path(&call.path)),
    }
}

/// `V/replicationRecoveryPlans`.
///
/// # Errors
/// 404 without a vault.
pub async fn list(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    let mut answers = Vec::new();
    for plan in records::list::<Plan>(call.app.store.as_ref(), &format!("{}/", vault.key())).await?
    {
        answers.push(answer(call, &plan.record).await?);
    }
    page(answers)
}

async fn put(call: &Call<'_>, vault: &VaultId, id: &PlanId) -> Result<Reply, Fault> {
    validate::resource_name(id.name())
        .map_err(|violation| Fault::refuse(400, violation.into_error("name")))?;
    let body: PlanCreation = call.properties()?;
    let wanted = body.primary_fabric_id.unwrap_or_default();
    let fabric = FabricId::parse(&wanted)
        .map_err(|error| Fault::invalid("properties.primaryFabricId", format!("{error}.")))?;
    call.may_use(fabric.as_arm(), "properties.primaryFabricId")?;
    let known = records::get::<Fabric>(call.app.store.as_ref(), &fabric.key()).await?;
    let known = known.filter(|_| VaultId::of(&fabric).is_some_and(|owner| owner == *vault));
    let Some(known) = known else {
        return Err(Fault::refuse(
            400,
            ArmError::new(
                "FabricNotFound",
                format!("The vault has no site `{}`.", fabric.name()),
            )
            .at("properties.primaryFabricId"),
        ));
    };
    if body
        .recovery_fabric_id
        .as_deref()
        .is_some_and(|target| target != MICROSOFT_AZURE)
    {
        return Err(Fault::invalid(
            "properties.recoveryFabricId",
            format!("Hyper-V VMs are recovered to `{MICROSOFT_AZURE}` only."),
        ));
    }
    let groups = groups(call, &known.record, body.groups.unwrap_or_default()).await?;
    let stored = records::get::<Plan>(call.app.store.as_ref(), &id.key()).await?;
    call.precondition(stored.as_ref().map(|stored| stored.etag))?;
    not_in_drill(stored.as_ref().map(|stored| &stored.record))?;
    let record = Plan {
        id: stored
            .as_ref()
            .map_or_else(|| id.as_str().to_owned(), |stored| stored.record.id.clone()),
        fabric_id: known.record.id,
        deployment_model: body
            .failover_deployment_model
            .unwrap_or_else(|| "ResourceManager".to_owned()),
        groups,
        last_test_failover: stored
            .as_ref()
            .and_then(|stored| stored.record.last_test_failover.clone()),
        drill_job: None,
    };
    save(call, vault, id, &record, stored.as_ref()).await
}

async fn patch(call: &Call<'_>, vault: &VaultId, id: &PlanId) -> Result<Reply, Fault> {
    let body: PlanUpdate = call.properties()?;
    let stored = load::require::<Plan>(call.app, id.as_str()).await?;
    call.precondition(Some(stored.etag))?;
    not_in_drill(Some(&stored.record))?;
    let mut record = stored.record.clone();
    if let Some(wanted) = body.groups {
        let fabric = load::require::<Fabric>(call.app, &record.fabric_id).await?;
        record.groups = groups(call, &fabric.record, wanted).await?;
    }
    save(call, vault, id, &record, Some(&stored)).await
}

fn not_in_drill(plan: Option<&Plan>) -> Result<(), Fault> {
    match plan {
        Some(plan) if plan.drill_job.is_some() => Err(Fault::conflict(
            "OperationNotAllowed",
            &plan.id,
            "A test failover of the plan waits for its cleanup.",
            "Clean the test failover up first.",
        )),
        _ => Ok(()),
    }
}

async fn save(
    call: &Call<'_>,
    vault: &VaultId,
    id: &PlanId,
    record: &Plan,
    stored: Option<&records::Stored<Plan>>,
) -> Result<Reply, Fault> {
    let (scenario, friendly) = if stored.is_some() {
        ("UpdateRecoveryPlan", "Update a recovery plan")
    } else {
        ("AddRecoveryPlan", "Create a recovery plan")
    };
    let job = start::start(
        call.app,
        NewJob {
            vault,
            resource: id,
            removes: false,
            scenario,
            friendly_name: friendly,
            target_name: id.name(),
            target_type: "RecoveryPlan",
            workflow: "put",
            input: fabrics::put_input(&id.key(), record, stored),
            tasks: vec![fresh_task(
                "SaveRecoveryPlanTask",
                "Saving the recovery plan",
            )],
            details: arm_model::job::JobDetails::default(),
            locks: vec![id.key()],
            request_id: &call.request_id,
            changes: vec![fabrics::unchanged(
                &id.key(),
                stored.map(|stored| stored.etag),
            )],
            name: None,
        },
    )
    .await?;
    Ok(Reply::accepted(job, id))
}

/// Checks the groups and puts the service's own two in front.
async fn groups(
    call: &Call<'_>,
    fabric: &Fabric,
    wanted: Vec<PlanGroup>,
) -> Result<Vec<PlanGroup>, Fault> {
    let own = |kind: &str| PlanGroup {
        group_type: kind.to_owned(),
        ..PlanGroup::default()
    };
    actions(call, fabric, &wanted).await?;
    let mut groups = vec![own("Shutdown"), own("Failover")];
    for (index, mut group) in wanted.into_iter().enumerate() {
        let target = format!("properties.groups[{index}]");
        match group.group_type.as_str() {
            "Shutdown" | "Failover" if group.replication_protected_items.is_empty() => {
                if let Some(present) = groups
                    .iter_mut()
                    .find(|present| present.group_type == group.group_type)
                {
                    *present = group;
                }
                continue;
            }
            BOOT => {}
            other => {
                return Err(Fault::invalid(
                    &format!("{target}.groupType"),
                    format!("VMs are in groups of type `{BOOT}`, not `{other}`."),
                ));
            }
        }
        for (position, item) in group.replication_protected_items.iter_mut().enumerate() {
            let target = format!("{target}.replicationProtectedItems[{position}].id");
            let id = ProtectedItemId::parse(&item.id)
                .map_err(|error| Fault::invalid(&target, format!("{error}.")))?;
            call.may_use(id.as_arm(), &target)?;
            let stored = records::get::<Item>(call.app.store.as_ref(), &id.key()).await?;
            let stored = stored.ok_or_else(|| {
                Fault::refuse(
                    400,
                    ArmError::new(
                        "ProtectedItemNotFound",
                        format!("There is no protected item `{}`.", id.name()),
                    )
                    .at(&*target)
                    .advise("", "Enable replication of the VM first."),
                )
            })?;
            if !id
                .key()
                .starts_with(&format!("{}/", fabric.id.to_ascii_lowercase()))
            {
                return Err(Fault::invalid(
                    &target,
                    format!(
                        "The VM `{}` belongs to another site than the plan.",
                        stored.record.vm_name
                    ),
                ));
            }
            stored.record.id.clone_into(&mut item.id);
            stored.record.vm_id.clone_into(&mut item.virtual_machine_id);
        }
        groups.push(group);
    }
    boot_order(&groups)
        .map_err(|error| Fault::invalid("properties.groups", format!("{error}.")))?;
    Ok(groups)
}

/// Checks the actions: their own rules, and that their hosts are the site's.
async fn actions(call: &Call<'_>, fabric: &Fabric, groups: &[PlanGroup]) -> Result<(), Fault> {
    if let Some(problem) = action_problems(groups).into_iter().next() {
        let target = problem.target();
        let error = ArmError::new("InvalidParameter", problem.message).at(target);
        return Err(Fault::refuse(400, error.advise("", &problem.advice)));
    }
    for (index, group) in groups.iter().enumerate() {
        let lists = [
            ("startGroupActions", &group.start_group_actions),
            ("endGroupActions", &group.end_group_actions),
        ];
        for (list, actions) in lists {
            for (position, action) in actions.iter().enumerate() {
                let details = &action.custom_details;
                if let Some(host) = details.host_id.as_deref().filter(|id| !id.is_empty()) {
                    let target = format!(
                        "properties.groups[{index}].{list}[{position}].customDetails.hostId"
                    );
                    is_of_site(call, fabric, host, &target).await?;
                }
            }
        }
    }
    Ok(())
}

async fn is_of_site(
    call: &Call<'_>,
    fabric: &Fabric,
    host: &str,
    target: &str,
) -> Result<(), Fault> {
    let id = ServicesProviderId::parse(host)
        .map_err(|error| Fault::invalid(target, format!("{error}.")))?;
    call.may_use(id.as_arm(), target)?;
    let key = records::engine_key(id.name());
    let engine = records::get::<EngineRecord>(call.app.store.as_ref(), &key).await?;
    let known = engine.filter(|engine| {
        let engine = &engine.record;
        engine.provider_id.eq_ignore_ascii_case(id.as_str())
            && engine.fabric_id.eq_ignore_ascii_case(&fabric.id)
    });
    if known.is_some() {
        return Ok(());
    }
    let error = ArmError::new(
        "HostNotFound",
        format!("The plan's site has no host `{}`.", id.name()),
    );
    Err(Fault::refuse(
        400,
        error.at(target).advise(
            "The host is not registered, or belongs to another site.",
            "Use the id of a registered host of the plan's site, or leave it out: then the orchestrator runs the script.",
        ),
    ))
}

/// Item ids by boot group.
///
/// # Errors
/// When the plan breaks a rule.
pub fn boot_order(groups: &[PlanGroup]) -> Result<Vec<Vec<String>>, protection::PlanError> {
    let boot: Vec<Vec<String>> = groups
        .iter()
        .filter(|group| group.group_type == BOOT)
        .map(|group| {
            group
                .replication_protected_items
                .iter()
                .map(|item| item.id.clone())
                .collect()
        })
        .collect();
    protection::boot_order(&boot, |id| id.to_ascii_lowercase())
}

async fn delete(call: &Call<'_>, vault: &VaultId, id: &PlanId) -> Result<Reply, Fault> {
    let store = call.app.store.as_ref();
    let Some(stored) = records::get::<Plan>(store, &id.key()).await? else {
        return Ok(Reply::Empty(StatusCode::NO_CONTENT));
    };
    call.precondition(Some(stored.etag))?;
    not_in_drill(Some(&stored.record))?;
    let job = start::start(call.app, NewJob {
        vault,
        resource: id,
        removes: true,
        scenario: "DeleteRecoveryPlan",
        friendly_name: "Delete a recovery plan",
        target_name: id.name(),
        target_type: "RecoveryPlan",
        workflow: "remove",
        input: json!({ "documents": [{ "key": id.key(), "kind": Plan::KIND, "body": stored.record }] }),
        tasks: vec![fresh_task("DeleteRecoveryPlanTask", "Delete a recovery plan task")],
        details: arm_model::job::JobDetails::default(),
        locks: vec![id.key()],
        request_id: &call.request_id,
        changes: vec![fabrics::unchanged(&id.key(), Some(stored.etag))],
        name: None,
    })
    .await?;
    Ok(Reply::accepted(job, id))
}

/// The plan's items that are there.
async fn members(call: &Call<'_>, plan: &Plan) -> Result<Vec<Item>, Fault> {
    let mut members = Vec::new();
    let all = plan
        .groups
        .iter()
        .flat_map(|group| &group.replication_protected_items);
    for item in all {
        let key = item.id.to_ascii_lowercase();
        let stored = records::get::<Item>(call.app.store.as_ref(), &key).await?;
        members.extend(stored.map(|stored| stored.record));
    }
    Ok(members)
}

/// What begins for all VMs together is possible when it is for each; what goes on from there, when it is for any.
fn allowed(members: &[Item]) -> Vec<String> {
    use protection::Operation as O;
    let may = |item: &Item, operation| item.life.allowed_operations().contains(&operation);
    let begins = [O::TestFailover, O::PlannedFailover, O::UnplannedFailover]
        .into_iter()
        .filter(|operation| members.iter().all(|item| may(item, *operation)));
    let goes_on = [O::Commit, O::CancelFailover, O::ReverseReplicate]
        .into_iter()
        .filter(|operation| members.iter().any(|item| may(item, *operation)));
    let operations = begins.chain(goes_on);
    operations
        .map(|operation| operation.as_str().to_owned())
        .collect()
}

async fn answer(call: &Call<'_>, plan: &Plan) -> Result<Resource<PlanProperties>, Fault> {
    let id = PlanId::parse(&plan.id).map_err(|error| Fault::invalid("id", error.to_string()))?;
    let vault = VaultId::of(&id)
        .map(|vault| vault.to_string())
        .unwrap_or_default();
    let job = current_job(call, &id.key()).await?;
    let members = members(call, plan).await?;
    let allowed = match (&job, &plan.drill_job) {
        (Some(_), _) => vec![],
        (None, Some(_)) => vec!["TestFailoverCleanup".to_owned()],
        (None, None) => allowed(&members),
    };
    let last = |planned| {
        let ends = members
            .iter()
            .filter_map(|item| item.last_failover.as_ref());
        ends.filter(|end| end.planned == planned)
            .map(|end| end.time.clone())
            .max()
    };
    let status = if plan.drill_job.is_some() {
        ("WaitingForCompletion", "Cleanup test failover pending")
    } else {
        ("None", "None")
    };
    Ok(Resource::answer(
        &id,
        PlanProperties {
            friendly_name: id.name().to_owned(),
            primary_fabric_id: plan.fabric_id.clone(),
            primary_fabric_friendly_name: plan
                .fabric_id
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned(),
            recovery_fabric_id: MICROSOFT_AZURE.to_owned(),
            recovery_fabric_friendly_name: MICROSOFT_AZURE.to_owned(),
            failover_deployment_model: plan.deployment_model.clone(),
            replication_providers: vec![HYPER_V_REPLICA_AZURE.to_owned()],
            allowed_operations: allowed,
            last_test_failover_time: plan.last_test_failover.clone(),
            last_planned_failover_time: last(true),
            last_unplanned_failover_time: last(false),
            current_scenario: match job {
                Some(job) => CurrentScenario {
                    scenario_name: job.record.properties.scenario_name,
                    job_id: job.record.id,
                    start_time: job.record.properties.start_time,
                },
                None => match &plan.drill_job {
                    Some(drill) => CurrentScenario {
                        scenario_name: "TestFailover".to_owned(),
                        job_id: drill.clone(),
                        ..CurrentScenario::default()
                    },
                    None => CurrentScenario {
                        job_id: format!("{vault}/replicationJobs/None"),
                        ..CurrentScenario::default()
                    },
                },
            },
            current_scenario_status: status.0.to_owned(),
            current_scenario_status_description: status.1.to_owned(),
            groups: plan.groups.clone(),
            provider_specific_details: Vec::new(),
        },
    ))
}
