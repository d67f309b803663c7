//! The reading side of a replica, for recovery, drills, proof and failback.

use bytes::Bytes;
use uuid::Uuid;

use crate::error::{ErrorKind, Result, StoreError};
use crate::model::{
    DiskSpec, Pin, PointSelector, Position, RecoveryPoint, ReplicaKey, StoreTarget,
};

fn stub<T>() -> Result<T> {
    Err(StoreError::new(ErrorKind::Io, "not built yet"))
}

/// Reads one replica; needs no generation. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ReplicaReader {}

impl ReplicaReader {
    /// Opens a replica; `NotFound` when there is none.
    pub async fn open(target: &StoreTarget, key: &ReplicaKey) -> Result<ReplicaReader> {
        let _ = (target, key);
        stub()
    }

    /// All points, oldest first; none before initial replication has finished.
    pub async fn points(&self) -> Result<Vec<RecoveryPoint>> {
        stub()
    }

    /// The disks as of a point. Not held: when the point is retired, reads say `Expired`.
    pub async fn view(&self, point: PointSelector) -> Result<ReplicaView> {
        let _ = point;
        stub()
    }

    /// Holds a point in the store under the owner's name, also over restarts, until
    /// [`ReplicaReader::unpin`]. An owner holds one point; another replaces it.
    pub async fn pin(&self, point: PointSelector, owner: &str) -> Result<Pin> {
        let _ = (point, owner);
        stub()
    }

    /// [`ReplicaReader::pin`], then the view of it: stays right while the applier runs.
    pub async fn pinned_view(&self, point: PointSelector, owner: &str) -> Result<ReplicaView> {
        let _ = (point, owner);
        stub()
    }

    /// Lets go of what the owner holds; fine when it holds nothing.
    pub async fn unpin(&self, owner: &str) -> Result<()> {
        let _ = owner;
        stub()
    }

    /// All pins.
    pub async fn pins(&self) -> Result<Vec<Pin>> {
        stub()
    }
}

/// All disks as of one journal position. Cheap to clone, readable from several tasks at once.
#[derive(Clone, Debug)]
pub struct ReplicaView {
    disks: Vec<DiskSpec>,
    position: Position,
    point: Option<RecoveryPoint>,
}

impl ReplicaView {
    /// The disks.
    pub fn disks(&self) -> &[DiskSpec] {
        &self.disks
    }

    /// The position that is shown.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The point that is shown; none for a head view.
    pub fn point(&self) -> Option<&RecoveryPoint> {
        self.point.as_ref()
    }

    /// Configuration of the VM at the point.
    pub fn vm_config(&self) -> Option<&serde_json::Value> {
        self.point.as_ref().map(|point| &point.vm_config)
    }

    /// Reads from a disk; every journal frame is verified. `Expired` once the point is retired.
    pub async fn read(&self, disk: Uuid, offset: u64, length: usize) -> Result<Bytes> {
        let _ = (disk, offset, length);
        stub()
    }
}
