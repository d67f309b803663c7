//! Replication policies. A change applies to VMs that are protected already.

use arm_model::policy::{
    ENCRYPTION_DISABLED, ENCRYPTION_ENABLED, PolicyCreation, PolicyDetails, PolicyInput,
    PolicyProperties, PolicyUpdate,
};
use arm_model::{HYPER_V_REPLICA_AZURE, PolicyId, Resource, StorageAccountId, VaultId, validate};
use axum::http::StatusCode;
use serde_json::json;

use super::entry::{Call, page, unknown_path};
use super::reply::Reply;
use super::{fabrics, load, storage_accounts};
use crate::fault::Fault;
use crate::saga::start::{self, NewJob};
use crate::saga::state::fresh_task;
use crate::store::records::{self, Item, Mapping, Policy, Record, Storage, Stored, Vault};
use crate::{immutability, vault_keys};

/// Values of the portal's form when a request leaves them out.
const DEFAULT_INTERVAL_SECONDS: u32 = 300;
const DEFAULT_RETENTION_HOURS: u32 = 2;

/// PUT, PATCH, GET, DELETE.
///
/// # Errors
/// What is refused.
pub async fn handle(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, vault_record) = load::vault(call).await?;
    let id = load::policy_id(call, &vault)?;
    match call.method {
        "GET" => {
            let stored = load::require::<Policy>(call.app, id.as_str()).await?;
            Reply::versioned(&answer(&stored.record)?, stored.etag)
        }
        "PUT" => {
            let body: PolicyCreation = call.properties()?;
            let stored = records::get::<Policy>(call.app.store.as_ref(), &id.key()).await?;
            save(
                call,
                &vault,
                &vault_record,
                &id,
                stored,
                body.provider_specific_input.unwrap_or_default(),
                false,
            )
            .await
        }
        "PATCH" => {
            let body: PolicyUpdate = call.properties()?;
            let stored = load::require::<Policy>(call.app, id.as_str()).await?;
            save(
                call,
                &vault,
                &vault_record,
                &id,
                Some(stored),
                body.replication_provider_settings.unwrap_or_default(),
                true,
            )
            .await
        }
        "DELETE" => delete(call, &vault, &id).await,
        _ => Err(unknown_path(&call.path)),
    }
}

/// `V/replicationPolicies`.
///
/// # Errors
/// 404 without a vault.
pub async fn list(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    let policies =
        records::list::<Policy>(call.app.store.as_ref(), &format!("{}/", vault.key())).await?;
    page(
        policies
            .iter()
            .map(|policy| answer(&policy.record))
            .collect::<Result<Vec<_>, _>>()?,
    )
}

async fn save(
    call: &Call<'_>,
    vault: &VaultId,
    vault_record: &Stored<Vault>,
    id: &PolicyId,
    stored: Option<Stored<Policy>>,
    input: PolicyInput,
    update: bool,
) -> Result<Reply, Fault> {
    call.precondition(stored.as_ref().map(|stored| stored.etag))?;
    let target = if update {
        "properties.replicationProviderSettings"
    } else {
        "properties.providerSpecificInput"
    };
    validate::resource_name(id.name())
        .map_err(|violation| Fault::refuse(400, violation.into_error("name")))?;
    if input.instance_type != HYPER_V_REPLICA_AZURE {
        return Err(Fault::invalid(
            &format!("{target}.instanceType"),
            format!(
                "A policy of type `{}` is not possible here; use `{HYPER_V_REPLICA_AZURE}`.",
                input.instance_type
            ),
        ));
    }
    let before = stored
        .as_ref()
        .filter(|_| update)
        .map(|stored| stored.record.details.clone())
        .unwrap_or(PolicyDetails {
            replication_interval: DEFAULT_INTERVAL_SECONDS,
            recovery_point_history_duration_in_hours: DEFAULT_RETENTION_HOURS,
            ..PolicyDetails::default()
        });
    let account = match input.storage_accounts {
        None => before.active_storage_account_id,
        Some(accounts) if accounts.len() > 1 => {
            return Err(Fault::invalid(
                &format!("{target}.storageAccounts"),
                "A policy has one storage account at most.",
            ));
        }
        Some(accounts) => accounts.into_iter().next(),
    };
    let encryption = match input.encryption.as_deref() {
        None => Some(before.encryption.as_str()).filter(|text| !text.is_empty()),
        Some(text) if ["enable", "enabled"].contains(&text.to_ascii_lowercase().as_str()) => {
            Some(ENCRYPTION_ENABLED)
        }
        Some(text) if ["disable", "disabled"].contains(&text.to_ascii_lowercase().as_str()) => None,
        Some(_) => {
            return Err(Fault::invalid(
                &format!("{target}.encryption"),
                "Encryption is `Enable` or `Disable`.",
            ));
        }
    };
    // Minutes and hours are two ways to say one thing: giving one takes the place of the other.
    let (app_hours, app_minutes) = match (
        input.application_consistent_snapshot_frequency_in_hours,
        input.application_consistent_snapshot_frequency_in_minutes,
    ) {
        (None, None) => (
            before.application_consistent_snapshot_frequency_in_hours,
            before.application_consistent_snapshot_frequency_in_minutes,
        ),
        (hours, minutes) => (hours.unwrap_or_default(), minutes.unwrap_or_default()),
    };
    let details = PolicyDetails {
        instance_type: HYPER_V_REPLICA_AZURE.to_owned(),
        recovery_point_history_duration_in_hours: input
            .recovery_point_history_duration
            .unwrap_or(before.recovery_point_history_duration_in_hours),
        application_consistent_snapshot_frequency_in_hours: app_hours,
        replication_interval: input
            .replication_interval
            .unwrap_or(before.replication_interval),
        online_replication_start_time: input
            .online_replication_start_time
            .or(before.online_replication_start_time),
        active_storage_account_id: account,
        encryption: encryption.unwrap_or(ENCRYPTION_DISABLED).to_owned(),
        application_consistent_snapshot_frequency_in_minutes: app_minutes,
        retention_tiers: input.retention_tiers.unwrap_or(before.retention_tiers),
        immutability_in_hours: input
            .immutability_in_hours
            .unwrap_or(before.immutability_in_hours),
        log_quota_in_percent: input
            .log_quota_in_percent
            .unwrap_or(before.log_quota_in_percent),
        comparison_windows: input
            .comparison_windows
            .unwrap_or(before.comparison_windows),
        verification_interval_in_hours: input
            .verification_interval_in_hours
            .unwrap_or(before.verification_interval_in_hours),
    };
    check_extensions(&details, target)?;
    check(call, &details, target, &vault_record.record.0.location).await?;
    if stored.is_some() {
        check_members(call, vault, id, details.replication_interval, target).await?;
    }
    if details.encryption == ENCRYPTION_ENABLED {
        vault_keys::ensure(call.app, vault).await?;
    }
    let promise = stored.as_ref().and_then(|stored| {
        immutability::promise_after(
            &stored.record,
            details.immutability_in_hours,
            call.app.now_ms(),
        )
    });
    let record = Policy {
        id: stored
            .as_ref()
            .map_or_else(|| id.as_str().to_owned(), |stored| stored.record.id.clone()),
        details,
        promise,
    };
    let (scenario, friendly) = if stored.is_some() {
        ("UpdateProtectionProfile", "Update replication policy")
    } else {
        ("AddProtectionProfile", "Create replication policy")
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
            target_type: "ProtectionProfile",
            workflow: "put",
            input: fabrics::put_input(&id.key(), &record, stored.as_ref()),
            tasks: vec![
                fresh_task(
                    "ProtectionProfilePreflightChecksTask",
                    "Prerequisites check for creating the replication policy",
                ),
                fresh_task(
                    "AddProtectionProfileTask",
                    "Creating the replication policy",
                ),
            ],
            details: arm_model::job::JobDetails::default(),
            locks: vec![id.key()],
            request_id: &call.request_id,
            changes: vec![fabrics::unchanged(
                &id.key(),
                stored.as_ref().map(|stored| stored.etag),
            )],
            name: None,
        },
    )
    .await?;
    Ok(Reply::accepted(job, id))
}

/// What Azure Site Recovery has no word for.
fn check_extensions(details: &PolicyDetails, target: &str) -> Result<(), Fault> {
    let at = |property: &str| {
        let target = format!("{target}.{property}");
        move |violation: validate::Violation| Fault::refuse(400, violation.into_error(&target))
    };
    validate::app_consistent_minutes(
        details.application_consistent_snapshot_frequency_in_minutes,
        details.application_consistent_snapshot_frequency_in_hours,
        details.replication_interval,
    )
    .map_err(at("applicationConsistentSnapshotFrequencyInMinutes"))?;
    validate::retention_tiers(
        &details.retention_tiers,
        details.recovery_point_history_duration_in_hours,
    )
    .map_err(at("retentionTiers"))?;
    validate::immutability(details.immutability_in_hours).map_err(at("immutabilityInHours"))?;
    if details.log_quota_in_percent > 0 {
        validate::log_quota(details.log_quota_in_percent).map_err(at("logQuotaInPercent"))?;
    }
    validate::comparison_windows(&details.comparison_windows).map_err(at("comparisonWindows"))?;
    for (index, window) in details.comparison_windows.iter().enumerate() {
        window
            .parse()
            .map_err(at(&format!("comparisonWindows[{index}]")))?;
    }
    validate::verification_interval(details.verification_interval_in_hours)
        .map_err(at("verificationIntervalInHours"))
}

async fn check(
    call: &Call<'_>,
    details: &PolicyDetails,
    target: &str,
    region: &str,
) -> Result<(), Fault> {
    let at = |property: &str| {
        let target = format!("{target}.{property}");
        move |violation: validate::Violation| Fault::refuse(400, violation.into_error(&target))
    };
    validate::replication_interval(details.replication_interval)
        .map_err(at("replicationInterval"))?;
    validate::retention(details.recovery_point_history_duration_in_hours)
        .map_err(at("recoveryPointHistoryDuration"))?;
    let longest = details
        .retention_tiers
        .iter()
        .map(|tier| tier.duration_in_hours);
    validate::app_consistent_frequency(
        details.application_consistent_snapshot_frequency_in_hours,
        longest.fold(details.recovery_point_history_duration_in_hours, u32::max),
    )
    .map_err(at("applicationConsistentSnapshotFrequencyInHours"))?;
    if let Some(time) = &details.online_replication_start_time {
        validate::start_time(time).map_err(at("onlineReplicationStartTime"))?;
    }
    if let Some(account) = &details.active_storage_account_id {
        let at_account = format!("{target}.storageAccounts");
        let id = StorageAccountId::parse(account)
            .map_err(|error| Fault::invalid(&at_account, format!("{error}.")))?;
        call.may_use(id.as_arm(), &at_account)?;
        let account = records::get::<Storage>(call.app.store.as_ref(), &id.key())
            .await?
            .ok_or_else(|| {
                Fault::invalid(
                    &at_account,
                    format!("There is no storage account `{}`.", id.name()),
                )
            })?;
        validate::regions_equal(region, "storage account", &account.record.0.location)
            .map_err(at("storageAccounts"))?;
        validate::interval_with_storage(
            details.replication_interval,
            &storage_accounts::sku_of(&account.record),
        )
        .map_err(at("replicationInterval"))?;
    }
    Ok(())
}

/// A shorter interval must suit the storage of VMs that use the policy already.
async fn check_members(
    call: &Call<'_>,
    vault: &VaultId,
    id: &PolicyId,
    interval: u32,
    target: &str,
) -> Result<(), Fault> {
    let store = call.app.store.as_ref();
    for item in records::list::<Item>(store, &format!("{}/", vault.key())).await? {
        if !item.record.policy_id.eq_ignore_ascii_case(id.as_str()) {
            continue;
        }
        if let Some(account) =
            records::get::<Storage>(store, &item.record.storage_id.to_ascii_lowercase()).await?
        {
            validate::interval_with_storage(interval, &storage_accounts::sku_of(&account.record))
                .map_err(|violation| {
                Fault::refuse(
                    400,
                    violation.into_error(&format!("{target}.replicationInterval")),
                )
            })?;
        }
    }
    Ok(())
}

async fn delete(call: &Call<'_>, vault: &VaultId, id: &PolicyId) -> Result<Reply, Fault> {
    let store = call.app.store.as_ref();
    let Some(stored) = records::get::<Policy>(store, &id.key()).await? else {
        return Ok(Reply::Empty(StatusCode::NO_CONTENT));
    };
    call.precondition(Some(stored.etag))?;
    let below = format!("{}/", vault.key());
    let mapped = records::list::<Mapping>(store, &below)
        .await?
        .iter()
        .any(|mapping| mapping.record.policy_id.eq_ignore_ascii_case(id.as_str()));
    let used = records::list::<Item>(store, &below)
        .await?
        .iter()
        .any(|item| item.record.policy_id.eq_ignore_ascii_case(id.as_str()));
    if mapped || used {
        return Err(Fault::conflict(
            "PolicyInUse",
            id.as_str(),
            format!("The policy `{}` is associated with a site.", id.name()),
            "Remove its associations first.",
        ));
    }
    let job = start::start(call.app, NewJob {
        vault,
        resource: id,
        removes: true,
        scenario: "DeleteProtectionProfile",
        friendly_name: "Delete replication policy",
        target_name: id.name(),
        target_type: "ProtectionProfile",
        workflow: "remove",
        input: json!({ "documents": [{ "key": id.key(), "kind": Policy::KIND, "body": stored.record }] }),
        tasks: vec![fresh_task("DeleteProtectionProfileTask", "Deleting the replication policy")],
        details: arm_model::job::JobDetails::default(),
        locks: vec![id.key()],
        request_id: &call.request_id,
        changes: vec![fabrics::unchanged(&id.key(), Some(stored.etag))],
        name: None,
    })
    .await?;
    Ok(Reply::accepted(job, id))
}

fn answer(policy: &Policy) -> Result<Resource<PolicyProperties>, Fault> {
    let id =
        PolicyId::parse(&policy.id).map_err(|error| Fault::invalid("id", error.to_string()))?;
    Ok(Resource::answer(
        &id,
        PolicyProperties {
            friendly_name: id.name().to_owned(),
            provider_specific_details: policy.details.clone(),
        },
    ))
}
