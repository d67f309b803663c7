//! VMs that the hosts of a site report.

use serde::{Deserialize, Serialize};

use crate::envelope::Extra;

/// Properties of a protectable item.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProtectableItemProperties {
    /// VM name.
    pub friendly_name: String,
    /// `Unprotected` or `Protected`.
    pub protection_status: String,
    /// The protected item, once there is one.
    pub replication_protected_item_id: Option<String>,
    /// Host that owns the VM.
    pub recovery_services_provider_id: String,
    /// Why it can't be protected; empty = it can.
    pub protection_readiness_errors: Vec<String>,
    /// `HyperVReplicaAzure`.
    pub supported_replication_providers: Vec<String>,
    /// The VM.
    pub custom_details: VirtualMachineDetails,
}

/// The VM as its host knows it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualMachineDetails {
    /// `HyperVVirtualMachine`.
    pub instance_type: String,
    /// VM id on the host (GUID).
    pub source_item_id: String,
    /// `1` or `2`.
    pub generation: String,
    /// Operating system, when known.
    pub os_details: Option<OsDetails>,
    /// Disks; the operating system disk first.
    pub disk_details: Vec<DiskDetails>,
    /// `NotPresent`.
    pub has_physical_disk: String,
    /// `NotPresent`.
    pub has_fibre_channel_adapter: String,
    /// `NotPresent`.
    pub has_shared_vhd: String,
    /// Host id as in the site's host list.
    #[serde(rename = "hyperVHostId")]
    pub hyper_v_host_id: String,
    /// Extension: memory.
    pub memory_in_mb: u64,
    /// Extension: virtual processors.
    pub processor_count: u32,
    /// Extension: `Running` or `Off`.
    pub power_state: String,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Operating system of a VM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OsDetails {
    /// `Windows`, `Linux` or empty.
    pub os_type: String,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A disk of a VM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DiskDetails {
    /// Size in MiB.
    #[serde(rename = "maxSizeMB")]
    pub max_size_mb: u64,
    /// `OperatingSystem` or `Data`.
    pub vhd_type: String,
    /// Disk id.
    pub vhd_id: String,
    /// File name.
    pub vhd_name: String,
}
