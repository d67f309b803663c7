//! Writes the log of one cycle of one disk, off the async threads.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use replication_log::hrl::{HrlError, HrlInfo, HrlWriter};

use super::refine::Run;
use super::trouble::Trouble;
use crate::durable;
use crate::task::blocking;

/// A log that is being written. Dropped before [`LogFile::close`], it is removed (a crash leaves it; the next start removes it).
pub struct LogFile {
    path: PathBuf,
    time_unix_ms: i64,
    writer: Option<HrlWriter<File>>,
    closed: bool,
}

impl LogFile {
    /// Starts the log `path`; what lies there is no longer wanted.
    pub async fn create(
        path: PathBuf,
        info: HrlInfo,
        disk_size_bytes: u64,
    ) -> Result<Self, Trouble> {
        let time_unix_ms = info.created_unix_ms;
        let result = at(&path, move |path| {
            durable::remove_if_there(path)?;
            let file = OpenOptions::new()
                .write(true)
                .read(true)
                .create_new(true)
                .open(path)?;
            HrlWriter::create(file, info, disk_size_bytes)
        });
        let writer = result.await?;
        Ok(Self {
            path,
            time_unix_ms,
            writer: Some(writer),
            closed: false,
        })
    }

    /// Appends runs in this order.
    pub async fn append(&mut self, runs: Vec<Run>) -> Result<(), Trouble> {
        let Some(mut writer) = self.writer.take() else {
            return Err(self.broken());
        };
        let time = self.time_unix_ms;
        let writer = at(&self.path, move |_| {
            for run in &runs {
                match run {
                    Run::Data(offset, data) => writer.append(*offset, data, time)?,
                    Run::Zeroes(offset, length) => writer.zero(*offset, *length, time)?,
                }
            }
            Ok(writer)
        });
        self.writer = Some(writer.await?);
        Ok(())
    }

    /// Bytes in the log so far.
    pub fn bytes(&self) -> u64 {
        self.writer.as_ref().map_or(0, HrlWriter::size_bytes)
    }

    /// Makes the log whole and durable, its folder entry too. Returns its length as well.
    pub async fn close(mut self) -> Result<(PathBuf, u64), Trouble> {
        let Some(writer) = self.writer.take() else {
            return Err(self.broken());
        };
        let result = at(&self.path, move |path| {
            writer.close()?;
            durable::sync_parent(path)?;
            Ok(std::fs::metadata(path)?.len())
        });
        let bytes = result.await?;
        self.closed = true;
        Ok((std::mem::take(&mut self.path), bytes))
    }

    fn broken(&self) -> Trouble {
        Trouble::Io {
            doing: format!("write replication log {}", self.path.display()),
            source: io::Error::other("an earlier write failed"),
        }
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        if !self.closed {
            durable::remove_if_there(&self.path).ok();
        }
    }
}

async fn at<T, F>(path: &Path, work: F) -> Result<T, Trouble>
where
    T: Send + 'static,
    F: FnOnce(&Path) -> Result<T, HrlError> + Send + 'static,
{
    let owned = path.to_owned();
    match blocking(move || Ok(work(&owned))).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(Trouble::Log {
            path: path.to_owned(),
            source,
        }),
        Err(source) => Err(Trouble::Io {
            doing: format!("write replication log {}", path.display()),
            source,
        }),
    }
}
