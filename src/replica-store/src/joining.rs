//! Disks over time: a disk that is added gets a base of its own while cycles of the others go on.
//!
//! ```text
//! begin_disk ─► base_write ... ─► complete_disk ─► a cycle that names it = from there on in points
//!     Empty         Partial           Ready
//! ```
//!
//! Growing and excluding need nothing before: a cycle that names a larger size, or no longer names the
//! disk, says it. A disk that was excluded and is still needed by older points is *known*: a cycle
//! takes it in again with its differences from what [`crate::ReplicaWriter::last_view`] shows of it.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::base;
use crate::error::{ErrorKind, Result, StoreError};
use crate::layout;
use crate::manifest::{Manifest, OtherDisk, OtherState};
use crate::model::{DiskSpec, DiskStart, Generation};
use crate::overlay::read_front;
use crate::replica::{Locked, Replica};

/// See [`crate::ReplicaWriter::begin_disk`].
pub(crate) fn begin(
    replica: &Replica,
    generation: Generation,
    spec: &DiskSpec,
) -> Result<DiskStart> {
    base::padded_size(spec)?;
    replica.locked(generation, |locked| {
        let (manifest, ..) = locked.complete()?;
        let in_journal = used_disks(replica, &manifest.value)?;
        if in_journal.contains(&spec.id) {
            return Ok(DiskStart::Known);
        }
        match manifest.value.other(spec.id) {
            Some(other) if other.spec.size_bytes == spec.size_bytes => {
                return Ok(match other.state {
                    OtherState::Empty => DiskStart::Empty,
                    OtherState::Partial => DiskStart::Partial,
                    OtherState::Ready => DiskStart::Ready,
                });
            }
            // It was resized since: its base begins anew.
            Some(_) => forget(locked, spec.id)?,
            None => {}
        }
        base::create(replica, spec, manifest.value.fence)?;
        replica.forget_bases();
        locked.change(|manifest| {
            let mut new = manifest.clone();
            if new.stored_disk(spec.id).is_some() {
                return Ok(None);
            }
            new.others.push(OtherDisk {
                spec: spec.clone(),
                state: OtherState::Empty,
            });
            Ok(Some(new))
        })?;
        locked.confirm()?;
        Ok(DiskStart::Empty)
    })
}

/// See [`crate::ReplicaWriter::complete_disk`].
pub(crate) fn complete(replica: &Replica, generation: Generation, disk: Uuid) -> Result<()> {
    replica.locked(generation, |locked| {
        let manifest = locked.complete()?.0.value;
        let other = manifest
            .other(disk)
            .ok_or_else(|| base::unknown_disk(disk))?;
        if other.state == OtherState::Ready {
            return Ok(());
        }
        replica.base(&manifest, disk)?.flush()?;
        locked.change(|manifest| {
            let mut new = manifest.clone();
            let other = new
                .other_mut(disk)
                .ok_or_else(|| base::unknown_disk(disk))?;
            other.state = OtherState::Ready;
            Ok(Some(new))
        })?;
        replica.forget_bases();
        locked.confirm()
    })
}

/// See [`crate::ReplicaWriter::abandon_disk`].
pub(crate) fn abandon(replica: &Replica, generation: Generation, disk: Uuid) -> Result<()> {
    replica.locked(generation, |locked| {
        let manifest = locked.complete()?.0.value;
        if manifest.other(disk).is_none() {
            return Ok(());
        }
        if used_disks(replica, &manifest)?.contains(&disk) {
            return Err(StoreError::new(
                ErrorKind::Conflict,
                format!("disk {disk} is part of recovery points: exclude it by a cycle instead"),
            ));
        }
        forget(locked, disk)
    })
}

/// The manifest first: a base without an entry is removed by the next round of maintenance.
fn forget(locked: &Locked<'_>, disk: Uuid) -> Result<()> {
    let replica = locked.replica;
    replica.forget_bases();
    locked.change(|manifest| {
        let mut new = manifest.clone();
        new.others.retain(|other| other.spec.id != disk);
        Ok(Some(new))
    })?;
    replica
        .medium
        .remove_while(&[layout::base(disk)], &|| locked.is_without(&[disk]))
}

/// Disks of base and of every cycle in the journal.
pub(crate) fn used_disks(replica: &Replica, manifest: &Manifest) -> Result<BTreeSet<Uuid>> {
    let mut used: BTreeSet<Uuid> = manifest.disks.iter().map(|disk| disk.id).collect();
    // Only others can be in the journal without being in base: without any, nothing need be read.
    if !manifest.others.is_empty()
        && let Some((base, _)) = manifest.complete()
    {
        for object in replica.journal(manifest, base)?.values() {
            match read_front(replica, &object.name) {
                Ok(front) => used.extend(front.header.disks.iter().map(|disk| disk.id)),
                // It may name any disk.
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    used.extend(manifest.stored_disks().map(|disk| disk.id));
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(used)
}
