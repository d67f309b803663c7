//! Reading a journal object at random.

use super::format;
use super::{ContentId, JournalError, JournalHeader};
use crate::{KeyRing, ReadAt};

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
        /// Index into [`JournalReader::frames`].
        frame: u32,
        /// Offset in its raw bytes.
        at: u32,
    },
}

/// Where a frame is in the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub(super) offset: u64,
    pub(super) stored_length: u32,
    pub(super) raw_length: u32,
    pub(super) compressed: bool,
    pub(super) checksum: [u8; 16],
}

impl Frame {
    /// Length of the frame's raw bytes.
    pub fn raw_length(&self) -> u32 {
        self.raw_length
    }

    /// Reads the frame of an object, unpacked and verified.
    pub fn read<R: ReadAt + ?Sized>(&self, object: &R) -> Result<Vec<u8>, JournalError> {
        let mut stored = vec![0u8; self.stored_length as usize];
        object.read_exact_at(&mut stored, self.offset)?;
        let raw = if self.compressed {
            zstd::bulk::decompress(&stored, self.raw_length as usize)
                .map_err(|_| JournalError::corrupt("a frame does not unpack"))?
        } else {
            stored
        };
        if raw.len() != self.raw_length as usize || format::frame_checksum(&raw) != self.checksum {
            return Err(JournalError::corrupt("a frame does not verify"));
        }
        Ok(raw)
    }
}

/// An opened object: header and index are read and verified, data is read on demand.
pub struct JournalReader<R> {
    object: R,
    header: JournalHeader,
    frames: Vec<Frame>,
    entries: Vec<Vec<Entry>>,
}

impl<R: ReadAt> JournalReader<R> {
    /// Opens an object in the clear; an encrypted one is [`JournalErrorKind::MissingKey`](super::JournalErrorKind).
    pub fn open(object: R) -> Result<Self, JournalError> {
        Self::open_with_keys(object, &KeyRing::new())
    }

    /// Opens an object; cut, padded, damaged or forged ones are refused.
    pub fn open_with_keys(object: R, _keys: &KeyRing) -> Result<Self, JournalError> {
        let length = object.len()?;
        let mut fixed = [0u8; format::PRELUDE_FIXED];
        object.read_exact_at(&mut fixed, 0)?;
        let mut cursor = format::Cursor(&fixed);
        if &cursor.array::<8>()? != format::MAGIC {
            return Err(JournalError::corrupt("no journal object (magic)"));
        }
        let version = cursor.u32()?;
        if version != format::VERSION {
            return Err(format::unsupported(version));
        }
        let header_length = cursor.u32()? as usize;
        if header_length > format::MAX_HEADER {
            return Err(JournalError::corrupt("impossible header length"));
        }
        let body_end = format::PRELUDE_FIXED + header_length;
        let mut prelude = vec![0u8; body_end + format::DIGEST];
        object.read_exact_at(&mut prelude, 0)?;
        let (covered, prelude_digest) = prelude.split_at(body_end);
        if blake3::hash(covered).as_bytes() != prelude_digest {
            return Err(JournalError::corrupt("header does not verify"));
        }
        let header = format::decode_header(&covered[format::PRELUDE_FIXED..])?;

        let frames_start = prelude.len() as u64;
        let trailer_at = length
            .checked_sub(format::TRAILER as u64)
            .filter(|at| *at >= frames_start)
            .ok_or_else(|| JournalError::corrupt("object was cut"))?;
        let mut trailer = [0u8; format::TRAILER];
        object.read_exact_at(&mut trailer, trailer_at)?;
        let mut cursor = format::Cursor(&trailer);
        let index_offset = cursor.u64()?;
        let index_length = cursor.u64()?;
        let digest: [u8; format::DIGEST] = cursor.array()?;
        if &cursor.array::<8>()? != format::TRAILER_MAGIC {
            return Err(JournalError::corrupt("object was cut (no trailer)"));
        }
        if index_offset < frames_start
            || index_offset.checked_add(index_length) != Some(trailer_at)
            || index_length > format::MAX_INDEX
        {
            return Err(JournalError::corrupt("index is not where it should be"));
        }
        let mut index = vec![0u8; index_length as usize];
        object.read_exact_at(&mut index, index_offset)?;
        if format::index_digest(prelude_digest, &trailer[..16], &index) != digest {
            return Err(JournalError::corrupt("index does not verify"));
        }
        let (frames, entries) = format::decode_index(&index, &header, frames_start, index_offset)?;
        Ok(JournalReader {
            object,
            header,
            frames,
            entries,
        })
    }

    /// The key the object is encrypted with; `None`: it is in the clear.
    pub fn key_id(&self) -> Option<uuid::Uuid> {
        None
    }

    /// Whose cycle this is.
    pub fn header(&self) -> &JournalHeader {
        &self.header
    }

    /// The frames that entries point into.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Changes of the disk with this index in the header, in the order they were made.
    pub fn entries(&self, disk_index: usize) -> &[Entry] {
        self.entries.get(disk_index).map_or(&[], Vec::as_slice)
    }

    /// Reads one frame, unpacked and verified.
    pub fn read_frame(&self, frame: u32) -> Result<Vec<u8>, JournalError> {
        self.frames
            .get(frame as usize)
            .ok_or_else(|| JournalError::invalid("no such frame"))?
            .read(&self.object)
    }

    /// Reads the bytes of one entry, verified. A range of zeroes may be as long as a disk:
    /// callers that can't hold it look at [`Entry::data`] first.
    pub fn read_entry(&self, entry: &Entry) -> Result<Vec<u8>, JournalError> {
        let length = usize::try_from(entry.length)
            .map_err(|_| JournalError::invalid("entry is too long to read at once"))?;
        match entry.data {
            EntryData::Zeroes => Ok(vec![0u8; length]),
            EntryData::Frame { frame, at } => {
                let raw = self.read_frame(frame)?;
                let start = at as usize;
                start
                    .checked_add(length)
                    .and_then(|end| raw.get(start..end))
                    .map(<[u8]>::to_vec)
                    .ok_or_else(|| JournalError::invalid("entry is of another object"))
            }
        }
    }

    /// Reads and verifies every frame: proof that the whole object is readable.
    pub fn verify(&self) -> Result<(), JournalError> {
        self.frames
            .iter()
            .try_for_each(|frame| frame.read(&self.object).map(drop))
    }

    /// Identifies the content.
    pub fn content(&self) -> ContentId {
        format::content_id(&self.header, &self.frames, &self.entries)
    }

    /// The object itself.
    pub fn into_inner(self) -> R {
        self.object
    }
}
