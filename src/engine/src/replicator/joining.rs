//! A disk that was added: its base is filled while cycles of the other disks go on.
//!
//! ```text
//! each cycle:  changed below the mark ─► base      next slice above the mark ─► base      mark moves on
//! last slice:  base is complete as of this freeze ─► this cycle is the first that has the disk
//! ```
//!
//! The mark is part of what each captured cycle knows, so that it is given up together with the tracking that it
//! relies on. When the store is away the disk waits and the others do not; it then begins at zero, comparing.

use std::time::Duration;

use hypervisor::{Changes, FrozenDisk};
use replica_store::{DiskSpec, DiskStart};
use tokio::time::Instant;

use super::copy::Filling;
use super::pauses;
use super::ranges;
use super::ranges::whole_blocks;
use super::shared::{Item, Shared};
use super::state::ItemDisk;
use super::suspicion::Knowledge;
use super::trouble::{Trouble, chain};
use crate::task::blocking;

/// A slice takes at least so long, however short the interval of the policy is.
const LEAST_SLICE: Duration = Duration::from_secs(5);

/// Works on a disk that is not in cycles yet, for about half an interval. `may_compare` says whether a disk that
/// the store knows already, and that therefore must be compared, may come in now.
pub(super) async fn work(
    item: &Item,
    shared: &Shared,
    frozen: &FrozenDisk,
    disk: &ItemDisk,
    known: &mut Knowledge,
    may_compare: bool,
) -> Result<(), Trouble> {
    let openings = shared.openings();
    match slice(item, shared, frozen, disk, known, may_compare).await {
        Ok(()) => Ok(()),
        Err(Trouble::Stopped) => Err(Trouble::Stopped),
        Err(trouble) if trouble.is_fenced() => Err(trouble),
        // There is no other disk that could go on.
        Err(trouble) if known.members.is_empty() => Err(trouble),
        Err(trouble) => {
            tracing::warn!(
                item = item.spec.item_id,
                disk = %disk.id,
                error = chain(&trouble),
                "an added disk can't be filled now; the other disks go on"
            );
            shared.close_after(&trouble, openings).await;
            shared.end_base_writes(item).await;
            known.joining.insert(disk.id, 0);
            Ok(())
        }
    }
}

async fn slice(
    item: &Item,
    shared: &Shared,
    frozen: &FrozenDisk,
    disk: &ItemDisk,
    known: &mut Knowledge,
    may_compare: bool,
) -> Result<(), Trouble> {
    let writer = shared.writer(item).await?;
    let spec = DiskSpec {
        id: disk.id.0,
        size_bytes: frozen.size_bytes,
        name: disk.name.clone(),
    };
    let start = writer.begin_disk(spec).await?;
    match start {
        DiskStart::Known | DiskStart::Ready => {
            if may_compare {
                // From here on it is a disk like any other whose changes are not known.
                known.join(disk.id);
                known.suspect(disk.id, "the disk was added to a replica that knows it");
            }
            return Ok(());
        }
        DiskStart::Empty | DiskStart::Partial => {}
    }
    let base_is_empty = start == DiskStart::Empty;
    let tracked = frozen.changes != Changes::Unknown;
    let mark = known.joining.get(&disk.id).copied();
    let mark = mark.filter(|_| tracked && !base_is_empty).unwrap_or(0);
    if base_is_empty {
        let (state, maps, disk) = (shared.state().await, shared.maps.clone(), disk.clone());
        blocking(move || {
            maps.begin_filling(&state, &disk);
            Ok(())
        })
        .await
        .map_err(Trouble::io("begin a map of block hashes"))?;
    }
    let mut filling = Filling {
        item,
        shared,
        writer: &writer,
        base_is_empty,
        done: mark,
        total: frozen.size_bytes,
        sent: 0,
    };
    if let Changes::Since(extents) = &frozen.changes {
        let dirty = whole_blocks(extents, frozen.size_bytes);
        let below = ranges::clip(&dirty, 0, mark);
        filling.again(frozen, &below).await?;
    }
    let time = (item.policy.borrow().interval / 2).max(LEAST_SLICE);
    let until = (!known.members.is_empty()).then(|| Instant::now() + time);
    let reached = filling.disk(frozen, mark, until).await?;
    item.pass(pauses::JOINING).await;
    if reached < frozen.size_bytes {
        known.joining.insert(disk.id, reached);
        return Ok(());
    }
    writer.base_flush().await?;
    writer.complete_disk(disk.id.0).await?;
    let (maps, id) = (shared.maps.clone(), disk.id);
    blocking(move || {
        maps.filled(id);
        Ok(())
    })
    .await
    .map_err(Trouble::io("finish a map of block hashes"))?;
    tracing::info!(
        item = item.spec.item_id,
        disk = %disk.id,
        sent_bytes = filling.sent,
        "an added disk joins"
    );
    known.join(disk.id);
    Ok(())
}
