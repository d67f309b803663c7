//! The rule that a crash-consistent copy must hold, as pure logic over the slots of two rings.
//!
//! ```text
//!   epoch e:  write 16 records to the data ring (any order may reach the disk) ── flush data
//!             write 1 record naming e to the OS ring                           ── flush OS
//!   epoch e+1: ...
//! ```
//!
//! The sequence number tells the epoch and the slot, so each slot has one right content:
//!
//! - The OS ring's newest epoch is C. In both rings everything up to epoch C is durable, so each
//!   record of these epochs that the ring still has room for must be intact.
//! - Epoch C+1 was in flight: its slots may be new, old or torn.
//! - Nothing of a later epoch may exist, and what was never written is zero.
//!
//! This implies the rule for one disk (no record of an epoch without all records of the epochs
//! before it) and the rule across disks (OS epoch <= newest data epoch <= OS epoch + 1).

use std::fmt;

use crate::record::{GuestId, Record, SlotState, Target};

/// Records of one epoch on the data disk.
pub const DATA_RECORDS_PER_EPOCH: u64 = 16;

/// The ring on the data disk: 16 MiB.
pub const DATA_RING: Ring = Ring {
    target: Target::Data,
    slots: 4096,
    multiplier: 2_654_435_761,
    per_epoch: DATA_RECORDS_PER_EPOCH,
};

/// The ring in the stamp partition of the OS disk: 4 MiB.
pub const OS_RING: Ring = Ring {
    target: Target::Os,
    slots: 1024,
    multiplier: 2_654_435_761,
    per_epoch: 1,
};

/// How sequence numbers map to epochs and slots.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    /// Which ring.
    pub target: Target,
    /// Number of slots, a power of two.
    pub slots: u64,
    /// Odd, so that it visits every slot once in `slots` records.
    pub multiplier: u64,
    /// Records written between two flushes.
    pub per_epoch: u64,
}

impl Ring {
    /// The slot of a record.
    pub fn slot(&self, sequence: u64) -> u64 {
        sequence.wrapping_mul(self.multiplier) & (self.slots - 1)
    }

    /// The epoch of a record; epochs and sequences count from 1.
    pub fn epoch(&self, sequence: u64) -> u64 {
        sequence.saturating_sub(1) / self.per_epoch + 1
    }

    /// The first sequence number of an epoch.
    pub fn first_sequence(&self, epoch: u64) -> u64 {
        (epoch.saturating_sub(1)).saturating_mul(self.per_epoch) + 1
    }

    /// Checks what the ring holds when all up to epoch `durable` was flushed. Returns the newest
    /// record of the longest unbroken run: every record up to it is there.
    fn check(&self, guest: GuestId, slots: &[SlotState], durable: u64) -> Result<Newest, Broken> {
        let in_flight = self.first_sequence(durable + 1);
        let end = in_flight + self.per_epoch;
        let mut newest = Newest::default();
        let mut unbroken = true;
        // The window, oldest first: each slot is visited exactly once.
        for ahead in 0..self.slots {
            let Some(sequence) = (end + ahead).checked_sub(self.slots).filter(|s| *s > 0) else {
                // Not reached yet in the ring's first round.
                let sequence = end + ahead;
                match self.state(slots, sequence)? {
                    SlotState::Empty => continue,
                    SlotState::Torn => {
                        return Err(self.broken(sequence, "is torn, and was never to be written"));
                    }
                    SlotState::Intact(record) => {
                        self.is_ours(guest, record, sequence)?;
                        return Err(self.broken(sequence, "is of a later epoch than was in flight"));
                    }
                }
            };
            let found = self.holds(guest, slots, sequence)?;
            if sequence < in_flight {
                match found {
                    Found::Record(unix_ms) => newest.is(sequence, unix_ms),
                    Found::Older => {
                        return Err(
                            self.broken(sequence, "is missing though a later epoch was begun")
                        );
                    }
                    Found::Torn => {
                        return Err(self.broken(sequence, "is torn though a later epoch was begun"));
                    }
                }
                continue;
            }
            match found {
                Found::Record(unix_ms) => {
                    newest.epoch_seen = durable + 1;
                    if unbroken {
                        newest.is(sequence, unix_ms);
                    }
                }
                Found::Older | Found::Torn => unbroken = false,
            }
        }
        newest.epoch_seen = newest.epoch_seen.max(durable);
        Ok(newest)
    }

    fn state<'a>(&self, slots: &'a [SlotState], sequence: u64) -> Result<&'a SlotState, Broken> {
        usize::try_from(self.slot(sequence))
            .ok()
            .and_then(|slot| slots.get(slot))
            .ok_or_else(|| self.broken(sequence, "lies beyond the end of the disk"))
    }

    /// What the slot of `sequence` holds, where only it or its predecessor in that slot is right.
    fn holds(&self, guest: GuestId, slots: &[SlotState], sequence: u64) -> Result<Found, Broken> {
        let record = match self.state(slots, sequence)? {
            SlotState::Torn => return Ok(Found::Torn),
            SlotState::Empty if sequence <= self.slots => return Ok(Found::Older),
            SlotState::Empty => return Err(self.broken(sequence, "was overwritten with zeroes")),
            SlotState::Intact(record) => record,
        };
        self.is_ours(guest, record, sequence)?;
        if record.slot != self.slot(record.sequence)
            || record.slot != self.slot(sequence)
            || record.epoch != self.epoch(record.sequence)
        {
            return Err(self.broken(sequence, "lies in the slot of another record"));
        }
        if record.sequence == sequence {
            Ok(Found::Record(record.unix_ms))
        } else if record.sequence > sequence {
            Err(self.broken(
                sequence,
                "was replaced by one of a later epoch than was in flight",
            ))
        } else {
            Ok(Found::Older)
        }
    }

    fn is_ours(&self, guest: GuestId, record: &Record, sequence: u64) -> Result<(), Broken> {
        if record.target != self.target {
            return Err(self.broken(sequence, "was written for the other disk"));
        }
        if record.guest != guest {
            return Err(self.broken(sequence, "was written by another guest"));
        }
        Ok(())
    }

    fn broken(&self, sequence: u64, what: &'static str) -> Broken {
        Broken::Record {
            target: self.target,
            sequence,
            epoch: self.epoch(sequence),
            what,
        }
    }

    /// The newest epoch of which a record of this guest and target is in the ring; 0 when none is.
    fn newest_epoch(&self, guest: GuestId, slots: &[SlotState]) -> u64 {
        slots
            .iter()
            .filter_map(|slot| match slot {
                SlotState::Intact(r) if r.target == self.target && r.guest == guest => {
                    Some(r.epoch)
                }
                _ => None,
            })
            .max()
            .unwrap_or(0)
    }
}

enum Found {
    Record(u64),
    Older,
    Torn,
}

#[derive(Default)]
struct Newest {
    sequence: u64,
    unix_ms: u64,
    records: u64,
    epoch_seen: u64,
}

impl Newest {
    fn is(&mut self, sequence: u64, unix_ms: u64) {
        self.sequence = sequence;
        self.unix_ms = unix_ms;
        self.records += 1;
    }
}

/// What a consistent pair of rings holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No record at all.
    Empty,
    /// Every record up to `last_sequence`, and nothing that would need a later one.
    Consistent(State),
}

/// How far a consistent pair of rings has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Every record up to this one is there (older ones than the ring holds were overwritten).
    pub last_sequence: u64,
    /// Newest epoch of which a record is on the data disk; it may be incomplete.
    pub data_epoch: u64,
    /// Newest epoch named on the OS disk: complete on the data disk.
    pub os_epoch: u64,
    /// When `last_sequence` was written.
    pub stamped_unix_ms: u64,
    /// How many records of the data disk were verified.
    pub records: u64,
}

/// Why a pair of rings is no crash-consistent copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A record isn't what it must be.
    Record {
        /// In which ring.
        target: Target,
        /// Which record.
        sequence: u64,
        /// Its epoch.
        epoch: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The disks are of different instants.
    Apart {
        /// Newest epoch on the data disk.
        data_epoch: u64,
        /// Newest epoch on the OS disk.
        os_epoch: u64,
    },
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record {
                target,
                sequence,
                epoch,
                what,
            } => {
                write!(
                    f,
                    "record {sequence} of epoch {epoch} on the {} disk {what}",
                    target.name()
                )
            }
            Self::Apart {
                data_epoch,
                os_epoch,
            } => {
                write!(
                    f,
                    "disks are of different instants: data epoch {data_epoch}, OS epoch {os_epoch}"
                )
            }
        }
    }
}

impl std::error::Error for Broken {}

/// Checks the rings of both disks. `data` and `os` hold every slot of their ring in order.
pub fn check(guest: GuestId, data: &[SlotState], os: &[SlotState]) -> Result<Verdict, Broken> {
    if [data, os]
        .iter()
        .all(|ring| ring.iter().all(|slot| *slot == SlotState::Empty))
    {
        return Ok(Verdict::Empty);
    }
    let data_epoch = DATA_RING.newest_epoch(guest, data);
    let os_epoch = OS_RING.newest_epoch(guest, os);
    // Looked at first only because it is the clearest message for the commonest fault.
    if data_epoch > 0
        && os_epoch > 0
        && !(data_epoch.saturating_sub(1)..=data_epoch).contains(&os_epoch)
    {
        return Err(Broken::Apart {
            data_epoch,
            os_epoch,
        });
    }
    OS_RING.check(guest, os, os_epoch)?;
    let newest = DATA_RING.check(guest, data, os_epoch)?;
    Ok(Verdict::Consistent(State {
        last_sequence: newest.sequence,
        data_epoch: newest.epoch_seen,
        os_epoch,
        stamped_unix_ms: newest.unix_ms,
        records: newest.records,
    }))
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
