//! Changing a VHD's size. There is no log: each step leaves a file that opens with the old or the
//! new size.
//!
//! ```text
//!   fixed, grow:    new footer at its new place (the file grows with it) ─► old footer zeroed
//!   fixed, shrink:  the tail must be zero ─► new footer ─► file cut
//!   dynamic, grow:  last block's tail zeroed ─► table, moved to the file's end if it is too small
//!                   ─► dynamic header ─► footer copy ─► footer
//!   dynamic, shrink: the tail must be zero ─► footer copy ─► footer ─► table ─► file cut
//! ```
//!
//! A power cut while a fixed disk grows may leave the old footer's 512 bytes in the new, unused part.

use super::dynamic::{ABSENT, HEADER_LENGTH};
use super::footer::{Footer, SECTOR, geometry};
use super::{Kind, MAX_SIZE, VhdImage};
use crate::layer::Layer as _;
use crate::zero::is_zero;
use crate::{ErrorKind, ImageError};

const OBJECT: &str = "VHD";

impl VhdImage {
    pub(crate) fn resize(&mut self, size: u64) -> Result<(), ImageError> {
        self.writable()?;
        if size == 0 || !size.is_multiple_of(SECTOR) || size > MAX_SIZE {
            return Err(out_of_range(format!(
                "size {size} is no whole number of sectors up to 2040 GiB"
            )));
        }
        let old = self.virtual_size;
        if size == old {
            return Ok(());
        }
        if size < old {
            self.check_empty(size, old)?;
        }
        self.flush()?;
        let footer = Footer {
            current_size: size,
            geometry: geometry(size),
            // The size is no longer what the geometry of an old Virtual PC says.
            creator: *b"win ",
            ..self.footer.clone()
        };
        self.poisoned = true;
        match (&self.kind, size > old) {
            (Kind::Fixed, true) => self.grow_fixed(old, footer)?,
            (Kind::Fixed, false) => self.shrink_fixed(footer)?,
            (Kind::Dynamic { .. }, true) => self.grow_dynamic(old, footer)?,
            (Kind::Dynamic { .. }, false) => self.shrink_dynamic(footer)?,
        }
        self.poisoned = false;
        Ok(())
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<(), ImageError> {
        self.file
            .write_at(bytes, at)
            .map_err(|e| ImageError::io(OBJECT, at, "write", e))
    }

    fn cut(&self, length: u64) -> Result<(), ImageError> {
        self.file
            .set_len(length)
            .map_err(|e| ImageError::io(OBJECT, length, "cut the file", e))
    }

    fn take(&mut self, footer: Footer) {
        self.virtual_size = footer.current_size;
        self.footer = footer;
    }

    fn grow_fixed(&mut self, old: u64, footer: Footer) -> Result<(), ImageError> {
        // One sector, and the file's new length comes with it: there is no state in between.
        let at = footer.current_size;
        self.write(&footer.to_bytes(), at)?;
        self.flush_file()?;
        self.take(footer);
        let end = (old + SECTOR).min(at);
        self.write(&vec![0; (end - old) as usize], old)?;
        self.flush_file()
    }

    fn shrink_fixed(&mut self, footer: Footer) -> Result<(), ImageError> {
        let at = footer.current_size;
        self.write(&footer.to_bytes(), at)?;
        self.flush_file()?;
        self.cut(at + SECTOR)?;
        self.flush_file()?;
        self.take(footer);
        Ok(())
    }

    fn grow_dynamic(&mut self, old: u64, footer: Footer) -> Result<(), ImageError> {
        if let Some(parent) = self.below()
            && parent.layer_size() > old
        {
            self.poisoned = false;
            return Err(ImageError::unsupported(
                OBJECT,
                "its parent is larger: what the parent holds behind the old end would show up; merge it first",
            ));
        }
        self.zero_behind_end(old)?;
        let Kind::Dynamic { header, table } = &mut self.kind else {
            return Ok(());
        };
        let needed = footer.current_size.div_ceil(u64::from(header.block_size));
        let known = table.entries.len();
        table.entries.resize(needed as usize, ABSENT);
        if needed <= u64::from(header.entries) {
            // What lies in the table behind the old end must not come to life.
            for index in known as u64..needed {
                table.dirty.insert(index * 4 / SECTOR);
            }
            table.write_dirty(self.file.as_ref(), header)?;
            self.flush_file()?;
        } else {
            self.move_table(needed)?;
        }
        self.write_footers(footer)
    }

    /// Writes the table behind all blocks, with room for `needed` entries, and names it in the header.
    fn move_table(&mut self, needed: u64) -> Result<(), ImageError> {
        let Kind::Dynamic { header, table } = &self.kind else {
            return Ok(());
        };
        let at = table.data_end;
        let length = (needed * 4).next_multiple_of(SECTOR);
        let mut bytes = vec![0xff; length as usize];
        for (entry, place) in table.entries.iter().zip(bytes.chunks_mut(4)) {
            place.copy_from_slice(&entry.to_be_bytes());
        }
        self.extend(at, at + length)?;
        self.write(&bytes, at)?;
        self.flush_file()?;
        let mut header = header.clone();
        header.table_offset = at;
        header.entries = needed as u32;
        // All that changes lies in the header's first sector.
        self.write(
            &header.to_bytes()[..SECTOR as usize],
            self.footer.data_offset,
        )?;
        self.flush_file()?;
        if let Kind::Dynamic { header: old, table } = &mut self.kind {
            *old = header;
            table.data_end = at + length;
            table.table_end = table.data_end;
            table.dirty.clear();
        }
        Ok(())
    }

    /// The copy first: the one at the end counts when both hold.
    fn write_footers(&mut self, footer: Footer) -> Result<(), ImageError> {
        let Kind::Dynamic { table, .. } = &self.kind else {
            return Ok(());
        };
        let bytes = footer.to_bytes();
        let end = table.data_end;
        self.write(&bytes, 0)?;
        self.flush_file()?;
        self.write(&bytes, end)?;
        self.cut(end + SECTOR)?;
        self.flush_file()?;
        self.take(footer);
        Ok(())
    }

    fn shrink_dynamic(&mut self, footer: Footer) -> Result<(), ImageError> {
        let Kind::Dynamic { header, table } = &self.kind else {
            return Ok(());
        };
        if header.is_differencing {
            self.poisoned = false;
            return Err(ImageError::unsupported(
                OBJECT,
                "a differencing disk is not made smaller; merge it into its parent first",
            ));
        }
        let needed = footer.current_size.div_ceil(u64::from(header.block_size)) as usize;
        let stride = header.stride();
        let structures = table.table_end.max(self.footer.data_offset + HEADER_LENGTH);
        self.write_footers(footer)?;
        let Kind::Dynamic { header, table } = &mut self.kind else {
            return Ok(());
        };
        for index in needed..table.entries.len() {
            table.entries[index] = ABSENT;
            table.dirty.insert(index as u64 * 4 / SECTOR);
        }
        table.write_dirty(self.file.as_ref(), header)?;
        table.entries.truncate(needed);
        let last = table.entries.iter().filter(|entry| **entry != ABSENT).max();
        table.data_end = last
            .map_or(0, |entry| u64::from(*entry) * SECTOR + stride)
            .max(structures)
            .next_multiple_of(SECTOR);
        let end = table.data_end;
        self.flush_file()?;
        // A footer at the new end, then nothing behind it.
        self.write(&self.footer.to_bytes(), end)?;
        self.flush_file()?;
        self.cut(end + SECTOR)?;
        self.flush_file()
    }

    fn check_empty(&self, from: u64, to: u64) -> Result<(), ImageError> {
        let mut buffer = vec![0; 1 << 20];
        for extent in self.allocated(from..to) {
            let mut at = extent.offset;
            while at < extent.end() {
                let part = &mut buffer[..(extent.end() - at).min(1 << 20) as usize];
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
    fn zero_behind_end(&self, old: u64) -> Result<(), ImageError> {
        let Kind::Dynamic { header, table } = &self.kind else {
            return Ok(());
        };
        let block = u64::from(header.block_size);
        let (index, within) = ((old / block) as usize, old % block);
        if within == 0 || table.entries[index] == ABSENT {
            return Ok(());
        }
        let at = u64::from(table.entries[index]) * SECTOR + header.bitmap_length();
        self.write(&vec![0; (block - within) as usize], at + within)?;
        self.flush_file()
    }
}

fn out_of_range(cause: String) -> ImageError {
    ImageError::new(ErrorKind::OutOfRange, OBJECT, cause)
}
