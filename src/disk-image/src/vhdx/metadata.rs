//! The metadata region: sizes, identity and kind of the disk.

use uuid::Uuid;

use super::layout::{
    FILE_PARAMETERS, LOGICAL_SECTOR_SIZE, MAX_SIZE, METADATA_TABLE_LENGTH, MIB, PARENT_LOCATOR,
    PHYSICAL_SECTOR_SIZE, VIRTUAL_DISK_ID, VIRTUAL_DISK_SIZE,
};
use super::locator::ParentLink;
use super::region::Region;
use crate::bytes::{array, guid, le16, le32, le64, put};
use crate::{ImageError, ImageFile, MetadataItemInfo};

const SIGNATURE: &[u8; 8] = b"metadata";
const TABLE: &str = "metadata table";
const MAX_ENTRIES: u16 = 2047;
pub(super) const FLAG_USER: u32 = 1;
const FLAG_VIRTUAL_DISK: u32 = 2;
pub(super) const FLAG_REQUIRED: u32 = 4;

/// What the metadata says of the disk, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) block_size: u32,
    pub(super) leave_blocks_allocated: bool,
    /// What a differencing disk stands on.
    pub(super) parent: Option<ParentLink>,
    pub(super) virtual_size: u64,
    pub(super) id: Uuid,
    pub(super) logical_sector_size: u32,
    pub(super) physical_sector_size: u32,
}

impl Metadata {
    pub(super) fn has_parent(&self) -> bool {
        self.parent.is_some()
    }

    /// Reads table and items.
    pub(super) fn read(
        file: &dyn ImageFile,
        region: Region,
    ) -> Result<(Self, Vec<MetadataItemInfo>), ImageError> {
        let items = read_table(file, region)?;
        let item = |id: Uuid, length: u32| read_item(file, region, &items, id, length);
        let refuse = |id: Uuid, cause: String| {
            ImageError::corrupt(describe(id), place(region, &items, id), cause)
        };

        let parameters = item(FILE_PARAMETERS, 8)?;
        let (block_size, flags) = (le32(&parameters, 0), le32(&parameters, 4));
        if !block_size.is_power_of_two() || !(1 << 20..=256 << 20).contains(&block_size) {
            return Err(refuse(
                FILE_PARAMETERS,
                format!("block size {block_size} is no power of two from 1 to 256 MiB"),
            ));
        }
        let sector = |id: Uuid| {
            let size = le32(&item(id, 4)?, 0);
            if matches!(size, 512 | 4096) {
                Ok(size)
            } else {
                Err(refuse(id, format!("{size} is neither 512 nor 4096")))
            }
        };
        let logical_sector_size = sector(LOGICAL_SECTOR_SIZE)?;
        let physical_sector_size = sector(PHYSICAL_SECTOR_SIZE)?;
        let virtual_size = le64(&item(VIRTUAL_DISK_SIZE, 8)?, 0);
        if virtual_size == 0
            || virtual_size > MAX_SIZE
            || !virtual_size.is_multiple_of(u64::from(logical_sector_size))
        {
            return Err(refuse(
                VIRTUAL_DISK_SIZE,
                format!("{virtual_size} bytes are no whole sectors up to 64 TiB"),
            ));
        }
        let id = guid(&item(VIRTUAL_DISK_ID, 16)?, 0);
        let parent = if flags & 2 != 0 {
            let length = items
                .iter()
                .find(|item| item.id == PARENT_LOCATOR)
                .map_or(0, |item| item.length);
            let bytes = item(PARENT_LOCATOR, length)?;
            let link = ParentLink::parse(&bytes).map_err(|cause| refuse(PARENT_LOCATOR, cause))?;
            Some(link)
        } else {
            None
        };
        let metadata = Self {
            block_size,
            leave_blocks_allocated: flags & 1 != 0,
            parent,
            virtual_size,
            id,
            logical_sector_size,
            physical_sector_size,
        };
        Ok((metadata, items))
    }

    /// The metadata region of a new file, from its start.
    pub(super) fn encode(&self) -> Vec<u8> {
        let flags = u32::from(self.leave_blocks_allocated) | u32::from(self.has_parent()) << 1;
        let parameters = [self.block_size.to_le_bytes(), flags.to_le_bytes()].concat();
        let mut items: Vec<(Uuid, u32, Vec<u8>)> = vec![
            (FILE_PARAMETERS, FLAG_REQUIRED, parameters),
            (
                VIRTUAL_DISK_SIZE,
                FLAG_REQUIRED | FLAG_VIRTUAL_DISK,
                self.virtual_size.to_le_bytes().to_vec(),
            ),
            (
                VIRTUAL_DISK_ID,
                FLAG_REQUIRED | FLAG_VIRTUAL_DISK,
                self.id.to_bytes_le().to_vec(),
            ),
            (
                LOGICAL_SECTOR_SIZE,
                FLAG_REQUIRED | FLAG_VIRTUAL_DISK,
                self.logical_sector_size.to_le_bytes().to_vec(),
            ),
            (
                PHYSICAL_SECTOR_SIZE,
                FLAG_REQUIRED | FLAG_VIRTUAL_DISK,
                self.physical_sector_size.to_le_bytes().to_vec(),
            ),
        ];
        if let Some(parent) = &self.parent {
            items.push((PARENT_LOCATOR, FLAG_REQUIRED, parent.encode()));
        }
        let values: usize = items.iter().map(|(_, _, value)| value.len()).sum();
        let length = METADATA_TABLE_LENGTH + values.next_multiple_of(METADATA_TABLE_LENGTH);
        let mut bytes = vec![0; length];
        put(&mut bytes, 0, SIGNATURE);
        put(&mut bytes, 10, &(items.len() as u16).to_le_bytes());
        let mut item_at = METADATA_TABLE_LENGTH;
        for (i, (id, flags, value)) in items.iter().enumerate() {
            let at = 32 + 32 * i;
            put(&mut bytes, at, &id.to_bytes_le());
            put(&mut bytes, at + 16, &(item_at as u32).to_le_bytes());
            put(&mut bytes, at + 20, &(value.len() as u32).to_le_bytes());
            put(&mut bytes, at + 24, &flags.to_le_bytes());
            put(&mut bytes, item_at, value);
            item_at += value.len();
        }
        bytes
    }
}

fn read_table(file: &dyn ImageFile, region: Region) -> Result<Vec<MetadataItemInfo>, ImageError> {
    let at = region.offset;
    let mut bytes = vec![0; METADATA_TABLE_LENGTH];
    file.read_at(&mut bytes, at)
        .map_err(|e| ImageError::io(TABLE, at, "read", e))?;
    if array::<8>(&bytes, 0) != *SIGNATURE {
        return Err(ImageError::corrupt(
            TABLE,
            at,
            "the signature metadata is missing",
        ));
    }
    let count = le16(&bytes, 10);
    if count > MAX_ENTRIES {
        return Err(ImageError::corrupt(
            TABLE,
            at,
            format!("{count} entries don't fit"),
        ));
    }
    let mut items = Vec::with_capacity(usize::from(count));
    for i in 0..usize::from(count) {
        let entry = 32 + 32 * i;
        let (id, flags) = (guid(&bytes, entry), le32(&bytes, entry + 24));
        let name = if flags & FLAG_USER == 0 {
            name_of(id)
        } else {
            None
        };
        items.push(MetadataItemInfo {
            id,
            name,
            offset: le32(&bytes, entry + 16),
            length: le32(&bytes, entry + 20),
            flags,
        });
    }
    check_items(&items, region)?;
    Ok(items)
}

/// Checks what the table says of items that are known. Optional items of others may be as wrong
/// as they like: nobody here reads them, and they stay as they are.
fn check_items(items: &[MetadataItemInfo], region: Region) -> Result<(), ImageError> {
    let refuse = |id: Uuid, cause: String| {
        Err(ImageError::corrupt(
            TABLE,
            region.offset,
            format!("item {id}: {cause}"),
        ))
    };
    let mut ids = Vec::new();
    let mut places = Vec::new();
    for item in items {
        if item.name.is_none() {
            if item.flags & FLAG_REQUIRED != 0 {
                return Err(ImageError::unsupported(
                    TABLE,
                    format!("item {} is unknown and required", item.id),
                )
                .at(region.offset));
            }
            continue;
        }
        ids.push(item.id);
        if item.length == 0 {
            continue;
        }
        let end = u64::from(item.offset) + u64::from(item.length);
        let inside =
            item.offset as usize >= METADATA_TABLE_LENGTH && end <= u64::from(region.length);
        if !inside || u64::from(item.length) > MIB {
            return refuse(
                item.id,
                format!(
                    "{} bytes at {} are outside the region",
                    item.length, item.offset
                ),
            );
        }
        places.push((u64::from(item.offset), end, item.id));
    }
    ids.sort_unstable();
    if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        return refuse(twice[0], "it is listed twice".to_owned());
    }
    places.sort_unstable();
    match places.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => refuse(pair[1].2, format!("it overlaps item {}", pair[0].2)),
        None => Ok(()),
    }
}

fn read_item(
    file: &dyn ImageFile,
    region: Region,
    items: &[MetadataItemInfo],
    id: Uuid,
    length: u32,
) -> Result<Vec<u8>, ImageError> {
    let object = describe(id);
    let Some(item) = items
        .iter()
        .find(|item| item.id == id && item.flags & FLAG_USER == 0)
    else {
        return Err(ImageError::corrupt(
            TABLE,
            region.offset,
            format!("the {object} is missing"),
        ));
    };
    let at = region.offset + u64::from(item.offset);
    if item.length < length {
        return Err(ImageError::corrupt(
            object,
            at,
            format!("it has {} bytes instead of {length}", item.length),
        ));
    }
    let mut bytes = vec![0; length as usize];
    file.read_at(&mut bytes, at)
        .map_err(|e| ImageError::io(object, at, "read", e))?;
    Ok(bytes)
}

fn place(region: Region, items: &[MetadataItemInfo], id: Uuid) -> u64 {
    region.offset
        + items
            .iter()
            .find(|item| item.id == id)
            .map_or(0, |item| u64::from(item.offset))
}

fn name_of(id: Uuid) -> Option<&'static str> {
    Some(match id {
        FILE_PARAMETERS => "file parameters",
        VIRTUAL_DISK_SIZE => "virtual disk size",
        VIRTUAL_DISK_ID => "virtual disk id",
        LOGICAL_SECTOR_SIZE => "logical sector size",
        PHYSICAL_SECTOR_SIZE => "physical sector size",
        PARENT_LOCATOR => "parent locator",
        _ => return None,
    })
}

fn describe(id: Uuid) -> String {
    format!("metadata item {}", name_of(id).unwrap_or("of unknown kind"))
}
