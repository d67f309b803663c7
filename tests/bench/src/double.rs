//! A host whose guest writes when the benchmark says so, and whose change tracking counts 64 KiB, as QEMU's does.
//!
//! One VM with raw image files. Nothing writes while a point is frozen, so the files themselves are the frozen view: what
//! is measured is the engine, not a hypervisor's copying of old data.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use disk_image::{Access, DiskImage, ImageFile as _};
use hypervisor::{
    Changes, Consistency, DiskId, ErrorKind, Extent, ExtentSet, FrozenDisk, FrozenPoint,
    FrozenReader, Generation, HostFacts, Hypervisor, HypervisorError, NewVirtualMachine,
    PowerState, Quiescence, Stop, TrackingId, VirtualDisk, VirtualMachine, VmId,
};
use uuid::Uuid;

use crate::data::Write;

const GRANULE: u64 = 64 << 10;

/// The host.
pub struct TrackedFiles {
    vm: VmId,
    disks: Vec<Disk>,
    state: Mutex<State>,
}

struct Disk {
    id: DiskId,
    path: PathBuf,
    size: u64,
    file: Arc<File>,
}

#[derive(Default)]
struct State {
    frozen: bool,
    /// Where each disk has data.
    allocated: Vec<ExtentSet>,
    /// Granules that were written since each instant, oldest first.
    intervals: Vec<(TrackingId, BTreeSet<(usize, u64)>)>,
    clock: i64,
}

impl TrackedFiles {
    /// One VM with these raw images.
    pub fn new(paths: &[PathBuf]) -> Result<Self> {
        let mut disks = Vec::new();
        let mut allocated = Vec::new();
        for (number, path) in (1u128..).zip(paths) {
            let image = DiskImage::open(path, Access::ReadOnly)
                .with_context(|| format!("open {}", path.display()))?;
            let size = image.virtual_size();
            let extents = image.allocated(0..size);
            allocated.push(ExtentSet::from_unsorted(
                extents
                    .iter()
                    .map(|extent| Extent {
                        offset: extent.offset,
                        length: extent.length,
                    })
                    .collect(),
            ));
            disks.push(Disk {
                id: DiskId(Uuid::from_u128(number)),
                path: path.clone(),
                size,
                file: Arc::new(File::options().read(true).write(true).open(path)?),
            });
        }
        Ok(Self {
            vm: VmId(Uuid::from_u128(0x0b)),
            disks,
            state: Mutex::new(State {
                allocated,
                clock: 1_700_000_000_000,
                ..State::default()
            }),
        })
    }

    /// The VM.
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// Its disks.
    pub fn disk_ids(&self) -> Vec<DiskId> {
        self.disks.iter().map(|disk| disk.id).collect()
    }

    /// Image of a disk.
    pub fn path(&self, disk: usize) -> &Path {
        &self.disks[disk].path
    }

    /// The guest writes.
    pub fn write(&self, disk: usize, writes: &[Write]) -> Result<()> {
        let mut state = self.lock();
        ensure!(!state.frozen, "nothing is written while a point is frozen");
        let mut new = Vec::with_capacity(writes.len());
        for write in writes {
            self.disks[disk].file.write_at(&write.data, write.offset)?;
            let range = Extent {
                offset: write.offset,
                length: write.data.len() as u64,
            };
            new.push(range);
            if let Some((_, dirty)) = state.intervals.last_mut() {
                dirty.extend(
                    (range.offset / GRANULE..range.end().div_ceil(GRANULE))
                        .map(|granule| (disk, granule)),
                );
            }
        }
        state.allocated[disk] = state.allocated[disk].union(&ExtentSet::from_unsorted(new));
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(&self, id: DiskId) -> Result<usize, HypervisorError> {
        self.disks
            .iter()
            .position(|disk| disk.id == id)
            .ok_or_else(|| HypervisorError::new(ErrorKind::DiskNotFound, format!("disk {id}")))
    }
}

struct Reader(Arc<File>);

#[async_trait]
impl FrozenReader for Reader {
    async fn read(&self, offset: u64, length: usize) -> Result<Bytes, HypervisorError> {
        let file = self.0.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; length];
            file.read_at(&mut buffer, offset).map(|()| buffer)
        });
        let failed = |error: std::io::Error| {
            HypervisorError::with_source(ErrorKind::Io, "read a raw image", error)
        };
        let buffer = read
            .await
            .map_err(|error| failed(std::io::Error::other(error)))?
            .map_err(failed)?;
        Ok(Bytes::from(buffer))
    }
}

fn nothing(doing: &str) -> HypervisorError {
    HypervisorError::new(ErrorKind::Refused, doing)
}

#[async_trait]
impl Hypervisor for TrackedFiles {
    async fn host(&self) -> Result<HostFacts, HypervisorError> {
        Ok(HostFacts {
            name: "bench".to_owned(),
            operating_system: String::new(),
            hypervisor: "files".to_owned(),
            hypervisor_version: String::new(),
            free_bytes: 1 << 40,
            accelerated: false,
        })
    }

    async fn virtual_machines(&self) -> Result<Vec<VirtualMachine>, HypervisorError> {
        Ok(vec![VirtualMachine {
            id: self.vm,
            name: "bench".to_owned(),
            generation: Generation::Two,
            processors: 1,
            memory_bytes: 1 << 30,
            os_type: String::new(),
            power_state: PowerState::Running,
            disks: self
                .disks
                .iter()
                .enumerate()
                .map(|(number, disk)| VirtualDisk {
                    id: disk.id,
                    name: format!("disk{number}.raw"),
                    size_bytes: disk.size,
                    operating_system: number == 0,
                })
                .collect(),
            network_adapters: Vec::new(),
            findings: Vec::new(),
        }])
    }

    async fn freeze(
        &self,
        _vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
        _consistency: Consistency,
    ) -> Result<FrozenPoint, HypervisorError> {
        let wanted = disks
            .iter()
            .map(|id| self.disk(*id))
            .collect::<Result<Vec<_>, _>>()?;
        let mut state = self.lock();
        if state.frozen {
            return Err(HypervisorError::new(ErrorKind::Busy, "freeze"));
        }
        state.frozen = true;
        state.clock += 1000;
        let from = state
            .intervals
            .iter()
            .position(|(id, _)| Some(*id) == since);
        let dirty: Option<BTreeSet<(usize, u64)>> = from.map(|from| {
            state.intervals[from..]
                .iter()
                .flat_map(|(_, granules)| granules.iter().copied())
                .collect()
        });
        state.intervals.push((next, BTreeSet::new()));
        let frozen = wanted
            .into_iter()
            .map(|at| {
                let disk = &self.disks[at];
                let changes = dirty.as_ref().map_or(Changes::Unknown, |dirty| {
                    let granules = dirty
                        .range((at, 0)..=(at, u64::MAX))
                        .map(|(_, granule)| Extent {
                            offset: granule * GRANULE,
                            length: GRANULE.min(disk.size - granule * GRANULE),
                        })
                        .collect();
                    Changes::Since(ExtentSet::from_unsorted(granules).into_vec())
                });
                FrozenDisk {
                    disk: disk.id,
                    size_bytes: disk.size,
                    changes,
                    allocated: state.allocated[at].as_slice().to_vec(),
                    reader: Box::new(Reader(disk.file.clone())),
                }
            })
            .collect();
        Ok(FrozenPoint {
            vm: self.vm,
            taken_unix_ms: state.clock,
            tracking: next,
            quiescence: Quiescence::NotAsked,
            pause: Duration::ZERO,
            disks: frozen,
        })
    }

    async fn release(&self, _point: FrozenPoint) -> Result<(), HypervisorError> {
        self.lock().frozen = false;
        Ok(())
    }

    async fn tracking(&self, _vm: VmId) -> Result<Vec<TrackingId>, HypervisorError> {
        Ok(self.lock().intervals.iter().map(|(id, _)| *id).collect())
    }

    async fn forget(&self, _vm: VmId, older_than: TrackingId) -> Result<(), HypervisorError> {
        self.lock().intervals.retain(|(id, _)| *id >= older_than);
        Ok(())
    }

    async fn forget_all(&self, _vm: VmId) -> Result<(), HypervisorError> {
        self.lock().intervals.clear();
        Ok(())
    }

    async fn clean_up(&self, _vm: VmId) -> Result<(), HypervisorError> {
        self.lock().frozen = false;
        Ok(())
    }

    async fn disk_path(&self, _vm: VmId, disk: DiskId) -> Result<PathBuf, HypervisorError> {
        Ok(self.disks[self.disk(disk)?].path.clone())
    }

    async fn start(&self, _vm: VmId) -> Result<(), HypervisorError> {
        Ok(())
    }

    async fn stop(&self, _vm: VmId, _how: Stop) -> Result<(), HypervisorError> {
        Err(nothing("stop"))
    }

    async fn create(&self, _vm: NewVirtualMachine) -> Result<(), HypervisorError> {
        Err(nothing("create"))
    }

    async fn remove(&self, _vm: VmId) -> Result<(), HypervisorError> {
        Err(nothing("remove"))
    }

    async fn console(&self, _vm: VmId) -> Result<PathBuf, HypervisorError> {
        Err(nothing("console"))
    }
}
