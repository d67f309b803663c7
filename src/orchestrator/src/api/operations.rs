//! From method and types to the handler; long-running operations.

use arm_model::job::JobState;
use arm_model::operation::{OperationState, OperationStatus};
use arm_model::{ArmError, ArmId, JobId};
use axum::http::StatusCode;
use serde_json::json;

use super::entry::{Call, page, unknown_path};
use super::reply::Reply;
use super::{
    containers, drill_schedules, fabrics, failover, item_actions, jobs, load, mappings,
    network_mappings, networks, plans, policies, protectable_items, protected_items,
    recovery_points, resource_groups, services_providers, site_networks, storage_accounts,
    test_failover, vault_health, vaults,
};
use crate::fault::Fault;
use crate::store::records::{self, JobRecord, Stored};

const CONTAINER: &str = "vaults/replicationfabrics/replicationprotectioncontainers";

/// Calls the handler.
///
/// # Errors
/// What the handler refuses; 404 for what there is not.
pub async fn dispatch(call: &Call<'_>) -> Result<Reply, Fault> {
    let kinds = call.route.kinds.as_str();
    if call.method == "GET" && kinds.ends_with("/operationresults") {
        return result(call).await;
    }
    match call.route.namespace.as_str() {
        "" => resource_groups::handle(call).await,
        "microsoft.storage" => storage_accounts::handle(call).await,
        "microsoft.network" => networks::handle(call).await,
        "microsoft.recoveryservices" => recovery_services(call, kinds).await,
        _ => Err(unknown_path(&call.path)),
    }
}

async fn recovery_services(call: &Call<'_>, kinds: &str) -> Result<Reply, Fault> {
    let tail = call.route.tail.as_deref();
    if let Some(rest) = kinds.strip_prefix(CONTAINER) {
        return match (call.method, rest, tail) {
            ("GET", "", None) => containers::get(call).await,
            ("GET", "", Some("replicationprotectioncontainermappings")) => {
                mappings::list(call).await
            }
            ("GET", "", Some("replicationprotectableitems")) => protectable_items::list(call).await,
            ("GET", "", Some("replicationprotecteditems")) => protected_items::list(call).await,
            (_, "/replicationprotectioncontainermappings", _) => mappings::handle(call).await,
            ("GET", "/replicationprotectableitems", None) => protectable_items::get(call).await,
            ("POST", "/replicationprotecteditems", Some("testfailover")) => {
                test_failover::start_item(call).await
            }
            ("POST", "/replicationprotecteditems", Some("testfailovercleanup")) => {
                test_failover::clean_item(call).await
            }
            ("GET", "/replicationprotecteditems", Some("recoverypoints")) => {
                recovery_points::list(call).await
            }
            ("GET", "/replicationprotecteditems", Some("targetcomputesizes")) => {
                recovery_points::sizes(call).await
            }
            ("GET", "/replicationprotecteditems/recoverypoints", None) => {
                recovery_points::get(call).await
            }
            (
                "POST",
                "/replicationprotecteditems",
                Some("adddisks" | "removedisks" | "repairreplication"),
            ) => item_actions::handle(call).await,
            (
                "POST",
                "/replicationprotecteditems",
                Some(
                    "plannedfailover" | "unplannedfailover" | "applyrecoverypoint"
                    | "failovercommit" | "failovercancel" | "reprotect",
                ),
            ) => failover::item(call).await,
            (_, "/replicationprotecteditems", _) => protected_items::handle(call).await,
            _ => Err(unknown_path(&call.path)),
        };
    }
    match (call.method, kinds, tail) {
        ("POST", "vaults", Some("rotateencryptionkey")) => vaults::rotate_key(call).await,
        (_, "", Some("vaults" | "operations")) | (_, "vaults", None) => vaults::handle(call).await,
        ("GET", "vaults", Some(collection)) => vault_collection(call, collection).await,
        ("GET", "vaults/replicationvaultsettings", None) => vaults::setting(call).await,
        ("POST", "vaults/replicationvaulthealth", Some("refresh")) => vault_health::get(call).await,
        ("GET", "vaults/replicationoperationstatus" | "vaults/operationstatus", None) => {
            status(call).await
        }
        ("POST", "vaults/replicationfabrics", Some("registrationkeys")) => {
            fabrics::registration_key(call).await
        }
        ("GET", "vaults/replicationfabrics", Some("replicationrecoveryservicesproviders")) => {
            services_providers::list_of_fabric(call).await
        }
        ("GET", "vaults/replicationfabrics", Some("replicationprotectioncontainers")) => {
            containers::list_of_fabric(call).await
        }
        (
            "GET",
            "vaults/replicationfabrics",
            Some("replicationstorageclassifications" | "replicationlogicalnetworks"),
        ) => {
            load::fabric(call).await?;
            page::<()>(Vec::new())
        }
        ("GET", "vaults/replicationfabrics", Some("replicationnetworks")) => {
            site_networks::list_of_fabric(call).await
        }
        ("GET", "vaults/replicationfabrics/replicationnetworks", None) => {
            site_networks::get(call).await
        }
        (
            "GET",
            "vaults/replicationfabrics/replicationnetworks",
            Some("replicationnetworkmappings"),
        ) => network_mappings::list(call).await,
        (_, "vaults/replicationfabrics/replicationnetworks/replicationnetworkmappings", None) => {
            network_mappings::handle(call).await
        }
        (_, "vaults/replicationfabrics", _) => fabrics::handle(call).await,
        (_, "vaults/replicationfabrics/replicationrecoveryservicesproviders", _) => {
            services_providers::handle(call).await
        }
        (_, "vaults/replicationpolicies", None) => policies::handle(call).await,
        ("POST", "vaults/replicationrecoveryplans", Some("testfailover")) => {
            test_failover::start_plan(call).await
        }
        ("POST", "vaults/replicationrecoveryplans", Some("testfailovercleanup")) => {
            test_failover::clean_plan(call).await
        }
        (
            "POST",
            "vaults/replicationrecoveryplans",
            Some(
                "plannedfailover" | "unplannedfailover" | "failovercommit" | "failovercancel"
                | "reprotect",
            ),
        ) => failover::plan(call).await,
        (_, "vaults/replicationrecoveryplans", None) => plans::handle(call).await,
        (_, "vaults/replicationjobs", _) => jobs::handle(call).await,
        (_, "vaults/drillschedules", None) => drill_schedules::handle(call).await,
        _ => Err(unknown_path(&call.path)),
    }
}

async fn vault_collection(call: &Call<'_>, collection: &str) -> Result<Reply, Fault> {
    match collection {
        "replicationfabrics" => fabrics::list(call).await,
        "replicationrecoveryservicesproviders" => services_providers::list_of_vault(call).await,
        "replicationprotectioncontainers" => containers::list_of_vault(call).await,
        "replicationprotectioncontainermappings" => mappings::list_of_vault(call).await,
        "replicationpolicies" => policies::list(call).await,
        "replicationprotecteditems" => protected_items::list_of_vault(call).await,
        "replicationrecoveryplans" => plans::list(call).await,
        "replicationjobs" => jobs::list(call).await,
        "drillschedules" => drill_schedules::list(call).await,
        "replicationvaulthealth" => vault_health::get(call).await,
        "replicationvaultsettings" => vaults::settings(call).await,
        "replicationnetworks" => site_networks::list_of_vault(call).await,
        "replicationnetworkmappings" => network_mappings::list_of_vault(call).await,
        "replicationevents"
        | "replicationalertsettings"
        | "replicationstorageclassifications"
        | "replicationstorageclassificationmappings"
        | "backupprotecteditems"
        | "usages" => {
            load::vault(call).await?;
            page::<()>(Vec::new())
        }
        _ => Err(unknown_path(&call.path)),
    }
}

/// `V/replicationOperationStatus/{job}`: always 200, also when the operation failed.
async fn status(call: &Call<'_>) -> Result<Reply, Fault> {
    let id = call
        .route
        .id
        .as_ref()
        .ok_or_else(|| unknown_path(&call.path))?;
    let (vault, _) = load::vault(call).await?;
    let job = load::require::<JobRecord>(call.app, vault.job(id.name()).as_str())
        .await?
        .record;
    let state = match job.properties.state {
        JobState::Succeeded => OperationState::Succeeded,
        JobState::Failed => OperationState::Failed,
        // The operation's spelling has one l: clients would poll for ever on the job's.
        JobState::Cancelled => OperationState::Canceled,
        JobState::NotStarted | JobState::InProgress | JobState::Suspended | JobState::Other => {
            OperationState::InProgress
        }
    };
    Reply::ok(&OperationStatus {
        id: id.as_str().to_owned(),
        name: id.name().to_owned(),
        status: state,
        start_time: Some(job.properties.start_time),
        end_time: job.properties.end_time,
        percent_complete: job.properties.percent_complete,
        error: if state == OperationState::InProgress || state == OperationState::Succeeded {
            None
        } else {
            job.failure
        },
        properties: None,
    })
}

/// `<resource>/operationresults/{job}`.
async fn result(call: &Call<'_>) -> Result<Reply, Fault> {
    let id = call
        .route
        .id
        .as_ref()
        .ok_or_else(|| unknown_path(&call.path))?;
    let (vault, _) = load::vault(call).await?;
    let job_id = vault.job(id.name());
    let job = load::require::<JobRecord>(call.app, job_id.as_str())
        .await?
        .record;
    let resource = ArmId::parse(&job.resource).map_err(|_| Fault::not_found(&job.resource))?;
    match job.properties.state {
        JobState::Succeeded if job.removes => Ok(Reply::Empty(StatusCode::NO_CONTENT)),
        JobState::Succeeded => resource_now(call, &resource).await,
        JobState::Failed | JobState::Cancelled => {
            let error = job
                .failure
                .unwrap_or_else(|| ArmError::new("OperationFailed", "The operation failed."));
            Err(Fault::refuse(409, error))
        }
        _ => Ok(Reply::accepted(job_id, &resource)),
    }
}

/// The resource as a GET would give it now.
async fn resource_now(call: &Call<'_>, resource: &ArmId) -> Result<Reply, Fault> {
    let inner = Call {
        app: call.app,
        method: "GET",
        route: super::route::parse(&resource.as_str().replace('%', "%25"))
            .ok_or_else(|| unknown_path(resource.as_str()))?,
        query: call.query.clone(),
        headers: axum::http::HeaderMap::new(),
        body: json!(null),
        request_id: call.request_id.clone(),
        api_version: call.api_version.clone(),
        path: resource.as_str().to_owned(),
        scope: call.scope.clone(),
        client_id: call.client_id.clone(),
        job_name: None,
    };
    Box::pin(dispatch(&inner)).await
}

/// The job that has a resource to itself.
///
/// # Errors
/// Failures of the store.
pub async fn current_job(call: &Call<'_>, key: &str) -> Result<Option<Stored<JobRecord>>, Fault> {
    let store = call.app.store.as_ref();
    let Some(lock) = records::get::<records::Lock>(store, &records::lock_key(key)).await? else {
        return Ok(None);
    };
    Ok(records::get::<JobRecord>(store, &lock.record.job).await?)
}

/// 202 for a job.
#[must_use]
pub fn accepted(job: JobId, resource: &ArmId) -> Reply {
    Reply::accepted(job, resource)
}
