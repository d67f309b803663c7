//! Reading a VHDX: which part of the disk lies where in the file, and which is the parent's.

use std::ops::Range;

use super::VhdxImage;
use super::bat::Block;
use super::overlay::Overlay;
use crate::layer::{Layer, Place};
use crate::{ImageError, ImageFile};

impl Layer for VhdxImage {
    fn layer_size(&self) -> u64 {
        self.structure.metadata.virtual_size
    }

    fn below(&self) -> Option<&Self> {
        self.parent.as_deref()
    }

    fn pieces(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(u64, u64, Place),
    ) -> Result<(), ImageError> {
        let mut offset = range.start;
        while offset < range.end {
            let (found, length) = self.structure.bat.locate(offset, range.end - offset);
            match found {
                Block::Zero => each(offset, length, Place::Zero),
                Block::Parent => each(offset, length, Place::Parent),
                Block::Full(place) => each(offset, length, Place::File(place)),
                Block::Partial(place) => self.partial(offset, length, place, each)?,
            }
            offset += length;
        }
        Ok(())
    }

    fn coarse(&self, range: Range<u64>, each: &mut dyn FnMut(u64, u64, Place)) {
        let mut offset = range.start;
        while offset < range.end {
            let (found, length) = self.structure.bat.locate(offset, range.end - offset);
            let place = match found {
                Block::Zero => Place::Zero,
                Block::Parent => Place::Parent,
                Block::Full(place) | Block::Partial(place) => Place::File(place),
            };
            each(offset, length, place);
            offset += length;
        }
    }

    fn read_file(&self, buffer: &mut [u8], at: u64) -> Result<(), ImageError> {
        let result = match &self.patches {
            Some(patches) => Overlay {
                file: self.file.as_ref(),
                patches,
            }
            .read_at(buffer, at),
            None => self.file.read_at(buffer, at),
        };
        result.map_err(|e| ImageError::io("VHDX block", at, "read", e))
    }

    fn plain_file(&self) -> Option<&dyn ImageFile> {
        self.patches.is_none().then_some(self.file.as_ref())
    }
}

impl VhdxImage {
    /// Splits a part of one block by its sector bitmap. `place` is where its first byte would lie.
    fn partial(
        &self,
        offset: u64,
        length: u64,
        place: u64,
        each: &mut dyn FnMut(u64, u64, Place),
    ) -> Result<(), ImageError> {
        let (bitmap, sector) = self.bitmap_of(offset)?;
        let size = u64::from(self.structure.metadata.logical_sector_size);
        let last = (offset + length - 1) / size;
        let count = last - offset / size + 1;
        // Sectors as bytes of the disk, cut to the range.
        let base = offset - offset % size;
        self.bitmaps.runs(
            bitmap,
            sector,
            count,
            &|page, at| self.read_file(page, at),
            &mut |first, count, present| {
                let start = (base + (first - sector) * size).max(offset);
                let end = (base + (first - sector + count) * size).min(offset + length);
                let place = if present {
                    Place::File(place + (start - offset))
                } else {
                    Place::Parent
                };
                each(start, end - start, place);
            },
        )
    }

    /// The bitmap block that covers a byte of the disk, and the number of the byte's sector in it.
    pub(super) fn bitmap_of(&self, offset: u64) -> Result<(u64, u64), ImageError> {
        let bat = &self.structure.bat;
        let block = offset / u64::from(self.structure.metadata.block_size);
        let Some(place) = bat.bitmap_place(block) else {
            return Err(ImageError::corrupt(
                format!("BAT entry of block {block}"),
                0,
                "it is partially present, but its sector bitmap is not there",
            ));
        };
        let chunk = bat.chunk_start(block) * u64::from(self.structure.metadata.block_size);
        let size = u64::from(self.structure.metadata.logical_sector_size);
        Ok((place, (offset - chunk) / size))
    }
}
