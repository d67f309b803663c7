//! A replica in a folder of this machine, or one that is mounted.
//!
//! Sections are OS locks on `lock`, so they exclude other processes for certain: versions are compared
//! and names are checked inside of them. A look at an object that did not change costs one `open` and
//! two `stat`s: the version holds the file that was read, so its inode number can't be another's. On Windows contents are
//! compared.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk_image::ImageFile;

use crate::base::is_zero;
use crate::durable::{Durable, DurableFile, LockGuard, TEMPORARY, Temporary};
use crate::error::{ErrorKind, Result, StoreError};
use crate::layout::{BASE_FILE, BASE_OWNER};
use crate::medium::{
    BaseWrite, Fence, Guard, Listed, Medium, Newer, Object, Piece, Put, Section, Staged, Still,
    Version,
};
use crate::model::ReplicaKey;
use crate::stored::MAX_BYTES;

const LOCK: &str = "lock";
/// Of a journal object on its way.
const BUFFER: usize = 1 << 20;

/// The medium of one replica.
#[derive(Debug)]
pub(crate) struct FolderMedium {
    durable: Durable,
    root: PathBuf,
    /// Where an older release moved replicas that it removed.
    deleting: PathBuf,
}

impl FolderMedium {
    pub(crate) fn new(store: &Path, key: &ReplicaKey, durable: Durable) -> Self {
        let vault = store.join(key.vault_key());
        FolderMedium {
            durable,
            root: vault.join(key.item_id()),
            deleting: vault.join(format!(".deleting-{}", key.item_id())),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() {
            self.root.clone()
        } else {
            self.root.join(name)
        }
    }

    fn put(&self, path: &Path, content: &[u8]) -> Result<Put> {
        self.durable.replace(path, content)?;
        let file = File::open(path).map_err(|error| StoreError::io("open", path, error))?;
        Ok(Put::Done(version(file, blake3::hash(content))))
    }
}

impl Medium for FolderMedium {
    fn describe(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn get(&self, name: &str) -> Result<Option<(Vec<u8>, Version)>> {
        let path = self.path(name);
        match File::open(&path) {
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(StoreError::io("open", &path, error)),
            Ok(file) => read_small(&path, file).map(Some),
        }
    }

    fn get_newer(&self, name: &str, known: &Version) -> Result<Newer> {
        let path = self.path(name);
        let file = match File::open(&path) {
            Err(error) if is_missing(&error) => return Ok(Newer::Gone),
            other => other.map_err(|error| StoreError::io("open", &path, error))?,
        };
        if matches!(known, Version::File(Some(seen), _) if same_file(seen, &file)) {
            return Ok(Newer::Unchanged);
        }
        let (content, version) = read_small(&path, file)?;
        Ok(Newer::Changed(content, version))
    }

    fn put_new(&self, name: &str, content: &[u8]) -> Result<Put> {
        let path = self.path(name);
        if exists(&path)? {
            return Ok(Put::Refused);
        }
        self.put(&path, content)
    }

    fn replace(&self, name: &str, content: &[u8], seen: &Version) -> Result<Put> {
        let Version::File(file, hash) = seen else {
            return Ok(Put::Refused);
        };
        let path = self.path(name);
        let now = match File::open(&path) {
            Err(error) if is_missing(&error) => return Ok(Put::Refused),
            other => other.map_err(|error| StoreError::io("open", &path, error))?,
        };
        let same = file.as_ref().is_some_and(|file| same_file(file, &now))
            || matches!(read_small(&path, now)?.1, Version::File(_, current) if current == *hash);
        if !same {
            return Ok(Put::Refused);
        }
        self.put(&path, content)
    }

    fn remove(&self, names: &[String]) -> Result<()> {
        let paths: Vec<PathBuf> = names.iter().map(|name| self.path(name)).collect();
        // Runs of one folder together: each folder is made durable before the next is touched.
        for run in paths.chunk_by(|a, b| a.parent() == b.parent()) {
            let Some(folder) = run[0].parent().filter(|folder| folder.is_dir()) else {
                continue;
            };
            self.durable.remove_files(folder, run)?;
            if run.iter().any(|path| path.ends_with(BASE_FILE)) {
                self.durable.remove_if_empty(folder)?;
            }
        }
        Ok(())
    }

    /// The section excludes everybody else meanwhile.
    fn remove_while(&self, names: &[String], still: Still<'_>) -> Result<()> {
        still()?;
        self.remove(names)
    }

    fn clear(&self, keep: &str, still: Still<'_>) -> Result<()> {
        still()?;
        self.durable.remove_tree(&self.deleting)?;
        let listed = match fs::read_dir(&self.root) {
            Err(error) if is_missing(&error) => return Ok(()),
            other => other.map_err(|error| StoreError::io("list", &self.root, error))?,
        };
        // Base of a replica whose journal is elsewhere is not ours to remove.
        let others = exists(&self.path(BASE_OWNER))?;
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        for entry in listed {
            let entry = entry.map_err(|error| StoreError::io("list", &self.root, error))?;
            if entry.file_name() == keep || entry.file_name() == LOCK {
                continue;
            }
            if others && (entry.file_name() == BASE_OWNER || holds_base(&entry.path())?) {
                continue;
            }
            // A link is removed as a link: nothing outside the store is ever touched.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
        self.durable.remove_files(&self.root, &files)?;
        for folder in &folders {
            self.durable.remove_tree(folder)?;
        }
        if folders.is_empty() {
            return Ok(());
        }
        self.durable.sync_folder(&self.root)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let mut listed = Vec::new();
        walk(&self.path(prefix), "", &mut listed)?;
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    fn settle(&self, prefix: &str) -> Result<()> {
        self.durable.sync_folder(&self.path(prefix))
    }

    fn prepare(&self, prefixes: &[&str]) -> Result<()> {
        self.durable.create_folder(&self.root)?;
        for prefix in prefixes {
            self.durable.create_folder(&self.path(prefix))?;
        }
        Ok(())
    }

    fn sweep(&self, prefixes: &[&str]) -> Result<()> {
        for prefix in prefixes {
            let folder = self.path(prefix);
            let entries = match fs::read_dir(&folder) {
                Err(error) if is_missing(&error) => continue,
                other => other.map_err(|error| StoreError::io("list", &folder, error))?,
            };
            let mut stale = Vec::new();
            for entry in entries {
                let entry = entry.map_err(|error| StoreError::io("list", &folder, error))?;
                if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                    stale.push(entry.path());
                }
            }
            self.durable.remove_files(&folder, &stale)?;
        }
        Ok(())
    }

    fn stage(&self, name: &str) -> Result<Box<dyn Staged>> {
        let path = self.path(name);
        let folder = path.parent().unwrap_or(&self.root);
        let temporary = self.durable.temporary(folder)?;
        Ok(Box::new(StagedFile {
            out: BufWriter::with_capacity(BUFFER, temporary),
            path,
        }))
    }

    fn open(&self, name: &str) -> Result<Option<Arc<dyn Object>>> {
        let path = self.path(name);
        match File::open(&path) {
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(StoreError::io("open", &path, error)),
            Ok(file) => Ok(Some(Arc::new(file))),
        }
    }

    fn base_create(&self, name: &str, length: u64, footer: &[u8], _fence: Fence) -> Result<()> {
        let path = self.path(name);
        let folder = path.parent().unwrap_or(&self.root);
        self.durable.create_folder(folder)?;
        let file = self.durable.open_in_place(&path, true)?;
        if file.length()? != 0 {
            file.set_length(0)?;
        }
        file.set_length(length)?;
        file.write_at(length.saturating_sub(footer.len() as u64), footer)?;
        file.sync()?;
        self.durable.sync_folder(folder)
    }

    fn base_fence(&self, _name: &str, _fence: Fence) -> Result<()> {
        Ok(())
    }

    fn base_open(&self, name: &str, _fence: Fence) -> Result<Option<Arc<dyn BaseWrite>>> {
        match self.durable.open_in_place(&self.path(name), false) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(file) => Ok(Some(Arc::new(file))),
        }
    }

    fn open_copy(&self, name: &Path) -> Result<Box<dyn ImageFile>> {
        let file = File::open(name).map_err(|error| {
            StoreError::new(
                ErrorKind::Invalid,
                format!(
                    "the disk copy {} can't be opened on this machine: {error}",
                    name.display()
                ),
            )
        })?;
        Ok(Box::new(file))
    }

    fn base_owner(&self) -> Result<Option<String>> {
        let found = self.get(BASE_OWNER)?;
        Ok(found.map(|(content, _)| String::from_utf8_lossy(&content).into_owned()))
    }

    fn mark_base(&self, journal: &str) -> Result<Put> {
        self.put_new(BASE_OWNER, journal.as_bytes())
    }

    fn clear_base(&self, journal: &str, still: Still<'_>) -> Result<()> {
        still()?;
        if self.base_owner()?.as_deref() != Some(journal) {
            return Ok(());
        }
        let listed =
            fs::read_dir(&self.root).map_err(|error| StoreError::io("list", &self.root, error))?;
        for entry in listed {
            let entry = entry.map_err(|error| StoreError::io("list", &self.root, error))?;
            if holds_base(&entry.path())? {
                self.durable.remove_tree(&entry.path())?;
            }
        }
        self.durable
            .remove_files(&self.root, &[self.path(BASE_OWNER)])
    }

    fn compares_fence(&self) -> bool {
        false
    }

    fn enter(&self, section: Section, create: bool) -> Result<Box<dyn Guard>> {
        let shared = match section {
            // Its steps are short sections of their own; others go on in between.
            Section::Maintenance => return Ok(Box::new(Nobody)),
            Section::Shared => true,
            Section::Short => false,
        };
        let lock = self.durable.lock(&self.root.join(LOCK), create, shared)?;
        Ok(Box::new(lock))
    }
}

impl Guard for LockGuard {}

#[derive(Debug)]
struct Nobody;

impl Guard for Nobody {}

#[derive(Debug)]
struct StagedFile {
    out: BufWriter<Temporary>,
    path: PathBuf,
}

impl Write for StagedFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.out.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Staged for StagedFile {
    fn seal(&mut self) -> Result<()> {
        self.out
            .flush()
            .map_err(|error| StoreError::io("write", &self.path, error))?;
        self.out.get_ref().sync()
    }

    fn publish(self: Box<Self>) -> Result<Put> {
        if exists(&self.path)? {
            return Ok(Put::Refused);
        }
        let temporary = self
            .out
            .into_inner()
            .map_err(|error| StoreError::io("write", &self.path, error.into_error()))?;
        temporary.publish_synced(&self.path)?;
        let file =
            File::open(&self.path).map_err(|error| StoreError::io("open", &self.path, error))?;
        // Immutable: nobody ever replaces it, so its hash is of no use.
        Ok(Put::Done(version(file, blake3::hash(b""))))
    }
}

impl BaseWrite for DurableFile {
    fn length(&self) -> Result<u64> {
        DurableFile::length(self)
    }

    fn write(&self, pieces: &[Piece]) -> Result<()> {
        for piece in pieces {
            match piece {
                Piece::Data(offset, data) if is_zero(data) => {
                    self.zero_at(*offset, data.len() as u64)?;
                }
                Piece::Data(offset, data) => self.write_at(*offset, data)?,
                Piece::Zeroes(offset, length) => self.zero_at(*offset, *length)?,
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.sync()
    }

    fn resize(&self, length: u64) -> Result<()> {
        self.set_length(length)
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Whether this is the folder of a disk with a base; a link to one is not.
fn holds_base(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => exists(&path.join(BASE_FILE)),
        Ok(_) => Ok(false),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(StoreError::io("inspect", path, error)),
    }
}

fn exists(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(StoreError::io("inspect", path, error)),
    }
}

fn read_small(path: &Path, file: File) -> Result<(Vec<u8>, Version)> {
    let mut content = Vec::new();
    (&file)
        .take(MAX_BYTES + 1)
        .read_to_end(&mut content)
        .map_err(|error| StoreError::io("read", path, error))?;
    let hash = blake3::hash(&content);
    Ok((content, version(file, hash)))
}

/// Files below `folder`; links are listed, never followed.
fn walk(folder: &Path, prefix: &str, listed: &mut Vec<Listed>) -> Result<()> {
    let failed = |error| StoreError::io("list", folder, error);
    let entries = match fs::read_dir(folder) {
        Err(error) if is_missing(&error) => return Ok(()),
        other => other.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if name.starts_with(TEMPORARY) {
            continue;
        }
        let metadata = match entry.metadata() {
            // It was removed since it was listed.
            Err(error) if is_missing(&error) => continue,
            other => other.map_err(failed)?,
        };
        let name = format!("{prefix}{name}");
        if metadata.is_dir() {
            walk(&entry.path(), &format!("{name}/"), listed)?;
        } else {
            listed.push(Listed {
                name,
                length: metadata.len(),
            });
        }
    }
    Ok(())
}

/// Holds the file, but on Windows: a file that is open is replaced there on some file systems only, not on shares.
fn version(file: File, hash: blake3::Hash) -> Version {
    Version::File(cfg!(unix).then(|| Arc::new(file)), hash)
}

#[cfg(unix)]
fn same_file(a: &File, b: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => a.dev() == b.dev() && a.ino() == b.ino(),
        _ => false,
    }
}

/// Its content is compared there.
#[cfg(not(unix))]
fn same_file(_a: &File, _b: &File) -> bool {
    false
}
