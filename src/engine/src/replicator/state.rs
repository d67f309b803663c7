//! What an item's replication keeps on the host, and in which order it becomes durable.
//!
//! ```text
//! <data>/state/<item>.json              ItemState: how far the store is
//! <data>/state/<item>.cycles/<n>.json   CycleRecord: cycle n is captured (this file is the commit point)
//! <data>/state/<item>.hashes/<disk>.map  block hashes of the disk as of the newest shipped position
//! <folder of the disk>/<disk file>.<n>.hrl   what cycle n changed on that disk
//! ```
//!
//! Capture: logs durable → record durable → older tracking dropped. Shipping: journal object → point → state
//! → block hashes → logs and record gone. A crash between any two steps repeats the step, which changes nothing;
//! block hashes behind the state are redone from the logs that are still there, or begun anew.
//! A log without a record never was; a record whose log is damaged ends the spool there, and tracking or a
//! comparison heals the rest. What is known of each disk's changes is part of each record, so that it is given
//! up together with it ([`super::suspicion`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use hypervisor::{DiskId, TrackingId, VmId};
use replica_store::PointKind;
use replication_log::hrl::HrlReader;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::suspicion::{self, Knowledge, Raise};
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
    /// Newest shipped position that changed the disk.
    #[serde(default)]
    pub changed_at: u64,
    /// The one before it.
    #[serde(default)]
    pub changed_before: u64,
    /// Id of its newest shipped log; nil = none yet.
    #[serde(default)]
    pub last_log: Uuid,
    /// The image as it was left when its VM was last seen off; `None` = the VM ran since.
    #[serde(default)]
    pub left: Option<ImageMark>,
}

/// Tells whether an image that nobody should write was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageMark {
    /// Length of the file.
    pub length_bytes: u64,
    /// When it was last written, nanoseconds since the Unix epoch.
    pub modified_unix_ns: i64,
    /// BLAKE3 of its headers; in a VHDX they change with each opening for writing and each change of data.
    pub head: String,
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
    /// The replica's own id; nil = not known yet.
    #[serde(default)]
    pub replica: Uuid,
    /// What the next cycle builds on: the point id of the newest shipped one, or an id that was drawn when the store
    /// was found elsewhere; nil = kept by a version that did not tell.
    #[serde(default)]
    pub instant: Uuid,
    /// What is known of the disks' changes at the newest shipped position.
    #[serde(default)]
    pub knowledge: Knowledge,
    /// Reasons for comparisons that no shipped cycle has taken up yet.
    #[serde(default)]
    pub raised: Vec<Raise>,
    /// Highest comparison asked for that was raised.
    #[serde(default)]
    pub resynchronize_raised: u64,
    /// Highest comparison asked for that was carried out.
    #[serde(default)]
    pub resynchronized: u64,
    /// Disks whose base holds its seed.
    #[serde(default)]
    pub seeded: BTreeSet<DiskId>,
    /// Keys that objects of the journal need, each with the newest position that needs it.
    #[serde(default)]
    pub keys: BTreeMap<Uuid, u64>,
    /// The key of the newest encrypted object.
    #[serde(default)]
    pub active_key: Option<Uuid>,
    /// When all kept points were last proven readable.
    #[serde(default)]
    pub last_verified_unix_ms: i64,
    /// Freeze of the newest application-consistent point; 0 = none is known. The next one's time follows from it.
    #[serde(default)]
    pub last_application_unix_ms: i64,
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
    /// What it builds on: point id of the cycle before, or [`ItemState::instant`]; nil = not told.
    #[serde(default)]
    pub previous: Uuid,
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
    /// The disks that the cycle has, changed or not; empty = those of the cycle before.
    #[serde(default)]
    pub disks: Vec<CycleDisk>,
    /// What is known of the disks' changes after this cycle.
    #[serde(default)]
    pub knowledge: Knowledge,
    /// Whether a recovery point is made of it: all disks are as they were on the source.
    #[serde(default = "yes")]
    pub recoverable: bool,
    /// The VM at that instant.
    pub vm_config: VmConfig,
    /// Logs, only of disks that changed.
    pub logs: Vec<DiskLog>,
}

/// A disk of a cycle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CycleDisk {
    /// Virtual disk id.
    pub id: DiskId,
    /// Virtual size at the freeze.
    pub size_bytes: u64,
    /// File name, for people.
    pub name: String,
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
    /// Length of the file.
    #[serde(default)]
    pub bytes: u64,
}

/// The files of one item.
#[derive(Clone, Debug)]
pub struct ItemFiles {
    state: PathBuf,
    cycles: PathBuf,
    hashes: PathBuf,
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
            replica: Uuid::nil(),
            instant: Uuid::new_v4(),
            knowledge: Knowledge::default(),
            raised: Vec::new(),
            resynchronize_raised: 0,
            resynchronized: 0,
            seeded: BTreeSet::new(),
            keys: BTreeMap::new(),
            active_key: None,
            last_verified_unix_ms: 0,
            last_application_unix_ms: 0,
        }
    }
}

impl ItemState {
    /// Takes over where the disks are now; what is known of them stays.
    pub fn learn(&mut self, disks: &[ItemDisk]) {
        let known = std::mem::take(&mut self.disks);
        self.disks = disks
            .iter()
            .map(|disk| {
                let known = known.iter().find(|known| known.id == disk.id);
                known.map_or_else(
                    || disk.clone(),
                    |known| ItemDisk {
                        changed_at: known.changed_at,
                        changed_before: known.changed_before,
                        last_log: known.last_log,
                        left: known.left.clone(),
                        ..disk.clone()
                    },
                )
            })
            .collect();
    }

    /// Keeps a reason for comparing disks until a cycle takes it up.
    pub fn raise(&mut self, disks: &[DiskId], reason: &str) {
        let seen = self.knowledge.raised_seen;
        for disk in disks {
            suspicion::raise(&mut self.raised, seen, *disk, reason);
        }
    }

    /// The store is at another position than it was left at: nothing says what changed since.
    pub fn move_to(&mut self, position: u64) {
        self.shipped = position;
        self.tracking = None;
        self.instant = Uuid::new_v4();
        for disk in &mut self.disks {
            (disk.changed_at, disk.changed_before) = (position, position);
        }
    }

    /// The object of a position was encrypted.
    pub fn encrypted(&mut self, key: Uuid, position: u64) {
        self.keys.insert(key, position);
        self.active_key = Some(key);
    }

    /// Base holds everything up to here, and objects behind it are gone.
    pub fn applied(&mut self, base_position: u64) {
        self.keys.retain(|_, newest| *newest > base_position);
    }

    /// A cycle is in the store with its point.
    pub fn ship(&mut self, record: &CycleRecord, sent_bytes: u64) {
        self.shipped = record.position;
        self.tracking = Some(record.tracking);
        self.instant = record.point_id;
        for disk in &mut self.disks {
            if let Some(log) = record.logs.iter().find(|log| log.disk == disk.id) {
                disk.last_log = log.id;
                disk.changed_before = disk.changed_at;
                disk.changed_at = record.position;
            }
        }
        self.knowledge = record.knowledge.clone();
        let seen = record.knowledge.raised_seen;
        self.raised.retain(|raise| raise.number > seen);
        if self.raised.is_empty() && self.knowledge.is_whole() {
            self.resynchronized = self.resynchronize_raised;
        }
        self.total_sent_bytes += sent_bytes;
        self.last_changed_bytes = record.changed_bytes;
        self.last_sent_bytes = sent_bytes;
        self.last_cycle_unix_ms = record.taken_unix_ms;
        if let Some(taken) = record.application_unix_ms() {
            self.last_application_unix_ms = taken;
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
            previous: Uuid::nil(),
            taken_unix_ms,
            tracking,
            changed_bytes: 0,
            kind: PointKind::Crash,
            group_point: None,
            disks: Vec::new(),
            knowledge: Knowledge::default(),
            recoverable: true,
            vm_config,
            logs: Vec::new(),
        }
    }

    fn builds_on(&self, instant: Uuid) -> bool {
        self.previous == instant || self.previous.is_nil() || instant.is_nil()
    }

    /// The freeze, when an application-consistent point comes of it.
    pub fn application_unix_ms(&self) -> Option<i64> {
        (self.recoverable && self.kind == PointKind::Application).then_some(self.taken_unix_ms)
    }

    fn remove_logs(&self) -> io::Result<()> {
        self.logs
            .iter()
            .try_for_each(|log| durable::remove(&log.path))
    }

    fn logs_are_whole(&self) -> bool {
        self.logs.iter().all(|log| open_log(log).is_ok())
    }
}

// === impl ItemFiles ===

impl ItemFiles {
    /// The item's files in `state_folder`; `item_id` was checked to be a plain name.
    pub fn new(state_folder: &Path, item_id: &str) -> Self {
        Self {
            state: state_folder.join(format!("{item_id}.json")),
            cycles: state_folder.join(format!("{item_id}.cycles")),
            hashes: state_folder.join(format!("{item_id}.hashes")),
        }
    }

    /// Where the maps of block hashes are.
    pub fn hashes(&self) -> &Path {
        &self.hashes
    }

    /// The newest shipped cycle, when it was cut before its logs were removed.
    pub fn left_behind(&self, state: &ItemState) -> io::Result<Option<CycleRecord>> {
        match durable::read_json::<CycleRecord>(&self.record_path(state.shipped)) {
            Ok(record) => Ok(record.filter(|record| {
                record.generation == state.generation && record.position == state.shipped
            })),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
            Err(error) => Err(error),
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

    /// Removes every captured cycle, newest first: a crash in between leaves a spool without a gap.
    pub fn remove_records(&self) -> io::Result<()> {
        let mut records = Vec::new();
        for path in entries(&self.cycles)? {
            match durable::read_json::<CycleRecord>(&path) {
                Ok(Some(record)) if self.record_path(record.position) == path => {
                    records.push(record);
                }
                Ok(_) => durable::remove(&path)?,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => durable::remove(&path)?,
                Err(error) => return Err(error),
            }
        }
        records.sort_by_key(|record| record.position);
        let newest_first = records.iter().rev();
        newest_first
            .into_iter()
            .try_for_each(|record| self.remove_record(record))
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
                && record.builds_on(spool.last().map_or(state.instant, |last| last.point_id))
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
        for folder in [&self.cycles, &self.hashes] {
            match fs::remove_dir_all(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        durable::remove(&self.state)
    }

    fn record_path(&self, position: u64) -> PathBuf {
        self.cycles.join(format!("{position}.json"))
    }
}

fn yes() -> bool {
    true
}

fn crash() -> PointKind {
    PointKind::Crash
}

/// Opens a log and checks that it is the one that is meant, and whole.
pub fn open_log(log: &DiskLog) -> io::Result<HrlReader<File>> {
    let reader = HrlReader::open(File::open(&log.path)?).map_err(io::Error::other)?;
    if reader.info().id != log.id {
        return Err(io::Error::other("another log lies under its name"));
    }
    Ok(reader)
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
