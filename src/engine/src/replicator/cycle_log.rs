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

/// From so many changes on a log gets larger pieces, so that an object can name them all and memory stays small: an
/// index of the journal takes a hundred times as many.
const MANY_RUNS: u64 = 1 << 18;
/// More are not taken, however large they are: the disk is compared in slices instead.
const MOST_RUNS: u64 = 4 * MANY_RUNS;

/// A log that is made when there is something to write. Dropped, it leaves nothing.
pub(super) struct CycleLog {
    path: PathBuf,
    info: HrlInfo,
    disk: hypervisor::DiskId,
    size_bytes: u64,
    file: Option<LogFile>,
    changed_bytes: u64,
    runs: u64,
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
            runs: 0,
            touched: Touched::default(),
        }
    }

    /// Appends runs in this order.
    pub async fn write(&mut self, runs: Vec<Run>) -> Result<(), Trouble> {
        if runs.is_empty() {
            return Ok(());
        }
        self.runs += runs.len() as u64;
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

    /// Whether it has so many changes that what lies between them is better written, too.
    pub fn is_fragmented(&self) -> bool {
        self.runs >= MANY_RUNS
    }

    /// Whether it has more than this part of what it may have, in bytes or in changes.
    pub fn is_full(&self, room_bytes: u64, part: u64) -> bool {
        self.bytes() > room_bytes / part || self.runs > MOST_RUNS / part
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_of_too_many_changes_first_takes_larger_ones_and_then_no_more() {
        let mut log = CycleLog {
            path: PathBuf::new(),
            info: HrlInfo {
                id: Uuid::nil(),
                previous_id: Uuid::nil(),
                data_write_guid: Uuid::nil(),
                created_unix_ms: 0,
            },
            disk: hypervisor::DiskId(Uuid::nil()),
            size_bytes: 1 << 40,
            file: None,
            changed_bytes: 0,
            runs: MANY_RUNS - 1,
            touched: Touched::default(),
        };
        assert!(!log.is_fragmented() && !log.is_full(1, 2));
        log.runs += 1;
        assert!(log.is_fragmented() && !log.is_full(1, 2));
        log.runs = MOST_RUNS;
        assert!(log.is_full(1, 2) && !log.is_full(1, 1));
        log.runs += 1;
        assert!(log.is_full(1, 1));
    }
}
