//! What the journal says on top of base: an interval map per disk, later entries win.
//!
//! An object that does not verify says nothing about any byte: it covers every disk as [`Source::Lost`],
//! so that only what younger cycles wrote again can be read. That is what heals it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use replication_log::journal::{
    Entry, EntryData, Frame, JournalDisk, JournalReader, Outline, read_outline,
};
use uuid::Uuid;

use crate::cycle::named;
use crate::error::{ErrorKind, Result, StoreError};
use crate::frames::FrameCache;
use crate::manifest::Manifest;
use crate::medium::{Medium, Object};
use crate::model::{Damage, DiskSpec, Position};
use crate::replica::{JournalName, JournalNames, Replica};

/// Objects of a store in the network that are opened at once.
const OPENED_AT_ONCE: usize = 8;

/// Where the bytes of a range are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nowhere: zeroes.
    Zeroes,
    /// In a frame of a journal object, from this offset of its raw bytes.
    Frame { object: u32, frame: u32, at: u32 },
    /// In an object that can't be read.
    Lost { object: u32 },
}

impl Source {
    fn advance(self, by: u64) -> Source {
        match self {
            Source::Zeroes | Source::Lost { .. } => self,
            // Offsets in a frame stay below its 256 KiB.
            Source::Frame { object, frame, at } => Source::Frame {
                object,
                frame,
                at: at + by as u32,
            },
        }
    }
}

/// Disjoint ranges with sources; a later insert replaces what it covers.
#[derive(Clone, Debug, Default)]
pub(crate) struct IntervalMap {
    /// start -> (end, source)
    ranges: BTreeMap<u64, (u64, Source)>,
}

impl IntervalMap {
    pub(crate) fn insert(&mut self, range: Range<u64>, source: Source) {
        if range.is_empty() {
            return;
        }
        if let Some((&start, &(end, old))) = self.ranges.range(..range.start).next_back()
            && end > range.start
        {
            self.ranges.insert(start, (range.start, old));
            if end > range.end {
                let rest = old.advance(range.end - start);
                self.ranges.insert(range.end, (end, rest));
            }
        }
        let covered: Vec<u64> = self.ranges.range(range.clone()).map(|(s, _)| *s).collect();
        for start in covered {
            if let Some((end, old)) = self.ranges.remove(&start)
                && end > range.end
            {
                let rest = old.advance(range.end - start);
                self.ranges.insert(range.end, (end, rest));
            }
        }
        self.ranges.insert(range.start, (range.end, source));
    }

    /// Covers `range` without gaps, in order; `None` where the journal says nothing.
    pub(crate) fn cover(&self, range: Range<u64>) -> Vec<(Range<u64>, Option<Source>)> {
        let mut out = Vec::new();
        let mut at = range.start;
        let first = self
            .ranges
            .range(..=range.start)
            .next_back()
            .map_or(range.start, |(start, _)| *start);
        for (&start, &(end, source)) in self.ranges.range(first..range.end) {
            let (from, to) = (start.max(range.start), end.min(range.end));
            if from >= to {
                continue;
            }
            if at < from {
                out.push((at..from, None));
            }
            out.push((from..to, Some(source.advance(from - start))));
            at = to;
        }
        if at < range.end {
            out.push((at..range.end, None));
        }
        out
    }

    /// All ranges, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Range<u64>, Source)> + '_ {
        self.iter_from(0)
    }

    /// The ranges that begin at an offset or behind it, in order.
    pub(crate) fn iter_from(&self, at: u64) -> impl Iterator<Item = (Range<u64>, Source)> + '_ {
        self.ranges
            .range(at..)
            .map(|(start, (end, source))| (*start..*end, *source))
    }

    /// How many ranges there are.
    pub(crate) fn len(&self) -> usize {
        self.ranges.len()
    }
}

/// A journal object that an overlay points into.
#[derive(Debug)]
pub(crate) struct OverlayObject {
    /// The first position that it has.
    pub(crate) first: Position,
    /// The last one.
    pub(crate) position: Position,
    /// Of the cycle of that position; 0 when it can't be read.
    pub(crate) time_unix_ms: i64,
    pub(crate) name: Arc<str>,
    /// Where it is, for messages.
    pub(crate) place: String,
    pub(crate) frames: Vec<Frame>,
}

/// The journal between two positions, merged, for all disks.
#[derive(Debug)]
pub(crate) struct Overlay {
    pub(crate) objects: Vec<OverlayObject>,
    /// What the journal says of each disk that it ever names.
    pub(crate) disks: BTreeMap<Uuid, IntervalMap>,
    /// The disks as of the newest object.
    pub(crate) set: Vec<DiskSpec>,
    /// Newest size of every disk that the journal ever names.
    pub(crate) sizes: BTreeMap<Uuid, u64>,
    /// Disks that the VM has at each of the objects; `None` without objects.
    in_all: Option<BTreeSet<Uuid>>,
}

impl Overlay {
    /// Merges the journal (base, to].
    pub(crate) fn merge(
        replica: &Replica,
        manifest: &Manifest,
        base: Position,
        to: Position,
        journal: &JournalNames,
    ) -> Result<Overlay> {
        let mut overlay = Overlay {
            objects: Vec::new(),
            disks: BTreeMap::new(),
            set: manifest.disks.clone(),
            sizes: BTreeMap::new(),
            in_all: None,
        };
        overlay.extend(replica, manifest, base, to, journal)?;
        Ok(overlay)
    }

    /// Merges the journal (from, to] on top.
    pub(crate) fn extend(
        &mut self,
        replica: &Replica,
        manifest: &Manifest,
        from: Position,
        to: Position,
        journal: &JournalNames,
    ) -> Result<()> {
        let wanted: Vec<(Position, &JournalName)> = journal
            .iter()
            .filter(|(position, _)| **position > from && **position <= to)
            .map(|(position, object)| (*position, object))
            .collect();
        // A store in the network answers many as fast as one.
        let at_once = if replica.medium.compares_fence() {
            OPENED_AT_ONCE
        } else {
            1
        };
        for batch in wanted.chunks(at_once) {
            for ((position, object), opened) in batch.iter().zip(open_all(replica, batch)) {
                self.add(replica, manifest, *position, object, opened)?;
            }
        }
        Ok(())
    }

    /// Adds the next object on top. `NotFound` when it is gone: the applier was faster.
    fn add(
        &mut self,
        replica: &Replica,
        manifest: &Manifest,
        position: Position,
        object: &JournalName,
        opened: Result<Reader>,
    ) -> Result<()> {
        let place = replica.medium.describe(&object.name);
        let index = u32::try_from(self.objects.len())
            .map_err(|_| StoreError::corrupt(&place, "too many journal objects"))?;
        let opened = opened.and_then(|reader| {
            check_identity(replica, &reader, position, object)?;
            check_disks(manifest, &self.set, &reader.header().disks, &place)?;
            Ok(reader)
        });
        let mut time_unix_ms = 0;
        let frames = match opened {
            Ok(reader) => {
                time_unix_ms = reader.header().time_unix_ms;
                let listed = &reader.header().disks;
                for (at, disk) in listed.iter().enumerate() {
                    self.sizes.insert(disk.id, disk.size_bytes);
                    let map = self.disks.entry(disk.id).or_default();
                    for entry in reader.entries(at) {
                        let range = entry.offset..entry.offset + entry.length;
                        map.insert(range, source_of(entry, index));
                    }
                }
                self.set = named(manifest, reader.present_disks());
                let present = self.set.iter().map(|disk| disk.id);
                match &mut self.in_all {
                    None => self.in_all = Some(present.collect()),
                    Some(in_all) => {
                        let present: BTreeSet<Uuid> = present.collect();
                        in_all.retain(|disk| present.contains(disk));
                    }
                }
                reader.frames().to_vec()
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                for disk in &self.set {
                    let map = self.disks.entry(disk.id).or_default();
                    map.insert(0..disk.size_bytes, Source::Lost { object: index });
                }
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        self.objects.push(OverlayObject {
            first: object.first,
            position,
            time_unix_ms,
            name: Arc::from(object.name.as_str()),
            place,
            frames,
        });
        Ok(())
    }

    /// Objects that can't be read and are still needed, with the ranges that they leave unknown.
    pub(crate) fn lost(&self) -> Vec<Damage> {
        let mut lost = Vec::new();
        for (disk, map) in &self.disks {
            for (range, source) in map.iter() {
                if let Source::Lost { object } = source {
                    lost.push(self.damage(object, *disk, &range));
                }
            }
        }
        lost
    }

    /// Whether the VM has a disk at each of the objects.
    pub(crate) fn is_in_all(&self, disk: Uuid) -> bool {
        self.in_all.as_ref().is_none_or(|all| all.contains(&disk))
    }

    /// Where what can be read ends: the last position in front of the first object that is needed and
    /// can't be read.
    pub(crate) fn readable_to(&self) -> Option<Position> {
        let lost = self.disks.values().flat_map(IntervalMap::iter);
        lost.filter_map(|(_, source)| match source {
            Source::Lost { object } => self.objects.get(object as usize),
            _ => None,
        })
        .map(|object| Position(object.first.0.saturating_sub(1)))
        .min()
    }

    /// Bytes of a range; `None` for zeroes. The error is `Corrupt` when the object does not verify.
    pub(crate) fn fetch(
        &self,
        medium: &dyn Medium,
        frames: &FrameCache,
        range: &Range<u64>,
        source: Source,
    ) -> Result<Option<Vec<u8>>> {
        let length = (range.end - range.start) as usize;
        match source {
            Source::Zeroes => Ok(None),
            Source::Lost { object } => {
                let place = &self.objects[object as usize].place;
                Err(StoreError::corrupt(place, "a journal object is damaged"))
            }
            Source::Frame { object, frame, at } => {
                let object = &self.objects[object as usize];
                let raw = frames.read(medium, object, frame)?;
                let at = at as usize;
                let data = raw.get(at..at + length).ok_or_else(|| {
                    StoreError::corrupt(&object.place, "an entry lies outside its frame")
                })?;
                Ok(Some(data.to_vec()))
            }
        }
    }

    pub(crate) fn damage(&self, object: u32, disk: Uuid, range: &Range<u64>) -> Damage {
        let object = &self.objects[object as usize];
        Damage {
            disk,
            offset: range.start,
            length: range.end - range.start,
            place: object.place.clone(),
            position: object.position,
        }
    }

    /// What is said of a disk; nothing when the journal does not name it.
    pub(crate) fn cover(&self, disk: Uuid, range: Range<u64>) -> Vec<(Range<u64>, Option<Source>)> {
        match self.disks.get(&disk) {
            Some(map) => map.cover(range),
            None if range.is_empty() => Vec::new(),
            None => vec![(range, None)],
        }
    }
}

fn source_of(entry: &Entry, object: u32) -> Source {
    match entry.data {
        EntryData::Zeroes => Source::Zeroes,
        EntryData::Frame { frame, at } => Source::Frame { object, frame, at },
    }
}

fn open_all(replica: &Replica, batch: &[(Position, &JournalName)]) -> Vec<Result<Reader>> {
    if let [(_, object)] = batch {
        return vec![open_object(replica, &object.name)];
    }
    std::thread::scope(|scope| {
        let opening: Vec<_> = batch
            .iter()
            .map(|(_, object)| scope.spawn(|| open_object(replica, &object.name)))
            .collect();
        opening
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(opened) => opened,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
}

pub(crate) type Reader = JournalReader<Arc<dyn Object>>;

/// `NotFound` when it is gone.
pub(crate) fn open_object(replica: &Replica, name: &str) -> Result<Reader> {
    let place = replica.medium.describe(name);
    let object = replica.medium.open(name)?.ok_or_else(|| {
        StoreError::new(
            ErrorKind::NotFound,
            format!("open {place}: it is not there"),
        )
    })?;
    JournalReader::open_with_keys(object, &replica.keys())
        .map_err(|error| StoreError::journal(&place, error))
}

/// What the front of an object says. `NotFound` when it is gone. Its header names every disk that the
/// object changes; which of them the VM has at its position is told apart.
pub(crate) fn read_front(replica: &Replica, name: &str) -> Result<Outline> {
    let place = replica.medium.describe(name);
    let object = replica.medium.open(name)?.ok_or_else(|| {
        StoreError::new(
            ErrorKind::NotFound,
            format!("open {place}: it is not there"),
        )
    })?;
    read_outline(&object).map_err(|error| StoreError::journal(&place, error))
}

/// An object must be what its place and name say.
pub(crate) fn check_identity(
    replica: &Replica,
    reader: &Reader,
    position: Position,
    object: &JournalName,
) -> Result<()> {
    let header = reader.header();
    let first = reader.merged().map_or(position.0, |m| m.first_position);
    if header.item != replica.item_id
        || header.position != position.0
        || header.generation != object.generation.0
        || first != object.first.0
    {
        return Err(StoreError::corrupt(
            &replica.medium.describe(&object.name),
            "it is the cycle of another item, position or generation",
        ));
    }
    Ok(())
}

/// Disks keep their size or grow, and are known.
fn check_disks(
    manifest: &Manifest,
    before: &[DiskSpec],
    listed: &[JournalDisk],
    place: &str,
) -> Result<()> {
    for disk in listed {
        let size = before
            .iter()
            .find(|known| known.id == disk.id)
            .or_else(|| manifest.stored_disk(disk.id))
            .map(|known| known.size_bytes);
        if size.is_none_or(|size| disk.size_bytes < size) {
            return Err(StoreError::corrupt(
                place,
                format!(
                    "it changes disk {}, which is unknown or was larger",
                    disk.id
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Model: one source per byte.
        #[test]
        fn the_last_insert_wins_for_every_byte(
            inserts in prop::collection::vec((0u64..200, 0u64..60, any::<bool>()), 0..40),
            query in (0u64..250, 0u64..250),
        ) {
            let mut map = IntervalMap::default();
            let mut model = [None; 520];
            for (object, (start, length, zero)) in (0u32..).zip(inserts) {
                let source = if zero {
                    Source::Zeroes
                } else {
                    Source::Frame { object, frame: 1, at: 1000 }
                };
                map.insert(start..start + length, source);
                for at in 0..length {
                    model[(start + at) as usize] = Some(source.advance(at));
                }
            }
            let range = query.0..query.0 + query.1;
            let mut at = range.start;
            for (piece, source) in map.cover(range.clone()) {
                prop_assert_eq!(piece.start, at, "no gap");
                prop_assert!(piece.end > piece.start);
                at = piece.end;
                for byte in piece.clone() {
                    let expected = source.map(|s| s.advance(byte - piece.start));
                    prop_assert_eq!(model[byte as usize], expected, "byte {}", byte);
                }
            }
            prop_assert_eq!(at, range.end.max(range.start));
            let mut last = 0;
            for (piece, _) in map.iter() {
                prop_assert!(piece.start >= last && piece.end > piece.start);
                last = piece.end;
            }
        }
    }
}
