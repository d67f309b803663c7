//! A look at any disk ends, never fails on memory, reads no more than it promises, and says of the table what
//! the table's own reader says.

#![no_main]

use std::cell::Cell;

use disk_image::boot::{self, MOST_PARTITIONS, Table};
use disk_image::partitions::{self, Style};
use disk_image::{BlockRead, ImageError};
use fuzz::Input;

/// A disk of any size whose first MiB is given; the rest reads as zeroes.
struct Disk {
    bytes: Vec<u8>,
    size: u64,
    sector: u32,
    read: Cell<u64>,
}

impl BlockRead for Disk {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn logical_sector_size(&self) -> u32 {
        self.sector
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let end = offset.checked_add(buffer.len() as u64);
        assert!(
            end.is_some_and(|end| end <= self.size),
            "read outside of the disk"
        );
        self.read.set(self.read.get() + buffer.len() as u64);
        buffer.fill(0);
        let start = (offset as usize).min(self.bytes.len());
        let known = &self.bytes[start..];
        let length = known.len().min(buffer.len());
        buffer[..length].copy_from_slice(&known[..length]);
        Ok(())
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let sector: u32 = if input.byte() & 1 == 0 { 512 } else { 4096 };
    let size = u64::from(sector) * (2 + input.number(4));
    let mut first = vec![0; (1 << 20).min(size as usize)];
    first[510] = 0x55;
    first[511] = 0xaa;
    for _ in 0..32 {
        if input.is_empty() {
            break;
        }
        let at = match input.byte() % 4 {
            0 => 446 + usize::from(input.byte() % 64),
            1 => sector as usize + usize::from(input.byte()),
            2 => 2 * sector as usize + usize::from(input.byte()),
            _ => input.number(3) as usize,
        };
        let at = at.min(first.len() - 1);
        let width = usize::from(input.byte() % 64).min(first.len() - at);
        let new = input.take(width);
        first[at..at + new.len()].copy_from_slice(new);
    }
    let disk = Disk {
        bytes: first,
        size,
        sector,
        read: Cell::new(0),
    };
    let found = boot::look(&disk).expect("reading memory does not fail");
    // Heads of partitions, the largest table twice, and the chain of logical partitions.
    let heads = MOST_PARTITIONS as u64 * 0x10048;
    let tables = 2 * (1024 * 4096 + u64::from(sector)) + 130 * 512 + 512;
    assert!(
        disk.read.get() <= heads + tables,
        "{} bytes",
        disk.read.get()
    );
    let told = match partitions::read(&disk) {
        Ok(table) => {
            assert_eq!(found.partitions as usize, table.partitions.len());
            match table.style {
                Style::None => Table::None,
                Style::Mbr { .. } => Table::Mbr,
                Style::Gpt { .. } => Table::Gpt,
            }
        }
        Err(_) => Table::Damaged,
    };
    assert_eq!(found.table, told);
    assert_eq!(found, boot::look(&disk).expect("the same again"));
});
