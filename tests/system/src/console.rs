//! A guest's console file: what the program inside the guest (`tests/lab-guest`) says.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::process::wait_for;

/// A console file.
#[derive(Clone, Debug)]
pub struct Console(PathBuf);

/// The checker's verdict over the data disk of a guest.
#[derive(Clone, Debug)]
pub struct Check {
    /// The whole line.
    pub line: String,
    /// Every stamp up to this sequence is there.
    pub last_sequence: u64,
    /// How old that stamp was when the checker ran, in milliseconds.
    pub age_ms: i64,
}

// === impl Console ===

impl Console {
    /// The console in this file (which need not exist yet).
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// All whole lines that hold `LAB `, from behind it. Firmware may have written before it on the same line, and the last
    /// line counts only once its end is there, because a serial port works character by character.
    pub fn lines(&self) -> Vec<String> {
        let bytes = fs::read(&self.0).unwrap_or_default();
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let text =
            String::from_utf8_lossy(bytes.get(..whole).unwrap_or_default()).replace('\r', "\n");
        text.lines()
            .filter_map(|line| {
                line.split_once("LAB ")
                    .map(|(_, rest)| rest.trim_end().to_owned())
            })
            .collect()
    }

    /// The newest sequence that the writer reported.
    pub fn sequence(&self) -> Option<u64> {
        self.lines()
            .iter()
            .rev()
            .find_map(|line| field(line, "sequence="))
    }

    /// Waits until the writer has reported a sequence of at least `least`.
    pub fn wait_for_sequence(&self, least: u64, limit: Duration) -> Result<u64> {
        let what = format!("the guest of {} stamps sequence {least}", self.0.display());
        wait_for(&what, limit, || {
            Ok(self.sequence().filter(|sequence| *sequence >= least))
        })
        .map_err(|error| self.told(error))
    }

    /// Waits for the checker's verdict; a bad one is an error.
    pub fn wait_for_check(&self, limit: Duration) -> Result<Check> {
        let what = format!("the checker of {} speaks", self.0.display());
        let line = wait_for(&what, limit, || {
            Ok(self
                .lines()
                .into_iter()
                .find(|line| line.starts_with("check ")))
        })
        .map_err(|error| self.told(error))?;
        if !line.starts_with("check ok") {
            bail!("{}: {line}", self.0.display());
        }
        let (Some(last_sequence), Some(age_ms)) =
            (field(&line, "last_sequence="), field(&line, "age_ms="))
        else {
            bail!("{}: no sequence in `{line}`", self.0.display());
        };
        Ok(Check {
            line,
            last_sequence,
            age_ms,
        })
    }

    /// Adds what the console holds to an error, because that is the first thing to look at.
    fn told(&self, error: anyhow::Error) -> anyhow::Error {
        let bytes = fs::read(&self.0).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let tail: Vec<&str> = text.lines().rev().take(15).collect();
        error.context(format!(
            "last lines of the console:\n{}",
            tail.into_iter().rev().collect::<Vec<_>>().join("\n")
        ))
    }
}

fn field<T: std::str::FromStr>(line: &str, name: &str) -> Option<T> {
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.parse().ok())
}
