//! Which ranges of an image may hold data while another process has it open for writing.

use std::path::Path;

use uuid::Uuid;

use crate::{ErrorKind, Extent, Format, ImageError, ImageFile};

/// What a live image's block allocation table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveAllocation {
    /// Format and kind.
    pub format: Format,
    /// Identity of the disk.
    pub id: Uuid,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Logical sector size in bytes.
    pub logical_sector_size: u32,
    /// VHDX: identifies the state of the data when the owner opened the image.
    pub data_write_guid: Option<Uuid>,
    /// Ranges that may hold anything but zeroes: sorted, disjoint, neighbours joined.
    pub allocated: Vec<Extent>,
}

/// Reads the allocation of the VHDX or VHD at `path` that another process may have open for
/// writing. The file is opened read-only and a VHDX's log is ignored, so the answer holds for
/// what the owner had written when it was last drained (all its requests done).
pub fn live_allocation(path: impl AsRef<Path>) -> Result<LiveAllocation, ImageError> {
    let file = crate::image::open_path(path.as_ref(), crate::Access::ReadOnly)?;
    live_allocation_of(&file)
}

/// As [`live_allocation`], of an open file.
///
/// The owner may be rewriting a header or growing the file at this instant, so a contradiction is
/// believed only when it is still there after several readings.
pub fn live_allocation_of(file: &dyn ImageFile) -> Result<LiveAllocation, ImageError> {
    const READINGS: usize = 16;
    let mut reading = read_once(file);
    for _ in 1..READINGS {
        match &reading {
            Err(error) if error.kind() != ErrorKind::Unsupported => std::thread::yield_now(),
            _ => break,
        }
        reading = read_once(file);
    }
    reading
}

fn read_once(file: &dyn ImageFile) -> Result<LiveAllocation, ImageError> {
    if crate::vhdx::detect(file)? {
        return crate::vhdx::live(file);
    }
    crate::vhd::live(file)
}
