//! Replication policies.

use serde::{Deserialize, Serialize};

use crate::envelope::Extra;
use crate::window::TimeWindow;

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
    /// Extension, in place of the hours: minutes between application-consistent points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application_consistent_snapshot_frequency_in_minutes: Option<u32>,
    /// `Enable` or `Disable`: whether the change journal is encrypted with the vault's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
    /// Extension: what is kept beyond the hours in which all points are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_tiers: Option<Vec<RetentionTier>>,
    /// Extension: hours in which nobody can delete a point; 0 = off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub immutability_in_hours: Option<u32>,
    /// Extension: percent of a disk's size that waiting changes may take before a comparison is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_quota_in_percent: Option<u32>,
    /// Extension: comparisons run only then; empty = at any time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison_windows: Option<Vec<TimeWindow>>,
    /// Extension: hours between verifications of all kept points; 0 = off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification_interval_in_hours: Option<u32>,
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
    /// `Disabled` or `Enabled`.
    pub encryption: String,
    /// Extension: minutes between application-consistent points; 0 = hours count.
    pub application_consistent_snapshot_frequency_in_minutes: u32,
    /// Extension: what is kept beyond the hours in which all points are kept.
    pub retention_tiers: Vec<RetentionTier>,
    /// Extension: hours in which nobody can delete a point; 0 = off.
    pub immutability_in_hours: u32,
    /// Extension: percent of a disk's size that waiting changes may take; 0 = the default of 50.
    pub log_quota_in_percent: u32,
    /// Extension: comparisons run only then; empty = at any time.
    pub comparison_windows: Vec<TimeWindow>,
    /// Extension: hours between verifications of all kept points; 0 = off.
    pub verification_interval_in_hours: u32,
}

/// Value of [`PolicyDetails::encryption`] when the journal is encrypted.
pub const ENCRYPTION_ENABLED: &str = "Enabled";
/// Value of [`PolicyDetails::encryption`] when it is not.
pub const ENCRYPTION_DISABLED: &str = "Disabled";

/// Extension: the oldest point of every so many minutes is kept for so many hours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetentionTier {
    /// Minutes from one kept point to the next.
    pub interval_in_minutes: u32,
    /// Hours for which they are kept.
    pub duration_in_hours: u32,
}
