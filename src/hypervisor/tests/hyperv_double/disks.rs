//! virtdisk of the double: real files, read through the crate `disk-image`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use disk_image::{Access, DiskImage};
use hypervisor::Extent;
use hypervisor::hyperv::host::{
    CHANGE_TRACKING_DISABLED, DiskFacts, HostError, INVALID_CHANGE_TRACKING_ID, NOT_SUPPORTED,
    OpenDisk,
};
use uuid::Uuid;

use super::{State, open};

const SECTOR: u64 = 4096;
/// So small that every query takes several calls.
const RANGES: usize = 1;

pub fn id_of(file: &Path) -> Uuid {
    open(file, Access::ReadOnly).id().unwrap()
}

/// The id of an instant on a disk.
pub fn rct_id(disk: Uuid, count: u64) -> String {
    format!("rctX:{disk}:{count:08x}")
}

pub struct Handle {
    state: Arc<Mutex<State>>,
    file: PathBuf,
    image: DiskImage,
    attached: Mutex<bool>,
}

impl Handle {
    pub fn open(state: Arc<Mutex<State>>, file: &Path) -> Result<Self, HostError> {
        if !file.is_file() {
            return Err(HostError::new(2, format!("no file {}", file.display())));
        }
        Ok(Self {
            state,
            file: file.to_owned(),
            image: open(file, Access::ReadOnly),
            attached: Mutex::new(false),
        })
    }
}

impl OpenDisk for Handle {
    fn facts(&self) -> Result<DiskFacts, HostError> {
        let id = self.image.id().unwrap();
        Ok(DiskFacts {
            id,
            size_bytes: self.image.virtual_size(),
            physical_sector: 4096,
            tracking: self.state.lock().unwrap().tracked.contains(&id),
        })
    }

    fn changes(
        &self,
        since: &str,
        offset: u64,
        length: u64,
    ) -> Result<(Vec<Extent>, u64), HostError> {
        let state = self.state.lock().unwrap();
        let id = self.image.id().unwrap();
        if !state.tracked.contains(&id) {
            return Err(HostError::new(CHANGE_TRACKING_DISABLED, "not tracked"));
        }
        let known = state.objects.values().any(|one| {
            let ids = one.texts("ResilientChangeTrackingIdentifiers");
            ids.iter().any(|one| one == since)
        });
        let from = since
            .rsplit(':')
            .next()
            .and_then(|count| u64::from_str_radix(count, 16).ok());
        let (true, Some(from)) = (known, from) else {
            return Err(HostError::new(INVALID_CHANGE_TRACKING_ID, since));
        };
        let until = state.frozen.get(&self.file).copied().unwrap_or(u64::MAX);
        let end = offset + length;
        let mut found: Vec<Extent> = state
            .log
            .get(&id)
            .into_iter()
            .flatten()
            .filter(|(count, _)| from < *count && *count <= until)
            .map(|(_, range)| Extent {
                offset: range.offset.max(offset),
                length: range
                    .end()
                    .min(end)
                    .saturating_sub(range.offset.max(offset)),
            })
            .filter(|range| range.length > 0)
            .collect();
        found.sort_by_key(|range| range.offset);
        // The answer is about all that lies before the first range that had no room in it.
        let processed = found.get(RANGES).map_or(length, |next| {
            (next.offset - offset)
                .max(found[RANGES - 1].end().min(next.offset) - offset)
                .max(1)
        });
        found.retain(|range| range.offset < offset + processed);
        Ok((found, processed))
    }

    fn attach(&self) -> Result<(), HostError> {
        let mut attached = self.attached.lock().unwrap();
        if !*attached {
            *attached = true;
            let mut state = self.state.lock().unwrap();
            *state.attached.entry(self.file.clone()).or_default() += 1;
        }
        Ok(())
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), HostError> {
        if !*self.attached.lock().unwrap() {
            return Err(HostError::new(NOT_SUPPORTED, "not attached"));
        }
        if !offset.is_multiple_of(SECTOR) || !(buffer.len() as u64).is_multiple_of(SECTOR) {
            return Err(HostError::new(87, "not aligned"));
        }
        self.image
            .read_at(buffer, offset)
            .map_err(|error| HostError::new(23, error.to_string()))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !*self.attached.lock().unwrap() {
            return;
        }
        let mut state = self.state.lock().unwrap();
        if let Some(times) = state.attached.get_mut(&self.file) {
            *times -= 1;
            if *times == 0 {
                state.attached.remove(&self.file);
            }
        }
    }
}
