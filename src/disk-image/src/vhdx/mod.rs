//! VHDX.
use crate::{Access, CreateOptions, Extent, Format, ImageError, ImageFile, ImageInfo};
use std::ops::Range;
use uuid::Uuid;

/// An open VHDX image.
#[derive(Debug)]
pub struct VhdxImage {}

pub(crate) fn detect(_file: &dyn ImageFile) -> Result<Option<Format>, ImageError> {
    Ok(None)
}

impl VhdxImage {
    pub(crate) fn open(_file: Box<dyn ImageFile>, _access: Access) -> Result<Self, ImageError> {
        Err(ImageError::unsupported("VHDX", "not built yet"))
    }
    pub(crate) fn create(
        _file: Box<dyn ImageFile>,
        _o: &CreateOptions,
    ) -> Result<Self, ImageError> {
        Err(ImageError::unsupported("VHDX", "not built yet"))
    }
    pub(crate) fn format(&self) -> Format {
        Format::Raw
    }
    pub(crate) fn virtual_size(&self) -> u64 {
        0
    }
    pub(crate) fn id(&self) -> Option<Uuid> {
        None
    }
    pub(crate) fn logical_sector_size(&self) -> u32 {
        512
    }
    pub(crate) fn block_size(&self) -> Option<u32> {
        None
    }
    pub(crate) fn allocated(&self, _range: Range<u64>) -> Vec<Extent> {
        Vec::new()
    }
    pub(crate) fn read_at(&self, _buffer: &mut [u8], _offset: u64) -> Result<(), ImageError> {
        Err(ImageError::unsupported("VHDX", "not built yet"))
    }
    pub(crate) fn write_at(&mut self, _data: &[u8], _offset: u64) -> Result<(), ImageError> {
        Err(ImageError::unsupported("VHDX", "not built yet"))
    }
    pub(crate) fn flush(&mut self) -> Result<(), ImageError> {
        Err(ImageError::unsupported("VHDX", "not built yet"))
    }
    pub(crate) fn close(self) -> Result<(), ImageError> {
        Err(ImageError::unsupported("VHDX", "not built yet"))
    }
    pub(crate) fn info(&self) -> Result<ImageInfo, ImageError> {
        Err(ImageError::unsupported("VHDX", "not built yet"))
    }
}
