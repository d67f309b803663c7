//! What the tests share: a seeded generator, a model to compare with, and qemu-img.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use disk_image::{Access, CreateOptions, DiskImage, Format, MemoryFile};

/// Deterministic numbers (splitmix64): a failing seed fails again.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length.div_ceil(8))
            .flat_map(|_| self.next().to_le_bytes())
            .take(length)
            .collect()
    }
}

/// One write at a random place: mostly small, sometimes over several blocks, sometimes zeroes.
pub fn random_write(random: &mut Random, size: u64) -> (u64, Vec<u8>) {
    let limit = if random.below(8) == 0 {
        3 << 20
    } else {
        20_000
    };
    let length = 1 + random.below(limit.min(size));
    let offset = random.below(size - length + 1);
    let data = if random.below(6) == 0 {
        vec![0; length as usize]
    } else {
        random.bytes(length as usize)
    };
    (offset, data)
}

pub fn read_all(image: &DiskImage) -> Vec<u8> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read_at(&mut bytes, 0).unwrap();
    bytes
}

pub fn open_bytes(
    bytes: &[u8],
    access: Access,
) -> Result<(DiskImage, Arc<MemoryFile>), disk_image::ImageError> {
    open_shared(&Arc::new(bytes.to_vec()), access)
}

/// Opens bytes that are only copied when something changes.
pub fn open_shared(
    bytes: &Arc<Vec<u8>>,
    access: Access,
) -> Result<(DiskImage, Arc<MemoryFile>), disk_image::ImageError> {
    let file = Arc::new(MemoryFile::from_bytes(bytes.clone()));
    Ok((DiskImage::open_file(Box::new(file.clone()), access)?, file))
}

pub fn options(format: Format, size: u64, block_size: Option<u32>) -> CreateOptions {
    CreateOptions {
        block_size,
        ..CreateOptions::new(format, size)
    }
}

pub fn create_in_memory(options: &CreateOptions) -> (DiskImage, Arc<MemoryFile>) {
    let file = Arc::new(MemoryFile::new());
    (
        DiskImage::create_file(Box::new(file.clone()), options).unwrap(),
        file,
    )
}

/// The name qemu gives the format.
pub fn qemu_name(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::VhdFixed | Format::VhdDynamic | Format::VhdDifferencing => "vpc",
        Format::VhdxFixed | Format::VhdxDynamic | Format::VhdxDifferencing => "vhdx",
    }
}

pub fn file_name(format: Format) -> &'static str {
    match format {
        Format::Raw => "disk.raw",
        Format::VhdFixed | Format::VhdDynamic | Format::VhdDifferencing => "disk.vhd",
        Format::VhdxFixed | Format::VhdxDynamic | Format::VhdxDifferencing => "disk.vhdx",
    }
}

/// Runs qemu-img and returns what it did, whatever that was.
pub fn try_qemu_img(arguments: &[&str]) -> Output {
    Command::new("qemu-img")
        .args(arguments)
        .output()
        .expect("qemu-img (package qemu-utils) must be installed")
}

/// Runs qemu-img, which must succeed.
pub fn qemu_img(arguments: &[&str]) -> String {
    let output = try_qemu_img(arguments);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "qemu-img {arguments:?}: {text}");
    text
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}
