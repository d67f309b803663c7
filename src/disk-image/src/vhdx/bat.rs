//! The block allocation table: where each block of the disk, and each sector bitmap of a
//! differencing disk, lies in the file.

use std::collections::BTreeSet;

use super::bitmap::BITMAP_LENGTH;
use super::layout::{HEADER_SECTION_END, LOG_SECTOR, MIB, chunk_ratio};
use super::metadata::Metadata;
use super::region::Region;
use crate::bytes::{le64, put};
use crate::{ImageError, ImageFile};

const OBJECT: &str = "BAT";
const STATE_MASK: u64 = 7;
const OFFSET_MASK: u64 = !(MIB - 1);
const NOT_PRESENT: u64 = 0;
/// Undefined and unmapped blocks read as zeroes, too: the only answer that shows nobody's old data.
const UNDEFINED: u64 = 1;
const ZERO: u64 = 2;
const UNMAPPED: u64 = 3;
const FULLY_PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;
const ENTRIES_PER_SECTOR: usize = LOG_SECTOR / 8;

/// What the table says of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// It reads as zeroes.
    Zero,
    /// It is the parent's.
    Parent,
    /// All of it lies at this place of the file.
    Full(u64),
    /// Sectors whose bit is set lie at this place of the file, the others are the parent's.
    Partial(u64),
}

/// The table in memory, and which of its sectors the file doesn't have yet.
#[derive(Debug)]
pub(super) struct Bat {
    region: Region,
    /// All entries as stored, those of sector bitmaps included.
    entries: Vec<u64>,
    chunk_ratio: u64,
    block_size: u64,
    virtual_size: u64,
    has_parent: bool,
    /// 4 KiB sectors of the table that differ from the file.
    dirty: BTreeSet<usize>,
}

impl Bat {
    /// Number of entries that the disk needs.
    pub(super) fn entry_count(metadata: &Metadata) -> u64 {
        let blocks = metadata
            .virtual_size
            .div_ceil(u64::from(metadata.block_size));
        let ratio = chunk_ratio(metadata.logical_sector_size, metadata.block_size);
        if metadata.has_parent() {
            // The bitmap of the last chunk has its place behind a whole chunk.
            blocks.div_ceil(ratio) * (ratio + 1)
        } else {
            blocks + (blocks - 1) / ratio
        }
    }

    /// A table without blocks.
    pub(super) fn empty(region: Region, metadata: &Metadata) -> Self {
        Self {
            region,
            entries: vec![0; Self::entry_count(metadata) as usize],
            chunk_ratio: chunk_ratio(metadata.logical_sector_size, metadata.block_size),
            block_size: u64::from(metadata.block_size),
            virtual_size: metadata.virtual_size,
            has_parent: metadata.has_parent(),
            dirty: BTreeSet::new(),
        }
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
        let mut bat = Self::empty(region, metadata);
        bat.entries.clear();
        let mut chunk = vec![0; (count as usize * 8).min(MIB as usize)];
        while (bat.entries.len() as u64) < count {
            let done = bat.entries.len() as u64 * 8;
            let part = chunk.len().min((count * 8 - done) as usize);
            let at = region.offset + done;
            file.read_at(&mut chunk[..part], at)
                .map_err(|e| ImageError::io(OBJECT, at, "read", e))?;
            bat.entries
                .extend((0..part / 8).map(|i| le64(&chunk, i * 8)));
        }
        bat.check(file_length, taken)?;
        Ok(bat)
    }

    fn refuse<T>(&self, index: usize, name: &str, cause: String) -> Result<T, ImageError> {
        Err(ImageError::corrupt(
            format!("BAT entry {index} ({name})"),
            self.region.offset + index as u64 * 8,
            cause,
        ))
    }

    fn check(&self, file_length: u64, taken: &[Region]) -> Result<(), ImageError> {
        // Place, bytes that the file must have, whole length, entry, name.
        let mut present: Vec<(u64, u64, u64, usize, String)> = Vec::new();
        for block in 0..self.blocks() {
            let index = self.index(block);
            let name = || format!("block {block}");
            match self.entries[index] & STATE_MASK {
                FULLY_PRESENT => {}
                PARTIALLY_PRESENT if !self.has_parent => {
                    return self.refuse(
                        index,
                        &name(),
                        "it is partially present, but the disk has no parent".to_owned(),
                    );
                }
                PARTIALLY_PRESENT => {
                    if self.bitmap_place(block).is_none() {
                        return self.refuse(
                            index,
                            &name(),
                            "it is partially present, but its sector bitmap is not there"
                                .to_owned(),
                        );
                    }
                }
                // What such an entry says of a place is left over from earlier and means nothing.
                NOT_PRESENT..=UNMAPPED => continue,
                state => return self.refuse(index, &name(), format!("state {state} is unknown")),
            }
            // The last block of a disk may be cut off where the disk ends.
            let used = self
                .block_size
                .min(self.virtual_size - block * self.block_size);
            present.push((self.place_of(index), used, self.block_size, index, name()));
        }
        for chunk in 0..self.chunks() {
            let index = self.bitmap_index(chunk);
            let name = || format!("sector bitmap {chunk}");
            match self.entries[index] & STATE_MASK {
                NOT_PRESENT => {}
                FULLY_PRESENT => {
                    let place = self.place_of(index);
                    present.push((place, BITMAP_LENGTH, BITMAP_LENGTH, index, name()));
                }
                state => return self.refuse(index, &name(), format!("state {state} is unknown")),
            }
        }
        present.sort_unstable();
        let mut last: Option<(u64, String)> = None;
        for (offset, used, length, index, name) in present {
            let Some(end) = offset.checked_add(used).filter(|end| *end <= file_length) else {
                return self.refuse(
                    index,
                    &name,
                    format!("offset {offset}: it ends behind the end of the file at {file_length}"),
                );
            };
            if offset < HEADER_SECTION_END {
                return self.refuse(index, &name, format!("offset {offset} lies in the headers"));
            }
            if taken
                .iter()
                .any(|region| offset < region.end() && end > region.offset)
            {
                return self.refuse(
                    index,
                    &name,
                    format!("offset {offset}: it overlaps the log or a region"),
                );
            }
            if let Some((last_end, last_name)) = last
                && last_end > offset
            {
                return self.refuse(
                    index,
                    &name,
                    format!("offset {offset}: it overlaps {last_name}"),
                );
            }
            last = Some((offset.saturating_add(length), name));
        }
        Ok(())
    }

    fn blocks(&self) -> u64 {
        self.virtual_size.div_ceil(self.block_size)
    }

    /// Chunks that have a sector bitmap: only those of a differencing disk.
    fn chunks(&self) -> u64 {
        if self.has_parent {
            self.blocks().div_ceil(self.chunk_ratio)
        } else {
            0
        }
    }

    /// After every `chunk_ratio` blocks comes one entry of a sector bitmap.
    fn index(&self, block: u64) -> usize {
        (block + block / self.chunk_ratio) as usize
    }

    fn bitmap_index(&self, chunk: u64) -> usize {
        (chunk * (self.chunk_ratio + 1) + self.chunk_ratio) as usize
    }

    fn place_of(&self, index: usize) -> u64 {
        self.entries[index] & OFFSET_MASK
    }

    pub(super) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// What the table says of a block.
    pub(super) fn block(&self, block: u64) -> Block {
        let entry = self.entries[self.index(block)];
        match entry & STATE_MASK {
            FULLY_PRESENT => Block::Full(entry & OFFSET_MASK),
            PARTIALLY_PRESENT => Block::Partial(entry & OFFSET_MASK),
            NOT_PRESENT if self.has_parent => Block::Parent,
            _ => Block::Zero,
        }
    }

    /// Where the sector bitmap of a block's chunk lies.
    pub(super) fn bitmap_place(&self, block: u64) -> Option<u64> {
        if !self.has_parent {
            return None;
        }
        let index = self.bitmap_index(block / self.chunk_ratio);
        (self.entries[index] & STATE_MASK == FULLY_PRESENT).then(|| self.place_of(index))
    }

    /// First block of a block's chunk.
    pub(super) fn chunk_start(&self, block: u64) -> u64 {
        block / self.chunk_ratio * self.chunk_ratio
    }

    /// Splits a range of the disk: what the table says of its first byte, with the file offset of
    /// that byte, and for how many of `length` bytes that goes on in one piece (over several
    /// blocks where those are neighbours).
    pub(super) fn locate(&self, offset: u64, length: u64) -> (Block, u64) {
        let within = offset % self.block_size;
        let mut block = offset / self.block_size;
        let first = self.block(block);
        let at = |place: u64| place + within;
        let first = match first {
            Block::Full(place) => Block::Full(at(place)),
            Block::Partial(place) => Block::Partial(at(place)),
            other => other,
        };
        let mut run = self.block_size - within;
        while run < length {
            block += 1;
            let goes_on = match (first, self.block(block)) {
                (Block::Full(place), Block::Full(next)) => place + run == next,
                (Block::Zero, Block::Zero) | (Block::Parent, Block::Parent) => true,
                // Bitmaps are looked at block by block.
                _ => false,
            };
            if !goes_on {
                break;
            }
            run += self.block_size;
        }
        (first, run.min(length))
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

    /// Bytes of a block that belong to the disk: the last one may reach over its end.
    pub(super) fn used(&self, block: u64) -> u64 {
        self.block_size
            .min(self.virtual_size.saturating_sub(block * self.block_size))
    }

    fn set(&mut self, index: usize, entry: u64) {
        self.entries[index] = entry;
        self.dirty.insert(index / ENTRIES_PER_SECTOR);
    }

    /// Changes what the table says of a block. Places are multiples of 1 MiB.
    pub(super) fn set_block(&mut self, block: u64, state: Block) {
        let entry = match state {
            Block::Zero if self.has_parent => ZERO,
            Block::Zero | Block::Parent => NOT_PRESENT,
            Block::Full(place) => place | FULLY_PRESENT,
            Block::Partial(place) => place | PARTIALLY_PRESENT,
        };
        self.set(self.index(block), entry);
    }

    /// The chunk of `block` has its sector bitmap at `place` of the file.
    pub(super) fn set_bitmap(&mut self, block: u64, place: u64) {
        let index = self.bitmap_index(block / self.chunk_ratio);
        self.set(index, place | FULLY_PRESENT);
    }

    /// Up to `count` changed sectors of the table with their file offsets; they count as taken care of.
    pub(super) fn take_dirty(&mut self, count: usize) -> Vec<(u64, Vec<u8>)> {
        let taken: Vec<usize> = self.dirty.iter().copied().take(count).collect();
        let sectors = taken
            .iter()
            .map(|number| {
                let at = self.region.offset + (number * LOG_SECTOR) as u64;
                (at, self.sector(*number))
            })
            .collect();
        self.dirty.retain(|number| !taken.contains(number));
        sectors
    }

    fn sector(&self, number: usize) -> Vec<u8> {
        let mut bytes = vec![0; LOG_SECTOR];
        let entries = self
            .entries
            .iter()
            .skip(number * ENTRIES_PER_SECTOR)
            .take(ENTRIES_PER_SECTOR);
        for (i, entry) in entries.enumerate() {
            put(&mut bytes, i * 8, &entry.to_le_bytes());
        }
        bytes
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Changes the size of the disk that the table describes; new entries are not present, those
    /// behind a smaller end are gone. Nothing of that is dirty: entries behind the disk's end
    /// mean nothing in the file.
    pub(super) fn resize(&mut self, metadata: &Metadata) {
        let count = Self::entry_count(metadata) as usize;
        if count < self.entries.len() {
            self.entries.truncate(count);
            self.dirty
                .retain(|sector| sector * ENTRIES_PER_SECTOR < count);
        } else {
            // What lay in the region behind the old end must not come to life.
            for index in self.entries.len()..count {
                self.dirty.insert(index / ENTRIES_PER_SECTOR);
            }
            self.entries.resize(count, 0);
        }
        self.virtual_size = metadata.virtual_size;
    }

    /// Moves the table to another region; all of its sectors have to be written there.
    pub(super) fn move_to(&mut self, region: Region) {
        self.region = region;
    }

    /// Every sector of the table with its place, for a region that holds nothing yet.
    pub(super) fn all_sectors(&self) -> impl Iterator<Item = (u64, Vec<u8>)> + '_ {
        (0..self.entries.len().div_ceil(ENTRIES_PER_SECTOR)).map(|number| {
            (
                self.region.offset + (number * LOG_SECTOR) as u64,
                self.sector(number),
            )
        })
    }

    /// End of the last place in the file that the table names.
    pub(super) fn data_end(&self) -> u64 {
        let blocks = (0..self.blocks()).filter_map(|block| match self.block(block) {
            Block::Full(place) | Block::Partial(place) => Some(place + self.block_size),
            _ => None,
        });
        let bitmaps = (0..self.chunks())
            .filter_map(|chunk| self.bitmap_place(chunk * self.chunk_ratio))
            .map(|place| place + BITMAP_LENGTH);
        blocks.chain(bitmaps).max().unwrap_or(0)
    }
}

/// Entry of a block at `place`, as stored.
pub(super) fn present_entry(place: u64) -> u64 {
    place | FULLY_PRESENT
}

const _: () = assert!(UNDEFINED < ZERO && ZERO < UNMAPPED);
