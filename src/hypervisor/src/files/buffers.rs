//! Buffers for reads, used again and again: new memory for each would cost as much as the read itself.
//!
//! They begin at a page of memory, so that what was read can be written past the page cache (`O_DIRECT`).

use std::sync::{Mutex, PoisonError};

/// What is kept for later.
const MOST_KEPT: usize = 6;
/// A page of memory, and what disks want at least.
const PAGE: usize = 4096;

static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// A buffer that goes back when it is dropped.
pub(super) struct Buffer {
    /// It may be longer than what was asked for.
    bytes: Vec<u8>,
    /// Where the first page begins.
    start: usize,
    length: usize,
}

/// A buffer of `length` bytes, whose content is whatever an earlier read left: it must be filled whole.
pub(super) fn take(length: usize) -> Buffer {
    let kept = {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = kept.iter().position(|buffer| buffer.len() >= length + PAGE);
        fits.map(|at| kept.swap_remove(at))
    };
    let bytes = kept.unwrap_or_else(|| vec![0; length + PAGE]);
    Buffer {
        // Less than a page, or the buffer is used as it is.
        start: bytes.as_ptr().align_offset(PAGE).min(PAGE),
        bytes,
        length,
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < MOST_KEPT {
            kept.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_the_length_that_was_asked_for_and_begins_at_a_page() {
        for length in [4096, 1 << 20, 100, 1 << 20] {
            let mut buffer = take(length);
            assert_eq!(buffer.as_ref().len(), length);
            assert_eq!(buffer.as_ref().as_ptr().align_offset(PAGE), 0);
            buffer.as_mut().fill(7);
        }
    }
}
