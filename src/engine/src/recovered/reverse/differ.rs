//! Where a recovered VM's disk may differ from the head of its replica, and where it does.
//!
//! ```text
//!   tracked:    changed since the instant that the store has
//!   untracked:  what the VM wrote above its point  ∪  what the journal changed behind that point
//!                                                └─► compared with the head, 4 KiB by 4 KiB ─► what is sent
//! ```
//!
//! Everything is compared, tracked changes too: they are coarse, and after a kill they may be in the store already. What a
//! conversion to generation 1 has put onto the disk is taken off before: the hypervisor copies whole clusters into the VM's
//! layer, so it may be in what was written without the guest's doing.

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, Stream, StreamExt as _};
use hypervisor::{Changes, Extent, ExtentSet, FrozenDisk, FrozenPoint, Hypervisor};
use replica_store::{Changed, DiskSpec, ErrorKind, ReplicaView};
use uuid::Uuid;

use super::is_of_store;
use crate::recovered::Conversion;
use crate::replicator::hashes::{BLOCK, is_zero};
use crate::replicator::ranges;
use crate::replicator::refine::{self, Run, Verdict};

/// Pieces that are read at once, each of up to [`ranges::PIECE`] and twice that in memory.
const PIECES: usize = 4;

/// What the journal changed behind the point that a VM was made from; `None`, or a disk that is not named = it can't be told.
/// What was shipped already is in it: a host that lost power may have lost writes that the store has.
pub(super) type Behind = Option<Changed>;

/// The ranges of a disk that are to be compared, whole blocks that lie in what it is in the replica.
pub(super) async fn candidates(
    hypervisor: &dyn Hypervisor,
    point: &FrozenPoint,
    disk: &FrozenDisk,
    spec: &DiskSpec,
    behind: &Behind,
) -> anyhow::Result<Vec<Extent>> {
    let size_bytes = spec.size_bytes;
    if let Changes::Since(changed) = &disk.changes {
        return Ok(blocks(changed, size_bytes));
    }
    let own = hypervisor
        .own_extents(point, disk.disk)
        .await
        .context("ask what the recovered VM has written above its recovery point")?;
    let behind = behind.as_ref().and_then(|behind| behind.get(&spec.id));
    let (Some(own), Some(behind)) = (own, behind) else {
        tracing::info!(disk = %spec.id, "what may differ from the replica is not known; all of the disk is compared");
        return Ok(blocks(
            &[Extent {
                offset: 0,
                length: size_bytes,
            }],
            size_bytes,
        ));
    };
    let mut all = own;
    all.extend(behind.iter().map(|range| Extent {
        offset: range.start,
        length: range.end - range.start,
    }));
    Ok(blocks(&all, size_bytes))
}

/// What of these ranges the head does not have, piece by piece in the order of the disk.
pub(super) fn differing<'a>(
    frozen: &'a FrozenDisk,
    source: Uuid,
    view: &'a ReplicaView,
    candidates: &'a [Extent],
    conversion: Option<&'a Conversion>,
) -> impl Stream<Item = anyhow::Result<Vec<Run>>> + 'a {
    // A disk that the head never had is compared with zeroes, which is what its base holds.
    let known = view.disks().iter().find(|disk| disk.id == source);
    let known = known.map_or(0, |disk| disk.size_bytes);
    stream::iter(ranges::pieces(candidates))
        .map(move |piece| async move {
            let ours = padded(piece, frozen.size_bytes, |length| async move {
                let read = frozen.reader.read(piece.offset, length);
                read.await.context("read the recovered VM's disk")
            });
            let theirs = padded(piece, known, |length| async move {
                let read = view.read(source, piece.offset, length);
                read.await.context("read the replica's head")
            });
            let (ours, theirs) = futures::join!(ours, theirs);
            let ours = match conversion {
                Some(conversion) => conversion.restore(source, piece.offset, ours?),
                None => ours?,
            };
            let theirs = match theirs {
                // Damaged there: it goes there again, whole.
                Err(error) if is_of_store(&error, ErrorKind::Corrupt) => {
                    ours.iter().map(|byte| !byte).collect()
                }
                other => other?,
            };
            Ok(compared(piece.offset, &ours, &theirs))
        })
        .buffered(PIECES)
}

/// Whole blocks around the ranges, up to the end of the disk. Small gaps stay gaps, unlike in
/// [`ranges::whole_blocks`]: here each block is read at both sides.
fn blocks(ranges: &[Extent], size_bytes: u64) -> Vec<Extent> {
    let blocks = ranges.iter().map(|range| {
        let offset = range.offset / BLOCK * BLOCK;
        let end = range.end().div_ceil(BLOCK).saturating_mul(BLOCK);
        Extent {
            offset,
            length: end - offset,
        }
    });
    ExtentSet::from_unsorted(blocks.collect())
        .clip(size_bytes)
        .into_vec()
}

/// A piece of a disk that ends at `size_bytes`; behind its end it is zero.
async fn padded<F>(
    piece: Extent,
    size_bytes: u64,
    read: impl FnOnce(usize) -> F,
) -> anyhow::Result<Bytes>
where
    F: Future<Output = anyhow::Result<Bytes>>,
{
    let there = size_bytes
        .saturating_sub(piece.offset)
        .min(piece.length)
        .try_into()?;
    let whole = piece.length.try_into()?;
    let data = if there == 0 {
        Bytes::new()
    } else {
        read(there).await?
    };
    if there == whole {
        return Ok(data);
    }
    let mut all = BytesMut::from(&data[..]);
    all.resize(whole, 0);
    Ok(all.freeze())
}

fn compared(offset: u64, ours: &Bytes, theirs: &Bytes) -> Vec<Run> {
    if ours == theirs {
        return Vec::new();
    }
    let pairs = refine::blocks(ours).zip(refine::blocks(theirs));
    let verdicts: Vec<Verdict> = pairs
        .map(|(ours, theirs)| {
            if ours == theirs {
                Verdict::Same
            } else {
                Verdict::Send {
                    zero: is_zero(ours),
                }
            }
        })
        .collect();
    refine::runs(offset, ours, &verdicts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_that_differ_are_sent_and_zeroes_as_zeroes() {
        let size = 4 * BLOCK as usize;
        let theirs = Bytes::from(vec![1; size]);
        let mut ours = vec![1; size];
        ours[BLOCK as usize] = 9;
        ours[3 * BLOCK as usize..].fill(0);
        let ours = Bytes::from(ours);
        let runs = compared(1 << 20, &ours, &theirs);
        assert_eq!(
            runs,
            [
                Run::Data(
                    (1 << 20) + BLOCK,
                    ours.slice(BLOCK as usize..2 * BLOCK as usize)
                ),
                Run::Zeroes((1 << 20) + 3 * BLOCK, BLOCK)
            ]
        );
        assert!(compared(0, &theirs, &theirs.clone()).is_empty());
    }

    #[test]
    fn ranges_become_whole_blocks_that_end_with_the_disk() {
        let range = |offset, length| Extent { offset, length };
        let found = blocks(
            &[range(100, 1), range(BLOCK + 5, BLOCK), range(10 * BLOCK, 1)],
            10 * BLOCK + 512,
        );
        assert_eq!(found, [range(0, 3 * BLOCK), range(10 * BLOCK, 512)]);
    }

    #[tokio::test]
    async fn behind_its_end_a_disk_reads_as_zeroes() {
        let piece = Extent {
            offset: 4096,
            length: 4096,
        };
        let read = |length: usize| async move { Ok(Bytes::from(vec![7; length])) };
        let bytes = padded(piece, 4096 + 10, read).await.unwrap();
        assert_eq!((bytes[9], bytes[10], bytes.len()), (7, 0, 4096));
        let nothing = padded(piece, 0, |_| async { unreachable!() });
        assert!(nothing.await.unwrap().iter().all(|byte| *byte == 0));
    }
}
