//! Which blocks of a disk waiting cycles change: pure. Of those the map of block hashes does not know the newest.

use std::collections::BTreeMap;

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
pub type Touches = BTreeMap<DiskId, Touched>;

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
        }
        if self.groups.len() > MOST_GROUPS {
            *self = Self::everything();
        }
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
}
