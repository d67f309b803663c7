//! Of which disks all changes are known, and of which not: pure.
//!
//! ```text
//! tracked ─► suspect (reason) ─► comparing: blocks below `compared_bytes` are known ─► tracked
//!               ▲                     │ tracking is lost again, or a new reason
//!               └─────────────────────┘
//! ```
//!
//! What is known belongs to an instant: each captured cycle says what is known after it, the item's state says it
//! of the newest shipped one. Cycles that are given up take what they knew with them. Reasons that come from
//! outside of a capture are raised in the state and taken up by the next cycle.

use std::collections::{BTreeMap, BTreeSet};

use hypervisor::DiskId;
use serde::{Deserialize, Serialize};

/// A disk whose changes are not all known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Suspicion {
    /// Why, for people.
    pub reason: String,
    /// Everything below is compared, and tracked since.
    pub compared_bytes: u64,
}

/// A reason from outside of a capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Raise {
    /// Grows with each.
    pub number: u64,
    /// Which disk.
    pub disk: DiskId,
    /// Why, for people.
    pub reason: String,
}

/// What is known at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Knowledge {
    /// Disks that must be compared; of all others everything is known.
    pub suspects: BTreeMap<DiskId, Suspicion>,
    /// Raised reasons up to this number are taken up.
    pub raised_seen: u64,
    /// Disks that cycles have; others of the VM are on their way in.
    #[serde(default)]
    pub members: BTreeSet<DiskId>,
    /// Of a disk on its way in: its base holds the disk up to here, tracked since.
    #[serde(default)]
    pub joining: BTreeMap<DiskId, u64>,
}

impl Knowledge {
    /// Whether all disks are as they were on the source at that instant.
    pub fn is_whole(&self) -> bool {
        self.suspects.is_empty()
    }

    /// Disks that are no longer replicated are of no interest. `disks` are those that are.
    pub fn keep_only(&mut self, disks: &[DiskId]) {
        self.members.retain(|disk| disks.contains(disk));
        self.joining.retain(|disk, _| disks.contains(disk));
        self.suspects.retain(|disk, _| disks.contains(disk));
    }

    /// From this cycle on the disk is part of points.
    pub fn join(&mut self, disk: DiskId) {
        self.joining.remove(&disk);
        self.members.insert(disk);
    }

    /// Whether a comparison would begin with the next cycle, rather than go on.
    pub fn begins(&self) -> bool {
        self.suspects
            .values()
            .any(|suspicion| suspicion.compared_bytes == 0)
    }

    /// Nothing of what was compared counts any more.
    pub fn suspect(&mut self, disk: DiskId, reason: &str) {
        self.suspects
            .entry(disk)
            // The first reason is the one that people look for.
            .and_modify(|suspicion| suspicion.compared_bytes = 0)
            .or_insert_with(|| Suspicion {
                reason: reason.to_owned(),
                compared_bytes: 0,
            });
    }

    /// Takes up what was raised.
    pub fn take_up(&mut self, raised: &[Raise]) {
        let seen = self.raised_seen;
        for raise in raised.iter().filter(|raise| raise.number > seen) {
            self.suspect(raise.disk, &raise.reason);
            self.raised_seen = self.raised_seen.max(raise.number);
        }
    }

    /// The disk is compared up to here.
    pub fn compared(&mut self, disk: DiskId, to: u64, size_bytes: u64) {
        if to >= size_bytes {
            self.suspects.remove(&disk);
        } else if let Some(suspicion) = self.suspects.get_mut(&disk) {
            suspicion.compared_bytes = to;
        }
    }

    /// Where the comparison of a disk goes on; `None` = it needs none.
    pub fn cursor(&self, disk: DiskId) -> Option<u64> {
        self.suspects
            .get(&disk)
            .map(|suspicion| suspicion.compared_bytes)
    }
}

/// Adds a reason to those that wait to be taken up.
pub fn raise(raised: &mut Vec<Raise>, seen: u64, disk: DiskId, reason: &str) {
    let newest = raised.last().map_or(0, |raise| raise.number);
    raised.push(Raise {
        number: newest.max(seen) + 1,
        disk,
        reason: reason.to_owned(),
    });
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const DISK: DiskId = DiskId(Uuid::from_u128(1));

    #[test]
    fn a_comparison_goes_on_where_it_was_and_ends_at_the_end() {
        let mut known = Knowledge::default();
        assert!(known.is_whole() && known.cursor(DISK).is_none());
        known.suspect(DISK, "first");
        assert!(known.begins());
        known.compared(DISK, 10, 30);
        assert!(!known.begins() && !known.is_whole());
        assert_eq!(known.cursor(DISK), Some(10));
        known.suspect(DISK, "second");
        assert_eq!(known.cursor(DISK), Some(0));
        assert_eq!(known.suspects[&DISK].reason, "first");
        known.compared(DISK, 30, 30);
        assert!(known.is_whole());
    }

    #[test]
    fn each_raised_reason_is_taken_up_once_by_each_chain_of_cycles() {
        let mut raised = Vec::new();
        raise(&mut raised, 0, DISK, "asked for");
        let shipped = Knowledge::default();
        let mut captured = shipped.clone();
        captured.take_up(&raised);
        captured.compared(DISK, 9, 9);
        captured.take_up(&raised);
        assert!(captured.is_whole(), "not twice");
        let mut again = shipped;
        again.take_up(&raised);
        assert!(!again.is_whole(), "what was given up is taken up again");
        raised.clear();
        raise(&mut raised, captured.raised_seen, DISK, "asked for again");
        captured.take_up(&raised);
        assert!(
            !captured.is_whole(),
            "numbers grow although the list was emptied"
        );
    }
}
