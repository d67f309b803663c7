//! A small volume of its own for a store: read-only and full for real, which needs root and `mount`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::run;

/// A mounted tmpfs; unmounted when it is dropped, also while something still uses it.
pub struct Volume(PathBuf);

// === impl Volume ===

impl Volume {
    /// Mounts an empty volume of this size on `folder`.
    pub fn mount(folder: &Path, mib: u32) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
            .arg(folder))
        .context("a test of full and read-only volumes mounts a tmpfs: run it as root with the right to mount")?;
        Ok(Self(folder.to_owned()))
    }

    /// Unmounts what a killed run left on `folder`.
    pub fn clear(folder: &Path) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("list the mounts")?;
        let place = folder.display().to_string();
        for _ in mounts
            .lines()
            .filter(|line| line.split(' ').nth(1) == Some(&place))
        {
            run(Command::new("umount").arg("-l").arg(folder))?;
        }
        Ok(())
    }

    /// Takes new options, such as `ro`, `rw` or `size=…`.
    pub fn remount(&self, options: &str) -> Result<()> {
        let option = format!("remount,{options}");
        run(Command::new("mount").args(["-o", &option]).arg(&self.0)).map(drop)
    }

    /// Sets the size.
    pub fn resize(&self, mib: u64) -> Result<()> {
        self.remount(&format!("rw,size={mib}m"))
    }

    /// MiB in use, rounded up.
    pub fn used_mib(&self) -> Result<u64> {
        let output = run(Command::new("df")
            .args(["--output=used", "-B1M"])
            .arg(&self.0))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let number = text.lines().nth(1).map(str::trim).unwrap_or_default();
        number.parse().with_context(|| format!("df said {text:?}"))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg("-l").arg(&self.0)) {
            eprintln!("the volume stays mounted: {error:#}");
        }
    }
}
