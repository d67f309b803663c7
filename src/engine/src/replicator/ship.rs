//! The shipping half: moves captured cycles into the store, in order, for as long as it takes.
//!
//! ```text
//! logs of cycle n ─► journal object n ─► recovery point ─► state durable ─► logs and record gone
//! ```
//!
//! Each arrow may be cut; what was done is done again with the same content, which the store takes for the
//! same thing. An outage only makes the spool longer.

use std::convert::Infallible;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryFutureExt as _;
use replica_store::{CyclePlan, DiskSpec, ErrorKind, Position, RecoveryPoint, ReplicaState};
use replication_log::hrl::{HrlEntry, HrlError, HrlErrorKind, HrlReader};
use replication_log::journal::CompressionLevel;
use uuid::Uuid;

use super::buffers;
use super::outgoing::Outgoing;
use super::pauses;
use super::shared::{Item, Shared};
use super::state::{CycleRecord, DiskLog};
use super::status::Origin;
use super::trouble::{Trouble, chain};
use super::verify;
use crate::backoff;
use crate::finding;
use crate::task::blocking;

/// Retention and the applier run at least this often, also when nothing is shipped.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(60);

/// A cycle that the store has called impossible so often (it has more changes than an object can name, say) is given
/// up: what changed is captured again, more coarsely.
const MOST_REFUSALS: u32 = 3;

/// Data of logs that is read at once.
const BATCH_BYTES: u64 = 1 << 20;

/// Between two pieces of a verification: others want the store, too.
const VERIFICATION_PAUSE: Duration = Duration::from_millis(200);

/// Runs until the item stops or is fenced.
pub(super) async fn run(item: &Item, shared: &Shared) -> Result<Infallible, Trouble> {
    let mut waiting = shared.waiting();
    let mut failures = 0;
    let mut maintained = None;
    loop {
        let openings = shared.openings();
        // What the store says of a cycle tells where it is; what it says of its own upkeep does not.
        let mut is_cycle = false;
        let work = async {
            if let Some(record) = shared.front() {
                is_cycle = true;
                one(item, shared, &record).await?;
                is_cycle = false;
            }
            if shared.front().is_none()
                || maintained
                    .is_none_or(|at: tokio::time::Instant| at.elapsed() > MAINTENANCE_INTERVAL)
            {
                maintain(item, shared).await?;
                maintained = Some(tokio::time::Instant::now());
                if shared.front().is_none() {
                    return verify::step(item, shared).await;
                }
            }
            Ok(false)
        };
        let result: Result<bool, Trouble> = tokio::select! {
            biased;
            () = shared.halt.cancelled() => return Err(Trouble::Stopped),
            result = work => result,
        };
        let pause = match result {
            Ok(verify_more) => {
                failures = 0;
                item.status.clear(Origin::Ship);
                if shared.front().is_some() {
                    continue;
                }
                if verify_more {
                    VERIFICATION_PAUSE
                } else {
                    MAINTENANCE_INTERVAL
                }
            }
            Err(trouble) if trouble.is_fenced() => return Err(trouble),
            Err(trouble) => {
                failures += 1;
                shared.close_after(&trouble, openings).await;
                let refused = match &trouble {
                    Trouble::Store(error) if is_cycle => Some(error.kind()),
                    _ => None,
                };
                // When dropping fails half way, only loading again tells what is left: the round ends.
                if refused == Some(ErrorKind::Conflict) {
                    start_over_from_head(item, shared).await?;
                } else if log_is_lost(&trouble)
                    || (refused == Some(ErrorKind::Invalid) && failures >= MOST_REFUSALS)
                {
                    // Nothing brings it back. Tracking since the newest shipped cycle, or a comparison, heals.
                    shared.give_up(item, |_| {}).await?;
                }
                item.status.problem(Origin::Ship, &trouble, &item.spec);
                backoff::ship_delay(failures)
            }
        };
        // While the store is away, new cycles do not shorten the wait.
        let only_time = failures > 0;
        tokio::select! {
            biased;
            () = shared.halt.cancelled() => return Err(Trouble::Stopped),
            () = tokio::time::sleep(pause) => {}
            _ = waiting.wait_for(|count| *count > 0), if !only_time => {}
        }
    }
}

/// Ships one cycle.
async fn one(item: &Item, shared: &Shared, record: &CycleRecord) -> Result<(), Trouble> {
    let begin = tokio::time::Instant::now();
    item.meter.begin();
    let writer = shared.writer(item).await?;
    let key = {
        let policy = item.policy.borrow();
        writer.set_keys(policy.keys.clone());
        writer.set_immutability_hours(policy.retention.immutability_hours);
        policy.keys.active()
    };
    let plan = CyclePlan {
        position: Position(record.position),
        time_unix_ms: record.taken_unix_ms,
        disks: disks(record),
        compression: CompressionLevel::default(),
    };
    if let Some(key) = key {
        note_key(item, shared, key, record.position).await?;
    }
    let mut outgoing = Outgoing::begin(item, &item.effort, &writer, plan).await?;
    for log in &record.logs {
        let (reader, entries) = open(log).await?;
        for batch in batches(&entries) {
            let bytes = batch.iter().map(data_bytes).sum();
            let memory = buffers::SHIP.take(bytes).await;
            let mut changes = Vec::new();
            for (entry, data) in batch.iter().zip(read(log, &reader, batch).await?) {
                match data {
                    Some(data) => changes.push((entry.offset, data)),
                    None => {
                        // In the order of the log.
                        outgoing
                            .pack(log.disk.0, std::mem::take(&mut changes))
                            .await?;
                        let length = entry.length.into();
                        outgoing.zero(log.disk.0, entry.offset, length).await?;
                    }
                }
            }
            outgoing.pack(log.disk.0, changes).await?;
            // Others need it while this one waits for the link.
            drop(memory);
            outgoing.send().await?;
        }
        item.pass(pauses::SENDING).await;
    }
    let committed = outgoing.commit().await?;
    item.pass(pauses::APPENDED).await;
    if record.recoverable {
        writer
            .add_point(point(record, committed.sent_bytes)?)
            .await?;
        item.pass(pauses::POINT_ADDED).await;
    }
    shared
        .update(item, |state| {
            state.ship(record, committed.sent_bytes);
            if let Some(key) = key {
                state.encrypted(key, record.position);
            }
        })
        .await?;
    item.pass(pauses::STATE_WRITTEN).await;
    let (state, maps) = (shared.state().await, shared.maps.clone());
    let (files, shipped) = (item.files.clone(), record.clone());
    blocking(move || {
        maps.shipped(&state, &shipped);
        Ok(shipped)
    })
    .and_then(|shipped| async move {
        item.pass(pauses::HASHES_WRITTEN).await;
        blocking(move || files.remove_record(&shipped)).await
    })
    .await
    .map_err(Trouble::io("remove a shipped cycle"))?;
    shared.pop(item);
    item.meter.shipped(
        record.changed_bytes,
        begin.elapsed(),
        *shared.waiting().borrow(),
    );
    tracing::info!(
        item = item.spec.item_id,
        position = record.position,
        sent_bytes = committed.sent_bytes,
        compression = item.effort.level().number(),
        recoverable = record.recoverable,
        "cycle shipped"
    );
    Ok(())
}

fn disks(record: &CycleRecord) -> Option<Vec<DiskSpec>> {
    let disks = record.disks.iter().map(|disk| DiskSpec {
        id: disk.id.0,
        size_bytes: disk.size_bytes,
        name: disk.name.clone(),
    });
    (!record.disks.is_empty()).then(|| disks.collect())
}

fn point(record: &CycleRecord, sent_bytes: u64) -> Result<RecoveryPoint, Trouble> {
    Ok(RecoveryPoint {
        id: record.point_id,
        time_unix_ms: record.taken_unix_ms,
        kind: record.kind,
        position: Position(record.position),
        vm_config: serde_json::to_value(&record.vm_config).map_err(|error| Trouble::Io {
            doing: "describe the virtual machine".to_owned(),
            source: error.into(),
        })?,
        changed_bytes: record.changed_bytes,
        sent_bytes,
        group_point_id: record.group_point,
    })
}

/// Notes that objects up to a position may need a key, before there is one: an object whose commit was not answered keeps
/// the key that it was sent with, whatever key is active when it is sent again.
async fn note_key(item: &Item, shared: &Shared, key: Uuid, position: u64) -> Result<(), Trouble> {
    let state = shared.state().await;
    let noted = state.keys.get(&key);
    if noted.is_none_or(|newest| *newest < position) {
        shared
            .update(item, |state| {
                state.keys.insert(key, position);
            })
            .await?;
    }
    Ok(())
}

/// Retention and applier, off the capture path; then the list of points.
async fn maintain(item: &Item, shared: &Shared) -> Result<(), Trouble> {
    if !shared.state().await.complete {
        return Ok(());
    }
    let writer = shared.writer(item).await?;
    let (retention, key) = {
        let policy = item.policy.borrow();
        writer.set_keys(policy.keys.clone());
        (policy.retention, policy.keys.active())
    };
    // Merged objects are encrypted with this key, up to the newest position.
    if let Some(key) = key {
        let shipped = shared.state().await.shipped;
        note_key(item, shared, key, shipped).await?;
    }
    let report = writer.maintain((item.context.clock)(), retention).await?;
    if !report.expired_points.is_empty() {
        tracing::debug!(
            item = item.spec.item_id,
            expired = report.expired_points.len(),
            applied_bytes = report.applied_bytes,
            base = report.base_position_after.0,
            "replica maintained"
        );
    }
    if let Some(reason) = &report.not_merged {
        tracing::warn!(
            item = item.spec.item_id,
            reason,
            "a part of the journal is not merged"
        );
    }
    let unreadable = report.unreadable_points.as_slice();
    let told = unreadable
        .first()
        .map(|first| finding::points_unreadable(&item.spec.store_folder, unreadable.len(), first));
    item.status.notice(Origin::Points, told);
    shared.doubt(report.damage.iter());
    shared
        .update(item, |state| state.applied(report.base_position_after.0))
        .await?;
    item.status.points(&writer.points().await?);
    item.status.tick();
    Ok(())
}

/// The store is not where our cycles would go on: drop them, the next capture compares with its head.
async fn start_over_from_head(item: &Item, shared: &Shared) -> Result<(), Trouble> {
    let look = async { Ok(shared.writer(item).await?.state().await?) };
    let head = match look.await {
        Ok(ReplicaState::Complete { head_position, .. }) => Some(head_position.0),
        Ok(ReplicaState::Empty | ReplicaState::Partial) => None,
        Err::<_, Trouble>(error) => {
            tracing::warn!(
                item = item.spec.item_id,
                error = chain(&error),
                "can't look at the replica"
            );
            return Ok(());
        }
    };
    shared.forget_maps().await?;
    shared
        .give_up(item, |state| {
            state.complete = head.is_some();
            state.move_to(head.unwrap_or(0));
        })
        .await?;
    item.pass(pauses::GIVEN_UP).await;
    if let Some(head) = head {
        shared.reset_to(item, head).await?;
    }
    tracing::warn!(
        item = item.spec.item_id,
        "the replica is not where it was left; comparing"
    );
    Ok(())
}

/// Whether a waiting log is gone or damaged for good, rather than out of reach for now.
fn log_is_lost(trouble: &Trouble) -> bool {
    match trouble {
        Trouble::Log { source, .. } => source.kind() != HrlErrorKind::Io,
        Trouble::LogMissing(_) => true,
        _ => false,
    }
}

async fn open(log: &DiskLog) -> Result<(Arc<HrlReader<File>>, Vec<HrlEntry>), Trouble> {
    let path = log.path.clone();
    let opened = blocking(move || Ok(HrlReader::open(File::open(path)?))).await;
    let reader = opened
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Trouble::LogMissing(log.path.clone()),
            _ => Trouble::io(format!("open replication log {}", log.path.display()))(error),
        })?
        .map_err(|source| Trouble::Log {
            path: log.path.clone(),
            source,
        })?;
    if reader.info().id != log.id {
        // Somebody else's log under this name: its bytes belong to another instant.
        return Err(Trouble::LogMissing(log.path.clone()));
    }
    let entries = reader.entries().to_vec();
    Ok((Arc::new(reader), entries))
}

/// Entries that are read at once: few enough for memory, enough to make a thread worth its while.
fn batches(entries: &[HrlEntry]) -> impl Iterator<Item = &[HrlEntry]> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let more = rest.iter().take_while(|entry| {
            let first = bytes == 0;
            bytes += data_bytes(entry).max(1);
            first || bytes <= BATCH_BYTES
        });
        let (batch, later) = rest.split_at(more.count());
        rest = later;
        (!batch.is_empty()).then_some(batch)
    })
}

fn data_bytes(entry: &HrlEntry) -> u64 {
    if entry.is_zero() {
        0
    } else {
        entry.length.into()
    }
}

/// Data of some entries; `None` = zeroes.
async fn read(
    log: &DiskLog,
    reader: &Arc<HrlReader<File>>,
    batch: &[HrlEntry],
) -> Result<Vec<Option<Bytes>>, Trouble> {
    let (reader, batch) = (reader.clone(), batch.to_vec());
    let all = move || {
        let read = |entry: &HrlEntry| {
            let data = (!entry.is_zero()).then(|| reader.read(entry));
            Ok(data.transpose()?.map(Bytes::from))
        };
        Ok(batch.iter().map(read).collect::<Result<Vec<_>, HrlError>>())
    };
    blocking(all)
        .await
        .map_err(Trouble::io(format!(
            "read replication log {}",
            log.path.display()
        )))?
        .map_err(|source| Trouble::Log {
            path: log.path.clone(),
            source,
        })
}
