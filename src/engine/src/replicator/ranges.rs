//! Arithmetic on ranges and blocks: pure.

use bytes::Bytes;
use hypervisor::Extent;

/// What is compared and sent as one while base is filled: large enough for stores that dislike small writes.
pub const BLOCK: u64 = 64 << 10;
/// The most that is read at once.
pub const PIECE: u64 = 4 << 20;

/// Splits sorted, disjoint ranges into pieces of at most [`PIECE`], cut at multiples of it.
pub fn pieces(extents: &[Extent]) -> impl Iterator<Item = Extent> + '_ {
    extents.iter().flat_map(|extent| {
        let end = extent.offset.saturating_add(extent.length);
        let mut at = extent.offset;
        std::iter::from_fn(move || {
            let stop = end.min((at / PIECE + 1).saturating_mul(PIECE));
            let piece = Extent {
                offset: at,
                length: stop.checked_sub(at).filter(|length| *length > 0)?,
            };
            at = stop;
            Some(piece)
        })
    })
}

/// The parts of sorted, disjoint ranges that lie in `from..to`.
pub fn clip(extents: &[Extent], from: u64, to: u64) -> Vec<Extent> {
    extents
        .iter()
        .filter_map(|extent| {
            let start = extent.offset.max(from);
            let end = extent.offset.saturating_add(extent.length).min(to);
            (start < end).then(|| Extent {
                offset: start,
                length: end - start,
            })
        })
        .collect()
}

/// Sorted ranges with neighbours and overlaps joined, empty ones left out.
pub fn joined(extents: &[Extent]) -> Vec<Extent> {
    let mut result: Vec<Extent> = Vec::new();
    for extent in extents.iter().filter(|extent| extent.length > 0) {
        match result.last_mut() {
            Some(last) if extent.offset <= last.offset + last.length => {
                let end = (last.offset + last.length).max(extent.offset + extent.length);
                last.length = end - last.offset;
            }
            _ => result.push(*extent),
        }
    }
    result
}

/// Rounds ranges out to whole blocks, within the disk.
pub fn whole_blocks(extents: &[Extent], size_bytes: u64) -> Vec<Extent> {
    let rounded: Vec<Extent> = extents
        .iter()
        .filter(|extent| extent.offset < size_bytes && extent.length > 0)
        .map(|extent| {
            let start = extent.offset / BLOCK * BLOCK;
            let end = extent.offset.saturating_add(extent.length);
            let end = end.div_ceil(BLOCK).saturating_mul(BLOCK).min(size_bytes);
            Extent {
                offset: start,
                length: end - start,
            }
        })
        .collect();
    joined(&rounded)
}

/// Total length.
pub fn total(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| extent.length).sum()
}

/// Whether sorted, disjoint `extents` have a byte in `range`.
pub fn touches(extents: &[Extent], range: Extent) -> bool {
    let first = extents.partition_point(|extent| extent.offset + extent.length <= range.offset);
    extents
        .get(first)
        .is_some_and(|extent| extent.offset < range.offset + range.length)
}

/// Where `wanted` differs from `present` (same length, from `offset` on), in whole blocks of the disk, neighbours joined.
pub fn differing(offset: u64, wanted: &Bytes, present: &Bytes) -> Vec<(u64, Bytes)> {
    runs(offset, wanted, |range| {
        wanted.get(range.clone()) != present.get(range.clone())
    })
    .into_iter()
    .filter(|(differs, ..)| *differs)
    .map(|(_, offset, data)| (offset, data))
    .collect()
}

/// Splits `data` into runs of blocks that are all zero and blocks that are not: `(is zero, offset, data)`.
pub fn zero_runs(offset: u64, data: &Bytes) -> Vec<(bool, u64, Bytes)> {
    runs(offset, data, |range| {
        data[range.clone()].iter().all(|byte| *byte == 0)
    })
}

fn runs(
    offset: u64,
    data: &Bytes,
    class: impl Fn(&std::ops::Range<usize>) -> bool,
) -> Vec<(bool, u64, Bytes)> {
    let mut result: Vec<(bool, usize, usize)> = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let to_boundary = (BLOCK - (offset + at as u64) % BLOCK) as usize;
        let range = at..data.len().min(at + to_boundary);
        let class = class(&range);
        match result.last_mut() {
            Some((last, _, end)) if *last == class => *end = range.end,
            _ => result.push((class, range.start, range.end)),
        }
        at = range.end;
    }
    result
        .into_iter()
        .map(|(class, start, end)| (class, offset + start as u64, data.slice(start..end)))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extents() -> impl Strategy<Value = Vec<Extent>> {
        proptest::collection::vec((0u64..40, 0u64..30), 0..12).prop_map(|list| {
            let mut at = 0;
            list.into_iter()
                .map(|(gap, length)| {
                    let extent = Extent {
                        offset: (at + gap) * 50_000,
                        length: length * 50_000,
                    };
                    at += gap + length;
                    extent
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn pieces_cover_exactly_the_ranges_and_none_crosses_a_boundary(list in extents()) {
            let list: Vec<Extent> = list.iter().map(|extent| Extent {
                offset: extent.offset * 20,
                length: extent.length * 20,
            }).collect();
            let pieces: Vec<Extent> = pieces(&list).collect();
            prop_assert_eq!(total(&pieces), total(&list));
            prop_assert_eq!(joined(&pieces), joined(&list));
            for piece in &pieces {
                prop_assert!(piece.length > 0);
                prop_assert_eq!(piece.offset / PIECE, (piece.offset + piece.length - 1) / PIECE);
                prop_assert!(touches(&joined(&list), *piece));
            }
        }

        #[test]
        fn two_clips_at_one_place_are_the_whole(list in extents(), at in 0u64..6_000_000) {
            let list = joined(&list);
            let (below, behind) = (clip(&list, 0, at), clip(&list, at, u64::MAX));
            prop_assert!(below.iter().all(|extent| extent.offset + extent.length <= at));
            prop_assert!(behind.iter().all(|extent| extent.offset >= at));
            let all: Vec<Extent> = below.into_iter().chain(behind).collect();
            prop_assert_eq!(joined(&all), list);
        }

        #[test]
        fn writing_the_differing_runs_makes_the_copy_equal(
            offset in 0u64..200_000, length in 1usize..300_000, changes in proptest::collection::vec(0usize..300_000, 0..6)
        ) {
            let present = Bytes::from(vec![7u8; length]);
            let mut wanted = present.to_vec();
            for change in changes {
                wanted[change % length] = 9;
            }
            let wanted = Bytes::from(wanted);
            let mut copy = present.to_vec();
            let runs = differing(offset, &wanted, &present);
            for (at, data) in &runs {
                let start = (at - offset) as usize;
                copy[start..start + data.len()].copy_from_slice(data);
                prop_assert!(data != &present.slice(start..start + data.len()));
            }
            prop_assert_eq!(copy, wanted.to_vec());
        }

        #[test]
        fn zero_runs_cover_the_data_and_tell_the_truth(offset in 0u64..200_000, ones in proptest::collection::vec(0usize..400_000, 0..5)) {
            let mut data = vec![0u8; 400_000];
            for one in ones {
                data[one] = 1;
            }
            let data = Bytes::from(data);
            let mut at = offset;
            for (zero, start, run) in zero_runs(offset, &data) {
                prop_assert_eq!(start, at);
                at += run.len() as u64;
                if zero {
                    prop_assert!(run.iter().all(|byte| *byte == 0));
                } else {
                    prop_assert!(run.iter().any(|byte| *byte != 0));
                }
            }
            prop_assert_eq!(at, offset + 400_000);
        }
    }
}
