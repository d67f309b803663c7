//! Guests that shut down while what changed stays known, on real QEMU.
//!
//! The guest is one boot sector ([`support::boot_sector`]), so a shutdown takes no time, and what it writes last is known.

mod support;

use std::time::Duration;

use hypervisor::{Changes, ErrorKind, Hypervisor, PowerState, Stop, conformance};
use serde_json::{Value, json};
use support::boot_sector::{self, End, SECTOR};
use support::{BLOCK, Lab, LabFixture, LabVm, frozen_content, kill_qemu, qemu_pid, tracking};

/// For what takes milliseconds on a machine that is not busy.
const PATIENCE: Duration = Duration::from_secs(120);

async fn guest(lab: &Lab, end: End) -> LabVm {
    let vm = lab.vm("guest", 1, &[8, 8]).await;
    boot_sector::install(&vm.folder.join("d0.vhdx"), end);
    start(lab, &vm).await;
    vm
}

async fn start(lab: &Lab, vm: &LabVm) {
    lab.driver.start(vm.id).await.unwrap();
    boot_sector::is_up(&vm.folder).await;
}

async fn power(lab: &Lab, vm: &LabVm) -> PowerState {
    let machines = lab.driver.virtual_machines().await.unwrap();
    let found = machines.iter().find(|machine| machine.id == vm.id);
    found.unwrap().power_state
}

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_keeps_the_promises_of_a_shutdown() {
    let lab = Lab::new();
    let companion = lab.running_vm("companion", 1, &[8]).await;
    let fixture = LabFixture {
        vm: guest(&lab, End::PowersOff).await,
        companion,
        lab: &lab,
    };
    conformance::run_shut_down(&lab.driver, &fixture)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_write_of_a_guest_that_ends_or_restarts_is_in_the_point_behind_it() {
    for end in [End::PowersOff, End::Restarts] {
        let lab = Lab::new();
        let vm = guest(&lab, end).await;
        let driver = &lab.driver;
        let freeze = driver.freeze(
            vm.id,
            &vm.disks,
            None,
            tracking(1),
            hypervisor::Consistency::Crash,
        );
        let point = freeze.await.unwrap();
        driver.release(point).await.unwrap();
        driver.shut_down(vm.id, PATIENCE).await.unwrap();
        assert_eq!(power(&lab, &vm).await, PowerState::Off);
        // Another process finds all that there was.
        let other = lab.another_driver();
        let point = other
            .freeze_off(vm.id, &vm.disks, Some(tracking(1)), tracking(2))
            .await
            .unwrap();
        let Changes::Since(changes) = &point.disks[0].changes else {
            panic!("changes are unknown");
        };
        assert_eq!((changes[0].offset, changes.len()), (0, 1));
        let content = frozen_content(&point.disks[0]).await;
        assert!(content[SECTOR..2 * SECTOR] == boot_sector::code(end));
        other.release(point).await.unwrap();
        other.stop(vm.id, Stop::TurnOff).await.unwrap();
        assert!(qemu_pid(&vm.folder).is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_ignores_it_runs_on_and_may_end_as_ever_once_it_is_started() {
    let lab = Lab::new();
    let vm = lab.running_vm("stubborn", 1, &[8]).await;
    let short = Duration::from_millis(300);
    let refused = lab.driver.shut_down(vm.id, short).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Timeout);
    assert!(refused.to_string().contains("stubborn"), "{refused}");
    assert_eq!(power(&lab, &vm).await, PowerState::Running);
    assert!(vm.folder.join("run/shutdown-pauses").exists());
    lab.driver.start(vm.id).await.unwrap();
    assert!(!vm.folder.join("run/shutdown-pauses").exists());
    // Restarts as ever: a reset leaves it running.
    let mut qmp = lab.driver.qmp(vm.id).await.unwrap();
    qmp.execute("system_reset", Value::Null).await.unwrap();
    let status = qmp.execute("query-status", json!({})).await.unwrap();
    assert_eq!(status["running"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_shuts_down_too_late_is_off_all_the_same() {
    let lab = Lab::new();
    let vm = lab.running_vm("late", 1, &[8]).await;
    let short = Duration::from_millis(100);
    lab.driver.shut_down(vm.id, short).await.unwrap_err();
    let mut qmp = lab.driver.qmp(vm.id).await.unwrap();
    // The actions that the shutdown left make an end of it.
    qmp.execute("system_reset", Value::Null).await.unwrap();
    qmp.wait_event(|event| event.name == "SHUTDOWN", PATIENCE)
        .await
        .unwrap();
    drop(qmp);
    lab.driver.shut_down(vm.id, PATIENCE).await.unwrap();
    assert_eq!(power(&lab, &vm).await, PowerState::Off);
    let before = qemu_pid(&vm.folder).unwrap();
    lab.driver.start(vm.id).await.unwrap();
    assert_eq!(power(&lab, &vm).await, PowerState::Running);
    assert_ne!(qemu_pid(&vm.folder), Some(before), "begun anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_and_remove_end_a_machine_that_has_shut_down() {
    let lab = Lab::new();
    let vm = guest(&lab, End::PowersOff).await;
    for how in [Stop::Shutdown { timeout: PATIENCE }, Stop::TurnOff] {
        lab.driver.shut_down(vm.id, PATIENCE).await.unwrap();
        assert!(qemu_pid(&vm.folder).is_some());
        lab.driver.stop(vm.id, how).await.unwrap();
        assert!(qemu_pid(&vm.folder).is_none());
        start(&lab, &vm).await;
    }
    lab.driver.shut_down(vm.id, PATIENCE).await.unwrap();
    lab.driver.remove(vm.id).await.unwrap();
    assert!(qemu_pid(&vm.folder).is_none() && !vm.folder.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_process_was_killed_is_read_from_its_images_and_must_be_compared() {
    let lab = Lab::new();
    let vm = guest(&lab, End::PowersOff).await;
    let driver = &lab.driver;
    let freeze = driver.freeze(
        vm.id,
        &vm.disks,
        None,
        tracking(1),
        hypervisor::Consistency::Crash,
    );
    let point = freeze.await.unwrap();
    driver.release(point).await.unwrap();
    lab.write(&vm, 1, 7 * BLOCK, 512, 0x33).await;
    driver.shut_down(vm.id, PATIENCE).await.unwrap();
    kill_qemu(&vm.folder).await;
    assert_eq!(power(&lab, &vm).await, PowerState::Off);
    driver.shut_down(vm.id, PATIENCE).await.unwrap();
    let point = driver
        .freeze_off(vm.id, &vm.disks, Some(tracking(1)), tracking(2))
        .await
        .unwrap();
    for disk in &point.disks {
        assert_eq!(disk.changes, Changes::Unknown);
    }
    let os = frozen_content(&point.disks[0]).await;
    assert!(os[SECTOR..2 * SECTOR] == boot_sector::code(End::PowersOff));
    let data = frozen_content(&point.disks[1]).await;
    assert!(data[7 * BLOCK as usize..][..512] == [0x33; 512]);
    driver.release(point).await.unwrap();

    // A file that is written meanwhile is no frozen disk: the VM was started.
    let point = driver
        .freeze_off(vm.id, &vm.disks, Some(tracking(2)), tracking(3))
        .await
        .unwrap();
    assert_eq!(point.disks[1].changes, Changes::Since(Vec::new()));
    start(&lab, &vm).await;
    lab.write(&vm, 1, BLOCK, 512, 0x44).await;
    let error = point.disks[1].reader.read(0, 512).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    driver.release(point).await.unwrap();
    assert_eq!(driver.tracking(vm.id).await.unwrap(), []);
}
