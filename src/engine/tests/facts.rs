//! What an engine reports for the checks before protection, of images that lie on this machine.

use std::sync::Arc;

use disk_image::{Access, CreateOptions, DiskImage, Format};
use engine::board::Board;
use engine::config::Config;
use engine::report::Reporter;
use engine_protocol::v1::{self, Presence, disk_look::Table};
use hypervisor::FilesDriver;

/// An MBR with one partition of this type, and its first sector.
fn disk(path: &std::path::Path, kind: u8, head: &[u8]) {
    let options = CreateOptions::new(Format::VhdxDynamic, 4 << 20);
    DiskImage::create(path, &options).unwrap().close().unwrap();
    let mut first = [0; 512];
    first[446 + 4] = kind;
    first[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    first[446 + 12..446 + 16].copy_from_slice(&2048_u32.to_le_bytes());
    first[510..].copy_from_slice(&[0x55, 0xaa]);
    let mut image = DiskImage::open(path, Access::ReadWrite).unwrap();
    image.write_at(&first, 0).unwrap();
    image.write_at(head, 2048 * 512).unwrap();
    image.close().unwrap();
}

#[tokio::test]
async fn a_report_tells_what_the_first_sectors_of_the_disks_say() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("vms");
    let vm = images.join("win01");
    std::fs::create_dir_all(&vm).unwrap();
    let mut head = [0; 512];
    head[3..11].copy_from_slice(b"-FVE-FS-");
    disk(&vm.join("0.vhdx"), 0x07, &head);
    disk(&vm.join("1.vhdx"), 0x42, &[0; 512]);
    let text = format!(
        "data_folder = {:?}\nvm_folder = {images:?}\n",
        folder.path().join("data")
    );
    let reporter = Reporter::new(
        &Config::parse(&text).unwrap(),
        Arc::new(FilesDriver::new(&images).unwrap()),
        Arc::new(Board::default()),
        &[],
    );
    let report = reporter.report().await.unwrap();
    let [machine] = report.virtual_machines.as_slice() else {
        panic!("{report:?}");
    };
    let facts = machine.facts.as_ref().unwrap();
    assert_eq!(facts.fibre_channel(), Presence::Unknown);
    let looks: Vec<&v1::DiskLook> = facts.disks.iter().filter_map(|d| d.look.as_ref()).collect();
    let [system, data] = looks.as_slice() else {
        panic!("{facts:?}");
    };
    assert!(system.bitlocker && !system.dynamic_disk);
    assert!(data.dynamic_disk && !data.bitlocker);
    assert_eq!(
        (system.table(), system.guest.as_str()),
        (Table::Mbr, "Windows")
    );
    for (disk, listed) in facts.disks.iter().zip(&machine.disks) {
        assert_eq!(disk.id, listed.id);
        assert_eq!(
            (disk.format.as_str(), disk.logical_sector_bytes),
            ("VHDX", 512)
        );
        assert!(!disk.volume.is_empty() && disk.volume_free_bytes > 0);
    }
}
