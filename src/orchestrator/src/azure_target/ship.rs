//! From a frozen state into the replica: what differs from its head is appended, and a recovery point made.
//!
//! As on every other recovery host: nothing but what differs, 4 KiB by 4 KiB; under the recovery's own generation, so the store refuses
//! whoever is older; a large difference in several objects, of which only the last has a point. A cut round leaves objects without one,
//! and the next round compares with them.

use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use replica_store::{
    CyclePlan, CycleWriter, DiskSpec, Generation, PointKind, Position, RecoveryPoint, ReplicaView,
    ReplicaWriter, WriterOptions,
};
use replication_log::journal::CompressionLevel;
use uuid::Uuid;

use super::blobs::{self, Reach};
use super::frozen::{Frozen, FrozenDisk};
use super::record::{AzureVm, WayBack};
use super::trouble::Trouble;
use crate::app::App;
use crate::immutability;
use crate::store::records::{self, Item};

/// Unit of comparison.
const BLOCK: u64 = 4 << 10;
/// Bytes that are read at once, on both sides.
const PIECE: u64 = 4 << 20;
/// Pieces under way at once.
const SIDE_BY_SIDE: usize = 8;
/// Bytes of disk in one object.
const OBJECT_BYTES: u64 = 4 << 30;

/// The replica, open for what the VM writes.
pub(super) struct Ground {
    writer: ReplicaWriter,
    replica: Uuid,
    /// What it was made of.
    vm_config: serde_json::Value,
    /// Time of the newest point.
    newest_ms: i64,
    head: ReplicaView,
}

/// A range that differs.
enum Run {
    Data(u64, Bytes),
    Zeroes(u64, u64),
}

impl Ground {
    /// Opens it, and refuses anybody older from here on. One that is not there is never made.
    pub(super) async fn open(
        app: &App,
        reach: &Reach,
        vm: &AzureVm,
        generation: u64,
    ) -> Result<Self, Trouble> {
        let reader = reach.reader(app, vm).await?;
        let points = reader.points().await?;
        let origin = points
            .iter()
            .find(|point| point.id.to_string() == vm.point_id);
        let Some(origin) = origin.or(points.last()) else {
            return Err(Trouble::lasting(
                "RecoveryPointNotFound",
                "the replica has no recovery point any more",
                "Cancel the failback.",
            ));
        };
        let item = records::get::<Item>(app.store.as_ref(), &vm.item).await?;
        let policy = match &item {
            Some(item) => blobs::policy(app, &item.record).await?,
            None => None,
        };
        let options = WriterOptions {
            keys: blobs::keys(app, vm, true).await?,
            immutability_hours: policy
                .map_or(0, |policy| immutability::hours(&policy, app.now_ms())),
            any_disks: true,
            ..WriterOptions::default()
        };
        let disks: Vec<DiskSpec> = vm
            .blobs
            .iter()
            .map(|blob| DiskSpec {
                id: blob.disk,
                size_bytes: blob.bytes,
                name: blob.name.clone(),
            })
            .collect();
        let key = blobs::replica_key(vm)?;
        let generation = Generation(generation);
        let writer =
            ReplicaWriter::open_with(options, &reach.store(), &key, generation, &disks).await?;
        Ok(Self {
            replica: writer.replica_id().await?,
            vm_config: origin.vm_config.clone(),
            newest_ms: points
                .iter()
                .map(|point| point.time_unix_ms)
                .max()
                .unwrap_or(0),
            head: writer.last_view().await?,
            writer,
        })
    }
}

/// Ships it: position, time of its point, bytes sent, and the replica.
pub(super) async fn ship(
    ground: &Ground,
    frozen: &Frozen,
    vm: &AzureVm,
    back: &WayBack,
    now_ms: i64,
) -> Result<(u64, i64, u64, Uuid), Trouble> {
    let head = ground.head.position();
    // Azure compares two instants, not what happened in between: what a cut round wrote and the guest has taken back since is in no
    // difference to the instant before. So only from that instant's own position on it tells all.
    let known = back
        .shipped
        .as_ref()
        .filter(|known| known.replica == ground.replica && known.position == head.0);
    let size = |disk: &FrozenDisk| {
        let known = ground
            .head
            .disks()
            .iter()
            .find(|known| known.id == disk.disk);
        known.map_or(0, |known| known.size_bytes)
    };
    let disks = frozen.disks.iter().map(|disk| DiskSpec {
        id: disk.disk,
        // A cycle can't make a disk smaller that has grown at the source since.
        size_bytes: size(disk).max(disk.bytes),
        name: disk.name.clone(),
    });
    let mut cycle = Cycle {
        ground,
        disks: disks.collect(),
        time_unix_ms: now_ms.max(ground.newest_ms.saturating_add(1)),
        position: head.next(),
        open: None,
        waiting_bytes: 0,
        changed_bytes: 0,
        sent_bytes: 0,
    };
    for (disk, spec) in frozen.disks.iter().zip(cycle.disks.clone()) {
        let changed = disk.changed.as_ref().filter(|_| known.is_some());
        let pieces = pieces(changed, spec.size_bytes);
        let theirs = size(disk);
        let mut runs = futures::stream::iter(pieces)
            .map(|piece| differing(disk, &ground.head, theirs, piece))
            .buffered(SIDE_BY_SIDE);
        while let Some(runs) = runs.try_next().await? {
            cycle.add(disk.disk, runs).await?;
        }
    }
    let (time, changed_bytes) = (cycle.time_unix_ms, cycle.changed_bytes);
    // What is in the store already needs no other position; but the head must be one of ours, or the source takes nothing.
    let same = known.filter(|_| changed_bytes == 0);
    let (position, point_ms, sent_bytes) = match same {
        Some(known) => (head.0, known.point_ms, 0),
        None => {
            let (position, sent_bytes) = cycle.end().await?;
            (position.0, time, sent_bytes)
        }
    };
    tracing::info!(vm = %vm.id, round = back.round, position, changed_bytes, "a round of a VM in Azure is shipped");
    Ok((position, point_ms, sent_bytes, ground.replica))
}

/// Ranges to compare, in pieces of whole blocks, in order; of the whole disk when it is not known what changed.
fn pieces(changed: Option<&Vec<Range<u64>>>, bytes: u64) -> Vec<Range<u64>> {
    let whole = std::iter::once(0..bytes).collect();
    let mut ranges = changed.cloned().unwrap_or(whole);
    ranges.sort_unstable_by_key(|range| range.start);
    let mut pieces = Vec::new();
    let mut done = 0;
    for range in ranges {
        let mut at = (range.start / BLOCK * BLOCK).max(done);
        let end = range.end.next_multiple_of(BLOCK).min(bytes);
        while at < end {
            let to = end.min(at + PIECE);
            pieces.push(at..to);
            at = to;
        }
        done = done.max(end);
    }
    pieces
}

async fn differing(
    disk: &FrozenDisk,
    head: &ReplicaView,
    theirs_bytes: u64,
    piece: Range<u64>,
) -> Result<Vec<Run>, Trouble> {
    let ours = async {
        let end = piece.end.min(disk.bytes);
        let read = if end > piece.start {
            disk.read(piece.start..end).await?
        } else {
            Bytes::new()
        };
        Ok::<_, Trouble>(whole(read, &piece))
    };
    let theirs = async {
        let end = piece.end.min(theirs_bytes);
        let length = usize::try_from(end.saturating_sub(piece.start)).unwrap_or(0);
        let read = match length {
            0 => Ok(Bytes::new()),
            length => head.read(disk.disk, piece.start, length).await,
        };
        match read {
            Ok(read) => Ok::<_, Trouble>(Some(whole(read, &piece))),
            // Damaged there: it goes there again, whole.
            Err(error) if error.kind() == replica_store::ErrorKind::Corrupt => Ok(None),
            Err(error) => Err(error.into()),
        }
    };
    let (ours, theirs) = futures::join!(ours, theirs);
    Ok(compared(piece.start, &ours?, theirs?.as_ref()))
}

/// Behind the end of a disk it is zero.
fn whole(read: Bytes, piece: &Range<u64>) -> Bytes {
    let length = usize::try_from(piece.end - piece.start).unwrap_or(usize::MAX);
    if read.len() == length {
        return read;
    }
    let mut all = read.to_vec();
    all.resize(length, 0);
    all.into()
}

/// What differs, neighbours joined.
fn compared(offset: u64, ours: &Bytes, theirs: Option<&Bytes>) -> Vec<Run> {
    let block = usize::try_from(BLOCK).unwrap_or(4096);
    let mut runs: Vec<Run> = Vec::new();
    // Of the run that is being gathered: its start, and whether it is zero.
    let mut open: Option<(usize, bool)> = None;
    let mut close = |open: &mut Option<(usize, bool)>, end: usize| {
        if let Some((start, zero)) = open.take() {
            let at = offset + start as u64;
            runs.push(if zero {
                Run::Zeroes(at, (end - start) as u64)
            } else {
                Run::Data(at, ours.slice(start..end))
            });
        }
    };
    for start in (0..ours.len()).step_by(block) {
        let end = ours.len().min(start + block);
        let own = ours.get(start..end).unwrap_or_default();
        let same = theirs.is_some_and(|theirs| theirs.get(start..end) == Some(own));
        let kind = (!same).then(|| own.iter().all(|byte| *byte == 0));
        if kind != open.map(|(_, zero)| zero) {
            close(&mut open, start);
            open = kind.map(|zero| (start, zero));
        }
    }
    close(&mut open, ours.len());
    runs
}

/// A round on its way into the journal.
struct Cycle<'a> {
    ground: &'a Ground,
    disks: Vec<DiskSpec>,
    time_unix_ms: i64,
    /// Of the object that is being built, or else of the next one.
    position: Position,
    open: Option<CycleWriter>,
    waiting_bytes: u64,
    changed_bytes: u64,
    sent_bytes: u64,
}

impl Cycle<'_> {
    async fn add(&mut self, disk: Uuid, runs: Vec<Run>) -> Result<(), Trouble> {
        if runs.is_empty() {
            return Ok(());
        }
        if self.waiting_bytes >= OBJECT_BYTES {
            self.commit().await?;
        }
        let mut open = self.take().await?;
        for run in runs {
            let bytes = match run {
                Run::Data(offset, data) => {
                    let bytes = data.len() as u64;
                    open.write(disk, offset, data).await?;
                    bytes
                }
                Run::Zeroes(offset, length) => {
                    open.zero(disk, offset, length).await?;
                    length
                }
            };
            self.waiting_bytes += bytes;
            self.changed_bytes += bytes;
        }
        self.open = Some(open);
        Ok(())
    }

    /// The object that is being built; begun when there is none.
    async fn take(&mut self) -> Result<CycleWriter, Trouble> {
        if let Some(open) = self.open.take() {
            return Ok(open);
        }
        let plan = CyclePlan {
            position: self.position,
            time_unix_ms: self.time_unix_ms,
            disks: Some(self.disks.clone()),
            compression: CompressionLevel::default(),
        };
        Ok(self.ground.writer.begin_cycle_with(plan).await?)
    }

    async fn commit(&mut self) -> Result<(), Trouble> {
        let committed = self.take().await?.commit().await?;
        self.sent_bytes += committed.sent_bytes;
        self.position = committed.position.next();
        self.waiting_bytes = 0;
        Ok(())
    }

    /// Ends it with its recovery point.
    async fn end(mut self) -> Result<(Position, u64), Trouble> {
        self.commit().await?;
        let position = Position(self.position.0 - 1);
        let point = RecoveryPoint {
            id: Uuid::new_v4(),
            time_unix_ms: self.time_unix_ms,
            kind: PointKind::Crash,
            position,
            vm_config: self.ground.vm_config.clone(),
            changed_bytes: self.changed_bytes,
            sent_bytes: self.sent_bytes,
            group_point_id: None,
        };
        self.ground.writer.add_point(point).await?;
        Ok((position, self.sent_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_whole_blocks_once_each_up_to_the_end_of_the_disk() {
        let changed = vec![9 * BLOCK..9 * BLOCK + 512, 100..200, 300..BLOCK + 1];
        assert_eq!(
            pieces(Some(&changed), 9 * BLOCK + 512),
            [0..BLOCK, BLOCK..2 * BLOCK, 9 * BLOCK..9 * BLOCK + 512]
        );
        assert_eq!(pieces(None, PIECE + 512), [0..PIECE, PIECE..PIECE + 512]);
    }

    #[test]
    fn only_blocks_that_differ_are_sent_and_zeroes_as_zeroes() {
        let size = 4 * BLOCK as usize;
        let theirs = Bytes::from(vec![1; size]);
        let mut ours = vec![1; size];
        ours[BLOCK as usize..3 * BLOCK as usize].fill(7);
        ours[3 * BLOCK as usize..].fill(0);
        let ours = Bytes::from(ours);
        let runs = compared(PIECE, &ours, Some(&theirs));
        assert!(
            matches!(&runs[..], [Run::Data(at, data), Run::Zeroes(from, length)]
                if *at == PIECE + BLOCK && data.len() as u64 == 2 * BLOCK
                    && *from == PIECE + 3 * BLOCK && *length == BLOCK)
        );
        assert!(compared(0, &theirs, Some(&theirs.clone())).is_empty());
        assert_eq!(compared(0, &theirs, None).len(), 1, "damaged there");
    }
}
