//! Reading a journal object at random.

use std::io::Read as _;
use std::sync::Arc;

use uuid::Uuid;

use super::cipher::{Envelope, ObjectCipher, TAG};
use super::cursor::Cursor;
use super::format::{self, Trailer, Version};
use super::index::{self, Bounds, Entry, EntryData, FrameRecord};
use super::{ContentId, JournalDisk, JournalError, JournalHeader, Merged};
use crate::{KeyRing, ReadAt};

/// Where a frame is in its object, and how it is opened.
#[derive(Clone, Debug)]
pub struct Frame {
    record: FrameRecord,
    number: u32,
    cipher: Option<Arc<ObjectCipher>>,
}

impl Frame {
    /// Length of the frame's raw bytes.
    pub fn raw_length(&self) -> u32 {
        self.record.raw_length
    }

    /// Bytes that it takes in the object.
    pub fn stored_length(&self) -> u32 {
        self.record.stored_length
    }

    /// Reads the frame of an object, decrypted, unpacked and verified.
    pub fn read<R: ReadAt + ?Sized>(&self, object: &R) -> Result<Vec<u8>, JournalError> {
        let record = &self.record;
        let mut stored = vec![0u8; record.stored_length as usize];
        object.read_exact_at(&mut stored, record.offset)?;
        if let Some(cipher) = &self.cipher {
            cipher.open_frame(self.number, &mut stored)?;
        }
        let raw = if record.compressed {
            zstd::bulk::decompress(&stored, record.raw_length as usize)
                .map_err(|_| JournalError::corrupt("a frame does not unpack"))?
        } else {
            stored
        };
        if raw.len() != record.raw_length as usize || index::frame_checksum(&raw) != record.checksum
        {
            return Err(JournalError::corrupt("a frame does not verify"));
        }
        Ok(raw)
    }
}

/// An opened object: header and index are read and verified, data is read on demand.
pub struct JournalReader<R> {
    object: R,
    header: JournalHeader,
    key_id: Option<Uuid>,
    merged: Option<Merged>,
    frames: Vec<Frame>,
    entries: Vec<Vec<Entry>>,
}

/// What stands in front of the frames.
struct Prelude {
    version: Version,
    header: JournalHeader,
    envelope: Envelope,
    merged: Option<Merged>,
    digest: [u8; format::DIGEST],
    length: u64,
}

impl<R: ReadAt> JournalReader<R> {
    /// Opens an object in the clear; an encrypted one is [`JournalErrorKind::MissingKey`](super::JournalErrorKind).
    pub fn open(object: R) -> Result<Self, JournalError> {
        Self::open_with_keys(object, &KeyRing::new())
    }

    /// Opens an object; cut, padded, damaged or forged ones are refused.
    pub fn open_with_keys(object: R, keys: &KeyRing) -> Result<Self, JournalError> {
        let prelude = read_prelude(&object)?;
        let (trailer, trailer_at) = read_trailer(&object, &prelude)?;
        let place = trailer.place;
        if place.offset < prelude.length
            || place.offset.checked_add(place.stored_length) != Some(trailer_at)
        {
            return Err(JournalError::corrupt("index is not where it should be"));
        }
        // Bounded by the object's length: it ends at the trailer.
        let mut index = vec![0u8; place.stored_length as usize];
        object.read_exact_at(&mut index, place.offset)?;
        if !trailer.verifies(&prelude.digest, &index) {
            return Err(JournalError::corrupt("index does not verify"));
        }
        let cipher = ObjectCipher::derive(&prelude.envelope, &prelude.digest, keys)?;
        if let Some(cipher) = &cipher {
            cipher.open_index(&place.numbers(), &mut index)?;
        }
        if place.compressed {
            index = unpack_index(&index, place.raw_length)?;
        }
        if index.len() as u64 != place.raw_length {
            return Err(JournalError::corrupt("index has another length"));
        }
        let (records, entries) = index::decode(
            &index,
            &Bounds {
                version: prelude.version,
                disks: &prelude.header.disks,
                frames_start: prelude.length,
                frames_end: place.offset,
                sealed: if cipher.is_some() { TAG as u32 } else { 0 },
            },
        )?;
        let cipher = cipher.map(Arc::new);
        let frames = (0u32..)
            .zip(records)
            .map(|(number, record)| Frame {
                record,
                number,
                cipher: cipher.clone(),
            })
            .collect();
        Ok(JournalReader {
            object,
            header: prelude.header,
            key_id: prelude.envelope.key(),
            merged: prelude.merged,
            frames,
            entries,
        })
    }

    /// The key the object is encrypted with; `None`: it is in the clear.
    pub fn key_id(&self) -> Option<Uuid> {
        self.key_id
    }

    /// Set when it stands for several cycles.
    pub fn merged(&self) -> Option<Merged> {
        self.merged
    }

    /// The VM's disks at the header's position; the header of a merged object may list more.
    pub fn present_disks(&self) -> &[JournalDisk] {
        present(&self.header, self.merged)
    }

    /// Whose cycle this is.
    pub fn header(&self) -> &JournalHeader {
        &self.header
    }

    /// The frames that entries point into.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// Changes of the disk with this index in the header: sorted and disjoint, but in objects of
    /// version 1, where they are in the order in which they were made and later ones win.
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
        let records = self.frames.iter().map(|frame| &frame.record);
        index::content_id(&self.header, records, &self.entries)
    }

    /// The object itself.
    pub fn into_inner(self) -> R {
        self.object
    }
}

/// What the front of an object says, which is always in the clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Whose cycle it is.
    pub header: JournalHeader,
    /// The key that the rest needs; `None`: it is in the clear.
    pub key_id: Option<Uuid>,
    /// Set when it stands for several cycles.
    pub merged: Option<Merged>,
}

impl Outline {
    /// The VM's disks at the header's position; the header of a merged object may list more.
    pub fn present_disks(&self) -> &[JournalDisk] {
        present(&self.header, self.merged)
    }
}

fn present(header: &JournalHeader, merged: Option<Merged>) -> &[JournalDisk] {
    let count = merged.map_or(header.disks.len(), |merged| merged.present_disks as usize);
    header.disks.get(..count).unwrap_or(&header.disks)
}

/// Reads only the front of an object. Whether the rest is there is not looked at.
pub fn read_outline<R: ReadAt + ?Sized>(object: &R) -> Result<Outline, JournalError> {
    let prelude = read_prelude(object)?;
    Ok(Outline {
        header: prelude.header,
        key_id: prelude.envelope.key(),
        merged: prelude.merged,
    })
}

/// Reads only the header, which is always in the clear, and the id of the key that the rest needs.
/// Whether the rest is there is not looked at.
pub fn read_header<R: ReadAt + ?Sized>(
    object: &R,
) -> Result<(JournalHeader, Option<Uuid>), JournalError> {
    let prelude = read_prelude(object)?;
    Ok((prelude.header, prelude.envelope.key()))
}

fn read_prelude<R: ReadAt + ?Sized>(object: &R) -> Result<Prelude, JournalError> {
    let mut fixed = [0u8; format::PRELUDE_FIXED];
    object.read_exact_at(&mut fixed, 0)?;
    let mut cursor = Cursor(&fixed);
    if &cursor.array::<8>()? != format::MAGIC {
        return Err(JournalError::corrupt("no journal object (magic)"));
    }
    let version = Version::from_number(cursor.u32()?)?;
    let header_length = cursor.u32()? as usize;
    if header_length > format::MAX_HEADER {
        return Err(JournalError::corrupt("impossible header length"));
    }
    let body_end = format::PRELUDE_FIXED + header_length;
    let mut raw = vec![0u8; body_end + format::DIGEST];
    object.read_exact_at(&mut raw, 0)?;
    let (covered, stated) = raw.split_at(body_end);
    let digest = *blake3::hash(covered).as_bytes();
    if digest != stated {
        return Err(JournalError::corrupt("header does not verify"));
    }
    let (header, envelope, merged) =
        format::decode_header(version, &covered[format::PRELUDE_FIXED..])?;
    Ok(Prelude {
        version,
        header,
        envelope,
        merged,
        digest,
        length: raw.len() as u64,
    })
}

fn read_trailer<R: ReadAt + ?Sized>(
    object: &R,
    prelude: &Prelude,
) -> Result<(Trailer, u64), JournalError> {
    let mut raw = vec![0u8; prelude.version.trailer_length()];
    let at = object
        .len()?
        .checked_sub(raw.len() as u64)
        .filter(|at| *at >= prelude.length)
        .ok_or_else(|| JournalError::corrupt("object was cut"))?;
    object.read_exact_at(&mut raw, at)?;
    Ok((Trailer::decode(prelude.version, &raw)?, at))
}

/// Grows with what is really there, so a lie about the length costs nothing.
fn unpack_index(packed: &[u8], raw_length: u64) -> Result<Vec<u8>, JournalError> {
    let failed = |_| JournalError::corrupt("index does not unpack");
    let mut raw = Vec::new();
    zstd::stream::read::Decoder::new(packed)
        .map_err(failed)?
        .take(raw_length + 1)
        .read_to_end(&mut raw)
        .map_err(failed)?;
    Ok(raw)
}
