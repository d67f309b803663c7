//! Writer and reader of MS-HRL files: changes of one disk, data first, metadata behind it.
//!
//! ```text
//! | header 4096 | data of group 1 | metadata 4096 | data of group 2 | metadata 4096 | <- EOL
//! ```
//!
//! All fields little endian and packed. The metadata block of a group holds a 32-byte header
//! (distance back to the block before, valid entries, checksum) and up to 127 entries of 32 bytes.
//! While the log is open the header says EOL = 0; closing writes the last metadata block, syncs,
//! and only then rewrites the header, so a log is either closed and whole or refused as
//! [`HrlErrorKind::NotClosed`]. A log names its predecessor (`previous_id`) and the state of the
//! disk that it belongs to (`data_write_guid`).

use std::io::{self, Seek, SeekFrom, Write};

use uuid::Uuid;

use crate::ReadAt;

const HEADER_SIZE: u64 = 4096;
const METADATA_SIZE: u64 = 4096;
const ENTRY_SIZE: usize = 32;
const ENTRIES_PER_BLOCK: usize = 127;
const MAGIC: &[u8; 8] = b"msctlog ";
const VERSION: u32 = 0x0002_0000;
/// Creator: ours, so that a reader can tell who wrote the log.
const CREATOR: &[u8; 4] = b"ct  ";
const CREATOR_VERSION: u32 = 1;
/// Seconds between 1970-01-01 and 2000-01-01.
const EPOCH_2000: i64 = 946_684_800;
const OPERATION_WRITE: u8 = 1;
const MAX_METADATA_SIZE: u32 = 1 << 20;

/// What went wrong with a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HrlErrorKind {
    /// Reading or writing failed.
    Io,
    /// The log was never closed (its writer was cut off): not usable.
    NotClosed,
    /// Bytes do not verify.
    Corrupt,
    /// A version or operation that this reader does not know.
    Unsupported,
    /// The caller's request is out of bounds.
    Invalid,
}

/// An error of a log file.
#[derive(Debug, thiserror::Error)]
#[error("replication log: {message}")]
pub struct HrlError {
    kind: HrlErrorKind,
    message: String,
    #[source]
    source: Option<io::Error>,
}

impl HrlError {
    /// What went wrong.
    pub fn kind(&self) -> HrlErrorKind {
        self.kind
    }

    fn new(kind: HrlErrorKind, message: impl Into<String>) -> Self {
        HrlError {
            kind,
            message: message.into(),
            source: None,
        }
    }

    fn corrupt(message: impl Into<String>) -> Self {
        Self::new(HrlErrorKind::Corrupt, message)
    }
}

impl From<io::Error> for HrlError {
    fn from(source: io::Error) -> Self {
        let (kind, message) = match source.kind() {
            io::ErrorKind::UnexpectedEof => (HrlErrorKind::Corrupt, "file is shorter than it says"),
            _ => (HrlErrorKind::Io, "input/output failed"),
        };
        HrlError {
            kind,
            message: message.to_owned(),
            source: Some(source),
        }
    }
}

/// What a log says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HrlInfo {
    /// This log.
    pub id: Uuid,
    /// The log before it of the same disk; nil for the first.
    pub previous_id: Uuid,
    /// State of the disk that the log belongs to.
    pub data_write_guid: Uuid,
    /// Virtual size of the disk, bytes.
    pub disk_size_bytes: u64,
    /// Creation time, milliseconds since the Unix epoch (the file keeps whole seconds).
    pub created_unix_ms: i64,
}

/// One write to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HrlEntry {
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
    /// One's complement of the byte sum of the data.
    pub data_checksum: u32,
    /// Seconds since 2000-01-01 UTC.
    pub time: u32,
    /// Where the data is in the file.
    file_offset: u64,
}

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

/// Writes a log; not usable before [`HrlWriter::close`] returned.
pub struct HrlWriter<F> {
    file: F,
    info: HrlInfo,
    at: u64,
    previous_metadata: u64,
    block: Vec<u8>,
    entries: u64,
}

impl<F: HrlFile> HrlWriter<F> {
    /// Starts a log in an empty file.
    pub fn create(mut file: F, info: HrlInfo) -> Result<Self, HrlError> {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&header(&info, 0, 0))?;
        Ok(HrlWriter {
            file,
            info,
            at: HEADER_SIZE,
            previous_metadata: 0,
            block: Vec::with_capacity(ENTRIES_PER_BLOCK * ENTRY_SIZE),
            entries: 0,
        })
    }

    /// Appends one write of the disk. `time_unix_ms` is when it happened (kept in whole seconds).
    pub fn append(&mut self, offset: u64, data: &[u8], time_unix_ms: i64) -> Result<(), HrlError> {
        let inside = offset
            .checked_add(data.len() as u64)
            .is_some_and(|end| end <= self.info.disk_size_bytes);
        let length = u32::try_from(data.len())
            .ok()
            .filter(|l| *l > 0 && inside)
            .ok_or_else(|| {
                HrlError::new(
                    HrlErrorKind::Invalid,
                    format!("{} bytes at {offset} are outside the disk", data.len()),
                )
            })?;
        self.file.write_all(data)?;
        self.at += u64::from(length);
        let mut entry = [0u8; ENTRY_SIZE];
        entry[0..8].copy_from_slice(&offset.to_le_bytes());
        entry[12..16].copy_from_slice(&length.to_le_bytes());
        entry[16..20].copy_from_slice(&seconds_2000(time_unix_ms).to_le_bytes());
        entry[20] = OPERATION_WRITE;
        entry[21..25].copy_from_slice(&checksum(data).to_le_bytes());
        entry[25] = 1; // location: the data is in this file
        let sum = checksum(&entry);
        entry[8..12].copy_from_slice(&sum.to_le_bytes());
        self.block.extend_from_slice(&entry);
        self.entries += 1;
        if self.block.len() == ENTRIES_PER_BLOCK * ENTRY_SIZE {
            self.end_group()?;
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
        if !self.block.is_empty() || self.previous_metadata == 0 {
            self.end_group()?;
        }
        self.file.flush()?;
        self.file.sync()?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file
            .write_all(&header(&self.info, self.at, self.entries))?;
        self.file.flush()?;
        self.file.sync()?;
        Ok(self.file)
    }

    fn end_group(&mut self) -> Result<(), HrlError> {
        let mut block = vec![0u8; METADATA_SIZE as usize];
        let back = match self.previous_metadata {
            0 => 0,
            previous => self.at - previous,
        };
        let count = (self.block.len() / ENTRY_SIZE) as u32;
        block[0..8].copy_from_slice(&back.to_le_bytes());
        block[8..12].copy_from_slice(&count.to_le_bytes());
        block[32..32 + self.block.len()].copy_from_slice(&self.block);
        let sum = checksum(&block);
        block[12..16].copy_from_slice(&sum.to_le_bytes());
        self.file.write_all(&block)?;
        self.previous_metadata = self.at;
        self.at += METADATA_SIZE;
        self.block.clear();
        Ok(())
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
        let mut raw = vec![0u8; HEADER_SIZE as usize];
        file.read_exact_at(&mut raw, 0)?;
        if &raw[0..7] != b"msctlog" {
            return Err(HrlError::corrupt("no replication log (magic)"));
        }
        if get_u32(&raw, 8) != VERSION {
            return Err(HrlError::new(
                HrlErrorKind::Unsupported,
                format!("version {:#010x} is unknown", get_u32(&raw, 8)),
            ));
        }
        verify(&raw, 40, "header")?;
        let eol = get_u64(&raw, 44);
        if eol == 0 {
            return Err(HrlError::new(HrlErrorKind::NotClosed, "was not closed"));
        }
        let metadata_size = get_u32(&raw, 56);
        if !(64..=MAX_METADATA_SIZE).contains(&metadata_size) {
            return Err(HrlError::corrupt("impossible metadata size"));
        }
        let length = file.len()?;
        if eol > length || eol < HEADER_SIZE + u64::from(metadata_size) {
            return Err(HrlError::corrupt("end of log is outside the file"));
        }
        let info = HrlInfo {
            id: get_uuid(&raw, 60),
            previous_id: get_uuid(&raw, 76),
            data_write_guid: get_uuid(&raw, 110),
            disk_size_bytes: get_u64(&raw, 32),
            created_unix_ms: unix_ms(get_u32(&raw, 12)),
        };
        let total = get_u64(&raw, 96);
        let entries = read_metadata(&file, &info, eol, u64::from(metadata_size), total)?;
        Ok(HrlReader {
            file,
            info,
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

    /// Data of one entry, verified. The allocation is bounded by the file's length.
    pub fn read(&self, entry: &HrlEntry) -> Result<Vec<u8>, HrlError> {
        let mut data = vec![0u8; entry.length as usize];
        self.file.read_exact_at(&mut data, entry.file_offset)?;
        if checksum(&data) != entry.data_checksum {
            return Err(HrlError::corrupt(format!(
                "data of the entry at disk offset {} does not verify",
                entry.offset
            )));
        }
        Ok(data)
    }
}

/// Walks the metadata blocks back from the end, then assigns data forward.
fn read_metadata<R: ReadAt>(
    file: &R,
    info: &HrlInfo,
    eol: u64,
    metadata_size: u64,
    total: u64,
) -> Result<Vec<HrlEntry>, HrlError> {
    let mut blocks = Vec::new();
    let mut at = eol - metadata_size;
    loop {
        let mut block = vec![0u8; metadata_size as usize];
        file.read_exact_at(&mut block, at)?;
        verify(&block, 12, "metadata")?;
        let back = get_u64(&block, 0);
        blocks.push((at, block));
        if back == 0 {
            break;
        }
        // Blocks do not overlap, so the walk is strictly backwards and ends.
        let Some(previous) = at
            .checked_sub(back)
            .filter(|p| back >= metadata_size && *p >= HEADER_SIZE)
        else {
            return Err(HrlError::corrupt("metadata chain leaves the file"));
        };
        at = previous;
    }
    let mut entries = Vec::new();
    let mut data_at = HEADER_SIZE;
    for (at, block) in blocks.iter().rev() {
        let count = get_u32(block, 8) as usize;
        if count > block.len() / ENTRY_SIZE - 1 {
            return Err(HrlError::corrupt(
                "more entries than a metadata block holds",
            ));
        }
        for raw in block[32..].chunks_exact(ENTRY_SIZE).take(count) {
            verify(raw, 8, "entry")?;
            if raw[20] != OPERATION_WRITE {
                return Err(HrlError::new(
                    HrlErrorKind::Unsupported,
                    format!("operation {} is unknown", raw[20]),
                ));
            }
            let entry = HrlEntry {
                offset: get_u64(raw, 0),
                length: get_u32(raw, 12),
                time: get_u32(raw, 16),
                data_checksum: get_u32(raw, 21),
                file_offset: data_at,
            };
            let end = entry.offset.checked_add(u64::from(entry.length));
            if end.is_none_or(|end| end > info.disk_size_bytes) {
                return Err(HrlError::corrupt("an entry lies outside the disk"));
            }
            data_at += u64::from(entry.length);
            if data_at > *at {
                return Err(HrlError::corrupt("data runs into its metadata block"));
            }
            entries.push(entry);
        }
        if data_at != *at {
            return Err(HrlError::corrupt(
                "data and entries of a group differ in length",
            ));
        }
        data_at = at + metadata_size;
    }
    if entries.len() as u64 != total {
        return Err(HrlError::corrupt("the header counts other entries"));
    }
    Ok(entries)
}

fn header(info: &HrlInfo, eol: u64, entries: u64) -> Vec<u8> {
    let mut raw = vec![0u8; HEADER_SIZE as usize];
    raw[0..8].copy_from_slice(MAGIC);
    raw[8..12].copy_from_slice(&VERSION.to_le_bytes());
    raw[12..16].copy_from_slice(&seconds_2000(info.created_unix_ms).to_le_bytes());
    raw[16..20].copy_from_slice(CREATOR);
    raw[20..24].copy_from_slice(&CREATOR_VERSION.to_le_bytes());
    raw[24..32].copy_from_slice(&info.disk_size_bytes.to_le_bytes());
    raw[32..40].copy_from_slice(&info.disk_size_bytes.to_le_bytes());
    raw[44..52].copy_from_slice(&eol.to_le_bytes());
    raw[56..60].copy_from_slice(&(METADATA_SIZE as u32).to_le_bytes());
    raw[60..76].copy_from_slice(&info.id.to_bytes_le());
    raw[76..92].copy_from_slice(&info.previous_id.to_bytes_le());
    raw[92..96].copy_from_slice(&seconds_2000(info.created_unix_ms).to_le_bytes());
    raw[96..104].copy_from_slice(&entries.to_le_bytes());
    raw[110..126].copy_from_slice(&info.data_write_guid.to_bytes_le());
    let sum = checksum(&raw);
    raw[40..44].copy_from_slice(&sum.to_le_bytes());
    raw
}

/// One's complement of the byte sum; the checksum field itself must be zero or left out.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes
        .iter()
        .fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}

/// Verifies a structure whose checksum of four bytes is at `at`.
fn verify(raw: &[u8], at: usize, what: &str) -> Result<(), HrlError> {
    let field: u32 = raw[at..at + 4].iter().map(|b| u32::from(*b)).sum();
    if !(!checksum(raw)).wrapping_sub(field) != get_u32(raw, at) {
        return Err(HrlError::corrupt(format!("checksum of the {what} differs")));
    }
    Ok(())
}

fn seconds_2000(unix_ms: i64) -> u32 {
    let seconds = unix_ms.div_euclid(1000) - EPOCH_2000;
    u32::try_from(seconds.max(0)).unwrap_or(u32::MAX)
}

fn unix_ms(seconds_2000: u32) -> i64 {
    (i64::from(seconds_2000) + EPOCH_2000) * 1000
}

fn get_u32(raw: &[u8], at: usize) -> u32 {
    let mut field = [0u8; 4];
    field.copy_from_slice(&raw[at..at + 4]);
    u32::from_le_bytes(field)
}

fn get_u64(raw: &[u8], at: usize) -> u64 {
    let mut field = [0u8; 8];
    field.copy_from_slice(&raw[at..at + 8]);
    u64::from_le_bytes(field)
}

fn get_uuid(raw: &[u8], at: usize) -> Uuid {
    let mut field = [0u8; 16];
    field.copy_from_slice(&raw[at..at + 16]);
    Uuid::from_bytes_le(field)
}
