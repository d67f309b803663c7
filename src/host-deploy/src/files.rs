//! The one place where files on the host are made, replaced and removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::DeployError;

pub(crate) fn sha256(path: &Path) -> io::Result<Option<String>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut hash = Sha256::new();
    let mut buffer = vec![0_u8; 256 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hash.update(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let digest = hash.finalize();
    Ok(Some(
        digest.iter().map(|byte| format!("{byte:02x}")).collect(),
    ))
}

/// Makes the folder and what is missing above it. Gives back those that were made, the outermost first.
pub(crate) fn create_folders(folder: &Path, mode: u32) -> Result<Vec<PathBuf>, DeployError> {
    let mut missing = Vec::new();
    let mut at = Some(folder);
    while let Some(path) = at {
        match fs::symlink_metadata(path) {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(path.to_owned()),
            Err(error) => return Err(DeployError::io("reading", path, error)),
        }
        at = path.parent();
    }
    missing.reverse();
    for path in &missing {
        // Only the innermost folder is ours to close; those above keep the usual mode.
        let mode = if path == folder { mode } else { 0o755 };
        match fs::DirBuilder::new().mode(mode).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            Err(error) => return Err(DeployError::io("creating folder", path, error)),
        }
    }
    if !folder.is_dir() {
        let error = io::Error::from(io::ErrorKind::NotADirectory);
        return Err(DeployError::io("creating folder", folder, error));
    }
    Ok(missing)
}

/// Replaces `target` in one step: temporary file beside it, fsync, rename, fsync of the folder.
pub(crate) fn replace(target: &Path, mode: u32, content: &mut dyn Read) -> Result<(), DeployError> {
    let folder = target.parent().unwrap_or(Path::new("/"));
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}.new", std::process::id()));
    let result = (|| {
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        io::copy(content, &mut file)?;
        file.flush()?;
        // The mode at creation is cut by the umask.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, target)?;
        File::open(folder)?.sync_all()
    })();
    result.map_err(|error| {
        let _ = fs::remove_file(&temporary);
        DeployError::io("writing", target, error)
    })
}

/// Whether the file holds exactly this text.
pub(crate) fn holds(path: &Path, text: &str) -> Result<bool, DeployError> {
    match fs::read(path) {
        Ok(bytes) => Ok(bytes == text.as_bytes()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(DeployError::io("reading", path, error)),
    }
}

/// Removes a file; one that isn't there is fine.
pub(crate) fn remove_file(path: &Path) -> Result<(), DeployError> {
    match fs::remove_file(path) {
        Err(error) if gone(&error) => Ok(()),
        other => other.map_err(|error| DeployError::io("removing", path, error)),
    }
}

/// Removes a folder and all in it; one that isn't there is fine.
pub(crate) fn remove_tree(path: &Path) -> Result<(), DeployError> {
    match fs::remove_dir_all(path) {
        Err(error) if gone(&error) => Ok(()),
        other => other.map_err(|error| DeployError::io("removing", path, error)),
    }
}

/// Removes a folder if nothing is in it.
pub(crate) fn remove_if_empty(path: &Path) {
    // Not empty, not there, not ours: all of them mean that it stays as it is.
    let _ = fs::remove_dir(path);
}

fn gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
