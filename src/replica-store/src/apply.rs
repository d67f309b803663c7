//! The applier: retires points and moves base forward to the oldest that is kept.
//!
//! ```text
//! merge (base, target] ─► section: floor := target, fence + 1; retire points
//!    ─► write ranges of base ... ─► sync base ─► section: manifest says base = target
//!       (batch after batch)                         ─► section: remove journal objects ≤ base
//! ```
//!
//! Redo-idempotent: a cut anywhere leaves the journal (base, floor] in place until base holds it
//! durably, so the next round writes the same bytes again. Each write carries the round's fence; when
//! another round (or another owner) has taken over, this one is refused without a further write.
//!
//! A damaged journal object stops base in front of it, never anything else: points are retired, the
//! report names the damage, and once younger cycles have written the damaged ranges again base goes on.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use crate::base;
use crate::compact;
use crate::error::{ErrorKind, Result, StoreError};
use crate::frames::FrameCache;
use crate::layout::{self, JOURNAL, ObjectName};
use crate::manifest::{BaseState, Manifest, OtherDisk, OtherState};
use crate::medium::{BaseWrite, Fence, Piece, Section};
use crate::model::{DiskSpec, Generation, MaintenanceReport, Position, RetentionPolicy};
use crate::overlay::{Overlay, Source, read_front};
use crate::points::Summary;
use crate::replica::{Locked, RACES, Replica, incomplete};
use crate::retention::{PointAge, expired_points};
use crate::takeover::raise_fences;

/// Bytes written to base under one hold of the section: others wait no longer than for this.
const BATCH_BYTES: usize = 8 << 20;
const BATCH_PIECES: usize = 1024;
/// Longest run that is coalesced into one write.
const RUN_BYTES: usize = 4 << 20;
/// More findings than anyone reads.
const MAX_DAMAGE: usize = 1000;

/// One round. See [`crate::ReplicaWriter::maintain`].
pub(crate) fn maintain(
    replica: &Replica,
    generation: Generation,
    now_unix_ms: i64,
    policy: &RetentionPolicy,
) -> Result<MaintenanceReport> {
    let _lease = replica.medium.enter(Section::Maintenance, false)?;
    let mut report = MaintenanceReport::default();
    let intent = Intent {
        replica,
        now_unix_ms,
        policy,
    };
    for _ in 0..RACES {
        let (overlay, before, target) = intent.merge(&mut report)?;
        let begun = replica.locked(generation, |locked| {
            intent.begin(locked, before, target, &mut report)
        })?;
        let Some(manifest) = begun else {
            continue;
        };
        report.base_position_before = before;
        report.base_position_after = before;
        if target > before {
            let round = Round {
                replica,
                generation,
                manifest: &manifest,
                fence: manifest.fence,
            };
            // Not those of disks that join: the round writes none of them, and others do at this moment.
            raise_fences(replica, &manifest, |disk| {
                let other = manifest.other(disk.id);
                other.is_none_or(|other| other.state == OtherState::Ready)
            })?;
            if round.apply(&overlay, &mut report)? {
                round.finish(&overlay, target)?;
                report.base_position_after = target;
            }
        }
        if report.damage.is_empty() {
            compact::step(replica, generation, now_unix_ms, policy, &mut report)?;
        }
        report.removed_journal_objects = replica.locked(generation, remove_superseded)?;
        report.unreadable_points = replica.unreadable_points();
        return Ok(report);
    }
    Err(StoreError::new(
        ErrorKind::Io,
        format!(
            "points of replica {} are pinned faster than they can be retired: try again",
            replica.place()
        ),
    ))
}

/// Points that one round thins out at most: they are named in the manifest meanwhile.
const MOST_THINNED: usize = 1000;

/// What a round of maintenance is asked for.
struct Intent<'a> {
    replica: &'a Replica,
    now_unix_ms: i64,
    policy: &'a RetentionPolicy,
}

impl Intent<'_> {
    /// Points that go, and how far base may go then.
    /// What is announced goes, whatever else has changed since: nobody could pin it any more, and the round that
    /// announced it may only be asleep.
    fn retire(&self, floor: Position, announced: &[Uuid]) -> Result<(Vec<Summary>, Position)> {
        let pins = self.replica.pins()?;
        let held: Vec<_> = pins.iter().map(|pin| pin.point_id).collect();
        let points = self.replica.held_summaries()?;
        let ages: Vec<PointAge> = points.iter().map(Summary::age).collect();
        let expired: HashSet<Uuid> = expired_points(&ages, &held, self.policy, self.now_unix_ms)
            .into_iter()
            .chain(announced.iter().copied())
            .collect();
        let (gone, kept): (Vec<Summary>, Vec<Summary>) = points
            .into_iter()
            .partition(|point| expired.contains(&point.id));
        let oldest = kept
            .iter()
            .map(|point| point.position)
            .chain(pins.iter().map(|pin| pin.position))
            .min();
        // Floor never sinks: what an earlier round announced may be half written already.
        Ok((gone, oldest.unwrap_or(floor).max(floor)))
    }

    /// The journal that base is to take in: base, target, and what lies between. Ends in front of what
    /// can't be read.
    fn merge(&self, report: &mut MaintenanceReport) -> Result<(Overlay, Position, Position)> {
        for _ in 0..RACES {
            let (seen, journal) = self.replica.settled()?;
            let manifest = &seen.value;
            let (base, floor) = manifest
                .complete()
                .ok_or_else(|| incomplete(self.replica))?;
            let (_, target) = self.retire(floor, &manifest.retiring)?;
            let head = journal.last_key_value().map_or(base, |(head, _)| *head);
            if target > head {
                return Err(StoreError::corrupt(
                    &self.replica.medium.describe(JOURNAL),
                    format!("position {} is missing", target.0),
                ));
            }
            let merged = Overlay::merge(self.replica, manifest, base, target, &journal);
            let overlay = match merged {
                // Another round has removed what was listed.
                Err(error)
                    if error.kind() == ErrorKind::NotFound
                        && self.replica.manifest()?.value != seen.value =>
                {
                    continue;
                }
                other => other?,
            };
            let Some(before) = overlay.readable_to() else {
                return Ok((overlay, base, target));
            };
            report.damage = overlay.lost();
            report.damage.truncate(MAX_DAMAGE);
            // What an earlier round announced is half written: then base waits where it is.
            let target = if before > floor { before } else { base };
            let overlay = Overlay::merge(self.replica, manifest, base, target, &journal)?;
            return Ok((overlay, base, target));
        }
        Err(StoreError::new(
            ErrorKind::Io,
            "another round of maintenance overtakes this one all the time: try again",
        ))
    }

    /// Announces how far base will go and which points go, then retires them. `None` when a pin or another round
    /// came in between and `merge` must look again.
    fn begin(
        &self,
        locked: &Locked<'_>,
        before: Position,
        target: Position,
        report: &mut MaintenanceReport,
    ) -> Result<Option<Arc<Manifest>>> {
        for _ in 0..RACES {
            let seen = self.replica.manifest()?;
            let (base, floor) = seen
                .value
                .complete()
                .ok_or_else(|| incomplete(self.replica))?;
            let (gone, allowed) = self.retire(floor, &seen.value.retiring)?;
            if base != before || allowed < target {
                return Ok(None);
            }
            let floor = target.max(floor);
            // Pins of older points are refused by floor.
            let (mut gone, mut thinned): (Vec<_>, Vec<_>) =
                gone.into_iter().partition(|point| point.position < floor);
            thinned.sort_by_key(|point| !seen.value.retiring.contains(&point.id));
            gone.extend(thinned.into_iter().take(MOST_THINNED));
            let retiring: Vec<Uuid> = gone
                .iter()
                .filter(|point| point.position >= floor)
                .map(|point| point.id)
                .collect();
            let mut manifest = seen.value.clone();
            // A pin that was set since makes this conflict; one that comes later sees what is announced.
            if target > base || (!retiring.is_empty() && retiring != manifest.retiring) {
                let mut new = (*manifest).clone();
                if target > base {
                    new.fence = Fence(new.fence.0.saturating_add(1));
                    new.base = BaseState::Complete {
                        position: base,
                        floor,
                    };
                }
                new.retiring = retiring;
                match locked.replace_manifest(&seen, new)? {
                    Some(new) => manifest = new,
                    None => {
                        self.replica.check_generation(locked.generation())?;
                        continue;
                    }
                }
            }
            let names: Vec<String> = gone.iter().map(Summary::name).collect();
            self.replica.medium.remove(&names)?;
            report.expired_points = gone.iter().map(|point| point.id).collect();
            return Ok(Some(manifest));
        }
        Ok(None)
    }
}

struct Round<'a> {
    replica: &'a Replica,
    generation: Generation,
    manifest: &'a Manifest,
    fence: Fence,
}

enum Run {
    Data(u64, Vec<u8>),
    Zeroes(u64, u64),
}

impl Round<'_> {
    /// A step on base. Where the medium does not compare the fence, the section and this do.
    fn step<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.replica.medium.compares_fence() {
            return act();
        }
        self.replica.locked(self.generation, |_| {
            self.check_fence(&self.replica.manifest()?.value)?;
            act()
        })
    }

    fn check_fence(&self, manifest: &Manifest) -> Result<()> {
        if manifest.fence == self.fence && manifest.id == self.manifest.id {
            return Ok(());
        }
        Err(StoreError::new(
            ErrorKind::Overtaken,
            "another round of maintenance has overtaken this one",
        ))
    }

    /// Says whether all of it could be read.
    fn apply(&self, overlay: &Overlay, report: &mut MaintenanceReport) -> Result<bool> {
        let mut whole = true;
        let frames = FrameCache::default();
        let medium = self.replica.medium.as_ref();
        for disk in self.manifest.stored_disks() {
            let Some(map) = overlay.disks.get(&disk.id) else {
                continue;
            };
            let base = base::open(self.replica, self.manifest, disk.id)?;
            if let Some(size_bytes) = overlay.sizes.get(&disk.id).copied() {
                let grown = DiskSpec {
                    size_bytes,
                    ..disk.clone()
                };
                self.step(|| base::grow(base.as_ref(), disk, &grown))?;
            }
            let mut batch: Vec<Run> = Vec::new();
            let mut bytes = 0;
            for (range, source) in map.iter() {
                match overlay.fetch(medium, &frames, &range, source) {
                    Ok(None) => {
                        batch.push(Run::Zeroes(range.start, range.end - range.start));
                    }
                    Ok(Some(data)) => {
                        bytes += data.len();
                        coalesce(&mut batch, range.start, &data);
                    }
                    Err(error) if error.kind() == ErrorKind::Corrupt => {
                        whole = false;
                        if report.damage.len() < MAX_DAMAGE
                            && let Source::Frame { object, .. } | Source::Lost { object } = source
                        {
                            report.damage.push(overlay.damage(object, disk.id, &range));
                        }
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                report.applied_bytes += range.end - range.start;
                if bytes >= BATCH_BYTES || batch.len() >= BATCH_PIECES {
                    self.write(base.as_ref(), &mut batch)?;
                    bytes = 0;
                }
            }
            self.write(base.as_ref(), &mut batch)?;
            self.step(|| base.flush())?;
        }
        Ok(whole)
    }

    fn write(&self, base: &dyn BaseWrite, batch: &mut Vec<Run>) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let pieces: Vec<Piece> = batch
            .drain(..)
            .map(|run| match run {
                Run::Data(offset, data) => Piece::Data(offset, Bytes::from(data)),
                Run::Zeroes(offset, length) => Piece::Zeroes(offset, length),
            })
            .collect();
        self.step(|| base.write(&pieces))
    }

    /// Base is at the target: its disks are those of the target. Disks that no younger cycle names and
    /// that are in no point any more go.
    fn finish(&self, overlay: &Overlay, target: Position) -> Result<()> {
        self.replica.locked(self.generation, |locked| {
            let done = locked.change(|current| {
                self.check_fence(current)?;
                self.at_target(current, overlay, target).map(Some)
            })?;
            let gone: Vec<Uuid> = self
                .manifest
                .stored_disks()
                .map(|disk| disk.id)
                .filter(|disk| done.stored_disk(*disk).is_none())
                .collect();
            if !gone.is_empty() {
                self.replica.forget_bases();
            }
            let names: Vec<String> = gone.iter().map(|disk| layout::base(*disk)).collect();
            self.replica
                .medium
                .remove_while(&names, &|| locked.is_without(&gone))
        })
    }

    fn at_target(
        &self,
        current: &Manifest,
        overlay: &Overlay,
        target: Position,
    ) -> Result<Manifest> {
        let mut new = current.clone();
        new.base = BaseState::Complete {
            position: target,
            floor: target,
        };
        new.disks = overlay.set.clone();
        new.spans.retain(|span| span.last > target);
        new.merging = new.merging.filter(|span| span.first > target);
        let is_in_set = |id: Uuid| overlay.set.iter().any(|disk| disk.id == id);
        let mut later: Option<BTreeSet<Uuid>> = None;
        new.others = Vec::new();
        for disk in current.stored_disks().filter(|disk| !is_in_set(disk.id)) {
            let other = current.other(disk.id);
            if let Some(other) = other
                && !overlay.disks.contains_key(&disk.id)
                && other.state != OtherState::Ready
            {
                new.others.push(other.clone());
                continue;
            }
            if later.is_none() {
                later = Some(self.named_after(current, target)?);
            }
            let is_joining = other.is_some() && !overlay.disks.contains_key(&disk.id);
            if is_joining || later.as_ref().is_some_and(|later| later.contains(&disk.id)) {
                let size_bytes = overlay.sizes.get(&disk.id).copied();
                new.others.push(OtherDisk {
                    spec: DiskSpec {
                        size_bytes: size_bytes.unwrap_or(disk.size_bytes),
                        ..disk.clone()
                    },
                    state: OtherState::Ready,
                });
            }
        }
        Ok(new)
    }

    /// Disks of the cycles behind a position.
    fn named_after(&self, manifest: &Manifest, position: Position) -> Result<BTreeSet<Uuid>> {
        let mut named = BTreeSet::new();
        for object in self.replica.journal(manifest, position)?.values() {
            match read_front(self.replica, &object.name) {
                Ok(front) => named.extend(front.header.disks.iter().map(|disk| disk.id)),
                // It may name any disk: none goes.
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    named.extend(manifest.stored_disks().map(|disk| disk.id));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(named)
    }
}

fn coalesce(batch: &mut Vec<Run>, offset: u64, data: &[u8]) {
    if let Some(Run::Data(start, run)) = batch.last_mut()
        && *start + run.len() as u64 == offset
        && run.len() + data.len() <= RUN_BYTES
    {
        run.extend_from_slice(data);
    } else {
        batch.push(Run::Data(offset, data.to_vec()));
    }
}

/// Removes journal objects that base holds, those that a merged one stands for, and what a cut compaction
/// left: nothing that counts, and nothing that may come to count.
fn remove_superseded(locked: &Locked<'_>) -> Result<u64> {
    let replica = locked.replica;
    let listed = replica.medium.list(JOURNAL)?;
    // Read behind the listing: a merged object that was listed and that it does not name never counts.
    let (manifest, base, _) = locked.complete()?;
    let manifest = &manifest.value;
    let gone: Vec<String> = listed
        .into_iter()
        .filter(|listed| match ObjectName::parse(&listed.name) {
            None => false,
            Some(ObjectName::Cycle(_, position)) => {
                position <= base || manifest.span_at(position).is_some()
            }
            Some(ObjectName::Merged(span)) => {
                let counts = manifest.span_at(span.last) == Some(&span);
                span.last <= base || !(counts || manifest.merging == Some(span))
            }
        })
        .map(|listed| format!("{JOURNAL}{}", listed.name))
        .collect();
    replica.medium.remove(&gone)?;
    Ok(gone.len() as u64)
}
