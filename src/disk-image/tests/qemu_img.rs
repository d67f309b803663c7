//! Agreement with an independent implementation, in both directions.

mod support;

use std::fs;
use std::path::Path;

use disk_image::{Access, CreateOptions, Details, DiskImage, Extent, Format, live_allocation};
use support::{Random, file_name, options, qemu_img, qemu_name, random_write, read_all, text};

const SIZE: u64 = 21 << 20;

/// Writes a pattern with holes as a raw file; the size is no whole number of blocks.
fn raw_disk(path: &Path, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = vec![0; SIZE as usize + 512 * 7];
    for _ in 0..12 {
        let length = 1 + random.below(300_000);
        let offset = random.below(bytes.len() as u64 - length) as usize;
        let data = random.bytes(length as usize);
        bytes[offset..offset + data.len()].copy_from_slice(&data);
    }
    fs::write(path, &bytes).unwrap();
    bytes
}

fn convert_and_read(format: Format, qemu_options: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (raw, disk) = (
        folder.path().join("source.raw"),
        folder.path().join(file_name(format)),
    );
    let expected = raw_disk(&raw, 1);
    qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        qemu_name(format),
        "-o",
        qemu_options,
        text(&raw),
        text(&disk),
    ]);
    let before = fs::read(&disk).unwrap();

    let image = DiskImage::open(&disk, Access::ReadOnly).unwrap();
    assert_eq!(image.format(), format, "{qemu_options}");
    assert_eq!(
        image.virtual_size(),
        expected.len() as u64,
        "{qemu_options}"
    );
    assert!(read_all(&image) == expected, "{qemu_options}");
    let allocated = image.allocated(0..u64::MAX);
    let mut position = 0;
    for Extent { offset, length } in allocated.iter().copied().chain([Extent {
        offset: image.virtual_size(),
        length: 0,
    }]) {
        assert!(
            expected[position..offset as usize].iter().all(|b| *b == 0),
            "{qemu_options}: data outside of extents"
        );
        position = (offset + length) as usize;
    }
    let live = live_allocation(&disk).unwrap();
    assert_eq!(
        (live.allocated, Some(live.id), live.virtual_size),
        (allocated, image.id(), image.virtual_size())
    );
    assert!(
        fs::read(&disk).unwrap() == before,
        "reading must not change the file"
    );

    // And on: written by us on top of what qemu-img made.
    drop(image);
    let mut expected = expected;
    let mut image = DiskImage::open(&disk, Access::ReadWrite).unwrap();
    let mut random = Random(2);
    for _ in 0..40 {
        let (offset, data) = random_write(&mut random, image.virtual_size());
        image.write_at(&data, offset).unwrap();
        expected[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
    }
    image.close().unwrap();
    qemu_agrees(&disk, format, &expected);
}

fn qemu_agrees(disk: &Path, format: Format, expected: &[u8]) {
    if qemu_name(format) == "vhdx" {
        let report = qemu_img(&["check", "-f", "vhdx", text(disk)]);
        assert!(report.contains("No errors were found"), "{report}");
    }
    let raw = disk.with_extension("out");
    qemu_img(&[
        "convert",
        "-f",
        qemu_name(format),
        "-O",
        "raw",
        text(disk),
        text(&raw),
    ]);
    assert!(fs::read(&raw).unwrap() == expected, "{format:?}");
}

#[test]
fn vhdx_made_by_qemu_reads_and_writes_the_same() {
    for block_size in ["1M", "2M", "8M", "256M"] {
        for subformat in ["dynamic", "fixed"] {
            let format = if subformat == "fixed" {
                Format::VhdxFixed
            } else {
                Format::VhdxDynamic
            };
            if block_size == "256M" && subformat == "fixed" {
                continue; // A whole block of zeroes on disk proves nothing that 8M doesn't.
            }
            convert_and_read(
                format,
                &format!("subformat={subformat},block_size={block_size}"),
            );
        }
    }
    convert_and_read(
        Format::VhdxDynamic,
        "subformat=dynamic,block_size=1M,block_state_zero=off,log_size=2M",
    );
}

#[test]
fn vhd_made_by_qemu_reads_and_writes_the_same() {
    convert_and_read(Format::VhdFixed, "force_size=on,subformat=fixed");
    convert_and_read(Format::VhdDynamic, "force_size=on,subformat=dynamic");
}

#[test]
fn vhd_sized_by_geometry_has_the_size_that_qemu_sees() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.vhd");
    for subformat in ["fixed", "dynamic"] {
        let _ = fs::remove_file(&disk);
        qemu_img(&[
            "create",
            "-f",
            "vpc",
            "-o",
            &format!("subformat={subformat}"),
            text(&disk),
            "20M",
        ]);
        let image = DiskImage::open(&disk, Access::ReadOnly).unwrap();
        let shown = qemu_img(&["info", "-f", "vpc", text(&disk)]);
        assert!(
            shown.contains(&format!("({} bytes)", image.virtual_size())),
            "{shown}"
        );
    }
}

#[test]
fn disks_made_by_us_are_read_the_same_by_qemu() {
    let cases = [
        (Format::VhdxDynamic, Some(1 << 20)),
        (Format::VhdxDynamic, Some(4 << 20)),
        (Format::VhdxDynamic, None),
        (Format::VhdxDynamic, Some(256 << 20)),
        (Format::VhdxFixed, Some(1 << 20)),
        (Format::VhdxFixed, Some(16 << 20)),
        (Format::VhdFixed, None),
        (Format::VhdDynamic, None),
        (Format::VhdDynamic, Some(512 << 10)),
        (Format::Raw, None),
    ];
    for (format, block_size) in cases {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join(file_name(format));
        let mut image = DiskImage::create(&disk, &options(format, SIZE, block_size)).unwrap();
        let mut expected = vec![0; SIZE as usize];
        let mut random = Random(3);
        for i in 0..60 {
            let (offset, data) = random_write(&mut random, SIZE);
            image.write_at(&data, offset).unwrap();
            expected[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
            if i % 7 == 0 {
                image.flush().unwrap();
            }
        }
        assert!(read_all(&image) == expected);
        image.close().unwrap();
        let image = DiskImage::open(&disk, Access::ReadOnly).unwrap();
        assert!(read_all(&image) == expected);
        qemu_agrees(&disk, format, &expected);
    }
}

#[test]
fn large_disks_made_by_us_are_accepted_by_qemu() {
    let cases = [
        (Format::VhdxDynamic, 64_u64 << 40, None),
        (Format::VhdxDynamic, 3 << 40, Some(1 << 20)),
        (Format::VhdDynamic, 2040 << 30, None),
        (Format::VhdFixed, 2040 << 30, None),
    ];
    for (format, size, block_size) in cases {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join(file_name(format));
        let mut image = DiskImage::create(&disk, &options(format, size, block_size)).unwrap();
        let last = [7; 4096];
        image.write_at(&last, size - 4096).unwrap();
        image.write_at(&last, size / 2).unwrap();
        image.close().unwrap();
        let shown = qemu_img(&["info", "-f", qemu_name(format), text(&disk)]);
        assert!(shown.contains(&format!("({size} bytes)")), "{shown}");
        let image = DiskImage::open(&disk, Access::ReadOnly).unwrap();
        let mut seen = [0; 4096];
        image.read_at(&mut seen, size - 4096).unwrap();
        assert_eq!(seen, last);
    }
}

#[test]
fn identity_and_sectors_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let id = uuid::Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
    for format in [
        Format::VhdxDynamic,
        Format::VhdxFixed,
        Format::VhdFixed,
        Format::VhdDynamic,
    ] {
        let disk = folder.path().join(format!(
            "{format:?}.{}",
            qemu_name(format).replace("vpc", "vhd")
        ));
        let options = CreateOptions {
            id: Some(id),
            ..CreateOptions::new(format, SIZE)
        };
        DiskImage::create(&disk, &options).unwrap().close().unwrap();
        let image = DiskImage::open(&disk, Access::ReadOnly).unwrap();
        assert_eq!(image.id(), Some(id));
        assert_eq!(image.info().unwrap().format, format);
    }
    let disk = folder.path().join("4k.vhdx");
    let options = CreateOptions {
        logical_sector_size: 4096,
        block_size: Some(1 << 20),
        ..CreateOptions::new(Format::VhdxDynamic, 8 << 20)
    };
    DiskImage::create(&disk, &options).unwrap().close().unwrap();
    let image = DiskImage::open(&disk, Access::ReadOnly).unwrap();
    assert_eq!(image.logical_sector_size(), 4096);
    let info = image.info().unwrap();
    let Details::Vhdx(vhdx) = info.details else {
        panic!("a VHDX")
    };
    assert!(
        vhdx.metadata
            .iter()
            .any(|item| item.name == Some("virtual disk id"))
    );
    assert!(vhdx.warnings.is_empty());
}
