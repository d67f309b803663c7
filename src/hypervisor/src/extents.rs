//! Arithmetic of byte ranges: a set of sorted, disjoint, non-adjacent ranges.
//!
//! No operation can overflow: a range that would pass `u64::MAX` is cut there.

/// A range of a virtual disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

impl Extent {
    /// First byte after the range.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// A set of bytes of a disk, as sorted, disjoint ranges that do not touch each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtentSet {
    ranges: Vec<Extent>,
}

impl ExtentSet {
    /// No bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// The ranges, sorted and merged, whatever their order and overlap were.
    pub fn from_unsorted(mut ranges: Vec<Extent>) -> Self {
        ranges.sort_unstable_by_key(|range| range.offset);
        let mut set = Self {
            ranges: Vec::with_capacity(ranges.len()),
        };
        for range in ranges {
            set.append(range);
        }
        set
    }

    /// Adds a range that begins at or after the beginning of the last one.
    fn append(&mut self, range: Extent) {
        let end = range.end();
        if end == range.offset {
            return;
        }
        match self.ranges.last_mut() {
            Some(last) if range.offset <= last.end() => {
                last.length = last.end().max(end) - last.offset;
            }
            _ => self.ranges.push(Extent {
                offset: range.offset,
                length: end - range.offset,
            }),
        }
    }

    /// All bytes that are in one of the two.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut set = Self {
            ranges: Vec::with_capacity(self.ranges.len() + other.ranges.len()),
        };
        let (mut left, mut right) = (
            self.ranges.iter().peekable(),
            other.ranges.iter().peekable(),
        );
        loop {
            let next = match (left.peek(), right.peek()) {
                (Some(a), Some(b)) if a.offset <= b.offset => left.next(),
                (Some(_), None) => left.next(),
                (_, Some(_)) => right.next(),
                (None, None) => return set,
            };
            if let Some(range) = next {
                set.append(*range);
            }
        }
    }

    /// All bytes that are in this one and not in the other.
    #[must_use]
    pub fn subtract(&self, other: &Self) -> Self {
        let mut set = Self::new();
        let mut first = 0;
        for range in &self.ranges {
            let mut from = range.offset;
            while other
                .ranges
                .get(first)
                .is_some_and(|hole| hole.end() <= from)
            {
                first += 1;
            }
            for hole in other
                .ranges
                .iter()
                .skip(first)
                .take_while(|hole| hole.offset < range.end())
            {
                if hole.offset > from {
                    set.append(Extent {
                        offset: from,
                        length: hole.offset - from,
                    });
                }
                from = from.max(hole.end());
            }
            if from < range.end() {
                set.append(Extent {
                    offset: from,
                    length: range.end() - from,
                });
            }
        }
        set
    }

    /// All bytes that lie before `size`.
    #[must_use]
    pub fn clip(&self, size: u64) -> Self {
        let ranges = self
            .ranges
            .iter()
            .take_while(|range| range.offset < size)
            .map(|range| Extent {
                offset: range.offset,
                length: range.end().min(size) - range.offset,
            })
            .collect();
        Self { ranges }
    }

    /// Bytes in the set.
    pub fn bytes(&self) -> u64 {
        self.ranges
            .iter()
            .map(|range| range.length)
            .fold(0, u64::saturating_add)
    }

    /// Whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges.
    pub fn as_slice(&self) -> &[Extent] {
        &self.ranges
    }

    /// The ranges, as a vector.
    pub fn into_vec(self) -> Vec<Extent> {
        self.ranges
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 64;

    fn ranges() -> impl Strategy<Value = Vec<Extent>> {
        prop::collection::vec((0..SIZE, 0..12u64), 0..12).prop_map(|pairs| {
            pairs
                .into_iter()
                .map(|(offset, length)| Extent { offset, length })
                .collect()
        })
    }

    /// The model: one bool a byte.
    fn model(ranges: &[Extent]) -> Vec<bool> {
        (0..SIZE + 16)
            .map(|byte| {
                ranges
                    .iter()
                    .any(|range| range.offset <= byte && byte < range.end())
            })
            .collect()
    }

    fn is_normal(set: &ExtentSet) -> bool {
        set.as_slice().iter().all(|range| range.length > 0)
            && set
                .as_slice()
                .windows(2)
                .all(|pair| pair[0].end() < pair[1].offset)
    }

    proptest! {
        #[test]
        fn sets_agree_with_a_bitmap(a in ranges(), b in ranges(), size in 0..SIZE) {
            let (left, right) = (ExtentSet::from_unsorted(a.clone()), ExtentSet::from_unsorted(b.clone()));
            let (one, two) = (model(&a), model(&b));
            prop_assert!(is_normal(&left));
            prop_assert_eq!(&model(left.as_slice()), &one);
            prop_assert_eq!(left.bytes(), one.iter().filter(|bit| **bit).count() as u64);
            let union = left.union(&right);
            prop_assert!(is_normal(&union));
            prop_assert_eq!(model(union.as_slice()), one.iter().zip(&two).map(|(x, y)| *x || *y).collect::<Vec<_>>());
            let rest = left.subtract(&right);
            prop_assert!(is_normal(&rest));
            prop_assert_eq!(model(rest.as_slice()), one.iter().zip(&two).map(|(x, y)| *x && !*y).collect::<Vec<_>>());
            let clipped = left.clip(size);
            prop_assert!(is_normal(&clipped));
            prop_assert_eq!(
                model(clipped.as_slice()),
                one.iter().enumerate().map(|(at, x)| *x && (at as u64) < size).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn ranges_at_the_end_of_the_number_space_do_not_overflow() {
        let set = ExtentSet::from_unsorted(vec![
            Extent {
                offset: u64::MAX - 1,
                length: 10,
            },
            Extent {
                offset: 0,
                length: u64::MAX,
            },
        ]);
        assert_eq!(
            set.as_slice(),
            [Extent {
                offset: 0,
                length: u64::MAX
            }]
        );
    }
}
