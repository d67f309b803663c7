//! What an item's replication keeps of its disks, for who brings them to another point, and for the next activation.
//!
//! ```text
//! maps at p of generation g ─► receive: disks and maps to q of generation r ─► state "r, at q" ─► record "arrived"
//!                                  next activation: maps, then state to its own generation ─► compare with the maps
//! ```
//!
//! A map that is being brought from p to q may tell of any block what it was at p, or at some point behind p. That does no
//! harm to who asks the journal what changed since p: such a block is among that. The header says p until all is q's.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use hypervisor::{DiskId, VmId};
use replica_store::{Generation, Position};
use replication_log::KeyRing;
use uuid::Uuid;

use super::disks;
use super::hashes::{self, BLOCK, BlockHash, BlockMap, Header};
use super::maps::Maps;
use super::spec::Spec;
use super::state::{ImageMark, ItemDisk, ItemFiles, ItemState};
use super::trouble::Trouble;
use crate::receive::record::{Arrived, Record};

/// What is kept of one item.
#[derive(Clone, Debug)]
pub struct Kept {
    files: ItemFiles,
    state: Option<ItemState>,
}

/// A position of a replica, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The position.
    pub position: Position,
    /// Who wrote it.
    pub by: Generation,
}

/// A disk that was brought to a point.
#[derive(Clone, Debug)]
pub struct Brought {
    /// The disk.
    pub id: DiskId,
    /// Its image.
    pub path: PathBuf,
    /// Name for people.
    pub name: String,
    /// Virtual size.
    pub size_bytes: u64,
}

/// Where an item's disks were brought.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The VM.
    pub vm: VmId,
    /// The replica.
    pub replica: Uuid,
    /// The position, and whose it is.
    pub at: Known,
    /// All replicated disks.
    pub disks: Vec<Brought>,
    /// Keys that objects up to there may need.
    pub keys: KeyRing,
    /// Freeze of the newest application-consistent point; 0 = there is none.
    pub last_application_unix_ms: i64,
}

impl Kept {
    /// Of an item. What can't be read is as good as nothing: comparing heals.
    pub fn open(state_folder: &Path, item_id: &str) -> io::Result<Self> {
        let files = ItemFiles::new(state_folder, item_id);
        let state = files.load()?;
        Ok(Self { files, state })
    }

    /// Where maps are, and what is known of the disks as a whole.
    pub fn folder(&self) -> &Path {
        self.files.hashes()
    }

    /// The map of a disk of `size_bytes` in this replica, and the position that it tells of.
    pub fn map(
        &self,
        disk: DiskId,
        replica: Uuid,
        size_bytes: u64,
    ) -> io::Result<Option<(BlockMap, Known)>> {
        let Some(file) = hashes::open(&self.map_path(disk))? else {
            return Ok(None);
        };
        let Some(map) = BlockMap::open(Box::new(file))? else {
            return Ok(None);
        };
        let header = map.header();
        let ours = header.disk == disk.0
            && header.replica == replica
            && header.filled_to.is_none()
            && header.size_bytes <= size_bytes;
        if !ours {
            return Ok(None);
        }
        let mut at = Known {
            position: Position(header.position),
            by: Generation(header.generation),
        };
        // No cycle behind the map's has changed the disk: it tells of the newest shipped position as well.
        if let Some(state) = &self.state
            && let Some(known) = state.disks.iter().find(|known| known.id == disk)
            && state.complete
            && state.replica == replica
            && state.generation == header.generation
            && (known.changed_at..=state.shipped).contains(&header.position)
        {
            at.position = Position(state.shipped);
        }
        if header.size_bytes < size_bytes {
            if !header.size_bytes.is_multiple_of(BLOCK) {
                // Its last block was hashed shorter than it is now.
                map.set(header.size_bytes / BLOCK, &[BlockHash::UNKNOWN])?;
            }
            map.commit(|header| header.size_bytes = size_bytes)?;
        }
        Ok(Some((map, at)))
    }

    /// A map in which nothing is known, and which counts for nobody before it has arrived.
    pub fn begin_map(&self, disk: DiskId, replica: Uuid, size_bytes: u64) -> io::Result<BlockMap> {
        let header = Header {
            disk: disk.0,
            replica,
            generation: 0,
            position: 0,
            size_bytes,
            unwritten_is_unknown: true,
            filled_to: Some(0),
        };
        BlockMap::create(Box::new(hashes::create(&self.map_path(disk))?), header)
    }

    /// The disks are where they were brought, and so are their maps: the state says so from now on.
    pub fn arrive(&mut self, arrival: &Arrival) -> io::Result<()> {
        let disks = arrival.disks.iter().map(|disk| ItemDisk {
            id: disk.id,
            name: disk.name.clone(),
            size_bytes: disk.size_bytes,
            path: disk.path.clone(),
            changed_at: arrival.at.position.0,
            changed_before: arrival.at.position.0,
            last_log: Uuid::nil(),
            left: None,
        });
        let (by, vm) = (arrival.at.by.0, arrival.vm);
        let before = self.state.take().filter(|state| state.vm == vm);
        let mut state = before.unwrap_or_else(|| ItemState::new(by, vm, Vec::new()));
        let members: BTreeSet<DiskId> = arrival.disks.iter().map(|disk| disk.id).collect();
        state.generation = by;
        state.replica = arrival.replica;
        state.disks = disks.collect();
        state.complete = true;
        state.move_to(arrival.at.position.0);
        state.raised = Vec::new();
        state.knowledge.suspects = BTreeMap::new();
        state.knowledge.joining = BTreeMap::new();
        state.knowledge.members = members;
        state.keys = arrival
            .keys
            .ids()
            .map(|key| (key, arrival.at.position.0))
            .collect();
        state.last_application_unix_ms = arrival.last_application_unix_ms;
        self.files.store(&state)?;
        self.state = Some(state);
        Ok(())
    }

    fn map_path(&self, disk: DiskId) -> PathBuf {
        self.files.hashes().join(format!("{disk}.map"))
    }
}

/// Says of a map that it tells of `at` everywhere.
pub fn arrived(map: &BlockMap, at: Known, size_bytes: u64) -> io::Result<()> {
    map.commit(|header| {
        header.generation = at.by.0;
        header.position = at.position.0;
        header.size_bytes = size_bytes;
        header.filled_to = None;
    })
}

/// Marks images of a VM that is off; `None` for one that can't be read.
pub async fn marks(disks: &[Brought]) -> Result<Vec<Option<ImageMark>>, Trouble> {
    let disks: Vec<ItemDisk> = disks
        .iter()
        .map(|disk| ItemDisk {
            id: disk.id,
            name: disk.name.clone(),
            size_bytes: disk.size_bytes,
            path: disk.path.clone(),
            changed_at: 0,
            changed_before: 0,
            last_log: Uuid::nil(),
            left: None,
        })
        .collect();
    disks::marks(&disks).await
}

/// Notes that disks hold the newest shipped point, so that a failback need not read them to find out. `marks` are those of
/// the state's disks. Only ever a short cut: without it the disks are compared with their maps.
pub(super) fn note_shipped(
    files: &ItemFiles,
    state: &ItemState,
    point: Uuid,
    marks: Vec<Option<ImageMark>>,
) -> io::Result<()> {
    let at = Known {
        position: Position(state.shipped),
        by: Generation(state.generation),
    };
    let images = state.disks.iter().zip(marks);
    let images = images.filter_map(|(disk, mark)| {
        let mark = mark?;
        Some(Arrived {
            disk: disk.id,
            mark,
        })
    });
    Record::under_way(state.vm, state.replica, point, at)
        .at(images.collect())
        .write(files.hashes())
}

/// What a new activation takes over: disks that were brought to a point of the replica that it will replicate to. It
/// begins as after a change of trackers: compares the disks with their maps, and asks the store about nothing else.
/// `None` = there is nothing of that kind.
///
/// May be cut at any step: maps are of either generation until the state is of the new one.
pub(super) fn carry_over(
    files: &ItemFiles,
    spec: &Spec,
    state: ItemState,
    maps: &Maps,
) -> io::Result<Option<ItemState>> {
    let record = match Record::read(files.hashes()) {
        // As without one: nothing is taken over, and comparing heals.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::warn!(item = spec.item_id, %error, "what is kept of an earlier failback can't be read");
            None
        }
        other => other?,
    };
    let arrived = record.is_some_and(|record| {
        record.has_arrived()
            && record.vm == spec.vm
            && record.replica == state.replica
            && record.by.0 == state.generation
            && record.position.0 == state.shipped
    });
    if !arrived || state.vm != spec.vm || state.generation >= spec.generation.0 {
        return Ok(None);
    }
    for disk in &state.disks {
        let Some(file) = hashes::open(&maps.path(disk.id))? else {
            continue;
        };
        if let Some(map) = BlockMap::open(Box::new(file))?
            && map.header().generation == state.generation
        {
            map.commit(|header| header.generation = spec.generation.0)?;
        }
    }
    let mut state = state;
    state.generation = spec.generation.0;
    // Whatever was tracked was so for another activation.
    state.tracking = None;
    state.instant = Uuid::new_v4();
    files.store(&state)?;
    Record::remove(files.hashes())?;
    Ok(Some(state))
}
