//! Room of the volume that holds a path, as the operating system counts it.

#[cfg_attr(unix, path = "unix.rs")]
#[cfg_attr(windows, path = "windows.rs")]
mod system;

use std::io;
use std::path::Path;

/// Bytes of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Free for an ordinary user, or for this one where users have quotas.
    pub free_bytes: u64,
    /// All of it.
    pub total_bytes: u64,
}

impl Volume {
    /// Of the file or folder at `path`.
    ///
    /// # Errors
    /// When the path is not there, or its volume does not answer.
    pub fn of(path: &Path) -> io::Result<Self> {
        system::volume(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_room_within_its_volume_and_a_missing_one_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let volume = Volume::of(folder.path()).unwrap();
        assert!(volume.free_bytes > 0 && volume.free_bytes <= volume.total_bytes);
        assert!(Volume::of(&folder.path().join("nowhere")).is_err());
    }
}
