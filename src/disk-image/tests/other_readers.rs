//! Chains of differencing images, which qemu can't read, against readers that are not ours: VHDX
//! with libvhdi, VHD with a small reader written from the specification (`read_chain.py`).
//!
//! libvhdi comes with the Python environment of the tests (`tests/lab/python-tools.sh`): where
//! LIBTERRAFORM_PYTHON names one, it must be there; elsewhere the test says what it left out.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use disk_image::{Access, CreateOptions, DiskImage, FolderGate, Format, NoParents};
use support::{Random, random_write, read_all, text};

const SIZE: u64 = (9 << 20) + 4096 * 5;
const MISSING: i32 = 77;

/// The disk as another reader sees it; `None` where libvhdi is not installed and needn't be.
fn read_by_another(chain: &[PathBuf], folder: &Path) -> Option<Vec<u8>> {
    let given = std::env::var_os("LIBTERRAFORM_PYTHON").map(PathBuf::from);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/venv/bin/python");
    let python = given
        .clone()
        .or(Some(root).filter(|path| path.exists()))
        .unwrap_or_else(|| PathBuf::from("python3"));
    let output = folder.join("another.out");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/read_chain.py");
    let ended = Command::new(&python)
        .arg(script)
        .arg(&output)
        .args(chain.iter().rev())
        .output()
        .expect("python starts");
    if ended.status.code() == Some(MISSING) && given.is_none() {
        return None;
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{}: {said}", ended.status);
    Some(fs::read(&output).unwrap())
}

#[test]
fn other_readers_read_our_chains_as_we_do() {
    let kinds = [
        (Format::VhdxDynamic, "vhdx", 1_u32 << 20, 512),
        (Format::VhdxDynamic, "vhdx", 2 << 20, 4096),
        (Format::VhdxFixed, "vhdx", 8 << 20, 512),
        (Format::VhdDynamic, "vhd", 2 << 20, 512),
        (Format::VhdDynamic, "vhd", 512 << 10, 512),
        (Format::VhdFixed, "vhd", 2 << 20, 512),
    ];
    for (i, (format, ending, block_size, sector)) in kinds.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let gate = FolderGate::new([folder.path()]).unwrap();
        let options = CreateOptions {
            block_size: Some(block_size),
            logical_sector_size: sector,
            ..CreateOptions::new(format, SIZE)
        };
        let mut random = Random(i as u64);
        let mut model = vec![0; SIZE as usize];
        let mut chain: Vec<PathBuf> = Vec::new();
        for layer in 0..3 {
            let path = folder.path().join(format!("{layer}.{ending}"));
            let mut image = match chain.last() {
                None => DiskImage::create(&path, &options).unwrap(),
                Some(parent) => {
                    DiskImage::create_differencing(&path, parent, &options, &gate).unwrap()
                }
            };
            for _ in 0..9 {
                let (offset, data) = random_write(&mut random, SIZE);
                image.write_at(&data, offset).unwrap();
                model[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
            }
            image.close().unwrap();
            chain.push(path);
            let what = format!("{format:?} {block_size} {sector} layer {layer}");
            let image =
                DiskImage::open_with_parents(&chain[layer], Access::ReadOnly, &gate).unwrap();
            assert!(read_all(&image) == model, "{what}");
            match read_by_another(&chain, folder.path()) {
                Some(theirs) => assert!(theirs == model, "{what}: another reader sees other bytes"),
                None => eprintln!("{what}: not compared, libvhdi is not installed"),
            }
        }
    }
}

#[test]
fn qemu_reads_a_vhd_chain_only_flattened_and_we_flatten_it() {
    let folder = tempfile::tempdir().unwrap();
    let (base, child) = (
        folder.path().join("base.vhd"),
        folder.path().join("child.vhd"),
    );
    let options = CreateOptions::new(Format::VhdDynamic, SIZE);
    let mut image = DiskImage::create(&base, &options).unwrap();
    image.write_at(&[1; 300_000], 1 << 20).unwrap();
    image.close().unwrap();
    let mut image = DiskImage::create_differencing(&child, &base, &options, &NoParents).unwrap();
    image.write_at(&[2; 1000], (1 << 20) + 5000).unwrap();
    let model = read_all(&image);
    image.close().unwrap();
    let gate = FolderGate::new([folder.path()]).unwrap();
    let image = DiskImage::open_with_parents(&child, Access::ReadOnly, &gate).unwrap();
    for (format, name, qemu) in [
        (Format::VhdFixed, "flat.vhd", "vpc"),
        (Format::VhdxDynamic, "flat.vhdx", "vhdx"),
        (Format::Raw, "flat.raw", "raw"),
    ] {
        let flat = folder.path().join(name);
        disk_image::convert(
            &image,
            &flat,
            &disk_image::ConvertOptions::new(format),
            &|_, _| (),
        )
        .unwrap();
        let raw = folder.path().join("out.bin");
        support::qemu_img(&["convert", "-f", qemu, "-O", "raw", text(&flat), text(&raw)]);
        assert!(fs::read(&raw).unwrap() == model, "{format:?}");
    }
}
