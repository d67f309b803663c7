//! Removing a replica; what stays is a tombstone with the generation.
//!
//! ```text
//! pins, immutable points? ─► generation := own, removed ─► manifest goes ─► everything else goes
//! ```
//!
//! From the tombstone on every writer is refused, and none of this or a lower generation can make the
//! replica anew. A removal that was cut is finished by the next one, or by the next owner.
//!
//! A store that is full to the last byte has no room for the tombstone either, and a removal is what makes room. There
//! the manifest and everything else goes first: from the manifest's end on there is no replica that anybody could read
//! or go on with, and the tombstone follows into the room that this made.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{ErrorKind, Result, StoreError};
use crate::layout;
use crate::medium::{Fence, Put, Section};
use crate::model::Generation;
use crate::points::first_immutable;
use crate::replica::{KIND_GENERATION, RACES, Replica, StoredGeneration, fenced};
use crate::stored;

/// See [`crate::delete_replica`].
pub(crate) fn delete(
    replica: &Replica,
    generation: Generation,
    now_unix_ms: Option<i64>,
) -> Result<()> {
    if replica.stored_generation()?.is_none() {
        return leftovers(replica);
    }
    let _guard = replica.medium.enter(Section::Short, true)?;
    for _ in 0..RACES {
        let Some(seen) = replica.stored_generation()? else {
            return leftovers(replica);
        };
        if seen.value.generation > generation {
            return Err(fenced(replica, generation, seen.value.generation));
        }
        if !seen.value.removed {
            refuse_held(replica, now_unix_ms)?;
        }
        let tombstone = StoredGeneration {
            generation,
            removed: true,
        };
        if *seen.value != tombstone {
            let content = stored::encode(KIND_GENERATION, &tombstone)?;
            let put = || {
                replica
                    .medium
                    .replace(layout::GENERATION, &content, &seen.version)
            };
            let put = match put() {
                Err(error) if error.kind() == ErrorKind::Full => {
                    take_all(replica, generation, &seen.value)?;
                    put()?
                }
                other => other?,
            };
            if let Put::Refused = put {
                continue;
            }
        }
        return take_all(replica, generation, &tombstone);
    }
    Err(StoreError::new(
        ErrorKind::Io,
        format!(
            "the generation of {} changes faster than it can be replaced: try again",
            replica.place()
        ),
    ))
}

/// Takes everything but the generation, for as long as `owner` is what is stored: the next one may be quicker.
fn take_all(replica: &Replica, generation: Generation, owner: &StoredGeneration) -> Result<()> {
    let still = || match replica.stored_generation()?.map(|seen| *seen.value) {
        Some(stored) if stored == *owner => Ok(()),
        Some(stored) => Err(fenced(replica, generation, stored.generation)),
        None => Err(replica.missing()),
    };
    end_writers(replica, generation);
    // First of all, so that nobody shows a replica that is half there.
    let manifest = layout::MANIFEST.to_owned();
    replica.medium.remove_while(&[manifest], &still)?;
    replica.medium.clear(layout::GENERATION, &still)
}

/// Who still writes to base is refused from here on, where the medium itself does that: else base would be another
/// version at each look. Only a help: whoever owns the replica by now has a higher fence, and keeps it.
fn end_writers(replica: &Replica, generation: Generation) {
    let Ok(Some(seen)) = replica.find_manifest() else {
        return;
    };
    let last = Fence::last_of(generation);
    for disk in seen.value.stored_disks() {
        let _ = replica.medium.base_fence(&layout::base(disk.id), last);
    }
}

/// Without a generation there never was a replica, or an older release removed it and was cut.
fn leftovers(replica: &Replica) -> Result<()> {
    replica
        .medium
        .clear("", &|| match replica.stored_generation()? {
            None => Ok(()),
            Some(seen) => Err(fenced(
                replica,
                Generation::default(),
                seen.value.generation,
            )),
        })
}

fn refuse_held(replica: &Replica, now_unix_ms: Option<i64>) -> Result<()> {
    let pins = replica.pins()?;
    if let Some(pin) = pins.first() {
        return Err(StoreError::new(
            ErrorKind::Pinned,
            format!(
                "replica {} is in use by {:?} and {} more: end the drill or recovered VM first",
                replica.place(),
                pin.owner,
                pins.len() - 1
            ),
        ));
    }
    if replica.find_manifest()?.is_none() {
        return Ok(());
    }
    let now = now_unix_ms.unwrap_or_else(|| {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as i64)
    });
    // A point that can't be read can't be recovered from either: it does not keep the rest.
    let immutable = first_immutable(replica, now)?;
    if let Some((id, until)) = immutable {
        let hours = (until - now) / 3_600_000 + 1;
        return Err(StoreError::new(
            ErrorKind::Immutable,
            format!(
                "replica {} has recovery points that nobody may delete yet, point {id} for {hours} more hours: wait, or disable protection without deleting the replica",
                replica.place()
            ),
        ));
    }
    Ok(())
}
