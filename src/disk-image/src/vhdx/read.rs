//! Reading a VHDX: which part of the disk lies where in the file.

use std::ops::Range;

use super::VhdxImage;
use super::overlay::Overlay;
use crate::layer::{Layer, Place};
use crate::{ImageError, ImageFile};

impl Layer for VhdxImage {
    fn layer_size(&self) -> u64 {
        self.structure.metadata.virtual_size
    }

    fn below(&self) -> Option<&Self> {
        None
    }

    fn pieces(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(u64, u64, Place),
    ) -> Result<(), ImageError> {
        self.coarse(range, each);
        Ok(())
    }

    fn coarse(&self, range: Range<u64>, each: &mut dyn FnMut(u64, u64, Place)) {
        let mut offset = range.start;
        while offset < range.end {
            let (place, length) = self
                .structure
                .bat
                .locate(offset, (range.end - offset) as usize);
            each(
                offset,
                length as u64,
                place.map_or(Place::Zero, Place::File),
            );
            offset += length as u64;
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
