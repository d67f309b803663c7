//! The capturing half: freezes on schedule and makes what changed durable beside the disks.
//!
//! ```text
//! wait until due ─► freeze all disks ─► logs durable ─► record durable ─► release ─► forget older tracking
//!                        │ tracking can't tell: wait for the spool to drain, then compare with the store's head
//! ```
//!
//! Promise: a frozen point is always given back, whatever happens in between; the guest never waits for the
//! store. What may go wrong leaves tracking as it was, so that the next capture holds everything.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use engine_protocol::v1::replication_status::State;
use hypervisor::{Changes, ErrorKind, FrozenDisk, FrozenPoint, TrackingId, VirtualMachine};
use replication_log::hrl::HrlInfo;
use tokio::time::Instant;
use uuid::Uuid;

use super::cadence::{Cadence, Done, FreezeKind};
use super::copy;
use super::log_file::LogFile;
use super::pauses;
use super::ranges;
use super::shared::{Captured, Item, Shared};
use super::state::{CycleRecord, DiskLog, ItemDisk, log_path};
use super::status::Origin;
use super::trouble::{Trouble, chain};
use crate::backoff;
use crate::vm_config::VmConfig;

/// Captures pause when so many cycles wait for the store: tracking then gathers changes, which costs no room.
const MOST_WAITING: usize = 120;
/// A capture needs this much free room for old data and logs, and stops when half of it is left.
const ROOM_BYTES: u64 = 128 << 20;
/// How often a VM that is off is looked at.
const OFF_POLL: Duration = Duration::from_secs(2);
/// How often free room is looked at while a point is frozen.
const ROOM_POLL: Duration = Duration::from_secs(1);

/// How a look at a frozen point ended.
enum Taken {
    /// A cycle was captured.
    Cycle(Box<CycleRecord>),
    /// The base is complete.
    Base,
    /// Tracking was lost, and cycles still wait: compare when they are in the store.
    DrainFirst,
}

/// What to do with a frozen point.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    InitialReplication { base_is_empty: bool },
    Cycle(FreezeKind),
}

/// Runs until the item stops or is fenced.
pub(super) async fn run(item: &Item, shared: &Shared) -> Result<Infallible, Trouble> {
    let mut pace = Pace {
        clean: false,
        cadence: Cadence::new(item.policy.clone()),
    };
    let mut failures = 0;
    loop {
        if shared.halt.is_cancelled() {
            return Err(Trouble::Stopped);
        }
        match step(item, shared, &mut pace).await {
            Ok(()) => {
                failures = 0;
                item.status.clear(Origin::Capture);
            }
            Err(Trouble::Stopped) => return Err(Trouble::Stopped),
            Err(trouble) if trouble.is_fenced() => return Err(trouble),
            Err(trouble) => {
                failures += 1;
                item.status.problem(Origin::Capture, &trouble, &item.spec);
                if matches!(trouble, Trouble::Store(_) | Trouble::ReplicaMissing) {
                    shared.close_store().await;
                }
                pace.clean &= trouble.is_vm_off();
                let wait = if trouble.is_vm_off() {
                    OFF_POLL
                } else {
                    backoff::ship_delay(failures)
                };
                tokio::select! {
                    () = shared.halt.cancelled() => return Err(Trouble::Stopped),
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }
}

struct Pace {
    /// Nothing of an earlier run is left at the hypervisor.
    clean: bool,
    cadence: Cadence,
}

/// One step: initial replication, or the wait for the next cycle and the cycle. Must run to its end: it gives frozen points back.
async fn step(item: &Item, shared: &Shared, pace: &mut Pace) -> Result<(), Trouble> {
    if !pace.clean {
        item.context.hypervisor.clean_up(item.spec.vm).await?;
        pace.clean = true;
    }
    if !shared.state().await.complete {
        // The store wants to know the disks before anything else.
        let vm = find_vm(item).await?;
        learn_disks(item, shared, &vm).await?;
        let writer = shared.writer(item).await?;
        let base_is_empty = match writer.state().await? {
            replica_store::ReplicaState::Complete { head_position, .. } => {
                shared
                    .update(item, |state| {
                        state.complete = true;
                        state.shipped = head_position.0;
                        state.tracking = None;
                    })
                    .await?;
                return Ok(());
            }
            replica_store::ReplicaState::Empty => true,
            replica_store::ReplicaState::Partial => false,
        };
        item.status.phase(State::InitialReplication);
        return frozen(
            item,
            shared,
            pace,
            Purpose::InitialReplication { base_is_empty },
        )
        .await
        .map(drop);
    }
    let kind = tokio::select! {
        biased;
        () = shared.halt.cancelled() => return Err(Trouble::Stopped),
        kind = async { let kind = pace.cadence.due().await; wait_for_fewer(shared, MOST_WAITING).await; kind } => kind,
    };
    if let Some(Taken::DrainFirst) = frozen(item, shared, pace, Purpose::Cycle(kind)).await? {
        tracing::info!(
            item = item.spec.item_id,
            "change tracking was lost; comparing when the waiting cycles are shipped"
        );
        tokio::select! {
            biased;
            () = shared.halt.cancelled() => return Err(Trouble::Stopped),
            () = wait_for_fewer(shared, 1) => {}
        }
        pace.cadence.at_once();
    }
    Ok(())
}

async fn wait_for_fewer(shared: &Shared, limit: usize) {
    let mut waiting = shared.waiting();
    // The sender lives as long as `shared`.
    waiting
        .wait_for(|count| *count < limit)
        .await
        .map(drop)
        .unwrap_or_default();
}

/// Freezes a point, works on it, gives it back in every case.
async fn frozen(
    item: &Item,
    shared: &Shared,
    pace: &mut Pace,
    purpose: Purpose,
) -> Result<Option<Taken>, Trouble> {
    let host = &item.context.hypervisor;
    let vm = find_vm(item).await?;
    let disks = learn_disks(item, shared, &vm).await?;
    let folders: Vec<PathBuf> = disks
        .iter()
        .filter_map(|disk| disk.path.parent().map(PathBuf::from))
        // Old data of a frozen point goes to the engine's data folder; when that is full the guest's writes fail.
        .chain([item.context.state_folder.clone()])
        .collect();
    room(item, &folders, ROOM_BYTES)?;

    let captured = shared.captured().await;
    let known = captured.tracking;
    let since = match purpose {
        Purpose::Cycle(_) => known,
        Purpose::InitialReplication { .. } => None,
    };
    let next = next_tracking(item, known).await?;
    let begin = Instant::now();
    let point = host
        .freeze(
            item.spec.vm,
            &item.spec.disks,
            since,
            next,
            hypervisor::Consistency::Crash,
        )
        .await?;
    pace.clean = false;
    pace.cadence.froze(begin);
    let work = async {
        item.pass(pauses::FROZEN).await;
        match purpose {
            Purpose::Cycle(FreezeKind::Crash) => {
                cycle(item, shared, &point, &disks, &vm, captured).await
            }
            Purpose::InitialReplication { base_is_empty } => {
                copy::initial(
                    item,
                    shared,
                    &point,
                    VmConfig::of(&vm, &item.spec.disks),
                    base_is_empty,
                )
                .await?;
                Ok(Taken::Base)
            }
        }
    };
    let result = tokio::select! {
        biased;
        () = shared.halt.cancelled() => Err(Trouble::Stopped),
        trouble = room_runs_out(item, &folders) => Err(trouble),
        result = work => result,
    };
    match host.release(point).await {
        Ok(()) => pace.clean = true,
        Err(error) => tracing::warn!(
            item = item.spec.item_id,
            error = chain(&error),
            "a frozen point could not be given back; cleaning up next"
        ),
    }
    let taken = result?;
    item.pass(pauses::RELEASED).await;
    match &taken {
        Taken::DrainFirst => return Ok(Some(taken)),
        Taken::Base => {}
        Taken::Cycle(record) => {
            pace.cadence.captured(Done {
                took: begin.elapsed(),
                changed_bytes: record.changed_bytes,
            });
            tracing::info!(
                item = item.spec.item_id,
                position = record.position,
                changed_bytes = record.changed_bytes,
                took_ms = begin.elapsed().as_millis() as u64,
                "cycle captured"
            );
        }
    }
    item.status.phase(State::Protected);
    item.status.progress(0, 0);
    // Older tracking costs memory only, so a failure here can wait for the next cycle.
    if let Err(error) = host.forget(item.spec.vm, next).await {
        tracing::warn!(
            item = item.spec.item_id,
            error = chain(&error),
            "older tracking could not be dropped"
        );
    }
    item.pass(pauses::FORGOTTEN).await;
    Ok(Some(taken))
}

/// Writes what changed into logs and makes the cycle durable.
async fn cycle(
    item: &Item,
    shared: &Shared,
    point: &FrozenPoint,
    disks: &[ItemDisk],
    vm: &VirtualMachine,
    captured: Captured,
) -> Result<Taken, Trouble> {
    let lost = point
        .disks
        .iter()
        .any(|disk| disk.changes == Changes::Unknown);
    let mut position = captured.position + 1;
    // A store that moved by itself makes tracking worthless: it tells changes since another content.
    let mut moved = false;
    let mut head = None;
    if lost {
        if shared.front().is_some() {
            return Ok(Taken::DrainFirst);
        }
        item.status.phase(State::Comparing);
        let view = shared.writer(item).await?.head_view().await?;
        // Where the store really is counts, not where it was when it was last seen.
        position = view.position().0 + 1;
        moved = view.position().0 != captured.position;
        shared
            .update(item, |state| {
                (state.shipped, state.tracking) = (view.position().0, None)
            })
            .await?;
        tracing::info!(
            item = item.spec.item_id,
            position,
            "comparing the source with the replica"
        );
        head = Some(view);
    }
    let config = VmConfig::of(vm, &item.spec.disks);
    let mut record = CycleRecord::new(
        item.spec.generation.0,
        position,
        point.taken_unix_ms,
        point.tracking,
        config,
    );
    let total = point
        .disks
        .iter()
        .map(|disk| {
            if moved || disk.changes == Changes::Unknown {
                disk.size_bytes
            } else {
                0
            }
        })
        .sum();
    let mut progress = copy::Progress::new(&item.status, total);
    for frozen in &point.disks {
        let Some(disk) = disks.iter().find(|disk| disk.id == frozen.disk) else {
            return Err(Trouble::DiskNotFound(frozen.disk.to_string()));
        };
        let mut log = LazyLog {
            disk,
            frozen,
            record: &mut record,
            file: None,
            id: Uuid::new_v4(),
        };
        match (&frozen.changes, &head) {
            (Changes::Since(extents), _) if !moved => {
                copy::changed(frozen, extents, &mut log).await?
            }
            (_, Some(view)) => copy::compared(frozen, view, &mut log, &mut progress).await?,
            // `head` is there whenever a disk is unknown or the store moved.
            (_, None) => return Ok(Taken::DrainFirst),
        }
        log.close().await?;
    }
    item.pass(pauses::LOGS_CLOSED).await;
    if !shared.keep(item, captured, record.clone()).await? {
        return Ok(Taken::DrainFirst);
    }
    item.pass(pauses::RECORDED).await;
    Ok(Taken::Cycle(Box::new(record)))
}

/// A log that is made when there is something to write.
struct LazyLog<'a> {
    disk: &'a ItemDisk,
    frozen: &'a FrozenDisk,
    record: &'a mut CycleRecord,
    file: Option<LogFile>,
    id: Uuid,
}

#[async_trait::async_trait]
impl copy::Sink for LazyLog<'_> {
    async fn write(&mut self, writes: Vec<(u64, bytes::Bytes)>) -> Result<(), Trouble> {
        if writes.is_empty() {
            return Ok(());
        }
        self.record.changed_bytes += writes
            .iter()
            .map(|(_, data)| data.len() as u64)
            .sum::<u64>();
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let info = HrlInfo {
                    id: self.id,
                    // Each log is whole by itself; the record, not the log, names its place in the order.
                    previous_id: Uuid::nil(),
                    data_write_guid: self.disk.id.0,
                    created_unix_ms: self.record.taken_unix_ms,
                };
                let path = log_path(&self.disk.path, self.record.position);
                self.file.insert(LogFile::create(path, info, self.frozen.size_bytes).await?)
            }
        };
        file.append(writes).await
    }
}

impl LazyLog<'_> {
    async fn close(self) -> Result<(), Trouble> {
        if let Some(file) = self.file {
            let path = file.close().await?;
            self.record.logs.push(DiskLog {
                disk: self.disk.id,
                id: self.id,
                path,
            });
        }
        Ok(())
    }
}

async fn find_vm(item: &Item) -> Result<VirtualMachine, Trouble> {
    let machines = item.context.hypervisor.virtual_machines().await?;
    machines
        .into_iter()
        .find(|vm| vm.id == item.spec.vm)
        .ok_or_else(|| Trouble::VmNotFound(item.spec.vm.to_string()))
}

/// Where the disks are now; kept, because logs lie beside them.
async fn learn_disks(
    item: &Item,
    shared: &Shared,
    vm: &VirtualMachine,
) -> Result<Vec<ItemDisk>, Trouble> {
    let disks = find_disks(item, vm).await?;
    shared
        .update(item, |state| state.disks.clone_from(&disks))
        .await?;
    Ok(disks)
}

async fn find_disks(item: &Item, vm: &VirtualMachine) -> Result<Vec<ItemDisk>, Trouble> {
    let mut disks = Vec::new();
    for id in &item.spec.disks {
        let disk = vm
            .disks
            .iter()
            .find(|disk| disk.id == *id)
            .ok_or_else(|| Trouble::DiskNotFound(id.to_string()))?;
        let path = match item.context.hypervisor.disk_path(item.spec.vm, *id).await {
            Err(error) if error.kind() == ErrorKind::DiskNotFound => {
                return Err(Trouble::DiskNotFound(id.to_string()));
            }
            other => other?,
        };
        disks.push(ItemDisk {
            id: *id,
            name: disk.name.clone(),
            size_bytes: disk.size_bytes,
            path,
        });
    }
    Ok(disks)
}

/// An id above everything the host and we know of.
async fn next_tracking(item: &Item, known: Option<TrackingId>) -> Result<TrackingId, Trouble> {
    let generation = item.spec.generation.0;
    let held = item.context.hypervisor.tracking(item.spec.vm).await?;
    if held.iter().any(|id| id.generation > generation) {
        // Tracking of a newer activation that is no more: ours can't go on beside it.
        item.context.hypervisor.forget_all(item.spec.vm).await?;
        return Ok(TrackingId {
            generation,
            number: known.map_or(0, |id| id.number) + 1,
        });
    }
    let newest = held
        .into_iter()
        .chain(known)
        .filter(|id| id.generation == generation)
        .map(|id| id.number)
        .max();
    Ok(TrackingId {
        generation,
        number: newest.unwrap_or(0) + 1,
    })
}

fn room(item: &Item, folders: &[PathBuf], needed: u64) -> Result<(), Trouble> {
    for folder in folders {
        if let Some(free_bytes) = (item.context.free_bytes)(folder)
            && free_bytes < needed
        {
            return Err(Trouble::HostSpace {
                folder: folder.clone(),
                free_bytes,
            });
        }
    }
    Ok(())
}

async fn room_runs_out(item: &Item, folders: &[PathBuf]) -> Trouble {
    loop {
        tokio::time::sleep(ROOM_POLL).await;
        if let Err(trouble) = room(item, folders, ROOM_BYTES / 2) {
            return trouble;
        }
    }
}

/// Sum over the disks, for tests and messages.
pub(super) fn allocated_bytes(point: &FrozenPoint) -> u64 {
    point
        .disks
        .iter()
        .map(|disk| ranges::total(&ranges::joined(&disk.allocated)))
        .sum()
}
