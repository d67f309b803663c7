//! A write benchmark inside the guest: what replication costs it.
//!
//! Rounds of random, synchronous 4 KiB writes to the data disk behind ring and filling, one after the other, each
//! followed by one line on the console. The bytes can't be compressed. The same seed gives the same offsets, so that
//! rounds with and without replication do the same work.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::copy::FILL_AT;

const BLOCK: usize = 4096;
const MIB: u64 = 1 << 20;
/// `O_DSYNC` of Linux on x86: a write returns when it is durable.
const O_DSYNC: i32 = 0o10000;

/// The disk under test.
pub struct Bench {
    disk: File,
    at: u64,
    blocks: u64,
    random: u64,
    block: Vec<u8>,
}

/// One round's figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// How long it really took.
    pub took: Duration,
    /// Microseconds of each write, sorted.
    pub latencies_us: Vec<u32>,
}

impl Bench {
    /// Uses `area_mib` behind the filling, or as much as there is.
    pub fn open(disk: &Path, fill_mib: u32, area_mib: u32) -> anyhow::Result<Self> {
        let mut options = OpenOptions::new();
        let disk = options
            .read(true)
            .write(true)
            .custom_flags(O_DSYNC)
            .open(disk)
            .with_context(|| format!("can't open {}", disk.display()))?;
        let size =
            std::io::Seek::seek(&mut &disk, std::io::SeekFrom::End(0)).context("disk's size")?;
        let at = FILL_AT + u64::from(fill_mib) * MIB;
        let blocks = size.saturating_sub(at).min(u64::from(area_mib) * MIB) / BLOCK as u64;
        ensure!(
            blocks >= 256,
            "the data disk has no room for a benchmark behind its filling"
        );
        Ok(Self {
            disk,
            at,
            blocks,
            random: 0x9e37_79b9_7f4a_7c15,
            block: vec![0; BLOCK],
        })
    }

    /// Writes every block once, so that no round pays for blocks that the disk's file does not have yet.
    pub fn prepare(&mut self) -> anyhow::Result<()> {
        for block in 0..self.blocks {
            self.write(block)?;
        }
        Ok(())
    }

    /// One round of `length`; ends early when `stop` says so.
    pub fn round(&mut self, length: Duration, stop: impl Fn() -> bool) -> anyhow::Result<Round> {
        let start = Instant::now();
        let mut latencies_us = Vec::new();
        while start.elapsed() < length && !stop() {
            let block = self.next() % self.blocks;
            let begin = Instant::now();
            self.write(block)?;
            latencies_us.push(u32::try_from(begin.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
        let took = start.elapsed();
        latencies_us.sort_unstable();
        Ok(Round { took, latencies_us })
    }

    fn write(&mut self, block: u64) -> anyhow::Result<()> {
        for at in (0..BLOCK).step_by(8) {
            let word = self.next().to_le_bytes();
            self.block[at..at + 8].copy_from_slice(&word);
        }
        self.disk
            .write_all_at(&self.block, self.at + block * BLOCK as u64)
            .with_context(|| format!("can't write block {block} of the benchmark"))
    }

    /// xorshift64*.
    fn next(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

impl Round {
    /// The line on the console, without its first word.
    pub fn line(&self, number: u64) -> String {
        let seconds = self.took.as_secs_f64().max(1e-6);
        let operations = self.latencies_us.len();
        let rate = operations as f64 / seconds;
        format!(
            "bench round={number} seconds={seconds:.3} operations={operations} operations_per_second={rate:.1} \
             mib_per_second={:.3} p50_us={} p99_us={} max_us={}",
            rate * BLOCK as f64 / MIB as f64,
            self.percentile(50),
            self.percentile(99),
            self.percentile(100),
        )
    }

    /// The latency that so many percent of the writes did not exceed; 0 without writes.
    fn percentile(&self, percent: usize) -> u32 {
        let count = self.latencies_us.len();
        let rank = (count * percent).div_ceil(100).max(1);
        self.latencies_us.get(rank - 1).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_follow_from_the_latencies() {
        let round = Round {
            took: Duration::from_secs(2),
            latencies_us: (1..=200).collect(),
        };
        assert_eq!(
            round.line(7),
            "bench round=7 seconds=2.000 operations=200 operations_per_second=100.0 mib_per_second=0.391 \
             p50_us=100 p99_us=198 max_us=200"
        );
        let idle = Round {
            took: Duration::from_secs(1),
            latencies_us: Vec::new(),
        };
        assert!(idle.line(1).ends_with("p50_us=0 p99_us=0 max_us=0"));
    }

    #[test]
    fn a_round_writes_behind_the_filling_only() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let disk = folder.path().join("disk");
        let before = vec![0x55; 34 * MIB as usize];
        std::fs::write(&disk, &before).expect("a temporary folder is writable");
        let mut bench = Bench::open(&disk, 1, 64).expect("one MiB is left");
        bench.prepare().expect("the file is writable");
        let stop = std::cell::Cell::new(0);
        let round = bench
            .round(Duration::from_secs(3600), || {
                stop.set(stop.get() + 1);
                stop.get() > 20
            })
            .expect("the file is writable");
        assert_eq!(round.latencies_us.len(), 20);
        let after = std::fs::read(&disk).expect("it is there");
        let (kept, written) = after.split_at(33 * MIB as usize);
        assert!(kept == &before[..kept.len()]);
        assert!(written.chunks(BLOCK).all(|block| block != [0x55; BLOCK]));
        assert_eq!(after.len(), before.len());
        assert!(
            Bench::open(&disk, 2, 64).is_err(),
            "nothing is left behind 2 MiB of filling"
        );
    }
}
