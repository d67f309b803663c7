//! A host in memory that remembers what every disk held at every freeze, and ways to cut the engine off.

#![allow(
    dead_code,
    unused_imports,
    reason = "each test program uses its own part"
)]

mod check;
pub mod faults;
pub mod item;
pub mod ordered;
pub mod power;
mod reader;
pub mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use hypervisor::{
    Changes, DiskId, ErrorKind, Extent, FrozenDisk, FrozenPoint, FrozenReader, Generation,
    HostFacts, Hypervisor, HypervisorError, NewVirtualMachine, PowerState, Stop, TrackingId,
    VirtualDisk, VirtualMachine, VmId,
};
use replica_store::{PointSelector, RecoveryPoint, ReplicaKey, ReplicaReader, StoreTarget};
use uuid::Uuid;

use reader::Reader;

pub use faults::{BadStore, Random, StopAt};
pub use world::{World, active, life, wait_for};

pub const BLOCK: usize = 64 << 10;
pub const ITEM: &str = "11111111-2222-3333-4444-555555555555";
pub const VAULT: &str = "vault-0a1b2c3d";

struct Disk {
    id: DiskId,
    path: PathBuf,
    data: Vec<u8>,
    allocated: BTreeSet<usize>,
}

/// An interval of tracking, the blocks written in it, and how many disks there were at its begin.
type Interval = (TrackingId, BTreeSet<(usize, usize)>, usize);

struct Inner {
    disks: Vec<Disk>,
    running: bool,
    frozen: bool,
    /// Oldest first.
    tracking: Vec<Interval>,
    /// What each disk held at each freeze.
    history: BTreeMap<i64, Vec<Arc<Vec<u8>>>>,
    /// Blocks written since each freeze.
    written: BTreeMap<i64, BTreeSet<(usize, usize)>>,
    clock: i64,
    random: Random,
    read_bytes: u64,
    fail_reads: bool,
    forgetful: bool,
    /// Disk whose tracking is lost at the next freeze.
    forgotten_disk: Option<usize>,
    /// Tracking outlives the VM's process, as that of some hosts does.
    tracking_survives: bool,
    /// The guest ignores the power button.
    stubborn: bool,
    /// The host refuses an orderly shutdown.
    refuses_button: bool,
    /// How often the VM was started, shut down by its guest, and turned off.
    powered: power::Counts,
    /// How often all VMs of the host were listed.
    inventories: u64,
}

/// One VM with two disks, or as many as asked for.
pub struct FakeHost {
    pub vm: VmId,
    inner: Arc<Mutex<Inner>>,
    /// Starts wait while this is true.
    holds_starts: tokio::sync::watch::Sender<bool>,
}

impl FakeHost {
    pub fn new(folder: &Path, seed: u64) -> Self {
        Self::with_disks(folder, seed, &[40, 33])
    }

    /// With disks of so many blocks.
    pub fn with_disks(folder: &Path, seed: u64, blocks: &[usize]) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let disk = |number: u128, name: &str, blocks: usize| Disk {
            id: DiskId(Uuid::from_u128(number)),
            path: folder.join(name),
            data: vec![0; blocks * BLOCK],
            allocated: BTreeSet::new(),
        };
        let host = Self {
            vm: VmId(Uuid::from_u128(7)),
            holds_starts: tokio::sync::watch::Sender::new(false),
            inner: Arc::new(Mutex::new(Inner {
                disks: (1u128..)
                    .zip(["os.vhdx", "data.vhdx", "more.vhdx"])
                    .zip(blocks)
                    .map(|((number, name), blocks)| disk(number, name, *blocks))
                    .collect(),
                running: true,
                frozen: false,
                tracking: Vec::new(),
                history: BTreeMap::new(),
                written: BTreeMap::new(),
                clock: 1_700_000_000_000,
                random: Random::new(seed ^ 0xABCD),
                read_bytes: 0,
                fail_reads: false,
                forgetful: false,
                forgotten_disk: None,
                tracking_survives: false,
                stubborn: false,
                refuses_button: false,
                powered: power::Counts::default(),
                inventories: 0,
            })),
        };
        for _ in 0..40 {
            host.guest_writes();
        }
        host
    }

    pub fn disks(&self) -> Vec<DiskId> {
        self.inner
            .lock()
            .unwrap()
            .disks
            .iter()
            .map(|disk| disk.id)
            .collect()
    }

    pub fn disk_paths(&self) -> Vec<PathBuf> {
        self.inner
            .lock()
            .unwrap()
            .disks
            .iter()
            .map(|disk| disk.path.clone())
            .collect()
    }

    /// One random write, as the guest does them all the time.
    pub fn guest_writes(&self) {
        let mut inner = self.inner.lock().unwrap();
        if inner.running {
            inner.guest_writes();
        }
    }

    /// QEMU ends and is started again: memory of changes is lost.
    pub fn restart_vm(&self) {
        let mut inner = self.inner.lock().unwrap();
        inner.tracking.clear();
        inner.frozen = false;
        inner.running = true;
    }

    pub fn set_running(&self, running: bool) {
        let mut inner = self.inner.lock().unwrap();
        inner.running = running;
        if !running && !inner.tracking_survives {
            inner.tracking.clear();
            inner.frozen = false;
        }
    }

    /// From now on tracking is there again after the VM was off.
    pub fn let_tracking_survive(&self) {
        self.inner.lock().unwrap().tracking_survives = true;
    }

    /// Makes a disk larger.
    pub fn grow_disk(&self, disk: usize, blocks: usize) {
        self.inner.lock().unwrap().disks[disk]
            .data
            .resize(blocks * BLOCK, 0);
    }

    /// Makes a disk smaller.
    pub fn shrink_disk(&self, disk: usize, blocks: usize) {
        self.inner.lock().unwrap().disks[disk]
            .data
            .truncate(blocks * BLOCK);
    }

    /// Attaches a disk.
    pub fn add_disk(&self, number: u128, name: &str, blocks: usize) -> DiskId {
        let mut inner = self.inner.lock().unwrap();
        let path = inner.disks[0].path.with_file_name(name);
        let id = DiskId(Uuid::from_u128(number));
        inner.disks.push(Disk {
            id,
            path,
            data: vec![0; blocks * BLOCK],
            allocated: BTreeSet::new(),
        });
        id
    }

    /// Puts another disk in the place of one.
    pub fn replace_disk(&self, disk: usize, number: u128) {
        self.inner.lock().unwrap().disks[disk].id = DiskId(Uuid::from_u128(number));
    }

    /// The guest writes these bytes.
    pub fn write(&self, disk: usize, offset: usize, data: &[u8]) {
        self.inner.lock().unwrap().write(disk, offset, data);
    }

    /// Somebody writes to an image while the VM is off: no tracker sees it, only the file does.
    pub fn edit_image(&self, disk: usize, offset: usize, value: u8) {
        let mut inner = self.inner.lock().unwrap();
        assert!(!inner.running);
        inner.disks[disk].data[offset] = value;
        inner.disks[disk].allocated.insert(offset / BLOCK);
        let path = inner.disks[disk].path.clone();
        drop(inner);
        std::fs::write(path, format!("an image with {value} at {offset}")).unwrap();
    }

    /// Lets there be image files beside which logs lie.
    pub fn make_image_files(&self) {
        for path in self.disk_paths() {
            std::fs::write(path, "an image").unwrap();
        }
    }

    pub fn save_raw(&self, disk: usize, path: &Path) {
        std::fs::write(path, &self.inner.lock().unwrap().disks[disk].data).unwrap();
    }

    /// 4 KiB blocks that differ between two freezes.
    pub fn differing_bytes(&self, before: i64, after: i64) -> u64 {
        let inner = self.inner.lock().unwrap();
        let disks = inner.history[&before].iter().zip(&inner.history[&after]);
        disks
            .flat_map(|(a, b)| a.chunks(4096).zip(b.chunks(4096)))
            .filter(|(a, b)| a != b)
            .map(|(_, b)| b.len() as u64)
            .sum()
    }

    pub fn fail_reads(&self, fail: bool) {
        self.inner.lock().unwrap().fail_reads = fail;
    }

    /// From now on change tracking leaves one changed block out of each answer.
    pub fn be_forgetful(&self) {
        self.inner.lock().unwrap().forgetful = true;
    }

    /// The next freeze can't tell what changed on one disk, and can on the others.
    pub fn lose_tracking_of(&self, disk: usize) {
        self.inner.lock().unwrap().forgotten_disk = Some(disk);
    }

    pub fn is_frozen(&self) -> bool {
        self.inner.lock().unwrap().frozen
    }

    pub fn tracking_count(&self) -> usize {
        self.inner.lock().unwrap().tracking.len()
    }

    pub fn read_bytes(&self) -> u64 {
        self.inner.lock().unwrap().read_bytes
    }

    pub fn now(&self) -> i64 {
        self.inner.lock().unwrap().clock
    }

    pub fn allocated_bytes(&self) -> u64 {
        let inner = self.inner.lock().unwrap();
        inner
            .disks
            .iter()
            .map(|disk| (disk.allocated.len() * BLOCK) as u64)
            .sum()
    }

    pub fn total_bytes(&self) -> u64 {
        self.inner
            .lock()
            .unwrap()
            .disks
            .iter()
            .map(|disk| disk.data.len() as u64)
            .sum()
    }
}

impl Inner {
    fn guest_writes(&mut self) {
        let disk = self.random.below(self.disks.len() as u64) as usize;
        let blocks = self.disks[disk].data.len() / BLOCK;
        // A third of the disk stays untouched for ever, so that allocation matters.
        let block = self.random.below((blocks * 2 / 3) as u64) as usize;
        let offset = block * BLOCK + (self.random.below(120) as usize) * 512;
        let value = if self.random.chance(15) {
            0
        } else {
            self.random.below(256) as u8
        };
        let length = 512 * (1 + self.random.below(8) as usize);
        self.write(disk, offset, &vec![value; length]);
    }

    fn write(&mut self, disk: usize, offset: usize, data: &[u8]) {
        let length = data.len();
        self.disks[disk].data[offset..offset + length].copy_from_slice(data);
        let blocks = offset / BLOCK..=(offset + length - 1) / BLOCK;
        for block in blocks {
            self.disks[disk].allocated.insert(block);
            if let Some((_, dirty, _)) = self.tracking.last_mut() {
                dirty.insert((disk, block));
            }
            if let Some(mut newest) = self.written.last_entry() {
                newest.get_mut().insert((disk, block));
            }
        }
    }
}

fn error(kind: ErrorKind) -> HypervisorError {
    HypervisorError::new(kind, format!("{kind:?}"))
}

impl FakeHost {
    fn freeze_when(
        &self,
        running: bool,
        vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
    ) -> Result<FrozenPoint, HypervisorError> {
        let mut inner = self.inner.lock().unwrap();
        if vm != self.vm {
            return Err(error(ErrorKind::VmNotFound));
        }
        match (inner.running, running) {
            (false, true) => return Err(error(ErrorKind::VmNotRunning)),
            (true, false) => return Err(error(ErrorKind::VmRunning)),
            _ => {}
        }
        if inner.frozen {
            return Err(error(ErrorKind::Busy));
        }
        assert!(
            inner.tracking.iter().all(|(id, ..)| *id < next),
            "tracking ids must grow"
        );
        inner.frozen = true;
        inner.clock += 1000;
        let taken_unix_ms = inner.clock;
        let snapshot: Vec<Arc<Vec<u8>>> = inner
            .disks
            .iter()
            .map(|disk| Arc::new(disk.data.clone()))
            .collect();
        inner.history.insert(taken_unix_ms, snapshot.clone());
        inner.written.insert(taken_unix_ms, BTreeSet::new());
        let from = since.and_then(|since| inner.tracking.iter().position(|(id, ..)| *id == since));
        let tracked_disks = from.map_or(0, |from| inner.tracking[from].2);
        let dirty: Option<BTreeSet<(usize, usize)>> = from.map(|from| {
            inner.tracking[from..]
                .iter()
                .flat_map(|(_, blocks, _)| blocks.iter().copied())
                .collect()
        });
        let dirty = dirty.map(|mut dirty| {
            if inner.forgetful {
                dirty.pop_first();
            }
            dirty
        });
        let forgotten = inner.forgotten_disk.take();
        let disk_count = inner.disks.len();
        inner.tracking.push((next, BTreeSet::new(), disk_count));
        let frozen = disks
            .iter()
            .map(|id| {
                let index = inner
                    .disks
                    .iter()
                    .position(|disk| disk.id == *id)
                    .ok_or_else(|| error(ErrorKind::DiskNotFound))?;
                let extents = |blocks: Vec<usize>| {
                    blocks
                        .into_iter()
                        .map(|block| Extent {
                            offset: (block * BLOCK) as u64,
                            length: BLOCK as u64,
                        })
                        .collect::<Vec<_>>()
                };
                Ok(FrozenDisk {
                    disk: *id,
                    size_bytes: inner.disks[index].data.len() as u64,
                    changes: match dirty
                        .as_ref()
                        .filter(|_| forgotten != Some(index) && index < tracked_disks)
                    {
                        Some(dirty) => Changes::Since(extents(
                            dirty
                                .iter()
                                .filter(|(disk, _)| *disk == index)
                                .map(|(_, block)| *block)
                                .collect(),
                        )),
                        None => Changes::Unknown,
                    },
                    allocated: extents(inner.disks[index].allocated.iter().copied().collect()),
                    reader: Box::new(Reader {
                        inner: self.inner.clone(),
                        data: snapshot[index].clone(),
                    }),
                })
            })
            .collect::<Result<Vec<_>, HypervisorError>>()?;
        Ok(FrozenPoint {
            vm,
            taken_unix_ms,
            tracking: next,
            quiescence: hypervisor::Quiescence::NotAsked,
            pause: std::time::Duration::ZERO,
            disks: frozen,
        })
    }
}

#[async_trait]
impl Hypervisor for FakeHost {
    async fn host(&self) -> Result<HostFacts, HypervisorError> {
        Ok(HostFacts {
            name: "fake".to_owned(),
            operating_system: "memory".to_owned(),
            hypervisor: "qemu".to_owned(),
            hypervisor_version: String::new(),
            free_bytes: 1 << 40,
            accelerated: false,
        })
    }

    async fn virtual_machines(&self) -> Result<Vec<VirtualMachine>, HypervisorError> {
        let mut inner = self.inner.lock().unwrap();
        inner.inventories += 1;
        Ok(vec![VirtualMachine {
            id: self.vm,
            name: "web01".to_owned(),
            generation: Generation::Two,
            processors: 2,
            memory_bytes: 1 << 29,
            os_type: "Linux".to_owned(),
            power_state: if inner.running {
                PowerState::Running
            } else {
                PowerState::Off
            },
            disks: inner
                .disks
                .iter()
                .enumerate()
                .map(|(number, disk)| VirtualDisk {
                    id: disk.id,
                    name: disk
                        .path
                        .file_name()
                        .unwrap()
                        .to_string_lossy()
                        .into_owned(),
                    size_bytes: disk.data.len() as u64,
                    operating_system: number == 0,
                })
                .collect(),
            network_adapters: Vec::new(),
            findings: Vec::new(),
        }])
    }

    async fn power_state(&self, vm: VmId) -> Result<PowerState, HypervisorError> {
        if vm != self.vm {
            return Err(HypervisorError::new(ErrorKind::VmNotFound, "no such VM"));
        }
        Ok(if self.is_running() {
            PowerState::Running
        } else {
            PowerState::Off
        })
    }

    async fn freeze(
        &self,
        vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
        _consistency: hypervisor::Consistency,
    ) -> Result<FrozenPoint, HypervisorError> {
        self.freeze_when(true, vm, disks, since, next)
    }

    async fn freeze_off(
        &self,
        vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
    ) -> Result<FrozenPoint, HypervisorError> {
        self.freeze_when(false, vm, disks, since, next)
    }

    async fn release(&self, _point: FrozenPoint) -> Result<(), HypervisorError> {
        self.inner.lock().unwrap().frozen = false;
        Ok(())
    }

    async fn tracking(&self, _vm: VmId) -> Result<Vec<TrackingId>, HypervisorError> {
        Ok(self
            .inner
            .lock()
            .unwrap()
            .tracking
            .iter()
            .map(|(id, ..)| *id)
            .collect())
    }

    async fn forget(&self, _vm: VmId, older_than: TrackingId) -> Result<(), HypervisorError> {
        self.inner
            .lock()
            .unwrap()
            .tracking
            .retain(|(id, ..)| *id >= older_than);
        Ok(())
    }

    async fn forget_all(&self, _vm: VmId) -> Result<(), HypervisorError> {
        self.inner.lock().unwrap().tracking.clear();
        Ok(())
    }

    async fn clean_up(&self, _vm: VmId) -> Result<(), HypervisorError> {
        self.inner.lock().unwrap().frozen = false;
        Ok(())
    }

    async fn disk_path(&self, _vm: VmId, disk: DiskId) -> Result<PathBuf, HypervisorError> {
        let inner = self.inner.lock().unwrap();
        let found = inner.disks.iter().find(|found| found.id == disk);
        found
            .map(|disk| disk.path.clone())
            .ok_or_else(|| error(ErrorKind::DiskNotFound))
    }

    async fn start(&self, _vm: VmId) -> Result<(), HypervisorError> {
        self.starts_go_on().await;
        self.power_on();
        Ok(())
    }

    async fn stop(&self, _vm: VmId, how: Stop) -> Result<(), HypervisorError> {
        self.power_off(how).await
    }

    async fn create(&self, _vm: NewVirtualMachine) -> Result<(), HypervisorError> {
        Err(error(ErrorKind::InvalidRequest))
    }

    async fn remove(&self, _vm: VmId) -> Result<(), HypervisorError> {
        Ok(())
    }

    async fn console(&self, _vm: VmId) -> Result<PathBuf, HypervisorError> {
        Err(error(ErrorKind::VmNotFound))
    }
}
