//! Guests that shut down while what changed stays known, on real QEMU.
//!
//! The guest is one boot sector: it waits for the power button, writes a sector, and ends. So a shutdown takes no time, and
//! what it writes last is known.

mod support;

use std::path::Path;
use std::time::Duration;

use disk_image::{Access, DiskImage};
use hypervisor::{Changes, ErrorKind, Hypervisor, PowerState, Stop, conformance};
use serde_json::{Value, json};
use support::{BLOCK, Lab, LabFixture, LabVm, frozen_content, kill_qemu, qemu_pid, tracking};

/// For what takes milliseconds on a machine that is not busy.
const PATIENCE: Duration = Duration::from_secs(120);
const SECTOR: usize = 512;

/// How the guest ends.
#[derive(Clone, Copy)]
enum End {
    PowersOff,
    Restarts,
}

/// 16-bit code behind the BIOS: "R" to the serial port, wait for the power button, sector 0 to sector 1, end.
fn boot_sector(end: End) -> [u8; SECTOR] {
    let mut code = vec![
        0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, // ds = es = 0
        0xba, 0x02, 0x06, 0xb8, 0x00, 0x01, 0xef, // PM1 enable: the power button
        0xba, 0xf8, 0x03, 0xb0, b'R', 0xee, // COM1: it is up
        0xba, 0x00, 0x06, 0xed, 0xf6, 0xc4, 0x01, 0x74, 0xf7, // until PM1 status says pressed
        0xb8, 0x01, 0x03, 0xb9, 0x02, 0x00, // write one sector, the second
        0xba, 0x80, 0x00, 0xbb, 0x00, 0x7c, 0xcd, 0x13, // of the first disk, from here
    ];
    code.extend(match end {
        End::PowersOff => [0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef].as_slice(), // PM1 control: S5
        End::Restarts => [0xb0, 0xfe, 0xe6, 0x64].as_slice(), // keyboard controller: reset
    });
    code.extend([0xf4, 0xeb, 0xfd]);
    let mut sector = [0; SECTOR];
    sector[..code.len()].copy_from_slice(&code);
    sector[SECTOR - 2..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

async fn guest(lab: &Lab, end: End) -> LabVm {
    let vm = lab.vm("guest", 1, &[8, 8]).await;
    let mut image = DiskImage::open(vm.folder.join("d0.vhdx"), Access::ReadWrite).unwrap();
    image.write_at(&boot_sector(end), 0).unwrap();
    image.close().unwrap();
    start(lab, &vm).await;
    vm
}

async fn start(lab: &Lab, vm: &LabVm) {
    lab.driver.start(vm.id).await.unwrap();
    is_up(&vm.folder).await;
}

async fn is_up(folder: &Path) {
    let console = folder.join("run/console.log");
    let begin = std::time::Instant::now();
    // A file that another process appends to has no event.
    while !std::fs::read(&console).is_ok_and(|text| text.contains(&b'R')) {
        assert!(begin.elapsed() < PATIENCE, "the guest is not up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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
        assert!(content[SECTOR..2 * SECTOR] == boot_sector(end));
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
    assert!(os[SECTOR..2 * SECTOR] == boot_sector(End::PowersOff));
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
