//! VHD images, fixed, dynamic and differencing, as Virtual PC, Hyper-V and Azure know them.
//!
//! A dynamic VHD has no log, so order keeps it whole: a new block is written behind all others,
//! made durable, and only then named in the block allocation table; both happen in `flush`. A
//! power cut in between loses the block and nothing else. The footer at the end may be torn by
//! such a cut; then its copy at the start is used.

mod create;
mod dynamic;
pub mod fixed;
mod footer;
mod locator;
mod read;
mod resize;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use uuid::Uuid;

use crate::parents::{Descent, refusal};
use crate::{
    Access, Details, ErrorKind, Extent, Format, ImageError, ImageFile, ImageInfo, LiveAllocation,
    Segment, VhdInfo, VhdParentInfo,
};
use dynamic::{ABSENT, DynamicHeader, HEADER_LENGTH, Table};
use footer::{COOKIE, DiskType, Footer, SECTOR};
use locator::VhdParent;

pub use footer::MAX_SIZE;

/// Where a footer is looked for that is not at the end of the file.
const SLACK: u64 = 64 << 10;

/// An open VHD image.
pub struct VhdImage {
    file: Box<dyn ImageFile>,
    access: Access,
    footer: Footer,
    footer_from_copy: bool,
    virtual_size: u64,
    kind: Kind,
    /// What a differencing disk says of its parent, and the parent, opened for reading.
    link: Option<VhdParent>,
    parent: Option<Box<VhdImage>>,
    /// Bitmaps of a differencing disk that wait for the data they speak of to be durable.
    bitmaps: BTreeMap<usize, Vec<u8>>,
    /// A half-done change of the file's structure: only opening again helps.
    poisoned: bool,
}

enum Kind {
    Fixed,
    Dynamic { header: DynamicHeader, table: Table },
}

/// Whether the file ends as a VHD does, or starts with the copy of a dynamic VHD's footer.
pub(crate) fn detect(file: &dyn ImageFile) -> Result<bool, ImageError> {
    let length = length(file)?;
    if length < SECTOR {
        return Ok(false);
    }
    // Old Virtual PC wrote footers of 511 bytes.
    for at in [length - SECTOR, length - (SECTOR - 1), 0] {
        let mut cookie = [0; 8];
        file.read_at(&mut cookie, at)
            .map_err(|e| ImageError::io("VHD footer", at, "read", e))?;
        if cookie == *COOKIE {
            return Ok(true);
        }
    }
    Ok(false)
}

impl VhdImage {
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

    /// Opens an image without its parent; what the parent has reads as zeroes.
    pub(crate) fn open_alone(file: Box<dyn ImageFile>, access: Access) -> Result<Self, ImageError> {
        let length = length(file.as_ref())?;
        let (footer, footer_from_copy) = read_footer(file.as_ref(), length)?;
        let virtual_size = checked_size(&footer, length)?;
        let mut link = None;
        let kind = if footer.disk_type == DiskType::Fixed {
            if length < virtual_size {
                return Err(ImageError::corrupt(
                    "VHD footer",
                    length,
                    format!("a disk of {virtual_size} bytes doesn't fit into a file of {length}"),
                ));
            }
            Kind::Fixed
        } else {
            let (header, mut table) = read_dynamic(file.as_ref(), &footer, virtual_size, length)?;
            if header.is_differencing {
                let found = VhdParent::read(file.as_ref(), &header.raw)?;
                table.table_end = table.table_end.max(found.end);
                table.data_end = table.data_end.max(found.end);
                link = Some(found);
            }
            Kind::Dynamic { header, table }
        };
        Ok(Self {
            file,
            access,
            footer,
            footer_from_copy,
            virtual_size,
            kind,
            link,
            parent: None,
            bitmaps: BTreeMap::new(),
            poisoned: false,
        })
    }

    /// The parent that the locators name, if this is a differencing disk.
    fn open_parent(
        &self,
        path: Option<&Path>,
        descent: &mut Descent<'_>,
    ) -> Result<Option<Self>, ImageError> {
        let Some(link) = &self.link else {
            return Ok(None);
        };
        let identity = format!("{{{}}}", link.id);
        descent
            .parent(path, &identity, &link.locators, |found, descent| {
                let mut parent = Self::open_alone(found.file, Access::ReadOnly)?;
                if parent.footer.id != link.id {
                    return Err(refusal(format!(
                        "its unique id is {{{}}}: it is another disk",
                        parent.footer.id
                    )));
                }
                parent.parent = parent
                    .open_parent(found.path.as_deref(), descent)?
                    .map(Box::new);
                Ok(parent)
            })
            .map(Some)
    }

    /// What opening for writing puts right: the footer lies behind everything, its copy at the start.
    fn repair(&mut self) -> Result<(), ImageError> {
        let file = self.file.as_ref();
        let footer = self.footer.to_bytes();
        let length = length(file)?;
        let (end, is_fixed) = match &self.kind {
            Kind::Fixed => (self.virtual_size, true),
            Kind::Dynamic { table, .. } => (table.data_end, false),
        };
        let is_last = read_array::<512>(file, "VHD footer", length - SECTOR)? == footer;
        let has_copy = is_fixed || read_array::<512>(file, "VHD footer copy", 0)? == footer;
        if is_last && has_copy && (!is_fixed || length == end + SECTOR) {
            return Ok(());
        }
        let write = |at| {
            file.write_at(&footer, at)
                .and_then(|()| file.flush())
                .map_err(|e| ImageError::io("VHD footer", at, "write", e))
        };
        if !has_copy {
            write(0)?;
        }
        if !is_last || is_fixed {
            // Cutting comes last: until then the one that counted so far still does.
            if read_array::<512>(file, "VHD footer", end.min(length - SECTOR))? != footer
                || end + SECTOR > length
            {
                write(end)?;
            }
            file.set_len(end + SECTOR)
                .and_then(|()| file.flush())
                .map_err(|e| ImageError::io("VHD footer", end, "cut the file", e))?;
        }
        Ok(())
    }

    pub(crate) fn format(&self) -> Format {
        match self.kind {
            Kind::Fixed => Format::VhdFixed,
            Kind::Dynamic { .. } if self.link.is_some() => Format::VhdDifferencing,
            Kind::Dynamic { .. } => Format::VhdDynamic,
        }
    }

    pub(crate) fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    pub(crate) fn id(&self) -> Option<Uuid> {
        Some(self.footer.id)
    }

    pub(crate) fn logical_sector_size(&self) -> u32 {
        SECTOR as u32
    }

    pub(crate) fn block_size(&self) -> Option<u32> {
        match &self.kind {
            Kind::Fixed => None,
            Kind::Dynamic { header, .. } => Some(header.block_size),
        }
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
        let text = |bytes: &[u8; 4]| {
            String::from_utf8_lossy(bytes)
                .trim_end_matches(['\0', ' '])
                .to_owned()
        };
        let allocated = self.allocated(0..self.virtual_size);
        Ok(ImageInfo {
            format: self.format(),
            virtual_size: self.virtual_size,
            file_size: length(self.file.as_ref())?,
            allocated_bytes: allocated.iter().map(|e| e.length).sum(),
            block_size: self.block_size(),
            logical_sector_size: 512,
            physical_sector_size: 512,
            id: self.id(),
            details: Details::Vhd(VhdInfo {
                creator: text(&self.footer.creator),
                creator_version: self.footer.creator_version,
                creator_os: text(&self.footer.creator_os),
                timestamp: self.footer.timestamp,
                original_size: self.footer.original_size,
                current_size: self.footer.current_size,
                geometry: self.footer.geometry,
                saved_state: self.footer.saved_state,
                footer_from_copy: self.footer_from_copy,
                table_entries: match &self.kind {
                    Kind::Fixed => None,
                    Kind::Dynamic { header, .. } => Some(header.entries),
                },
                parent: self.link.as_ref().map(|link| VhdParentInfo {
                    id: link.id,
                    locators: link.locators.clone(),
                }),
            }),
        })
    }
}

impl fmt::Debug for VhdImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhdImage")
            .field("access", &self.access)
            .field("format", &self.format())
            .field("virtual_size", &self.virtual_size)
            .finish_non_exhaustive()
    }
}

/// Allocation of a VHD that another process may be writing.
pub(crate) fn live(file: &dyn ImageFile) -> Result<LiveAllocation, ImageError> {
    let length = length(file)?;
    let (footer, _) = read_footer(file, length)?;
    let virtual_size = checked_size(&footer, length)?;
    let (format, allocated) = match footer.disk_type {
        DiskType::Fixed => (
            Format::VhdFixed,
            vec![Extent {
                offset: 0,
                length: virtual_size,
            }],
        ),
        DiskType::Dynamic => {
            let (header, table) = read_dynamic(file, &footer, virtual_size, length)?;
            let mut extents = Vec::new();
            let mut offset = 0;
            while offset < virtual_size {
                let (index, _, part) = read::locate(&header, offset, virtual_size - offset);
                if table.entries[index] != ABSENT {
                    crate::extent::push(&mut extents, offset, part as u64);
                }
                offset += part as u64;
            }
            (Format::VhdDynamic, extents)
        }
        DiskType::Differencing => {
            return Err(ImageError::unsupported(
                "VHD footer",
                "it is a differencing disk, which holds only what differs from a parent image",
            ));
        }
    };
    Ok(LiveAllocation {
        format,
        id: footer.id,
        virtual_size,
        logical_sector_size: 512,
        data_write_guid: None,
        allocated,
    })
}

/// The footer at the end of the file, or its copy at the start when that one is broken.
fn read_footer(file: &dyn ImageFile, length: u64) -> Result<(Footer, bool), ImageError> {
    if length < SECTOR {
        return Err(ImageError::new(
            ErrorKind::NotAnImage,
            "VHD",
            format!("a file of {length} bytes has no footer"),
        ));
    }
    let at = length - SECTOR;
    let error = match Footer::parse(&read_array(file, "VHD footer", at)?, "VHD footer", at) {
        Ok(footer) => return Ok((footer, false)),
        Err(error) => error,
    };
    // Old Virtual PC wrote 511 bytes; what it left out is reserved and zero.
    let short: [u8; 511] = read_array(file, "VHD footer", at + 1)?;
    let mut bytes = [0; 512];
    bytes[..511].copy_from_slice(&short);
    if let Ok(footer) = Footer::parse(&bytes, "VHD footer", at + 1) {
        return Ok((footer, false));
    }
    let copy = read_array(file, "VHD footer copy", 0)?;
    match Footer::parse(&copy, "VHD footer copy", 0) {
        Ok(copy) if copy.disk_type != DiskType::Fixed => return Ok((copy, true)),
        _ => {}
    }
    // Copied to a device or padded by a tool: a fixed disk's footer lies where the disk ends.
    for place in (length.saturating_sub(SLACK).div_ceil(SECTOR)..at / SECTOR + 1).rev() {
        let place = place * SECTOR;
        let bytes = read_array(file, "VHD footer", place)?;
        if let Ok(footer) = Footer::parse(&bytes, "VHD footer", place)
            && footer.disk_type == DiskType::Fixed
            && footer.current_size == place
        {
            return Ok((footer, false));
        }
    }
    Err(error)
}

fn checked_size(footer: &Footer, length: u64) -> Result<u64, ImageError> {
    let mut size = footer.virtual_size();
    let is_fixed = footer.disk_type == DiskType::Fixed;
    // A geometry that doesn't fit the file can't be meant.
    if is_fixed && size > length && footer.current_size <= length {
        size = footer.current_size;
    }
    let limit = if is_fixed {
        fixed::MAX_FOOTER_SIZE
    } else {
        MAX_SIZE
    };
    if size == 0 || !size.is_multiple_of(SECTOR) || size > limit {
        return Err(ImageError::new(
            ErrorKind::Corrupt,
            "VHD footer",
            format!("disk size {size} is not allowed"),
        ));
    }
    Ok(size)
}

fn read_dynamic(
    file: &dyn ImageFile,
    footer: &Footer,
    virtual_size: u64,
    length: u64,
) -> Result<(DynamicHeader, Table), ImageError> {
    let at = footer.data_offset;
    let Some(end) = at
        .checked_add(HEADER_LENGTH)
        .filter(|end| *end <= length && at >= SECTOR)
    else {
        return Err(ImageError::corrupt(
            "VHD dynamic header",
            at,
            "it doesn't lie inside the file",
        ));
    };
    let mut header = DynamicHeader::parse(&read_array(file, "VHD dynamic header", at)?, at)?;
    header.is_differencing = footer.disk_type == DiskType::Differencing;
    let table = Table::read(file, &header, virtual_size, length, end)?;
    Ok((header, table))
}

fn length(file: &dyn ImageFile) -> Result<u64, ImageError> {
    file.len()
        .map_err(|e| ImageError::io("VHD", 0, "tell the file's length", e))
}

fn read_array<const N: usize>(
    file: &dyn ImageFile,
    object: &str,
    at: u64,
) -> Result<[u8; N], ImageError> {
    let mut bytes = [0; N];
    file.read_at(&mut bytes, at)
        .map_err(|e| ImageError::io(object, at, "read", e))?;
    Ok(bytes)
}
