//! Changing a VHDX's size, and other metadata. The log makes each change happen or not.
//!
//! ```text
//!   grow:   the tail of the last block zeroed ─► table moved if its region is too small
//!           ─► new entries (and blocks of a fixed disk) through the log ─► the size through the log
//!   shrink: the tail must be zero ─► the size through the log ─► log declared empty ─► file cut
//! ```
//!
//! Entries behind the end of the disk mean nothing, so the size is always the last step of growing
//! and the first of shrinking.

use uuid::Uuid;

use super::bat::{Bat, Block};
use super::layout::{
    BAT_REGION, FILE_PARAMETERS, MAX_SIZE, MIB, PARENT_LOCATOR, PHYSICAL_SECTOR_SIZE,
    REGION_TABLE_OFFSETS, VIRTUAL_DISK_ID, VIRTUAL_DISK_SIZE,
};
use super::log::LogWriter;
use super::region::{self, Region};
use super::{ParentLink, VhdxImage, edit};
use crate::layer::Layer as _;
use crate::parents::ParentLocator;
use crate::zero::is_zero;
use crate::{ErrorKind, ImageError};

const OBJECT: &str = "VHDX";

impl VhdxImage {
    pub(crate) fn resize(&mut self, size: u64) -> Result<(), ImageError> {
        self.writable()?;
        let sector = u64::from(self.logical_sector_size());
        if size == 0 || size > MAX_SIZE || !size.is_multiple_of(sector) {
            return Err(out_of_range(format!(
                "size {size} is no whole number of sectors up to 64 TiB"
            )));
        }
        let old = self.virtual_size();
        if size == old {
            return Ok(());
        }
        self.announce()?;
        if size > old {
            self.grow(old, size)
        } else {
            self.shrink(old, size)
        }
    }

    fn grow(&mut self, old: u64, size: u64) -> Result<(), ImageError> {
        if let Some(parent) = self.below()
            && parent.layer_size() > old
        {
            return Err(ImageError::unsupported(
                OBJECT,
                "its parent is larger: what the parent holds behind the old end would show up; merge it first",
            ));
        }
        self.flush()?;
        self.zero_behind_end(old)?;
        let mut metadata = self.structure.metadata.clone();
        metadata.virtual_size = size;
        let needed = (Bat::entry_count(&metadata) * 8).next_multiple_of(MIB);
        if needed > u64::from(self.structure.regions.bat.length) {
            self.move_table(needed)?;
        }
        // From here on the table in memory is ahead of the file until the size has followed.
        self.poisoned = true;
        self.structure.bat.resize(&metadata);
        self.structure.metadata.virtual_size = size;
        if self.structure.metadata.leave_blocks_allocated && !self.structure.metadata.has_parent() {
            let block_size = u64::from(self.structure.metadata.block_size);
            let (first, end) = (old.div_ceil(block_size), size.div_ceil(block_size));
            if end > first {
                let place = self.allocate((end - first) * block_size)?;
                for block in first..end {
                    let at = place + (block - first) * block_size;
                    self.structure.bat.set_block(block, Block::Full(at));
                }
            }
        }
        self.poisoned = false;
        self.flush()?;
        self.set_item(VIRTUAL_DISK_SIZE, &size.to_le_bytes())?;
        self.flush()
    }

    fn shrink(&mut self, old: u64, size: u64) -> Result<(), ImageError> {
        if self.structure.metadata.has_parent() {
            return Err(ImageError::unsupported(
                OBJECT,
                "a differencing disk is not made smaller; merge it into its parent first",
            ));
        }
        self.check_empty(size, old)?;
        self.flush()?;
        self.poisoned = true;
        self.structure.metadata.virtual_size = size;
        let metadata = self.structure.metadata.clone();
        self.structure.bat.resize(&metadata);
        self.poisoned = false;
        self.set_item(VIRTUAL_DISK_SIZE, &size.to_le_bytes())?;
        // A log entry says how long the file was; it must not be replayed on a shorter one.
        self.settle()?;
        let regions = self.structure.regions.all.iter();
        let end = regions
            .map(|region| region.offset + u64::from(region.length))
            .chain(self.structure.headers.log.map(|log| log.end()))
            .chain([self.structure.bat.data_end()])
            .max()
            .unwrap_or(0)
            .next_multiple_of(MIB);
        if end >= MIB && end < self.file_length {
            self.file
                .set_len(end)
                .map_err(|e| ImageError::io(OBJECT, end, "cut the file", e))?;
            self.file_length = end;
        }
        Ok(())
    }

    /// Whether a range of the disk reads as zeroes.
    fn check_empty(&self, from: u64, to: u64) -> Result<(), ImageError> {
        let mut buffer = vec![0; MIB as usize];
        for extent in self.allocated(from..to) {
            let mut at = extent.offset;
            while at < extent.end() {
                let part = &mut buffer[..(extent.end() - at).min(MIB) as usize];
                self.read_at(part, at)?;
                if !is_zero(part) {
                    return Err(out_of_range(format!(
                        "it can't end at {from}: there is data behind, at {at}; make the last partition smaller first"
                    )));
                }
                at += part.len() as u64;
            }
        }
        Ok(())
    }

    /// What lies in the last block behind the disk's end may be anything and is about to be seen.
    fn zero_behind_end(&mut self, old: u64) -> Result<(), ImageError> {
        let block_size = u64::from(self.structure.metadata.block_size);
        let (block, within) = (old / block_size, old % block_size);
        if within == 0 {
            return Ok(());
        }
        let (Block::Full(place) | Block::Partial(place)) = self.structure.bat.block(block) else {
            return Ok(());
        };
        let end = place + block_size;
        if self.file_length < end {
            self.file
                .set_len(end)
                .map_err(|e| ImageError::io(OBJECT, end, "set the length", e))?;
            self.file_length = end;
        }
        let zeroes = vec![0; MIB as usize];
        let mut at = place + within;
        while at < end {
            let part = &zeroes[..(end - at).min(MIB) as usize];
            self.file
                .write_at(part, at)
                .map_err(|e| ImageError::io(OBJECT, at, "write", e))?;
            at += part.len() as u64;
        }
        self.flush_file()
    }

    /// Writes the table to a larger region at the end of the file and names it in both region
    /// tables. The old one stays right until that is done.
    fn move_table(&mut self, length: u64) -> Result<(), ImageError> {
        let length = u32::try_from(length).map_err(|_| {
            out_of_range(format!(
                "a block table of {length} bytes can't be expressed"
            ))
        })?;
        // The log may name the old table; what it says must be in place, and the log empty.
        self.settle()?;
        let offset = self.allocate(u64::from(length))?;
        let region = Region { offset, length };
        self.poisoned = true;
        self.structure.bat.move_to(region);
        for (at, sector) in self.structure.bat.all_sectors() {
            self.file
                .write_at(&sector, at)
                .map_err(|e| ImageError::io("BAT", at, "write", e))?;
        }
        self.flush_file()?;
        self.structure.regions.bat = region;
        for entry in &mut self.structure.regions.all {
            if entry.id == BAT_REGION {
                (entry.offset, entry.length) = (region.offset, region.length);
            }
        }
        self.write_region_tables()?;
        self.poisoned = false;
        Ok(())
    }

    /// Both copies of the region table, one after the other.
    pub(super) fn write_region_tables(&mut self) -> Result<(), ImageError> {
        let bytes = region::encode_all(&self.structure.regions.all);
        for at in REGION_TABLE_OFFSETS {
            self.file
                .write_at(&bytes, at)
                .map_err(|e| ImageError::io("region table", at, "write", e))?;
            self.flush_file()?;
        }
        Ok(())
    }

    /// Gives a metadata item a new value, through the log.
    fn set_item(&mut self, id: Uuid, value: &[u8]) -> Result<(), ImageError> {
        let mut items = self.structure.items.clone();
        let region = self.structure.regions.metadata;
        let sectors = edit::replace(self.file.as_ref(), region, &mut items, id, value)?;
        if sectors.len() > LogWriter::capacity(&self.structure.headers.current) {
            return Err(out_of_range("the item is too long for the log".to_owned()));
        }
        self.poisoned = true;
        // What an earlier log entry changed must be durable before this one takes its place.
        self.flush_file()?;
        self.commit(&sectors)?;
        self.structure.items = items;
        self.poisoned = false;
        Ok(())
    }

    /// Changes the disk's identity, which a guest sees as Page 83 of its inquiry data.
    pub(crate) fn set_id(&mut self, id: Uuid) -> Result<(), ImageError> {
        self.writable()?;
        self.announce()?;
        self.set_item(VIRTUAL_DISK_ID, &id.to_bytes_le())?;
        self.structure.metadata.id = id;
        self.flush()
    }

    pub(crate) fn set_physical_sector_size(&mut self, size: u32) -> Result<(), ImageError> {
        self.writable()?;
        if !matches!(size, 512 | 4096) {
            return Err(out_of_range(format!(
                "a physical sector has 512 or 4096 bytes, not {size}"
            )));
        }
        self.announce()?;
        self.set_item(PHYSICAL_SECTOR_SIZE, &size.to_le_bytes())?;
        self.structure.metadata.physical_sector_size = size;
        self.flush()
    }

    /// Whether a checkpoint's owner keeps blocks once they are there: bit 0 of the file parameters.
    pub(crate) fn set_leave_blocks_allocated(&mut self, leave: bool) -> Result<(), ImageError> {
        self.writable()?;
        self.announce()?;
        let metadata = &self.structure.metadata;
        let flags = u32::from(leave) | u32::from(metadata.has_parent()) << 1;
        let value = [metadata.block_size.to_le_bytes(), flags.to_le_bytes()].concat();
        self.set_item(FILE_PARAMETERS, &value)?;
        self.structure.metadata.leave_blocks_allocated = leave;
        self.flush()
    }

    /// Names other places for the same parent, or another state of it as right. Keys that are
    /// not known stay.
    pub(crate) fn set_parent(
        &mut self,
        linkage: Uuid,
        locators: &[ParentLocator],
    ) -> Result<(), ImageError> {
        self.writable()?;
        let Some(old) = &self.structure.metadata.parent else {
            return Err(ImageError::unsupported(OBJECT, "it has no parent"));
        };
        let mut link = ParentLink::new(linkage, locators);
        let places = ["relative_path", "volume_path", "absolute_win32_path"];
        link.values.extend(
            old.values
                .iter()
                .filter(|(key, _)| !places.contains(&key.as_str()))
                .cloned(),
        );
        self.announce()?;
        self.set_item(PARENT_LOCATOR, &link.encode())?;
        self.structure.metadata.parent = Some(link);
        self.flush()
    }
}

fn out_of_range(cause: String) -> ImageError {
    ImageError::new(ErrorKind::OutOfRange, OBJECT, cause)
}
