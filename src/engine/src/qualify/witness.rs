//! The driver under test, with a witness of what it froze: the hash of every disk of every point, read before the point is used.
//! So each recovery point in a store can be compared with the disks as they were, while the guest writes on.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use hypervisor::{
    Consistency, DiskId, FrozenDisk, FrozenPoint, FrozenReader, HostFacts, Hypervisor,
    HypervisorError, NewVirtualMachine, PowerState, Stop, TrackingId, VirtualMachine, VmId,
};

/// Read at once.
const PIECE: u64 = 1 << 20;

/// The hash of everything that a frozen disk reads.
///
/// # Errors
/// Those of the reader.
pub async fn hash(disk: &FrozenDisk) -> Result<blake3::Hash, HypervisorError> {
    let content = content_of(disk.reader.as_ref(), disk.size_bytes).await?;
    Ok(content.whole)
}

/// Unit in which two points are compared: no larger than what a guest writes at once, so that what is told can be too little by one.
pub const BLOCK: u64 = 4 << 10;

/// What a disk held at an instant.
#[derive(Clone)]
struct Content {
    whole: blake3::Hash,
    /// Of each block.
    blocks: Arc<Vec<blake3::Hash>>,
}

async fn content_of(reader: &dyn FrozenReader, size: u64) -> Result<Content, HypervisorError> {
    let mut hasher = blake3::Hasher::new();
    let (mut blocks, mut offset) = (Vec::new(), 0);
    while offset < size {
        let length = PIECE.min(size - offset);
        let data = reader.read(offset, usize::try_from(length).unwrap_or_default());
        let data = data.await?;
        hasher.update(&data);
        let block = usize::try_from(BLOCK).unwrap_or(4096);
        blocks.extend(data.chunks(block).map(blake3::hash));
        offset += length;
    }
    Ok(Content {
        whole: hasher.finalize(),
        blocks: Arc::new(blocks),
    })
}

/// By instant of a point in milliseconds, and disk.
type Seen = HashMap<(i64, DiskId), Content>;

/// A driver whose points are remembered.
pub struct Witness {
    driver: Arc<dyn Hypervisor>,
    seen: Mutex<Seen>,
}

impl Witness {
    /// Of `driver`.
    pub fn new(driver: Arc<dyn Hypervisor>) -> Self {
        Self {
            driver,
            seen: Mutex::default(),
        }
    }

    /// What a disk held at a frozen instant.
    pub fn saw(&self, taken_unix_ms: i64, disk: DiskId) -> Option<blake3::Hash> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&(taken_unix_ms, disk))
            .map(|content| content.whole)
    }

    /// Offsets of the blocks of a disk that differ between two frozen instants; `None` when one of them is not known.
    pub fn differing(&self, disk: DiskId, before: i64, after: i64) -> Option<Vec<u64>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, after) = (seen.get(&(before, disk))?, seen.get(&(after, disk))?);
        let pairs = before.blocks.iter().zip(after.blocks.iter());
        let offsets = pairs.enumerate().filter(|(_, (old, new))| old != new);
        Some(offsets.map(|(index, _)| index as u64 * BLOCK).collect())
    }

    async fn note(&self, point: FrozenPoint) -> Result<FrozenPoint, HypervisorError> {
        for disk in &point.disks {
            match content_of(disk.reader.as_ref(), disk.size_bytes).await {
                Ok(content) => {
                    let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.insert((point.taken_unix_ms, disk.disk), content);
                }
                Err(error) => {
                    self.driver.release(point).await?;
                    return Err(error);
                }
            }
        }
        Ok(point)
    }
}

#[async_trait]
impl Hypervisor for Witness {
    async fn host(&self) -> Result<HostFacts, HypervisorError> {
        self.driver.host().await
    }

    async fn virtual_machines(&self) -> Result<Vec<VirtualMachine>, HypervisorError> {
        self.driver.virtual_machines().await
    }

    async fn power_state(&self, vm: VmId) -> Result<PowerState, HypervisorError> {
        self.driver.power_state(vm).await
    }

    async fn freeze(
        &self,
        vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
        consistency: Consistency,
    ) -> Result<FrozenPoint, HypervisorError> {
        let point = self.driver.freeze(vm, disks, since, next, consistency);
        self.note(point.await?).await
    }

    async fn release(&self, point: FrozenPoint) -> Result<(), HypervisorError> {
        self.driver.release(point).await
    }

    async fn tracking(&self, vm: VmId) -> Result<Vec<TrackingId>, HypervisorError> {
        self.driver.tracking(vm).await
    }

    async fn forget(&self, vm: VmId, older_than: TrackingId) -> Result<(), HypervisorError> {
        self.driver.forget(vm, older_than).await
    }

    async fn forget_all(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.driver.forget_all(vm).await
    }

    async fn clean_up(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.driver.clean_up(vm).await
    }

    async fn disk_path(&self, vm: VmId, disk: DiskId) -> Result<PathBuf, HypervisorError> {
        self.driver.disk_path(vm, disk).await
    }

    async fn start(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.driver.start(vm).await
    }

    async fn stop(&self, vm: VmId, how: Stop) -> Result<(), HypervisorError> {
        self.driver.stop(vm, how).await
    }

    async fn shut_down(&self, vm: VmId, patience: Duration) -> Result<(), HypervisorError> {
        self.driver.shut_down(vm, patience).await
    }

    async fn freeze_off(
        &self,
        vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
    ) -> Result<FrozenPoint, HypervisorError> {
        let point = self.driver.freeze_off(vm, disks, since, next);
        self.note(point.await?).await
    }

    async fn create(&self, vm: NewVirtualMachine) -> Result<(), HypervisorError> {
        self.driver.create(vm).await
    }

    async fn remove(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.driver.remove(vm).await
    }

    async fn console(&self, vm: VmId) -> Result<PathBuf, HypervisorError> {
        self.driver.console(vm).await
    }
}
