//! Reading a closed replica log.

use super::format::{self, RawEntry};
use super::{HrlError, HrlErrorKind, HrlInfo};
use crate::ReadAt;

/// The most that is read at once; Hyper-V's writes are far smaller.
const MAX_READ: u32 = 64 << 20;

/// One write to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HrlEntry {
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes; not zero.
    pub length: u32,
    /// One's complement of the byte sum of the data; 0: the writer left none.
    pub data_checksum: u32,
    /// Seconds since 2000-01-01 UTC.
    pub time: u32,
    /// Where the data is in the file.
    file_offset: u64,
}

impl HrlEntry {
    /// Whether the data is known to be zero without reading it. `false` says nothing.
    pub fn is_zero(&self) -> bool {
        self.raw().is_zero()
    }

    fn raw(&self) -> RawEntry {
        RawEntry {
            offset: self.offset,
            length: self.length,
            time: self.time,
            data_checksum: self.data_checksum,
        }
    }
}

/// Reads a closed log. Opening verifies the header and all metadata, [`HrlReader::read`] the data.
pub struct HrlReader<R> {
    file: R,
    info: HrlInfo,
    entries: Vec<HrlEntry>,
}

impl<R: ReadAt> HrlReader<R> {
    /// Opens a log; [`HrlErrorKind::NotClosed`] when its writer did not finish.
    pub fn open(file: R) -> Result<Self, HrlError> {
        let mut raw = vec![0u8; format::HEADER_SIZE as usize];
        file.read_exact_at(&mut raw, 0)?;
        let header = format::decode_header(&raw)?;
        let length = file.len()?;
        if header.eol > length || header.eol < format::HEADER_SIZE + header.metadata_size {
            return Err(HrlError::corrupt("end of log is outside the file"));
        }
        let blocks = find_metadata(&file, header.eol, header.metadata_size)?;
        let entries = read_metadata(&file, &blocks, header.metadata_size)?;
        if entries.len() as u64 != header.entries {
            return Err(HrlError::corrupt("the header counts other entries"));
        }
        Ok(HrlReader {
            file,
            info: header.info,
            entries,
        })
    }

    /// What the log says about itself.
    pub fn info(&self) -> &HrlInfo {
        &self.info
    }

    /// The writes, oldest first; later ones win where they overlap.
    pub fn entries(&self) -> &[HrlEntry] {
        &self.entries
    }

    /// Whether every write lies inside a disk of this size; the log itself does not know it.
    pub fn check_fits(&self, disk_size_bytes: u64) -> Result<(), HrlError> {
        let end = |entry: &HrlEntry| entry.offset.saturating_add(u64::from(entry.length));
        match self.entries.iter().find(|e| end(e) > disk_size_bytes) {
            None => Ok(()),
            Some(entry) => Err(HrlError::corrupt(format!(
                "{} bytes at {} are outside its disk of {disk_size_bytes} bytes",
                entry.length, entry.offset
            ))),
        }
    }

    /// Data of one entry, verified where the writer left a checksum; at most 64 MiB, and never
    /// more than the file is long.
    pub fn read(&self, entry: &HrlEntry) -> Result<Vec<u8>, HrlError> {
        if entry.length > MAX_READ {
            return Err(HrlError::new(
                HrlErrorKind::Unsupported,
                format!("an entry of {} bytes is too long to read", entry.length),
            ));
        }
        let mut data = vec![0u8; entry.length as usize];
        self.file.read_exact_at(&mut data, entry.file_offset)?;
        if entry.data_checksum != 0 && format::checksum(&data) != entry.data_checksum {
            return Err(HrlError::corrupt(format!(
                "data of the entry at disk offset {} does not verify",
                entry.offset
            )));
        }
        Ok(data)
    }
}

fn read_block<R: ReadAt>(file: &R, at: u64, metadata_size: u64) -> Result<Vec<u8>, HrlError> {
    let mut block = vec![0u8; metadata_size as usize];
    file.read_exact_at(&mut block, at)?;
    Ok(block)
}

/// First pass: walks the metadata blocks back from the end; gives their places, first one first.
fn find_metadata<R: ReadAt>(file: &R, eol: u64, size: u64) -> Result<Vec<u64>, HrlError> {
    let mut at = eol - size;
    let mut blocks = vec![at];
    loop {
        let block = read_block(file, at, size)?;
        let (back, _) = format::decode_metadata(&block)?;
        if back == 0 {
            blocks.reverse();
            return Ok(blocks);
        }
        // Blocks do not overlap, so the walk is strictly backwards and ends.
        at = at
            .checked_sub(back)
            .filter(|previous| back >= size && *previous >= format::HEADER_SIZE)
            .ok_or_else(|| HrlError::corrupt("metadata chain leaves the file"))?;
        blocks.push(at);
    }
}

/// Second pass: data follows the header or the block before, without gaps, up to its own block.
fn read_metadata<R: ReadAt>(
    file: &R,
    blocks: &[u64],
    size: u64,
) -> Result<Vec<HrlEntry>, HrlError> {
    let mut entries = Vec::new();
    let mut data_at = format::HEADER_SIZE;
    for at in blocks {
        let block = read_block(file, *at, size)?;
        let (_, raw) = format::decode_metadata(&block)?;
        for raw in raw.chunks_exact(format::ENTRY_SIZE) {
            let raw = format::decode_entry(raw)?;
            if raw.length == 0 || raw.offset.checked_add(u64::from(raw.length)).is_none() {
                return Err(HrlError::corrupt("an entry lies on no disk"));
            }
            let file_offset = data_at;
            data_at += u64::from(raw.length);
            if data_at > *at {
                return Err(HrlError::corrupt("data runs into its metadata block"));
            }
            entries.push(HrlEntry {
                offset: raw.offset,
                length: raw.length,
                data_checksum: raw.data_checksum,
                time: raw.time,
                file_offset,
            });
        }
        if data_at != *at {
            return Err(HrlError::corrupt(
                "data and entries of a group differ in length",
            ));
        }
        data_at = at + size;
    }
    Ok(entries)
}
