//! Creating a replica and taking it over.
//!
//! Take-over: refuse a lower generation, make the new one durable *first*, then mend what a killed
//! writer left. From the moment that the generation is durable the older writer is refused at its next
//! step; what it was doing before that is either visible and whole, or is swept here.
//!
//! ```text
//! generation := own ─► sweep ─► look at manifest and journal ─► manifest: epoch from head + 1, fence + 1
//!                                                               ─► every base: fence
//! ```
//!
//! [`take_over`] does the same for somebody who only reads: a recovered VM, which must know before it starts that the
//! source's engine can't write any more. It mends nothing and needs no disks.

use uuid::Uuid;

use crate::base;
use crate::blocking::blocking;
use crate::error::{ErrorKind, Result, StoreError};
use crate::layout::{self, JOURNAL, POINTS, PREFIXES};
use crate::manifest::{BaseState, Manifest};
use crate::medium::{Fence, Put, Section};
use crate::model::{DiskSpec, Generation, ReplicaKey, StoreTarget};
use crate::options::{self, WriterOptions};
use crate::replica::{KIND_GENERATION, Locked, RACES, Replica, StoredGeneration, fenced};
use crate::stored;

/// Which disks the caller may come with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disks {
    /// Those of the newest cycle; others are refused.
    Exact,
    /// Any: the next cycle says which ones it has. Before base is complete base gets these.
    Any,
}

pub(crate) fn open(
    replica: &Replica,
    generation: Generation,
    disks: &[DiskSpec],
    rule: Disks,
) -> Result<()> {
    check_disks(disks)?;
    replica.medium.prepare(&[])?;
    let guard = replica.medium.enter(Section::Short, true)?;
    own(replica, generation)?;
    drop(guard);
    replica.locked(generation, |locked| mend(locked, disks, rule))
}

/// Makes `generation` the owner of a replica without becoming its writer: from here on the store refuses every write of
/// a lower one, and what such a writer has under way does not count. All points stay, and stay readable; a writer of a
/// higher generation goes on from the head.
///
/// `Fenced` when the store has a higher generation, `NotFound` when there is no replica. May be repeated with the same
/// generation, also after it was cut at any step.
pub async fn take_over(
    target: &StoreTarget,
    key: &ReplicaKey,
    generation: Generation,
) -> Result<()> {
    take_over_with(WriterOptions::default(), target, key, generation).await
}

/// As [`take_over`], with options: for tests with faults.
pub async fn take_over_with(
    options: WriterOptions,
    target: &StoreTarget,
    key: &ReplicaKey,
    generation: Generation,
) -> Result<()> {
    let replica = options::replica(target, key, options)?;
    blocking(move || {
        claim(&replica, generation).map_err(|error| replica.passed_by(generation, error))
    })
    .await
}

fn claim(replica: &Replica, generation: Generation) -> Result<()> {
    // Nothing is left where there is no replica, and a removed one is not brought back.
    replica.manifest()?;
    match replica.stored_generation()? {
        Some(seen) if !seen.value.removed => {}
        _ => return Err(replica.missing()),
    }
    let guard = replica.medium.enter(Section::Short, false)?;
    own(replica, generation)?;
    drop(guard);
    replica.locked(generation, |locked| {
        let medium = &replica.medium;
        // Where the epoch begins follows from what is there for certain.
        medium.settle(JOURNAL)?;
        medium.settle(POINTS)?;
        let taken = locked.change(|manifest| {
            let owns =
                manifest.fence >= Fence::first_of(generation) && manifest.is_owner(generation);
            let Some((base, _)) = manifest.complete() else {
                return Ok((manifest.fence < Fence::first_of(generation))
                    .then(|| next_fence(manifest, generation)));
            };
            if owns && !manifest.epochs.is_empty() {
                return Ok(None);
            }
            // An object that the older writer publishes late lies in this epoch, so it never counts. If nobody writes
            // in the epoch, the next owner's takes its place.
            let head = replica.head(manifest, base)?;
            let mut new = next_fence(manifest, generation);
            new.begin_epoch(generation, head);
            Ok(Some(new))
        })?;
        raise_fences(replica, &taken, |_| true)
    })
}

/// Makes the generation the stored one.
fn own(replica: &Replica, generation: Generation) -> Result<()> {
    let wanted = StoredGeneration {
        generation,
        removed: false,
    };
    let content = stored::encode(KIND_GENERATION, &wanted)?;
    for _ in 0..RACES {
        let put = match replica.stored_generation()? {
            Some(seen) if seen.value.removed && seen.value.generation >= generation => {
                return Err(StoreError::new(
                    ErrorKind::Fenced,
                    format!(
                        "replica {} was removed under generation {}, this writer has generation {}: protect the VM anew",
                        replica.place(),
                        seen.value.generation.0,
                        generation.0
                    ),
                ));
            }
            Some(seen) if seen.value.generation > generation => {
                return Err(fenced(replica, generation, seen.value.generation));
            }
            Some(seen) if *seen.value == wanted => return Ok(()),
            Some(seen) => {
                if seen.value.removed {
                    // A removal that was cut is finished while the tombstone still tells of it.
                    replica.medium.clear(layout::GENERATION, &|| match replica
                        .stored_generation()?
                        .map(|now| *now.value)
                    {
                        Some(now) if now == *seen.value => Ok(()),
                        now => Err(fenced(
                            replica,
                            generation,
                            now.map(|now| now.generation).unwrap_or_default(),
                        )),
                    })?;
                }
                replica
                    .medium
                    .replace(layout::GENERATION, &content, &seen.version)?
            }
            None => replica.medium.put_new(layout::GENERATION, &content)?,
        };
        if let Put::Done(_) = put {
            return Ok(());
        }
    }
    Err(StoreError::new(
        ErrorKind::Io,
        format!(
            "the generation of {} changes faster than it can be replaced: try again",
            replica.place()
        ),
    ))
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

/// The same disks with the same sizes, whatever their order and names.
pub(crate) fn same_disks(a: &[DiskSpec], b: &[DiskSpec]) -> bool {
    a.len() == b.len()
        && a.iter().all(|disk| {
            b.iter()
                .any(|other| other.id == disk.id && other.size_bytes == disk.size_bytes)
        })
}

fn mend(locked: &Locked<'_>, disks: &[DiskSpec], rule: Disks) -> Result<()> {
    let replica = locked.replica;
    let medium = &replica.medium;
    replica.forget_bases();
    medium.sweep(&["", JOURNAL, POINTS, layout::PINS])?;
    let Some(seen) = replica.find_manifest()? else {
        return create(locked, disks);
    };
    let base_at = seen.value.base_at.as_deref();
    if base_at != medium.base_place().as_deref() {
        return Err(crate::apart::elsewhere(&replica.place(), base_at));
    }
    let generation = locked.generation();
    if seen.value.complete().is_none() {
        if !same_disks(&seen.value.disks, disks) {
            if rule == Disks::Exact {
                return Err(other_disks(replica));
            }
            return remake(locked, disks);
        }
        let taken = locked.change(|manifest| Ok(Some(next_fence(manifest, generation))))?;
        raise_fences(replica, &taken, |_| true)?;
        return remove_unborn(locked);
    }
    if rule == Disks::Exact && !same_disks(&replica.head_disks()?, disks) {
        return Err(other_disks(replica));
    }
    // What a killed writer published may not be durable yet; it is before we report it.
    medium.settle(JOURNAL)?;
    medium.settle(POINTS)?;
    let taken = locked.change(|manifest| {
        let Some((base, _)) = manifest.complete() else {
            return Err(crate::replica::incomplete(replica));
        };
        let head = replica.head(manifest, base)?;
        let mut new = next_fence(manifest, generation);
        new.begin_epoch(generation, head);
        Ok(Some(new))
    })?;
    raise_fences(replica, &taken, |_| true)
}

fn next_fence(manifest: &Manifest, generation: Generation) -> Manifest {
    let mut new = manifest.clone();
    new.fence = Fence(manifest.fence.0.saturating_add(1)).max(Fence::first_of(generation));
    new
}

/// From here on writes to these disks' base under older fences are refused by the medium.
pub(crate) fn raise_fences(
    replica: &Replica,
    manifest: &Manifest,
    which: impl Fn(&DiskSpec) -> bool,
) -> Result<()> {
    let mut disks = manifest.stored_disks().filter(|disk| which(disk));
    disks.try_for_each(|disk| {
        replica
            .medium
            .base_fence(&layout::base(disk.id), manifest.fence)
    })
}

fn other_disks(replica: &Replica) -> StoreError {
    StoreError::new(
        ErrorKind::Conflict,
        format!(
            "the VM's disks are not those of replica {}: a disk was added, removed or resized",
            replica.place()
        ),
    )
}

fn create(locked: &Locked<'_>, disks: &[DiskSpec]) -> Result<()> {
    let replica = locked.replica;
    let fence = Fence::first_of(locked.generation());
    replica.medium.claim_base()?;
    for disk in disks {
        base::create(replica, disk, fence)?;
    }
    replica.medium.prepare(&PREFIXES)?;
    let made = locked.put_manifest(Manifest {
        id: Uuid::new_v4(),
        item: replica.item_id.clone(),
        base_at: replica.medium.base_place(),
        disks: disks.to_vec(),
        base: BaseState::Empty,
        others: Vec::new(),
        epochs: Vec::new(),
        fence,
        pins_set: 0,
        retiring: Vec::new(),
        spans: Vec::new(),
        merging: None,
    })?;
    made.map(drop).ok_or_else(|| {
        StoreError::new(
            ErrorKind::Conflict,
            format!(
                "another engine creates replica {} at this moment: look again",
                replica.place()
            ),
        )
    })
}

/// Other disks before base is complete: base begins anew for those that differ.
fn remake(locked: &Locked<'_>, disks: &[DiskSpec]) -> Result<()> {
    let replica = locked.replica;
    let old = replica.manifest()?.value;
    let mut new = next_fence(&old, locked.generation());
    // Whoever remembers what base held sees, before base changes, that this is another replica.
    new.id = Uuid::new_v4();
    locked.change(|manifest| {
        let id = new.id;
        Ok(Some(Manifest {
            id,
            ..manifest.clone()
        }))
    })?;
    new.disks = disks.to_vec();
    let kept = |disk: &DiskSpec| {
        old.disks
            .iter()
            .any(|old| old.id == disk.id && old.size_bytes == disk.size_bytes)
    };
    for disk in disks.iter().filter(|disk| !kept(disk)) {
        base::create(replica, disk, new.fence)?;
    }
    let taken = locked.change(|_| Ok(Some(new.clone())))?;
    let gone: Vec<String> = old
        .disks
        .iter()
        .filter(|old| !disks.iter().any(|disk| disk.id == old.id))
        .map(|old| layout::base(old.id))
        .collect();
    replica
        .medium
        .remove_while(&gone, &|| locked.is_at(&taken))?;
    raise_fences(replica, &taken, |_| true)?;
    remove_unborn(locked)
}

/// Points and journal of an initial replication that was cut in its very end. Another opening of the same generation
/// may be faster and use the same names: what is seen of before the look at the manifest goes, and nothing else.
pub(crate) fn remove_unborn(locked: &Locked<'_>) -> Result<()> {
    let medium = &locked.replica.medium;
    let before = locked.replica.manifest()?.value;
    if before.complete().is_some() {
        return Ok(());
    }
    for prefix in [POINTS, JOURNAL] {
        let stale: Vec<String> = medium
            .list(prefix)?
            .into_iter()
            .map(|listed| format!("{prefix}{}", listed.name))
            .collect();
        medium.remove_while(&stale, &|| locked.is_at(&before))?;
    }
    Ok(())
}
