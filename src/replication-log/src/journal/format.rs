//! Byte layout of a journal object: the only place that knows it.
//!
//! ```text
//! header    generation u64 | position u64 | time i64 | item length u16 | item
//!           | disks u32 | per disk: id 16, size u64
//! frame     offset u64 | stored length u32 | raw length u32 | encoding u32 (0 stored, 1 zstd) | 0 u32 | blake3 16
//! entry     disk offset u64 | length u64 | frame u32 (all ones = zeroes) | offset in frame u32
//! index     frames u32 | frame* | per disk: entries u32, entry*
//! ```

use uuid::Uuid;

use super::read::{Entry, EntryData, Frame};
use super::{ContentId, JournalDisk, JournalError, JournalErrorKind, JournalHeader};

pub(super) const MAGIC: &[u8; 8] = b"SRJRNL\r\n";
pub(super) const TRAILER_MAGIC: &[u8; 8] = b"SRJEND\r\n";
pub(super) const VERSION: u32 = 1;
pub(super) const PRELUDE_FIXED: usize = 16;
pub(super) const DIGEST: usize = 32;
pub(super) const TRAILER: usize = 8 + 8 + DIGEST + 8;
pub(super) const MAX_ITEM: usize = 1024;
pub(super) const MAX_DISKS: usize = 1024;
pub(super) const MAX_HEADER: usize = 26 + MAX_ITEM + 4 + MAX_DISKS * 24;
pub(super) const FRAME_RECORD: usize = 40;
pub(super) const ENTRY_RECORD: usize = 24;
pub(super) const ZEROES: u32 = u32::MAX;
/// An index of a terabyte of 64 KiB changes has 800 MB; nothing honest is larger.
pub(super) const MAX_INDEX: u64 = 1 << 30;

pub(super) fn prelude(header: &JournalHeader) -> Vec<u8> {
    let body = encode_header(header);
    let mut out = Vec::with_capacity(PRELUDE_FIXED + body.len() + DIGEST);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&body);
    let digest = blake3::hash(&out);
    out.extend_from_slice(digest.as_bytes());
    out
}

fn encode_header(header: &JournalHeader) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&header.generation.to_le_bytes());
    out.extend_from_slice(&header.position.to_le_bytes());
    out.extend_from_slice(&header.time_unix_ms.to_le_bytes());
    out.extend_from_slice(&(header.item.len() as u16).to_le_bytes());
    out.extend_from_slice(header.item.as_bytes());
    out.extend_from_slice(&(header.disks.len() as u32).to_le_bytes());
    for disk in &header.disks {
        out.extend_from_slice(disk.id.as_bytes());
        out.extend_from_slice(&disk.size_bytes.to_le_bytes());
    }
    out
}

pub(super) fn check_header(header: &JournalHeader) -> Result<(), JournalError> {
    if header.item.len() > MAX_ITEM || header.disks.len() > MAX_DISKS {
        return Err(JournalError::invalid("item name or disk list is too long"));
    }
    let mut ids: Vec<_> = header.disks.iter().map(|disk| disk.id).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.len() != header.disks.len() {
        return Err(JournalError::invalid("a disk is listed twice"));
    }
    Ok(())
}

pub(super) fn decode_header(raw: &[u8]) -> Result<JournalHeader, JournalError> {
    let mut cursor = Cursor(raw);
    let generation = cursor.u64()?;
    let position = cursor.u64()?;
    let time_unix_ms = cursor.u64()? as i64;
    let item_length = usize::from(cursor.u16()?);
    let item = std::str::from_utf8(cursor.take(item_length)?)
        .map_err(|_| JournalError::corrupt("item name is no text"))?
        .to_owned();
    let count = cursor.u32()? as usize;
    if count > MAX_DISKS {
        return Err(JournalError::corrupt("too many disks"));
    }
    let mut disks = Vec::with_capacity(count);
    for _ in 0..count {
        disks.push(JournalDisk {
            id: Uuid::from_bytes(cursor.array()?),
            size_bytes: cursor.u64()?,
        });
    }
    cursor.end()?;
    let header = JournalHeader {
        item,
        generation,
        position,
        time_unix_ms,
        disks,
    };
    check_header(&header).map_err(|_| JournalError::corrupt("impossible header"))?;
    Ok(header)
}

pub(super) fn encode_index(frames: &[Frame], entries: &[Vec<Entry>]) -> Vec<u8> {
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

/// Decodes and checks against the sizes of the disks and the place of the frames in the object.
pub(super) fn decode_index(
    raw: &[u8],
    header: &JournalHeader,
    frames_start: u64,
    frames_end: u64,
) -> Result<(Vec<Frame>, Vec<Vec<Entry>>), JournalError> {
    let mut cursor = Cursor(raw);
    let count = cursor.u32()? as usize;
    cursor.expect(count, FRAME_RECORD)?;
    let mut frames = Vec::with_capacity(count);
    let mut at = frames_start;
    for _ in 0..count {
        let offset = cursor.u64()?;
        let stored_length = cursor.u32()?;
        let raw_length = cursor.u32()?;
        let encoding = cursor.u32()?;
        let reserved = cursor.u32()?;
        let frame = Frame {
            offset,
            stored_length,
            raw_length,
            compressed: encoding == 1,
            checksum: cursor.array()?,
        };
        let sized = raw_length > 0
            && raw_length as usize <= super::FRAME_SIZE
            && stored_length > 0
            && match encoding {
                0 => stored_length == raw_length,
                1 => stored_length < raw_length,
                _ => false,
            };
        if !sized || reserved != 0 || offset != at {
            return Err(JournalError::corrupt("impossible frame"));
        }
        at = at.saturating_add(u64::from(stored_length));
        frames.push(frame);
    }
    if at != frames_end {
        return Err(JournalError::corrupt("frames do not fill their place"));
    }
    let mut entries = Vec::with_capacity(header.disks.len());
    for disk in &header.disks {
        let count = cursor.u32()? as usize;
        cursor.expect(count, ENTRY_RECORD)?;
        let mut list = Vec::with_capacity(count);
        for _ in 0..count {
            list.push(decode_entry(&mut cursor, &frames, disk)?);
        }
        entries.push(list);
    }
    cursor.end()?;
    Ok((frames, entries))
}

fn decode_entry(
    cursor: &mut Cursor<'_>,
    frames: &[Frame],
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

pub(super) fn trailer(prelude_digest: &[u8], index_offset: u64, index: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(TRAILER);
    out.extend_from_slice(&index_offset.to_le_bytes());
    out.extend_from_slice(&(index.len() as u64).to_le_bytes());
    let digest = index_digest(prelude_digest, &out, index);
    out.extend_from_slice(&digest);
    out.extend_from_slice(TRAILER_MAGIC);
    out
}

pub(super) fn index_digest(prelude_digest: &[u8], numbers: &[u8], index: &[u8]) -> [u8; DIGEST] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(prelude_digest);
    hasher.update(numbers);
    hasher.update(index);
    *hasher.finalize().as_bytes()
}

/// Raw checksums and entries, with the header but for the generation.
pub(super) fn content_id(
    header: &JournalHeader,
    frames: &[Frame],
    entries: &[Vec<Entry>],
) -> ContentId {
    let neutral = JournalHeader {
        generation: 0,
        ..header.clone()
    };
    let bare: Vec<Frame> = frames
        .iter()
        .map(|frame| Frame {
            offset: 0,
            stored_length: 0,
            compressed: false,
            ..frame.clone()
        })
        .collect();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&encode_header(&neutral));
    hasher.update(&encode_index(&bare, entries));
    ContentId(*hasher.finalize().as_bytes())
}

pub(super) fn frame_checksum(raw: &[u8]) -> [u8; 16] {
    let mut short = [0u8; 16];
    short.copy_from_slice(&blake3::hash(raw).as_bytes()[..16]);
    short
}

pub(super) fn unsupported(version: u32) -> JournalError {
    JournalError::new(
        JournalErrorKind::Unsupported,
        format!("version {version} is unknown to this program"),
    )
}

/// A checked cursor over bytes: running out is an error, never a panic.
pub(super) struct Cursor<'a>(pub(super) &'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], JournalError> {
        let (head, tail) = self
            .0
            .split_at_checked(count)
            .ok_or_else(|| JournalError::corrupt("a structure ends too early"))?;
        self.0 = tail;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], JournalError> {
        let mut out = [0u8; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(super) fn u16(&mut self) -> Result<u16, JournalError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, JournalError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, JournalError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// That many records of that size must still be there: bounds an allocation by real bytes.
    fn expect(&self, count: usize, record: usize) -> Result<(), JournalError> {
        match count.checked_mul(record) {
            Some(bytes) if bytes <= self.0.len() => Ok(()),
            _ => Err(JournalError::corrupt("a table ends too early")),
        }
    }

    fn end(&self) -> Result<(), JournalError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(JournalError::corrupt("a structure has bytes left over"))
        }
    }
}
