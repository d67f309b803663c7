//! Which blocks of a disk are looked at: pure arithmetic on ranges.

use std::ops::Range;

use super::image::push;
use crate::replicator::hashes::BLOCK;

/// What is read, compared and written as one.
pub const WINDOW: u64 = 4 << 20;
/// More ranges of a disk than this are made coarser: memory is bounded, what is lost is that some equal blocks are read.
const MOST_RANGES: usize = 1 << 20;

/// Rounds sorted ranges out to blocks of a disk of `size` bytes.
pub fn blocks(ranges: &[Range<u64>], size: u64) -> Vec<Range<u64>> {
    let mut out = Vec::new();
    for range in ranges.iter().filter(|range| range.start < size) {
        let start = range.start / BLOCK * BLOCK;
        let end = range.end.div_ceil(BLOCK).saturating_mul(BLOCK).min(size);
        push(&mut out, start..end);
    }
    out
}

/// Both sets of sorted ranges as one.
pub fn united(a: Vec<Range<u64>>, b: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut all = a;
    all.extend(b);
    all.sort_unstable_by_key(|range| range.start);
    let mut out = Vec::new();
    for range in all {
        push(&mut out, range);
    }
    bounded(out, MOST_RANGES)
}

/// Joins ranges with short gaps between them until there are few enough.
fn bounded(mut ranges: Vec<Range<u64>>, most: usize) -> Vec<Range<u64>> {
    let mut gap = BLOCK;
    while ranges.len() > most {
        let mut out: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match out.last_mut() {
                Some(last) if range.start - last.end <= gap => last.end = range.end,
                _ => out.push(range),
            }
        }
        ranges = out;
        gap = gap.saturating_mul(2);
    }
    ranges
}

/// Cuts sorted ranges at multiples of [`WINDOW`]; what lies in one window stays together.
pub fn windows(ranges: &[Range<u64>]) -> Vec<Vec<Range<u64>>> {
    let mut out: Vec<Vec<Range<u64>>> = Vec::new();
    let mut current = None;
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let window = at / WINDOW;
            let end = range.end.min((window + 1).saturating_mul(WINDOW));
            if current != Some(window) {
                out.push(Vec::new());
                current = Some(window);
            }
            if let Some(last) = out.last_mut() {
                last.push(at..end);
            }
            at = end;
        }
    }
    out
}

/// Total length.
pub fn total(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        proptest::collection::vec((0u64..9000, 1u64..700), 0..20).prop_map(|list| {
            let mut at = 0;
            let mut out = Vec::new();
            for (gap, length) in list {
                let start = at + gap * 997;
                at = start + length * 1009;
                push(&mut out, start..at);
            }
            out
        })
    }

    fn covers(outer: &[Range<u64>], inner: &Range<u64>) -> bool {
        outer
            .iter()
            .any(|range| range.start <= inner.start && inner.end <= range.end)
    }

    proptest! {
        #[test]
        fn every_byte_of_the_disk_that_was_named_is_in_a_whole_block(given in ranges(), size in 1u64..200_000_000) {
            let out = blocks(&given, size);
            for range in &given {
                let inside = range.start.min(size)..range.end.min(size);
                prop_assert!(inside.is_empty() || covers(&out, &inside));
            }
            for range in &out {
                prop_assert!(range.start % BLOCK == 0 && (range.end % BLOCK == 0 || range.end == size));
                prop_assert!(range.start < range.end && range.end <= size);
            }
            prop_assert!(out.windows(2).all(|pair| pair[0].end < pair[1].start));
        }

        #[test]
        fn a_union_and_its_coarser_form_leave_nothing_out(a in ranges(), b in ranges(), most in 1usize..9) {
            let both = united(a.clone(), b.clone());
            let coarse = bounded(both.clone(), most);
            prop_assert!(coarse.len() <= most);
            for range in a.iter().chain(&b) {
                prop_assert!(covers(&both, range) && covers(&coarse, range));
            }
            prop_assert!(total(&both) <= total(&a) + total(&b));
        }

        #[test]
        fn windows_are_the_same_bytes_in_order_and_none_is_larger_than_a_window(given in ranges()) {
            let cut = windows(&given);
            for window in &cut {
                let (first, last) = (&window[0], &window[window.len() - 1]);
                prop_assert_eq!(first.start / WINDOW, (last.end - 1) / WINDOW);
            }
            let mut again = Vec::new();
            for range in cut.into_iter().flatten() {
                push(&mut again, range);
            }
            prop_assert_eq!(again, given);
        }
    }
}
