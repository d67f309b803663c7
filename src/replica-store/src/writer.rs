//! The writing side of a replica, for the engine that replicates the VM.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use replication_log::KeyRing;
use replication_log::journal::{
    CompressionController, CompressionLevel, Finished, JournalDisk, JournalError,
};
use uuid::Uuid;

use crate::blocking::blocking;
use crate::error::{ErrorKind, Result, StoreError};
use crate::fault::Faults;
use crate::model::{
    DiskSpec, DiskStart, Generation, MaintenanceReport, Position, RecoveryPoint, ReplicaKey,
    ReplicaState, RetentionPolicy, StoreTarget,
};
use crate::options::{self, WriterOptions};
use crate::reader::ReplicaView;
use crate::replica::Replica;
use crate::seed::{self, Seeded};
use crate::takeover::Disks;
use crate::under_way::{BaseWrites, UnderWay};
use crate::verify::{self, Verification, VerifyRequest};
use crate::view::{Show, View};
use crate::{apply, cycle, initial, joining, points, removal, takeover};

/// A finished journal object that is to be appended.
#[derive(Clone, Debug)]
pub enum JournalObject {
    /// In memory.
    Bytes(Bytes),
    /// In a file, which stays where it is.
    File(PathBuf),
}

/// Writes one replica under one fencing generation. Cheap to clone; clones share what they know of the
/// store, so an engine opens one writer for a replica.
#[derive(Clone, Debug)]
pub struct ReplicaWriter {
    replica: Arc<Replica>,
    generation: Generation,
    immutability_hours: Arc<AtomicU32>,
    base_writes: BaseWrites,
}

impl ReplicaWriter {
    /// Creates the replica or takes it over. The generation is made durable before anything else,
    /// so from here on older writers are refused by the store. `Fenced` when the store has a
    /// higher generation, or was told to remove the replica under this or a higher one; the same
    /// generation may open again (a restarted engine). `Conflict` when the newest cycle has other disks
    /// (id or size).
    pub async fn open(
        target: &StoreTarget,
        key: &ReplicaKey,
        generation: Generation,
        disks: &[DiskSpec],
    ) -> Result<ReplicaWriter> {
        Self::open_with(WriterOptions::default(), target, key, generation, disks).await
    }

    /// As [`ReplicaWriter::open`], with faults in every durable step: for crash tests.
    pub async fn open_with_faults(
        faults: Arc<dyn Faults>,
        target: &StoreTarget,
        key: &ReplicaKey,
        generation: Generation,
        disks: &[DiskSpec],
    ) -> Result<ReplicaWriter> {
        let options = WriterOptions {
            faults: Some(faults),
            ..WriterOptions::default()
        };
        Self::open_with(options, target, key, generation, disks).await
    }

    /// As [`ReplicaWriter::open`], with options.
    pub async fn open_with(
        options: WriterOptions,
        target: &StoreTarget,
        key: &ReplicaKey,
        generation: Generation,
        disks: &[DiskSpec],
    ) -> Result<ReplicaWriter> {
        let hours = options.immutability_hours;
        let base_writes = options.base_writes.clone();
        let rule = if options.any_disks {
            Disks::Any
        } else {
            Disks::Exact
        };
        let replica = options::replica(target, key, options)?;
        let disks = disks.to_vec();
        let opened = replica.clone();
        blocking(move || {
            takeover::open(&opened, generation, &disks, rule)
                .map_err(|error| opened.passed_by(generation, error))
        })
        .await?;
        Ok(ReplicaWriter {
            replica,
            generation,
            immutability_hours: Arc::new(AtomicU32::new(hours)),
            base_writes,
        })
    }

    /// The generation of this writer.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// From the next cycle on uses these keys: call it when the vault's keys changed.
    pub fn set_keys(&self, keys: KeyRing) {
        let mut slot = self
            .replica
            .keys
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *slot = Arc::new(keys);
    }

    /// Points that are made from here on can't be deleted for so long: by no round of maintenance,
    /// whatever its policy then says, and by no [`delete_replica`].
    pub fn set_immutability_hours(&self, hours: u32) {
        self.immutability_hours.store(hours, Ordering::Relaxed);
    }

    /// Names this replica: one that was deleted and made anew is another.
    pub async fn replica_id(&self) -> Result<Uuid> {
        self.run(|replica, _| Ok(replica.manifest()?.value.id))
            .await
    }

    /// The disks as of the newest cycle.
    pub async fn disks(&self) -> Result<Vec<DiskSpec>> {
        self.run(|replica, _| replica.head_disks()).await
    }

    /// How far the replica is, from the store.
    pub async fn state(&self) -> Result<ReplicaState> {
        self.run(|replica, generation| replica.locked(generation, |_| replica.state()))
            .await
    }

    /// Initial replication, or a disk that joins: the disk has these bytes. Refused once its base is
    /// complete. Several may be in flight; large pieces (1 MiB and more) are fast. `Overtaken` when somebody has
    /// opened the replica under the same generation since: open it again. A dropped call may still be carried out
    /// (see [`WriterOptions::base_writes`]).
    pub async fn base_write(&self, disk: Uuid, offset: u64, data: Bytes) -> Result<()> {
        let under_way = self.begin_base_write();
        self.run(move |replica, generation| {
            let _under_way = under_way;
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
        let hours = self.immutability_hours.load(Ordering::Relaxed);
        self.run(move |replica, generation| {
            initial::complete_base(replica, generation, hours, &point)
        })
        .await
    }

    /// A disk is to join a complete replica: gives it a base, which [`ReplicaWriter::base_write`] fills
    /// while cycles of the other disks go on. When it holds the disk as of some freeze, call
    /// [`ReplicaWriter::complete_disk`]; then a cycle may name the disk ([`CyclePlan::disks`]), together
    /// with what changed on it since that freeze. From that position on points have it, older ones do
    /// not. Repeatable; begins anew when the size is another than before.
    pub async fn begin_disk(&self, disk: DiskSpec) -> Result<DiskStart> {
        self.run(move |replica, generation| joining::begin(replica, generation, &disk))
            .await
    }

    /// Makes the base of a joining disk durable and ready for a cycle. Repeatable.
    pub async fn complete_disk(&self, disk: Uuid) -> Result<()> {
        self.run(move |replica, generation| joining::complete(replica, generation, disk))
            .await
    }

    /// Forgets a disk that was to join; fine when there is none. `Conflict` when a cycle has it.
    pub async fn abandon_disk(&self, disk: Uuid) -> Result<()> {
        self.run(move |replica, generation| joining::abandon(replica, generation, disk))
            .await
    }

    /// Starts the next cycle, of the disks of the newest one, as a stream into the store; nothing is
    /// visible before [`CycleWriter::commit`]. `position` must be the head's next (or, to find out about
    /// an attempt with an unknown outcome, one that is in the journal).
    pub async fn begin_cycle(&self, position: Position, time_unix_ms: i64) -> Result<CycleWriter> {
        self.begin_cycle_with(CyclePlan {
            position,
            time_unix_ms,
            disks: None,
            compression: CompressionLevel::default(),
        })
        .await
    }

    /// As [`ReplicaWriter::begin_cycle`], of these disks: one that is larger has grown, one that is
    /// missing is excluded, one that is new joins (see [`ReplicaWriter::begin_disk`]). All of it holds
    /// from this position on; older points stay as they were. What a grown disk has behind its former
    /// end is zero where no cycle writes.
    pub async fn begin_cycle_with(&self, plan: CyclePlan) -> Result<CycleWriter> {
        let position = plan.position;
        let (builder, disks) = self
            .run(move |replica, generation| cycle::begin(replica, generation, &plan))
            .await?;
        Ok(CycleWriter {
            writer: self.clone(),
            position,
            disks,
            stage: Stage::Open(Box::new(builder)),
        })
    }

    /// Appends a finished object built with `replication_log::journal::JournalBuilder` (header: this
    /// key's item id, this generation, the VM's disks as in [`ReplicaWriter::begin_cycle_with`]).
    /// Atomic. The same content at the same position again is fine; other content there, or a gap, is
    /// `Conflict`.
    pub async fn append(&self, object: JournalObject) -> Result<Position> {
        self.run(move |replica, generation| cycle::append(replica, generation, &object))
            .await
    }

    /// Makes a position recoverable. The same point again is fine.
    pub async fn add_point(&self, point: RecoveryPoint) -> Result<()> {
        let hours = self.immutability_hours.load(Ordering::Relaxed);
        self.run(move |replica, generation| points::add(replica, generation, hours, &point))
            .await
    }

    /// All points, oldest first.
    pub async fn points(&self) -> Result<Vec<RecoveryPoint>> {
        self.run(|replica, _| replica.points()).await
    }

    /// Retires points by the policy and moves base forward to the oldest that is kept or pinned.
    /// After any failure just call it again. What is damaged is reported, not an error.
    pub async fn maintain(
        &self,
        now_unix_ms: i64,
        policy: RetentionPolicy,
    ) -> Result<MaintenanceReport> {
        self.run(move |replica, generation| {
            apply::maintain(replica, generation, now_unix_ms, &policy)
        })
        .await
    }

    /// Reads again and checks what points need, as far as the budget goes; goes on where the last call
    /// stopped. Findings are in the result (and in the store): send their ranges with the next cycle.
    pub async fn verify(&self, request: VerifyRequest) -> Result<Verification> {
        let (replica, generation) = (self.replica.clone(), self.generation);
        blocking(move || verify::verify(&replica, generation, &request)).await
    }

    /// Initial replication, or a disk that joins: fills base from a disk copy (raw, VHD, VHDX) at the
    /// store's side: a file of this machine, or, of a replica in Azure, a blob of its container. Base stays partial: compare it with the source and write what differs. Resumable
    /// by calling it again. `progress` hears of bytes that were gone through.
    pub async fn seed_base(
        &self,
        disk: Uuid,
        source: PathBuf,
        progress: impl Fn(u64) + Send + 'static,
    ) -> Result<Seeded> {
        let under_way = self.begin_base_write();
        self.run(move |replica, generation| {
            let _under_way = under_way;
            seed::seed(replica, generation, disk, &source, &progress)
        })
        .await
    }

    /// The disks as of the head position, for comparing with the source.
    pub async fn head_view(&self) -> Result<ReplicaView> {
        self.view(Show::Head).await
    }

    /// As [`ReplicaWriter::head_view`], with every disk that the store knows: one that was excluded is
    /// shown as it was in its last cycle.
    pub async fn last_view(&self) -> Result<ReplicaView> {
        self.view(Show::Last).await
    }

    async fn view(&self, show: Show) -> Result<ReplicaView> {
        let replica = self.replica.clone();
        let view = blocking(move || View::open(&replica, show)).await?;
        Ok(ReplicaView::new(view, None))
    }

    fn begin_base_write(&self) -> UnderWay {
        self.base_writes.begin(self.replica.medium.compares_fence())
    }

    async fn run<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Replica, Generation) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (replica, generation) = (self.replica.clone(), self.generation);
        blocking(move || {
            act(&replica, generation).map_err(|error| replica.passed_by(generation, error))
        })
        .await
    }
}

/// What a cycle is to be.
#[derive(Clone, Debug)]
pub struct CyclePlan {
    /// The head's next.
    pub position: Position,
    /// The instant of the freeze.
    pub time_unix_ms: i64,
    /// All disks of the VM in this cycle, changed or not; `None`: those of the newest cycle.
    pub disks: Option<Vec<DiskSpec>>,
    /// How hard frames are compressed.
    pub compression: CompressionLevel,
}

/// A cycle on its way into the store. Dropped without commit, it never was.
///
/// Whoever must ask before bytes go out uses [`CycleWriter::pack`], asks for [`CycleWriter::unsent_bytes`] and then
/// calls [`CycleWriter::send`], and in the end [`CycleWriter::seal`] before [`CycleWriter::commit`].
pub struct CycleWriter {
    writer: ReplicaWriter,
    position: Position,
    disks: Vec<JournalDisk>,
    stage: Stage,
}

enum Stage {
    Open(Box<cycle::Builder>),
    /// Index and all are packed.
    Sealed(cycle::Outbox, Finished),
    /// A step failed, or was dropped half way.
    Interrupted,
}

impl std::fmt::Debug for CycleWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CycleWriter")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl CycleWriter {
    /// Measures how long compression takes, by a clock that only runs forward, for [`CycleWriter::adapt`].
    pub fn measured(mut self, now: fn() -> Duration) -> Self {
        if let Stage::Open(builder) = self.stage {
            self.stage = Stage::Open(Box::new(builder.measured(now)));
        }
        self
    }

    /// From the next frame on, compresses this hard.
    pub fn set_compression(&mut self, level: CompressionLevel) {
        if let Stage::Open(builder) = &mut self.stage {
            builder.set_compression(level);
        }
    }

    /// Tells the controller what was compressed since the last call, and from the next frame on takes the level that it
    /// wants. It counts time only when the cycle is [`CycleWriter::measured`].
    pub fn adapt(&mut self, controller: &mut CompressionController) {
        if let Stage::Open(builder) = &mut self.stage {
            builder.adapt(controller);
        }
    }

    /// The disk has these bytes as of this cycle. They stream into the store.
    pub async fn write(&mut self, disk: Uuid, offset: u64, data: Bytes) -> Result<()> {
        self.change(move |replica, builder| {
            packed(replica, builder.write(disk, offset, &data))?;
            builder.get_mut().send(replica)
        })
        .await
    }

    /// As several [`CycleWriter::write`]s in this order, of (offset, bytes), but nothing goes to the store: it is held in
    /// memory until [`CycleWriter::send`] or [`CycleWriter::commit`].
    pub async fn pack(&mut self, disk: Uuid, data: Vec<(u64, Bytes)>) -> Result<()> {
        self.change(move |replica, builder| {
            let mut all = data.iter();
            let done = all.try_for_each(|(offset, data)| builder.write(disk, *offset, data));
            packed(replica, done)
        })
        .await
    }

    /// Bytes that are packed, compressed and encrypted, and were not sent yet.
    pub fn unsent_bytes(&self) -> u64 {
        match &self.stage {
            Stage::Open(builder) => builder.get_ref().unsent(),
            Stage::Sealed(outbox, _) => outbox.unsent(),
            Stage::Interrupted => 0,
        }
    }

    /// Sends what is packed.
    pub async fn send(&mut self) -> Result<()> {
        self.change(|replica, builder| builder.get_mut().send(replica))
            .await
    }

    /// The disk has zeroes there as of this cycle.
    pub async fn zero(&mut self, disk: Uuid, offset: u64, length: u64) -> Result<()> {
        let replica = self.writer.replica.clone();
        let Stage::Open(builder) = &mut self.stage else {
            return Err(interrupted());
        };
        // Only the index in memory grows: nothing to wait for.
        packed(&replica, builder.zero(disk, offset, length))
    }

    /// Nothing more is coming: packs the rest, so that [`CycleWriter::unsent_bytes`] is all that is still to be sent.
    /// [`CycleWriter::commit`] does it if nobody else has.
    pub async fn seal(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.stage, Stage::Interrupted) {
            Stage::Open(builder) => {
                let (outbox, finished) = self
                    .writer
                    .run(move |replica, _| packed(replica, builder.finish()))
                    .await?;
                self.stage = Stage::Sealed(outbox, finished);
                Ok(())
            }
            sealed @ Stage::Sealed(..) => {
                self.stage = sealed;
                Ok(())
            }
            Stage::Interrupted => Err(interrupted()),
        }
    }

    /// Makes the cycle durable and visible, atomically. After an `Unknown` outcome build the same
    /// cycle again: the same content at the same position is accepted.
    pub async fn commit(mut self) -> Result<Committed> {
        self.seal().await?;
        let Stage::Sealed(outbox, finished) = self.stage else {
            return Err(interrupted());
        };
        let (position, disks) = (self.position, self.disks);
        let finished = self
            .writer
            .run(move |replica, generation| {
                cycle::commit(replica, generation, position, disks, (outbox, finished))
            })
            .await?;
        Ok(Committed {
            position,
            changed_bytes: finished.changed_bytes,
            sent_bytes: finished.object_bytes,
        })
    }

    /// Changes what is being built; a failure ends it.
    async fn change(
        &mut self,
        change: impl FnOnce(&Replica, &mut cycle::Builder) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let Stage::Open(mut builder) = std::mem::replace(&mut self.stage, Stage::Interrupted)
        else {
            return Err(interrupted());
        };
        let changed = self.writer.run(move |replica, _| {
            change(replica, &mut builder)?;
            Ok(builder)
        });
        self.stage = Stage::Open(changed.await?);
        Ok(())
    }
}

fn packed<T>(replica: &Replica, done: std::result::Result<T, JournalError>) -> Result<T> {
    done.map_err(|error| cycle::building(replica, error))
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

/// Removes a replica and everything of it but a tombstone of some bytes, so that no engine of this or an
/// older generation can make it anew. `Fenced` when the store has a higher generation, `Pinned` while
/// a pin holds it, `Immutable` while a point is younger than was promised for it. A replica that is
/// not there is fine.
pub async fn delete_replica(
    target: &StoreTarget,
    key: &ReplicaKey,
    generation: Generation,
) -> Result<()> {
    delete_with(None, target, key, generation, None).await
}

/// As [`delete_replica`], with faults in every durable step: for crash tests.
pub async fn delete_replica_with_faults(
    faults: Arc<dyn Faults>,
    target: &StoreTarget,
    key: &ReplicaKey,
    generation: Generation,
) -> Result<()> {
    delete_with(Some(faults), target, key, generation, None).await
}

/// As [`delete_replica`], as if it were another time: for tests and simulations.
pub async fn delete_replica_at(
    target: &StoreTarget,
    key: &ReplicaKey,
    generation: Generation,
    now_unix_ms: i64,
) -> Result<()> {
    delete_with(None, target, key, generation, Some(now_unix_ms)).await
}

async fn delete_with(
    faults: Option<Arc<dyn Faults>>,
    target: &StoreTarget,
    key: &ReplicaKey,
    generation: Generation,
    now_unix_ms: Option<i64>,
) -> Result<()> {
    let options = WriterOptions {
        faults,
        ..WriterOptions::default()
    };
    let replica = options::replica(target, key, options)?;
    blocking(move || removal::delete(&replica, generation, now_unix_ms)).await
}
