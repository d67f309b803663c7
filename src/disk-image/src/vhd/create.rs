//! Making a new VHD.

use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::dynamic::{DynamicHeader, HEADER_LENGTH};
use super::footer::{DiskType, Footer, SECTOR};
use super::locator::VhdParent;
use super::{MAX_SIZE, VhdImage};
use crate::parents::ParentLocator;
use crate::{Access, CreateOptions, ErrorKind, Format, ImageError, ImageFile};

/// Usual block size.
const DEFAULT_BLOCK_SIZE: u32 = 2 << 20;

impl VhdImage {
    pub(crate) fn create(
        file: Box<dyn ImageFile>,
        options: &CreateOptions,
    ) -> Result<Self, ImageError> {
        write_new(file.as_ref(), options, None)?;
        Self::open_alone(file, Access::ReadWrite)
    }

    /// Creates a disk above `parent`, which is open for reading. The size is the parent's.
    pub(crate) fn create_child(
        file: Box<dyn ImageFile>,
        parent: Self,
        locators: &[ParentLocator],
        options: &CreateOptions,
    ) -> Result<Self, ImageError> {
        let options = CreateOptions {
            format: Format::VhdDifferencing,
            virtual_size: parent.virtual_size,
            logical_sector_size: 512,
            block_size: options.block_size.or(parent.block_size()),
            ..options.clone()
        };
        let link = VhdParent {
            id: parent.footer.id,
            locators: locators.to_vec(),
            end: 0,
        };
        write_new(
            file.as_ref(),
            &options,
            Some(&(link, parent.footer.timestamp)),
        )?;
        let mut image = Self::open_alone(file, Access::ReadWrite)?;
        image.parent = Some(Box::new(parent));
        Ok(image)
    }
}

fn write_new(
    file: &dyn ImageFile,
    options: &CreateOptions,
    parent: Option<&(VhdParent, u32)>,
) -> Result<(), ImageError> {
    let (size, block_size) = plan(options)?;
    let id = options.id.unwrap_or_else(Uuid::new_v4);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let disk_type = match options.format {
        Format::VhdFixed => DiskType::Fixed,
        _ if parent.is_some() => DiskType::Differencing,
        _ => DiskType::Dynamic,
    };
    let footer = Footer::new(disk_type, size, id, now).to_bytes();
    let write = |bytes: &[u8], at| {
        file.write_at(bytes, at)
            .map_err(|e| ImageError::io("new VHD", at, "write", e))
    };
    let set_len = |length| {
        file.set_len(length)
            .map_err(|e| ImageError::io("new VHD", length, "set the length", e))
    };
    set_len(0)?;
    if disk_type == DiskType::Fixed {
        set_len(size + SECTOR)?;
        write(&footer, size)?;
    } else {
        let mut header = DynamicHeader {
            table_offset: SECTOR + HEADER_LENGTH,
            entries: size.div_ceil(u64::from(block_size)) as u32,
            block_size,
            is_differencing: parent.is_some(),
            raw: Box::new([0; 1024]),
        };
        let table = vec![0xff; (u64::from(header.entries) * 4).next_multiple_of(SECTOR) as usize];
        let mut end = header.table_offset + table.len() as u64;
        if let Some((parent, timestamp)) = parent {
            let (data, behind) = parent.write(&mut header.raw, *timestamp, end);
            for (at, bytes) in data {
                write(&bytes, at)?;
            }
            end = behind;
        }
        set_len(end + SECTOR)?;
        write(&footer, end)?;
        write(&table, header.table_offset)?;
        write(&header.to_bytes(), SECTOR)?;
        write(&footer, 0)?;
    }
    file.flush()
        .map_err(|e| ImageError::io("new VHD", 0, "flush", e))
}

fn plan(options: &CreateOptions) -> Result<(u64, u32), ImageError> {
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
    Ok((size, block_size))
}
