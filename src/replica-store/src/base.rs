//! Base: one sparse fixed VHD per disk.
//!
//! The VHD's size is rounded up to whole MiB, as Azure wants it; the true size is in the manifest
//! and is the only one that callers see.

use std::fs::File;
use std::path::Path;

use replication_log::ReadAt;

use crate::durable::{Durable, DurableFile};
use crate::error::{ErrorKind, Result, StoreError};
use crate::model::DiskSpec;

const MIB: u64 = 1 << 20;
/// Largest fixed VHD: 64 TiB, far below where rounding could overflow.
const MAX_DISK: u64 = 64 << 40;
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

/// Creates base of a disk, all zeroes, durably; repeating it is harmless before the first write.
pub(crate) fn create(durable: &Durable, path: &Path, disk: &DiskSpec, unix_s: u64) -> Result<()> {
    let size = padded_size(disk)?;
    let footer = disk_image::vhd::fixed::footer(size, disk.id, unix_s).map_err(|error| {
        StoreError::new(
            ErrorKind::Invalid,
            format!("disk {} can't become a VHD: {error}", disk.id),
        )
    })?;
    let file = durable.open_in_place(path, true)?;
    file.set_length(size + footer.len() as u64)?;
    file.write_at(size, &footer)?;
    file.sync()
}

/// Opens base for writing and checks that it has the length it must have.
pub(crate) fn open(durable: &Durable, path: &Path, disk: &DiskSpec) -> Result<DurableFile> {
    let file = durable.open_in_place(path, false)?;
    if file.length()? != padded_size(disk)? + disk_image::vhd::fixed::FOOTER_LENGTH {
        return Err(StoreError::corrupt(path, "it has not the disk's length"));
    }
    Ok(file)
}

/// Writes data; runs of zeroes become holes.
pub(crate) fn write(file: &DurableFile, offset: u64, data: &[u8]) -> Result<()> {
    if data.is_empty() {
        Ok(())
    } else if is_zero(data) {
        file.zero_at(offset, data.len() as u64)
    } else {
        file.write_at(offset, data)
    }
}

pub(crate) fn read(file: &File, path: &Path, offset: u64, buf: &mut [u8]) -> Result<()> {
    file.read_exact_at(buf, offset).map_err(|error| {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            StoreError::corrupt(path, "it is shorter than its disk")
        } else {
            StoreError::io("read", path, error)
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
        .ok_or_else(|| {
            StoreError::new(ErrorKind::NotFound, format!("the replica has no disk {id}"))
        })
}

fn is_zero(data: &[u8]) -> bool {
    let (head, wide, tail) = (
        &data[..data.len() % 16],
        data[data.len() % 16..].chunks_exact(16),
        0u8,
    );
    head.iter().all(|byte| *byte == tail)
        && wide.into_iter().all(|chunk| {
            let mut lane = [0u8; 16];
            lane.copy_from_slice(chunk);
            u128::from_ne_bytes(lane) == 0
        })
}
