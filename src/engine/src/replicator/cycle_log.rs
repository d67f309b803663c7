//! What one cycle changes on one disk, on its way into a log beside the disk.

use std::path::PathBuf;

use hypervisor::FrozenDisk;
use replication_log::hrl::HrlInfo;
use uuid::Uuid;

use super::log_file::LogFile;
use super::refine::Run;
use super::state::{DiskLog, ItemDisk, log_path};
use super::touched::Touched;
use super::trouble::Trouble;

/// A log that is made when there is something to write. Dropped, it leaves nothing.
pub(super) struct CycleLog {
    path: PathBuf,
    info: HrlInfo,
    disk: hypervisor::DiskId,
    size_bytes: u64,
    file: Option<LogFile>,
    changed_bytes: u64,
    touched: Touched,
}

/// A log that is whole and durable.
pub(super) struct Closed {
    /// `None` when the disk did not change.
    pub log: Option<DiskLog>,
    pub changed_bytes: u64,
    pub touched: Touched,
}

impl CycleLog {
    /// `previous` = the log before this one of the same disk; nil for the first.
    pub fn new(
        disk: &ItemDisk,
        frozen: &FrozenDisk,
        position: u64,
        taken_unix_ms: i64,
        previous: Uuid,
    ) -> Self {
        Self {
            path: log_path(&disk.path, position),
            info: HrlInfo {
                id: Uuid::new_v4(),
                // For whoever reads the logs by themselves; here the record names a log's place in the order.
                previous_id: previous,
                data_write_guid: disk.id.0,
                created_unix_ms: taken_unix_ms,
            },
            disk: disk.id,
            size_bytes: frozen.size_bytes,
            file: None,
            changed_bytes: 0,
            touched: Touched::default(),
        }
    }

    /// Appends runs in this order.
    pub async fn write(&mut self, runs: Vec<Run>) -> Result<(), Trouble> {
        if runs.is_empty() {
            return Ok(());
        }
        for run in &runs {
            self.changed_bytes += run.length();
            let (Run::Data(offset, _) | Run::Zeroes(offset, _)) = run;
            self.touched.add(*offset, run.length());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let (path, info) = (self.path.clone(), self.info.clone());
                self.file
                    .insert(LogFile::create(path, info, self.size_bytes).await?)
            }
        };
        file.append(runs).await
    }

    /// Bytes in the log so far.
    pub fn bytes(&self) -> u64 {
        self.file.as_ref().map_or(0, LogFile::bytes)
    }

    pub async fn close(self) -> Result<Closed, Trouble> {
        let log = match self.file {
            Some(file) => {
                let (path, bytes) = file.close().await?;
                Some(DiskLog {
                    disk: self.disk,
                    id: self.info.id,
                    path,
                    bytes,
                })
            }
            None => None,
        };
        Ok(Closed {
            log,
            changed_bytes: self.changed_bytes,
            touched: self.touched,
        })
    }
}
