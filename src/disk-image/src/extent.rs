//! A byte range of a virtual disk, and how ranges are put together.

/// A range of a virtual disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length in bytes; never 0 in an answer of this crate.
    pub length: u64,
}

impl Extent {
    /// First byte behind the range.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// Appends a range that starts at or behind the last one; joins neighbours.
pub(crate) fn push(extents: &mut Vec<Extent>, offset: u64, length: u64) {
    if length == 0 {
        return;
    }
    match extents.last_mut() {
        Some(last) if last.end() == offset => last.length += length,
        _ => extents.push(Extent { offset, length }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_join_and_empty_ranges_vanish() {
        let mut extents = Vec::new();
        push(&mut extents, 0, 10);
        push(&mut extents, 10, 5);
        push(&mut extents, 20, 0);
        push(&mut extents, 30, 1);
        assert_eq!(
            extents,
            [
                Extent {
                    offset: 0,
                    length: 15
                },
                Extent {
                    offset: 30,
                    length: 1
                }
            ]
        );
    }
}
