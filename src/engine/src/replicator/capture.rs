//! The capturing half: freezes on schedule and makes what changed durable beside the disks.
//!
//! ```text
//! wait until due ─► freeze all disks ─► logs durable ─► record durable ─► release ─► forget older tracking
//!                        │ a comparison is due: wait for the spool to drain, then freeze again
//!                        └ the order says to ship the rest, and the VM is off: see [`super::rest`]
//! ```
//!
//! Promise: a frozen point is always given back, whatever happens in between; the guest never waits for the
//! store. What may go wrong leaves tracking as it was, so that the next capture holds everything.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use engine_protocol::v1::replication_status::State;
use hypervisor::{DiskId, FreezeRequest, FrozenPoint, TrackingId};
use replica_store::{PointKind, ReplicaWriter};
use tokio::time::Instant;
use uuid::Uuid;

use super::cadence::{Cadence, Done, FreezeKind, Frozen};
use super::copy;
use super::cycle::{Cycle, Taken};
use super::disks::{end_watch, find_vm, learn_disks, marks, watch_left};
use super::pauses;
use super::ranges;
use super::rest;
use super::seeding;
use super::shared::{Item, Shared};
use super::status::Origin;
use super::trouble::{Trouble, chain};
use crate::backoff;
use crate::vm_config::VmConfig;

/// Captures pause when so many cycles wait for the store: tracking then gathers changes, which costs no room.
const MOST_WAITING: usize = 120;
/// While disks are compared: their logs grow faster than a guest writes.
const MOST_COMPARING: usize = 2;
/// A capture needs this much free room for old data and logs, and stops when half of it is left.
const ROOM_BYTES: u64 = 128 << 20;
/// How often a VM that is off is looked at.
const OFF_POLL: Duration = Duration::from_secs(2);
/// How often free room is looked at while a point is frozen.
const ROOM_POLL: Duration = Duration::from_secs(1);

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
        seen_running: false,
        seen_off: false,
        is_rest: false,
        cadence: Cadence::new(item, shared).await,
    };
    let mut failures = 0;
    loop {
        if shared.halt.is_cancelled() {
            return Err(Trouble::Stopped);
        }
        let openings = shared.openings();
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
                if matches!(
                    trouble,
                    Trouble::Store(_) | Trouble::Seed { .. } | Trouble::ReplicaMissing
                ) {
                    shared.close_after(&trouble, openings).await;
                }
                pace.clean &= trouble.is_vm_off();
                if trouble.is_vm_off() {
                    pace.seen_off = true;
                    // Tried again with the next look.
                    if let Err(error) = watch_left(item, shared, pace.seen_running).await {
                        tracing::warn!(
                            item = item.spec.item_id,
                            error = chain(&error),
                            "images of a VM that is off can't be watched"
                        );
                    }
                }
                let wait = if trouble.is_vm_off() {
                    OFF_POLL
                } else {
                    backoff::ship_delay(failures)
                };
                tokio::select! {
                    biased;
                    () = shared.halt.cancelled() => return Err(Trouble::Stopped),
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }
}

struct Pace<'a> {
    /// Nothing of an earlier run is left at the hypervisor.
    clean: bool,
    /// The VM ran since this engine looks.
    seen_running: bool,
    /// The VM was off since this engine looks.
    seen_off: bool,
    /// The VM is off and must stay so: the next cycle has the rest.
    is_rest: bool,
    cadence: Cadence<'a>,
}

/// One step: initial replication, or the wait for the next cycle and the cycle. Must run to its end: it gives frozen points back.
async fn step(item: &Item, shared: &Shared, pace: &mut Pace<'_>) -> Result<(), Trouble> {
    if !pace.clean {
        item.context.hypervisor.clean_up(item.spec.vm).await?;
        pace.clean = true;
    }
    if let Some(rest) = &item.rest {
        pace.is_rest = rest.shut_down(item, shared).await?;
        if pace.is_rest {
            pace.cadence.leave_group();
        }
    }
    if !shared.state().await.complete {
        // The store wants to know the disks before anything else.
        let vm = find_vm(item).await?;
        let disks = learn_disks(item, shared, &vm).await?;
        let mut writer = shared.writer(item).await?;
        let sizes = disks.iter().map(|disk| (disk.id.0, disk.size_bytes));
        if !has_disks(&writer, sizes).await? {
            // Resized since an earlier try opened the store: base of such a disk begins anew.
            shared.close_store().await;
            writer = shared.writer(item).await?;
        }
        let base_is_empty = match writer.state().await? {
            replica_store::ReplicaState::Complete { head_position, .. } => {
                let members = writer.disks().await?;
                let points = writer.points().await?;
                let applications = points
                    .iter()
                    .filter(|point| point.kind == PointKind::Application);
                let newest = applications.map(|point| point.time_unix_ms).max();
                shared
                    .update(item, |state| {
                        state.complete = true;
                        state.last_application_unix_ms = newest.unwrap_or(0);
                        state.knowledge.members =
                            members.iter().map(|disk| DiskId(disk.id)).collect();
                        // Which of them older objects need is not known.
                        let keys = item.policy.borrow().keys.clone();
                        state.keys = keys.ids().map(|key| (key, head_position.0)).collect();
                    })
                    .await?;
                pace.cadence.found_points().await;
                return shared.reset_to(item, head_position.0).await;
            }
            // What was there once is lost, and a new replica would hide it.
            _ if item.policy.borrow().replica_exists => return Err(Trouble::ReplicaMissing),
            replica_store::ReplicaState::Empty => true,
            replica_store::ReplicaState::Partial => false,
        };
        let base_is_empty = !seeding::run(item, shared, &writer).await? && base_is_empty;
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
    if let (Some(rest), true) = (&item.rest, pace.is_rest) {
        let before = marks(&shared.state().await.disks).await?;
        let purpose = Purpose::Cycle(FreezeKind::Crash);
        let taken = frozen(item, shared, pace, purpose).await?;
        return rest.finish(item, shared, taken, before).await;
    }
    let kind = tokio::select! {
        biased;
        () = shared.halt.cancelled() => return Err(Trouble::Stopped),
        kind = async {
            let kind = pace.cadence.due().await;
            let most = if shared.captured().await.knowledge.is_whole() { MOST_WAITING } else { MOST_COMPARING };
            wait_for_fewer(shared, most).await;
            kind
        } => kind,
    };
    raise_asked(item, shared).await?;
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

/// A person has asked for a comparison.
async fn raise_asked(item: &Item, shared: &Shared) -> Result<(), Trouble> {
    let asked = item.policy.borrow().resynchronize;
    if asked <= shared.state().await.resynchronize_raised {
        return Ok(());
    }
    tracing::info!(
        item = item.spec.item_id,
        asked,
        "a comparison was asked for"
    );
    shared
        .update(item, |state| {
            state.raise(&item.spec.disks, "a comparison was asked for");
            state.resynchronize_raised = asked;
        })
        .await
}

/// Whether the replica has exactly these disks, of these sizes.
pub(super) async fn has_disks(
    writer: &ReplicaWriter,
    disks: impl Iterator<Item = (Uuid, u64)>,
) -> Result<bool, Trouble> {
    let mut there: Vec<_> = writer
        .disks()
        .await?
        .into_iter()
        .map(|disk| (disk.id, disk.size_bytes))
        .collect();
    let mut wanted: Vec<_> = disks.collect();
    there.sort_unstable();
    wanted.sort_unstable();
    Ok(there == wanted)
}

pub(super) async fn wait_for_fewer(shared: &Shared, limit: usize) {
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
    pace: &mut Pace<'_>,
    purpose: Purpose,
) -> Result<Option<Taken>, Trouble> {
    let host = &item.context.hypervisor;
    let vm = find_vm(item).await?;
    let disks = learn_disks(item, shared, &vm).await?;
    let folders: Vec<PathBuf> = disks
        .iter()
        .filter_map(|disk| disk.path.parent().map(PathBuf::from))
        // Old data of a frozen point goes to the engine's data folder; when that is full the point breaks.
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
    let request = FreezeRequest {
        vm: item.spec.vm,
        disks: item.spec.disks.clone(),
        since,
        next,
    };
    let kind = match purpose {
        Purpose::Cycle(kind) => Some(kind),
        Purpose::InitialReplication { .. } => None,
    };
    let whole = captured.knowledge.is_whole();
    let Frozen {
        point,
        kind: point_kind,
        group_point,
    } = if pace.is_rest {
        rest::freeze(item, &request).await?
    } else {
        pace.cadence.freeze(request, kind, whole).await?
    };
    // Behind the freeze: the wait for a group is no work.
    let begin = Instant::now();
    pace.clean = false;
    let watched = if pace.is_rest {
        Ok(())
    } else {
        pace.seen_running = true;
        end_watch(item, shared, pace.seen_off).await
    };
    let work = async {
        watched?;
        item.pass(pauses::FROZEN).await;
        match purpose {
            Purpose::Cycle(_) => {
                let cycle = Cycle {
                    item,
                    shared,
                    point: &point,
                    disks: &disks,
                    vm: &vm,
                    captured,
                    kind: point_kind,
                    group_point,
                    is_rest: pace.is_rest,
                };
                cycle.capture().await
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
    if result.is_err() {
        shared.end_base_writes(item).await;
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
                compared: !whole || !record.recoverable,
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
    let whole = match &taken {
        Taken::Cycle(record) => record.recoverable,
        Taken::Base | Taken::DrainFirst => true,
    };
    if whole {
        item.status.phase(State::Protected);
        item.status.progress(0, 0);
    }
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
