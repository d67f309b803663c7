//! Reading a VHD: which part of the disk lies where in the file.

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
        None
    }

    fn pieces(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(u64, u64, Place),
    ) -> Result<(), ImageError> {
        let Kind::Dynamic { header, table } = &self.kind else {
            each(
                range.start,
                range.end - range.start,
                Place::File(range.start),
            );
            return Ok(());
        };
        let mut offset = range.start;
        while offset < range.end {
            let (index, within, length) = locate(header, offset, (range.end - offset) as usize);
            match table.entries[index] {
                ABSENT => each(offset, length as u64, Place::Zero),
                sector => {
                    let at = u64::from(sector) * SECTOR;
                    self.block_pieces(
                        header,
                        at,
                        within..within + length as u64,
                        &mut |start, n, place| {
                            each(offset + (start - within), n, place);
                        },
                    )?;
                }
            }
            offset += length as u64;
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
            let (index, _, length) = locate(header, offset, (range.end - offset) as usize);
            let place = match table.entries[index] {
                ABSENT => Place::Zero,
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
    /// The pieces of a block that is there; sectors that its bitmap marks as never written are zero.
    fn block_pieces(
        &self,
        header: &DynamicHeader,
        at: u64,
        within: Range<u64>,
        each: &mut dyn FnMut(u64, u64, Place),
    ) -> Result<(), ImageError> {
        let data = at + header.bitmap_length();
        let bitmap = self.read_bitmap(header, at)?;
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
                Place::Zero
            };
            each(from, to - from, place);
            from = to;
        }
        Ok(())
    }

    pub(super) fn read_bitmap(
        &self,
        header: &DynamicHeader,
        at: u64,
    ) -> Result<Vec<u8>, ImageError> {
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
pub(super) fn locate(header: &DynamicHeader, offset: u64, length: usize) -> (usize, u64, usize) {
    let block = u64::from(header.block_size);
    let within = offset % block;
    (
        (offset / block) as usize,
        within,
        length.min((block - within) as usize),
    )
}
