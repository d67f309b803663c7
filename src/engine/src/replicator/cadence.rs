//! When the next freeze comes, and of which kind.
//!
//! Capture asks [`Cadence::due`] and tells what came of it; everything else about time is decided here.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::policy::Policy;

/// How consistent the next point shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FreezeKind {
    /// As after a power cut.
    Crash,
}

/// What a capture that came to its end took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    /// From freeze to the durable record.
    pub took: Duration,
    /// Bytes in the logs.
    pub changed_bytes: u64,
}

/// Plans the freezes of one item.
pub(super) struct Cadence {
    policy: watch::Receiver<Policy>,
    last_freeze: Option<Instant>,
}

impl Cadence {
    /// The first freeze is due at once.
    pub fn new(policy: watch::Receiver<Policy>) -> Self {
        Self {
            policy,
            last_freeze: None,
        }
    }

    /// Returns when the next freeze is due. Dropping it changes nothing. A changed policy counts at once.
    pub async fn due(&mut self) -> FreezeKind {
        let Some(last) = self.last_freeze else {
            return FreezeKind::Crash;
        };
        loop {
            let interval = self.policy.borrow_and_update().interval;
            let due = last.checked_add(interval);
            let changed = tokio::select! {
                () = until(due) => return FreezeKind::Crash,
                changed = self.policy.changed() => changed,
            };
            if changed.is_err() {
                until(due).await;
                return FreezeKind::Crash;
            }
        }
    }

    /// The disks were frozen at this instant.
    pub fn froze(&mut self, at: Instant) {
        self.last_freeze = Some(at);
    }

    /// What was frozen last is captured.
    pub fn captured(&mut self, done: Done) {
        tracing::trace!(
            took_ms = done.took.as_millis() as u64,
            changed_bytes = done.changed_bytes,
            "captured"
        );
    }

    /// What was frozen last came to nothing, and there is no reason to wait for the next.
    pub fn at_once(&mut self) {
        self.last_freeze = None;
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
