//! Real-world images that stray from the specification: one test for each row of the table in
//! `src/deviations.md` that has no test elsewhere. The images are made by hand from good ones.

mod support;

use std::sync::Arc;

use disk_image::{
    Access, Details, DiskImage, ErrorKind, Format, ImageFile as _, LogInfo, MemoryFile,
};
use support::{create_in_memory, open_bytes, options, read_all};

const MIB: usize = 1 << 20;
const SIZE: u64 = 3 << 20;
const HEADERS: [usize; 2] = [64 << 10, 128 << 10];
const REGIONS: [usize; 2] = [192 << 10, 256 << 10];
const BAT: usize = 3 * MIB;

/// A closed image with data in its three blocks (first half of each).
fn sample(format: Format, block_size: u32) -> (Vec<u8>, Vec<u8>) {
    let (mut image, file) = create_in_memory(&options(format, SIZE, Some(block_size)));
    for i in 0..3_u8 {
        image
            .write_at(&[i + 1; 500_000], u64::from(i) << 20)
            .unwrap();
    }
    let model = read_all(&image);
    image.close().unwrap();
    (file.durable_bytes(), model)
}

fn vhdx() -> (Vec<u8>, Vec<u8>) {
    sample(Format::VhdxDynamic, 1 << 20)
}

fn crc(bytes: &mut [u8], at: usize, length: usize) {
    let part = &mut bytes[at..at + length];
    part[4..8].fill(0);
    let value = crc32c::crc32c(part);
    part[4..8].copy_from_slice(&value.to_le_bytes());
}

fn vhd_sum(bytes: &mut [u8], at: usize, length: usize, field: usize) {
    let part = &mut bytes[at..at + length];
    part[field..field + 4].fill(0);
    let sum = part
        .iter()
        .fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    part[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
}

fn sequence(bytes: &[u8], slot: usize) -> u64 {
    u64::from_le_bytes(
        bytes[HEADERS[slot] + 8..HEADERS[slot] + 16]
            .try_into()
            .unwrap(),
    )
}

/// Reads as `model`, can be written, and is clean and still reads right afterwards.
fn works(bytes: &[u8], model: &[u8], what: &str) -> Vec<String> {
    let (image, file) =
        open_bytes(bytes, Access::ReadOnly).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(read_all(&image) == model, "{what}");
    let warnings = match image.info().unwrap().details {
        Details::Vhdx(vhdx) => vhdx.warnings,
        _ => Vec::new(),
    };
    assert_eq!(file.operations(), 0, "{what}: reading writes nothing");
    let (mut image, file) =
        open_bytes(bytes, Access::ReadWrite).unwrap_or_else(|e| panic!("{what}: {e}"));
    let mut model = model.to_vec();
    for at in [100_usize, (2 << 20) - 3000, (3 << 20) - 9000] {
        image.write_at(&[0xd7; 6000], at as u64).unwrap();
        model[at..at + 6000].fill(0xd7);
    }
    image.close().unwrap();
    let (image, _) = open_bytes(&file.durable_bytes(), Access::ReadOnly)
        .unwrap_or_else(|e| panic!("{what}, written: {e}"));
    assert!(read_all(&image) == model, "{what}, written");
    if let Details::Vhdx(vhdx) = image.info().unwrap().details {
        assert!(
            vhdx.warnings.is_empty(),
            "{what}: strict in writing: {:?}",
            vhdx.warnings
        );
    }
    warnings
}

fn refused(bytes: &[u8], what: &str) -> String {
    let error = open_bytes(bytes, Access::ReadOnly)
        .err()
        .unwrap_or_else(|| panic!("{what} opened"));
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    error.to_string()
}

#[test]
fn one_broken_header_is_passed_over() {
    let (good, model) = vhdx();
    for slot in 0..2 {
        let mut bad = good.clone();
        bad[HEADERS[slot] + 5] ^= 1;
        works(&bad, &model, "wrong checksum");
        bad[HEADERS[slot]..HEADERS[slot] + 4096].fill(0);
        works(&bad, &model, "empty slot");
    }
}

#[test]
fn headers_of_the_same_sequence_number_are_read_unless_their_logs_differ() {
    let (good, model) = vhdx();
    let number = sequence(&good, 0).max(sequence(&good, 1));
    let mut bad = good.clone();
    for at in HEADERS {
        bad[at + 8..at + 16].copy_from_slice(&number.to_le_bytes());
        crc(&mut bad, at, 4096);
    }
    works(&bad, &model, "equal numbers");
    bad[HEADERS[1] + 16..HEADERS[1] + 32].fill(0x5a);
    crc(&mut bad, HEADERS[1], 4096);
    let warnings = works(&bad, &model, "equal numbers, other guids");
    assert!(warnings[0].contains("same sequence number"), "{warnings:?}");
    bad[HEADERS[1] + 48..HEADERS[1] + 64].fill(0x77);
    crc(&mut bad, HEADERS[1], 4096);
    assert!(refused(&bad, "two logs").contains("another log"));
}

#[test]
fn a_log_that_lies_nowhere_matters_only_when_it_is_pending() {
    let (good, model) = vhdx();
    for (offset, length) in [
        (0_u64, 0_u32),
        (1 << 20, 0),
        ((1 << 20) + 4096, 1 << 20),
        (1 << 40, 1 << 20),
        (1 << 20, 1 << 30),
    ] {
        let mut bad = good.clone();
        for at in HEADERS {
            bad[at + 68..at + 72].copy_from_slice(&length.to_le_bytes());
            bad[at + 72..at + 80].copy_from_slice(&offset.to_le_bytes());
            crc(&mut bad, at, 4096);
        }
        works(&bad, &model, &format!("log of {length} at {offset}"));
        for at in HEADERS {
            bad[at + 48..at + 64].fill(0x77);
            crc(&mut bad, at, 4096);
        }
        assert!(
            open_bytes(&bad, Access::ReadOnly).is_err(),
            "pending log of {length} at {offset}"
        );
    }
}

#[test]
fn reserved_bytes_are_ignored() {
    let (good, model) = vhdx();
    let mut bad = good.clone();
    for at in HEADERS {
        bad[at + 80..at + 4096].fill(0x33);
        crc(&mut bad, at, 4096);
    }
    for at in REGIONS {
        bad[at + 12..at + 16].fill(0x33);
        // Flags of the first entry: bits above "required".
        bad[at + 16 + 28 + 1] = 0x33;
        crc(&mut bad, at, 64 << 10);
    }
    // Metadata table: reserved words; entries' second reserved word.
    bad[2 * MIB + 8..2 * MIB + 10].fill(0x33);
    bad[2 * MIB + 12..2 * MIB + 32].fill(0x33);
    bad[2 * MIB + 32 + 28..2 * MIB + 64].fill(0x33);
    // Reserved bits 3 to 19 of the BAT entries.
    for block in 0..3 {
        bad[BAT + block * 8] |= 0xf8;
        bad[BAT + block * 8 + 1] = 0xff;
    }
    works(&bad, &model, "reserved bytes");
}

#[test]
fn region_tables_that_differ_or_break_are_read_and_repaired() {
    let (good, model) = vhdx();
    for slot in 0..2 {
        let mut bad = good.clone();
        bad[REGIONS[slot] + 300] ^= 1;
        let warnings = works(&bad, &model, "broken region table");
        assert!(warnings[0].contains("region table"), "{warnings:?}");
    }
    // A writer moved the BAT and was cut off between the two copies: both places hold the table.
    let mut bad = good.clone();
    let place = bad.len() as u64;
    bad.extend_from_slice(&good[BAT..BAT + MIB]);
    let entry = REGIONS[0] + 16;
    bad[entry + 16..entry + 24].copy_from_slice(&place.to_le_bytes());
    crc(&mut bad, REGIONS[0], 64 << 10);
    let warnings = works(&bad, &model, "region tables differ");
    assert!(warnings[0].contains("differs"), "{warnings:?}");
}

#[test]
fn an_optional_region_of_somebody_else_is_left_alone() {
    let (good, model) = vhdx();
    let mut bad = good.clone();
    let place = bad.len() as u64;
    bad.extend_from_slice(&[0x6b; MIB]);
    for at in REGIONS {
        bad[at + 8] = 3;
        let entry = at + 16 + 64;
        bad[entry..entry + 16].fill(0xab);
        bad[entry + 16..entry + 24].copy_from_slice(&place.to_le_bytes());
        bad[entry + 24..entry + 28].copy_from_slice(&(MIB as u32).to_le_bytes());
        crc(&mut bad, at, 64 << 10);
    }
    works(&bad, &model, "optional region");
    let (mut image, file) = open_bytes(&bad, Access::ReadWrite).unwrap();
    image.resize(9 << 20).unwrap();
    image.write_at(&[1; 100], 8 << 20).unwrap();
    image.close().unwrap();
    assert!(
        file.durable_bytes()[place as usize..place as usize + MIB]
            .iter()
            .all(|byte| *byte == 0x6b)
    );
}

/// One log entry that replaces one sector, with everything that can be chosen about it.
fn log_entry(
    guid: [u8; 16],
    number: u64,
    tail: u32,
    lengths: u64,
    place: u64,
    sector: &[u8],
) -> Vec<u8> {
    let mut entry = vec![0; 8192];
    entry[..4].copy_from_slice(b"loge");
    entry[8..12].copy_from_slice(&8192_u32.to_le_bytes());
    entry[12..16].copy_from_slice(&tail.to_le_bytes());
    entry[16..24].copy_from_slice(&number.to_le_bytes());
    entry[24..28].copy_from_slice(&1_u32.to_le_bytes());
    entry[32..48].copy_from_slice(&guid);
    entry[48..56].copy_from_slice(&lengths.to_le_bytes());
    entry[56..64].copy_from_slice(&lengths.to_le_bytes());
    entry[64..68].copy_from_slice(b"desc");
    entry[68..72].copy_from_slice(&sector[4092..]);
    entry[72..80].copy_from_slice(&sector[..8]);
    entry[80..88].copy_from_slice(&place.to_le_bytes());
    entry[88..96].copy_from_slice(&number.to_le_bytes());
    entry[4096..8192].copy_from_slice(sector);
    entry[4096..4100].copy_from_slice(b"data");
    entry[4100..4104].copy_from_slice(&((number >> 32) as u32).to_le_bytes());
    entry[8188..8192].copy_from_slice(&(number as u32).to_le_bytes());
    crc(&mut entry, 0, 8192);
    entry
}

/// Place in the ring, sequence number, tail, whether it belongs to this log, BAT sector.
type Logged<'a> = (usize, u64, u32, bool, &'a [u8]);

/// The sample with a log that was never applied: its table lies in the log only. `entries` are
/// (place in the ring, sequence number, tail, belongs to this log, BAT sector).
fn with_log(entries: &[Logged<'_>]) -> (Vec<u8>, Vec<u8>) {
    let (mut bytes, model) = vhdx();
    let guid = [0x42; 16];
    let length = bytes.len() as u64;
    bytes[BAT..BAT + 4096].fill(0);
    for at in HEADERS {
        bytes[at + 48..at + 64].copy_from_slice(&guid);
        crc(&mut bytes, at, 4096);
    }
    for (place, number, tail, own, sector) in entries {
        let id = if *own { guid } else { [0x13; 16] };
        let entry = log_entry(id, *number, *tail, length, BAT as u64, sector);
        for (i, part) in entry.chunks(4096).enumerate() {
            let at = MIB + (place + i * 4096) % MIB;
            bytes[at..at + 4096].copy_from_slice(part);
        }
    }
    (bytes, model)
}

#[test]
fn logs_that_wrap_begin_anywhere_and_hold_stale_entries_are_replayed() {
    let (good, model) = vhdx();
    let table = &good[BAT..BAT + 4096];
    let zero = vec![0; 4096];
    let last = MIB - 4096;
    let cases: [(&str, Vec<Logged<'_>>, u64); 5] = [
        (
            "in the middle",
            vec![(40 << 10, 9, 40 << 10, true, table)],
            1,
        ),
        (
            "over the end of the ring",
            vec![(last, 9, last as u32, true, table)],
            1,
        ),
        (
            "two entries over the end",
            vec![
                (last - 8192, 8, last as u32 - 8192, true, &zero),
                (last, 9, last as u32 - 8192, true, table),
            ],
            2,
        ),
        // What lies ahead of the head is from the round before, or from another log.
        (
            "stale entries ahead",
            vec![
                (0, 9, 0, true, table),
                (8192, 3, 8192, true, &zero),
                (16_384, 99, 16_384, false, &zero),
            ],
            1,
        ),
        (
            "an older sequence beside",
            vec![
                (64 << 10, 5, 64 << 10, true, &zero),
                (0, 20, 0, true, table),
            ],
            1,
        ),
    ];
    for (what, entries, count) in cases {
        let (bytes, _) = with_log(&entries);
        works(&bytes, &model, what);
        let (image, _) = open_bytes(&bytes, Access::ReadOnly).unwrap();
        let Details::Vhdx(vhdx) = image.info().unwrap().details else {
            panic!("a VHDX")
        };
        let LogInfo::Replayed { entries, .. } = vhdx.log else {
            panic!("{what}: {:?}", vhdx.log)
        };
        assert_eq!(entries, count, "{what}");
    }
    // A torn entry behind the newest one: its second sector is of another age.
    let (mut bytes, _) = with_log(&[(0, 9, 0, true, table), (8192, 10, 8192, true, &zero)]);
    bytes[MIB + 8192 + 4096 + 4] ^= 0xff;
    works(&bytes, &model, "torn newest entry");
}

#[test]
fn a_file_shorter_than_its_log_says_is_refused() {
    let (good, _) = vhdx();
    let (mut bytes, _) = with_log(&[(0, 9, 0, true, &good[BAT..BAT + 4096])]);
    bytes.truncate(bytes.len() - 4096);
    assert!(
        refused(&bytes, "truncated").contains("had"),
        "said with both lengths"
    );
}

#[test]
fn blocks_that_are_not_there_may_name_any_place() {
    let (good, model) = vhdx();
    for state in 0..=3_u64 {
        let mut bad = good.clone();
        let mut expected = model.clone();
        let entry = 0xffff_ffff_fff0_0000_u64 | state;
        bad[BAT + 8..BAT + 16].copy_from_slice(&entry.to_le_bytes());
        expected[1 << 20..2 << 20].fill(0);
        works(&bad, &expected, &format!("state {state} with a place"));
        // The place of another block.
        let other = u64::from_le_bytes(bad[BAT..BAT + 8].try_into().unwrap()) & !7 | state;
        bad[BAT + 8..BAT + 16].copy_from_slice(&other.to_le_bytes());
        works(
            &bad,
            &expected,
            &format!("state {state} with another block's place"),
        );
    }
}

#[test]
fn a_last_block_that_ends_where_the_disk_ends_is_read() {
    // VHDX: a disk of 2.5 blocks, the file cut where the disk's data ends.
    let size = (2 << 20) + 300 * 512;
    for (format, block_size) in [
        (Format::VhdxDynamic, 1 << 20),
        (Format::VhdDynamic, 2 << 20),
    ] {
        let (mut image, file) = create_in_memory(&options(format, size, Some(block_size)));
        image.write_at(&vec![7; 4096], 0).unwrap();
        image.write_at(&vec![9; 300 * 512], 2 << 20).unwrap();
        let model = read_all(&image);
        image.close().unwrap();
        let mut bytes = file.durable_bytes();
        let used = 300 * 512;
        if format == Format::VhdxDynamic {
            bytes.truncate(bytes.len() - (block_size as usize - used));
        } else {
            let footer = bytes[bytes.len() - 512..].to_vec();
            bytes.truncate(bytes.len() - 512 - (block_size as usize - used));
            bytes.extend_from_slice(&footer);
        }
        let (image, _) = open_bytes(&bytes, Access::ReadOnly).unwrap();
        assert!(read_all(&image) == model, "{format:?}");
        let (mut image, file) = open_bytes(&bytes, Access::ReadWrite).unwrap();
        image.resize(size + (5 << 20)).unwrap();
        image.write_at(&[3; 5000], size + (4 << 20)).unwrap();
        let mut model = model;
        model.resize(size as usize + (5 << 20), 0);
        model[size as usize + (4 << 20)..size as usize + (4 << 20) + 5000].fill(3);
        assert!(read_all(&image) == model, "{format:?} grown");
        image.close().unwrap();
        let (image, _) = open_bytes(&file.durable_bytes(), Access::ReadOnly).unwrap();
        assert!(read_all(&image) == model, "{format:?} grown and closed");
    }
}

#[test]
fn optional_metadata_of_others_may_say_anything() {
    let (good, model) = vhdx();
    let table = 2 * MIB;
    let mut bad = good.clone();
    bad[table + 10] = 8;
    for (i, (offset, length)) in [(5_u32, 9_u32), (u32::MAX, u32::MAX), (64 << 10, 8)]
        .into_iter()
        .enumerate()
    {
        let entry = table + 32 + (5 + i) * 32;
        bad[entry..entry + 16].fill(0xab);
        bad[entry + 16..entry + 20].copy_from_slice(&offset.to_le_bytes());
        bad[entry + 20..entry + 24].copy_from_slice(&length.to_le_bytes());
        // The same id three times, one of them a user item.
        bad[entry + 24] = (i == 1).into();
    }
    works(&bad, &model, "odd optional items");
    bad[table + 32 + 6 * 32 + 24] |= 4;
    let error = open_bytes(&bad, Access::ReadOnly).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn footers_of_511_bytes_and_padded_files_are_read_and_put_right() {
    let (good, model) = sample(Format::VhdFixed, 2 << 20);
    works(&good[..good.len() - 1], &model, "footer of 511 bytes");
    for padding in [512, 4096, 65_024] {
        let mut padded = good.clone();
        padded.resize(good.len() + padding, 0);
        let file = Arc::new(MemoryFile::from_bytes(padded));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.vhd");
        std::fs::write(&path, file.bytes()).unwrap();
        let image = DiskImage::open(&path, Access::ReadOnly).unwrap();
        assert!(read_all(&image) == model, "padding of {padding}");
        // Opened for writing, the footer is at the end again.
        DiskImage::open(&path, Access::ReadWrite)
            .unwrap()
            .close()
            .unwrap();
        assert_eq!(
            file.len().unwrap() - padding as u64,
            std::fs::metadata(&path).unwrap().len()
        );
    }
    let (good, model) = sample(Format::VhdDynamic, 512 << 10);
    works(
        &good[..good.len() - 1],
        &model,
        "dynamic, footer of 511 bytes",
    );
    let mut bad = good.clone();
    bad[..512].fill(0);
    works(&bad, &model, "copy at the start missing");
    let mut longer = good.clone();
    longer.resize(good.len() + 3000, 0x11);
    works(&longer, &model, "dynamic with a tail of garbage");
}

#[test]
fn a_geometry_that_cannot_be_meant_gives_way_to_the_current_size() {
    let (good, model) = sample(Format::VhdFixed, 2 << 20);
    for (cylinders, what) in [(65_535_u16, "maximum"), (9000, "larger than the file")] {
        let mut bad = good.clone();
        let at = bad.len() - 512;
        bad[at + 28..at + 32].copy_from_slice(b"vpc ");
        bad[at + 56..at + 58].copy_from_slice(&cylinders.to_be_bytes());
        bad[at + 58..at + 60].copy_from_slice(&[16, 255]);
        vhd_sum(&mut bad, at, 512, 64);
        works(&bad, &model, what);
    }
}

#[test]
fn a_vhd_table_may_be_larger_than_the_disk_needs() {
    let (good, model) = sample(Format::VhdDynamic, 512 << 10);
    let mut bad = good.clone();
    // 128 entries fit into the table's sector; what they say behind the disk's end means nothing.
    bad[512 + 28..512 + 32].copy_from_slice(&128_u32.to_be_bytes());
    bad[1536 + 4 * 6..1536 + 4 * 9].fill(0x44);
    vhd_sum(&mut bad, 512, 1024, 36);
    works(&bad, &model, "larger table");
    let (mut image, _) = open_bytes(&bad, Access::ReadWrite).unwrap();
    image.resize(5 << 20).unwrap();
    let mut model = model;
    model.resize(5 << 20, 0);
    assert!(
        read_all(&image) == model,
        "what lay in the table doesn't come to life"
    );
}
