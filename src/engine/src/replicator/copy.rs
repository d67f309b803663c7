//! Moves bytes from a frozen point: what changed, what differs from a replica, or everything for the first time.

use async_trait::async_trait;
use bytes::Bytes;
use engine_protocol::v1::replication_status::State;
use futures::StreamExt as _;
use futures::TryStreamExt as _;
use futures::stream;
use hypervisor::{Extent, FrozenDisk, FrozenPoint};
use replica_store::{PointKind, Position, RecoveryPoint, ReplicaView, ReplicaWriter};
use uuid::Uuid;

use super::capture::allocated_bytes;
use super::pauses;
use super::ranges::{self, CHUNK};
use super::shared::{Item, Shared};
use super::status::StatusLine;
use super::throttle::Class;
use super::trouble::Trouble;
use crate::vm_config::VmConfig;

/// Reads in flight at once. More would slow the guest down, fewer would wait for the disk.
const READS: usize = 4;

/// Takes writes of one disk in order.
#[async_trait]
pub(super) trait Sink: Send {
    async fn write(&mut self, writes: Vec<(u64, Bytes)>) -> Result<(), Trouble>;
}

/// Counts bytes for the status line.
pub(super) struct Progress<'a> {
    status: &'a StatusLine,
    done: u64,
    total: u64,
}

impl<'a> Progress<'a> {
    pub fn new(status: &'a StatusLine, total: u64) -> Self {
        status.progress(0, total);
        Self {
            status,
            done: 0,
            total,
        }
    }

    fn add(&mut self, bytes: u64) {
        self.done += bytes;
        self.status.progress(self.done, self.total.max(self.done));
    }
}

/// Copies the ranges that changed.
pub(super) async fn changed(
    disk: &FrozenDisk,
    extents: &[Extent],
    sink: &mut dyn Sink,
) -> Result<(), Trouble> {
    let reads = ranges::chunks(extents)
        .into_iter()
        .map(|piece| read_source(disk, piece));
    let mut reads = stream::iter(reads).buffered(READS);
    while let Some((offset, data)) = reads.try_next().await? {
        sink.write(vec![(offset, data)]).await?;
    }
    Ok(())
}

/// Copies the blocks that differ from the replica.
pub(super) async fn compared(
    disk: &FrozenDisk,
    view: &ReplicaView,
    sink: &mut dyn Sink,
    progress: &mut Progress<'_>,
) -> Result<(), Trouble> {
    let allocated = ranges::joined(&disk.allocated);
    let reads = whole(disk).into_iter().map(|piece| {
        let allocated = &allocated;
        async move {
            let (wanted, present) =
                tokio::try_join!(read_or_zero(disk, allocated, piece), async {
                    Ok(view
                        .read(disk.disk.0, piece.offset, piece.length as usize)
                        .await?)
                })?;
            Ok::<_, Trouble>((piece, ranges::differing(piece.offset, &wanted, &present)))
        }
    });
    let mut reads = stream::iter(reads).buffered(READS);
    while let Some((piece, writes)) = reads.try_next().await? {
        sink.write(writes).await?;
        progress.add(piece.length);
    }
    Ok(())
}

/// Initial replication: makes the base equal to the frozen point and the point the first one.
pub(super) async fn initial(
    item: &Item,
    shared: &Shared,
    point: &FrozenPoint,
    config: VmConfig,
    base_is_empty: bool,
) -> Result<(), Trouble> {
    let writer = shared.writer(item).await?;
    let total = if base_is_empty {
        allocated_bytes(point)
    } else {
        point.disks.iter().map(|disk| disk.size_bytes).sum()
    };
    tracing::info!(
        item = item.spec.item_id,
        bytes = total,
        goes_on = !base_is_empty,
        "initial replication"
    );
    item.status.phase(State::InitialReplication);
    let mut progress = Progress::new(&item.status, total);
    let mut sent = 0;
    for disk in &point.disks {
        sent += if base_is_empty {
            fill_base(item, disk, &writer, &mut progress).await?
        } else {
            mend_base(item, disk, &writer, &mut progress).await?
        };
    }
    writer.base_flush().await?;
    item.pass(pauses::BASE_FLUSHED).await;
    let first = RecoveryPoint {
        id: Uuid::new_v4(),
        time_unix_ms: point.taken_unix_ms,
        kind: PointKind::Crash,
        position: Position::BASE,
        vm_config: serde_json::to_value(&config).map_err(|error| Trouble::Io {
            doing: "describe the virtual machine".to_owned(),
            source: error.into(),
        })?,
        changed_bytes: total,
        sent_bytes: sent,
        group_point_id: None,
    };
    writer.complete_base(first).await?;
    item.pass(pauses::BASE_COMPLETED).await;
    shared
        .update(item, |state| {
            state.complete = true;
            state.shipped = Position::BASE.0;
            state.tracking = Some(point.tracking);
            state.total_sent_bytes += sent;
            state.last_changed_bytes = total;
            state.last_sent_bytes = sent;
            state.last_cycle_unix_ms = point.taken_unix_ms;
        })
        .await?;
    tracing::info!(
        item = item.spec.item_id,
        sent_bytes = sent,
        "initial replication is complete"
    );
    item.status.points(&writer.points().await?);
    Ok(())
}

/// First try: allocated ranges, and of those only what is not zero.
async fn fill_base(
    item: &Item,
    disk: &FrozenDisk,
    writer: &ReplicaWriter,
    progress: &mut Progress<'_>,
) -> Result<u64, Trouble> {
    let mut sent = 0;
    let reads = ranges::chunks(&disk.allocated)
        .into_iter()
        .map(|piece| read_source(disk, piece));
    let mut reads = stream::iter(reads).buffered(READS);
    while let Some((offset, data)) = reads.try_next().await? {
        let length = data.len() as u64;
        for (zero, at, run) in ranges::zero_runs(offset, &data) {
            if !zero {
                sent += run.len() as u64;
                item.may_send(run.len() as u64, Class::Initial).await;
                writer.base_write(disk.disk.0, at, run).await?;
            }
        }
        progress.add(length);
        item.pass(pauses::BASE_WRITING).await;
    }
    Ok(sent)
}

/// A later try: what an earlier one has written stays, only differences are sent.
async fn mend_base(
    item: &Item,
    disk: &FrozenDisk,
    writer: &ReplicaWriter,
    progress: &mut Progress<'_>,
) -> Result<u64, Trouble> {
    let mut sent = 0;
    let allocated = ranges::joined(&disk.allocated);
    let reads = whole(disk).into_iter().map(|piece| {
        let allocated = &allocated;
        async move {
            let (wanted, present) =
                tokio::try_join!(read_or_zero(disk, allocated, piece), async {
                    Ok(writer
                        .base_read(disk.disk.0, piece.offset, piece.length as usize)
                        .await?)
                })?;
            Ok::<_, Trouble>((piece, ranges::differing(piece.offset, &wanted, &present)))
        }
    });
    let mut reads = stream::iter(reads).buffered(READS);
    while let Some((piece, writes)) = reads.try_next().await? {
        for (at, data) in writes {
            sent += data.len() as u64;
            item.may_send(data.len() as u64, Class::Initial).await;
            writer.base_write(disk.disk.0, at, data).await?;
        }
        progress.add(piece.length);
        item.pass(pauses::BASE_WRITING).await;
    }
    Ok(sent)
}

fn whole(disk: &FrozenDisk) -> Vec<Extent> {
    ranges::chunks(&[Extent {
        offset: 0,
        length: disk.size_bytes,
    }])
}

async fn read_source(disk: &FrozenDisk, piece: Extent) -> Result<(u64, Bytes), Trouble> {
    Ok((
        piece.offset,
        disk.reader
            .read(piece.offset, piece.length as usize)
            .await?,
    ))
}

async fn read_or_zero(
    disk: &FrozenDisk,
    allocated: &[Extent],
    piece: Extent,
) -> Result<Bytes, Trouble> {
    if ranges::touches(allocated, piece) {
        return Ok(disk
            .reader
            .read(piece.offset, piece.length as usize)
            .await?);
    }
    static ZEROES: [u8; CHUNK as usize] = [0; CHUNK as usize];
    Ok(Bytes::from_static(&ZEROES[..piece.length as usize]))
}
