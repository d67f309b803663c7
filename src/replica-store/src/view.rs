//! All disks as of one position: `base + journal (base_position, position]`.
//!
//! Why a view stays right while the applier moves base from b to q ≤ position: what it writes to
//! base lies in ranges that the journal (b, q] changes, and those the view reads from the journal,
//! not from base. Once the applier has removed (b, q] the view finds an object missing, reads the
//! manifest again and goes on with base at q. When q goes *past* the position (nobody holds it),
//! the applier has raised `floor` in the manifest before its first write; the view looks after
//! each read, so it answers `Expired`, never bytes of another time.
//!
//! Compaction replaces objects of the journal by one that says the same at the positions that are kept.
//! The view goes on with the objects it knows until it finds one missing, then looks again. At a position
//! that nobody kept it answers `Expired` from the moment that the merged object counts.
//!
//! A disk that is larger at the position than base is: behind the end of base it is zero where the
//! journal says nothing, whatever a round of maintenance has made of base meanwhile.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use uuid::Uuid;

use crate::base;
use crate::error::{ErrorKind, Result, StoreError};
use crate::frames::FrameCache;
use crate::layout;
use crate::manifest::{BaseState, Manifest};
use crate::medium::Object;
use crate::model::{DiskSpec, Position};
use crate::overlay::{Overlay, Source};
use crate::replica::{RACES, Replica};

/// What is to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    /// The disks of a position.
    Position(Position),
    /// The disks of the head.
    Head,
    /// Every disk that the store knows, as it was last: also those that the head does not have.
    Last,
}

#[derive(Debug)]
pub(crate) struct View {
    replica: Arc<Replica>,
    id: Uuid,
    disks: Vec<DiskSpec>,
    position: Position,
    bases: HashMap<Uuid, Base>,
    snapshot: RwLock<Arc<Snapshot>>,
    frames: FrameCache,
}

#[derive(Debug)]
struct Base {
    object: Arc<dyn Object>,
    place: String,
}

#[derive(Debug)]
struct Snapshot {
    base: Position,
    overlay: Overlay,
    /// Bytes of each disk that its base holds; behind them base says nothing.
    held: HashMap<Uuid, u64>,
}

impl Snapshot {
    /// Whether both are of the same base and the same objects.
    fn is_of(&self, other: &Snapshot) -> bool {
        let names = |snapshot: &Snapshot| {
            let objects = snapshot.overlay.objects.iter();
            objects.map(|o| o.name.clone()).collect::<Vec<_>>()
        };
        self.base == other.base && names(self) == names(other)
    }
}

impl View {
    pub(crate) fn open(replica: &Arc<Replica>, show: Show) -> Result<View> {
        let (manifest, snapshot, position) = take_snapshot(replica, show, None)?;
        let mut disks = snapshot.overlay.set.clone();
        if show == Show::Last {
            for disk in manifest.stored_disks() {
                if !disks.iter().any(|known| known.id == disk.id) {
                    let grown = snapshot.overlay.sizes.get(&disk.id).copied();
                    disks.push(DiskSpec {
                        size_bytes: grown.unwrap_or(disk.size_bytes),
                        ..disk.clone()
                    });
                }
            }
        }
        let mut bases = HashMap::new();
        for disk in &disks {
            let held = snapshot.held.get(&disk.id).copied().unwrap_or(0);
            bases.insert(disk.id, open_base(replica, disk.id, held)?);
        }
        let view = View {
            replica: replica.clone(),
            id: manifest.id,
            disks,
            position,
            bases,
            snapshot: RwLock::new(Arc::new(snapshot)),
            frames: FrameCache::default(),
        };
        view.check_kept()?;
        Ok(view)
    }

    pub(crate) fn disks(&self) -> &[DiskSpec] {
        &self.disks
    }

    pub(crate) fn position(&self) -> Position {
        self.position
    }

    pub(crate) fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Where base is; refuses when the position is not kept any more, or the replica is another.
    pub(crate) fn check(&self, manifest: &Manifest) -> Result<Position> {
        check_position(&self.replica, manifest, self.position, Some(self.id))
    }

    /// Whether any byte of a range comes from base.
    pub(crate) fn is_base(&self, disk: Uuid, range: &Range<u64>) -> bool {
        let snapshot = self
            .snapshot
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let pieces = snapshot.overlay.cover(disk, range.clone());
        pieces.iter().any(|(_, source)| source.is_none())
    }

    /// What of these ranges is not said to be zero, by the journal or by the end of base. Reads nothing.
    pub(crate) fn not_zero(&self, disk: Uuid, ranges: &[Range<u64>]) -> Vec<Range<u64>> {
        let snapshot = self
            .snapshot
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let held = snapshot.held.get(&disk).copied().unwrap_or(0);
        let pieces = ranges
            .iter()
            .flat_map(|range| snapshot.overlay.cover(disk, range.clone()));
        let left = pieces.filter_map(|(range, source)| match source {
            Some(Source::Zeroes) => None,
            Some(_) => Some(range),
            None => Some(range.start..range.end.min(held)),
        });
        left.filter(|range| !range.is_empty()).collect()
    }

    pub(crate) fn read(&self, disk: Uuid, offset: u64, length: usize) -> Result<Vec<u8>> {
        let (_, spec) = base::find(&self.disks, disk)?;
        base::check_range(spec, offset, length)?;
        let mut buf = vec![0u8; length];
        for _ in 0..RACES {
            let snapshot = self
                .snapshot
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            let read = self.read_with(&snapshot, disk, offset, &mut buf);
            self.check_kept()?;
            match read {
                Ok(()) => return Ok(buf),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let show = Show::Position(self.position);
                    let (_, fresh, _) = take_snapshot(&self.replica, show, Some(self.id))?;
                    if fresh.is_of(&snapshot) {
                        return Err(error);
                    }
                    *self
                        .snapshot
                        .write()
                        .unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
                }
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::new(
            ErrorKind::Io,
            "the applier overtakes every read: try again",
        ))
    }

    fn read_with(
        &self,
        snapshot: &Snapshot,
        disk: Uuid,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        let overlay = &snapshot.overlay;
        let held = snapshot.held.get(&disk).copied().unwrap_or(0);
        let pieces = overlay.cover(disk, offset..offset + buf.len() as u64);
        self.read_base(disk, held, offset, &pieces, buf)?;
        for (range, source) in &pieces {
            let start = (range.start - offset) as usize;
            let length = (range.end - range.start) as usize;
            let out = &mut buf[start..start + length];
            match *source {
                None => {}
                Some(Source::Zeroes) => out.fill(0),
                Some(Source::Lost { object }) => {
                    let place = &overlay.objects[object as usize].place;
                    return Err(StoreError::corrupt(place, "a journal object is damaged"));
                }
                Some(Source::Frame { object, frame, at }) => {
                    let object = &overlay.objects[object as usize];
                    let raw = self
                        .frames
                        .read(self.replica.medium.as_ref(), object, frame)?;
                    let at = at as usize;
                    let piece = raw.get(at..at + length).ok_or_else(|| {
                        StoreError::corrupt(&object.place, "an entry lies outside its frame")
                    })?;
                    out.copy_from_slice(piece);
                }
            }
        }
        Ok(())
    }

    /// Fills what the journal says nothing of. Holes between short pieces of journal are read over:
    /// one long read costs less than many short ones, above all from a store in the network.
    fn read_base(
        &self,
        disk: Uuid,
        held: u64,
        offset: u64,
        pieces: &[(Range<u64>, Option<Source>)],
        buf: &mut [u8],
    ) -> Result<()> {
        let wanted: Vec<Range<u64>> = pieces
            .iter()
            .filter(|(_, source)| source.is_none())
            .map(|(range, _)| range.clone())
            .collect();
        let Some(from) = self.bases.get(&disk) else {
            return Err(base::unknown_disk(disk));
        };
        for range in joined(wanted) {
            let at = (range.start - offset) as usize;
            let out = &mut buf[at..at + (range.end - range.start) as usize];
            let known = held.clamp(range.start, range.end) - range.start;
            let (data, zeroes) = out.split_at_mut(known as usize);
            zeroes.fill(0);
            if !data.is_empty() {
                base::read(from.object.as_ref(), &from.place, range.start, data)?;
            }
        }
        Ok(())
    }

    /// Whether the applier has left the position alone up to now.
    fn check_kept(&self) -> Result<()> {
        self.check(&self.replica.manifest()?.value).map(drop)
    }
}

/// Joins ranges with short holes between them.
fn joined(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    const HOLE: u64 = 64 << 10;
    let mut out: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start - last.end <= HOLE => last.end = range.end,
            _ => out.push(range),
        }
    }
    out
}

fn open_base(replica: &Replica, disk: Uuid, held: u64) -> Result<Base> {
    let name = layout::base(disk);
    let place = replica.medium.describe(&name);
    let object = replica.medium.open(&name)?.ok_or_else(|| {
        StoreError::new(
            ErrorKind::NotFound,
            format!("open {place}: it is not there"),
        )
    })?;
    let length = object
        .len()
        .map_err(|error| StoreError::io("inspect", &place, error))?;
    if length < held {
        return Err(StoreError::corrupt(&place, "it is shorter than its disk"));
    }
    Ok(Base { object, place })
}

fn check_position(
    replica: &Replica,
    manifest: &Manifest,
    position: Position,
    id: Option<Uuid>,
) -> Result<Position> {
    if id.is_some_and(|id| id != manifest.id) {
        return Err(replica.missing());
    }
    match manifest.base {
        BaseState::Complete {
            position: base,
            floor,
        } if floor <= position && !manifest.hides(position) => Ok(base),
        BaseState::Complete { .. } => Err(StoreError::new(
            ErrorKind::Expired,
            format!(
                "position {} of replica {} was retired: choose a younger recovery point, and pin it while it is used",
                position.0,
                replica.place()
            ),
        )),
        _ => Err(StoreError::new(
            ErrorKind::NotFound,
            format!(
                "replica {} has no recovery points yet: initial replication has not finished",
                replica.place()
            ),
        )),
    }
}

fn take_snapshot(
    replica: &Replica,
    show: Show,
    id: Option<Uuid>,
) -> Result<(Arc<Manifest>, Snapshot, Position)> {
    for _ in 0..RACES {
        let (seen, journal) = replica.settled()?;
        let manifest = seen.value;
        let head = journal.last_key_value().map(|(head, _)| *head);
        let base_position = manifest.complete().map_or(Position::BASE, |(base, _)| base);
        let head = head.unwrap_or(base_position);
        let wanted = match show {
            Show::Position(position) => position,
            Show::Head | Show::Last => head,
        };
        let base = check_position(replica, &manifest, wanted, id)?;
        if wanted > head {
            return Err(StoreError::corrupt(
                &replica.medium.describe(layout::JOURNAL),
                format!("position {} is missing", wanted.0),
            ));
        }
        match Overlay::merge(replica, &manifest, base, wanted, &journal) {
            Ok(overlay) => {
                let held = manifest
                    .stored_disks()
                    .map(|disk| (disk.id, disk.size_bytes))
                    .collect();
                let snapshot = Snapshot {
                    base,
                    overlay,
                    held,
                };
                return Ok((manifest, snapshot, wanted));
            }
            // An object went away between listing and opening: the applier was here.
            Err(error)
                if error.kind() == ErrorKind::NotFound && replica.manifest()?.value != manifest => {
            }
            Err(error) => return Err(error),
        }
    }
    Err(StoreError::new(
        ErrorKind::Io,
        "the applier overtakes every attempt to open the view: try again",
    ))
}
