//! Makes whole pages of changes at odd places. Pure.
//!
//! Changes of one page belong together, or the second would undo the first. So changes are sorted and those that touch
//! one page, or follow one another, become one run. A run that covers its pages wholly is put as it is, without a copy
//! when it is one piece; one that doesn't is read, mended and put. Zeroes are cleared, not sent.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use azure_storage::{MAX_PUT_PAGE, PAGE};

use crate::base::is_zero;
use crate::medium::Piece;

/// One call to the blob, or a read and a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Whole pages, at most what one call takes.
    Put(u64, Bytes),
    /// Whole pages become zero.
    Clear(Range<u64>),
    /// Pages that are changed in part.
    Mend {
        pages: Range<u64>,
        patches: Vec<(u64, Bytes)>,
    },
}

/// `None` when pieces overlap, or end beyond all numbers.
pub(super) fn changes(pieces: &[Piece]) -> Option<Vec<Change>> {
    let mut out = Vec::new();
    let mut data: Vec<(u64, Bytes)> = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(offset, bytes) if bytes.is_empty() => {
                offset.checked_add(0)?;
            }
            Piece::Data(offset, bytes) => {
                let end = offset.checked_add(bytes.len() as u64)?;
                end.checked_add(PAGE)?;
                if is_zero(bytes) {
                    zeroes(*offset..end, &mut out, &mut data);
                } else {
                    data.push((*offset, bytes.clone()));
                }
            }
            Piece::Zeroes(offset, length) => {
                let end = offset.checked_add(*length)?;
                end.checked_add(PAGE)?;
                zeroes(*offset..end, &mut out, &mut data);
            }
        }
    }
    data.sort_by_key(|(offset, _)| *offset);
    let overlap = |pair: &[(u64, Bytes)]| pair[0].0 + pair[0].1.len() as u64 > pair[1].0;
    if data.windows(2).any(overlap) {
        return None;
    }
    let mut run: Vec<(u64, Bytes)> = Vec::new();
    for (mut offset, mut bytes) in data {
        // No run is longer than one call; a long piece is cut at page borders, without a copy.
        while !bytes.is_empty() {
            let start = run.first().map_or(offset, |(first, _)| *first) / PAGE * PAGE;
            let end = run
                .last()
                .map_or(offset, |(last, bytes)| last + bytes.len() as u64);
            let touches = run.is_empty() || offset < end.div_ceil(PAGE) * PAGE || offset == end;
            if !touches || offset >= start + MAX_PUT_PAGE {
                finish(&mut run, &mut out);
                continue;
            }
            let room = usize::try_from(start + MAX_PUT_PAGE - offset).unwrap_or(usize::MAX);
            let now = bytes.split_to(bytes.len().min(room));
            let next = offset + now.len() as u64;
            run.push((offset, now));
            offset = next;
        }
    }
    finish(&mut run, &mut out);
    Some(out)
}

/// Whole pages are cleared; the rest at either edge is data.
fn zeroes(range: Range<u64>, out: &mut Vec<Change>, data: &mut Vec<(u64, Bytes)>) {
    let (first, last) = (range.start.div_ceil(PAGE) * PAGE, range.end / PAGE * PAGE);
    let edge = |from: u64, to: u64| {
        let length = usize::try_from(to - from).unwrap_or(0);
        (from, Bytes::from(vec![0; length]))
    };
    if first >= last {
        if range.start < range.end {
            // No whole page in it: at most two pages are touched, cut between them.
            let cut = first.clamp(range.start, range.end);
            for (from, to) in [(range.start, cut), (cut, range.end)] {
                if from < to {
                    data.push(edge(from, to));
                }
            }
        }
        return;
    }
    out.push(Change::Clear(first..last));
    if range.start < first {
        data.push(edge(range.start, first));
    }
    if last < range.end {
        data.push(edge(last, range.end));
    }
}

fn finish(run: &mut Vec<(u64, Bytes)>, out: &mut Vec<Change>) {
    let run = std::mem::take(run);
    let (Some((start, _)), Some((last, bytes))) = (run.first(), run.last()) else {
        return;
    };
    let end = last + bytes.len() as u64;
    let pages = start / PAGE * PAGE..end.div_ceil(PAGE) * PAGE;
    let gapless = run
        .windows(2)
        .all(|pair| pair[0].0 + pair[0].1.len() as u64 == pair[1].0);
    if !gapless || pages != (*start..end) {
        out.push(Change::Mend {
            pages,
            patches: run,
        });
        return;
    }
    if let [(offset, bytes)] = run.as_slice() {
        out.push(Change::Put(*offset, bytes.clone()));
        return;
    }
    let mut whole = BytesMut::with_capacity(usize::try_from(end - start).unwrap_or(0));
    for (_, bytes) in &run {
        whole.extend_from_slice(bytes);
    }
    out.push(Change::Put(*start, whole.freeze()));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 10 << 20;

    /// What the blob does with changes, in any order.
    fn apply(disk: &mut [u8], changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Put(offset, bytes) => {
                    assert!(offset % PAGE == 0 && (bytes.len() as u64).is_multiple_of(PAGE));
                    assert!(bytes.len() as u64 <= MAX_PUT_PAGE && !bytes.is_empty());
                    disk[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
                }
                Change::Clear(range) => {
                    assert!(range.start % PAGE == 0 && range.end % PAGE == 0);
                    disk[range.start as usize..range.end as usize].fill(0);
                }
                Change::Mend { pages, patches } => {
                    assert!(pages.start % PAGE == 0 && pages.end % PAGE == 0);
                    assert!(pages.end - pages.start <= MAX_PUT_PAGE);
                    for (offset, bytes) in patches {
                        assert!(pages.contains(&offset));
                        disk[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
                    }
                }
            }
        }
    }

    /// Pages that a change touches.
    fn touched(change: &Change) -> Range<u64> {
        match change {
            Change::Put(offset, bytes) => *offset..offset + bytes.len() as u64,
            Change::Clear(range) => range.clone(),
            Change::Mend { pages, .. } => pages.clone(),
        }
    }

    proptest! {
        #[test]
        fn the_disk_becomes_what_the_pieces_say_and_no_page_is_touched_twice(
            spans in prop::collection::vec((0u64..3000, 1u64..3000, any::<bool>(), 1u8..255), 1..40),
            big in any::<bool>(),
        ) {
            let mut pieces = Vec::new();
            let mut disk = vec![9u8; SIZE as usize];
            let mut expected = disk.clone();
            let mut at = 0u64;
            for (gap, length, zero, byte) in spans {
                let length = if big { length * 97 } else { length };
                at += gap;
                if at + length > SIZE {
                    break;
                }
                let range = at as usize..(at + length) as usize;
                if zero {
                    pieces.push(Piece::Zeroes(at, length));
                    expected[range].fill(0);
                } else {
                    pieces.push(Piece::Data(at, Bytes::from(vec![byte; length as usize])));
                    expected[range].fill(byte);
                }
                at += length;
            }
            pieces.reverse();
            let changes = changes(&pieces).expect("they don't overlap");
            let mut ranges: Vec<_> = changes.iter().map(touched).collect();
            ranges.sort_by_key(|range| range.start);
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{ranges:?}");
            apply(&mut disk, changes);
            prop_assert!(disk == expected);
        }
    }

    #[test]
    fn aligned_pieces_are_not_copied_and_neighbours_are_one_call() {
        let bytes = Bytes::from(vec![1; 9 << 20]);
        let alone = changes(&[Piece::Data(512, bytes.clone())]).expect("right");
        assert_eq!(alone.len(), 3);
        assert!(matches!(&alone[0], Change::Put(512, put) if put.as_ptr() == bytes.as_ptr()));
        let two = [
            Piece::Data(4096, Bytes::from(vec![1; 4096])),
            Piece::Data(0, Bytes::from(vec![2; 4096])),
        ];
        assert_eq!(changes(&two).expect("right").len(), 1);
    }

    #[test]
    fn overlapping_pieces_are_refused() {
        let two = [
            Piece::Data(0, Bytes::from(vec![1; 10])),
            Piece::Data(9, Bytes::from(vec![1; 10])),
        ];
        assert!(changes(&two).is_none());
        assert!(changes(&[Piece::Zeroes(u64::MAX, 2)]).is_none());
    }
}
