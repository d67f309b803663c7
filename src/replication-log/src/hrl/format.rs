//! Byte layout of MS-HRL: header (section 2.2), metadata header (2.3), entry (2.4), checksum (2.6).

use uuid::Uuid;

use super::{HrlError, HrlErrorKind, HrlInfo};

pub(super) const HEADER_SIZE: u64 = 4096;
pub(super) const METADATA_SIZE: u64 = 4096;
pub(super) const METADATA_HEADER: usize = 32;
pub(super) const ENTRY_SIZE: usize = 32;
pub(super) const ENTRIES_PER_BLOCK: usize = (METADATA_SIZE as usize - METADATA_HEADER) / ENTRY_SIZE;
const MIN_METADATA_SIZE: u32 = 64;
const MAX_METADATA_SIZE: u32 = 1 << 20;
const COOKIE: &[u8; 8] = b"msctlog ";
const VERSION: u32 = 0x0002_0000;
/// The only creator the specification names; readers that look at it expect this.
const CREATOR: &[u8; 4] = b"ct  ";
/// Ours; Hyper-V has its Windows version here, such as 0x000A0000.
const CREATOR_VERSION: u32 = 2;
/// Seconds between 1970-01-01 and 2000-01-01.
const EPOCH_2000: i64 = 946_684_800;
const OPERATION_WRITE: u8 = 1;
/// What the checksum of zeroes is, and of nothing else as long as the sum can't wrap.
const ZERO_CHECKSUM: u32 = u32::MAX;
/// Longest data whose byte sum surely does not wrap.
const MAX_UNWRAPPED: u32 = u32::MAX / 255;

/// What a closed header says.
pub(super) struct Header {
    pub(super) info: HrlInfo,
    pub(super) eol: u64,
    pub(super) metadata_size: u64,
    pub(super) entries: u64,
}

/// The header of a log that is `eol` bytes long; 0 while it is open.
pub(super) fn encode_header(info: &HrlInfo, eol: u64, entries: u64) -> Vec<u8> {
    let created = seconds_2000(info.created_unix_ms).to_le_bytes();
    let mut raw = vec![0u8; HEADER_SIZE as usize];
    raw[0..8].copy_from_slice(COOKIE);
    raw[8..12].copy_from_slice(&VERSION.to_le_bytes());
    raw[12..16].copy_from_slice(&created);
    raw[16..20].copy_from_slice(CREATOR);
    raw[20..24].copy_from_slice(&CREATOR_VERSION.to_le_bytes());
    // 24: size of the file when it was created, none; 32: its size now.
    raw[32..40].copy_from_slice(&eol.to_le_bytes());
    raw[44..52].copy_from_slice(&eol.to_le_bytes());
    raw[56..60].copy_from_slice(&(METADATA_SIZE as u32).to_le_bytes());
    raw[60..76].copy_from_slice(&info.id.to_bytes_le());
    raw[76..92].copy_from_slice(&info.previous_id.to_bytes_le());
    raw[92..96].copy_from_slice(&created);
    raw[96..104].copy_from_slice(&entries.to_le_bytes());
    raw[110..126].copy_from_slice(&info.data_write_guid.to_bytes_le());
    let sum = checksum(&raw);
    raw[40..44].copy_from_slice(&sum.to_le_bytes());
    raw
}

/// Checks and reads a header of [`HEADER_SIZE`] bytes.
pub(super) fn decode_header(raw: &[u8]) -> Result<Header, HrlError> {
    let unsupported = |what: String| Err(HrlError::new(HrlErrorKind::Unsupported, what));
    if &raw[0..7] != b"msctlog" || !matches!(raw[7], b' ' | 0) {
        return Err(HrlError::corrupt("no replica log (cookie)"));
    }
    let version = get_u32(raw, 8);
    if version >> 16 != VERSION >> 16 {
        return unsupported(format!(
            "format version {}.{} is unknown; 2 is what is published",
            version >> 16,
            version & 0xffff
        ));
    }
    if !verifies(raw, 40) {
        return Err(HrlError::corrupt("checksum of the header differs"));
    }
    if get_u32(raw, 104) != 0 {
        return unsupported(format!("file type {} is no replica log", get_u32(raw, 104)));
    }
    let error = get_u32(raw, 52);
    if error != 0 {
        return Err(HrlError::new(
            HrlErrorKind::WriterFailed,
            format!(
                "its writer noted error {error:#010x}: changes may be missing, compare the disk"
            ),
        ));
    }
    let eol = get_u64(raw, 44);
    if eol == 0 {
        return Err(HrlError::new(
            HrlErrorKind::NotClosed,
            "was not closed: its writer was cut off, compare the disk",
        ));
    }
    let metadata_size = get_u32(raw, 56);
    if !(MIN_METADATA_SIZE..=MAX_METADATA_SIZE).contains(&metadata_size) {
        return Err(HrlError::corrupt("impossible metadata size"));
    }
    Ok(Header {
        info: HrlInfo {
            id: get_uuid(raw, 60),
            previous_id: get_uuid(raw, 76),
            data_write_guid: get_uuid(raw, 110),
            created_unix_ms: unix_ms(get_u32(raw, 12)),
        },
        eol,
        metadata_size: u64::from(metadata_size),
        entries: get_u64(raw, 96),
    })
}

/// A metadata block: entries as they lie in the file, and the distance back to the block before.
pub(super) fn encode_metadata(back: u64, entries: &[u8]) -> Vec<u8> {
    let mut block = vec![0u8; METADATA_SIZE as usize];
    let count = (entries.len() / ENTRY_SIZE) as u32;
    block[0..8].copy_from_slice(&back.to_le_bytes());
    block[8..12].copy_from_slice(&count.to_le_bytes());
    let sum = checksum(&block[..METADATA_HEADER]);
    block[12..16].copy_from_slice(&sum.to_le_bytes());
    block[METADATA_HEADER..METADATA_HEADER + entries.len()].copy_from_slice(entries);
    block
}

/// Checks a metadata block; gives the distance back and the raw valid entries.
pub(super) fn decode_metadata(block: &[u8]) -> Result<(u64, &[u8]), HrlError> {
    if !verifies(&block[..METADATA_HEADER], 12) && !verifies(block, 12) {
        return Err(HrlError::corrupt("checksum of the metadata differs"));
    }
    let count = get_u32(block, 8) as usize;
    let entries = count
        .checked_mul(ENTRY_SIZE)
        .and_then(|length| block[METADATA_HEADER..].get(..length))
        .ok_or_else(|| HrlError::corrupt("more entries than a metadata block holds"))?;
    Ok((get_u64(block, 0), entries))
}

/// One entry's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RawEntry {
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) time: u32,
    pub(super) data_checksum: u32,
}

pub(super) fn encode_entry(entry: &RawEntry) -> [u8; ENTRY_SIZE] {
    let mut raw = [0u8; ENTRY_SIZE];
    raw[0..8].copy_from_slice(&entry.offset.to_le_bytes());
    raw[12..16].copy_from_slice(&entry.length.to_le_bytes());
    raw[16..20].copy_from_slice(&entry.time.to_le_bytes());
    raw[20] = OPERATION_WRITE;
    raw[21..25].copy_from_slice(&entry.data_checksum.to_le_bytes());
    let sum = checksum(&raw);
    raw[8..12].copy_from_slice(&sum.to_le_bytes());
    raw
}

pub(super) fn decode_entry(raw: &[u8]) -> Result<RawEntry, HrlError> {
    let mut without_data_checksum = [0u8; ENTRY_SIZE];
    without_data_checksum.copy_from_slice(raw);
    without_data_checksum[21..25].fill(0);
    if !verifies(raw, 8) && !verifies(&without_data_checksum, 8) {
        return Err(HrlError::corrupt("checksum of an entry differs"));
    }
    if raw[20] != OPERATION_WRITE {
        return Err(HrlError::new(
            HrlErrorKind::Unsupported,
            format!("operation {} is unknown", raw[20]),
        ));
    }
    Ok(RawEntry {
        offset: get_u64(raw, 0),
        length: get_u32(raw, 12),
        time: get_u32(raw, 16),
        data_checksum: get_u32(raw, 21),
    })
}

impl RawEntry {
    /// Whether the checksum alone says that all bytes are zero.
    pub(super) fn is_zero(&self) -> bool {
        self.data_checksum == ZERO_CHECKSUM && self.length <= MAX_UNWRAPPED
    }
}

/// One's complement of the byte sum; the checksum field itself must be zero or left out.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    !byte_sum(bytes)
}

/// Adds up bytes, wrapping; a caller may add the sums of pieces.
pub(super) fn byte_sum(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}

/// Whether the checksum of four bytes at `at` is that of the rest.
fn verifies(raw: &[u8], at: usize) -> bool {
    let rest = byte_sum(raw).wrapping_sub(byte_sum(&raw[at..at + 4]));
    !rest == get_u32(raw, at)
}

pub(super) fn seconds_2000(unix_ms: i64) -> u32 {
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
