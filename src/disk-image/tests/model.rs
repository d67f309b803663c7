//! Every format against a plain vector: random reads, writes, flushes and reopenings.

mod support;

use disk_image::{Access, CreateOptions, DiskImage, ErrorKind, Format};
use proptest::prelude::*;
use support::{Random, create_in_memory, open_bytes, options, random_write, read_all};

const FORMATS: [(Format, Option<u32>); 6] = [
    (Format::Raw, None),
    (Format::VhdFixed, None),
    (Format::VhdDynamic, Some(512 << 10)),
    (Format::VhdDynamic, None),
    (Format::VhdxFixed, Some(1 << 20)),
    (Format::VhdxDynamic, Some(1 << 20)),
];

fn open(
    format: Format,
    bytes: &[u8],
    access: Access,
) -> (DiskImage, std::sync::Arc<disk_image::MemoryFile>) {
    if format == Format::Raw {
        let file = std::sync::Arc::new(disk_image::MemoryFile::from_bytes(bytes.to_vec()));
        return (
            DiskImage::open_raw(Box::new(file.clone()), access, 512).unwrap(),
            file,
        );
    }
    open_bytes(bytes, access).unwrap()
}

#[test]
fn random_writes_read_back_after_any_reopening() {
    for (format, block_size) in FORMATS {
        for seed in 0..3 {
            let size = (5 << 20) + 512 * 9;
            let mut random = Random(seed);
            let (mut image, mut file) = create_in_memory(&options(format, size, block_size));
            let mut model = vec![0; size as usize];
            for step in 0..80 {
                let (offset, data) = random_write(&mut random, size);
                image.write_at(&data, offset).unwrap();
                model[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
                let from = random.below(size) as usize;
                let mut part = vec![0xaa; (random.below(2 << 20) as usize).min(model.len() - from)];
                image.read_at(&mut part, from as u64).unwrap();
                assert!(
                    part == model[from..from + part.len()],
                    "{format:?} seed {seed} step {step}"
                );
                match random.below(12) {
                    0 => image.flush().unwrap(),
                    1 => {
                        image.close().unwrap();
                        (image, file) = open(format, &file.durable_bytes(), Access::ReadWrite);
                    }
                    _ => {}
                }
            }
            image.close().unwrap();
            let (image, _) = open(format, &file.durable_bytes(), Access::ReadOnly);
            assert!(read_all(&image) == model, "{format:?} seed {seed}");
            assert_allocation_covers(&image, &model);
        }
    }
}

fn assert_allocation_covers(image: &DiskImage, model: &[u8]) {
    let extents = image.allocated(0..image.virtual_size());
    assert!(
        extents
            .windows(2)
            .all(|pair| pair[0].end() < pair[1].offset),
        "sorted, disjoint, joined"
    );
    let mut covered = vec![false; model.len()];
    for extent in &extents {
        covered[extent.offset as usize..extent.end() as usize].fill(true);
    }
    assert!(
        model
            .iter()
            .zip(&covered)
            .all(|(byte, covered)| *byte == 0 || *covered)
    );
    // A part of the disk gives the same answer, cut.
    let part = image.allocated(1000..image.virtual_size() / 2);
    assert!(
        part.iter()
            .all(|e| e.offset >= 1000 && e.end() <= image.virtual_size() / 2)
    );
    assert_eq!(
        part.iter().map(|e| e.length).sum::<u64>(),
        covered[1000..model.len() / 2]
            .iter()
            .filter(|c| **c)
            .count() as u64
    );
}

#[test]
fn more_changed_tables_than_the_log_holds_are_written_in_pieces() {
    // 1 MiB blocks: 4 KiB of table for 512 MiB, so 200 table sectors need about 100 GiB of disk.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wide.vhdx");
    let size = 200 << 30;
    let mut image =
        DiskImage::create(&path, &options(Format::VhdxDynamic, size, Some(1 << 20))).unwrap();
    let places: Vec<u64> = (0..size).step_by(512 << 20).collect();
    for (i, place) in places.iter().enumerate() {
        image.write_at(&[i as u8 | 1; 512], *place).unwrap();
    }
    // A second round wraps the ring of the log.
    image.flush().unwrap();
    for round in 1..4_u64 {
        for place in &places {
            image
                .write_at(&[round as u8; 512], place + (round << 20))
                .unwrap();
        }
        image.flush().unwrap();
    }
    drop(image);
    let image = DiskImage::open(&path, Access::ReadOnly).unwrap();
    for (i, place) in places.iter().enumerate() {
        let mut sector = [0; 512];
        image.read_at(&mut sector, *place).unwrap();
        assert_eq!(sector, [i as u8 | 1; 512]);
        image.read_at(&mut sector, place + (3 << 20)).unwrap();
        assert_eq!(sector, [3; 512]);
    }
}

#[test]
fn writes_outside_and_read_only_writes_are_refused() {
    for (format, block_size) in FORMATS {
        let (mut image, file) = create_in_memory(&options(format, 2 << 20, block_size));
        assert_eq!(
            image.write_at(&[1], 2 << 20).unwrap_err().kind(),
            ErrorKind::OutOfRange
        );
        assert_eq!(
            image.write_at(&[1, 2], (2 << 20) - 1).unwrap_err().kind(),
            ErrorKind::OutOfRange
        );
        assert_eq!(
            image.read_at(&mut [0; 2], u64::MAX).unwrap_err().kind(),
            ErrorKind::OutOfRange
        );
        image.write_at(&[], 2 << 20).unwrap();
        image.close().unwrap();
        let before = file.durable_bytes();
        let (mut image, file) = open(format, &before, Access::ReadOnly);
        assert_eq!(
            image.write_at(&[1], 0).unwrap_err().kind(),
            ErrorKind::ReadOnly
        );
        image.close().unwrap();
        assert_eq!((file.operations(), file.bytes() == before), (0, true));
    }
}

#[test]
fn sizes_that_a_format_cannot_express_are_refused() {
    let refused = |options: &CreateOptions| {
        let file = Box::new(disk_image::MemoryFile::new());
        DiskImage::create_file(file, options).unwrap_err().kind() == ErrorKind::OutOfRange
    };
    let vhdx = |size| CreateOptions::new(Format::VhdxDynamic, size);
    assert!(refused(&vhdx(0)));
    assert!(refused(&vhdx(513)));
    assert!(refused(&vhdx((64 << 40) + 512)));
    assert!(refused(&CreateOptions {
        block_size: Some(3 << 20),
        ..vhdx(1 << 20)
    }));
    assert!(refused(&CreateOptions {
        block_size: Some(512 << 20),
        ..vhdx(1 << 20)
    }));
    assert!(refused(&CreateOptions {
        logical_sector_size: 1024,
        ..vhdx(1 << 20)
    }));
    assert!(refused(&CreateOptions {
        logical_sector_size: 4096,
        ..vhdx(512)
    }));
    for format in [Format::VhdFixed, Format::VhdDynamic] {
        assert!(refused(&CreateOptions::new(format, (2040 << 30) + 512)));
        assert!(refused(&CreateOptions::new(format, 0)));
        assert!(refused(&CreateOptions {
            logical_sector_size: 4096,
            ..CreateOptions::new(format, 1 << 20)
        }));
    }
}

#[test]
fn the_guids_of_a_vhdx_tell_openings_and_changes() {
    let guids = |image: &DiskImage| {
        let disk_image::Details::Vhdx(vhdx) = image.info().unwrap().details else {
            panic!("a VHDX")
        };
        let disk_image::HeaderInfo::Valid {
            file_write_guid,
            data_write_guid,
            log_guid,
            ..
        } = vhdx.headers[vhdx.current_header].clone()
        else {
            panic!("a valid header")
        };
        (file_write_guid, data_write_guid, log_guid)
    };
    let (image, file) = create_in_memory(&options(Format::VhdxDynamic, 4 << 20, Some(1 << 20)));
    let new = guids(&image);
    image.close().unwrap();
    let (image, file) = open_bytes(&file.durable_bytes(), Access::ReadWrite).unwrap();
    image.close().unwrap();
    let (mut image, file) = open_bytes(&file.durable_bytes(), Access::ReadWrite).unwrap();
    assert_eq!(guids(&image), new, "nothing was changed");
    image.write_at(&[1], 0).unwrap();
    image.flush().unwrap();
    let (dirty, _) = open_bytes(&file.durable_bytes(), Access::ReadOnly).unwrap();
    assert!(!guids(&dirty).2.is_nil());
    image.close().unwrap();
    let (image, _) = open_bytes(&file.durable_bytes(), Access::ReadOnly).unwrap();
    let (file_write, data_write, log) = guids(&image);
    assert!(file_write != new.0 && data_write != new.1 && log.is_nil());
}

#[test]
fn sectors_never_written_in_a_vhd_block_read_as_zeroes_until_they_are() {
    let (mut image, file) =
        create_in_memory(&options(Format::VhdDynamic, 4 << 20, Some(512 << 10)));
    image.write_at(&[5; 512 << 10], 0).unwrap();
    image.close().unwrap();
    let mut bytes = file.durable_bytes();
    // Mark sectors 1 and 9 of the first block as never written; its bitmap follows header and table.
    let bitmap = 512 + 1024 + 512;
    assert_eq!(bytes[bitmap..bitmap + 2], [0xff, 0xff]);
    bytes[bitmap] = 0xbf;
    bytes[bitmap + 1] = 0xbf;
    let mut expected = vec![5; 512 << 10];
    expected[512..1024].fill(0);
    expected[9 * 512..10 * 512].fill(0);
    let (mut image, file) = open_bytes(&bytes, Access::ReadWrite).unwrap();
    let mut seen = vec![1; 512 << 10];
    image.read_at(&mut seen, 0).unwrap();
    assert!(seen == expected);
    image.write_at(&[7; 10], 600).unwrap();
    expected[600..610].fill(7);
    image.close().unwrap();
    let (image, _) = open_bytes(&file.durable_bytes(), Access::ReadOnly).unwrap();
    image.read_at(&mut seen, 0).unwrap();
    assert!(seen == expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_fixed_footer_says_what_it_was_made_for(sectors in 1_u64..=(64 << 40) / 512, id: u128, created: u64) {
        let id = uuid::Uuid::from_u128(id);
        let footer = disk_image::vhd::fixed::footer(sectors * 512, id, created).unwrap();
        let parsed = disk_image::vhd::fixed::parse_footer(&footer).unwrap();
        prop_assert_eq!((parsed.size, parsed.id), (sectors * 512, id));
    }
}
