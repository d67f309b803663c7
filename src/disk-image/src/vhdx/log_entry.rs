//! One log entry: how it is built, and how it is verified.
//!
//! ```text
//!   header 64 │ descriptors 32 each … │ (next 4 KiB sectors) descriptors │ data sectors, 4 KiB each
//! ```
//!
//! A data descriptor keeps the first 8 and last 4 bytes of its sector, because the data sector's
//! own first 8 and last 4 bytes hold its signature and the two halves of the sequence number.

use uuid::Uuid;

use super::layout::{HEADER_OFFSETS, LOG_SECTOR, MAX_FILE_LENGTH, REGION_TABLE_OFFSETS};
use super::overlay::Patches;
use super::region::Region;
use crate::bytes::{array, crc32c_without, guid, le32, le64, put};

const ENTRY: &[u8; 4] = b"loge";
const DATA: &[u8; 4] = b"data";
const DATA_DESCRIPTOR: &[u8; 4] = b"desc";
const ZERO_DESCRIPTOR: &[u8; 4] = b"zero";
const HEADER_LENGTH: usize = 64;
const DESCRIPTOR_LENGTH: usize = 32;
pub(super) const CHECKSUM_AT: usize = 4;

/// The fixed part of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EntryHeader {
    pub(super) length: u32,
    /// Place in the log of the oldest entry that must be replayed.
    pub(super) tail: u32,
    pub(super) sequence_number: u64,
    pub(super) descriptors: u32,
    pub(super) log_guid: Uuid,
    /// The file was durably this long when the entry was written.
    pub(super) flushed_file_offset: u64,
    /// The file must be at least this long for what was allocated.
    pub(super) last_file_offset: u64,
}

impl EntryHeader {
    /// Reads the header of an entry of the log `log_guid`; `None` when there is none.
    pub(super) fn parse(sector: &[u8], log_guid: Uuid, log_length: u32) -> Option<Self> {
        if array::<4>(sector, 0) != *ENTRY {
            return None;
        }
        let header = Self {
            length: le32(sector, 8),
            tail: le32(sector, 12),
            sequence_number: le64(sector, 16),
            descriptors: le32(sector, 24),
            log_guid: guid(sector, 32),
            flushed_file_offset: le64(sector, 48),
            last_file_offset: le64(sector, 56),
        };
        let whole = |n: u32| n.is_multiple_of(LOG_SECTOR as u32);
        let good = header.log_guid == log_guid
            && header.sequence_number != 0
            && header.length != 0
            && whole(header.length)
            && header.length <= log_length
            && whole(header.tail)
            && header.tail < log_length
            && descriptor_bytes(header.descriptors as usize) <= header.length as usize;
        good.then_some(header)
    }

    /// Whether descriptors and data sectors all belong to this entry: it was written as a whole.
    pub(super) fn is_complete(&self, bytes: &[u8]) -> bool {
        let mut data = descriptor_bytes(self.descriptors as usize);
        for i in 0..self.descriptors as usize {
            let at = HEADER_LENGTH + DESCRIPTOR_LENGTH * i;
            if le64(bytes, at + 24) != self.sequence_number {
                return false;
            }
            match &array::<4>(bytes, at) {
                ZERO_DESCRIPTOR => {}
                DATA_DESCRIPTOR if data + LOG_SECTOR <= bytes.len() => {
                    let sequence = u64::from(le32(bytes, data + 4)) << 32
                        | u64::from(le32(bytes, data + LOG_SECTOR - 4));
                    if array::<4>(bytes, data) != *DATA || sequence != self.sequence_number {
                        return false;
                    }
                    data += LOG_SECTOR;
                }
                _ => return false,
            }
        }
        true
    }

    /// Adds what a complete entry changes to `patches`, or says why it must not be applied.
    pub(super) fn apply(
        &self,
        bytes: &[u8],
        log: Region,
        patches: &mut Patches,
    ) -> Result<(), String> {
        let headers = (HEADER_OFFSETS[0], REGION_TABLE_OFFSETS[0]);
        let mut data = descriptor_bytes(self.descriptors as usize);
        for i in 0..self.descriptors as usize {
            let at = HEADER_LENGTH + DESCRIPTOR_LENGTH * i;
            let offset = le64(bytes, at + 16);
            let is_data = array::<4>(bytes, at) == *DATA_DESCRIPTOR;
            let length = if is_data {
                LOG_SECTOR as u64
            } else {
                le64(bytes, at + 8)
            };
            let end = offset
                .checked_add(length)
                .filter(|end| *end <= self.last_file_offset.max(self.flushed_file_offset));
            let Some(end) = end.filter(|_| (offset | length).is_multiple_of(LOG_SECTOR as u64))
            else {
                return Err(format!(
                    "descriptor {i} changes {length} bytes at {offset}: not aligned or outside the file"
                ));
            };
            for (from, to) in [headers, (log.offset, log.end())] {
                if offset < to && end > from {
                    return Err(format!(
                        "descriptor {i} changes {length} bytes at {offset}: the headers or the log itself"
                    ));
                }
            }
            if is_data {
                let mut sector: Box<[u8]> = bytes[data..data + LOG_SECTOR].into();
                sector[..8].copy_from_slice(&bytes[at + 8..at + 16]);
                sector[LOG_SECTOR - 4..].copy_from_slice(&bytes[at + 4..at + 8]);
                patches.sector(offset, sector);
                data += LOG_SECTOR;
            } else {
                patches.zero(offset, length);
            }
        }
        if self.last_file_offset > MAX_FILE_LENGTH {
            return Err(format!(
                "the file would get {} bytes long",
                self.last_file_offset
            ));
        }
        patches.file_length = patches.file_length.max(self.last_file_offset);
        Ok(())
    }

    /// Builds an entry that replaces whole sectors; `length` and `descriptors` are set by it.
    pub(super) fn encode(&self, sectors: &[(u64, Vec<u8>)]) -> Vec<u8> {
        let mut data = descriptor_bytes(sectors.len());
        let length = data + LOG_SECTOR * sectors.len();
        let mut bytes = vec![0; length];
        put(&mut bytes, 0, ENTRY);
        put(&mut bytes, 8, &(length as u32).to_le_bytes());
        put(&mut bytes, 12, &self.tail.to_le_bytes());
        put(&mut bytes, 16, &self.sequence_number.to_le_bytes());
        put(&mut bytes, 24, &(sectors.len() as u32).to_le_bytes());
        put(&mut bytes, 32, &self.log_guid.to_bytes_le());
        put(&mut bytes, 48, &self.flushed_file_offset.to_le_bytes());
        put(&mut bytes, 56, &self.last_file_offset.to_le_bytes());
        for (i, (offset, sector)) in sectors.iter().enumerate() {
            let at = HEADER_LENGTH + DESCRIPTOR_LENGTH * i;
            put(&mut bytes, at, DATA_DESCRIPTOR);
            put(&mut bytes, at + 4, &sector[LOG_SECTOR - 4..]);
            put(&mut bytes, at + 8, &sector[..8]);
            put(&mut bytes, at + 16, &offset.to_le_bytes());
            put(&mut bytes, at + 24, &self.sequence_number.to_le_bytes());
            put(&mut bytes, data, sector);
            put(&mut bytes, data, DATA);
            put(
                &mut bytes,
                data + 4,
                &((self.sequence_number >> 32) as u32).to_le_bytes(),
            );
            put(
                &mut bytes,
                data + LOG_SECTOR - 4,
                &(self.sequence_number as u32).to_le_bytes(),
            );
            data += LOG_SECTOR;
        }
        let checksum = crc32c_without(&bytes, CHECKSUM_AT);
        put(&mut bytes, CHECKSUM_AT, &checksum.to_le_bytes());
        bytes
    }
}

/// Bytes of the header and `count` descriptors: whole sectors.
pub(super) fn descriptor_bytes(count: usize) -> usize {
    (HEADER_LENGTH + DESCRIPTOR_LENGTH * count).next_multiple_of(LOG_SECTOR)
}
