//! Which bytes of a disk an object changes: sorted, disjoint entries in which the later write wins.
//!
//! Cycles come in the order of the disk, so the list is only appended to; the first write that goes
//! back turns it into a tree.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Entry, EntryData};

#[derive(Debug, Default)]
pub(super) struct Coverage {
    sorted: Vec<Entry>,
    tree: Option<BTreeMap<u64, Entry>>,
}

impl Coverage {
    /// Replaces what was there.
    pub(super) fn insert(&mut self, new: Entry) {
        if new.length == 0 {
            return;
        }
        if self.tree.is_none() {
            match self.sorted.last_mut() {
                Some(last) if new.offset < end(last) => {}
                Some(last) if joins(last, &new) => {
                    last.length += new.length;
                    return;
                }
                _ => {
                    self.sorted.push(new);
                    return;
                }
            }
        }
        let tree = self.tree.get_or_insert_with(|| {
            let sorted = std::mem::take(&mut self.sorted);
            sorted
                .into_iter()
                .map(|entry| (entry.offset, entry))
                .collect()
        });
        insert(tree, new);
    }

    /// Parts of `range` that are covered, in order.
    pub(super) fn within(&self, range: Range<u64>) -> Vec<Entry> {
        match &self.tree {
            None => {
                let first = self
                    .sorted
                    .partition_point(|entry| end(entry) <= range.start);
                self.sorted[first..]
                    .iter()
                    .map_while(|entry| cut(entry, &range))
                    .collect()
            }
            Some(tree) => {
                let before = tree.range(..range.start).next_back();
                let from = before.map_or(range.start, |(start, _)| *start);
                tree.range(from..range.end)
                    .filter_map(|(_, entry)| cut(entry, &range))
                    .collect()
            }
        }
    }

    /// All entries, in order.
    pub(super) fn into_entries(self) -> Vec<Entry> {
        match self.tree {
            None => self.sorted,
            Some(tree) => tree.into_values().collect(),
        }
    }
}

fn insert(tree: &mut BTreeMap<u64, Entry>, mut new: Entry) {
    let range = new.offset..end(&new);
    let before = tree.range(..range.start).next_back().map(|(_, e)| *e);
    let inside: Vec<Entry> = tree.range(range.clone()).map(|(_, entry)| *entry).collect();
    for old in before.iter().chain(&inside) {
        if end(old) <= range.start {
            continue;
        }
        tree.remove(&old.offset);
        if let Some(head) = cut(old, &(old.offset..range.start)) {
            tree.insert(head.offset, head);
        }
        if let Some(tail) = cut(old, &(range.end..end(old))) {
            tree.insert(tail.offset, tail);
        }
    }
    if let Some((start, left)) = tree.range(..range.start).next_back().map(|(s, e)| (*s, *e))
        && joins(&left, &new)
    {
        tree.remove(&start);
        new = Entry {
            length: left.length + new.length,
            ..left
        };
    }
    if let Some(right) = tree.get(&range.end).copied()
        && joins(&new, &right)
    {
        tree.remove(&range.end);
        new.length += right.length;
    }
    tree.insert(new.offset, new);
}

fn end(entry: &Entry) -> u64 {
    entry.offset + entry.length
}

/// Whether `right` goes on where `left` ends, on the disk and in its frame.
fn joins(left: &Entry, right: &Entry) -> bool {
    end(left) == right.offset
        && match (left.data, right.data) {
            (EntryData::Zeroes, EntryData::Zeroes) => true,
            (EntryData::Frame { frame: a, at }, EntryData::Frame { frame: b, at: next }) => {
                a == b && u64::from(at) + left.length == u64::from(next)
            }
            _ => false,
        }
}

/// The part of an entry inside of `range`.
fn cut(entry: &Entry, range: &Range<u64>) -> Option<Entry> {
    let (from, to) = (entry.offset.max(range.start), end(entry).min(range.end));
    if from >= to {
        return None;
    }
    let data = match entry.data {
        EntryData::Zeroes => EntryData::Zeroes,
        // Offsets in a frame stay below its 256 KiB.
        EntryData::Frame { frame, at } => EntryData::Frame {
            frame,
            at: at + (from - entry.offset) as u32,
        },
    };
    Some(Entry {
        offset: from,
        length: to - from,
        data,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Model: what each byte holds.
        #[test]
        fn the_last_write_wins_and_nothing_is_split_without_need(
            writes in prop::collection::vec((0u64..400, 1u64..60, any::<bool>()), 0..60),
            in_order in any::<bool>(),
            query in (0u64..400, 1u64..200),
        ) {
            let mut writes = writes;
            if in_order {
                writes.sort_unstable();
            }
            let mut coverage = Coverage::default();
            let mut model = vec![None; 700];
            let mut at = 0;
            for (offset, length, zero) in writes {
                let data = if zero { EntryData::Zeroes } else { EntryData::Frame { frame: 3, at } };
                coverage.insert(Entry { offset, length, data });
                for n in 0..length {
                    model[(offset + n) as usize] = Some((!zero).then_some(u64::from(at) + n));
                }
                at += length as u32;
            }
            let bytes = |entries: &[Entry]| {
                let mut seen = vec![None; 700];
                for entry in entries {
                    for n in 0..entry.length {
                        seen[(entry.offset + n) as usize] = Some(match entry.data {
                            EntryData::Zeroes => None,
                            EntryData::Frame { at, .. } => Some(u64::from(at) + n),
                        });
                    }
                }
                seen
            };
            let within = coverage.within(query.0..query.0 + query.1);
            let mut part = vec![None; 700];
            let range = query.0 as usize..(query.0 + query.1) as usize;
            part[range.clone()].copy_from_slice(&model[range]);
            prop_assert_eq!(bytes(&within), part);
            let entries = coverage.into_entries();
            prop_assert_eq!(bytes(&entries), model);
            for pair in entries.windows(2) {
                prop_assert!(end(&pair[0]) <= pair[1].offset, "sorted and disjoint");
                prop_assert!(!joins(&pair[0], &pair[1]), "neighbours are joined");
            }
        }
    }
}
