//! What is worth merging: pure choices over positions and lengths.
//!
//! An **interval** lies between two neighbouring positions that something shows (a point, a pin). It may be
//! merged when it has more than one object and its end is
//! - older than the head: the newest position may be sent again after an unknown outcome, and is then
//!   compared with what is stored;
//! - not immutable: what a promise was given for stays as it was captured, object by object, for as long as
//!   the promise holds. What lies before may be merged, since the points that need it read the same from
//!   the merged object, which is proven before anything goes.
//!
//! A **window** is what one merge takes: at most [`FAN_IN`] neighbouring objects of an interval, so that
//! one frame of each fits into memory. Larger intervals come down to one object over several merges; the
//! cheapest window first, so that what was merged already is not merged again for a few small objects more.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::Position;
use crate::replica::JournalName;

/// Objects that one merge takes at most.
pub(super) const FAN_IN: usize = 64;
/// What an object costs whoever opens a view, as bytes: opening it, its index.
const OBJECT_BYTES: u64 = 1 << 20;

/// Neighbouring objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Window {
    /// First position of the first object.
    pub(super) first: Position,
    /// Last position of the last one.
    pub(super) last: Position,
    /// How many there are.
    pub(super) count: usize,
}

/// What restricts the choice.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// Where base is, and nothing announced beyond.
    pub(super) base: Position,
    /// The newest position of the journal.
    pub(super) head: Position,
    /// Positions that something shows.
    pub(super) shown: BTreeSet<Position>,
    /// Those of them that nobody may touch yet.
    pub(super) immutable: BTreeSet<Position>,
}

/// Windows that could be merged, in the order in which they should be looked at.
pub(super) fn windows(journal: &BTreeMap<Position, JournalName>, kept: &Kept) -> Vec<Window> {
    let mut out = Vec::new();
    let mut start = kept.base;
    for end in kept.shown.range(kept.base..).copied() {
        let from = std::mem::replace(&mut start, end);
        if end <= from || end >= kept.head || kept.immutable.contains(&end) {
            continue;
        }
        let objects: Vec<(Position, &JournalName)> = journal
            .range(from.next()..=end)
            .map(|(last, object)| (*last, object))
            .collect();
        let begins = objects.first().map(|(_, object)| object.first);
        let ends = objects.last().map(|(last, _)| *last);
        if objects.len() > 1 && begins == Some(from.next()) && ends == Some(end) {
            out.extend(of_interval(&objects));
        }
    }
    out
}

fn of_interval(objects: &[(Position, &JournalName)]) -> Vec<Window> {
    let step = FAN_IN / 2;
    let starts = (0..objects.len().saturating_sub(step).max(1)).step_by(step);
    let mut priced: Vec<(u64, Window)> = starts
        .filter_map(|start| {
            let taken = objects.get(start..objects.len().min(start + FAN_IN))?;
            let ((_, begin), (last, _)) = (taken.first()?, taken.last()?);
            let bytes = taken.iter().map(|(_, object)| object.length).sum();
            let window = Window {
                first: begin.first,
                last: *last,
                count: taken.len(),
            };
            (taken.len() > 1).then_some((bytes, window))
        })
        .collect();
    priced.sort();
    priced.into_iter().map(|(_, window)| window).collect()
}

/// Whether merging pays: what goes away (bytes that later cycles wrote again, and whole objects) is at
/// least a quarter of what must be read and written for it.
pub(super) fn pays(objects: usize, held_bytes: u64, live_bytes: u64) -> bool {
    let dead = held_bytes.saturating_sub(live_bytes);
    let fewer = (objects as u64).saturating_sub(1);
    let gain = dead.saturating_add(fewer.saturating_mul(OBJECT_BYTES));
    objects > 1 && gain.saturating_mul(4) >= live_bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Generation;

    /// Objects of the journal from 1 on: how many positions each has, and its length.
    fn journal(objects: &[(u64, u64)]) -> BTreeMap<Position, JournalName> {
        let mut at = 0;
        objects
            .iter()
            .map(|(count, length)| {
                let first = Position(at + 1);
                at += count;
                let object = JournalName {
                    first,
                    generation: Generation(1),
                    name: String::new(),
                    length: *length,
                };
                (Position(at), object)
            })
            .collect()
    }

    fn kept(base: u64, head: u64, shown: &[u64]) -> Kept {
        Kept {
            base: Position(base),
            head: Position(head),
            shown: shown.iter().copied().map(Position).collect(),
            immutable: BTreeSet::new(),
        }
    }

    fn spans(windows: &[Window]) -> Vec<(u64, u64)> {
        windows.iter().map(|w| (w.first.0, w.last.0)).collect()
    }

    #[test]
    fn only_what_lies_between_two_shown_positions_is_merged_and_never_the_head() {
        let journal = journal(&[(1, 10); 12]);
        let all = windows(&journal, &kept(0, 12, &[0, 1, 4, 5, 9, 12]));
        assert_eq!(spans(&all), [(2, 4), (6, 9)]);
        assert_eq!(windows(&journal, &kept(0, 12, &[])), []);
        // Behind the newest point a point may still come.
        assert_eq!(spans(&windows(&journal, &kept(0, 12, &[3]))), [(1, 3)]);
        // What base is to take in next is not touched either when it is announced beyond.
        assert_eq!(spans(&windows(&journal, &kept(4, 12, &[4, 9]))), [(5, 9)]);
    }

    #[test]
    fn what_leads_to_an_immutable_point_stays_as_it_was_captured() {
        let journal = journal(&[(1, 10); 12]);
        let mut kept = kept(0, 12, &[0, 4, 8, 12]);
        kept.immutable.insert(Position(8));
        assert_eq!(spans(&windows(&journal, &kept)), [(1, 4)]);
    }

    #[test]
    fn an_interval_that_is_merged_already_is_left_alone() {
        let journal = journal(&[(4, 10), (4, 10), (1, 10), (1, 10)]);
        assert_eq!(windows(&journal, &kept(0, 10, &[0, 4, 8, 10])), []);
        // Until the point between two merged objects is retired.
        let thinner = windows(&journal, &kept(0, 10, &[0, 8, 10]));
        assert_eq!(spans(&thinner), [(1, 8)]);
    }

    #[test]
    fn the_cheapest_window_of_a_long_interval_comes_first() {
        let mut lengths = vec![(64, 9000)];
        lengths.extend([(1, 10); 200]);
        let all = windows(&journal(&lengths), &kept(0, 1000, &[0, 264]));
        assert!(all.iter().all(|window| window.count <= FAN_IN));
        assert!(all[0].first > Position(64), "{all:?}");
        assert_eq!(all.last().map(|window| window.first), Some(Position(1)));
        let covered: BTreeSet<u64> = all.iter().flat_map(|w| w.first.0..=w.last.0).collect();
        assert_eq!(covered.len(), 264, "every object is in some window");
    }

    #[test]
    fn it_pays_for_small_objects_and_for_overwritten_ones() {
        assert!(!pays(1, 1000, 10));
        assert!(pays(64, 6 << 20, 6 << 20), "many small ones");
        assert!(!pays(2, 2 << 30, 2 << 30), "two large ones, nothing dead");
        assert!(pays(24, 24 << 30, 1 << 30), "the same written each hour");
    }
}
