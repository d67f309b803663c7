//! Block hashes of a disk as the store holds it: what tells, without asking the store, which blocks differ.
//!
//! ```text
//! dirty extents ─► read the source ─► hash each 4 KiB ─┬─ as in the map: not sent
//!                                                      └─ other, or unknown: sent
//! shipped cycle ─► its log ─► map: pages, sync ─► header says its position, sync ─► log removed
//! ```
//!
//! A map describes the newest position that is in the store, never a cycle that still waits. Logs of waiting
//! cycles are its write-ahead log: after a crash the same log is applied again, which changes nothing. While
//! pages are half written the header still names the old position; they verify or they are unknown.
//!
//! Promise: a block that the map calls known has the content that the replica has at the header's position.
//! What may go wrong makes blocks unknown, and unknown blocks are sent. Memory: [`AT_ONCE`] pages at a time.

mod file;
mod format;

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use format::{HEADER_PAGES, PAGE, PAGE_HASHES};

pub use file::{MapFile, create, open};
pub use format::{BLOCK, BlockHash, Header, MapKey, is_zero};

/// Pages that are read and written with one call each: what a call costs counts, a map of a large disk has many pages.
const AT_ONCE: u64 = 64;

/// A map that is open.
pub struct BlockMap {
    file: Box<dyn MapFile>,
    key: MapKey,
    /// Held while pages are written, too: there is one writer.
    current: Mutex<Current>,
}

#[derive(Clone)]
struct Current {
    header: Header,
    sequence: u64,
}

impl BlockMap {
    /// Starts a map in an empty file; durable when it returns.
    pub fn create(file: Box<dyn MapFile>, header: Header) -> io::Result<Self> {
        let key = MapKey::random();
        let bytes = format::encode_header(&header, &key, 1);
        file.write_at(&bytes, PAGE as u64)?;
        file.sync()?;
        Ok(Self {
            file,
            key,
            current: Mutex::new(Current {
                header,
                sequence: 1,
            }),
        })
    }

    /// Opens a map; `None` when there is none in the file that can be trusted.
    pub fn open(file: Box<dyn MapFile>) -> io::Result<Option<Self>> {
        let mut slots = vec![0; PAGE * HEADER_PAGES as usize];
        let length = file.read_at(&mut slots, 0)?;
        let newest = slots[..length]
            .chunks(PAGE)
            .filter_map(format::decode_header)
            .max_by_key(|(_, _, sequence)| *sequence);
        Ok(newest.map(|(header, key, sequence)| Self {
            file,
            key,
            current: Mutex::new(Current { header, sequence }),
        }))
    }

    /// What the map says about itself, durably.
    pub fn header(&self) -> Header {
        self.lock().header.clone()
    }

    /// What the hashes of this map are made with.
    pub fn key(&self) -> &MapKey {
        &self.key
    }

    /// What is known of `count` blocks from `first` on. Damage reads as unknown.
    pub fn get(&self, first: u64, count: usize) -> io::Result<Vec<BlockHash>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let unwritten = unwritten(&self.lock().header);
        let (first_page, skip) = format::place(first);
        let (last_page, _) = format::place(first + count as u64 - 1);
        let pages = (last_page - first_page + 1) as usize;
        let mut bytes = vec![0; pages * PAGE];
        // Behind the end of the file nothing was written.
        self.file
            .read_at(&mut bytes, format::page_offset(first_page))?;
        let mut hashes = Vec::with_capacity(pages * PAGE_HASHES as usize);
        for (page, bytes) in (first_page..).zip(bytes.chunks_exact(PAGE)) {
            hashes.extend(self.decode(page, bytes, unwritten));
        }
        Ok(hashes.split_off(skip).into_iter().take(count).collect())
    }

    /// Notes what blocks from `first` on hold. Counts from the next [`BlockMap::commit`] on: until then the header
    /// names a position at which these blocks may have had other content.
    pub fn set(&self, first: u64, hashes: &[BlockHash]) -> io::Result<()> {
        let current = self.lock();
        let unwritten = unwritten(&current.header);
        let (mut block, mut rest) = (first, hashes);
        while !rest.is_empty() {
            let (page, at) = format::place(block);
            let room = (AT_ONCE * PAGE_HASHES) as usize - at;
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.set_pages(page, at, now, unwritten)?;
            block += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// As [`BlockMap::set`], from hash `at` of page `first` on.
    fn set_pages(
        &self,
        first: u64,
        at: usize,
        hashes: &[BlockHash],
        unwritten: BlockHash,
    ) -> io::Result<()> {
        let count = (at + hashes.len()).div_ceil(PAGE_HASHES as usize);
        let mut bytes = vec![0; count * PAGE];
        self.file.read_at(&mut bytes, format::page_offset(first))?;
        let mut rest = hashes;
        let mut skip = at;
        // Neighbours that change: they are written together.
        let mut changed: Option<(u64, Vec<u8>)> = None;
        for (page, old) in (first..).zip(bytes.chunks_exact(PAGE)) {
            let (now, later) = rest.split_at(rest.len().min(PAGE_HASHES as usize - skip));
            let mut content = self.decode(page, old, unwritten);
            let place = &mut content[skip..skip + now.len()];
            // What is as it was, holes above all, is not written again.
            if *place == *now {
                self.write_pages(changed.take())?;
            } else {
                place.copy_from_slice(now);
                let new = format::encode_page(&self.key, page, &content);
                changed.get_or_insert((page, Vec::new())).1.extend(new);
            }
            (rest, skip) = (later, 0);
        }
        self.write_pages(changed)
    }

    fn write_pages(&self, pages: Option<(u64, Vec<u8>)>) -> io::Result<()> {
        match pages {
            Some((first, bytes)) => self.file.write_at(&bytes, format::page_offset(first)),
            None => Ok(()),
        }
    }

    /// Makes all that was set durable, then the changed header that vouches for it.
    pub fn commit(&self, change: impl FnOnce(&mut Header)) -> io::Result<()> {
        let mut current = self.lock();
        self.file.sync()?;
        let mut next = current.clone();
        change(&mut next.header);
        next.sequence += 1;
        let bytes = format::encode_header(&next.header, &self.key, next.sequence);
        // The other slot, so that the header in force is whole until this one is.
        let slot = next.sequence % HEADER_PAGES;
        self.file.write_at(&bytes, slot * PAGE as u64)?;
        self.file.sync()?;
        *current = next;
        Ok(())
    }

    fn decode(&self, page: u64, bytes: &[u8], unwritten: BlockHash) -> Vec<BlockHash> {
        format::decode_page(&self.key, page, bytes, unwritten)
            .unwrap_or_else(|| vec![BlockHash::UNKNOWN; PAGE_HASHES as usize])
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        // Changed by one assignment, after the file was.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unwritten(header: &Header) -> BlockHash {
    if header.unwritten_is_unknown {
        BlockHash::UNKNOWN
    } else {
        BlockHash::ZERO
    }
}

#[cfg(test)]
mod tests;
