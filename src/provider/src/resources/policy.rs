//! `siterecovery_replication_policy`: how often, how long, how consistent.

use arm_client::Method;
use arm_model::neighbours::StorageAccountProperties;
use arm_model::policy::{ENCRYPTION_ENABLED, PolicyProperties, RetentionTier};
use arm_model::{
    HYPER_V_REPLICA_AZURE, PolicyId, Resource as Answer, StorageAccountId, VaultId, validate,
};
use async_trait::async_trait;
use serde_json::{Value as Json, json};
use tf_provider::schema::Block;
use tf_provider::{Attribute, Change, Diagnostics, NestedBlock, Object, Schema, Value};

use super::site::{parse_vault_id, vault_id};
use crate::Session;
use crate::errors::Fields;
use crate::fields;
use crate::limits;
use crate::plain::{Plain, Removal};

pub(crate) struct Policy;

pub(crate) const INTERVAL: &str = "replication_interval_in_seconds";
const RETENTION: &str = "recovery_point_retention_in_hours";
const APPLICATION: &str = "application_consistent_snapshot_frequency_in_hours";
const APPLICATION_MINUTES: &str = "application_consistent_snapshot_frequency_in_minutes";
const TIERS: &str = "retention_tier";
const TIER_INTERVAL: &str = "interval_in_minutes";
const TIER_DURATION: &str = "duration_in_hours";
const IMMUTABILITY: &str = "immutability_in_hours";
const QUOTA: &str = "log_quota_in_percent";
const WINDOWS: &str = "comparison_window";
const VERIFICATION: &str = "verification_interval_in_hours";
const ENCRYPTION: &str = "encryption_enabled";
/// Percent of a disk's size that waiting changes may take when nobody says otherwise, as in Azure Site Recovery.
const DEFAULT_QUOTA: u32 = 50;
/// What a change may bring, without the account.
const CHANGEABLE: [&str; 10] = [
    RETENTION,
    APPLICATION,
    APPLICATION_MINUTES,
    INTERVAL,
    TIERS,
    IMMUTABILITY,
    QUOTA,
    WINDOWS,
    VERIFICATION,
    ENCRYPTION,
];

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
        (
            "applicationConsistentSnapshotFrequencyInMinutes",
            APPLICATION_MINUTES,
        ),
        ("retentionTiers", TIERS),
        ("immutabilityInHours", IMMUTABILITY),
        ("logQuotaInPercent", QUOTA),
        ("comparisonWindows", WINDOWS),
        ("verificationIntervalInHours", VERIFICATION),
        ("encryption", ENCRYPTION),
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
                    "Hours between application-consistent recovery points, 1 to {}; 0 (the default) for none. They are made through the guest's \
                     agent, and only a point that the guest has confirmed is marked as one.",
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
            .attribute(
                APPLICATION_MINUTES,
                number()
                    .default(0)
                    .whole_in(0..=i64::from(validate::MAX_APP_CONSISTENT_HOURS) * 60)
                    .describe("The same in minutes, for shorter distances than an hour; 0 (the default): the hours count."),
            )
            .attribute(
                IMMUTABILITY,
                fields::checked_number(number().default(0), validate::immutability).describe(
                    "Hours in which nobody, an administrator included, can delete a recovery point; 0 (the default) for none. A shorter time later \
                     on holds for points that are made from then on: what was promised is kept.",
                ),
            )
            .attribute(
                QUOTA,
                fields::checked_number(number().default(DEFAULT_QUOTA), validate::log_quota).describe(
                    "Percent of a disk's size that changes may take while they wait for the store. Beyond it they are dropped and the disk is \
                     compared with its replica later. Default: 50.",
                ),
            )
            .attribute(
                VERIFICATION,
                fields::checked_number(number().default(0), validate::verification_interval)
                    .describe("Hours between two readings of all kept points that prove them whole; 0 (the default) for none."),
            )
            .attribute(
                ENCRYPTION,
                Attribute::bool().optional().default(false).describe(
                    "Whether changes are encrypted with the vault's key before they leave the host (AES-256-GCM). Default: `false`. Base \
                     images are not: storage encrypts them at rest.",
                ),
            )
            .block(TIERS, NestedBlock::list(tier_block()).items(0, 8))
            .block(
                WINDOWS,
                limits::window_blocks("Hours in which disks whose changes are unknown are compared with their replicas. Without a block: at any time."),
            )
    }

    fn id(_session: &Session, object: &Object) -> Result<PolicyId, Diagnostics> {
        Ok(parse_vault_id(object)?.policy(object.require_str("name")?))
    }

    fn body(object: &Object) -> Json {
        json!({ "properties": { "providerSpecificInput": settings(object, |_| false) } })
    }

    fn change(change: &Change) -> Option<(Method, Json)> {
        let changed = CHANGEABLE.iter().any(|name| change.changed(name));
        let settings = settings(&change.planned, |name| change.changed(name));
        let body = json!({ "properties": { "replicationProviderSettings": settings } });
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
        object.set(
            APPLICATION_MINUTES,
            details.application_consistent_snapshot_frequency_in_minutes,
        );
        object.set(IMMUTABILITY, details.immutability_in_hours);
        object.set(
            QUOTA,
            match details.log_quota_in_percent {
                0 => DEFAULT_QUOTA,
                percent => percent,
            },
        );
        object.set(VERIFICATION, details.verification_interval_in_hours);
        object.set(ENCRYPTION, details.encryption == ENCRYPTION_ENABLED);
        let tiers = details.retention_tiers.iter().map(|tier| {
            Object::new()
                .with(TIER_INTERVAL, tier.interval_in_minutes)
                .with(TIER_DURATION, tier.duration_in_hours)
        });
        object.set(TIERS, Value::list(tiers));
        limits::set_windows(&details.comparison_windows, WINDOWS, object);
    }

    fn validate(config: &Object, report: &mut Diagnostics) {
        let number = |name: &str| config.u64(name).and_then(|n| u32::try_from(n).ok());
        let or = |name: &str, default: u32| {
            if config.is_null(name) {
                Some(default)
            } else {
                number(name)
            }
        };
        let retention = or(RETENTION, 2);
        let tiers: Vec<RetentionTier> = config
            .objects(TIERS)
            .iter()
            .filter_map(|tier| {
                let number = |name: &str| tier.u64(name).and_then(|n| u32::try_from(n).ok());
                Some(RetentionTier {
                    interval_in_minutes: number(TIER_INTERVAL)?,
                    duration_in_hours: number(TIER_DURATION)?,
                })
            })
            .collect();
        let all_tiers = config.get(TIERS).is_wholly_known();
        let mut told = |at: &str, summary: &str, broken: validate::Violation| {
            report.push_error(at, summary, format!("{} {}", broken.message, broken.advice));
        };
        if let Some(retention) = retention
            && all_tiers
            && let Err(broken) = validate::retention_tiers(&tiers, retention)
        {
            told(TIERS, "The tiers of retention don't fit", broken);
        }
        let longest = tiers.iter().map(|tier| tier.duration_in_hours);
        if let (Some(hours), Some(retention)) = (number(APPLICATION), retention)
            && all_tiers
            && hours <= validate::MAX_APP_CONSISTENT_HOURS
            && let Err(broken) =
                validate::app_consistent_frequency(hours, longest.fold(retention, u32::max))
        {
            told(
                APPLICATION,
                "Application-consistent points would never be kept",
                broken,
            );
        }
        if let (Some(minutes), Some(hours), Some(interval)) = (
            number(APPLICATION_MINUTES),
            or(APPLICATION, 0),
            number(INTERVAL),
        ) && let Err(broken) = validate::app_consistent_minutes(minutes, hours, interval)
        {
            told(
                APPLICATION_MINUTES,
                "Application-consistent points are not possible like this",
                broken,
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
    let Some(sku) = sku_of(session, account_id).await else {
        return Ok(());
    };
    let interval = u32::try_from(interval).unwrap_or(u32::MAX);
    validate::interval_with_storage(interval, &sku).map_err(|broken| {
        let detail = format!("{} {}", broken.message, broken.advice);
        Diagnostics::error_at(at, "Too often for premium storage", detail)
    })
}

/// Kind of an account's storage, such as `Premium_LRS`; `None` when the account can't be read now.
pub(crate) async fn sku_of(session: &Session, account_id: &str) -> Option<String> {
    let account = session
        .api
        .find::<Answer<StorageAccountProperties>>(account_id)
        .await
        .ok()??;
    let sku = account.extra.get("sku")?.get("name")?.as_str()?;
    Some(sku.to_owned())
}

/// What is configured. What Azure Site Recovery has no word for is sent only when it is not the default, or has changed.
fn settings(object: &Object, changed: impl Fn(&str) -> bool) -> Json {
    let account = object.str("storage_account_id");
    let mut settings = json!({
        "instanceType": HYPER_V_REPLICA_AZURE,
        "recoveryPointHistoryDuration": object.u64(RETENTION),
        "applicationConsistentSnapshotFrequencyInHours": object.u64(APPLICATION),
        "replicationInterval": object.u64(INTERVAL),
        "storageAccounts": account.into_iter().collect::<Vec<_>>(),
    });
    let tier = |tier: &&Object| {
        json!({
            "intervalInMinutes": tier.u64(TIER_INTERVAL),
            "durationInHours": tier.u64(TIER_DURATION),
        })
    };
    let tiers: Vec<Json> = object.objects(TIERS).iter().map(tier).collect();
    let encrypted = object.bool(ENCRYPTION) == Some(true);
    let differs = |name: &str, default: u32| {
        object
            .u64(name)
            .is_some_and(|number| number != u64::from(default))
    };
    let extensions = [
        (
            APPLICATION_MINUTES,
            "applicationConsistentSnapshotFrequencyInMinutes",
            differs(APPLICATION_MINUTES, 0),
            json!(object.u64(APPLICATION_MINUTES)),
        ),
        (
            IMMUTABILITY,
            "immutabilityInHours",
            differs(IMMUTABILITY, 0),
            json!(object.u64(IMMUTABILITY)),
        ),
        (
            QUOTA,
            "logQuotaInPercent",
            differs(QUOTA, DEFAULT_QUOTA),
            json!(object.u64(QUOTA)),
        ),
        (
            VERIFICATION,
            "verificationIntervalInHours",
            differs(VERIFICATION, 0),
            json!(object.u64(VERIFICATION)),
        ),
        (
            ENCRYPTION,
            "encryption",
            encrypted,
            json!(if encrypted { "Enable" } else { "Disable" }),
        ),
        (TIERS, "retentionTiers", !tiers.is_empty(), json!(tiers)),
        (
            WINDOWS,
            "comparisonWindows",
            !object.objects(WINDOWS).is_empty(),
            limits::windows_of(object, WINDOWS),
        ),
    ];
    for (attribute, property, there, value) in extensions {
        if there || changed(attribute) {
            settings[property] = value;
        }
    }
    settings
}

fn tier_block() -> Block {
    Block::new()
        .describe(
            "What is kept beyond the hours for which all points are: the oldest point of every so many minutes, for so many hours. Each tier has \
             points farther apart than the one before and keeps them longer.",
        )
        .attribute(
            TIER_INTERVAL,
            Attribute::number()
                .required()
                .whole_in(1..=5_256_000)
                .describe("Minutes from one kept point to the next."),
        )
        .attribute(
            TIER_DURATION,
            Attribute::number()
                .required()
                .whole_in(1..=i64::from(validate::MAX_TIER_HOURS))
                .describe("Hours for which they are kept, up to ten years (87600)."),
        )
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
    fn what_does_not_fit_together_is_pointed_at() {
        let tier = |every: u32, keeps: u32| {
            Object::new()
                .with(TIER_INTERVAL, every)
                .with(TIER_DURATION, keeps)
        };
        let base = Object::new().with(RETENTION, 24).with(INTERVAL, 300);
        let problems = |config: &Object| {
            let mut report = Diagnostics::new();
            Policy::validate(config, &mut report);
            let paths: Vec<String> = report.iter().map(|d| d.attribute.to_string()).collect();
            paths
        };
        let tiers = |tiers: Vec<Object>| base.clone().with(TIERS, Value::list(tiers));
        assert!(problems(&tiers(vec![tier(60, 168), tier(1440, 8760)])).is_empty());
        assert_eq!(problems(&tiers(vec![tier(60, 24)])), [TIERS]);
        assert!(problems(&base.clone().with(APPLICATION_MINUTES, 10)).is_empty());
        assert_eq!(
            problems(&base.clone().with(APPLICATION_MINUTES, 1)),
            [APPLICATION_MINUTES]
        );
        let twice = base.with(APPLICATION_MINUTES, 10).with(APPLICATION, 1);
        assert_eq!(problems(&twice), [APPLICATION_MINUTES]);
    }

    #[test]
    fn what_azure_has_no_word_for_is_sent_only_when_it_is_wanted_or_taken_back() {
        let plain = Object::new()
            .with(INTERVAL, 30)
            .with(QUOTA, 50)
            .with(IMMUTABILITY, 0);
        let sent = Policy::body(&plain)["properties"]["providerSpecificInput"].clone();
        assert_eq!(sent.as_object().unwrap().len(), 5, "{sent}");
        let back = settings(&plain, |name| name == IMMUTABILITY);
        assert_eq!(back["immutabilityInHours"], 0);
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
