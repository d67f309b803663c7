//! The part of a dynamic or differencing VHD that fixed ones lack: header, block allocation table, sector bitmaps.
//!
//! ```text
//!   footer copy │ header 1024 │ BAT (u32 sector numbers) │ [bitmap][block] [bitmap][block] … │ footer
//! ```

use std::collections::BTreeSet;

use crate::bytes::{array, be32, be64, put};
use crate::layer::Place;
use crate::vhd::footer::{SECTOR, checksum};
use crate::{ErrorKind, ImageError, ImageFile};

pub(super) const HEADER_LENGTH: u64 = 1024;
const COOKIE: &[u8; 8] = b"cxsparse";
const VERSION: u32 = 0x0001_0000;
const CHECKSUM_AT: usize = 36;
/// Table entry of a block that isn't there.
pub(super) const ABSENT: u32 = u32::MAX;
/// Smallest and largest block accepted in a file. Windows makes 512 KiB and 2 MiB.
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 64 << 10..=256 << 20;

/// The dynamic header, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DynamicHeader {
    pub(super) table_offset: u64,
    pub(super) entries: u32,
    pub(super) block_size: u32,
    /// Whether the footer says so: what isn't in this file is the parent's.
    pub(super) is_differencing: bool,
    /// As it is in the file: what is not known here stays when the header is written again.
    pub(super) raw: Box<[u8; 1024]>,
}

impl DynamicHeader {
    pub(super) fn parse(bytes: &[u8; 1024], at: u64) -> Result<Self, ImageError> {
        const OBJECT: &str = "VHD dynamic header";
        if array::<8>(bytes, 0) != *COOKIE {
            return Err(ImageError::corrupt(
                OBJECT,
                at,
                "the signature cxsparse is missing",
            ));
        }
        let (stored, computed) = (be32(bytes, CHECKSUM_AT), checksum(bytes, CHECKSUM_AT));
        if stored != computed {
            return Err(ImageError::checksum(OBJECT, at, stored, computed));
        }
        let version = be32(bytes, 24);
        if version >> 16 != VERSION >> 16 {
            return Err(ImageError::unsupported(
                OBJECT,
                format!("format version {version:#010x} is unknown"),
            )
            .at(at));
        }
        let block_size = be32(bytes, 32);
        if !block_size.is_power_of_two() || !BLOCK_SIZES.contains(&block_size) {
            return Err(ImageError::corrupt(
                OBJECT,
                at,
                format!("block size {block_size} is not allowed"),
            ));
        }
        Ok(Self {
            table_offset: be64(bytes, 16),
            entries: be32(bytes, 28),
            block_size,
            is_differencing: false,
            raw: Box::new(*bytes),
        })
    }

    /// Where the sectors are that this file doesn't have.
    pub(super) fn elsewhere(&self) -> Place {
        if self.is_differencing {
            Place::Parent
        } else {
            Place::Zero
        }
    }

    pub(super) fn to_bytes(&self) -> [u8; 1024] {
        let mut bytes = *self.raw;
        put(&mut bytes, 0, COOKIE);
        put(&mut bytes, 8, &u64::MAX.to_be_bytes());
        put(&mut bytes, 16, &self.table_offset.to_be_bytes());
        put(&mut bytes, 24, &VERSION.to_be_bytes());
        put(&mut bytes, 28, &self.entries.to_be_bytes());
        put(&mut bytes, 32, &self.block_size.to_be_bytes());
        let sum = checksum(&bytes, CHECKSUM_AT);
        put(&mut bytes, CHECKSUM_AT, &sum.to_be_bytes());
        bytes
    }

    /// Bytes of the sector bitmap in front of each block: whole sectors.
    pub(super) fn bitmap_length(&self) -> u64 {
        (u64::from(self.block_size) / SECTOR)
            .div_ceil(8)
            .next_multiple_of(SECTOR)
    }

    /// Bytes that a bitmap and its block take together.
    pub(super) fn stride(&self) -> u64 {
        self.bitmap_length() + u64::from(self.block_size)
    }
}

/// The block allocation table in memory, and which of its entries the file doesn't have yet.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) entries: Vec<u32>,
    /// Table sectors that differ from the file.
    pub(super) dirty: BTreeSet<u64>,
    /// First byte behind everything that is referenced.
    pub(super) data_end: u64,
    /// First byte behind the table and the parent locators.
    pub(super) table_end: u64,
}

impl Table {
    /// Reads the entries that a disk of `virtual_size` bytes needs and checks each of them.
    pub(super) fn read(
        file: &dyn ImageFile,
        header: &DynamicHeader,
        virtual_size: u64,
        file_length: u64,
        header_end: u64,
    ) -> Result<Self, ImageError> {
        const OBJECT: &str = "VHD block allocation table";
        let at = header.table_offset;
        let needed = virtual_size.div_ceil(u64::from(header.block_size));
        if needed > u64::from(header.entries) {
            return Err(ImageError::corrupt(
                OBJECT,
                at,
                format!(
                    "{} entries can't hold a disk of {virtual_size} bytes",
                    header.entries
                ),
            ));
        }
        let table_end = at
            .checked_add(u64::from(header.entries) * 4)
            .filter(|end| *end <= file_length);
        let Some(table_end) = table_end.filter(|_| at.is_multiple_of(SECTOR) && at >= SECTOR)
        else {
            return Err(ImageError::corrupt(
                OBJECT,
                at,
                "it doesn't lie inside the file",
            ));
        };
        let mut entries = Vec::with_capacity(needed as usize);
        let mut chunk = vec![0; (needed as usize * 4).min(1 << 20)];
        while (entries.len() as u64) < needed {
            let done = entries.len() as u64 * 4;
            let part = chunk.len().min((needed * 4 - done) as usize);
            let bytes = &mut chunk[..part];
            file.read_at(bytes, at + done)
                .map_err(|e| ImageError::io(OBJECT, at + done, "read", e))?;
            entries.extend((0..part / 4).map(|i| be32(bytes, i * 4)));
        }
        let last = virtual_size - (needed - 1) * u64::from(header.block_size);
        let data_end = check(&entries, header, file_length, table_end, header_end, last)?;
        Ok(Self {
            entries,
            dirty: BTreeSet::new(),
            data_end,
            table_end,
        })
    }

    /// Writes the table sectors that changed. The blocks they name must be durable before.
    pub(super) fn write_dirty(
        &mut self,
        file: &dyn ImageFile,
        header: &DynamicHeader,
    ) -> Result<(), ImageError> {
        for sector in &self.dirty {
            let first = (*sector * SECTOR / 4) as usize;
            let mut bytes = [0xff; SECTOR as usize];
            for (i, entry) in self
                .entries
                .iter()
                .skip(first)
                .take(SECTOR as usize / 4)
                .enumerate()
            {
                put(&mut bytes, i * 4, &entry.to_be_bytes());
            }
            // Entries behind those the disk needs keep their bytes: a smaller write in the last sector.
            let length = ((self.entries.len() - first) * 4).min(SECTOR as usize);
            let at = header.table_offset + *sector * SECTOR;
            file.write_at(&bytes[..length], at)
                .map_err(|e| ImageError::io("VHD block allocation table", at, "write", e))?;
        }
        self.dirty.clear();
        Ok(())
    }
}

/// Checks that blocks lie inside the file, behind its structures, and don't overlap. Returns the
/// first byte behind everything.
fn check(
    entries: &[u32],
    header: &DynamicHeader,
    file_length: u64,
    table_end: u64,
    header_end: u64,
    last_block: u64,
) -> Result<u64, ImageError> {
    let refuse = |index: usize, at: u64, cause: String| {
        Err(ImageError::new(ErrorKind::Corrupt, format!("VHD block {index}"), cause).at(at))
    };
    let mut present: Vec<(u64, usize)> = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| **entry != ABSENT)
        .map(|(index, entry)| (u64::from(*entry) * SECTOR, index))
        .collect();
    present.sort_unstable();
    let structures = [
        (0, SECTOR),
        (header_end - HEADER_LENGTH, header_end),
        (header.table_offset, table_end),
    ];
    let mut end = table_end.max(header_end);
    let mut last: Option<(u64, usize)> = None;
    for (at, index) in present {
        // Some tools cut the last block of the disk off where the disk ends.
        let used = if index + 1 == entries.len() {
            header.bitmap_length() + last_block
        } else {
            header.stride()
        };
        if at + used > file_length {
            return refuse(
                index,
                at,
                format!("it ends behind the end of the file at {file_length}"),
            );
        }
        if structures
            .iter()
            .any(|(from, to)| at < *to && at + header.stride() > *from)
        {
            return refuse(
                index,
                at,
                "it overlaps the image's own structures".to_owned(),
            );
        }
        if let Some((last_at, last_index)) = last
            && last_at + header.stride() > at
        {
            return refuse(index, at, format!("it overlaps block {last_index}"));
        }
        last = Some((at, index));
        end = end.max(at + header.stride());
    }
    Ok(end.next_multiple_of(SECTOR))
}
