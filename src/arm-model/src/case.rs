//! Brings request bodies to the current spelling of property names.
//!
//! The service reads property names without regard to case, and some were renamed over the years.
//! Names inside maps of the user's own keys (tags) are left alone.

use serde_json::{Map, Value};

/// Names that the server reads in requests.
const NAMES: &[&str] = &[
    "properties",
    "location",
    "tags",
    "sku",
    "kind",
    "name",
    "tier",
    "id",
    "identity",
    "customDetails",
    "instanceType",
    "validityInHours",
    "providerSpecificInput",
    "replicationProviderSettings",
    "providerSpecificDetails",
    "replicationProviderInput",
    "policyId",
    "targetProtectionContainerId",
    "protectableItemId",
    "recoveryPointHistoryDuration",
    "applicationConsistentSnapshotFrequencyInHours",
    "replicationInterval",
    "onlineReplicationStartTime",
    "storageAccounts",
    "hvHostVmId",
    "vmName",
    "osType",
    "vhdId",
    "disksToInclude",
    "targetStorageAccountId",
    "logStorageAccountId",
    "targetAzureV2ResourceGroupId",
    "targetAzureVmName",
    "targetAzureNetworkId",
    "targetAzureSubnetId",
    "targetVmSize",
    "useManagedDisks",
    "enableRdpOnTargetOption",
    "licenseType",
    "userSelectedOSName",
    "targetVmTags",
    "disableProtectionReason",
    "deleteReplica",
    "failoverDirection",
    "networkType",
    "networkId",
    "recoveryPointId",
    "recoveryPointType",
    "sourceSiteOperations",
    "dataSyncOption",
    "recoveryVmCreationOption",
    "providerIdForAlternateRecovery",
    "multiVmSyncPointOption",
    "storageAccountId",
    "comments",
    "primaryFabricId",
    "recoveryFabricId",
    "failoverDeploymentModel",
    "groups",
    "groupType",
    "replicationProtectedItems",
    "virtualMachineId",
    "startGroupActions",
    "endGroupActions",
    "actionName",
    "failoverTypes",
    "failoverDirections",
    "folder",
    "addressSpace",
    "addressPrefixes",
    "addressPrefix",
    "subnets",
    "recoveryAzureVMName",
    "recoveryAzureVMSize",
    "selectedRecoveryAzureNetworkId",
    "publicNetworkAccess",
    "provisioningState",
    "blobEndpoint",
    "containerName",
    "accountKey",
    "accessClient",
    "accessKind",
    "tenantId",
    "clientId",
    "clientSecret",
    "authority",
    "stripes",
    "proxyUrl",
    "caPem",
    "throttles",
    "bytesPerSecond",
    "days",
    "startTime",
    "endTime",
    "utcOffset",
    "encryption",
    "retentionTiers",
    "intervalInMinutes",
    "durationInHours",
    "applicationConsistentSnapshotFrequencyInMinutes",
    "immutabilityInHours",
    "logQuotaInPercent",
    "comparisonWindows",
    "verificationIntervalInHours",
    "multiVmGroupName",
    "seeds",
    "diskId",
    "path",
    "diskIds",
    "vmNics",
    "nicId",
    "selectionType",
    "selectedSourceNicId",
    "ipConfigs",
    "recoverySubnetName",
    "recoveryStaticIPAddress",
    "recoveryVMSubnetName",
    "replicaNicStaticIPAddress",
    "recoveryFabricName",
    "recoveryNetworkId",
    "fabricSpecificDetails",
    "recoveryAzureV2ResourceGroupId",
    "primaryEndpoints",
    "replicationEncryptionKey",
];

/// Maps whose keys are the user's own.
const OPAQUE: &[&str] = &[
    "tags",
    "targetVmTags",
    "seedManagedDiskTags",
    "targetManagedDiskTags",
    "targetNicTags",
];

/// Gives every known property name its current spelling. When two spellings of one name are there,
/// the current one wins.
#[must_use]
pub fn normalise(value: Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.into_iter().map(normalise).collect()),
        Value::Object(fields) => {
            let mut renamed = Map::new();
            for (name, value) in fields {
                let known = NAMES.iter().find(|known| known.eq_ignore_ascii_case(&name));
                let exact = known.is_none_or(|known| *known == name);
                let spelled = known.map_or(name, |known| (*known).to_owned());
                let value = if OPAQUE.contains(&spelled.as_str()) {
                    value
                } else {
                    normalise(value)
                };
                if exact || !renamed.contains_key(&spelled) {
                    renamed.insert(spelled, value);
                }
            }
            Value::Object(renamed)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_of_any_case_get_the_current_spelling_and_tags_stay() {
        let body = json!({"Properties": {"PolicyID": "p", "policyId": "q", "tags": {"KIND": "x"}, "Unknown": [{"Groups": []}]}});
        assert_eq!(
            normalise(body),
            json!({"properties": {"policyId": "q", "tags": {"KIND": "x"}, "Unknown": [{"groups": []}]}})
        );
    }
}
