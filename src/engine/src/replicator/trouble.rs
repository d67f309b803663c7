//! Why replication of an item did not get on, and what a person must know about it.

use std::io;
use std::path::PathBuf;

use engine_protocol::v1::Finding;
use hypervisor::HypervisorError;
use replica_store::StoreError;
use replication_log::hrl::HrlError;

use super::spec::Spec;
use crate::finding;

/// A step failed. Everything that was done before it is durable or undone; the step may be repeated.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The item is to stop, nothing is wrong.
    #[error("stopped")]
    Stopped,
    /// The VM is not on this host.
    #[error("virtual machine {0} is not on this host")]
    VmNotFound(String),
    /// The VM has lost a disk.
    #[error("virtual machine has no disk {0}")]
    DiskNotFound(String),
    /// Another disk is in the place of a replicated one.
    #[error("disk {disk} was replaced by disk {by} ({name})")]
    DiskReplaced {
        /// File name.
        name: String,
        /// The replicated disk.
        disk: String,
        /// What is there now.
        by: String,
    },
    /// A disk has become smaller.
    #[error("disk {disk} was made smaller, from {from} to {to} bytes")]
    DiskShrunk {
        /// File name.
        disk: String,
        /// Bytes before.
        from: u64,
        /// Bytes now.
        to: u64,
    },
    /// The host's volume is nearly full.
    #[error("only {free_bytes} bytes are free in {}", folder.display())]
    HostSpace {
        /// Where.
        folder: PathBuf,
        /// How many are left.
        free_bytes: u64,
    },
    /// The replica that was there is gone.
    #[error("the replica is not in the store any more")]
    ReplicaMissing,
    /// Another replica lies in the store than the one that was filled.
    #[error("replica {replica} lies in the store in place of {before}; comparing with it")]
    OtherReplica {
        /// The one that was filled.
        before: uuid::Uuid,
        /// The one that is there.
        replica: uuid::Uuid,
    },
    /// A disk copy can't be the start of base.
    #[error("seed {}", path.display())]
    Seed {
        /// The copy.
        path: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The store refused or failed.
    #[error("replica store")]
    Store(#[from] StoreError),
    /// The hypervisor refused or failed.
    #[error("hypervisor")]
    Hypervisor(#[from] HypervisorError),
    /// A log could not be written or read.
    #[error("replication log {}", path.display())]
    Log {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: HrlError,
    },
    /// A log that waits for the store is gone.
    #[error("replication log {} is gone", .0.display())]
    LogMissing(PathBuf),
    /// A file of the engine could not be used.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Trouble {
    /// For `map_err` on file work.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// Whether a newer activation owns the replica: this engine must stop for good.
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Store(error) | Self::Seed { source: error, .. } if error.kind() == replica_store::ErrorKind::Fenced)
    }

    /// Whether somebody else of this generation, the other half above all, has opened the store since.
    pub fn is_overtaken(&self) -> bool {
        matches!(self, Self::Store(error) | Self::Seed { source: error, .. } if error.kind() == replica_store::ErrorKind::Overtaken)
    }

    /// Whether the VM is simply off.
    pub fn is_vm_off(&self) -> bool {
        matches!(self, Self::Hypervisor(error) if error.kind() == hypervisor::ErrorKind::VmNotRunning)
    }

    /// Whether a person must act before it can get on.
    pub fn blocks(&self) -> bool {
        use replica_store::ErrorKind as Store;
        match self {
            Self::Stopped => false,
            Self::VmNotFound(_)
            | Self::DiskNotFound(_)
            | Self::DiskReplaced { .. }
            | Self::DiskShrunk { .. }
            | Self::ReplicaMissing => true,
            Self::HostSpace { .. } => false,
            Self::Seed { source, .. } => !source.is_retryable(),
            Self::Store(error) => !matches!(
                error.kind(),
                Store::Io | Store::Overtaken | Store::Expired | Store::Pinned
            ),
            Self::Hypervisor(error) => error.retry() == hypervisor::Retry::No,
            Self::OtherReplica { .. }
            | Self::Log { .. }
            | Self::LogMissing(_)
            | Self::Io { .. } => false,
        }
    }

    /// For the item's status.
    pub fn finding(&self, spec: &Spec) -> Finding {
        use hypervisor::ErrorKind as Host;
        use replica_store::ErrorKind as Store;
        match self {
            Self::VmNotFound(_) => finding::vm_not_found(&spec.vm_name, &spec.vm.to_string()),
            Self::DiskNotFound(disk) => finding::disk_not_found(&spec.vm_name, disk),
            Self::DiskReplaced { name, disk, by } => {
                finding::disk_replaced(&spec.vm_name, name, disk, by)
            }
            Self::DiskShrunk { disk, from, to } => {
                finding::disk_shrunk(&spec.vm_name, disk, *from, *to)
            }
            Self::HostSpace { folder, free_bytes } => finding::host_space_low(folder, *free_bytes),
            Self::ReplicaMissing => finding::replica_missing(&spec.store_folder),
            Self::Store(error) => match error.kind() {
                Store::Full => finding::store_full(&spec.store_folder),
                Store::Fenced => finding::fenced(spec.generation.0),
                Store::Corrupt | Store::Conflict => {
                    finding::store_damaged(&spec.store_folder, &chain(error))
                }
                _ => finding::store_unavailable(&spec.store_folder, &chain(error)),
            },
            Self::Hypervisor(error) => match error.kind() {
                Host::VmNotFound => finding::vm_not_found(&spec.vm_name, &spec.vm.to_string()),
                Host::VmNotRunning => finding::vm_not_running(&spec.vm_name),
                _ => finding::capture_failed(&spec.vm_name, &chain(error)),
            },
            Self::Seed { path, source } => finding::seed_unusable(path, &chain(source)),
            Self::OtherReplica { .. } => finding::store_damaged(&spec.store_folder, &chain(self)),
            Self::Stopped | Self::Log { .. } | Self::LogMissing(_) | Self::Io { .. } => {
                finding::capture_failed(&spec.vm_name, &chain(self))
            }
        }
    }
}

/// An error with all its causes, for a log line or a person.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
