//! `convert` and `read`: whole disk images into another format, and how fast one can be read.
//!
//! Both work on image files only, next to whatever the engine is doing. A target is built under
//! another name and gets its own when it is whole, so a conversion that is cut off leaves nothing
//! that looks like a result.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use disk_image::{Access, ConvertOptions, DiskImage, FolderGate, Format, ParentGate, Source};
use serde_json::{Value, json};

/// What `convert` is asked for.
#[derive(Args, Debug)]
pub struct Convert {
    /// Image to convert: VHDX, VHD or raw (by the name's ending).
    input: PathBuf,
    /// New image.
    output: PathBuf,
    /// Format of the new image; without it the name's ending decides (`.vhd` is a fixed VHD).
    #[arg(long, value_name = "FORMAT")]
    format: Option<Target>,
    /// Bytes of one block of a VHDX or dynamic VHD, in MiB.
    #[arg(long, value_name = "MIB")]
    block_size_in_mib: Option<u32>,
    /// Folder in which parents of a differencing disk may be opened; may be given several times.
    #[arg(long, value_name = "FOLDER")]
    parents: Vec<PathBuf>,
    /// Threads that copy.
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: usize,
    /// Replace OUTPUT when it exists.
    #[arg(long)]
    overwrite: bool,
    /// Return only when the new image survives a power cut.
    #[arg(long)]
    sync: bool,
    /// Show a progress bar on standard error.
    #[arg(long)]
    progress: bool,
    /// Print what was done as JSON.
    #[arg(long)]
    pub json: bool,
}

/// What `read` is asked for.
#[derive(Args, Debug)]
pub struct Read {
    /// Image to read.
    image: PathBuf,
    /// Also hash every byte of the disk (BLAKE3).
    #[arg(long)]
    hash: bool,
    /// Folder in which parents of a differencing disk may be opened; may be given several times.
    #[arg(long, value_name = "FOLDER")]
    parents: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Formats that `convert` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Fixed VHD, as Azure takes it.
    VhdFixed,
    /// VHD that grows.
    VhdDynamic,
    /// VHDX that grows.
    Vhdx,
    /// VHDX with all blocks allocated.
    VhdxFixed,
    /// The bytes of the disk.
    Raw,
}

impl Target {
    fn format(self) -> Format {
        match self {
            Self::VhdFixed => Format::VhdFixed,
            Self::VhdDynamic => Format::VhdDynamic,
            Self::Vhdx => Format::VhdxDynamic,
            Self::VhdxFixed => Format::VhdxFixed,
            Self::Raw => Format::Raw,
        }
    }

    fn of_name(path: &Path) -> anyhow::Result<Self> {
        let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
        match ending.to_str() {
            Some("vhd") => Ok(Self::VhdFixed),
            Some("vhdx") => Ok(Self::Vhdx),
            Some("raw" | "img") => Ok(Self::Raw),
            _ => bail!(
                "the name {} tells no format; give one with --format",
                path.display()
            ),
        }
    }
}

/// Opens an image for reading; a differencing one only with parents from the named folders.
pub fn open(path: &Path, parents: &[PathBuf]) -> anyhow::Result<DiskImage> {
    let image = if parents.is_empty() {
        DiskImage::open(path, Access::ReadOnly)
    } else {
        let gate = FolderGate::new(parents).context("folders of parents")?;
        let gate: &dyn ParentGate = &gate;
        DiskImage::open_with_parents(path, Access::ReadOnly, gate)
    };
    image.with_context(|| format!("open {}", path.display()))
}

/// Converts and says what was done.
pub fn convert(options: &Convert) -> anyhow::Result<Value> {
    let target = match options.format {
        Some(target) => target,
        None => Target::of_name(&options.output)?,
    };
    let block_size = options
        .block_size_in_mib
        .map(|mib| mib.checked_mul(1 << 20).context("block size"))
        .transpose()?;
    let start = Instant::now();
    let image = open(&options.input, &options.parents)?;
    let settings = ConvertOptions {
        block_size,
        threads: options.threads.clamp(1, 64),
        durable: options.sync,
        overwrite: options.overwrite,
        ..ConvertOptions::new(target.format())
    };
    let bar = options.progress.then(|| Bar::new(image.virtual_size()));
    let done = disk_image::convert(&image, &options.output, &settings, &|seen, all| {
        if let Some(bar) = &bar {
            bar.show(seen, all);
        }
    })
    .with_context(|| {
        format!(
            "convert {} to {}",
            options.input.display(),
            options.output.display()
        )
    })?;
    if let Some(bar) = &bar {
        bar.end();
    }
    Ok(json!({
        "kind": "conversion",
        "output": options.output,
        "format": format!("{:?}", target.format()),
        "virtualSizeBytes": done.virtual_size,
        "allocatedBytes": done.allocated_bytes,
        "copiedBytes": done.copied_bytes,
        "seconds": start.elapsed().as_secs_f64(),
    }))
}

/// Reads the whole disk in order and says how much that was.
pub fn read(options: &Read) -> anyhow::Result<Value> {
    const CHUNK: usize = 1 << 20;
    let start = Instant::now();
    let image = open(&options.image, &options.parents)?;
    let size = image.virtual_size();
    let mut hash = options.hash.then(blake3::Hasher::new);
    let mut buffer = vec![0; CHUNK];
    let zeroes = vec![0; CHUNK];
    let mut from_file = 0;
    for segment in image.segments(0..size)? {
        let mut done = 0;
        while done < segment.length {
            let length = usize::try_from((segment.length - done).min(CHUNK as u64))?;
            let bytes = if matches!(segment.source, Source::Zeroes) {
                &zeroes[..length]
            } else {
                image
                    .read_at(&mut buffer[..length], segment.offset + done)
                    .with_context(|| format!("read {}", options.image.display()))?;
                from_file += length as u64;
                &buffer[..length]
            };
            if let Some(hash) = &mut hash {
                hash.update(bytes);
            }
            done += length as u64;
        }
    }
    Ok(json!({
        "kind": "sequential read",
        "virtualSizeBytes": size,
        "bytesFromFiles": from_file,
        "blake3": hash.map(|hash| hash.finalize().to_hex().to_string()),
        "seconds": start.elapsed().as_secs_f64(),
    }))
}

/// A line on standard error that is drawn again while bytes are copied.
struct Bar {
    virtual_size: u64,
    /// Per mille that was drawn last; copying threads draw at most a thousand times.
    drawn: AtomicU64,
    is_terminal: bool,
}

impl Bar {
    fn new(virtual_size: u64) -> Self {
        Self {
            virtual_size,
            drawn: AtomicU64::new(u64::MAX),
            is_terminal: std::io::stderr().is_terminal(),
        }
    }

    fn show(&self, seen: u64, all: u64) {
        let step = if self.is_terminal { 1 } else { 100 };
        let part = (seen * 1000).checked_div(all).unwrap_or(1000) / step * step;
        if self.drawn.swap(part, Ordering::Relaxed) == part {
            return;
        }
        let width = 40;
        let full = usize::try_from(part).unwrap_or(1000) * width / 1000;
        let text = format!(
            "[{}{}] {:5.1} %  {} of {} MiB with data ({} MiB disk)",
            "#".repeat(full),
            " ".repeat(width - full),
            part as f64 / 10.0,
            seen >> 20,
            all >> 20,
            self.virtual_size >> 20
        );
        let end = if self.is_terminal { "\r" } else { "\n" };
        // Nobody is left to see it when standard error is closed.
        write!(std::io::stderr(), "{text}{end}").ok();
    }

    fn end(&self) {
        if self.is_terminal {
            writeln!(std::io::stderr()).ok();
        }
    }
}
