//! Recovery services providers: the registered hosts.

use serde::{Deserialize, Serialize};

use crate::envelope::Extra;
use crate::health::HealthError;
use crate::window::Throttle;

/// `connectionStatus` of a host that reports.
pub const CONNECTED: &str = "Connected";
/// `connectionStatus` of a host that doesn't.
pub const DISCONNECTED: &str = "Disconnected";

/// Properties of a registered host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicesProviderProperties {
    /// `HyperVSite`.
    pub fabric_type: String,
    /// Host name.
    pub friendly_name: String,
    /// Site name.
    pub fabric_friendly_name: String,
    /// Version of the engine.
    pub provider_version: String,
    /// Operating system and hypervisor.
    pub server_version: String,
    /// `Latest`.
    pub provider_version_state: String,
    /// Last report; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heart_beat: Option<String>,
    /// `Connected` or `Disconnected`.
    pub connection_status: String,
    /// Number of VMs protected on this host.
    pub protected_item_count: u64,
    /// What the host may do: `HyperVReplicaAzure` for hosts with the source role.
    pub allowed_scenarios: Vec<String>,
    /// Problems.
    pub health_error_details: Vec<HealthError>,
    /// Engine id.
    pub dra_identifier: String,
    /// Engine id.
    pub machine_id: String,
    /// Host name.
    pub machine_name: String,
    /// Extension: `qemu` or `hyperv`.
    pub hypervisor: String,
    /// Extension: may run recovered VMs.
    pub recovery_role: bool,
    /// Extension: generations of VMs that it runs as they are when it recovers them; empty = not told.
    pub recovery_generations: Vec<u32>,
    /// Extension: free bytes on the volume of the engine's data folder.
    pub free_bytes: u64,
    /// Extension: rate limits of all VMs of the host together.
    pub throttles: Vec<Throttle>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Request properties of `PATCH` (extension).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UpdateServicesProvider {
    /// Rate limits of all VMs of the host together; absent = leave alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttles: Option<Vec<Throttle>>,
}
