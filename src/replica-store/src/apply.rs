//! The applier: retires points and moves base forward to the oldest that is kept.
//!
//! ```text
//! lock: retire points, raise floor  ─►  lock, write ranges of base ... ─►  lock: sync base
//!                                         (batch after batch)
//!    ─►  lock: manifest says base = floor  ─►  lock: remove journal objects ≤ base
//! ```
//!
//! Redo-idempotent: a cut anywhere leaves the journal (base, floor] in place until base holds it
//! durably, so the next round writes the same bytes again. Each locked step checks that the manifest
//! is still the one this round began with; if not, another round (or another owner) has taken
//! over and this one stops without a further write.

use std::collections::HashSet;
use std::fs;

use crate::base;
use crate::durable::DurableFile;
use crate::error::{ErrorKind, Result, StoreError};
use crate::frames::FrameCache;
use crate::layout::parse_journal_name;
use crate::model::{Generation, MaintenanceReport, Position, RetentionPolicy};
use crate::overlay::{Overlay, Source};
use crate::replica::{BaseState, Locked, Manifest, Replica, list};
use crate::retention::expired_points;
use crate::view::merge;

/// Bytes written to base under one hold of the lock: others wait no longer than for this.
const BATCH_BYTES: usize = 8 << 20;
const BATCH_PIECES: usize = 1024;
/// Longest run that is coalesced into one write.
const RUN_BYTES: usize = 4 << 20;

/// One round. See [`crate::ReplicaWriter::maintain`].
pub(crate) fn maintain(
    replica: &Replica,
    generation: Generation,
    now_unix_ms: i64,
    policy: RetentionPolicy,
) -> Result<MaintenanceReport> {
    let mut report = MaintenanceReport::default();
    let (manifest, base, target) = replica.locked(generation, |locked| {
        plan(locked, now_unix_ms, policy, &mut report)
    })?;
    report.base_position_before = base;
    report.base_position_after = base;
    if target > base {
        let (_, journal) = replica.settled()?;
        let overlay = merge(replica, &manifest, base, target, &journal)?;
        let round = Round {
            replica,
            generation,
            manifest: &manifest,
        };
        round.apply(&overlay, &mut report)?;
        round.finish(target)?;
        report.base_position_after = target;
    }
    report.removed_journal_objects = replica.locked(generation, remove_applied)?;
    Ok(report)
}

/// Retires points, then announces how far base will go.
fn plan(
    locked: &Locked<'_>,
    now_unix_ms: i64,
    policy: RetentionPolicy,
    report: &mut MaintenanceReport,
) -> Result<(Manifest, Position, Position)> {
    let replica = locked.replica;
    let (mut manifest, base, floor) = locked.complete()?;
    let pins = replica.pins()?;
    let held: Vec<_> = pins.iter().map(|pin| pin.point_id).collect();
    let (paths, points): (Vec<_>, Vec<_>) = replica.points()?.into_iter().unzip();
    report.expired_points = expired_points(&points, &held, policy, now_unix_ms);
    let expired: HashSet<_> = report.expired_points.iter().copied().collect();
    let gone: Vec<_> = paths
        .into_iter()
        .zip(&points)
        .filter(|(_, point)| expired.contains(&point.id))
        .map(|(path, _)| path)
        .collect();
    replica
        .durable
        .remove_files(&replica.layout.points(), &gone)?;
    let oldest = points
        .iter()
        .filter(|point| !expired.contains(&point.id))
        .map(|point| point.position)
        .chain(pins.iter().map(|pin| pin.position))
        .min();
    // Floor never sinks: what an earlier round announced may be half written already.
    let target = oldest.unwrap_or(floor).max(floor);
    let head = replica.head(base)?;
    if target > head {
        return Err(StoreError::corrupt(
            &replica.layout.journal(),
            format!("position {} is missing", target.0),
        ));
    }
    if target > floor {
        manifest.base = BaseState::Complete {
            position: base,
            floor: target,
        };
        locked.put_manifest(&manifest)?;
    }
    Ok((manifest, base, target))
}

struct Round<'a> {
    replica: &'a Replica,
    generation: Generation,
    manifest: &'a Manifest,
}

enum Piece {
    Data(u64, Vec<u8>),
    Zeroes(u64, u64),
}

impl Round<'_> {
    fn locked<T>(&self, act: impl FnOnce(&Locked<'_>) -> Result<T>) -> Result<T> {
        self.replica.locked(self.generation, |locked| {
            if self.replica.manifest()? != *self.manifest {
                return Err(StoreError::new(
                    ErrorKind::Conflict,
                    "another round of maintenance has overtaken this one",
                ));
            }
            act(locked)
        })
    }

    fn apply(&self, overlay: &Overlay, report: &mut MaintenanceReport) -> Result<()> {
        let frames = FrameCache::default();
        for (disk, map) in self.manifest.disks.iter().zip(&overlay.disks) {
            let path = self.replica.layout.base(disk.id);
            let file = base::open(&self.replica.durable, &path, disk)?;
            let mut batch: Vec<Piece> = Vec::new();
            let mut bytes = 0;
            for (range, source) in map.iter() {
                let length = range.end - range.start;
                report.applied_bytes += length;
                match source {
                    Source::Zeroes => batch.push(Piece::Zeroes(range.start, length)),
                    Source::Frame { object, frame, at } => {
                        let object = &overlay.objects[object as usize];
                        let raw = frames.read(object, frame)?;
                        let at = at as usize;
                        let data = raw.get(at..at + length as usize).ok_or_else(|| {
                            StoreError::corrupt(&object.path, "an entry lies outside its frame")
                        })?;
                        bytes += data.len();
                        coalesce(&mut batch, range.start, data);
                    }
                }
                if bytes >= BATCH_BYTES || batch.len() >= BATCH_PIECES {
                    self.write(&file, &mut batch)?;
                    bytes = 0;
                }
            }
            self.write(&file, &mut batch)?;
            self.locked(|_| file.sync())?;
        }
        Ok(())
    }

    fn write(&self, file: &DurableFile, batch: &mut Vec<Piece>) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.locked(|_| {
            for piece in batch.drain(..) {
                match piece {
                    Piece::Data(offset, data) => base::write(file, offset, &data)?,
                    Piece::Zeroes(offset, length) => file.zero_at(offset, length)?,
                }
            }
            Ok(())
        })
    }

    fn finish(&self, target: Position) -> Result<()> {
        self.locked(|locked| {
            let mut manifest = self.manifest.clone();
            manifest.base = BaseState::Complete {
                position: target,
                floor: target,
            };
            locked.put_manifest(&manifest)
        })
    }
}

fn coalesce(batch: &mut Vec<Piece>, offset: u64, data: &[u8]) {
    if let Some(Piece::Data(start, run)) = batch.last_mut()
        && *start + run.len() as u64 == offset
        && run.len() + data.len() <= RUN_BYTES
    {
        run.extend_from_slice(data);
    } else {
        batch.push(Piece::Data(offset, data.to_vec()));
    }
}

/// Removes journal objects that base holds. Also takes what an earlier, cut round left.
fn remove_applied(locked: &Locked<'_>) -> Result<u64> {
    let replica = locked.replica;
    let (_, base, _) = locked.complete()?;
    let folder = replica.layout.journal();
    let applied: Vec<_> = list(&folder)?
        .into_iter()
        .filter(|(name, _)| parse_journal_name(name).is_some_and(|(_, p)| p <= base))
        .map(|(_, path)| path)
        .filter(|path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file()))
        .collect();
    replica.durable.remove_files(&folder, &applied)?;
    Ok(applied.len() as u64)
}
