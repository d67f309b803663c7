//! The block allocation table: where each block of the disk lies in the file.

use std::collections::BTreeSet;
use std::ops::Range;

use super::layout::{HEADER_SECTION_END, LOG_SECTOR, MIB, chunk_ratio};
use super::metadata::Metadata;
use super::region::Region;
use crate::bytes::{le64, put};
use crate::{Extent, ImageError, ImageFile};

const OBJECT: &str = "BAT";
const STATE_MASK: u64 = 7;
const OFFSET_MASK: u64 = !(MIB - 1);
/// Not present, undefined, zero, unmapped: all read as zeroes in a disk without a parent.
const STATES_WITHOUT_DATA: std::ops::RangeInclusive<u64> = 0..=3;
const FULLY_PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;
const ENTRIES_PER_SECTOR: usize = LOG_SECTOR / 8;

/// The table in memory, and which of its sectors the file doesn't have yet.
#[derive(Debug)]
pub(super) struct Bat {
    region: Region,
    /// All entries as stored, those of sector bitmaps included.
    entries: Vec<u64>,
    chunk_ratio: u64,
    block_size: u64,
    virtual_size: u64,
    /// 4 KiB sectors of the table that differ from the file.
    dirty: BTreeSet<usize>,
}

impl Bat {
    /// Number of entries that a fixed or dynamic disk needs.
    pub(super) fn entry_count(metadata: &Metadata) -> u64 {
        let blocks = metadata
            .virtual_size
            .div_ceil(u64::from(metadata.block_size));
        blocks + (blocks - 1) / chunk_ratio(metadata.logical_sector_size, metadata.block_size)
    }

    /// Reads the table and checks each entry: state, alignment, inside the file, no overlap with
    /// another block or with `taken` ranges.
    pub(super) fn read(
        file: &dyn ImageFile,
        region: Region,
        metadata: &Metadata,
        file_length: u64,
        taken: &[Region],
    ) -> Result<Self, ImageError> {
        let count = Self::entry_count(metadata);
        if count * 8 > u64::from(region.length) {
            return Err(ImageError::corrupt(
                OBJECT,
                region.offset,
                format!("{count} entries don't fit into {} bytes", region.length),
            ));
        }
        // The region lies inside the file, so a made-up size can't ask for more than the file has.
        let mut entries = Vec::with_capacity(count as usize);
        let mut chunk = vec![0; (count as usize * 8).min(MIB as usize)];
        while (entries.len() as u64) < count {
            let done = entries.len() as u64 * 8;
            let part = chunk.len().min((count * 8 - done) as usize);
            let at = region.offset + done;
            file.read_at(&mut chunk[..part], at)
                .map_err(|e| ImageError::io(OBJECT, at, "read", e))?;
            entries.extend((0..part / 8).map(|i| le64(&chunk, i * 8)));
        }
        let bat = Self {
            region,
            entries,
            chunk_ratio: chunk_ratio(metadata.logical_sector_size, metadata.block_size),
            block_size: u64::from(metadata.block_size),
            virtual_size: metadata.virtual_size,
            dirty: BTreeSet::new(),
        };
        bat.check(file_length, taken)?;
        Ok(bat)
    }

    fn check(&self, file_length: u64, taken: &[Region]) -> Result<(), ImageError> {
        let refuse = |block: u64, cause: String| {
            let index = self.index(block);
            let at = self.region.offset + index as u64 * 8;
            Err(ImageError::corrupt(
                format!("BAT entry {index} (block {block})"),
                at,
                cause,
            ))
        };
        let mut present = Vec::new();
        for block in 0..self.blocks() {
            let entry = self.entries[self.index(block)];
            let (state, offset) = (entry & STATE_MASK, entry & OFFSET_MASK);
            match state {
                FULLY_PRESENT => {}
                PARTIALLY_PRESENT => {
                    return refuse(
                        block,
                        "it is partially present, but the disk has no parent".to_owned(),
                    );
                }
                state if STATES_WITHOUT_DATA.contains(&state) => continue,
                state => return refuse(block, format!("state {state} is unknown")),
            }
            // The last block of a disk may be cut off where the disk ends.
            let used = self
                .block_size
                .min(self.virtual_size - block * self.block_size);
            let Some(end) = offset.checked_add(used).filter(|end| *end <= file_length) else {
                return refuse(
                    block,
                    format!("offset {offset}: it ends behind the end of the file at {file_length}"),
                );
            };
            if offset < HEADER_SECTION_END {
                return refuse(block, format!("offset {offset} lies in the headers"));
            }
            if taken
                .iter()
                .any(|region| offset < region.end() && end > region.offset)
            {
                return refuse(
                    block,
                    format!("offset {offset}: it overlaps the log or a region"),
                );
            }
            present.push((offset, block));
        }
        present.sort_unstable();
        match present
            .windows(2)
            .find(|pair| pair[0].0 + self.block_size > pair[1].0)
        {
            Some(pair) => refuse(
                pair[1].1,
                format!("offset {}: it overlaps block {}", pair[1].0, pair[0].1),
            ),
            None => Ok(()),
        }
    }

    fn blocks(&self) -> u64 {
        self.virtual_size.div_ceil(self.block_size)
    }

    /// After every `chunk_ratio` blocks comes one entry of a sector bitmap.
    fn index(&self, block: u64) -> usize {
        (block + block / self.chunk_ratio) as usize
    }

    pub(super) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Where the block lies in the file; `None` when it reads as zeroes.
    pub(super) fn place(&self, block: u64) -> Option<u64> {
        let entry = self.entries[self.index(block)];
        (entry & STATE_MASK == FULLY_PRESENT).then_some(entry & OFFSET_MASK)
    }

    /// Splits a range of the disk: the file offset of its first byte (`None`: zeroes) and how many
    /// of `length` bytes lie there in one piece, over several blocks where those are neighbours.
    pub(super) fn locate(&self, offset: u64, length: usize) -> (Option<u64>, usize) {
        let within = offset % self.block_size;
        let mut block = offset / self.block_size;
        let place = self.place(block).map(|place| place + within);
        let mut run = self.block_size - within;
        while run < length as u64 {
            block += 1;
            if self.place(block) != place.map(|place| place + run) {
                break;
            }
            run += self.block_size;
        }
        (place, run.min(length as u64) as usize)
    }

    /// Block of a byte of the disk, the byte's place in it, and how many of `length` bytes it holds.
    pub(super) fn block_of(&self, offset: u64, length: usize) -> (u64, u64, usize) {
        let within = offset % self.block_size;
        (
            offset / self.block_size,
            within,
            length.min((self.block_size - within) as usize),
        )
    }

    /// Marks the block as present at `place` of the file, a multiple of 1 MiB.
    pub(super) fn set_place(&mut self, block: u64, place: u64) {
        let index = self.index(block);
        self.entries[index] = place | FULLY_PRESENT;
        self.dirty.insert(index / ENTRIES_PER_SECTOR);
    }

    /// Up to `count` changed sectors of the table with their file offsets; they count as taken care of.
    pub(super) fn take_dirty(&mut self, count: usize) -> Vec<(u64, Vec<u8>)> {
        let taken: Vec<usize> = self.dirty.iter().copied().take(count).collect();
        let sector = |number: usize| {
            let mut bytes = vec![0; LOG_SECTOR];
            let entries = self
                .entries
                .iter()
                .skip(number * ENTRIES_PER_SECTOR)
                .take(ENTRIES_PER_SECTOR);
            for (i, entry) in entries.enumerate() {
                put(&mut bytes, i * 8, &entry.to_le_bytes());
            }
            (self.region.offset + (number * LOG_SECTOR) as u64, bytes)
        };
        let sectors = taken.iter().map(|number| sector(*number)).collect();
        self.dirty.retain(|number| !taken.contains(number));
        sectors
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(super) fn allocated(&self, range: Range<u64>) -> Vec<Extent> {
        let mut extents = Vec::new();
        let mut offset = range.start;
        while offset < range.end {
            let block = offset / self.block_size;
            let end = ((block + 1) * self.block_size).min(range.end);
            if self.place(block).is_some() {
                crate::extent::push(&mut extents, offset, end - offset);
            }
            offset = end;
        }
        extents
    }
}

/// Entry of a block at `place`, as stored.
pub(super) fn present_entry(place: u64) -> u64 {
    place | FULLY_PRESENT
}
