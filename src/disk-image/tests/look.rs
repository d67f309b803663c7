//! A short look at disks that sgdisk made, and at bytes that nobody should have made.

mod boot_disks;

use std::cell::Cell;

use boot_disks::BootDisk;
use disk_image::boot::{self, Guest, Look, MOST_PARTITIONS, Table};
use disk_image::{Access, BlockRead, ImageError};
use proptest::prelude::*;

fn look(bytes: &[u8]) -> Look {
    boot::look(&boot_disks::open(bytes, Access::ReadOnly)).unwrap()
}

/// An MBR with one partition of this type.
fn mbr(kind: u8) -> Vec<u8> {
    let mut disk = vec![0; 4 << 20];
    disk[446 + 4] = kind;
    disk[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    disk[446 + 12..446 + 16].copy_from_slice(&2048_u32.to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

#[test]
fn an_empty_disk_tells_nothing() {
    assert_eq!(
        look(&vec![0; 1 << 20]),
        Look {
            table: Table::None,
            partitions: 0,
            dynamic_disk: false,
            bitlocker: false,
            luks: false,
            lvm: false,
            efi_system_partition: false,
            guest: Guest::Unknown,
        }
    );
}

#[test]
fn dynamic_disks_are_known_by_their_types_in_both_tables() {
    let found = look(&mbr(0x42));
    assert!(found.dynamic_disk && found.table == Table::Mbr, "{found:?}");
    assert_eq!(found.guest, Guest::Windows);
    assert!(!look(&mbr(0x07)).dynamic_disk);

    // sgdisk: 4201 = metadata of the Logical Disk Manager, 4200 = its data.
    for kind in ["4201", "4200"] {
        let disk = BootDisk::new(8)
            .partition("1:2048:+2048", "ef00")
            .partition("2:4096:+2048", kind);
        let found = look(&disk.bytes);
        assert!(
            found.dynamic_disk && found.efi_system_partition,
            "{kind}: {found:?}"
        );
        assert_eq!((found.table, found.partitions), (Table::Gpt, 2));
    }
}

#[test]
fn encrypted_volumes_are_known_by_their_signatures() {
    let mut disk = BootDisk::new(8)
        .partition("1:2048:+2048", "0700")
        .partition("2:4096:+2048", "8309");
    assert!(!look(&disk.bytes).bitlocker);
    disk.put(2048 * 512 + 3, b"-FVE-FS-");
    disk.put(4096 * 512, b"LUKS\xba\xbe");
    let found = look(&disk.bytes);
    assert!(found.bitlocker && found.luks && !found.lvm, "{found:?}");

    // A volume on the whole disk has no table before it.
    let mut whole = vec![0; 1 << 20];
    whole[3..11].copy_from_slice(b"-FVE-FS-");
    let found = look(&whole);
    assert!(found.bitlocker && found.table == Table::None, "{found:?}");
}

#[test]
fn linux_is_known_by_types_and_signatures() {
    let mut disk = BootDisk::new(8).partition("1:2048:+2048", "8e00");
    let found = look(&disk.bytes);
    assert_eq!((found.guest, found.lvm), (Guest::Linux, false));
    disk.put(2048 * 512 + 512, b"LABELONE");
    assert!(look(&disk.bytes).lvm);
}

#[test]
fn a_table_that_contradicts_itself_is_told_and_no_error() {
    let mut disk = BootDisk::new(8).partition("1:2048:+2048", "8300");
    let end = disk.bytes.len();
    disk.put(512 + 16, &[0xff; 4]);
    disk.put(end - 512 + 16, &[0xff; 4]);
    assert_eq!(look(&disk.bytes).table, Table::Damaged);
    // A partition behind the end of the disk.
    let mut behind = mbr(0x07);
    behind[446 + 12..446 + 16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(look(&behind).table, Table::Damaged);
}

/// Counts what is read of a disk that claims any size.
struct Counting {
    bytes: Vec<u8>,
    size: u64,
    read: Cell<u64>,
}

impl BlockRead for Counting {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn logical_sector_size(&self) -> u32 {
        512
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        assert!(
            offset + buffer.len() as u64 <= self.size,
            "outside the disk"
        );
        self.read.set(self.read.get() + buffer.len() as u64);
        for (index, byte) in buffer.iter_mut().enumerate() {
            let at = usize::try_from(offset).unwrap() + index;
            *byte = self.bytes.get(at).copied().unwrap_or_default();
        }
        Ok(())
    }
}

/// Heads of partitions, the largest table twice, and the chain of logical partitions.
const MOST_READ: u64 = MOST_PARTITIONS as u64 * 0x10048 + 2 * (1024 * 4096 + 512) + 130 * 512 + 512;

#[test]
fn a_disk_with_many_partitions_is_looked_at_within_the_bound() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("many.raw");
    std::fs::write(&path, vec![0; 16 << 20]).unwrap();
    let places: Vec<String> = (1..=100)
        .map(|number| format!("--new={number}:{}:+16", 2048 + 32 * number))
        .collect();
    let mut arguments = vec!["-a", "1"];
    arguments.extend(places.iter().map(String::as_str));
    arguments.push(path.to_str().unwrap());
    boot_disks::tool("sgdisk", &arguments);
    let bytes = std::fs::read(&path).unwrap();
    let disk = Counting {
        size: bytes.len() as u64,
        bytes,
        read: Cell::default(),
    };
    let found = boot::look(&disk).unwrap();
    assert_eq!(found.partitions, 100);
    assert!(disk.read.get() <= MOST_READ, "{} bytes", disk.read.get());
}

proptest! {
    #[test]
    fn any_first_sectors_are_looked_at_within_the_bound(
        mut bytes in proptest::collection::vec(any::<u8>(), 2048),
        size in 0..u64::from(u32::MAX) * 1024,
        flags in proptest::collection::vec(prop_oneof![Just(0_u8), Just(0x80)], 4),
        kinds in proptest::collection::vec(prop_oneof![Just(0_u8), Just(5), Just(0x42), Just(0xee), any::<u8>()], 4),
    ) {
        for entry in 0..4 {
            bytes[446 + 16 * entry] = flags[entry];
            bytes[450 + 16 * entry] = kinds[entry];
        }
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        let disk = Counting { bytes, size, read: Cell::default() };
        boot::look(&disk).expect("reading memory does not fail");
        prop_assert!(disk.read.get() <= MOST_READ);
    }
}
