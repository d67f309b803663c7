//! Writing a journal object as a stream.

use std::io::Write;
use std::time::Duration;

use uuid::Uuid;

use super::cipher::{Envelope, ObjectCipher, TAG};
use super::compression::{CompressionLevel, FrameGauge};
use super::controller::CompressionController;
use super::coverage::Coverage;
use super::format::{self, IndexPlace};
use super::index::{self, Entry, EntryData, FrameRecord};
use super::{BLOCK, ContentId, FRAME_SIZE, JournalError, JournalHeader, Merged};
use crate::KeyRing;

/// The index is small and as regular as the guest's writes: effort pays.
const INDEX_LEVEL: i32 = 3;

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
    cipher: Option<ObjectCipher>,
    level: CompressionLevel,
    gauge: FrameGauge,
    compressor: Option<(CompressionLevel, zstd::bulk::Compressor<'static>)>,
    now: Option<fn() -> Duration>,
    at: u64,
    pending: Vec<u8>,
    frames: Vec<FrameRecord>,
    changes: Vec<Coverage>,
    work: Work,
    told: Work,
}

/// How an object is built.
#[derive(Clone, Copy, Debug, Default)]
pub struct BuildOptions<'a> {
    /// How hard frames are compressed; see also [`JournalBuilder::set_compression`].
    pub compression: CompressionLevel,
    /// Encrypts with the ring's active key, if it has one.
    pub encryption: Option<&'a KeyRing>,
    /// Set when the object stands for several cycles.
    pub merged: Option<Merged>,
}

/// What a builder has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes of data that went into frames.
    pub raw_bytes: u64,
    /// What they became.
    pub stored_bytes: u64,
    /// Time spent on compressing them.
    pub compressing: Duration,
    /// Of the bytes, those that no compressor was tried on, since the ones before did not shrink.
    pub untried_bytes: u64,
}

/// What a finished object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Identifies the content.
    pub content: ContentId,
    /// Size of the whole object.
    pub object_bytes: u64,
    /// Bytes of disk that it changes, zeroes included, each counted once.
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
        format::check_header(&header)?;
        if let Some(merged) = &options.merged {
            format::check_merged(&header, merged)?;
        }
        let envelope = Envelope::new(options.encryption)?;
        let prelude = format::prelude(&header, &envelope, options.merged.as_ref());
        let mut prelude_digest = [0u8; format::DIGEST];
        prelude_digest.copy_from_slice(&prelude[prelude.len() - format::DIGEST..]);
        let cipher = match options.encryption {
            Some(keys) => ObjectCipher::derive(&envelope, &prelude_digest, keys)?,
            None => None,
        };
        out.write_all(&prelude)?;
        let changes = header.disks.iter().map(|_| Coverage::default()).collect();
        Ok(JournalBuilder {
            out,
            header,
            prelude_digest,
            cipher,
            level: options.compression,
            gauge: FrameGauge::default(),
            compressor: None,
            now: None,
            at: prelude.len() as u64,
            pending: Vec::with_capacity(FRAME_SIZE),
            frames: Vec::new(),
            changes,
            work: Work::default(),
            told: Work::default(),
        })
    }

    /// Measures compression with a clock that only runs forward; without it [`Work`] counts no time.
    pub fn measured(mut self, now: fn() -> Duration) -> Self {
        self.now = Some(now);
        self
    }

    /// The writer; what has come to it so far is the beginning of the object.
    pub fn get_ref(&self) -> &W {
        &self.out
    }

    /// As [`JournalBuilder::get_ref`]. Bytes may be taken out of it, none may be added.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// From the next frame on, compresses this hard.
    pub fn set_compression(&mut self, level: CompressionLevel) {
        self.level = level;
    }

    /// What has been done so far.
    pub fn work(&self) -> Work {
        self.work
    }

    /// Tells the controller what was done since the last call, and takes the level it wants.
    pub fn adapt(&mut self, controller: &mut CompressionController) {
        let (now, told) = (self.work, self.told);
        let untried = now.untried_bytes - told.untried_bytes;
        controller.observe_compression(
            self.level,
            (now.raw_bytes - told.raw_bytes).saturating_sub(untried),
            (now.stored_bytes - told.stored_bytes).saturating_sub(untried),
            now.compressing.saturating_sub(told.compressing),
        );
        self.told = now;
        self.level = controller.level();
    }

    /// The disk has these bytes at `offset`. Later calls win where ranges overlap.
    pub fn write(&mut self, disk: Uuid, offset: u64, data: &[u8]) -> Result<(), JournalError> {
        let disk = self.place(disk, offset, data.len() as u64)?;
        let mut run = 0;
        let mut run_is_zero = None;
        let mut at = 0;
        while at < data.len() {
            let to_boundary = BLOCK - (offset + at as u64) % BLOCK;
            let next = data.len().min(at + to_boundary as usize);
            let zero = is_zero(&data[at..next]);
            if run_is_zero.is_some_and(|before| before != zero) {
                self.run(disk, offset + run as u64, &data[run..at], !zero)?;
                run = at;
            }
            run_is_zero = Some(zero);
            at = next;
        }
        match run_is_zero {
            Some(zero) => self.run(disk, offset + run as u64, &data[run..], zero),
            None => Ok(()),
        }
    }

    /// The disk has zeroes in this range.
    pub fn zero(&mut self, disk: Uuid, offset: u64, length: u64) -> Result<(), JournalError> {
        let disk = self.place(disk, offset, length)?;
        self.changes[disk].insert(Entry {
            offset,
            length,
            data: EntryData::Zeroes,
        });
        Ok(())
    }

    /// Writes index and trailer and gives the writer back, flushed but not synced.
    pub fn finish(mut self) -> Result<(W, Finished), JournalError> {
        self.end_frame()?;
        let entries: Vec<Vec<Entry>> = std::mem::take(&mut self.changes)
            .into_iter()
            .map(Coverage::into_entries)
            .collect();
        let raw = index::encode(&self.frames, &entries);
        if raw.len() as u64 > format::MAX_INDEX {
            return Err(JournalError::invalid("too many changes for one object"));
        }
        let packed = zstd::bulk::compress(&raw, INDEX_LEVEL)?;
        let compressed = packed.len() < raw.len();
        let raw_length = raw.len() as u64;
        let mut stored = if compressed { packed } else { raw };
        let sealed = if self.cipher.is_some() { TAG } else { 0 };
        let place = IndexPlace {
            offset: self.at,
            stored_length: (stored.len() + sealed) as u64,
            raw_length,
            compressed,
        };
        if let Some(cipher) = &self.cipher {
            cipher.seal_index(&place.numbers(), &mut stored)?;
        }
        let trailer = format::trailer(&self.prelude_digest, &place, &stored);
        self.out.write_all(&stored)?;
        self.out.write_all(&trailer)?;
        self.out.flush()?;
        let finished = Finished {
            content: index::content_id(&self.header, self.frames.iter(), &entries),
            object_bytes: self.at + place.stored_length + trailer.len() as u64,
            changed_bytes: entries.iter().flatten().map(|entry| entry.length).sum(),
        };
        Ok((self.out, finished))
    }

    fn place(&self, disk: Uuid, offset: u64, length: u64) -> Result<usize, JournalError> {
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
        Ok(index)
    }

    fn run(
        &mut self,
        disk: usize,
        offset: u64,
        data: &[u8],
        zero: bool,
    ) -> Result<(), JournalError> {
        let length = data.len() as u64;
        if zero {
            self.changes[disk].insert(Entry {
                offset,
                length,
                data: EntryData::Zeroes,
            });
            return Ok(());
        }
        // What still waits in the pending frame is overwritten there: nobody needs the older bytes.
        let number = self.frames.len();
        let mut done = 0;
        for held in self.changes[disk].within(offset..offset + length) {
            let EntryData::Frame { frame, at } = held.data else {
                continue;
            };
            if frame as usize != number || self.frames.len() != number {
                continue;
            }
            let start = (held.offset - offset) as usize;
            self.append(disk, offset + done as u64, &data[done..start])?;
            if self.frames.len() != number {
                done = start;
                continue;
            }
            done = start + held.length as usize;
            let at = at as usize;
            self.pending[at..at + held.length as usize].copy_from_slice(&data[start..done]);
        }
        self.append(disk, offset + done as u64, &data[done..])
    }

    fn append(&mut self, disk: usize, offset: u64, data: &[u8]) -> Result<(), JournalError> {
        let mut offset = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let room = FRAME_SIZE - self.pending.len();
            let (piece, tail) = rest.split_at(room.min(rest.len()));
            let data = EntryData::Frame {
                frame: self.frames.len() as u32,
                at: self.pending.len() as u32,
            };
            self.pending.extend_from_slice(piece);
            let length = piece.len() as u64;
            self.changes[disk].insert(Entry {
                offset,
                length,
                data,
            });
            offset += length;
            rest = tail;
            if self.pending.len() == FRAME_SIZE {
                self.end_frame()?;
            }
        }
        Ok(())
    }

    fn end_frame(&mut self) -> Result<(), JournalError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        if self.frames.len() >= index::MAX_FRAMES {
            return Err(JournalError::invalid("too many frames for one object"));
        }
        let raw_length = self.pending.len();
        let checksum = index::frame_checksum(&self.pending);
        let packed = self.compress()?;
        let compressed = packed.is_some();
        let mut stored = packed.unwrap_or_else(|| std::mem::take(&mut self.pending));
        self.work.raw_bytes += raw_length as u64;
        self.work.stored_bytes += stored.len() as u64;
        if let Some(cipher) = &self.cipher {
            cipher.seal_frame(self.frames.len() as u32, &mut stored)?;
        }
        self.out.write_all(&stored)?;
        self.frames.push(FrameRecord {
            offset: self.at,
            stored_length: stored.len() as u32,
            raw_length: raw_length as u32,
            compressed,
            checksum,
        });
        self.at += stored.len() as u64;
        if !compressed {
            self.pending = stored;
        }
        self.pending.clear();
        Ok(())
    }

    /// The pending frame, smaller; `None` when that does not pay.
    fn compress(&mut self) -> Result<Option<Vec<u8>>, JournalError> {
        let raw = self.pending.len();
        if self.level == CompressionLevel::STORE || !self.gauge.try_next() {
            self.work.untried_bytes += raw as u64;
            return Ok(None);
        }
        let begin = self.now.map(|now| now());
        let compressor = match &mut self.compressor {
            Some((level, compressor)) if *level == self.level => compressor,
            slot => {
                let level = i32::from(self.level.number());
                &mut slot
                    .insert((self.level, zstd::bulk::Compressor::new(level)?))
                    .1
            }
        };
        let packed = compressor.compress(&self.pending)?;
        if let (Some(now), Some(begin)) = (self.now, begin) {
            self.work.compressing += now().saturating_sub(begin);
        }
        Ok(self.gauge.pays(raw, packed.len()).then_some(packed))
    }
}

/// Whether all bytes are zero; in pieces that the processor compares at once.
fn is_zero(data: &[u8]) -> bool {
    data.chunks(64)
        .all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}
