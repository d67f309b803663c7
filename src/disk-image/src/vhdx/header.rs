//! The two headers: which one is in force, and how they are replaced one after the other.

use uuid::Uuid;

use super::layout::{
    HEADER_LENGTH, HEADER_OFFSETS, HEADER_SECTION_END, MAX_FILE_LENGTH, MAX_LOG_LENGTH, MIB,
};
use super::region::Region;
use crate::bytes::{array, crc32c_without, guid, le16, le32, le64, put};
use crate::{HeaderInfo, ImageError, ImageFile};

const SIGNATURE: &[u8; 4] = b"head";
const CHECKSUM_AT: usize = 4;
const NAMES: [&str; 2] = ["header 1", "header 2"];

/// One verified header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) sequence_number: u64,
    pub(super) file_write_guid: Uuid,
    pub(super) data_write_guid: Uuid,
    pub(super) log_guid: Uuid,
    pub(super) log_version: u16,
    pub(super) log_length: u32,
    pub(super) log_offset: u64,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_LENGTH], slot: usize) -> Result<Self, ImageError> {
        let (name, at) = (NAMES[slot], HEADER_OFFSETS[slot]);
        if array::<4>(bytes, 0) != *SIGNATURE {
            return Err(ImageError::corrupt(
                name,
                at,
                "the signature head is missing",
            ));
        }
        let (stored, computed) = (le32(bytes, CHECKSUM_AT), crc32c_without(bytes, CHECKSUM_AT));
        if stored != computed {
            return Err(ImageError::checksum(name, at, stored, computed));
        }
        let version = le16(bytes, 66);
        if version != 1 {
            return Err(ImageError::unsupported(
                name,
                format!("format version {version} is unknown"),
            )
            .at(at));
        }
        Ok(Self {
            sequence_number: le64(bytes, 8),
            file_write_guid: guid(bytes, 16),
            data_write_guid: guid(bytes, 32),
            log_guid: guid(bytes, 48),
            log_version: le16(bytes, 64),
            log_length: le32(bytes, 68),
            log_offset: le64(bytes, 72),
        })
    }

    fn to_bytes(&self) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        put(&mut bytes, 0, SIGNATURE);
        put(&mut bytes, 8, &self.sequence_number.to_le_bytes());
        put(&mut bytes, 16, &self.file_write_guid.to_bytes_le());
        put(&mut bytes, 32, &self.data_write_guid.to_bytes_le());
        put(&mut bytes, 48, &self.log_guid.to_bytes_le());
        put(&mut bytes, 64, &self.log_version.to_le_bytes());
        put(&mut bytes, 66, &1_u16.to_le_bytes());
        put(&mut bytes, 68, &self.log_length.to_le_bytes());
        put(&mut bytes, 72, &self.log_offset.to_le_bytes());
        let checksum = crc32c_without(&bytes, CHECKSUM_AT);
        put(&mut bytes, CHECKSUM_AT, &checksum.to_le_bytes());
        bytes
    }
}

/// Both slots, and which of them counts.
#[derive(Clone, Debug)]
pub(super) struct Headers {
    pub(super) current: Header,
    pub(super) slot: usize,
    pub(super) info: [HeaderInfo; 2],
    /// Where the log lies; `None` when what the header says of it can't be used and needn't.
    pub(super) log: Option<Region>,
    /// What was strange and did no harm.
    pub(super) warning: Option<String>,
}

impl Headers {
    pub(super) fn read(file: &dyn ImageFile) -> Result<Self, ImageError> {
        let read = |slot: usize| {
            let mut bytes = [0; HEADER_LENGTH];
            let at = HEADER_OFFSETS[slot];
            file.read_at(&mut bytes, at)
                .map_err(|e| ImageError::io(NAMES[slot], at, "read", e))?;
            Header::parse(&bytes, slot)
        };
        let slots = [read(0), read(1)];
        let info = slots.each_ref().map(|slot| match slot {
            Ok(header) => HeaderInfo::Valid {
                sequence_number: header.sequence_number,
                file_write_guid: header.file_write_guid,
                data_write_guid: header.data_write_guid,
                log_guid: header.log_guid,
                log_length: header.log_length,
                log_offset: header.log_offset,
            },
            Err(error) => HeaderInfo::Invalid(error.to_string()),
        });
        let mut warning = None;
        let (current, slot) = match slots {
            [Ok(first), Ok(second)]
                if first.sequence_number == second.sequence_number && first != second =>
            {
                // Which one is newer can't be known. It only matters for the log: a pending one
                // must be replayed, and replaying one that is none would be wrong.
                if first.log_guid != second.log_guid {
                    return Err(ImageError::corrupt(
                        NAMES[1],
                        HEADER_OFFSETS[1],
                        format!(
                            "it names another log than header 1 but has the same sequence number {}",
                            first.sequence_number
                        ),
                    ));
                }
                warning = Some(format!(
                    "headers 1 and 2 differ but have the same sequence number {}: header 1 counts",
                    first.sequence_number
                ));
                (first, 0)
            }
            [Ok(first), Ok(second)] if second.sequence_number > first.sequence_number => {
                (second, 1)
            }
            [Ok(first), _] => (first, 0),
            [Err(_), Ok(second)] => (second, 1),
            [Err(first), Err(_)] => return Err(first),
        };
        let log = match check_log_place(&current, slot) {
            Ok(log) => Some(log),
            // Nobody needs the place of a log that holds nothing.
            Err(error) if current.log_guid.is_nil() => {
                warning.get_or_insert(error.to_string());
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            current,
            slot,
            info,
            log,
            warning,
        })
    }

    /// Puts a changed header in force: written to the slot that isn't in force, flushed, and
    /// then once more to the other, so that one broken slot never loses the change.
    pub(super) fn update(
        &mut self,
        file: &dyn ImageFile,
        change: impl Fn(&mut Header),
    ) -> Result<(), ImageError> {
        for _ in 0..2 {
            let mut next = self.current.clone();
            change(&mut next);
            next.sequence_number = next.sequence_number.checked_add(1).ok_or_else(|| {
                ImageError::corrupt(
                    NAMES[self.slot],
                    HEADER_OFFSETS[self.slot],
                    "the sequence number is at its end",
                )
            })?;
            let slot = 1 - self.slot;
            write_slot(file, &next, slot)?;
            file.flush()
                .map_err(|e| ImageError::io(NAMES[slot], HEADER_OFFSETS[slot], "flush", e))?;
            self.log = check_log_place(&next, slot).ok();
            (self.current, self.slot) = (next, slot);
        }
        Ok(())
    }
}

/// Writes the header of a new file into both slots.
pub(super) fn write_new(file: &dyn ImageFile, header: &Header) -> Result<(), ImageError> {
    for slot in 0..2 {
        let numbered = Header {
            sequence_number: slot as u64 + 1,
            ..header.clone()
        };
        write_slot(file, &numbered, slot)?;
    }
    Ok(())
}

fn write_slot(file: &dyn ImageFile, header: &Header, slot: usize) -> Result<(), ImageError> {
    let at = HEADER_OFFSETS[slot];
    file.write_at(&header.to_bytes(), at)
        .map_err(|e| ImageError::io(NAMES[slot], at, "write", e))
}

fn check_log_place(header: &Header, slot: usize) -> Result<Region, ImageError> {
    let refuse = |cause: String| {
        Err(ImageError::corrupt(
            NAMES[slot],
            HEADER_OFFSETS[slot],
            cause,
        ))
    };
    if header.log_version != 0 {
        return Err(ImageError::unsupported(
            NAMES[slot],
            format!("log version {} is unknown", header.log_version),
        ));
    }
    if !header.log_offset.is_multiple_of(MIB) || header.log_offset < HEADER_SECTION_END {
        return refuse(format!(
            "log offset {} is no multiple of 1 MiB behind the headers",
            header.log_offset
        ));
    }
    if !u64::from(header.log_length).is_multiple_of(MIB) || header.log_length == 0 {
        return refuse(format!(
            "log length {} is no multiple of 1 MiB",
            header.log_length
        ));
    }
    if header.log_length > MAX_LOG_LENGTH {
        return Err(ImageError::unsupported(
            NAMES[slot],
            format!(
                "a log of {} bytes is longer than {MAX_LOG_LENGTH}",
                header.log_length
            ),
        ));
    }
    if header.log_offset > MAX_FILE_LENGTH {
        return refuse(format!(
            "log offset {} is behind any file",
            header.log_offset
        ));
    }
    Ok(Region {
        offset: header.log_offset,
        length: header.log_length,
    })
}
