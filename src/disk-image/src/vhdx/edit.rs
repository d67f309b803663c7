//! Changing metadata items in place: which 4 KiB sectors of the region become what.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::layout::{LOG_SECTOR, METADATA_TABLE_LENGTH};
use super::metadata::{FLAG_REQUIRED, FLAG_USER};
use super::region::Region;
use crate::bytes::put;
use crate::{ErrorKind, ImageError, ImageFile, MetadataItemInfo};

/// Sectors with their places in the file.
pub(super) type Sectors = Vec<(u64, Vec<u8>)>;

/// Gives an item a new value. It stays where it is when it fits there; otherwise it moves behind
/// all others, and the table follows. All sectors belong into one log entry.
pub(super) fn replace(
    file: &dyn ImageFile,
    region: Region,
    items: &mut [MetadataItemInfo],
    id: Uuid,
    value: &[u8],
) -> Result<Sectors, ImageError> {
    let free = items
        .iter()
        .map(|item| u64::from(item.offset) + u64::from(item.length))
        .fold(METADATA_TABLE_LENGTH as u64, u64::max)
        .next_multiple_of(8);
    let found = items
        .iter_mut()
        .enumerate()
        .find(|(_, item)| item.id == id && item.flags & FLAG_USER == 0);
    let Some((index, item)) = found else {
        return Err(ImageError::corrupt(
            "metadata table",
            region.offset,
            format!("item {id} is missing"),
        ));
    };
    let mut edit = Edit {
        file,
        sectors: BTreeMap::new(),
    };
    if value.len() > item.length as usize {
        if free + value.len() as u64 > u64::from(region.length) {
            return Err(ImageError::new(
                ErrorKind::OutOfRange,
                "metadata region",
                format!("no room for an item of {} bytes", value.len()),
            ));
        }
        item.offset = free as u32;
    }
    item.length = value.len() as u32;
    item.flags |= FLAG_REQUIRED;
    let mut entry = [0; 12];
    put(&mut entry, 0, &item.offset.to_le_bytes());
    put(&mut entry, 4, &item.length.to_le_bytes());
    put(&mut entry, 8, &item.flags.to_le_bytes());
    edit.put(region.offset + 32 + 32 * index as u64 + 16, &entry)?;
    edit.put(region.offset + u64::from(item.offset), value)?;
    Ok(edit.sectors.into_iter().collect())
}

struct Edit<'a> {
    file: &'a dyn ImageFile,
    sectors: BTreeMap<u64, Vec<u8>>,
}

impl Edit<'_> {
    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), ImageError> {
        let mut done = 0;
        while done < bytes.len() {
            let place = at + done as u64;
            let start = place - place % LOG_SECTOR as u64;
            let within = (place - start) as usize;
            let part = (LOG_SECTOR - within).min(bytes.len() - done);
            if !self.sectors.contains_key(&start) {
                let mut sector = vec![0; LOG_SECTOR];
                self.file
                    .read_at(&mut sector, start)
                    .map_err(|e| ImageError::io("metadata", start, "read", e))?;
                self.sectors.insert(start, sector);
            }
            if let Some(sector) = self.sectors.get_mut(&start) {
                put(sector, within, &bytes[done..done + part]);
            }
            done += part;
        }
        Ok(())
    }
}
