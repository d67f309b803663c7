//! The log: a ring of entries through which all changes of metadata go.
//!
//! Reading finds the newest valid sequence of entries and turns it into [`Patches`]. Writing keeps
//! one entry alive at a time: what the entry before it changed is durable in its place before a
//! new one is written, so each entry is its own tail.
//!
//! ```text
//!   flush data and earlier table writes ─► write entry ─► flush ─► (first entry: log guid into the
//!   headers) ─► write table sectors in their place ─► nothing: the entry covers them
//! ```

use uuid::Uuid;

use super::header::Header;
use super::layout::LOG_SECTOR;
use super::log_entry::{CHECKSUM_AT, EntryHeader, descriptor_bytes};
use super::overlay::Patches;
use super::region::Region;
use crate::bytes::{crc32c_without, le32};
use crate::{ErrorKind, ImageError, ImageFile, LogInfo};

/// Reads the log and says what replaying it changes. `file_length` is the length of the file now.
pub(super) fn read(
    file: &dyn ImageFile,
    header: &Header,
    file_length: u64,
) -> Result<(Patches, LogInfo), ImageError> {
    if header.log_guid.is_nil() {
        return Ok((Patches::default(), LogInfo::Clean));
    }
    let log = Region {
        offset: header.log_offset,
        length: header.log_length,
    };
    if log.end() > file_length {
        return Err(ImageError::corrupt(
            "log",
            log.offset,
            format!("it ends behind the end of the file at {file_length}"),
        ));
    }
    let mut ring = vec![0; log.length as usize];
    file.read_at(&mut ring, log.offset)
        .map_err(|e| ImageError::io("log", log.offset, "read", e))?;
    let entries = find_entries(&ring, header, log)?;
    let Some(sequence) = active_sequence(&entries) else {
        return match entries
            .iter()
            .flatten()
            .find(|entry| entry.broken.is_some())
        {
            Some(entry) => Err(refuse_broken(entry, log)),
            // The owner was cut off after it announced its log and before the first entry was whole.
            None => Ok((Patches::default(), LogInfo::Empty)),
        };
    };
    let newest = sequence[sequence.len() - 1];
    // A whole entry with a wrong checksum that is newer than what is about to be replayed may have
    // been applied already: replaying the older state over it would be wrong.
    let newer = entries.iter().flatten().find(|entry| {
        entry.broken.is_some() && entry.header.sequence_number > newest.header.sequence_number
    });
    if let Some(entry) = newer {
        return Err(refuse_broken(entry, log));
    }
    if file_length < newest.header.flushed_file_offset {
        return Err(ImageError::corrupt(
            "log entry",
            log.offset + newest.position as u64,
            format!(
                "the file has {file_length} bytes, and had {} before",
                newest.header.flushed_file_offset
            ),
        ));
    }
    let mut patches = Patches::default();
    let mut descriptors = 0;
    for entry in &sequence {
        let bytes = slice(&ring, entry.position, entry.header.length as usize);
        entry
            .header
            .apply(&bytes, log, &mut patches)
            .map_err(|cause| {
                ImageError::corrupt("log entry", log.offset + entry.position as u64, cause)
            })?;
        descriptors += u64::from(entry.header.descriptors);
    }
    let info = LogInfo::Replayed {
        entries: sequence.len() as u64,
        sequence_number: newest.header.sequence_number,
        descriptors,
    };
    Ok((patches, info))
}

/// An entry found in the ring.
struct Found {
    position: usize,
    header: EntryHeader,
    /// Stored and computed checksum when they differ although the entry is whole.
    broken: Option<(u32, u32)>,
}

/// Looks at every sector of the ring; the result has one place for each.
fn find_entries(
    ring: &[u8],
    header: &Header,
    log: Region,
) -> Result<Vec<Option<Found>>, ImageError> {
    // Real entries hardly overlap. A made-up ring in which every sector claims to start an entry
    // as long as the log would cost the square of its length.
    let mut budget = 8 * ring.len() + (16 << 20);
    let mut entries = Vec::with_capacity(ring.len() / LOG_SECTOR);
    for position in (0..ring.len()).step_by(LOG_SECTOR) {
        let sector = &ring[position..position + LOG_SECTOR];
        let Some(entry) = EntryHeader::parse(sector, header.log_guid, log.length) else {
            entries.push(None);
            continue;
        };
        let length = entry.length as usize;
        budget = budget.checked_sub(length).ok_or_else(|| {
            ImageError::new(ErrorKind::Corrupt, "log", "its entries overlap each other")
                .at(log.offset)
        })?;
        let bytes = slice(ring, position, length);
        if !entry.is_complete(&bytes) {
            entries.push(None);
            continue;
        }
        let (stored, computed) = (
            le32(&bytes, CHECKSUM_AT),
            crc32c_without(&bytes, CHECKSUM_AT),
        );
        let broken = (stored != computed).then_some((stored, computed));
        entries.push(Some(Found {
            position,
            header: entry,
            broken,
        }));
    }
    Ok(entries)
}

/// The valid sequence with the highest sequence number, from its tail to its head.
fn active_sequence(entries: &[Option<Found>]) -> Option<Vec<&Found>> {
    let valid = |position: usize| {
        entries
            .get(position / LOG_SECTOR)?
            .as_ref()
            .filter(|entry| entry.broken.is_none())
    };
    let mut heads: Vec<&Found> = entries
        .iter()
        .flatten()
        .filter(|entry| entry.broken.is_none())
        .collect();
    heads.sort_by_key(|entry| std::cmp::Reverse(entry.header.sequence_number));
    let ring = entries.len() * LOG_SECTOR;
    heads.into_iter().find_map(|head| {
        let mut sequence = Vec::new();
        let mut entry = valid(head.header.tail as usize)?;
        loop {
            sequence.push(entry);
            if std::ptr::eq(entry, head) {
                return Some(sequence);
            }
            let next = valid((entry.position + entry.header.length as usize) % ring)?;
            // Numbers grow by one at each step, so this ends.
            if Some(next.header.sequence_number) != entry.header.sequence_number.checked_add(1)
                || next.header.sequence_number > head.header.sequence_number
            {
                return None;
            }
            entry = next;
        }
    })
}

/// Bytes of an entry, put together when it runs over the end of the ring.
fn slice(ring: &[u8], position: usize, length: usize) -> Vec<u8> {
    let first = length.min(ring.len() - position);
    let mut bytes = ring[position..position + first].to_vec();
    bytes.extend_from_slice(&ring[..length - first]);
    bytes
}

fn refuse_broken(entry: &Found, log: Region) -> ImageError {
    let (stored, computed) = entry.broken.unwrap_or_default();
    let name = format!("log entry {}", entry.header.sequence_number);
    ImageError::checksum(name, log.offset + entry.position as u64, stored, computed)
}

/// Writes entries, one alive at a time.
#[derive(Debug)]
pub(super) struct LogWriter {
    pub(super) guid: Uuid,
    log: Region,
    next_sequence_number: u64,
    /// Where the next entry goes.
    head: u32,
}

impl LogWriter {
    /// A new log in the place that the header names. Its guid makes all older entries meaningless.
    pub(super) fn new(header: &Header) -> Self {
        Self {
            guid: Uuid::new_v4(),
            log: Region {
                offset: header.log_offset,
                length: header.log_length,
            },
            next_sequence_number: 1,
            head: 0,
        }
    }

    /// How many sectors one entry may replace: half the ring, so that the entry before it stays whole.
    pub(super) fn capacity(header: &Header) -> usize {
        let half = header.log_length as usize / 2;
        let mut count = half / LOG_SECTOR - 1;
        while descriptor_bytes(count) + count * LOG_SECTOR > half {
            count -= 1;
        }
        count
    }

    /// Writes one entry. All earlier entries must be durable in their places. Not flushed.
    pub(super) fn append(
        &mut self,
        file: &dyn ImageFile,
        sectors: &[(u64, Vec<u8>)],
        file_length: u64,
    ) -> Result<(), ImageError> {
        let header = EntryHeader {
            length: 0,
            tail: self.head,
            sequence_number: self.next_sequence_number,
            descriptors: 0,
            log_guid: self.guid,
            flushed_file_offset: file_length,
            last_file_offset: file_length,
        };
        let bytes = header.encode(sectors);
        let first = bytes.len().min((self.log.length - self.head) as usize);
        for (part, at) in [(&bytes[..first], self.head), (&bytes[first..], 0)] {
            if !part.is_empty() {
                let at = self.log.offset + u64::from(at);
                file.write_at(part, at)
                    .map_err(|e| ImageError::io("log entry", at, "write", e))?;
            }
        }
        self.head = ((self.head as usize + bytes.len()) % self.log.length as usize) as u32;
        self.next_sequence_number += 1;
        Ok(())
    }
}
