//! What the operating system does better than a loop of reads and writes. Every function here has
//! an answer on systems that can't do it, so callers need no special cases.

use std::fs::File;
use std::io;

use crate::{Segment, Source};

/// Leaves out of file segments what the file system knows to be holes: raw images and fixed VHDs
/// have no other table.
pub(super) fn without_holes(segments: Vec<Segment<'_>>) -> Vec<Segment<'_>> {
    let mut kept = Vec::with_capacity(segments.len());
    for segment in segments {
        match segment.source {
            Source::Zeroes => {}
            Source::File { file, offset } => match file.as_file() {
                // Blocks of a VHDX hold few holes; asking costs more than it saves on short ones.
                Some(real) if segment.length >= 64 << 20 => {
                    for (start, length) in data_ranges(real, offset, segment.length) {
                        kept.push(Segment {
                            offset: segment.offset + (start - offset),
                            length,
                            source: Source::File {
                                file,
                                offset: start,
                            },
                        });
                    }
                }
                _ => kept.push(segment),
            },
            Source::Read => kept.push(segment),
        }
    }
    kept
}

/// The parts of a file's range that are no holes.
#[cfg(target_os = "linux")]
fn data_ranges(file: &File, offset: u64, length: u64) -> Vec<(u64, u64)> {
    use nix::unistd::{Whence, lseek};
    let whole = vec![(offset, length)];
    let end = offset + length;
    let mut ranges = Vec::new();
    let mut at = offset;
    while at < end {
        let Ok(from) = i64::try_from(at) else {
            return whole;
        };
        let start = match lseek(file, from, Whence::SeekData) {
            Ok(start) => start as u64,
            Err(nix::errno::Errno::ENXIO) => break,
            Err(_) => return whole,
        };
        if start >= end {
            break;
        }
        let Ok(stop) = lseek(file, start as i64, Whence::SeekHole) else {
            return whole;
        };
        let stop = (stop as u64).min(end);
        ranges.push((start.max(at), stop - start.max(at)));
        at = stop;
    }
    ranges
}

#[cfg(not(target_os = "linux"))]
fn data_ranges(_file: &File, offset: u64, length: u64) -> Vec<(u64, u64)> {
    vec![(offset, length)]
}

/// Whether room should be asked for ahead of writing: where the file system copies bytes. Where it
/// shares extents, or lives in memory, asking would only cost.
#[cfg(target_os = "linux")]
pub(super) fn wants_room(file: &File) -> bool {
    use nix::sys::statfs::{EXT4_SUPER_MAGIC, fstatfs};
    fstatfs(file).is_ok_and(|system| system.filesystem_type() == EXT4_SUPER_MAGIC)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn wants_room(_file: &File) -> bool {
    false
}

/// Asks for room: writing into it is much faster than letting the file grow page by page. The
/// range reads as zeroes until it is written. Failure means nothing, but for a full disk.
#[cfg(target_os = "linux")]
pub(super) fn make_room(file: &File, offset: u64, length: u64) -> io::Result<()> {
    use nix::errno::Errno;
    use nix::fcntl::{FallocateFlags, fallocate};
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
        return Ok(());
    };
    match fallocate(file, FallocateFlags::empty(), offset, length) {
        Err(error @ (Errno::ENOSPC | Errno::EDQUOT)) => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn make_room(_file: &File, _offset: u64, _length: u64) -> io::Result<()> {
    Ok(())
}

/// Copies a range from file to file inside the kernel. `false` when it can't be done for these
/// files; then nothing counts as copied.
#[cfg(target_os = "linux")]
pub(super) fn copy(
    from: &File,
    mut source: u64,
    to: &File,
    mut target: u64,
    length: u64,
) -> io::Result<bool> {
    use nix::errno::Errno;
    use nix::fcntl::copy_file_range;
    let mut left = length;
    while left > 0 {
        let (Ok(mut source_at), Ok(mut target_at)) = (i64::try_from(source), i64::try_from(target))
        else {
            return Ok(false);
        };
        match copy_file_range(
            from,
            Some(&mut source_at),
            to,
            Some(&mut target_at),
            left.min(1 << 30) as usize,
        ) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                left -= n as u64;
                source += n as u64;
                target += n as u64;
            }
            Err(Errno::EINTR) => {}
            Err(
                Errno::EXDEV
                | Errno::EINVAL
                | Errno::ENOSYS
                | Errno::EOPNOTSUPP
                | Errno::EPERM
                | Errno::ETXTBSY,
            ) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn copy(
    _from: &File,
    _source: u64,
    _to: &File,
    _target: u64,
    _length: u64,
) -> io::Result<bool> {
    Ok(false)
}
