//! Initial replication: writing base in place until it is complete.

use std::fs::File;

use uuid::Uuid;

use crate::base;
use crate::error::{ErrorKind, Result, StoreError};
use crate::model::{Generation, Position, RecoveryPoint};
use crate::replica::{BaseState, KIND_POINT, Locked, Manifest, Replica};
use crate::takeover::remove_unborn;

fn growing(locked: &Locked<'_>) -> Result<Manifest> {
    let manifest = locked.replica.manifest()?;
    match manifest.base {
        BaseState::Empty | BaseState::Partial => Ok(manifest),
        BaseState::Complete { .. } => Err(StoreError::new(
            ErrorKind::Conflict,
            format!(
                "base of replica {} is complete: send changes as cycles",
                locked.replica.layout.item().display()
            ),
        )),
    }
}

pub(crate) fn base_write(
    replica: &Replica,
    generation: Generation,
    disk: Uuid,
    offset: u64,
    data: &[u8],
) -> Result<()> {
    replica.locked(generation, |locked| {
        let mut manifest = growing(locked)?;
        let (_, spec) = base::find(&manifest.disks, disk)?;
        base::check_range(spec, offset, data.len())?;
        let file = base::open(&replica.durable, &replica.layout.base(disk), spec)?;
        if manifest.base == BaseState::Empty {
            manifest.base = BaseState::Partial;
            locked.put_manifest(&manifest)?;
        }
        base::write(&file, offset, data)
    })
}

pub(crate) fn base_read(
    replica: &Replica,
    disk: Uuid,
    offset: u64,
    length: usize,
) -> Result<Vec<u8>> {
    let manifest = replica.manifest()?;
    let (_, spec) = base::find(&manifest.disks, disk)?;
    base::check_range(spec, offset, length)?;
    let path = replica.layout.base(disk);
    let file = File::open(&path).map_err(|error| StoreError::io("open", &path, error))?;
    let mut buf = vec![0u8; length];
    base::read(&file, &path, offset, &mut buf)?;
    Ok(buf)
}

pub(crate) fn base_flush(replica: &Replica, generation: Generation) -> Result<()> {
    replica.locked(generation, |locked| {
        let manifest = growing(locked)?;
        sync_all(replica, &manifest)
    })
}

fn sync_all(replica: &Replica, manifest: &Manifest) -> Result<()> {
    for disk in &manifest.disks {
        base::open(&replica.durable, &replica.layout.base(disk.id), disk)?.sync()?;
    }
    Ok(())
}

/// Base durable, then the point, then the manifest that makes both count.
pub(crate) fn complete_base(
    replica: &Replica,
    generation: Generation,
    point: &RecoveryPoint,
) -> Result<()> {
    if point.position != Position::BASE {
        return Err(StoreError::new(
            ErrorKind::Invalid,
            "the point of a completed base has position 0",
        ));
    }
    replica.locked(generation, |locked| {
        if let BaseState::Complete { .. } = replica.manifest()?.base {
            let known = replica.points()?.iter().any(|(_, stored)| stored == point);
            if known {
                return replica.durable.sync_folder(replica.layout.item());
            }
        }
        let mut manifest = growing(locked)?;
        sync_all(replica, &manifest)?;
        remove_unborn(locked)?;
        locked.put(&replica.layout.point(point), KIND_POINT, point)?;
        manifest.base = BaseState::Complete {
            position: Position::BASE,
            floor: Position::BASE,
        };
        locked.put_manifest(&manifest)
    })
}
