//! Offline seeding: a disk copy that was brought to the store's side becomes the start of base.
//!
//! The copy is a file on the machine of the engine, or a blob in the container of the replica. It may be raw, VHD or
//! VHDX; it is hostile input and opened read-only, without parents. Base
//! stays partial: the engine compares it with the source and sends what differs. Repeating is resuming:
//! what base holds already is read and only what differs is written, so nothing need be remembered.

use std::io;
use std::path::Path;

use bytes::Bytes;
use disk_image::{Access, BlockRead, DiskImage, NoParents};
use uuid::Uuid;

use crate::base::{is_zero, unknown_disk};
use crate::error::{ErrorKind, Result, StoreError};
use crate::initial;
use crate::model::Generation;
use crate::replica::Replica;

/// Read and written at once.
const PIECE: u64 = 4 << 20;

/// What seeding did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seeded {
    /// Bytes of the disk that the copy covers.
    pub covered_bytes: u64,
    /// Bytes that were written to base.
    pub written_bytes: u64,
}

/// See [`crate::ReplicaWriter::seed_base`].
pub(crate) fn seed(
    replica: &Replica,
    generation: Generation,
    disk: Uuid,
    source: &Path,
    progress: &dyn Fn(u64),
) -> Result<Seeded> {
    let refused = |error: disk_image::ImageError| {
        let kind = if is_passing(&error) {
            ErrorKind::Io
        } else {
            ErrorKind::Invalid
        };
        StoreError::new(
            kind,
            format!(
                "the disk copy {} can't be used as a seed: {error}",
                source.display()
            ),
        )
    };
    let file = replica.medium.open_copy(source)?;
    let image =
        DiskImage::open_named(file, source, Access::ReadOnly, &NoParents).map_err(refused)?;
    let manifest = replica.manifest()?.value;
    let spec = manifest
        .stored_disk(disk)
        .ok_or_else(|| unknown_disk(disk))?;
    // A copy of an older, smaller disk helps as well; what is behind the disk's end does not.
    let covered = BlockRead::virtual_size(&image).min(spec.size_bytes);
    let mut seeded = Seeded {
        covered_bytes: covered,
        written_bytes: 0,
    };
    let mut at = 0;
    while at < covered {
        let length = PIECE.min(covered - at);
        let mut wanted = vec![0u8; length as usize];
        if !image.allocated(at..at + length).is_empty() {
            image.read_at(&mut wanted, at).map_err(refused)?;
        }
        let present = initial::base_read(replica, disk, at, length as usize)?;
        if wanted != present {
            for (start, run) in differing(&wanted, &present) {
                seeded.written_bytes += run.len() as u64;
                initial::base_write(replica, generation, disk, at + start, &run)?;
            }
        }
        at += length;
        progress(length);
    }
    if seeded.written_bytes > 0 {
        initial::base_flush(replica, generation)?;
    }
    Ok(seeded)
}

/// Whether it may be another time: the way to the copy failed, not the copy.
fn is_passing(error: &disk_image::ImageError) -> bool {
    let source = std::error::Error::source(error);
    let refused = source.and_then(|source| source.downcast_ref::<io::Error>());
    // A copy that was cut short is one that nobody can use.
    error.kind() == disk_image::ErrorKind::Io
        && refused.is_some_and(|refused| refused.kind() != io::ErrorKind::UnexpectedEof)
}

/// Runs of blocks that differ; holes of zeroes are runs of their own.
fn differing(wanted: &[u8], present: &[u8]) -> Vec<(u64, Bytes)> {
    const BLOCK: usize = 64 << 10;
    let mut runs: Vec<(u64, Vec<u8>, bool)> = Vec::new();
    let blocks = wanted.chunks(BLOCK).zip(present.chunks(BLOCK));
    for (n, (new, old)) in blocks.enumerate() {
        if new == old {
            continue;
        }
        let (at, zero) = ((n * BLOCK) as u64, is_zero(new));
        match runs.last_mut() {
            Some((start, run, was_zero))
                if *start + run.len() as u64 == at && *was_zero == zero =>
            {
                run.extend_from_slice(new);
            }
            _ => runs.push((at, new.to_vec(), zero)),
        }
    }
    runs.into_iter()
        .map(|(at, run, _)| (at, Bytes::from(run)))
        .collect()
}
