//! What a recovered VM keeps on its host, so that an engine that was killed serves the same point again
//! and gives back what it holds.
//!
//! ```text
//! <recovery_folder>/<id>.json    this record of a drill's VM: point, pin and store
//! <recovery_folder>/failovers/<vault>/<item>/<id>.json    the same of a failover's: see `guard`
//! <recovery_folder>/<id>.conversion    beside the record of a VM whose disk is converted: see `conversion`
//! <recovery_folder>/<id>/        the VM: vm.toml, overlays, nbd.sock, console
//! ```

use std::io;
use std::path::{Path, PathBuf};

use protection::Generation;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::adapters::Adapters;
use crate::durable::{self, Access};

const VERSION: u32 = 1;

/// The record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    version: u32,
    /// The recovered VM.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Where the replica is.
    pub store_folder: PathBuf,
    /// Its vault.
    pub vault_key: String,
    /// Its item.
    pub item_id: String,
    /// The point that is used; chosen once.
    pub point_id: Uuid,
    /// Its freeze.
    pub point_time_unix_ms: i64,
    /// When the VM was started; 0 = not yet.
    pub started_unix_ms: i64,
    /// When its first output was seen; 0 = not yet.
    pub first_output_unix_ms: i64,
    /// Which of the item's recovered VMs it is, of a failover; a drill's has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Generation>,
    /// The VM of a failover has been made whole; it is not made a second time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made: bool,
    /// The host's boot in which the VM was started.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub started_in_boot: String,
    /// Its generation, when that is another one than at the source; decided once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// The replica's disk that is converted for that: see `conversion`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub converted_disk: Option<Uuid>,
    /// What its adapters are connected to; decided once.
    #[serde(default, skip_serializing_if = "Adapters::is_none")]
    pub adapters: Adapters,
}

impl Record {
    /// A VM that is about to be made.
    pub fn new(
        id: Uuid,
        name: String,
        store_folder: PathBuf,
        vault_key: String,
        item_id: String,
    ) -> Self {
        Self {
            version: VERSION,
            id,
            name,
            store_folder,
            vault_key,
            item_id,
            point_id: Uuid::nil(),
            point_time_unix_ms: 0,
            started_unix_ms: 0,
            first_output_unix_ms: 0,
            instance: None,
            made: false,
            started_in_boot: String::new(),
            generation: None,
            converted_disk: None,
            adapters: Adapters::default(),
        }
    }

    /// Who holds the pin in the store.
    pub fn owner(&self) -> String {
        format!("recovered-{}", self.id)
    }

    /// The record of `id`.
    pub fn read(folder: &Path, id: Uuid) -> io::Result<Option<Self>> {
        let record: Option<Self> = durable::read_json(&file(folder, id))?;
        match record {
            Some(record) if record.version != VERSION || record.id != id => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "record of another version or virtual machine",
            )),
            other => Ok(other),
        }
    }

    /// Makes it durable.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        durable::replace_json(&file(folder, self.id), self, Access::Plain)
    }

    /// The VM is gone, the pin too.
    pub fn remove(folder: &Path, id: Uuid) -> io::Result<()> {
        durable::remove(&file(folder, id))
    }

    /// All VMs that this host has or had begun to make. A record is there before anything else of its VM and goes last;
    /// a folder without one is somebody else's, whatever its name.
    pub fn all(folder: &Path) -> io::Result<Vec<Uuid>> {
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            if let Some(id) = name
                .strip_suffix(".json")
                .and_then(|name| name.parse::<Uuid>().ok())
            {
                ids.push(id);
            }
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }
}

fn file(folder: &Path, id: Uuid) -> PathBuf {
    folder.join(format!("{id}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_a_release_without_failovers_is_read_as_one_of_a_drill() {
        let folder = tempfile::tempdir().unwrap();
        let id = Uuid::from_u128(5);
        let text = format!(
            r#"{{"version":1,"id":"{id}","name":"web01-test","storeFolder":"/s","vaultKey":"v","itemId":"i",
            "pointId":"{id}","pointTimeUnixMs":7,"startedUnixMs":8,"firstOutputUnixMs":9}}"#
        );
        std::fs::write(file(folder.path(), id), text).unwrap();
        let record = Record::read(folder.path(), id).unwrap().unwrap();
        assert_eq!((record.instance, record.started_unix_ms), (None, 8));
    }

    #[test]
    fn a_folder_without_a_record_is_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        let [ours, theirs] = [Uuid::new_v4(), Uuid::new_v4()];
        for id in [ours, theirs] {
            std::fs::create_dir(folder.path().join(id.to_string())).unwrap();
        }
        let record = Record::new(ours, "vm".into(), "/s".into(), "v".into(), "i".into());
        record.write(folder.path()).unwrap();
        assert_eq!(Record::all(folder.path()).unwrap(), [ours]);
    }
}
