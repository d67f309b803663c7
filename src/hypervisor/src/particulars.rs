//! What the checks before protection want to know of a VM, beside the inventory: what its host can tell, and a short look at
//! its disks.
//!
//! What a driver can't tell it leaves unknown; it never says "not there" of something that it has not looked for.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use disk_image::boot::{self, Look};
use disk_image::{Access, DiskImage, FolderGate, ImageError};

use crate::{DiskId, VmId, Volume};

/// A disk that somebody writes is looked at again so often, and no more.
const AGAIN: Duration = Duration::from_secs(60);

/// Whether something is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Presence {
    /// The host can't tell.
    #[default]
    Unknown,
    /// It is not.
    NotPresent,
    /// It is.
    Present,
}

impl From<bool> for Presence {
    fn from(present: bool) -> Self {
        if present {
            Self::Present
        } else {
            Self::NotPresent
        }
    }
}

/// Of one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Particulars {
    /// Which VM.
    pub vm: VmId,
    /// Such as "Windows Server 2022 Datacenter"; empty when unknown.
    pub os_name: String,
    /// Such as "10.0.20348"; empty when unknown.
    pub os_version: String,
    /// Of the guest: "`x86_64`", "x86", "aarch64"; empty when unknown.
    pub architecture: String,
    /// Whether the firmware starts signed code only.
    pub secure_boot: Presence,
    /// A virtual TPM.
    pub virtual_tpm: Presence,
    /// A virtual Fibre Channel adapter.
    pub fibre_channel: Presence,
    /// Checkpoints of the VM.
    pub checkpoints: Presence,
    /// All its disks, also those that no inventory lists because they have no id.
    pub disks: Vec<DiskParticulars>,
}

impl Particulars {
    /// Of a VM of which nothing is known yet.
    pub fn unknown(vm: VmId) -> Self {
        Self {
            vm,
            os_name: String::new(),
            os_version: String::new(),
            architecture: String::new(),
            secure_boot: Presence::Unknown,
            virtual_tpm: Presence::Unknown,
            fibre_channel: Presence::Unknown,
            checkpoints: Presence::Unknown,
            disks: Vec::new(),
        }
    }
}

/// Of one disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskParticulars {
    /// As in the inventory; none for a disk that has none, such as a pass-through disk.
    pub id: Option<DiskId>,
    /// File name without folder.
    pub name: String,
    /// "VHDX", "VHD", "Raw"; empty when unknown.
    pub format: String,
    /// "IDE", "SCSI"; empty when unknown.
    pub controller: String,
    /// 0 when unknown.
    pub logical_sector_bytes: u32,
    /// Another VM has it, too.
    pub shared: Presence,
    /// It is a disk of the host.
    pub pass_through: Presence,
    /// Disks with the same text lie on the same volume; empty when unknown.
    pub volume: String,
    /// Free bytes of that volume.
    pub volume_free_bytes: Option<u64>,
    /// What its first sectors say.
    pub look: Option<Look>,
}

impl DiskParticulars {
    /// Fills in what the volume of the image at `path` says.
    pub(crate) fn place(&mut self, path: &Path) {
        self.volume = volume_name(path);
        self.volume_free_bytes = Volume::of(path).ok().map(|volume| volume.free_bytes);
    }
}

#[cfg(unix)]
fn volume_name(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(path).map_or_else(|_| String::new(), |found| found.dev().to_string())
}

#[cfg(not(unix))]
fn volume_name(path: &Path) -> String {
    windows_volume(&path.to_string_lossy())
}

/// A drive, a share, or a volume of a cluster, which is a folder of the system's drive.
#[cfg(any(not(unix), test))]
fn windows_volume(path: &str) -> String {
    let path = path.to_lowercase();
    let parts: Vec<&str> = path.split('\\').collect();
    let count = match parts.as_slice() {
        ["", "", _, _, ..] => 4,
        [_, "clusterstorage", _, _, ..] => 3,
        _ => 1,
    };
    parts.into_iter().take(count).collect::<Vec<_>>().join("\\")
}

/// Looks at images, and remembers what they said: an image that nobody has written since is not read again, one that is
/// being written is read once a minute.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    known: Mutex<HashMap<PathBuf, Known>>,
}

#[derive(Debug)]
struct Known {
    stamp: Stamp,
    taken: Instant,
    look: Option<Look>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    disk: DiskId,
    length: u64,
    written: Option<SystemTime>,
}

impl Looks {
    /// A look at the image of `disk`. None when it can't be read now. It is opened for reading and without a lock, so whoever
    /// runs the VM does not notice; what changes below the reading may make it fail, never the VM.
    pub(crate) fn at(&self, disk: DiskId, path: &Path) -> Option<Look> {
        let found = fs::metadata(path).ok()?;
        let stamp = Stamp {
            disk,
            length: found.len(),
            written: found.modified().ok(),
        };
        {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = known.get(path)
                && (known.stamp == stamp
                    || (known.stamp.disk == disk && known.taken.elapsed() < AGAIN))
            {
                return known.look;
            }
        }
        let look = read(path).ok();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(
            path.to_owned(),
            Known {
                stamp,
                taken: Instant::now(),
                look,
            },
        );
        look
    }

    /// Forgets images that are not among `paths`.
    pub(crate) fn keep(&self, paths: &[PathBuf]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|path, _| paths.contains(path));
    }
}

/// The owner may be rewriting a header at this instant, so a contradiction is believed only after several readings.
fn read(path: &Path) -> Result<Look, ImageError> {
    const READINGS: usize = 4;
    let mut reading = read_once(path);
    for _ in 1..READINGS {
        if reading.is_ok() {
            break;
        }
        reading = read_once(path);
    }
    reading
}

fn read_once(path: &Path) -> Result<Look, ImageError> {
    let image = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => {
            let gate = FolderGate::new([folder])?;
            DiskImage::open_with_parents(path, Access::ReadOnly, &gate)?
        }
        _ => DiskImage::open(path, Access::ReadOnly)?,
    };
    boot::look(&image)
}

#[cfg(test)]
mod tests {
    use super::windows_volume;

    #[test]
    fn a_path_of_windows_names_its_drive_its_share_or_its_volume_of_a_cluster() {
        for (path, volume) in [
            (r"D:\VMs\a.vhdx", "d:"),
            (
                r"C:\ClusterStorage\Volume1\a.vhdx",
                r"c:\clusterstorage\volume1",
            ),
            (
                r"C:\ClusterStorage\Volume2\vm\a.vhdx",
                r"c:\clusterstorage\volume2",
            ),
            (r"C:\ClusterStorage\a.vhdx", "c:"),
            (r"\\Server\Share\vm\a.vhdx", r"\\server\share"),
        ] {
            assert_eq!(windows_volume(path), volume, "{path}");
        }
    }
}
