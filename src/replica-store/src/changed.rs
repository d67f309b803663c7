//! What changed between two positions, as the journal tells it: for somebody who has the disks as of the older one.
//!
//! ```text
//! ours ≤ base                     the journal between is gone                        ─► not known
//! base ≤ ours, another's cycle    what we have is not what lies at that position     ─► not known
//! base ≤ ours                     headers of (ours, shown], entries of each disk     ─► ranges
//! ```
//!
//! Promise: whatever differs lies inside of the ranges. They may be wider: a merged object that begins before our position
//! counts whole, and what was written again as it was counts as changed. Only headers of objects are read, no data.
//! A damaged object may have changed anything, and a disk that left in between may have come back as another: not known.

use std::collections::BTreeMap;
use std::ops::Range;

use uuid::Uuid;

use crate::error::{ErrorKind, Result, StoreError};
use crate::model::{Generation, Position, RecoveryPoint};
use crate::overlay::{IntervalMap, Overlay};
use crate::points;
use crate::replica::{RACES, Replica, fenced};
use crate::view::View;

/// Ranges of each disk: sorted, disjoint, neighbours joined. A disk that is not named may have changed anywhere.
pub type Changed = BTreeMap<Uuid, Vec<Range<u64>>>;

/// See [`crate::ReplicaView::changed_since`]; whoever wrote the position when nobody is named.
pub(crate) fn since(
    view: &View,
    since: Position,
    by: Option<Generation>,
) -> Result<Option<Changed>> {
    let (replica, shown) = (view.replica(), view.position());
    for _ in 0..RACES {
        let (seen, journal) = replica.settled()?;
        let manifest = seen.value;
        let base = view.check(&manifest)?;
        let owner = manifest.epoch_at(since);
        let is_anothers = owner.is_some_and(|owner| by.is_some_and(|by| owner != by));
        if since < base || since > shown || is_anothers {
            return Ok(None);
        }
        if !journal.contains_key(&shown) && shown != base {
            return Err(StoreError::corrupt(
                &replica.place(),
                format!("position {} is missing", shown.0),
            ));
        }
        match Overlay::merge(replica, &manifest, since, shown, &journal) {
            Ok(overlay) if overlay.lost().is_empty() => return Ok(Some(ranges(view, &overlay))),
            Ok(_) => return Ok(None),
            // An object went away between listing and opening: the applier was here.
            Err(error)
                if error.kind() == ErrorKind::NotFound && replica.manifest()?.value != manifest => {
            }
            Err(error) => return Err(error),
        }
    }
    Err(StoreError::new(
        ErrorKind::Io,
        format!(
            "the applier of replica {} overtakes every look at its journal: try again",
            replica.place()
        ),
    ))
}

fn ranges(view: &View, overlay: &Overlay) -> Changed {
    let ids = view.disks().iter().map(|disk| disk.id);
    ids.filter(|disk| overlay.is_in_all(*disk))
        .map(|disk| {
            let map = overlay.disks.get(&disk);
            (disk, map.map(joined).unwrap_or_default())
        })
        .collect()
}

fn joined(map: &IntervalMap) -> Vec<Range<u64>> {
    let mut out: Vec<Range<u64>> = Vec::new();
    for (range, _) in map.iter() {
        match out.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => out.push(range),
        }
    }
    out
}

/// See [`crate::ReplicaReader::newest_of`].
pub(crate) fn newest_of(replica: &Replica, by: Generation) -> Result<Option<RecoveryPoint>> {
    match replica.stored_generation()?.map(|seen| *seen.value) {
        Some(stored) if stored.generation > by => {
            return Err(fenced(replica, by, stored.generation));
        }
        Some(stored) if stored.generation < by => return Ok(None),
        Some(stored) if !stored.removed => {}
        _ => return Err(replica.missing()),
    }
    let manifest = replica.manifest()?.value;
    let from = match manifest.epochs.last() {
        Some(epoch) if epoch.generation == by => epoch.from,
        // Its take-over was cut before it counted.
        Some(_) => return Ok(None),
        None => Position::BASE,
    };
    if manifest.complete().is_none() {
        return Ok(None);
    }
    // By position: hosts that took turns may not agree about the time.
    let mut own = replica.summaries()?;
    own.retain(|point| point.position >= from);
    match own.into_iter().max_by_key(|point| point.position) {
        None => Ok(None),
        Some(point) => points::select(replica, crate::PointSelector::Id(point.id)).map(Some),
    }
}
