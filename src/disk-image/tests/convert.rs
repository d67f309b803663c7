//! Whole-image conversion: the same bytes in every format, nothing half-made left behind.

mod support;

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use disk_image::{Access, ConvertOptions, DiskImage, ErrorKind, Format, convert};
use support::{Random, file_name, options, qemu_img, qemu_name, random_write, read_all, text};

const SIZE: u64 = (37 << 20) + 512 * 3;

/// A disk with data, holes and written zeroes.
fn source(path: &Path, format: Format) -> Vec<u8> {
    let mut image = DiskImage::create(path, &options(format, SIZE, None)).unwrap();
    let mut model = vec![0; SIZE as usize];
    let mut random = Random(5);
    for _ in 0..40 {
        let (offset, data) = random_write(&mut random, SIZE);
        image.write_at(&data, offset).unwrap();
        model[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
    }
    // A whole block of zeroes where data was, and a lone byte behind it.
    image.write_at(&vec![0; 3 << 20], 8 << 20).unwrap();
    model[8 << 20..11 << 20].fill(0);
    image.write_at(&[9], (9 << 20) + 70_001).unwrap();
    model[(9 << 20) + 70_001] = 9;
    image.close().unwrap();
    model
}

#[test]
fn every_format_becomes_every_other_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let formats = [
        Format::Raw,
        Format::VhdFixed,
        Format::VhdDynamic,
        Format::VhdxFixed,
        Format::VhdxDynamic,
    ];
    for from in formats {
        let input = folder.path().join(format!("{from:?}.{}", file_name(from)));
        let model = source(&input, from);
        for to in formats {
            let output = folder.path().join(format!("out.{}", file_name(to)));
            let image = DiskImage::open(&input, Access::ReadOnly).unwrap();
            let calls = Mutex::new(Vec::new());
            let options = ConvertOptions {
                overwrite: true,
                ..ConvertOptions::new(to)
            };
            let done = convert(&image, &output, &options, &|seen, all| {
                calls.lock().unwrap().push((seen, all));
            })
            .unwrap();
            assert_eq!(done.virtual_size, SIZE);
            assert!(done.copied_bytes <= done.allocated_bytes, "{done:?}");
            assert!(
                calls.lock().unwrap().iter().any(|(seen, all)| seen == all),
                "progress reaches its end"
            );
            let image = DiskImage::open(&output, Access::ReadOnly).unwrap();
            assert_eq!(image.format(), to);
            assert!(read_all(&image) == model, "{from:?} to {to:?}");
            let raw = folder.path().join("check.raw");
            qemu_img(&[
                "convert",
                "-f",
                qemu_name(to),
                "-O",
                "raw",
                text(&output),
                text(&raw),
            ]);
            assert!(
                fs::read(&raw).unwrap() == model,
                "{from:?} to {to:?} as qemu reads it"
            );
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_flat_target_takes_room_for_data_only() {
    use std::os::unix::fs::MetadataExt as _;
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.vhdx"), folder.path().join("out.vhd"));
    let mut image = DiskImage::create(
        &input,
        &options(Format::VhdxDynamic, 4 << 30, Some(1 << 20)),
    )
    .unwrap();
    image.write_at(&vec![7; 3 << 20], 1 << 30).unwrap();
    image.write_at(&vec![1; 1 << 20], 3 << 30).unwrap();
    image.write_at(&vec![0; 1 << 20], 3 << 30).unwrap();
    image.close().unwrap();
    let image = DiskImage::open(&input, Access::ReadOnly).unwrap();
    let done = convert(
        &image,
        &output,
        &ConvertOptions::new(Format::VhdFixed),
        &|_, _| (),
    )
    .unwrap();
    assert_eq!(
        (done.allocated_bytes, done.copied_bytes),
        (4 << 20, 3 << 20)
    );
    let metadata = fs::metadata(&output).unwrap();
    assert_eq!(metadata.len(), (4 << 30) + 512);
    assert!(
        metadata.blocks() * 512 < 4 << 20,
        "{} sectors",
        metadata.blocks()
    );
}

#[test]
fn an_existing_target_stays_unless_it_may_go_and_nothing_half_made_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.vhdx"), folder.path().join("out.vhd"));
    source(&input, Format::VhdxDynamic);
    fs::write(&output, b"mine").unwrap();
    let image = DiskImage::open(&input, Access::ReadOnly).unwrap();
    let options = ConvertOptions::new(Format::VhdFixed);
    let error = convert(&image, &output, &options, &|_, _| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
    assert_eq!(fs::read(&output).unwrap(), b"mine");
    // A source that ends early: the failure leaves no second file behind.
    let broken = folder.path().join("broken.vhdx");
    fs::copy(&input, &broken).unwrap();
    let image = DiskImage::open(&broken, Access::ReadOnly).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&broken)
        .unwrap()
        .set_len(6 << 20)
        .unwrap();
    let new = folder.path().join("new.vhd");
    convert(&image, &new, &options, &|_, _| ()).unwrap_err();
    let names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("partial") || name.contains("new"))
        .collect();
    assert!(names.is_empty(), "{names:?}");
}

#[test]
fn sectors_of_4096_bytes_never_become_a_vhd() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.vhdx");
    let create = disk_image::CreateOptions {
        logical_sector_size: 4096,
        ..options(Format::VhdxDynamic, 8 << 20, Some(1 << 20))
    };
    let image = DiskImage::create(&input, &create).unwrap();
    let target = folder.path().join("out.vhd");
    let error = convert(
        &image,
        &target,
        &ConvertOptions::new(Format::VhdFixed),
        &|_, _| (),
    )
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let target = folder.path().join("out.vhdx");
    convert(
        &image,
        &target,
        &ConvertOptions::new(Format::VhdxDynamic),
        &|_, _| (),
    )
    .unwrap();
    let copy = DiskImage::open(&target, Access::ReadOnly).unwrap();
    assert_eq!(copy.logical_sector_size(), 4096);
}
