//! Whatever is read as a partition table is read the same twice, and its partitions lie inside the
//! disk. The disk is judged for a boot conversion without an error, and what is free is no partition's.

#![no_main]

use disk_image::boot;
use disk_image::partitions;
use disk_image::{Access, DiskImage, MemoryFile};
use fuzz::Input;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let sector = if input.byte() & 1 == 0 { 512 } else { 4096 };
    let mut disk = vec![0; 1 << 20];
    let end = disk.len();
    // Patches near the places that matter: the first sectors and the last ones.
    for _ in 0..32 {
        if input.is_empty() {
            break;
        }
        let near = usize::from(input.byte());
        let at = match near % 8 {
            0 => 446,
            1 => 510,
            2 => sector,
            3 => 2 * sector,
            4 => end - sector,
            5 => end - 33 * sector,
            _ => input.number(3) as usize % end,
        };
        let at = (at + usize::from(input.byte())).min(end - 1);
        let width = usize::from(input.byte() % 64).min(end - at);
        let new = input.take(width);
        disk[at..at + new.len()].copy_from_slice(new);
    }
    if input.byte() & 1 == 0 {
        put_gpt_right(&mut disk, sector);
    }
    let open = || {
        let file = Box::new(MemoryFile::from_bytes(disk.clone()));
        DiskImage::open_raw(file, Access::ReadOnly, sector as u32)
            .expect("any bytes are a raw disk")
    };
    let first = partitions::read(&open());
    let again = partitions::read(&open());
    assert_eq!(format!("{first:?}"), format!("{again:?}"));
    for partition in first.iter().flat_map(|table| &table.partitions) {
        let end = partition.start.checked_add(partition.length);
        assert!(partition.length > 0 && end.is_some_and(|end| end <= disk.len() as u64));
    }
    let found = boot::inspect(&open()).expect("reading memory does not fail");
    boot::judge(&found, 20 * 512);
    for free in &found.free {
        assert!(free.length > 0 && free.end() <= disk.len() as u64);
        assert!(found.partitions.iter().all(|held| {
            let (start, length) = (held.partition.start, held.partition.length);
            start >= free.end() || start + length <= free.offset
        }));
    }
});

/// Checksums of a GPT header in the second sector and of its entries, as a forger makes them.
fn put_gpt_right(disk: &mut [u8], sector: usize) {
    let header = sector;
    if disk[header..header + 8] != *b"EFI PART" {
        disk[header..header + 8].copy_from_slice(b"EFI PART");
        disk[header + 8..header + 12].copy_from_slice(&0x1_0000_u32.to_le_bytes());
        disk[header + 12..header + 16].copy_from_slice(&92_u32.to_le_bytes());
        disk[header + 24..header + 32].copy_from_slice(&1_u64.to_le_bytes());
    }
    let number = |at: usize| {
        u32::from_le_bytes([disk[at], disk[at + 1], disk[at + 2], disk[at + 3]]) as usize
    };
    let (count, size) = (number(header + 80), number(header + 84));
    let entries = number(header + 72).saturating_mul(sector);
    let length = count.saturating_mul(size);
    if let Some(part) = disk.get(entries..entries.saturating_add(length)) {
        let sum = crc32(part);
        disk[header + 88..header + 92].copy_from_slice(&sum.to_le_bytes());
    }
    disk[header + 16..header + 20].fill(0);
    let sum = crc32(&disk[header..header + 92]);
    disk[header + 16..header + 20].copy_from_slice(&sum.to_le_bytes());
}

/// The CRC-32 of Ethernet, as GPT uses it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}
