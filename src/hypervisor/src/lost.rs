//! A VM whose host has lost it, or some of its disks: what has to be there again so that it can be filled.

use crate::{DiskId, Generation, NewNetwork, VmId};

/// A VM as it was. [`crate::Hypervisor::restore`] makes what is missing of it.
#[derive(Clone, Debug)]
pub struct LostVirtualMachine {
    /// Its GUID.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// Firmware and controllers.
    pub generation: Generation,
    /// Memory in bytes; rounded up to whole MiB.
    pub memory_bytes: u64,
    /// Virtual processors.
    pub processors: u32,
    /// "Linux", "Windows" or empty.
    pub os_type: String,
    /// The operating system disk first.
    pub disks: Vec<LostDisk>,
    /// Network adapters, for a VM that is gone as a whole. One that is there keeps its own.
    pub networks: Vec<NewNetwork>,
}

/// A disk of such a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostDisk {
    /// Virtual disk id that the image must have.
    pub id: DiskId,
    /// File name of the image, without folder.
    pub name: String,
    /// Virtual size in bytes.
    pub size_bytes: u64,
}

#[cfg(unix)]
impl LostVirtualMachine {
    /// A folder name for people that can do no harm: the VM's name, or its id where nothing of that is left.
    pub(crate) fn folder_name(&self) -> String {
        safe_name(&self.name).unwrap_or_else(|| self.id.to_string())
    }

    /// The same for one whose place another VM has.
    pub(crate) fn other_folder_name(&self) -> String {
        let id = self.id.to_string();
        format!("{}-{}", self.folder_name(), id.get(..8).unwrap_or(&id))
    }
}

#[cfg(unix)]
impl LostDisk {
    /// A file name that can do no harm and says the format.
    pub(crate) fn file_name(&self) -> String {
        let name = safe_name(&self.name).unwrap_or_else(|| self.id.to_string());
        let extension = name.rsplit_once('.').map(|(_, extension)| extension);
        match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("vhdx" | "vhd") => name,
            _ => format!("{name}.vhdx"),
        }
    }

    /// The same for an image whose place is taken.
    pub(crate) fn other_file_name(&self) -> String {
        format!("{}.vhdx", self.id)
    }
}

/// One component of a path: no separators, no hidden file, at most 64 characters.
#[cfg(unix)]
fn safe_name(name: &str) -> Option<String> {
    let safe: String = name
        .chars()
        .take(64)
        .map(|letter| match letter {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_' => letter,
            _ => '_',
        })
        .collect();
    let safe = safe.trim_start_matches('.').to_owned();
    (!safe.is_empty()).then_some(safe)
}

#[cfg(all(test, unix))]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn names_out_of_a_recovery_point_stay_inside_their_folder() {
        let disk = |name: &str| LostDisk {
            id: DiskId(Uuid::from_u128(7)),
            name: name.to_owned(),
            size_bytes: 512,
        };
        for (name, file) in [
            ("os.vhdx", "os.vhdx"),
            ("data.VHD", "data.VHD"),
            ("../../etc/passwd", "_.._etc_passwd.vhdx"),
            ("a/b.vhdx", "a_b.vhdx"),
            ("..", "00000000-0000-0000-0000-000000000007.vhdx"),
            ("", "00000000-0000-0000-0000-000000000007.vhdx"),
        ] {
            assert_eq!(disk(name).file_name(), file, "{name:?}");
        }
    }
}
