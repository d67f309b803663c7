//! The bytes of a page blob: sparse, and cheap to snapshot.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Pages are kept in chunks of 128.
const CHUNK: u64 = 64 << 10;
const PAGE: u64 = 512;

#[derive(Clone, PartialEq, Eq)]
struct Chunk {
    bytes: Vec<u8>,
    /// Bit n = page n was written and not cleared.
    present: u128,
}

/// Sparse pages.
#[derive(Clone, Default)]
pub(super) struct Pages {
    chunks: BTreeMap<u64, Arc<Chunk>>,
}

impl Pages {
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let within = at % CHUNK;
            let (now, later) = rest.split_at(rest.len().min((CHUNK - within) as usize));
            let chunk = self.chunk(at / CHUNK);
            chunk.bytes[within as usize..within as usize + now.len()].copy_from_slice(now);
            chunk.present |= mask(within, now.len() as u64);
            at += now.len() as u64;
            rest = later;
        }
    }

    pub(super) fn clear(&mut self, range: Range<u64>) {
        let first = range.start / CHUNK;
        let touched: Vec<u64> = self
            .chunks
            .range(first..range.end.div_ceil(CHUNK))
            .map(|(index, _)| *index)
            .collect();
        for index in touched {
            let start = range.start.max(index * CHUNK);
            let end = range.end.min((index + 1) * CHUNK);
            let within = start - index * CHUNK;
            let chunk = self.chunk(index);
            chunk.bytes[within as usize..(end - index * CHUNK) as usize].fill(0);
            chunk.present &= !mask(within, end - start);
            if chunk.present == 0 {
                self.chunks.remove(&index);
            }
        }
    }

    pub(super) fn read(&self, range: Range<u64>) -> Vec<u8> {
        let mut out = vec![0; (range.end - range.start) as usize];
        for (index, chunk) in self
            .chunks
            .range(range.start / CHUNK..range.end.div_ceil(CHUNK))
        {
            let start = range.start.max(index * CHUNK);
            let end = range.end.min((index + 1) * CHUNK);
            out[(start - range.start) as usize..(end - range.start) as usize].copy_from_slice(
                &chunk.bytes[(start - index * CHUNK) as usize..(end - index * CHUNK) as usize],
            );
        }
        out
    }

    /// Written ranges within `range`, merged.
    pub(super) fn ranges(&self, range: Range<u64>) -> Vec<Range<u64>> {
        self.select(range, |chunk, page| chunk.present >> page & 1 == 1)
    }

    /// What differs from `older`: written, cleared.
    pub(super) fn since(
        &self,
        older: &Pages,
        range: Range<u64>,
    ) -> (Vec<Range<u64>>, Vec<Range<u64>>) {
        let there = |pages: &Pages, at: u64| {
            pages
                .chunks
                .get(&(at / CHUNK))
                .is_some_and(|chunk| chunk.present >> (at % CHUNK / PAGE) & 1 == 1)
        };
        let mut written = Vec::new();
        let mut cleared = Vec::new();
        let mut chunks: Vec<u64> = self
            .chunks
            .keys()
            .chain(older.chunks.keys())
            .copied()
            .collect();
        chunks.sort_unstable();
        chunks.dedup();
        for index in chunks {
            if let (Some(a), Some(b)) = (self.chunks.get(&index), older.chunks.get(&index))
                && Arc::ptr_eq(a, b)
            {
                continue;
            }
            for page in 0..CHUNK / PAGE {
                let at = index * CHUNK + page * PAGE;
                if at < range.start || at >= range.end {
                    continue;
                }
                let (now, then) = (there(self, at), there(older, at));
                if now && (!then || self.read(at..at + PAGE) != older.read(at..at + PAGE)) {
                    written.push(at..at + PAGE);
                } else if then && !now {
                    cleared.push(at..at + PAGE);
                }
            }
        }
        (crate::page::merge(written), crate::page::merge(cleared))
    }

    fn select(&self, range: Range<u64>, keep: impl Fn(&Chunk, u64) -> bool) -> Vec<Range<u64>> {
        let mut found = Vec::new();
        for (index, chunk) in &self.chunks {
            for page in 0..CHUNK / PAGE {
                let at = index * CHUNK + page * PAGE;
                if at >= range.start && at < range.end && keep(chunk, page) {
                    found.push(at..at + PAGE);
                }
            }
        }
        crate::page::merge(found)
    }

    fn chunk(&mut self, index: u64) -> &mut Chunk {
        Arc::make_mut(self.chunks.entry(index).or_insert_with(|| {
            Arc::new(Chunk {
                bytes: vec![0; CHUNK as usize],
                present: 0,
            })
        }))
    }
}

fn mask(within: u64, length: u64) -> u128 {
    let count = length.div_ceil(PAGE);
    let ones = if count >= 128 {
        u128::MAX
    } else {
        (1 << count) - 1
    };
    ones << (within / PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_differences_are_those_of_what_was_done() {
        let mut pages = Pages::default();
        pages.write(CHUNK - 512, &[1; 1024]);
        let older = pages.clone();
        pages.clear(CHUNK..CHUNK + 512);
        pages.write(0, &[2; 512]);
        assert_eq!(pages.ranges(0..2 * CHUNK), vec![0..512, CHUNK - 512..CHUNK]);
        let (written, cleared) = pages.since(&older, 0..2 * CHUNK);
        assert_eq!(written.len(), 1);
        assert_eq!(written.first(), Some(&(0..512)));
        assert_eq!(cleared.len(), 1);
        assert_eq!(cleared.first(), Some(&(CHUNK..CHUNK + 512)));
        assert_eq!(older.read(CHUNK..CHUNK + 512), vec![1; 512]);
    }
}
