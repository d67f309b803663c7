//! Writing a VHDX: blocks and bitmaps are allocated in memory, made durable by `flush`.
//!
//! ```text
//!   block here ─► pwrite
//!   reads as zeroes ─► data? a block of zeroes at the file's end, data into it
//!   the parent's ─┬► written as a whole ─► as above, or zero without a block
//!                 └► in part ─► block and bitmap; the first and last sector are filled up from
//!                               the parent; bits are set in memory
//!   flush: file flushed ─► changed bitmap pages, then changed BAT sectors, through the log
//! ```
//!
//! Bitmap pages go into the log no later than the BAT entry that makes them count: a power cut in
//! between shows the parent's sectors, which is what was flushed last.

use uuid::Uuid;

use super::VhdxImage;
use super::bat::Block;
use super::bitmap::BITMAP_LENGTH;
use super::layout::MIB;
use super::log::LogWriter;
use crate::zero::is_zero;
use crate::{Access, ErrorKind, ImageError};

impl VhdxImage {
    pub(crate) fn write_at(&mut self, data: &[u8], offset: u64) -> Result<(), ImageError> {
        self.writable()?;
        self.announce()?;
        let mut rest = data;
        let mut offset = offset;
        while !rest.is_empty() {
            let (found, run) = self.structure.bat.locate(offset, rest.len() as u64);
            let part = match found {
                Block::Full(_) => run as usize,
                _ => self.structure.bat.block_of(offset, rest.len()).2,
            };
            let (now, later) = rest.split_at(part);
            match found {
                Block::Full(place) => self.write_file(now, place)?,
                // Zeroes written to a block that reads as zeroes change nothing.
                Block::Zero if is_zero(now) => {}
                Block::Zero => self.write_new_block(now, offset)?,
                Block::Parent => self.write_over_parent(now, offset)?,
                Block::Partial(_) => self.write_sectors(now, offset)?,
            }
            rest = later;
            offset += part as u64;
        }
        Ok(())
    }

    fn write_file(&self, data: &[u8], place: u64) -> Result<(), ImageError> {
        self.file
            .write_at(data, place)
            .map_err(|e| ImageError::io("VHDX block", place, "write", e))
    }

    /// A block that is wholly in this file afterwards. The table learns of it when the data is
    /// there: a failed write must not show zeroes where something else was.
    fn write_new_block(&mut self, data: &[u8], offset: u64) -> Result<(), ImageError> {
        let (block, within, _) = self.structure.bat.block_of(offset, data.len());
        let place = self.allocate(u64::from(self.structure.metadata.block_size))?;
        self.write_file(data, place + within)?;
        self.structure.bat.set_block(block, Block::Full(place));
        Ok(())
    }

    fn write_over_parent(&mut self, data: &[u8], offset: u64) -> Result<(), ImageError> {
        let (block, within, _) = self.structure.bat.block_of(offset, data.len());
        if within == 0 && data.len() as u64 >= self.structure.bat.used(block) {
            if is_zero(data) {
                self.structure.bat.set_block(block, Block::Zero);
                return Ok(());
            }
            return self.write_new_block(data, offset);
        }
        if self.structure.bat.bitmap_place(block).is_none() {
            let place = self.allocate(BITMAP_LENGTH)?;
            self.bitmaps.forget(place);
            self.structure.bat.set_bitmap(block, place);
        }
        let place = self.allocate(u64::from(self.structure.metadata.block_size))?;
        // Bits may be left from a time when the block was here: they must not count again.
        let block_size = u64::from(self.structure.metadata.block_size);
        self.mark(block * block_size, block_size, false)?;
        self.structure.bat.set_block(block, Block::Partial(place));
        self.write_sectors(data, offset)
    }

    /// Writes into a partially present block; sectors that are written in part are filled up first.
    fn write_sectors(&mut self, data: &[u8], offset: u64) -> Result<(), ImageError> {
        let size = u64::from(self.structure.metadata.logical_sector_size);
        let end = offset + data.len() as u64;
        let (start, stop) = (offset - offset % size, end.next_multiple_of(size));
        let mut filled = Vec::new();
        let mut bytes = data;
        if (start, stop) != (offset, end) {
            filled = vec![0; (stop - start) as usize];
            let length = filled.len();
            crate::layer::read(self, &mut filled[..size as usize], start)?;
            if stop - start > size {
                crate::layer::read(self, &mut filled[length - size as usize..], stop - size)?;
            }
            filled[(offset - start) as usize..(end - start) as usize].copy_from_slice(data);
        }
        if !filled.is_empty() {
            bytes = &filled;
        }
        let (block, within, _) = self.structure.bat.block_of(start, bytes.len());
        if let Block::Partial(place) = self.structure.bat.block(block) {
            self.write_file(bytes, place + within)?;
        }
        self.mark(start, stop - start, true)
    }

    /// Marks whole sectors of one block as being in this file, or not.
    fn mark(&mut self, offset: u64, length: u64, present: bool) -> Result<(), ImageError> {
        let (place, first) = self.bitmap_of(offset)?;
        let count = length / u64::from(self.structure.metadata.logical_sector_size);
        let file = self.file.as_ref();
        self.bitmaps
            .mark(place, first, count, present, &|page, at| {
                file.read_at(page, at)
                    .map_err(|e| ImageError::io("sector bitmap", at, "read", e))
            })
    }

    /// Before the first change of a session, readers who remember the guids must see new ones.
    pub(super) fn announce(&mut self) -> Result<(), ImageError> {
        if self.announced {
            return Ok(());
        }
        let (session, data) = (Uuid::new_v4(), Uuid::new_v4());
        // A file whose log lies nowhere gets one.
        let new_log = match self.structure.headers.log {
            Some(log) if log.end() <= self.file_length => None,
            _ => Some(self.allocate(MIB)?),
        };
        self.structure
            .headers
            .update(self.file.as_ref(), |header| {
                header.file_write_guid = session;
                header.data_write_guid = data;
                if let Some(place) = new_log {
                    header.log_offset = place;
                    header.log_length = MIB as u32;
                }
            })?;
        self.announced = true;
        Ok(())
    }

    /// Grows the file by zeroes; the place is a multiple of 1 MiB.
    pub(super) fn allocate(&mut self, length: u64) -> Result<u64, ImageError> {
        let place = self.file_length.next_multiple_of(MIB);
        let end = place + length;
        self.file
            .set_len(end)
            .map_err(|e| ImageError::io("VHDX block", place, "allocate", e))?;
        self.file_length = end;
        Ok(place)
    }

    pub(crate) fn flush(&mut self) -> Result<(), ImageError> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        self.writable()?;
        // After a failed flush nobody knows what the disk holds; after a failed log entry neither.
        self.poisoned = true;
        self.flush_file()?;
        let capacity = LogWriter::capacity(&self.structure.headers.current);
        let mut first = true;
        while self.bitmaps.is_dirty() || self.structure.bat.is_dirty() {
            if !first {
                self.flush_file()?;
            }
            first = false;
            let mut sectors = self.bitmaps.take_dirty(capacity);
            let room = capacity - sectors.len();
            sectors.extend(self.structure.bat.take_dirty(room));
            self.commit(&sectors)?;
        }
        self.poisoned = false;
        Ok(())
    }

    /// One log entry, durable, then the same sectors in their place. These need no flush of their
    /// own: the next one comes before the entry stops being the log's newest.
    pub(super) fn commit(&mut self, sectors: &[(u64, Vec<u8>)]) -> Result<(), ImageError> {
        let file = self.file.as_ref();
        let is_new = self.log.is_none();
        let log = self
            .log
            .get_or_insert_with(|| LogWriter::new(&self.structure.headers.current));
        log.append(file, sectors, self.file_length)?;
        file.flush()
            .map_err(|e| ImageError::io("log entry", 0, "flush", e))?;
        if is_new {
            // Only now, so that a log guid in the headers always finds a valid entry.
            let guid = log.guid;
            self.structure
                .headers
                .update(file, |header| header.log_guid = guid)?;
        }
        for (at, sector) in sectors {
            file.write_at(sector, *at)
                .map_err(|e| ImageError::io("BAT", *at, "write", e))?;
        }
        Ok(())
    }

    pub(super) fn flush_file(&self) -> Result<(), ImageError> {
        self.file
            .flush()
            .map_err(|e| ImageError::io("VHDX", 0, "flush", e))
    }

    /// Makes everything durable and declares the log empty.
    pub(super) fn settle(&mut self) -> Result<(), ImageError> {
        self.flush()?;
        if self.log.take().is_some() {
            self.flush_file()?;
            self.structure
                .headers
                .update(self.file.as_ref(), |header| header.log_guid = Uuid::nil())?;
        }
        Ok(())
    }

    pub(crate) fn close(mut self) -> Result<(), ImageError> {
        self.settle()
    }

    pub(super) fn writable(&self) -> Result<(), ImageError> {
        if self.access == Access::ReadOnly {
            return Err(ImageError::new(
                ErrorKind::ReadOnly,
                "VHDX",
                "opened for reading only",
            ));
        }
        if self.poisoned {
            return Err(ImageError::new(
                ErrorKind::Poisoned,
                "VHDX",
                "an earlier write failed half-way; open it again",
            ));
        }
        Ok(())
    }
}
