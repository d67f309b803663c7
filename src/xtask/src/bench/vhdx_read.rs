//! Sequential read of every allocated byte of a dynamic VHDX, beside `qemu-img convert` of the same file to a raw file on a
//! memory file system, hashes compared. The ceiling is a plain read of the VHDX file itself.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use disk_image::{Access, CreateOptions, DiskImage, Format};

use super::{Outcome, median};

const VIRTUAL: u64 = 1 << 30;
const CHUNK: usize = 1 << 20;
const ROUNDS: usize = 5;

/// 1 GiB virtual, 35 % allocated with bytes that no zero test can skip.
pub fn run(root: &Path) -> Result<Outcome> {
    let folder = root.join("target/bench/vhdx-read");
    fs::create_dir_all(&folder)?;
    let image = folder.join("disk.vhdx");
    make(&image)?;
    let raw =
        PathBuf::from("/dev/shm").join(format!("site-recovery-bench-{}.raw", std::process::id()));
    let outcome = measure(&image, &raw);
    for file in [&image, &raw] {
        if file.exists() {
            fs::remove_file(file)?;
        }
    }
    outcome
}

fn measure(image: &Path, raw: &Path) -> Result<Outcome> {
    let (mut ours, mut peer, mut ceiling) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        read_ours(image, |_, _| ())?;
        ours.push(rate(start));
        let start = Instant::now();
        let ended = Command::new("qemu-img")
            .args(["convert", "-f", "vhdx", "-O", "raw"])
            .arg(image)
            .arg(raw)
            .status();
        ensure!(
            ended.context("start qemu-img")?.success(),
            "qemu-img convert failed"
        );
        peer.push(rate(start));
        let start = Instant::now();
        read_plain(image)?;
        ceiling.push(rate(start));
    }
    verify(image, raw)?;
    let (ours, peer, ceiling) = (median(ours)?, median(peer)?, median(ceiling)?);
    let what =
        "1 GiB VHDX, 35 % allocated, page cache warm; peer: `qemu-img convert` to a memory file"
            .to_owned();
    Ok(Outcome {
        name: "vhdx-read",
        what,
        ours,
        peer,
        unit: "MB/s of virtual disk",
        ratio: ours / peer,
        ceiling: Some(ceiling),
    })
}

fn make(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    let mut options = CreateOptions::new(Format::VhdxDynamic, VIRTUAL);
    options.block_size = Some(1 << 20);
    let mut image = DiskImage::create(path, &options)?;
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    for block in (0..VIRTUAL / CHUNK as u64).filter(|block| block % 20 < 7) {
        let mut bytes = Vec::with_capacity(CHUNK);
        while bytes.len() < CHUNK {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        image.write_at(&bytes, block * CHUNK as u64)?;
    }
    Ok(image.close()?)
}

fn read_ours(path: &Path, mut each: impl FnMut(u64, &[u8])) -> Result<()> {
    let image = DiskImage::open(path, Access::ReadOnly)?;
    let mut buffer = vec![0; CHUNK];
    for extent in image.allocated(0..image.virtual_size()) {
        let mut offset = extent.offset;
        while offset < extent.offset + extent.length {
            let length =
                usize::try_from((extent.offset + extent.length - offset).min(CHUNK as u64))?;
            let part = buffer
                .get_mut(..length)
                .context("a chunk fits the buffer")?;
            image.read_at(part, offset)?;
            each(offset, part);
            offset += length as u64;
        }
    }
    Ok(())
}

fn read_plain(path: &Path) -> Result<()> {
    let mut file = fs::File::open(path)?;
    let mut buffer = vec![0; CHUNK];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

/// What ours read is what the peer wrote, byte for byte; and the peer found nothing that ours skipped.
fn verify(image: &Path, raw: &Path) -> Result<()> {
    let mut theirs = fs::read(raw)?;
    let mut equal = true;
    read_ours(image, |offset, part| {
        let range = usize::try_from(offset)
            .ok()
            .and_then(|start| theirs.get_mut(start..start + part.len()));
        match range {
            Some(range) if range == part => range.fill(0),
            _ => equal = false,
        }
    })?;
    ensure!(equal, "ours and qemu-img read different bytes");
    ensure!(
        theirs.iter().all(|byte| *byte == 0),
        "qemu-img found data that ours skipped"
    );
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn rate(start: Instant) -> f64 {
    VIRTUAL as f64 / 1e6 / start.elapsed().as_secs_f64()
}
