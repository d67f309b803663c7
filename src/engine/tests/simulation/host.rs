//! A host in memory with several VMs. It remembers what every disk held at every freeze, and it can do all
//! that makes a real host hard: lose bitmaps, restart VMs, grow and add disks, leave questions unanswered.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hypervisor::{
    Changes, Consistency, DiskId, ErrorKind, Extent, FreezeRequest, FrozenDisk, FrozenPoint,
    FrozenReader, Generation, GroupFreezeError, HostFacts, Hypervisor, HypervisorError,
    NewVirtualMachine, PowerState, QuiesceReason, Quiescence, Stop, TrackingId, VirtualDisk,
    VirtualMachine, VmId,
};
use uuid::Uuid;

use super::clock::Clock;
use super::faults::Random;
use super::trace::Trace;

pub const BLOCK: usize = 64 << 10;
const PAGE: usize = 4096;

struct Disk {
    id: DiskId,
    path: PathBuf,
    data: Vec<u8>,
    allocated: BTreeSet<usize>,
    /// The next freeze can't tell what changed on it.
    forgotten: bool,
}

struct Interval {
    id: TrackingId,
    blocks: BTreeSet<(DiskId, usize)>,
}

struct Machine {
    id: VmId,
    name: String,
    disks: Vec<Disk>,
    running: bool,
    /// Counts the points that were frozen; `Some` while one is.
    frozen: Option<u64>,
    tracking: Vec<Interval>,
    agent_answers: bool,
}

/// What the disks of a VM held at a freeze.
pub struct Snapshot {
    pub disks: BTreeMap<DiskId, Arc<Vec<u8>>>,
    /// Freezes of several VMs at one instant share it.
    pub instant: u64,
    pub confirmed: bool,
}

struct Inner {
    machines: Vec<Machine>,
    history: BTreeMap<(VmId, i64), Arc<Snapshot>>,
    instants: u64,
    points: u64,
    next_disk: u128,
    random: Random,
    fail_reads: bool,
}

pub struct SimHost {
    folder: PathBuf,
    clock: Clock,
    trace: Trace,
    inner: Arc<Mutex<Inner>>,
}

impl SimHost {
    pub fn new(folder: PathBuf, seed: u64, clock: Clock, trace: Trace) -> Self {
        std::fs::create_dir_all(&folder).unwrap();
        let host = Self {
            folder,
            clock,
            trace,
            inner: Arc::new(Mutex::new(Inner {
                machines: Vec::new(),
                history: BTreeMap::new(),
                instants: 0,
                points: 0,
                next_disk: 1,
                random: Random::new(seed ^ 0xABCD),
                fail_reads: false,
            })),
        };
        for (number, blocks) in [(1u128, [12, 9].as_slice()), (2, &[8])] {
            let mut inner = host.lock();
            inner.machines.push(Machine {
                id: VmId(Uuid::from_u128(0xA0 + number)),
                name: format!("web{number:02}"),
                disks: Vec::new(),
                running: true,
                frozen: None,
                tracking: Vec::new(),
                agent_answers: true,
            });
            let machine = inner.machines.len() - 1;
            drop(inner);
            for blocks in blocks {
                host.add_disk(machine, *blocks);
            }
        }
        for _ in 0..40 {
            host.guest_writes();
        }
        host
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn machines(&self) -> Vec<(VmId, String)> {
        let inner = self.lock();
        inner
            .machines
            .iter()
            .map(|machine| (machine.id, machine.name.clone()))
            .collect()
    }

    pub fn disks(&self, machine: usize) -> Vec<DiskId> {
        let inner = self.lock();
        let disks = inner.machines[machine].disks.iter();
        disks.map(|disk| disk.id).collect()
    }

    /// One random write, as the guests do them all the time.
    pub fn guest_writes(&self) {
        self.lock().guest_writes();
    }

    /// QEMU ends and is started again: memory of changes is lost.
    pub fn restart(&self, machine: usize) {
        let mut inner = self.lock();
        let machine = &mut inner.machines[machine];
        machine.tracking.clear();
        machine.frozen = None;
        machine.running = true;
    }

    pub fn turn_off(&self, machine: usize) {
        let mut inner = self.lock();
        let machine = &mut inner.machines[machine];
        machine.tracking.clear();
        machine.frozen = None;
        machine.running = false;
    }

    pub fn fail_reads(&self, fail: bool) {
        self.lock().fail_reads = fail;
    }

    pub fn agent_answers(&self, machine: usize, answers: bool) {
        self.lock().machines[machine].agent_answers = answers;
    }

    /// The next freeze can't tell what changed on one disk, and can on the others.
    pub fn lose_bitmap(&self, machine: usize, disk: usize) {
        let mut inner = self.lock();
        let disks = &mut inner.machines[machine].disks;
        let disk = disk % disks.len();
        disks[disk].forgotten = true;
    }

    pub fn add_disk(&self, machine: usize, blocks: usize) {
        let mut inner = self.lock();
        let id = DiskId(Uuid::from_u128(0xD0_0000 + inner.next_disk));
        let path = self.folder.join(format!("disk{}.vhdx", inner.next_disk));
        inner.next_disk += 1;
        inner.machines[machine].disks.push(Disk {
            id,
            path,
            data: vec![0; blocks * BLOCK],
            allocated: BTreeSet::new(),
            forgotten: false,
        });
    }

    /// As an image is grown: the VM is off for it, what tracked it is gone.
    pub fn grow(&self, machine: usize, disk: usize, blocks: usize) {
        self.turn_off(machine);
        let mut inner = self.lock();
        let machine = &mut inner.machines[machine];
        let disk = disk % machine.disks.len();
        let length = machine.disks[disk].data.len() + blocks * BLOCK;
        machine.disks[disk].data.resize(length, 0);
        machine.running = true;
    }

    pub fn is_frozen(&self) -> bool {
        let inner = self.lock();
        inner
            .machines
            .iter()
            .any(|machine| machine.frozen.is_some())
    }

    /// The freeze that a point names.
    pub fn snapshot(&self, vm: VmId, taken_unix_ms: i64) -> Option<Arc<Snapshot>> {
        self.lock().history.get(&(vm, taken_unix_ms)).cloned()
    }

    /// Freezes all of them or none, at one instant.
    fn freeze_all(
        &self,
        requests: &[FreezeRequest],
        consistency: Consistency,
    ) -> Result<Vec<FrozenPoint>, (VmId, ErrorKind)> {
        let mut inner = self.lock();
        for request in requests {
            let machine = inner.machines.iter().find(|m| m.id == request.vm);
            let Some(machine) = machine else {
                return Err((request.vm, ErrorKind::VmNotFound));
            };
            if !machine.running {
                return Err((request.vm, ErrorKind::VmNotRunning));
            }
            if machine.frozen.is_some() {
                return Err((request.vm, ErrorKind::Busy));
            }
            if request
                .disks
                .iter()
                .any(|id| machine.disks.iter().all(|disk| disk.id != *id))
            {
                return Err((request.vm, ErrorKind::DiskNotFound));
            }
            if machine.tracking.iter().any(|i| i.id >= request.next) {
                return Err((request.vm, ErrorKind::InvalidRequest));
            }
        }
        inner.instants += 1;
        let instant = inner.instants;
        let mut taken = self.clock.now();
        // A clock that was set back does not make two instants one.
        while requests
            .iter()
            .any(|request| inner.history.contains_key(&(request.vm, taken)))
        {
            taken += 1;
        }
        Ok(requests
            .iter()
            .map(|request| self.freeze_one(&mut inner, request, consistency, instant, taken))
            .collect())
    }

    fn freeze_one(
        &self,
        inner: &mut Inner,
        request: &FreezeRequest,
        consistency: Consistency,
        instant: u64,
        taken_unix_ms: i64,
    ) -> FrozenPoint {
        inner.points += 1;
        let point = inner.points;
        let machine = inner
            .machines
            .iter_mut()
            .find(|machine| machine.id == request.vm)
            .unwrap();
        machine.frozen = Some(point);
        let quiescence = match consistency {
            Consistency::Crash => Quiescence::NotAsked,
            Consistency::Application if machine.agent_answers => {
                Quiescence::Confirmed { file_systems: 1 }
            }
            Consistency::Application => Quiescence::NotConfirmed {
                reason: QuiesceReason::Timeout,
                text: "the guest agent did not answer".to_owned(),
            },
        };
        let data: BTreeMap<DiskId, Arc<Vec<u8>>> = machine
            .disks
            .iter()
            .map(|disk| (disk.id, Arc::new(disk.data.clone())))
            .collect();
        let from = request
            .since
            .and_then(|since| machine.tracking.iter().position(|i| i.id == since));
        let dirty: Option<BTreeSet<(DiskId, usize)>> = from.map(|from| {
            let intervals = machine.tracking[from..].iter();
            intervals.flat_map(|i| i.blocks.iter().copied()).collect()
        });
        machine.tracking.push(Interval {
            id: request.next,
            blocks: BTreeSet::new(),
        });
        let disks = request
            .disks
            .iter()
            .map(|id| {
                let disk = machine
                    .disks
                    .iter_mut()
                    .find(|disk| disk.id == *id)
                    .unwrap();
                let forgotten = std::mem::take(&mut disk.forgotten);
                let changes = match dirty.as_ref().filter(|_| !forgotten) {
                    Some(dirty) => Changes::Since(extents(
                        dirty
                            .iter()
                            .filter(|(of, _)| of == id)
                            .map(|(_, block)| *block),
                    )),
                    None => Changes::Unknown,
                };
                FrozenDisk {
                    disk: *id,
                    size_bytes: disk.data.len() as u64,
                    changes,
                    allocated: extents(disk.allocated.iter().copied()),
                    reader: Box::new(Reader {
                        inner: self.inner.clone(),
                        vm: request.vm,
                        point,
                        data: data[id].clone(),
                    }),
                }
            })
            .collect();
        let snapshot = Arc::new(Snapshot {
            disks: data,
            instant,
            confirmed: quiescence.is_confirmed(),
        });
        let name = machine.name.clone();
        inner.history.insert((request.vm, taken_unix_ms), snapshot);
        self.trace.event(&format!(
            "freeze {name} {:?} disks, {consistency:?}, since {:?}, at {taken_unix_ms}",
            request.disks.len(),
            request.since.map(|since| (since.generation, since.number)),
        ));
        FrozenPoint {
            vm: request.vm,
            taken_unix_ms,
            tracking: request.next,
            quiescence,
            pause: Duration::ZERO,
            disks,
        }
    }

    fn with<T>(
        &self,
        vm: VmId,
        act: impl FnOnce(&mut Machine) -> Result<T, HypervisorError>,
    ) -> Result<T, HypervisorError> {
        let mut inner = self.lock();
        match inner.machines.iter_mut().find(|machine| machine.id == vm) {
            Some(machine) => act(machine),
            None => Err(error(ErrorKind::VmNotFound)),
        }
    }
}

fn extents(blocks: impl Iterator<Item = usize>) -> Vec<Extent> {
    blocks
        .map(|block| Extent {
            offset: (block * BLOCK) as u64,
            length: BLOCK as u64,
        })
        .collect()
}

impl Inner {
    fn guest_writes(&mut self) {
        let machine = self.random.below(self.machines.len() as u64) as usize;
        let machine = &mut self.machines[machine];
        if !machine.running {
            return;
        }
        let disk = self.random.below(machine.disks.len() as u64) as usize;
        let disk = &mut machine.disks[disk];
        let blocks = disk.data.len() / BLOCK;
        // A third of the disk stays untouched for ever, so that allocation matters.
        let block = self.random.below((blocks * 2 / 3).max(1) as u64) as usize;
        let offset = block * BLOCK + self.random.below(120) as usize * 512;
        let value = match self.random.below(100) {
            0..15 => 0,
            _ => self.random.below(256) as u8,
        };
        let length = match self.random.below(10) {
            // Whole pages, so that some become zero.
            0..3 => PAGE * (1 + self.random.below(2) as usize),
            _ => 512 * (1 + self.random.below(8) as usize),
        };
        let end = (offset + length).min(disk.data.len());
        disk.data[offset..end].fill(value);
        for block in offset / BLOCK..=(end - 1) / BLOCK {
            disk.allocated.insert(block);
            if let Some(newest) = machine.tracking.last_mut() {
                newest.blocks.insert((disk.id, block));
            }
        }
    }
}

struct Reader {
    inner: Arc<Mutex<Inner>>,
    vm: VmId,
    point: u64,
    data: Arc<Vec<u8>>,
}

#[async_trait]
impl FrozenReader for Reader {
    async fn read(&self, offset: u64, length: usize) -> Result<Bytes, HypervisorError> {
        tokio::task::yield_now().await;
        let mut inner = self.inner.lock().unwrap();
        let held = inner
            .machines
            .iter()
            .any(|machine| machine.id == self.vm && machine.frozen == Some(self.point));
        if inner.fail_reads || !held {
            // Taken away by a restart of the VM, or by another engine that cleaned up.
            return Err(error(ErrorKind::Io));
        }
        // The guests do not stop for us.
        inner.guest_writes();
        let start = offset as usize;
        Ok(Bytes::copy_from_slice(&self.data[start..start + length]))
    }
}

fn error(kind: ErrorKind) -> HypervisorError {
    HypervisorError::new(kind, format!("{kind:?}"))
}

#[async_trait]
impl Hypervisor for SimHost {
    async fn host(&self) -> Result<HostFacts, HypervisorError> {
        Ok(HostFacts {
            name: "simulated".to_owned(),
            operating_system: "memory".to_owned(),
            hypervisor: "qemu".to_owned(),
            hypervisor_version: String::new(),
            free_bytes: 1 << 40,
            accelerated: false,
        })
    }

    async fn virtual_machines(&self) -> Result<Vec<VirtualMachine>, HypervisorError> {
        let inner = self.lock();
        let machines = inner.machines.iter().map(|machine| VirtualMachine {
            id: machine.id,
            name: machine.name.clone(),
            generation: Generation::Two,
            processors: 2,
            memory_bytes: 1 << 29,
            os_type: "Linux".to_owned(),
            power_state: if machine.running {
                PowerState::Running
            } else {
                PowerState::Off
            },
            disks: machine
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
        });
        Ok(machines.collect())
    }

    async fn freeze(
        &self,
        vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
        consistency: Consistency,
    ) -> Result<FrozenPoint, HypervisorError> {
        let disks = disks.to_vec();
        let request = FreezeRequest {
            vm,
            disks,
            since,
            next,
        };
        match self.freeze_all(&[request], consistency) {
            Ok(mut points) => points.pop().ok_or_else(|| error(ErrorKind::InvalidRequest)),
            Err((_, kind)) => Err(error(kind)),
        }
    }

    async fn freeze_group(
        &self,
        members: &[FreezeRequest],
        consistency: Consistency,
    ) -> Result<Vec<FrozenPoint>, GroupFreezeError> {
        self.trace.inject("group freezes");
        self.freeze_all(members, consistency)
            .map_err(|(vm, kind)| GroupFreezeError {
                vm: Some(vm),
                source: error(kind),
            })
    }

    async fn release(&self, point: FrozenPoint) -> Result<(), HypervisorError> {
        self.with(point.vm, |machine| {
            machine.frozen = None;
            Ok(())
        })
    }

    async fn tracking(&self, vm: VmId) -> Result<Vec<TrackingId>, HypervisorError> {
        self.with(vm, |machine| {
            Ok(machine
                .tracking
                .iter()
                .map(|interval| interval.id)
                .collect())
        })
    }

    async fn forget(&self, vm: VmId, older_than: TrackingId) -> Result<(), HypervisorError> {
        self.with(vm, |machine| {
            machine
                .tracking
                .retain(|interval| interval.id >= older_than);
            Ok(())
        })
    }

    async fn forget_all(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.with(vm, |machine| {
            machine.tracking.clear();
            Ok(())
        })
    }

    async fn clean_up(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.with(vm, |machine| {
            machine.frozen = None;
            Ok(())
        })
    }

    async fn disk_path(&self, vm: VmId, disk: DiskId) -> Result<PathBuf, HypervisorError> {
        self.with(vm, |machine| {
            let found = machine.disks.iter().find(|found| found.id == disk);
            found
                .map(|disk| disk.path.clone())
                .ok_or_else(|| error(ErrorKind::DiskNotFound))
        })
    }

    async fn start(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.with(vm, |machine| {
            machine.running = true;
            Ok(())
        })
    }

    async fn stop(&self, vm: VmId, _how: Stop) -> Result<(), HypervisorError> {
        self.with(vm, |machine| {
            machine.running = false;
            Ok(())
        })
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
