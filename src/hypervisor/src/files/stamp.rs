//! Whether a file is still what it was: the identity and times that change with every write.
//!
//! Promise: equal stamps mean that nothing was written through the file system in between, provided the earlier one had
//! [`Stamp::settled`]. What may go wrong: a program that writes through a memory map is noticed when the system writes its
//! pages back, so such a file counts as quiet only when its owner has closed it.

use std::fs::{File, Metadata};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Coarsest step of a file system's clock that is used for images. A write inside the step of the stamp would not show.
pub(super) const CLOCK_STEP: Duration = Duration::from_millis(50);

/// Identity, length and times of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    length: u64,
    modified: SystemTime,
    identity: Identity,
}

#[cfg(unix)]
type Identity = (u64, u64, i64, i64);
#[cfg(not(unix))]
type Identity = Option<SystemTime>;

impl Stamp {
    /// Of the file at `path`.
    pub fn of(path: &Path) -> io::Result<Self> {
        Self::new(&std::fs::metadata(path)?)
    }

    fn new(metadata: &Metadata) -> io::Result<Self> {
        Ok(Self {
            length: metadata.len(),
            modified: metadata.modified()?,
            identity: identity(metadata),
        })
    }

    /// Whether the last write lies far enough back for the next one to show.
    pub fn settled(&self, now: SystemTime) -> bool {
        // A time in the future says nothing about when it was set.
        now.duration_since(self.modified)
            .is_ok_and(|age| age > CLOCK_STEP)
    }
}

/// Device, inode and status-change time, which no program can set back.
#[cfg(unix)]
fn identity(metadata: &Metadata) -> Identity {
    use std::os::unix::fs::MetadataExt as _;
    (
        metadata.dev(),
        metadata.ino(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    )
}

#[cfg(not(unix))]
fn identity(metadata: &Metadata) -> Identity {
    metadata.created().ok()
}

/// Whether QEMU, or a program that follows its locks, has the file open for writing.
#[cfg(target_os = "linux")]
pub(super) fn has_writer(file: &File) -> bool {
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc;
    // QEMU holds a shared lock on byte 100 + n for each permission n that it uses; 1 is writing.
    const WRITE_PERMISSION: i64 = 101;
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: WRITE_PERMISSION,
        l_len: 1,
        l_pid: 0,
    };
    // A file system without locks can't tell; the stamps still can.
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).is_ok()
        && lock.l_type != libc::F_UNLCK as libc::c_short
}

/// Elsewhere nobody tells: the stamps must.
#[cfg(not(target_os = "linux"))]
pub(super) fn has_writer(_file: &File) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_changes_the_stamp_even_when_the_time_is_set_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.raw");
        std::fs::write(&path, [0; 1024]).unwrap();
        let old = SystemTime::now() - Duration::from_secs(3600);
        let set_back = || {
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(old).unwrap();
        };
        set_back();
        let before = Stamp::of(&path).unwrap();
        assert_eq!(before, Stamp::of(&path).unwrap());
        assert!(before.settled(SystemTime::now()));
        // Until the file system's clock has moved on, which is what `CLOCK_STEP` is about.
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            std::fs::write(&path, [1; 1024]).unwrap();
            set_back();
            if before != Stamp::of(&path).unwrap() {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "a write never showed");
        }
    }

    #[test]
    fn a_file_that_was_written_just_now_or_tomorrow_is_not_settled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.raw");
        std::fs::write(&path, [0; 1024]).unwrap();
        let stamp = Stamp::of(&path).unwrap();
        assert!(!stamp.settled(stamp.modified));
        assert!(!stamp.settled(stamp.modified - Duration::from_secs(86_400)));
        assert!(stamp.settled(stamp.modified + Duration::from_secs(1)));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_without_locks_has_no_writer() {
        let file = tempfile::tempfile().unwrap();
        assert!(!has_writer(&file));
    }
}
