//! The driver of image files: what it lists, what it freezes, and that a file that changes is never read as if it had not.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use disk_image::{CreateOptions, DiskImage, Format};
use hypervisor::{
    Changes, Consistency, DiskId, ErrorKind, FilesDriver, FreezeRequest, FrozenPoint, Hypervisor,
    HypervisorError, Quiescence, Stop, TrackingId, VirtualMachine, VmId,
};

const BLOCK: u64 = 64 << 10;
const SIZE: u64 = 8 << 20;

fn id(number: u64) -> TrackingId {
    TrackingId {
        generation: 1,
        number,
    }
}

/// Its last write lies in the past, as of a VM that was shut down a while ago.
fn age(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3600))
        .unwrap();
}

fn image(path: &Path, format: Format, byte: u8) {
    let mut options = CreateOptions::new(format, SIZE);
    if matches!(format, Format::VhdxDynamic | Format::VhdxFixed) {
        options.block_size = Some(1 << 20);
    }
    let mut image = DiskImage::create(path, &options).unwrap();
    image
        .write_at(&vec![byte; BLOCK as usize], 3 * BLOCK)
        .unwrap();
    image.close().unwrap();
    age(path);
}

fn write(path: &Path, offset: u64, byte: u8) {
    let mut image = DiskImage::open(path, disk_image::Access::ReadWrite).unwrap();
    image.write_at(&[byte; 512], offset).unwrap();
    image.close().unwrap();
}

struct Lab {
    folder: tempfile::TempDir,
    driver: FilesDriver,
}

impl Lab {
    /// `web01` with two disks, and `db.raw`.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("web01")).unwrap();
        fs::create_dir(folder.path().join("empty")).unwrap();
        image(
            &folder.path().join("web01/data.vhd"),
            Format::VhdDynamic,
            0x22,
        );
        image(
            &folder.path().join("web01/a-os.vhdx"),
            Format::VhdxDynamic,
            0x11,
        );
        fs::write(folder.path().join("web01/a-os.vhdx.7.hrl"), "a log").unwrap();
        image(&folder.path().join("db.raw"), Format::Raw, 0x33);
        let driver = FilesDriver::new(folder.path()).unwrap();
        Self { folder, driver }
    }

    async fn vm(&self, name: &str) -> VirtualMachine {
        let machines = self.driver.virtual_machines().await.unwrap();
        machines
            .into_iter()
            .find(|vm| vm.name == name)
            .expect("listed")
    }

    async fn freeze(
        &self,
        vm: &VirtualMachine,
        since: Option<u64>,
        next: u64,
    ) -> Result<FrozenPoint, HypervisorError> {
        let disks: Vec<DiskId> = vm.disks.iter().map(|disk| disk.id).collect();
        self.driver
            .freeze(vm.id, &disks, since.map(id), id(next), Consistency::Crash)
            .await
    }
}

#[tokio::test]
async fn a_folder_is_a_vm_and_a_lone_image_is_one_too() {
    let lab = Lab::new();
    let machines = lab.driver.virtual_machines().await.unwrap();
    let names: Vec<&str> = machines.iter().map(|vm| vm.name.as_str()).collect();
    assert_eq!(names, ["db.raw", "web01"]);
    let web = lab.vm("web01").await;
    assert!(web.findings.is_empty(), "{:?}", web.findings);
    let disks: Vec<(&str, bool)> = web
        .disks
        .iter()
        .map(|disk| (disk.name.as_str(), disk.operating_system))
        .collect();
    assert_eq!(disks, [("a-os.vhdx", true), ("data.vhd", false)]);
    assert_eq!(lab.vm("web01").await, web, "ids stay");
    let path = lab.driver.disk_path(web.id, web.disks[1].id).await.unwrap();
    assert_eq!(path, lab.folder.path().join("web01/data.vhd"));
    let lone = FilesDriver::new(lab.folder.path().join("db.raw")).unwrap();
    assert_eq!(
        lone.virtual_machines().await.unwrap(),
        [lab.vm("db.raw").await]
    );
}

#[tokio::test]
async fn a_damaged_image_and_a_copied_one_are_findings() {
    let lab = Lab::new();
    fs::copy(
        lab.folder.path().join("web01/data.vhd"),
        lab.folder.path().join("copy.vhd"),
    )
    .unwrap();
    fs::write(lab.folder.path().join("web01/broken.vhdx"), [0; 4096]).unwrap();
    let codes = |vm: VirtualMachine| {
        vm.findings
            .iter()
            .map(|finding| finding.code)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        codes(lab.vm("web01").await),
        ["DiskUnreadable", "DuplicateDiskId"]
    );
    assert_eq!(codes(lab.vm("copy.vhd").await), ["DuplicateDiskId"]);
}

#[tokio::test]
async fn a_frozen_point_holds_what_the_files_hold() {
    let lab = Lab::new();
    let vm = lab.vm("web01").await;
    let point = lab.freeze(&vm, None, 1).await.unwrap();
    assert_eq!(point.quiescence, Quiescence::NotAsked);
    for (disk, byte) in point.disks.iter().zip([0x11, 0x22]) {
        assert_eq!(disk.changes, Changes::Unknown);
        assert_eq!(disk.size_bytes, SIZE);
        assert!(
            disk.allocated
                .iter()
                .any(|extent| extent.offset <= 3 * BLOCK && extent.end() >= 4 * BLOCK)
        );
        let data = disk.reader.read(3 * BLOCK, BLOCK as usize).await.unwrap();
        assert!(data.iter().all(|found| *found == byte));
    }
    lab.driver.release(point).await.unwrap();
}

#[tokio::test]
async fn an_untouched_file_has_no_changes_and_a_touched_one_has_unknown_ones() {
    let lab = Lab::new();
    let vm = lab.vm("web01").await;
    let first = lab.freeze(&vm, None, 1).await.unwrap();
    lab.driver.release(first).await.unwrap();
    write(&lab.folder.path().join("web01/data.vhd"), 0, 0x44);
    let second = lab.freeze(&vm, Some(1), 2).await.unwrap();
    assert_eq!(second.disks[0].changes, Changes::Since(Vec::new()));
    assert_eq!(second.disks[1].changes, Changes::Unknown);
    lab.driver.release(second).await.unwrap();
    lab.driver.forget(vm.id, id(2)).await.unwrap();
    assert_eq!(lab.driver.tracking(vm.id).await.unwrap(), [id(2)]);
    let third = lab.freeze(&vm, Some(1), 3).await.unwrap();
    assert_eq!(
        third.disks[0].changes,
        Changes::Unknown,
        "an instant that was forgotten tells nothing"
    );
}

#[tokio::test]
async fn a_checkpoint_hides_the_images_that_it_stands_on() {
    let lab = Lab::new();
    let folder = lab.folder.path().join("web01");
    let before = lab.vm("web01").await;
    let (base, newest) = (folder.join("a-os.vhdx"), folder.join("a-os_1F.avhdx"));
    let gate = disk_image::FolderGate::new([&folder]).unwrap();
    let options = CreateOptions::new(Format::VhdxDifferencing, SIZE);
    let mut child = DiskImage::create_differencing(&newest, &base, &options, &gate).unwrap();
    child.write_at(&[0x66; 512], 0).unwrap();
    child.close().unwrap();
    age(&newest);
    let vm = lab.vm("web01").await;
    assert!(vm.findings.is_empty(), "{:?}", vm.findings);
    let names: Vec<&str> = vm.disks.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["a-os_1F.avhdx", "data.vhd"]);
    assert_eq!(vm.id, before.id);
    let point = lab.freeze(&vm, None, 1).await.unwrap();
    let reader = &point.disks[0].reader;
    let own = reader.read(0, 512).await.unwrap();
    let below = reader.read(3 * BLOCK, 512).await.unwrap();
    assert!(own.iter().all(|byte| *byte == 0x66) && below.iter().all(|byte| *byte == 0x11));
    // A parent that changes changes the disk.
    let file = fs::File::options().write(true).open(&base).unwrap();
    file.set_modified(SystemTime::now()).unwrap();
    let error = reader.read(0, 512).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
}

#[tokio::test]
async fn a_file_that_is_written_while_it_is_frozen_is_not_read() {
    let lab = Lab::new();
    let vm = lab.vm("db.raw").await;
    let point = lab.freeze(&vm, None, 1).await.unwrap();
    let reader = &point.disks[0].reader;
    reader.read(0, 512).await.unwrap();
    write(&lab.folder.path().join("db.raw"), 0, 0x55);
    let error = reader.read(0, 512).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
    lab.driver.release(point).await.unwrap();
    // Freezing waits until a further write would show.
    let point = lab.freeze(&vm, None, 2).await.unwrap();
    let data = point.disks[0].reader.read(0, 512).await.unwrap();
    assert!(data.iter().all(|byte| *byte == 0x55));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_image_that_qemu_writes_is_busy() {
    let lab = Lab::new();
    let vm = lab.vm("db.raw").await;
    let mut qemu = std::process::Command::new("qemu-io")
        .args(["-f", "raw", "-c", "sleep 600000"])
        .arg(lab.folder.path().join("db.raw"))
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("qemu-io is in the package qemu-utils");
    // It says nothing when it is ready; its lock does.
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let mut next = 0;
    let answer = loop {
        next += 1;
        match lab.freeze(&vm, None, next).await {
            Ok(point) if std::time::Instant::now() < deadline => {
                lab.driver.release(point).await.unwrap();
            }
            answer => break answer,
        }
    };
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    let error = answer.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
    assert!(format!("{error}").contains("open for writing"), "{error}");
    lab.freeze(&vm, None, next + 1).await.unwrap();
}

#[tokio::test]
async fn wrong_requests_are_refused_and_leave_nothing() {
    let lab = Lab::new();
    let vm = lab.vm("web01").await;
    let nobody = VmId(uuid::Uuid::from_u128(1));
    let stranger = DiskId(uuid::Uuid::from_u128(2));
    let known = vm.disks[0].id;
    let first = lab.freeze(&vm, None, 5).await.unwrap();
    let busy = lab.freeze(&vm, None, 6).await.unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Busy);
    lab.driver.release(first).await.unwrap();
    let cases: [(VmId, &[DiskId], u64, ErrorKind); 5] = [
        (nobody, &[known], 6, ErrorKind::VmNotFound),
        (vm.id, &[stranger], 6, ErrorKind::DiskNotFound),
        (vm.id, &[known, known], 6, ErrorKind::InvalidRequest),
        (vm.id, &[], 6, ErrorKind::InvalidRequest),
        (vm.id, &[known], 5, ErrorKind::InvalidRequest),
    ];
    for (vm, disks, next, expected) in cases {
        let answer = lab
            .driver
            .freeze(vm, disks, None, id(next), Consistency::Crash)
            .await;
        assert_eq!(answer.unwrap_err().kind(), expected);
    }
    assert_eq!(lab.driver.tracking(vm.id).await.unwrap(), [id(5)]);
    lab.freeze(&vm, Some(5), 6).await.unwrap();
    // The caller died; the next one cleans up.
    lab.driver.clean_up(vm.id).await.unwrap();
    lab.freeze(&vm, Some(5), 7).await.unwrap();
    lab.driver.forget_all(vm.id).await.unwrap();
    assert!(lab.driver.tracking(vm.id).await.unwrap().is_empty());
    assert!(FilesDriver::new(lab.folder.path().join("nowhere")).is_err());
}

#[tokio::test]
async fn a_group_is_frozen_as_a_whole_or_not_at_all() {
    let lab = Lab::new();
    let (web, db) = (lab.vm("web01").await, lab.vm("db.raw").await);
    let request = |vm: &VirtualMachine, next| FreezeRequest {
        vm: vm.id,
        disks: vm.disks.iter().map(|disk| disk.id).collect(),
        since: None,
        next: id(next),
    };
    let held = lab.freeze(&db, None, 1).await.unwrap();
    let error = lab
        .driver
        .freeze_group(&[request(&web, 1), request(&db, 2)], Consistency::Crash)
        .await
        .unwrap_err();
    assert_eq!(error.vm, Some(db.id));
    assert!(lab.driver.tracking(web.id).await.unwrap().is_empty());
    lab.driver.release(held).await.unwrap();
    let points = lab
        .driver
        .freeze_group(
            &[request(&web, 1), request(&db, 2)],
            Consistency::Application,
        )
        .await
        .unwrap();
    assert_eq!(points.len(), 2);
    assert!(points.iter().all(|point| !point.quiescence.is_confirmed()));
}

#[tokio::test]
async fn originals_are_never_started_made_or_removed() {
    let lab = Lab::new();
    let vm = lab.vm("web01").await;
    assert!(lab.driver.start(vm.id).await.is_err());
    assert!(lab.driver.remove(vm.id).await.is_err());
    assert!(lab.driver.console(vm.id).await.is_err());
    lab.driver.stop(vm.id, Stop::TurnOff).await.unwrap();
    assert!(lab.folder.path().join("web01/data.vhd").is_file());
    let nobody = VmId(uuid::Uuid::from_u128(1));
    lab.driver.remove(nobody).await.unwrap();
}
