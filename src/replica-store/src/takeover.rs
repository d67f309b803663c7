//! Creating a replica, taking it over, removing it.
//!
//! Take-over: lock, refuse a lower generation, make the new one durable *first*, then mend what a
//! killed writer left. From the moment that the generation is durable the older writer is refused
//! at its next locked step; what it was doing before that is either visible and whole, or a
//! temporary that is swept here.

use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::base;
use crate::error::{ErrorKind, Result, StoreError};
use crate::model::{DiskSpec, Generation};
use crate::replica::{
    BaseState, KIND_GENERATION, Locked, Manifest, Replica, StoredGeneration, fenced, list,
};

/// A folder of a vault may be removed as empty while we are about to create a replica in it.
const RACES: usize = 20;

pub(crate) fn open(replica: &Replica, generation: Generation, disks: &[DiskSpec]) -> Result<()> {
    check_disks(disks)?;
    let layout = &replica.layout;
    let mut attempt = 0;
    let guard = loop {
        attempt += 1;
        let locked = replica
            .durable
            .create_folder(layout.item())
            .and_then(|()| replica.durable.lock(&layout.lock(), true));
        match locked {
            Err(error) if error.kind() == ErrorKind::NotFound && attempt < RACES => {}
            other => break other?,
        }
    };
    match replica.stored_generation()? {
        Some(stored) if stored > generation => return Err(fenced(layout, generation, stored)),
        Some(stored) if stored == generation => {}
        _ => replica.durable.replace(
            &layout.generation(),
            &crate::stored::encode(KIND_GENERATION, &StoredGeneration { generation })?,
        )?,
    }
    drop(guard);
    replica.locked(generation, |locked| mend(locked, disks))
}

fn check_disks(disks: &[DiskSpec]) -> Result<()> {
    let mut ids: Vec<_> = disks.iter().map(|disk| disk.id).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.len() != disks.len() || disks.is_empty() {
        return Err(StoreError::new(
            ErrorKind::Invalid,
            "a replica needs at least one disk, and each disk once",
        ));
    }
    disks
        .iter()
        .try_for_each(|disk| base::padded_size(disk).map(drop))
}

fn mend(locked: &Locked<'_>, disks: &[DiskSpec]) -> Result<()> {
    let replica = locked.replica;
    let (durable, layout) = (&replica.durable, &replica.layout);
    locked.sweep()?;
    let Some(manifest) = replica.find_manifest()? else {
        return create(locked, disks);
    };
    let same = manifest.disks.len() == disks.len()
        && disks.iter().all(|disk| {
            manifest
                .disks
                .iter()
                .any(|stored| stored.id == disk.id && stored.size_bytes == disk.size_bytes)
        });
    if !same {
        return Err(StoreError::new(
            ErrorKind::Conflict,
            format!(
                "the VM's disks are not those of replica {}: a disk was added, removed or resized; remove the replica and replicate anew",
                layout.item().display()
            ),
        ));
    }
    match manifest.base {
        BaseState::Complete { .. } => {
            // What a killed writer renamed may not be durable yet; it is before we report it.
            durable.sync_folder(&layout.journal())?;
            durable.sync_folder(&layout.points())
        }
        BaseState::Empty | BaseState::Partial => remove_unborn(locked),
    }
}

fn create(locked: &Locked<'_>, disks: &[DiskSpec]) -> Result<()> {
    let replica = locked.replica;
    let (durable, layout) = (&replica.durable, &replica.layout);
    let unix_s = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    for disk in disks {
        durable.create_folder(&layout.disk(disk.id))?;
        base::create(durable, &layout.base(disk.id), disk, unix_s)?;
        durable.sync_folder(&layout.disk(disk.id))?;
    }
    for folder in [layout.journal(), layout.points(), layout.pins()] {
        durable.create_folder(&folder)?;
    }
    locked.put_manifest(&Manifest {
        id: Uuid::new_v4(),
        item: layout.item_id().to_owned(),
        disks: disks.to_vec(),
        base: BaseState::Empty,
    })
}

/// Points and journal of an initial replication that was cut in its very end.
pub(crate) fn remove_unborn(locked: &Locked<'_>) -> Result<()> {
    let replica = locked.replica;
    for folder in [replica.layout.points(), replica.layout.journal()] {
        let stale: Vec<_> = list(&folder)?.into_iter().map(|(_, path)| path).collect();
        replica.durable.remove_files(&folder, &stale)?;
    }
    Ok(())
}

/// See [`crate::delete_replica`].
pub(crate) fn delete(replica: &Replica, generation: Generation) -> Result<()> {
    let (durable, layout) = (&replica.durable, &replica.layout);
    if layout.item().exists() {
        let _guard = durable.lock(&layout.lock(), true)?;
        if let Some(stored) = replica.stored_generation()?
            && stored > generation
        {
            return Err(fenced(layout, generation, stored));
        }
        let pins = replica.pins()?;
        if let Some(pin) = pins.first() {
            return Err(StoreError::new(
                ErrorKind::Pinned,
                format!(
                    "replica {} is in use by {:?} and {} more: end the drill or recovered VM first",
                    layout.item().display(),
                    pin.owner,
                    pins.len() - 1
                ),
            ));
        }
        // A removal that was cut left its folder under this name; finish that one first.
        durable.remove_tree(&layout.deleting())?;
        durable.rename_folder(layout.item(), &layout.deleting())?;
    }
    if layout.vault().exists() {
        durable.remove_tree(&layout.deleting())?;
        durable.sync_folder(layout.vault())?;
        durable.remove_if_empty(layout.vault())?;
    }
    Ok(())
}
