//! Protected items: enable, answer, update, disable.

use serde::{Deserialize, Serialize};

use crate::envelope::{Extra, InstanceType};
use crate::health::HealthError;
use crate::network::NicChoice;
use crate::protectable_item::OsDetails;
use crate::window::Throttle;

/// Request properties of `PUT`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnableProtection {
    /// Policy; must be associated with the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_id: Option<String>,
    /// The VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protectable_item_id: Option<String>,
    /// The Hyper-V to Azure part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_specific_details: Option<EnableDetails>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The Hyper-V to Azure part of `PUT`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnableDetails {
    /// `HyperVReplicaAzure`.
    pub instance_type: String,
    /// VM id on the host; the protectable item's `sourceItemId`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hv_host_vm_id: Option<String>,
    /// VM name on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_name: Option<String>,
    /// `Windows` or `Linux`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os_type: Option<String>,
    /// Operating system disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhd_id: Option<String>,
    /// Disks to replicate; absent = all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disks_to_include: Option<Vec<String>>,
    /// Where replicas are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_storage_account_id: Option<String>,
    /// Account of the change log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_storage_account_id: Option<String>,
    /// Group of the recovery VM.
    #[serde(
        rename = "targetAzureV2ResourceGroupId",
        skip_serializing_if = "Option::is_none"
    )]
    pub target_azure_v2_resource_group_id: Option<String>,
    /// Name of the recovery VM; the VM's name when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_azure_vm_name: Option<String>,
    /// Network after failover.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_azure_network_id: Option<String>,
    /// Subnet name after failover.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_azure_subnet_id: Option<String>,
    /// Extension: choices for the adapters; ASR takes them with an update only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_nics: Option<Vec<NicChoice>>,
    /// Extension: adapter that becomes the primary one; ASR takes it with an update only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selected_source_nic_id: Option<String>,
    /// Size of the recovery VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_vm_size: Option<String>,
    /// `"true"` or `"false"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_managed_disks: Option<String>,
    /// Extension: VMs of one name on one host share their recovery points; absent = alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multi_vm_group_name: Option<String>,
    /// Extension: rate limits of this VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttles: Option<Vec<Throttle>>,
    /// Extension: disk copies at the store's side that the first copy compares with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seeds: Option<Vec<DiskSeed>>,
    /// Further fields (licences, tags, security profile …), echoed.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Extension: a disk copy that was brought to the store's side.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DiskSeed {
    /// Disk.
    pub disk_id: String,
    /// A file on a machine that has the store's folder, or a blob of the container.
    pub path: String,
}

/// Request properties of `POST …/addDisks` and `POST …/removeDisks`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ChangeDisks {
    /// The Hyper-V to Azure part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_specific_details: Option<ChangeDisksDetails>,
}

/// The Hyper-V to Azure part of `addDisks` and `removeDisks` (the service has it for other scenarios only).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ChangeDisksDetails {
    /// `HyperVReplicaAzure`.
    pub instance_type: String,
    /// Disks.
    pub disk_ids: Vec<String>,
}

/// Request properties of `POST …/remove`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DisableProtection {
    /// `NotSpecified` or [`MIGRATION_COMPLETE`](crate::failover::MIGRATION_COMPLETE).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disable_protection_reason: Option<String>,
    /// Variant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_provider_input: Option<InstanceType>,
    /// Extension: whether the replica goes too; true when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delete_replica: Option<bool>,
}

/// Request properties of `PATCH`; absent means leave alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UpdateProtectedItem {
    /// Name of the recovery VM.
    #[serde(
        rename = "recoveryAzureVMName",
        skip_serializing_if = "Option::is_none"
    )]
    pub recovery_azure_vm_name: Option<String>,
    /// Size of the recovery VM.
    #[serde(
        rename = "recoveryAzureVMSize",
        skip_serializing_if = "Option::is_none"
    )]
    pub recovery_azure_vm_size: Option<String>,
    /// Network after failover.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selected_recovery_azure_network_id: Option<String>,
    /// Network adapters; those that are not named keep what was chosen for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_nics: Option<Vec<NicChoice>>,
    /// Adapter that becomes the primary one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selected_source_nic_id: Option<String>,
    /// The Hyper-V to Azure part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_specific_details: Option<UpdateDetails>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The Hyper-V to Azure part of `PATCH`; absent means leave alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UpdateDetails {
    /// `HyperVReplicaAzure`.
    pub instance_type: String,
    /// Group of the recovery VM.
    #[serde(
        rename = "recoveryAzureV2ResourceGroupId",
        skip_serializing_if = "Option::is_none"
    )]
    pub recovery_azure_v2_resource_group_id: Option<String>,
    /// Extension: VMs of one name on one host share their recovery points; empty = alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multi_vm_group_name: Option<String>,
    /// Extension: rate limits of this VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttles: Option<Vec<Throttle>>,
    /// Extension: disk copies at the store's side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seeds: Option<Vec<DiskSeed>>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Properties of a protected item.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProtectedItemProperties {
    /// VM name.
    pub friendly_name: String,
    /// `HyperVVirtualMachine`.
    pub protected_item_type: String,
    /// The VM.
    pub protectable_item_id: String,
    /// Its host.
    pub recovery_services_provider_id: String,
    /// Site name.
    pub primary_fabric_friendly_name: String,
    /// `HyperVSite`.
    pub primary_fabric_provider: String,
    /// [`MICROSOFT_AZURE`](crate::MICROSOFT_AZURE).
    pub recovery_fabric_friendly_name: String,
    /// [`MICROSOFT_AZURE`](crate::MICROSOFT_AZURE).
    pub recovery_fabric_id: String,
    /// Site name.
    pub primary_protection_container_friendly_name: String,
    /// [`MICROSOFT_AZURE`](crate::MICROSOFT_AZURE).
    pub recovery_protection_container_friendly_name: String,
    /// Such as `EnablingProtection`, `InitialReplicationInProgress`, `Protected`.
    pub protection_state: String,
    /// The same for people.
    pub protection_state_description: String,
    /// [`AT_PRIMARY`](crate::failover::AT_PRIMARY) or [`AT_RECOVERY`](crate::failover::AT_RECOVERY).
    pub active_location: String,
    /// `None`, `WaitingForCompletion` or `MarkedForDeletion`.
    pub test_failover_state: String,
    /// The same for people.
    pub test_failover_state_description: String,
    /// What may be called next.
    pub allowed_operations: Vec<String>,
    /// None, Normal, Warning, Critical.
    pub replication_health: String,
    /// None, Normal, Warning, Critical.
    pub failover_health: String,
    /// Problems.
    pub health_errors: Vec<HealthError>,
    /// Policy.
    pub policy_id: String,
    /// Policy name.
    pub policy_friendly_name: String,
    /// End of the last drill that went well.
    pub last_successful_test_failover_time: Option<String>,
    /// End of the last failover that went well.
    pub last_successful_failover_time: Option<String>,
    /// Running job, or `None`.
    pub current_scenario: CurrentScenario,
    /// Point used by the last failover.
    pub failover_recovery_point_id: Option<String>,
    /// Joins items with events.
    pub event_correlation_id: Option<String>,
    /// The Hyper-V to Azure part.
    pub provider_specific_details: ReplicationDetails,
}

/// The job that runs on an object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CurrentScenario {
    /// Scenario, or `None`.
    pub scenario_name: String,
    /// Job id.
    pub job_id: String,
    /// Start.
    pub start_time: String,
}

impl Default for CurrentScenario {
    fn default() -> Self {
        Self {
            scenario_name: "None".to_owned(),
            job_id: String::new(),
            start_time: crate::timestamp::NO_SCENARIO.to_owned(),
        }
    }
}

/// The Hyper-V to Azure part of an answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicationDetails {
    /// `HyperVReplicaAzure`.
    pub instance_type: String,
    /// VM id on the host.
    pub vm_id: String,
    /// Like `protectionState`.
    pub vm_protection_state: String,
    /// Like `protectionStateDescription`.
    pub vm_protection_state_description: String,
    /// Replicated disks.
    pub azure_vm_disk_details: Vec<ReplicatedDisk>,
    /// Name of the recovery VM.
    pub recovery_azure_vm_name: String,
    /// Size of the recovery VM.
    #[serde(rename = "recoveryAzureVMSize")]
    pub recovery_azure_vm_size: Option<String>,
    /// Group of the recovery VM.
    pub recovery_azure_resource_group_id: Option<String>,
    /// Where replicas are kept.
    pub recovery_azure_storage_account: String,
    /// Account of the change log.
    pub recovery_azure_log_storage_account_id: Option<String>,
    /// Network after failover.
    pub selected_recovery_azure_network_id: Option<String>,
    /// Extension: `Mapping` when the network follows from a mapping, absent when it was chosen for the VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_network_source: Option<String>,
    /// Extension: subnet of the VM, for adapters without one of their own; empty = none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_azure_subnet_id: Option<String>,
    /// Adapter that becomes the primary one.
    pub selected_source_nic_id: Option<String>,
    /// Adapters.
    pub vm_nics: Vec<VmNic>,
    /// Instant of the newest data in the store.
    pub last_replicated_time: Option<String>,
    /// When `rpoInSeconds` was calculated.
    pub last_rpo_calculated_time: Option<String>,
    /// Instant of the newest recovery point.
    pub last_recovery_point_received: Option<String>,
    /// Age of the newest recovery point.
    pub rpo_in_seconds: Option<u64>,
    /// First copy.
    pub initial_replication_details: InitialReplicationDetails,
    /// `Disabled` or `Enabled`.
    pub encryption: String,
    /// Operating system.
    #[serde(rename = "oSDetails")]
    pub os_details: Option<OsDetails>,
    /// Memory of the source.
    #[serde(rename = "sourceVmRamSizeInMB")]
    pub source_vm_ram_size_in_mb: u64,
    /// Processors of the source.
    pub source_vm_cpu_count: u32,
    /// `"true"` or `"false"`.
    pub use_managed_disks: String,
    /// Extension: bytes that the guest changed in the last cycle.
    pub last_cycle_changed_bytes: u64,
    /// Extension: bytes that went to the store in the last cycle.
    pub last_cycle_sent_bytes: u64,
    /// Extension: instant of the last cycle.
    pub last_cycle_time: Option<String>,
    /// Extension: bytes sent since protection began.
    pub total_sent_bytes: u64,
    /// Extension: cycles captured but not yet in the store.
    pub backlog_cycles: u64,
    /// Extension: bytes of the first copy or comparison that are done.
    pub progress_done_bytes: u64,
    /// Extension: bytes of the first copy or comparison.
    pub progress_total_bytes: u64,
    /// Extension: number of recovery points.
    pub recovery_point_count: u64,
    /// Extension: fencing generation of this activation.
    pub replication_generation: u64,
    /// Extension: the VM's folder (or its address in Azure) below the vault's folder in the store.
    pub replica_folder: Option<String>,
    /// Extension: the same in the log storage account, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_folder: Option<String>,
    /// Extension: bytes captured but not yet in the store.
    pub backlog_bytes: u64,
    /// Extension: seconds until backlog, first copy or comparison are done; absent = unknown or nothing to do.
    pub eta_in_seconds: Option<u64>,
    /// Extension: seconds between cycles as they really are.
    pub effective_replication_interval_in_seconds: Option<u32>,
    /// Extension: why that is longer than the policy's; absent = it is not.
    pub degraded_reason: Option<String>,
    /// Extension: bytes to the store in a second, over the last minute.
    pub bytes_per_second: u64,
    /// Extension: instant of the newest application-consistent point.
    pub last_app_consistent_time: Option<String>,
    /// Extension: when every kept point was last proven readable.
    pub last_verified_time: Option<String>,
    /// Extension: VMs of one name on one host share their recovery points.
    pub multi_vm_group_name: Option<String>,
    /// Extension: the point that the VMs of the group took last, together.
    pub last_group_point_id: Option<String>,
    /// Extension: rate limits of this VM.
    pub throttles: Vec<Throttle>,
    /// Extension: disk copies that the first copy compares with.
    pub seeds: Vec<DiskSeed>,
    /// Extension: resynchronisations asked for.
    pub resynchronizations_requested: u64,
    /// Extension: resynchronisations carried out.
    pub resynchronizations_completed: u64,
    /// Extension: key that the newest journal object was encrypted with.
    pub encryption_key_id: Option<String>,
    /// Extension: until then nobody can delete the newest point; absent = points are not immutable.
    pub immutable_until: Option<String>,
    /// Extension: of `recoveredVmDiskBytes`, how many are on the recovery host; absent = no failed-over VM runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovered_vm_local_bytes: Option<u64>,
    /// Extension: bytes of the recovered VM's disks; once all are local it no longer reads the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovered_vm_disk_bytes: Option<u64>,
    /// Further fields, echoed from the request.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A replicated disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicatedDisk {
    /// `OperatingSystem` or `Data`.
    pub vhd_type: String,
    /// Disk id.
    pub vhd_id: String,
    /// Disk id.
    pub disk_id: String,
    /// File name.
    pub vhd_name: String,
    /// Size in MiB, as text.
    #[serde(rename = "maxSizeMB")]
    pub max_size_mb: String,
    /// Storage account name.
    pub target_disk_location: String,
    /// Disk name at the target.
    pub target_disk_name: String,
    /// Number on the controller, as text.
    pub lun_id: String,
    /// Extension: `Tracked`, `Suspect` or `Comparing`; absent = not known yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracking_state: Option<String>,
    /// Extension: why changes of the disk may be unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracking_reason: Option<String>,
    /// Extension: bytes compared so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compared_bytes: Option<u64>,
    /// Extension: size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_in_bytes: Option<u64>,
}

/// A network adapter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VmNic {
    /// base64 of `Microsoft:<VM GUID>\<adapter>`.
    pub nic_id: String,
    /// Virtual switch on the source.
    #[serde(rename = "vMNetworkName")]
    pub vm_network_name: String,
    /// [`SELECTED_BY_DEFAULT`](crate::network::SELECTED_BY_DEFAULT) or what was chosen.
    pub selection_type: String,
    /// Network after failover.
    #[serde(rename = "recoveryVMNetworkId")]
    pub recovery_vm_network_id: Option<String>,
    /// Addresses.
    pub ip_configs: Vec<serde_json::Value>,
}

/// Progress of the first copy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InitialReplicationDetails {
    /// `Online`.
    pub initial_replication_type: String,
    /// `"0"` to `"100"`.
    pub initial_replication_progress_percentage: String,
}
