//! Replication policies.

use serde::{Deserialize, Serialize};

use crate::envelope::Extra;

/// Request properties of `PUT`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyCreation {
    /// The Hyper-V to Azure part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_specific_input: Option<PolicyInput>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Request properties of `PATCH`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyUpdate {
    /// The Hyper-V to Azure part; what is absent stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_provider_settings: Option<PolicyInput>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The Hyper-V to Azure part of a request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyInput {
    /// `HyperVReplicaAzure`.
    pub instance_type: String,
    /// Hours of recovery points, 0 to 24.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_point_history_duration: Option<u32>,
    /// Hours between application-consistent points; 0 = off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application_consistent_snapshot_frequency_in_hours: Option<u32>,
    /// Seconds between points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_interval: Option<u32>,
    /// `hh:mm:ss`, or null for at once.
    pub online_replication_start_time: Option<String>,
    /// At most one storage account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_accounts: Option<Vec<String>>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Properties of a policy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyProperties {
    /// Name.
    pub friendly_name: String,
    /// The Hyper-V to Azure part.
    pub provider_specific_details: PolicyDetails,
}

/// The Hyper-V to Azure part of an answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyDetails {
    /// `HyperVReplicaAzure`.
    pub instance_type: String,
    /// Hours of recovery points.
    pub recovery_point_history_duration_in_hours: u32,
    /// Hours between application-consistent points; 0 = off.
    pub application_consistent_snapshot_frequency_in_hours: u32,
    /// Seconds between points.
    pub replication_interval: u32,
    /// `hh:mm:ss`, or null for at once.
    pub online_replication_start_time: Option<String>,
    /// Storage account of the policy.
    pub active_storage_account_id: Option<String>,
    /// `Disabled`.
    pub encryption: String,
}
