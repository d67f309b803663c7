//! Numbers from a seed, a stop at a chosen place, and a store that fails.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use engine::replicator::pauses::Pauses;
use replica_store::fault::{Fault, Faults, StepKind};
use tokio::sync::Notify;

/// Numbers from a seed, the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Stops the world at the n-th visit of a place.
pub struct StopAt {
    place: Option<&'static str>,
    visits: AtomicU64,
    pub reached: Notify,
}

impl StopAt {
    pub fn never() -> Arc<Self> {
        Self::new(None, 0)
    }

    pub fn new(place: Option<&'static str>, visits: u64) -> Arc<Self> {
        Arc::new(Self {
            place,
            visits: AtomicU64::new(visits),
            reached: Notify::new(),
        })
    }
}

#[async_trait]
impl Pauses for StopAt {
    async fn pass(&self, place: &'static str) {
        if self.place != Some(place) {
            return;
        }
        if self
            .visits
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            })
            .is_err()
        {
            self.reached.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

/// A store that is away, or that fails now and then in all three ways.
#[derive(Debug)]
pub struct BadStore {
    pub away: AtomicBool,
    percent: u64,
    random: Mutex<Random>,
}

impl BadStore {
    pub fn new(seed: u64, percent: u64) -> Arc<Self> {
        Arc::new(Self {
            away: AtomicBool::new(false),
            percent,
            random: Mutex::new(Random::new(seed)),
        })
    }
}

impl Faults for BadStore {
    fn before(&self, _kind: StepKind, _path: &Path) -> Fault {
        if self.away.load(Ordering::SeqCst) {
            return Fault::Fail(std::io::ErrorKind::HostUnreachable);
        }
        let mut random = self.random.lock().unwrap();
        if self.percent == 0 || !random.chance(self.percent) {
            return Fault::None;
        }
        match random.below(3) {
            0 => Fault::Fail(std::io::ErrorKind::StorageFull),
            1 => Fault::Torn(std::io::ErrorKind::TimedOut),
            _ => Fault::DoneButFails(std::io::ErrorKind::TimedOut),
        }
    }
}
