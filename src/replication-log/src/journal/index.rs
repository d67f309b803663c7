//! The index of a journal object: where frames are, and which of their bytes are which of a disk's.
//!
//! ```text
//! frame    offset u64 | stored length u32 | raw length u32 | encoding u32 (0 stored, 1 zstd) | 0 u32 | blake3 16
//! entry    disk offset u64 | length u64 | frame u32 (all ones = zeroes) | offset in frame u32
//! index    frames u32 | frame* | per disk: entries u32, entry*
//! ```
//!
//! A sealed frame's stored length counts its tag.

use super::cursor::Cursor;
use super::format::{self, Version};
use super::{ContentId, FRAME_SIZE, JournalDisk, JournalError, JournalHeader};

const FRAME_RECORD: usize = 40;
const ENTRY_RECORD: usize = 24;
const ZEROES: u32 = u32::MAX;
/// Frame numbers stay below the one that means zeroes.
pub(super) const MAX_FRAMES: usize = ZEROES as usize - 1;

/// A change of one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes; not zero.
    pub length: u64,
    /// What is there.
    pub data: EntryData,
}

/// Where the bytes of an entry are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryData {
    /// Nowhere: they are zero.
    Zeroes,
    /// In a frame.
    Frame {
        /// Index into [`JournalReader::frames`](super::JournalReader::frames).
        frame: u32,
        /// Offset in its raw bytes.
        at: u32,
    },
}

/// Where a frame is in the object, and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameRecord {
    pub(super) offset: u64,
    pub(super) stored_length: u32,
    pub(super) raw_length: u32,
    pub(super) compressed: bool,
    pub(super) checksum: [u8; 16],
}

pub(super) fn encode(frames: &[FrameRecord], entries: &[Vec<Entry>]) -> Vec<u8> {
    let records: usize = entries.iter().map(|e| 4 + e.len() * ENTRY_RECORD).sum();
    let mut out = Vec::with_capacity(4 + frames.len() * FRAME_RECORD + records);
    out.extend_from_slice(&(frames.len() as u32).to_le_bytes());
    for frame in frames {
        out.extend_from_slice(&frame.offset.to_le_bytes());
        out.extend_from_slice(&frame.stored_length.to_le_bytes());
        out.extend_from_slice(&frame.raw_length.to_le_bytes());
        out.extend_from_slice(&u32::from(frame.compressed).to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        out.extend_from_slice(&frame.checksum);
    }
    for disk in entries {
        out.extend_from_slice(&(disk.len() as u32).to_le_bytes());
        for entry in disk {
            let (frame, at) = match entry.data {
                EntryData::Zeroes => (ZEROES, 0),
                EntryData::Frame { frame, at } => (frame, at),
            };
            out.extend_from_slice(&entry.offset.to_le_bytes());
            out.extend_from_slice(&entry.length.to_le_bytes());
            out.extend_from_slice(&frame.to_le_bytes());
            out.extend_from_slice(&at.to_le_bytes());
        }
    }
    out
}

/// What the rest of the object says, against which the index is checked.
pub(super) struct Bounds<'a> {
    pub(super) version: Version,
    pub(super) disks: &'a [JournalDisk],
    pub(super) frames_start: u64,
    pub(super) frames_end: u64,
    /// Bytes that sealing added to each frame.
    pub(super) sealed: u32,
}

/// The two tables of an index.
pub(super) type Tables = (Vec<FrameRecord>, Vec<Vec<Entry>>);

/// Decodes and checks against the sizes of the disks and the place of the frames in the object.
pub(super) fn decode(raw: &[u8], bounds: &Bounds<'_>) -> Result<Tables, JournalError> {
    let mut cursor = Cursor(raw);
    let count = cursor.u32()? as usize;
    cursor.expect(count, FRAME_RECORD)?;
    let mut frames = Vec::with_capacity(count);
    let mut at = bounds.frames_start;
    for _ in 0..count {
        let frame = decode_frame(&mut cursor, bounds.sealed)?;
        if frame.offset != at {
            return Err(JournalError::corrupt("frames do not follow each other"));
        }
        at = at.saturating_add(u64::from(frame.stored_length));
        frames.push(frame);
    }
    if at != bounds.frames_end {
        return Err(JournalError::corrupt("frames do not fill their place"));
    }
    let mut entries = Vec::with_capacity(bounds.disks.len());
    for disk in bounds.disks {
        let count = cursor.u32()? as usize;
        cursor.expect(count, ENTRY_RECORD)?;
        let mut list: Vec<Entry> = Vec::with_capacity(count);
        for _ in 0..count {
            let entry = decode_entry(&mut cursor, &frames, disk)?;
            let before = list.last().map_or(0, |last| last.offset + last.length);
            if bounds.version != Version::One && entry.offset < before {
                return Err(JournalError::corrupt("entries overlap or are not sorted"));
            }
            list.push(entry);
        }
        entries.push(list);
    }
    cursor.end()?;
    Ok((frames, entries))
}

fn decode_frame(cursor: &mut Cursor<'_>, sealed: u32) -> Result<FrameRecord, JournalError> {
    let offset = cursor.u64()?;
    let stored_length = cursor.u32()?;
    let raw_length = cursor.u32()?;
    let encoding = cursor.u32()?;
    let reserved = cursor.u32()?;
    let packed = stored_length.saturating_sub(sealed);
    let sized = raw_length > 0
        && raw_length as usize <= FRAME_SIZE
        && packed > 0
        && match encoding {
            0 => packed == raw_length,
            1 => packed < raw_length,
            _ => false,
        };
    if !sized || reserved != 0 {
        return Err(JournalError::corrupt("impossible frame"));
    }
    Ok(FrameRecord {
        offset,
        stored_length,
        raw_length,
        compressed: encoding == 1,
        checksum: cursor.array()?,
    })
}

fn decode_entry(
    cursor: &mut Cursor<'_>,
    frames: &[FrameRecord],
    disk: &JournalDisk,
) -> Result<Entry, JournalError> {
    let offset = cursor.u64()?;
    let length = cursor.u64()?;
    let frame = cursor.u32()?;
    let at = cursor.u32()?;
    let on_disk = offset
        .checked_add(length)
        .is_some_and(|end| length > 0 && end <= disk.size_bytes);
    let data = if frame == ZEROES && at == 0 {
        EntryData::Zeroes
    } else {
        let inside = frames.get(frame as usize).is_some_and(|frame| {
            u64::from(at)
                .checked_add(length)
                .is_some_and(|end| end <= u64::from(frame.raw_length))
        });
        if !inside {
            return Err(JournalError::corrupt("an entry lies outside its frame"));
        }
        EntryData::Frame { frame, at }
    };
    if !on_disk {
        return Err(JournalError::corrupt("an entry lies outside its disk"));
    }
    Ok(Entry {
        offset,
        length,
        data,
    })
}

/// Raw checksums and entries, with the header but for the generation.
pub(super) fn content_id<'a>(
    header: &JournalHeader,
    frames: impl Iterator<Item = &'a FrameRecord>,
    entries: &[Vec<Entry>],
) -> ContentId {
    let neutral = JournalHeader {
        generation: 0,
        ..header.clone()
    };
    let bare: Vec<FrameRecord> = frames
        .map(|frame| FrameRecord {
            offset: 0,
            stored_length: 0,
            compressed: false,
            ..*frame
        })
        .collect();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&format::encode_header(&neutral));
    hasher.update(&encode(&bare, entries));
    ContentId(*hasher.finalize().as_bytes())
}

pub(super) fn frame_checksum(raw: &[u8]) -> [u8; 16] {
    let mut short = [0u8; 16];
    short.copy_from_slice(&blake3::hash(raw).as_bytes()[..16]);
    short
}
