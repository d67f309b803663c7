//! Initial replication: makes base equal to a frozen point, and the point the first one.
//!
//! ```text
//! piece of the frozen disk ─► read ─┬─ hash ─► map of block hashes
//!                                   └─ what base has not ─► base          several pieces at once
//! every now and then: base durable ─► map durable, with how far it counts (base is flushed behind the writes all along)
//! ```
//!
//! What base has already, of an earlier try or of a seed, is not sent again: below the mark that the map keeps the
//! map tells, above it base itself is read.

use std::sync::Arc;

use bytes::Bytes;
use engine_protocol::v1::replication_status::State;
use futures::StreamExt as _;
use futures::TryStreamExt as _;
use futures::stream;
use hypervisor::{Extent, FrozenDisk, FrozenPoint};
use replica_store::{PointKind, Position, RecoveryPoint, ReplicaWriter};
use tokio::time::Instant;
use uuid::Uuid;

use super::buffers;
use super::capture::{allocated_bytes, has_disks};
use super::flush_behind::FlushBehind;
use super::hashes::{BLOCK, BlockHash, BlockMap};
use super::judge::Judge;
use super::pauses;
use super::ranges::{self, PIECE};
use super::refine::{self, Run};
use super::shared::{Item, Shared};
use super::throttle::Class;
use super::trouble::Trouble;
use crate::task::blocking;
use crate::vm_config::VmConfig;

/// Pieces on their way at once.
const PIECES: usize = 4;
/// What is written between two marks: more costs more after a kill, less costs more flushes.
const MARK_BYTES: u64 = 1 << 30;

/// Makes the base equal to the frozen point and the point the first one.
pub(super) async fn initial(
    item: &Item,
    shared: &Shared,
    point: &FrozenPoint,
    config: VmConfig,
    base_is_empty: bool,
) -> Result<(), Trouble> {
    let writer = shared.writer(item).await?;
    let sizes = point
        .disks
        .iter()
        .map(|disk| (disk.disk.0, disk.size_bytes));
    if !has_disks(&writer, sizes).await? {
        // Between the look at the disks and the freeze. Base would tell of another size than the point has.
        shared.close_store().await;
        return Err(Trouble::Io {
            doing: "fill base".to_owned(),
            source: std::io::Error::other("a disk was resized meanwhile; its base begins anew"),
        });
    }
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
    item.status.progress(0, total);
    if base_is_empty {
        begin_maps(shared).await?;
    }
    let mut filling = Filling {
        item,
        shared,
        writer: &writer,
        base_is_empty,
        done: 0,
        total,
        sent: 0,
    };
    for disk in &point.disks {
        filling.disk(disk, 0, None).await?;
    }
    let sent = filling.sent;
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
    let first_id = first.id;
    writer.complete_base(first).await?;
    item.pass(pauses::BASE_COMPLETED).await;
    let asked = item.policy.borrow().resynchronize;
    shared
        .update(item, |state| {
            state.complete = true;
            state.shipped = Position::BASE.0;
            state.tracking = Some(point.tracking);
            state.instant = first_id;
            state.total_sent_bytes += sent;
            state.last_changed_bytes = total;
            state.last_sent_bytes = sent;
            state.last_cycle_unix_ms = point.taken_unix_ms;
            // Everything was just compared or copied.
            state.knowledge.suspects.clear();
            state.knowledge.joining.clear();
            state.knowledge.members = point.disks.iter().map(|disk| disk.disk).collect();
            state.raised.clear();
            (state.resynchronize_raised, state.resynchronized) = (asked, asked);
            for disk in &mut state.disks {
                (disk.changed_at, disk.changed_before) = (0, 0);
            }
        })
        .await?;
    finish_maps(shared).await?;
    tracing::info!(
        item = item.spec.item_id,
        sent_bytes = sent,
        "initial replication is complete"
    );
    item.status.points(&writer.points().await?);
    Ok(())
}

async fn begin_maps(shared: &Shared) -> Result<(), Trouble> {
    let (state, maps) = (shared.state().await, shared.maps.clone());
    blocking(move || {
        for disk in &state.disks {
            maps.begin_filling(&state, disk);
        }
        Ok(())
    })
    .await
    .map_err(Trouble::io("begin maps of block hashes"))
}

async fn finish_maps(shared: &Shared) -> Result<(), Trouble> {
    let (state, maps) = (shared.state().await, shared.maps.clone());
    blocking(move || {
        for disk in &state.disks {
            maps.filled(disk.id);
        }
        Ok(())
    })
    .await
    .map_err(Trouble::io("finish maps of block hashes"))
}

/// Base on its way to the frozen point.
pub(super) struct Filling<'a> {
    pub item: &'a Item,
    pub shared: &'a Shared,
    pub writer: &'a ReplicaWriter,
    /// Nothing was ever written to it.
    pub base_is_empty: bool,
    pub done: u64,
    pub total: u64,
    pub sent: u64,
}

/// A piece that is in base.
struct Placed {
    piece: Extent,
    hashes: Vec<BlockHash>,
    sent: u64,
    /// Base changed where the map had vouched for it.
    doubted: bool,
}

impl Filling<'_> {
    /// Fills base of a disk from a byte on, for as long as there is time; returns how far it came.
    pub async fn disk(
        &mut self,
        frozen: &FrozenDisk,
        from: u64,
        until: Option<Instant>,
    ) -> Result<u64, Trouble> {
        let map = self.shared.maps.get(frozen.disk);
        let allocated = ranges::whole_blocks(&frozen.allocated, frozen.size_bytes);
        let todo = if self.base_is_empty {
            ranges::clip(&allocated, from, frozen.size_bytes)
        } else {
            vec![Extent {
                offset: from,
                length: frozen.size_bytes - from,
            }]
        };
        let place = Place {
            item: self.item,
            writer: self.writer,
            frozen,
            allocated: &allocated,
            judge: Judge {
                disk: frozen.disk,
                map: map.clone(),
                waiting: Vec::new(),
                is_coarse: Arc::default(),
            },
            base_is_empty: self.base_is_empty,
            known_to: map
                .as_ref()
                .and_then(|map| map.header().filled_to)
                .unwrap_or(0),
        };
        let pieces = ranges::pieces(&todo).map(|piece| place.piece(piece));
        let mut pieces = stream::iter(pieces).buffered(PIECES);
        let mut marked = 0;
        let (mut notes, mut later) = (Notes::new(map), Vec::new());
        let mut flushes = FlushBehind::new(self.writer);
        while let Some(placed) = pieces.try_next().await? {
            flushes.wrote(placed.sent).await?;
            self.sent += placed.sent;
            self.done += placed.piece.length;
            marked += placed.sent;
            let end = placed.piece.offset + placed.piece.length;
            if placed.doubted {
                later.push((placed.piece.offset / BLOCK, placed.hashes));
            } else {
                notes
                    .add(placed.piece.offset / BLOCK, placed.hashes)
                    .await?;
            }
            self.item
                .status
                .progress(self.done, self.total.max(self.done));
            self.item.pass(pauses::BASE_WRITING).await;
            if until.is_some_and(|until| Instant::now() >= until) {
                flushes.settle().await?;
                notes.write().await?;
                self.mark(frozen, end, later).await?;
                return Ok(end);
            }
            if marked >= MARK_BYTES && end > place.known_to {
                notes.write().await?;
                self.mark(frozen, end, std::mem::take(&mut later)).await?;
                marked = 0;
            }
        }
        drop(pieces);
        flushes.settle().await?;
        notes.write().await?;
        self.mark(frozen, frozen.size_bytes, later).await?;
        Ok(frozen.size_bytes)
    }

    /// Writes what changed on a part of the disk that base holds already.
    pub async fn again(&mut self, frozen: &FrozenDisk, dirty: &[Extent]) -> Result<(), Trouble> {
        let everywhere = [Extent {
            offset: 0,
            length: frozen.size_bytes,
        }];
        let place = Place {
            item: self.item,
            writer: self.writer,
            frozen,
            allocated: &everywhere,
            judge: Judge {
                disk: frozen.disk,
                map: self.shared.maps.get(frozen.disk),
                waiting: Vec::new(),
                is_coarse: Arc::default(),
            },
            base_is_empty: false,
            known_to: u64::MAX,
        };
        let pieces = ranges::pieces(dirty).map(|piece| place.piece(piece));
        let mut pieces = stream::iter(pieces).buffered(PIECES);
        let mut later = Vec::new();
        while let Some(placed) = pieces.try_next().await? {
            self.sent += placed.sent;
            if placed.doubted {
                later.push((placed.piece.offset / BLOCK, placed.hashes));
            }
        }
        drop(pieces);
        if !later.is_empty() {
            self.writer.base_flush().await?;
            note_all(place.judge.map.clone(), later).await?;
        }
        Ok(())
    }

    /// What is in base up to here stays known after a kill: base first, then the map that vouches for it.
    async fn mark(&self, frozen: &FrozenDisk, to: u64, later: Later) -> Result<(), Trouble> {
        let Some(map) = self.shared.maps.get(frozen.disk) else {
            return Ok(());
        };
        self.writer.base_flush().await?;
        note_all(Some(map.clone()), later).await?;
        blocking(move || map.commit(|header| header.filled_to = Some(to)))
            .await
            .map_err(Trouble::io("note how far base is filled"))
    }
}

/// Hashes of blocks that were in doubt: they count once base is durable.
type Later = Vec<(u64, Vec<BlockHash>)>;

/// Blocks whose hashes are noted in the map together: 64 MiB of the disk, 256 KiB of memory.
const NOTED_AT_ONCE: usize = 16 << 10;

/// Hashes of blocks that base holds, on their way into the map. Until they are there the blocks count as unknown, so
/// what is lost here is compared again.
struct Notes {
    map: Option<Arc<BlockMap>>,
    waiting: Later,
    blocks: usize,
}

impl Notes {
    fn new(map: Option<Arc<BlockMap>>) -> Self {
        Self {
            map,
            waiting: Later::new(),
            blocks: 0,
        }
    }

    async fn add(&mut self, first: u64, hashes: Vec<BlockHash>) -> Result<(), Trouble> {
        self.blocks += hashes.len();
        match self.waiting.last_mut() {
            Some((begin, run)) if *begin + run.len() as u64 == first => run.extend(hashes),
            _ => self.waiting.push((first, hashes)),
        }
        if self.blocks < NOTED_AT_ONCE {
            return Ok(());
        }
        self.write().await
    }

    async fn write(&mut self) -> Result<(), Trouble> {
        self.blocks = 0;
        note_all(self.map.clone(), std::mem::take(&mut self.waiting)).await
    }
}

async fn note_all(map: Option<Arc<BlockMap>>, later: Later) -> Result<(), Trouble> {
    let Some(map) = map.filter(|_| !later.is_empty()) else {
        return Ok(());
    };
    blocking(move || {
        later
            .iter()
            .try_for_each(|(first, hashes)| map.set(*first, hashes))
    })
    .await
    .map_err(Trouble::io("note block hashes"))
}

/// How pieces of one disk get into base.
struct Place<'a> {
    item: &'a Item,
    writer: &'a ReplicaWriter,
    frozen: &'a FrozenDisk,
    allocated: &'a [Extent],
    judge: Judge,
    base_is_empty: bool,
    /// Below, the map knows what base holds.
    known_to: u64,
}

impl Place<'_> {
    async fn piece(&self, piece: Extent) -> Result<Placed, Trouble> {
        let zero = !is_allocated(self.allocated, piece);
        let _memory = if zero {
            None
        } else {
            buffers::INITIAL.take(piece.length).await
        };
        let data = read_or_zero(self.frozen, self.allocated, piece).await?;
        let (key, seen) = (self.judge.map.as_ref().map(|map| *map.key()), data.clone());
        let hashes = blocking(move || {
            let hash = |key| {
                let blocks = refine::blocks(&seen);
                blocks.map(|block| BlockHash::of(&key, block)).collect()
            };
            Ok(key.map_or_else(Vec::new, hash))
        });
        let end = piece.offset + piece.length;
        let place = async {
            let writes = if self.base_is_empty {
                fresh(piece.offset, &data)
            } else if end <= self.known_to {
                self.judge.known(piece.offset, &data).await?
            } else {
                self.differing(piece, &data).await?
            };
            let doubted = !self.base_is_empty && end <= self.known_to && !writes.is_empty();
            if doubted {
                self.doubt(&writes).await?;
            }
            let mut sent = 0;
            for run in writes {
                sent += self.write(run).await?;
            }
            Ok::<_, Trouble>((sent, doubted))
        };
        let hashes = async { hashes.await.map_err(Trouble::io("hash blocks")) };
        let (hashes, (sent, doubted)) = tokio::try_join!(hashes, place)?;
        Ok(Placed {
            piece,
            hashes,
            sent,
            doubted,
        })
    }

    /// Before base changes where the map vouches for it, the map stops doing so, durably: whether a write that
    /// was cut has happened is not known, and the source may go back to what the map remembers.
    async fn doubt(&self, writes: &[Run]) -> Result<(), Trouble> {
        let Some(map) = self.judge.map.clone() else {
            return Ok(());
        };
        let blocks: Vec<(u64, usize)> = writes
            .iter()
            .map(|run| {
                let (Run::Data(offset, _) | Run::Zeroes(offset, _)) = run;
                let (first, end) = (offset / BLOCK, (offset + run.length()).div_ceil(BLOCK));
                (first, (end - first) as usize)
            })
            .collect();
        blocking(move || {
            for (first, count) in blocks {
                map.set(first, &vec![BlockHash::UNKNOWN; count])?;
            }
            map.commit(|_| {})
        })
        .await
        .map_err(Trouble::io("note that block hashes are in doubt"))
    }

    async fn differing(&self, piece: Extent, data: &Bytes) -> Result<Vec<Run>, Trouble> {
        let length = piece.length as usize;
        let there = self
            .writer
            .base_read(self.frozen.disk.0, piece.offset, length);
        let differing = ranges::differing(piece.offset, data, &there.await?);
        Ok(differing
            .into_iter()
            .map(|(offset, data)| Run::Data(offset, data))
            .collect())
    }

    async fn write(&self, run: Run) -> Result<u64, Trouble> {
        let (offset, data, sent) = match run {
            Run::Data(offset, data) => {
                let sent = data.len() as u64;
                (offset, data, sent)
            }
            Run::Zeroes(offset, length) => (offset, zeroes(length as usize), 0),
        };
        if sent > 0 {
            self.item.may_send(sent, Class::Initial).await;
        }
        self.writer
            .base_write(self.frozen.disk.0, offset, data)
            .await?;
        self.item.status.sent(sent, sent);
        Ok(sent)
    }
}

/// What an empty base needs: everything that is not zero, in runs that stores like.
fn fresh(offset: u64, data: &Bytes) -> Vec<Run> {
    ranges::zero_runs(offset, data)
        .into_iter()
        .filter(|(zero, ..)| !zero)
        .map(|(_, offset, data)| Run::Data(offset, data))
        .collect()
}

/// Whether a range may hold anything but zeroes.
pub(super) fn is_allocated(allocated: &[Extent], range: Extent) -> bool {
    ranges::touches(allocated, range)
}

/// Reads a piece of a frozen disk; what was never written is not read.
pub(super) async fn read_or_zero(
    disk: &FrozenDisk,
    allocated: &[Extent],
    piece: Extent,
) -> Result<Bytes, Trouble> {
    if is_allocated(allocated, piece) {
        let read = disk.reader.read(piece.offset, piece.length as usize);
        return Ok(read.await?);
    }
    Ok(zeroes(piece.length as usize))
}

/// Zeroes that cost no memory of their own; at most [`PIECE`].
fn zeroes(length: usize) -> Bytes {
    static ZEROES: std::sync::LazyLock<Bytes> =
        std::sync::LazyLock::new(|| Bytes::from(vec![0; PIECE as usize]));
    ZEROES.slice(..length)
}
