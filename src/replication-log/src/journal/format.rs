//! Prelude and trailer of a journal object: the only place that knows them.
//!
//! ```text
//! header 1    generation u64 | position u64 | time i64 | item length u16 | item
//!             | disks u32 | per disk: id 16, size u64
//! header 2    header 1 | key id 16 (nil: in the clear) | salt 32
//! header 3    header 2 | first position u64 | present disks u32
//! trailer 1   index offset u64 | index length u64 | digest 32 | magic
//! trailer 2, 3  index offset u64 | stored length u64 | raw length u64 | encoding u32 (0 stored, 1 zstd) | 0 u32
//!             | digest 32 | magic
//! ```

use uuid::Uuid;

use super::cipher::Envelope;
use super::cursor::Cursor;
use super::{JournalDisk, JournalError, JournalErrorKind, JournalHeader, Merged};

pub(super) const MAGIC: &[u8; 8] = b"SRJRNL\r\n";
const TRAILER_MAGIC: &[u8; 8] = b"SRJEND\r\n";
pub(super) const PRELUDE_FIXED: usize = 16;
pub(super) const DIGEST: usize = 32;
const MAX_ITEM: usize = 1024;
const MAX_DISKS: usize = 1024;
pub(super) const MAX_HEADER: usize = 26 + MAX_ITEM + 4 + MAX_DISKS * 24 + 48 + 12;
/// An index of a terabyte of 64 KiB changes has 800 MB; nothing honest is larger.
pub(super) const MAX_INDEX: u64 = 1 << 30;

/// Versions of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// First release: entries in the order of the writes, no encryption, index as it is.
    One,
    /// Sorted, disjoint entries; packed index; encryption.
    Two,
    /// As two, and stands for several cycles.
    Three,
}

impl Version {
    pub(super) fn from_number(number: u32) -> Result<Version, JournalError> {
        match number {
            1 => Ok(Version::One),
            2 => Ok(Version::Two),
            3 => Ok(Version::Three),
            other => Err(JournalError::new(
                JournalErrorKind::Unsupported,
                format!("version {other} is unknown to this program: use a newer one"),
            )),
        }
    }

    pub(super) fn trailer_length(self) -> usize {
        let numbers = match self {
            Version::One => 16,
            Version::Two | Version::Three => 32,
        };
        numbers + DIGEST + TRAILER_MAGIC.len()
    }
}

/// Everything in front of the frames, in the present version; ends with the digest of the rest.
pub(super) fn prelude(
    header: &JournalHeader,
    envelope: &Envelope,
    merged: Option<&Merged>,
) -> Vec<u8> {
    let mut body = encode_header(header);
    body.extend_from_slice(envelope.key_id.as_bytes());
    body.extend_from_slice(&envelope.salt);
    if let Some(merged) = merged {
        body.extend_from_slice(&merged.first_position.to_le_bytes());
        body.extend_from_slice(&merged.present_disks.to_le_bytes());
    }
    let version = if merged.is_some() { 3u32 } else { 2u32 };
    let mut out = Vec::with_capacity(PRELUDE_FIXED + body.len() + DIGEST);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&body);
    let digest = blake3::hash(&out);
    out.extend_from_slice(digest.as_bytes());
    out
}

/// The header as version 1 has it; what [`super::ContentId`] is made of in every version.
pub(super) fn encode_header(header: &JournalHeader) -> Vec<u8> {
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

pub(super) fn check_merged(header: &JournalHeader, merged: &Merged) -> Result<(), JournalError> {
    if merged.first_position > header.position || merged.present_disks as usize > header.disks.len()
    {
        return Err(JournalError::invalid(
            "a merged object begins behind its end, or has more disks than it lists",
        ));
    }
    Ok(())
}

pub(super) fn decode_header(
    version: Version,
    raw: &[u8],
) -> Result<(JournalHeader, Envelope, Option<Merged>), JournalError> {
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
    let envelope = match version {
        Version::One => Envelope::default(),
        Version::Two | Version::Three => Envelope {
            key_id: Uuid::from_bytes(cursor.array()?),
            salt: cursor.array()?,
        },
    };
    let merged = match version {
        Version::One | Version::Two => None,
        Version::Three => Some(Merged {
            first_position: cursor.u64()?,
            present_disks: cursor.u32()?,
        }),
    };
    cursor.end()?;
    let header = JournalHeader {
        item,
        generation,
        position,
        time_unix_ms,
        disks,
    };
    let checked = match &merged {
        Some(merged) => check_header(&header).and_then(|()| check_merged(&header, merged)),
        None => check_header(&header),
    };
    checked.map_err(|_| JournalError::corrupt("impossible header"))?;
    Ok((header, envelope, merged))
}

/// Where the index is and how it is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IndexPlace {
    pub(super) offset: u64,
    pub(super) stored_length: u64,
    pub(super) raw_length: u64,
    pub(super) compressed: bool,
}

impl IndexPlace {
    /// As the trailer of the present version begins; also what encryption of the index vouches for.
    pub(super) fn numbers(&self) -> [u8; 32] {
        let mut out = [0u8; 32];
        out[0..8].copy_from_slice(&self.offset.to_le_bytes());
        out[8..16].copy_from_slice(&self.stored_length.to_le_bytes());
        out[16..24].copy_from_slice(&self.raw_length.to_le_bytes());
        out[24..28].copy_from_slice(&u32::from(self.compressed).to_le_bytes());
        out
    }
}

/// The end of an object of the present version.
pub(super) fn trailer(prelude_digest: &[u8], place: &IndexPlace, index: &[u8]) -> Vec<u8> {
    let numbers = place.numbers();
    let mut out = numbers.to_vec();
    out.extend_from_slice(&digest(prelude_digest, &numbers, index));
    out.extend_from_slice(TRAILER_MAGIC);
    out
}

/// A trailer that was read; its digest is checked once the index is there.
pub(super) struct Trailer {
    pub(super) place: IndexPlace,
    numbers: Vec<u8>,
    digest: [u8; DIGEST],
}

impl Trailer {
    /// `raw` has the length that the version says.
    pub(super) fn decode(version: Version, raw: &[u8]) -> Result<Trailer, JournalError> {
        let mut cursor = Cursor(raw);
        let offset = cursor.u64()?;
        let stored_length = cursor.u64()?;
        let (raw_length, encoding, reserved) = match version {
            Version::One => (stored_length, 0, 0),
            Version::Two | Version::Three => (cursor.u64()?, cursor.u32()?, cursor.u32()?),
        };
        let digest = cursor.array()?;
        if &cursor.array::<8>()? != TRAILER_MAGIC {
            return Err(JournalError::corrupt("object was cut (no trailer)"));
        }
        if encoding > 1 || reserved != 0 || raw_length > MAX_INDEX || stored_length > MAX_INDEX {
            return Err(JournalError::corrupt("impossible index"));
        }
        let numbers = raw[..raw.len() - DIGEST - TRAILER_MAGIC.len()].to_vec();
        Ok(Trailer {
            place: IndexPlace {
                offset,
                stored_length,
                raw_length,
                compressed: encoding == 1,
            },
            numbers,
            digest,
        })
    }

    pub(super) fn verifies(&self, prelude_digest: &[u8], index: &[u8]) -> bool {
        digest(prelude_digest, &self.numbers, index) == self.digest
    }
}

fn digest(prelude_digest: &[u8], numbers: &[u8], index: &[u8]) -> [u8; DIGEST] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(prelude_digest);
    hasher.update(numbers);
    hasher.update(index);
    *hasher.finalize().as_bytes()
}
