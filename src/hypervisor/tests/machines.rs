//! Start, stop, create, remove, and what is said about damaged machines.

mod support;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hypervisor::nbd::{BlockReader, NbdExport, NbdServer, serve};
use hypervisor::{
    DiskId, DiskSource, ErrorKind, Generation, Hypervisor, Independence, NewDisk, NewNetwork,
    NewVirtualMachine, PowerState, Stop, VirtualMachine, VmId,
};
use support::{BLOCK, Lab, MIB, image, qemu_pid, tool};
use uuid::Uuid;

/// A view of a recovery point: every byte tells its 64 KiB block.
struct Pattern;

#[async_trait]
impl BlockReader for Pattern {
    async fn read(&self, offset: u64, length: usize) -> std::io::Result<Bytes> {
        Ok((offset..offset + length as u64)
            .map(|byte| (byte / BLOCK % 251) as u8)
            .collect())
    }
}

async fn pattern_server(lab: &Lab) -> NbdServer {
    let exports = (0..2)
        .map(|index| NbdExport {
            name: format!("disk{index}"),
            size_bytes: 16 * MIB,
            reader: Arc::new(Pattern),
        })
        .collect();
    serve(&lab.folder.path().join("point.sock"), exports)
        .await
        .unwrap()
}

fn recovered(lab: &Lab, server: &NbdServer, generation: Generation) -> NewVirtualMachine {
    NewVirtualMachine {
        id: VmId(Uuid::new_v4()),
        name: "web01-test".to_owned(),
        generation,
        memory_bytes: 128 << 20,
        processors: 1,
        os_type: "Linux".to_owned(),
        folder: lab.vms().join("recovered"),
        disks: (0..2)
            .map(|index| NewDisk {
                id: DiskId(Uuid::new_v4()),
                source: DiskSource::Nbd {
                    socket: server.socket().to_owned(),
                    export: format!("disk{index}"),
                    size_bytes: 16 * MIB,
                    overlay: format!("disk{index}.qcow2").into(),
                },
            })
            .collect(),
        networks: vec![NewNetwork {
            segment: None,
            network_name: None,
            mac_address: None,
        }],
    }
}

async fn machine(lab: &Lab, id: VmId) -> VirtualMachine {
    lab.driver
        .virtual_machines()
        .await
        .unwrap()
        .into_iter()
        .find(|machine| machine.id == id)
        .unwrap()
}

fn codes(machine: &VirtualMachine) -> Vec<&'static str> {
    machine
        .findings
        .iter()
        .map(|finding| finding.code)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_made_from_a_served_point_runs_and_its_writes_stay_in_its_layer() {
    for generation in [Generation::One, Generation::Two] {
        let lab = Lab::new();
        let server = pattern_server(&lab).await;
        let new = recovered(&lab, &server, generation);
        lab.driver.create(new.clone()).await.unwrap();
        lab.driver.create(new.clone()).await.unwrap();
        let id = new.id;
        assert_eq!(machine(&lab, id).await.power_state, PowerState::Off);
        lab.driver.start(id).await.unwrap();
        lab.driver.start(id).await.unwrap();
        let listed = machine(&lab, id).await;
        assert_eq!(listed.power_state, PowerState::Running);
        assert_eq!(
            listed.disks.iter().map(|disk| disk.id).collect::<Vec<_>>(),
            [new.disks[0].id, new.disks[1].id]
        );
        assert_eq!(codes(&listed), ["RunsFromRecoveryPoint"; 2]);
        assert_eq!(listed.network_adapters[0].network_name, "");

        lab.driver
            .write_as_guest(id, new.disks[0].id, 3 * BLOCK + 512, 512, 0xee)
            .await
            .unwrap();
        lab.driver.stop(id, Stop::TurnOff).await.unwrap();
        let raw = lab.folder.path().join("seen.raw");
        let image = format!(
            "json:{{\"driver\":\"qcow2\",\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}},\"backing\":{{\"driver\":\
             \"nbd\",\"export\":\"disk0\",\"server\":{{\"type\":\"unix\",\"path\":\"{}\"}}}}}}",
            new.folder.join("disk0.qcow2").display(),
            server.socket().display()
        );
        tool(
            "qemu-img",
            &["convert", "-O", "raw", &image, raw.to_str().unwrap()],
        );
        let mut expected = Pattern.read(0, 16 << 20).await.unwrap().to_vec();
        let at = 3 * BLOCK as usize + 512;
        expected[at..at + 512].fill(0xee);
        assert!(std::fs::read(&raw).unwrap() == expected);

        lab.driver.start(id).await.unwrap();
        let pid = qemu_pid(&new.folder).unwrap();
        lab.driver.remove(id).await.unwrap();
        lab.driver.remove(id).await.unwrap();
        assert!(!std::path::Path::new(&format!("/proc/{pid}/exe")).exists());
        assert!(!new.folder.exists());
        assert_eq!(lab.driver.virtual_machines().await.unwrap(), []);
        server.stop().await;
    }
}

/// What a disk reads as once the point is not served any more.
fn own_content(lab: &Lab, layer: &std::path::Path) -> Vec<u8> {
    let raw = lab.folder.path().join("own.raw");
    let (layer, out) = (layer.to_str().unwrap(), raw.to_str().unwrap());
    tool(
        "qemu-img",
        &["convert", "-f", "qcow2", "-O", "raw", layer, out],
    );
    std::fs::read(&raw).unwrap()
}

/// The point with 512 bytes of the guest in it.
async fn point_with_a_write(at: u64) -> Vec<u8> {
    let mut expected = Pattern.read(0, 16 << 20).await.unwrap().to_vec();
    expected[at as usize..][..512].fill(0xee);
    expected
}

async fn until_independent(lab: &Lab, id: VmId) {
    tokio::time::timeout(Duration::from_secs(60), async {
        while lab.driver.make_independent(id).await.unwrap() != Independence::Complete {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_was_made_independent_needs_no_served_point_and_lost_nothing() {
    for running in [true, false] {
        let lab = Lab::new();
        let server = pattern_server(&lab).await;
        let new = recovered(&lab, &server, Generation::One);
        let id = new.id;
        lab.driver.create(new.clone()).await.unwrap();
        lab.driver.start(id).await.unwrap();
        let at = 5 * BLOCK + 1024;
        let disk = new.disks[1].id;
        lab.driver
            .write_as_guest(id, disk, at, 512, 0xee)
            .await
            .unwrap();
        if running {
            let first = lab.driver.make_independent(id).await.unwrap();
            assert!(
                matches!(first, Independence::UnderWay { total_bytes, .. } if total_bytes == 32 << 20)
            );
            // Cut in the middle: the machine dies, and a new process has to go on.
            lab.driver.stop(id, Stop::TurnOff).await.unwrap();
            lab.driver.start(id).await.unwrap();
        } else {
            lab.driver.stop(id, Stop::TurnOff).await.unwrap();
        }
        until_independent(&lab, id).await;
        let power = if running {
            PowerState::Running
        } else {
            PowerState::Off
        };
        assert_eq!(machine(&lab, id).await.power_state, power);
        server.stop().await;
        let folder = &new.folder;
        assert!(
            !std::fs::read_to_string(folder.join("vm.toml"))
                .unwrap()
                .contains("nbd")
        );
        lab.driver.stop(id, Stop::TurnOff).await.unwrap();
        let expected = point_with_a_write(at).await;
        assert!(own_content(&lab, &folder.join("disk1.qcow2")) == expected);
        // Made again, as by an engine that was killed before it noted the end: nothing changes.
        lab.driver.create(new.clone()).await.unwrap();
        lab.driver.start(id).await.unwrap();
        assert_eq!(
            lab.driver.make_independent(id).await.unwrap(),
            Independence::Complete
        );
        let listed = machine(&lab, id).await;
        assert_eq!(codes(&listed), [""; 0], "{:?}", listed.findings);
        assert_eq!(listed.disks[1].id, disk);
        lab.driver
            .write_as_guest(id, disk, at, 512, 0xef)
            .await
            .unwrap();
        lab.driver.remove(id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_point_is_not_served_does_not_start_and_can_be_removed() {
    let lab = Lab::new();
    let server = pattern_server(&lab).await;
    let mut new = recovered(&lab, &server, Generation::One);
    for disk in &mut new.disks {
        if let DiskSource::Nbd { export, .. } = &mut disk.source {
            *export = "no-such-export".to_owned();
        }
    }
    lab.driver.create(new.clone()).await.unwrap();
    let error = lab.driver.start(new.id).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(format!("{error:?}").contains("no-such-export"), "{error:?}");
    lab.driver.remove(new.id).await.unwrap();
    assert!(!new.folder.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_server_died_can_still_be_removed() {
    let lab = Lab::new();
    let server = pattern_server(&lab).await;
    let new = recovered(&lab, &server, Generation::One);
    lab.driver.create(new.clone()).await.unwrap();
    lab.driver.start(new.id).await.unwrap();
    server.stop().await;
    lab.driver.remove(new.id).await.unwrap();
    assert!(qemu_pid(&new.folder).is_none() && !new.folder.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn create_refuses_what_would_touch_other_folders() {
    let lab = Lab::new();
    let server = pattern_server(&lab).await;
    let good = recovered(&lab, &server, Generation::One);
    let outside = NewVirtualMachine {
        folder: lab.folder.path().join("elsewhere"),
        ..good.clone()
    };
    let mut escaping = good.clone();
    if let DiskSource::Nbd { overlay, .. } = &mut escaping.disks[0].source {
        *overlay = "../other/disk.qcow2".into();
    }
    for bad in [outside, escaping] {
        let error = lab.driver.create(bad.clone()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error:?}");
        assert!(!bad.folder.exists());
    }
    lab.driver.create(good.clone()).await.unwrap();
    let other = NewVirtualMachine {
        id: VmId(Uuid::new_v4()),
        ..good
    };
    assert_eq!(
        lab.driver.create(other).await.unwrap_err().kind(),
        ErrorKind::InvalidRequest
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_that_the_guest_ignores_times_out_and_turn_off_ends_it() {
    let lab = Lab::new();
    let vm = lab.running_vm("stubborn", 1, &[8]).await;
    let how = Stop::Shutdown {
        timeout: Duration::from_millis(300),
    };
    assert_eq!(
        lab.driver.stop(vm.id, how).await.unwrap_err().kind(),
        ErrorKind::Timeout
    );
    assert!(qemu_pid(&vm.folder).is_some());
    lab.driver.stop(vm.id, Stop::TurnOff).await.unwrap();
    lab.driver.stop(vm.id, Stop::TurnOff).await.unwrap();
    assert!(qemu_pid(&vm.folder).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn six_disks_of_both_generations_and_a_fixed_vhd_are_attached() {
    let lab = Lab::new();
    for generation in [1, 2] {
        let vm = lab
            .vm(&format!("many{generation}"), generation, &[8; 5])
            .await;
        let mut text = std::fs::read_to_string(vm.folder.join("vm.toml")).unwrap();
        image(&vm.folder.join("last.vhd"), 8);
        text.push_str("[[disk]]\nfile = \"last.vhd\"\n");
        std::fs::write(vm.folder.join("vm.toml"), text).unwrap();
        lab.driver.start(vm.id).await.unwrap();
        let listed = machine(&lab, vm.id).await;
        assert_eq!(codes(&listed), [""; 0], "{:?}", listed.findings);
        assert_eq!(listed.disks.len(), 6);
        assert!(listed.disks[0].operating_system && !listed.disks[5].operating_system);
        for disk in &listed.disks {
            lab.driver
                .write_as_guest(vm.id, disk.id, 4096, 512, 7)
                .await
                .unwrap();
        }
        lab.driver.stop(vm.id, Stop::TurnOff).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_machines_are_listed_with_the_reason() {
    let lab = Lab::new();
    let good = lab.vm("good", 1, &[8]).await;
    let corrupt = lab.vm("corrupt", 1, &[8, 8]).await;
    std::fs::write(corrupt.folder.join("d1.vhdx"), b"vhdxfile but nothing else").unwrap();
    let missing = lab.vm("missing", 1, &[8]).await;
    std::fs::remove_file(missing.folder.join("d0.vhdx")).unwrap();
    let odd = lab.vm("odd", 1, &[8]).await;
    edit(&odd.folder, "d0.vhdx", "d0.avhdx");
    let broken = lab.vm("broken", 1, &[8]).await;
    edit(&broken.folder, "generation = 1", "generation = 9");
    let twin = lab.vm("twin", 1, &[8]).await;
    let other = lab.vm("other", 1, &[8]).await;
    edit(&other.folder, &other.id.to_string(), &twin.id.to_string());
    let shared = lab.vm("shared", 1, &[8]).await;
    let sharer = lab.vm("sharer", 1, &[8]).await;
    edit(&sharer.folder, "d0.vhdx", "../shared/d0.vhdx");
    let copy = lab.vm("copy", 1, &[8]).await;
    let copied = lab.vm("copied", 1, &[8]).await;
    std::fs::copy(copy.folder.join("d0.vhdx"), copied.folder.join("d0.vhdx")).unwrap();

    let machines = lab.driver.virtual_machines().await.unwrap();
    let seen: Vec<(&str, Vec<&str>)> = machines
        .iter()
        .map(|machine| (machine.name.as_str(), codes(machine)))
        .collect();
    assert_eq!(
        seen,
        [
            ("broken", vec!["InvalidConfiguration"]),
            ("copied", vec!["DuplicateDiskId"]),
            ("copy", vec!["DuplicateDiskId"]),
            ("corrupt", vec!["DiskCorrupt"]),
            ("good", vec![]),
            ("missing", vec!["DiskUnreadable"]),
            ("odd", vec!["DiskFormatUnsupported"]),
            ("other", vec!["DuplicateVmId"]),
            ("shared", vec!["SharedDisk"]),
            ("sharer", vec!["SharedDisk"]),
            ("twin", vec!["DuplicateVmId"]),
        ]
    );
    assert_eq!(
        lab.driver.start(twin.id).await.unwrap_err().kind(),
        ErrorKind::Configuration
    );
    assert_eq!(
        lab.driver
            .start(good.id)
            .await
            .map_err(|error| error.kind()),
        Ok(())
    );
    let again = lab.driver.start(missing.id).await.unwrap_err();
    assert!(format!("{again:?}").contains("d0.vhdx"), "{again:?}");
    drop((odd, broken, shared));
}

fn edit(folder: &std::path::Path, from: &str, to: &str) {
    let path = folder.join("vm.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from));
    std::fs::write(path, text.replace(from, to)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_pid_file_and_stale_sockets_do_not_stop_a_start() {
    let lab = Lab::new();
    let vm = lab.vm("stale", 1, &[8]).await;
    let run = vm.folder.join("run");
    std::fs::create_dir(&run).unwrap();
    std::fs::write(run.join("pid"), std::process::id().to_string()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(run.join("qmp.sock")).unwrap());
    assert_eq!(machine(&lab, vm.id).await.power_state, PowerState::Off);
    lab.driver.stop(vm.id, Stop::TurnOff).await.unwrap();
    lab.driver.start(vm.id).await.unwrap();
    assert_eq!(machine(&lab, vm.id).await.power_state, PowerState::Running);
    assert!(lab.driver.console(vm.id).await.unwrap().is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_tells_who_it_is() {
    let lab = Lab::new();
    let host = lab.driver.host().await.unwrap();
    assert_eq!(host.hypervisor, "qemu");
    assert!(
        host.hypervisor_version
            .starts_with(|first: char| first.is_ascii_digit()),
        "{host:?}"
    );
    assert!(!host.name.is_empty() && !host.operating_system.is_empty() && host.free_bytes > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_screenshot_is_a_png_of_the_display_and_leaves_no_file() {
    for generation in [1, 2] {
        let lab = Lab::new();
        let vm = lab.vm("web01", generation, &[16]).await;
        let off = lab.driver.screenshot(vm.id).await.unwrap_err();
        assert_eq!(off.kind(), ErrorKind::VmNotRunning);
        lab.driver.start(vm.id).await.unwrap();
        let picture = lab.driver.screenshot(vm.id).await.unwrap();
        // As read by somebody else: signature, then width and height out of IHDR.
        let png = picture.png();
        assert_eq!(png[..8], *b"\x89PNG\r\n\x1a\n");
        assert_eq!(png[16..20], picture.width().to_be_bytes());
        assert_eq!(png[20..24], picture.height().to_be_bytes());
        assert_eq!(png[png.len() - 8..png.len() - 4], *b"IEND");
        assert!(
            picture.width() >= 640 && picture.height() >= 400,
            "{picture:?}"
        );
        assert!(!vm.folder.join("run/screenshot.png").exists());
        lab.driver.stop(vm.id, Stop::TurnOff).await.unwrap();
    }
}
