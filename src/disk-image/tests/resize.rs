//! Resizing and metadata: the same bytes with another end, a power cut shows the old or the new
//! size, other implementations agree.

mod support;

use std::fs;
use std::sync::Arc;

use disk_image::{Access, CreateOptions, Details, DiskImage, ErrorKind, Format, MemoryFile};
use support::{
    Random, create_in_memory, file_name, open_bytes, options, qemu_img, qemu_name, random_write,
    read_all, text,
};

const MIB: u64 = 1 << 20;

const FORMATS: [(Format, Option<u32>, u32); 7] = [
    (Format::Raw, None, 512),
    (Format::VhdFixed, None, 512),
    (Format::VhdDynamic, Some(512 << 10), 512),
    (Format::VhdDynamic, None, 512),
    (Format::VhdxFixed, Some(1 << 20), 512),
    (Format::VhdxDynamic, Some(1 << 20), 4096),
    (Format::VhdxDynamic, Some(8 << 20), 512),
];

fn make(format: Format, block_size: Option<u32>, sector: u32, size: u64) -> CreateOptions {
    CreateOptions {
        logical_sector_size: sector,
        ..options(format, size, block_size)
    }
}

fn reopen(format: Format, bytes: &[u8], sector: u32) -> (DiskImage, Arc<MemoryFile>) {
    if format == Format::Raw {
        let file = Arc::new(MemoryFile::from_bytes(bytes.to_vec()));
        let image = DiskImage::open_raw(Box::new(file.clone()), Access::ReadWrite, sector);
        return (image.unwrap(), file);
    }
    open_bytes(bytes, Access::ReadWrite).unwrap()
}

#[test]
fn a_disk_grows_and_shrinks_with_its_bytes() {
    for (format, block_size, sector) in FORMATS {
        for seed in 0..3 {
            let mut random = Random(seed);
            let step = u64::from(sector);
            let start = 2 * MIB + step * random.below(200);
            let (mut image, mut file) = create_in_memory(&make(format, block_size, sector, start));
            let mut model = vec![0; start as usize];
            for round in 0..14 {
                let what = format!("{format:?} {block_size:?} seed {seed} round {round}");
                let size = step * (1 + random.below(9 * MIB / step));
                let smaller_over_data = model.iter().skip(size as usize).any(|byte| *byte != 0);
                let result = image.resize(size);
                if smaller_over_data {
                    assert_eq!(result.unwrap_err().kind(), ErrorKind::OutOfRange, "{what}");
                    let length = model.len();
                    model[size as usize..].fill(0);
                    image
                        .write_at(&vec![0; length - size as usize], size)
                        .unwrap();
                    image.resize(size).unwrap();
                } else {
                    result.unwrap_or_else(|e| panic!("{what}: {e}"));
                }
                model.resize(size as usize, 0);
                assert_eq!(image.virtual_size(), size);
                assert!(
                    read_all(&image) == model,
                    "{what}: after the resize to {size}"
                );
                for _ in 0..3 {
                    let (offset, data) = random_write(&mut random, size);
                    image.write_at(&data, offset).unwrap();
                    model[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
                }
                if random.below(2) == 0 {
                    image.close().unwrap();
                    (image, file) = reopen(format, &file.durable_bytes(), sector);
                    assert!(read_all(&image) == model, "{what}: opened again");
                }
            }
            image.close().unwrap();
        }
    }
}

#[test]
fn qemu_agrees_with_a_resized_disk() {
    let folder = tempfile::tempdir().unwrap();
    for (format, block_size, sector) in FORMATS {
        if sector != 512 {
            continue;
        }
        let path = folder.path().join(file_name(format));
        let _ = fs::remove_file(&path);
        let mut image =
            DiskImage::create(&path, &make(format, block_size, sector, 5 * MIB)).unwrap();
        image.write_at(&[7; 100_000], 4 * MIB).unwrap();
        // More table than fits where it is, for a VHD; several blocks more for a VHDX.
        for size in [300 * MIB + 512, 5 * MIB, 40 * MIB + 1024] {
            image.resize(size).unwrap();
        }
        image.write_at(&[9; 70_000], 39 * MIB).unwrap();
        let model = read_all(&image);
        image.close().unwrap();
        if qemu_name(format) == "vhdx" {
            let report = qemu_img(&["check", "-f", "vhdx", text(&path)]);
            assert!(report.contains("No errors were found"), "{report}");
        }
        let raw = folder.path().join("out.bin");
        qemu_img(&[
            "convert",
            "-f",
            qemu_name(format),
            "-O",
            "raw",
            text(&path),
            text(&raw),
        ]);
        assert!(fs::read(&raw).unwrap() == model, "{format:?}");
    }
}

#[test]
fn a_vhdx_table_that_is_too_small_moves() {
    // 1 MiB blocks: a table region of 1 MiB is enough for 128 GiB.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wide.vhdx");
    let mut image =
        DiskImage::create(&path, &options(Format::VhdxDynamic, 1 << 30, Some(1 << 20))).unwrap();
    image.write_at(&[3; 4096], 5 * MIB).unwrap();
    image.resize(1 << 40).unwrap();
    image.write_at(&[4; 4096], (1 << 40) - 4096).unwrap();
    image.close().unwrap();
    let image = DiskImage::open(&path, Access::ReadOnly).unwrap();
    let mut seen = [0; 4096];
    for (at, value) in [(5 * MIB, 3), ((1 << 40) - 4096, 4)] {
        image.read_at(&mut seen, at).unwrap();
        assert_eq!(seen, [value; 4096]);
    }
    let Details::Vhdx(vhdx) = image.info().unwrap().details else {
        panic!("a VHDX")
    };
    assert!(vhdx.warnings.is_empty(), "{:?}", vhdx.warnings);
    assert!(qemu_img(&["check", "-f", "vhdx", text(&path)]).contains("No errors were found"));
}

#[test]
fn a_cut_during_a_resize_shows_the_old_or_the_new_size() {
    for (format, block_size, sector) in FORMATS {
        for (old, new) in [
            (3 * MIB, 9 * MIB + 4096),
            (9 * MIB + 4096, 3 * MIB),
            (2 * MIB, 200 * MIB),
        ] {
            if new > 100 * MIB && !matches!(format, Format::VhdDynamic) {
                continue;
            }
            let (mut image, file) = create_in_memory(&make(format, block_size, sector, old));
            image.write_at(&[5; 300_000], 2 * MIB - 300_000).unwrap();
            image.close().unwrap();
            let before = file.durable_bytes();
            let resize = |limit: Option<u64>| {
                let (mut image, file) = reopen(format, &before, sector);
                if let Some(limit) = limit {
                    file.fail_after(file.operations() + limit);
                }
                let done = image.resize(new).is_ok();
                (file, done)
            };
            let (file, done) = resize(None);
            assert!(done);
            let total = file.operations();
            let mut random = Random(old);
            for limit in 0..=total {
                let (file, done) = resize(Some(limit));
                let ways = [
                    file.durable_bytes(),
                    file.bytes(),
                    file.after_power_cut(|_, length| {
                        (random.below(length as u64 / 512 + 1) * 512) as usize
                    }),
                ];
                for (way, bytes) in ways.into_iter().enumerate() {
                    let what = format!("{format:?} {old} to {new}, cut {limit}, way {way}");
                    let (mut image, _) = match format {
                        // A raw image has no other size than its file's.
                        Format::Raw => reopen(format, &bytes, sector),
                        _ => open_bytes(&bytes, Access::ReadWrite)
                            .unwrap_or_else(|e| panic!("{what}: {e}")),
                    };
                    let size = image.virtual_size();
                    assert!(size == new || (size == old && !done), "{what}: {size}");
                    let mut seen = vec![1; 2 * MIB as usize];
                    image.read_at(&mut seen, 0).unwrap();
                    let data = 2 * MIB as usize - 300_000;
                    assert!(seen[..data].iter().all(|byte| *byte == 0), "{what}");
                    assert!(seen[data..].iter().all(|byte| *byte == 5), "{what}");
                    image.write_at(&[1; 5000], size - 5000).unwrap();
                    image.close().unwrap();
                }
            }
        }
    }
}

#[test]
fn metadata_of_a_vhdx_is_changed_and_unknown_items_stay() {
    let (image, file) = create_in_memory(&options(Format::VhdxDynamic, 4 * MIB, Some(1 << 20)));
    image.close().unwrap();
    // An optional item of somebody else, in the table and in the region.
    let mut bytes = file.durable_bytes();
    let table = 2 << 20;
    bytes[table + 10] = 6;
    let entry = table + 32 + 5 * 32;
    bytes[entry..entry + 16].fill(0xab);
    bytes[entry + 16..entry + 20].copy_from_slice(&(100_u32 << 10).to_le_bytes());
    bytes[entry + 20..entry + 24].copy_from_slice(&5_u32.to_le_bytes());
    bytes[table + (100 << 10)..table + (100 << 10) + 5].copy_from_slice(b"hello");
    let (mut image, file) = open_bytes(&bytes, Access::ReadWrite).unwrap();
    let id = uuid::Uuid::from_u128(77);
    image.set_id(id).unwrap();
    image.set_physical_sector_size(512).unwrap();
    image.set_leave_blocks_allocated(true).unwrap();
    image.resize(6 * MIB).unwrap();
    assert_eq!(
        image.set_physical_sector_size(1024).unwrap_err().kind(),
        ErrorKind::OutOfRange
    );
    // Dropped without closing: what was set went through the log and is durable.
    drop(image);
    let (image, _) = open_bytes(&file.durable_bytes(), Access::ReadOnly).unwrap();
    let info = image.info().unwrap();
    assert_eq!(
        (
            info.id,
            info.physical_sector_size,
            info.virtual_size,
            info.format
        ),
        (Some(id), 512, 6 * MIB, Format::VhdxFixed)
    );
    let Details::Vhdx(vhdx) = info.details else {
        panic!("a VHDX")
    };
    let kept = vhdx
        .metadata
        .iter()
        .find(|item| item.name.is_none())
        .unwrap();
    assert_eq!((kept.offset, kept.length), (100 << 10, 5));
    let after = file.durable_bytes();
    assert_eq!(
        &after[table + (100 << 10)..table + (100 << 10) + 5],
        b"hello"
    );
    let (mut image, _) = create_in_memory(&options(Format::VhdFixed, 4 * MIB, None));
    assert_eq!(image.set_id(id).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn every_legal_block_size_is_created_and_read_by_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.vhdx");
    for power in 20..=28 {
        for sector in [512, 4096] {
            let _ = fs::remove_file(&path);
            let create = CreateOptions {
                physical_sector_size: 4096,
                ..make(Format::VhdxDynamic, Some(1 << power), sector, 600 * MIB)
            };
            let mut image = DiskImage::create(&path, &create).unwrap();
            for at in [0, 300 * MIB, 599 * MIB] {
                image.write_at(&[power as u8; 4096], at).unwrap();
            }
            image.close().unwrap();
            let image = DiskImage::open(&path, Access::ReadOnly).unwrap();
            assert_eq!(
                (image.block_size(), image.logical_sector_size()),
                (Some(1 << power), sector)
            );
            // qemu 7 reads sectors of 512 bytes only.
            if sector == 512 {
                assert!(
                    qemu_img(&["check", "-f", "vhdx", text(&path)])
                        .contains("No errors were found")
                );
            }
        }
    }
}
