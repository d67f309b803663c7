//! A journal object replays to what was written, at any level, encrypted or not. One that was tampered
//! with, its keyless digests put right, is refused or has sorted entries that lie on their disks; an
//! encrypted one is refused or says exactly the same.

#![no_main]

use fuzz::Input;
use replication_log::KeyRing;
use replication_log::journal::{
    BuildOptions, CompressionLevel, JournalBuilder, JournalDisk, JournalHeader, JournalReader,
};
use uuid::Uuid;

const SIZES: [u64; 2] = [600_000, 70_000];

fn disk(n: usize) -> Uuid {
    Uuid::from_u128(1 + n as u128)
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mut keys = KeyRing::new();
    keys.insert(Uuid::from_u128(9), &[9; 32]).expect("a key");
    let encrypted = input.byte() % 2 == 1;
    if encrypted {
        keys.activate(Some(Uuid::from_u128(9)))
            .expect("it is there");
    }
    let header = JournalHeader {
        item: "vm".to_owned(),
        generation: 1,
        position: 2,
        time_unix_ms: 3,
        disks: (0..2)
            .map(|n| JournalDisk {
                id: disk(n),
                size_bytes: SIZES[n],
            })
            .collect(),
    };
    let options = BuildOptions {
        compression: CompressionLevel::new(input.byte() % 4),
        encryption: Some(&keys),
        merged: None,
    };
    let mut builder =
        JournalBuilder::with_options(Vec::new(), header, options).expect("legal header");
    let mut model = SIZES.map(|size| vec![0xee; size as usize]);
    for _ in 0..input.byte() % 48 {
        let n = usize::from(input.byte() % 2);
        let length = 1 + input.below(SIZES[n] / 3);
        let offset = input.below(SIZES[n] - length);
        let seed = input.number(2);
        let data: Vec<u8> = (0..length)
            .map(|at| match seed % 4 {
                0 => 0,
                1 => seed as u8,
                // Blocks of zeroes among others.
                2 => ((at >> 12) % 2 * seed) as u8,
                _ => (at.wrapping_mul(seed | 1).wrapping_mul(0x9e37_79b9) >> 11) as u8,
            })
            .collect();
        if seed % 7 == 0 {
            builder.zero(disk(n), offset, length).expect("on the disk");
            model[n][offset as usize..][..length as usize].fill(0);
        } else {
            builder.write(disk(n), offset, &data).expect("on the disk");
            model[n][offset as usize..][..length as usize].copy_from_slice(&data);
        }
    }
    let (good, finished) = builder.finish().expect("memory has room");
    assert_eq!(finished.object_bytes, good.len() as u64);
    let seen = replay(&good, &keys).expect("what was written is read");
    assert!(seen == model, "it replays to what was written");
    assert_eq!(replay(&good, &KeyRing::new()).is_some(), !encrypted);

    let mut bad = good.clone();
    while !input.is_empty() {
        // The two ends, where the structures are.
        let at = input.below(600) as usize;
        let at = if at < 200 {
            at
        } else {
            (8 * good.len() - at) % good.len()
        };
        bad[at] = input.byte();
    }
    for _ in 0..2 {
        if let Some(seen) = replay(&bad, &keys) {
            assert!(!encrypted || seen == model, "a forged object was taken");
        }
        if reseal(&mut bad).is_none() {
            return;
        }
    }
});

/// Computes the digests that need no key, as a forger would.
fn reseal(object: &mut [u8]) -> Option<()> {
    let header = u32::from_le_bytes(object.get(12..16)?.try_into().ok()?) as usize;
    let end = header
        .checked_add(16)
        .filter(|end| end + 104 <= object.len())?;
    let prelude = *blake3::hash(&object[..end]).as_bytes();
    object[end..end + 32].copy_from_slice(&prelude);
    let trailer = object.len() - 72;
    let index = u64::from_le_bytes(object[trailer..trailer + 8].try_into().ok()?);
    let index = usize::try_from(index).ok().filter(|at| *at <= trailer)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&prelude);
    hasher.update(&object[trailer..trailer + 32]);
    hasher.update(&object[index..trailer]);
    let digest = *hasher.finalize().as_bytes();
    object[trailer + 32..trailer + 64].copy_from_slice(&digest);
    Some(())
}

fn replay(object: &[u8], keys: &KeyRing) -> Option<[Vec<u8>; 2]> {
    let reader = JournalReader::open_with_keys(object, keys).ok()?;
    let mut model = SIZES.map(|size| vec![0xee; size as usize]);
    let sizes: Vec<u64> = reader.header().disks.iter().map(|d| d.size_bytes).collect();
    let mut whole = sizes == SIZES;
    for (n, size) in sizes.iter().enumerate() {
        let mut end = 0;
        for entry in reader.entries(n) {
            assert!(entry.offset >= end, "sorted and disjoint");
            assert!(entry.length > 0 && entry.offset + entry.length <= *size);
            end = entry.offset + entry.length;
            if sizes != SIZES {
                continue;
            }
            match reader.read_entry(entry) {
                Ok(data) => model[n][entry.offset as usize..][..data.len()].copy_from_slice(&data),
                Err(_) => whole = false,
            }
        }
    }
    whole.then_some(model)
}
