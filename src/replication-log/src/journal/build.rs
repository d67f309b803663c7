//! Writing a journal object as a stream.

use std::io::Write;

use uuid::Uuid;

use super::format;
use super::read::{Entry, EntryData, Frame};
use super::{CompressionLevel, ContentId, FRAME_SIZE, JournalError, JournalHeader};
use crate::KeyRing;

/// Level 1: a host's cycle must not wait for its compressor.
const ZSTD_LEVEL: i32 = 1;

/// Builds one object into a writer. Small writes share a frame, large ones are cut.
///
/// ```
/// # use replication_log::journal::*;
/// # let disk = uuid::Uuid::from_u128(1);
/// let header = JournalHeader {
///     item: "vm".to_owned(), generation: 1, position: 1, time_unix_ms: 0,
///     disks: vec![JournalDisk { id: disk, size_bytes: 1 << 20 }],
/// };
/// let mut builder = JournalBuilder::new(Vec::new(), header)?;
/// builder.write(disk, 4096, b"changed")?;
/// builder.zero(disk, 65536, 65536)?;
/// let (object, done) = builder.finish()?;
/// assert_eq!(done.object_bytes, object.len() as u64);
/// # Ok::<(), JournalError>(())
/// ```
pub struct JournalBuilder<W> {
    out: W,
    header: JournalHeader,
    prelude_digest: [u8; format::DIGEST],
    at: u64,
    pending: Vec<u8>,
    frames: Vec<Frame>,
    entries: Vec<Vec<Entry>>,
    changed_bytes: u64,
}

/// How an object is built.
#[derive(Clone, Copy, Debug, Default)]
pub struct BuildOptions<'a> {
    /// How hard frames are compressed; see also [`JournalBuilder::set_compression`].
    pub compression: CompressionLevel,
    /// Encrypts with the ring's active key, if it has one.
    pub encryption: Option<&'a KeyRing>,
}

/// What a finished object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Identifies the content.
    pub content: ContentId,
    /// Size of the whole object.
    pub object_bytes: u64,
    /// Bytes of disk that it changes, zeroes included.
    pub changed_bytes: u64,
}

impl<W: Write> JournalBuilder<W> {
    /// Starts an object in the clear, fastest compression.
    pub fn new(out: W, header: JournalHeader) -> Result<Self, JournalError> {
        Self::with_options(out, header, BuildOptions::default())
    }

    /// Starts an object at the writer's present place.
    pub fn with_options(
        mut out: W,
        header: JournalHeader,
        options: BuildOptions<'_>,
    ) -> Result<Self, JournalError> {
        let _ = options;
        format::check_header(&header)?;
        let prelude = format::prelude(&header);
        out.write_all(&prelude)?;
        let mut prelude_digest = [0u8; format::DIGEST];
        prelude_digest.copy_from_slice(&prelude[prelude.len() - format::DIGEST..]);
        let entries = header.disks.iter().map(|_| Vec::new()).collect();
        Ok(JournalBuilder {
            out,
            header,
            prelude_digest,
            at: prelude.len() as u64,
            pending: Vec::with_capacity(FRAME_SIZE),
            frames: Vec::new(),
            entries,
            changed_bytes: 0,
        })
    }

    /// From the next frame on, compresses this hard.
    pub fn set_compression(&mut self, _level: CompressionLevel) {}

    /// The disk has these bytes at `offset`. Later calls win where ranges overlap.
    pub fn write(&mut self, disk: Uuid, offset: u64, data: &[u8]) -> Result<(), JournalError> {
        let disk = self.place(disk, offset, data.len() as u64)?;
        let mut offset = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let room = FRAME_SIZE - self.pending.len();
            let (piece, tail) = rest.split_at(room.min(rest.len()));
            let at = self.pending.len() as u32;
            self.pending.extend_from_slice(piece);
            let frame = self.frames.len() as u32;
            self.entries[disk].push(Entry {
                offset,
                length: piece.len() as u64,
                data: EntryData::Frame { frame, at },
            });
            offset += piece.len() as u64;
            rest = tail;
            if self.pending.len() == FRAME_SIZE {
                self.end_frame()?;
            }
        }
        Ok(())
    }

    /// The disk has zeroes in this range.
    pub fn zero(&mut self, disk: Uuid, offset: u64, length: u64) -> Result<(), JournalError> {
        let disk = self.place(disk, offset, length)?;
        if length > 0 {
            self.entries[disk].push(Entry {
                offset,
                length,
                data: EntryData::Zeroes,
            });
        }
        Ok(())
    }

    /// Writes index and trailer and gives the writer back, flushed but not synced.
    pub fn finish(mut self) -> Result<(W, Finished), JournalError> {
        self.end_frame()?;
        let index = format::encode_index(&self.frames, &self.entries);
        if index.len() as u64 > format::MAX_INDEX {
            return Err(JournalError::invalid("too many changes for one object"));
        }
        let trailer = format::trailer(&self.prelude_digest, self.at, &index);
        self.out.write_all(&index)?;
        self.out.write_all(&trailer)?;
        self.out.flush()?;
        let content = format::content_id(&self.header, &self.frames, &self.entries);
        let object_bytes = self.at + index.len() as u64 + trailer.len() as u64;
        let finished = Finished {
            content,
            object_bytes,
            changed_bytes: self.changed_bytes,
        };
        Ok((self.out, finished))
    }

    fn place(&mut self, disk: Uuid, offset: u64, length: u64) -> Result<usize, JournalError> {
        let index = self
            .header
            .disks
            .iter()
            .position(|candidate| candidate.id == disk)
            .ok_or_else(|| JournalError::invalid(format!("disk {disk} is not in the header")))?;
        let size = self.header.disks[index].size_bytes;
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(JournalError::invalid(format!(
                "{length} bytes at {offset} are outside disk {disk} of {size} bytes"
            )));
        }
        self.changed_bytes = self.changed_bytes.saturating_add(length);
        Ok(index)
    }

    fn end_frame(&mut self) -> Result<(), JournalError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        if self.frames.len() as u64 >= u64::from(format::ZEROES) {
            return Err(JournalError::invalid("too many frames for one object"));
        }
        let packed = zstd::bulk::compress(&self.pending, ZSTD_LEVEL)?;
        let compressed = packed.len() < self.pending.len();
        let stored = if compressed { &packed } else { &self.pending };
        self.out.write_all(stored)?;
        self.frames.push(Frame {
            offset: self.at,
            stored_length: stored.len() as u32,
            raw_length: self.pending.len() as u32,
            compressed,
            checksum: format::frame_checksum(&self.pending),
        });
        self.at += stored.len() as u64;
        self.pending.clear();
        Ok(())
    }
}
