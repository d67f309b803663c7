//! The configuration of a VM as it is kept with every recovery point, so that the VM can be made again.

use hypervisor::{DiskId, Generation, VirtualMachine};
use serde::{Deserialize, Serialize};

/// A VM at the instant of a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmConfig {
    /// Name on the source host.
    pub name: String,
    /// 1 or 2.
    pub generation: u32,
    /// Virtual processors.
    pub processors: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// "Linux", "Windows" or empty.
    pub os_type: String,
    /// Replicated disks, the operating system disk first.
    pub disks: Vec<DiskConfig>,
    /// Network adapters.
    pub network_adapters: Vec<NetworkConfig>,
}

/// A disk in [`VmConfig`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskConfig {
    /// Virtual disk id.
    pub id: DiskId,
    /// File name.
    pub name: String,
    /// Virtual size.
    pub size_bytes: u64,
    /// Whether the VM boots from it.
    pub operating_system: bool,
}

/// A network adapter in [`VmConfig`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    /// Stable name on the VM; empty in points of releases that did not keep it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Virtual switch on the source host.
    pub network_name: String,
    /// Six octets.
    pub mac_address: String,
}

impl NetworkConfig {
    /// Its name, or the one that the adapter at this place has on hosts that number them.
    pub fn id_at(&self, index: usize) -> String {
        if self.id.is_empty() {
            format!("nic{index}")
        } else {
            self.id.clone()
        }
    }
}

impl VmConfig {
    /// Of `vm`, with the replicated disks only.
    pub fn of(vm: &VirtualMachine, disks: &[DiskId]) -> Self {
        Self {
            name: vm.name.clone(),
            generation: vm.generation.number(),
            processors: vm.processors,
            memory_bytes: vm.memory_bytes,
            os_type: vm.os_type.clone(),
            disks: vm
                .disks
                .iter()
                .filter(|disk| disks.contains(&disk.id))
                .map(|disk| DiskConfig {
                    id: disk.id,
                    name: disk.name.clone(),
                    size_bytes: disk.size_bytes,
                    operating_system: disk.operating_system,
                })
                .collect(),
            network_adapters: vm
                .network_adapters
                .iter()
                .map(|adapter| NetworkConfig {
                    id: adapter.id.clone(),
                    network_name: adapter.network_name.clone(),
                    mac_address: adapter.mac_address.clone(),
                })
                .collect(),
        }
    }

    /// Firmware and controllers, when it is a generation we know.
    pub fn generation(&self) -> Option<Generation> {
        Generation::from_number(self.generation)
    }
}
