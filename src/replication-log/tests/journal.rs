//! Journal objects: what is written is read, at random and verified.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use replication_log::ReadAt;
use replication_log::journal::{
    EntryData, FRAME_SIZE, Finished, JournalBuilder, JournalDisk, JournalErrorKind, JournalHeader,
    JournalReader,
};
use uuid::Uuid;

const SIZES: [u64; 2] = [1 << 20, 300_000];

fn disk(n: usize) -> Uuid {
    Uuid::from_u128(0xd15c_0000 + n as u128)
}

fn header(generation: u64) -> JournalHeader {
    JournalHeader {
        item: "web-server-01".to_owned(),
        generation,
        position: 42,
        time_unix_ms: 1_767_323_045_678,
        disks: (0..2)
            .map(|n| JournalDisk {
                id: disk(n),
                size_bytes: SIZES[n],
            })
            .collect(),
    }
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, u64, Vec<u8>),
    Zero(usize, u64, u64),
}

fn build(changes: &[Change], generation: u64) -> (Vec<u8>, Finished) {
    let mut builder = JournalBuilder::new(Vec::new(), header(generation)).unwrap();
    for change in changes {
        match change {
            Change::Write(n, offset, data) => builder.write(disk(*n), *offset, data).unwrap(),
            Change::Zero(n, offset, length) => builder.zero(disk(*n), *offset, *length).unwrap(),
        }
    }
    builder.finish().unwrap()
}

fn model(changes: &[Change]) -> [Vec<u8>; 2] {
    let mut disks = SIZES.map(|size| vec![0xee; size as usize]);
    for change in changes {
        match change {
            Change::Write(n, offset, data) => {
                disks[*n][*offset as usize..][..data.len()].copy_from_slice(data);
            }
            Change::Zero(n, offset, length) => {
                disks[*n][*offset as usize..][..*length as usize].fill(0);
            }
        }
    }
    disks
}

fn replay(object: &[u8]) -> Result<[Vec<u8>; 2], JournalErrorKind> {
    let reader = JournalReader::open(object).map_err(|error| error.kind())?;
    let mut disks = SIZES.map(|size| vec![0xee; size as usize]);
    for (n, image) in disks.iter_mut().enumerate() {
        for entry in reader.entries(n) {
            let data = reader.read_entry(entry).map_err(|error| error.kind())?;
            image[entry.offset as usize..][..data.len()].copy_from_slice(&data);
        }
    }
    Ok(disks)
}

/// Bytes that no compressor makes smaller.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

fn sample() -> Vec<Change> {
    vec![
        Change::Write(0, 4096, b"hello, journal".repeat(40)),
        Change::Zero(1, 65536, 131_072),
        Change::Write(1, 70_000, noise(1, 900)),
        Change::Write(0, 4100, vec![7; 33]),
        Change::Zero(0, 0, 16),
    ]
}

#[test]
fn an_object_replays_to_what_was_written() {
    let (object, finished) = build(&sample(), 3);
    assert_eq!(replay(&object), Ok(model(&sample())));
    assert_eq!(finished.object_bytes, object.len() as u64);
    assert_eq!(finished.changed_bytes, 560 + 131_072 + 900 + 33 + 16);
    let reader = JournalReader::open(object).unwrap();
    assert_eq!(reader.header(), &header(3));
    assert_eq!(reader.content(), finished.content);
    reader.verify().unwrap();
}

#[test]
fn large_writes_are_cut_into_frames_and_noise_is_stored() {
    let big = noise(2, 3 * FRAME_SIZE / 2);
    let (object, _) = build(&[Change::Write(0, 100, big.clone())], 1);
    assert!(object.len() < big.len() + 4096, "noise does not grow");
    assert_eq!(replay(&object), Ok(model(&[Change::Write(0, 100, big)])));
    let reader = JournalReader::open(object).unwrap();
    assert_eq!(reader.frames().len(), 2);
    assert!(
        reader
            .frames()
            .iter()
            .all(|f| f.raw_length() as usize <= FRAME_SIZE)
    );
}

#[test]
fn zeroes_cost_no_data() {
    let (object, _) = build(&[Change::Zero(0, 0, SIZES[0])], 1);
    assert!(object.len() < 512);
    let reader = JournalReader::open(object).unwrap();
    assert_eq!(reader.entries(0)[0].data, EntryData::Zeroes);
}

struct Counting<'a>(&'a [u8], AtomicU64);

impl ReadAt for Counting<'_> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.1.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.0.read_exact_at(buf, offset)
    }

    fn len(&self) -> std::io::Result<u64> {
        ReadAt::len(self.0)
    }
}

#[test]
fn one_entry_is_read_without_reading_the_object() {
    let changes: Vec<_> = (0..4)
        .map(|n| Change::Write(0, n * 262_144, noise(n, FRAME_SIZE)))
        .collect();
    let (object, _) = build(&changes, 1);
    let reader = JournalReader::open(Counting(&object, AtomicU64::new(0))).unwrap();
    let entry = reader.entries(0)[2];
    assert_eq!(reader.read_entry(&entry).unwrap(), noise(2, FRAME_SIZE));
    let read = reader.into_inner().1.into_inner();
    assert!(read < FRAME_SIZE as u64 + 4096, "{read} bytes were read");
}

#[test]
fn the_content_id_is_that_of_the_changes_not_of_the_writer() {
    let (_, first) = build(&sample(), 3);
    let (_, other_generation) = build(&sample(), 4);
    let (_, other_changes) = build(&sample()[1..], 3);
    assert_eq!(first.content, other_generation.content);
    assert_ne!(first.content, other_changes.content);
}

#[test]
fn changes_outside_a_disk_or_of_an_unknown_disk_are_refused() {
    let mut builder = JournalBuilder::new(Vec::new(), header(1)).unwrap();
    for (id, offset) in [(disk(1), SIZES[1]), (disk(0), u64::MAX), (disk(9), 0)] {
        let error = builder.write(id, offset, b"x").unwrap_err();
        assert_eq!(error.kind(), JournalErrorKind::Invalid);
    }
    let error = builder.zero(disk(1), 1, SIZES[1]).unwrap_err();
    assert_eq!(error.kind(), JournalErrorKind::Invalid);
}

#[test]
fn every_flipped_byte_is_detected_or_harmless() {
    let (object, _) = build(&sample(), 3);
    let good = model(&sample());
    for at in 0..object.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bad = object.clone();
            bad[at] ^= flip;
            if let Ok(seen) = replay(&bad) {
                assert!(seen == good, "byte {at} ^ {flip:#x} changed what is read");
            }
        }
    }
}

#[test]
fn every_cut_and_every_surplus_byte_is_detected() {
    let (mut object, _) = build(&sample(), 3);
    for length in 0..object.len() {
        assert!(replay(&object[..length]).is_err(), "cut to {length}");
    }
    object.push(0);
    assert!(replay(&object).is_err());
}

#[test]
fn an_unknown_version_is_told_from_damage() {
    let (mut object, _) = build(&sample(), 3);
    object[8] = 2;
    assert_eq!(replay(&object), Err(JournalErrorKind::Unsupported));
}

#[test]
fn the_golden_object_of_version_1_is_still_read() {
    // Only read: a newer compressor may pack the same frames otherwise.
    let golden = include_bytes!("golden/journal-v1.hrl");
    assert!(replay(golden) == Ok(model(&sample())));
    let reader = JournalReader::open(golden.to_vec()).unwrap();
    assert_eq!(reader.header(), &header(3));
    assert_eq!(reader.content(), build(&sample(), 3).1.content);
}

fn change() -> impl Strategy<Value = Change> {
    (
        0..2usize,
        any::<prop::sample::Index>(),
        1..20_000usize,
        any::<u8>(),
        0..3u8,
    )
        .prop_map(|(n, at, length, byte, kind)| {
            let offset = at.index(SIZES[n] as usize - length) as u64;
            match kind {
                0 => Change::Zero(n, offset, length as u64),
                1 => Change::Write(n, offset, noise(u64::from(byte), length)),
                _ => Change::Write(n, offset, vec![byte; length]),
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn overlapping_changes_replay_in_their_order(changes in prop::collection::vec(change(), 0..40)) {
        let (object, _) = build(&changes, 1);
        prop_assert!(replay(&object) == Ok(model(&changes)));
    }

    /// A liar with right checksums: the index is rewritten at random and sealed again.
    #[test]
    fn a_hostile_index_with_right_checksums_never_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (mut object, _) = build(&sample(), 1);
        let trailer = object.len() - 56;
        let number = |at: usize| u64::from_le_bytes(object[at..at + 8].try_into().unwrap()) as usize;
        let (index, length) = (number(trailer), number(trailer + 8));
        for (at, value) in edits {
            object[index + at.index(length)] = value;
        }
        let header_length = u32::from_le_bytes(object[12..16].try_into().unwrap()) as usize;
        let digest = &object[16 + header_length..48 + header_length];
        let mut hasher = blake3::Hasher::new();
        hasher.update(digest).update(&object[trailer..trailer + 16]).update(&object[index..index + length]);
        let sealed = *hasher.finalize().as_bytes();
        object[trailer + 16..trailer + 48].copy_from_slice(&sealed);
        if let Ok(reader) = JournalReader::open(object) {
            for (n, size) in SIZES.iter().enumerate() {
                for entry in reader.entries(n) {
                    prop_assert!(entry.offset + entry.length <= *size);
                    let _ = reader.read_entry(entry);
                }
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let mut object = b"SRJRNL\r\n\x01\0\0\0".to_vec();
        object.extend_from_slice(&bytes);
        prop_assert!(replay(&object).is_err());
    }
}
