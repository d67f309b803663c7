//! `siterecovery_replication_policy`: how often, how long, how consistent.

use arm_client::Method;
use arm_model::neighbours::StorageAccountProperties;
use arm_model::policy::PolicyProperties;
use arm_model::{
    HYPER_V_REPLICA_AZURE, PolicyId, Resource as Answer, StorageAccountId, VaultId, validate,
};
use async_trait::async_trait;
use serde_json::{Value as Json, json};
use tf_provider::{Attribute, Change, Diagnostic, Diagnostics, Object, Schema};

use super::site::{parse_vault_id, vault_id};
use crate::Session;
use crate::errors::Fields;
use crate::fields;
use crate::plain::{Plain, Removal};

pub(crate) struct Policy;

pub(crate) const INTERVAL: &str = "replication_interval_in_seconds";
const RETENTION: &str = "recovery_point_retention_in_hours";
const APPLICATION: &str = "application_consistent_snapshot_frequency_in_hours";

#[async_trait]
impl Plain for Policy {
    const TYPE: &'static str = "siterecovery_replication_policy";
    const WHAT: &'static str = "replication policy";
    const FIELDS: Fields = &[
        ("name", "name"),
        ("recoveryPointHistoryDuration", RETENTION),
        ("applicationConsistentSnapshotFrequencyInHours", APPLICATION),
        ("replicationInterval", INTERVAL),
        ("storageAccounts", "storage_account_id"),
    ];
    const KEYS: &'static [&'static str] = &["name", "recovery_vault_id"];
    const REMOVAL: Removal = Removal::Delete;
    type Properties = PolicyProperties;
    type Id = PolicyId;

    fn schema() -> Schema {
        let number = || Attribute::number().optional();
        Schema::new()
            .describe("A replication policy: how often changes go to the store, and how long recovery points are kept.")
            .attribute("name", fields::name("policy", validate::resource_name))
            .attribute("recovery_vault_id", vault_id())
            .attribute(
                RETENTION,
                fields::checked_number(number().default(2), validate::retention).describe(format!(
                    "Hours for which recovery points are kept, 0 (only the newest) to {}. Default: 2.",
                    validate::MAX_RETENTION_HOURS
                )),
            )
            .attribute(
                APPLICATION,
                fields::checked_number(number().default(0), |hours| {
                    validate::app_consistent_frequency(hours, u32::MAX)
                })
                .describe(format!(
                    "Hours between application-consistent recovery points, 1 to {}; 0 (the default) for none. The policy keeps the value, \
                     but this release makes crash-consistent points only: a plan with a value above 0 gives a warning.",
                    validate::MAX_APP_CONSISTENT_HOURS
                )),
            )
            .attribute(
                INTERVAL,
                fields::checked_number(Attribute::number().required(), validate::replication_interval).describe(format!(
                    "Seconds between recovery points: 30, 300 and 900 as in Azure Site Recovery, or any other from {} to {}. Below 300 \
                     not with premium storage.",
                    validate::MIN_INTERVAL_SECONDS,
                    validate::MAX_INTERVAL_SECONDS
                )),
            )
            .attribute(
                "storage_account_id",
                fields::arm_id::<StorageAccountId>("a storage account")
                    .optional()
                    .requires_replace()
                    .describe("Storage account of the policy; each protected VM names its own too. Changing it makes a new policy."),
            )
    }

    fn id(_session: &Session, object: &Object) -> Result<PolicyId, Diagnostics> {
        Ok(parse_vault_id(object)?.policy(object.require_str("name")?))
    }

    fn body(object: &Object) -> Json {
        json!({ "properties": { "providerSpecificInput": settings(object) } })
    }

    fn change(change: &Change) -> Option<(Method, Json)> {
        let changed = [RETENTION, APPLICATION, INTERVAL]
            .iter()
            .any(|name| change.changed(name));
        let body =
            json!({ "properties": { "replicationProviderSettings": settings(&change.planned) } });
        changed.then_some((Method::Patch, body))
    }

    fn fill(id: &PolicyId, answer: &Answer<PolicyProperties>, object: &mut Object) {
        let details = &answer.properties.provider_specific_details;
        object.set("name", id.name());
        object.set(
            "recovery_vault_id",
            VaultId::of(id).map(|vault| vault.to_string()),
        );
        object.set(RETENTION, details.recovery_point_history_duration_in_hours);
        object.set(
            APPLICATION,
            details.application_consistent_snapshot_frequency_in_hours,
        );
        object.set(INTERVAL, details.replication_interval);
        let account = details.active_storage_account_id.as_deref();
        object.set("storage_account_id", fields::text_or_null(account));
    }

    fn validate(config: &Object, report: &mut Diagnostics) {
        if config.u64(APPLICATION).is_some_and(|hours| hours > 0) {
            let warning = Diagnostic::warning(
                "Recovery points will be crash-consistent only",
                "This release makes no application-consistent recovery points. The policy keeps the value, and every point is \
                 crash-consistent: all disks of a VM at one instant. Set 0, or leave it out, to have no warning.",
            );
            report.push(warning.at(APPLICATION));
        }
        let number = |name: &str| config.u64(name).and_then(|n| u32::try_from(n).ok());
        let retention = if config.is_null(RETENTION) {
            Some(2)
        } else {
            number(RETENTION)
        };
        if let (Some(hours), Some(retention)) = (number(APPLICATION), retention)
            && hours <= validate::MAX_APP_CONSISTENT_HOURS
            && let Err(broken) = validate::app_consistent_frequency(hours, retention)
        {
            let detail = format!("{} {}", broken.message, broken.advice);
            report.push_error(
                APPLICATION,
                "Application-consistent points would never be kept",
                detail,
            );
        }
    }

    async fn cross_check(session: &Session, planned: &Object) -> Result<(), Diagnostics> {
        let (Some(account), Some(interval)) =
            (planned.str("storage_account_id"), planned.u64(INTERVAL))
        else {
            return Ok(());
        };
        premium_check(session, account, interval, INTERVAL).await
    }
}

/// An interval that premium storage can't keep up with, if the account can be read already.
pub(crate) async fn premium_check(
    session: &Session,
    account_id: &str,
    interval: u64,
    at: &str,
) -> Result<(), Diagnostics> {
    // What can't be read now is checked by the service when it is applied.
    let Ok(Some(account)) = session
        .api
        .find::<Answer<StorageAccountProperties>>(account_id)
        .await
    else {
        return Ok(());
    };
    let sku = account
        .extra
        .get("sku")
        .and_then(|sku| sku["name"].as_str())
        .unwrap_or_default();
    let interval = u32::try_from(interval).unwrap_or(u32::MAX);
    validate::interval_with_storage(interval, sku).map_err(|broken| {
        let detail = format!("{} {}", broken.message, broken.advice);
        Diagnostics::error_at(at, "Too often for premium storage", detail)
    })
}

fn settings(object: &Object) -> Json {
    let account = object.str("storage_account_id");
    json!({
        "instanceType": HYPER_V_REPLICA_AZURE,
        "recoveryPointHistoryDuration": object.u64(RETENTION),
        "applicationConsistentSnapshotFrequencyInHours": object.u64(APPLICATION),
        "replicationInterval": object.u64(INTERVAL),
        "storageAccounts": account.into_iter().collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use tf_provider::Severity;

    use super::*;

    #[test]
    fn application_consistent_points_that_retention_would_drop_are_pointed_at() {
        let config = Object::new().with(APPLICATION, 4).with(INTERVAL, 30);
        let mut report = Diagnostics::new();
        Policy::validate(&config, &mut report);
        let errors: Vec<String> = report
            .iter()
            .filter(|d| d.severity == Severity::Error)
            .map(|d| d.attribute.to_string())
            .collect();
        assert_eq!(errors, [APPLICATION]);
        let mut report = Diagnostics::new();
        Policy::validate(&config.with(RETENTION, 4), &mut report);
        assert!(!report.has_errors());
    }

    #[test]
    fn points_of_a_kind_that_is_not_made_yet_are_warned_of() {
        let mut report = Diagnostics::new();
        let config = Object::new().with(RETENTION, 4).with(INTERVAL, 30);
        Policy::validate(&config.clone().with(APPLICATION, 0), &mut report);
        assert!(report.is_empty());
        Policy::validate(&config.with(APPLICATION, 1), &mut report);
        let told: Vec<_> = report
            .iter()
            .map(|d| (d.severity, d.attribute.to_string()))
            .collect();
        assert_eq!(told, [(Severity::Warning, APPLICATION.to_owned())]);
    }

    #[test]
    fn a_policy_read_back_gives_the_numbers_that_were_sent() {
        let planned = Object::new()
            .with(RETENTION, 4)
            .with(APPLICATION, 1)
            .with(INTERVAL, 30);
        let sent = Policy::body(&planned);
        let input = &sent["properties"]["providerSpecificInput"];
        let answer: Answer<PolicyProperties> = serde_json::from_value(json!({ "properties": {
            "friendlyName": "p", "providerSpecificDetails": {
                "instanceType": "HyperVReplicaAzure",
                "recoveryPointHistoryDurationInHours": input["recoveryPointHistoryDuration"],
                "applicationConsistentSnapshotFrequencyInHours": input["applicationConsistentSnapshotFrequencyInHours"],
                "replicationInterval": input["replicationInterval"],
            } } }))
        .unwrap();
        let id = VaultId::new("s", "g", "v").policy("p");
        let mut read = Object::new();
        Policy::fill(&id, &answer, &mut read);
        for name in [RETENTION, APPLICATION, INTERVAL] {
            assert_eq!(read.get(name), planned.get(name));
        }
        assert!(read.is_null("storage_account_id"));
    }
}
