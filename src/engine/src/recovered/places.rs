//! Named places on a recovery side's way where a test may stop the world, as `kill -9` would; see
//! [`crate::replicator::pauses`].

/// An order is on disk, nothing of it is done.
pub const ORDER_TAKEN: &str = "order-taken";
/// The store refuses the source's engine.
pub const FENCE_RAISED: &str = "fence-raised";
/// It is noted which VM is made; nothing of it is there.
pub const NOTED: &str = "recovery-noted";
/// How a disk is converted to generation 1 is on disk, which is not noted. Only of VMs that are converted.
pub const CONVERSION_KEPT: &str = "recovery-conversion-kept";
/// The point is held in the store.
pub const POINT_HELD: &str = "recovery-point-held";
/// The VM is made and its disks are served.
pub const MADE: &str = "recovered-made";
/// It was started, which is not noted.
pub const STARTED: &str = "recovered-started";
/// It was stopped.
pub const STOPPED: &str = "recovered-stopped";
/// It was removed.
pub const REMOVED: &str = "recovered-removed";
/// It has its own disks, which is not noted.
pub const INDEPENDENT: &str = "recovered-independent";
/// The order to leave it is carried out, which is noted; its point is still held.
pub const DONE: &str = "recovery-done";
/// Its point is let go; the record is there.
pub const POINT_LET_GO: &str = "recovery-point-let-go";

/// All that a VM of a failback wrote is in the replica, which is not noted.
pub const REST_SHIPPED: &str = "recovered-rest-shipped";

/// All of a failover.
pub const PLACES: [&str; 11] = [
    ORDER_TAKEN,
    FENCE_RAISED,
    NOTED,
    POINT_HELD,
    MADE,
    STARTED,
    STOPPED,
    REMOVED,
    INDEPENDENT,
    DONE,
    POINT_LET_GO,
];
