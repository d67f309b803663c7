//! What shipping tells the schedule: how long cycles took, and how much of that was waiting for a rate limit.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A cycle that was shipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shipped {
    /// Changed bytes in it.
    pub bytes: u64,
    /// From its beginning to the recoverable point.
    pub took: Duration,
    /// Of that, for a rate limit.
    pub throttled: Duration,
    /// Cycles that still wait behind it.
    pub waiting: usize,
}

/// Collects; shared by the halves of an item's replication.
#[derive(Debug, Default)]
pub struct Meter(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    throttled: Duration,
    /// Since when sending waits for a rate limit.
    since: Option<Instant>,
    shipped: Vec<Shipped>,
}

impl Meter {
    /// Sending waits for a rate limit until the answer is dropped.
    pub fn wait(&self) -> Wait<'_> {
        self.lock().since = Some(Instant::now());
        Wait(self)
    }

    /// A cycle begins to be shipped.
    pub fn begin(&self) {
        self.lock().throttled = Duration::ZERO;
    }

    /// A cycle was shipped.
    pub fn shipped(&self, bytes: u64, took: Duration, waiting: usize) {
        let mut inner = self.lock();
        let throttled = std::mem::take(&mut inner.throttled);
        inner.shipped.push(Shipped {
            bytes,
            took,
            throttled,
            waiting,
        });
    }

    /// How long the cycle that is being shipped has waited for a rate limit until now.
    pub fn throttled_now(&self) -> Duration {
        let inner = self.lock();
        inner.throttled + inner.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// What was shipped since the last call.
    pub fn take(&self) -> Vec<Shipped> {
        std::mem::take(&mut self.lock().shipped)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // Each change is whole by itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, sending waits for a rate limit.
#[derive(Debug)]
pub struct Wait<'a>(&'a Meter);

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        if let Some(since) = inner.since.take() {
            inner.throttled += since.elapsed();
        }
    }
}
