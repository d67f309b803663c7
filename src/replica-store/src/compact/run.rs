//! One merge on its way: the newest version of each range, streamed from the old objects into a new one,
//! then read back.
//!
//! What is held: the merged index of at most [`MAX_RANGES`](super::MAX_RANGES) ranges, and one frame of
//! each object (cycles are written in the order of the disk, so a merge in that order reads each frame about
//! once). Never the data of an interval.

use uuid::Uuid;

use replication_log::journal::{
    BuildOptions, CompressionLevel, JournalBuilder, JournalDisk, JournalHeader, Merged,
};

use super::choice::{FAN_IN, Window};
use crate::cycle::building;
use crate::error::{Result, StoreError};
use crate::frames::FrameCache;
use crate::layout;
use crate::manifest::Span;
use crate::medium::{Put, Staged};
use crate::model::Generation;
use crate::overlay::{Overlay, Reader, Source, check_identity, open_object};
use crate::replica::{JournalName, Replica};

/// Long-lived, and nobody waits for it: some effort pays.
const LEVEL: u8 = 3;
/// A range that costs no data still costs its entry.
const RANGE_COST: u64 = 256;

/// What is left of a round's allowance, bytes.
#[derive(Debug)]
pub(super) struct Budget(pub(super) u64);

impl Budget {
    pub(super) fn spend(&mut self, bytes: u64) {
        self.0 = self.0.saturating_sub(bytes);
    }

    pub(super) fn is_spent(&self) -> bool {
        self.0 == 0
    }
}

type Builder = JournalBuilder<Box<dyn Staged>>;

/// A merge that was announced in the manifest.
pub(super) struct Run {
    pub(super) span: Span,
    /// What it was begun for; the span is the part of it that fits into memory.
    pub(super) window: Window,
    /// Objects that it takes the place of.
    pub(super) objects: u64,
    overlay: Overlay,
    frames: FrameCache,
    /// Disks of the new object, in its order.
    disks: Vec<JournalDisk>,
    phase: Phase,
}

enum Phase {
    /// The next range: index of the disk, offset.
    Writing(Box<Builder>, usize, u64),
    /// All of it is durable and has no name.
    Sealed(Box<dyn Staged>),
    /// It has its name; frames up to here were read back.
    Proving(Box<Reader>, u32),
    Proven,
    Failed,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run")
            .field("span", &self.span)
            .finish_non_exhaustive()
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The budget is spent, or the next phase begins.
    Goes,
    /// It is to be given its name, in the section.
    Sealed,
    /// It is whole in the store and may come to count.
    Proven,
}

impl Run {
    /// Begins the object of an announced span. `overlay` is the journal of the span and nothing else.
    pub(super) fn begin(
        replica: &Replica,
        span: Span,
        window: Window,
        overlay: Overlay,
    ) -> Result<Run> {
        let (disks, merged) = disks_of(&span, &overlay);
        let time_unix_ms = overlay.objects.last().map_or(0, |last| last.time_unix_ms);
        let header = JournalHeader {
            item: replica.item_id.clone(),
            generation: span.generation.0,
            position: span.last.0,
            time_unix_ms,
            disks: disks.clone(),
        };
        let keys = replica.keys();
        let options = BuildOptions {
            compression: CompressionLevel::new(LEVEL),
            encryption: keys.active().is_some().then_some(&*keys),
            merged: Some(merged),
        };
        let staged = replica.medium.stage(&layout::merged_object(&span))?;
        let builder = JournalBuilder::with_options(staged, header, options)
            .map_err(|error| building(replica, error))?;
        Ok(Run {
            span,
            window,
            objects: overlay.objects.len() as u64,
            overlay,
            frames: FrameCache::of(FAN_IN * 2),
            disks,
            phase: Phase::Writing(Box::new(builder), 0, 0),
        })
    }

    /// Goes on as far as the budget reaches. After an error the run is of no use any more.
    pub(super) fn go(&mut self, replica: &Replica, budget: &mut Budget) -> Result<Progress> {
        let phase = std::mem::replace(&mut self.phase, Phase::Failed);
        self.phase = match phase {
            Phase::Writing(builder, disk, at) => self.write(replica, budget, builder, disk, at)?,
            Phase::Proving(reader, frame) => self.prove(replica, budget, reader, frame)?,
            other => other,
        };
        match self.phase {
            Phase::Sealed(_) => Ok(Progress::Sealed),
            Phase::Proven => Ok(Progress::Proven),
            Phase::Writing(..) | Phase::Proving(..) => Ok(Progress::Goes),
            Phase::Failed => Err(StoreError::new(
                crate::ErrorKind::Io,
                "a compaction that failed is not gone on with: call maintenance again",
            )),
        }
    }

    fn write(
        &self,
        replica: &Replica,
        budget: &mut Budget,
        mut builder: Box<Builder>,
        mut disk: usize,
        mut at: u64,
    ) -> Result<Phase> {
        while let Some(id) = self.disks.get(disk).map(|disk| disk.id) {
            let map = self.overlay.disks.get(&id);
            for (range, source) in map.into_iter().flat_map(|map| map.iter_from(at)) {
                if budget.is_spent() {
                    return Ok(Phase::Writing(builder, disk, range.start));
                }
                self.copy(replica, &mut builder, id, &range, source)?;
                let data = match source {
                    Source::Zeroes => 0,
                    _ => range.end - range.start,
                };
                budget.spend(data + RANGE_COST);
            }
            (disk, at) = (disk + 1, 0);
        }
        let (mut staged, _) = builder.finish().map_err(|error| building(replica, error))?;
        staged.seal()?;
        Ok(Phase::Sealed(staged))
    }

    fn copy(
        &self,
        replica: &Replica,
        builder: &mut Builder,
        disk: Uuid,
        range: &std::ops::Range<u64>,
        source: Source,
    ) -> Result<()> {
        let medium = replica.medium.as_ref();
        let copied = match self.overlay.fetch(medium, &self.frames, range, source)? {
            Some(data) => builder.write(disk, range.start, &data),
            None => builder.zero(disk, range.start, range.end - range.start),
        };
        copied.map_err(|error| building(replica, error))
    }

    /// Gives the sealed object its name; it still does not count. Called in the section.
    pub(super) fn publish(&mut self, replica: &Replica) -> Result<()> {
        let phase = std::mem::replace(&mut self.phase, Phase::Failed);
        let Phase::Sealed(staged) = phase else {
            self.phase = phase;
            return Ok(());
        };
        let name = layout::merged_object(&self.span);
        if let Put::Refused = staged.publish()? {
            return Err(StoreError::new(
                crate::ErrorKind::Io,
                format!(
                    "name the merged journal object {}: there is one of that name, or what was staged is gone; call maintenance again",
                    replica.medium.describe(&name)
                ),
            ));
        }
        let object = JournalName {
            first: self.span.first,
            generation: self.span.generation,
            name,
            length: 0,
        };
        let reader = open_object(replica, &object.name)?;
        check_identity(replica, &reader, self.span.last, &object)?;
        self.check_ranges(replica, &object.name, &reader)?;
        self.phase = Phase::Proving(Box::new(reader), 0);
        Ok(())
    }

    /// Every byte that the old objects change, the new one changes.
    fn check_ranges(&self, replica: &Replica, name: &str, reader: &Reader) -> Result<()> {
        for (index, disk) in self.disks.iter().enumerate() {
            let stored = reader.entries(index);
            let stored = joined(stored.iter().map(|e| e.offset..e.offset + e.length));
            let map = self.overlay.disks.get(&disk.id);
            let wanted = map.into_iter().flat_map(|map| map.iter());
            if stored != joined(wanted.map(|(range, _)| range)) {
                return Err(StoreError::corrupt(
                    &replica.medium.describe(name),
                    format!("it does not have what changed on disk {}", disk.id),
                ));
            }
        }
        Ok(())
    }

    fn prove(
        &self,
        replica: &Replica,
        budget: &mut Budget,
        reader: Box<Reader>,
        mut frame: u32,
    ) -> Result<Phase> {
        while let Some(known) = reader.frames().get(frame as usize) {
            if budget.is_spent() {
                return Ok(Phase::Proving(reader, frame));
            }
            budget.spend(u64::from(known.stored_length()) + RANGE_COST);
            reader.read_frame(frame).map_err(|error| {
                let name = layout::merged_object(&self.span);
                StoreError::journal(&replica.medium.describe(&name), error)
            })?;
            frame += 1;
        }
        Ok(Phase::Proven)
    }

    pub(super) fn generation(&self) -> Generation {
        self.span.generation
    }
}

/// The VM's disks at the end of the span, then those that were excluded on the way.
fn disks_of(span: &Span, overlay: &Overlay) -> (Vec<JournalDisk>, Merged) {
    let mut disks: Vec<JournalDisk> = overlay
        .set
        .iter()
        .map(|disk| JournalDisk {
            id: disk.id,
            size_bytes: disk.size_bytes,
        })
        .collect();
    let merged = Merged {
        first_position: span.first.0,
        present_disks: disks.len() as u32,
    };
    for (id, size_bytes) in &overlay.sizes {
        if overlay.set.iter().all(|disk| disk.id != *id) {
            disks.push(JournalDisk {
                id: *id,
                size_bytes: *size_bytes,
            });
        }
    }
    (disks, merged)
}

/// Sorted ranges, neighbours joined.
fn joined(ranges: impl Iterator<Item = std::ops::Range<u64>>) -> Vec<std::ops::Range<u64>> {
    let mut out: Vec<std::ops::Range<u64>> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => out.push(range),
        }
    }
    out
}
