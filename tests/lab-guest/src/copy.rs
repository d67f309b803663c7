//! The two rings on real disks: reading and checking them, and stamping on.
//!
//! ```text
//!   data disk   1 MiB  ring, 16 MiB    32 MiB  filling (lab.fill_mib)
//!   OS stamp partition   0  ring, 4 MiB
//! ```
//!
//! The first MiB of the data disk stays zero so that no kernel takes a record for a partition table.
//! Stamping starts again with the epoch that was in flight, so a check after any number of power
//! cuts follows one rule.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};

use crate::record::{self, GuestId, RECORD_BYTES, Record, SlotState, Target};
use crate::ring::{self, DATA_RING, OS_RING, Ring, State, Verdict};

const MIB: u64 = 1 << 20;

/// Where the ring starts on the data disk, in bytes.
pub const DATA_RING_AT: u64 = MIB;

/// Where the filling starts on the data disk, in bytes.
pub const FILL_AT: u64 = 32 * MIB;

/// A ring on an open disk or partition.
pub struct Place {
    file: File,
    ring: Ring,
    at: u64,
}

impl Place {
    /// The ring of the data disk.
    pub fn data(disk: &Path, writable: bool) -> anyhow::Result<Self> {
        Self::open(disk, DATA_RING, DATA_RING_AT, writable)
    }

    /// The ring of the OS disk; `at` is where the stamp partition starts in `disk`, in bytes.
    pub fn os(disk: &Path, at: u64, writable: bool) -> anyhow::Result<Self> {
        Self::open(disk, OS_RING, at, writable)
    }

    fn open(path: &Path, ring: Ring, at: u64, writable: bool) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(writable)
            .open(path)
            .with_context(|| format!("can't open {}", path.display()))?;
        Ok(Self { file, ring, at })
    }

    fn slots(&self) -> anyhow::Result<Vec<SlotState>> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.at))
            .with_context(|| format!("can't reach the {} ring", self.ring.target.name()))?;
        let mut bytes = vec![0; RECORD_BYTES];
        (0..self.ring.slots)
            .map(|slot| {
                file.read_exact(&mut bytes).with_context(|| {
                    format!(
                        "can't read slot {slot} of the {} ring",
                        self.ring.target.name()
                    )
                })?;
                Ok(record::decode(&bytes))
            })
            .collect()
    }

    fn write(&self, record: &Record) -> anyhow::Result<()> {
        self.file
            .write_all_at(
                &record::encode(record),
                self.at + record.slot * RECORD_BYTES as u64,
            )
            .with_context(|| {
                format!(
                    "can't write record {} on the {} disk",
                    record.sequence,
                    self.ring.target.name()
                )
            })
    }

    fn flush(&self) -> anyhow::Result<()> {
        self.file
            .sync_data()
            .with_context(|| format!("can't flush the {} disk", self.ring.target.name()))
    }
}

/// What a check found.
pub struct Checked {
    /// How far the rings have come, or that nothing was ever written.
    pub verdict: Verdict,
    /// MiB of filling that were verified.
    pub fill_mib: u32,
}

/// Checks both rings and the filling; reads only.
pub fn check(guest: GuestId, data: &Place, os: &Place) -> anyhow::Result<Checked> {
    let data_slots = data.slots()?;
    let verdict = ring::check(guest, &data_slots, &os.slots()?)?;
    let fill_mib = data_slots
        .iter()
        .filter_map(|slot| match slot {
            SlotState::Intact(record) => Some(record.fill_mib),
            SlotState::Empty | SlotState::Torn => None,
        })
        .max()
        .unwrap_or(0);
    check_fill(guest, data, fill_mib)?;
    Ok(Checked { verdict, fill_mib })
}

fn check_fill(guest: GuestId, data: &Place, fill_mib: u32) -> anyhow::Result<()> {
    let mut found = vec![0; RECORD_BYTES];
    let mut expected = vec![0; RECORD_BYTES];
    for block in 0..fill_blocks(fill_mib) {
        let at = FILL_AT + block * RECORD_BYTES as u64;
        data.file
            .read_exact_at(&mut found, at)
            .with_context(|| format!("can't read block {block} of the filling"))?;
        record::fill_block(guest, block, &mut expected);
        if found != expected {
            bail!("block {block} of the filling on the data disk is not as written");
        }
    }
    Ok(())
}

fn fill_blocks(fill_mib: u32) -> u64 {
    u64::from(fill_mib) * MIB / RECORD_BYTES as u64
}

/// Writes records in epochs.
pub struct Stamper {
    data: Place,
    os: Place,
    guest: GuestId,
    marker: String,
    fill_mib: u32,
    next_epoch: u64,
}

impl Stamper {
    /// Goes on where the check found the rings: with the epoch that may be incomplete.
    pub fn resume(data: Place, os: Place, guest: GuestId, marker: &str, checked: &Checked) -> Self {
        let durable = match &checked.verdict {
            Verdict::Empty => 0,
            Verdict::Consistent(State { os_epoch, .. }) => *os_epoch,
        };
        Self {
            data,
            os,
            guest,
            marker: marker.to_owned(),
            fill_mib: checked.fill_mib,
            next_epoch: durable + 1,
        }
    }

    /// Writes and flushes the filling, as much of it as the disk has room for. Only for a disk
    /// without records: records say how much filling must be there. Returns the MiB written.
    pub fn fill(&mut self, wanted_mib: u32) -> anyhow::Result<u32> {
        let mut file = &self.data.file;
        let size = file
            .seek(SeekFrom::End(0))
            .context("can't get the data disk's size")?;
        let room = u32::try_from(size.saturating_sub(FILL_AT) / MIB).unwrap_or(u32::MAX);
        let fill_mib = wanted_mib.min(room);
        let mut chunk = vec![0; MIB as usize];
        for mib in 0..u64::from(fill_mib) {
            let first = mib * MIB / RECORD_BYTES as u64;
            for (block, bytes) in (first..).zip(chunk.chunks_mut(RECORD_BYTES)) {
                record::fill_block(self.guest, block, bytes);
            }
            file.write_all_at(&chunk, FILL_AT + mib * MIB)
                .with_context(|| format!("can't write MiB {mib} of the filling"))?;
        }
        self.data.flush()?;
        self.fill_mib = fill_mib;
        Ok(fill_mib)
    }

    /// Writes one epoch: its records on the data disk, flush, its name on the OS disk, flush.
    pub fn epoch(&mut self) -> anyhow::Result<Stamped> {
        let epoch = self.next_epoch;
        let first = DATA_RING.first_sequence(epoch);
        let last = first + DATA_RING.per_epoch - 1;
        for sequence in first..=last {
            self.data.write(&self.record(&DATA_RING, sequence))?;
        }
        self.data.flush()?;
        self.os.write(&self.record(&OS_RING, epoch))?;
        self.os.flush()?;
        self.next_epoch += 1;
        Ok(Stamped {
            sequence: last,
            epoch,
        })
    }

    fn record(&self, ring: &Ring, sequence: u64) -> Record {
        Record {
            target: ring.target,
            fill_mib: match ring.target {
                Target::Data => self.fill_mib,
                Target::Os => 0,
            },
            slot: ring.slot(sequence),
            sequence,
            epoch: ring.epoch(sequence),
            unix_ms: unix_ms(),
            guest: self.guest,
            marker: self.marker.clone(),
        }
    }
}

/// The end of an epoch that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamped {
    /// Its last record.
    pub sequence: u64,
    /// Its number.
    pub epoch: u64,
}

/// The clock's milliseconds since 1970; 0 for a clock before that.
pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
