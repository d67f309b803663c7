//! Points of images that nobody writes: the disks of a VM that is off.
//!
//! ```text
//!   freeze: nobody writes? ─► open every image ─► stamp of each file ─► reads check the stamp ─► release
//! ```
//!
//! Promise: what is read through a frozen point is what the files held at its instant, or the read fails: a file that
//! somebody begins to write is noticed by its stamp. Nobody records changes, so a changed file is [`Changes::Unknown`] and
//! the caller compares; a file whose stamp did not change since an instant that was taken here has no changes since then.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use disk_image::DiskImage;

use super::stamp::{CLOCK_STEP, Stamp, has_writer};
use super::{blocking, buffers, inventory};
use crate::{
    Changes, Consistency, DiskId, ErrorKind, Extent, FrozenDisk, FrozenPoint, FrozenReader,
    HypervisorError, QuiesceReason, Quiescence, TrackingId, VmId,
};

/// How often a file that was written a moment ago is looked at again before it counts as busy.
const QUIET_TRIES: usize = 20;

/// Points and instants of VMs that are off. Holds nothing open but what a point reads.
#[derive(Debug, Default)]
pub(crate) struct StillImages {
    state: Mutex<HashMap<VmId, State>>,
}

/// What is known of one VM.
#[derive(Debug, Default)]
struct State {
    /// The one point that is frozen.
    frozen: Option<TrackingId>,
    /// Instants, oldest first, with the stamps of the files then.
    instants: Vec<(TrackingId, HashMap<DiskId, Vec<Stamp>>)>,
}

/// Disks with their files: the image first, then what it stands on.
pub(crate) type DiskFiles = [(DiskId, Vec<PathBuf>)];

impl StillImages {
    /// Freezes one instant over the disks of a VM that is off. `step` begins the errors.
    pub(crate) async fn freeze(
        &self,
        step: &str,
        vm: VmId,
        files: &DiskFiles,
        since: Option<TrackingId>,
        next: TrackingId,
        consistency: Consistency,
    ) -> Result<FrozenPoint, HypervisorError> {
        self.reserve(vm, next, step)?;
        let mut reservation = Reservation {
            images: self,
            vm,
            kept: false,
        };
        let opened = open_quiet(step, files).await?;
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

    /// Gives a point back.
    pub(crate) fn release(&self, vm: VmId, tracking: TrackingId) {
        self.with(vm, |state| {
            if state.frozen == Some(tracking) {
                state.frozen = None;
            }
        });
    }

    /// Whatever point is frozen is given back.
    pub(crate) fn clean_up(&self, vm: VmId) {
        self.with(vm, |state| state.frozen = None);
    }

    /// The instants that are known, oldest first.
    pub(crate) fn tracking(&self, vm: VmId) -> Vec<TrackingId> {
        self.with(vm, |state| {
            state.instants.iter().map(|(id, _)| *id).collect()
        })
    }

    /// Drops older instants.
    pub(crate) fn forget(&self, vm: VmId, older_than: TrackingId) {
        self.with(vm, |state| {
            state.instants.retain(|(id, _)| *id >= older_than);
        });
    }

    /// Drops all instants.
    pub(crate) fn forget_all(&self, vm: VmId) {
        self.with(vm, |state| state.instants.clear());
    }

    /// One short look or change. Each is one call on the map, so a panic elsewhere leaves it whole.
    fn with<T>(&self, vm: VmId, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        act(state.entry(vm).or_default())
    }

    /// As if the point had never been frozen.
    pub(crate) fn give_up(&self, point: &FrozenPoint) {
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
    images: &'a StillImages,
    vm: VmId,
    kept: bool,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.images.with(self.vm, |state| state.frozen = None);
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
