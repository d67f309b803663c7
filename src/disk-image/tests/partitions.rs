//! Partition tables as sgdisk writes them, and broken ones.

mod support;

use std::path::Path;
use std::process::Command;

use disk_image::partitions::{self, PartitionType, Style};
use disk_image::{Access, CreateOptions, DiskImage, ErrorKind, Format};
use support::{create_in_memory, options, text};
use uuid::{Uuid, uuid};

const MIB: u64 = 1 << 20;
const ESP: Uuid = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
const LINUX: Uuid = uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4");

fn sgdisk(arguments: &[&str]) {
    let output = Command::new("sgdisk")
        .args(arguments)
        .output()
        .expect("sgdisk (package gdisk) must be installed");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn gpt_disk(path: &Path) {
    DiskImage::create(path, &CreateOptions::new(Format::Raw, 64 * MIB))
        .unwrap()
        .close()
        .unwrap();
    sgdisk(&[
        "-n",
        "1:2048:+8M",
        "-t",
        "1:ef00",
        "-c",
        "1:EFI system",
        "-n",
        "3:0:+16M",
        "-t",
        "3:8300",
        "-A",
        "3:set:2",
        "-U",
        "11111111-2222-3333-4444-555555555555",
        text(path),
    ]);
}

#[test]
fn gpt_of_sgdisk_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    gpt_disk(&path);
    let table = partitions::read(&DiskImage::open(&path, Access::ReadOnly).unwrap()).unwrap();
    assert_eq!(
        table.style,
        Style::Gpt {
            id: uuid!("11111111-2222-3333-4444-555555555555"),
            from_backup: false
        }
    );
    let [esp, linux] = &table.partitions[..] else {
        panic!("{table:?}")
    };
    assert_eq!(
        (esp.number, esp.kind, esp.start, esp.length),
        (1, PartitionType::Gpt(ESP), MIB, 8 * MIB)
    );
    assert_eq!((esp.name.as_str(), esp.bootable), ("EFI system", false));
    assert_eq!(
        (linux.number, linux.kind, linux.start, linux.length),
        (3, PartitionType::Gpt(LINUX), 9 * MIB, 16 * MIB)
    );
    assert!(linux.bootable);
}

#[test]
fn a_broken_primary_gpt_is_replaced_by_the_backup_and_two_broken_ones_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    gpt_disk(&path);
    let mut image = DiskImage::open(&path, Access::ReadWrite).unwrap();
    let good = partitions::read(&image).unwrap();
    image.write_at(&[0xff], 512 + 60).unwrap();
    let table = partitions::read(&image).unwrap();
    assert_eq!(table.partitions, good.partitions);
    assert!(matches!(
        table.style,
        Style::Gpt {
            from_backup: true,
            ..
        }
    ));
    image.write_at(&[0xff], 64 * MIB - 512 + 60).unwrap();
    let error = partitions::read(&image).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        error
            .to_string()
            .starts_with("GPT header at byte 512: checksum is 0x"),
        "{error}"
    );
}

#[test]
fn a_flip_in_the_gpt_entries_is_detected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    gpt_disk(&path);
    let mut image = DiskImage::open(&path, Access::ReadWrite).unwrap();
    image.write_at(&[0xff], 2 * 512 + 33).unwrap();
    assert!(matches!(
        partitions::read(&image).unwrap().style,
        Style::Gpt {
            from_backup: true,
            ..
        }
    ));
}

/// Status, type, first sector, sectors.
type Entry = (u8, u8, u32, u32);

fn boot_record(entries: &[Entry]) -> [u8; 512] {
    let mut sector = [0; 512];
    sector[440..444].copy_from_slice(&0xdead_beef_u32.to_le_bytes());
    for (i, (status, kind, start, count)) in entries.iter().enumerate() {
        let at = 446 + 16 * i;
        sector[at] = *status;
        sector[at + 4] = *kind;
        sector[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        sector[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn mbr_disk(records: &[(u64, &[Entry])]) -> DiskImage {
    let (mut image, _) = create_in_memory(&options(Format::VhdxDynamic, 64 * MIB, Some(1 << 20)));
    for (sector, entries) in records {
        image.write_at(&boot_record(entries), sector * 512).unwrap();
    }
    image
}

#[test]
fn mbr_with_logical_partitions_is_read() {
    let image = mbr_disk(&[
        (0, &[(0x80, 0x83, 2048, 4096), (0, 0x05, 8192, 16384)]),
        (8192, &[(0, 0x83, 63, 1000), (0, 0x05, 4096, 2048)]),
        (8192 + 4096, &[(0, 0x82, 63, 900)]),
    ]);
    let table = partitions::read(&image).unwrap();
    assert_eq!(
        table.style,
        Style::Mbr {
            signature: 0xdead_beef
        }
    );
    let seen: Vec<_> = table
        .partitions
        .iter()
        .map(|p| (p.number, p.kind, p.start / 512, p.length / 512, p.bootable))
        .collect();
    assert_eq!(
        seen,
        [
            (1, PartitionType::Mbr(0x83), 2048, 4096, true),
            (2, PartitionType::Mbr(0x05), 8192, 16384, false),
            (5, PartitionType::Mbr(0x83), 8192 + 63, 1000, false),
            (6, PartitionType::Mbr(0x82), 8192 + 4096 + 63, 900, false),
        ]
    );
}

#[test]
fn loops_and_places_outside_the_disk_are_refused() {
    let looping = mbr_disk(&[
        (0, &[(0, 0x0f, 8192, 16384)]),
        (8192, &[(0, 0, 0, 0), (0, 0x05, 1, 1)]),
        (8193, &[(0, 0, 0, 0), (0, 0x05, 1, 1)]),
    ]);
    assert_eq!(
        partitions::read(&looping).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    let outside = mbr_disk(&[(0, &[(0, 0x83, 2048, u32::MAX)])]);
    let error = partitions::read(&outside).unwrap_err();
    assert!(
        error.to_string().starts_with("partition 1 at 1 MiB:"),
        "{error}"
    );
}

#[test]
fn disks_without_a_table_have_none() {
    assert_eq!(partitions::read(&mbr_disk(&[])).unwrap().style, Style::None);
    // A file system's boot sector: the signature, but code where flags would be.
    let image = mbr_disk(&[(0, &[(0x33, 0x83, 2048, 10)])]);
    assert_eq!(partitions::read(&image).unwrap().style, Style::None);
}
