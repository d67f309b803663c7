//! Hyper-V sites, and the registration keys of their hosts (extension).

use arm_model::fabric::{
    FabricCreation, FabricDetails, FabricProperties, HyperVHost, RegistrationKeyProperties,
    RegistrationKeyRequest,
};
use arm_model::health::HealthError;
use arm_model::{ArmError, FabricId, HYPER_V_SITE, Resource, validate};
use axum::http::StatusCode;
use serde_json::json;
use uuid::Uuid;

use super::entry::{Call, page, unknown_path};
use super::load;
use super::reply::Reply;
use crate::fault::Fault;
use crate::fleet::Live;
use crate::gateway::enrol;
use crate::saga::start::{self, NewJob};
use crate::saga::state::fresh_task;
use crate::store::Change;
use crate::store::records::{
    self, EngineRecord, Fabric, Item, NetworkMapping, NetworkTurn, Record, Stored,
};

/// Most hours a registration key may be valid.
const MAX_KEY_HOURS: u32 = 720;
/// Validity of a key when the request doesn't say.
const KEY_HOURS: u32 = 120;

/// PUT, GET, POST remove, DELETE.
///
/// # Errors
/// What is refused.
pub async fn handle(call: &Call<'_>) -> Result<Reply, Fault> {
    match (call.method, call.route.tail.as_deref()) {
        ("GET", None) => {
            let (_, id, stored) = load::fabric(call).await?;
            Reply::versioned(&answer(call, &id, &stored.record).await?, stored.etag)
        }
        ("PUT", None) => put(call).await,
        ("POST", Some("remove")) => remove(call, false).await,
        ("DELETE", None) => remove(call, true).await,
        ("POST", Some("checkconsistency")) => {
            let (_, id, stored) = load::fabric(call).await?;
            Reply::ok(&answer(call, &id, &stored.record).await?)
        }
        _ => Err(unknown_path(&call.path)),
    }
}

/// `V/replicationFabrics`.
///
/// # Errors
/// 404 without a vault.
pub async fn list(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    let mut fabrics = Vec::new();
    for stored in
        records::list::<Fabric>(call.app.store.as_ref(), &format!("{}/", vault.key())).await?
    {
        if let Ok(id) = FabricId::parse(&stored.record.id) {
            fabrics.push(answer(call, &id, &stored.record).await?);
        }
    }
    page(fabrics)
}

async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    let name = load::name(call, "replicationFabrics")?;
    validate::resource_name(&name)
        .map_err(|violation| Fault::refuse(400, violation.into_error("name")))?;
    let body: FabricCreation = call.properties()?;
    let kind = body
        .custom_details
        .and_then(|details| details.instance_type)
        .unwrap_or_default();
    if !matches!(
        kind.as_str(),
        "HyperVSite" | "FabricSpecificCreationInput" | ""
    ) {
        return Err(Fault::refuse(
            400,
            ArmError::new(
                "UnsupportedFabricType",
                format!("A fabric of type `{kind}` is not possible here."),
            )
            .at("properties.customDetails.instanceType")
            .advise("", "Use `HyperVSite`."),
        ));
    }
    let id = vault.fabric(&name);
    let stored = records::get::<Fabric>(call.app.store.as_ref(), &id.key()).await?;
    call.precondition(stored.as_ref().map(|stored| stored.etag))?;
    let record = match &stored {
        Some(stored) => stored.record.clone(),
        None => Fabric {
            id: id.as_str().to_owned(),
            internal_identifier: Uuid::new_v4().to_string(),
        },
    };
    let job = start::start(
        call.app,
        NewJob {
            vault: &vault,
            resource: &id,
            removes: false,
            scenario: "CreateSite",
            friendly_name: "Create a site",
            target_name: &name,
            target_type: "Server",
            workflow: "put",
            input: put_input(&id.key(), &record, stored.as_ref()),
            tasks: vec![fresh_task("RegisterVMMTask", "Creating the site")],
            details: arm_model::job::JobDetails::default(),
            locks: vec![id.key()],
            request_id: &call.request_id,
            changes: vec![unchanged(
                &id.key(),
                stored.as_ref().map(|stored| stored.etag),
            )],
            name: None,
        },
    )
    .await?;
    Ok(Reply::accepted(job, &id))
}

/// Input of the workflow `put`.
pub fn put_input<R: Record>(
    key: &str,
    record: &R,
    before: Option<&Stored<R>>,
) -> serde_json::Value {
    json!({ "key": key, "kind": R::KIND, "body": record, "before": before.map(|stored| &stored.record) })
}

/// The condition under which a job may begin: nobody else has changed what its request was checked against. From then on the
/// job has the document to itself.
#[must_use]
pub fn unchanged(key: &str, present: Option<u64>) -> Change {
    Change::Check {
        key: key.to_owned(),
        expect: Call::expect(present),
    }
}

async fn remove(call: &Call<'_>, forced: bool) -> Result<Reply, Fault> {
    let (vault, id, stored) = match load::fabric(call).await {
        Ok(found) => found,
        Err(Fault::Refused { status: 404, .. }) if forced => {
            return Ok(Reply::Empty(StatusCode::NO_CONTENT));
        }
        Err(fault) => return Err(fault),
    };
    call.precondition(Some(stored.etag))?;
    let engines = load::engines(call.app, &id).await?;
    let below = format!("{}/", id.key());
    let store = call.app.store.as_ref();
    if records::any::<Item>(store, &below).await? {
        return Err(Fault::conflict(
            "FabricInUse",
            id.as_str(),
            format!("VMs of the site `{}` are protected.", id.name()),
            "Switch their protection off first.",
        ));
    }
    if !engines.is_empty() && !forced {
        return Err(Fault::conflict(
            "FabricInUse",
            id.as_str(),
            format!("Hosts are registered in the site `{}`.", id.name()),
            "Remove the hosts first, or remove the site by force with DELETE.",
        ));
    }
    let plans = records::list::<records::Plan>(store, &format!("{}/", vault.key())).await?;
    if plans
        .iter()
        .any(|plan| plan.record.fabric_id.eq_ignore_ascii_case(id.as_str()))
    {
        return Err(Fault::conflict(
            "FabricInUse",
            id.as_str(),
            format!("A recovery plan uses the site `{}`.", id.name()),
            "Remove the plan first.",
        ));
    }
    let mappings = records::list::<records::Mapping>(store, &below).await?;
    if !mappings.is_empty() && !forced {
        return Err(Fault::conflict(
            "FabricInUse",
            id.as_str(),
            format!("A policy is associated with the site `{}`.", id.name()),
            "Remove the association first.",
        ));
    }
    let mut documents =
        vec![json!({ "key": id.key(), "kind": Fabric::KIND, "body": stored.record })];
    documents.extend(mappings.iter().map(|mapping| json!({ "key": mapping.key, "kind": records::Mapping::KIND, "body": mapping.record })));
    let of_networks = records::list::<NetworkMapping>(store, &below).await?;
    documents.extend(of_networks.iter().map(|mapping| json!({ "key": mapping.key, "kind": NetworkMapping::KIND, "body": mapping.record })));
    let turns = records::list::<NetworkTurn>(store, &below).await?;
    documents.extend(
        turns
            .iter()
            .map(|turn| json!({ "key": turn.key, "kind": NetworkTurn::KIND, "body": turn.record })),
    );
    documents.extend(engines.iter().map(engine_document));
    let engine_ids: Vec<&str> = engines
        .iter()
        .map(|engine| engine.engine_id.as_str())
        .collect();
    let job = start::start(
        call.app,
        NewJob {
            vault: &vault,
            resource: &id,
            removes: true,
            scenario: "DeleteSite",
            friendly_name: "Delete a site",
            target_name: id.name(),
            target_type: "Server",
            workflow: "remove",
            input: json!({ "documents": documents, "engines": engine_ids }),
            tasks: vec![fresh_task("UnregisterVMMTask", "Deleting the site")],
            details: arm_model::job::JobDetails::default(),
            locks: vec![id.key()],
            request_id: &call.request_id,
            changes: vec![unchanged(&id.key(), Some(stored.etag))],
            name: None,
        },
    )
    .await?;
    Ok(Reply::accepted(job, &id))
}

/// An engine's document, for the workflow `remove`.
#[must_use]
pub fn engine_document(engine: &EngineRecord) -> serde_json::Value {
    json!({ "key": records::engine_key(&engine.engine_id), "kind": EngineRecord::KIND, "body": engine })
}

/// Extension: `POST F/registrationKeys`.
///
/// # Errors
/// What is refused.
pub async fn registration_key(call: &Call<'_>) -> Result<Reply, Fault> {
    let (_, id, _) = load::fabric(call).await?;
    let request: RegistrationKeyRequest = call.properties()?;
    let hours = request.validity_in_hours.unwrap_or(KEY_HOURS);
    if !(1..=MAX_KEY_HOURS).contains(&hours) {
        return Err(Fault::invalid(
            "properties.validityInHours",
            format!("A registration key is valid for 1 to {MAX_KEY_HOURS} hours."),
        ));
    }
    let (key, expires) = enrol::mint(call.app, &id, hours).await?;
    Reply::ok(
        &json!({ "properties": RegistrationKeyProperties { key, expires_on: arm_model::timestamp::format(expires) } }),
    )
}

async fn answer(
    call: &Call<'_>,
    id: &FabricId,
    fabric: &Fabric,
) -> Result<Resource<FabricProperties>, Fault> {
    let now = call.app.now_ms();
    let mut hosts = Vec::new();
    let mut errors = Vec::new();
    for engine in load::engines(call.app, id).await? {
        let live = call.app.fleet.get(&engine.engine_id).unwrap_or_default();
        errors.extend(host_errors(&live, now));
        hosts.push(HyperVHost {
            id: host_id(live.host_name()),
            name: live.host_name().to_owned(),
            mars_agent_version: live
                .report
                .host
                .as_ref()
                .map(|host| host.engine_version.clone()),
        });
    }
    Ok(Resource::answer(
        id,
        FabricProperties {
            friendly_name: id.name().to_owned(),
            internal_identifier: fabric.internal_identifier.clone(),
            bcdr_state: "Valid".to_owned(),
            health: if errors.is_empty() {
                "Normal"
            } else {
                "Warning"
            }
            .to_owned(),
            health_error_details: errors,
            custom_details: FabricDetails {
                instance_type: HYPER_V_SITE.to_owned(),
                hyper_v_hosts: hosts,
            },
            ..FabricProperties::default()
        },
    ))
}

/// What is wrong with a host: what it says of itself, or that it says nothing any more.
pub fn host_errors(live: &Live, now_ms: i64) -> Vec<HealthError> {
    if !live.connected(now_ms) {
        return vec![disconnected(live.host_name())];
    }
    let findings = live.report.host.iter().flat_map(|host| &host.findings);
    findings
        .map(|finding| HealthError {
            error_category: Some("FabricInfrastructure".to_owned()),
            ..super::item_health::of_finding(finding, live.host_name())
        })
        .collect()
}

/// A host that doesn't report, as a health error.
#[must_use]
pub fn disconnected(host: &str) -> HealthError {
    HealthError {
        error_source: Some("Orchestrator".to_owned()),
        error_level: Some("Warning".to_owned()),
        error_category: Some("FabricInfrastructure".to_owned()),
        error_code: Some("HostDisconnected".to_owned()),
        summary_message: Some(format!(
            "The host `{host}` has not reported for 30 seconds."
        )),
        error_message: Some(format!(
            "The host `{host}` has not reported for 30 seconds."
        )),
        possible_causes: Some(
            "The engine on the host is stopped, or the host can't reach the gateway.".to_owned(),
        ),
        recommended_action: Some(
            "Start the engine and check the way from the host to the gateway.".to_owned(),
        ),
        creation_time_utc: None,
        entity_id: None,
    }
}

/// Host id in a site's details: lower-case name with dots turned into underscores.
#[must_use]
pub fn host_id(name: &str) -> String {
    name.to_lowercase().replace('.', "_")
}
