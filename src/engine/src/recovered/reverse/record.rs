//! How far a recovered VM is shipped, durably: where tracking goes on, and that somebody waits for it at all.
//!
//! ```text
//! <records>/<id>.shipped.json    beside the VM's record; gone when nothing is shipped any more
//! ```
//!
//! Promise: the instant it names is in the store. It may be older than what the store holds, never newer, so a shipper that
//! goes on from it sends too much at worst, and that is compared. Lost, it costs one comparison.

use std::io;
use std::path::{Path, PathBuf};

use hypervisor::TrackingId;
use replica_store::Position;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::durable::{self, Access};

const VERSION: u32 = 1;

/// The record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShipRecord {
    version: u32,
    /// The recovered VM.
    pub vm: Uuid,
    /// Under which it ships.
    pub generation: u64,
    /// The newest instant of it that is in the store; none before the first.
    pub shipped: Option<Instant>,
    /// Sent for all cycles of this generation.
    pub sent_bytes: u64,
}

/// An instant of a recovered VM that the store has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instant {
    /// The replica that has it.
    pub replica: Uuid,
    /// There.
    pub position: Position,
    /// What the VM wrote since is tracked under this.
    pub tracking: TrackingId,
    /// Freeze of the newest point.
    pub point_unix_ms: i64,
}

impl ShipRecord {
    /// Nothing is shipped yet.
    pub fn new(vm: Uuid, generation: u64) -> Self {
        Self {
            version: VERSION,
            vm,
            generation,
            shipped: None,
            sent_bytes: 0,
        }
    }

    /// Freeze of the newest point; 0 = there is none.
    pub fn point_unix_ms(&self) -> i64 {
        self.shipped
            .as_ref()
            .map_or(0, |shipped| shipped.point_unix_ms)
    }

    /// The record of a VM.
    pub fn read(records: &Path, vm: Uuid) -> io::Result<Option<Self>> {
        let record: Option<Self> = durable::read_json(&file(records, vm))?;
        match record {
            Some(record) if record.version != VERSION || record.vm != vm => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "record of what was shipped of another version or virtual machine",
            )),
            other => Ok(other),
        }
    }

    /// Makes it durable.
    pub fn write(&self, records: &Path) -> io::Result<()> {
        durable::replace_json(&file(records, self.vm), self, Access::Plain)
    }

    /// Nothing is shipped any more; fine when nothing was.
    pub fn remove(records: &Path, vm: Uuid) -> io::Result<()> {
        durable::remove(&file(records, vm))
    }
}

fn file(records: &Path, vm: Uuid) -> PathBuf {
    records.join(format!("{vm}.shipped.json"))
}

#[cfg(test)]
mod tests {
    use super::super::super::record::Record;
    use super::*;

    #[test]
    fn it_reads_back_and_is_no_record_of_a_vm() {
        let folder = tempfile::tempdir().unwrap();
        let vm = Uuid::from_u128(5);
        assert_eq!(ShipRecord::read(folder.path(), vm).unwrap(), None);
        let mut record = ShipRecord::new(vm, 7);
        record.shipped = Some(Instant {
            replica: Uuid::from_u128(6),
            position: Position(9),
            tracking: TrackingId {
                generation: 7,
                number: 3,
            },
            point_unix_ms: 11,
        });
        record.write(folder.path()).unwrap();
        assert_eq!(
            ShipRecord::read(folder.path(), vm).unwrap(),
            Some(record.clone())
        );
        assert!(Record::all(folder.path()).unwrap().is_empty());
        std::fs::write(file(folder.path(), vm), "{").unwrap();
        assert_eq!(
            ShipRecord::read(folder.path(), vm).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        ShipRecord::remove(folder.path(), vm).unwrap();
        ShipRecord::remove(folder.path(), vm).unwrap();
    }
}
