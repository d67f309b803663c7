//! What the journal says on top of base: an interval map per disk, later entries win.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use replication_log::journal::{Entry, EntryData, Frame, JournalReader};

use crate::error::{Result, StoreError};
use crate::model::{DiskSpec, Generation, Position};

/// Where the bytes of a range are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nowhere: zeroes.
    Zeroes,
    /// In a frame of a journal object, from this offset of its raw bytes.
    Frame { object: u32, frame: u32, at: u32 },
}

impl Source {
    fn advance(self, by: u64) -> Source {
        match self {
            Source::Zeroes => Source::Zeroes,
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
        self.ranges
            .iter()
            .map(|(start, (end, source))| (*start..*end, *source))
    }
}

/// A journal object that an overlay points into.
#[derive(Debug)]
pub(crate) struct OverlayObject {
    pub(crate) position: Position,
    pub(crate) path: std::path::PathBuf,
    pub(crate) frames: Vec<Frame>,
}

/// The journal between two positions, merged, for all disks.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    pub(crate) objects: Vec<OverlayObject>,
    /// One map per disk, in the manifest's order.
    pub(crate) disks: Vec<IntervalMap>,
}

impl Overlay {
    pub(crate) fn new(disks: usize) -> Self {
        Overlay {
            objects: Vec::new(),
            disks: vec![IntervalMap::default(); disks],
        }
    }

    /// Adds the next object on top. `NotFound` when it is gone: the applier was faster.
    pub(crate) fn add(
        &mut self,
        item: &str,
        disks: &[DiskSpec],
        (position, generation): (Position, Generation),
        path: &Path,
    ) -> Result<()> {
        let reader = open_object(path)?;
        check_object(&reader, item, disks, position, generation, path)?;
        let object = u32::try_from(self.objects.len())
            .map_err(|_| StoreError::corrupt(path, "too many journal objects"))?;
        for (index, listed) in reader.header().disks.iter().enumerate() {
            let place = disks.iter().position(|disk| disk.id == listed.id);
            let Some(map) = place.and_then(|place| self.disks.get_mut(place)) else {
                return Err(StoreError::corrupt(path, "it changes an unknown disk"));
            };
            for entry in reader.entries(index) {
                map.insert(
                    entry.offset..entry.offset + entry.length,
                    source_of(entry, object),
                );
            }
        }
        self.objects.push(OverlayObject {
            position,
            path: path.to_owned(),
            frames: reader.frames().to_vec(),
        });
        Ok(())
    }
}

fn source_of(entry: &Entry, object: u32) -> Source {
    match entry.data {
        EntryData::Zeroes => Source::Zeroes,
        EntryData::Frame { frame, at } => Source::Frame { object, frame, at },
    }
}

pub(crate) fn open_object(path: &Path) -> Result<JournalReader<File>> {
    let file = File::open(path).map_err(|error| StoreError::io("open", path, error))?;
    JournalReader::open(file).map_err(|error| StoreError::journal(path, error))
}

/// An object must be what its place and name say.
pub(crate) fn check_object<R: replication_log::ReadAt>(
    reader: &JournalReader<R>,
    item: &str,
    disks: &[DiskSpec],
    position: Position,
    generation: Generation,
    path: &Path,
) -> Result<()> {
    let header = reader.header();
    let known = header.disks.iter().all(|listed| {
        disks
            .iter()
            .any(|disk| disk.id == listed.id && disk.size_bytes == listed.size_bytes)
    });
    if header.item != item
        || header.position != position.0
        || header.generation != generation.0
        || !known
    {
        return Err(StoreError::corrupt(
            path,
            "it is the cycle of another item, position, generation or set of disks",
        ));
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
