//! Driver `files`: VMs that are off, as image files in a folder (see [`inventory`]).
//!
//! Nothing runs here, so what a point promises is what [`still`] promises of images that nobody writes.
//!
//! Used for offline copies, by the benches, and where no hypervisor is at hand.

mod buffers;
mod inventory;
mod stamp;
mod still;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::particulars::Looks;
use crate::{
    Consistency, DiskId, ErrorKind, FreezeRequest, FrozenPoint, GroupFreezeError, HostFacts,
    Hypervisor, HypervisorError, NewVirtualMachine, Particulars, Stop, TrackingId, VirtualMachine,
    VmId, Volume,
};
use inventory::Listed;
pub(crate) use still::StillImages;

/// The driver. Cheap to make; holds nothing open between calls.
pub struct FilesDriver {
    root: PathBuf,
    images: StillImages,
    looks: Arc<Looks>,
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
            images: StillImages::default(),
            looks: Arc::default(),
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
}

#[async_trait]
impl Hypervisor for FilesDriver {
    async fn host(&self) -> Result<HostFacts, HypervisorError> {
        Ok(HostFacts {
            name: host_name(),
            operating_system: std::env::consts::OS.to_owned(),
            hypervisor: "files".to_owned(),
            hypervisor_version: String::new(),
            free_bytes: Volume::of(&self.root).map_or(0, |volume| volume.free_bytes),
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

    async fn particulars(&self) -> Result<Vec<Particulars>, HypervisorError> {
        let listed = self.survey().await?;
        let looks = Arc::clone(&self.looks);
        blocking("look at image files", move || {
            Ok(inventory::particulars(&listed, &looks))
        })
        .await
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
        self.images
            .freeze(&step, vm, &files, since, next, consistency)
            .await
    }

    /// All are off.
    async fn shut_down(&self, vm: VmId, _patience: Duration) -> Result<(), HypervisorError> {
        self.find(vm, "shut down").await.map(drop)
    }

    async fn freeze_off(
        &self,
        vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
    ) -> Result<FrozenPoint, HypervisorError> {
        self.freeze(vm, disks, since, next, Consistency::Crash)
            .await
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
                        self.images.give_up(&point);
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
        self.images.release(point.vm, point.tracking);
        Ok(())
    }

    async fn tracking(&self, vm: VmId) -> Result<Vec<TrackingId>, HypervisorError> {
        Ok(self.images.tracking(vm))
    }

    async fn forget(&self, vm: VmId, older_than: TrackingId) -> Result<(), HypervisorError> {
        self.images.forget(vm, older_than);
        Ok(())
    }

    async fn forget_all(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.images.forget_all(vm);
        Ok(())
    }

    async fn clean_up(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.images.clean_up(vm);
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

/// Empty when the system does not tell.
fn host_name() -> String {
    let name = if cfg!(windows) {
        std::env::var("COMPUTERNAME").ok()
    } else {
        std::fs::read_to_string("/proc/sys/kernel/hostname").ok()
    };
    name.unwrap_or_default().trim().to_owned()
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
