//! The only module that creates, writes, renames, syncs and removes files.
//!
//! A small file is replaced by: write a temporary beside it, sync it, rename it over the name, sync
//! the folder. Until the rename nothing has happened ([`Outcome::NotDone`]); from the rename to the
//! end of the folder's sync nobody knows ([`Outcome::Unknown`]). Temporaries begin with
//! [`TEMPORARY`] and are swept when a writer opens the replica.
//!
//! [`Outcome::NotDone`]: crate::Outcome::NotDone
//! [`Outcome::Unknown`]: crate::Outcome::Unknown

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::direct::Direct;
use crate::error::{ErrorKind, Result, StoreError};
use crate::fault::{Fault, Faults, StepKind};

/// How names of temporaries begin.
pub(crate) const TEMPORARY: &str = ".tmp-";

/// Carries out durable steps, with a place for crash tests to step in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Durable {
    faults: Option<Arc<dyn Faults>>,
}

impl Durable {
    pub(crate) fn with_faults(faults: Arc<dyn Faults>) -> Self {
        Durable {
            faults: Some(faults),
        }
    }

    fn fault(&self, kind: StepKind, path: &Path) -> Fault {
        match &self.faults {
            Some(faults) => faults.before(kind, path),
            None => Fault::None,
        }
    }

    fn step<T>(
        &self,
        kind: StepKind,
        path: &Path,
        act: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        match self.fault(kind, path) {
            Fault::None => act(),
            Fault::Fail(error) | Fault::Torn(error) => Err(error.into()),
            Fault::DoneButFails(error) => act().and(Err(error.into())),
        }
    }

    /// Creates a folder and its missing parents, durably.
    pub(crate) fn create_folder(&self, path: &Path) -> Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        if let Some(parent) = parent {
            self.create_folder(parent)?;
        }
        let made = self.step(StepKind::CreateFolder, path, || fs::create_dir(path));
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(StoreError::io("create folder", path, error));
            }
            _ => {}
        }
        parent.map_or(Ok(()), |parent| self.sync_folder(parent))
    }

    /// Makes the names in a folder durable.
    pub(crate) fn sync_folder(&self, path: &Path) -> Result<()> {
        self.step(StepKind::SyncFolder, path, || sync_folder(path))
            .map_err(|error| StoreError::io("sync folder", path, error).unknown())
    }

    /// Replaces a small file as a whole, or creates it.
    pub(crate) fn replace(&self, path: &Path, content: &[u8]) -> Result<()> {
        let folder = folder_of(path)?;
        let mut temporary = self.temporary(folder)?;
        temporary
            .write_all(content)
            .map_err(|error| StoreError::io("write", path, error))?;
        temporary.publish(path)
    }

    /// Starts a file that has no name yet.
    pub(crate) fn temporary(&self, folder: &Path) -> Result<Temporary> {
        let path = folder.join(format!("{TEMPORARY}{}", Uuid::new_v4().simple()));
        let file = self
            .step(StepKind::CreateFile, &path, || {
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .open(&path)
            })
            .map_err(|error| StoreError::io("create", &path, error))?;
        Ok(Temporary {
            durable: self.clone(),
            file,
            path,
            published: false,
        })
    }

    /// Removes files of one folder and makes that durable; those that are gone already are fine.
    pub(crate) fn remove_files(&self, folder: &Path, names: &[PathBuf]) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        for path in names {
            self.remove(path, || fs::remove_file(path))?;
        }
        self.sync_folder(folder)
    }

    fn remove(&self, path: &Path, act: impl FnOnce() -> io::Result<()>) -> Result<()> {
        match self.step(StepKind::Remove, path, act) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", path, error).unknown())
            }
            _ => Ok(()),
        }
    }

    /// Removes a folder and all in it; can be repeated after a cut.
    pub(crate) fn remove_tree(&self, path: &Path) -> Result<()> {
        let listed = match fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(|error| StoreError::io("list", path, error))?,
        };
        for entry in listed {
            let entry = entry.map_err(|error| StoreError::io("list", path, error))?;
            let child = entry.path();
            // A link is removed as a link: nothing outside the store is ever touched.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.remove_tree(&child)?;
            } else {
                self.remove(&child, || fs::remove_file(&child))?;
            }
        }
        self.remove(path, || fs::remove_dir(path))
    }

    /// Removes a folder if nothing is in it.
    pub(crate) fn remove_if_empty(&self, path: &Path) -> Result<()> {
        match self.step(StepKind::Remove, path, || fs::remove_dir(path)) {
            Ok(()) => self.sync_folder(folder_of(path)?),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(StoreError::io("remove", path, error).unknown()),
        }
    }

    /// Takes the replica's lock; waits for other mutations. With `create` the file may be new, with
    /// `shared` others may hold it as well.
    pub(crate) fn lock(&self, path: &Path, create: bool, shared: bool) -> Result<LockGuard> {
        loop {
            let opened = if create && !path.exists() {
                self.step(StepKind::CreateFile, path, || {
                    open_existing(path, true, true)
                })
            } else {
                open_existing(path, true, create)
            };
            let file = opened.map_err(|error| StoreError::io("open lock", path, error))?;
            loop {
                let locked = if shared {
                    file.lock_shared()
                } else {
                    file.lock()
                };
                match locked {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => {
                        other.map_err(|error| StoreError::io("lock", path, error))?;
                        break;
                    }
                }
            }
            // The replica may have been deleted (and made anew) while we waited: a lock on a file
            // that no longer has this name protects nothing.
            match is_same_file(&file, path) {
                Ok(true) => return Ok(LockGuard { _file: file }),
                Ok(false) => {}
                Err(error) if create && error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(StoreError::io("open lock", path, error)),
            }
        }
    }

    /// Opens a file for writing in place; `create` makes it when it is missing.
    pub(crate) fn open_in_place(&self, path: &Path, create: bool) -> Result<DurableFile> {
        let opened = if create && !path.exists() {
            self.step(StepKind::CreateFile, path, || {
                open_existing(path, true, true)
            })
        } else {
            open_existing(path, true, false)
        };
        let file = opened.map_err(|error| StoreError::io("open", path, error))?;
        Ok(DurableFile {
            durable: self.clone(),
            direct: Direct::of(path),
            file,
            path: path.to_owned(),
        })
    }
}

/// Held during a mutation; dropping it lets the next one in.
#[derive(Debug)]
pub(crate) struct LockGuard {
    _file: File,
}

/// A file on its way: it has no name before [`Temporary::publish`].
#[derive(Debug)]
pub(crate) struct Temporary {
    durable: Durable,
    file: File,
    path: PathBuf,
    published: bool,
}

impl Temporary {
    /// Makes the content durable.
    pub(crate) fn sync(&self) -> Result<()> {
        self.durable
            .step(StepKind::Sync, &self.path, || self.file.sync_all())
            .map_err(|error| StoreError::io("sync", &self.path, error))
    }

    /// Syncs, gives the file its name and makes that durable.
    pub(crate) fn publish(self, path: &Path) -> Result<()> {
        self.sync()?;
        self.publish_synced(path)
    }

    /// As `publish` for a file that was synced before.
    pub(crate) fn publish_synced(mut self, path: &Path) -> Result<()> {
        self.durable
            .step(StepKind::Rename, path, || rename(&self.path, path))
            .map_err(|error| StoreError::io("rename to", path, error).unknown())?;
        self.published = true;
        self.durable.sync_folder(folder_of(path)?)
    }
}

impl Write for Temporary {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self.durable.fault(StepKind::Write, &self.path) {
            Fault::None => self.file.write(data),
            Fault::Fail(error) => Err(error.into()),
            Fault::Torn(error) => {
                self.file.write_all(&data[..data.len() / 2])?;
                Err(error.into())
            }
            Fault::DoneButFails(error) => {
                self.file.write_all(data)?;
                Err(error.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published {
            // A killed process leaves its temporary behind; the next open sweeps it.
            let _ = self
                .durable
                .remove(&self.path, || fs::remove_file(&self.path));
        }
    }
}

/// A file that is changed in place: base. Its changes are redone after a cut, never half trusted.
#[derive(Debug)]
pub(crate) struct DurableFile {
    durable: Durable,
    file: File,
    /// The same file, for large writes.
    direct: Direct,
    path: PathBuf,
}

impl DurableFile {
    pub(crate) fn length(&self) -> Result<u64> {
        let metadata = self.file.metadata();
        Ok(metadata
            .map_err(|error| StoreError::io("inspect", &self.path, error))?
            .len())
    }

    pub(crate) fn set_length(&self, length: u64) -> Result<()> {
        self.durable
            .step(StepKind::SetLength, &self.path, || {
                self.file.set_len(length)
            })
            .map_err(|error| StoreError::io("resize", &self.path, error).unknown())
    }

    pub(crate) fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let done = match self.durable.fault(StepKind::Write, &self.path) {
            Fault::None => self.direct.write_all_at(&self.file, data, offset),
            Fault::Fail(error) => Err(error.into()),
            Fault::Torn(error) => {
                write_all_at(&self.file, &data[..data.len() / 2], offset).and(Err(error.into()))
            }
            Fault::DoneButFails(error) => {
                write_all_at(&self.file, data, offset).and(Err(error.into()))
            }
        };
        done.map_err(|error| StoreError::io("write", &self.path, error).unknown())
    }

    /// Makes a range zero, as a hole where the file system has holes.
    pub(crate) fn zero_at(&self, offset: u64, length: u64) -> Result<()> {
        self.durable
            .step(StepKind::Zero, &self.path, || {
                zero_range(&self.file, offset, length)
            })
            .map_err(|error| StoreError::io("write zeroes to", &self.path, error).unknown())
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.durable
            .step(StepKind::Sync, &self.path, || self.file.sync_all())
            .map_err(|error| StoreError::io("sync", &self.path, error).unknown())
    }
}

fn folder_of(path: &Path) -> Result<&Path> {
    path.parent().ok_or_else(|| {
        StoreError::new(
            ErrorKind::Invalid,
            format!("{} has no parent folder", path.display()),
        )
    })
}

fn open_existing(path: &Path, write: bool, create: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .create(create)
        .truncate(false)
        .open(path)
}

#[cfg(unix)]
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

/// Whoever reads the old file just now, a virus scanner for one, is in the way on some file systems: until it is done.
#[cfg(not(unix))]
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    const TRIES: u32 = 50;
    for _ in 1..TRIES {
        match fs::rename(from, to) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            other => return other,
        }
    }
    fs::rename(from, to)
}

#[cfg(unix)]
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// NTFS journals names by itself; a folder can't be synced there.
#[cfg(not(unix))]
fn sync_folder(_path: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn is_same_file(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let (held, named) = (file.metadata()?, fs::metadata(path)?);
    Ok(held.dev() == named.dev() && held.ino() == named.ino())
}

/// An open file can't be removed there, so the name still means it.
#[cfg(not(unix))]
fn is_same_file(_file: &File, path: &Path) -> io::Result<bool> {
    fs::metadata(path).map(|_| true)
}

#[cfg(unix)]
pub(crate) fn write_all_at(file: &File, data: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, data, offset)
}

#[cfg(windows)]
pub(crate) fn write_all_at(file: &File, mut data: &[u8], mut offset: u64) -> io::Result<()> {
    while !data.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, data, offset)?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        data = &data[n..];
        offset += n as u64;
    }
    Ok(())
}

fn zero_range(file: &File, offset: u64, length: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use nix::fcntl::{FallocateFlags, fallocate};
        let range = i64::try_from(offset).ok().zip(i64::try_from(length).ok());
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if let Some((at, count)) = range {
            match fallocate(file, flags, at, count) {
                Ok(()) => return Ok(()),
                Err(nix::errno::Errno::EOPNOTSUPP) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    let zeroes = vec![0u8; 1 << 20];
    let (mut at, mut left) = (offset, length);
    while left > 0 {
        let piece = left.min(zeroes.len() as u64);
        write_all_at(file, &zeroes[..piece as usize], at)?;
        at += piece;
        left -= piece;
    }
    Ok(())
}
