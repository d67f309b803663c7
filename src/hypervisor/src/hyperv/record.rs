//! What the driver remembers of a VM's tracking, in a small file beside its first disk: which tracking interval is which
//! reference point, with the RCT id of each disk, and whether a point is frozen. It lies beside the disks so that it moves
//! with the VM to another node. When it is lost, disks are compared; nothing else happens.
//!
//! Changed whole: written beside, flushed, renamed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::survey::Machine;
use crate::{ErrorKind, HypervisorError, TrackingId};

const VERSION: u32 = 1;

/// An instant from which changes are known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Interval {
    pub tracking: TrackingId,
    /// `InstanceID` of its reference point; none where RCT does not work.
    pub reference_point: Option<String>,
    /// RCT id of each disk at that instant.
    pub disks: BTreeMap<Uuid, String>,
}

/// A point that is being made, is frozen, or is being given back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    pub tracking: TrackingId,
    /// Checkpoints (`InstanceID`) that were there before: they are somebody else's.
    pub checkpoints: Vec<String>,
    /// Reference points that were there before.
    pub reference_points: Vec<String>,
}

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(default)]
    version: u32,
    /// Oldest first.
    pub intervals: Vec<Interval>,
    pub pending: Option<Pending>,
}

/// Where the record of a VM lies: `None` for one without disks.
pub(super) fn place(machine: &Machine) -> Option<PathBuf> {
    let folder = machine.disks.first()?.file.parent()?;
    Some(folder.join(format!("{}.rct-points.json", machine.vm.id)))
}

impl Record {
    /// What the file says. One that can't be understood says nothing, with a warning: then disks are compared.
    pub fn load(path: &Path) -> Result<Self, HypervisorError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(io_error("read", path, error)),
        };
        match serde_json::from_slice::<Self>(&bytes) {
            Ok(record) if record.version == VERSION => Ok(record),
            Ok(record) => Err(HypervisorError::new(
                ErrorKind::Configuration,
                format!(
                    "read {}: it has version {}, written by a newer engine; run that one",
                    path.display(),
                    record.version
                ),
            )),
            Err(error) => {
                tracing::warn!(
                    file = %path.display(), %error,
                    "the record of reference points is damaged: its disks are compared"
                );
                Ok(Self::default())
            }
        }
    }

    /// Makes the file say this, durably.
    pub fn save(&mut self, path: &Path) -> Result<(), HypervisorError> {
        self.version = VERSION;
        let beside = path.with_extension("json.new");
        let write = || -> io::Result<()> {
            let bytes = serde_json::to_vec_pretty(self)?;
            let mut file = File::create(&beside)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            drop(file);
            fs::rename(&beside, path)?;
            sync_folder(path)
        };
        write().map_err(|error| io_error("write", path, error))
    }

    /// Takes the file away.
    pub fn delete(path: &Path) -> Result<(), HypervisorError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error("delete", path, error))
            }
            _ => Ok(()),
        }
    }

    /// The interval of that id.
    pub fn interval(&self, tracking: TrackingId) -> Option<&Interval> {
        self.intervals
            .iter()
            .find(|interval| interval.tracking == tracking)
    }
}

/// NTFS and ReFS journal names by themselves.
#[cfg(windows)]
#[expect(clippy::unnecessary_wraps, reason = "the same shape as on Unix")]
fn sync_folder(_path: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(not(windows))]
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn io_error(doing: &str, path: &Path, error: io::Error) -> HypervisorError {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull => ErrorKind::NoSpace,
        _ => ErrorKind::Io,
    };
    HypervisorError::with_source(kind, format!("{doing} {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_damage_means_nothing_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm.rct-points.json");
        assert_eq!(Record::load(&path).unwrap(), Record::default());
        let mut record = Record {
            intervals: vec![Interval {
                tracking: TrackingId {
                    generation: 1,
                    number: 2,
                },
                reference_point: Some("Microsoft:A".to_owned()),
                disks: [(Uuid::from_u128(1), "rctX:1".to_owned())].into(),
            }],
            ..Record::default()
        };
        record.save(&path).unwrap();
        record.save(&path).unwrap();
        assert_eq!(Record::load(&path).unwrap(), record);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(Record::load(&path).unwrap(), Record::default());
        let newer = String::from_utf8(whole)
            .unwrap()
            .replace("\"version\": 1", "\"version\": 2");
        fs::write(&path, newer).unwrap();
        assert_eq!(
            Record::load(&path).unwrap_err().kind(),
            ErrorKind::Configuration
        );
        Record::delete(&path).unwrap();
        Record::delete(&path).unwrap();
    }
}
