//! Where a comparison works and how large it is.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process;

/// What every case gets.
pub struct Setting {
    /// The workspace.
    pub root: PathBuf,
    /// The engine, as released.
    pub engine: PathBuf,
    /// Factor on sizes: 1 for the figures of the documentation, less for a smoke test.
    pub scale: f64,
    /// How often cheap measurements are repeated; the middle one counts.
    pub rounds: usize,
}

impl Setting {
    /// A size of `bytes` at scale 1, in whole MiB, at least 1 MiB.
    pub fn size(&self, bytes: u64) -> u64 {
        let mib = (bytes as f64 * self.scale / (1 << 20) as f64).round() as u64;
        mib.max(1) << 20
    }

    /// An engine's command line.
    pub fn engine(&self) -> Command {
        Command::new(&self.engine)
    }

    /// Where our programs lie.
    pub fn programs(&self) -> PathBuf {
        self.engine.with_file_name("")
    }

    /// A folder for a case; removed with the guard.
    pub fn scratch(&self, name: &str) -> Result<Scratch> {
        let path = self.root.join("target/bench").join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Scratch { path })
    }

    /// Runs a script of `tests/lab`.
    pub fn lab(&self, script: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(self.root.join("tests/lab").join(script));
        let (output, _) = process::execute(command.args(arguments))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// A folder that is removed at the end, also after an error.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A folder in it, made anew.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is below target, where nothing is kept.
        std::fs::remove_dir_all(&self.path).ok();
    }
}
