//! What is durably known of each order; the only module of this crate that writes files.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// How far a script is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It runs.
    Running,
    /// It ended with this code; 0 is success.
    Exited(i32),
    /// A signal ended it.
    Signalled(i32),
    /// It took longer than its limit and was killed with its process group.
    TimedOut,
    /// It was started, and whoever watched it died: how it ended is not known.
    Unknown,
    /// The order was withdrawn while it ran; it was killed with its process group.
    Withdrawn,
    /// It was never started, for this reason.
    Refused(String),
}

/// What is known of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The order.
    pub id: String,
    /// How far it is.
    pub outcome: Outcome,
    /// The end of what it wrote to standard output and standard error.
    pub output: String,
    /// When it was started, Unix milliseconds.
    pub started_unix_ms: i64,
    /// When it ended, Unix milliseconds; 0 = it runs.
    pub ended_unix_ms: i64,
    /// How often it was started; more than once only when it is repeatable.
    pub attempts: u32,
    /// Its process, which leads its group, and the tick of the machine's clock at which that was born: numbers come again.
    pub(crate) process: Option<(i32, u64)>,
}

/// The folder of the notes.
#[derive(Debug)]
pub(crate) struct Notes(PathBuf);

impl Notes {
    pub(crate) fn open(folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        if let Some(parent) = folder.parent() {
            sync_folder(parent)?;
        }
        Ok(Self(folder))
    }

    pub(crate) fn context(&self, id: &str) -> PathBuf {
        self.0.join(format!("{id}.context"))
    }

    fn path(&self, id: &str) -> PathBuf {
        self.0.join(format!("{id}.json"))
    }

    pub(crate) fn read(&self) -> io::Result<Vec<Status>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "json") {
                let status = serde_json::from_slice(&fs::read(&path)?).map_err(|error| {
                    io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("{}: {error}", path.display()),
                    )
                })?;
                all.push(status);
            }
        }
        Ok(all)
    }

    /// Durable when it returns.
    pub(crate) fn write(&self, status: &Status) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(status).map_err(io::Error::other)?;
        self.replace(&self.path(&status.id), &bytes)
    }

    pub(crate) fn write_context(&self, id: &str, context: &str) -> io::Result<()> {
        self.replace(&self.context(id), context.as_bytes())
    }

    pub(crate) fn remove_context(&self, id: &str) {
        // A leftover is written over by a repetition, and goes with its note.
        fs::remove_file(self.context(id)).ok();
    }

    pub(crate) fn remove(&self, id: &str) -> io::Result<()> {
        self.remove_context(id);
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let temporary = path.with_extension("new");
        let mut file = private().open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder(&self.0)
    }
}

/// How notes are written: for the owner's eyes only.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

/// NTFS journals names by itself.
#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}
