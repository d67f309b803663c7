//! `statvfs`.

use std::io;
use std::path::Path;

use super::Volume;

pub(super) fn volume(path: &Path) -> io::Result<Volume> {
    let facts = nix::sys::statvfs::statvfs(path)?;
    let unit = facts.fragment_size() as u64;
    Ok(Volume {
        free_bytes: (facts.blocks_available() as u64).saturating_mul(unit),
        total_bytes: (facts.blocks() as u64).saturating_mul(unit),
    })
}
