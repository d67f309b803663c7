//! Making a new VHDX.
//!
//! ```text
//!   0 identifier, headers, region tables │ 1 MiB log │ 2 MiB metadata │ 3 MiB BAT │ blocks of a fixed disk
//! ```

use uuid::Uuid;

use super::bat::{Bat, present_entry};
use super::header::{self, Header};
use super::layout::{FILE_SIGNATURE, MAX_SIZE, MIB, REGION_TABLE_OFFSETS, chunk_ratio};
use super::locator::ParentLink;
use super::metadata::Metadata;
use super::region::{self, Region};
use crate::bytes::put;
use crate::{CreateOptions, ErrorKind, Format, ImageError, ImageFile};

const OBJECT: &str = "new VHDX";
const DEFAULT_BLOCK_SIZE: u32 = 32 << 20;
const CREATOR: &str = "Site Recovery disk-image";

/// Writes an empty disk into `file`. The identifier goes last, so that a power cut never leaves
/// something that looks like a VHDX and isn't one.
pub(super) fn create(
    file: &dyn ImageFile,
    options: &CreateOptions,
    parent: Option<ParentLink>,
) -> Result<(), ImageError> {
    let metadata = plan(options, parent)?;
    let log = Region {
        offset: MIB,
        length: MIB as u32,
    };
    let metadata_region = Region {
        offset: 2 * MIB,
        length: MIB as u32,
    };
    let entries = Bat::entry_count(&metadata);
    let bat = Region {
        offset: 3 * MIB,
        length: (entries * 8).next_multiple_of(MIB) as u32,
    };

    let write = |bytes: &[u8], at| {
        file.write_at(bytes, at)
            .map_err(|e| ImageError::io(OBJECT, at, "write", e))
    };
    let flush = || {
        file.flush()
            .map_err(|e| ImageError::io(OBJECT, 0, "flush", e))
    };
    let set_len = |n| {
        file.set_len(n)
            .map_err(|e| ImageError::io(OBJECT, n, "set the length", e))
    };
    set_len(0)?;
    set_len(bat.end())?;
    if metadata.leave_blocks_allocated {
        let blocks = metadata
            .virtual_size
            .div_ceil(u64::from(metadata.block_size));
        set_len(bat.end() + blocks * u64::from(metadata.block_size))?;
        write_full_bat(&write, bat, &metadata, blocks)?;
    }
    write(&metadata.encode(), metadata_region.offset)?;
    let regions = region::encode(bat, metadata_region);
    for at in REGION_TABLE_OFFSETS {
        write(&regions, at)?;
    }
    header::write_new(
        file,
        &Header {
            sequence_number: 0,
            file_write_guid: Uuid::new_v4(),
            data_write_guid: Uuid::new_v4(),
            log_guid: Uuid::nil(),
            log_version: 0,
            log_length: log.length,
            log_offset: log.offset,
        },
    )?;
    flush()?;
    let mut identifier = vec![0; 8 + 512];
    put(&mut identifier, 0, FILE_SIGNATURE);
    for (i, unit) in CREATOR.encode_utf16().enumerate() {
        put(&mut identifier, 8 + 2 * i, &unit.to_le_bytes());
    }
    write(&identifier, 0)?;
    flush()
}

fn plan(options: &CreateOptions, parent: Option<ParentLink>) -> Result<Metadata, ImageError> {
    let refuse = |cause: String| Err(ImageError::new(ErrorKind::OutOfRange, OBJECT, cause));
    for (name, size) in [
        ("logical", options.logical_sector_size),
        ("physical", options.physical_sector_size),
    ] {
        if !matches!(size, 512 | 4096) {
            return refuse(format!("a {name} sector has 512 or 4096 bytes, not {size}"));
        }
    }
    let size = options.virtual_size;
    if size == 0 || size > MAX_SIZE || !size.is_multiple_of(u64::from(options.logical_sector_size))
    {
        return refuse(format!(
            "size {size} is no whole number of sectors up to 64 TiB"
        ));
    }
    let block_size = options.block_size.unwrap_or(DEFAULT_BLOCK_SIZE);
    if !block_size.is_power_of_two() || !(1 << 20..=256 << 20).contains(&block_size) {
        return refuse(format!(
            "block size {block_size} is no power of two from 1 to 256 MiB"
        ));
    }
    Ok(Metadata {
        block_size,
        leave_blocks_allocated: options.format == Format::VhdxFixed,
        parent,
        virtual_size: size,
        id: options.id.unwrap_or_else(Uuid::new_v4),
        logical_sector_size: options.logical_sector_size,
        physical_sector_size: options.physical_sector_size,
    })
}

fn write_full_bat(
    write: &impl Fn(&[u8], u64) -> Result<(), ImageError>,
    bat: Region,
    metadata: &Metadata,
    blocks: u64,
) -> Result<(), ImageError> {
    let ratio = chunk_ratio(metadata.logical_sector_size, metadata.block_size);
    let mut chunk = Vec::with_capacity(MIB as usize);
    let mut at = bat.offset;
    for block in 0..blocks {
        if block != 0 && block % ratio == 0 {
            chunk.extend_from_slice(&[0; 8]);
        }
        chunk.extend_from_slice(
            &present_entry(bat.end() + block * u64::from(metadata.block_size)).to_le_bytes(),
        );
        if chunk.len() + 16 > MIB as usize {
            write(&chunk, at)?;
            at += chunk.len() as u64;
            chunk.clear();
        }
    }
    write(&chunk, at)
}
