//! Inputs: disks with a known share of data, and scattered writes. The same for the same seed.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result};
use disk_image::{CreateOptions, DiskImage, Format, ImageFile as _};

/// Numbers without a pattern; no secret depends on them.
pub struct Random {
    word: u64,
}

impl Random {
    /// The same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self {
            word: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.word ^= self.word << 13;
        self.word ^= self.word >> 7;
        self.word ^= self.word << 17;
        self.word.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// Bytes that no compressor makes smaller.
    pub fn noise(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    /// Bytes as disks hold them: about half of it can be compressed away.
    pub fn plain(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = self.noise(length);
        for (number, part) in bytes.chunks_mut(256).enumerate() {
            if number % 2 == 1 {
                let word = (number as u32 / 16).to_le_bytes();
                for (at, byte) in part.iter_mut().enumerate() {
                    *byte = word[at % 4];
                }
            }
        }
        bytes
    }
}

const PIECE: u64 = 1 << 20;

/// Whether a MiB has data in a disk of which `percent` is allocated: runs of 20 MiB, as file systems leave them.
fn has_data(mib: u64, percent: u64) -> bool {
    mib % 20 < percent * 20 / 100
}

/// Bytes with data in such a disk.
pub fn data_bytes(virtual_size: u64, percent: u64) -> u64 {
    (0..virtual_size / PIECE)
        .filter(|mib| has_data(*mib, percent))
        .count() as u64
        * PIECE
}

/// A dynamic VHDX of which `percent` holds noise.
pub fn vhdx(path: &Path, virtual_size: u64, percent: u64, seed: u64) -> Result<()> {
    let mut options = CreateOptions::new(Format::VhdxDynamic, virtual_size);
    options.block_size = Some(1 << 20);
    image(path, &options, percent, seed)
}

/// The same as plain bytes with holes.
pub fn raw(path: &Path, virtual_size: u64, percent: u64, seed: u64) -> Result<()> {
    image(
        path,
        &CreateOptions::new(Format::Raw, virtual_size),
        percent,
        seed,
    )
}

fn image(path: &Path, options: &CreateOptions, percent: u64, seed: u64) -> Result<()> {
    let mut image =
        DiskImage::create(path, options).with_context(|| format!("create {}", path.display()))?;
    let mut random = Random::new(seed);
    for mib in (0..options.virtual_size / PIECE).filter(|mib| has_data(*mib, percent)) {
        image.write_at(&random.noise(PIECE as usize), mib * PIECE)?;
    }
    image.close()?;
    Ok(())
}

/// Reads a file once, so that nobody is the first to.
pub fn warm(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let length = file.metadata()?.len();
    let mut buffer = vec![0; PIECE as usize];
    let mut at = 0;
    while at < length {
        let part = (length - at).min(PIECE) as usize;
        file.read_at(&mut buffer[..part], at)?;
        at += part as u64;
    }
    Ok(())
}

/// Drops a file out of the page cache: the next reader reads the disk, as with images larger than memory.
pub fn forget(path: &Path) -> Result<()> {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    // Pages that are not yet written would stay.
    file.sync_all()?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .with_context(|| format!("drop {} out of the page cache", path.display()))
}

/// Bytes that a folder or file takes on the disk.
pub fn stored_bytes(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata =
        std::fs::symlink_metadata(path).with_context(|| format!("look at {}", path.display()))?;
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path)? {
            bytes += stored_bytes(&entry?.path())?;
        }
    }
    Ok(bytes)
}

/// One write of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// First byte.
    pub offset: u64,
    /// What.
    pub data: Vec<u8>,
}

/// Writes of 4 to 64 KiB, whole 4 KiB blocks, scattered over a disk, `bytes` in all and none over another.
pub fn scattered(random: &mut Random, disk_size: u64, bytes: u64) -> Vec<Write> {
    const BLOCK: u64 = 4096;
    // One slot of 64 KiB a write, drawn without repetition.
    let slots = disk_size / (64 << 10);
    let mut taken = std::collections::BTreeSet::new();
    let mut writes = Vec::new();
    let mut left = bytes / BLOCK * BLOCK;
    while left > 0 && (taken.len() as u64) < slots {
        let slot = random.below(slots);
        if !taken.insert(slot) {
            continue;
        }
        let length = ((1 + random.below(16)) * BLOCK).min(left);
        let within = random.below((64 << 10) / BLOCK - length / BLOCK + 1) * BLOCK;
        writes.push(Write {
            offset: slot * (64 << 10) + within,
            data: random.plain(length as usize),
        });
        left -= length;
    }
    writes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_writes_have_the_bytes_that_were_asked_for_and_do_not_overlap() {
        let mut writes = scattered(&mut Random::new(1), 64 << 20, 3 << 20);
        let sum: u64 = writes.iter().map(|write| write.data.len() as u64).sum();
        assert_eq!(sum, 3 << 20);
        writes.sort_by_key(|write| write.offset);
        assert!(
            writes
                .windows(2)
                .all(|pair| pair[0].offset + pair[0].data.len() as u64 <= pair[1].offset)
        );
        assert!(writes.iter().all(|write| write.offset % 4096 == 0));
        assert!(
            writes
                .iter()
                .all(|write| (4096..=65_536).contains(&write.data.len()))
        );
    }

    #[test]
    fn a_third_of_a_disk_is_a_third() {
        assert_eq!(data_bytes(200 << 20, 35), 70 << 20);
    }
}
