//! The writing side of a replica, for the engine that replicates the VM.

use bytes::Bytes;
use std::path::PathBuf;
use uuid::Uuid;

use crate::error::{ErrorKind, Result, StoreError};
use crate::model::{
    DiskSpec, Generation, MaintenanceReport, Position, RecoveryPoint, ReplicaKey, ReplicaState,
    RetentionPolicy, StoreTarget,
};
use crate::reader::ReplicaView;

fn stub<T>() -> Result<T> {
    Err(StoreError::new(ErrorKind::Io, "not built yet"))
}

/// A finished journal object that is to be appended.
#[derive(Clone, Debug)]
pub enum JournalObject {
    /// In memory.
    Bytes(Bytes),
    /// In a file, which stays where it is.
    File(PathBuf),
}

/// Writes one replica under one fencing generation. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ReplicaWriter {}

impl ReplicaWriter {
    /// Creates the replica or takes it over. The generation is made durable before anything else,
    /// so from here on older writers are refused by the store. `Fenced` when the store has a
    /// higher generation; the same generation may open again (a restarted engine).
    pub async fn open(
        target: &StoreTarget,
        key: &ReplicaKey,
        generation: Generation,
        disks: &[DiskSpec],
    ) -> Result<ReplicaWriter> {
        let _ = (target, key, generation, disks);
        stub()
    }

    /// How far the replica is, from the store.
    pub async fn state(&self) -> Result<ReplicaState> {
        stub()
    }

    /// Initial replication: the disk has these bytes. Refused once base is complete.
    pub async fn base_write(&self, disk: Uuid, offset: u64, data: Bytes) -> Result<()> {
        let _ = (disk, offset, data);
        stub()
    }

    /// Initial replication that goes on after a cut: what base holds.
    pub async fn base_read(&self, disk: Uuid, offset: u64, length: usize) -> Result<Bytes> {
        let _ = (disk, offset, length);
        stub()
    }

    /// Makes all base writes so far durable.
    pub async fn base_flush(&self) -> Result<()> {
        stub()
    }

    /// Ends initial replication: base is made durable and becomes position 0, `point` (whose
    /// position must be [`Position::BASE`]) the first recovery point. Repeatable.
    pub async fn complete_base(&self, point: RecoveryPoint) -> Result<()> {
        let _ = point;
        stub()
    }

    /// Starts the next cycle as a stream into the store; nothing is visible before
    /// [`CycleWriter::commit`]. `position` must be the head's next.
    pub async fn begin_cycle(&self, position: Position, time_unix_ms: i64) -> Result<CycleWriter> {
        let _ = (position, time_unix_ms);
        stub()
    }

    /// Appends a finished object built with `replication_log::journal::JournalBuilder` (header: this
    /// key's item id, this generation, this replica's disks). Atomic. The same content at the same
    /// position again is fine; other content there, or a gap, is `Conflict`.
    pub async fn append(&self, object: JournalObject) -> Result<Position> {
        let _ = object;
        stub()
    }

    /// Makes a position recoverable. The same point again is fine.
    pub async fn add_point(&self, point: RecoveryPoint) -> Result<()> {
        let _ = point;
        stub()
    }

    /// All points, oldest first.
    pub async fn points(&self) -> Result<Vec<RecoveryPoint>> {
        stub()
    }

    /// Retires points by the policy and moves base forward to the oldest that is kept or pinned.
    pub async fn maintain(
        &self,
        now_unix_ms: i64,
        policy: RetentionPolicy,
    ) -> Result<MaintenanceReport> {
        let _ = (now_unix_ms, policy);
        stub()
    }

    /// The disks as of the head position, for comparing with the source.
    pub async fn head_view(&self) -> Result<ReplicaView> {
        stub()
    }
}

/// A cycle on its way into the store. Dropped without commit, it never was.
#[derive(Debug)]
pub struct CycleWriter {}

impl CycleWriter {
    /// The disk has these bytes as of this cycle.
    pub async fn write(&mut self, disk: Uuid, offset: u64, data: Bytes) -> Result<()> {
        let _ = (disk, offset, data);
        stub()
    }

    /// The disk has zeroes there as of this cycle.
    pub async fn zero(&mut self, disk: Uuid, offset: u64, length: u64) -> Result<()> {
        let _ = (disk, offset, length);
        stub()
    }

    /// Makes the cycle durable and visible, atomically. After an `Unknown` outcome build the same
    /// cycle again: the same content at the same position is accepted.
    pub async fn commit(self) -> Result<Committed> {
        stub()
    }
}

/// A cycle that is in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its position.
    pub position: Position,
    /// Bytes of disk that it changes, zeroes included.
    pub changed_bytes: u64,
    /// Bytes that went into the store.
    pub sent_bytes: u64,
}

/// Removes a replica and everything of it. `Fenced` when the store has a higher generation,
/// `Pinned` while a pin holds it. A replica that is not there is fine.
pub async fn delete_replica(
    target: &StoreTarget,
    key: &ReplicaKey,
    generation: Generation,
) -> Result<()> {
    let _ = (target, key, generation);
    stub()
}
