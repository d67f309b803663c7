//! What the volume of a folder does: in order, and 4 KiB at random places.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use disk_image::ImageFile as _;

use super::{Figure, Unit, noise};

const PIECE: usize = 1 << 20;
const SMALL: usize = 4096;

/// The file of all disk cases; made by the first, removed at the end.
pub(super) struct Scratch {
    path: PathBuf,
    size: u64,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Not there when no disk case ran.
        std::fs::remove_file(&self.path).ok();
    }
}

impl Scratch {
    pub fn new(folder: &Path, size: u64) -> Self {
        Self {
            path: folder.join(format!(".siterecovery-bench-{}", std::process::id())),
            size: size / PIECE as u64 * PIECE as u64,
        }
    }

    fn open(&self, create: bool) -> anyhow::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(create)
            .open(&self.path)
            .with_context(|| format!("open {}", self.path.display()))
    }

    /// The whole file, made when no earlier case has done so.
    fn filled(&self) -> anyhow::Result<File> {
        if std::fs::metadata(&self.path).is_ok_and(|metadata| metadata.len() == self.size) {
            return self.open(false);
        }
        let file = self.open(true)?;
        self.fill(&file)?;
        Ok(file)
    }

    fn fill(&self, file: &File) -> anyhow::Result<()> {
        let data = noise(5, PIECE);
        let mut at = 0;
        while at < self.size {
            file.write_at(&data, at)
                .with_context(|| format!("write {}", self.path.display()))?;
            at += PIECE as u64;
        }
        file.sync_data()
            .with_context(|| format!("sync {}", self.path.display()))
    }

    pub fn write(&self) -> anyhow::Result<Vec<Figure>> {
        let file = self.open(true)?;
        let begin = Instant::now();
        self.fill(&file)?;
        Ok(vec![Figure {
            name: "disk write (1 MiB, synced)".to_owned(),
            per_second: self.size as f64 / begin.elapsed().as_secs_f64(),
            unit: Unit::Bytes,
        }])
    }

    pub fn read(&self) -> anyhow::Result<Vec<Figure>> {
        let file = self.filled()?;
        forget_cache(&file);
        let mut buffer = vec![0; PIECE];
        let begin = Instant::now();
        let mut at = 0;
        while at < self.size {
            file.read_at(&mut buffer, at)
                .with_context(|| format!("read {}", self.path.display()))?;
            at += PIECE as u64;
        }
        Ok(vec![Figure {
            name: "disk read (1 MiB)".to_owned(),
            per_second: self.size as f64 / begin.elapsed().as_secs_f64(),
            unit: Unit::Bytes,
        }])
    }

    pub fn write_random(&self, time: Duration) -> anyhow::Result<Vec<Figure>> {
        let file = self.filled()?;
        let data = noise(6, SMALL);
        let mut places = self.places(7);
        let begin = Instant::now();
        let mut count = 0u64;
        // A batch between looks at the clock; the sync at the end counts.
        while begin.elapsed() < time {
            for _ in 0..64 {
                file.write_at(&data, places())
                    .with_context(|| format!("write {}", self.path.display()))?;
                count += 1;
            }
        }
        file.sync_data()
            .with_context(|| format!("sync {}", self.path.display()))?;
        Ok(vec![Figure {
            name: "disk write (4 KiB at random, synced)".to_owned(),
            per_second: count as f64 / begin.elapsed().as_secs_f64(),
            unit: Unit::Operations,
        }])
    }

    pub fn read_random(&self, time: Duration) -> anyhow::Result<Vec<Figure>> {
        let file = self.filled()?;
        forget_cache(&file);
        let mut buffer = vec![0; SMALL];
        let mut places = self.places(8);
        let begin = Instant::now();
        let mut count = 0u64;
        while begin.elapsed() < time {
            for _ in 0..16 {
                file.read_at(&mut buffer, places())
                    .with_context(|| format!("read {}", self.path.display()))?;
                count += 1;
            }
            if count.is_multiple_of(self.size / SMALL as u64) {
                forget_cache(&file);
            }
        }
        Ok(vec![Figure {
            name: "disk read (4 KiB at random)".to_owned(),
            per_second: count as f64 / begin.elapsed().as_secs_f64(),
            unit: Unit::Operations,
        }])
    }

    /// Every 4 KiB block once, in an order without pattern.
    fn places(&self, seed: u64) -> impl FnMut() -> u64 {
        let blocks = self.size / SMALL as u64;
        let mut at = seed;
        move || {
            // An odd step far from a power of two visits all blocks of a power of two, and most of others.
            at = at.wrapping_add(0x9e37_79b1) % blocks;
            at * SMALL as u64
        }
    }
}

/// What was read before is not to be read out of memory.
#[cfg(target_os = "linux")]
fn forget_cache(file: &File) {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    // Pages that are not yet written stay.
    file.sync_data().ok();
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).ok();
}

#[cfg(not(target_os = "linux"))]
fn forget_cache(_file: &File) {}
