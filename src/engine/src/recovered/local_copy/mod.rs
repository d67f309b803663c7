//! A disk of a recovery point on the recovery host: what was read of it stays, and [`fill`] fetches the rest, so that in the
//! end the guest of a recovered VM reads the store no more.
//!
//! ```text
//!  guest ─► NBD ─► here? ── yes ─► <disk>.copy      (sparse, as large as the disk)
//!                    └───── no ──► store ─► <disk>.copy, then a bit in the map
//!  now and then:  <disk>.copy is synced ─► <disk>.copy.map is replaced
//! ```
//!
//! Promise: what is read through here is what the point holds. A bit is set on disk only after the data that it stands for is
//! durable there, so a kill or a power cut costs fetching some blocks again. A copy that can't be read or written is done
//! without: the guest's reads go to the store as before. One copy of a disk is open at a time.

pub mod fill;
mod map;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::durable::{self, Access};
use crate::platform::FileAt as _;
use crate::replicator::hashes::is_zero;
use crate::task::blocking;
pub use map::BLOCK;
use map::Map;

/// One disk.
pub struct LocalCopy {
    disk: Uuid,
    size_bytes: u64,
    file: Arc<File>,
    map_path: PathBuf,
    map: Mutex<Map>,
    /// Reads of the guest that go to the store just now.
    reading: AtomicUsize,
    /// Rings when the last of them ends.
    idle: Notify,
    /// There is room for more; until somebody says so nothing is kept.
    keeps: AtomicBool,
    /// It is not read or written any more.
    broken: AtomicBool,
    /// Nothing of it is on the disk any more.
    discarded: AtomicBool,
}

/// Where a disk's copy is.
fn path_of(folder: &Path, disk: Uuid) -> PathBuf {
    folder.join(format!("{disk}.copy"))
}

fn map_of(folder: &Path, disk: Uuid) -> PathBuf {
    folder.join(format!("{disk}.copy.map"))
}

/// Removes the copies in a folder of a VM that needs them no more.
///
/// # Errors
/// When the folder can't be read, or a file in it not removed.
pub fn remove_all(folder: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if is_of_copy(&name) {
            durable::remove(&path)?;
        }
    }
    Ok(())
}

/// Whether a file is a copy of a disk, or its map, finished or not. Whatever else lies beside them is the VM's.
fn is_of_copy(name: &str) -> bool {
    let name = name.trim_start_matches('.');
    let Some((id, rest)) = name.split_once(".copy") else {
        return false;
    };
    id.parse::<Uuid>().is_ok() && (rest.is_empty() || rest == ".map" || rest.starts_with(".map."))
}

impl LocalCopy {
    /// Opens the copy of a disk at a point, or begins one.
    ///
    /// # Errors
    /// When its files can't be made or read.
    pub fn open(folder: &Path, point: Uuid, disk: Uuid, size_bytes: u64) -> io::Result<Self> {
        let (path, map_path) = (path_of(folder, disk), map_of(folder, disk));
        let known = Map::read(&map_path, point, disk, size_bytes)?;
        let file = File::options().read(true).write(true).open(&path);
        let (file, map) = match (known, file) {
            (Some(map), Ok(file)) if file.metadata()?.len() == size_bytes => (file, map),
            (_, Err(error)) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {
                // The map goes first: it must never name data of another copy.
                durable::remove(&map_path)?;
                let file = durable::create_empty(&path, Access::Plain)?;
                file.set_len(size_bytes)?;
                // The file is of this point from here on, and is not made anew by the next one that opens it.
                file.sync_all()?;
                let map = Map::empty(point, disk, size_bytes);
                map.write(&map_path)?;
                (file, map)
            }
        };
        Ok(Self {
            disk,
            size_bytes,
            file: Arc::new(file),
            map_path,
            map: Mutex::new(map),
            reading: AtomicUsize::new(0),
            idle: Notify::new(),
            keeps: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            discarded: AtomicBool::new(false),
        })
    }

    /// Which disk it is.
    pub fn disk(&self) -> Uuid {
        self.disk
    }

    /// Bytes that are here, and bytes of the disk. Of a copy that is done without nothing is here.
    pub fn progress(&self) -> (u64, u64) {
        if self.is_broken() {
            return (0, self.size_bytes);
        }
        (self.with_map(|map| map.present_bytes()), self.size_bytes)
    }

    /// Whether what is read from the store is kept from here on.
    pub fn keep_more(&self, keep: bool) {
        self.keeps.store(keep, Ordering::Release);
    }

    /// Does without the copy and gives its room back: the guests of this host need it.
    ///
    /// # Errors
    /// When the files can't be changed; the copy is done without nevertheless.
    pub async fn discard(&self) -> io::Result<()> {
        self.broken.store(true, Ordering::Release);
        let (file, path) = (self.file.clone(), self.map_path.clone());
        blocking(move || {
            // First the map: it must never name data that is gone.
            durable::remove(&path)?;
            file.set_len(0)
        })
        .await?;
        self.discarded.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether its room was given back.
    pub fn is_discarded(&self) -> bool {
        self.discarded.load(Ordering::Acquire)
    }

    /// Whether the store is needed no more.
    pub fn is_complete(&self) -> bool {
        !self.is_broken() && self.with_map(|map| map.is_complete())
    }

    /// Whether the copy is done without.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Reads `length` bytes at `offset`; `read` gets them from the store, in whole blocks.
    ///
    /// # Errors
    /// Those of `read`.
    pub async fn read<E, F>(
        &self,
        offset: u64,
        length: usize,
        read: impl Fn(u64, usize) -> F,
    ) -> Result<Bytes, E>
    where
        F: Future<Output = Result<Bytes, E>>,
    {
        let end = offset.saturating_add(length as u64);
        // What lies outside is refused by the reader of the store, in its words.
        if length == 0 || end > self.size_bytes || self.is_broken() {
            return read(offset, length).await;
        }
        if self.with_map(|map| map.holds(offset, length as u64)) {
            match self.local(offset, length).await {
                // A discard marks the copy before it cuts the file, so what was read before that mark is the point's.
                Ok(bytes) if !self.is_broken() => return Ok(bytes),
                Ok(_) => {}
                Err(error) => self.give_up("read", &error),
            }
            return read(offset, length).await;
        }
        if !self.keeps.load(Ordering::Acquire) {
            return read(offset, length).await;
        }
        let busy = self.busy();
        let start = offset / BLOCK * BLOCK;
        let upto = end
            .div_ceil(BLOCK)
            .saturating_mul(BLOCK)
            .min(self.size_bytes);
        let bytes = read(start, (upto - start) as usize).await?;
        drop(busy);
        self.keep(start, bytes.clone()).await;
        let from = (offset - start) as usize;
        // A reader that gives less than was asked for is the caller's to judge.
        Ok(bytes.slice(from.min(bytes.len())..(from + length).min(bytes.len())))
    }

    /// Keeps whole blocks that were read at `start`.
    async fn keep(&self, start: u64, bytes: Bytes) {
        if self.is_broken() {
            return;
        }
        let file = self.file.clone();
        let written = blocking({
            let bytes = bytes.clone();
            move || write_blocks(&file, start, &bytes)
        })
        .await;
        match written {
            Ok(()) => {
                let first = start / BLOCK;
                let is_to_end = start + bytes.len() as u64 == self.size_bytes;
                let whole = bytes.len() as u64 / BLOCK;
                let blocks =
                    whole + u64::from(is_to_end && !(bytes.len() as u64).is_multiple_of(BLOCK));
                self.with_map(|map| (first..first + blocks).for_each(|block| map.set(block)));
            }
            Err(error) => self.give_up("write", &error),
        }
    }

    async fn local(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let file = self.file.clone();
        blocking(move || {
            let mut bytes = BytesMut::zeroed(length);
            file.read_exact_at(&mut bytes, offset)?;
            Ok(bytes.freeze())
        })
        .await
    }

    /// Makes durable what is here: first the data, then the map as it was before that.
    ///
    /// # Errors
    /// When a file can't be synced or written; the copy is done without from then on.
    pub async fn checkpoint(&self) -> io::Result<()> {
        let map = self.with_map(|map| map.clone());
        let (file, path) = (self.file.clone(), self.map_path.clone());
        let done = blocking(move || {
            file.sync_data()?;
            map.write(&path)
        })
        .await;
        if let Err(error) = &done {
            self.give_up("sync", error);
        }
        done
    }

    /// Does without the copy from here on. What is durable of it stays right.
    fn give_up(&self, what: &str, error: &io::Error) {
        if !self.broken.swap(true, Ordering::AcqRel) {
            tracing::warn!(disk = %self.disk, what, %error, "the local copy of a recovery point is done without");
        }
    }

    fn busy(&self) -> Busy<'_> {
        self.reading.fetch_add(1, Ordering::AcqRel);
        Busy(self)
    }

    fn with_map<T>(&self, look: impl FnOnce(&mut Map) -> T) -> T {
        look(&mut self.map.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A read of the guest that is under way in the store.
struct Busy<'a>(&'a LocalCopy);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if self.0.reading.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// Writes blocks; those that are zero stay holes.
fn write_blocks(file: &File, start: u64, bytes: &[u8]) -> io::Result<()> {
    for (index, block) in bytes.chunks(BLOCK as usize).enumerate() {
        if !is_zero(block) {
            file.write_all_at(block, start + index as u64 * BLOCK)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
