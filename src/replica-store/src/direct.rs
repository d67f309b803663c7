//! Large writes past the page cache (`O_DIRECT`): what fills base is not read again soon, so a copy of it in memory costs
//! the host a pass over all bytes, and pages that its VMs could use.
//!
//! It is an optimization only. Whatever is not made for it goes the ordinary way: short or crooked writes, file systems
//! without it. Both ways may be mixed on one file (the kernel drops the pages that a direct write covers), and both need
//! the same flush to be durable.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::durable::write_all_at;

/// Memory, offset and length are multiples of this: the page, and no disk wants more.
const ALIGNMENT: usize = 4096;
/// Shorter ones gain nothing: each would wait for the disk.
const SHORTEST: usize = 256 << 10;

/// The way past the cache into one file.
#[derive(Debug)]
pub(crate) struct Direct {
    file: Option<File>,
    /// The file system took the flag and refuses the writes.
    is_refused: AtomicBool,
}

impl Direct {
    /// Opens the file at `path`, which must exist; where that can't be done there is no such way.
    pub(crate) fn of(path: &Path) -> Self {
        Self {
            file: open(path).ok(),
            is_refused: AtomicBool::new(false),
        }
    }

    /// Writes all of `data`, past the cache where that can be done and otherwise through `ordinary`, the same file.
    pub(crate) fn write_all_at(&self, ordinary: &File, data: &[u8], offset: u64) -> io::Result<()> {
        let is_made_for_it = data.len() >= SHORTEST
            && data.len().is_multiple_of(ALIGNMENT)
            && offset.is_multiple_of(ALIGNMENT as u64)
            && data.as_ptr().align_offset(ALIGNMENT) == 0;
        if let Some(file) = &self.file
            && is_made_for_it
            && !self.is_refused.load(Ordering::Relaxed)
        {
            match write_all_at(file, data, offset) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.is_refused.store(true, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        write_all_at(ordinary, data, offset)
    }
}

#[cfg(target_os = "linux")]
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new()
        .write(true)
        .custom_flags(nix::libc::O_DIRECT)
        .open(path)
}

#[cfg(not(target_os = "linux"))]
fn open(_path: &Path) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that begin at a page of memory, or just behind one.
    fn placed(bytes: &mut Vec<u8>, length: usize, behind: usize, value: u8) -> &[u8] {
        *bytes = vec![value; length + 2 * ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT) + behind;
        &bytes[start..start + length]
    }

    #[test]
    fn writes_of_every_kind_are_found_where_they_belong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("base");
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        file.set_len(4 << 20).unwrap();
        let direct = Direct::of(&path);
        let mut wanted = vec![0; 4 << 20];
        let mut memory = Vec::new();
        for (number, (offset, length, behind)) in [
            (0, SHORTEST, 0),
            // Over pages that the ordinary way has in the cache, and under them.
            (100, 5000, 0),
            (0, 2 * SHORTEST, 0),
            ((1 << 20) + 512, SHORTEST, 0),
            (2 << 20, SHORTEST, 1),
            ((2 << 20) + 4096, SHORTEST + 512, 0),
            (3 << 20, 1 << 20, 0),
        ]
        .into_iter()
        .enumerate()
        {
            let data = placed(&mut memory, length, behind, number as u8 + 1);
            direct.write_all_at(&file, data, offset as u64).unwrap();
            wanted[offset..offset + length].copy_from_slice(data);
        }
        assert!(std::fs::read(&path).unwrap() == wanted);
    }
}
