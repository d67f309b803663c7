//! Bodies of failovers: planned and unplanned, back again, another recovery point, protection after failback; of an
//! item and of a plan. `failoverCommit` and `failoverCancel` have no body, nor has a plan's `reProtect`.

use serde::{Deserialize, Serialize};

use crate::HYPER_V_REPLICA_AZURE;
use crate::envelope::Extra;

/// `failoverDirection` of a failover, and of `reProtect` after a failback.
pub const PRIMARY_TO_RECOVERY: &str = "PrimaryToRecovery";
/// `failoverDirection` of a failback.
pub const RECOVERY_TO_PRIMARY: &str = "RecoveryToPrimary";

/// `activeLocation` while the source VM is the one that runs.
pub const AT_PRIMARY: &str = "Primary";
/// `activeLocation` while the recovered VM is the one that runs.
pub const AT_RECOVERY: &str = "Recovery";

/// `sourceSiteOperations`: shut the source down and send its last changes; go on when that fails.
pub const SOURCE_REQUIRED: &str = "Required";
/// `sourceSiteOperations`: leave the source alone, because it is lost.
pub const SOURCE_NOT_REQUIRED: &str = "NotRequired";

/// `instanceType` of a planned failover's details when it goes back to the source.
pub const FAILBACK: &str = "HyperVReplicaAzureFailback";
/// `dataSyncOption`: synchronise while the recovered VM runs, wait for a person, then a short rest.
pub const FOR_DOWN_TIME: &str = "ForDownTime";
/// `dataSyncOption`: shut the recovered VM down first, then bring everything.
pub const FOR_SYNCHRONIZATION: &str = "ForSynchronization";
/// `recoveryVmCreationOption`: make the VM on the host when it is gone.
pub const CREATE_VM_IF_NOT_FOUND: &str = "CreateVmIfNotFound";
/// `recoveryVmCreationOption`: the VM must still be there.
pub const NO_ACTION: &str = "NoAction";

/// `recoveryPointType` of a plan: newest point, after everything that was already sent became one.
pub const LATEST: &str = "Latest";
/// `recoveryPointType` of a plan: newest point as it lies in the store.
pub const LATEST_PROCESSED: &str = "LatestProcessed";
/// `recoveryPointType` of a plan: newest point with quiesced file systems.
pub const LATEST_APPLICATION_CONSISTENT: &str = "LatestApplicationConsistent";
/// Extension, in the spelling that the service has for VMs of Azure: newest point at which the guest was not told.
pub const LATEST_CRASH_CONSISTENT: &str = "LatestCrashConsistent";

/// `multiVmSyncPointOption`: VMs of one group go to a point that they took together.
pub const USE_GROUP_POINT: &str = "UseMultiVmSyncRecoveryPoint";
/// `multiVmSyncPointOption`: each VM goes to its own point.
pub const USE_OWN_POINT: &str = "UsePerVmRecoveryPoint";

/// `disableProtectionReason` of `remove` that completes a migration: the recovered VM stays, protection ends.
pub const MIGRATION_COMPLETE: &str = "MigrationComplete";

/// Request properties of an item's `plannedFailover`, in both directions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlannedFailover {
    /// [`PRIMARY_TO_RECOVERY`], or [`RECOVERY_TO_PRIMARY`] for a failback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover_direction: Option<String>,
    /// More about the direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_specific_details: Option<PlannedFailoverDetails>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// More about a direction. Away from the source the type is `HyperVReplicaAzure`, back to it [`FAILBACK`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlannedFailoverDetails {
    /// `HyperVReplicaAzure` or [`FAILBACK`].
    pub instance_type: String,
    /// Away: recovery point; the one after the shutdown when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_point_id: Option<String>,
    /// Back: [`FOR_DOWN_TIME`] (when absent) or [`FOR_SYNCHRONIZATION`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_sync_option: Option<String>,
    /// Back: [`NO_ACTION`] (when absent) or [`CREATE_VM_IF_NOT_FOUND`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_vm_creation_option: Option<String>,
    /// Back: host that gets the VM when it is made anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_id_for_alternate_recovery: Option<String>,
    /// Further fields (key certificates, upgrade version …).
    #[serde(flatten)]
    pub extra: Extra,
}

/// Request properties of an item's `unplannedFailover`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UnplannedFailover {
    /// [`PRIMARY_TO_RECOVERY`]; the way back is always planned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover_direction: Option<String>,
    /// [`SOURCE_REQUIRED`] or [`SOURCE_NOT_REQUIRED`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_site_operations: Option<String>,
    /// Choice of the point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_specific_details: Option<UnplannedFailoverDetails>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Choice of the point of an item.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UnplannedFailoverDetails {
    /// `HyperVReplicaAzure`.
    pub instance_type: String,
    /// Recovery point; the newest when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_point_id: Option<String>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Request properties of an item's `applyRecoveryPoint`; before commit only.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ApplyRecoveryPoint {
    /// Recovery point; the newest when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_point_id: Option<String>,
    /// Variant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_specific_details: Option<ApplyRecoveryPointDetails>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Variant of `applyRecoveryPoint`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ApplyRecoveryPointDetails {
    /// `HyperVReplicaAzure`.
    pub instance_type: String,
    /// Further fields (key certificates).
    #[serde(flatten)]
    pub extra: Extra,
}

/// Request properties of an item's `reProtect`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReverseReplication {
    /// [`PRIMARY_TO_RECOVERY`]: the item came back and is protected as before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover_direction: Option<String>,
    /// What is protected, and where to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_specific_details: Option<ReverseReplicationDetails>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What is protected after a failback, and where to. All but the variant may be absent: then it stays as it was.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReverseReplicationDetails {
    /// `HyperVReplicaAzure`.
    pub instance_type: String,
    /// VM id on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hv_host_vm_id: Option<String>,
    /// VM name on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_name: Option<String>,
    /// `Windows` or `Linux`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os_type: Option<String>,
    /// Operating system disk. Spelt as here in this body alone; [`crate::case`] brings it to the other spelling.
    #[serde(
        rename = "vHDId",
        alias = "vhdId",
        skip_serializing_if = "Option::is_none"
    )]
    pub vhd_id: Option<String>,
    /// Where the replica is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_account_id: Option<String>,
    /// Account of the change log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_storage_account_id: Option<String>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Request properties of a plan's `plannedFailover`, in both directions. Here the details are a list, one entry for
/// each provider of the plan.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlanPlannedFailover {
    /// [`PRIMARY_TO_RECOVERY`], or [`RECOVERY_TO_PRIMARY`] for a failback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover_direction: Option<String>,
    /// More about the direction.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub provider_specific_details: Vec<PlanFailoverDetails>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Request properties of a plan's `unplannedFailover`. Here the details are a list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlanUnplannedFailover {
    /// [`PRIMARY_TO_RECOVERY`]; the way back is always planned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover_direction: Option<String>,
    /// [`SOURCE_REQUIRED`] or [`SOURCE_NOT_REQUIRED`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_site_operations: Option<String>,
    /// Choice of the points.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub provider_specific_details: Vec<PlanFailoverDetails>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Choice of the points of a plan's VMs, or how they come back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlanFailoverDetails {
    /// `HyperVReplicaAzure` or [`FAILBACK`].
    pub instance_type: String,
    /// Away: [`LATEST`] (when absent), [`LATEST_PROCESSED`] or [`LATEST_APPLICATION_CONSISTENT`];
    /// extension: [`LATEST_CRASH_CONSISTENT`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_point_type: Option<String>,
    /// Away, extension in the spelling that the service has for VMs of Azure: [`USE_GROUP_POINT`] or
    /// [`USE_OWN_POINT`] (when absent).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multi_vm_sync_point_option: Option<String>,
    /// Back: [`FOR_DOWN_TIME`] or [`FOR_SYNCHRONIZATION`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_sync_option: Option<String>,
    /// Back: [`NO_ACTION`] or [`CREATE_VM_IF_NOT_FOUND`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_vm_creation_option: Option<String>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

// === impl PlannedFailover ===

impl PlannedFailover {
    /// To the recovery side.
    #[must_use]
    pub fn away() -> Self {
        Self {
            failover_direction: Some(PRIMARY_TO_RECOVERY.to_owned()),
            provider_specific_details: Some(PlannedFailoverDetails {
                instance_type: HYPER_V_REPLICA_AZURE.to_owned(),
                ..PlannedFailoverDetails::default()
            }),
            ..Self::default()
        }
    }

    /// Back to the source; `data` is [`FOR_DOWN_TIME`] or [`FOR_SYNCHRONIZATION`].
    #[must_use]
    pub fn back(data: &str) -> Self {
        Self {
            failover_direction: Some(RECOVERY_TO_PRIMARY.to_owned()),
            provider_specific_details: Some(PlannedFailoverDetails {
                instance_type: FAILBACK.to_owned(),
                data_sync_option: Some(data.to_owned()),
                ..PlannedFailoverDetails::default()
            }),
            ..Self::default()
        }
    }
}

// === impl UnplannedFailover ===

impl UnplannedFailover {
    /// To the recovery side, from this point or the newest; `operations` is [`SOURCE_REQUIRED`] or
    /// [`SOURCE_NOT_REQUIRED`].
    #[must_use]
    pub fn away(operations: &str, recovery_point_id: Option<String>) -> Self {
        Self {
            failover_direction: Some(PRIMARY_TO_RECOVERY.to_owned()),
            source_site_operations: Some(operations.to_owned()),
            provider_specific_details: Some(UnplannedFailoverDetails {
                instance_type: HYPER_V_REPLICA_AZURE.to_owned(),
                recovery_point_id,
                ..UnplannedFailoverDetails::default()
            }),
            ..Self::default()
        }
    }
}

// === impl ApplyRecoveryPoint ===

impl ApplyRecoveryPoint {
    /// This one.
    #[must_use]
    pub fn to(recovery_point_id: &str) -> Self {
        Self {
            recovery_point_id: Some(recovery_point_id.to_owned()),
            provider_specific_details: Some(ApplyRecoveryPointDetails {
                instance_type: HYPER_V_REPLICA_AZURE.to_owned(),
                ..ApplyRecoveryPointDetails::default()
            }),
            ..Self::default()
        }
    }
}

// === impl ReverseReplication ===

impl ReverseReplication {
    /// Protected as it was before the failover.
    #[must_use]
    pub fn as_before() -> Self {
        Self {
            failover_direction: Some(PRIMARY_TO_RECOVERY.to_owned()),
            provider_specific_details: Some(ReverseReplicationDetails {
                instance_type: HYPER_V_REPLICA_AZURE.to_owned(),
                ..ReverseReplicationDetails::default()
            }),
            ..Self::default()
        }
    }
}

// === impl PlanPlannedFailover ===

impl PlanPlannedFailover {
    /// To the recovery side.
    #[must_use]
    pub fn away() -> Self {
        Self {
            failover_direction: Some(PRIMARY_TO_RECOVERY.to_owned()),
            provider_specific_details: vec![PlanFailoverDetails {
                instance_type: HYPER_V_REPLICA_AZURE.to_owned(),
                ..PlanFailoverDetails::default()
            }],
            ..Self::default()
        }
    }

    /// Back to the sources; `data` is [`FOR_DOWN_TIME`] or [`FOR_SYNCHRONIZATION`].
    #[must_use]
    pub fn back(data: &str) -> Self {
        Self {
            failover_direction: Some(RECOVERY_TO_PRIMARY.to_owned()),
            provider_specific_details: vec![PlanFailoverDetails {
                instance_type: FAILBACK.to_owned(),
                data_sync_option: Some(data.to_owned()),
                ..PlanFailoverDetails::default()
            }],
            ..Self::default()
        }
    }
}

// === impl PlanUnplannedFailover ===

impl PlanUnplannedFailover {
    /// To the recovery side, each VM from its point of this kind; `operations` as for an item.
    #[must_use]
    pub fn away(operations: &str, recovery_point_type: &str) -> Self {
        Self {
            failover_direction: Some(PRIMARY_TO_RECOVERY.to_owned()),
            source_site_operations: Some(operations.to_owned()),
            provider_specific_details: vec![PlanFailoverDetails {
                instance_type: HYPER_V_REPLICA_AZURE.to_owned(),
                recovery_point_type: Some(recovery_point_type.to_owned()),
                ..PlanFailoverDetails::default()
            }],
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    const ITEM: &str = "/subscriptions/11111111-1111-4111-8111-111111111111/resourceGroups/rg-dr/providers/\
        Microsoft.RecoveryServices/vaults/vault/replicationFabrics/site-oslo/replicationProtectionContainers/\
        cloud_5b1f0c1e-0d0a-4b7e-9f6e-2a1f6a3b9c01/replicationProtectedItems/c0ffee00-1234-4abc-8def-001122334455";
    const ACCOUNT: &str = "/subscriptions/11111111-1111-4111-8111-111111111111/resourceGroups/rg-dr/providers/\
        Microsoft.Storage/storageAccounts/stdrreplica";

    fn round_trip<T: Serialize + DeserializeOwned>(body: &Value) -> T {
        let read: T = serde_json::from_value(body.clone()).expect("the body is read");
        assert_eq!(
            &serde_json::to_value(&read).expect("the body is written"),
            body,
            "nothing is lost and nothing is added"
        );
        read
    }

    #[test]
    fn a_planned_failover_needs_nothing_but_its_direction() {
        let read: PlannedFailover = round_trip(&json!({
            "failoverDirection": "PrimaryToRecovery",
            "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure", "osUpgradeVersion": "2022" },
        }));
        let details = read.provider_specific_details.expect("details");
        assert_eq!(details.recovery_point_id, None);
        assert_eq!(details.extra["osUpgradeVersion"], "2022");
        let bare: PlannedFailover = round_trip(&json!({}));
        assert_eq!(bare, PlannedFailover::default());
    }

    #[test]
    fn a_failback_to_another_host_is_read_as_it_is_sent() {
        let host = "/replicationFabrics/site-oslo/replicationRecoveryServicesProviders/9d3c2f10";
        let read: PlannedFailover = round_trip(&json!({
            "failoverDirection": "RecoveryToPrimary",
            "providerSpecificDetails": {
                "instanceType": "HyperVReplicaAzureFailback",
                "dataSyncOption": "ForSynchronization",
                "recoveryVmCreationOption": "CreateVmIfNotFound",
                "providerIdForAlternateRecovery": host,
            },
        }));
        assert_eq!(
            read.failover_direction.as_deref(),
            Some(RECOVERY_TO_PRIMARY)
        );
        let details = read.provider_specific_details.expect("details");
        assert_eq!(details.instance_type, FAILBACK);
        assert_eq!(
            details.data_sync_option.as_deref(),
            Some(FOR_SYNCHRONIZATION)
        );
        assert_eq!(
            details.recovery_vm_creation_option.as_deref(),
            Some(CREATE_VM_IF_NOT_FOUND)
        );
        assert_eq!(
            details.provider_id_for_alternate_recovery.as_deref(),
            Some(host)
        );
    }

    #[test]
    fn an_unplanned_failover_names_point_and_what_to_do_at_the_source() {
        let point = format!("{ITEM}/recoveryPoints/0a1b2c3d-1111-4222-8333-444455556666");
        let read: UnplannedFailover = round_trip(&json!({
            "failoverDirection": "PrimaryToRecovery",
            "sourceSiteOperations": "NotRequired",
            "providerSpecificDetails": {
                "instanceType": "HyperVReplicaAzure",
                "recoveryPointId": point,
            },
        }));
        assert_eq!(
            read.source_site_operations.as_deref(),
            Some(SOURCE_NOT_REQUIRED)
        );
        let details = read.provider_specific_details.expect("details");
        assert_eq!(details.recovery_point_id, Some(point));
    }

    #[test]
    fn a_point_is_changed_by_its_id_with_an_empty_variant() {
        let read: ApplyRecoveryPoint = round_trip(&json!({
            "recoveryPointId": format!("{ITEM}/recoveryPoints/0a1b2c3d"),
            "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure" },
        }));
        assert_eq!(
            read.provider_specific_details
                .expect("variant")
                .instance_type,
            HYPER_V_REPLICA_AZURE
        );
    }

    #[test]
    fn the_disk_of_a_protection_after_failback_has_a_spelling_of_its_own() {
        let body = json!({
            "failoverDirection": "PrimaryToRecovery",
            "providerSpecificDetails": {
                "instanceType": "HyperVReplicaAzure",
                "hvHostVmId": "c0ffee00-1234-4abc-8def-001122334455", "vmName": "web01", "osType": "Windows",
                "vHDId": "disk-0", "storageAccountId": ACCOUNT,
            },
        });
        let read: ReverseReplication = round_trip(&body);
        // The server reads bodies in the current spelling, which is another one for this name.
        let normal = crate::case::normalise(body);
        assert_eq!(normal["providerSpecificDetails"]["vhdId"], "disk-0");
        assert_eq!(
            serde_json::from_value::<ReverseReplication>(normal).expect("current spelling"),
            read
        );
        assert_eq!(
            read.provider_specific_details
                .expect("details")
                .vhd_id
                .as_deref(),
            Some("disk-0")
        );
    }

    #[test]
    fn details_of_plans_are_lists() {
        let away: PlanUnplannedFailover = round_trip(&json!({
            "failoverDirection": "PrimaryToRecovery", "sourceSiteOperations": "Required",
            "providerSpecificDetails": [{
                "instanceType": "HyperVReplicaAzure", "recoveryPointType": "LatestApplicationConsistent",
                "multiVmSyncPointOption": "UseMultiVmSyncRecoveryPoint",
            }],
        }));
        let choice = away.provider_specific_details.first().expect("one entry");
        assert_eq!(
            choice.recovery_point_type.as_deref(),
            Some(LATEST_APPLICATION_CONSISTENT)
        );
        assert_eq!(
            choice.multi_vm_sync_point_option.as_deref(),
            Some(USE_GROUP_POINT)
        );
        let back: PlanPlannedFailover = round_trip(&json!({
            "failoverDirection": "RecoveryToPrimary",
            "providerSpecificDetails": [{
                "instanceType": "HyperVReplicaAzureFailback",
                "dataSyncOption": "ForDownTime", "recoveryVmCreationOption": "NoAction",
            }],
        }));
        let option = back.provider_specific_details.first().expect("one entry");
        assert_eq!(option.data_sync_option.as_deref(), Some(FOR_DOWN_TIME));
        assert_eq!(
            option.recovery_vm_creation_option.as_deref(),
            Some(NO_ACTION)
        );
    }

    #[test]
    fn names_in_any_case_reach_the_server_in_the_current_spelling() {
        let normal = crate::case::normalise(json!({
            "FailoverDirection": "RecoveryToPrimary", "SourceSiteOperations": "Required",
            "ProviderSpecificDetails": {
                "InstanceType": "HyperVReplicaAzureFailback", "DataSyncOption": "ForDownTime",
                "RecoveryVMCreationOption": "NoAction", "ProviderIdForAlternateRecovery": "host",
            },
        }));
        assert_eq!(normal["sourceSiteOperations"], "Required");
        let read: PlannedFailover = serde_json::from_value(normal).expect("body");
        let details = read.provider_specific_details.expect("details");
        assert_eq!(details.data_sync_option.as_deref(), Some("ForDownTime"));
        assert_eq!(
            details.recovery_vm_creation_option.as_deref(),
            Some("NoAction")
        );
        assert_eq!(
            details.provider_id_for_alternate_recovery.as_deref(),
            Some("host")
        );
    }
}
