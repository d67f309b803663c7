//! Driver for Linux: QEMU machines, one folder each.
//!
//! ```text
//!   <vm folder>/<name>/vm.toml ─► inventory     (what is there, findings)
//!                              ─► machine       (command line) ─► power (start, stop, create, remove), shutdown
//!                              ─► freeze        (one instant) ◄── hold (pause, agent), fleece (filters, NBD), tracking
//! ```
//!
//! QEMU is daemonised and outlives this process; a new process finds it by its pid file and talks to it over
//! its QMP socket. This driver keeps nothing in memory that matters: names of exports, jobs, nodes and bitmaps
//! of ours begin with `sr-`, so any process can clean up after another.
//!
//! KVM is used when it works and never required.

mod accelerator;
mod agent;
mod config;
mod fleece;
mod folder;
mod freeze;
mod hold;
mod independent;
mod inventory;
mod layer;
mod machine;
mod particulars;
mod power;
mod reader;
mod readiness;
mod restore;
mod screenshot;
mod segment;
mod shutdown;
mod sweep;
mod tracking;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::{Mutex as AsyncMutex, OnceCell, OwnedMutexGuard};

pub use self::folder::MAX_RECOVERY_FOLDER;

use self::config::VmConfig;
use self::folder::VmFolder;
use self::segment::Segments;
use self::shutdown::Power;
use crate::files::StillImages;
use crate::particulars::Looks;
use crate::qmp::{Qmp, QmpError};
use crate::{
    Consistency, DiskId, ErrorKind, Extent, FreezeRequest, FrozenPoint, Generation,
    GroupFreezeError, HostFacts, Hypervisor, HypervisorError, Independence, LostVirtualMachine,
    NewVirtualMachine, Particulars, PortAnswer, Screenshot, Stop, TrackingId, VirtualMachine, VmId,
};

/// The emulator.
const QEMU: &str = "qemu-system-x86_64";
/// Its image tool.
const QEMU_IMG: &str = "qemu-img";
/// How long another client of the same QMP socket may keep it.
const QMP_PATIENCE: Duration = Duration::from_secs(20);
/// `qemu-img create` writes some kilobytes.
const QEMU_IMG_TIMEOUT: Duration = Duration::from_secs(60);

/// The driver.
#[derive(Debug)]
pub struct QemuDriver {
    vm_folders: Vec<PathBuf>,
    scratch: PathBuf,
    /// One piece of work a VM at a time.
    locks: Mutex<HashMap<VmId, Arc<AsyncMutex<()>>>>,
    /// Points of VMs without a process.
    still: StillImages,
    /// Private networks of VMs that run.
    segments: Segments,
    /// What the first sectors of images said.
    looks: Arc<Looks>,
    kvm: OnceCell<bool>,
    version: OnceCell<String>,
}

/// A VM that was found in its folder.
#[derive(Clone, Debug)]
struct FoundVm {
    folder: VmFolder,
    config: VmConfig,
}

impl FoundVm {
    fn id(&self) -> VmId {
        VmId(self.config.id)
    }
}

impl QemuDriver {
    /// A driver for the VMs in `vm_folders` (each VM is a direct child folder). `scratch` is made when missing; it
    /// gets the old content of blocks that guests overwrite while a point is frozen. Folders may come later.
    ///
    /// # Errors
    /// When `scratch` can't be made.
    pub fn new(
        vm_folders: Vec<PathBuf>,
        scratch: impl Into<PathBuf>,
    ) -> Result<Self, HypervisorError> {
        let scratch = scratch.into();
        let failed = |error| {
            HypervisorError::with_source(
                ErrorKind::Io,
                format!("make folder {}", scratch.display()),
                error,
            )
        };
        std::fs::create_dir_all(&scratch).map_err(failed)?;
        let absolute = std::path::absolute(&scratch).map_err(failed)?;
        Ok(Self {
            vm_folders,
            scratch: absolute,
            locks: Mutex::new(HashMap::new()),
            still: StillImages::default(),
            segments: Segments::default(),
            looks: Arc::default(),
            kvm: OnceCell::new(),
            version: OnceCell::new(),
        })
    }

    /// A QMP connection to a running VM, for tools and tests. While it is held no other call on the VM succeeds.
    ///
    /// # Errors
    /// [`ErrorKind::VmNotFound`], [`ErrorKind::VmNotRunning`].
    pub async fn qmp(&self, vm: VmId) -> Result<Qmp, HypervisorError> {
        let found = self.find(vm)?;
        connect(&found).await
    }

    /// Lets QEMU write `length` bytes of `byte` to a disk through the device that the guest writes to, as if the
    /// guest had done it. For tests without a guest; `length` and `offset` are whole sectors.
    ///
    /// # Errors
    /// When the VM does not run or QEMU refuses.
    pub async fn write_as_guest(
        &self,
        vm: VmId,
        disk: DiskId,
        offset: u64,
        length: u64,
        byte: u8,
    ) -> Result<(), HypervisorError> {
        let found = self.find(vm)?;
        let index = found.disk_index(disk)?;
        let _lock = self.lock(vm).await;
        let mut qmp = connect(&found).await?;
        let device = machine::device_name(index);
        let line = format!("qemu-io -d {device} \"write -P {byte} {offset} {length}\"");
        let step = format!("write to disk {disk} of vm {}", found.config.name);
        let answer = qmp
            .execute("human-monitor-command", json!({ "command-line": line }))
            .await
            .map_err(|error| from_qmp(step.clone(), error))?;
        // The command prints its measure to QEMU's own output; whatever the monitor says is an error.
        match answer.as_str().map(str::trim) {
            None | Some("") => Ok(()),
            Some(text) => Err(HypervisorError::new(
                ErrorKind::Refused,
                format!("{step}: {text}"),
            )),
        }
    }

    async fn lock(&self, vm: VmId) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self
                .locks
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            Arc::clone(locks.entry(vm).or_default())
        };
        lock.lock_owned().await
    }

    async fn kvm(&self) -> bool {
        *self
            .kvm
            .get_or_init(|| accelerator::kvm_works(QEMU, &self.scratch))
            .await
    }

    /// Where the scratch images of a VM lie.
    fn scratch_of(&self, vm: VmId) -> PathBuf {
        self.scratch.join(vm.to_string())
    }
}

#[async_trait]
impl Hypervisor for QemuDriver {
    async fn host(&self) -> Result<HostFacts, HypervisorError> {
        self.host_facts().await
    }

    fn generations(&self) -> Vec<Generation> {
        let mut all = vec![Generation::One];
        // Without the firmware such a machine does not start.
        if machine::firmware().is_ok() {
            all.push(Generation::Two);
        }
        all
    }

    async fn virtual_machines(&self) -> Result<Vec<VirtualMachine>, HypervisorError> {
        self.inventory().await
    }

    async fn particulars(&self) -> Result<Vec<Particulars>, HypervisorError> {
        self.all_particulars().await
    }

    async fn power_state(&self, vm: VmId) -> Result<crate::PowerState, HypervisorError> {
        let found = self.find(vm)?;
        let runs = found.folder.running_pid().is_some() && !shutdown::has_shut_down(&found).await;
        Ok(if runs {
            crate::PowerState::Running
        } else {
            crate::PowerState::Off
        })
    }

    async fn is_gone(&self, vm: VmId) -> Result<bool, HypervisorError> {
        self.nothing_is_left_of(vm)
    }

    async fn freeze(
        &self,
        vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
        consistency: Consistency,
    ) -> Result<FrozenPoint, HypervisorError> {
        let request = FreezeRequest {
            vm,
            disks: disks.to_vec(),
            since,
            next,
        };
        let _lock = self.lock(vm).await;
        let points = self.freeze_all(&[request], consistency, Power::On).await;
        let mut points = points.map_err(|error| error.source)?;
        points.pop().ok_or_else(|| {
            HypervisorError::new(ErrorKind::Protocol, format!("freeze vm {vm}: no point"))
        })
    }

    async fn freeze_group(
        &self,
        members: &[FreezeRequest],
        consistency: Consistency,
    ) -> Result<Vec<FrozenPoint>, GroupFreezeError> {
        // In one order everywhere, so that two groups can't wait for each other.
        let order: BTreeSet<VmId> = members.iter().map(|member| member.vm).collect();
        let mut locks = Vec::new();
        for vm in order {
            locks.push(self.lock(vm).await);
        }
        self.freeze_all(members, consistency, Power::On).await
    }

    async fn recover(&self) -> Result<Vec<VmId>, HypervisorError> {
        self.reconnect();
        let held = self.all_found().into_iter().filter(hold::is_marked);
        let woken = held.map(|found| async move {
            let _lock = self.lock(found.id()).await;
            match hold::wake(&found).await {
                Ok(()) => Some(found.id()),
                Err(error) => {
                    tracing::warn!(vm = %found.config.name, ?error, "a guest that a freeze left held could not be reached");
                    None
                }
            }
        });
        let woken = futures::future::join_all(woken).await;
        Ok(woken.into_iter().flatten().collect())
    }

    async fn release(&self, point: FrozenPoint) -> Result<(), HypervisorError> {
        let FrozenPoint {
            vm,
            disks,
            tracking,
            ..
        } = point;
        // Closes the connections first, so that QEMU has nobody to wait for.
        drop(disks);
        let _lock = self.lock(vm).await;
        self.still.release(vm, tracking);
        self.end_layer_servers(vm).await?;
        self.sweep_vm(vm).await
    }

    async fn tracking(&self, vm: VmId) -> Result<Vec<TrackingId>, HypervisorError> {
        let _lock = self.lock(vm).await;
        self.tracking_ids(vm).await
    }

    async fn forget(&self, vm: VmId, older_than: TrackingId) -> Result<(), HypervisorError> {
        let _lock = self.lock(vm).await;
        self.drop_tracking(vm, Some(older_than)).await
    }

    async fn forget_all(&self, vm: VmId) -> Result<(), HypervisorError> {
        let _lock = self.lock(vm).await;
        self.drop_tracking(vm, None).await
    }

    async fn clean_up(&self, vm: VmId) -> Result<(), HypervisorError> {
        let _lock = self.lock(vm).await;
        self.still.clean_up(vm);
        self.end_layer_servers(vm).await?;
        self.sweep_vm(vm).await?;
        self.let_guest_end(vm).await
    }

    async fn disk_path(&self, vm: VmId, disk: DiskId) -> Result<PathBuf, HypervisorError> {
        let found = self.find(vm)?;
        let index = found.disk_index(disk)?;
        Ok(found.disk_file(index))
    }

    async fn start(&self, vm: VmId) -> Result<(), HypervisorError> {
        let _lock = self.lock(vm).await;
        self.end_layer_servers(vm).await?;
        self.power_on(vm).await
    }

    async fn stop(&self, vm: VmId, how: Stop) -> Result<(), HypervisorError> {
        let _lock = self.lock(vm).await;
        self.power_off(&self.find(vm)?, how).await
    }

    async fn shut_down(&self, vm: VmId, patience: Duration) -> Result<(), HypervisorError> {
        self.shut_down_guest(vm, patience).await
    }

    async fn freeze_off(
        &self,
        vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
    ) -> Result<FrozenPoint, HypervisorError> {
        let _lock = self.lock(vm).await;
        self.freeze_without_guest(vm, disks, since, next).await
    }

    async fn own_extents(
        &self,
        point: &FrozenPoint,
        disk: DiskId,
    ) -> Result<Option<Vec<Extent>>, HypervisorError> {
        self.extents_of_layer(point, disk).await
    }

    async fn create(&self, vm: NewVirtualMachine) -> Result<(), HypervisorError> {
        let _lock = self.lock(vm.id).await;
        self.make(&vm).await
    }

    async fn restore(&self, vm: LostVirtualMachine) -> Result<(), HypervisorError> {
        let _lock = self.lock(vm.id).await;
        self.make_again(&vm).await
    }

    async fn make_independent(&self, vm: VmId) -> Result<Independence, HypervisorError> {
        let _lock = self.lock(vm).await;
        self.become_independent(vm).await
    }

    async fn remove(&self, vm: VmId) -> Result<(), HypervisorError> {
        let _lock = self.lock(vm).await;
        self.end_layer_servers(vm).await?;
        self.delete(vm).await
    }

    async fn console(&self, vm: VmId) -> Result<PathBuf, HypervisorError> {
        Ok(self.find(vm)?.folder.console())
    }

    async fn screenshot(&self, vm: VmId) -> Result<Screenshot, HypervisorError> {
        let _lock = self.lock(vm).await;
        self.look_at_display(vm).await
    }

    async fn agent_answers(&self, vm: VmId) -> Result<bool, HypervisorError> {
        let _lock = self.lock(vm).await;
        self.ask_agent(vm).await
    }

    async fn ask_port(&self, vm: VmId, port: u16) -> Result<PortAnswer, HypervisorError> {
        self.ask_for_port(vm, port).await
    }
}

/// Connects to the QEMU of a VM, if it runs.
async fn connect(found: &FoundVm) -> Result<Qmp, HypervisorError> {
    let name = &found.config.name;
    if found.folder.running_pid().is_none() {
        return Err(HypervisorError::new(
            ErrorKind::VmNotRunning,
            format!("connect to vm {name}: it is off"),
        ));
    }
    Qmp::connect(&found.folder.qmp_socket(), QMP_PATIENCE)
        .await
        .map_err(|error| from_qmp(format!("connect to vm {name}"), error))
}

fn from_qmp(step: impl Into<String>, error: QmpError) -> HypervisorError {
    let kind = match &error {
        QmpError::Connect { .. } | QmpError::Connection { .. } => ErrorKind::VmNotRunning,
        QmpError::Timeout { .. } => ErrorKind::Timeout,
        QmpError::Refused { .. } => ErrorKind::Refused,
        QmpError::Protocol { .. } => ErrorKind::Protocol,
    };
    HypervisorError::with_source(kind, step, error)
}

/// Makes an empty qcow2 image.
async fn create_qcow2(path: &Path, size_bytes: u64) -> Result<(), HypervisorError> {
    let step = format!("create image {}", path.display());
    let run = Command::new(QEMU_IMG)
        .args(["create", "-q", "-f", "qcow2"])
        .arg(path)
        .arg(size_bytes.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(QEMU_IMG_TIMEOUT, run)
        .await
        .map_err(|_| HypervisorError::new(ErrorKind::Timeout, step.clone()))?
        .map_err(|error| missing_or_io(error, &step, QEMU_IMG, "qemu-utils"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(HypervisorError::with_source(
        ErrorKind::Io,
        step,
        String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    ))
}

fn missing_or_io(
    error: std::io::Error,
    step: &str,
    program: &str,
    package: &str,
) -> HypervisorError {
    if error.kind() == std::io::ErrorKind::NotFound {
        let text = format!("{step}: program {program} is missing; install the package {package}");
        HypervisorError::with_source(ErrorKind::Missing, text, error)
    } else {
        HypervisorError::with_source(ErrorKind::Io, format!("{step}: run {program}"), error)
    }
}

/// Names in QEMU that are ours.
fn is_ours(value: &Value, field: &str) -> Option<String> {
    value
        .get(field)
        .and_then(Value::as_str)
        .filter(|name| name.starts_with("sr-"))
        .map(str::to_owned)
}
