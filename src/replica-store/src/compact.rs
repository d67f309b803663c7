//! Compaction: where retention has thinned points out, the cycles between two that are left become one
//! object with the newest version of every range. Images at the positions that are left do not change.
//!
//! ```text
//! choose a window of an interval (p, q] that nothing shows the inside of
//!    ─► manifest: merging = span         from here on no point begins inside
//!    ─► look again at points and pins    whoever was faster wins, the span is given up
//!    ─► stream the new object ─► seal ─► name          it does not count yet
//!    ─► read all of it back
//!    ─► manifest: spans + span           the one step that counts: readers now take the new object
//!    ─► the old objects go, as everything goes that does not count
//! ```
//!
//! A cut before the manifest names the span leaves an object that never counts, one behind it leaves old
//! objects that do not count any more; the next round removes either. Every change of the manifest is under
//! its version and asks whether the generation still owns the replica, so a stale engine can't make a
//! merged object count, and a pin that came meanwhile changes the version. A merge that is under way is
//! given up when base comes to where it begins.
//!
//! It is part of maintenance and works in steps: a round spends so many bytes (half of them on reading back)
//! and the next one goes on, so cycles that wait are shipped in between. The state of a step lives in
//! memory; an engine that starts again begins the window anew.
//!
//! Nothing of this may make a round of maintenance fail that would have succeeded without it, but for
//! failures of the medium: damage, missing keys and a full store end the merge and are reported.

mod choice;
mod run;

use std::collections::{BTreeSet, HashSet};
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use crate::error::{ErrorKind, Result, StoreError};
use crate::manifest::{Manifest, Span};
use crate::model::{Generation, MaintenanceReport, Position, RetentionPolicy};
use crate::overlay::{IntervalMap, Overlay, Source};
use crate::points::Summary;
use crate::replica::{JournalNames, RACES, Replica, fenced};
use crate::retention::{PointAge, immutable_points};
use choice::{Kept, Window};
use run::{Budget, Progress, Run};

/// Bytes that a round spends when nobody says otherwise.
const ROUND_BYTES: u64 = 32 << 20;
/// Ranges that one merge holds in memory at most, some 100 MiB.
const MAX_RANGES: usize = 1 << 20;
/// What looking at an object costs of a round.
const LOOK_BYTES: u64 = 64 << 10;
/// Objects that are opened between two looks at the memory they take.
const BATCH: usize = 8;

/// What a replica's compaction remembers between rounds.
#[derive(Debug)]
pub(crate) struct Compaction {
    round_bytes: u64,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    run: Option<Run>,
    /// Windows that do not pay or can't be read: objects never change, so neither does the verdict.
    judged: HashSet<Window>,
}

impl Compaction {
    /// `None`: the usual pace. 0: never.
    pub(crate) fn of(round_bytes: Option<u64>) -> Self {
        Compaction {
            round_bytes: round_bytes.unwrap_or(ROUND_BYTES),
            memory: Mutex::default(),
        }
    }
}

/// Goes on with a merge, or begins one, as far as a round's budget reaches.
pub(crate) fn step(
    replica: &Replica,
    generation: Generation,
    now_unix_ms: i64,
    policy: &RetentionPolicy,
    report: &mut MaintenanceReport,
) -> Result<()> {
    let compaction = &replica.compaction;
    let mut budget = Budget(compaction.round_bytes);
    let memory = &compaction.memory;
    let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
    let work = Work {
        replica,
        generation,
        now_unix_ms,
        policy,
    };
    while !budget.is_spent() {
        let mut run = match memory.run.take() {
            Some(run) if work.still_wanted(&run)? => run,
            _ => match work.choose(&mut memory, &mut budget, report)? {
                Some(run) => run,
                None => return work.retract(None),
            },
        };
        match work.advance(&mut run, &mut budget) {
            Ok(true) => report.merged_journal_objects += run.objects,
            Ok(false) => memory.run = Some(run),
            Err(error) if ends_quietly(&error) => {
                report.not_merged = Some(error.to_string());
                memory.judged.insert(run.window);
            }
            // Base was moved over it by a round beside this one.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether a failure says that this window can't be merged, and nothing of the rest of maintenance.
fn ends_quietly(error: &StoreError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Corrupt | ErrorKind::MissingKey | ErrorKind::Full | ErrorKind::Invalid
    )
}

struct Work<'a> {
    replica: &'a Replica,
    generation: Generation,
    now_unix_ms: i64,
    policy: &'a RetentionPolicy,
}

impl Work<'_> {
    /// Whether the manifest still announces the run, and base has not come to it.
    fn still_wanted(&self, run: &Run) -> Result<bool> {
        let manifest = self.replica.manifest()?.value;
        let floor = manifest.complete().map(|(_, floor)| floor);
        Ok(run.generation() == self.generation
            && manifest.merging == Some(run.span)
            && floor.is_some_and(|floor| floor < run.span.first))
    }

    /// Begins the first window that pays.
    fn choose(
        &self,
        memory: &mut Memory,
        budget: &mut Budget,
        report: &mut MaintenanceReport,
    ) -> Result<Option<Run>> {
        let (seen, journal) = self.replica.settled()?;
        let manifest = &seen.value;
        let Some((base, floor)) = manifest.complete() else {
            return Ok(None);
        };
        let head = journal.last_key_value().map_or(base, |(head, _)| *head);
        // What base is about to take in is left as it is.
        if base != floor {
            return Ok(None);
        }
        memory.judged.retain(|window| window.first > base);
        let kept = self.kept(base, head)?;
        for window in choice::windows(&journal, &kept) {
            if budget.is_spent() {
                break;
            }
            if memory.judged.contains(&window) {
                continue;
            }
            budget.spend(LOOK_BYTES.saturating_mul(window.count as u64));
            let looked = self.look(manifest, &journal, &window);
            let overlay = match looked {
                Ok(Some(overlay)) => overlay,
                Ok(None) => {
                    memory.judged.insert(window);
                    continue;
                }
                Err(error) if ends_quietly(&error) => {
                    report.not_merged = Some(error.to_string());
                    memory.judged.insert(window);
                    continue;
                }
                // The owner of now moved it.
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            let Some(span) = self.announce(manifest.id, &overlay)? else {
                return Ok(None);
            };
            match Run::begin(self.replica, span, window, overlay) {
                Ok(run) => return Ok(Some(run)),
                Err(error) if ends_quietly(&error) => {
                    report.not_merged = Some(error.to_string());
                    memory.judged.insert(window);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn kept(&self, base: Position, head: Position) -> Result<Kept> {
        let points = self.replica.held_summaries()?;
        let ages: Vec<PointAge> = points.iter().map(Summary::age).collect();
        let immutable = immutable_points(&ages, self.policy, self.now_unix_ms);
        let pins = self.replica.pins()?;
        Ok(Kept {
            base,
            head,
            shown: points
                .iter()
                .map(|point| point.position)
                .chain(pins.iter().map(|pin| pin.position))
                .collect(),
            immutable: points
                .iter()
                .filter(|point| immutable.contains(&point.id))
                .map(|point| point.position)
                .collect(),
        })
    }

    /// The journal of a window, merged, as far as it fits into memory; `None` when it does not pay.
    fn look(
        &self,
        manifest: &Manifest,
        journal: &JournalNames,
        window: &Window,
    ) -> Result<Option<Overlay>> {
        let before = Position(window.first.0.saturating_sub(1));
        let inside = journal.range(window.first..=window.last);
        let ends: Vec<Position> = inside.map(|(last, _)| *last).collect();
        let mut overlay = Overlay::merge(self.replica, manifest, before, before, journal)?;
        let mut at = before;
        for batch in ends.chunks(BATCH) {
            let to = batch.last().copied().unwrap_or(at);
            overlay.extend(self.replica, manifest, at, to, journal)?;
            at = to;
            let ranges: usize = overlay.disks.values().map(IntervalMap::len).sum();
            if ranges > MAX_RANGES {
                break;
            }
        }
        if let Some(damage) = overlay.lost().first() {
            return Err(StoreError::corrupt(&damage.place, "it is not merged"));
        }
        let frames = overlay.objects.iter().flat_map(|object| &object.frames);
        let held = frames.map(|frame| u64::from(frame.raw_length())).sum();
        let ranges = overlay.disks.values().flat_map(IntervalMap::iter);
        let live = ranges
            .filter(|(_, source)| *source != Source::Zeroes)
            .map(|(range, _)| range.end - range.start)
            .sum();
        let pays = choice::pays(overlay.objects.len(), held, live);
        Ok(pays.then_some(overlay))
    }

    /// Says in the manifest that a window is merged, then looks whether anybody shows its inside after all.
    fn announce(&self, replica_id: Uuid, overlay: &Overlay) -> Result<Option<Span>> {
        let (Some(first), Some(last)) = (overlay.objects.first(), overlay.objects.last()) else {
            return Ok(None);
        };
        let span = Span {
            first: first.first,
            last: last.position,
            generation: self.generation,
            id: Uuid::new_v4(),
        };
        let announced = self.replica.locked(self.generation, |locked| {
            locked.change(|manifest| {
                self.check_owner(manifest)?;
                let floor = manifest.complete().map(|(_, floor)| floor);
                if manifest.id != replica_id || floor.is_none_or(|floor| floor >= span.first) {
                    return Ok(None);
                }
                let mut new = manifest.clone();
                new.merging = Some(span);
                Ok(Some(new))
            })
        })?;
        if announced.merging != Some(span) {
            return Ok(None);
        }
        if self.is_shown(&span)? {
            self.retract(Some(span))?;
            return Ok(None);
        }
        Ok(Some(span))
    }

    /// Whether a point or a pin is inside of a span, before its end.
    fn is_shown(&self, span: &Span) -> Result<bool> {
        let shown: BTreeSet<Position> = self
            .replica
            .held_summaries()?
            .iter()
            .map(|point| point.position)
            .chain(self.replica.pins()?.iter().map(|pin| pin.position))
            .collect();
        Ok(shown.range(span.first..span.last).next().is_some())
    }

    fn check_owner(&self, manifest: &Manifest) -> Result<()> {
        if manifest.is_owner(self.generation) {
            return Ok(());
        }
        let owner = manifest.epochs.last().map(|epoch| epoch.generation);
        Err(fenced(
            self.replica,
            self.generation,
            owner.unwrap_or_default(),
        ))
    }

    /// Takes an announcement back: this one, or whatever a cut round left.
    fn retract(&self, span: Option<Span>) -> Result<()> {
        let left = self.replica.manifest()?.value.merging;
        if left.is_none() || (span.is_some() && left != span) {
            return Ok(());
        }
        self.replica.locked(self.generation, |locked| {
            locked.change(|manifest| {
                self.check_owner(manifest)?;
                if manifest.merging != left {
                    return Ok(None);
                }
                let mut new = manifest.clone();
                new.merging = None;
                Ok(Some(new))
            })
        })?;
        Ok(())
    }

    /// Goes on with a run; `true` when the merged object counts from now on.
    fn advance(&self, run: &mut Run, budget: &mut Budget) -> Result<bool> {
        loop {
            match run.go(self.replica, budget)? {
                Progress::Goes if budget.is_spent() => return Ok(false),
                Progress::Goes => {}
                Progress::Sealed => {
                    self.replica.locked(self.generation, |_| {
                        self.check_owner(&self.replica.manifest()?.value)?;
                        run.publish(self.replica)
                    })?;
                }
                Progress::Proven => return self.commit(&run.span),
            }
        }
    }

    /// Makes the merged object count, in place of those of its positions.
    fn commit(&self, span: &Span) -> Result<bool> {
        self.replica.locked(self.generation, |locked| {
            for _ in 0..RACES {
                let seen = self.replica.manifest()?;
                let manifest = &seen.value;
                self.check_owner(manifest)?;
                let floor = manifest.complete().map(|(_, floor)| floor);
                if manifest.merging != Some(*span) || floor.is_none_or(|f| f >= span.first) {
                    return Err(overtaken(self.replica));
                }
                // Behind the look at the manifest: a pin that is set later changes its version.
                if self.is_shown(span)? {
                    return Err(overtaken(self.replica));
                }
                let mut new = (**manifest).clone();
                new.merging = None;
                new.spans
                    .retain(|known| !(span.first <= known.first && known.last <= span.last));
                new.spans.push(*span);
                new.spans.sort_by_key(|span| span.first);
                if locked.replace_manifest(&seen, new)?.is_some() {
                    return Ok(true);
                }
                self.replica.check_generation(self.generation)?;
            }
            Err(overtaken(self.replica))
        })
    }
}

fn overtaken(replica: &Replica) -> StoreError {
    StoreError::new(
        ErrorKind::Io,
        format!(
            "compaction of replica {} was overtaken by another change: call maintenance again",
            replica.place()
        ),
    )
}
