//! Raw images: the bytes of the disk and nothing else.

use std::fmt;
use std::ops::Range;

use uuid::Uuid;

use crate::{
    Access, CreateOptions, Details, ErrorKind, Extent, Format, ImageError, ImageFile, ImageInfo,
    Segment, Source,
};

/// An open raw image.
pub struct RawImage {
    file: Box<dyn ImageFile>,
    access: Access,
    virtual_size: u64,
    logical_sector_size: u32,
}

impl RawImage {
    pub(crate) fn open(
        file: Box<dyn ImageFile>,
        access: Access,
        logical_sector_size: u32,
    ) -> Result<Self, ImageError> {
        if !matches!(logical_sector_size, 512 | 4096) {
            return Err(ImageError::new(
                ErrorKind::OutOfRange,
                "raw image",
                format!("a logical sector has 512 or 4096 bytes, not {logical_sector_size}"),
            ));
        }
        let length = file
            .len()
            .map_err(|e| ImageError::io("raw image", 0, "tell the file's length", e))?;
        // A tail that is no whole sector is no part of the disk: nothing could address it.
        let virtual_size = length - length % u64::from(logical_sector_size);
        Ok(Self {
            file,
            access,
            virtual_size,
            logical_sector_size,
        })
    }

    pub(crate) fn create(
        file: Box<dyn ImageFile>,
        options: &CreateOptions,
    ) -> Result<Self, ImageError> {
        if options.virtual_size == 0
            || !options
                .virtual_size
                .is_multiple_of(u64::from(options.logical_sector_size.max(1)))
        {
            return Err(ImageError::new(
                ErrorKind::OutOfRange,
                "raw image",
                format!(
                    "size {} is no whole number of sectors",
                    options.virtual_size
                ),
            ));
        }
        let resize = |length| {
            file.set_len(length)
                .map_err(|e| ImageError::io("raw image", length, "set the length", e))
        };
        resize(0)?;
        resize(options.virtual_size)?;
        file.flush()
            .map_err(|e| ImageError::io("raw image", 0, "flush", e))?;
        Self::open(file, Access::ReadWrite, options.logical_sector_size)
    }

    pub(crate) fn format(&self) -> Format {
        Format::Raw
    }

    pub(crate) fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    pub(crate) fn id(&self) -> Option<Uuid> {
        None
    }

    pub(crate) fn logical_sector_size(&self) -> u32 {
        self.logical_sector_size
    }

    pub(crate) fn block_size(&self) -> Option<u32> {
        None
    }

    pub(crate) fn allocated(&self, range: Range<u64>) -> Vec<Extent> {
        let mut extents = Vec::new();
        crate::extent::push(
            &mut extents,
            range.start,
            range.end.saturating_sub(range.start),
        );
        extents
    }

    pub(crate) fn segments(&self, range: Range<u64>) -> Result<Vec<Segment<'_>>, ImageError> {
        let length = range.end.saturating_sub(range.start);
        let whole = Segment {
            offset: range.start,
            length,
            source: Source::File {
                file: self.file.as_ref(),
                offset: range.start,
            },
        };
        Ok(Some(whole).filter(|_| length > 0).into_iter().collect())
    }

    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        self.file
            .read_at(buffer, offset)
            .map_err(|e| ImageError::io("raw image", offset, "read", e))
    }

    pub(crate) fn write_at(&mut self, data: &[u8], offset: u64) -> Result<(), ImageError> {
        if self.access == Access::ReadOnly {
            return Err(ImageError::new(
                ErrorKind::ReadOnly,
                "raw image",
                "opened for reading only",
            ));
        }
        self.file
            .write_at(data, offset)
            .map_err(|e| ImageError::io("raw image", offset, "write", e))
    }

    pub(crate) fn flush(&mut self) -> Result<(), ImageError> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        self.file
            .flush()
            .map_err(|e| ImageError::io("raw image", 0, "flush", e))
    }

    pub(crate) fn resize(&mut self, size: u64) -> Result<(), ImageError> {
        let refuse = |kind, cause: String| Err(ImageError::new(kind, "raw image", cause));
        if self.access == Access::ReadOnly {
            return refuse(ErrorKind::ReadOnly, "opened for reading only".to_owned());
        }
        if size == 0 || !size.is_multiple_of(u64::from(self.logical_sector_size)) {
            return refuse(
                ErrorKind::OutOfRange,
                format!("size {size} is no whole number of sectors"),
            );
        }
        let mut buffer = vec![0; 1 << 20];
        let mut at = size;
        while at < self.virtual_size {
            let part = &mut buffer[..(self.virtual_size - at).min(1 << 20) as usize];
            self.read_at(part, at)?;
            if !crate::zero::is_zero(part) {
                return refuse(
                    ErrorKind::OutOfRange,
                    format!("it can't end at {size}: there is data behind, at {at}"),
                );
            }
            at += part.len() as u64;
        }
        self.file
            .set_len(size)
            .map_err(|e| ImageError::io("raw image", size, "set the length", e))?;
        self.virtual_size = size;
        self.flush()
    }

    pub(crate) fn close(mut self) -> Result<(), ImageError> {
        self.flush()
    }

    pub(crate) fn info(&self) -> Result<ImageInfo, ImageError> {
        Ok(ImageInfo {
            format: Format::Raw,
            virtual_size: self.virtual_size,
            file_size: self
                .file
                .len()
                .map_err(|e| ImageError::io("raw image", 0, "tell the file's length", e))?,
            allocated_bytes: self.virtual_size,
            block_size: None,
            logical_sector_size: self.logical_sector_size,
            physical_sector_size: self.logical_sector_size,
            id: None,
            details: Details::Raw,
        })
    }
}

impl fmt::Debug for RawImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawImage")
            .field("access", &self.access)
            .field("virtual_size", &self.virtual_size)
            .finish_non_exhaustive()
    }
}
