//! Reading a VHD: which part of the disk lies where in the file, and which is the parent's.

use std::ops::Range;

use super::dynamic::{ABSENT, DynamicHeader};
use super::footer::SECTOR;
use super::{Kind, VhdImage};
use crate::layer::{Layer, Place};
use crate::{ImageError, ImageFile};

impl Layer for VhdImage {
    fn layer_size(&self) -> u64 {
        self.virtual_size
    }

    fn below(&self) -> Option<&Self> {
        self.parent.as_deref()
    }

    fn pieces(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(u64, u64, Place),
    ) -> Result<(), ImageError> {
        let Kind::Dynamic { header, table } = &self.kind else {
            self.coarse(range, each);
            return Ok(());
        };
        let mut offset = range.start;
        while offset < range.end {
            let (index, within, length) = locate(header, offset, range.end - offset);
            let length = length as u64;
            match table.entries[index] {
                ABSENT => each(offset, length, header.elsewhere()),
                sector => {
                    let at = u64::from(sector) * SECTOR;
                    let part = within..within + length;
                    self.block_pieces(header, index, at, part, &mut |start, n, place| {
                        each(offset + (start - within), n, place);
                    })?;
                }
            }
            offset += length;
        }
        Ok(())
    }

    fn coarse(&self, range: Range<u64>, each: &mut dyn FnMut(u64, u64, Place)) {
        let Kind::Dynamic { header, table } = &self.kind else {
            each(
                range.start,
                range.end - range.start,
                Place::File(range.start),
            );
            return;
        };
        let mut offset = range.start;
        while offset < range.end {
            let (index, _, length) = locate(header, offset, range.end - offset);
            let place = match table.entries[index] {
                ABSENT => header.elsewhere(),
                sector => Place::File(u64::from(sector) * SECTOR),
            };
            each(offset, length as u64, place);
            offset += length as u64;
        }
    }

    fn read_file(&self, buffer: &mut [u8], at: u64) -> Result<(), ImageError> {
        self.file
            .read_at(buffer, at)
            .map_err(|e| ImageError::io("VHD data", at, "read", e))
    }

    fn plain_file(&self) -> Option<&dyn ImageFile> {
        Some(self.file.as_ref())
    }
}

impl VhdImage {
    /// The pieces of a block that is there; what its bitmap doesn't mark lies elsewhere.
    fn block_pieces(
        &self,
        header: &DynamicHeader,
        index: usize,
        at: u64,
        within: Range<u64>,
        each: &mut dyn FnMut(u64, u64, Place),
    ) -> Result<(), ImageError> {
        let data = at + header.bitmap_length();
        let bitmap = self.read_bitmap(header, index, at)?;
        let mut from = within.start;
        while from < within.end {
            let present = bit(&bitmap, from / SECTOR);
            let mut to = (from / SECTOR + 1) * SECTOR;
            while to < within.end && bit(&bitmap, to / SECTOR) == present {
                to += SECTOR;
            }
            let to = to.min(within.end);
            let place = if present {
                Place::File(data + from)
            } else {
                header.elsewhere()
            };
            each(from, to - from, place);
            from = to;
        }
        Ok(())
    }

    /// The bitmap of block `index` at `at`: the changed one if it waits for a flush.
    pub(super) fn read_bitmap(
        &self,
        header: &DynamicHeader,
        index: usize,
        at: u64,
    ) -> Result<Vec<u8>, ImageError> {
        if let Some(changed) = self.bitmaps.get(&index) {
            return Ok(changed.clone());
        }
        let mut bitmap = vec![0; header.bitmap_length() as usize];
        self.file
            .read_at(&mut bitmap, at)
            .map_err(|e| ImageError::io("VHD sector bitmap", at, "read", e))?;
        Ok(bitmap)
    }
}

/// Bit of a sector in the bitmap of its block: the highest bit of a byte comes first.
pub(super) fn bit(bitmap: &[u8], sector: u64) -> bool {
    bitmap[(sector / 8) as usize] & (0x80 >> (sector % 8)) != 0
}

/// Block of a byte of the disk, the byte's place in it, and how many of `length` bytes it holds.
pub(super) fn locate(header: &DynamicHeader, offset: u64, length: u64) -> (usize, u64, usize) {
    let block = u64::from(header.block_size);
    let within = offset % block;
    (
        (offset / block) as usize,
        within,
        length.min(block - within) as usize,
    )
}
