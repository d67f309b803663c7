//! Writing a VHD. There is no log, so order keeps it whole: data durable, then bitmaps, then the
//! table; all of it in `flush`.
//!
//! A dynamic disk's blocks are written with full bitmaps, because what isn't there reads as zeroes
//! anyway. In a differencing disk a bitmap says which sectors hide the parent's: changed ones wait
//! in memory until the data they speak of is durable.

use super::dynamic::{ABSENT, DynamicHeader};
use super::footer::SECTOR;
use super::read::{bit, locate};
use super::{Kind, VhdImage};
use crate::zero::is_zero;
use crate::{Access, ErrorKind, ImageError};

impl VhdImage {
    pub(crate) fn write_at(&mut self, data: &[u8], offset: u64) -> Result<(), ImageError> {
        self.writable()?;
        let Kind::Dynamic { header, .. } = &self.kind else {
            return self.write_file(data, offset);
        };
        let header = header.clone();
        let mut rest = data;
        let mut offset = offset;
        while !rest.is_empty() {
            let (index, within, part) = locate(&header, offset, rest.len() as u64);
            let (now, later) = rest.split_at(part);
            if header.is_differencing {
                self.write_sectors(&header, index, now, offset)?;
            } else if let Some(block) = self.block_for_write(&header, index, now)? {
                self.write_file(now, block + header.bitmap_length() + within)?;
            }
            rest = later;
            offset += part as u64;
        }
        Ok(())
    }

    fn write_file(&self, data: &[u8], at: u64) -> Result<(), ImageError> {
        self.file
            .write_at(data, at)
            .map_err(|e| ImageError::io("VHD data", at, "write", e))
    }

    fn entry(&self, index: usize) -> u32 {
        match &self.kind {
            Kind::Dynamic { table, .. } => table.entries[index],
            Kind::Fixed => ABSENT,
        }
    }

    /// Where block `index` of a dynamic disk lies, allocated if it has to be; `None` when zeroes
    /// are written to a block that isn't there and reads as zeroes already.
    fn block_for_write(
        &mut self,
        header: &DynamicHeader,
        index: usize,
        data: &[u8],
    ) -> Result<Option<u64>, ImageError> {
        let entry = self.entry(index);
        if entry != ABSENT {
            let at = u64::from(entry) * SECTOR;
            self.complete_block(header, index, at)?;
            return Ok(Some(at));
        }
        if is_zero(data) {
            return Ok(None);
        }
        let at = self.allocate(header)?;
        let bitmap = vec![0xff; header.bitmap_length() as usize];
        self.file
            .write_at(&bitmap, at)
            .map_err(|e| ImageError::io("VHD block", at, "allocate", e))?;
        self.name_block(header, index, at);
        Ok(Some(at))
    }

    /// Room for one more block behind all others, zero; the table doesn't name it yet.
    fn allocate(&mut self, header: &DynamicHeader) -> Result<u64, ImageError> {
        let Kind::Dynamic { table, .. } = &self.kind else {
            return Err(ImageError::unsupported("VHD", "a fixed disk has no blocks"));
        };
        let at = table.data_end;
        let end = at + header.stride();
        if u32::try_from(at / SECTOR).is_ok_and(|sector| sector != ABSENT) {
            self.extend(at, end)?;
            return Ok(at);
        }
        Err(ImageError::new(
            ErrorKind::OutOfRange,
            "VHD block",
            "the file has no sector number left",
        ))
    }

    /// Makes the file zero from `at` to `end`, with the footer behind. Cutting first makes it
    /// zero whatever a power cut left there. A failure loses nothing: nobody names the place yet.
    pub(super) fn extend(&self, at: u64, end: u64) -> Result<(), ImageError> {
        let footer = self.footer.to_bytes();
        let file = &self.file;
        file.set_len(at)
            .and_then(|()| file.set_len(end + SECTOR))
            .and_then(|()| file.write_at(&footer, end))
            .map_err(|e| ImageError::io("VHD block", at, "allocate", e))
    }

    fn name_block(&mut self, header: &DynamicHeader, index: usize, at: u64) {
        if let Kind::Dynamic { table, .. } = &mut self.kind {
            table.entries[index] = (at / SECTOR) as u32;
            table.dirty.insert(index as u64 * 4 / SECTOR);
            table.data_end = at + header.stride();
        }
    }

    /// Turns a block with sectors marked as never written into a whole one, so that writes need
    /// not look at its bitmap again: zero those sectors, make that durable, mark them.
    fn complete_block(
        &self,
        header: &DynamicHeader,
        index: usize,
        at: u64,
    ) -> Result<(), ImageError> {
        let bitmap = self.read_bitmap(header, index, at)?;
        if is_full(&bitmap, header) {
            return Ok(());
        }
        let fail = |e| ImageError::io("VHD sector bitmap", at, "complete", e);
        for sector in 0..u64::from(header.block_size) / SECTOR {
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

    /// Writes a part of one block of a differencing disk; sectors that are written in part are
    /// filled up with what they read as first.
    fn write_sectors(
        &mut self,
        header: &DynamicHeader,
        index: usize,
        data: &[u8],
        offset: u64,
    ) -> Result<(), ImageError> {
        let end = offset + data.len() as u64;
        let (start, stop) = (offset - offset % SECTOR, end.next_multiple_of(SECTOR));
        let mut filled = Vec::new();
        let mut bytes = data;
        if (start, stop) != (offset, end) {
            filled = vec![0; (stop - start) as usize];
            let length = filled.len();
            crate::layer::read(self, &mut filled[..SECTOR as usize], start)?;
            if stop - start > SECTOR {
                crate::layer::read(self, &mut filled[length - SECTOR as usize..], stop - SECTOR)?;
            }
            filled[(offset - start) as usize..(end - start) as usize].copy_from_slice(data);
        }
        if !filled.is_empty() {
            bytes = &filled;
        }
        let at = match self.entry(index) {
            ABSENT => {
                let at = self.allocate(header)?;
                self.bitmaps
                    .insert(index, vec![0; header.bitmap_length() as usize]);
                self.name_block(header, index, at);
                at
            }
            sector => u64::from(sector) * SECTOR,
        };
        let within = start % u64::from(header.block_size);
        self.write_file(bytes, at + header.bitmap_length() + within)?;
        let mut bitmap = self.read_bitmap(header, index, at)?;
        let mut changed = false;
        for sector in within / SECTOR..(within + bytes.len() as u64) / SECTOR {
            changed |= !bit(&bitmap, sector);
            bitmap[(sector / 8) as usize] |= 0x80 >> (sector % 8);
        }
        if changed {
            self.bitmaps.insert(index, bitmap);
        }
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> Result<(), ImageError> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        self.writable()?;
        self.flush_file()?;
        if !self.bitmaps.is_empty() {
            self.poisoned = true;
            for (index, bitmap) in std::mem::take(&mut self.bitmaps) {
                let at = u64::from(self.entry(index)) * SECTOR;
                self.file
                    .write_at(&bitmap, at)
                    .map_err(|e| ImageError::io("VHD sector bitmap", at, "write", e))?;
            }
            self.flush_file()?;
            self.poisoned = false;
        }
        if let Kind::Dynamic { header, table } = &mut self.kind
            && !table.dirty.is_empty()
        {
            self.poisoned = true;
            table.write_dirty(self.file.as_ref(), header)?;
            self.flush_file()?;
            self.poisoned = false;
        }
        Ok(())
    }

    pub(super) fn flush_file(&self) -> Result<(), ImageError> {
        self.file
            .flush()
            .map_err(|e| ImageError::io("VHD", 0, "flush", e))
    }

    pub(crate) fn close(mut self) -> Result<(), ImageError> {
        self.flush()
    }

    pub(super) fn writable(&self) -> Result<(), ImageError> {
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
}

fn is_full(bitmap: &[u8], header: &DynamicHeader) -> bool {
    // Block sizes are powers of two from 64 KiB: a whole number of bitmap bytes.
    let used = (u64::from(header.block_size) / SECTOR / 8) as usize;
    bitmap[..used].iter().all(|byte| *byte == 0xff)
}
