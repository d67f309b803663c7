//! What a failover has ordered of an item, on disk before it is obeyed or confirmed; and which VMs it has here.
//!
//! ```text
//! <recovery_folder>/failovers/<vault>/<item>/guard.json    the newest order that is known, and whether it is carried out
//!                                            <id>.json     record of a VM of it; one at a time, but for a crash
//!                                            <id>.shipped.json   how far a failback has shipped it
//! ```
//!
//! Promise: an order that is older than the newest one known is never obeyed, also after a restart. So a guard stays when
//! its VM is gone: it is what a late order to run is measured by. A guard that can't be read permits nothing.
//!
//! Records of failovers lie apart from those of drills, so that nothing that removes a drill's VM can meet one, whatever
//! state its record is in.

use std::io;
use std::path::{Path, PathBuf};

use protection::life::{Guard, RecoveryOrder};
use replica_store::ReplicaKey;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::record::Record;
use crate::durable::{self, Access};

const VERSION: u32 = 1;
const FAILOVERS: &str = "failovers";
const GUARD: &str = "guard.json";

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    version: u32,
    vault_key: String,
    item_id: String,
    guard: Guard<RecoveryOrder>,
}

/// Where guard and records of one item lie.
#[derive(Clone, Debug)]
pub struct Place {
    folder: PathBuf,
    key: ReplicaKey,
}

impl Place {
    /// Of an item of this host.
    pub fn new(recovery_folder: &Path, key: ReplicaKey) -> Self {
        let folder = recovery_folder
            .join(FAILOVERS)
            .join(key.vault_key())
            .join(key.item_id());
        Self { folder, key }
    }

    /// The item.
    pub fn key(&self) -> &ReplicaKey {
        &self.key
    }

    /// Where the records lie.
    pub fn records(&self) -> &Path {
        &self.folder
    }

    /// Every item that was ever ordered anything here.
    pub fn all(recovery_folder: &Path) -> io::Result<Vec<Self>> {
        let mut places = Vec::new();
        for vault in names(&recovery_folder.join(FAILOVERS))? {
            for item in names(&recovery_folder.join(FAILOVERS).join(&vault))? {
                // Other names are not ours.
                if let Ok(key) = ReplicaKey::new(&vault, item) {
                    places.push(Self::new(recovery_folder, key));
                }
            }
        }
        Ok(places)
    }

    /// The item whose VM has this id.
    pub fn of_vm(recovery_folder: &Path, id: Uuid) -> io::Result<Option<ReplicaKey>> {
        for place in Self::all(recovery_folder)? {
            if Record::all(&place.folder)?.contains(&id) {
                return Ok(Some(place.key));
            }
        }
        Ok(None)
    }

    /// What was ordered last; none when nothing ever was.
    pub fn read(&self) -> io::Result<Option<Guard<RecoveryOrder>>> {
        match durable::read_json::<Stored>(&self.folder.join(GUARD))? {
            None => Ok(None),
            Some(stored)
                if stored.version == VERSION
                    && stored.vault_key == self.key.vault_key()
                    && stored.item_id == self.key.item_id() =>
            {
                Ok(Some(stored.guard))
            }
            Some(_) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "guard of another version or item",
            )),
        }
    }

    /// Makes it durable.
    pub fn write(&self, guard: &Guard<RecoveryOrder>) -> io::Result<()> {
        durable::create_folder(&self.folder)?;
        let stored = Stored {
            version: VERSION,
            vault_key: self.key.vault_key().to_owned(),
            item_id: self.key.item_id().to_owned(),
            guard: *guard,
        };
        durable::replace_json(&self.folder.join(GUARD), &stored, Access::Plain)
    }

    /// The item's VMs: those that are there, and those that were begun to be made.
    pub fn vms(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for id in Record::all(&self.folder)? {
            records.extend(Record::read(&self.folder, id)?);
        }
        Ok(records)
    }
}

/// Names in a folder; none when it is not there.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use protection::Generation;

    use super::*;

    fn place(folder: &Path) -> Place {
        Place::new(folder, ReplicaKey::new("vault", "item").unwrap())
    }

    #[test]
    fn a_guard_reads_back_and_a_damaged_one_is_an_error_not_a_new_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(folder.path());
        assert_eq!(place.read().unwrap(), None);
        let order = RecoveryOrder::Run {
            instance: Generation(7),
            takes: Generation(8),
        };
        let mut guard = Guard::new(Generation(9), order);
        guard.done = true;
        place.write(&guard).unwrap();
        assert_eq!(place.read().unwrap(), Some(guard));
        std::fs::write(place.records().join(GUARD), "{").unwrap();
        assert_eq!(place.read().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_failovers_record_is_found_by_its_vm_and_never_among_those_of_drills() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(folder.path());
        place
            .write(&Guard::new(Generation(1), RecoveryOrder::Stop))
            .unwrap();
        let id = Uuid::new_v4();
        Record::new(id, "vm".into(), "/s".into(), "vault".into(), "item".into())
            .write(place.records())
            .unwrap();
        assert!(Record::all(folder.path()).unwrap().is_empty());
        let item = Place::of_vm(folder.path(), id).unwrap().unwrap();
        assert_eq!(&item, place.key());
        assert_eq!(Place::of_vm(folder.path(), Uuid::new_v4()).unwrap(), None);
        assert_eq!(Place::all(folder.path()).unwrap().len(), 1);
        assert_eq!(place.vms().unwrap().len(), 1);
    }
}
