//! Writing a replica log.

use std::io::{self, BufWriter, Seek, SeekFrom, Write};

use super::format::{self, RawEntry};
use super::{HrlError, HrlErrorKind, HrlInfo, MAX_ENTRY};

/// What [`HrlWriter`] needs of a file.
pub trait HrlFile: Write + Seek {
    /// Makes everything written so far durable.
    fn sync(&mut self) -> io::Result<()>;
}

impl HrlFile for std::fs::File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

impl HrlFile for io::Cursor<Vec<u8>> {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<F: HrlFile> HrlFile for BufWriter<F> {
    fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        self.get_mut().sync()
    }
}

/// Writes a log; not usable before [`HrlWriter::close`] returned.
pub struct HrlWriter<F> {
    file: F,
    info: HrlInfo,
    disk_size_bytes: u64,
    at: u64,
    previous_metadata: u64,
    block: Vec<u8>,
    entries: u64,
}

impl<F: HrlFile> HrlWriter<F> {
    /// Starts a log in an empty file, for a disk of this virtual size.
    pub fn create(mut file: F, info: HrlInfo, disk_size_bytes: u64) -> Result<Self, HrlError> {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&format::encode_header(&info, 0, 0))?;
        // Hyper-V begins the chain with a block that has no entries; a reader may count on it.
        file.write_all(&format::encode_metadata(0, &[]))?;
        Ok(HrlWriter {
            file,
            info,
            disk_size_bytes,
            at: format::HEADER_SIZE + format::METADATA_SIZE,
            previous_metadata: format::HEADER_SIZE,
            block: Vec::with_capacity(format::ENTRIES_PER_BLOCK * format::ENTRY_SIZE),
            entries: 0,
        })
    }

    /// Appends one write of the disk. `time_unix_ms` is when it happened (kept in whole seconds).
    pub fn append(&mut self, offset: u64, data: &[u8], time_unix_ms: i64) -> Result<(), HrlError> {
        self.check(offset, data.len() as u64)?;
        let mut offset = offset;
        for piece in data.chunks(MAX_ENTRY) {
            self.file.write_all(piece)?;
            self.entry(
                offset,
                piece.len() as u32,
                format::checksum(piece),
                time_unix_ms,
            )?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Appends a write of zeroes, left as a hole in the file.
    pub fn zero(&mut self, offset: u64, length: u64, time_unix_ms: i64) -> Result<(), HrlError> {
        self.check(offset, length)?;
        let end = offset + length;
        let mut offset = offset;
        while offset < end {
            let piece = (end - offset).min(MAX_ENTRY as u64) as u32;
            // Metadata always follows, so the file never ends in a hole.
            self.file
                .seek(SeekFrom::Start(self.at + u64::from(piece)))?;
            self.entry(offset, piece, format::checksum(&[]), time_unix_ms)?;
            offset += u64::from(piece);
        }
        Ok(())
    }

    /// Bytes in the file so far.
    pub fn size_bytes(&self) -> u64 {
        self.at
    }

    /// Ends the last group, makes all durable, then marks the log closed and makes that durable.
    /// After an error the log is not closed, or its outcome is unknown: a reader can tell.
    pub fn close(mut self) -> Result<F, HrlError> {
        if !self.block.is_empty() {
            self.end_group()?;
        }
        self.file.flush()?;
        self.file.sync()?;
        self.file.seek(SeekFrom::Start(0))?;
        let header = format::encode_header(&self.info, self.at, self.entries);
        self.file.write_all(&header)?;
        self.file.flush()?;
        self.file.sync()?;
        Ok(self.file)
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), HrlError> {
        let inside = offset
            .checked_add(length)
            .is_some_and(|end| length > 0 && end <= self.disk_size_bytes);
        if inside {
            return Ok(());
        }
        Err(HrlError::new(
            HrlErrorKind::Invalid,
            format!(
                "{length} bytes at {offset} are outside the disk of {} bytes",
                self.disk_size_bytes
            ),
        ))
    }

    fn entry(
        &mut self,
        offset: u64,
        length: u32,
        data_checksum: u32,
        time_unix_ms: i64,
    ) -> Result<(), HrlError> {
        self.at += u64::from(length);
        self.block
            .extend_from_slice(&format::encode_entry(&RawEntry {
                offset,
                length,
                time: format::seconds_2000(time_unix_ms),
                data_checksum,
            }));
        self.entries += 1;
        if self.block.len() == format::ENTRIES_PER_BLOCK * format::ENTRY_SIZE {
            self.end_group()?;
        }
        Ok(())
    }

    fn end_group(&mut self) -> Result<(), HrlError> {
        let back = self.at - self.previous_metadata;
        self.file
            .write_all(&format::encode_metadata(back, &self.block))?;
        self.previous_metadata = self.at;
        self.at += format::METADATA_SIZE;
        self.block.clear();
        Ok(())
    }
}
