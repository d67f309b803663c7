//! `qualify` of the hyperv driver on its double: every assumption that the double can break is broken on purpose, and exactly
//! that line says so.

#[allow(dead_code, reason = "of the double's tests some things are used")]
#[path = "../../hypervisor/tests/hyperv_double/mod.rs"]
mod hyperv_double;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use engine::qualify::assumptions::{self, Kind, Step};
use engine::qualify::guest::{Guest, WRITTEN};
use engine::qualify::report::Report;
use engine::qualify::{PREFIX, Subject, Verdict, Wish, clean_up, conduct};
use hyperv_double::Double;
use hypervisor::hyperv::host::{
    ACCESS_DENIED, DiskFacts, Host, HostError, INVALID_CHANGE_TRACKING_ID, Instance, OpenDisk,
    Value,
};
use hypervisor::{DiskId, ErrorKind, Extent, HypervDriver, HypervisorError, VmId};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Broken {
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
    ChangesElsewhere,
    AnswersForAGuestThatCanNot,
    ShutsDownWhatCanNot,
    GuestAsleepAfterFailback,
}

/// A double of which something is broken.
struct Host1 {
    double: Double,
    broken: Broken,
    calls: AtomicU32,
    defined: AtomicBool,
    reads: Arc<AtomicU32>,
    /// Steps that were told.
    step: Mutex<String>,
}

impl Host1 {
    fn new(broken: Broken) -> Arc<Self> {
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
            reads: Arc::default(),
            step: Mutex::default(),
        })
    }

    fn is_at(&self, step: Step) -> bool {
        *self.step.lock().unwrap() == step.name()
    }

    fn open(self: &Arc<Self>) -> anyhow::Result<Subject> {
        let driver = HypervDriver::with_host(self.clone())?;
        Ok(Subject {
            driver: Arc::new(driver.clone()),
            hyperv: Some(driver),
        })
    }

    /// Names of the VMs that are there.
    fn machines(&self) -> Vec<String> {
        let state = self.double.state();
        let all = state.objects.values();
        all.filter(|one| one.class == "Msvm_ComputerSystem")
            .map(|one| one.text("ElementName").to_owned())
            .collect()
    }

    /// The GUID that Hyper-V gave a VM of ours.
    fn own_id(&self, vm: VmId) -> Option<Uuid> {
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
                (from..from + times).contains(&call)
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
            reads: self.reads.clone(),
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
    reads: Arc<AtomicU32>,
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
            // The witness reads it once, the step a first time; from then on it moves, and later is as it was.
            Broken::ReadsMovingBytes if self.running && offset == 0 => {
                let read = self.reads.fetch_add(1, Ordering::SeqCst);
                if (4..6).contains(&read) {
                    buffer[0] ^= 1;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Writes as the boot sector does.
struct DoubleGuest {
    host: Arc<Host1>,
    count: AtomicU32,
}

#[async_trait]
impl Guest for DoubleGuest {
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

struct Qualified {
    host: Arc<Host1>,
    folder: tempfile::TempDir,
    report: Report,
}

async fn qualify(broken: Broken) -> Qualified {
    let host = Host1::new(broken);
    host.double.running_vm("web", 1, "vhdx", "9.0");
    let folder = tempfile::tempdir().unwrap();
    let guest = DoubleGuest {
        host: host.clone(),
        count: AtomicU32::new(0),
    };
    // Long where an answer comes, short where none does.
    let silent = [Broken::ChangesMissed, Broken::GuestAsleepAfterFailback];
    let patience = if silent.contains(&broken) { 1 } else { 60 };
    let wish = Wish {
        kind: Kind::Hyperv,
        folder: folder.path().to_owned(),
        patience: Duration::from_secs(patience),
        stop: CancellationToken::new(),
    };
    let opened = host.clone();
    let told = |step: &str| step.clone_into(&mut host.step.lock().unwrap());
    let report = conduct(&wish, &|_| opened.open(), &guest, &told)
        .await
        .unwrap();
    Qualified {
        host: host.clone(),
        folder,
        report,
    }
}

impl Qualified {
    fn broken(&self) -> Vec<&'static str> {
        let all = self.report.lines.iter();
        all.filter(|(_, outcome)| matches!(outcome.verdict, Verdict::Broken(_)))
            .map(|(line, _)| line.id)
            .collect()
    }

    fn verdict(&self, id: &str) -> &Verdict {
        let found = self.report.lines.iter().find(|(line, _)| line.id == id);
        &found.unwrap().1.verdict
    }

    /// Of all that was made nothing is left, and the host's own VM is as it was.
    fn left_nothing(&self) {
        assert_eq!(self.report.left, None);
        assert_eq!(self.host.machines(), ["web"]);
        assert_eq!(std::fs::read_dir(self.folder.path()).unwrap().count(), 0);
        let points = self.host.double.count("Msvm_VirtualSystemReferencePoint");
        assert_eq!(points, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_sound_host_every_line_that_can_be_tried_holds_and_nothing_is_left() {
    let all = qualify(Broken::Nothing).await;
    assert_eq!(all.broken(), [""; 0], "{}", all.report.text());
    for (line, outcome) in &all.report.lines {
        let expected = line.untried.is_none();
        assert_eq!(outcome.verdict == Verdict::Holds, expected, "{}", line.id);
        assert!(expected || matches!(outcome.verdict, Verdict::NotTried(_)));
    }
    assert_eq!(
        all.report.lines.len(),
        assumptions::of(Kind::Hyperv).count()
    );
    assert!(all.report.holds());
    all.left_nothing();
    // Nothing of the host's own is in what may be sent.
    for text in [all.report.text(), all.report.json().to_string()] {
        for private in [
            "hv1",
            "corp.example",
            "web",
            all.folder.path().to_str().unwrap(),
        ] {
            assert!(!text.contains(private), "{private} in {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_assumption_that_is_broken_is_the_line_that_says_so_and_nothing_is_left() {
    let cases = [
        (Broken::Listing, "host-answers"),
        (Broken::Denied, "hyperv-rights"),
        (Broken::Cluster, "hyperv-cluster"),
        (Broken::Events, "hyperv-events"),
        (Broken::Method("DefineSystem", 0, 1), "hyperv-define"),
        (
            Broken::Method("AddResourceSettings", 0, 1),
            "hyperv-resources",
        ),
        (
            Broken::Method("AddResourceSettings", 2, 1),
            "hyperv-resources",
        ),
        (
            Broken::Method("ModifyResourceSettings", 0, 1),
            "hyperv-quantities",
        ),
        (Broken::Method("ModifySystemSettings", 0, 1), "hyperv-notes"),
        (Broken::State(2), "hyperv-start"),
        (Broken::Method("CreateSnapshot", 0, 1), "hyperv-checkpoint"),
        (
            Broken::Method("ModifySystemSettings", 1, 1),
            "hyperv-checkpoint-name",
        ),
        (Broken::Open, "hyperv-open-parent"),
        (Broken::Attach, "hyperv-attach-parent"),
        (Broken::ReadsMovingBytes, "frozen-still"),
        (
            Broken::Method("ConvertToReferencePoint", 0, 1),
            "hyperv-convert",
        ),
        (Broken::Changes, "hyperv-changes"),
        (Broken::RctIds, "hyperv-rct-ids"),
        (Broken::ChangesMissed, "track"),
        (Broken::ChangesElsewhere, "track-complete"),
        (
            Broken::Method("DestroyReferencePoint", 0, 1),
            "hyperv-destroy-reference-point",
        ),
        (Broken::AnswersForAGuestThatCanNot, "application-honest"),
        (Broken::ShutsDownWhatCanNot, "shut-down-honest"),
        (Broken::State(3), "hyperv-turn-off"),
        (
            Broken::Method("CreateReferencePoint", 0, 1),
            "hyperv-reference-point-off",
        ),
        (Broken::ReadsOtherBytes, "freeze-off-equal"),
        (Broken::Method("DestroySystem", 0, 1), "hyperv-destroy"),
        (Broken::GuestAsleepAfterFailback, "fail-back-runs"),
    ];
    let mut wrong = Vec::new();
    for (broken, line) in cases {
        let all = qualify(broken).await;
        if all.broken() != [line] {
            wrong.push(format!(
                "{broken:?}: {:?}, not {line}\n{}",
                all.broken(),
                all.report.text()
            ));
            continue;
        }
        assert!(!all.report.holds());
        all.left_nothing();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_depends_on_a_broken_line_says_so_and_the_rest_is_tried() {
    let all = qualify(Broken::Changes).await;
    let because = Verdict::NotTried("because of hyperv-changes".to_owned());
    for id in ["track", "hyperv-rct-ids", "track-complete", "forget"] {
        assert_eq!(*all.verdict(id), because, "{id}");
    }
    for id in [
        "abandon-clean-up",
        "protect-equal",
        "fail-back-runs",
        "remove",
    ] {
        assert_eq!(*all.verdict(id), Verdict::Holds, "{id}");
    }
    let text = all.report.text();
    assert!(
        text.contains("ask for changes since x: device error"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_dies_at_any_step_is_cleaned_up_by_the_next_and_others_are_not_touched() {
    let steps: BTreeSet<Step> = Step::ALL
        .into_iter()
        .filter(|one| *one != Step::Elsewhere)
        .collect();
    for death in steps {
        let host = Host1::new(Broken::Nothing);
        host.double.running_vm("web", 1, "vhdx", "9.0");
        let folder = tempfile::tempdir().unwrap();
        let guest = DoubleGuest {
            host: host.clone(),
            count: AtomicU32::new(0),
        };
        let wish = Wish {
            kind: Kind::Hyperv,
            folder: folder.path().to_owned(),
            patience: Duration::from_secs(60),
            stop: CancellationToken::new(),
        };
        let opened = host.clone();
        let told = |step: &str| {
            if step == death.name() {
                // From the fifth call of this step on nothing of the dead process reaches the host.
                host.double.state().faults.dies_at = Some(5);
            }
        };
        let report = conduct(&wish, &|_| opened.open(), &guest, &told)
            .await
            .unwrap();
        assert!(
            report.left.is_some(),
            "{death:?}: it died before it could clean up"
        );
        host.double.state().faults.dies_at = None;
        let found = clean_up(folder.path(), &|_| host.open()).await.unwrap();
        assert!(found.is_some(), "{death:?}");
        assert_eq!(host.machines(), ["web"], "{death:?}");
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "{death:?}"
        );
        assert_eq!(
            host.double.count("Msvm_VirtualSystemReferencePoint"),
            0,
            "{death:?}"
        );
        assert_eq!(
            clean_up(folder.path(), &|_| host.open()).await.unwrap(),
            None
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_virtual_machine_of_another_name_is_not_touched_although_the_record_names_its_id() {
    let host = Host1::new(Broken::Nothing);
    let web = host.double.running_vm("web", 1, "vhdx", "9.0");
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("siterecovery-qualify");
    std::fs::create_dir(&place).unwrap();
    let record = serde_json::json!({
        "version": 1, "run": "0a1b2c3d", "driver": "hyperv", "source": web.0, "back": Uuid::new_v4(),
    });
    std::fs::write(place.join("record.json"), record.to_string()).unwrap();
    let error = clean_up(folder.path(), &|_| host.open()).await.unwrap_err();
    assert!(format!("{error:#}").contains("is not touched"), "{error:#}");
    assert_eq!(host.machines(), ["web"]);
    assert!(!"web".starts_with(PREFIX));
}
