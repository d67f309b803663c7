//! VHDX images, fixed, dynamic and differencing, as MS-VHDX defines them.
//!
//! ```text
//!   read:   BAT (and sector bitmaps) ─► pread straight into the caller's buffer, zeroes, or the parent
//!   write:  first of a session: headers get a new file and data write guid
//!           block there ─► pwrite;  not there ─► file grown by one block, BAT changed in memory
//!   flush:  data durable ─► changed bitmaps and BAT sectors through the log ─► written in their place
//!   close:  flush ─► headers with a nil log guid
//! ```
//!
//! A power cut at any instant leaves a file that opens: what was flushed is there, a block whose
//! log entry wasn't durable is absent. The file is only written when it was opened for writing.

mod bat;
mod bitmap;
mod create;
mod edit;
mod header;
mod layout;
mod locator;
mod log;
mod log_entry;
mod metadata;
mod overlay;
mod read;
mod region;
mod resize;
mod write;

use std::fmt;
use std::ops::Range;
use std::path::Path;

use uuid::Uuid;

use crate::bytes::le16;
use crate::parents::{Descent, ParentLocator, refusal};
use crate::{
    Access, CreateOptions, Details, ErrorKind, Extent, Format, ImageError, ImageFile, ImageInfo,
    LiveAllocation, LogInfo, MetadataItemInfo, Segment, VhdxInfo, VhdxParentInfo,
};
use bat::{Bat, Block};
use bitmap::Bitmaps;
use header::Headers;
use layout::FILE_SIGNATURE;
use locator::ParentLink;
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
    /// What a differencing disk stands on; opened for reading.
    parent: Option<Box<VhdxImage>>,
    bitmaps: Bitmaps,
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
        let regions = Regions::read(file, file_length, headers.log)?;
        let (metadata, items) = Metadata::read(file, regions.metadata)?;
        let taken: Vec<Region> = regions
            .all
            .iter()
            .map(|region| Region {
                offset: region.offset,
                length: region.length,
            })
            .chain(headers.log)
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
        if self.metadata.has_parent() {
            Format::VhdxDifferencing
        } else if self.metadata.leave_blocks_allocated {
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
    if structure.metadata.has_parent() {
        return Err(ImageError::unsupported(
            "VHDX",
            "it is a differencing disk, which holds only what differs from a parent image; \
             merge it into its parent or convert the chain first",
        ));
    }
    let size = structure.metadata.virtual_size;
    let mut allocated = Vec::new();
    let mut offset = 0;
    while offset < size {
        let (found, part) = structure.bat.locate(offset, size - offset);
        if matches!(found, Block::Full(_) | Block::Partial(_)) {
            crate::extent::push(&mut allocated, offset, part);
        }
        offset += part;
    }
    Ok(LiveAllocation {
        format: structure.format(),
        id: structure.metadata.id,
        virtual_size: size,
        logical_sector_size: structure.metadata.logical_sector_size,
        data_write_guid: Some(structure.headers.current.data_write_guid),
        allocated,
    })
}

impl VhdxImage {
    pub(crate) fn open(
        file: Box<dyn ImageFile>,
        access: Access,
        path: Option<&Path>,
        descent: &mut Descent<'_>,
    ) -> Result<Self, ImageError> {
        let mut image = Self::open_alone(file, access)?;
        image.parent = image.open_parent(path, descent)?.map(Box::new);
        if access == Access::ReadWrite {
            image.repair()?;
        }
        Ok(image)
    }

    /// Opens an image without its parent; what the parent has reads as zeroes. With write access
    /// nothing is written yet.
    pub(crate) fn open_alone(file: Box<dyn ImageFile>, access: Access) -> Result<Self, ImageError> {
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
        let pending = !patches.is_empty() || patches.file_length > file_length;
        Ok(Self {
            file,
            access,
            structure,
            log_info,
            patches: pending.then_some(patches),
            file_length,
            parent: None,
            bitmaps: Bitmaps::default(),
            announced: false,
            log: None,
            poisoned: false,
        })
    }

    /// The parent that the locator names, if there is a locator.
    fn open_parent(
        &self,
        path: Option<&Path>,
        descent: &mut Descent<'_>,
    ) -> Result<Option<Self>, ImageError> {
        let Some(link) = &self.structure.metadata.parent else {
            return Ok(None);
        };
        let identity = format!("{{{}}}", link.linkage);
        descent
            .parent(path, &identity, &link.locators(), |found, descent| {
                let mut parent = Self::open_alone(found.file, Access::ReadOnly)?;
                let state = parent.data_write_guid();
                if !link.accepts(state) {
                    return Err(refusal(format!(
                        "its data write guid is {{{state}}}: it is another disk, or it was changed since the child was made"
                    )));
                }
                self.check_parent(&parent)?;
                parent.parent = parent.open_parent(found.path.as_deref(), descent)?.map(Box::new);
                Ok(parent)
            })
            .map(Some)
    }

    fn check_parent(&self, parent: &Self) -> Result<(), ImageError> {
        let (own, its) = (self.logical_sector_size(), parent.logical_sector_size());
        if own != its {
            return Err(refusal(format!(
                "it has sectors of {its} bytes, the child of {own}"
            )));
        }
        Ok(())
    }

    pub(crate) fn data_write_guid(&self) -> Uuid {
        self.structure.headers.current.data_write_guid
    }

    /// What opening for writing puts right: the log is brought into the file, a region table that
    /// was passed over gets the content of the other.
    fn repair(&mut self) -> Result<(), ImageError> {
        if let Some(patches) = self.patches.take() {
            self.replay(&patches)?;
        } else {
            self.replay(&Patches::default())?;
        }
        if self.structure.regions.warning.take().is_some() {
            self.write_region_tables()?;
        }
        Ok(())
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
        create::create(file.as_ref(), options, None)?;
        let mut image = Self::open_alone(file, Access::ReadWrite)?;
        image.repair()?;
        Ok(image)
    }

    /// Creates a disk above `parent`, which is open for reading. The size is the parent's.
    pub(crate) fn create_child(
        file: Box<dyn ImageFile>,
        parent: Self,
        locators: &[ParentLocator],
        options: &CreateOptions,
    ) -> Result<Self, ImageError> {
        let link = ParentLink::new(parent.data_write_guid(), locators);
        let metadata = &parent.structure.metadata;
        let options = CreateOptions {
            format: Format::VhdxDifferencing,
            virtual_size: metadata.virtual_size,
            logical_sector_size: metadata.logical_sector_size,
            physical_sector_size: metadata.physical_sector_size,
            // What the guest sees of the disk's identity doesn't change when a checkpoint is made.
            id: options.id.or(Some(metadata.id)),
            block_size: options.block_size.or(Some(metadata.block_size)),
        };
        create::create(file.as_ref(), &options, Some(link))?;
        let mut image = Self::open_alone(file, Access::ReadWrite)?;
        image.parent = Some(Box::new(parent));
        Ok(image)
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
                has_parent: metadata.has_parent(),
                parent: metadata.parent.as_ref().map(|link| VhdxParentInfo {
                    linkage: link.linkage,
                    linkage2: link.linkage2,
                    values: link.values.clone(),
                }),
                table_entries: bat.len(),
                log: self.log_info.clone(),
                warnings: headers
                    .warning
                    .iter()
                    .chain(&regions.warning)
                    .cloned()
                    .collect(),
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
