//! Journal objects: what is written is read, at random and verified.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use replication_log::ReadAt;
use replication_log::journal::{
    BLOCK, BuildOptions, CompressionController, CompressionLevel, EntryData, FRAME_SIZE, Finished,
    JournalBuilder, JournalDisk, JournalErrorKind, JournalHeader, JournalReader, Merged,
    read_header, read_outline,
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
    build_at(changes, generation, CompressionLevel::FASTEST)
}

fn build_at(
    changes: &[Change],
    generation: u64,
    compression: CompressionLevel,
) -> (Vec<u8>, Finished) {
    let options = BuildOptions {
        compression,
        ..BuildOptions::default()
    };
    let mut builder =
        JournalBuilder::with_options(Vec::new(), header(generation), options).unwrap();
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
    // Overlapping writes count once.
    assert_eq!(finished.changed_bytes, 560 + 131_072 + 16);
    let reader = JournalReader::open(object).unwrap();
    assert_eq!(reader.header(), &header(3));
    assert_eq!(reader.content(), finished.content);
    reader.verify().unwrap();
    assert_eq!(reader.key_id(), None);
    assert_eq!(
        read_header(reader.into_inner().as_slice()).unwrap(),
        (header(3), None)
    );
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

#[test]
fn zero_blocks_among_data_are_never_sent() {
    let mut data = noise(3, 64 << 10);
    data[4096..12288].fill(0);
    data[20480..20490].fill(0);
    let (object, finished) = build(&[Change::Write(0, 8192, data.clone())], 1);
    assert_eq!(replay(&object), Ok(model(&[Change::Write(0, 8192, data)])));
    assert_eq!(finished.changed_bytes, 64 << 10);
    let reader = JournalReader::open(object).unwrap();
    let kinds: Vec<_> = reader
        .entries(0)
        .iter()
        .map(|entry| (entry.offset, entry.length, entry.data == EntryData::Zeroes))
        .collect();
    assert_eq!(
        kinds,
        [
            (8192, 4096, false),
            (12288, 8192, true),
            (20480, 53248, false)
        ]
    );
    assert_eq!(reader.frames()[0].raw_length(), 56 << 10);
}

#[test]
fn neighbours_become_one_entry_and_an_overwritten_block_is_not_sent_twice() {
    let block = |n: u64| noise(n, BLOCK as usize);
    let mut changes: Vec<_> = (0..16)
        .map(|n| Change::Write(0, n * BLOCK, block(n)))
        .collect();
    changes.push(Change::Write(0, 3 * BLOCK, block(100)));
    changes.push(Change::Write(0, 10 * BLOCK + 7, block(101)));
    let (object, finished) = build(&changes, 1);
    assert_eq!(replay(&object), Ok(model(&changes)));
    assert_eq!(finished.changed_bytes, 16 * BLOCK);
    let reader = JournalReader::open(object).unwrap();
    assert_eq!(reader.entries(0).len(), 1);
    assert_eq!(u64::from(reader.frames()[0].raw_length()), 16 * BLOCK);
}

#[test]
fn scattered_blocks_cost_little_more_than_their_bytes() {
    let size = 64u64 << 30;
    let mut header = header(1);
    header.disks[0].size_bytes = size;
    let mut builder = JournalBuilder::new(Vec::new(), header).unwrap();
    let count = 2_000u64;
    for n in 0..count {
        let at = (n * 7_919) % (size / BLOCK) * BLOCK;
        builder
            .write(disk(0), at, &noise(n, BLOCK as usize))
            .unwrap();
    }
    let (object, finished) = builder.finish().unwrap();
    assert_eq!(finished.changed_bytes, count * BLOCK);
    let most = count * BLOCK * 101 / 100;
    assert!((object.len() as u64) < most, "{} > {most}", object.len());
}

#[test]
fn the_level_changes_the_size_but_neither_content_nor_identity() {
    // Sentences of a language with few common and many rare words.
    let text: Vec<u8> = noise(5, 100_000)
        .chunks(2)
        .flat_map(|pair| {
            let word = u64::from(pair[0]) * u64::from(pair[1]) / 16;
            let letters = noise(word, 3 + word as usize % 9);
            let letters = letters.iter().map(|byte| b'a' + byte % 26);
            letters.chain([b' ']).collect::<Vec<u8>>()
        })
        .take(240_000)
        .collect();
    let changes = [Change::Write(0, 4096, text)];
    let sizes: Vec<_> = [0, 1, 9]
        .into_iter()
        .map(|level| {
            let (object, done) = build_at(&changes, 1, CompressionLevel::new(level));
            assert_eq!(replay(&object), Ok(model(&changes)));
            (object.len(), done.content)
        })
        .collect();
    assert!(
        sizes[0].0 > sizes[1].0 && sizes[1].0 > sizes[2].0,
        "{sizes:?}"
    );
    assert!(sizes[0].1 == sizes[1].1 && sizes[1].1 == sizes[2].1);
}

#[test]
fn the_builder_tells_the_controller_what_it_did() {
    use std::cell::Cell;
    use std::time::Duration;
    thread_local!(static CLOCK: Cell<u64> = const { Cell::new(0) });
    // Every look at the clock is a hundred milliseconds later: a compressor of 2.6 MB/s.
    fn now() -> Duration {
        CLOCK.with(|clock| clock.set(clock.get() + 100));
        CLOCK.with(|clock| Duration::from_millis(clock.get()))
    }
    let mut controller =
        CompressionController::new(CompressionLevel::STORE, CompressionLevel::HIGHEST);
    // A link that would wait for that compressor.
    controller.observe_link(100_000_000, Duration::from_secs(1));
    let mut header = header(1);
    header.disks[0].size_bytes = 1 << 30;
    let options = BuildOptions {
        compression: CompressionLevel::new(2),
        ..BuildOptions::default()
    };
    let mut builder = JournalBuilder::with_options(std::io::sink(), header, options)
        .unwrap()
        .measured(now);
    let mut levels = Vec::new();
    for n in 0..100u64 {
        let data = noise(n, 64 << 10).repeat(4);
        builder
            .write(disk(0), n * FRAME_SIZE as u64, &data)
            .unwrap();
        builder.adapt(&mut controller);
        levels.push(controller.level().number());
    }
    assert_eq!(levels.last(), Some(&0), "{levels:?}");
    let work = builder.work();
    assert_eq!(work.raw_bytes, 100 * FRAME_SIZE as u64);
    assert!(work.untried_bytes > 0 && work.compressing > Duration::ZERO);
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
    object[8] = 4;
    assert_eq!(replay(&object), Err(JournalErrorKind::Unsupported));
}

fn build_merged(first_position: u64, present_disks: u32) -> Result<Vec<u8>, JournalErrorKind> {
    let options = BuildOptions {
        merged: Some(Merged {
            first_position,
            present_disks,
        }),
        ..BuildOptions::default()
    };
    let mut builder = JournalBuilder::with_options(Vec::new(), header(3), options)
        .map_err(|error| error.kind())?;
    for change in sample() {
        match change {
            Change::Write(n, offset, data) => builder.write(disk(n), offset, &data).unwrap(),
            Change::Zero(n, offset, length) => builder.zero(disk(n), offset, length).unwrap(),
        }
    }
    Ok(builder.finish().unwrap().0)
}

#[test]
fn a_merged_object_says_for_which_cycles_it_stands_and_which_disks_were_excluded() {
    let object = build_merged(40, 1).unwrap();
    assert!(replay(&object) == Ok(model(&sample())));
    let reader = JournalReader::open(object.clone()).unwrap();
    let merged = Merged {
        first_position: 40,
        present_disks: 1,
    };
    assert_eq!(reader.merged(), Some(merged));
    assert_eq!(reader.present_disks(), &header(3).disks[..1]);
    let front = read_outline(object.as_slice()).unwrap();
    assert_eq!((front.header, front.merged), (header(3), Some(merged)));
    for at in 16..200 {
        let mut forged = object.clone();
        forged[at] ^= 1;
        assert!(replay(&forged).is_err(), "byte {at} is vouched for");
    }
    // One cycle is written as before.
    let (single, _) = build(&sample(), 3);
    assert_eq!(single[8], 2);
    assert_eq!(read_outline(single.as_slice()).unwrap().merged, None);

    let invalid = Err(JournalErrorKind::Invalid);
    assert_eq!(build_merged(43, 1), invalid, "begins behind its end");
    assert_eq!(build_merged(40, 3), invalid, "has more disks than it lists");
}

#[test]
fn the_golden_object_of_version_3_is_still_read() {
    let golden = include_bytes!("golden/journal-v3.hrl");
    assert!(replay(golden) == Ok(model(&sample())));
    let reader = JournalReader::open(golden.to_vec()).unwrap();
    assert_eq!(reader.header(), &header(3));
    let merged = Merged {
        first_position: 40,
        present_disks: 1,
    };
    assert_eq!(reader.merged(), Some(merged));
}

#[test]
fn the_golden_object_of_version_1_is_still_read() {
    // Only read: a newer compressor may pack the same frames otherwise.
    let golden = include_bytes!("golden/journal-v1.hrl");
    assert!(replay(golden) == Ok(model(&sample())));
    let reader = JournalReader::open(golden.to_vec()).unwrap();
    assert_eq!(reader.header(), &header(3));
    assert_eq!(reader.entries(0).len(), 3, "in the order of the writes");
}

#[test]
fn the_golden_object_of_version_2_is_still_read() {
    let golden = include_bytes!("golden/journal-v2.hrl");
    assert!(replay(golden) == Ok(model(&sample())));
    let reader = JournalReader::open(golden.to_vec()).unwrap();
    assert_eq!(reader.header(), &header(3));
    assert_eq!(reader.content(), build(&sample(), 3).1.content);
}

fn number(object: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(object[at..at + 8].try_into().unwrap())
}

/// The index of an object in the clear, unpacked.
fn raw_index(object: &[u8]) -> Vec<u8> {
    let trailer = object.len() - 72;
    let stored = &object[number(object, trailer) as usize..trailer];
    match object[trailer + 24] {
        0 => stored.to_vec(),
        _ => zstd::bulk::decompress(stored, number(object, trailer + 16) as usize).unwrap(),
    }
}

/// The object with another index, sealed as it should be; `lie` is what it says of the raw length.
fn with_index(object: &[u8], index: &[u8], lie: Option<u64>) -> Vec<u8> {
    let offset = number(object, object.len() - 72);
    let packed = zstd::bulk::compress(index, 1).unwrap();
    let mut numbers = Vec::new();
    for value in [
        offset,
        packed.len() as u64,
        lie.unwrap_or(index.len() as u64),
        1,
    ] {
        numbers.extend_from_slice(&value.to_le_bytes());
    }
    let header_length = u32::from_le_bytes(object[12..16].try_into().unwrap()) as usize;
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&object[16 + header_length..48 + header_length])
        .update(&numbers)
        .update(&packed);
    let mut out = object[..offset as usize].to_vec();
    out.extend_from_slice(&packed);
    out.extend_from_slice(&numbers);
    out.extend_from_slice(hasher.finalize().as_bytes());
    out.extend_from_slice(b"SRJEND\r\n");
    out
}

#[test]
fn an_index_that_unpacks_to_more_than_it_says_is_refused() {
    let (object, _) = build(&sample(), 1);
    let bomb = with_index(&object, &vec![0; 64 << 20], Some(100));
    assert_eq!(replay(&bomb), Err(JournalErrorKind::Corrupt));
    let unsorted = with_index(&object, &raw_index(&object), None);
    assert_eq!(replay(&unsorted), Ok(model(&sample())), "the forger works");
    let mut index = raw_index(&object);
    let entry = index.len() - 24;
    index[entry..entry + 8].fill(0);
    let unsorted = with_index(&object, &index, None);
    assert_eq!(replay(&unsorted), Err(JournalErrorKind::Corrupt));
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

    /// A liar with right checksums: the index is rewritten at random, packed and sealed again.
    #[test]
    fn a_hostile_index_with_right_checksums_never_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        lie in prop::option::of(any::<u64>()),
    ) {
        let (object, _) = build(&sample(), 1);
        let mut index = raw_index(&object);
        for (at, value) in edits {
            let at = at.index(index.len());
            index[at] = value;
        }
        let object = with_index(&object, &index, lie);
        if let Ok(reader) = JournalReader::open(object) {
            for (n, size) in SIZES.iter().enumerate() {
                let mut end = 0;
                for entry in reader.entries(n) {
                    prop_assert!(entry.offset >= end && entry.offset + entry.length <= *size);
                    end = entry.offset + entry.length;
                    let _ = reader.read_entry(entry);
                }
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        for version in [1, 2, 3] {
            let mut object = b"SRJRNL\r\n".to_vec();
            object.extend_from_slice(&[version, 0, 0, 0]);
            object.extend_from_slice(&bytes);
            prop_assert!(replay(&object).is_err());
        }
    }
}
