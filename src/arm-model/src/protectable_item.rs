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
    /// Extension: all findings of the checks before protection, the worst first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub readiness_findings: Vec<ReadinessFinding>,
    /// `HyperVReplicaAzure`.
    pub supported_replication_providers: Vec<String>,
    /// The VM.
    pub custom_details: VirtualMachineDetails,
}

/// What a check before protection has found. `docs/guides/checks-before-protection.md` lists the rules.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReadinessFinding {
    /// Code for programs.
    pub code: String,
    /// The code of Azure Site Recovery, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_code: Option<String>,
    /// `Error` (protection is refused), `Warning`, or `Lifted` (only the original refuses).
    pub severity: String,
    /// Recovery targets that it holds for: `Azure`, `RecoveryHost`.
    pub recovery_targets: Vec<String>,
    /// The disk that it is about, if it is about one that has an id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhd_id: Option<String>,
    /// One sentence.
    pub summary_message: String,
    /// Why it matters.
    pub possible_causes: String,
    /// What to do.
    pub recommended_action: String,
}

// === impl ReadinessFinding ===

impl ReadinessFinding {
    /// Refuses protection.
    pub const ERROR: &'static str = "Error";
    /// Should be known.
    pub const WARNING: &'static str = "Warning";

    /// Whether it holds for a recovery target.
    #[must_use]
    pub fn holds_for(&self, target: &str) -> bool {
        let mut targets = self.recovery_targets.iter();
        targets.any(|one| one.eq_ignore_ascii_case(target))
    }
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
    /// `Unknown`, `Present` or `NotPresent`.
    pub has_physical_disk: String,
    /// `Unknown`, `Present` or `NotPresent`.
    pub has_fibre_channel_adapter: String,
    /// `Unknown`, `Present` or `NotPresent`.
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
