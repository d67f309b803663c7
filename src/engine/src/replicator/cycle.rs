//! One cycle out of a frozen point: what changed, and what a comparison finds, into logs and a record.
//!
//! ```text
//! disk   tracked:   changed ranges ─► blocks that differ ─► log
//!        suspect:   changed ranges below the cursor, the next slice compared, changed ranges behind it ─► log
//! record             names the logs, says what is known of each disk afterwards
//! ```
//!
//! A comparison runs in slices, each within an ordinary cycle: no frozen point is held for hours, a kill costs at
//! most a slice, other disks go on being sent. While a disk is suspect cycles make no recovery point, because a
//! point means all disks at one instant; the cycle that ends the comparison makes the next one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engine_protocol::v1::replication_status::State;
use futures::StreamExt as _;
use futures::TryStreamExt as _;
use futures::stream;
use hypervisor::{Changes, DiskId, Extent, FrozenDisk, FrozenPoint, VirtualMachine};
use replica_store::{PointKind, ReplicaState};
use tokio::time::Instant;
use uuid::Uuid;

use super::buffers;
use super::cycle_log::{Closed, CycleLog};
use super::doubts::Slices;
use super::joining;
use super::judge::{Head, Judge};
use super::pauses;
use super::ranges;
use super::shared::{Captured, Item, Shared};
use super::state::{CycleDisk, CycleRecord, ItemDisk};
use super::suspicion::Knowledge;
use super::touched::{Touches, WAITING};
use super::trouble::Trouble;
use crate::time_window;
use crate::vm_config::VmConfig;

/// Pieces of a disk that are read at once. More would slow the guest down, fewer would wait for the disk.
const READS: usize = 4;
/// A slice of a comparison ends after so long: a point is not frozen for longer, and a kill costs no more.
const SLICE: Duration = Duration::from_secs(300);
/// Damaged ranges of a disk that go into one cycle at most.
const DOUBT_BYTES: u64 = 256 << 20;
/// Waiting logs of a disk may always take so much; less is no reason for a comparison.
pub(super) const LEAST_QUOTA_BYTES: u64 = 16 << 20;

/// How a look at a frozen point ended.
pub(super) enum Taken {
    /// A cycle was captured.
    Cycle(Box<CycleRecord>),
    /// The base is complete.
    Base,
    /// A comparison is due, and cycles still wait: compare when they are in the store.
    DrainFirst,
}

/// A frozen point and what the cycle builds on.
pub(super) struct Cycle<'a> {
    pub item: &'a Item,
    pub shared: &'a Shared,
    pub point: &'a FrozenPoint,
    pub disks: &'a [ItemDisk],
    pub vm: &'a VirtualMachine,
    pub captured: Captured,
    pub kind: PointKind,
    pub group_point: Option<Uuid>,
    /// The VM is off and this is its last: comparing keeps nobody waiting but those who wait for it.
    pub is_rest: bool,
}

impl Cycle<'_> {
    /// Writes what changed into logs and makes the cycle durable.
    pub async fn capture(&self) -> Result<Taken, Trouble> {
        let Self { item, shared, .. } = *self;
        let mut captured = self.captured.clone();
        let mut known = captured.knowledge.clone();
        known.take_up(&shared.state().await.raised);
        known.keep_only(&item.spec.disks);
        for frozen in &self.point.disks {
            if frozen.changes == Changes::Unknown && known.members.contains(&frozen.disk) {
                let reason =
                    "change tracking of the host can't tell what changed since the last cycle";
                known.suspect(frozen.disk, reason);
            }
        }
        let windows = item.policy.borrow().comparison_windows.clone();
        let now = (item.context.clock)();
        let open = self.is_rest || time_window::any_open(&windows, now);
        let compare = !known.is_whole() && open;
        if compare && known.begins() {
            if shared.front().is_some() {
                return Ok(Taken::DrainFirst);
            }
            self.find_store(&mut captured, &mut known).await?;
        }
        if !known.is_whole() {
            item.status.phase(State::Comparing);
            let waits = (!compare).then(|| time_window::opens_in_ms(&windows, now));
            item.status.comparison_waits(waits.map(|wait| now + wait));
        }
        item.status.tracking(self.disks, &known, compare);
        let compare = self.take_in(&mut known, open).await? || compare;

        let mut record = CycleRecord::new(
            item.spec.generation.0,
            captured.position + 1,
            self.point.taken_unix_ms,
            self.point.tracking,
            VmConfig::of(self.vm, &Vec::from_iter(known.members.iter().copied())),
        );
        record.previous = captured.instant;
        record.kind = self.kind;
        record.group_point = self.group_point;
        let mut slices = self.doubtful(&known);
        let mut doubted = Touches::new();
        for (disk, slice) in &slices {
            for extent in slice {
                doubted.add(*disk, extent.offset, extent.length);
            }
        }
        captured.touches.push(Arc::new(doubted));
        let mut touches = Touches::new();
        let mut work = DiskWork {
            item,
            head: Head::new(item, shared),
            until: (!self.is_rest).then(|| Instant::now() + SLICE),
            compare,
            waiting: captured.touches.clone(),
            doubts: slices.clone(),
            progress: self.progress(&known),
        };
        for frozen in &self.point.disks {
            let disk = self.disk(frozen.disk)?;
            if !known.members.contains(&disk.id) {
                continue;
            }
            record.disks.push(CycleDisk {
                id: disk.id,
                size_bytes: frozen.size_bytes,
                name: disk.name.clone(),
            });
            let judge = Judge {
                disk: disk.id,
                map: shared.maps.get(disk.id),
                waiting: work.waiting.clone(),
                is_coarse: Arc::default(),
            };
            let (quota, left) = self.quota(frozen);
            let previous = shared.last_log(disk.id).await;
            let log = CycleLog::new(
                disk,
                frozen,
                record.position,
                record.taken_unix_ms,
                previous,
            );
            match work.disk(frozen, &judge, log, &mut known, left).await? {
                Some(closed) => {
                    record.changed_bytes += closed.changed_bytes;
                    record.logs.extend(closed.log);
                    touches.insert(disk.id, closed.touched);
                }
                None => {
                    let reason = format!(
                        "changes that wait for the store took more than {} MiB, or were too many",
                        quota >> 20
                    );
                    shared.drop_logs(item, disk.id, &reason).await?;
                    slices.remove(&disk.id);
                    known.suspect(disk.id, &reason);
                }
            }
        }
        // A point that shows damage is none: the cycle with the last of it makes the next one.
        let is_damaged = shared.doubts().is_open_without(&slices, &known.members);
        record.recoverable = known.is_whole() && !is_damaged;
        record.knowledge = known;
        let position = record.position;
        item.pass(pauses::LOGS_CLOSED).await;
        let kept = shared
            .keep(item, captured, record.clone(), touches.waiting(&WAITING))
            .await?;
        if !kept {
            return Ok(Taken::DrainFirst);
        }
        shared.doubts().captured(&slices, position);
        item.status.tracking(self.disks, &record.knowledge, false);
        item.pass(pauses::RECORDED).await;
        Ok(Taken::Cycle(Box::new(record)))
    }

    /// Works on disks that were added. `true` = one came in that must be compared.
    async fn take_in(&self, known: &mut Knowledge, may_compare: bool) -> Result<bool, Trouble> {
        let before = known.suspects.len();
        for frozen in &self.point.disks {
            if !known.members.contains(&frozen.disk) {
                let disk = self.disk(frozen.disk)?;
                joining::work(self.item, self.shared, frozen, disk, known, may_compare).await?;
            }
        }
        Ok(known.suspects.len() > before)
    }

    /// Before a comparison: where the store really is counts, not where it was when it was last seen.
    async fn find_store(
        &self,
        captured: &mut Captured,
        known: &mut Knowledge,
    ) -> Result<(), Trouble> {
        let writer = self.shared.writer(self.item).await?;
        let ReplicaState::Complete { head_position, .. } = writer.state().await? else {
            return Err(Trouble::ReplicaMissing);
        };
        if head_position.0 != captured.position {
            // Tracking tells changes since another content, and so do the maps.
            let reason = "the replica is not where it was left";
            for disk in self.disks {
                known.suspect(disk.id, reason);
            }
            let there = writer.disks().await?;
            known.members = there.iter().map(|disk| DiskId(disk.id)).collect();
            known.keep_only(&self.item.spec.disks);
            captured.position = head_position.0;
            self.shared.reset_to(self.item, head_position.0).await?;
            captured.instant = self.shared.state().await.instant;
        }
        tracing::info!(
            item = self.item.spec.item_id,
            disks = known.suspects.len(),
            position = captured.position,
            "comparing the source with what the replica holds"
        );
        Ok(())
    }

    /// Damaged ranges that go into this cycle: what is left when they wait, too, is for what changes.
    fn doubtful(&self, known: &Knowledge) -> Slices {
        let mut doubts = self.shared.doubts();
        let members = self.point.disks.iter();
        members
            .filter(|frozen| known.members.contains(&frozen.disk))
            .map(|frozen| {
                let most = (self.quota(frozen).1 / 4).min(DOUBT_BYTES);
                let slice = doubts.slice(frozen.disk, frozen.size_bytes, most);
                (frozen.disk, slice)
            })
            .filter(|(_, slice)| !slice.is_empty())
            .collect()
    }

    /// Bytes that logs of a disk may take, and how many of them are left.
    fn quota(&self, frozen: &FrozenDisk) -> (u64, u64) {
        let percent = self.item.policy.borrow().log_quota_percent;
        let quota = quota_bytes(frozen.size_bytes, percent);
        let waiting = self.shared.waiting_bytes(frozen.disk);
        (quota, quota.saturating_sub(waiting))
    }

    fn disk(&self, id: DiskId) -> Result<&ItemDisk, Trouble> {
        let found = self.disks.iter().find(|disk| disk.id == id);
        found.ok_or_else(|| Trouble::DiskNotFound(id.to_string()))
    }

    fn progress(&self, known: &Knowledge) -> Progress {
        let size = |id| {
            let disk = self.point.disks.iter().find(|disk| disk.disk == id);
            disk.map_or(0, |disk| disk.size_bytes)
        };
        let suspects = known.suspects.iter();
        Progress {
            total: known.suspects.keys().map(|id| size(*id)).sum(),
            done: suspects
                .map(|(id, suspicion)| (*id, suspicion.compared_bytes))
                .collect(),
        }
    }
}

struct Progress {
    total: u64,
    done: BTreeMap<DiskId, u64>,
}

/// What all disks of a cycle share.
struct DiskWork<'a> {
    item: &'a Item,
    head: Head<'a>,
    /// Slices end then; `None` = each goes to the end of its disk.
    until: Option<Instant>,
    /// Whether suspect disks are compared in this cycle.
    compare: bool,
    /// What cycles change that are captured and not in the maps, and what is damaged in the store.
    waiting: Vec<Arc<Touches>>,
    /// What is damaged in the store: it goes there again.
    doubts: Slices,
    progress: Progress,
}

impl DiskWork<'_> {
    /// One disk. `None` = its changes take more than `room`, and nothing of them was kept.
    async fn disk(
        &mut self,
        frozen: &FrozenDisk,
        judge: &Judge,
        mut log: CycleLog,
        known: &mut Knowledge,
        room: u64,
    ) -> Result<Option<Closed>, Trouble> {
        let size = frozen.size_bytes;
        let mut dirty = match &frozen.changes {
            Changes::Since(extents) => extents.clone(),
            Changes::Unknown => Vec::new(),
        };
        dirty.extend(self.doubts.get(&frozen.disk).into_iter().flatten());
        dirty.sort_unstable_by_key(|extent| extent.offset);
        let dirty = ranges::whole_blocks(&dirty, size);
        let cursor = known.cursor(frozen.disk).filter(|_| self.compare);
        let behind = match cursor {
            None => 0,
            Some(cursor) => {
                let below = ranges::clip(&dirty, 0, cursor);
                if !self.changed(frozen, judge, &below, &mut log, room).await? {
                    return Ok(None);
                }
                let reached = self.compared(frozen, judge, cursor, &mut log, room).await?;
                known.compared(frozen.disk, reached, size);
                reached
            }
        };
        let rest = ranges::clip(&dirty, behind, size);
        if !self.changed(frozen, judge, &rest, &mut log, room).await? {
            return Ok(None);
        }
        log.close().await.map(Some)
    }

    /// Ranges that changed. `false` = the log took too much.
    async fn changed(
        &self,
        frozen: &FrozenDisk,
        judge: &Judge,
        extents: &[Extent],
        log: &mut CycleLog,
        room: u64,
    ) -> Result<bool, Trouble> {
        // What a tracker calls changed is read, whatever the image says of its allocation.
        let everywhere = [whole(frozen)];
        let reads = ranges::pieces(extents)
            .map(|piece| judge.piece(frozen, &everywhere, piece, &buffers::CAPTURE, None));
        let mut reads = stream::iter(reads).buffered(READS);
        while let Some((runs, _memory)) = reads.try_next().await? {
            log.write(runs).await?;
            if log.is_full(room, 1) {
                return Ok(false);
            }
            judge.coarsen(log.is_fragmented());
        }
        Ok(true)
    }

    /// The next slice of a comparison; returns how far it came.
    async fn compared(
        &mut self,
        frozen: &FrozenDisk,
        judge: &Judge,
        cursor: u64,
        log: &mut CycleLog,
        room: u64,
    ) -> Result<u64, Trouble> {
        let allocated = ranges::whole_blocks(&frozen.allocated, frozen.size_bytes);
        let todo = [Extent {
            offset: cursor,
            length: frozen.size_bytes - cursor,
        }];
        let (head, allocated) = (&self.head, &allocated);
        let reads = ranges::pieces(&todo).map(|piece| async move {
            let judged = judge.piece(frozen, allocated, piece, &buffers::CAPTURE, Some(head));
            judged.await.map(|(runs, memory)| (piece, runs, memory))
        });
        let mut reads = stream::iter(reads).buffered(READS);
        let mut reached = cursor;
        while let Some((piece, runs, _memory)) = reads.try_next().await? {
            log.write(runs).await?;
            reached = piece.offset + piece.length;
            self.progress.done.insert(frozen.disk, reached);
            let done = self.progress.done.values().sum();
            self.item.status.progress(done, self.progress.total);
            self.item.status.compared(frozen.disk, reached);
            self.item.pass(pauses::COMPARING).await;
            judge.coarsen(log.is_fragmented());
            // Half of the room is left for what changes meanwhile.
            let is_over = self.until.is_some_and(|until| Instant::now() >= until);
            if is_over || log.is_full(room, 2) {
                break;
            }
        }
        Ok(reached)
    }
}

fn whole(frozen: &FrozenDisk) -> Extent {
    Extent {
        offset: 0,
        length: frozen.size_bytes,
    }
}

fn quota_bytes(size_bytes: u64, percent: u32) -> u64 {
    let quota = u128::from(size_bytes) * u128::from(percent) / 100;
    u64::try_from(quota)
        .unwrap_or(u64::MAX)
        .max(LEAST_QUOTA_BYTES)
}
