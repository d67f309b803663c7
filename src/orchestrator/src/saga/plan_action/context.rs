//! What scripts and webhooks are told: ASR's `RecoveryPlanContext`, with more.
//!
//! As there, `RoleName` is empty until the VM is up, and `VmMap` is keyed by the VM's id at its source.

use engine_protocol::v1::recovered_vm_status::State;
use protection::life::Phase;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Of;
use crate::failover::vm_id;
use crate::fault::Fault;
use crate::saga::Run;
use crate::saga::steps::{ActionStep, Scenario};
use crate::store::records::{self, Item};

/// What drills and failovers remember of a VM, as far as it is told.
#[derive(Debug, Deserialize)]
struct Chosen {
    item: String,
    engine_id: String,
    point_id: String,
    point_ms: i64,
    /// Of a drill.
    #[serde(default)]
    vm_id: String,
}

/// The context of an action; remembered, so that each try says the same.
pub(super) async fn of(run: &mut Run<'_>, of: &Of<'_>, step: &ActionStep) -> Result<String, Fault> {
    let memo = format!("context {}", run.job.node);
    if let Some(known) = run.job.recall_text(&memo) {
        return Ok(known.to_owned());
    }
    let text = make(run, of, step).await?.to_string();
    run.job.remember(&memo, text.clone());
    Ok(text)
}

async fn make(run: &Run<'_>, of: &Of<'_>, step: &ActionStep) -> Result<Value, Fault> {
    let chosen = run.job.recall("vms").cloned().unwrap_or_default();
    let chosen: Vec<Chosen> = serde_json::from_value(chosen).unwrap_or_default();
    let mut vms = Map::new();
    let mut members = Vec::new();
    for (number, group) in of.groups.iter().enumerate() {
        members.extend(group.iter().map(|id| (number + 1, id)));
    }
    for (number, id) in members {
        let key = id.to_ascii_lowercase();
        let Some(item) = records::get::<Item>(run.app.store.as_ref(), &key).await? else {
            continue;
        };
        let item = item.record;
        let chosen = chosen.iter().find(|one| one.item == key);
        let in_group = step.items.iter().any(|one| one.eq_ignore_ascii_case(id));
        vms.insert(
            item.vm_id.clone(),
            vm(run, of, &item, chosen, number, in_group),
        );
    }
    let back = of.scenario == Scenario::Back;
    Ok(json!({
        "RecoveryPlanName": of.plan.rsplit('/').next().unwrap_or_default(),
        "RecoveryPlanId": of.plan,
        "FailoverType": match of.scenario {
            Scenario::Test => "Test",
            Scenario::Planned | Scenario::Back => "Planned",
            Scenario::Unplanned => "Unplanned",
        },
        "FailoverDirection": if back { "SecondaryToPrimary" } else { "PrimaryToSecondary" },
        "GroupId": step.group.to_string(),
        "ActionName": step.action.action_name,
        "ActionId": super::id(run).to_string(),
        "ActionPosition": if step.after { "After" } else { "Before" },
        "JobId": run.job.id,
        "VmMap": vms,
    }))
}

fn vm(
    run: &Run<'_>,
    of: &Of<'_>,
    item: &Item,
    chosen: Option<&Chosen>,
    group: usize,
    in_group: bool,
) -> Value {
    let fleet = &run.app.fleet;
    let name = |engine: &str| fleet.get(engine).map(|live| live.host_name().to_owned());
    let side = item.recovery.as_ref();
    let engine = side.map(|side| &side.engine_id);
    let engine = engine.or(chosen.map(|one| &one.engine_id));
    let recovered = match chosen {
        Some(one) if !one.vm_id.is_empty() => one.vm_id.clone(),
        _ => vm_id(item).map(|id| id.to_string()).unwrap_or_default(),
    };
    let state = engine
        .and_then(|engine| fleet.get(engine))
        .and_then(|live| live.recovered(&recovered).map(|status| status.state()));
    let target = item.request.target_azure_vm_name.as_ref();
    let target = target.unwrap_or(&item.vm_name);
    let role = match of.scenario {
        Scenario::Back if matches!(item.life.phase, Phase::FailedBack(_)) => item.vm_name.clone(),
        Scenario::Back => String::new(),
        _ if !matches!(state, Some(State::Running | State::Booted)) => String::new(),
        Scenario::Test => format!("{target}-test"),
        _ => side.map(|side| side.name.clone()).unwrap_or_default(),
    };
    let point = side.map(|side| (side.point_id.as_str(), side.point_ms));
    let point = point.or(chosen.map(|one| (one.point_id.as_str(), one.point_ms)));
    let (point_id, point_ms) = point.unwrap_or_default();
    let time = (point_ms > 0).then(|| arm_model::timestamp::from_unix_ms(point_ms));
    json!({
        "SubscriptionId": "",
        "ResourceGroupName": "",
        "CloudServiceName": "",
        "RoleName": role,
        "RecoveryPointId": point_id,
        "RecoveryPointTime": time.flatten(),
        "Name": item.vm_name,
        "ProtectedItemId": item.id,
        "Group": group,
        "IsInPresentGroup": in_group,
        "SourceHost": name(&item.engine_id),
        "RecoveryHost": engine.and_then(|engine| name(engine)),
    })
}
