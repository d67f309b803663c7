//! VHDX images, fixed and dynamic, as MS-VHDX defines them.
//!
//! ```text
//!   read:   BAT ─► pread straight into the caller's buffer, or zeroes
//!   write:  first of a session: headers get a new file and data write guid
//!           block there ─► pwrite;  not there ─► file grown by one block, BAT changed in memory
//!   flush:  data durable ─► changed BAT sectors through the log ─► written in their place
//!   close:  flush ─► headers with a nil log guid
//! ```
//!
//! A power cut at any instant leaves a file that opens: what was flushed is there, a block whose
//! log entry wasn't durable is absent. The file is only written when it was opened for writing.

mod bat;
mod create;
mod header;
mod layout;
mod log;
mod log_entry;
mod metadata;
mod overlay;
mod read;
mod region;

use std::fmt;
use std::ops::Range;
use std::path::Path;

use uuid::Uuid;

use crate::bytes::le16;
use crate::parents::Descent;
use crate::{
    Access, CreateOptions, Details, ErrorKind, Extent, Format, ImageError, ImageFile, ImageInfo,
    LiveAllocation, LogInfo, MetadataItemInfo, NoParents, Segment, VhdxInfo,
};
use bat::Bat;
use header::Headers;
use layout::{FILE_SIGNATURE, MIB};
use log::LogWriter;
use metadata::Metadata;
use overlay::{Overlay, Patches};
use region::{Region, Regions};

pub use layout::MAX_SIZE;

/// An open VHDX image.
pub struct VhdxImage {
    file: Box<dyn ImageFile>,
    access: Access,
    structure: Structure,
    log_info: LogInfo,
    /// Opened for reading with a pending log: what replaying it changes.
    patches: Option<Patches>,
    file_length: u64,
    /// This session's guids are in the headers.
    announced: bool,
    log: Option<LogWriter>,
    /// A half-done change of metadata: only opening again, with its replay, helps.
    poisoned: bool,
}

/// Everything but the blocks.
struct Structure {
    headers: Headers,
    regions: Regions,
    metadata: Metadata,
    items: Vec<MetadataItemInfo>,
    bat: Bat,
}

impl Structure {
    /// Reads and verifies what lies behind the headers.
    fn read(file: &dyn ImageFile, headers: Headers, file_length: u64) -> Result<Self, ImageError> {
        let log = Region {
            offset: headers.current.log_offset,
            length: headers.current.log_length,
        };
        let regions = Regions::read(file, file_length, log)?;
        let (metadata, items) = Metadata::read(file, regions.metadata)?;
        if metadata.has_parent {
            return Err(ImageError::unsupported(
                "VHDX",
                "it is a differencing disk, which holds only what differs from a parent image; \
                 merge it into its parent or convert the chain first",
            ));
        }
        let taken: Vec<Region> = regions
            .all
            .iter()
            .map(|region| Region {
                offset: region.offset,
                length: region.length,
            })
            .chain([log])
            .collect();
        let bat = Bat::read(file, regions.bat, &metadata, file_length, &taken)?;
        Ok(Self {
            headers,
            regions,
            metadata,
            items,
            bat,
        })
    }

    fn format(&self) -> Format {
        if self.metadata.leave_blocks_allocated {
            Format::VhdxFixed
        } else {
            Format::VhdxDynamic
        }
    }
}

/// Whether the file starts as a VHDX does.
pub(crate) fn detect(file: &dyn ImageFile) -> Result<bool, ImageError> {
    let mut signature = [0; 8];
    match file.read_at(&mut signature, 0) {
        Ok(()) => Ok(signature == *FILE_SIGNATURE),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(ImageError::io("VHDX file identifier", 0, "read", error)),
    }
}

/// Allocation of a VHDX that another process may be writing: the table as it lies in the file.
pub(crate) fn live(file: &dyn ImageFile) -> Result<LiveAllocation, ImageError> {
    let headers = Headers::read(file)?;
    let structure = Structure::read(file, headers, length(file)?)?;
    Ok(LiveAllocation {
        format: structure.format(),
        id: structure.metadata.id,
        virtual_size: structure.metadata.virtual_size,
        logical_sector_size: structure.metadata.logical_sector_size,
        data_write_guid: Some(structure.headers.current.data_write_guid),
        allocated: structure.bat.allocated(0..structure.metadata.virtual_size),
    })
}

impl VhdxImage {
    pub(crate) fn open(
        file: Box<dyn ImageFile>,
        access: Access,
        _path: Option<&Path>,
        _descent: &mut Descent<'_>,
    ) -> Result<Self, ImageError> {
        if !detect(file.as_ref())? {
            return Err(ImageError::new(
                ErrorKind::NotAnImage,
                "VHDX file identifier",
                "the signature vhdxfile is missing",
            ));
        }
        let headers = Headers::read(file.as_ref())?;
        let file_length = length(file.as_ref())?;
        let (patches, log_info) = log::read(file.as_ref(), &headers.current, file_length)?;
        // Everything is verified as it is after the replay, before a byte is written.
        let overlay = Overlay {
            file: file.as_ref(),
            patches: &patches,
        };
        let structure = Structure::read(&overlay, headers, file_length.max(patches.file_length))?;
        let mut image = Self {
            file,
            access,
            structure,
            log_info,
            patches: None,
            file_length,
            announced: false,
            log: None,
            poisoned: false,
        };
        match access {
            Access::ReadOnly => {
                image.patches =
                    (!patches.is_empty() || patches.file_length > file_length).then_some(patches)
            }
            Access::ReadWrite => image.replay(&patches)?,
        }
        Ok(image)
    }

    /// Brings the log into the file and declares it empty.
    fn replay(&mut self, patches: &Patches) -> Result<(), ImageError> {
        if self.log_info == LogInfo::Clean {
            return Ok(());
        }
        let fail = |e| ImageError::io("log", 0, "replay", e);
        patches
            .write_to(self.file.as_ref(), self.file_length)
            .map_err(fail)?;
        self.file.flush().map_err(fail)?;
        self.file_length = length(self.file.as_ref())?;
        let session = Uuid::new_v4();
        self.structure.headers.update(self.file.as_ref(), |header| {
            header.file_write_guid = session;
            header.log_guid = Uuid::nil();
        })
    }

    pub(crate) fn create(
        file: Box<dyn ImageFile>,
        options: &CreateOptions,
    ) -> Result<Self, ImageError> {
        create::create(file.as_ref(), options)?;
        Self::open(
            file,
            Access::ReadWrite,
            None,
            &mut Descent::new(&NoParents, None),
        )
    }

    pub(crate) fn format(&self) -> Format {
        self.structure.format()
    }

    pub(crate) fn virtual_size(&self) -> u64 {
        self.structure.metadata.virtual_size
    }

    pub(crate) fn id(&self) -> Option<Uuid> {
        Some(self.structure.metadata.id)
    }

    pub(crate) fn logical_sector_size(&self) -> u32 {
        self.structure.metadata.logical_sector_size
    }

    pub(crate) fn block_size(&self) -> Option<u32> {
        Some(self.structure.metadata.block_size)
    }

    pub(crate) fn allocated(&self, range: Range<u64>) -> Vec<Extent> {
        crate::layer::allocated(self, range)
    }

    pub(crate) fn segments(&self, range: Range<u64>) -> Result<Vec<Segment<'_>>, ImageError> {
        crate::layer::segments(self, range)
    }

    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        crate::layer::read(self, buffer, offset)
    }

    pub(crate) fn write_at(&mut self, data: &[u8], offset: u64) -> Result<(), ImageError> {
        self.writable()?;
        self.announce()?;
        let mut rest = data;
        let mut offset = offset;
        while !rest.is_empty() {
            let (mut place, mut part) = self.structure.bat.locate(offset, rest.len());
            if place.is_none() {
                let (block, within, in_block) = self.structure.bat.block_of(offset, rest.len());
                part = in_block;
                // Zeroes written to a block that isn't there change nothing.
                if rest[..part].iter().any(|byte| *byte != 0) {
                    place = Some(self.allocate(block)? + within);
                }
            }
            let (now, later) = rest.split_at(part);
            if let Some(place) = place {
                self.file
                    .write_at(now, place)
                    .map_err(|e| ImageError::io("VHDX block", place, "write", e))?;
            }
            rest = later;
            offset += part as u64;
        }
        Ok(())
    }

    /// Before the first change of a session, readers who remember the guids must see new ones.
    fn announce(&mut self) -> Result<(), ImageError> {
        if self.announced {
            return Ok(());
        }
        let (session, data) = (Uuid::new_v4(), Uuid::new_v4());
        self.structure
            .headers
            .update(self.file.as_ref(), |header| {
                header.file_write_guid = session;
                header.data_write_guid = data;
            })?;
        self.announced = true;
        Ok(())
    }

    /// Grows the file by a block of zeroes. The table in the file follows with the next flush.
    fn allocate(&mut self, block: u64) -> Result<u64, ImageError> {
        let place = self.file_length.next_multiple_of(MIB);
        let end = place + u64::from(self.structure.metadata.block_size);
        self.file
            .set_len(end)
            .map_err(|e| ImageError::io("VHDX block", place, "allocate", e))?;
        self.file_length = end;
        self.structure.bat.set_place(block, place);
        Ok(place)
    }

    pub(crate) fn flush(&mut self) -> Result<(), ImageError> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        self.writable()?;
        // After a failed flush nobody knows what the disk holds; after a failed log entry neither.
        self.poisoned = true;
        self.flush_file()?;
        let capacity = LogWriter::capacity(&self.structure.headers.current);
        let mut first = true;
        while self.structure.bat.is_dirty() {
            if !first {
                self.flush_file()?;
            }
            first = false;
            let sectors = self.structure.bat.take_dirty(capacity);
            self.commit(&sectors)?;
        }
        self.poisoned = false;
        Ok(())
    }

    /// One log entry, durable, then the same sectors in their place. These need no flush of their
    /// own: the next one comes before the entry stops being the log's newest.
    fn commit(&mut self, sectors: &[(u64, Vec<u8>)]) -> Result<(), ImageError> {
        let file = self.file.as_ref();
        let is_new = self.log.is_none();
        let log = self
            .log
            .get_or_insert_with(|| LogWriter::new(&self.structure.headers.current));
        log.append(file, sectors, self.file_length)?;
        file.flush()
            .map_err(|e| ImageError::io("log entry", 0, "flush", e))?;
        if is_new {
            // Only now, so that a log guid in the headers always finds a valid entry.
            let guid = log.guid;
            self.structure
                .headers
                .update(file, |header| header.log_guid = guid)?;
        }
        for (at, sector) in sectors {
            file.write_at(sector, *at)
                .map_err(|e| ImageError::io("BAT", *at, "write", e))?;
        }
        Ok(())
    }

    fn flush_file(&self) -> Result<(), ImageError> {
        self.file
            .flush()
            .map_err(|e| ImageError::io("VHDX", 0, "flush", e))
    }

    pub(crate) fn close(mut self) -> Result<(), ImageError> {
        self.flush()?;
        if self.log.is_some() {
            self.flush_file()?;
            self.structure
                .headers
                .update(self.file.as_ref(), |header| header.log_guid = Uuid::nil())?;
        }
        Ok(())
    }

    fn writable(&self) -> Result<(), ImageError> {
        if self.access == Access::ReadOnly {
            return Err(ImageError::new(
                ErrorKind::ReadOnly,
                "VHDX",
                "opened for reading only",
            ));
        }
        if self.poisoned {
            return Err(ImageError::new(
                ErrorKind::Poisoned,
                "VHDX",
                "an earlier write failed half-way; open it again",
            ));
        }
        Ok(())
    }

    pub(crate) fn info(&self) -> Result<ImageInfo, ImageError> {
        let Structure {
            headers,
            regions,
            metadata,
            items,
            bat,
        } = &self.structure;
        let allocated = self.allocated(0..metadata.virtual_size);
        Ok(ImageInfo {
            format: self.format(),
            virtual_size: metadata.virtual_size,
            file_size: length(self.file.as_ref())?,
            allocated_bytes: allocated.iter().map(|extent| extent.length).sum(),
            block_size: Some(metadata.block_size),
            logical_sector_size: metadata.logical_sector_size,
            physical_sector_size: metadata.physical_sector_size,
            id: Some(metadata.id),
            details: Details::Vhdx(Box::new(VhdxInfo {
                creator: self.creator()?,
                headers: headers.info.clone(),
                current_header: headers.slot,
                data_write_guid: headers.current.data_write_guid,
                regions: regions.all.clone(),
                metadata: items.clone(),
                leave_blocks_allocated: metadata.leave_blocks_allocated,
                has_parent: metadata.has_parent,
                table_entries: bat.len(),
                log: self.log_info.clone(),
                warnings: regions.warning.iter().cloned().collect(),
            })),
        })
    }

    fn creator(&self) -> Result<String, ImageError> {
        let mut bytes = [0; 512];
        self.file
            .read_at(&mut bytes, 8)
            .map_err(|e| ImageError::io("VHDX file identifier", 8, "read", e))?;
        let units: Vec<u16> = (0..256)
            .map(|i| le16(&bytes, 2 * i))
            .take_while(|unit| *unit != 0)
            .collect();
        Ok(String::from_utf16_lossy(&units))
    }
}

impl fmt::Debug for VhdxImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhdxImage")
            .field("access", &self.access)
            .field("format", &self.format())
            .field("virtual_size", &self.virtual_size())
            .finish_non_exhaustive()
    }
}

fn length(file: &dyn ImageFile) -> Result<u64, ImageError> {
    file.len()
        .map_err(|e| ImageError::io("VHDX", 0, "tell the file's length", e))
}
