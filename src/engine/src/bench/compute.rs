//! What a processor core does: hash, checksum, compress, encrypt.

use std::hint::black_box;
use std::time::Duration;

use anyhow::anyhow;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::{Figure, Unit, noise, repeat};

const PIECE: usize = 1 << 20;
const BLOCK: usize = 4096;
/// As in a frame of a journal object.
const FRAME: usize = 256 << 10;
const LEVELS: [i32; 4] = [1, 3, 6, 9];

fn figure(name: impl Into<String>, per_second: f64) -> Figure {
    Figure {
        name: name.into(),
        per_second,
        unit: Unit::Bytes,
    }
}

/// BLAKE3 of each 4 KiB, and of the whole.
pub(super) fn hash(time: Duration) -> Vec<Figure> {
    let data = noise(1, PIECE);
    let key = [7; 32];
    let blocks = repeat(time, || {
        for block in data.chunks(BLOCK) {
            black_box(blake3::keyed_hash(&key, block));
        }
        PIECE as u64
    });
    let whole = repeat(time, || {
        black_box(blake3::hash(&data));
        PIECE as u64
    });
    vec![
        figure("hash (4 KiB blocks)", blocks),
        figure("hash (1 MiB)", whole),
    ]
}

/// CRC-32C.
pub(super) fn checksum(time: Duration) -> Vec<Figure> {
    let data = noise(2, PIECE);
    vec![figure(
        "checksum (CRC-32C)",
        repeat(time, || {
            black_box(crc32c::crc32c(&data));
            PIECE as u64
        }),
    )]
}

/// Zstandard on data of which every second 512 bytes repeat.
pub(super) fn compress(time: Duration) -> anyhow::Result<Vec<Figure>> {
    let mut data = noise(3, FRAME);
    for (number, part) in data.chunks_mut(512).enumerate() {
        if number % 2 == 1 {
            part.fill(0x20);
        }
    }
    let mut figures = Vec::new();
    for level in LEVELS {
        let mut failed = None;
        let rate = repeat(time / LEVELS.len() as u32, || {
            match zstd::bulk::compress(&data, level) {
                Ok(out) => drop(black_box(out)),
                Err(error) => failed = Some(error),
            }
            FRAME as u64
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        figures.push(figure(format!("compress (level {level})"), rate));
    }
    Ok(figures)
}

/// AES-256-GCM, a frame at a time.
pub(super) fn encrypt(time: Duration) -> anyhow::Result<Vec<Figure>> {
    let unusable = |_| anyhow!("the processor's AES-256-GCM can't be used");
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[9; 32]).map_err(unusable)?);
    let mut data = noise(4, FRAME);
    let mut counter = 0u64;
    let mut failed = false;
    let rate = repeat(time, || {
        counter += 1;
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&counter.to_le_bytes());
        let sealed = key.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::empty(),
            &mut data,
        );
        failed |= black_box(sealed).is_err();
        FRAME as u64
    });
    if failed {
        return Err(anyhow!("a frame could not be encrypted"));
    }
    Ok(vec![figure("encrypt (AES-256-GCM)", rate)])
}
