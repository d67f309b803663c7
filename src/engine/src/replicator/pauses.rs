//! Named places in the durable paths where a test may stop the world, as `kill -9` would.

use async_trait::async_trait;

/// A cycle is frozen, nothing is read yet.
pub const FROZEN: &str = "frozen";
/// The logs of a cycle are closed and durable, its record is not written.
pub const LOGS_CLOSED: &str = "logs-closed";
/// The record is durable: the cycle is captured.
pub const RECORDED: &str = "recorded";
/// The frozen point is given back, older tracking is still there.
pub const RELEASED: &str = "released";
/// Older tracking is dropped.
pub const FORGOTTEN: &str = "forgotten";
/// Half of a cycle is sent.
pub const SENDING: &str = "sending";
/// The journal object is in the store, its point is not.
pub const APPENDED: &str = "appended";
/// The point is in the store, the engine's state does not know.
pub const POINT_ADDED: &str = "point-added";
/// The state knows, logs and record are still there.
pub const STATE_WRITTEN: &str = "state-written";
/// Block hashes know the shipped cycle, logs and record are still there.
pub const HASHES_WRITTEN: &str = "hashes-written";
/// The store is elsewhere: waiting cycles are given up, and what the store holds is not known yet.
pub const GIVEN_UP: &str = "given-up";
/// A comparison has looked at a piece.
pub const COMPARING: &str = "comparing";
/// A slice of an added disk is in its base.
pub const JOINING: &str = "joining";
/// Initial replication has written a piece.
pub const BASE_WRITING: &str = "base-writing";
/// The base is whole and durable, not yet complete.
pub const BASE_FLUSHED: &str = "base-flushed";
/// The base is complete, the engine's state does not know.
pub const BASE_COMPLETED: &str = "base-completed";
/// The VM is off, its last cycle is not captured.
pub const SHUT_DOWN: &str = "shut-down";
/// The last cycle is in the store, nobody was told.
pub const REST_SHIPPED: &str = "rest-shipped";
/// Between two steps of retirement.
pub const RETIRING: &str = "retiring";

/// All of them.
pub const PLACES: [&str; 19] = [
    FROZEN,
    LOGS_CLOSED,
    RECORDED,
    RELEASED,
    FORGOTTEN,
    SENDING,
    APPENDED,
    POINT_ADDED,
    STATE_WRITTEN,
    HASHES_WRITTEN,
    GIVEN_UP,
    COMPARING,
    JOINING,
    BASE_WRITING,
    BASE_FLUSHED,
    BASE_COMPLETED,
    RETIRING,
    SHUT_DOWN,
    REST_SHIPPED,
];

/// Called at each place.
#[async_trait]
pub trait Pauses: Send + Sync {
    /// Returns at once, or never.
    async fn pass(&self, place: &'static str);
}

/// The product's: never stops.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPauses;

#[async_trait]
impl Pauses for NoPauses {
    async fn pass(&self, _place: &'static str) {}
}
