//! One trait for hosts that run virtual machines, and its drivers.
//!
//! ```text
//!   engine ──► Hypervisor ──► qemu   (Linux: QMP, dirty bitmaps, fleecing)
//!                        ├──► files  (images of VMs that are off, in a folder; also on Windows)
//!                        └──► hyperv (Windows Server: WMI, RCT)
//! ```
//!
//! The heart is [`Hypervisor::freeze`]: one instant over all disks of a VM at once, with what
//! changed since an earlier instant, readable while the guest goes on writing.
//!
//! How change tracking is meant to be used, for one VM:
//!
//! ```text
//!   freeze(since: None,  next: 1)  first copy, tracking 1 records from here   release
//!   freeze(since: 1,     next: 2)  changes since 1                            release, durable: forget(older_than: 2)
//!   freeze(since: 2,     next: 3)  ... engine dies here, nothing durable
//!   clean_up                       takes away what the dead engine left
//!   freeze(since: 2,     next: 4)  changes since 2 = tracking 2 and 3 together
//! ```
//!
//! A tracking interval survives the engine, not the hypervisor's process of the VM: after a restart of
//! the VM the answer is [`Changes::Unknown`] and the caller compares.

pub mod conformance;
mod error;
mod extents;
mod files;
mod grub;
pub mod hyperv;
mod lost;
mod model;
pub mod nbd;
mod particulars;
#[cfg(unix)]
mod qemu;
#[cfg(unix)]
mod qmp;
mod screenshot;
mod volume;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

pub use error::{ErrorKind, GroupFreezeError, HypervisorError, Retry};
pub use extents::{Extent, ExtentSet};
pub use files::FilesDriver;
pub use grub::bios_boot_loader;
pub use hyperv::HypervDriver;
pub use lost::{LostDisk, LostVirtualMachine};
pub use model::{
    Changes, Consistency, DiskId, DiskSource, Finding, FreezeRequest, FrozenDisk, FrozenPoint,
    Generation, HostFacts, Independence, NetworkAdapter, NewDisk, NewNetwork, NewVirtualMachine,
    PortAnswer, PowerState, QuiesceReason, Quiescence, Stop, TrackingId, VirtualDisk,
    VirtualMachine, VmId,
};
pub use particulars::{DiskParticulars, Particulars, Presence};
#[cfg(unix)]
pub use qemu::{MAX_RECOVERY_FOLDER, QemuDriver};
#[cfg(unix)]
pub use qmp::{Event, Qmp, QmpError};
pub use screenshot::Screenshot;
pub use volume::Volume;

/// Reads a frozen disk.
#[async_trait]
pub trait FrozenReader: Send + Sync {
    /// Reads `length` bytes at `offset`; the range lies inside the disk.
    async fn read(&self, offset: u64, length: usize) -> Result<Bytes, HypervisorError>;
}

/// A host that runs virtual machines.
///
/// All calls may run side by side; a driver puts those on one VM into an order itself. Every call may be
/// repeated after an error or a crash of the caller.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// What the host is and how much room it has.
    async fn host(&self) -> Result<HostFacts, HypervisorError>;

    /// The generations of VMs that the host can run, the lowest first.
    fn generations(&self) -> Vec<Generation> {
        vec![Generation::One, Generation::Two]
    }

    /// All VMs of the host, by name. A VM that is damaged is listed with [`Finding`]s rather than left out.
    async fn virtual_machines(&self) -> Result<Vec<VirtualMachine>, HypervisorError>;

    /// What the checks before protection want to know beside that, of the VMs that the driver can tell something of. Images are
    /// looked at without a lock, and again only when they may have changed.
    async fn particulars(&self) -> Result<Vec<Particulars>, HypervisorError> {
        Ok(Vec::new())
    }

    /// Whether a VM runs, and nothing else of it: cheap enough to ask before each write to its disks.
    ///
    /// # Errors
    /// [`ErrorKind::VmNotFound`].
    async fn power_state(&self, vm: VmId) -> Result<PowerState, HypervisorError> {
        let machines = self.virtual_machines().await?;
        let found = machines.into_iter().find(|machine| machine.id == vm);
        found
            .map(|machine| machine.power_state)
            .ok_or_else(|| HypervisorError::new(ErrorKind::VmNotFound, format!("find vm {vm}")))
    }

    /// Whether the host has nothing of a VM that could run: neither the VM nor a process that outlived it.
    async fn is_gone(&self, vm: VmId) -> Result<bool, HypervisorError> {
        let machines = self.virtual_machines().await?;
        Ok(machines.iter().all(|machine| machine.id != vm))
    }

    /// Freezes one instant over `disks` at once and starts tracking under `next`.
    ///
    /// `since` names the instant to which changes are wanted; `None` asks for none ([`Changes::Unknown`]).
    /// `next` must be greater than every id of [`Hypervisor::tracking`]. At most one point of a VM is frozen
    /// at a time. After an error nothing is left behind: no export, no job, no tracking `next`.
    ///
    /// # Errors
    /// [`ErrorKind::VmNotFound`], [`ErrorKind::VmNotRunning`], [`ErrorKind::DiskNotFound`],
    /// [`ErrorKind::Busy`] when a point is frozen already (after a crash: [`Hypervisor::clean_up`]),
    /// [`ErrorKind::NoSpace`] when there is no room for old data, [`ErrorKind::InvalidRequest`].
    async fn freeze(
        &self,
        vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
        consistency: Consistency,
    ) -> Result<FrozenPoint, HypervisorError>;

    /// Freezes one instant over several VMs of this host: no write of any of them that began after a write of
    /// another one ended is in a point without that other one. The points come in the order of the request, and are
    /// given back one by one. All or none: after an error none of them is frozen, none is held, none has tracking `next`.
    ///
    /// The members are held for as long as it takes, and at most for some seconds. They are never left held: a process
    /// that dies in the middle leaves a mark, and [`Hypervisor::recover`] or [`Hypervisor::clean_up`] lets them go on.
    ///
    /// # Errors
    /// As [`Hypervisor::freeze`], with the member at fault.
    async fn freeze_group(
        &self,
        members: &[FreezeRequest],
        consistency: Consistency,
    ) -> Result<Vec<FrozenPoint>, GroupFreezeError> {
        let _ = consistency;
        Err(GroupFreezeError {
            vm: None,
            source: HypervisorError::new(
                ErrorKind::InvalidRequest,
                format!(
                    "freeze {} vms at once: this driver can't do it",
                    members.len()
                ),
            ),
        })
    }

    /// Lets guests go on that a process which died in the middle of a freeze left paused or at rest; gives their ids.
    /// To be called once at start, before anything else. What it can't reach it leaves for [`Hypervisor::clean_up`].
    async fn recover(&self) -> Result<Vec<VmId>, HypervisorError> {
        Ok(Vec::new())
    }

    /// Gives a frozen point back. Tracking goes on; drop old intervals with [`Hypervisor::forget`].
    async fn release(&self, point: FrozenPoint) -> Result<(), HypervisorError>;

    /// The tracking intervals the host holds for all replicated disks of the VM, oldest first. Empty when the VM is off,
    /// but for those of [`Hypervisor::shut_down`] and [`Hypervisor::freeze_off`].
    async fn tracking(&self, vm: VmId) -> Result<Vec<TrackingId>, HypervisorError>;

    /// Drops intervals older than `older_than`; call it when the point that began `older_than` is durable.
    async fn forget(&self, vm: VmId, older_than: TrackingId) -> Result<(), HypervisorError>;

    /// Drops all intervals and stops tracking. A VM that is off or gone has none, which is no error.
    async fn forget_all(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Takes away what a caller that died between freeze and release left: exports, jobs, nodes, files; a guest that it
    /// left paused or at rest goes on. Keeps tracking. A guest that outlasted [`Hypervisor::shut_down`] may shut down and
    /// restart as ever again.
    async fn clean_up(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// The disk's newest image file. Replication logs lie beside it.
    async fn disk_path(&self, vm: VmId, disk: DiskId) -> Result<PathBuf, HypervisorError>;

    /// Starts the VM; one that runs already is left alone.
    async fn start(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// Stops the VM and returns when it is off; one that is off already is left alone.
    async fn stop(&self, vm: VmId, how: Stop) -> Result<(), HypervisorError>;

    /// Shuts the guest down in order and returns when the VM is off, as [`Stop::Shutdown`] does, and keeps what is known of
    /// its changes: until the VM is started, turned off or removed, [`Hypervisor::tracking`] and [`Hypervisor::freeze_off`]
    /// go on from the freezes before. So the last changes can be moved without reading whole disks. The VM counts as
    /// [`PowerState::Off`] from then on, and a guest that restarts in place of shutting down is held before its first
    /// instruction. One that is off already is left alone.
    ///
    /// A guest that has not shut down within `patience` runs on; should it shut down later, that counts as if it had been
    /// in time. [`Hypervisor::start`] and [`Hypervisor::clean_up`] take that back, for a guest that may run again.
    ///
    /// On Hyper-V nothing has to be kept: RCT records in files beside the disks, also while the VM is off. There this is
    /// a shutdown. With QEMU the bitmaps are in the memory of the VM's process, which therefore stays, without running.
    /// When it is lost nevertheless, the freeze that follows says [`Changes::Unknown`].
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] when the guest still runs after `patience`.
    async fn shut_down(&self, vm: VmId, patience: Duration) -> Result<(), HypervisorError> {
        self.stop(vm, Stop::Shutdown { timeout: patience }).await
    }

    /// As [`Hypervisor::freeze`], of a VM that is off: its images are the frozen disks. The instant is that of the call,
    /// and nobody writes meanwhile: reads fail when somebody does.
    ///
    /// On Hyper-V the RCT of the images answers as for a VM that runs. With QEMU there are changes since instants that were
    /// taken before [`Hypervisor::shut_down`], and since others of this process that no file was written after; else
    /// [`Changes::Unknown`].
    ///
    /// # Errors
    /// As [`Hypervisor::freeze`], but [`ErrorKind::VmRunning`] in place of [`ErrorKind::VmNotRunning`].
    async fn freeze_off(
        &self,
        vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
    ) -> Result<FrozenPoint, HypervisorError> {
        let _ = (disks, since, next);
        Err(HypervisorError::new(
            ErrorKind::InvalidRequest,
            format!("freeze vm {vm} while it is off: this driver can't do it"),
        ))
    }

    /// The ranges of a frozen disk that the VM has written since it was made above a recovery point ([`DiskSource::Nbd`]).
    /// Outside of them the disk is as that point. They may name more than was written, never less; sorted, disjoint. `None` =
    /// the disk has nothing below it, or it can't be told: then all of it may differ.
    ///
    /// Unlike tracking this outlives everything that the disk outlives. With QEMU it is what the disk's layer holds. On
    /// Hyper-V a recovered VM's disk is a differencing VHDX above the point, and its own blocks and sectors are that: its
    /// block allocation table and sector bitmaps tell.
    ///
    /// # Errors
    /// When the point is not frozen any more, or the disk can't be asked.
    async fn own_extents(
        &self,
        point: &FrozenPoint,
        disk: DiskId,
    ) -> Result<Option<Vec<Extent>>, HypervisorError> {
        let _ = (point, disk);
        Ok(None)
    }

    /// Makes a VM and leaves it off. Repeating it with the same id and folder is no error and makes it anew only
    /// when the first try did not finish.
    async fn create(&self, vm: NewVirtualMachine) -> Result<(), HypervisorError>;

    /// Makes again what is missing of a VM that was deleted, or whose images were lost: the VM itself with its id, name,
    /// processors, memory and adapters, off; disks that are gone, with their ids, empty. What is there stays as it is, and so
    /// does a VM that lacks nothing. A VM that is gone finds images of its own again that still lie where it was. On Hyper-V
    /// these are `DefineSystem` and `AddResourceSettings` of `Msvm_VirtualSystemManagementService`, and `CreateVirtualHardDisk`
    /// of `Msvm_ImageManagementService`.
    ///
    /// # Errors
    /// [`ErrorKind::VmRunning`]; [`ErrorKind::InvalidRequest`] when something is in the way; [`ErrorKind::Configuration`] when
    /// what lies there can't be read.
    async fn restore(&self, vm: LostVirtualMachine) -> Result<(), HypervisorError> {
        Err(HypervisorError::new(
            ErrorKind::InvalidRequest,
            format!("make vm {} again: this driver can't do it", vm.name),
        ))
    }

    /// One step of making a VM that [`Hypervisor::create`] made above a served point independent of it: begins what is
    /// missing, and says how far it is. To be called again, while the point is served, until it is complete; the guest runs
    /// on meanwhile. From then on the VM needs nothing but its folder. One that is cut goes on where it was.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] when the volume of the VM's folder is full.
    async fn make_independent(&self, vm: VmId) -> Result<Independence, HypervisorError> {
        Err(HypervisorError::new(
            ErrorKind::InvalidRequest,
            format!("make vm {vm} independent of its recovery point: this driver can't do it"),
        ))
    }

    /// Turns the VM off and deletes it with its folder. One that does not exist is no error.
    async fn remove(&self, vm: VmId) -> Result<(), HypervisorError>;

    /// The file that gets what the guest writes to its first serial port; begins anew at each start.
    async fn console(&self, vm: VmId) -> Result<PathBuf, HypervisorError>;

    /// What the display of a running VM shows at this moment. The guest is not disturbed. On Hyper-V this is
    /// `Msvm_VirtualSystemManagementService.GetVirtualSystemThumbnailImage`.
    ///
    /// # Errors
    /// [`ErrorKind::VmNotRunning`]; [`ErrorKind::Refused`] for a VM without a display.
    async fn screenshot(&self, vm: VmId) -> Result<Screenshot, HypervisorError> {
        Err(HypervisorError::new(
            ErrorKind::InvalidRequest,
            format!("look at the display of vm {vm}: this driver can't do it"),
        ))
    }

    /// Whether the guest's agent answers now. The guest is asked only when something in it listens to the agent's port, so
    /// that firmware and boot loaders never take the question for keys. On Hyper-V this is the heartbeat of the
    /// integration services.
    ///
    /// # Errors
    /// [`ErrorKind::VmNotRunning`], [`ErrorKind::VmNotFound`].
    async fn agent_answers(&self, vm: VmId) -> Result<bool, HypervisorError> {
        Err(HypervisorError::new(
            ErrorKind::InvalidRequest,
            format!("ask the guest agent of vm {vm}: this driver can't do it"),
        ))
    }

    /// Whether a TCP port of a VM takes connections, asked from inside of the private segments that its adapters are in
    /// ([`NewNetwork::segment`]): no network of the host is used. The connection is ended before anything is said on it.
    /// Takes some seconds when there is no answer.
    ///
    /// # Errors
    /// [`ErrorKind::VmNotRunning`], [`ErrorKind::VmNotFound`].
    async fn ask_port(&self, vm: VmId, port: u16) -> Result<PortAnswer, HypervisorError> {
        Err(HypervisorError::new(
            ErrorKind::InvalidRequest,
            format!("ask vm {vm} for port {port}: this driver can't do it"),
        ))
    }
}
