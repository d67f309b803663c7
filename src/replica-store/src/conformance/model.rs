//! What the disks of a VM hold, as plain bytes, and numbers from a seed.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use uuid::Uuid;

use crate::fault::{Fault, Faults, StepKind};
use crate::{DiskSpec, PointKind, Position, RecoveryPoint};

pub(super) const START_MS: i64 = 1_767_323_045_000;
pub(super) const MINUTE_MS: i64 = 60_000;

/// A small generator: the same seed, the same run.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound.max(1)
    }
}

/// The disks at one moment.
pub(super) type Image = BTreeMap<Uuid, Vec<u8>>;

/// A change of one disk.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write(Uuid, u64, Vec<u8>),
    Zero(Uuid, u64, u64),
}

impl Change {
    pub(super) fn random(random: &mut Random, disk: Uuid, size: u64) -> Change {
        // Odd ranges now and then: the store promises bytes, whatever pages a medium has.
        let unit = [1, 512, 4096][random.below(3) as usize];
        let length = (1 + random.below(50_000)).next_multiple_of(unit).min(size);
        let offset = random.below(size - length + 1) / unit * unit;
        if random.below(4) == 0 {
            return Change::Zero(disk, offset, length);
        }
        let mut data = vec![random.next() as u8; length as usize];
        let step = 1 + random.below(9) as usize;
        for byte in data.iter_mut().step_by(step) {
            *byte = random.next() as u8;
        }
        Change::Write(disk, offset, data)
    }

    pub(super) fn apply(&self, image: &mut Image) {
        match self {
            Change::Write(disk, at, data) => {
                if let Some(disk) = image.get_mut(disk) {
                    disk[*at as usize..][..data.len()].copy_from_slice(data);
                }
            }
            Change::Zero(disk, at, length) => {
                if let Some(disk) = image.get_mut(disk) {
                    disk[*at as usize..][..*length as usize].fill(0);
                }
            }
        }
    }
}

pub(super) fn spec(id: Uuid, size_bytes: u64) -> DiskSpec {
    DiskSpec {
        id,
        size_bytes,
        name: format!("disk{}.vhdx", id.as_u128() & 0xff),
    }
}

pub(super) fn specs(image: &Image) -> Vec<DiskSpec> {
    image
        .iter()
        .map(|(id, data)| spec(*id, data.len() as u64))
        .collect()
}

/// Ranges where two contents differ, in blocks; what only `now` has is different where not zero.
pub(super) fn differences(before: &[u8], now: &[u8]) -> Vec<(u64, Vec<u8>)> {
    const BLOCK: usize = 4096;
    let mut out = Vec::new();
    for (n, block) in now.chunks(BLOCK).enumerate() {
        let at = n * BLOCK;
        let mut old = vec![0u8; block.len()];
        if at < before.len() {
            let part = &before[at..before.len().min(at + block.len())];
            old[..part.len()].copy_from_slice(part);
        }
        if old != block {
            out.push((at as u64, block.to_vec()));
        }
    }
    out
}

pub(super) fn point(position: Position, time_unix_ms: i64) -> RecoveryPoint {
    RecoveryPoint {
        id: Uuid::from_u128((0x9017 << 64) + u128::from(position.0)),
        time_unix_ms,
        kind: if position.0.is_multiple_of(3) {
            PointKind::Application
        } else {
            PointKind::Crash
        },
        position,
        vm_config: serde_json::json!({"name": "web", "at": position.0}),
        changed_bytes: position.0,
        sent_bytes: position.0,
        group_point_id: None,
    }
}

/// Fails calls by chance, in all three ways.
#[derive(Debug)]
pub(super) struct Chance {
    percent: u64,
    random: Mutex<Random>,
}

impl Chance {
    pub(super) fn new(seed: u64, percent: u64) -> Self {
        Chance {
            percent,
            random: Mutex::new(Random::new(seed ^ 0xfau64.rotate_left(40))),
        }
    }
}

impl Faults for Chance {
    fn before(&self, _kind: StepKind, _path: &Path) -> Fault {
        let mut random = self
            .random
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if random.below(1000) >= self.percent {
            return Fault::None;
        }
        match random.below(3) {
            0 => Fault::Fail(io::ErrorKind::TimedOut),
            1 => Fault::Torn(io::ErrorKind::TimedOut),
            _ => Fault::DoneButFails(io::ErrorKind::TimedOut),
        }
    }
}

/// Lets so many calls pass, then nothing: the process was killed there.
#[derive(Debug)]
pub(super) struct Cut {
    at: u64,
    count: AtomicU64,
    /// The call at the cut is carried out, and nobody hears of it.
    is_after: bool,
    struck: AtomicBool,
}

impl Cut {
    pub(super) fn new(at: u64, is_after: bool) -> Self {
        Cut {
            at,
            count: AtomicU64::new(0),
            is_after,
            struck: AtomicBool::new(false),
        }
    }

    pub(super) fn has_struck(&self) -> bool {
        self.struck.load(Ordering::SeqCst)
    }
}

impl Faults for Cut {
    fn before(&self, _kind: StepKind, _path: &Path) -> Fault {
        let count = self.count.fetch_add(1, Ordering::SeqCst);
        if count < self.at {
            return Fault::None;
        }
        self.struck.store(true, Ordering::SeqCst);
        if count == self.at && self.is_after {
            Fault::DoneButFails(io::ErrorKind::BrokenPipe)
        } else {
            Fault::Fail(io::ErrorKind::BrokenPipe)
        }
    }
}
