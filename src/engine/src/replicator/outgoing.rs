//! The way of one captured cycle into the store: packed, let through by the throttle, sent.
//!
//! ```text
//! changes ─► packed: compressed, encrypted ─► throttle, by packed bytes ─► store
//!              │ bytes in and out, time          │ bytes, time waited for ─┘
//!              └──────────────► Effort ◄─────────┘
//!                                  └─► level of what is packed next, in this cycle and later ones
//! ```
//!
//! Rate limits count what really goes out. Compression is timed by the wall clock, so a processor that the guests keep
//! busy looks slow and is asked for less; the wait for a rate limit counts as the link's, so a narrow limit earns as
//! much effort as a narrow link. Base is not compressed, it must boot, so initial replication has no level.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use replica_store::{Committed, CyclePlan, CycleWriter, ReplicaWriter};
use replication_log::journal::{CompressionController, CompressionLevel};
use tokio::time::Instant;
use uuid::Uuid;

use super::shared::Item;
use super::throttle::Class;
use super::trouble::Trouble;

/// Packed bytes that are sent at once: few enough to be held in memory while a limit is waited for, enough to be no less
/// than what initial replication sends between two of them.
const PARCEL_BYTES: u64 = 1 << 20;
/// Fewer bytes than this say how quickly the store answers, not how much the link carries.
const LEAST_SAMPLE_BYTES: u64 = 256 << 10;
/// A long cycle tells what it has seen of the link each time it has sent so much: more than a store holds on its way.
const SAMPLE_BYTES: u64 = 32 << 20;

/// How hard the cycles of an item are compressed.
#[derive(Debug)]
pub(crate) struct Effort {
    controller: Mutex<CompressionController>,
    /// Only runs forward.
    clock: fn() -> Duration,
}

/// What stands between a cycle and the store.
pub(crate) trait Gate: Sync {
    /// Returns when so many bytes may be sent, which stand for so many changed ones.
    fn pass(&self, bytes: u64, changed_bytes: u64) -> impl Future<Output = ()> + Send;
}

/// A cycle on its way.
pub(crate) struct Outgoing<'a, G> {
    gate: &'a G,
    effort: &'a Effort,
    cycle: CycleWriter,
    changed_unsent: u64,
    /// All of the cycle.
    sent: Sample,
    /// Since the last sample was told.
    recent: Sample,
}

/// Bytes, and how long they were waited for.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    bytes: u64,
    waited: Duration,
}

// === impl Effort ===

impl Default for Effort {
    fn default() -> Self {
        Self::timed_by(since_start)
    }
}

impl Effort {
    /// Times compression by this clock.
    pub fn timed_by(clock: fn() -> Duration) -> Self {
        Self {
            controller: Mutex::default(),
            clock,
        }
    }

    /// For what is packed next.
    pub fn level(&self) -> CompressionLevel {
        self.lock().level()
    }

    /// What was seen of the link.
    fn observe(&self, sample: Sample) {
        if sample.bytes < LEAST_SAMPLE_BYTES {
            return;
        }
        let mut controller = self.lock();
        let before = controller.level();
        controller.observe_link(sample.bytes, sample.waited);
        told(before, &controller);
    }

    fn lock(&self) -> MutexGuard<'_, CompressionController> {
        // Averages: whatever a panic leaves of them is as good as any.
        self.controller
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Item ===

impl Gate for Item {
    async fn pass(&self, bytes: u64, changed_bytes: u64) {
        self.may_send(bytes, Class::Delta).await;
        self.status.sent(bytes, changed_bytes);
    }
}

// === impl Outgoing ===

impl<'a, G: Gate> Outgoing<'a, G> {
    /// Begins a cycle; its plan's level is not looked at.
    pub async fn begin(
        gate: &'a G,
        effort: &'a Effort,
        writer: &ReplicaWriter,
        plan: CyclePlan,
    ) -> Result<Self, Trouble> {
        let plan = CyclePlan {
            compression: effort.level(),
            ..plan
        };
        Ok(Self {
            gate,
            effort,
            cycle: writer.begin_cycle_with(plan).await?.measured(effort.clock),
            changed_unsent: 0,
            sent: Sample::default(),
            recent: Sample::default(),
        })
    }

    /// The disk has these bytes, each at its offset, in this order.
    pub async fn pack(&mut self, disk: Uuid, data: Vec<(u64, Bytes)>) -> Result<(), Trouble> {
        if data.is_empty() {
            return Ok(());
        }
        self.changed_unsent += data.iter().map(|(_, data)| data.len() as u64).sum::<u64>();
        self.cycle.pack(disk, data).await?;
        let mut controller = self.effort.lock();
        let before = controller.level();
        self.cycle.adapt(&mut controller);
        told(before, &controller);
        Ok(())
    }

    /// The disk has zeroes there.
    pub async fn zero(&mut self, disk: Uuid, offset: u64, length: u64) -> Result<(), Trouble> {
        Ok(self.cycle.zero(disk, offset, length).await?)
    }

    /// Sends what is packed, if it is enough.
    pub async fn send(&mut self) -> Result<(), Trouble> {
        if self.cycle.unsent_bytes() < PARCEL_BYTES {
            return Ok(());
        }
        let begin = Instant::now();
        let bytes = self.pass().await;
        self.cycle.send().await?;
        self.waited(bytes, begin.elapsed());
        if self.recent.bytes >= SAMPLE_BYTES {
            let recent = std::mem::take(&mut self.recent);
            self.effort.observe(recent);
        }
        Ok(())
    }

    /// Sends the rest and makes the cycle visible.
    pub async fn commit(mut self) -> Result<Committed, Trouble> {
        self.cycle.seal().await?;
        let begin = Instant::now();
        let bytes = self.pass().await;
        self.waited(bytes, begin.elapsed());
        let begin = Instant::now();
        let (effort, mut sent) = (self.effort, self.sent);
        let committed = self.cycle.commit().await?;
        // What a store holds on its way is waited for here.
        sent.waited += begin.elapsed();
        effort.observe(sent);
        Ok(committed)
    }

    async fn pass(&mut self) -> u64 {
        let bytes = self.cycle.unsent_bytes();
        let changed_bytes = std::mem::take(&mut self.changed_unsent);
        self.gate.pass(bytes, changed_bytes).await;
        bytes
    }

    fn waited(&mut self, bytes: u64, time: Duration) {
        for sample in [&mut self.sent, &mut self.recent] {
            sample.bytes += bytes;
            sample.waited += time;
        }
    }
}

fn told(before: CompressionLevel, controller: &CompressionController) {
    let now = controller.level();
    if now != before {
        tracing::debug!(
            before = before.number(),
            now = now.number(),
            "another compression level"
        );
    }
}

fn since_start() -> Duration {
    static START: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
    START.elapsed()
}

#[cfg(test)]
mod tests;
