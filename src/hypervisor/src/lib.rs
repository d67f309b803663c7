//! One trait for hosts that run virtual machines, and its drivers.
//!
//! ```text
//!   engine ──► Hypervisor ──► qemu   (Linux: QMP, dirty bitmaps, fleecing)
//!                        └──► hyperv (Windows Server: WMI, RCT; a later issue)
//! ```
//!
//! The heart is [`Hypervisor::freeze`]: one instant over all disks of a VM at once, with what
//! changed since an earlier instant, readable while the guest goes on writing.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

/// A VM's GUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmId(pub Uuid);

/// A virtual disk's GUID: VHDX "virtual disk id", or a VHD footer's unique id. Never a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiskId(pub Uuid);

/// Names the start of a change-tracking interval on a host. Ordered: a later freeze has a greater id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrackingId {
    /// Fencing generation of the replication that made it.
    pub generation: u64,
    /// Counts the freezes of that generation.
    pub number: u64,
}

/// A range of a virtual disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// What a disk holds at a frozen instant.
pub struct FrozenDisk {
    /// Which disk.
    pub disk: DiskId,
    /// Virtual size in bytes.
    pub size_bytes: u64,
    /// What changed since the `since` of the request.
    pub changes: Changes,
    /// Ranges that may hold anything but zeroes; the rest reads as zeroes. Sorted, disjoint.
    pub allocated: Vec<Extent>,
    /// Reads the frozen content.
    pub reader: Box<dyn FrozenReader>,
}

/// Answer of change tracking for one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// Exactly these ranges may differ (granularity 64 KiB); sorted, disjoint.
    Since(Vec<Extent>),
    /// Tracking can't tell (first freeze, VM restarted, bitmap lost): compare.
    Unknown,
}

/// One instant over all disks of a VM. Must be given back with [`Hypervisor::release`].
pub struct FrozenPoint {
    /// Which VM.
    pub vm: VmId,
    /// The instant, milliseconds since the Unix epoch.
    pub taken_unix_ms: i64,
    /// From here on the host tracks changes under this id.
    pub tracking: TrackingId,
    /// The disks, in the order of the request.
    pub disks: Vec<FrozenDisk>,
}

/// Reads a frozen disk.
#[async_trait]
pub trait FrozenReader: Send + Sync {
    /// Reads `length` bytes at `offset`; the range lies inside the disk.
    async fn read(&self, offset: u64, length: usize) -> Result<Bytes, HypervisorError>;
}
