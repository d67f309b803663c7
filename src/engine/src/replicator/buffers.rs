//! Memory for data on its way, shared by all disks of this process, so that many disks take no more than one.
//!
//! Three budgets, because what waits for one thing must not stop what waits for another: a paused initial
//! replication leaves captures their memory.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ranges::PIECE;

/// Bytes that one permit stands for: a piece is never more than the whole budget.
const UNIT: u64 = 4096;

/// A budget.
pub(super) struct Buffers(std::sync::LazyLock<Arc<Semaphore>>);

/// Reading frozen disks for cycles and comparisons.
pub(super) static CAPTURE: Buffers = Buffers::new(|| budget(6 * PIECE));
/// Reading frozen disks for initial replication.
pub(super) static INITIAL: Buffers = Buffers::new(|| budget(6 * PIECE));
/// Reading logs for the store.
pub(super) static SHIP: Buffers = Buffers::new(|| budget(4 * PIECE));

fn budget(bytes: u64) -> Arc<Semaphore> {
    Arc::new(Semaphore::new((bytes / UNIT) as usize))
}

impl Buffers {
    const fn new(make: fn() -> Arc<Semaphore>) -> Self {
        Self(std::sync::LazyLock::new(make))
    }

    /// Waits for memory of `bytes`; it is given back when the permit is dropped. More than a piece counts as one.
    pub async fn take(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let permits = bytes.min(PIECE).div_ceil(UNIT) as u32;
        // Never closed.
        (*self.0).clone().acquire_many_owned(permits).await.ok()
    }
}
