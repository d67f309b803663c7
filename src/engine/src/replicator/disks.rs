//! Which disks the item has, where they are, and whether somebody else has written to them.
//!
//! While a VM is off nobody should write to its images, and no tracker would see it. So an image is marked when its
//! VM is first seen off; one that is other than its mark later is suspect. A VM that went off while no engine
//! looked has no marks: all its disks are suspect.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use hypervisor::{DiskId, ErrorKind, VirtualMachine};
use uuid::Uuid;

use super::shared::{Item, Shared};
use super::state::{ImageMark, ItemDisk, ItemState};
use super::trouble::Trouble;
use crate::task::blocking;

/// The part of an image that holds its headers: the header section of a VHDX, with the data write GUID.
const HEAD_BYTES: u64 = 1 << 20;

/// The VM as the host knows it now.
pub(super) async fn find_vm(item: &Item) -> Result<VirtualMachine, Trouble> {
    let machines = item.context.hypervisor.virtual_machines().await?;
    machines
        .into_iter()
        .find(|vm| vm.id == item.spec.vm)
        .ok_or_else(|| Trouble::VmNotFound(item.spec.vm.to_string()))
}

/// Where the disks are now; kept, because logs lie beside them. Takes over what grew, came or went.
pub(super) async fn learn_disks(
    item: &Item,
    shared: &Shared,
    vm: &VirtualMachine,
) -> Result<Vec<ItemDisk>, Trouble> {
    let before = shared.state().await;
    let disks = find_disks(item, vm, &before).await?;
    let (mut gone, mut grown, mut anew) = (Vec::new(), Vec::new(), Vec::new());
    for known in &before.disks {
        match disks.iter().find(|disk| disk.id == known.id) {
            None => gone.push(known.id),
            // The store makes the base of such a disk anew, all zeroes.
            Some(disk) if disk.size_bytes != known.size_bytes && !before.complete => {
                anew.push(disk.id);
            }
            Some(disk) if disk.size_bytes > known.size_bytes => {
                tracing::info!(
                    item = item.spec.item_id,
                    disk = %disk.id,
                    from = known.size_bytes,
                    to = disk.size_bytes,
                    "a disk has grown"
                );
                grown.push((disk.id, disk.size_bytes));
            }
            Some(disk) if disk.size_bytes < known.size_bytes => {
                return Err(Trouble::DiskShrunk {
                    disk: disk.name.clone(),
                    from: known.size_bytes,
                    to: disk.size_bytes,
                });
            }
            Some(_) => {}
        }
    }
    let update = |state: &mut ItemState| {
        state.learn(&disks);
        state.seeded.retain(|disk| !anew.contains(disk));
    };
    shared.update(item, update).await?;
    if !gone.is_empty() || !grown.is_empty() || !anew.is_empty() {
        let (maps, state) = (shared.maps.clone(), shared.state().await);
        blocking(move || {
            for (disk, size_bytes) in grown {
                maps.grown(disk, size_bytes);
            }
            anew.iter()
                .try_for_each(|disk| maps.begin_anew(&state, *disk))?;
            gone.iter().try_for_each(|disk| maps.drop_disk(*disk))
        })
        .await
        .map_err(Trouble::io(
            "keep maps of block hashes in step with the disks",
        ))?;
    }
    Ok(disks)
}

async fn find_disks(
    item: &Item,
    vm: &VirtualMachine,
    before: &ItemState,
) -> Result<Vec<ItemDisk>, Trouble> {
    let mut disks = Vec::new();
    for id in &item.spec.disks {
        let Some(disk) = vm.disks.iter().find(|disk| disk.id == *id) else {
            return Err(missing(*id, vm, before));
        };
        let path = match item.context.hypervisor.disk_path(item.spec.vm, *id).await {
            Err(error) if error.kind() == ErrorKind::DiskNotFound => {
                return Err(missing(*id, vm, before));
            }
            other => other?,
        };
        disks.push(ItemDisk {
            id: *id,
            name: disk.name.clone(),
            size_bytes: disk.size_bytes,
            path,
            changed_at: 0,
            changed_before: 0,
            last_log: Uuid::nil(),
            left: None,
        });
    }
    Ok(disks)
}

/// A disk that is not there: gone, or another one is in its place.
fn missing(id: DiskId, vm: &VirtualMachine, before: &ItemState) -> Trouble {
    let known = before.disks.iter().find(|known| known.id == id);
    let instead = known.and_then(|known| vm.disks.iter().find(|disk| disk.name == known.name));
    match instead {
        Some(other) => Trouble::DiskReplaced {
            name: other.name.clone(),
            disk: id.to_string(),
            by: other.id.to_string(),
        },
        None => Trouble::DiskNotFound(id.to_string()),
    }
}

/// The VM is off: marks its images, or finds out that one was written since it was marked. `seen_running` says
/// whether this engine has seen the VM run, so that nothing can have been written before the first look.
pub(super) async fn watch_left(
    item: &Item,
    shared: &Shared,
    seen_running: bool,
) -> Result<(), Trouble> {
    let state = shared.state().await;
    if !state.complete {
        return Ok(());
    }
    let marks = marks(&state.disks).await?;
    let mut written = Vec::new();
    let mut changed = state.clone();
    for (disk, mark) in changed.disks.iter_mut().zip(marks) {
        // An image that can't be read tells nothing; the freeze that follows will.
        let Some(mark) = mark else { continue };
        let left = disk.left.replace(mark.clone());
        match left {
            Some(left) if left == mark => {}
            None if seen_running => {}
            _ => written.push(disk.id),
        }
    }
    shared
        .update(item, |state| {
            for disk in &mut state.disks {
                let looked = changed.disks.iter().find(|looked| looked.id == disk.id);
                disk.left = looked.and_then(|looked| looked.left.clone());
            }
            state.raise(
                &written,
                "its image may have been written while the virtual machine was off",
            );
        })
        .await
}

/// The VM runs: its images change again, with a tracker. `seen_off` says whether this engine watched it being off.
pub(super) async fn end_watch(item: &Item, shared: &Shared, seen_off: bool) -> Result<(), Trouble> {
    let state = shared.state().await;
    let marked: Vec<DiskId> = state
        .disks
        .iter()
        .filter(|disk| disk.left.is_some())
        .map(|disk| disk.id)
        .collect();
    if marked.is_empty() {
        return Ok(());
    }
    shared
        .update(item, |state| {
            for disk in &mut state.disks {
                disk.left = None;
            }
            if !seen_off {
                state.raise(
                    &marked,
                    "the virtual machine was off, and was started while no engine looked",
                );
            }
        })
        .await
}

/// Marks of images; `None` for one that can't be read.
pub(super) async fn marks(disks: &[ItemDisk]) -> Result<Vec<Option<ImageMark>>, Trouble> {
    let paths: Vec<_> = disks.iter().map(|disk| disk.path.clone()).collect();
    blocking(move || Ok(paths.iter().map(|path| mark(path).ok()).collect()))
        .await
        .map_err(Trouble::io("look at the images of a VM that is off"))
}

fn mark(path: &Path) -> io::Result<ImageMark> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    let modified = meta
        .modified()?
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
        });
    let mut head = Vec::new();
    file.take(HEAD_BYTES).read_to_end(&mut head)?;
    Ok(ImageMark {
        length_bytes: meta.len(),
        modified_unix_ns: modified,
        head: blake3::hash(&head).to_hex().to_string(),
    })
}
