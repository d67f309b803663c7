//! MS-HRL files: what is written is read, and nothing else is.

use std::io::Cursor;

use proptest::prelude::*;
use replication_log::hrl::{HrlErrorKind, HrlInfo, HrlReader, HrlWriter};
use uuid::Uuid;

const DISK: u64 = 1 << 20;
/// 2026-01-02T03:04:05Z
const TIME: i64 = 1_767_323_045_000;
/// Where the data of the first group begins in what we write.
const DATA: usize = 8192;

fn info() -> HrlInfo {
    HrlInfo {
        id: Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
        previous_id: Uuid::from_u128(7),
        data_write_guid: Uuid::from_u128(9),
        created_unix_ms: TIME,
    }
}

fn writer() -> HrlWriter<Cursor<Vec<u8>>> {
    HrlWriter::create(Cursor::new(Vec::new()), info(), DISK).unwrap()
}

fn log(writes: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut writer = writer();
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
        assert!(!entry.is_zero() || data.iter().all(|byte| *byte == 0));
        writes.push((entry.offset, data));
    }
    Ok((reader.info().clone(), writes))
}

fn many(count: u64) -> Vec<(u64, Vec<u8>)> {
    (0..count)
        .map(|n| (n * 512, vec![n as u8 ^ 0x5a; 1 + (n as usize * 37) % 700]))
        .collect()
}

fn seal(raw: &mut [u8], at: usize) {
    raw[at..at + 4].fill(0);
    let sum: u32 = raw.iter().map(|byte| u32::from(*byte)).sum();
    raw[at..at + 4].copy_from_slice(&(!sum).to_le_bytes());
}

/// Changes the header of a log and computes its checksum again.
fn with_header(file: &[u8], change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut file = file.to_vec();
    change(&mut file[..4096]);
    seal(&mut file[..4096], 40);
    file
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
fn the_file_has_the_published_layout() {
    let file = log(&many(130));
    assert_eq!(&file[0..8], b"msctlog ");
    assert_eq!(file[8..12], 0x0002_0000u32.to_le_bytes());
    assert_eq!(file[12..16], 820_638_245u32.to_le_bytes()); // seconds since 2000
    assert_eq!(&file[16..18], b"ct");
    assert_eq!(file[24..32], [0; 8], "size at creation: none");
    assert_eq!(file[32..40], (file.len() as u64).to_le_bytes());
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
    // A block without entries behind the header, exactly as the published example prints it.
    let mut empty = [0u8; 4096];
    empty[12..16].copy_from_slice(&4_294_967_295u32.to_le_bytes());
    assert_eq!(file[4096..8192], empty);
    // The last metadata block ends the file, and points back by the length of its group.
    let last = &file[file.len() - 4096..];
    assert_eq!(last[8..12], 3u32.to_le_bytes());
    let back = u64::from_le_bytes(last[0..8].try_into().unwrap());
    let first = &file[file.len() - 4096 - back as usize..];
    assert_eq!(first[8..12], 127u32.to_le_bytes());
}

/// Numbers out of the example of the specification, section 3: not ours, so they prove the layout.
#[test]
fn the_published_example_verifies() {
    let mut block = vec![0u8; 4096];
    block[0..8].copy_from_slice(&324_096u64.to_le_bytes());
    block[8..12].copy_from_slice(&58u32.to_le_bytes());
    block[12..16].copy_from_slice(&4_294_966_991u32.to_le_bytes());
    // The oldest entries of the second block: offset, length, time, checksum. No data checksum.
    let entries: [(u64, u32, u32, u32); 7] = [
        (3_626_348_544, 4096, 539_842_381, 4_294_966_608),
        (8_026_886_144, 4096, 539_842_381, 4_294_966_558),
        (3_699_798_016, 4096, 539_842_381, 4_294_966_571),
        (3_700_805_632, 4096, 539_842_381, 4_294_966_460),
        (4_111_884_288, 4096, 539_842_381, 4_294_966_674),
        (139_466_752, 2048, 539_842_381, 4_294_966_933),
        (147_937_280, 2048, 539_842_381, 4_294_966_740),
    ];
    for (n, (offset, length, time, sum)) in (0..58).map(|n| (n, entries[n % 7])) {
        let raw = &mut block[32 + n * 32..][..32];
        raw[0..8].copy_from_slice(&offset.to_le_bytes());
        raw[8..12].copy_from_slice(&sum.to_le_bytes());
        raw[12..16].copy_from_slice(&length.to_le_bytes());
        raw[16..20].copy_from_slice(&time.to_le_bytes());
        raw[20] = 1;
    }
    let data: usize = (0..58).map(|n| entries[n % 7].1 as usize).sum();
    // Where the example has its 320,000 bytes of data we have fewer, so one number is made anew.
    let back = data as u64 + 4096;
    let published = block.clone();
    block[0..8].copy_from_slice(&back.to_le_bytes());
    seal(&mut block[..32], 12);

    let mut file = log(&[])[..DATA].to_vec();
    file.resize(DATA + data, 0xa7);
    file.extend_from_slice(&block);
    let eol = file.len() as u64;
    let file = with_header(&file, |header| {
        header[32..40].copy_from_slice(&eol.to_le_bytes());
        header[44..52].copy_from_slice(&eol.to_le_bytes());
        header[96..104].copy_from_slice(&58u64.to_le_bytes());
    });
    let reader = HrlReader::open(file.clone()).unwrap();
    assert_eq!(reader.entries().len(), 58);
    assert_eq!(reader.entries()[1].offset, 8_026_886_144);
    assert_eq!(reader.entries()[5].length, 2048);
    assert_eq!(reader.read(&reader.entries()[5]).unwrap(), [0xa7; 2048]);
    reader.check_fits(1 << 40).unwrap();
    assert_eq!(
        reader.check_fits(1 << 32).unwrap_err().kind(),
        HrlErrorKind::Corrupt
    );

    // With the published distance the checksum is right too, only the chain leads out of our file.
    let mut file = file;
    let at = file.len() - 4096;
    file[at..].copy_from_slice(&published);
    let error = HrlReader::open(file).err().unwrap();
    assert!(error.to_string().contains("chain"), "{error}");
}

#[test]
fn quirks_of_real_files_are_taken_and_their_reasons_kept() {
    let writes = many(3);
    let file = log(&writes);
    let good = Ok((info(), writes.clone()));
    let nul = with_header(&file, |header| header[7] = 0);
    assert_eq!(read(&nul), good, "cookie padded with NUL");
    let minor = with_header(&file, |header| header[8] = 1);
    assert_eq!(read(&minor), good, "a later minor version");
    let flags = with_header(&file, |header| header[108] = 3);
    assert_eq!(read(&flags), good, "flags");
    let mut longer = file.clone();
    longer.resize(file.len() + 70_000, 0);
    assert_eq!(read(&longer), good, "preallocated");

    let last = file.len() - 4096;
    let mut unsummed = file.clone();
    for n in 0..3 {
        let raw = &mut unsummed[last + 32 + n * 32..][..32];
        raw[21..25].fill(0);
        seal(raw, 8);
    }
    assert_eq!(read(&unsummed), good, "no data checksums");
    let mut early = file.clone();
    for n in 0..3 {
        let raw = &mut early[last + 32 + n * 32..][..32];
        let data_checksum: [u8; 4] = raw[21..25].try_into().unwrap();
        raw[21..25].fill(0);
        seal(raw, 8);
        raw[21..25].copy_from_slice(&data_checksum);
    }
    assert_eq!(read(&early), good, "entries summed before their data");
    let mut traced = file.clone();
    let raw = &mut traced[last + 32..][..32];
    raw[25] = 1;
    seal(raw, 8);
    assert_eq!(read(&traced), good, "location");
}

#[test]
fn small_metadata_blocks_are_read() {
    // 64 bytes: one entry a block, written by hand.
    let plain = log(&[(4096, b"abc".to_vec()), (9, b"defg".to_vec())]);
    let entries = plain.len() - 4096 + 32;
    let mut file = plain[..4096].to_vec();
    for (n, data) in [&b"abc"[..], b"defg"].into_iter().enumerate() {
        file.extend_from_slice(data);
        let mut block = [0u8; 64];
        let back = if n == 0 { 0 } else { data.len() as u64 + 64 };
        block[0..8].copy_from_slice(&back.to_le_bytes());
        block[8] = 1;
        seal(&mut block[..32], 12);
        block[32..].copy_from_slice(&plain[entries + n * 32..][..32]);
        file.extend_from_slice(&block);
    }
    let eol = file.len() as u64;
    let file = with_header(&file, |header| {
        header[44..52].copy_from_slice(&eol.to_le_bytes());
        header[56..60].copy_from_slice(&64u32.to_le_bytes());
    });
    let expected = vec![(4096, b"abc".to_vec()), (9, b"defg".to_vec())];
    assert_eq!(read(&file), Ok((info(), expected)));
}

#[test]
fn what_can_not_be_trusted_is_refused_and_told_apart() {
    let file = log(&many(3));
    let cases: [(&str, usize, u8, HrlErrorKind); 5] = [
        ("the writer's error code", 52, 5, HrlErrorKind::WriterFailed),
        ("another file type", 104, 1, HrlErrorKind::Unsupported),
        ("format 1", 10, 1, HrlErrorKind::Unsupported),
        ("another cookie", 0, b'M', HrlErrorKind::Corrupt),
        ("tiny metadata blocks", 57, 0, HrlErrorKind::Corrupt),
    ];
    for (what, at, value, kind) in cases {
        let bad = with_header(&file, |header| header[at] = value);
        assert_eq!(read(&bad), Err(kind), "{what}");
    }
    let open = with_header(&file, |header| header[44..52].fill(0));
    assert_eq!(read(&open), Err(HrlErrorKind::NotClosed));
    let mut other = file.clone();
    let raw = file.len() - 4096 + 32;
    other[raw + 20] = 2;
    seal(&mut other[raw..raw + 32], 8);
    assert_eq!(read(&other), Err(HrlErrorKind::Unsupported), "operation");
}

#[test]
fn zeroes_are_holes_in_the_file_and_known_without_reading() {
    let file = tempfile::tempfile().unwrap();
    let size = 64u64 << 30;
    let mut writer = HrlWriter::create(file, info(), size).unwrap();
    writer.append(0, b"first", TIME).unwrap();
    writer.zero(1 << 30, 100 << 20, TIME).unwrap();
    writer.append(5, b"last", TIME).unwrap();
    let file = writer.close().unwrap();
    #[cfg(unix)]
    {
        let metadata = file.metadata().unwrap();
        let stored = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        assert!(stored < 1 << 20, "{stored} bytes are stored");
    }
    let reader = HrlReader::open(file).unwrap();
    let zero: u64 = reader
        .entries()
        .iter()
        .filter(|entry| entry.is_zero())
        .map(|entry| u64::from(entry.length))
        .sum();
    assert_eq!(zero, 100 << 20);
    let ends = [0, reader.entries().len() - 1].map(|n| reader.entries()[n]);
    assert_eq!(reader.read(&ends[0]).unwrap(), b"first");
    assert_eq!(reader.read(&ends[1]).unwrap(), b"last");
    let middle = reader.read(&reader.entries()[3]).unwrap();
    assert!(middle.iter().all(|byte| *byte == 0));
}

#[test]
fn logs_of_one_disk_form_a_chain() {
    let first = info();
    let next = HrlInfo {
        id: Uuid::from_u128(11),
        previous_id: first.id,
        ..first.clone()
    };
    assert!(next.follows(&first));
    assert!(!first.follows(&next));
    let lost = HrlInfo {
        id: Uuid::nil(),
        ..first.clone()
    };
    let begins = HrlInfo {
        previous_id: Uuid::nil(),
        ..first
    };
    assert!(!begins.follows(&lost), "the first log follows none");
}

#[test]
fn a_log_whose_writer_was_cut_off_is_refused_as_not_closed() {
    let path = tempfile::NamedTempFile::new().unwrap();
    let mut writer = HrlWriter::create(path.reopen().unwrap(), info(), DISK).unwrap();
    for (offset, data) in many(200) {
        writer.append(offset, &data, TIME).unwrap();
    }
    drop(writer);
    let bytes = std::fs::read(path.path()).unwrap();
    assert_eq!(read(&bytes), Err(HrlErrorKind::NotClosed));
}

#[test]
fn writes_outside_the_disk_are_refused() {
    let mut writer = writer();
    for (offset, length) in [(DISK, 1), (DISK - 1, 2), (u64::MAX, 2), (0, 0)] {
        let error = writer.append(offset, &vec![0; length], TIME).unwrap_err();
        assert_eq!(error.kind(), HrlErrorKind::Invalid);
        let error = writer.zero(offset, length as u64, TIME).unwrap_err();
        assert_eq!(error.kind(), HrlErrorKind::Invalid);
    }
}

#[test]
fn every_flipped_byte_is_detected_or_harmless() {
    let file = log(&many(130));
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
fn the_golden_file_is_read_and_written_byte_for_byte() {
    let golden = include_bytes!("golden/log-v2.hrl");
    let writes = vec![(0, b"first".to_vec()), (65536, vec![0xa5; 700])];
    assert_eq!(read(golden), Ok((info(), writes.clone())));
    assert!(log(&writes) == golden);
}

#[test]
fn logs_of_the_first_release_are_still_read() {
    // Metadata summed as a whole, data right behind the header, location 1, the disk's size in the header.
    let golden = include_bytes!("golden/log-first-release.hrl");
    let writes = vec![(0, b"first".to_vec()), (65536, vec![0xa5; 700])];
    assert_eq!(read(golden), Ok((info(), writes)));
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
        let last = file.len() - 4096;
        for (at, value) in edits {
            // The structures, not the data.
            let at = at.index(4096 + 4096);
            file[if at < 4096 { at } else { last + at - 4096 }] = value;
        }
        if reseal {
            // A liar computes right checksums over wrong numbers.
            for entry in 0..127 {
                seal(&mut file[last + 32 + entry * 32..][..32], 8);
            }
            seal(&mut file[last..last + 32], 12);
            seal(&mut file[..4096], 40);
        }
        if let Ok(reader) = HrlReader::open(file) {
            for entry in reader.entries() {
                let _ = reader.read(entry);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_log(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
        let mut file = b"msctlog \x00\x00\x02\x00".to_vec();
        file.extend_from_slice(&bytes);
        prop_assert!(read(&file).is_err());
    }
}
