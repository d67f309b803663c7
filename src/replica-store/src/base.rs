//! Base: one sparse fixed VHD per disk.
//!
//! The VHD's size is rounded up to whole MiB, as Azure wants it; the true size is in the manifest
//! and is the only one that callers see. A disk that grew keeps its base as it is until the applier
//! moves base to where the disk is larger: what a view reads beyond base is zero.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use disk_image::vhd::fixed::{FOOTER_LENGTH, footer};

use crate::error::{ErrorKind, Result, StoreError};
use crate::layout;
use crate::manifest::Manifest;
use crate::medium::{BaseWrite, Fence, Object, Piece};
use crate::model::DiskSpec;
use crate::replica::Replica;

const MIB: u64 = 1 << 20;
/// Largest fixed VHD: 64 TiB, far below where rounding could overflow.
pub(crate) const MAX_DISK: u64 = 64 << 40;
/// Longest single read, so that a hostile request can't ask for all memory.
const MAX_READ: usize = 64 << 20;

/// Size of the VHD without its footer.
pub(crate) fn padded_size(disk: &DiskSpec) -> Result<u64> {
    if disk.size_bytes == 0 || disk.size_bytes > MAX_DISK {
        return Err(StoreError::new(
            ErrorKind::Invalid,
            format!(
                "disk {} has an impossible size of {}",
                disk.id, disk.size_bytes
            ),
        ));
    }
    Ok(disk.size_bytes.div_ceil(MIB) * MIB)
}

fn footer_of(disk: &DiskSpec) -> Result<Vec<u8>> {
    let unix_s = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let footer = footer(padded_size(disk)?, disk.id, unix_s).map_err(|error| {
        StoreError::new(
            ErrorKind::Invalid,
            format!("disk {} can't become a VHD: {error}", disk.id),
        )
    })?;
    Ok(footer.to_vec())
}

/// Creates base of a disk, all zeroes, durably; repeating it is harmless before the first write.
pub(crate) fn create(replica: &Replica, disk: &DiskSpec, fence: Fence) -> Result<()> {
    let footer = footer_of(disk)?;
    let length = padded_size(disk)? + footer.len() as u64;
    let name = layout::base(disk.id);
    replica.medium.base_create(&name, length, &footer, fence)
}

/// Opens base for writing and checks that it has at least the length it must have. It is longer when
/// a round that was cut had grown it.
pub(crate) fn open(
    replica: &Replica,
    manifest: &Manifest,
    disk: uuid::Uuid,
) -> Result<Arc<dyn BaseWrite>> {
    let name = layout::base(disk);
    let place = replica.medium.describe(&name);
    let spec = manifest
        .stored_disk(disk)
        .ok_or_else(|| unknown_disk(disk))?;
    let base = replica
        .medium
        .base_open(&name, manifest.fence)?
        .ok_or_else(|| StoreError::corrupt(&place, "it is missing"))?;
    if base.length()? < padded_size(spec)? + FOOTER_LENGTH {
        return Err(StoreError::corrupt(&place, "it has not the disk's length"));
    }
    Ok(base)
}

/// Makes base as long as the disk is now. `from` is the size that it surely has been grown to before.
/// In this order a cut leaves a base whose data is right up to `from`, and the redo gives the same.
pub(crate) fn grow(base: &dyn BaseWrite, from: &DiskSpec, to: &DiskSpec) -> Result<()> {
    let (old, new) = (padded_size(from)?, padded_size(to)?);
    if new <= old {
        return Ok(());
    }
    let footer = footer_of(to)?;
    if base.length()? < new + FOOTER_LENGTH {
        base.resize(new + FOOTER_LENGTH)?;
    }
    base.write(&[
        Piece::Zeroes(old, FOOTER_LENGTH),
        Piece::Data(new, Bytes::from(footer)),
    ])?;
    base.flush()
}

pub(crate) fn read(object: &dyn Object, place: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
    object.read_exact_at(buf, offset).map_err(|error| {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            StoreError::corrupt(place, "it is shorter than its disk")
        } else {
            StoreError::io("read", place, error)
        }
    })
}

/// A request must lie inside the disk's true size.
pub(crate) fn check_range(disk: &DiskSpec, offset: u64, length: usize) -> Result<()> {
    let end = offset.checked_add(length as u64);
    if end.is_none_or(|end| end > disk.size_bytes) || length > MAX_READ {
        return Err(StoreError::new(
            ErrorKind::Invalid,
            format!(
                "{length} bytes at {offset} are outside disk {} of {} bytes, or more than {MAX_READ} at once",
                disk.id, disk.size_bytes
            ),
        ));
    }
    Ok(())
}

pub(crate) fn find(disks: &[DiskSpec], id: uuid::Uuid) -> Result<(usize, &DiskSpec)> {
    disks
        .iter()
        .enumerate()
        .find(|(_, disk)| disk.id == id)
        .ok_or_else(|| unknown_disk(id))
}

pub(crate) fn unknown_disk(id: uuid::Uuid) -> StoreError {
    StoreError::new(ErrorKind::NotFound, format!("the replica has no disk {id}"))
}

pub(crate) fn is_zero(data: &[u8]) -> bool {
    let (head, wide) = data.split_at(data.len() % 16);
    head.iter().all(|byte| *byte == 0)
        && wide.chunks_exact(16).all(|chunk| {
            let mut lane = [0u8; 16];
            lane.copy_from_slice(chunk);
            u128::from_ne_bytes(lane) == 0
        })
}
