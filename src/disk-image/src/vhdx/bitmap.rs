//! Sector bitmaps of a differencing disk: one bit a sector, 1 = the sector is in this file.
//!
//! A bitmap block has 1 MiB and covers 2^23 sectors. Pages of 4 KiB are read when they are needed
//! and kept; changed ones go through the log, never straight to their place.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::layout::LOG_SECTOR;
use crate::ImageError;

/// Length of a bitmap block.
pub(super) const BITMAP_LENGTH: u64 = 1 << 20;
const BITS_PER_PAGE: u64 = LOG_SECTOR as u64 * 8;
/// Clean pages are let go when there are more: 16 MiB of memory for 64 GiB of disk.
const MAX_PAGES: usize = 4096;

#[derive(Debug)]
struct Page {
    bytes: Box<[u8]>,
    dirty: bool,
}

/// Reads a page from its place in the file.
type ReadPage<'a> = &'a dyn Fn(&mut [u8], u64) -> Result<(), ImageError>;

/// The pages in memory, by their place in the file.
#[derive(Debug, Default)]
pub(super) struct Bitmaps {
    pages: Mutex<BTreeMap<u64, Page>>,
}

impl Bitmaps {
    fn pages(&self) -> MutexGuard<'_, BTreeMap<u64, Page>> {
        // Pages are changed only behind `&mut self`; a reader that panicked left them whole.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Splits `count` sectors from sector `first` of the chunk whose bitmap lies at `place`:
    /// first sector, number of them, whether they are in this file.
    pub(super) fn runs(
        &self,
        place: u64,
        first: u64,
        count: u64,
        read: ReadPage<'_>,
        each: &mut dyn FnMut(u64, u64, bool),
    ) -> Result<(), ImageError> {
        let mut run: Option<(u64, u64, bool)> = None;
        let mut sector = first;
        while sector < first + count {
            let page = sector / BITS_PER_PAGE;
            let end = ((page + 1) * BITS_PER_PAGE).min(first + count);
            self.with_page(place + page * LOG_SECTOR as u64, read, |bytes| {
                while sector < end {
                    let (bit, length) = same_bits(bytes, sector % BITS_PER_PAGE, end - sector);
                    match &mut run {
                        Some((_, run_length, present)) if *present == bit => *run_length += length,
                        _ => {
                            if let Some((start, length, present)) = run.take() {
                                each(start, length, present);
                            }
                            run = Some((sector, length, bit));
                        }
                    }
                    sector += length;
                }
            })?;
        }
        if let Some((start, length, present)) = run {
            each(start, length, present);
        }
        Ok(())
    }

    /// Sets or clears bits; the pages are dirty afterwards where something changed.
    pub(super) fn mark(
        &mut self,
        place: u64,
        first: u64,
        count: u64,
        present: bool,
        read: ReadPage<'_>,
    ) -> Result<(), ImageError> {
        let mut sector = first;
        while sector < first + count {
            let page = sector / BITS_PER_PAGE;
            let end = ((page + 1) * BITS_PER_PAGE).min(first + count);
            let at = place + page * LOG_SECTOR as u64;
            self.with_page(at, read, |_| ())?;
            if let Some(page) = self.pages().get_mut(&at) {
                while sector < end {
                    let bit = sector % BITS_PER_PAGE;
                    let byte = &mut page.bytes[(bit / 8) as usize];
                    let mask = 1 << (bit % 8);
                    let new = if present { *byte | mask } else { *byte & !mask };
                    page.dirty |= new != *byte;
                    *byte = new;
                    sector += 1;
                }
            }
        }
        Ok(())
    }

    fn with_page(
        &self,
        at: u64,
        read: ReadPage<'_>,
        mut see: impl FnMut(&[u8]),
    ) -> Result<(), ImageError> {
        if let Some(page) = self.pages().get(&at) {
            see(&page.bytes);
            return Ok(());
        }
        let mut bytes = vec![0; LOG_SECTOR].into_boxed_slice();
        read(&mut bytes, at)?;
        see(&bytes);
        let mut pages = self.pages();
        if pages.len() >= MAX_PAGES {
            pages.retain(|_, page| page.dirty);
        }
        pages.entry(at).or_insert(Page {
            bytes,
            dirty: false,
        });
        Ok(())
    }

    /// A new bitmap block is zero; nothing needs to be read of it.
    pub(super) fn forget(&mut self, place: u64) {
        self.pages()
            .retain(|at, _| !(place..place + BITMAP_LENGTH).contains(at));
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.pages().values().any(|page| page.dirty)
    }

    /// Up to `count` changed pages with their places; they count as taken care of.
    pub(super) fn take_dirty(&mut self, count: usize) -> Vec<(u64, Vec<u8>)> {
        self.pages()
            .iter_mut()
            .filter(|(_, page)| page.dirty)
            .take(count)
            .map(|(at, page)| {
                page.dirty = false;
                (*at, page.bytes.to_vec())
            })
            .collect()
    }
}

/// The bit at `from`, and how many of the next `limit` bits are the same.
fn same_bits(bytes: &[u8], from: u64, limit: u64) -> (bool, u64) {
    let bit = |at: u64| bytes[(at / 8) as usize] >> (at % 8) & 1 == 1;
    let first = bit(from);
    let whole = if first { 0xff } else { 0 };
    let mut length = 1;
    while length < limit {
        let at = from + length;
        if at.is_multiple_of(8) && limit - length >= 8 && bytes[(at / 8) as usize] == whole {
            length += 8;
        } else if bit(at) == first {
            length += 1;
        } else {
            break;
        }
    }
    (first, length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_what_was_marked() {
        let file = vec![0; BITMAP_LENGTH as usize];
        let read = |buffer: &mut [u8], at: u64| {
            buffer.copy_from_slice(&file[at as usize..at as usize + buffer.len()]);
            Ok(())
        };
        let mut bitmaps = Bitmaps::default();
        let mut model = vec![false; 200_000];
        let mut seed = 7_u64;
        for _ in 0..60 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let first = (seed >> 33) % 190_000;
            let count = (seed >> 20) % 9000 + 1;
            let present = seed >> 60 & 1 == 1;
            bitmaps.mark(0, first, count, present, &read).unwrap();
            model[first as usize..(first + count) as usize].fill(present);
        }
        let mut seen = vec![false; 200_000];
        let mut last = None;
        bitmaps
            .runs(0, 0, 200_000, &read, &mut |start, count, present| {
                assert_ne!(last, Some(present), "neighbours are joined");
                last = Some(present);
                seen[start as usize..(start + count) as usize].fill(present);
            })
            .unwrap();
        assert!(seen == model);
        assert!(bitmaps.is_dirty());
        assert!(!bitmaps.take_dirty(usize::MAX).is_empty());
        assert!(!bitmaps.is_dirty());
    }
}
