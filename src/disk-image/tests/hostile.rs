//! Broken and made-up images: a clear error or a correct reading, never a panic, a loop, or
//! memory beyond what the file itself has.

mod support;

use std::sync::Arc;

use disk_image::{
    Access, Details, DiskImage, ErrorKind, Format, HeaderInfo, LogInfo, live_allocation_of,
};
use proptest::prelude::*;
use support::{Random, create_in_memory, open_bytes, open_shared, options, qemu_img, text};

const SIZE: u64 = 3 << 20;

/// Small images with data; the VHDX also with a log to replay.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let make = |format, block_size, close: bool| {
        let (mut image, file) = create_in_memory(&options(format, SIZE, Some(block_size)));
        for i in 0..3_u64 {
            image.write_at(&[i as u8 + 1; 5000], i << 20).unwrap();
            image.flush().unwrap();
        }
        if close {
            image.close().unwrap();
        }
        file.durable_bytes()
    };
    vec![
        ("clean VHDX", make(Format::VhdxDynamic, 1 << 20, true)),
        ("VHDX with a log", make(Format::VhdxDynamic, 1 << 20, false)),
        ("dynamic VHD", make(Format::VhdDynamic, 512 << 10, true)),
        ("fixed VHD", make(Format::VhdFixed, 512 << 10, true)),
    ]
}

/// Where structures lie; flips elsewhere only change data.
fn structures(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    const MIB: usize = 1 << 20;
    if bytes.starts_with(b"vhdxfile") {
        return vec![
            0..600,
            64 << 10..(64 << 10) + 128,
            128 << 10..(128 << 10) + 128,
            192 << 10..(192 << 10) + 128,
            256 << 10..(256 << 10) + 128,
            MIB..MIB + (24 << 10),
            2 * MIB..2 * MIB + 256,
            2 * MIB + (64 << 10)..2 * MIB + (64 << 10) + 64,
            3 * MIB..3 * MIB + 64,
        ];
    }
    vec![0..512 + 1024 + 64, bytes.len() - 512..bytes.len()]
}

/// Does with an image all that one can do with it. Errors are fine.
fn use_up(bytes: &[u8]) {
    let bytes = Arc::new(bytes.to_vec());
    if let Ok((image, file)) = open_shared(&bytes, Access::ReadOnly) {
        let mut buffer = vec![0; 100_000];
        let size = image.virtual_size();
        for at in [0, 1 << 20, size / 2, size.saturating_sub(100_000)] {
            let _ = image.read_at(&mut buffer, at);
        }
        let _ = image.allocated(0..size.min(1 << 40));
        let _ = image.info();
        let _ = disk_image::partitions::read(&image);
        assert_eq!(file.operations(), 0, "read-only opening must not write");
    }
    if let Ok((mut image, _)) = open_shared(&bytes, Access::ReadWrite) {
        let _ = image.write_at(&[9; 3000], 1 << 20);
        let _ = image.write_at(&[9; 3000], image.virtual_size().saturating_sub(3000));
        let _ = image.close();
    }
    let file = disk_image::MemoryFile::from_bytes(bytes);
    let _ = live_allocation_of(&file);
}

#[test]
fn flipped_bytes_never_panic_or_loop() {
    for (name, good) in samples() {
        let places = structures(&good);
        let mut random = Random(7);
        for case in 0..600 {
            let mut bad = good.clone();
            for _ in 0..1 + random.below(3) {
                let range = places[random.below(places.len() as u64) as usize].clone();
                let at = range.start + random.below(range.len() as u64) as usize;
                bad[at] = if random.below(2) == 0 {
                    bad[at] ^ 1 << random.below(8)
                } else {
                    random.next() as u8
                };
            }
            if case % 10 == 0 {
                bad.truncate(random.below(bad.len() as u64) as usize);
            }
            // Checksums hide most fields from chance, so half of the cases have them put right.
            if case % 2 == 0 {
                put_checksums_right(&mut bad);
            }
            use_up(&bad);
        }
        assert!(open_bytes(&good, Access::ReadOnly).is_ok(), "{name}");
    }
}

/// Recomputes the checksums of VHDX structures and VHD footers, as a forger would.
fn put_checksums_right(bytes: &mut [u8]) {
    let mut crc = |at: usize, length: usize| {
        if let Some(part) = bytes.get_mut(at..at + length) {
            part[4..8].fill(0);
            let value = crc32c::crc32c(part);
            part[4..8].copy_from_slice(&value.to_le_bytes());
        }
    };
    for at in [64 << 10, 128 << 10] {
        crc(at, 4096);
    }
    for at in [192 << 10, 256 << 10] {
        crc(at, 64 << 10);
    }
    for at in [1 << 20, (1 << 20) + (8 << 10), (1 << 20) + (16 << 10)] {
        crc(at, 8 << 10);
    }
    let end = bytes.len().saturating_sub(512);
    for (at, length, field) in [(0, 512, 64), (512, 1024, 36), (end, 512, 64)] {
        if let Some(part) = bytes.get_mut(at..at + length)
            && (part.starts_with(b"conectix") || part.starts_with(b"cxsparse"))
        {
            part[field..field + 4].fill(0);
            let sum = part
                .iter()
                .fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
            part[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
        }
    }
}

#[test]
fn truncated_images_give_errors() {
    for (name, good) in samples() {
        for length in [
            0,
            1,
            7,
            8,
            511,
            512,
            4096,
            65_536,
            70_000,
            300_000,
            1 << 20,
            (3 << 20) + 5,
        ] {
            let bad = &good[..length.min(good.len())];
            use_up(bad);
            if name != "dynamic VHD" {
                assert!(
                    open_bytes(bad, Access::ReadOnly).is_err(),
                    "{name} cut to {length}"
                );
            }
        }
    }
}

/// What an image says when one of its checksummed structures was damaged.
fn noticed(bytes: &[u8]) -> bool {
    match open_bytes(bytes, Access::ReadOnly) {
        Err(_) => true,
        Ok((image, _)) => match image.info().unwrap().details {
            Details::Vhdx(vhdx) => {
                !vhdx.warnings.is_empty()
                    || vhdx
                        .headers
                        .iter()
                        .any(|h| matches!(h, HeaderInfo::Invalid(_)))
            }
            Details::Vhd(vhd) => vhd.footer_from_copy,
            Details::Raw => false,
        },
    }
}

#[test]
fn every_flip_in_a_checksum_or_what_it_covers_is_detected() {
    let mut random = Random(11);
    let samples = samples();
    let vhdx: [(usize, usize); 4] = [
        (64 << 10, 4096),
        (128 << 10, 4096),
        (192 << 10, 65_536),
        (256 << 10, 65_536),
    ];
    for (_, good) in &samples[..2] {
        for (at, length) in vhdx {
            let bits = (32..64)
                .chain((0..40).map(|_| random.below(length as u64 * 8) as usize))
                .collect::<Vec<_>>();
            for bit in bits {
                let mut bad = good.clone();
                bad[at + bit / 8] ^= 1 << (bit % 8);
                assert!(noticed(&bad), "bit {bit} of the structure at {at}");
            }
        }
    }
    for (name, good) in &samples[2..] {
        let end = good.len() - 512;
        let header = if *name == "dynamic VHD" {
            512..512 + 1024
        } else {
            end..end + 512
        };
        for at in header.chain(end..end + 512) {
            let mut bad = good.clone();
            bad[at] ^= 1 << random.below(8);
            assert!(noticed(&bad), "{name}: byte {at}");
        }
    }
}

#[test]
fn a_flip_in_the_newest_log_entry_is_detected() {
    let good = samples()[1].1.clone();
    let (image, _) = open_bytes(&good, Access::ReadOnly).unwrap();
    let Details::Vhdx(vhdx) = image.info().unwrap().details else {
        panic!("a VHDX")
    };
    let LogInfo::Replayed {
        sequence_number, ..
    } = vhdx.log
    else {
        panic!("a log to replay: {:?}", vhdx.log)
    };
    assert_eq!(sequence_number, 3);
    // Entries of 8 KiB follow each other from the start of the log: the third one is the newest.
    let newest = (1 << 20) + 2 * (8 << 10);
    assert_eq!(good[newest..newest + 4], *b"loge");
    let checksum = newest + 4..newest + 8;
    let flushed_offset = newest + 48..newest + 64;
    let data = newest + 4096 + 8..newest + 8192 - 4;
    for at in checksum.chain(flushed_offset).chain(data.step_by(397)) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        let error = open_bytes(&bad, Access::ReadOnly).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(
            error
                .to_string()
                .starts_with("log entry 3 at 1040 KiB: checksum is 0x"),
            "{error}"
        );
    }
}

#[test]
fn broken_images_are_named_with_place_and_cause() {
    let good = samples()[0].1.clone();
    let refuse = |changes: &[(usize, &[u8])], right: bool| {
        let mut bad = good.clone();
        for (at, bytes) in changes {
            bad[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        if right {
            put_checksums_right(&mut bad);
        }
        let error = open_bytes(&bad, Access::ReadOnly).unwrap_err();
        (error.kind(), error.to_string())
    };
    let (r1, r2, bat) = (192 << 10, 256 << 10, 3 << 20);
    let (kind, text) = refuse(&[(r1 + 100, &[1]), (r2 + 100, &[1])], false);
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(
        text.starts_with("region table 1 at 192 KiB: checksum is 0x")
            && text.contains(", computed 0x"),
        "{text}"
    );

    let (kind, text) = refuse(
        &[((64 << 10) + 100, &[1]), ((128 << 10) + 100, &[1])],
        false,
    );
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(
        text.starts_with("header 1 at 64 KiB: checksum is 0x"),
        "{text}"
    );

    // A third region that nobody knows, first optional, then required.
    let region = [
        &[0xab; 16][..],
        &(64_u64 << 20).to_le_bytes(),
        &(1_u32 << 20).to_le_bytes(),
        &1_u32.to_le_bytes(),
    ]
    .concat();
    let (kind, text) = refuse(
        &[
            (r1 + 8, &[3]),
            (r1 + 80, &region),
            (r2 + 8, &[3]),
            (r2 + 80, &region),
        ],
        true,
    );
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(
        text.contains("region abababab-abab-abab-abab-abababababab is unknown and required"),
        "{text}"
    );

    // Two blocks in one place; a block behind the end; one in the log; states that can't be.
    let entry = good[bat..bat + 8].to_vec();
    let (kind, text) = refuse(&[(bat + 8, &entry)], false);
    assert_eq!(
        (
            kind,
            text.contains("BAT entry 1 (block 1)") && text.contains("it overlaps block 0")
        ),
        (ErrorKind::Corrupt, true),
        "{text}"
    );
    let place = |mib: u64, state: u64| (mib << 20 | state).to_le_bytes();
    assert!(
        refuse(&[(bat, &place(1000, 6))], false)
            .1
            .contains("behind the end of the file")
    );
    assert!(
        refuse(&[(bat, &place(1, 6))], false)
            .1
            .contains("overlaps the log or a region")
    );
    assert!(
        refuse(&[(bat, &place(0, 6))], false)
            .1
            .contains("lies in the headers")
    );
    assert!(
        refuse(&[(bat, &place(5, 7))], false)
            .1
            .contains("partially present")
    );
    assert!(
        refuse(&[(bat, &place(5, 5))], false)
            .1
            .contains("state 5 is unknown")
    );

    let (kind, text) = refuse(&[(0, b"vhdxfilf")], false);
    assert_eq!(kind, ErrorKind::NotAnImage, "{text}");

    // Metadata: block size, a differencing disk, an unknown required item.
    let items = (2 << 20) + (64 << 10);
    assert!(
        refuse(&[(items, &3_u32.to_le_bytes())], false)
            .1
            .contains("block size 3 is no power of two")
    );
    let (kind, text) = refuse(&[(items + 4, &[2])], false);
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(text.contains("parent locator is missing"), "{text}");
    let table = 2 << 20;
    assert!(
        refuse(&[(table + 32, &[0xcd; 16])], false)
            .1
            .contains("is unknown and required")
    );
}

#[test]
fn a_differencing_vhd_that_names_no_parent_is_refused() {
    let mut bytes = samples()[2].1.clone();
    let end = bytes.len() - 512;
    bytes[end + 63] = 4;
    bytes[63] = 4;
    put_checksums_right(&mut bytes);
    let error = open_bytes(&bytes, Access::ReadOnly).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Parent);
    assert!(error.to_string().contains("differencing"), "{error}");
}

#[test]
fn a_broken_vhd_footer_is_replaced_by_its_copy() {
    let (_, good) = samples().swap_remove(2);
    let mut bad = good.clone();
    let end = bad.len() - 512;
    bad[end..].fill(0);
    let (image, _) = open_bytes(&bad, Access::ReadOnly).unwrap();
    let mut seen = [0; 5000];
    image.read_at(&mut seen, 1 << 20).unwrap();
    assert_eq!(seen, [2; 5000]);
    assert!(noticed(&bad));
}

#[test]
fn an_announced_log_without_entries_is_empty_not_broken() {
    // What qemu leaves when it is cut off between the header and its first entry.
    let mut bytes = samples()[0].1.clone();
    for slot in [64 << 10, 128 << 10] {
        bytes[slot + 48..slot + 64].fill(0x77);
    }
    put_checksums_right(&mut bytes);
    let (image, _) = open_bytes(&bytes, Access::ReadOnly).unwrap();
    let Details::Vhdx(vhdx) = image.info().unwrap().details else {
        panic!("a VHDX")
    };
    assert_eq!(vhdx.log, LogInfo::Empty);
    // The owner's table is complete, so a live reading ignores the log anyway.
    let live = live_allocation_of(&disk_image::MemoryFile::from_bytes(bytes)).unwrap();
    assert_eq!(live.allocated, image.allocated(0..SIZE));
}

#[test]
fn a_guest_cannot_change_how_its_disk_is_read() {
    let folder = tempfile::tempdir().unwrap();
    // The content of a disk that looks like a VHDX, inside of a fixed VHD and a raw image.
    let inner = samples()[0].1.clone();
    let size = inner.len() as u64;
    for (name, format) in [("disk.vhd", Format::VhdFixed), ("disk.raw", Format::Raw)] {
        let path = folder.path().join(name);
        let mut image = DiskImage::create(&path, &options(format, size, None)).unwrap();
        image.write_at(&inner, 0).unwrap();
        image.close().unwrap();
        let image = DiskImage::open(&path, Access::ReadOnly).unwrap();
        assert_eq!((image.format(), image.virtual_size()), (format, size));
    }
    // A VHDX whose guest wrote a VHD footer to the end of the last block.
    let path = folder.path().join("disk.vhdx");
    let mut image =
        DiskImage::create(&path, &options(Format::VhdxFixed, 1 << 20, Some(1 << 20))).unwrap();
    let footer = disk_image::vhd::fixed::footer(1 << 20, uuid::Uuid::nil(), 0).unwrap();
    image.write_at(&footer, (1 << 20) - 512).unwrap();
    image.close().unwrap();
    assert_eq!(
        DiskImage::open(&path, Access::ReadOnly).unwrap().format(),
        Format::VhdxFixed
    );
    assert!(qemu_img(&["info", text(&path)]).contains("vhdx"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn made_up_structures_with_right_checksums_never_panic(
        which in 0_usize..4,
        changes in proptest::collection::vec((0_usize..9, 0_usize..128, any::<u64>(), 0_usize..4), 1..6),
    ) {
        use std::sync::LazyLock;
        static SAMPLES: LazyLock<Vec<(&str, Vec<u8>)>> = LazyLock::new(samples);
        let mut bytes = SAMPLES[which].1.clone();
        let places = structures(&bytes);
        for (place, at, value, width) in changes {
            let range = &places[place % places.len()];
            let width = 1 << width;
            let at = range.start + at % (range.len() - 8) / width * width;
            bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        put_checksums_right(&mut bytes);
        use_up(&bytes);
    }
}
