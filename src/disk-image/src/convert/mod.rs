//! Whole-image conversion: VHDX, VHD or raw into any of them, as fast as the machine copies.
//!
//! ```text
//!   source.segments ─► zeroes, holes: nothing is read or written
//!                   └► data ─┬► flat target (raw, fixed VHD): several threads, bytes stay in the
//!                            │  kernel where it can copy from file to file (reflinks included)
//!                            └► block target (VHDX, dynamic VHD): one thread reads, one writes
//! ```
//!
//! The target is built under another name beside its place and gets its name when it is whole: a
//! conversion that is cut off never leaves something that looks like a result.

mod blocks;
mod flat;
mod kernel;

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::{CreateOptions, DiskImage, ErrorKind, Format, ImageError};

/// How to convert. Built with [`ConvertOptions::new`], then changed field by field.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// Format and kind of the target; no differencing one.
    pub format: Format,
    /// Bytes of one block of the target; `None` takes the format's usual one.
    pub block_size: Option<u32>,
    /// Identity of the new disk; `None` draws a random one.
    pub id: Option<Uuid>,
    /// Threads that copy into a flat target.
    pub threads: usize,
    /// Whether the target survives a power cut when [`convert`] returns.
    pub durable: bool,
    /// Whether an existing target is replaced.
    pub overwrite: bool,
}

impl ConvertOptions {
    /// Two threads, durable, an existing target is refused.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            block_size: None,
            id: None,
            threads: 2,
            durable: true,
            overwrite: false,
        }
    }
}

/// What a conversion did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// Bytes that the source holds (what was never allocated is not among them).
    pub allocated_bytes: u64,
    /// Bytes that were moved; the rest of the allocated ones were zeroes.
    pub copied_bytes: u64,
}

/// Converts `source` into a new image at `target`. `progress` is called now and then, from any
/// thread, with the bytes looked at and the bytes to look at.
pub fn convert(
    source: &DiskImage,
    target: &Path,
    options: &ConvertOptions,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Converted, ImageError> {
    check(source, options)?;
    if !options.overwrite && target.exists() {
        return Err(ImageError::new(
            ErrorKind::OutOfRange,
            target.display().to_string(),
            "it exists already; choose another name or allow it to be replaced",
        ));
    }
    let partial = Partial::create(target)?;
    let size = source.virtual_size();
    let segments = kernel::without_holes(source.segments(0..size)?);
    let mut done = match options.format {
        Format::Raw | Format::VhdFixed => {
            flat::write(source, segments, &partial.file, options, progress)?
        }
        _ => blocks::write(source, &segments, partial.handle()?, options, progress)?,
    };
    done.virtual_size = size;
    if options.durable {
        partial.sync()?;
    }
    partial.finish(target, options.durable)?;
    Ok(done)
}

fn check(source: &DiskImage, options: &ConvertOptions) -> Result<(), ImageError> {
    let is_vhd = matches!(options.format, Format::VhdFixed | Format::VhdDynamic);
    if is_vhd && source.logical_sector_size() != 512 {
        return Err(ImageError::unsupported(
            "VHD",
            format!(
                "it has sectors of 512 bytes, the source of {}: partitions would be found at wrong places; choose VHDX or raw",
                source.logical_sector_size()
            ),
        ));
    }
    if matches!(
        options.format,
        Format::VhdDifferencing | Format::VhdxDifferencing
    ) {
        return Err(ImageError::unsupported(
            "conversion",
            "a differencing disk is made by creating it above its parent",
        ));
    }
    Ok(())
}

/// What a target of another format is created with.
fn create_options(
    source: &DiskImage,
    options: &ConvertOptions,
) -> Result<CreateOptions, ImageError> {
    let info = source.info()?;
    Ok(CreateOptions {
        block_size: options.block_size,
        logical_sector_size: info.logical_sector_size,
        physical_sector_size: info.physical_sector_size,
        id: options.id,
        ..CreateOptions::new(options.format, source.virtual_size())
    })
}

/// The target under its temporary name; removed again unless it is finished.
struct Partial {
    path: PathBuf,
    file: File,
    finished: bool,
}

impl Partial {
    fn create(target: &Path) -> Result<Self, ImageError> {
        let mut name = std::ffi::OsString::from(".");
        name.push(target.file_name().unwrap_or_default());
        name.push(format!(".{}.partial", std::process::id()));
        let path = target.with_file_name(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| ImageError::io(path.display().to_string(), 0, "create the file", e))?;
        Ok(Self {
            path,
            file,
            finished: false,
        })
    }

    fn handle(&self) -> Result<File, ImageError> {
        self.file
            .try_clone()
            .map_err(|e| self.fail("use the file", e))
    }

    fn sync(&self) -> Result<(), ImageError> {
        self.file
            .sync_all()
            .map_err(|e| self.fail("make the file durable", e))
    }

    fn finish(mut self, target: &Path, durable: bool) -> Result<(), ImageError> {
        fs::rename(&self.path, target).map_err(|e| self.fail("give the file its name", e))?;
        self.finished = true;
        if durable && cfg!(unix) {
            let folder = match target.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(|e| self.fail("make the file's name durable", e))?;
        }
        Ok(())
    }

    fn fail(&self, doing: &str, error: std::io::Error) -> ImageError {
        ImageError::io(self.path.display().to_string(), 0, doing, error)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing else can be done about a file that can't be removed; its name says what it is.
            let _ = fs::remove_file(&self.path);
        }
    }
}
