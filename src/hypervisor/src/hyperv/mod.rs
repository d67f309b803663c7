//! Driver `hyperv`: Windows Server 2016 and later, through WMI and virtdisk; no PowerShell.
//!
//! ```text
//!   HypervDriver ─► survey  VMs, disks, adapters      ┐
//!                   particulars  for checks           │
//!                   points  checkpoints, RCT          ├─► Host ─► system  WMI through COM, virtdisk.dll (Windows only)
//!                   power   start, stop, heartbeat    │       └─► a double that tests bring
//!                   make    DefineSystem ...          ┘
//! ```
//!
//! Everything but [`system`] is portable and knows the host through [`host::Host`] only. What Microsoft documents is proven
//! on a double; what only a real host can prove stands in the guide `windows-hosts`.

pub mod host;
mod jobs;
mod make;
mod names;
mod particulars;
mod points;
mod power;
mod reader;
mod record;
mod settle;
mod survey;
#[cfg(windows)]
mod system;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::{
    Consistency, DiskId, ErrorKind, FrozenPoint, HostFacts, Hypervisor, HypervisorError,
    LostVirtualMachine, NewVirtualMachine, Particulars, PowerState, Stop, TrackingId,
    VirtualMachine, VmId, Volume,
};
use host::Host;
use points::{Session, Wish};

/// The driver. Cheap to clone.
#[derive(Clone)]
pub struct HypervDriver {
    host: Arc<dyn Host>,
    /// One at a time on a VM's points and settings.
    locks: Arc<Mutex<HashMap<VmId, Arc<Mutex<()>>>>>,
}

impl HypervDriver {
    /// For the host that this process runs on.
    ///
    /// # Errors
    /// [`ErrorKind::Missing`] without the Hyper-V role, [`ErrorKind::Configuration`] on a client edition of Windows.
    #[cfg(windows)]
    pub fn new() -> Result<Self, HypervisorError> {
        let host =
            system::LocalHost::connect().map_err(|error| jobs::failed("reach WMI", error))?;
        Self::with_host(Arc::new(host))
    }

    /// For a host, such as a double.
    ///
    /// # Errors
    /// As for a real one: [`ErrorKind::Missing`] without the Hyper-V role, [`ErrorKind::Configuration`] on a client edition.
    pub fn with_host(host: Arc<dyn Host>) -> Result<Self, HypervisorError> {
        survey::host(host.as_ref())?;
        Ok(Self {
            host,
            locks: Arc::default(),
        })
    }

    /// The failover cluster that the host is a node of.
    ///
    /// # Errors
    /// Those of WMI.
    pub async fn cluster(&self) -> Result<Option<String>, HypervisorError> {
        self.with(
            "look at the cluster",
            |host| Ok(survey::host(host)?.cluster),
        )
        .await
    }

    /// Waits until VMs, or their settings, were made, changed, moved or removed, at most for `patience`; tells whether.
    ///
    /// # Errors
    /// Those of WMI.
    pub async fn wait_for_change(&self, patience: Duration) -> Result<bool, HypervisorError> {
        self.with("wait for a change", move |host| {
            host.wait_for_change(patience)
                .map_err(|error| jobs::failed("wait for a change of vms", error))
        })
        .await
    }

    async fn with<T: Send + 'static>(
        &self,
        step: &'static str,
        work: impl FnOnce(&dyn Host) -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let host = self.host.clone();
        blocking(step, move || work(host.as_ref())).await
    }

    /// As [`Self::with`], alone on the VM.
    async fn alone<T: Send + 'static>(
        &self,
        vm: VmId,
        step: &'static str,
        work: impl FnOnce(&dyn Host) -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.entry(vm).or_default().clone()
        };
        self.with(step, move |host| {
            let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
            work(host)
        })
        .await
    }
}

#[async_trait]
impl Hypervisor for HypervDriver {
    async fn host(&self) -> Result<HostFacts, HypervisorError> {
        self.with("look at the host", |host| {
            let facts = survey::host(host)?;
            let volume = facts.disk_folder.as_deref().map(Volume::of);
            Ok(HostFacts {
                name: facts.name,
                operating_system: facts.operating_system,
                hypervisor: "hyperv".to_owned(),
                hypervisor_version: facts.version,
                free_bytes: volume.and_then(Result::ok).map_or(0, |one| one.free_bytes),
                accelerated: true,
            })
        })
        .await
    }

    async fn virtual_machines(&self) -> Result<Vec<VirtualMachine>, HypervisorError> {
        self.with("list the virtual machines", |host| {
            let all = survey::machines(host)?;
            Ok(all.into_iter().map(|one| one.vm).collect())
        })
        .await
    }

    async fn particulars(&self) -> Result<Vec<Particulars>, HypervisorError> {
        self.with("look at the virtual machines", particulars::all)
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
        let wish = Wish {
            vm,
            disks: disks.to_vec(),
            since,
            next,
            consistency,
            off: false,
        };
        self.alone(vm, "freeze", move |host| {
            Session::open(host, vm, "freeze")?.freeze(&wish)
        })
        .await
    }

    async fn freeze_off(
        &self,
        vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
    ) -> Result<FrozenPoint, HypervisorError> {
        let wish = Wish {
            vm,
            disks: disks.to_vec(),
            since,
            next,
            consistency: Consistency::Crash,
            off: true,
        };
        self.alone(vm, "freeze", move |host| {
            Session::open(host, vm, "freeze")?.freeze(&wish)
        })
        .await
    }

    async fn release(&self, point: FrozenPoint) -> Result<(), HypervisorError> {
        let vm = point.vm;
        self.alone(vm, "release", move |host| {
            // Its files first: Hyper-V merges into them.
            drop(point);
            Session::open(host, vm, "release a point of")?.settle()
        })
        .await
    }

    async fn tracking(&self, vm: VmId) -> Result<Vec<TrackingId>, HypervisorError> {
        self.alone(vm, "list tracking", move |host| {
            Session::open(host, vm, "list tracking of")?.tracking()
        })
        .await
    }

    async fn forget(&self, vm: VmId, older_than: TrackingId) -> Result<(), HypervisorError> {
        self.alone(vm, "forget", move |host| {
            Session::open(host, vm, "forget tracking of")?.forget(|one| one < older_than)
        })
        .await
    }

    async fn forget_all(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.alone(vm, "forget", move |host| {
            match Session::open(host, vm, "forget tracking of") {
                Ok(mut session) => session.forget(|_| true),
                Err(error) => gone(error),
            }
        })
        .await
    }

    async fn clean_up(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.alone(vm, "clean up", move |host| {
            match Session::open(host, vm, "clean up") {
                Ok(mut session) => session.settle(),
                Err(error) => gone(error),
            }
        })
        .await
    }

    async fn disk_path(&self, vm: VmId, disk: DiskId) -> Result<PathBuf, HypervisorError> {
        self.with("find a disk", move |host| {
            let machine = survey::find(host, vm, "find a disk of")?;
            let found = machine.disks.into_iter().find(|one| one.id == disk);
            found.map(|one| one.file).ok_or_else(|| {
                HypervisorError::new(
                    ErrorKind::DiskNotFound,
                    format!("vm {} has no disk {disk}", machine.vm.name),
                )
            })
        })
        .await
    }

    async fn power_state(&self, vm: VmId) -> Result<PowerState, HypervisorError> {
        self.with("ask for the state", move |host| {
            // Cheap for a VM under its own GUID; one that we made is looked for by its notes.
            let own = vm.to_string();
            let computers = survey::computers(host)?;
            let found = computers
                .iter()
                .find(|one| one.text("Name").eq_ignore_ascii_case(&own));
            match found.and_then(|one| one.number("EnabledState")) {
                Some(state) => Ok(survey::power_state(state)),
                None => Ok(survey::find(host, vm, "ask for the state of")?
                    .vm
                    .power_state),
            }
        })
        .await
    }

    async fn start(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.with("start", move |host| power::start(host, vm)).await
    }

    async fn stop(&self, vm: VmId, how: Stop) -> Result<(), HypervisorError> {
        self.with("stop", move |host| power::stop(host, vm, how))
            .await
    }

    async fn create(&self, vm: NewVirtualMachine) -> Result<(), HypervisorError> {
        self.alone(vm.id, "create", move |host| make::create(host, &vm))
            .await
    }

    async fn restore(&self, vm: LostVirtualMachine) -> Result<(), HypervisorError> {
        self.alone(vm.id, "restore", move |host| make::restore(host, &vm))
            .await
    }

    async fn remove(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.alone(vm, "remove", move |host| make::remove(host, vm))
            .await
    }

    async fn console(&self, vm: VmId) -> Result<PathBuf, HypervisorError> {
        Err(HypervisorError::new(
            ErrorKind::Refused,
            format!(
                "show the console of vm {vm}: Hyper-V keeps no file of what a serial port says"
            ),
        ))
    }

    async fn agent_answers(&self, vm: VmId) -> Result<bool, HypervisorError> {
        self.with("look for the heartbeat", move |host| {
            power::heart_beats(host, vm)
        })
        .await
    }
}

/// A VM that is gone has nothing to take away, nor has one without a disk that can be read.
fn gone(error: HypervisorError) -> Result<(), HypervisorError> {
    match error.kind() {
        ErrorKind::VmNotFound | ErrorKind::DiskNotFound => Ok(()),
        _ => Err(error),
    }
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
