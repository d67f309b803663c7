//! The writing side of a replica, for the engine that replicates the VM.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use crate::blocking::blocking;
use crate::durable::Durable;
use crate::error::{ErrorKind, Result, StoreError};
use crate::fault::Faults;
use crate::layout::Layout;
use crate::model::{
    DiskSpec, Generation, MaintenanceReport, Position, RecoveryPoint, ReplicaKey, ReplicaState,
    RetentionPolicy, StoreTarget,
};
use crate::reader::ReplicaView;
use crate::replica::Replica;
use crate::view::View;
use crate::{apply, cycle, initial, point, takeover};

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
pub struct ReplicaWriter {
    replica: Arc<Replica>,
    generation: Generation,
}

impl ReplicaWriter {
    /// Creates the replica or takes it over. The generation is made durable before anything else,
    /// so from here on older writers are refused by the store. `Fenced` when the store has a
    /// higher generation; the same generation may open again (a restarted engine). `Conflict` when
    /// the replica has other disks (id or size).
    pub async fn open(
        target: &StoreTarget,
        key: &ReplicaKey,
        generation: Generation,
        disks: &[DiskSpec],
    ) -> Result<ReplicaWriter> {
        Self::open_durable(Durable::default(), target, key, generation, disks).await
    }

    /// As [`ReplicaWriter::open`], with faults in every durable step: for crash tests.
    pub async fn open_with_faults(
        faults: Arc<dyn Faults>,
        target: &StoreTarget,
        key: &ReplicaKey,
        generation: Generation,
        disks: &[DiskSpec],
    ) -> Result<ReplicaWriter> {
        let durable = Durable::with_faults(faults);
        Self::open_durable(durable, target, key, generation, disks).await
    }

    async fn open_durable(
        durable: Durable,
        target: &StoreTarget,
        key: &ReplicaKey,
        generation: Generation,
        disks: &[DiskSpec],
    ) -> Result<ReplicaWriter> {
        let replica = Arc::new(Replica {
            durable,
            layout: Layout::new(target, key),
        });
        let disks = disks.to_vec();
        let opened = replica.clone();
        blocking(move || takeover::open(&opened, generation, &disks)).await?;
        Ok(ReplicaWriter {
            replica,
            generation,
        })
    }

    /// The generation of this writer.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// How far the replica is, from the store.
    pub async fn state(&self) -> Result<ReplicaState> {
        self.run(|replica, generation| replica.locked(generation, |_| replica.state()))
            .await
    }

    /// Initial replication: the disk has these bytes. Refused once base is complete.
    pub async fn base_write(&self, disk: Uuid, offset: u64, data: Bytes) -> Result<()> {
        self.run(move |replica, generation| {
            initial::base_write(replica, generation, disk, offset, &data)
        })
        .await
    }

    /// Initial replication that goes on after a cut: what base holds.
    pub async fn base_read(&self, disk: Uuid, offset: u64, length: usize) -> Result<Bytes> {
        self.run(move |replica, _| initial::base_read(replica, disk, offset, length))
            .await
            .map(Bytes::from)
    }

    /// Makes all base writes so far durable.
    pub async fn base_flush(&self) -> Result<()> {
        self.run(initial::base_flush).await
    }

    /// Ends initial replication: base is made durable and becomes position 0, `point` (whose
    /// position must be [`Position::BASE`]) the first recovery point. Repeatable.
    pub async fn complete_base(&self, point: RecoveryPoint) -> Result<()> {
        self.run(move |replica, generation| initial::complete_base(replica, generation, &point))
            .await
    }

    /// Starts the next cycle as a stream into the store; nothing is visible before
    /// [`CycleWriter::commit`]. `position` must be the head's next (or, to find out about an
    /// attempt with an unknown outcome, one that is in the journal).
    pub async fn begin_cycle(&self, position: Position, time_unix_ms: i64) -> Result<CycleWriter> {
        let builder = self
            .run(move |replica, generation| {
                cycle::begin(replica, generation, position, time_unix_ms)
            })
            .await?;
        Ok(CycleWriter {
            writer: self.clone(),
            position,
            builder: Some(builder),
        })
    }

    /// Appends a finished object built with `replication_log::journal::JournalBuilder` (header: this
    /// key's item id, this generation, this replica's disks). Atomic. The same content at the same
    /// position again is fine; other content there, or a gap, is `Conflict`.
    pub async fn append(&self, object: JournalObject) -> Result<Position> {
        self.run(move |replica, generation| cycle::append(replica, generation, &object))
            .await
    }

    /// Makes a position recoverable. The same point again is fine.
    pub async fn add_point(&self, point: RecoveryPoint) -> Result<()> {
        self.run(move |replica, generation| point::add(replica, generation, &point))
            .await
    }

    /// All points, oldest first.
    pub async fn points(&self) -> Result<Vec<RecoveryPoint>> {
        self.run(|replica, _| {
            let points = replica.points()?;
            Ok(points.into_iter().map(|(_, point)| point).collect())
        })
        .await
    }

    /// Retires points by the policy and moves base forward to the oldest that is kept or pinned.
    /// After any failure just call it again.
    pub async fn maintain(
        &self,
        now_unix_ms: i64,
        policy: RetentionPolicy,
    ) -> Result<MaintenanceReport> {
        self.run(move |replica, generation| {
            apply::maintain(replica, generation, now_unix_ms, policy)
        })
        .await
    }

    /// The disks as of the head position, for comparing with the source.
    pub async fn head_view(&self) -> Result<ReplicaView> {
        let view = self.run(|replica, _| View::open(replica, None)).await?;
        Ok(ReplicaView::new(view, None))
    }

    async fn run<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Replica, Generation) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (replica, generation) = (self.replica.clone(), self.generation);
        blocking(move || act(&replica, generation)).await
    }
}

/// A cycle on its way into the store. Dropped without commit, it never was.
pub struct CycleWriter {
    writer: ReplicaWriter,
    position: Position,
    builder: Option<cycle::Builder>,
}

impl std::fmt::Debug for CycleWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CycleWriter")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl CycleWriter {
    /// The disk has these bytes as of this cycle.
    pub async fn write(&mut self, disk: Uuid, offset: u64, data: Bytes) -> Result<()> {
        let mut builder = self.take()?;
        self.builder = Some(
            self.writer
                .run(move |replica, _| match builder.write(disk, offset, &data) {
                    Ok(()) => Ok(builder),
                    Err(error) => Err(cycle::building(replica, error)),
                })
                .await?,
        );
        Ok(())
    }

    /// The disk has zeroes there as of this cycle.
    pub async fn zero(&mut self, disk: Uuid, offset: u64, length: u64) -> Result<()> {
        let replica = self.writer.replica.clone();
        let builder = self.builder.as_mut().ok_or_else(interrupted)?;
        // Only the index in memory grows: nothing to wait for.
        let zeroed = builder.zero(disk, offset, length);
        zeroed.map_err(|error| cycle::building(&replica, error))
    }

    /// Makes the cycle durable and visible, atomically. After an `Unknown` outcome build the same
    /// cycle again: the same content at the same position is accepted.
    pub async fn commit(mut self) -> Result<Committed> {
        let builder = self.take()?;
        let position = self.position;
        let finished = self
            .writer
            .run(move |replica, generation| cycle::commit(replica, generation, position, builder))
            .await?;
        Ok(Committed {
            position,
            changed_bytes: finished.changed_bytes,
            sent_bytes: finished.object_bytes,
        })
    }

    fn take(&mut self) -> Result<cycle::Builder> {
        self.builder.take().ok_or_else(interrupted)
    }
}

fn interrupted() -> StoreError {
    StoreError::new(
        ErrorKind::Invalid,
        "this cycle failed or was interrupted in an earlier write: begin it again",
    )
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
    delete_with(Durable::default(), target, key, generation).await
}

/// As [`delete_replica`], with faults in every durable step: for crash tests.
pub async fn delete_replica_with_faults(
    faults: Arc<dyn Faults>,
    target: &StoreTarget,
    key: &ReplicaKey,
    generation: Generation,
) -> Result<()> {
    delete_with(Durable::with_faults(faults), target, key, generation).await
}

async fn delete_with(
    durable: Durable,
    target: &StoreTarget,
    key: &ReplicaKey,
    generation: Generation,
) -> Result<()> {
    let replica = Replica {
        durable,
        layout: Layout::new(target, key),
    };
    blocking(move || takeover::delete(&replica, generation)).await
}
