//! Small reads of a recovery point, answered out of larger ones that are kept for a while.
//!
//! Firmware reads a disk sector by sector: with a store in the network each of 512 bytes would cost a round trip, and a
//! boot some ten minutes. A point never changes, so what was read once stays right.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

/// Read at once.
const WINDOW: u64 = 256 << 10;
/// Kept for each disk: 8 MiB.
const KEPT: usize = 32;

/// The windows of one disk that were read last.
#[derive(Default)]
pub struct ReadAhead {
    /// Number of the window and its bytes, the newest at the end.
    windows: Mutex<VecDeque<(u64, Bytes)>>,
}

impl ReadAhead {
    /// Reads `length` bytes at `offset` of a disk of `size` bytes; `read` gets larger pieces of it.
    ///
    /// # Errors
    /// Those of `read`, and nothing of a failed read is kept.
    pub async fn read<E, F>(
        &self,
        size: u64,
        offset: u64,
        length: usize,
        read: impl Fn(u64, usize) -> F,
    ) -> Result<Bytes, E>
    where
        F: Future<Output = Result<Bytes, E>>,
    {
        let end = offset + length as u64;
        // Who reads much at once reads no better through here; what lies outside is refused by the reader.
        if length as u64 >= WINDOW || end > size {
            return read(offset, length).await;
        }
        let mut out = BytesMut::with_capacity(length);
        let mut at = offset;
        while at < end {
            let number = at / WINDOW;
            let start = number * WINDOW;
            let window = match self.kept(number) {
                Some(window) => window,
                None => {
                    let wanted = WINDOW.min(size - start);
                    let window = read(start, wanted as usize).await?;
                    self.keep(number, window.clone());
                    window
                }
            };
            let upto = end.min(start + window.len() as u64);
            if upto <= at {
                // A reader that gives less than was asked for would keep us here for ever.
                return read(offset, length).await;
            }
            out.extend_from_slice(&window[(at - start) as usize..(upto - start) as usize]);
            at = upto;
        }
        Ok(out.freeze())
    }

    fn kept(&self, number: u64) -> Option<Bytes> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let index = windows.iter().position(|(kept, _)| *kept == number)?;
        let window = windows.remove(index)?;
        let bytes = window.1.clone();
        windows.push_back(window);
        Some(bytes)
    }

    fn keep(&self, number: u64, bytes: Bytes) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.retain(|(kept, _)| *kept != number);
        windows.push_back((number, bytes));
        if windows.len() > KEPT {
            windows.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn disk() -> Vec<u8> {
        (0..3 * WINDOW + 700)
            .map(|at| (at / 7 % 251) as u8)
            .collect()
    }

    #[tokio::test]
    async fn every_read_gives_the_disks_bytes_whatever_was_read_before() {
        let disk = disk();
        let ahead = ReadAhead::default();
        let read = |at: u64, length: usize| {
            let found = disk
                .get(at as usize..at as usize + length)
                .map(Bytes::copy_from_slice)
                .ok_or("outside");
            async move { found }
        };
        let size = disk.len() as u64;
        let window = WINDOW as usize;
        for (offset, length) in [
            (0, 512),
            (512, 512),
            (window - 100, 300),
            (window - 1, window - 1),
            (5, 2 * window),
            (disk.len() - 512, 512),
            (disk.len() - window / 2, window / 2),
            (7, 0),
        ] {
            let got = ahead.read(size, offset as u64, length, read).await.unwrap();
            assert_eq!(
                got[..],
                disk[offset..offset + length],
                "{length} at {offset}"
            );
        }
        assert!(ahead.read(size, size - 1, 2, read).await.is_err());
    }

    #[tokio::test]
    async fn neighbouring_sectors_cost_one_read_and_a_failed_one_is_not_kept() {
        let calls = AtomicUsize::new(0);
        let fails = AtomicUsize::new(1);
        let read = |_: u64, length: usize| {
            calls.fetch_add(1, Ordering::SeqCst);
            let fail = fails.swap(0, Ordering::SeqCst) == 1;
            async move {
                if fail {
                    Err("away")
                } else {
                    Ok(Bytes::from(vec![1; length]))
                }
            }
        };
        let ahead = ReadAhead::default();
        assert!(ahead.read(WINDOW, 0, 512, read).await.is_err());
        for sector in 0..WINDOW / 512 {
            ahead.read(WINDOW, sector * 512, 512, read).await.unwrap();
        }
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }
}
