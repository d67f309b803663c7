//! Structured logs: to standard error in the foreground, to `<data>/engine.log` when detached.
//!
//! Promise: the log never takes more than [`KEPT`] + 1 files of about [`LIMIT_BYTES`]. Secrets are never
//! passed to it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Context as _;
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{Config, LogFormat};

/// Size at which a log file is put aside.
pub const LIMIT_BYTES: u64 = 16 << 20;
/// How many files are kept beside the current one.
pub const KEPT: u32 = 3;

/// The SDK tells of every refusal, and conditions that are refused are daily bread: whoever asked for them tells what counts.
const EXPECTED: &str = "typespec_client_core=warn,azure_core=warn";

/// What of the log is kept, for a `log_level` such as `info` or `engine=debug,info`.
///
/// # Errors
/// When it isn't one.
pub fn filter(log_level: &str) -> Result<Targets, ParseError> {
    // What a person asks for comes last, and wins. A comma too many would stand for `error`.
    let asked = log_level.split(',').map(str::trim);
    let parts = EXPECTED.split(',').chain(asked);
    let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
    parts.join(",").parse()
}

/// Sets up the process's log. `file` = `None` writes to standard error.
pub fn set_up(config: &Config, file: Option<&Path>) -> anyhow::Result<()> {
    let filter = filter(&config.log_level).context("log_level")?;
    let builder = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_target(true);
    let result = match file {
        Some(path) => {
            let writer = Mutex::new(
                RotatingFile::open(path).with_context(|| format!("open log {}", path.display()))?,
            );
            let builder = builder.with_ansi(false).with_writer(writer);
            match config.log_format {
                LogFormat::Text => builder.finish().with(filter).try_init(),
                LogFormat::Json => builder.json().finish().with(filter).try_init(),
            }
        }
        None => {
            let builder = builder
                .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
                .with_writer(io::stderr);
            match config.log_format {
                LogFormat::Text => builder.finish().with(filter).try_init(),
                LogFormat::Json => builder.json().finish().with(filter).try_init(),
            }
        }
    };
    result.map_err(|error| anyhow::anyhow!("set up the log: {error}"))
}

/// A file that moves itself to `<name>.1`, `.2`, … when it grows past the limit.
struct RotatingFile {
    path: PathBuf,
    file: File,
    length: u64,
    limit: u64,
}

impl RotatingFile {
    fn open(path: &Path) -> io::Result<Self> {
        Self::open_with_limit(path, LIMIT_BYTES)
    }

    fn open_with_limit(path: &Path, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let length = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            length,
            limit,
        })
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..KEPT).rev() {
            move_if_there(
                &numbered(&self.path, number),
                &numbered(&self.path, number + 1),
            )?;
        }
        move_if_there(&self.path, &numbered(&self.path, 1))?;
        *self = Self::open_with_limit(&self.path, self.limit)?;
        Ok(())
    }
}

impl Write for RotatingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.length > 0 && self.length + bytes.len() as u64 > self.limit {
            // A log that can't rotate goes on in the same file: losing lines would be worse.
            self.rotate().ok();
        }
        let written = self.file.write(bytes)?;
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

fn move_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_level_is_what_a_person_means_by_it() {
        use tracing::Level;
        let keeps =
            |level: &str, target: &str, at| filter(level).unwrap().would_enable(target, &at);
        for level in ["info", "info,", "engine=warn, info"] {
            assert!(keeps(level, "hypervisor", Level::INFO), "{level}");
            assert!(!keeps(level, "hypervisor", Level::DEBUG), "{level}");
        }
        assert!(keeps("engine=debug,info", "engine::session", Level::DEBUG));
        assert!(
            !keeps("info", "azure_core::http", Level::INFO),
            "daily bread"
        );
        assert!(
            keeps("info,azure_core=debug", "azure_core::http", Level::DEBUG),
            "asked for"
        );
        assert!(filter("a=b=c").is_err());
    }

    #[test]
    fn a_full_log_moves_aside_and_only_the_newest_files_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.log");
        let mut log = RotatingFile::open_with_limit(&path, 100).unwrap();
        for number in 0..50 {
            log.write_all(format!("{number:040}\n").as_bytes()).unwrap();
        }
        let mut files: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(
            files,
            ["engine.log", "engine.log.1", "engine.log.2", "engine.log.3"]
        );
        assert!(fs::read_to_string(&path).unwrap().ends_with("49\n"));
        assert!(fs::metadata(&path).unwrap().len() <= 100);
    }
}
