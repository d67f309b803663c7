//! The double of a Hyper-V host of which something is broken on purpose, and a guest of it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use engine::qualify::Subject;
use engine::qualify::assumptions::Step;
use engine::qualify::guest::{Guest, WRITTEN};
use hypervisor::hyperv::host::{
    ACCESS_DENIED, DiskFacts, Host, HostError, INVALID_CHANGE_TRACKING_ID, Instance, OpenDisk,
    Value,
};
use hypervisor::{DiskId, ErrorKind, Extent, HypervDriver, HypervisorError, VmId};
use uuid::Uuid;

use super::hyperv_double::{self, Double};

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Broken {
    Nothing,
    /// A method fails from the n-th call on, so many times.
    Method(&'static str, u32, u32),
    /// A change of state that is asked for with this number fails once.
    State(i64),
    Denied,
    Cluster,
    Events,
    Listing,
    Open,
    Attach,
    Read,
    ReadsOtherBytes,
    ReadsMovingBytes,
    Changes,
    RctIds,
    ChangesMissed,
    /// All but the last that were told.
    ChangesLost,
    ChangesElsewhere,
    AnswersForAGuestThatCanNot,
    ShutsDownWhatCanNot,
    GuestAsleepAfterFailback,
}

/// A double of which something is broken.
pub struct Host1 {
    pub double: Double,
    pub broken: Broken,
    calls: AtomicU32,
    defined: AtomicBool,
    /// Steps that were told.
    pub step: Mutex<String>,
}

impl Host1 {
    pub fn new(broken: Broken) -> Arc<Self> {
        let double = Double::new();
        {
            let mut state = double.state();
            // Its guest is a boot sector.
            state.faults.no_application_points = broken != Broken::AnswersForAGuestThatCanNot;
            state.faults.ignores_shutdown = broken != Broken::ShutsDownWhatCanNot;
        }
        Arc::new(Self {
            double,
            broken,
            calls: AtomicU32::new(0),
            defined: AtomicBool::new(false),
            step: Mutex::default(),
        })
    }

    pub fn is_at(&self, step: Step) -> bool {
        *self.step.lock().unwrap() == step.name()
    }

    pub fn open(self: &Arc<Self>) -> anyhow::Result<Subject> {
        let driver = HypervDriver::with_host(self.clone())?;
        Ok(Subject {
            driver: Arc::new(driver.clone()),
            hyperv: Some(driver),
        })
    }

    /// Names of the VMs that are there.
    pub fn machines(&self) -> Vec<String> {
        let state = self.double.state();
        let all = state.objects.values();
        all.filter(|one| one.class == "Msvm_ComputerSystem")
            .map(|one| one.text("ElementName").to_owned())
            .collect()
    }

    /// The GUID that Hyper-V gave a VM of ours.
    pub fn own_id(&self, vm: VmId) -> Option<Uuid> {
        let state = self.double.state();
        let mut all = state.objects.values();
        let settings = all.find(|one| {
            // Checkpoints have the notes of their machine.
            one.text("VirtualSystemType") == hyperv_double::REALIZED
                && one
                    .texts("Notes")
                    .iter()
                    .any(|note| note.contains(&vm.to_string()))
        })?;
        settings
            .text("InstanceID")
            .strip_prefix("Microsoft:")?
            .parse()
            .ok()
    }
}

fn io(text: &str) -> HostError {
    HostError::new(1117, text)
}

impl Host for Host1 {
    fn instances(&self, namespace: &str, class: &str) -> Result<Vec<Instance>, HostError> {
        match self.broken {
            Broken::Cluster if class == "MSCluster_Cluster" && self.is_at(Step::Host) => {
                return Err(io(
                    "SELECT * FROM MSCluster_Cluster: the service does not answer",
                ));
            }
            Broken::Listing if class == "Msvm_ComputerSystem" && self.is_at(Step::Host) => {
                return Err(io("the provider failed to load"));
            }
            _ => {}
        }
        self.double.instances(namespace, class)
    }

    fn associated(&self, path: &str, result: &str) -> Result<Vec<Instance>, HostError> {
        self.double.associated(path, result)
    }

    fn object(&self, path: &str) -> Result<Instance, HostError> {
        self.double.object(path)
    }

    fn call(
        &self,
        path: &str,
        method: &str,
        arguments: Vec<(&'static str, Value)>,
    ) -> Result<Instance, HostError> {
        let wished = arguments.iter().find(|one| one.0 == "RequestedState");
        let wished = wished.map(|one| one.1.clone());
        let fails = match self.broken {
            Broken::Method(name, from, times) if name == method => {
                let call = self.calls.fetch_add(1, Ordering::SeqCst);
                (from..from.saturating_add(times)).contains(&call)
            }
            Broken::State(state) if wished == Some(Value::Number(state)) => {
                self.calls.fetch_add(1, Ordering::SeqCst) == 0
            }
            Broken::Denied if method == "DefineSystem" => {
                return Err(HostError::new(ACCESS_DENIED, "access denied"));
            }
            _ => false,
        };
        if fails {
            return Ok(Instance::new("__PARAMETERS").with("ReturnValue", Value::Number(32768)));
        }
        if method == "DefineSystem" {
            self.defined.store(true, Ordering::SeqCst);
        }
        self.double.call(path, method, arguments)
    }

    fn open_disk(&self, file: &Path) -> Result<Box<dyn OpenDisk>, HostError> {
        if self.broken == Broken::Open && self.is_at(Step::Freeze) && self.frozen(file) {
            return Err(HostError::new(32, "open disk: the file is in use"));
        }
        Ok(Box::new(Disk {
            inner: self.double.open_disk(file)?,
            broken: self.broken,
            reads: AtomicU32::new(0),
            tracks: self.is_at(Step::Track),
            running: self.is_at(Step::Freeze),
            off: self.is_at(Step::FreezeOff),
        }))
    }

    fn enable_tracking(&self, file: &Path) -> Result<(), HostError> {
        self.double.enable_tracking(file)
    }

    fn wait_for_change(&self, _patience: Duration) -> Result<bool, HostError> {
        let told = self.defined.swap(false, Ordering::SeqCst);
        Ok(told && self.broken != Broken::Events)
    }

    fn pause(&self, time: Duration) {
        self.double.pause(time);
    }
}

impl Host1 {
    /// Whether a checkpoint is there that holds the file.
    fn frozen(&self, file: &Path) -> bool {
        !self.double.checkpoints(hyperv_double::RECOVERY).is_empty()
            && file.extension().is_some_and(|end| end == "vhdx")
    }
}

struct Disk {
    inner: Box<dyn OpenDisk>,
    broken: Broken,
    /// How often it was read from its beginning.
    reads: AtomicU32,
    tracks: bool,
    running: bool,
    off: bool,
}

impl OpenDisk for Disk {
    fn facts(&self) -> Result<DiskFacts, HostError> {
        self.inner.facts()
    }

    fn changes(
        &self,
        since: &str,
        offset: u64,
        length: u64,
    ) -> Result<(Vec<Extent>, u64), HostError> {
        match self.broken {
            Broken::Changes if self.tracks => Err(io("ask for changes since x: device error")),
            Broken::RctIds if self.tracks => Err(HostError::new(
                INVALID_CHANGE_TRACKING_ID,
                "ask for changes since x: no such id",
            )),
            Broken::ChangesMissed if self.tracks => Ok((Vec::new(), length)),
            Broken::ChangesLost if self.tracks => {
                let (mut all, end) = self.inner.changes(since, offset, length)?;
                all.pop();
                Ok((all, end))
            }
            Broken::ChangesElsewhere if self.tracks => {
                let extent = Extent {
                    offset: 7 << 20,
                    length: 512,
                };
                Ok((vec![extent], length))
            }
            _ => self.inner.changes(since, offset, length),
        }
    }

    fn attach(&self) -> Result<(), HostError> {
        if self.broken == Broken::Attach && self.running {
            return Err(HostError::new(
                32,
                "attach a disk for reading: the file is in use",
            ));
        }
        self.inner.attach()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), HostError> {
        if self.broken == Broken::Read && self.running {
            return Err(io("ReadFile: device error"));
        }
        self.inner.read(offset, buffer)?;
        match self.broken {
            Broken::ReadsOtherBytes if self.off => buffer[0] ^= 1,
            // The witness reads it once, the step a first time; then it moves, and later is as it was.
            Broken::ReadsMovingBytes
                if self.tracks && offset == 0 && self.reads.fetch_add(1, Ordering::SeqCst) == 2 =>
            {
                buffer[0] ^= 1;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Writes as the boot sector does.
pub struct DoubleGuest {
    pub host: Arc<Host1>,
    pub count: AtomicU32,
}

#[async_trait]
impl Guest for DoubleGuest {
    fn period(&self) -> Duration {
        // It writes when it is told.
        Duration::ZERO
    }

    async fn write(&self, vm: VmId, disk: DiskId) -> Result<(), HypervisorError> {
        let asleep = self.host.broken == Broken::GuestAsleepAfterFailback;
        if asleep && self.host.is_at(Step::FailBack) {
            return Ok(());
        }
        let count = self.count.fetch_add(1, Ordering::SeqCst);
        let offset = WRITTEN.start + u64::from(count % 16) * (64 << 10);
        let byte = u8::try_from(count % 200 + 1).unwrap();
        let own = self.host.own_id(vm).unwrap();
        self.host
            .double
            .write(VmId(own), disk, offset, 512, byte)
            .map_err(|error| HypervisorError::with_source(ErrorKind::Io, "write", error))
    }
}
