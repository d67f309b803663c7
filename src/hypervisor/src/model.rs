//! What a hypervisor knows: VMs, disks, frozen points, and what it is asked to make.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::FrozenReader;
use crate::extents::Extent;

/// A VM's GUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VmId(pub Uuid);

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A virtual disk's GUID: VHDX "virtual disk id", or a VHD footer's unique id. Never a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiskId(pub Uuid);

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names the start of a change-tracking interval on a host. Ordered: a later freeze has a greater id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TrackingId {
    /// Fencing generation of the replication that made it.
    pub generation: u64,
    /// Counts the freezes of that generation.
    pub number: u64,
}

impl fmt::Display for TrackingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.generation, self.number)
    }
}

/// The host as an administrator would describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// Host name, fully qualified where the host knows it.
    pub name: String,
    /// For people, such as "Debian GNU/Linux 12 (bookworm)".
    pub operating_system: String,
    /// "qemu" or "hyperv".
    pub hypervisor: String,
    /// Such as "7.2.22"; empty when it can't be found out.
    pub hypervisor_version: String,
    /// Free bytes on the volume of the driver's scratch folder.
    pub free_bytes: u64,
    /// Whether VMs run at hardware speed (KVM, Hyper-V) rather than in software emulation.
    pub accelerated: bool,
}

/// Firmware and controllers of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Generation {
    /// BIOS, IDE, MBR.
    One,
    /// UEFI, SCSI, GPT.
    Two,
}

impl Generation {
    /// 1 or 2.
    pub fn number(self) -> u32 {
        match self {
            Generation::One => 1,
            Generation::Two => 2,
        }
    }

    /// From 1 or 2.
    pub fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Generation::One),
            2 => Some(Generation::Two),
            _ => None,
        }
    }
}

/// Whether a VM's guest can run code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PowerState {
    /// Its guest runs, or is paused.
    Running,
    /// Off, also when the host keeps something of it: see [`crate::Hypervisor::shut_down`].
    Off,
}

/// A VM of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualMachine {
    /// GUID.
    pub id: VmId,
    /// Name; unique on the host.
    pub name: String,
    /// Firmware and controllers.
    pub generation: Generation,
    /// Virtual processors.
    pub processors: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// "Linux", "Windows", or empty when unknown.
    pub os_type: String,
    /// Running or off.
    pub power_state: PowerState,
    /// The operating system disk first. Only disks that could be read.
    pub disks: Vec<VirtualDisk>,
    /// Network adapters in order.
    pub network_adapters: Vec<NetworkAdapter>,
    /// Why it can't be protected; empty = it can.
    pub findings: Vec<Finding>,
}

/// A disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualDisk {
    /// Out of the image.
    pub id: DiskId,
    /// File name without folder.
    pub name: String,
    /// Virtual size in bytes.
    pub size_bytes: u64,
    /// Whether the VM boots from it.
    pub operating_system: bool,
}

/// A virtual network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkAdapter {
    /// Stable name on the VM, such as "nic0".
    pub id: String,
    /// Virtual switch; empty when not connected.
    pub network_name: String,
    /// Six octets in hexadecimal with colons.
    pub mac_address: String,
}

/// A problem with its cause and the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Stable, in CamelCase, for programs.
    pub code: &'static str,
    /// What is wrong, one sentence.
    pub summary: String,
    /// Why that may be.
    pub possible_causes: String,
    /// What to do.
    pub recommended_action: String,
    /// Whether it rules protection out.
    pub critical: bool,
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

impl fmt::Debug for FrozenDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrozenDisk")
            .field("disk", &self.disk)
            .field("size_bytes", &self.size_bytes)
            .field("changes", &self.changes)
            .field("allocated", &self.allocated)
            .finish_non_exhaustive()
    }
}

/// Answer of change tracking for one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// Exactly these ranges may differ (granularity 64 KiB); sorted, disjoint.
    Since(Vec<Extent>),
    /// Tracking can't tell (first freeze, VM restarted, bitmap lost): compare.
    Unknown,
}

/// What a frozen instant shall promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// The disks stand as after a power cut.
    Crash,
    /// The guest has brought its applications and file systems to rest before; when it can't, the point is
    /// crash-consistent and says why ([`Quiescence::NotConfirmed`]).
    Application,
}

/// Whether the guest was at rest at a frozen instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quiescence {
    /// Nobody asked the guest.
    NotAsked,
    /// The guest said so, and said afterwards that it had stayed so: the point is application-consistent.
    Confirmed {
        /// File systems that were frozen; at least one.
        file_systems: u32,
    },
    /// It was asked and did not confirm: the point is crash-consistent.
    NotConfirmed {
        /// Why, for programs.
        reason: QuiesceReason,
        /// Why, for people: a lower-case fragment.
        text: String,
    },
}

impl Quiescence {
    /// Whether the point may be called application-consistent.
    pub fn is_confirmed(&self) -> bool {
        matches!(self, Quiescence::Confirmed { .. })
    }
}

/// Why a guest was not brought to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuiesceReason {
    /// No agent runs in the guest, or the guest is not up yet.
    NoAgent,
    /// The agent did not answer in time, or the guest was not held long enough for the point.
    Timeout,
    /// The agent answered with an error, such as that of a hook script.
    Refused,
    /// The agent has no file system that it can freeze.
    NothingToFreeze,
}

/// One VM of a [`crate::Hypervisor::freeze_group`]; as the arguments of [`crate::Hypervisor::freeze`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreezeRequest {
    /// Which VM.
    pub vm: VmId,
    /// Its disks.
    pub disks: Vec<DiskId>,
    /// The instant to which changes are wanted.
    pub since: Option<TrackingId>,
    /// The id under which tracking starts.
    pub next: TrackingId,
}

/// One instant over all disks of a VM. Must be given back with [`crate::Hypervisor::release`].
#[derive(Debug)]
pub struct FrozenPoint {
    /// Which VM.
    pub vm: VmId,
    /// The instant, milliseconds since the Unix epoch.
    pub taken_unix_ms: i64,
    /// From here on the host tracks changes under this id.
    pub tracking: TrackingId,
    /// Whether the guest was at rest.
    pub quiescence: Quiescence,
    /// How long the guest's processors, or the writes of its file systems, were held.
    pub pause: Duration,
    /// The disks, in the order of the request.
    pub disks: Vec<FrozenDisk>,
}

/// How to stop a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Ask the guest; [`crate::ErrorKind::Timeout`] when it still runs after `timeout`.
    Shutdown {
        /// How long the guest may take.
        timeout: Duration,
    },
    /// Pull the plug. What the guest wrote is in the image.
    TurnOff,
}

/// A VM to make.
#[derive(Clone, Debug)]
pub struct NewVirtualMachine {
    /// Its GUID.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// Firmware and controllers.
    pub generation: Generation,
    /// Memory in bytes; rounded up to whole MiB.
    pub memory_bytes: u64,
    /// Virtual processors.
    pub processors: u32,
    /// "Linux", "Windows" or empty.
    pub os_type: String,
    /// The VM's own folder, a direct child of one of the driver's VM folders; made when missing, deleted by
    /// [`crate::Hypervisor::remove`].
    pub folder: PathBuf,
    /// The operating system disk first.
    pub disks: Vec<NewDisk>,
    /// Network adapters.
    pub networks: Vec<NewNetwork>,
}

/// A disk of a VM to make.
#[derive(Clone, Debug)]
pub struct NewDisk {
    /// Its GUID, for sources that have none in them; an image's own id wins.
    pub id: DiskId,
    /// Where its data come from.
    pub source: DiskSource,
}

/// Where the data of a new VM's disk come from.
#[derive(Clone, Debug)]
pub enum DiskSource {
    /// A read-only NBD export over a Unix socket, with copy-on-write above it: the guest's writes go to `overlay`.
    Nbd {
        /// The server's socket. It must be served whenever the VM runs; for 10 minutes the VM waits for it.
        socket: PathBuf,
        /// Name of the export.
        export: String,
        /// Virtual size in bytes.
        size_bytes: u64,
        /// Made by the driver (qcow2); relative paths are relative to the VM's folder.
        overlay: PathBuf,
    },
    /// An existing VHDX or VHD, used in place. Removed with the VM only when it lies in the VM's folder.
    Image(PathBuf),
}

/// How far a VM is from needing its recovery point no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Independence {
    /// All its data are its own, durably.
    Complete,
    /// It is being copied.
    UnderWay {
        /// What the VM has already, about.
        copied_bytes: u64,
        /// Size of the disks that lie above a point.
        total_bytes: u64,
    },
}

/// A network adapter of a VM to make.
#[derive(Clone, Debug, Default)]
pub struct NewNetwork {
    /// The network to connect to; without it and without a segment the card is there, its cable is out.
    pub network_name: Option<String>,
    /// In place of a network: adapters of this host's VMs with the same GUID reach one another, and nothing else. On Hyper-V
    /// this is a virtual switch of the kind "private".
    pub segment: Option<Uuid>,
    /// Six octets in hexadecimal with colons; `None` = made from the VM's id.
    pub mac_address: Option<String>,
}

/// What came of asking a VM for a TCP port. Ordered: what says more of the VM is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortAnswer {
    /// No adapter of the VM is in a private segment, so nobody can ask.
    NotConnected,
    /// Its guest has used no IPv4 address yet that is known.
    NoAddress,
    /// Its guest has an address, but all neighbours of it are taken, so that there is none to ask from.
    NoNeighbour,
    /// No answer came.
    Silent,
    /// The guest refuses connections there.
    Refused,
    /// It takes connections.
    Open,
}

impl PortAnswer {
    /// The one that says more.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        self.max(other)
    }
}
