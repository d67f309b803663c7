//! A map of block hashes: whose it is and how much it knows. The hashes themselves tell nothing to people.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::replicator::hashes::{BLOCK, BlockHash, BlockMap, MapFile};

const MAGIC: &[u8; 8] = b"SRBHASH\n";
const PAGE: usize = 4096;
/// Hashes looked at in one go.
const BATCH: u64 = 255 * 256;

/// Whether one of the two header slots is that of a map.
pub fn is_map(path: &Path) -> bool {
    let mut slots = [0; 2 * PAGE];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut slots));
    read.is_ok() && slots.chunks(PAGE).any(|slot| slot.starts_with(MAGIC))
}

/// Opened for reading only: a tool never changes a map.
struct ReadOnly(File);

impl MapFile for ReadOnly {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        MapFile::read_at(&self.0, buffer, offset)
    }

    fn write_at(&self, _data: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Shows the map.
pub fn inspect(path: &Path) -> anyhow::Result<Value> {
    let map = BlockMap::open(Box::new(ReadOnly(File::open(path)?)))?
        .context("neither of its headers verifies: it will be built anew by a comparison")?;
    let header = map.header();
    let blocks = header.size_bytes.div_ceil(BLOCK);
    let (mut zero, mut unknown) = (0u64, 0u64);
    let mut at = 0;
    while at < blocks {
        let count = (blocks - at).min(BATCH);
        for hash in map.get(at, count as usize)? {
            zero += u64::from(hash == BlockHash::ZERO);
            unknown += u64::from(hash == BlockHash::UNKNOWN);
        }
        at += count;
    }
    Ok(json!({
        "kind": "block hashes",
        "disk": header.disk,
        "replica": header.replica,
        "generation": header.generation,
        "position": header.position,
        "sizeBytes": header.size_bytes,
        "blockSizeBytes": BLOCK,
        "blocks": blocks,
        "zeroBlocks": zero,
        "unknownBlocks": unknown,
        "filledTo": header.filled_to,
        "fileSizeBytes": std::fs::metadata(path)?.len(),
    }))
}
