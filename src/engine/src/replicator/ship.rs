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

use replica_store::{ErrorKind, Position, RecoveryPoint, ReplicaState};
use replication_log::hrl::{HrlEntry, HrlErrorKind, HrlReader};

use super::pauses;
use super::ranges;
use super::shared::{Item, Shared};
use super::state::{CycleRecord, DiskLog};
use super::status::Origin;
use super::throttle::Class;
use super::trouble::{Trouble, chain};
use crate::backoff;
use crate::task::blocking;

/// Retention and the applier run at least this often, also when nothing is shipped.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(60);

/// Runs until the item stops or is fenced.
pub(super) async fn run(item: &Item, shared: &Shared) -> Result<Infallible, Trouble> {
    let mut waiting = shared.waiting();
    let mut failures = 0;
    let mut maintained = None;
    loop {
        let work = async {
            if let Some(record) = shared.front() {
                one(item, shared, &record).await?;
            }
            if shared.front().is_none()
                || maintained
                    .is_none_or(|at: tokio::time::Instant| at.elapsed() > MAINTENANCE_INTERVAL)
            {
                maintain(item, shared).await?;
                maintained = Some(tokio::time::Instant::now());
            }
            Ok(())
        };
        let result: Result<(), Trouble> = tokio::select! {
            biased;
            () = shared.halt.cancelled() => return Err(Trouble::Stopped),
            result = work => result,
        };
        let pause = match result {
            Ok(()) => {
                failures = 0;
                item.status.clear(Origin::Ship);
                if shared.front().is_some() {
                    continue;
                }
                MAINTENANCE_INTERVAL
            }
            Err(trouble) if trouble.is_fenced() => return Err(trouble),
            Err(trouble) => {
                failures += 1;
                shared.close_store().await;
                // When dropping fails half way, only loading again tells what is left: the round ends.
                if matches!(&trouble, Trouble::Store(error) if error.kind() == ErrorKind::Conflict)
                {
                    start_over_from_head(item, shared).await?;
                } else if log_is_lost(&trouble) {
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
            () = shared.halt.cancelled() => return Err(Trouble::Stopped),
            () = tokio::time::sleep(pause) => {}
            _ = waiting.wait_for(|count| *count > 0), if !only_time => {}
        }
    }
}

/// Ships one cycle.
async fn one(item: &Item, shared: &Shared, record: &CycleRecord) -> Result<(), Trouble> {
    let writer = shared.writer(item).await?;
    let mut cycle = writer
        .begin_cycle(Position(record.position), record.taken_unix_ms)
        .await?;
    for log in &record.logs {
        let (reader, entries) = open(log).await?;
        for entry in entries {
            let data = read(log, &reader, entry).await?;
            for (zero, offset, run) in ranges::zero_runs(entry.offset, &data) {
                if zero {
                    cycle.zero(log.disk.0, offset, run.len() as u64).await?;
                } else {
                    item.may_send(run.len() as u64, Class::Delta).await;
                    cycle.write(log.disk.0, offset, run).await?;
                }
            }
        }
        item.pass(pauses::SENDING).await;
    }
    let committed = cycle.commit().await?;
    item.pass(pauses::APPENDED).await;
    let point = RecoveryPoint {
        id: record.point_id,
        time_unix_ms: record.taken_unix_ms,
        kind: record.kind,
        position: Position(record.position),
        vm_config: serde_json::to_value(&record.vm_config).map_err(|error| Trouble::Io {
            doing: "describe the virtual machine".to_owned(),
            source: error.into(),
        })?,
        changed_bytes: record.changed_bytes,
        sent_bytes: committed.sent_bytes,
        group_point_id: record.group_point,
    };
    writer.add_point(point).await?;
    item.pass(pauses::POINT_ADDED).await;
    shared
        .update(item, |state| {
            state.shipped = record.position;
            state.tracking = Some(record.tracking);
            state.total_sent_bytes += committed.sent_bytes;
            state.last_changed_bytes = record.changed_bytes;
            state.last_sent_bytes = committed.sent_bytes;
            state.last_cycle_unix_ms = record.taken_unix_ms;
        })
        .await?;
    item.pass(pauses::STATE_WRITTEN).await;
    let (files, shipped) = (item.files.clone(), record.clone());
    blocking(move || files.remove_record(&shipped))
        .await
        .map_err(Trouble::io("remove a shipped cycle"))?;
    shared.pop(item);
    tracing::info!(
        item = item.spec.item_id,
        position = record.position,
        sent_bytes = committed.sent_bytes,
        "cycle shipped"
    );
    Ok(())
}

/// Retention and applier, off the capture path; then the list of points.
async fn maintain(item: &Item, shared: &Shared) -> Result<(), Trouble> {
    if !shared.state().await.complete {
        return Ok(());
    }
    let writer = shared.writer(item).await?;
    let retention = item.policy.borrow().retention;
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
    item.status.points(&writer.points().await?);
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
    shared
        .give_up(item, |state| {
            state.tracking = None;
            state.complete = head.is_some();
            state.shipped = head.unwrap_or(0);
        })
        .await?;
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

async fn read(
    log: &DiskLog,
    reader: &Arc<HrlReader<File>>,
    entry: HrlEntry,
) -> Result<bytes::Bytes, Trouble> {
    let reader = reader.clone();
    blocking(move || Ok(reader.read(&entry)))
        .await
        .map_err(Trouble::io(format!(
            "read replication log {}",
            log.path.display()
        )))?
        .map(bytes::Bytes::from)
        .map_err(|source| Trouble::Log {
            path: log.path.clone(),
            source,
        })
}
