//! The maps of block hashes of one item's disks: opened, redone after a crash, kept in step with the store.
//!
//! ```text
//! <data>/state/<item>.hashes/<disk>.map
//! ```
//!
//! A map is trusted when it is of this disk, replica and generation, and no shipped cycle has changed the disk
//! since its position. Otherwise a new one is begun in which every block is unknown; it learns from what is
//! shipped and compared. Without a map (its file can't be written) replication goes on and sends what trackers say.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use hypervisor::DiskId;

use super::hashes::{self, BLOCK, BlockHash, BlockMap, Header};
use super::state::{CycleRecord, DiskLog, ItemDisk, ItemState, open_log};
use crate::durable;

/// Blocks that are noted at once.
const BATCH: usize = 4096;

/// The maps of an item.
pub(super) struct Maps {
    folder: PathBuf,
    open: Mutex<BTreeMap<DiskId, Arc<BlockMap>>>,
}

impl Maps {
    /// None is open.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            open: Mutex::default(),
        }
    }

    /// The map of a disk.
    pub fn get(&self, disk: DiskId) -> Option<Arc<BlockMap>> {
        self.lock().get(&disk).cloned()
    }

    /// Opens the maps of all disks. `left` is a shipped cycle whose logs are still there: it is applied where needed.
    pub fn open_all(&self, state: &ItemState, left: Option<&CycleRecord>) {
        for disk in &state.disks {
            if self.open_one(state, disk, left).unwrap_or_else(|error| {
                tracing::warn!(disk = %disk.id, %error, "map of block hashes can't be used");
                false
            }) {
                continue;
            }
            if state.complete {
                self.begin_unknown(state, disk);
            }
        }
    }

    fn open_one(
        &self,
        state: &ItemState,
        disk: &ItemDisk,
        left: Option<&CycleRecord>,
    ) -> io::Result<bool> {
        let Some(file) = hashes::open(&self.path(disk.id))? else {
            return Ok(false);
        };
        let Some(map) = BlockMap::open(Box::new(file))? else {
            return Ok(false);
        };
        let header = map.header();
        let ours = header.disk == disk.id.0
            && header.replica == state.replica
            && header.generation == state.generation
            && header.size_bytes == disk.size_bytes
            && header.position <= state.shipped;
        if !ours {
            return Ok(false);
        }
        if header.position < disk.changed_at {
            // Shipped, but cut before it was noted here. Its log was kept for this.
            let log = left
                .filter(|record| record.position == disk.changed_at)
                .filter(|_| header.position >= disk.changed_before)
                .and_then(|record| record.logs.iter().find(|log| log.disk == disk.id));
            match log {
                Some(log) => apply(&map, log, disk.size_bytes, disk.changed_at)?,
                None => return Ok(false),
            }
        }
        if state.complete && header.filled_to.is_some() {
            // Cut between the end of initial replication and its mark here; short of the end it knows too little.
            if header.filled_to < Some(disk.size_bytes) {
                return Ok(false);
            }
            map.commit(|header| header.filled_to = None)?;
        }
        self.lock().insert(disk.id, Arc::new(map));
        Ok(true)
    }

    /// Begins a map in which no block is known.
    pub fn begin_unknown(&self, state: &ItemState, disk: &ItemDisk) -> Option<Arc<BlockMap>> {
        let header = Header {
            position: state.shipped,
            unwritten_is_unknown: true,
            ..header(state, disk)
        };
        tracing::info!(disk = %disk.id, "a new map of block hashes is begun");
        self.begin(disk.id, header)
    }

    /// Begins the map of an empty base that is about to be filled.
    pub fn begin_filling(&self, state: &ItemState, disk: &ItemDisk) -> Option<Arc<BlockMap>> {
        let header = Header {
            filled_to: Some(0),
            ..header(state, disk)
        };
        self.begin(disk.id, header)
    }

    /// Base is whole.
    pub fn filled(&self, disk: DiskId) {
        if let Some(map) = self.get(disk)
            && let Err(error) = map.commit(|header| header.filled_to = None)
        {
            tracing::warn!(%disk, %error, "map of block hashes can't be kept");
            self.lock().remove(&disk);
        }
    }

    fn begin(&self, disk: DiskId, header: Header) -> Option<Arc<BlockMap>> {
        let made = hashes::create(&self.path(disk))
            .and_then(|file| BlockMap::create(Box::new(file), header));
        match made {
            Ok(map) => {
                let map = Arc::new(map);
                self.lock().insert(disk, map.clone());
                Some(map)
            }
            Err(error) => {
                tracing::warn!(%disk, %error, "no map of block hashes can be kept; whole tracked ranges are sent");
                self.lock().remove(&disk);
                None
            }
        }
    }

    /// A cycle is in the store, and the item's state says so: notes what its logs hold.
    pub fn shipped(&self, state: &ItemState, record: &CycleRecord) {
        for log in &record.logs {
            let (Some(map), Some(disk)) = (
                self.get(log.disk),
                state.disks.iter().find(|disk| disk.id == log.disk),
            ) else {
                continue;
            };
            if let Err(error) = apply(&map, log, disk.size_bytes, record.position) {
                tracing::warn!(disk = %log.disk, %error, "map of block hashes can't follow");
                self.lock().remove(&log.disk);
                self.begin_unknown(state, disk);
            }
        }
    }

    /// The store is not where these maps are: every block is unknown.
    pub fn reset(&self, state: &ItemState) {
        self.lock().clear();
        for disk in &state.disks {
            self.begin_unknown(state, disk);
        }
    }

    /// Removes the map of a disk, durably: before the store begins to hold something else than it tells, or when the
    /// disk is no longer replicated.
    pub fn drop_disk(&self, disk: DiskId) -> io::Result<()> {
        self.lock().remove(&disk);
        durable::remove_if_there(&self.path(disk))
    }

    /// Base of the disk begins anew, or as something else: nothing of it is known, whatever fails from here on.
    pub fn begin_anew(&self, state: &ItemState, disk: DiskId) -> io::Result<()> {
        self.drop_disk(disk)?;
        if let Some(disk) = state.disks.iter().find(|known| known.id == disk) {
            self.begin_unknown(state, disk);
        }
        Ok(())
    }

    /// The disk has grown. The replica holds zeroes there, which is what the map says of blocks never written.
    pub fn grown(&self, disk: DiskId, size_bytes: u64) {
        let Some(map) = self.get(disk) else { return };
        let result = (|| {
            let before = map.header().size_bytes;
            if !before.is_multiple_of(BLOCK) {
                // Its last block was hashed shorter than it is now.
                map.set(before / BLOCK, &[BlockHash::UNKNOWN])?;
            }
            map.commit(|header| header.size_bytes = size_bytes)
        })();
        if let Err(error) = result {
            tracing::warn!(%disk, %error, "map of block hashes can't grow");
            self.lock().remove(&disk);
        }
    }

    pub fn path(&self, disk: DiskId) -> PathBuf {
        self.folder.join(format!("{disk}.map"))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<DiskId, Arc<BlockMap>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn header(state: &ItemState, disk: &ItemDisk) -> Header {
    Header {
        disk: disk.id.0,
        replica: state.replica,
        generation: state.generation,
        position: 0,
        size_bytes: disk.size_bytes,
        unwritten_is_unknown: false,
        filled_to: None,
    }
}

/// Notes what a log holds, then the position. May be repeated.
fn apply(map: &BlockMap, log: &DiskLog, size_bytes: u64, position: u64) -> io::Result<()> {
    let reader = open_log(log)?;
    let mut batch = Batch {
        map,
        first: 0,
        hashes: Vec::new(),
    };
    for entry in reader.entries() {
        let length = u64::from(entry.length);
        let end = entry.offset + length;
        let whole =
            entry.offset.is_multiple_of(BLOCK) && (end.is_multiple_of(BLOCK) || end == size_bytes);
        if !whole {
            // Not ours: parts of blocks tell nothing of the whole.
            (entry.offset / BLOCK..end.div_ceil(BLOCK))
                .try_for_each(|block| batch.add(block, BlockHash::UNKNOWN))?;
        } else if entry.is_zero() {
            (entry.offset / BLOCK..end.div_ceil(BLOCK))
                .try_for_each(|block| batch.add(block, BlockHash::ZERO))?;
        } else {
            let data = reader.read(entry).map_err(io::Error::other)?;
            for (block, data) in (entry.offset / BLOCK..).zip(data.chunks(BLOCK as usize)) {
                batch.add(block, BlockHash::of(map.key(), data))?;
            }
        }
    }
    batch.flush()?;
    map.commit(|header| header.position = position)
}

/// Gathers neighbouring blocks, so that a page is written once.
struct Batch<'a> {
    map: &'a BlockMap,
    first: u64,
    hashes: Vec<BlockHash>,
}

impl Batch<'_> {
    fn add(&mut self, block: u64, hash: BlockHash) -> io::Result<()> {
        if self.first + self.hashes.len() as u64 != block || self.hashes.len() >= BATCH {
            self.flush()?;
            self.first = block;
        }
        self.hashes.push(hash);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.map.set(self.first, &self.hashes)?;
        self.hashes.clear();
        Ok(())
    }
}
