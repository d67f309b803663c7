//! The only module of the engine that creates, renames or syncs files of its own state.
//!
//! Promise of [`replace`]: after it returns, the new content survives a power cut; before it returns,
//! a reader sees the whole old content or the whole new one, never a mix.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::platform;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Owner only (keys, certificates).
    Secret,
    /// Everybody may read.
    Plain,
}

/// Writes `bytes` to `path`: temporary file, fsync, rename, fsync of the folder.
pub fn replace(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let temporary = temporary_of(path)?;
    // A leftover of a crash may have other permissions; start from nothing.
    remove_if_there(&temporary)?;
    let mut file = platform::create_new(&temporary, access)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    platform::rename(&temporary, path)?;
    sync_parent(path)
}

/// [`replace`] with a value as JSON, one indented document that a person can read.
pub fn replace_json<T: Serialize>(path: &Path, value: &T, access: Access) -> io::Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
    bytes.push(b'\n');
    replace(path, &bytes, access)
}

/// Makes an empty file for reading and writing in place, whatever was at `path`; its name is durable.
pub fn create_empty(path: &Path, access: Access) -> io::Result<File> {
    remove_if_there(path)?;
    let file = platform::create_new(path, access)?;
    sync_parent(path)?;
    Ok(file)
}

/// Reads a JSON file; `None` when it does not exist.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Removes a file; fine when it is gone already.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a file and makes the removal durable.
pub fn remove(path: &Path) -> io::Result<()> {
    remove_if_there(path)?;
    match sync_parent(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Syncs the folder that holds `path`, so that a create, rename or removal in it survives a power cut.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => platform::sync_folder(parent),
        _ => platform::sync_folder(Path::new(".")),
    }
}

/// Creates a folder with all its parents, one by one, so that no name of them is lost in a power cut.
pub fn create_folder(path: &Path) -> io::Result<()> {
    let folders = path
        .ancestors()
        .filter(|folder| !folder.as_os_str().is_empty());
    let mut missing: Vec<&Path> = folders.take_while(|folder| !folder.exists()).collect();
    while let Some(folder) = missing.pop() {
        match fs::create_dir(folder) {
            // Somebody else was quicker.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
            other => other?,
        }
        sync_parent(folder)?;
    }
    // Also one that was there: whoever made it may have died before its name was durable.
    sync_parent(path)
}

fn temporary_of(path: &Path) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "path has no file name"))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".new");
    Ok(path.with_file_name(temporary))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn replace_leaves_exactly_the_new_content_and_no_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        replace(&path, b"one", Access::Plain).unwrap();
        fs::write(folder.path().join(".state.json.new"), b"left by a crash").unwrap();
        replace(&path, b"two", Access::Secret).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn a_missing_file_reads_as_none_and_a_damaged_one_as_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        assert_eq!(read_json::<u32>(&path).unwrap(), None);
        replace_json(&path, &7u32, Access::Plain).unwrap();
        assert_eq!(read_json::<u32>(&path).unwrap(), Some(7));
        fs::write(&path, b"{").unwrap();
        assert_eq!(
            read_json::<u32>(&path).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(read_json::<u32>(&path).unwrap(), None);
    }
}
