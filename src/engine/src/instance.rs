//! One engine per data folder: two that both believe they own a replica would tear it apart.
//!
//! The lock is the kernel's (`flock`), so it is gone the moment the process is, however it ended.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// Held for the life of the engine.
#[derive(Debug)]
pub struct InstanceLock {
    // Never read: the lock lives as long as the open file.
    _file: File,
}

impl InstanceLock {
    /// Takes the lock of `data_folder`, or says which process has it.
    pub fn take(data_folder: &Path) -> anyhow::Result<Self> {
        let path = lock_path(data_folder);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("open lock file {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).ok();
                bail!(
                    "another engine (process {}) already uses data folder {}; stop it first, or give this one its own data_folder",
                    if holder.trim().is_empty() {
                        "unknown"
                    } else {
                        holder.trim()
                    },
                    data_folder.display()
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {}", path.display()));
            }
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| write!(file, "{}", std::process::id()))
            .with_context(|| format!("write {}", path.display()))?;
        Ok(Self { _file: file })
    }

    /// The lock's file.
    pub fn file(data_folder: &Path) -> PathBuf {
        lock_path(data_folder)
    }

    /// Whether some process holds the lock of `data_folder`.
    pub fn is_held(data_folder: &Path) -> bool {
        match File::open(lock_path(data_folder)) {
            Ok(file) => match file.try_lock() {
                Ok(()) => false,
                Err(TryLockError::WouldBlock) => true,
                Err(TryLockError::Error(_)) => false,
            },
            Err(_) => false,
        }
    }
}

fn lock_path(data_folder: &Path) -> PathBuf {
    data_folder.join("engine.lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_engine_on_the_same_data_folder_is_refused_until_the_first_ends() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!InstanceLock::is_held(folder.path()));
        let first = InstanceLock::take(folder.path()).unwrap();
        assert!(InstanceLock::is_held(folder.path()));
        let error = InstanceLock::take(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        InstanceLock::take(folder.path()).unwrap();
    }
}
