//! Why disks could not be brought to a point, and what a person must know about it.

use std::io;
use std::path::{Path, PathBuf};

use disk_image::ImageError;
use engine_protocol::v1::Finding;
use hypervisor::{DiskId, HypervisorError};
use replica_store::{ErrorKind, StoreError};

use super::room::{Lack, RESERVE_BYTES};
use crate::finding::{self, finding};
use crate::replicator::trouble::chain;

/// A round ended early. What it wrote stays, and the next one goes on; until that has ended the disks are neither of the
/// old point nor of the new one, and [`super::record`] says so.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The task is to stop, nothing is wrong.
    #[error("stopped")]
    Stopped,
    /// Another order came.
    #[error("the order in force does not permit to write to the disks of the virtual machine")]
    Withdrawn,
    /// Somebody has started the VM.
    #[error("virtual machine {0:?} runs, so its disks must not be written")]
    Running(String),
    /// The VM is not on this host.
    #[error("virtual machine {0:?} is not on this host")]
    VmMissing(String),
    /// A replicated disk is not attached any more.
    #[error("virtual machine has no disk {0}")]
    DiskMissing(DiskId),
    /// The recovered VM has no such disk.
    #[error("disk {disk} is not part of recovery point {point}")]
    NotInPoint {
        /// The disk.
        disk: DiskId,
        /// The point.
        point: uuid::Uuid,
    },
    /// The point does not say what the VM was like.
    #[error("recovery point {point} does not say what the virtual machine was made of: {problem}")]
    NoConfiguration {
        /// The point.
        point: uuid::Uuid,
        /// Why not.
        problem: String,
    },
    /// What is gone of the VM could not be made again.
    #[error("make virtual machine {name:?} again")]
    Making {
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: HypervisorError,
    },
    /// A program has the image open.
    #[error("disk image {} is open in another program", .0.display())]
    InUse(PathBuf),
    /// An image could not be used.
    #[error("{doing} disk image {}", path.display())]
    Image {
        /// Verb.
        doing: &'static str,
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// Other VMs need what is free.
    #[error(
        "{} MiB must be added to disk images in {}, where {} MiB are free: {} MiB stay free for the host's other virtual machines",
        .0.needed_bytes.div_ceil(1 << 20), .0.folder.display(), .0.free_bytes >> 20, RESERVE_BYTES >> 20
    )]
    NoRoom(Lack),
    /// What was written does not come back.
    #[error("disk image {} reads other bytes at {offset} than were written there", path.display())]
    ReadBack {
        /// The image.
        path: PathBuf,
        /// First byte of the range.
        offset: u64,
    },
    /// The store refused or failed.
    #[error("{doing}")]
    Store {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The hypervisor refused or failed.
    #[error("ask the hypervisor for virtual machine and disks")]
    Hypervisor(#[from] HypervisorError),
    /// A file of the engine could not be used.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ReceiveError {
    /// For `map_err` on file work.
    pub(super) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    /// For `map_err` on the store.
    pub(super) fn store(doing: &'static str) -> impl FnOnce(StoreError) -> Self {
        move |source| Self::Store { doing, source }
    }

    /// For `map_err` on an image.
    pub(super) fn image(doing: &'static str, path: &Path) -> impl FnOnce(ImageError) -> Self {
        move |source| Self::Image {
            doing,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether nothing is wrong: somebody else decided.
    pub fn is_end(&self) -> bool {
        matches!(self, Self::Stopped | Self::Withdrawn)
    }

    /// Whether something of the VM is gone.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self, Self::VmMissing(_) | Self::DiskMissing(_))
    }

    /// Whether somebody uses what is to be written.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Self::Running(_) | Self::InUse(_))
    }

    /// For the item's status. `store` is what people call the store.
    pub fn finding(&self, vm_name: &str, store: &Path) -> Finding {
        let cause = chain(self);
        match self {
            Self::VmMissing(_) => finding::vm_not_found(vm_name, &cause),
            Self::DiskMissing(disk) => finding::disk_not_found(vm_name, &disk.to_string()),
            Self::Store { source, .. } if source.kind() == ErrorKind::Io => {
                finding::store_unavailable(store, &cause)
            }
            Self::Store { source, .. } if source.kind() == ErrorKind::Fenced => finding(
                "FAILBACK_SUPERSEDED",
                format!(
                    "virtual machine {vm_name:?} can't take over what its recovered copy wrote: {cause}"
                ),
                "Another activation took the replica over while the failback ran.",
                "None, when replication was enabled anew; otherwise cancel the failback and begin it again.",
                true,
            ),
            Self::NotInPoint { .. } => finding(
                "FAILBACK_DISK_MISSING",
                format!(
                    "virtual machine {vm_name:?} can't take over what its recovered copy wrote: {cause}"
                ),
                "The disk was added here after the newest recovery point, or was removed from the recovered virtual machine.",
                "Exclude the disk from replication, or cancel the failback.",
                true,
            ),
            Self::Making { .. } | Self::NoConfiguration { .. } => finding(
                "FAILBACK_VM_NOT_CREATED",
                format!(
                    "virtual machine {vm_name:?} can't take over what its recovered copy wrote: {cause}"
                ),
                "Its folder holds files that can't be read, its process still runs, the volume is full, or the hypervisor can't make virtual machines for this engine.",
                "See the cause and remove it; the failback goes on by itself. Or put the virtual machine back with the disks it had.",
                true,
            ),
            Self::InUse(_) | Self::Running(_) => finding(
                "FAILBACK_DISK_IN_USE",
                format!(
                    "virtual machine {vm_name:?} can't take over what its recovered copy wrote: {cause}"
                ),
                "The virtual machine was started by hand, or a backup, a mount or another tool has its disk image open.",
                "Close what uses the image. The failback goes on by itself.",
                true,
            ),
            Self::NoRoom(lack) => finding(
                "FAILBACK_NO_ROOM",
                format!(
                    "virtual machine {vm_name:?} can't take over what its recovered copy wrote: {cause}"
                ),
                "The volume of the disk images has too little room for what the recovered virtual machine wrote.",
                &format!(
                    "Free {} MiB or more on the volume of {}, or make it larger; the failback goes on by itself.",
                    lack.missing_bytes().div_ceil(1 << 20),
                    lack.folder.display()
                ),
                true,
            ),
            Self::Image { .. } | Self::ReadBack { .. } => finding(
                "FAILBACK_DISK_FAILED",
                format!(
                    "virtual machine {vm_name:?} can't take over what its recovered copy wrote: {cause}"
                ),
                "The volume of the disk image is full, read-only or failing, or the image is damaged.",
                "Make the volume usable; the failback goes on by itself. A damaged image can be replaced by an empty one of the same identity and size.",
                true,
            ),
            _ => finding(
                "FAILBACK_FAILED",
                format!(
                    "virtual machine {vm_name:?} can't take over what its recovered copy wrote: {cause}"
                ),
                "The storage account, the hypervisor or the engine's data folder does not answer as it should.",
                "See the cause. The failback tries again by itself.",
                true,
            ),
        }
    }
}
