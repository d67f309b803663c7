//! The parts of a disk that belong to no partition and to no partition table.

use std::ops::Range;

use crate::bytes::{le32, le64};
use crate::partitions::{Partition, PartitionTable, PartitionType, Style};
use crate::{BlockRead, Extent, ImageError};

/// Type of a partition that exists to hold GRUB's core.
pub(super) const BIOS_BOOT: uuid::Uuid = uuid::uuid!("21686148-6449-6e6f-744e-656564454649");
/// Sectors at the end of a GPT disk that the spare table takes, there or when a tool moves it there.
const SPARE_TABLE_SECTORS: u64 = 33;

/// Where the core image goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CorePlace {
    /// Into the BIOS boot partition with this number, which holds no file system.
    BiosBootPartition(u32),
    /// Between the partition table and the first partition.
    BeforeFirst,
    /// Between two partitions.
    Between,
    /// Behind the last partition.
    BehindLast,
}

/// Free ranges of a disk with 512-byte sectors: sorted, disjoint, cut to whole sectors.
///
/// # Errors
/// I/O errors, and `Corrupt` when the GPT's own places contradict the disk.
pub(super) fn free(
    disk: &(impl BlockRead + ?Sized),
    table: &PartitionTable,
) -> Result<Vec<Extent>, ImageError> {
    let sector = u64::from(disk.logical_sector_size());
    let size = disk.virtual_size() / sector * sector;
    // The boot sector.
    let mut used: Vec<Range<u64>> = Vec::new();
    used.push(0..sector);
    let mut reserve = Vec::new();
    if let Style::Gpt { .. } = table.style {
        let places = gpt_places(disk, size, sector)?;
        used.extend(places.table);
        reserve.extend(places.reserve);
    }
    for partition in &table.partitions {
        if used.iter().any(|place| overlap(place, &bytes(partition))) {
            return Err(ImageError::corrupt(
                format!("partition {}", partition.number),
                partition.start,
                "it overlaps the partition table",
            ));
        }
    }
    used.extend(reserve);
    used.extend(table.partitions.iter().map(bytes));
    used.sort_by_key(|range| range.start);
    let mut free = Vec::new();
    let mut at = 0;
    for range in used {
        // Partitions of an MBR need not begin at whole sectors of this disk: never share one.
        let start = range.start / sector * sector;
        if start > at {
            free.push(Extent {
                offset: at,
                length: start - at,
            });
        }
        at = at.max(range.end.div_ceil(sector).saturating_mul(sector));
    }
    if at < size {
        free.push(Extent {
            offset: at,
            length: size - at,
        });
    }
    Ok(free)
}

/// The bytes of a partition; the table was checked against the disk's size.
fn bytes(partition: &Partition) -> Range<u64> {
    partition.start..partition.start.saturating_add(partition.length)
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// Places of a GPT on the disk, in bytes.
struct GptPlaces {
    /// What no partition may overlap: header, entries, header of the spare table.
    table: [Range<u64>; 3],
    /// What is left free around the spare table, for it and for where tools move it to.
    reserve: [Range<u64>; 2],
}

/// The primary table was found right before.
fn gpt_places(
    disk: &(impl BlockRead + ?Sized),
    size: u64,
    sector: u64,
) -> Result<GptPlaces, ImageError> {
    let mut header = [0; 92];
    disk.read_at(&mut header, sector)?;
    let at = |lba: u64| lba.saturating_mul(sector);
    let (spare, last_usable) = (le64(&header, 32), le64(&header, 48));
    let entries = at(le64(&header, 72));
    let entries_length = u64::from(le32(&header, 80)) * u64::from(le32(&header, 84));
    if entries.saturating_add(entries_length) > size || at(spare) >= size {
        return Err(ImageError::corrupt(
            "GPT header",
            sector,
            "it names places outside the disk",
        ));
    }
    // Some tools keep an own reserve between the last usable sector and the spare table.
    let spare_start = at(last_usable.saturating_add(1)).min(at(spare));
    Ok(GptPlaces {
        table: [
            sector..2 * sector,
            entries..entries + entries_length,
            at(spare)..at(spare + 1),
        ],
        reserve: [
            spare_start..at(spare + 1),
            size.saturating_sub(at(SPARE_TABLE_SECTORS))..size,
        ],
    })
}

/// Where `length` bytes of core fit: a partition made for it, then the usual gap, then any other.
pub(super) fn choose(
    table: &PartitionTable,
    free: &[Extent],
    length: u64,
) -> Option<(CorePlace, u64)> {
    /// What a BIOS can certainly address.
    const REACH: u64 = 2 << 40;
    let made_for_it = table.partitions.iter().find(|partition| {
        let others = table.partitions.iter().filter(|p| p != partition);
        partition.kind == PartitionType::Gpt(BIOS_BOOT)
            && partition.length >= length
            && partition.start.saturating_add(length) <= REACH
            && !others
                .map(bytes)
                .any(|other| overlap(&other, &bytes(partition)))
    });
    if let Some(partition) = made_for_it {
        return Some((
            CorePlace::BiosBootPartition(partition.number),
            partition.start,
        ));
    }
    let first = table.partitions.iter().map(|p| p.start).min().unwrap_or(0);
    let last = table.partitions.iter().map(|p| p.start).max().unwrap_or(0);
    free.iter()
        .find(|extent| extent.length >= length && extent.offset.saturating_add(length) <= REACH)
        .map(|extent| {
            let place = if extent.offset < first {
                CorePlace::BeforeFirst
            } else if extent.offset < last {
                CorePlace::Between
            } else {
                CorePlace::BehindLast
            };
            (place, extent.offset)
        })
}
