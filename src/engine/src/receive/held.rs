//! The VM under an order to receive: held off, and written to by permission only.

use std::sync::Arc;

use async_trait::async_trait;
use hypervisor::{
    DiskId, ErrorKind, HypervisorError, LostDisk, LostVirtualMachine, NewNetwork, PowerState,
};
use protection::Generation;

use super::{LocalDisk, ReceiveError, Target};
use crate::replicator::Context;
use crate::replicator::spec::Spec;
use crate::replicator::status::{Origin, StatusLine};
use crate::source::{Critical, Keeper, findings};
use crate::vm_config::{NetworkConfig, VmConfig};

/// A VM of this host, and the order in force.
pub struct HeldVm {
    /// The host.
    pub context: Arc<Context>,
    /// Which VM, and which disks of it.
    pub spec: Spec,
    /// The guard.
    pub keeper: Arc<Keeper>,
    /// The order that is obeyed; another one ends the right to write.
    pub epoch: Generation,
    /// What is gone of the VM may be made again.
    pub creates: bool,
    /// What is said of the item.
    pub line: StatusLine,
}

#[async_trait]
impl Target for HeldVm {
    async fn disks(&self) -> Result<Vec<LocalDisk>, ReceiveError> {
        let host = &self.context.hypervisor;
        let machines = host.virtual_machines().await?;
        let vm = machines
            .into_iter()
            .find(|vm| vm.id == self.spec.vm)
            .ok_or_else(|| ReceiveError::VmMissing(self.spec.vm_name.clone()))?;
        if vm.power_state != PowerState::Off {
            return Err(ReceiveError::Running(self.spec.vm_name.clone()));
        }
        let mut disks = Vec::new();
        for id in &self.spec.disks {
            let disk = vm.disks.iter().find(|disk| disk.id == *id);
            let disk = disk.ok_or(ReceiveError::DiskMissing(*id))?;
            let path = match host.disk_path(self.spec.vm, *id).await {
                Err(error) if error.kind() == ErrorKind::DiskNotFound => {
                    return Err(ReceiveError::DiskMissing(*id));
                }
                other => other?,
            };
            disks.push(LocalDisk {
                id: *id,
                name: disk.name.clone(),
                path,
            });
        }
        Ok(disks)
    }

    fn may_make(&self) -> bool {
        self.creates
    }

    async fn make(&self, like: &VmConfig) -> Result<(), ReceiveError> {
        let critical = self.keeper.critical().await;
        let guard = critical.kept().guard;
        if guard.epoch != self.epoch || !guard.may_receive(false) {
            return Err(ReceiveError::Withdrawn);
        }
        let wanted = like.disks.iter();
        let disks: Vec<LostDisk> = wanted
            .filter(|disk| self.spec.disks.contains(&disk.id))
            .map(|disk| LostDisk {
                id: disk.id,
                name: disk.name.clone(),
                size_bytes: disk.size_bytes,
            })
            .collect();
        let missing = |id: &&DiskId| !disks.iter().any(|disk| disk.id == **id);
        if let Some(disk) = self.spec.disks.iter().find(missing) {
            return Err(ReceiveError::DiskMissing(*disk));
        }
        let generation = like.generation().ok_or_else(|| ReceiveError::Making {
            name: like.name.clone(),
            source: HypervisorError::new(
                ErrorKind::InvalidRequest,
                format!("generation {} is not known here", like.generation),
            ),
        })?;
        let lost = LostVirtualMachine {
            id: self.spec.vm,
            name: like.name.clone(),
            generation,
            memory_bytes: like.memory_bytes,
            processors: like.processors,
            os_type: like.os_type.clone(),
            disks,
            networks: like.network_adapters.iter().map(adapter).collect(),
        };
        // No other order is taken while it is made.
        let made = self.context.hypervisor.restore(lost).await;
        drop(critical);
        made.map_err(|source| ReceiveError::Making {
            name: like.name.clone(),
            source,
        })
    }

    async fn may_write(&self) -> Result<Box<dyn Send + '_>, ReceiveError> {
        let critical = self.keeper.critical().await;
        // Before the host is asked: another order makes that needless.
        let guard = critical.kept().guard;
        if guard.epoch != self.epoch || !guard.may_receive(false) {
            return Err(ReceiveError::Withdrawn);
        }
        let running = self.is_running().await?;
        if !guard.may_receive(running) {
            return Err(ReceiveError::Running(self.spec.vm_name.clone()));
        }
        let critical: Box<Critical<'_>> = Box::new(critical);
        Ok(critical)
    }

    fn leaves_out(&self, names: Vec<String>) {
        let found = (!names.is_empty()).then(|| findings::left_out(&self.spec.vm_name, &names));
        self.line.notice(Origin::Points, found);
    }

    async fn received(&self) -> Result<(), ReceiveError> {
        self.keeper
            .received(self.epoch)
            .await
            .map_err(ReceiveError::io("note that the disks are received"))
    }
}

impl HeldVm {
    /// For an order that lets nothing be made again.
    pub fn new(
        context: Arc<Context>,
        spec: Spec,
        keeper: Arc<Keeper>,
        epoch: Generation,
        line: StatusLine,
    ) -> Self {
        Self {
            context,
            spec,
            keeper,
            epoch,
            creates: false,
            line,
        }
    }

    async fn is_running(&self) -> Result<bool, ReceiveError> {
        // Of this one VM, each time: what was seen before is no proof for the next write. The host's other VMs, of which there
        // may be hundreds, are not looked at.
        match self.context.hypervisor.power_state(self.spec.vm).await {
            Ok(state) => Ok(state != PowerState::Off),
            Err(error) if error.kind() == ErrorKind::VmNotFound => {
                Err(ReceiveError::VmMissing(self.spec.vm_name.clone()))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// As it was: on the switch of the same name, with its address.
fn adapter(adapter: &NetworkConfig) -> NewNetwork {
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    NewNetwork {
        network_name: some(&adapter.network_name),
        segment: None,
        mac_address: some(&adapter.mac_address),
    }
}
