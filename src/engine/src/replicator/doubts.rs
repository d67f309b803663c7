//! Ranges that are damaged in the store, until a cycle has sent them again: pure.
//!
//! ```text
//! reported (damage at a position) ─► open ─► slice, into a cycle ─► sent (with the cycle's position)
//!             ▲ unless sent behind it          ▲ that cycle, or its log, is dropped ──┘
//! ```
//!
//! The store reports the same damage again and again, for as long as the damaged object is there: a range that a
//! younger cycle has is not sent once more for it.

use std::collections::{BTreeMap, BTreeSet};

use hypervisor::{DiskId, Extent};

use super::hashes::BLOCK;
use super::ranges;

/// What of it goes into one cycle.
pub type Slices = BTreeMap<DiskId, Vec<Extent>>;

/// More ranges of one disk than so many are forgotten, the oldest first: then they may be sent once more.
const MOST_SENT: usize = 4096;

/// Damaged ranges of an item's disks.
#[derive(Debug, Default)]
pub struct Doubts {
    disks: BTreeMap<DiskId, DiskDoubts>,
}

#[derive(Debug, Default)]
struct DiskDoubts {
    /// Sorted, disjoint.
    open: Vec<Extent>,
    /// In the order of the cycles.
    sent: Vec<(Extent, u64)>,
}

impl Doubts {
    /// A range is damaged in what the store got with this position.
    pub fn report(&mut self, disk: DiskId, offset: u64, length: u64, position: u64) {
        let doubts = self.disks.entry(disk).or_default();
        let mut left = vec![Extent {
            offset,
            length: length.min(u64::MAX - offset),
        }];
        for (sent, _) in doubts.sent.iter().filter(|(_, at)| *at > position) {
            left = without(&left, *sent);
        }
        doubts.reopen(left);
    }

    /// About `most` bytes of a disk of this size, in whole blocks. They stay open until [`Doubts::captured`].
    pub fn slice(&mut self, disk: DiskId, size_bytes: u64, most: u64) -> Vec<Extent> {
        let Some(doubts) = self.disks.get_mut(&disk) else {
            return Vec::new();
        };
        doubts.open = ranges::clip(&doubts.open, 0, size_bytes);
        let mut left = most / BLOCK * BLOCK;
        let mut slice = Vec::new();
        for extent in &doubts.open {
            let end = extent.offset.saturating_add(extent.length.min(left));
            // Ends of blocks, so that no block goes twice.
            let end = if extent.length <= left {
                end
            } else {
                end / BLOCK * BLOCK
            };
            // What is left does not reach the end of a block.
            if left == 0 || end <= extent.offset {
                break;
            }
            let length = end - extent.offset;
            slice.push(Extent {
                offset: extent.offset,
                length,
            });
            left -= length;
        }
        slice
    }

    /// A cycle that has these ranges is captured.
    pub fn captured(&mut self, slices: &Slices, position: u64) {
        for (disk, slice) in slices {
            let doubts = self.disks.entry(*disk).or_default();
            for extent in slice {
                doubts.open = without(&doubts.open, *extent);
                doubts.sent.push((*extent, position));
            }
            let surplus = doubts.sent.len().saturating_sub(MOST_SENT);
            doubts.sent.drain(..surplus);
        }
    }

    /// Captured cycles behind a position do not reach the store: of one disk, or of all.
    pub fn take_back(&mut self, disk: Option<DiskId>, behind: u64) {
        let disks = self.disks.iter_mut();
        for (_, doubts) in disks.filter(|(id, _)| disk.is_none_or(|disk| disk == **id)) {
            let (back, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut doubts.sent)
                .into_iter()
                .partition(|(_, at)| *at > behind);
            doubts.sent = kept;
            doubts.reopen(back.into_iter().map(|(extent, _)| extent).collect());
        }
    }

    /// Whether something of these disks is open that is not in the slices.
    pub fn is_open_without(&self, slices: &Slices, disks: &BTreeSet<DiskId>) -> bool {
        let of_disks = self.disks.iter().filter(|(disk, _)| disks.contains(disk));
        let mut left = of_disks.map(|(disk, doubts)| {
            let slice = slices.get(disk).into_iter().flatten();
            slice.fold(doubts.open.clone(), |open, sent| without(&open, *sent))
        });
        left.any(|left| !left.is_empty())
    }
}

impl DiskDoubts {
    fn reopen(&mut self, mut ranges: Vec<Extent>) {
        ranges.append(&mut self.open);
        ranges.sort_unstable_by_key(|extent| extent.offset);
        self.open = ranges::joined(&ranges);
    }
}

/// Sorted, disjoint ranges without what lies in one.
fn without(extents: &[Extent], gone: Extent) -> Vec<Extent> {
    let mut left = Vec::with_capacity(extents.len() + 1);
    let end = gone.offset.saturating_add(gone.length);
    for extent in extents {
        let one = std::slice::from_ref(extent);
        left.extend(ranges::clip(one, 0, gone.offset));
        left.extend(ranges::clip(one, end, u64::MAX));
    }
    left
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const DISK: DiskId = DiskId(Uuid::from_u128(1));

    fn all() -> BTreeSet<DiskId> {
        [DISK].into()
    }

    fn take(doubts: &mut Doubts, most: u64, position: u64) -> u64 {
        let slice = doubts.slice(DISK, 1 << 40, most);
        let bytes = ranges::total(&slice);
        doubts.captured(&[(DISK, slice)].into(), position);
        bytes
    }

    #[test]
    fn what_a_younger_cycle_has_is_not_sent_again_and_what_is_damaged_again_is() {
        let mut doubts = Doubts::default();
        doubts.report(DISK, 0, 3 * BLOCK, 5);
        assert_eq!(take(&mut doubts, u64::MAX, 8), 3 * BLOCK);
        doubts.report(DISK, BLOCK, BLOCK, 7);
        assert_eq!(take(&mut doubts, u64::MAX, 9), 0);
        doubts.report(DISK, BLOCK, BLOCK, 8);
        assert!(doubts.is_open_without(&Slices::new(), &all()));
        assert_eq!(take(&mut doubts, u64::MAX, 10), BLOCK);
    }

    #[test]
    fn what_was_in_a_dropped_cycle_is_sent_again() {
        let mut doubts = Doubts::default();
        doubts.report(DISK, 0, 2 * BLOCK, 5);
        assert_eq!(take(&mut doubts, BLOCK, 6), BLOCK);
        assert_eq!(take(&mut doubts, BLOCK, 7), BLOCK);
        assert!(!doubts.is_open_without(&Slices::new(), &all()));
        doubts.take_back(Some(DISK), 6);
        assert_eq!(take(&mut doubts, u64::MAX, 8), BLOCK);
        doubts.take_back(None, 5);
        assert_eq!(take(&mut doubts, u64::MAX, 9), 2 * BLOCK);
    }

    #[test]
    fn what_lies_behind_the_end_of_a_disk_is_in_no_ones_way() {
        let mut doubts = Doubts::default();
        doubts.report(DISK, u64::MAX - 5, u64::MAX, 5);
        assert_eq!(doubts.slice(DISK, 1 << 30, u64::MAX), []);
        assert!(!doubts.is_open_without(&Slices::new(), &all()));
    }

    proptest! {
        #[test]
        fn slices_come_to_an_end_and_have_every_byte(
            reports in proptest::collection::vec((0u64..2_000_000, 1u64..500_000), 1..8), most in BLOCK..400_000
        ) {
            let mut doubts = Doubts::default();
            let mut bytes = BTreeSet::new();
            for (offset, length) in &reports {
                doubts.report(DISK, *offset, *length, 1);
                bytes.extend((*offset..offset + length).step_by(512).map(|at| at / 512));
            }
            for position in 2.. {
                let slice = doubts.slice(DISK, 1 << 40, most);
                if slice.is_empty() {
                    break;
                }
                prop_assert!(ranges::total(&slice) <= most + BLOCK);
                for extent in &slice {
                    let (first, last) = (extent.offset, extent.offset + extent.length - 1);
                    bytes.retain(|at| at * 512 < first / 512 * 512 || at * 512 > last);
                }
                doubts.captured(&[(DISK, slice)].into(), position);
                for (offset, length) in &reports {
                    doubts.report(DISK, *offset, *length, 1);
                }
            }
            prop_assert!(bytes.is_empty());
        }
    }
}
