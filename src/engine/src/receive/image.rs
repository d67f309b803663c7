//! The local images: opened for nobody but us, compared with their maps, written where they differ, read back.
//!
//! All of this is file work for threads that may block. QEMU and what follows its locks can't open an image while a
//! [`Lock`] is held, so a VM that somebody starts by hand meanwhile fails to start rather than see a mix.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use disk_image::{Access, DiskImage, NoParents};

use super::error::ReceiveError;
use crate::replicator::hashes::{BLOCK, BlockHash, BlockMap, is_zero};

/// Keeps others from opening an image.
#[derive(Debug)]
pub struct Lock {
    // Closing it lets go.
    _file: File,
}

/// What was written to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    digest: blake3::Hash,
}

impl Lock {
    /// Of the image at `path`.
    pub fn take(path: &Path) -> Result<Self, ReceiveError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(ReceiveError::io("open a disk image of the virtual machine"))?;
        if is_taken(&file) {
            return Err(ReceiveError::InUse(path.to_owned()));
        }
        Ok(Self { _file: file })
    }
}

/// QEMU holds a lock on byte 100 + n for each permission n that it uses, and on 200 + n for each that it does not share.
#[cfg(target_os = "linux")]
fn is_taken(file: &File) -> bool {
    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc;
    let lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 100,
        l_len: 200,
        l_pid: 0,
    };
    // A file system without locks can't tell; the hypervisor still does.
    matches!(
        fcntl(file, FcntlArg::F_OFD_SETLK(&lock)),
        Err(Errno::EAGAIN | Errno::EACCES)
    )
}

/// Elsewhere the hypervisor alone tells.
#[cfg(not(target_os = "linux"))]
fn is_taken(_file: &File) -> bool {
    false
}

/// Opens an image. Parents are refused: a VM with checkpoints is not brought anywhere.
pub fn open(path: &Path, access: Access) -> Result<DiskImage, ReceiveError> {
    DiskImage::open_with_parents(path, access, &NoParents)
        .map_err(ReceiveError::image("open", path))
}

/// Blocks of a range that surely or possibly differ from what the map tells. What lies behind the end of the image is
/// zero: it will be made longer.
pub fn differing(
    image: &DiskImage,
    path: &Path,
    map: &BlockMap,
    range: Range<u64>,
) -> Result<Vec<Range<u64>>, ReceiveError> {
    let data = read_grown(image, path, &range)?;
    let first = range.start / BLOCK;
    let count = (range.end - range.start).div_ceil(BLOCK);
    let known = map
        .get(first, count as usize)
        .map_err(ReceiveError::io("read a map of block hashes"))?;
    let mut out = Vec::new();
    for (n, known) in known.into_iter().enumerate() {
        let start = range.start + n as u64 * BLOCK;
        let end = range.end.min(start + BLOCK);
        let now = match &data {
            None => BlockHash::ZERO,
            Some(data) => {
                let at = (start - range.start) as usize;
                BlockHash::of(map.key(), &data[at..at + (end - start) as usize])
            }
        };
        if !known.surely_is(now) {
            push(&mut out, start..end);
        }
    }
    Ok(out)
}

/// Bytes of a range; `None` = the image says that it is all zero.
fn read_grown(
    image: &DiskImage,
    path: &Path,
    range: &Range<u64>,
) -> Result<Option<Vec<u8>>, ReceiveError> {
    let inside = image.virtual_size().clamp(range.start, range.end);
    if image.allocated(range.start..inside).is_empty() {
        return Ok(None);
    }
    let mut data = vec![0; (range.end - range.start) as usize];
    image
        .read_at(&mut data[..(inside - range.start) as usize], range.start)
        .map_err(ReceiveError::image("read", path))?;
    Ok(Some(data))
}

/// Makes the image as large as the disk is to be. Behind a smaller end it is emptied first: what was written there
/// belongs to a time that never was.
pub fn resize(image: &mut DiskImage, path: &Path, size: u64) -> Result<(), ReceiveError> {
    static ZEROES: [u8; 1 << 20] = [0; 1 << 20];
    let now = image.virtual_size();
    if now == size {
        return Ok(());
    }
    for extent in image.allocated(size..now) {
        let mut at = extent.offset;
        while at < extent.end() {
            let length = (extent.end() - at).min(ZEROES.len() as u64);
            let mut old = vec![0; length as usize];
            image
                .read_at(&mut old, at)
                .map_err(ReceiveError::image("read", path))?;
            if !is_zero(&old) {
                image
                    .write_at(&ZEROES[..length as usize], at)
                    .map_err(ReceiveError::image("empty the end of", path))?;
            }
            at += length;
        }
    }
    image
        .resize(size)
        .map_err(ReceiveError::image("resize", path))
}

/// Makes the image hold these pieces, which begin at blocks: writes blocks that differ, and notes all of them in the map.
pub fn write(
    image: &mut DiskImage,
    path: &Path,
    map: Option<&BlockMap>,
    pieces: &[(u64, Bytes)],
) -> Result<Vec<Run>, ReceiveError> {
    let mut written = Vec::new();
    for (offset, wanted) in pieces {
        let mut there = vec![0; wanted.len()];
        image
            .read_at(&mut there, *offset)
            .map_err(ReceiveError::image("read", path))?;
        let block = BLOCK as usize;
        let mut differing = Vec::new();
        let blocks = wanted.chunks(block).zip(there.chunks(block));
        for (n, (wanted, there)) in blocks.enumerate() {
            if wanted != there {
                let start = (n * block) as u64;
                push(&mut differing, start..start + wanted.len() as u64);
            }
        }
        for range in differing {
            let data = &wanted[range.start as usize..range.end as usize];
            let at = offset + range.start;
            image
                .write_at(data, at)
                .map_err(ReceiveError::image("write to", path))?;
            written.push(Run {
                offset: at,
                length: data.len() as u64,
                digest: blake3::hash(data),
            });
        }
        if let Some(map) = map {
            let hashes: Vec<BlockHash> = wanted
                .chunks(block)
                .map(|block| BlockHash::of(map.key(), block))
                .collect();
            map.set(offset / BLOCK, &hashes)
                .map_err(ReceiveError::io("note block hashes"))?;
        }
    }
    Ok(written)
}

/// Reads what was written again, out of the file as anybody else will open it.
pub fn read_back(image: &DiskImage, path: &Path, runs: &[Run]) -> Result<(), ReceiveError> {
    let mut data = Vec::new();
    for run in runs {
        data.resize(run.length as usize, 0);
        image
            .read_at(&mut data, run.offset)
            .map_err(ReceiveError::image("read back", path))?;
        if blake3::hash(&data) != run.digest {
            return Err(ReceiveError::ReadBack {
                path: path.to_owned(),
                offset: run.offset,
            });
        }
    }
    Ok(())
}

/// Lets the system forget what it holds of a file, so that reading it asks the disk. Only ever makes a proof stronger.
#[cfg(target_os = "linux")]
pub fn forget_pages(path: &Path) -> io::Result<()> {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    let file = File::open(path)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(io::Error::from)
}

/// See above.
#[cfg(not(target_os = "linux"))]
pub fn forget_pages(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// Adds a range behind the others; neighbours become one.
pub fn push(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
        _ if range.is_empty() => {}
        _ => ranges.push(range),
    }
}
