//! Decides which blocks of a frozen disk go into a cycle: by the map of block hashes, and where that knows
//! nothing, by the replica itself when a comparison needs to know.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use hypervisor::{DiskId, Extent, FrozenDisk};
use replica_store::{ErrorKind, ReplicaView};
use tokio::sync::{OnceCell, OwnedSemaphorePermit};
use uuid::Uuid;

use super::buffers::Buffers;
use super::copy::{is_allocated, read_or_zero};
use super::hashes::{BLOCK, BlockHash, BlockMap, MapKey};
use super::refine::{self, Run, Verdict};
use super::shared::{Item, Shared};
use super::touched::Touches;
use super::trouble::Trouble;
use crate::task::blocking;

/// The most that is read from the replica at once.
const ASK_BYTES: usize = 1 << 20;

/// Of one disk, for one cycle.
#[derive(Clone)]
pub(super) struct Judge {
    pub disk: DiskId,
    pub map: Option<Arc<BlockMap>>,
    /// What cycles change that are captured and not in the map.
    pub waiting: Vec<Arc<Touches>>,
    /// Whether pieces go whole when something of them does.
    pub is_coarse: Arc<AtomicBool>,
}

/// The replica's head, with every disk that it knows; opened when first asked.
pub(super) struct Head<'a> {
    item: &'a Item,
    shared: &'a Shared,
    view: OnceCell<ReplicaView>,
}

impl<'a> Head<'a> {
    pub fn new(item: &'a Item, shared: &'a Shared) -> Self {
        Self {
            item,
            shared,
            view: OnceCell::new(),
        }
    }

    async fn view(&self) -> Result<&ReplicaView, Trouble> {
        let open = async { Ok(self.shared.writer(self.item).await?.last_view().await?) };
        self.view.get_or_try_init(|| open).await
    }
}

impl Judge {
    /// From now on pieces go whole when something of them does: few large changes in place of many small ones.
    pub fn coarsen(&self, is_coarse: bool) {
        self.is_coarse.store(is_coarse, Ordering::Relaxed);
    }

    /// Reads a piece of the frozen disk and tells what of it goes into the cycle. `head` is asked about unknown
    /// blocks; without it they go. The permit stands for the memory of the runs.
    pub async fn piece(
        &self,
        frozen: &FrozenDisk,
        allocated: &[Extent],
        piece: Extent,
        memory: &Buffers,
        head: Option<&Head<'_>>,
    ) -> Result<(Vec<Run>, Option<OwnedSemaphorePermit>), Trouble> {
        let zero = !is_allocated(allocated, piece);
        let permit = if zero {
            None
        } else {
            memory.take(piece.length).await
        };
        let data = read_or_zero(frozen, allocated, piece).await?;
        let (judge, seen) = (self.clone(), data.clone());
        let judged = blocking(move || judge.by_map(piece.offset, &seen, zero)).await;
        let mut verdicts = judged.map_err(Trouble::io("compare with the map of block hashes"))?;
        if let Some(head) = head {
            self.ask(head, piece.offset, &data, &mut verdicts).await?;
        }
        refine::send_unknown(&mut verdicts);
        let runs = refine::runs(piece.offset, &data, &verdicts);
        if self.is_coarse.load(Ordering::Relaxed) {
            return Ok((refine::coarse(runs, piece.offset, data), permit));
        }
        Ok((runs, permit))
    }

    /// Tells what of a piece differs from what the map knows; the unknown differs.
    pub async fn known(&self, offset: u64, data: &Bytes) -> Result<Vec<Run>, Trouble> {
        let (judge, seen) = (self.clone(), data.clone());
        let judged = blocking(move || judge.by_map(offset, &seen, false)).await;
        let mut verdicts = judged.map_err(Trouble::io("compare with the map of block hashes"))?;
        refine::send_unknown(&mut verdicts);
        Ok(refine::runs(offset, data, &verdicts))
    }

    fn by_map(&self, offset: u64, data: &Bytes, zero: bool) -> std::io::Result<Vec<Verdict>> {
        let count = data.len().div_ceil(BLOCK as usize);
        let first = offset / BLOCK;
        let (key, mut known) = match &self.map {
            Some(map) => (*map.key(), map.get(first, count)?),
            None => (MapKey::random(), vec![BlockHash::UNKNOWN; count]),
        };
        for waiting in self.waiting.iter().filter_map(|all| all.get(&self.disk)) {
            for (block, known) in (first..).zip(&mut known) {
                if waiting.has(block) {
                    *known = BlockHash::UNKNOWN;
                }
            }
        }
        Ok(if zero {
            refine::zeroes_by_hash(&known)
        } else {
            refine::by_hash(&key, data, &known)
        })
    }

    /// Compares unknown blocks with the replica. What is equal there is known from now on.
    async fn ask(
        &self,
        head: &Head<'_>,
        offset: u64,
        data: &Bytes,
        verdicts: &mut [Verdict],
    ) -> Result<(), Trouble> {
        let waits = |block: u64| {
            let mut all = self.waiting.iter().filter_map(|all| all.get(&self.disk));
            all.any(|touched| touched.has(block))
        };
        for (start, end) in refine::asked(data, verdicts) {
            for at in (start..end).step_by(ASK_BYTES) {
                let part = data.slice(at..end.min(at + ASK_BYTES));
                let view = head.view().await?;
                let from = offset + at as u64;
                let there = match read_grown(view, self.disk.0, from, part.len()).await {
                    Ok(there) => there,
                    // Damaged there: it goes there again.
                    Err(Trouble::Store(error)) if error.kind() == ErrorKind::Corrupt => continue,
                    Err(trouble) => return Err(trouble),
                };
                let first = at / BLOCK as usize;
                let blocks = refine::blocks(&part).zip(refine::blocks(&there));
                let mut learnt = Vec::new();
                for (verdict, (now, there)) in verdicts[first..].iter_mut().zip(blocks) {
                    let block = from / BLOCK + learnt.len() as u64;
                    let hash = match *verdict {
                        Verdict::Ask { hash } => hash,
                        _ => BlockHash::UNKNOWN,
                    };
                    // A waiting cycle has changed it: the replica does not show what the cycle will make of it.
                    let same = now == there && !waits(block);
                    learnt.push(if same { hash } else { BlockHash::UNKNOWN });
                    if same {
                        *verdict = Verdict::Same;
                    }
                }
                self.learn(from / BLOCK, learnt).await?;
            }
        }
        Ok(())
    }

    /// Notes hashes of blocks that equal the replica's; the others stay as they are.
    async fn learn(&self, first: u64, learnt: Vec<BlockHash>) -> Result<(), Trouble> {
        let Some(map) = self.map.clone() else {
            return Ok(());
        };
        let note = move || {
            let mut block = first;
            for run in
                learnt.chunk_by(|a, b| (*a == BlockHash::UNKNOWN) == (*b == BlockHash::UNKNOWN))
            {
                if run[0] != BlockHash::UNKNOWN {
                    map.set(block, run)?;
                }
                block += run.len() as u64;
            }
            Ok(())
        };
        blocking(note)
            .await
            .map_err(Trouble::io("note block hashes"))
    }
}

/// Reads of the replica; what lies behind the end that its disk has there is zero: the source has grown since.
async fn read_grown(
    view: &ReplicaView,
    disk: Uuid,
    offset: u64,
    length: usize,
) -> Result<Bytes, Trouble> {
    let size = view
        .disks()
        .iter()
        .find(|known| known.id == disk)
        .map_or(0, |known| known.size_bytes);
    let inside = size.saturating_sub(offset).min(length as u64) as usize;
    if inside == length {
        return Ok(view.read(disk, offset, length).await?);
    }
    let mut bytes = match inside {
        0 => Vec::new(),
        _ => view.read(disk, offset, inside).await?.to_vec(),
    };
    bytes.resize(length, 0);
    Ok(bytes.into())
}
