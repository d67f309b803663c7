//! VHD images, fixed and dynamic, as Virtual PC, Hyper-V and Azure know them.
//!
//! A dynamic VHD has no log, so order keeps it whole: a new block is written behind all others,
//! made durable, and only then named in the block allocation table; both happen in `flush`. A
//! power cut in between loses the block and nothing else. The footer at the end may be torn by
//! such a cut; then its copy at the start is used.

mod dynamic;
pub mod fixed;
mod footer;
mod read;

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::parents::Descent;
use crate::{
    Access, CreateOptions, Details, ErrorKind, Extent, Format, ImageError, ImageFile, ImageInfo,
    LiveAllocation, NoParents, Segment, VhdInfo,
};
use dynamic::{ABSENT, DynamicHeader, HEADER_LENGTH, Table};
use footer::{COOKIE, DiskType, Footer, SECTOR};
use read::{bit, locate};

pub use footer::MAX_SIZE;

/// Usual block size.
const DEFAULT_BLOCK_SIZE: u32 = 2 << 20;

/// An open VHD image.
pub struct VhdImage {
    file: Box<dyn ImageFile>,
    access: Access,
    footer: Footer,
    footer_from_copy: bool,
    virtual_size: u64,
    kind: Kind,
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
    for at in [length - SECTOR, 0] {
        if read_array::<512>(file, "VHD footer", at)?.starts_with(COOKIE) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl VhdImage {
    pub(crate) fn open(
        file: Box<dyn ImageFile>,
        access: Access,
        _path: Option<&Path>,
        _descent: &mut Descent<'_>,
    ) -> Result<Self, ImageError> {
        let length = length(file.as_ref())?;
        let (footer, footer_from_copy) = read_footer(file.as_ref(), length)?;
        let virtual_size = checked_size(&footer)?;
        let kind = match footer.disk_type {
            DiskType::Fixed => {
                if length - SECTOR < virtual_size {
                    return Err(ImageError::corrupt(
                        "VHD footer",
                        length - SECTOR,
                        format!(
                            "a disk of {virtual_size} bytes doesn't fit into a file of {length}"
                        ),
                    ));
                }
                Kind::Fixed
            }
            DiskType::Dynamic => {
                let (header, table) = read_dynamic(file.as_ref(), &footer, virtual_size, length)?;
                Kind::Dynamic { header, table }
            }
            DiskType::Differencing => {
                return Err(ImageError::unsupported(
                    "VHD footer",
                    "differencing disks are not supported",
                ));
            }
        };
        Ok(Self {
            file,
            access,
            footer,
            footer_from_copy,
            virtual_size,
            kind,
            poisoned: false,
        })
    }

    pub(crate) fn create(
        file: Box<dyn ImageFile>,
        options: &CreateOptions,
    ) -> Result<Self, ImageError> {
        let size = options.virtual_size;
        let refuse = |cause: String| Err(ImageError::new(ErrorKind::OutOfRange, "new VHD", cause));
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return refuse(format!(
                "size {size} is no whole number of 512-byte sectors"
            ));
        }
        if size > MAX_SIZE {
            return refuse(format!("size {size} is above the limit of 2040 GiB"));
        }
        if options.logical_sector_size != 512 {
            return refuse(format!(
                "logical sectors have 512 bytes, not {}",
                options.logical_sector_size
            ));
        }
        let block_size = options.block_size.unwrap_or(DEFAULT_BLOCK_SIZE);
        if !block_size.is_power_of_two() || !(512 << 10..=2 << 20).contains(&block_size) {
            return refuse(format!(
                "block size {block_size} is no power of two from 512 KiB to 2 MiB"
            ));
        }
        let id = options.id.unwrap_or_else(Uuid::new_v4);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        let disk_type = if options.format == Format::VhdFixed {
            DiskType::Fixed
        } else {
            DiskType::Dynamic
        };
        let footer = Footer::new(disk_type, size, id, now).to_bytes();

        let write = |bytes: &[u8], at| {
            file.write_at(bytes, at)
                .map_err(|e| ImageError::io("new VHD", at, "write", e))
        };
        let set_len = |n| {
            file.set_len(n)
                .map_err(|e| ImageError::io("new VHD", n, "set the length", e))
        };
        set_len(0)?;
        if disk_type == DiskType::Fixed {
            set_len(size + SECTOR)?;
            write(&footer, size)?;
        } else {
            let entries = size.div_ceil(u64::from(block_size)) as u32;
            let header = DynamicHeader {
                table_offset: SECTOR + HEADER_LENGTH,
                entries,
                block_size,
            };
            let table_length = (u64::from(entries) * 4).next_multiple_of(SECTOR);
            let mut done = 0;
            let absent = vec![0xff; table_length.min(1 << 20) as usize];
            while done < table_length {
                let part = absent.len().min((table_length - done) as usize);
                write(&absent[..part], header.table_offset + done)?;
                done += part as u64;
            }
            write(&footer, header.table_offset + table_length)?;
            write(&header.to_bytes(), SECTOR)?;
            write(&footer, 0)?;
        }
        file.flush()
            .map_err(|e| ImageError::io("new VHD", 0, "flush", e))?;
        Self::open(
            file,
            Access::ReadWrite,
            None,
            &mut Descent::new(&NoParents, None),
        )
    }

    pub(crate) fn format(&self) -> Format {
        match self.kind {
            Kind::Fixed => Format::VhdFixed,
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

    pub(crate) fn write_at(&mut self, data: &[u8], offset: u64) -> Result<(), ImageError> {
        self.writable()?;
        let Kind::Dynamic { header, .. } = &self.kind else {
            return self
                .file
                .write_at(data, offset)
                .map_err(|e| ImageError::io("VHD data", offset, "write", e));
        };
        let header = header.clone();
        let mut rest = data;
        let mut offset = offset;
        while !rest.is_empty() {
            let (index, within, part) = locate(&header, offset, rest.len());
            let (now, later) = rest.split_at(part);
            let block = self.block_for_write(&header, index, now)?;
            if let Some(block) = block {
                let at = block + header.bitmap_length() + within;
                self.file
                    .write_at(now, at)
                    .map_err(|e| ImageError::io("VHD block", at, "write", e))?;
            }
            rest = later;
            offset += part as u64;
        }
        Ok(())
    }

    /// Where block `index` lies, allocated if it has to be; `None` when zeroes are written to a
    /// block that isn't there and reads as zeroes already.
    fn block_for_write(
        &mut self,
        header: &DynamicHeader,
        index: usize,
        data: &[u8],
    ) -> Result<Option<u64>, ImageError> {
        let Kind::Dynamic { table, .. } = &mut self.kind else {
            return Ok(None);
        };
        if table.entries[index] != ABSENT {
            let at = u64::from(table.entries[index]) * SECTOR;
            self.complete_block(header, at)?;
            return Ok(Some(at));
        }
        if data.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let at = table.data_end;
        let end = at + header.stride();
        let Some(entry) = u32::try_from(at / SECTOR)
            .ok()
            .filter(|sector| *sector != ABSENT)
        else {
            return Err(ImageError::new(
                ErrorKind::OutOfRange,
                "VHD block",
                "the file has no sector number left",
            ));
        };
        // Cutting first makes the new block zero, whatever a power cut left behind the last one.
        let bitmap = vec![0xff; header.bitmap_length() as usize];
        let footer = self.footer.to_bytes();
        let file = &self.file;
        let grown = file
            .set_len(at)
            .and_then(|()| file.set_len(end + SECTOR))
            .and_then(|()| file.write_at(&footer, end))
            .and_then(|()| file.write_at(&bitmap, at));
        // A failure here loses nothing: the table doesn't name the block, the next try starts over.
        grown.map_err(|e| ImageError::io("VHD block", at, "allocate", e))?;
        table.entries[index] = entry;
        table.dirty.insert(index as u64 * 4 / SECTOR);
        table.data_end = end;
        Ok(Some(at))
    }

    /// Turns a block with sectors marked as never written into a whole one, so that writes need
    /// not look at its bitmap again: zero those sectors, make that durable, mark them.
    fn complete_block(&self, header: &DynamicHeader, at: u64) -> Result<(), ImageError> {
        let bitmap = self.read_bitmap(header, at)?;
        if is_full(&bitmap, header) {
            return Ok(());
        }
        let fail = |e| ImageError::io("VHD sector bitmap", at, "complete", e);
        let sectors = u64::from(header.block_size) / SECTOR;
        for sector in 0..sectors {
            if !bit(&bitmap, sector) {
                let data = at + header.bitmap_length() + sector * SECTOR;
                self.file
                    .write_at(&[0; SECTOR as usize], data)
                    .map_err(fail)?;
            }
        }
        self.file.flush().map_err(fail)?;
        self.file
            .write_at(&vec![0xff; bitmap.len()], at)
            .map_err(fail)
    }

    pub(crate) fn flush(&mut self) -> Result<(), ImageError> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        self.writable()?;
        let flush = |file: &dyn ImageFile| {
            file.flush()
                .map_err(|e| ImageError::io("VHD", 0, "flush", e))
        };
        flush(self.file.as_ref())?;
        if let Kind::Dynamic { header, table } = &mut self.kind
            && !table.dirty.is_empty()
        {
            self.poisoned = true;
            table.write_dirty(self.file.as_ref(), header)?;
            flush(self.file.as_ref())?;
            self.poisoned = false;
        }
        Ok(())
    }

    pub(crate) fn close(mut self) -> Result<(), ImageError> {
        self.flush()
    }

    fn writable(&self) -> Result<(), ImageError> {
        if self.access == Access::ReadOnly {
            return Err(ImageError::new(
                ErrorKind::ReadOnly,
                "VHD",
                "opened for reading only",
            ));
        }
        if self.poisoned {
            return Err(ImageError::new(
                ErrorKind::Poisoned,
                "VHD",
                "an earlier write failed half-way; open it again",
            ));
        }
        Ok(())
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
    let virtual_size = checked_size(&footer)?;
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
            (
                Format::VhdDynamic,
                allocated(&header, &table, 0..virtual_size),
            )
        }
        DiskType::Differencing => {
            return Err(ImageError::unsupported(
                "VHD footer",
                "differencing disks are not supported",
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
    match Footer::parse(
        &read_array(file, "VHD footer copy", 0)?,
        "VHD footer copy",
        0,
    ) {
        Ok(copy) if copy.disk_type != DiskType::Fixed => Ok((copy, true)),
        _ => Err(error),
    }
}

fn checked_size(footer: &Footer) -> Result<u64, ImageError> {
    let size = footer.virtual_size();
    let limit = if footer.disk_type == DiskType::Fixed {
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
    let header = DynamicHeader::parse(&read_array(file, "VHD dynamic header", at)?, at)?;
    let table = Table::read(file, &header, virtual_size, length, end)?;
    Ok((header, table))
}

fn allocated(header: &DynamicHeader, table: &Table, range: Range<u64>) -> Vec<Extent> {
    let block = u64::from(header.block_size);
    let mut extents = Vec::new();
    let mut offset = range.start;
    while offset < range.end {
        let end = ((offset / block + 1) * block).min(range.end);
        if table.entries[(offset / block) as usize] != ABSENT {
            crate::extent::push(&mut extents, offset, end - offset);
        }
        offset = end;
    }
    extents
}

fn is_full(bitmap: &[u8], header: &DynamicHeader) -> bool {
    // Block sizes are powers of two from 64 KiB: a whole number of bitmap bytes.
    let used = (u64::from(header.block_size) / SECTOR / 8) as usize;
    bitmap[..used].iter().all(|byte| *byte == 0xff)
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
