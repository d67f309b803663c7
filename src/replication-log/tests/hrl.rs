//! MS-HRL files: what is written is read, and nothing else is.

use std::io::Cursor;

use proptest::prelude::*;
use replication_log::hrl::{HrlErrorKind, HrlInfo, HrlReader, HrlWriter};
use uuid::Uuid;

const DISK: u64 = 1 << 20;
/// 2026-01-02T03:04:05Z
const TIME: i64 = 1_767_323_045_000;

fn info() -> HrlInfo {
    HrlInfo {
        id: Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
        previous_id: Uuid::from_u128(7),
        data_write_guid: Uuid::from_u128(9),
        disk_size_bytes: DISK,
        created_unix_ms: TIME,
    }
}

fn log(writes: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut writer = HrlWriter::create(Cursor::new(Vec::new()), info()).unwrap();
    for (offset, data) in writes {
        writer.append(*offset, data, TIME).unwrap();
    }
    let size = writer.size_bytes();
    let file = writer.close().unwrap().into_inner();
    assert!(file.len() as u64 >= size);
    file
}

type Writes = Vec<(u64, Vec<u8>)>;

fn read(file: &[u8]) -> Result<(HrlInfo, Writes), HrlErrorKind> {
    let reader = HrlReader::open(file.to_vec()).map_err(|error| error.kind())?;
    let mut writes = Vec::new();
    for entry in reader.entries() {
        let data = reader.read(entry).map_err(|error| error.kind())?;
        writes.push((entry.offset, data));
    }
    Ok((reader.info().clone(), writes))
}

fn many(count: u64) -> Vec<(u64, Vec<u8>)> {
    (0..count)
        .map(|n| (n * 512, vec![n as u8 ^ 0x5a; 1 + (n as usize * 37) % 700]))
        .collect()
}

#[test]
fn a_closed_log_gives_back_every_write_in_order_over_several_groups() {
    for count in [1, 126, 127, 128, 254, 300] {
        let writes = many(count);
        assert_eq!(read(&log(&writes)), Ok((info(), writes)), "{count} writes");
    }
}

#[test]
fn a_log_without_writes_is_closed_and_empty() {
    assert_eq!(read(&log(&[])), Ok((info(), Vec::new())));
}

#[test]
fn the_header_has_the_published_layout() {
    let file = log(&many(130));
    assert_eq!(&file[0..8], b"msctlog ");
    assert_eq!(file[8..12], 0x0002_0000u32.to_le_bytes());
    assert_eq!(file[12..16], 820_638_245u32.to_le_bytes()); // seconds since 2000
    assert_eq!(&file[16..18], b"ct");
    assert_eq!(file[24..32], DISK.to_le_bytes());
    assert_eq!(file[44..52], (file.len() as u64).to_le_bytes());
    assert_eq!(file[56..60], 4096u32.to_le_bytes());
    assert_eq!(file[60..64], [0x33, 0x22, 0x11, 0x00]); // GUIDs are little endian on disk
    assert_eq!(file[96..104], 130u64.to_le_bytes());
    // Checksum: one's complement of the byte sum without the field.
    let sum: u32 = (0..4096)
        .filter(|at| !(40..44).contains(at))
        .map(|at| u32::from(file[at]))
        .sum();
    assert_eq!(file[40..44], (!sum).to_le_bytes());
    // The last metadata block ends the file, and points back by the length of its group.
    let last = &file[file.len() - 4096..];
    assert_eq!(last[8..12], 3u32.to_le_bytes());
    let back = u64::from_le_bytes(last[0..8].try_into().unwrap());
    let first = &file[file.len() - 4096 - back as usize..];
    assert_eq!(first[0..8], 0u64.to_le_bytes());
    assert_eq!(first[8..12], 127u32.to_le_bytes());
}

#[test]
fn a_log_whose_writer_was_cut_off_is_refused_as_not_closed() {
    let mut shared = Cursor::new(Vec::new());
    let path = tempfile::NamedTempFile::new().unwrap();
    let mut writer = HrlWriter::create(path.reopen().unwrap(), info()).unwrap();
    for (offset, data) in many(200) {
        writer.append(offset, &data, TIME).unwrap();
    }
    drop(writer);
    std::io::copy(&mut path.reopen().unwrap(), &mut shared).unwrap();
    assert_eq!(read(shared.get_ref()), Err(HrlErrorKind::NotClosed));
}

#[test]
fn an_empty_first_metadata_block_behind_the_header_is_accepted() {
    // As in the published example: the chain begins with a block without entries.
    let plain = log(&[(4096, b"abc".to_vec())]);
    let mut file = plain[..4096].to_vec();
    let mut empty = vec![0u8; 4096];
    empty[12..16].copy_from_slice(&(!0u32).to_le_bytes());
    file.extend_from_slice(&empty);
    file.extend_from_slice(b"abc");
    let mut block = plain[4099..].to_vec();
    block[0..8].copy_from_slice(&4099u64.to_le_bytes());
    seal(&mut block, 12);
    file.extend_from_slice(&block);
    let eol = file.len() as u64;
    file[44..52].copy_from_slice(&eol.to_le_bytes());
    let mut header = file[..4096].to_vec();
    seal(&mut header, 40);
    file[..4096].copy_from_slice(&header);
    assert_eq!(read(&file), Ok((info(), vec![(4096, b"abc".to_vec())])));
}

fn seal(raw: &mut [u8], at: usize) {
    raw[at..at + 4].fill(0);
    let sum: u32 = raw.iter().map(|byte| u32::from(*byte)).sum();
    raw[at..at + 4].copy_from_slice(&(!sum).to_le_bytes());
}

#[test]
fn writes_outside_the_disk_are_refused() {
    let mut writer = HrlWriter::create(Cursor::new(Vec::new()), info()).unwrap();
    for (offset, length) in [(DISK, 1), (DISK - 1, 2), (u64::MAX, 2), (0, 0)] {
        let error = writer.append(offset, &vec![0; length], TIME).unwrap_err();
        assert_eq!(error.kind(), HrlErrorKind::Invalid);
    }
}

#[test]
fn every_flipped_byte_is_detected_or_harmless() {
    let writes = many(130);
    let file = log(&writes);
    let good = read(&file).unwrap();
    for at in 0..file.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bad = file.clone();
            bad[at] ^= flip;
            if let Ok(seen) = read(&bad) {
                assert_eq!(seen, good, "byte {at} ^ {flip:#x}");
            }
        }
    }
}

#[test]
fn every_cut_is_detected() {
    let file = log(&many(130));
    for length in (0..file.len()).step_by(61) {
        assert!(read(&file[..length]).is_err(), "cut to {length}");
    }
}

#[test]
fn the_golden_file_of_version_2_is_still_read_and_written() {
    let golden = include_bytes!("golden/log-v2.hrl");
    let writes = vec![(0, b"first".to_vec()), (65536, vec![0xa5; 700])];
    assert_eq!(read(golden), Ok((info(), writes.clone())));
    assert!(log(&writes) == golden);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_writes_survive_the_round_trip(
        writes in prop::collection::vec((0..DISK - 4096, prop::collection::vec(any::<u8>(), 1..4096)), 0..200)
    ) {
        prop_assert_eq!(read(&log(&writes)), Ok((info(), writes)));
    }

    #[test]
    fn hostile_files_never_panic(
        count in 0u64..140,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        reseal in any::<bool>(),
    ) {
        let mut file = log(&many(count));
        for (at, value) in edits {
            let at = at.index(file.len().min(8192));
            file[at] = value;
        }
        if reseal {
            // A liar computes right checksums over wrong numbers.
            let mut header = file[..4096].to_vec();
            seal(&mut header, 40);
            file[..4096].copy_from_slice(&header);
            let last = file.len() - 4096;
            let mut block = file[last..].to_vec();
            seal(&mut block, 12);
            file[last..].copy_from_slice(&block);
        }
        let _ = read(&file);
    }
}
