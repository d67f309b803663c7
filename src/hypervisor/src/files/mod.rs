//! Driver `files`: VMs that are off, as image files in a folder (see [`inventory`]).
//!
//! ```text
//!   freeze: nobody writes? ─► open every image ─► stamp of each file ─► reads check the stamp ─► release
//! ```
//!
//! Promise: what is read through a frozen point is what the files held at its instant, or the read fails: a file that
//! somebody begins to write is noticed by its stamp. Nothing runs here and nobody records changes, so a changed file is
//! [`Changes::Unknown`] and the caller compares; a file whose stamp did not change since an instant that this driver
//! took has no changes since then.
//!
//! Used for offline copies, by the benches, and where no hypervisor is at hand.

mod buffers;
mod inventory;
mod stamp;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use disk_image::DiskImage;

use crate::{
    Changes, Consistency, DiskId, ErrorKind, Extent, FreezeRequest, FrozenDisk, FrozenPoint,
    FrozenReader, GroupFreezeError, HostFacts, Hypervisor, HypervisorError, NewVirtualMachine,
    QuiesceReason, Quiescence, Stop, TrackingId, VirtualMachine, VmId,
};
use inventory::Listed;
use stamp::{CLOCK_STEP, Stamp, has_writer};

/// How often a file that was written a moment ago is looked at again before it counts as busy.
const QUIET_TRIES: usize = 20;

/// The driver. Cheap to make; holds nothing open between calls.
pub struct FilesDriver {
    root: PathBuf,
    state: Mutex<HashMap<VmId, State>>,
}

/// What is known of one VM.
#[derive(Default)]
struct State {
    frozen: Option<TrackingId>,
    /// Instants, oldest first, with the stamps of the files then.
    instants: Vec<(TrackingId, HashMap<DiskId, Vec<Stamp>>)>,
}

impl FilesDriver {
    /// For the images below the folder `root`, or for the image `root`.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] when there is no such file or folder.
    pub fn new(root: impl Into<PathBuf>) -> Result<Self, HypervisorError> {
        let root: PathBuf = root.into();
        let root = std::path::absolute(&root)
            .and_then(|root| std::fs::metadata(&root).map(|_| root))
            .map_err(|error| {
                HypervisorError::with_source(
                    ErrorKind::Missing,
                    format!("find image files at {}", root.display()),
                    error,
                )
            })?;
        Ok(Self {
            root,
            state: Mutex::default(),
        })
    }

    async fn survey(&self) -> Result<Vec<Listed>, HypervisorError> {
        let root = self.root.clone();
        let step = format!("list the image files at {}", root.display());
        blocking(&step, move || {
            inventory::survey(&root).map_err(|error| {
                HypervisorError::with_source(
                    ErrorKind::Io,
                    format!("list the image files at {}", root.display()),
                    error,
                )
            })
        })
        .await
    }

    async fn find(&self, vm: VmId, doing: &str) -> Result<Listed, HypervisorError> {
        self.survey()
            .await?
            .into_iter()
            .find(|listed| listed.vm.id == vm)
            .ok_or_else(|| {
                HypervisorError::new(
                    ErrorKind::VmNotFound,
                    format!("{doing} vm {vm}: no image files of it"),
                )
            })
    }

    /// One short look or change. Each is one call on the map, so a panic elsewhere leaves it whole.
    fn with<T>(&self, vm: VmId, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        act(state.entry(vm).or_default())
    }

    /// As if the point had never been frozen.
    fn give_up(&self, point: &FrozenPoint) {
        self.with(point.vm, |state| {
            state.instants.retain(|(id, _)| *id != point.tracking);
            state.frozen = None;
        });
    }

    /// Takes the place of the one frozen point.
    fn reserve(&self, vm: VmId, next: TrackingId, step: &str) -> Result<(), HypervisorError> {
        self.with(vm, |state| {
            if state.frozen.is_some() {
                return Err(HypervisorError::new(
                    ErrorKind::Busy,
                    format!("{step}: a point is frozen already"),
                ));
            }
            if let Some((newest, _)) = state.instants.last().filter(|(id, _)| *id >= next) {
                return Err(HypervisorError::new(
                    ErrorKind::InvalidRequest,
                    format!("{step}: tracking {next} is not above {newest}"),
                ));
            }
            state.frozen = Some(next);
            Ok(())
        })
    }
}

/// Gives the place back when freezing does not come to its end, also when the future is dropped.
struct Reservation<'a> {
    driver: &'a FilesDriver,
    vm: VmId,
    kept: bool,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.driver.with(self.vm, |state| state.frozen = None);
        }
    }
}

struct Opened {
    disk: DiskId,
    image: DiskImage,
    /// Of the image and of all that it stands on.
    files: Vec<(PathBuf, Stamp)>,
}

impl Opened {
    fn stamps(&self) -> Vec<Stamp> {
        self.files.iter().map(|(_, stamp)| *stamp).collect()
    }
}

/// Opens the images at an instant at which none of them is being written.
async fn open_quiet(
    step: &str,
    files: &[(DiskId, Vec<PathBuf>)],
) -> Result<Vec<Opened>, HypervisorError> {
    for _ in 0..QUIET_TRIES {
        let (work, name) = (files.to_vec(), step.to_owned());
        let opened = blocking(step, move || open_all(&name, &work)).await?;
        match opened {
            Some(opened) => return Ok(opened),
            // The file system's clock must move on before a write would show.
            None => tokio::time::sleep(CLOCK_STEP).await,
        }
    }
    Err(HypervisorError::new(
        ErrorKind::Busy,
        format!("{step}: its image files are being written; shut the vm down first"),
    ))
}

/// `None` = somebody wrote a moment ago.
fn open_all(
    step: &str,
    files: &[(DiskId, Vec<PathBuf>)],
) -> Result<Option<Vec<Opened>>, HypervisorError> {
    let failed = |path: &Path, error: std::io::Error| {
        HypervisorError::with_source(
            ErrorKind::Io,
            format!("{step}: read {}", path.display()),
            error,
        )
    };
    let mut opened = Vec::with_capacity(files.len());
    for (disk, chain) in files {
        let mut stamps = Vec::with_capacity(chain.len());
        for path in chain {
            let file = std::fs::File::open(path).map_err(|error| failed(path, error))?;
            if has_writer(&file) {
                return Err(HypervisorError::new(
                    ErrorKind::Busy,
                    format!(
                        "{step}: {} is open for writing, as by a running vm; shut it down, or replicate it with the driver of its hypervisor",
                        path.display()
                    ),
                ));
            }
            let stamp = Stamp::of(path).map_err(|error| failed(path, error))?;
            if !stamp.settled(SystemTime::now()) {
                return Ok(None);
            }
            stamps.push((path.clone(), stamp));
        }
        let newest = chain.first().map(PathBuf::as_path).unwrap_or(Path::new(""));
        let image = inventory::open(newest).map_err(|error| {
            HypervisorError::with_source(
                ErrorKind::Configuration,
                format!("{step}: open {}", newest.display()),
                error,
            )
        })?;
        opened.push(Opened {
            disk: *disk,
            image,
            files: stamps,
        });
    }
    // One instant over all: none of them has changed while the others were opened.
    for (path, stamp) in opened.iter().flat_map(|one| &one.files) {
        if Stamp::of(path).map_err(|error| failed(path, error))? != *stamp {
            return Ok(None);
        }
    }
    Ok(Some(opened))
}

async fn blocking<T: Send + 'static>(
    step: &str,
    work: impl FnOnce() -> Result<T, HypervisorError> + Send + 'static,
) -> Result<T, HypervisorError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(join) => Err(HypervisorError::with_source(
            ErrorKind::Io,
            format!("{step}: the work broke off"),
            join,
        )),
    }
}

/// Reads an image, and says so when it is not what it was.
struct Reader {
    inner: Arc<Inner>,
}

struct Inner {
    image: DiskImage,
    files: Vec<(PathBuf, Stamp)>,
}

impl Inner {
    fn read(&self, offset: u64, length: usize) -> Result<Bytes, HypervisorError> {
        let step = |path: &Path| format!("read {length} bytes at {offset} of {}", path.display());
        let failed = |path: &Path, error: Box<dyn std::error::Error + Send + Sync>| {
            HypervisorError::with_source(ErrorKind::Io, step(path), error)
        };
        let newest = self.files.first().map(|(path, _)| path.as_path());
        let mut buffer = buffers::take(length);
        self.image
            .read_at(buffer.as_mut(), offset)
            .map_err(|error| failed(newest.unwrap_or(Path::new("")), error.into()))?;
        // After the read: whatever was written before it shows now.
        for (path, stamp) in &self.files {
            if Stamp::of(path).map_err(|error| failed(path, error.into()))? != *stamp {
                return Err(HypervisorError::new(
                    ErrorKind::Busy,
                    format!("{}: the file was changed since the freeze", step(path)),
                ));
            }
        }
        Ok(Bytes::from_owner(buffer))
    }
}

#[async_trait]
impl FrozenReader for Reader {
    async fn read(&self, offset: u64, length: usize) -> Result<Bytes, HypervisorError> {
        let inner = self.inner.clone();
        blocking("read a frozen image", move || inner.read(offset, length)).await
    }
}

#[async_trait]
impl Hypervisor for FilesDriver {
    async fn host(&self) -> Result<HostFacts, HypervisorError> {
        Ok(HostFacts {
            name: String::new(),
            operating_system: std::env::consts::OS.to_owned(),
            hypervisor: "files".to_owned(),
            hypervisor_version: String::new(),
            free_bytes: 0,
            accelerated: false,
        })
    }

    async fn virtual_machines(&self) -> Result<Vec<VirtualMachine>, HypervisorError> {
        Ok(self
            .survey()
            .await?
            .into_iter()
            .map(|listed| listed.vm)
            .collect())
    }

    async fn freeze(
        &self,
        vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
        consistency: Consistency,
    ) -> Result<FrozenPoint, HypervisorError> {
        let listed = self.find(vm, "freeze").await?;
        let step = format!("freeze vm {}", listed.vm.name);
        let mut files: Vec<(DiskId, Vec<PathBuf>)> = Vec::with_capacity(disks.len());
        for disk in disks {
            if files.iter().any(|(known, _)| known == disk) {
                return Err(HypervisorError::new(
                    ErrorKind::InvalidRequest,
                    format!("{step}: disk {disk} is named twice"),
                ));
            }
            let path = listed
                .files
                .get(disk)
                .ok_or_else(|| no_disk(&step, *disk))?;
            files.push((*disk, path.clone()));
        }
        if files.is_empty() {
            return Err(HypervisorError::new(
                ErrorKind::InvalidRequest,
                format!("{step}: no disk is named"),
            ));
        }
        self.reserve(vm, next, &step)?;
        let mut reservation = Reservation {
            driver: self,
            vm,
            kept: false,
        };
        let opened = open_quiet(&step, &files).await?;
        let taken_unix_ms = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as i64);
        let before = self.with(vm, |state| {
            let found = state
                .instants
                .iter()
                .find(|(id, _)| Some(*id) == since)
                .map(|(_, stamps)| stamps.clone());
            let stamps = opened.iter().map(|one| (one.disk, one.stamps())).collect();
            state.instants.push((next, stamps));
            found.unwrap_or_default()
        });
        reservation.kept = true;
        Ok(FrozenPoint {
            vm,
            taken_unix_ms,
            tracking: next,
            quiescence: quiescence(consistency),
            pause: Duration::ZERO,
            disks: opened
                .into_iter()
                .map(|one| frozen_disk(one, &before))
                .collect(),
        })
    }

    /// One by one: a member that is written meanwhile fails at its next read, so no point can hold that write.
    async fn freeze_group(
        &self,
        members: &[FreezeRequest],
        consistency: Consistency,
    ) -> Result<Vec<FrozenPoint>, GroupFreezeError> {
        let mut points = Vec::with_capacity(members.len());
        for member in members {
            let FreezeRequest {
                vm,
                disks,
                since,
                next,
            } = member;
            match self.freeze(*vm, disks, *since, *next, consistency).await {
                Ok(point) => points.push(point),
                Err(source) => {
                    for point in points {
                        self.give_up(&point);
                    }
                    return Err(GroupFreezeError {
                        vm: Some(*vm),
                        source,
                    });
                }
            }
        }
        Ok(points)
    }

    async fn release(&self, point: FrozenPoint) -> Result<(), HypervisorError> {
        self.with(point.vm, |state| {
            if state.frozen == Some(point.tracking) {
                state.frozen = None;
            }
        });
        Ok(())
    }

    async fn tracking(&self, vm: VmId) -> Result<Vec<TrackingId>, HypervisorError> {
        Ok(self.with(vm, |state| {
            state.instants.iter().map(|(id, _)| *id).collect()
        }))
    }

    async fn forget(&self, vm: VmId, older_than: TrackingId) -> Result<(), HypervisorError> {
        self.with(vm, |state| {
            state.instants.retain(|(id, _)| *id >= older_than);
        });
        Ok(())
    }

    async fn forget_all(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.with(vm, |state| state.instants.clear());
        Ok(())
    }

    async fn clean_up(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.with(vm, |state| state.frozen = None);
        Ok(())
    }

    async fn disk_path(&self, vm: VmId, disk: DiskId) -> Result<PathBuf, HypervisorError> {
        let listed = self.find(vm, "find a disk of").await?;
        listed
            .files
            .get(&disk)
            .and_then(|chain| chain.first().cloned())
            .ok_or_else(|| no_disk(&format!("vm {}", listed.vm.name), disk))
    }

    async fn start(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.find(vm, "start").await?;
        Err(runs_nothing("start a vm"))
    }

    async fn stop(&self, vm: VmId, _how: Stop) -> Result<(), HypervisorError> {
        // It is off already.
        self.find(vm, "stop").await.map(drop)
    }

    async fn create(&self, _vm: NewVirtualMachine) -> Result<(), HypervisorError> {
        Err(runs_nothing("create a vm"))
    }

    async fn remove(&self, vm: VmId) -> Result<(), HypervisorError> {
        match self.find(vm, "remove").await {
            // The files are somebody's originals.
            Ok(_) => Err(runs_nothing("remove a vm")),
            Err(error) if error.kind() == ErrorKind::VmNotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn console(&self, vm: VmId) -> Result<PathBuf, HypervisorError> {
        self.find(vm, "find the console of").await?;
        Err(runs_nothing("show a console"))
    }
}

fn frozen_disk(opened: Opened, before: &HashMap<DiskId, Vec<Stamp>>) -> FrozenDisk {
    let unchanged = before.get(&opened.disk) == Some(&opened.stamps());
    let size_bytes = opened.image.virtual_size();
    let allocated = opened
        .image
        .allocated(0..size_bytes)
        .into_iter()
        .map(|extent| Extent {
            offset: extent.offset,
            length: extent.length,
        })
        .collect();
    FrozenDisk {
        disk: opened.disk,
        size_bytes,
        changes: if unchanged {
            Changes::Since(Vec::new())
        } else {
            Changes::Unknown
        },
        allocated,
        reader: Box::new(Reader {
            inner: Arc::new(Inner {
                image: opened.image,
                files: opened.files,
            }),
        }),
    }
}

fn quiescence(consistency: Consistency) -> Quiescence {
    match consistency {
        Consistency::Crash => Quiescence::NotAsked,
        Consistency::Application => Quiescence::NotConfirmed {
            reason: QuiesceReason::NoAgent,
            text: "the vm is off: there is nobody to ask".to_owned(),
        },
    }
}

fn no_disk(step: &str, disk: DiskId) -> HypervisorError {
    HypervisorError::new(
        ErrorKind::DiskNotFound,
        format!("{step}: no image file has the id {disk}"),
    )
}

fn runs_nothing(doing: &str) -> HypervisorError {
    HypervisorError::new(
        ErrorKind::Refused,
        format!("{doing}: the driver of image files runs no vms"),
    )
}
