//! The `hyperv` driver on a double of its host: see `hyperv_double`.

mod hyperv_double;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hyperv_double::{Double, Faults, RECOVERY, USER};
use hypervisor::hyperv::host::Value;
use hypervisor::{
    Changes, Consistency, DiskId, DiskSource, ErrorKind, Extent, FrozenPoint, Generation,
    HypervDriver, Hypervisor, HypervisorError, LostDisk, LostVirtualMachine, NewDisk, NewNetwork,
    NewVirtualMachine, PowerState, Presence, Quiescence, Stop, TrackingId, VmId, conformance,
};
use uuid::Uuid;

const BLOCK: u64 = 64 << 10;

struct Lab {
    double: Arc<Double>,
    driver: HypervDriver,
    vm: VmId,
    disks: Vec<DiskId>,
}

impl Lab {
    async fn new() -> Self {
        Self::with("vhdx", "9.0").await
    }

    async fn with(extension: &str, version: &str) -> Self {
        let double = Arc::new(Double::new());
        let vm = double.running_vm("web", 2, extension, version);
        let driver = HypervDriver::with_host(double.clone()).unwrap();
        let listed = driver.virtual_machines().await.unwrap();
        let disks = listed[0].disks.iter().map(|disk| disk.id).collect();
        Self {
            double,
            driver,
            vm,
            disks,
        }
    }

    /// The driver of a process that was started again.
    fn restarted(&self) -> HypervDriver {
        self.double.state().faults.dies_at = None;
        HypervDriver::with_host(self.double.clone()).unwrap()
    }

    fn write(&self, disk: usize, block: u64, byte: u8) {
        self.double
            .write(self.vm, self.disks[disk], block * BLOCK, 512, byte)
            .unwrap();
    }

    async fn freeze(
        &self,
        since: Option<u64>,
        next: u64,
        consistency: Consistency,
    ) -> Result<FrozenPoint, HypervisorError> {
        self.driver
            .freeze(self.vm, &self.disks, since.map(id), id(next), consistency)
            .await
    }
}

fn id(number: u64) -> TrackingId {
    TrackingId {
        generation: 1,
        number,
    }
}

fn blocks(changes: &Changes) -> Vec<u64> {
    let Changes::Since(extents) = changes else {
        panic!("changes are unknown");
    };
    let all = extents.iter();
    all.flat_map(|one: &Extent| one.offset / BLOCK..one.end().div_ceil(BLOCK))
        .collect()
}

#[async_trait]
impl conformance::Fixture for Lab {
    fn vm(&self) -> VmId {
        self.vm
    }

    async fn write(
        &self,
        disk: DiskId,
        offset: u64,
        length: u64,
        byte: u8,
    ) -> Result<(), HypervisorError> {
        self.double
            .write(self.vm, disk, offset, length, byte)
            .map_err(|error| HypervisorError::with_source(ErrorKind::Io, "write", error))
    }
}

#[tokio::test]
async fn the_driver_keeps_the_promises_of_all_drivers() {
    let lab = Lab::new().await;
    conformance::run(&lab.driver, &lab).await.unwrap();
    conformance::run_shut_down(&lab.driver, &lab).await.unwrap();
    assert_eq!(lab.double.count("Msvm_VirtualSystemReferencePoint"), 0);
    assert_eq!(lab.double.files("avhdx"), 0, "every checkpoint was merged");
    assert_eq!(lab.double.files("json"), 0, "no record is left");
}

#[tokio::test]
async fn the_inventory_tells_what_the_host_has() {
    let lab = Lab::new().await;
    let host = lab.driver.host().await.unwrap();
    assert_eq!(host.name, "hv1.corp.example");
    assert_eq!(host.hypervisor_version, "10.0.20348");
    assert!(host.free_bytes > 0);
    assert_eq!(lab.driver.cluster().await.unwrap(), None);
    let vm = lab.driver.virtual_machines().await.unwrap().remove(0);
    assert_eq!((vm.id, vm.name.as_str()), (lab.vm, "web"));
    assert_eq!(vm.generation, Generation::Two);
    assert_eq!((vm.processors, vm.memory_bytes), (2, 1 << 30));
    assert_eq!(vm.os_type, "Windows");
    assert_eq!(vm.network_adapters[0].network_name, "lan");
    assert_eq!(vm.network_adapters[0].mac_address, "00:15:5D:01:2A:FE");
    // By controller and slot, not as they are listed.
    let names: Vec<&str> = vm.disks.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["web-1.vhdx", "web-0.vhdx"]);
    assert!(vm.disks[0].operating_system && !vm.disks[1].operating_system);
    assert!(lab.driver.agent_answers(lab.vm).await.unwrap());
}

#[tokio::test]
async fn what_checks_want_to_know_is_told_and_what_nobody_said_stays_unknown() {
    let lab = Lab::new().await;
    let other = lab.double.running_vm("db", 2, "vhd", "9.0");
    lab.double.furnish(lab.vm, other);
    let all = lab.driver.particulars().await.unwrap();
    let of = |vm| all.iter().find(|one| one.vm == vm).unwrap();
    let (web, db) = (of(lab.vm), of(other));
    assert_eq!(web.os_name, "Windows Server 2022");
    assert_eq!(
        (web.os_version.as_str(), web.architecture.as_str()),
        ("", "")
    );
    assert_eq!(
        (web.secure_boot, db.secure_boot),
        (Presence::Present, Presence::Unknown)
    );
    assert_eq!(
        (web.virtual_tpm, db.virtual_tpm),
        (Presence::Present, Presence::Unknown)
    );
    assert_eq!(web.fibre_channel, Presence::NotPresent);
    assert_eq!(web.checkpoints, Presence::NotPresent);

    let disk = |name: &str| web.disks.iter().find(|disk| disk.name == name).unwrap();
    let own = disk("web-0.vhdx");
    assert!(own.id.is_some_and(|id| lab.disks.contains(&id)));
    assert_eq!(
        (own.format.as_str(), own.controller.as_str()),
        ("VHDX", "SCSI")
    );
    assert_eq!(
        (own.shared, own.pass_through),
        (Presence::NotPresent, Presence::NotPresent)
    );
    assert!(own.volume_free_bytes.is_some_and(|free| free > 0) && !own.volume.is_empty());
    assert_eq!(own.look, None);
    let borrowed = disk("db-1.vhd");
    assert_eq!(
        (borrowed.format.as_str(), borrowed.shared),
        ("VHD", Presence::Present)
    );
    let shared: Vec<bool> = db
        .disks
        .iter()
        .map(|one| one.shared == Presence::Present)
        .collect();
    assert_eq!(shared, [false, true]);
    let of_host = disk("Physical Disk Drive");
    assert_eq!(
        (of_host.id, of_host.pass_through),
        (None, Presence::Present)
    );
    assert_eq!(of_host.controller, "SCSI");
}

#[tokio::test]
async fn a_client_edition_is_refused_with_the_reason() {
    let double = Double::new();
    double.state().client_edition = true;
    let error = HypervDriver::with_host(Arc::new(double)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.to_string().contains("client edition"), "{error}");
}

#[tokio::test]
async fn a_guest_that_can_not_come_to_rest_gives_a_point_that_says_so() {
    let lab = Lab::new().await;
    let point = lab.freeze(None, 1, Consistency::Application).await.unwrap();
    assert!(point.quiescence.is_confirmed());
    lab.driver.release(point).await.unwrap();
    lab.double.state().faults.no_application_points = true;
    let point = lab
        .freeze(Some(1), 2, Consistency::Application)
        .await
        .unwrap();
    let Quiescence::NotConfirmed { text, .. } = &point.quiescence else {
        panic!("{:?}", point.quiescence);
    };
    assert!(text.contains("did not come to rest"), "{text}");
    assert_eq!(lab.double.checkpoints(RECOVERY).len(), 1);
    lab.driver.release(point).await.unwrap();
}

#[tokio::test]
async fn tracking_that_is_lost_is_said_to_be_unknown_and_works_again_from_the_next_point() {
    let lab = Lab::new().await;
    let point = lab.freeze(None, 1, Consistency::Crash).await.unwrap();
    lab.driver.release(point).await.unwrap();
    // Somebody removed the reference point.
    let gone: Vec<String> = {
        let state = lab.double.state();
        let all = state.objects.keys();
        all.filter(|path| path.starts_with("Msvm_VirtualSystemReferencePoint."))
            .cloned()
            .collect()
    };
    lab.double.state().objects.remove(&gone[0]);
    assert!(lab.driver.tracking(lab.vm).await.unwrap().is_empty());
    let point = lab.freeze(Some(1), 2, Consistency::Crash).await.unwrap();
    assert_eq!(point.disks[0].changes, Changes::Unknown);
    lab.driver.release(point).await.unwrap();
    // RCT itself has lost the id.
    for object in lab.double.state().objects.values_mut() {
        if object.class == "Msvm_VirtualSystemReferencePoint" {
            let lost = Value::Texts(vec!["rctX:1".to_owned(), "rctX:2".to_owned()]);
            object
                .properties
                .insert("ResilientChangeTrackingIdentifiers".to_owned(), lost);
        }
    }
    let point = lab.freeze(Some(2), 3, Consistency::Crash).await.unwrap();
    assert_eq!(point.disks[1].changes, Changes::Unknown);
    lab.driver.release(point).await.unwrap();
    lab.write(0, 4, 0x44);
    let point = lab.freeze(Some(3), 4, Consistency::Crash).await.unwrap();
    assert_eq!(blocks(&point.disks[0].changes), [4]);
    lab.driver.release(point).await.unwrap();
}

#[tokio::test]
async fn without_rct_there_is_a_checkpoint_and_a_comparison() {
    for (extension, version) in [("vhd", "9.0"), ("vhdx", "5.0")] {
        let lab = Lab::with(extension, version).await;
        let point = lab.freeze(None, 1, Consistency::Crash).await.unwrap();
        lab.driver.release(point).await.unwrap();
        lab.write(0, 4, 0x44);
        let point = lab.freeze(Some(1), 2, Consistency::Crash).await.unwrap();
        assert_eq!(lab.double.checkpoints(USER), ["Site Recovery point 1-2"]);
        assert_eq!(point.disks[0].changes, Changes::Unknown);
        lab.write(0, 4, 0x55);
        let data = point.disks[0].reader.read(4 * BLOCK, 512).await.unwrap();
        assert!(data.iter().all(|byte| *byte == 0x44));
        lab.driver.release(point).await.unwrap();
        assert_eq!(lab.double.checkpoints(USER).len(), 0);
        assert_eq!(lab.driver.tracking(lab.vm).await.unwrap(), [id(1), id(2)]);
    }
}

#[tokio::test]
async fn others_checkpoints_are_never_touched() {
    let lab = Lab::with("vhdx", "5.0").await;
    let path = hyperv_double::computer_path(&lab.vm.to_string());
    {
        use hypervisor::hyperv::host::{Host as _, Instance};
        let settings = Instance::new("Msvm_VirtualSystemSnapshotSettingData")
            .with("ConsistencyLevel", Value::Number(2));
        let arguments = vec![
            ("AffectedSystem", Value::Text(path)),
            ("SnapshotSettings", Value::Embedded(settings)),
            ("SnapshotType", Value::Number(2)),
        ];
        let service = "Msvm_VirtualSystemSnapshotService.Name=\"service\"";
        lab.double
            .call(service, "CreateSnapshot", arguments)
            .unwrap();
    }
    let point = lab.freeze(None, 1, Consistency::Crash).await.unwrap();
    lab.driver.release(point).await.unwrap();
    drop(lab.freeze(Some(1), 2, Consistency::Crash).await.unwrap());
    lab.restarted().clean_up(lab.vm).await.unwrap();
    assert_eq!(lab.double.checkpoints(USER), ["automatic"]);
}

/// Dies at every call of a cycle in turn; whatever it left, clean-up finds it, and no change is lost.
#[tokio::test]
async fn a_caller_may_die_at_any_call_of_a_cycle() {
    let mut survived = false;
    for death in 0..400 {
        let lab = Lab::new().await;
        let point = lab.freeze(None, 1, Consistency::Crash).await.unwrap();
        lab.driver.release(point).await.unwrap();
        lab.write(0, 3, 0x33);
        lab.double.state().faults.dies_at = Some(death);
        let cycle = async {
            let point = lab.freeze(Some(1), 2, Consistency::Crash).await?;
            lab.driver.release(point).await?;
            Ok::<_, HypervisorError>(())
        };
        survived = cycle.await.is_ok();
        let driver = lab.restarted();
        driver.clean_up(lab.vm).await.unwrap();
        assert_eq!(lab.double.checkpoints(RECOVERY).len(), 0, "death {death}");
        assert_eq!(lab.double.files("avhdx"), 0, "death {death}");
        let tracked = driver.tracking(lab.vm).await.unwrap();
        assert_eq!(tracked[0], id(1), "death {death}");
        assert_eq!(
            lab.double.count("Msvm_VirtualSystemReferencePoint"),
            tracked.len(),
            "death {death}: no reference point that nobody knows"
        );
        lab.write(1, 5, 0x55);
        let since = *tracked.last().unwrap();
        let point = driver
            .freeze(lab.vm, &lab.disks, Some(since), id(9), Consistency::Crash)
            .await
            .unwrap();
        let expected: &[u64] = if since == id(1) { &[3] } else { &[] };
        assert_eq!(blocks(&point.disks[0].changes), expected, "death {death}");
        assert_eq!(blocks(&point.disks[1].changes), [5], "death {death}");
        driver.release(point).await.unwrap();
        driver.forget_all(lab.vm).await.unwrap();
        assert_eq!(lab.double.count("Msvm_VirtualSystemReferencePoint"), 0);
        if survived {
            break;
        }
    }
    assert!(survived, "the cycle takes more calls than were tried");
}

#[tokio::test]
async fn a_caller_may_die_at_any_call_of_a_freeze_of_a_vm_that_is_off() {
    let mut survived = false;
    for death in 0..200 {
        let lab = Lab::new().await;
        let point = lab.freeze(None, 1, Consistency::Crash).await.unwrap();
        lab.driver.release(point).await.unwrap();
        lab.write(0, 3, 0x33);
        lab.driver.stop(lab.vm, Stop::TurnOff).await.unwrap();
        lab.double.state().faults.dies_at = Some(death);
        let cycle = async {
            let frozen = lab
                .driver
                .freeze_off(lab.vm, &lab.disks, Some(id(1)), id(2));
            lab.driver.release(frozen.await?).await
        };
        survived = cycle.await.is_ok();
        let driver = lab.restarted();
        driver.clean_up(lab.vm).await.unwrap();
        let tracked = driver.tracking(lab.vm).await.unwrap();
        assert_eq!(tracked[0], id(1), "death {death}");
        assert_eq!(
            lab.double.count("Msvm_VirtualSystemReferencePoint"),
            tracked.len(),
            "death {death}: no reference point that nobody knows"
        );
        driver.start(lab.vm).await.unwrap();
        lab.write(1, 5, 0x55);
        let since = *tracked.last().unwrap();
        let point = driver
            .freeze(lab.vm, &lab.disks, Some(since), id(9), Consistency::Crash)
            .await
            .unwrap();
        let expected: &[u64] = if since == id(1) { &[3] } else { &[] };
        assert_eq!(blocks(&point.disks[0].changes), expected, "death {death}");
        assert_eq!(blocks(&point.disks[1].changes), [5], "death {death}");
        driver.release(point).await.unwrap();
        if survived {
            break;
        }
    }
    assert!(survived, "the freeze takes more calls than were tried");
}

#[tokio::test]
async fn a_checkpoint_that_can_not_become_a_reference_point_is_merged_away() {
    let lab = Lab::new().await;
    let point = lab.freeze(None, 1, Consistency::Crash).await.unwrap();
    lab.double.state().faults.conversion_fails = true;
    lab.driver.release(point).await.unwrap();
    assert_eq!(lab.double.checkpoints(RECOVERY).len(), 0);
    assert!(lab.driver.tracking(lab.vm).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_vm_that_is_read_while_it_is_off_does_not_start_under_the_reader() {
    let lab = Lab::new().await;
    lab.driver.stop(lab.vm, Stop::TurnOff).await.unwrap();
    let point = lab
        .driver
        .freeze_off(lab.vm, &lab.disks, None, id(1))
        .await
        .unwrap();
    assert!(lab.driver.start(lab.vm).await.is_err());
    lab.driver.release(point).await.unwrap();
    lab.driver.start(lab.vm).await.unwrap();
    assert_eq!(
        lab.driver.power_state(lab.vm).await.unwrap(),
        PowerState::Running
    );
}

#[tokio::test]
async fn a_guest_that_ignores_a_shutdown_runs_on_and_a_saved_one_is_not_shut_down() {
    let lab = Lab::new().await;
    lab.double.state().faults = Faults {
        ignores_shutdown: true,
        ..Faults::default()
    };
    let how = Stop::Shutdown {
        timeout: Duration::from_secs(5),
    };
    let error = lab.driver.stop(lab.vm, how).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(
        lab.driver.power_state(lab.vm).await.unwrap(),
        PowerState::Running
    );
    let path = hyperv_double::computer_path(&lab.vm.to_string());
    let saved = Value::Number(6);
    lab.double
        .state()
        .objects
        .get_mut(&path)
        .unwrap()
        .properties
        .insert("EnabledState".to_owned(), saved);
    let error = lab.driver.stop(lab.vm, how).await.unwrap_err();
    assert!(error.to_string().contains("saved"), "{error}");
    lab.driver.stop(lab.vm, Stop::TurnOff).await.unwrap();
    assert!(lab.driver.agent_answers(lab.vm).await.is_err());
}

fn lost(id: Uuid) -> LostVirtualMachine {
    LostVirtualMachine {
        id: VmId(id),
        name: "back".to_owned(),
        generation: Generation::One,
        memory_bytes: 3 << 30,
        processors: 4,
        os_type: "Linux".to_owned(),
        disks: (1..=3)
            .map(|number| LostDisk {
                id: DiskId(Uuid::from_u128(number)),
                name: format!("{}.vhdx", Uuid::from_u128(number)),
                size_bytes: 8 << 20,
            })
            .collect(),
        networks: vec![
            NewNetwork {
                network_name: Some("lan".to_owned()),
                segment: None,
                mac_address: Some("00:15:5d:aa:bb:cc".to_owned()),
            },
            NewNetwork::default(),
        ],
    }
}

#[tokio::test]
async fn a_lost_vm_is_made_again_with_its_id_disks_and_adapters() {
    let lab = Lab::new().await;
    let wanted = lost(Uuid::new_v4());
    for _ in 0..2 {
        lab.driver.restore(wanted.clone()).await.unwrap();
    }
    let find = || async {
        let all = lab.driver.virtual_machines().await.unwrap();
        let mut ours: Vec<_> = all.into_iter().filter(|one| one.id == wanted.id).collect();
        assert_eq!(ours.len(), 1);
        ours.remove(0)
    };
    let vm = find().await;
    assert_eq!(vm.generation, Generation::One);
    assert_eq!((vm.processors, vm.memory_bytes), (4, 3 << 30));
    assert_eq!(vm.power_state, PowerState::Off);
    let disks: Vec<DiskId> = vm.disks.iter().map(|disk| disk.id).collect();
    assert_eq!(
        disks,
        wanted.disks.iter().map(|disk| disk.id).collect::<Vec<_>>()
    );
    assert_eq!(vm.network_adapters.len(), 2);
    assert_eq!(vm.network_adapters[0].network_name, "lan");
    assert_eq!(vm.network_adapters[0].mac_address, "00:15:5D:AA:BB:CC");
    // A disk alone that is gone.
    let file = lab.driver.disk_path(vm.id, disks[1]).await.unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(find().await.disks.len(), 2);
    lab.driver.restore(wanted.clone()).await.unwrap();
    assert_eq!(find().await.disks.len(), 3);
    lab.driver.start(vm.id).await.unwrap();
    lab.driver.remove(vm.id).await.unwrap();
    assert!(lab.driver.is_gone(vm.id).await.unwrap());
    assert!(!file.parent().unwrap().exists());
    // What others made is theirs.
    let error = lab.driver.remove(lab.vm).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn a_vm_that_a_dead_process_left_half_made_is_made_anew() {
    let mut finished = false;
    for death in 0..300 {
        let lab = Lab::new().await;
        let wanted = lost(Uuid::new_v4());
        lab.double.state().faults.dies_at = Some(death);
        finished = lab.driver.restore(wanted.clone()).await.is_ok();
        let driver = lab.restarted();
        driver.restore(wanted.clone()).await.unwrap();
        let all = driver.virtual_machines().await.unwrap();
        assert_eq!(all.len(), 2, "death {death}");
        let vm = all.iter().find(|one| one.id == wanted.id).unwrap();
        assert_eq!((vm.disks.len(), vm.network_adapters.len()), (3, 2));
        if finished {
            break;
        }
    }
    assert!(finished, "making a vm takes more calls than were tried");
}

#[tokio::test]
async fn what_can_not_be_made_is_refused_before_anything_is() {
    let lab = Lab::new().await;
    let mut wanted = lost(Uuid::new_v4());
    wanted.networks[0].network_name = Some("nowhere".to_owned());
    let error = lab.driver.restore(wanted).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    let folder = lab.double.folder.path().join("new");
    let source = DiskSource::Nbd {
        socket: "s".into(),
        export: "e".to_owned(),
        size_bytes: 1 << 20,
        overlay: "o".into(),
    };
    let vm = NewVirtualMachine {
        id: VmId(Uuid::new_v4()),
        name: "new".to_owned(),
        generation: Generation::Two,
        memory_bytes: 1 << 30,
        processors: 1,
        os_type: String::new(),
        folder,
        disks: vec![NewDisk {
            id: DiskId(Uuid::new_v4()),
            source,
        }],
        networks: Vec::new(),
    };
    let error = lab.driver.create(vm).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert_eq!(lab.driver.virtual_machines().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_change_of_the_host_is_told_once() {
    let lab = Lab::new().await;
    let patience = Duration::from_secs(1);
    assert!(!lab.driver.wait_for_change(patience).await.unwrap());
    lab.double.state().changed = true;
    assert!(lab.driver.wait_for_change(patience).await.unwrap());
    assert!(!lab.driver.wait_for_change(patience).await.unwrap());
}
