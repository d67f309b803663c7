//! Which ranges of an image may hold data while another process has it open for writing.

use std::path::Path;

use uuid::Uuid;

use crate::{Extent, Format, ImageError, ImageFile};

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
pub fn live_allocation_of(_file: &dyn ImageFile) -> Result<LiveAllocation, ImageError> {
    Err(ImageError::unsupported("live image", "not built yet"))
}
