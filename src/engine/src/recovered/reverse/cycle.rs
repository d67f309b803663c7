//! One cycle of a recovered VM into its replica: one instant of all its disks, compared with the head, and a recovery point.
//!
//! ```text
//! freeze ─► compare ─► journal object(s) ─► recovery point ─► record durable ─► release ─► older tracking goes
//! ```
//!
//! Each arrow may be cut. Nothing is kept aside of the VM's own disks and the store: the next cycle freezes anew, since the
//! instant that the record names, and what the cut one brought into the store compares as equal. So a cycle that the store
//! took without an answer is no trouble either.
//!
//! A large difference goes in several objects, so that what is there when the store goes away stays there; only the last one
//! has a point, since only it is an instant of the VM.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use futures::TryStreamExt as _;
use hypervisor::{Changes, Consistency, DiskId, FrozenPoint, TrackingId};
use replica_store::{CyclePlan, DiskSpec, PointKind, Position, RecoveryPoint};
use replication_log::journal::CompressionLevel;
use uuid::Uuid;

use super::differ::{self, Behind};
use super::ground::{Errand, Ground};
use super::record::{Instant, ShipRecord};
use crate::recovered::RecoveryHost;
use crate::replicator::outgoing::{Effort, Gate, Outgoing};
use crate::replicator::pauses;
use crate::replicator::refine::Run;
use crate::replicator::throttle::{Class, Throttle};
use crate::task::blocking;

/// Room that a frozen cycle leaves; less than what a freeze asks for, so that one that begins has some way to go.
const ROOM_BYTES: u64 = 64 << 20;
/// How often it is looked for while disks are frozen.
const ROOM_POLL: Duration = Duration::from_secs(1);
/// Bytes of disk in one object.
const OBJECT_BYTES: u64 = 4 << 30;

/// Whether the guest can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guest {
    On,
    Off,
}

/// What a cycle did.
#[derive(Clone, Debug)]
pub(super) struct Round {
    /// As it is on disk now.
    pub record: ShipRecord,
    /// Bytes of disk that differed.
    pub changed_bytes: u64,
}

/// The limits of the item and of this host.
struct Limits<'a> {
    throttle: &'a dyn Throttle,
    item_id: &'a str,
    class: Class,
}

impl Gate for Limits<'_> {
    async fn pass(&self, bytes: u64, _changed_bytes: u64) {
        self.throttle.acquire(self.item_id, bytes, self.class).await;
    }
}

/// From where, and to where.
pub(super) struct Way<'a> {
    pub host: &'a RecoveryHost,
    pub errand: &'a Errand,
    pub ground: &'a Ground,
    pub effort: &'a Effort,
}

/// A cycle on its way.
struct Cycle<'a> {
    host: &'a RecoveryHost,
    ground: &'a Ground,
    effort: &'a Effort,
    limits: &'a Limits<'a>,
    disks: Vec<DiskSpec>,
    time_unix_ms: i64,
    /// Of the object that is being built, or else of the next one.
    position: Position,
    outgoing: Option<Outgoing<'a, Limits<'a>>>,
    /// In the object that is being built.
    waiting_bytes: u64,
    changed_bytes: u64,
    sent_bytes: u64,
}

/// The record of a VM under the errand's generation. What an earlier failback shipped says nothing of today's replica.
pub(super) async fn record(errand: &Errand) -> anyhow::Result<ShipRecord> {
    Ok(super::known(&errand.records, errand.vm.0)
        .await?
        .filter(|record| record.generation == errand.generation.0)
        .unwrap_or_else(|| ShipRecord::new(errand.vm.0, errand.generation.0)))
}

impl Way<'_> {
    /// Ships one instant.
    pub async fn ship(&self, guest: Guest) -> anyhow::Result<Round> {
        let limits = Limits {
            throttle: self.host.throttle.as_ref(),
            item_id: self.errand.key.item_id(),
            class: match guest {
                Guest::On => Class::Delta,
                Guest::Off => Class::Downtime,
            },
        };
        // Before the freeze: while a limit lets nothing through, old data of frozen disks would only pile up.
        limits.pass(0, 0).await;
        let record = record(self.errand).await?;
        let head = self.ground.head().await?;
        let known = record.shipped.clone();
        let known =
            known.filter(|known| known.replica == self.ground.replica && known.position <= head);
        let point = self.freeze(known.as_ref(), guest).await?;
        self.host.pauses.pass(pauses::FROZEN).await;
        let tracking = point.tracking;
        let shipped = tokio::select! {
            biased;
            // One that is off writes nothing, so no old data piles up.
            lack = self.room_runs_out(), if matches!(guest, Guest::On) => Err(lack),
            shipped = self.ship_frozen(&point, record, known, head, &limits) => shipped,
        };
        let released = self.host.hypervisor.release(point).await;
        let round = shipped?;
        released.context("release the frozen disks of the recovered VM")?;
        // Only what the record doesn't need any more.
        self.host
            .hypervisor
            .forget(self.errand.vm, tracking)
            .await
            .context("drop older tracking of the recovered VM")?;
        Ok(round)
    }

    /// Old data of the frozen disks is kept on this host as long as the guest writes; its volume must not fill up.
    async fn room_runs_out(&self) -> anyhow::Error {
        loop {
            tokio::time::sleep(ROOM_POLL).await;
            // A host that does not answer now says nothing of its room.
            if let Ok(facts) = self.host.hypervisor.host().await
                && facts.free_bytes < ROOM_BYTES
            {
                return anyhow!(
                    "only {} MiB are free where the host keeps old data of frozen disks, and {} MiB must stay free: the disks are not frozen any more, what is in the store stays there, and it goes on when there is room",
                    facts.free_bytes >> 20,
                    ROOM_BYTES >> 20
                );
            }
        }
    }

    async fn freeze(&self, known: Option<&Instant>, guest: Guest) -> anyhow::Result<FrozenPoint> {
        let (hypervisor, vm) = (&self.host.hypervisor, self.errand.vm);
        let generation = self.errand.generation.0;
        let mut ids = hypervisor
            .tracking(vm)
            .await
            .context("ask what is tracked of the recovered VM")?;
        if ids.iter().any(|id| id.generation > generation) {
            // Of a generation that was never in force; its ids would be in the way of ours.
            hypervisor
                .forget_all(vm)
                .await
                .context("drop tracking of the recovered VM")?;
            ids.clear();
        }
        let since = known.map(|known| known.tracking);
        let newest = ids.iter().copied().chain(since).max();
        let number = newest
            .filter(|newest| newest.generation == generation)
            .map_or(1, |newest| newest.number + 1);
        let next = TrackingId { generation, number };
        let disks: Vec<DiskId> = self.ground.disks.iter().map(|disk| disk.own).collect();
        let frozen = match guest {
            Guest::On => hypervisor.freeze(vm, &disks, since, next, Consistency::Crash),
            Guest::Off => hypervisor.freeze_off(vm, &disks, since, next),
        };
        frozen.await.context("freeze the recovered VM's disks")
    }

    async fn ship_frozen(
        &self,
        point: &FrozenPoint,
        mut record: ShipRecord,
        known: Option<Instant>,
        head: Position,
        limits: &Limits<'_>,
    ) -> anyhow::Result<Round> {
        let (ground, errand) = (self.ground, self.errand);
        let view = ground
            .writer
            .last_view()
            .await
            .context("read the replica's head")?;
        if view.position() != head {
            bail!("the replica has grown while its head was read: somebody else writes to it");
        }
        let mut disks = point.disks.iter();
        let behind: Behind = if disks.all(|disk| matches!(disk.changes, Changes::Since(_))) {
            None
        } else {
            tracing::info!(vm = %errand.vm, name = errand.name, "changes of a recovered VM are not tracked since what the store has; its writes are compared with the replica");
            view.changed_behind(&ground.origin)
                .await
                .context("ask what the replica changed behind the recovered VM's point")?
        };
        let mut cycle = Cycle {
            host: self.host,
            ground,
            effort: self.effort,
            limits,
            disks: Vec::new(),
            time_unix_ms: instant(ground, point, known.as_ref()).await?,
            position: head.next(),
            outgoing: None,
            waiting_bytes: 0,
            changed_bytes: 0,
            sent_bytes: 0,
        };
        for (disk, frozen) in ground.disks.iter().zip(&point.disks) {
            let head = view.disks().iter().find(|known| known.id == disk.source);
            cycle.disks.push(DiskSpec {
                id: disk.source,
                // The source's disk may have grown behind the point; a cycle can't take that back, so it is zero there.
                size_bytes: head
                    .map_or(0, |head| head.size_bytes)
                    .max(frozen.size_bytes),
                name: disk.name.clone(),
            });
        }
        for (spec, frozen) in cycle.disks.clone().iter().zip(&point.disks) {
            let hypervisor = self.host.hypervisor.as_ref();
            let candidates = differ::candidates(hypervisor, point, frozen, spec, &behind).await?;
            let conversion = errand.conversion.as_deref();
            let pieces = differ::differing(frozen, spec.id, &view, &candidates, conversion);
            let mut pieces = Box::pin(pieces);
            while let Some(runs) = pieces.try_next().await? {
                cycle.add(spec.id, runs).await?;
            }
        }
        // An instant that is in the store already needs no other position. The head must be one of ours, though: the source
        // takes nothing before it is.
        let is_new =
            cycle.changed_bytes > 0 || known.as_ref().is_none_or(|known| known.position != head);
        let (changed_bytes, time_unix_ms) = (cycle.changed_bytes, cycle.time_unix_ms);
        let (position, point_unix_ms) = if is_new {
            let (position, sent_bytes) = cycle.end().await?;
            record.sent_bytes += sent_bytes;
            (position, time_unix_ms)
        } else {
            (head, known.map_or(0, |known| known.point_unix_ms))
        };
        record.shipped = Some(Instant {
            replica: ground.replica,
            position,
            tracking: point.tracking,
            point_unix_ms,
        });
        let (records, kept) = (errand.records.clone(), record.clone());
        blocking(move || kept.write(&records))
            .await
            .context("keep how far the recovered VM is shipped")?;
        self.host.pauses.pass(pauses::STATE_WRITTEN).await;
        tracing::info!(vm = %errand.vm, name = errand.name, position = position.0, changed_bytes, is_new, "a cycle of a recovered VM is shipped");
        Ok(Round {
            record,
            changed_bytes,
        })
    }
}

/// The time of the cycle. Points are ordered by it, and this host's clock may be behind the source's.
async fn instant(
    ground: &Ground,
    point: &FrozenPoint,
    known: Option<&Instant>,
) -> anyhow::Result<i64> {
    let newest = match known {
        Some(known) => known.point_unix_ms,
        None => ground
            .writer
            .points()
            .await
            .context("look at the recovery points")?
            .last()
            .map_or(0, |point| point.time_unix_ms),
    };
    Ok(point.taken_unix_ms.max(newest.saturating_add(1)))
}

impl Cycle<'_> {
    async fn add(&mut self, disk: Uuid, runs: Vec<Run>) -> anyhow::Result<()> {
        if runs.is_empty() {
            return Ok(());
        }
        if self.waiting_bytes >= OBJECT_BYTES {
            self.commit().await?;
        }
        let bytes: u64 = runs.iter().map(Run::length).sum();
        self.waiting_bytes += bytes;
        self.changed_bytes += bytes;
        let mut outgoing = self.take().await?;
        let mut data = Vec::new();
        for run in runs {
            match run {
                Run::Data(offset, bytes) => data.push((offset, bytes)),
                Run::Zeroes(offset, length) => outgoing.zero(disk, offset, length).await?,
            }
        }
        outgoing.pack(disk, data).await?;
        outgoing.send().await?;
        self.outgoing = Some(outgoing);
        self.host.pauses.pass(pauses::SENDING).await;
        Ok(())
    }

    /// Makes what is packed visible.
    async fn commit(&mut self) -> anyhow::Result<()> {
        let outgoing = self.take().await?;
        let committed = outgoing.commit().await?;
        self.sent_bytes += committed.sent_bytes;
        self.position = committed.position.next();
        self.waiting_bytes = 0;
        self.host.pauses.pass(pauses::APPENDED).await;
        Ok(())
    }

    /// Ends the cycle with its recovery point; says where it is and what was sent.
    async fn end(mut self) -> anyhow::Result<(Position, u64)> {
        self.commit().await?;
        let position = Position(self.position.0 - 1);
        let point = RecoveryPoint {
            id: Uuid::new_v4(),
            time_unix_ms: self.time_unix_ms,
            kind: PointKind::Crash,
            position,
            // Of the source's VM, so that whoever recovers from here, or goes back, knows what it was made of.
            vm_config: self.ground.origin.vm_config.clone(),
            changed_bytes: self.changed_bytes,
            sent_bytes: self.sent_bytes,
            group_point_id: None,
        };
        let added = self.ground.writer.add_point(point).await;
        added.with_context(|| format!("make position {} recoverable", position.0))?;
        self.host.pauses.pass(pauses::POINT_ADDED).await;
        Ok((position, self.sent_bytes))
    }
}

impl<'a> Cycle<'a> {
    /// The object that is being built; begun when there is none.
    async fn take(&mut self) -> anyhow::Result<Outgoing<'a, Limits<'a>>> {
        if let Some(outgoing) = self.outgoing.take() {
            return Ok(outgoing);
        }
        let plan = CyclePlan {
            position: self.position,
            time_unix_ms: self.time_unix_ms,
            disks: Some(self.disks.clone()),
            compression: CompressionLevel::default(),
        };
        let begun = Outgoing::begin(self.limits, self.effort, &self.ground.writer, plan).await;
        begun.with_context(|| format!("begin cycle {} of the replica", self.position.0))
    }
}
