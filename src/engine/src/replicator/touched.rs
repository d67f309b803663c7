//! Which blocks of a disk waiting cycles change: pure. Of those the map of block hashes does not know the newest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hypervisor::DiskId;

use super::hashes::BLOCK;

/// Blocks in one word of bits.
const WORD: u64 = 64;
/// Words in a group; a group stands for 16 MiB of disk and takes 512 bytes.
const GROUP: u64 = 64;
/// More than so many groups, and every block counts as touched: memory is bounded, what is lost is refinement.
const MOST_GROUPS: usize = 32 << 10;

/// A set of blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    groups: BTreeMap<u64, Box<[u64; GROUP as usize]>>,
    everything: bool,
}

/// What one cycle changes, by disk.
#[derive(Debug, Default)]
pub struct Touches {
    disks: BTreeMap<DiskId, Touched>,
    reserved: Option<(&'static Budget, usize)>,
}

/// Memory for what waits.
#[derive(Debug)]
pub struct Budget {
    most_bytes: usize,
    held_bytes: AtomicUsize,
}

/// Of all waiting cycles of this process.
pub static WAITING: Budget = Budget::new(64 << 20);

impl Budget {
    /// So many bytes.
    pub const fn new(most_bytes: usize) -> Self {
        Self {
            most_bytes,
            held_bytes: AtomicUsize::new(0),
        }
    }

    fn reserve(&self, bytes: usize) -> bool {
        let held = self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = held.saturating_add(bytes) <= self.most_bytes;
        if !fits {
            self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }
}

impl Touches {
    /// Of no disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is changed on a disk.
    pub fn insert(&mut self, disk: DiskId, touched: Touched) {
        self.disks.insert(disk, touched);
    }

    /// Adds a write to a disk.
    pub fn add(&mut self, disk: DiskId, offset: u64, length: u64) {
        let touched = self.disks.entry(disk).or_default();
        touched.add(offset, length);
    }

    /// What is changed on a disk; `None` = nothing.
    pub fn get(&self, disk: &DiskId) -> Option<&Touched> {
        self.disks.get(disk)
    }

    /// Keeps it for as long as the cycle waits. Beyond the budget every block of its disks counts as touched: what is
    /// lost is refinement.
    pub fn waiting(mut self, budget: &'static Budget) -> Arc<Self> {
        let bytes = self.disks.values().map(Touched::bytes).sum();
        if budget.reserve(bytes) {
            self.reserved = Some((budget, bytes));
        } else {
            let disks = self.disks.values_mut();
            disks
                .filter(|touched| touched.bytes() > 0)
                .for_each(|touched| *touched = Touched::everything());
        }
        Arc::new(self)
    }
}

impl Drop for Touches {
    fn drop(&mut self) {
        if let Some((budget, bytes)) = self.reserved {
            budget.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Touched {
    /// Every block.
    pub fn everything() -> Self {
        Self {
            groups: BTreeMap::new(),
            everything: true,
        }
    }

    /// Adds the blocks that a write touches.
    pub fn add(&mut self, offset: u64, length: u64) {
        if length == 0 || self.everything {
            return;
        }
        let last = offset.saturating_add(length - 1) / BLOCK;
        let mut block = offset / BLOCK;
        while block <= last {
            let (group, word, bit) = place(block);
            let bits = self
                .groups
                .entry(group)
                .or_insert_with(|| Box::new([0; GROUP as usize]));
            let count = (WORD - bit).min(last - block + 1);
            let mask = if count == WORD {
                u64::MAX
            } else {
                ((1 << count) - 1) << bit
            };
            bits[word] |= mask;
            block += count;
            if self.groups.len() > MOST_GROUPS {
                *self = Self::everything();
                return;
            }
        }
    }

    /// Memory that it takes, about.
    fn bytes(&self) -> usize {
        // A group, and its place in the tree.
        self.groups.len() * (size_of::<[u64; GROUP as usize]>() + 32)
    }

    /// Whether a block is in it.
    pub fn has(&self, block: u64) -> bool {
        if self.everything {
            return true;
        }
        let (group, word, bit) = place(block);
        self.groups
            .get(&group)
            .is_some_and(|bits| bits[word] & (1 << bit) != 0)
    }
}

fn place(block: u64) -> (u64, usize, u64) {
    let word = block / WORD;
    (word / GROUP, (word % GROUP) as usize, block % WORD)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn exactly_the_blocks_of_the_writes_are_touched(
            writes in proptest::collection::vec((0u64..40_000_000, 0u64..20_000_000), 0..6), probes in proptest::collection::vec(0u64..16_000, 50)
        ) {
            let mut touched = Touched::default();
            for (offset, length) in &writes {
                touched.add(*offset, *length);
            }
            let edges = writes.iter().flat_map(|(offset, length)| {
                let (first, end) = (offset / BLOCK, (offset + length).div_ceil(BLOCK));
                [first, first.saturating_sub(1), end, end.saturating_sub(1)]
            });
            for block in edges.chain(probes) {
                let expected = writes.iter().any(|(offset, length)| {
                    *length > 0 && block * BLOCK < offset + length && (block + 1) * BLOCK > *offset
                });
                prop_assert_eq!(touched.has(block), expected, "block {}", block);
            }
        }
    }

    #[test]
    fn memory_is_bounded_by_forgetting_what_is_not_touched() {
        let mut touched = Touched::default();
        for group in 0..=MOST_GROUPS as u64 {
            touched.add(group * BLOCK * WORD * GROUP, 1);
        }
        assert!(touched.has(7) && touched.groups.is_empty());
    }

    #[test]
    fn what_waits_takes_no_more_memory_than_its_budget_and_gives_it_back() {
        let budget: &'static Budget = Box::leak(Box::new(Budget::new(2000)));
        let disk = DiskId(uuid::Uuid::nil());
        let one = || {
            let mut touches = Touches::new();
            touches.add(disk, 0, 1);
            touches.add(disk, BLOCK * WORD * GROUP, 1);
            touches.waiting(budget)
        };
        let is_exact = |touches: &Touches| !touches.get(&disk).unwrap().has(1);
        let (first, second) = (one(), one());
        assert!(is_exact(&first) && !is_exact(&second));
        assert!(second.get(&disk).unwrap().groups.is_empty());
        drop(first);
        assert!(is_exact(&one()));
    }

    #[test]
    fn a_range_of_any_length_ends_soon_and_takes_no_more_memory() {
        let mut touched = Touched::default();
        touched.add(4096, u64::MAX);
        assert!(touched.has(0) && touched.has(u64::MAX / BLOCK) && touched.groups.is_empty());
    }
}
