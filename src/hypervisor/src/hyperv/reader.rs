//! Changed ranges and bytes of a frozen file.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use disk_image::{Access, DiskImage, FolderGate};

use super::blocking;
use super::host::{DiskFacts, HostError, OpenDisk};
use crate::{Changes, ErrorKind, Extent, ExtentSet, FrozenReader, HypervisorError};

/// Granularity that all drivers promise.
const BLOCK: u64 = 64 << 10;

/// What RCT says changed since `since`. When it says that it can't tell, the answer is [`Changes::Unknown`]: a comparison
/// heals that.
pub(super) fn changes(
    disk: &dyn OpenDisk,
    facts: &DiskFacts,
    since: &str,
) -> Result<Changes, HostError> {
    let mut ranges = Vec::new();
    let mut offset = 0;
    while offset < facts.size_bytes {
        let (found, processed) = match disk.changes(since, offset, facts.size_bytes - offset) {
            Ok(answer) => answer,
            Err(error) if error.tracking_is_lost() => {
                tracing::warn!(disk = %facts.id, %error, "change tracking can't tell: the disk is compared");
                return Ok(Changes::Unknown);
            }
            Err(error) => return Err(error),
        };
        ranges.extend(found.into_iter().map(whole_blocks));
        if processed == 0 {
            // It would never end; and what was not looked at may have changed.
            tracing::warn!(disk = %facts.id, offset, "change tracking stands still: the disk is compared");
            return Ok(Changes::Unknown);
        }
        offset = offset.saturating_add(processed);
    }
    let all = ExtentSet::from_unsorted(ranges).clip(facts.size_bytes);
    Ok(Changes::Since(all.into_vec()))
}

fn whole_blocks(range: Extent) -> Extent {
    let offset = range.offset / BLOCK * BLOCK;
    let end = range.end().div_ceil(BLOCK).saturating_mul(BLOCK);
    Extent {
        offset,
        length: end - offset,
    }
}

/// Ranges that may hold anything but zeroes, out of the file's own block allocation table: virtdisk tells no such thing. All
/// of the disk when the file can't be read beside its owner.
pub(super) fn allocated(file: &Path, facts: &DiskFacts) -> Vec<Extent> {
    let open = || {
        let gate = FolderGate::new([file.parent()?]).ok()?;
        let image = DiskImage::open_with_parents(file, Access::ReadOnly, &gate).ok()?;
        (image.virtual_size() == facts.size_bytes).then(|| image.allocated(0..facts.size_bytes))
    };
    match open() {
        Some(extents) => extents
            .into_iter()
            .map(|one| Extent {
                offset: one.offset,
                length: one.length,
            })
            .collect(),
        None => vec![Extent {
            offset: 0,
            length: facts.size_bytes,
        }],
    }
}

/// Reads through the attached handle, in whole sectors.
pub(super) struct Reader {
    pub disk: Arc<dyn OpenDisk>,
    pub facts: DiskFacts,
}

impl Reader {
    fn read_now(&self, offset: u64, length: usize) -> Result<Bytes, HypervisorError> {
        let id = self.facts.id;
        let step = || format!("read {length} bytes at {offset} of disk {id}");
        let outside = || HypervisorError::new(ErrorKind::InvalidRequest, step());
        let sector = u64::from(self.facts.physical_sector.max(512));
        let end = offset
            .checked_add(length as u64)
            .filter(|end| *end <= self.facts.size_bytes)
            .ok_or_else(outside)?;
        let first = offset / sector * sector;
        // The last sector of a disk may be a part of a physical one.
        let last = end.next_multiple_of(sector).min(self.facts.size_bytes);
        let count = usize::try_from(last - first).map_err(|_| outside())?;
        let skip = usize::try_from(offset - first).map_err(|_| outside())?;
        let mut buffer = vec![0; count];
        self.disk
            .read(first, &mut buffer)
            .map_err(|error| HypervisorError::with_source(ErrorKind::Io, step(), error))?;
        Ok(Bytes::from(buffer).slice(skip..skip + length))
    }
}

#[async_trait]
impl FrozenReader for Reader {
    async fn read(&self, offset: u64, length: usize) -> Result<Bytes, HypervisorError> {
        let reader = Self {
            disk: self.disk.clone(),
            facts: self.facts.clone(),
        };
        blocking("read a frozen disk", move || {
            reader.read_now(offset, length)
        })
        .await
    }
}
