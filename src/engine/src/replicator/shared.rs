//! What the two halves of an item's replication, capture and shipping, share.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hypervisor::{DiskId, Hypervisor, TrackingId};
use replica_store::fault::Faults;
use replica_store::{BaseWrites, Damage, DiskSpec, ReplicaReader, ReplicaWriter, WriterOptions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::doubts::Doubts;
use super::maps::Maps;
use super::outgoing::Effort;
use super::pauses::Pauses;
use super::policy::Policy;
use super::rest::Rest;
use super::spec::Spec;
use super::state::{CycleRecord, ItemFiles, ItemState};
use super::status::StatusLine;
use super::suspicion::Knowledge;
use super::throttle::{Class, Throttle};
use super::touched::{Touched, Touches, WAITING};
use super::trouble::Trouble;
use crate::board::Board;
use crate::group::Groups;
use crate::schedule::meter::Meter;
use crate::task::blocking;

/// Free bytes on the volume of a path; `None` when it can't be found out.
pub type FreeBytes = Arc<dyn Fn(&Path) -> Option<u64> + Send + Sync>;

/// What all items of an engine share.
pub struct Context {
    /// The host.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Where status goes.
    pub board: Arc<Board>,
    /// `<data>/state`.
    pub state_folder: PathBuf,
    /// Test stops.
    pub pauses: Arc<dyn Pauses>,
    /// Milliseconds since the Unix epoch, for retention.
    pub clock: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// Faults in the durable steps of the store, for crash tests; `None` in the product.
    pub store_faults: Option<Arc<dyn Faults>>,
    /// Free bytes on a volume, for captures.
    pub free_bytes: FreeBytes,
    /// VMs that take their points together.
    pub groups: Arc<Groups>,
    /// Limits what is sent to stores.
    pub throttle: Arc<dyn Throttle>,
}

/// One item at work.
pub(super) struct Item {
    pub context: Arc<Context>,
    pub spec: Spec,
    pub files: ItemFiles,
    /// The VM must be shut down, and the rest shipped.
    pub rest: Option<Rest>,
    /// Under orders a higher fence is a recovered VM's, and what is kept here shortens the way back.
    pub keeps_files: bool,
    pub status: StatusLine,
    pub stop: CancellationToken,
    pub policy: watch::Receiver<Policy>,
    /// What shipping tells the schedule.
    pub meter: Meter,
    /// Those that nobody waits for any more, too.
    pub base_writes: BaseWrites,
    /// How hard its cycles are compressed.
    pub effort: Effort,
}

/// Durable state, spool and store of one item.
pub(super) struct Shared {
    state: tokio::sync::Mutex<ItemState>,
    spool: Mutex<VecDeque<Waiting>>,
    /// Counts how often captured cycles were given up. Held while the spool or what it builds on changes.
    given_up: tokio::sync::Mutex<u64>,
    waiting: watch::Sender<usize>,
    writer: tokio::sync::Mutex<Option<ReplicaWriter>>,
    /// Counts how often the store was opened.
    openings: AtomicU64,
    /// Ranges that are damaged in the store and go there again.
    doubts: Mutex<Doubts>,
    verifying: AtomicBool,
    /// What the store is known to hold, block by block.
    pub maps: Arc<Maps>,
    /// Ends both halves: the item stops, or one half has found that it must.
    pub halt: CancellationToken,
}

/// A captured cycle that waits for the store.
pub(super) struct Waiting {
    pub record: CycleRecord,
    pub touches: Arc<Touches>,
}

/// What the next cycle builds on.
#[derive(Clone)]
pub(super) struct Captured {
    /// Tracking that began at the newest captured instant.
    pub tracking: Option<TrackingId>,
    /// Its position.
    pub position: u64,
    /// What is known of the disks' changes there.
    pub knowledge: Knowledge,
    /// Names that instant, for the record of the next cycle.
    pub instant: Uuid,
    /// What the waiting cycles change.
    pub touches: Vec<Arc<Touches>>,
    given_up: u64,
}

impl Item {
    pub async fn pass(&self, place: &'static str) {
        self.context.pauses.pass(place).await;
    }

    /// Returns when `bytes` may be sent to the store.
    pub async fn may_send(&self, bytes: u64, class: Class) {
        let _wait = self.meter.wait();
        let (throttle, id) = (&self.context.throttle, &self.spec.item_id);
        let Some(rest) = &self.rest else {
            return throttle.acquire(id, bytes, class).await;
        };
        tokio::select! {
            biased;
            // Also of what had begun to wait while it ran.
            () = rest.is_off() => throttle.acquire(id, bytes, Class::Downtime).await,
            () = throttle.acquire(id, bytes, class) => {}
        }
    }
}

impl Shared {
    pub fn new(state: ItemState, spool: Vec<Waiting>, maps: Maps, halt: CancellationToken) -> Self {
        Self {
            halt,
            doubts: Mutex::default(),
            verifying: AtomicBool::new(false),
            maps: Arc::new(maps),
            given_up: tokio::sync::Mutex::default(),
            state: tokio::sync::Mutex::new(state),
            waiting: watch::Sender::new(spool.len()),
            spool: Mutex::new(spool.into()),
            writer: tokio::sync::Mutex::default(),
            openings: AtomicU64::new(0),
        }
    }

    pub async fn state(&self) -> ItemState {
        self.state.lock().await.clone()
    }

    /// Changes the state: durable first, then visible.
    pub async fn update(
        &self,
        item: &Item,
        change: impl FnOnce(&mut ItemState),
    ) -> Result<(), Trouble> {
        let mut state = self.state.lock().await;
        let mut new = state.clone();
        change(&mut new);
        if new != *state {
            let (files, written) = (item.files.clone(), new.clone());
            blocking(move || files.store(&written))
                .await
                .map_err(Trouble::io("keep the state of the item"))?;
            item.status.figures(&new);
            *state = new;
        }
        Ok(())
    }

    /// The instant up to which everything is captured.
    pub async fn captured(&self) -> Captured {
        let given_up = self.given_up.lock().await;
        // Before the maps are looked at: what is not in here is in them.
        let (newest, touches) = {
            let spool = self.lock_spool();
            let newest = spool.back().map(|waiting| {
                let record = &waiting.record;
                (
                    Some(record.tracking),
                    record.position,
                    record.knowledge.clone(),
                    record.point_id,
                )
            });
            let touches = spool.iter().map(|waiting| waiting.touches.clone());
            (newest, touches.collect())
        };
        let (tracking, position, knowledge, instant) = match newest {
            Some(newest) => newest,
            None => {
                let state = self.state.lock().await;
                let knowledge = state.knowledge.clone();
                (state.tracking, state.shipped, knowledge, state.instant)
            }
        };
        Captured {
            tracking,
            position,
            knowledge,
            instant,
            touches,
            given_up: *given_up,
        }
    }

    /// Makes a captured cycle durable and lets it wait for the store. `false` = what it builds on was given up
    /// meanwhile: with the gap before it, it would make the replica silently wrong, so it is dropped.
    pub async fn keep(
        &self,
        item: &Item,
        base: Captured,
        record: CycleRecord,
        touches: Arc<Touches>,
    ) -> Result<bool, Trouble> {
        let given_up = self.given_up.lock().await;
        let (files, kept, fits) = (
            item.files.clone(),
            record.clone(),
            *given_up == base.given_up,
        );
        blocking(move || {
            if fits {
                files.store_record(&kept)
            } else {
                files.remove_record(&kept)
            }
        })
        .await
        .map_err(Trouble::io("keep the record of a captured cycle"))?;
        if fits {
            self.lock_spool().push_back(Waiting { record, touches });
            self.count_backlog(item);
        }
        Ok(fits)
    }

    /// Freeze of the newest application-consistent point, be it in the store or on its way there.
    pub async fn last_application_unix_ms(&self) -> Option<i64> {
        let stored = self.state.lock().await.last_application_unix_ms;
        let spool = self.lock_spool();
        let waiting = spool
            .iter()
            .filter_map(|waiting| waiting.record.application_unix_ms());
        waiting.chain((stored > 0).then_some(stored)).max()
    }

    /// The oldest cycle that waits.
    pub fn front(&self) -> Option<CycleRecord> {
        self.lock_spool()
            .front()
            .map(|waiting| waiting.record.clone())
    }

    /// The oldest cycle is done with and its files are gone.
    pub fn pop(&self, item: &Item) {
        self.lock_spool().pop_front();
        self.count_backlog(item);
    }

    /// Tells status and waiters how much waits.
    pub fn count_backlog(&self, item: &Item) {
        let (count, bytes) = {
            let spool = self.lock_spool();
            let logs = spool.iter().flat_map(|waiting| &waiting.record.logs);
            (spool.len(), logs.map(|log| log.bytes).sum())
        };
        item.status.backlog(count as u64, bytes);
        self.waiting.send_replace(count);
    }

    /// The newest log of a disk, be it shipped or waiting; nil when there was none.
    pub async fn last_log(&self, disk: DiskId) -> Uuid {
        let state = self.state.lock().await;
        let spool = self.lock_spool();
        let mut waiting = spool.iter().rev().flat_map(|waiting| &waiting.record.logs);
        let newest = waiting.find(|log| log.disk == disk).map(|log| log.id);
        let shipped = state.disks.iter().find(|known| known.id == disk);
        newest
            .or_else(|| shipped.map(|known| known.last_log))
            .unwrap_or_default()
    }

    /// Bytes of waiting logs of a disk.
    pub fn waiting_bytes(&self, disk: DiskId) -> u64 {
        let spool = self.lock_spool();
        let logs = spool.iter().flat_map(|waiting| &waiting.record.logs);
        logs.filter(|log| log.disk == disk)
            .map(|log| log.bytes)
            .sum()
    }

    /// Drops the waiting logs of a disk, which must be compared from now on. The oldest cycle keeps its log: it
    /// may be on its way already. A crash in between leaves whole cycles, and the reason in the state.
    pub async fn drop_logs(&self, item: &Item, disk: DiskId, reason: &str) -> Result<(), Trouble> {
        self.raise(item, &[disk], reason).await?;
        let _changing = self.given_up.lock().await;
        let shipped = self.state.lock().await.shipped;
        self.doubts().take_back(Some(disk), shipped);
        let (mut records, mut paths) = (Vec::new(), Vec::new());
        for waiting in self.lock_spool().iter_mut().skip(1) {
            let record = &mut waiting.record;
            record.recoverable = false;
            record.knowledge.suspect(disk, reason);
            record.logs.retain(|log| {
                let dropped = log.disk == disk;
                if dropped {
                    paths.push(log.path.clone());
                }
                !dropped
            });
            records.push(record.clone());
        }
        let files = item.files.clone();
        blocking(move || {
            records
                .iter()
                .try_for_each(|record| files.store_record(record))?;
            paths
                .iter()
                .try_for_each(|path| crate::durable::remove(path))
        })
        .await
        .map_err(Trouble::io("drop waiting logs of a disk"))?;
        tracing::warn!(
            item = item.spec.item_id,
            %disk,
            reason,
            "waiting logs of a disk are dropped; it will be compared"
        );
        self.count_backlog(item);
        Ok(())
    }

    /// Keeps a reason for comparing disks until a cycle takes it up.
    pub async fn raise(&self, item: &Item, disks: &[DiskId], reason: &str) -> Result<(), Trouble> {
        self.update(item, |state| state.raise(disks, reason)).await
    }

    /// Ranges that are damaged in the store and go there again.
    pub fn doubts(&self) -> std::sync::MutexGuard<'_, Doubts> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These ranges are damaged in the store.
    pub fn doubt<'a>(&self, damage: impl Iterator<Item = &'a Damage>) {
        let mut doubts = self.doubts();
        for damage in damage {
            let (disk, position) = (DiskId(damage.disk), damage.position.0);
            doubts.report(disk, damage.offset, damage.length, position);
        }
    }

    /// Whether a round of verification is under way.
    pub fn is_verifying(&self) -> bool {
        self.verifying.load(Ordering::Relaxed)
    }

    /// See [`Shared::is_verifying`].
    pub fn set_verifying(&self, is: bool) {
        self.verifying.store(is, Ordering::Relaxed);
    }

    /// The store is at another position than it was left at: nothing of it is known any more.
    pub async fn reset_to(&self, item: &Item, position: u64) -> Result<(), Trouble> {
        self.forget_maps().await?;
        self.doubts().take_back(None, 0);
        self.update(item, |state| state.move_to(position)).await?;
        let (state, maps) = (self.state().await, self.maps.clone());
        blocking(move || {
            maps.reset(&state);
            Ok(())
        })
        .await
        .map_err(Trouble::io("begin new maps of block hashes"))
    }

    /// Removes all maps, durably: a crash behind this finds none that vouches for what the store held before.
    pub async fn forget_maps(&self) -> Result<(), Trouble> {
        let (state, maps) = (self.state().await, self.maps.clone());
        blocking(move || {
            let mut disks = state.disks.iter();
            disks.try_for_each(|disk| maps.drop_disk(disk.id))
        })
        .await
        .map_err(Trouble::io("remove maps of block hashes"))
    }

    /// How many cycles wait; wakes at each change.
    pub fn waiting(&self) -> watch::Receiver<usize> {
        self.waiting.subscribe()
    }

    /// Drops all captured cycles, and whatever is being captured on top of them; then changes the state.
    pub async fn give_up(
        &self,
        item: &Item,
        change: impl FnOnce(&mut ItemState),
    ) -> Result<(), Trouble> {
        let mut given_up = self.given_up.lock().await;
        *given_up += 1;
        self.lock_spool().clear();
        let files = item.files.clone();
        blocking(move || files.remove_records())
            .await
            .map_err(Trouble::io("drop captured cycles"))?;
        let shipped = self.state.lock().await.shipped;
        self.doubts().take_back(None, shipped);
        let changed = self.update(item, change).await;
        self.count_backlog(item);
        changed
    }

    /// The store's writing side; opened at first use and after [`Shared::close_store`].
    pub async fn writer(&self, item: &Item) -> Result<ReplicaWriter, Trouble> {
        let mut writer = self.writer.lock().await;
        if let Some(writer) = &*writer {
            return Ok(writer.clone());
        }
        let state = self.state().await;
        if state.complete || item.policy.borrow().replica_exists {
            // An empty mount point must not be filled with a second replica.
            let keys = item.policy.borrow().keys.clone();
            match ReplicaReader::open_with_keys(&item.spec.store, &item.spec.key, keys).await {
                Ok(_) => {}
                Err(error) if error.kind() == replica_store::ErrorKind::NotFound => {
                    return Err(Trouble::ReplicaMissing);
                }
                Err(error) => return Err(error.into()),
            }
        }
        let disks: Vec<DiskSpec> = state
            .disks
            .iter()
            .map(|disk| DiskSpec {
                id: disk.id.0,
                size_bytes: disk.size_bytes,
                name: disk.name.clone(),
            })
            .collect();
        let (store, key, generation) = (&item.spec.store, &item.spec.key, item.spec.generation);
        let options = WriterOptions {
            immutability_hours: item.policy.borrow().retention.immutability_hours,
            // Which disks the VM has now is said by each cycle.
            any_disks: true,
            keys: item.policy.borrow().keys.clone(),
            faults: item.context.store_faults.clone(),
            base_writes: item.base_writes.clone(),
            ..WriterOptions::default()
        };
        let opened = ReplicaWriter::open_with(options, store, key, generation, &disks).await?;
        let replica = opened.replica_id().await?;
        if replica != state.replica {
            self.meet(item, state.replica, replica).await?;
        }
        *writer = Some(opened.clone());
        self.openings.fetch_add(1, Ordering::SeqCst);
        Ok(opened)
    }

    /// The replica in the store is not the one that the state tells of, or the first that it meets.
    async fn meet(&self, item: &Item, before: Uuid, replica: Uuid) -> Result<(), Trouble> {
        if !before.is_nil() {
            // Cycles that wait build on the other one's content.
            self.give_up(item, |state| {
                (state.replica, state.tracking) = (replica, None);
                state.instant = Uuid::new_v4();
            })
            .await?;
        }
        self.update(item, |state| state.replica = replica).await?;
        let (state, maps) = (self.state().await, self.maps.clone());
        // Before that the store begins anew with each change of the disks.
        let state_is_complete = state.complete;
        blocking(move || {
            maps.reset(&state);
            Ok(())
        })
        .await
        .map_err(Trouble::io("begin new maps of block hashes"))?;
        if before.is_nil() || !state_is_complete {
            return Ok(());
        }
        Err(Trouble::OtherReplica { before, replica })
    }

    /// Opens the store anew at next use: after an error nothing of it is taken for granted.
    pub async fn close_store(&self) {
        *self.writer.lock().await = None;
    }

    /// How often the store was opened: work that may fail notes it for [`Shared::close_after`].
    pub fn openings(&self) -> u64 {
        self.openings.load(Ordering::SeqCst)
    }

    /// As [`Shared::close_store`], after work that began at `openings`. When that was overtaken, and the other half has
    /// opened the store since, then it was by that: its writer is as new as can be, and both would only chase each other.
    pub async fn close_after(&self, trouble: &Trouble, openings: u64) {
        if !(trouble.is_overtaken() && self.openings() != openings) {
            self.close_store().await;
        }
    }

    /// A try to fill base was cut: none of its writes may land on what the next try writes. The store refuses them
    /// once it is opened again, or they are waited for.
    pub async fn end_base_writes(&self, item: &Item) {
        if !item.base_writes.is_idle() {
            self.close_store().await;
            item.base_writes.settled().await;
        }
    }

    fn lock_spool(&self) -> std::sync::MutexGuard<'_, VecDeque<Waiting>> {
        // Each change is one call on the queue, so a panic elsewhere leaves it whole.
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// A cycle that was found waiting: its logs say what it changes.
    pub fn found(record: CycleRecord) -> Self {
        let mut touches = Touches::new();
        for log in &record.logs {
            let touched = match super::state::open_log(log) {
                Ok(reader) => {
                    let mut touched = Touched::default();
                    for entry in reader.entries() {
                        touched.add(entry.offset, entry.length.into());
                    }
                    touched
                }
                // Shipping finds out; until then nothing of the disk is known.
                Err(_) => Touched::everything(),
            };
            touches.insert(log.disk, touched);
        }
        Self {
            record,
            touches: touches.waiting(&WAITING),
        }
    }
}
