//! Recovery services providers: the registered hosts. They appear by enrolment, not by PUT; PATCH sets their rate limits.

use arm_model::services_provider::{
    CONNECTED, DISCONNECTED, ServicesProviderProperties, UpdateServicesProvider,
};
use arm_model::{FabricId, HYPER_V_REPLICA_AZURE, HYPER_V_SITE, Resource, ServicesProviderId};
use axum::http::StatusCode;
use serde_json::json;

use super::entry::{Call, page, unknown_path};
use super::reply::Reply;
use super::{fabrics, item_rules, load};
use crate::fault::Fault;
use crate::saga::start::{self, NewJob};
use crate::saga::state::fresh_task;
use crate::store::records::{self, EngineRecord, Item};

/// GET, PATCH, POST remove, DELETE, POST refreshProvider.
///
/// # Errors
/// What is refused.
pub async fn handle(call: &Call<'_>) -> Result<Reply, Fault> {
    match (call.method, call.route.tail.as_deref()) {
        ("GET", None) => {
            let (_, engine) = find(call).await?;
            Reply::ok(&answer(call, &engine).await?)
        }
        ("POST", Some("remove")) => remove(call, false).await,
        ("DELETE", None) => remove(call, true).await,
        ("POST", Some("refreshprovider")) => refresh(call).await,
        ("PATCH", None) => update(call).await,
        _ => Err(unknown_path(&call.path)),
    }
}

/// `F/replicationRecoveryServicesProviders`.
///
/// # Errors
/// 404 without a site.
pub async fn list_of_fabric(call: &Call<'_>) -> Result<Reply, Fault> {
    let (_, fabric, _) = load::fabric(call).await?;
    let mut answers = Vec::new();
    for engine in load::engines(call.app, &fabric).await? {
        answers.push(answer(call, &engine).await?);
    }
    page(answers)
}

/// `V/replicationRecoveryServicesProviders`.
///
/// # Errors
/// 404 without a vault.
pub async fn list_of_vault(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    let below = format!("{}/", vault.key());
    let mut answers = Vec::new();
    for engine in records::list::<EngineRecord>(call.app.store.as_ref(), "~engine/").await? {
        if engine
            .record
            .provider_id
            .to_ascii_lowercase()
            .starts_with(&below)
        {
            answers.push(answer(call, &engine.record).await?);
        }
    }
    page(answers)
}

async fn find(call: &Call<'_>) -> Result<(FabricId, EngineRecord), Fault> {
    let (_, fabric, _) = load::fabric(call).await?;
    let name = load::name(call, "replicationRecoveryServicesProviders")?;
    let engine =
        records::get::<EngineRecord>(call.app.store.as_ref(), &records::engine_key(&name)).await?;
    let engine = engine.filter(|engine| {
        engine
            .record
            .fabric_id
            .eq_ignore_ascii_case(fabric.as_str())
    });
    match engine {
        Some(engine) => Ok((fabric, engine.record)),
        None => Err(Fault::not_found(fabric.provider(&name).as_str())),
    }
}

async fn items_of(call: &Call<'_>, engine: &EngineRecord) -> Result<u64, Fault> {
    let (vault, _) = load::vault(call).await?;
    let below = format!("{}/", vault.key());
    let items = records::list::<Item>(call.app.store.as_ref(), &below).await?;
    let count = items
        .iter()
        .filter(|item| item.record.needs_engine(&engine.engine_id))
        .count();
    Ok(u64::try_from(count).unwrap_or(u64::MAX))
}

async fn remove(call: &Call<'_>, forced: bool) -> Result<Reply, Fault> {
    let (vault, _, _) = load::fabric(call).await?;
    let (_, engine) = match find(call).await {
        Ok(found) => found,
        Err(Fault::Refused { status: 404, .. }) if forced => {
            return Ok(Reply::Empty(StatusCode::NO_CONTENT));
        }
        Err(fault) => return Err(fault),
    };
    let id = ServicesProviderId::parse(&engine.provider_id)
        .map_err(|error| Fault::invalid("id", error.to_string()))?;
    if items_of(call, &engine).await? > 0 {
        return Err(Fault::conflict(
            "HostInUse",
            id.as_str(),
            "VMs of this host are protected.",
            "Switch their protection off first; DELETE on an item drops it without the host.",
        ));
    }
    let drills = records::list::<records::Recovered>(
        call.app.store.as_ref(),
        &records::recovered_key(&engine.engine_id, ""),
    )
    .await?;
    if !drills.is_empty() && !forced {
        return Err(Fault::conflict(
            "HostInUse",
            id.as_str(),
            "Test VMs run on this host.",
            "Clean up the test failovers first.",
        ));
    }
    let name = call
        .app
        .fleet
        .get(&engine.engine_id)
        .map(|live| live.host_name().to_owned())
        .unwrap_or_default();
    let job = start::start(call.app, NewJob {
        vault: &vault,
        resource: &id,
        removes: true,
        scenario: "UnregisterDra",
        friendly_name: "Unregister the host",
        target_name: &name,
        target_type: "Server",
        workflow: "remove",
        input: json!({ "documents": [fabrics::engine_document(&engine)], "engines": [engine.engine_id] }),
        tasks: vec![fresh_task("UnregisterDraTask", "Unregistering the host")],
        details: arm_model::job::JobDetails::default(),
        locks: vec![id.key()],
        request_id: &call.request_id,
        changes: Vec::new(),
        name: None,
    })
    .await?;
    Ok(Reply::accepted(job, &id))
}

/// Extension: rate limits of the host. They take effect at once.
async fn update(call: &Call<'_>) -> Result<Reply, Fault> {
    let (_, engine) = find(call).await?;
    let body: UpdateServicesProvider = call.properties()?;
    let mut changed = engine;
    if let Some(throttles) = body.throttles {
        item_rules::throttles(&throttles, "properties.throttles")?;
        let key = records::engine_key(&changed.engine_id);
        changed = records::update::<EngineRecord>(call.app.store.as_ref(), &key, |engine| {
            Some(EngineRecord {
                throttles: throttles.clone(),
                ..engine.clone()
            })
        })
        .await?
        .ok_or_else(|| Fault::not_found(&changed.provider_id))?;
        call.app.ring();
    }
    Reply::ok(&answer(call, &changed).await?)
}

async fn refresh(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _, _) = load::fabric(call).await?;
    let (_, engine) = find(call).await?;
    if !call
        .app
        .fleet
        .connected(&engine.engine_id, call.app.now_ms())
    {
        return Err(crate::saga::enable_protection::host_disconnected(
            call.app,
            &engine.engine_id,
        ));
    }
    let id = ServicesProviderId::parse(&engine.provider_id)
        .map_err(|error| Fault::invalid("id", error.to_string()))?;
    let job = start::start(
        call.app,
        NewJob {
            vault: &vault,
            resource: &id,
            removes: false,
            scenario: "RefreshDra",
            friendly_name: "Refresh the host",
            target_name: id.name(),
            target_type: "Server",
            workflow: "refresh",
            input: json!({ "engine": engine.engine_id }),
            tasks: vec![fresh_task(
                "RefreshDraTask",
                "Waiting for the inventory of the host",
            )],
            details: arm_model::job::JobDetails::default(),
            locks: Vec::new(),
            request_id: &call.request_id,
            changes: Vec::new(),
            name: None,
        },
    )
    .await?;
    Ok(Reply::accepted(job, &id))
}

async fn answer(
    call: &Call<'_>,
    engine: &EngineRecord,
) -> Result<Resource<ServicesProviderProperties>, Fault> {
    let id = ServicesProviderId::parse(&engine.provider_id)
        .map_err(|error| Fault::invalid("id", error.to_string()))?;
    let live = call.app.fleet.get(&engine.engine_id).unwrap_or_default();
    let connected = live.connected(call.app.now_ms());
    let host = live.report.host.clone().unwrap_or_default();
    let fabric = id
        .name_of("replicationFabrics")
        .unwrap_or_default()
        .to_owned();
    Ok(Resource::answer(
        &id,
        ServicesProviderProperties {
            fabric_type: HYPER_V_SITE.to_owned(),
            friendly_name: host.name.clone(),
            fabric_friendly_name: fabric,
            provider_version: host.engine_version.clone(),
            server_version: format!(
                "{} ({} {})",
                host.operating_system, host.hypervisor, host.hypervisor_version
            ),
            provider_version_state: "Latest".to_owned(),
            last_heart_beat: arm_model::timestamp::from_unix_ms(live.last_seen_unix_ms),
            connection_status: if connected { CONNECTED } else { DISCONNECTED }.to_owned(),
            protected_item_count: items_of(call, engine).await?,
            // What only runs recovered VMs is the source of none.
            allowed_scenarios: live
                .source_role()
                .then(|| HYPER_V_REPLICA_AZURE.to_owned())
                .into_iter()
                .collect(),
            health_error_details: fabrics::host_errors(&live, call.app.now_ms()),
            dra_identifier: engine.engine_id.clone(),
            machine_id: engine.engine_id.clone(),
            machine_name: host.name,
            hypervisor: host.hypervisor,
            recovery_role: host.recovery_role,
            recovery_generations: host.recovery_generations,
            free_bytes: host.free_bytes,
            throttles: engine.throttles.clone(),
            extra: arm_model::Extra::new(),
        },
    ))
}
