//! The usual gate: parents that lie in folders which the caller named, and nowhere else.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::parents::refusal;
use crate::{ImageError, LocatorKind, ParentFile, ParentGate, ParentLocator};

/// Names that Windows takes for devices in any folder.
const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "com", "lpt"];

/// Allows regular files that, symbolic links followed, lie in one of some folders.
///
/// Relative locators start at the child's folder. Absolute ones and those of a volume name places
/// on the machine that made the image; what counts of them is the file's name, which is looked
/// for beside the child and in the allowed folders.
#[derive(Clone, Debug)]
pub struct FolderGate {
    /// Without symbolic links.
    folders: Vec<PathBuf>,
}

impl FolderGate {
    /// Allows these folders and all below them. Each must exist.
    pub fn new<P: AsRef<Path>>(folders: impl IntoIterator<Item = P>) -> Result<Self, ImageError> {
        let real = |folder: P| {
            let folder = folder.as_ref();
            fs::canonicalize(folder)
                .map_err(|e| ImageError::io(folder.display().to_string(), 0, "find the folder", e))
        };
        Ok(Self {
            folders: folders.into_iter().map(real).collect::<Result<_, _>>()?,
        })
    }

    fn open_inside(&self, candidate: &Path) -> Result<Option<ParentFile>, ImageError> {
        let fail = |doing: &str, e: io::Error| {
            ImageError::io(format!("parent {}", candidate.display()), 0, doing, e)
        };
        let real = match fs::canonicalize(candidate) {
            Ok(real) => real,
            Err(error) if is_absence(&error) => match other_case(candidate) {
                Some(found) => match fs::canonicalize(found) {
                    Ok(real) => real,
                    Err(_) => return Ok(None),
                },
                None => return Ok(None),
            },
            Err(error) => return Err(fail("find the file", error)),
        };
        if !self.folders.iter().any(|folder| real.starts_with(folder)) {
            return Err(refusal("it lies outside of the allowed folders"));
        }
        // Nothing but a file: opening a pipe would wait for ever, a device is another disk.
        let before = fs::symlink_metadata(&real).map_err(|e| fail("look at the file", e))?;
        if !before.is_file() {
            return Err(refusal("it is no regular file"));
        }
        let file = open_for_reading(&real).map_err(|e| fail("open the file", e))?;
        let opened = file.metadata().map_err(|e| fail("look at the file", e))?;
        // Somebody may have put a link in its place meanwhile.
        let again = fs::canonicalize(&real).map_err(|e| fail("find the file", e))?;
        if again != real || !is_same(&before, &opened) {
            return Err(refusal("it was replaced while it was opened"));
        }
        Ok(Some(ParentFile {
            file: Box::new(file),
            name: real.display().to_string(),
            path: Some(real),
        }))
    }
}

impl ParentGate for FolderGate {
    fn open(
        &self,
        child: Option<&Path>,
        locator: &ParentLocator,
    ) -> Result<Option<ParentFile>, ImageError> {
        let beside = child
            .and_then(|child| fs::canonicalize(child).ok())
            .and_then(|child| child.parent().map(Path::to_path_buf));
        let parts = match locator.kind {
            LocatorKind::Relative => relative_parts(&locator.path)?,
            LocatorKind::Name => plain_parts(&locator.path)?,
            LocatorKind::Volume | LocatorKind::Absolute => {
                check_absolute(&locator.path)?;
                #[cfg(windows)]
                return self.open_inside(Path::new(&locator.path));
                #[cfg(not(windows))]
                plain_parts(locator.file_name())?
            }
        };
        let mut bases: Vec<&PathBuf> = beside.iter().collect();
        if locator.kind != LocatorKind::Relative || bases.is_empty() {
            bases.extend(&self.folders);
        }
        let mut refused = None;
        for base in bases {
            let candidate = parts
                .iter()
                .fold(base.clone(), |path, part| path.join(part));
            match self.open_inside(&candidate) {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(error) => refused = Some(error),
            }
        }
        refused.map_or(Ok(None), Err)
    }
}

/// Components of a relative locator. `..` may stay: where it leads is checked on the real path.
fn relative_parts(path: &str) -> Result<Vec<&str>, ImageError> {
    if path.starts_with(['\\', '/']) {
        return Err(refusal(
            "a relative path must not start at a root, a share or a device",
        ));
    }
    let parts: Vec<&str> = path
        .split(['\\', '/'])
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    parts.iter().try_for_each(|part| check_part(part))?;
    if parts.last().is_none_or(|last| *last == "..") {
        return Err(refusal("it names no file"));
    }
    Ok(parts)
}

/// A single file name.
fn plain_parts(name: &str) -> Result<Vec<&str>, ImageError> {
    if matches!(name, "" | "." | "..") || name.contains(['\\', '/']) {
        return Err(refusal("it names no file"));
    }
    check_part(name)?;
    Ok(vec![name])
}

fn check_part(part: &str) -> Result<(), ImageError> {
    if part.chars().any(|c| c.is_control() || c == ':') {
        return Err(refusal(
            "its name holds a drive, a stream or control characters",
        ));
    }
    let stem = part.split('.').next().unwrap_or_default().trim_end();
    let stem = stem.trim_end_matches(|c: char| c.is_ascii_digit());
    if DEVICES
        .iter()
        .any(|device| device.eq_ignore_ascii_case(stem))
    {
        return Err(refusal("its name is one of a device"));
    }
    Ok(())
}

/// Shares would send this machine's credentials to another one; devices are no images.
fn check_absolute(path: &str) -> Result<(), ImageError> {
    let slashed = path.replace('/', "\\");
    let lower = slashed.to_ascii_lowercase();
    let is_drive = |rest: &str| {
        let mut chars = rest.chars();
        chars.next().is_some_and(|c| c.is_ascii_alphabetic()) && chars.as_str().starts_with(":\\")
    };
    let rest = match lower.strip_prefix("\\\\?\\") {
        Some(rest) if rest.starts_with("volume{") => return Ok(()),
        Some(rest) => rest,
        None => lower.as_str(),
    };
    if is_drive(rest) || (path.starts_with('/') && !path.starts_with("//")) {
        return Ok(());
    }
    Err(refusal("it names a share, a device or no absolute place"))
}

fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename
    )
}

/// A file of the same name in other letters: images come from systems that see no difference.
fn other_case(candidate: &Path) -> Option<PathBuf> {
    let wanted = candidate.file_name()?.to_str()?;
    let entries = fs::read_dir(candidate.parent()?).ok()?;
    entries
        .flatten()
        .find(|entry| {
            let name = entry.file_name();
            name.to_str()
                .is_some_and(|name| name.to_lowercase() == wanted.to_lowercase())
        })
        .map(|entry| entry.path())
}

#[cfg(unix)]
fn open_for_reading(path: &Path) -> io::Result<File> {
    use nix::fcntl::OFlag;
    use std::os::unix::fs::OpenOptionsExt as _;
    // If it is replaced in this instant: no link is followed, no pipe is waited for.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)
}

#[cfg(not(unix))]
fn open_for_reading(path: &Path) -> io::Result<File> {
    File::open(path)
}

#[cfg(unix)]
fn is_same(before: &fs::Metadata, opened: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    (before.dev(), before.ino()) == (opened.dev(), opened.ino())
}

#[cfg(not(unix))]
fn is_same(before: &fs::Metadata, opened: &fs::Metadata) -> bool {
    before.len() == opened.len() && opened.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused_before_anything_is_looked_for() {
        for bad in [
            "\\base.vhdx",
            "\\\\server\\share\\x",
            "/etc/passwd",
            "C:\\x",
            "c:x",
            "a:b",
            "..",
            "",
            "x\\..",
            "nul",
            "COM1.vhdx",
            "a\0b",
        ] {
            assert!(relative_parts(bad).is_err(), "{bad}");
        }
        assert_eq!(
            relative_parts("..\\.\\base\\p.vhdx").unwrap(),
            ["..", "base", "p.vhdx"]
        );
        for bad in [
            "\\\\server\\share\\x.vhdx",
            "\\\\.\\PhysicalDrive0",
            "\\\\?\\GLOBALROOT\\x",
            "\\\\?\\UNC\\s\\x",
            "x",
            "//s/x",
        ] {
            assert!(check_absolute(bad).is_err(), "{bad}");
        }
        for good in [
            "C:\\vm\\x.vhdx",
            "\\\\?\\C:\\x.vhdx",
            "\\\\?\\Volume{11111111-2222-3333-4444-555555555555}\\x.vhdx",
            "/vm/x.vhdx",
        ] {
            assert!(check_absolute(good).is_ok(), "{good}");
        }
    }
}
