//! What an item's replication keeps on the host, and in which order it becomes durable.
//!
//! ```text
//! <data>/state/<item>.json              ItemState: how far the store is
//! <data>/state/<item>.cycles/<n>.json   CycleRecord: cycle n is captured (this file is the commit point)
//! <folder of the disk>/<disk file>.<n>.hrl   what cycle n changed on that disk
//! ```
//!
//! Capture: logs durable → record durable → older tracking dropped. Shipping: journal object → point → state
//! → logs and record gone. A crash between any two steps repeats the step, which changes nothing.
//! A log without a record never was; a record whose log is damaged ends the spool there, and tracking or a
//! comparison heals the rest.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use hypervisor::{DiskId, TrackingId, VmId};
use replica_store::PointKind;
use replication_log::hrl::HrlReader;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::durable::{self, Access};
use crate::vm_config::VmConfig;

/// Version of both files.
const VERSION: u32 = 1;

/// A disk of an item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ItemDisk {
    /// Virtual disk id.
    pub id: DiskId,
    /// File name, for people.
    pub name: String,
    /// Virtual size.
    pub size_bytes: u64,
    /// Image file when last seen; logs lie beside it.
    pub path: PathBuf,
}

/// How far the store is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ItemState {
    version: u32,
    /// Fencing generation this state belongs to.
    pub generation: u64,
    /// Source VM.
    pub vm: VmId,
    /// Its replicated disks.
    pub disks: Vec<ItemDisk>,
    /// Whether the replica is whole, so that cycles may be captured without asking the store.
    pub complete: bool,
    /// Newest position that is in the store with its point.
    pub shipped: u64,
    /// Tracking that began at the freeze of that position; `None` = the source must be compared.
    pub tracking: Option<TrackingId>,
    /// Sent for this item so far.
    pub total_sent_bytes: u64,
    /// Of the newest shipped cycle.
    pub last_changed_bytes: u64,
    /// Of the newest shipped cycle.
    pub last_sent_bytes: u64,
    /// Freeze of the newest shipped cycle.
    pub last_cycle_unix_ms: i64,
}

/// A captured cycle that waits for the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CycleRecord {
    version: u32,
    /// Fencing generation.
    pub generation: u64,
    /// Journal position it will have.
    pub position: u64,
    /// Id of its recovery point.
    pub point_id: Uuid,
    /// The freeze.
    pub taken_unix_ms: i64,
    /// Tracking that began at that freeze.
    pub tracking: TrackingId,
    /// Changed bytes over all disks.
    pub changed_bytes: u64,
    /// How consistent it is.
    #[serde(default = "crash")]
    pub kind: PointKind,
    /// Shared by the points that the VMs of a group took at one instant.
    #[serde(default)]
    pub group_point: Option<Uuid>,
    /// The VM at that instant.
    pub vm_config: VmConfig,
    /// Logs, only of disks that changed.
    pub logs: Vec<DiskLog>,
}

/// A log of a cycle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskLog {
    /// Whose changes.
    pub disk: DiskId,
    /// The log's own id.
    pub id: Uuid,
    /// The file.
    pub path: PathBuf,
}

/// The files of one item.
#[derive(Clone, Debug)]
pub struct ItemFiles {
    state: PathBuf,
    cycles: PathBuf,
}

// === impl ItemState ===

impl ItemState {
    /// Nothing replicated yet.
    pub fn new(generation: u64, vm: VmId, disks: Vec<ItemDisk>) -> Self {
        Self {
            version: VERSION,
            generation,
            vm,
            disks,
            complete: false,
            shipped: 0,
            tracking: None,
            total_sent_bytes: 0,
            last_changed_bytes: 0,
            last_sent_bytes: 0,
            last_cycle_unix_ms: 0,
        }
    }
}

// === impl CycleRecord ===

impl CycleRecord {
    /// A record without logs.
    pub fn new(
        generation: u64,
        position: u64,
        taken_unix_ms: i64,
        tracking: TrackingId,
        vm_config: VmConfig,
    ) -> Self {
        Self {
            version: VERSION,
            generation,
            position,
            point_id: Uuid::new_v4(),
            taken_unix_ms,
            tracking,
            changed_bytes: 0,
            kind: PointKind::Crash,
            group_point: None,
            vm_config,
            logs: Vec::new(),
        }
    }

    fn remove_logs(&self) -> io::Result<()> {
        self.logs
            .iter()
            .try_for_each(|log| durable::remove(&log.path))
    }

    fn logs_are_whole(&self) -> bool {
        self.logs.iter().all(|log| {
            let opened = File::open(&log.path).map(HrlReader::open);
            matches!(opened, Ok(Ok(reader)) if reader.info().id == log.id)
        })
    }
}

// === impl ItemFiles ===

impl ItemFiles {
    /// The item's files in `state_folder`; `item_id` was checked to be a plain name.
    pub fn new(state_folder: &Path, item_id: &str) -> Self {
        Self {
            state: state_folder.join(format!("{item_id}.json")),
            cycles: state_folder.join(format!("{item_id}.cycles")),
        }
    }

    /// The state, when there is one that can be read. A damaged or newer one is as good as none: comparing heals.
    pub fn load(&self) -> io::Result<Option<ItemState>> {
        match durable::read_json::<ItemState>(&self.state) {
            Ok(Some(state)) if state.version == VERSION => Ok(Some(state)),
            Ok(None) => Ok(None),
            Ok(Some(state)) => {
                tracing::warn!(file = %self.state.display(), version = state.version, "state of another version; comparing instead");
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(file = %self.state.display(), %error, "state is damaged; comparing instead");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes `state` durable.
    pub fn store(&self, state: &ItemState) -> io::Result<()> {
        durable::replace_json(&self.state, state, Access::Plain)
    }

    /// Makes a captured cycle durable: the commit point of a capture.
    pub fn store_record(&self, record: &CycleRecord) -> io::Result<()> {
        if !self.cycles.is_dir() {
            durable::create_folder(&self.cycles)?;
        }
        durable::replace_json(&self.record_path(record.position), record, Access::Plain)
    }

    /// A cycle is in the store: its logs, then its record go.
    pub fn remove_record(&self, record: &CycleRecord) -> io::Result<()> {
        record.remove_logs()?;
        durable::remove(&self.record_path(record.position))
    }

    /// The captured cycles that wait for the store, in order. Cleans up everything else: shipped
    /// records, what lies behind a damaged one, logs without a record.
    pub fn load_spool(&self, state: &ItemState) -> io::Result<Vec<CycleRecord>> {
        let mut records = Vec::new();
        for path in entries(&self.cycles)? {
            match durable::read_json::<CycleRecord>(&path) {
                Ok(Some(record))
                    if record.version == VERSION && self.record_path(record.position) == path =>
                {
                    records.push(record)
                }
                Ok(_) => durable::remove(&path)?,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    tracing::warn!(file = %path.display(), %error, "cycle record is damaged and dropped");
                    durable::remove(&path)?;
                }
                Err(error) => return Err(error),
            }
        }
        records.sort_by_key(|record| record.position);
        let mut spool: Vec<CycleRecord> = Vec::new();
        let mut whole = state.complete;
        for record in records {
            let expected = spool.last().map_or(state.shipped, |last| last.position) + 1;
            if record.generation == state.generation && record.position < expected {
                self.remove_record(&record)?;
                continue;
            }
            whole = whole
                && record.generation == state.generation
                && record.position == expected
                && record.logs_are_whole();
            if whole {
                spool.push(record);
            } else {
                tracing::warn!(
                    position = record.position,
                    "captured cycle can't be used and is dropped; its changes are found again"
                );
                self.remove_record(&record)?;
            }
        }
        let kept: BTreeSet<&Path> = spool
            .iter()
            .flat_map(|record| &record.logs)
            .map(|log| log.path.as_path())
            .collect();
        for disk in &state.disks {
            for path in logs_beside(&disk.path)? {
                if !kept.contains(path.as_path()) {
                    durable::remove(&path)?;
                }
            }
        }
        Ok(spool)
    }

    /// Removes every trace of the item: logs, records, state, in this order.
    pub fn remove_all(&self, also_beside: &[PathBuf]) -> io::Result<()> {
        let mut disks: BTreeSet<PathBuf> = also_beside.iter().cloned().collect();
        if let Some(state) = self.load()? {
            disks.extend(state.disks.into_iter().map(|disk| disk.path));
        }
        for path in entries(&self.cycles)? {
            if let Ok(Some(record)) = durable::read_json::<CycleRecord>(&path) {
                record.remove_logs()?;
            }
        }
        for disk in &disks {
            logs_beside(disk)?
                .iter()
                .try_for_each(|path| durable::remove(path))?;
        }
        match fs::remove_dir_all(&self.cycles) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        durable::remove(&self.state)
    }

    fn record_path(&self, position: u64) -> PathBuf {
        self.cycles.join(format!("{position}.json"))
    }
}

fn crash() -> PointKind {
    PointKind::Crash
}

/// Where the log of cycle `position` of a disk lies.
pub fn log_path(disk: &Path, position: u64) -> PathBuf {
    let mut name = disk.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{position}.hrl"));
    disk.with_file_name(name)
}

/// All logs that lie beside a disk.
pub fn logs_beside(disk: &Path) -> io::Result<Vec<PathBuf>> {
    let Some((folder, name)) = disk.parent().zip(disk.file_name()) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{}.", name.to_string_lossy());
    Ok(entries(folder)?
        .into_iter()
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.strip_prefix(&prefix)
                .and_then(|rest| rest.strip_suffix(".hrl"))
                .is_some_and(|number| {
                    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
                })
        })
        .collect())
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
