//! Which blocks of a disk are in its local copy, in memory and on disk. Pure, but for the two calls at the end.
//!
//! ```text
//!  magic 8 │ point 16 │ disk 16 │ disk size 8 │ one bit a block, the lowest first │ CRC-32C of all before 4
//! ```
//!
//! Numbers are little-endian. A map that can't be read, or that is of something else, is no map: the copy begins anew.

use std::io;
use std::path::Path;

use uuid::Uuid;

use crate::durable::{self, Access};

/// Bytes of a block. Small enough for firmware's reads, large enough for 2 MiB of map for a disk of 1 TiB.
pub const BLOCK: u64 = 64 << 10;

const MAGIC: &[u8; 8] = b"SRCOPY01";
const HEAD: usize = 8 + 16 + 16 + 8;

/// Blocks of one disk at one point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    point: Uuid,
    disk: Uuid,
    size_bytes: u64,
    bits: Vec<u8>,
    present: u64,
}

impl Map {
    /// Of a disk of which nothing is here yet.
    pub fn empty(point: Uuid, disk: Uuid, size_bytes: u64) -> Self {
        let blocks = size_bytes.div_ceil(BLOCK);
        Self {
            point,
            disk,
            size_bytes,
            bits: vec![0; blocks.div_ceil(8) as usize],
            present: 0,
        }
    }

    /// Blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.size_bytes.div_ceil(BLOCK)
    }

    /// Bytes of the disk that are here.
    pub fn present_bytes(&self) -> u64 {
        // The last block may be a short one; it counts as whole until all are here.
        (self.present * BLOCK).min(self.size_bytes)
    }

    /// Whether all of the disk is here.
    pub fn is_complete(&self) -> bool {
        self.present == self.blocks()
    }

    /// Whether a block is here.
    pub fn has(&self, block: u64) -> bool {
        let byte = self.bits.get((block / 8) as usize);
        byte.is_some_and(|byte| byte & (1 << (block % 8)) != 0)
    }

    /// Whether all blocks of a range of bytes are here.
    pub fn holds(&self, offset: u64, length: u64) -> bool {
        let end = offset.saturating_add(length);
        (offset / BLOCK..end.div_ceil(BLOCK)).all(|block| self.has(block))
    }

    /// Notes that a block is here. One outside of the disk is left alone.
    pub fn set(&mut self, block: u64) {
        if block >= self.blocks() || self.has(block) {
            return;
        }
        if let Some(byte) = self.bits.get_mut((block / 8) as usize) {
            *byte |= 1 << (block % 8);
            self.present += 1;
        }
    }

    /// The first run of at most `most` blocks from `from` on that are not here: first block and number.
    pub fn missing(&self, from: u64, most: u64) -> Option<(u64, u64)> {
        let mut first = from;
        while first < self.blocks() {
            // Whole bytes of the map at once: nearly all of a disk is here at the end.
            if first.is_multiple_of(8) && self.bits.get((first / 8) as usize) == Some(&0xff) {
                first += 8;
            } else if self.has(first) {
                first += 1;
            } else {
                let end = first.saturating_add(most).min(self.blocks());
                let length = (first..end).take_while(|block| !self.has(*block)).count();
                return Some((first, length as u64));
            }
        }
        None
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + self.bits.len() + 4);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(self.point.as_bytes());
        bytes.extend_from_slice(self.disk.as_bytes());
        bytes.extend_from_slice(&self.size_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.bits);
        let sum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The map in `bytes`, if they are one of this disk at this point.
    fn decode(bytes: &[u8], point: Uuid, disk: Uuid, size_bytes: u64) -> Option<Self> {
        let (body, sum) = bytes.split_last_chunk::<4>()?;
        let mut map = Self::empty(point, disk, size_bytes);
        let head = map.encode();
        let is_ours = body.len() == HEAD + map.bits.len() && body.get(..HEAD)? == &head[..HEAD];
        if !is_ours || crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
            return None;
        }
        map.bits.copy_from_slice(body.get(HEAD..)?);
        let (blocks, all) = (map.blocks(), map.bits.len() as u64 * 8);
        map.present = (0..blocks).filter(|block| map.has(*block)).count() as u64;
        // Bits behind the disk stand for nothing.
        (!(blocks..all).any(|block| map.has(block))).then_some(map)
    }

    /// Reads a map; `None` when there is none of this disk at this point.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn read(path: &Path, point: Uuid, disk: Uuid, size_bytes: u64) -> io::Result<Option<Self>> {
        match std::fs::read(path) {
            Ok(bytes) => Ok(Self::decode(&bytes, point, disk, size_bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the map durable. What it names must be so already.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        durable::replace(path, &self.encode(), Access::Plain)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POINT: Uuid = Uuid::from_u128(1);
    const DISK: Uuid = Uuid::from_u128(2);

    proptest! {
        #[test]
        fn what_is_missing_and_what_is_here_are_the_whole_disk(
            size in 1_u64..300 * BLOCK, here in proptest::collection::vec(0_u64..310, 0..300), most in 1_u64..40)
        {
            let mut map = Map::empty(POINT, DISK, size);
            for block in &here {
                map.set(*block);
            }
            let mut missing = Vec::new();
            let mut from = 0;
            while let Some((first, length)) = map.missing(from, most) {
                prop_assert!(length >= 1 && length <= most && first >= from);
                missing.extend(first..first + length);
                from = first + length;
            }
            for block in 0..map.blocks() {
                prop_assert_eq!(map.has(block), !missing.contains(&block));
                prop_assert_eq!(map.has(block), here.contains(&block));
            }
            prop_assert_eq!(map.is_complete(), missing.is_empty());
        }

        #[test]
        fn a_map_comes_back_as_it_was_and_a_changed_byte_makes_it_none(
            size in 1_u64..100 * BLOCK, here in proptest::collection::vec(0_u64..100, 0..100), at in any::<prop::sample::Index>(), bit in 0_u8..8)
        {
            let mut map = Map::empty(POINT, DISK, size);
            for block in here {
                map.set(block);
            }
            let mut bytes = map.encode();
            prop_assert_eq!(Map::decode(&bytes, POINT, DISK, size), Some(map));
            prop_assert_eq!(Map::decode(&bytes, DISK, DISK, size), None);
            prop_assert_eq!(Map::decode(&bytes, POINT, DISK, size + BLOCK), None);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(Map::decode(&bytes, POINT, DISK, size), None);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), size in any::<u64>()) {
            prop_assert!(Map::decode(&bytes, POINT, DISK, size % (1 << 30)).is_none());
        }
    }
}
