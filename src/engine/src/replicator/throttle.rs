//! The hook in front of every write to a store: who may send how much, and who goes first.
//!
//! Promise of a caller: no byte of a disk goes to a store before [`Throttle::acquire`] returned for it.
//! Promise of an implementation: it returns in the end, or the caller stops waiting (dropping is fine).

use async_trait::async_trait;

use crate::time_window::TimeWindow;

/// Why bytes are sent: what a VM that is off waits for goes before everything else, and deltas go before initial
/// replication, because protected VMs must stay protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// The rest of a planned failover or failback: the VM is off on both sides until it is there. Rates hold for it; a limit
    /// of 0, which lets nothing through until its window ends, does not.
    Downtime,
    /// A captured cycle.
    Delta,
    /// Initial replication, also of an added disk.
    Initial,
}

/// A rate limit that applies in its windows; without windows always.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bytes per second to the store; 0 = nothing is sent.
    pub bytes_per_second: u64,
    /// When it applies.
    pub windows: Vec<TimeWindow>,
}

/// Shares the way to the stores out.
#[async_trait]
pub trait Throttle: Send + Sync {
    /// Returns when `bytes` of `item_id` may be sent: those that go over the wire, after compression and encryption.
    async fn acquire(&self, item_id: &str, bytes: u64, class: Class);

    /// The limits of one item, at once in force; none = only the host's.
    fn limit_item(&self, item_id: &str, limits: &[Limit]);

    /// The limits of all items together, at once in force.
    fn limit_host(&self, limits: &[Limit]);
}

/// Everything at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unthrottled;

#[async_trait]
impl Throttle for Unthrottled {
    async fn acquire(&self, _item_id: &str, _bytes: u64, _class: Class) {}

    fn limit_item(&self, _item_id: &str, _limits: &[Limit]) {}

    fn limit_host(&self, _limits: &[Limit]) {}
}
