//! Recovery points.

use serde::{Deserialize, Serialize};

/// `recoveryPointType` of a point at which the guest was not told.
pub const CRASH_CONSISTENT: &str = "CrashConsistent";
/// `recoveryPointType` of a point with quiesced file systems.
pub const APPLICATION_CONSISTENT: &str = "ApplicationConsistent";

/// Properties of a recovery point.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RecoveryPointProperties {
    /// The instant of the freeze.
    pub recovery_point_time: String,
    /// [`CRASH_CONSISTENT`] or [`APPLICATION_CONSISTENT`].
    pub recovery_point_type: String,
    /// Variant and figures.
    pub provider_specific_details: RecoveryPointDetails,
}

/// Figures of a recovery point (extension fields).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RecoveryPointDetails {
    /// `HyperVReplicaAzure`.
    pub instance_type: String,
    /// Extension: journal position.
    pub position: u64,
    /// Extension: bytes that the guest changed since the point before.
    pub changed_bytes: u64,
    /// Extension: bytes that went to the store.
    pub sent_bytes: u64,
    /// Extension: shared by the points that the VMs of one group took at one instant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_point_id: Option<String>,
}

/// A size of recovered VM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetComputeSizeProperties {
    /// Size name.
    pub name: String,
    /// Size name.
    pub friendly_name: String,
    /// Cores.
    pub cpu_cores_count: u32,
    /// Virtual cores.
    #[serde(rename = "vCPUsAvailable")]
    pub vcpus_available: u32,
    /// Memory in GiB.
    #[serde(rename = "memoryInGB")]
    pub memory_in_gb: f64,
    /// Data disks.
    pub max_data_disk_count: u32,
    /// Network adapters.
    pub max_nics_count: u32,
    /// `NotSupported`.
    pub high_iops_supported: String,
    /// `V1`, `V2`.
    #[serde(rename = "hyperVGenerations")]
    pub hyper_v_generations: Vec<String>,
    /// Why the size doesn't fit.
    pub errors: Vec<serde_json::Value>,
}
