//! Filling base in place: in initial replication, and of a disk that joins later.
//!
//! Writes run in the shared section, several at once, with base kept open; the look at generation and
//! manifest costs two `stat`s each while they do not change (a fence in the medium costs nothing).

use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use crate::base;
use crate::error::{ErrorKind, Result, StoreError};
use crate::layout;
use crate::manifest::{BaseState, Manifest, OtherState};
use crate::medium::Piece;
use crate::model::{Generation, Position, RecoveryPoint};
use crate::points;
use crate::replica::{Locked, Replica};
use crate::takeover::remove_unborn;

/// Whether the disk's base may be written, and whether something has been written to it.
enum Filling {
    Untouched,
    Begun,
}

fn filling(replica: &Replica, manifest: &Manifest, disk: Uuid) -> Result<Filling> {
    let is_original = manifest.disks.iter().any(|known| known.id == disk);
    match (manifest.base, manifest.other(disk).map(|other| other.state)) {
        (_, Some(OtherState::Empty)) => Ok(Filling::Untouched),
        (_, Some(OtherState::Partial)) => Ok(Filling::Begun),
        (BaseState::Empty, None) if is_original => Ok(Filling::Untouched),
        (BaseState::Partial, None) if is_original => Ok(Filling::Begun),
        (BaseState::Empty | BaseState::Partial, None) => Err(base::unknown_disk(disk)),
        (_, Some(OtherState::Ready)) | (BaseState::Complete { .. }, None) => Err(StoreError::new(
            ErrorKind::Conflict,
            format!(
                "base of disk {disk} of replica {} is complete: send changes as cycles",
                replica.place()
            ),
        )),
    }
}

/// Notes in the manifest that base holds something, durably, before it does.
fn begin(locked: &Locked<'_>, disk: Uuid) -> Result<Arc<Manifest>> {
    locked.change(|manifest| {
        if let Filling::Begun = filling(locked.replica, manifest, disk)? {
            return Ok(None);
        }
        let mut new = manifest.clone();
        match new.other_mut(disk) {
            Some(other) => other.state = OtherState::Partial,
            None => new.base = BaseState::Partial,
        }
        Ok(Some(new))
    })
}

pub(crate) fn base_write(
    replica: &Replica,
    generation: Generation,
    disk: Uuid,
    offset: u64,
    data: &Bytes,
) -> Result<()> {
    let piece = |manifest: &Manifest| {
        let spec = manifest
            .stored_disk(disk)
            .ok_or_else(|| base::unknown_disk(disk))?;
        base::check_range(spec, offset, data.len())
    };
    let written = replica.shared(generation, |manifest| {
        let begun = filling(replica, manifest, disk)?;
        piece(manifest)?;
        if let Filling::Untouched = begun {
            return Ok(false);
        }
        write(replica, manifest, disk, offset, data.clone())?;
        Ok(true)
    })?;
    if written {
        return Ok(());
    }
    replica.locked(generation, |locked| begin(locked, disk).map(drop))?;
    replica.shared(generation, |manifest| {
        filling(replica, manifest, disk)?;
        write(replica, manifest, disk, offset, data.clone())
    })
}

fn write(
    replica: &Replica,
    manifest: &Manifest,
    disk: Uuid,
    offset: u64,
    data: Bytes,
) -> Result<()> {
    if data.is_empty() {
        return Ok(());
    }
    replica
        .base(manifest, disk)?
        .write(&[Piece::Data(offset, data)])
}

pub(crate) fn base_read(
    replica: &Replica,
    disk: Uuid,
    offset: u64,
    length: usize,
) -> Result<Vec<u8>> {
    let manifest = replica.manifest()?.value;
    let spec = manifest
        .stored_disk(disk)
        .ok_or_else(|| base::unknown_disk(disk))?;
    base::check_range(spec, offset, length)?;
    let name = layout::base(disk);
    let place = replica.medium.describe(&name);
    let object = replica
        .medium
        .open(&name)?
        .ok_or_else(|| StoreError::corrupt(&place, "it is missing"))?;
    let mut buf = vec![0u8; length];
    base::read(object.as_ref(), &place, offset, &mut buf)?;
    Ok(buf)
}

/// Makes durable what is being filled.
pub(crate) fn base_flush(replica: &Replica, generation: Generation) -> Result<()> {
    replica.shared(generation, |manifest| {
        let is_growing = manifest.complete().is_none();
        if !is_growing && manifest.others.is_empty() {
            return Err(complete(replica));
        }
        for disk in manifest.disks.iter().filter(|_| is_growing) {
            replica.base(manifest, disk.id)?.flush()?;
        }
        for other in &manifest.others {
            if other.state != OtherState::Ready {
                replica.base(manifest, other.spec.id)?.flush()?;
            }
        }
        Ok(())
    })
}

fn complete(replica: &Replica) -> StoreError {
    StoreError::new(
        ErrorKind::Conflict,
        format!(
            "base of replica {} is complete: send changes as cycles",
            replica.place()
        ),
    )
}

/// Base durable, then the point, then the manifest that makes both count.
pub(crate) fn complete_base(
    replica: &Replica,
    generation: Generation,
    immutable_hours: u32,
    point: &RecoveryPoint,
) -> Result<()> {
    if point.position != Position::BASE {
        return Err(StoreError::new(
            ErrorKind::Invalid,
            "the point of a completed base has position 0",
        ));
    }
    replica.locked(generation, |locked| {
        let manifest = replica.manifest()?.value;
        if manifest.complete().is_some() {
            if points::stored_already(locked, point)? {
                replica.medium.settle("")?;
                return locked.confirm();
            }
            return Err(complete(replica));
        }
        for disk in &manifest.disks {
            replica.base(&manifest, disk.id)?.flush()?;
        }
        remove_unborn(locked)?;
        points::put(locked, immutable_hours, point)?;
        locked.change(|manifest| {
            let mut new = manifest.clone();
            new.base = BaseState::Complete {
                position: Position::BASE,
                floor: Position::BASE,
            };
            new.begin_epoch(generation, Position::BASE);
            Ok(Some(new))
        })?;
        replica.forget_bases();
        locked.confirm()
    })
}
