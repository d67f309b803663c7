//! One interface over all formats: detect, open, create, read, write.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::path::Path;

use uuid::Uuid;

use crate::parents::Descent;
use crate::raw::RawImage;
use crate::vhd::VhdImage;
use crate::vhdx::VhdxImage;
use crate::{
    ErrorKind, Extent, ImageError, ImageFile, ImageInfo, NoParents, ParentGate, ParentLocator,
    Segment,
};

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The file is never written; a VHDX log is replayed in memory.
    ReadOnly,
    /// A VHDX log is replayed into the file.
    ReadWrite,
}

/// Format and kind of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// The bytes of the disk and nothing else.
    Raw,
    /// The bytes of the disk and a footer of 512 bytes.
    VhdFixed,
    /// Blocks allocated when written.
    VhdDynamic,
    /// Only what differs from a parent image.
    VhdDifferencing,
    /// All blocks allocated.
    VhdxFixed,
    /// Blocks allocated when written.
    VhdxDynamic,
    /// Only what differs from a parent image (`.avhdx` when a checkpoint made it).
    VhdxDifferencing,
}

/// How to create an image. Built with [`CreateOptions::new`], then changed field by field.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Format and kind.
    pub format: Format,
    /// Size of the disk in bytes; a multiple of the logical sector size.
    pub virtual_size: u64,
    /// Bytes of one block; `None` takes the format's usual one (VHDX 32 MiB, VHD 2 MiB).
    /// VHDX: 1 to 256 MiB, a power of two. VHD: a power of two from 512 KiB to 2 MiB.
    pub block_size: Option<u32>,
    /// 512, or 4096 for VHDX and raw.
    pub logical_sector_size: u32,
    /// 512 or 4096; VHDX only.
    pub physical_sector_size: u32,
    /// The disk's identity; `None` draws a random one.
    pub id: Option<Uuid>,
}

impl CreateOptions {
    /// A disk of `virtual_size` bytes with the format's usual block size, 512-byte logical and
    /// 4096-byte physical sectors and a random identity.
    pub fn new(format: Format, virtual_size: u64) -> Self {
        Self {
            format,
            virtual_size,
            block_size: None,
            logical_sector_size: 512,
            physical_sector_size: 4096,
            id: None,
        }
    }
}

/// Anything that can be read as a disk.
pub trait BlockRead {
    /// Size of the disk in bytes.
    fn virtual_size(&self) -> u64;
    /// Logical sector size in bytes: 512 or 4096.
    fn logical_sector_size(&self) -> u32;
    /// Fills `buffer` from `offset`; `OutOfRange` when that passes the end of the disk.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError>;
}

/// An open disk image of any format. Shared reads need `&self`; writes need `&mut self`.
#[derive(Debug)]
pub struct DiskImage {
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Raw(RawImage),
    Vhd(Box<VhdImage>),
    Vhdx(Box<VhdxImage>),
}

/// Runs one expression on whichever format it is.
macro_rules! each {
    ($self:expr, $image:ident => $body:expr) => {
        match $self {
            Inner::Raw($image) => $body,
            Inner::Vhd($image) => $body,
            Inner::Vhdx($image) => $body,
        }
    };
}

impl DiskImage {
    /// Opens the image in the file at `path`. The name decides where it can (`.vhdx`, `.avhdx`,
    /// `.vhd`, `.raw`, `.img`), because what a guest writes must never change how its disk is
    /// read; under any other name the content must be that of a VHDX or VHD.
    /// A differencing image is refused, because no parents are allowed:
    /// [`Self::open_with_parents`].
    pub fn open(path: impl AsRef<Path>, access: Access) -> Result<Self, ImageError> {
        Self::open_with_parents(path, access, &NoParents)
    }

    /// As [`Self::open`]; parents of a differencing image are opened through `gate`, for reading.
    pub fn open_with_parents(
        path: impl AsRef<Path>,
        access: Access,
        gate: &dyn ParentGate,
    ) -> Result<Self, ImageError> {
        let path = path.as_ref();
        Self::open_named(Box::new(open_path(path, access)?), path, access, gate)
    }

    /// As [`Self::open_with_parents`], in a `file` that is open and has this name, wherever it is kept.
    pub fn open_named(
        file: Box<dyn ImageFile>,
        path: &Path,
        access: Access,
        gate: &dyn ParentGate,
    ) -> Result<Self, ImageError> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        let mut descent = Descent::new(gate, Some(path));
        let inner = match extension.to_str() {
            Some("vhdx" | "avhdx") => Inner::Vhdx(Box::new(VhdxImage::open(
                file,
                access,
                Some(path),
                &mut descent,
            )?)),
            Some("vhd" | "avhd") => Inner::Vhd(Box::new(VhdImage::open(
                file,
                access,
                Some(path),
                &mut descent,
            )?)),
            Some("raw" | "img") => return Self::open_raw(file, access, 512),
            _ => Self::detect(file, access, Some(path), &mut descent)?,
        };
        Ok(Self { inner })
    }

    /// Opens a VHDX or VHD in `file`, found by its content; `NotAnImage` when it is neither.
    /// No parents are allowed.
    pub fn open_file(file: Box<dyn ImageFile>, access: Access) -> Result<Self, ImageError> {
        Self::open_file_with_parents(file, access, &NoParents)
    }

    /// As [`Self::open_file`]; parents of a differencing image are opened through `gate`.
    pub fn open_file_with_parents(
        file: Box<dyn ImageFile>,
        access: Access,
        gate: &dyn ParentGate,
    ) -> Result<Self, ImageError> {
        let inner = Self::detect(file, access, None, &mut Descent::new(gate, None))?;
        Ok(Self { inner })
    }

    fn detect(
        file: Box<dyn ImageFile>,
        access: Access,
        path: Option<&Path>,
        descent: &mut Descent<'_>,
    ) -> Result<Inner, ImageError> {
        if crate::vhdx::detect(file.as_ref())? {
            let image = VhdxImage::open(file, access, path, descent)?;
            Ok(Inner::Vhdx(Box::new(image)))
        } else if crate::vhd::detect(file.as_ref())? {
            Ok(Inner::Vhd(Box::new(VhdImage::open(
                file, access, path, descent,
            )?)))
        } else {
            Err(ImageError::new(
                ErrorKind::NotAnImage,
                "file",
                "neither a VHDX nor a VHD signature was found",
            ))
        }
    }

    /// Takes `file` as the plain bytes of a disk with sectors of 512 or 4096 bytes.
    pub fn open_raw(
        file: Box<dyn ImageFile>,
        access: Access,
        logical_sector_size: u32,
    ) -> Result<Self, ImageError> {
        Ok(Self {
            inner: Inner::Raw(RawImage::open(file, access, logical_sector_size)?),
        })
    }

    /// Creates the file at `path`, which must not exist, and an empty disk in it, open for writing.
    /// The image is durable when this returns; the folder's entry is the caller's to sync.
    pub fn create(path: impl AsRef<Path>, options: &CreateOptions) -> Result<Self, ImageError> {
        let path = path.as_ref();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path);
        let file =
            file.map_err(|e| ImageError::io(path.display().to_string(), 0, "create the file", e))?;
        Self::create_file(Box::new(file), options)
    }

    /// Creates an empty disk in `file`, whose old content is lost.
    pub fn create_file(
        file: Box<dyn ImageFile>,
        options: &CreateOptions,
    ) -> Result<Self, ImageError> {
        let inner = match options.format {
            Format::Raw => Inner::Raw(RawImage::create(file, options)?),
            Format::VhdFixed | Format::VhdDynamic => {
                Inner::Vhd(Box::new(VhdImage::create(file, options)?))
            }
            Format::VhdxFixed | Format::VhdxDynamic => {
                Inner::Vhdx(Box::new(VhdxImage::create(file, options)?))
            }
            Format::VhdDifferencing | Format::VhdxDifferencing => {
                return Err(ImageError::unsupported(
                    "new differencing disk",
                    "it needs a parent: create_differencing",
                ));
            }
        };
        Ok(Self { inner })
    }

    /// Creates the file at `path`, which must not exist, and in it an empty disk above the image
    /// at `parent`: what is not written to it is the parent's. `options` give block size,
    /// identity and (for VHDX) nothing else; size and sectors are the parent's. The caller names
    /// the parent, so it needs no gate; parents of the parent do. The new image remembers the
    /// parent's place relative to itself, and on Windows the absolute one.
    pub fn create_differencing(
        path: impl AsRef<Path>,
        parent: impl AsRef<Path>,
        options: &CreateOptions,
        gate: &dyn ParentGate,
    ) -> Result<Self, ImageError> {
        let (path, parent_path) = (path.as_ref(), parent.as_ref());
        let parent = Self::open_with_parents(parent_path, Access::ReadOnly, gate)?;
        let locators = crate::parents::locators_from(path, parent_path)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path);
        let file =
            file.map_err(|e| ImageError::io(path.display().to_string(), 0, "create the file", e))?;
        Self::create_differencing_file(Box::new(file), parent, &locators, options)
    }

    /// As [`Self::create_differencing`], in `file`, whose old content is lost, above an image
    /// that is open for reading. `locators` is what the new image remembers of its place.
    pub fn create_differencing_file(
        file: Box<dyn ImageFile>,
        parent: Self,
        locators: &[ParentLocator],
        options: &CreateOptions,
    ) -> Result<Self, ImageError> {
        let inner = match parent.inner {
            Inner::Vhd(parent) => Inner::Vhd(Box::new(VhdImage::create_child(
                file, *parent, locators, options,
            )?)),
            Inner::Vhdx(parent) => Inner::Vhdx(Box::new(VhdxImage::create_child(
                file, *parent, locators, options,
            )?)),
            Inner::Raw(_) => {
                return Err(ImageError::unsupported(
                    "new differencing disk",
                    "a raw image has no identity that a child could remember",
                ));
            }
        };
        Ok(Self { inner })
    }

    /// Everything the image at `path` says about itself. Needs no parents: of a differencing
    /// image, `allocated_bytes` counts what this file alone holds.
    pub fn describe(path: impl AsRef<Path>) -> Result<ImageInfo, ImageError> {
        let path = path.as_ref();
        let file: Box<dyn ImageFile> = Box::new(open_path(path, Access::ReadOnly)?);
        if crate::vhdx::detect(file.as_ref())? {
            return VhdxImage::open_alone(file, Access::ReadOnly)?.info();
        }
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        if matches!(extension.to_str(), Some("raw" | "img")) {
            return Self::open_raw(file, Access::ReadOnly, 512)?.info();
        }
        VhdImage::open_alone(file, Access::ReadOnly)?.info()
    }

    /// Format and kind.
    pub fn format(&self) -> Format {
        each!(&self.inner, image => image.format())
    }

    /// Size of the disk in bytes.
    pub fn virtual_size(&self) -> u64 {
        each!(&self.inner, image => image.virtual_size())
    }

    /// Identity of the disk: VHDX virtual disk id, VHD unique id; a raw image has none.
    pub fn id(&self) -> Option<Uuid> {
        each!(&self.inner, image => image.id())
    }

    /// Logical sector size in bytes.
    pub fn logical_sector_size(&self) -> u32 {
        each!(&self.inner, image => image.logical_sector_size())
    }

    /// Bytes of one block, where the format has blocks.
    pub fn block_size(&self) -> Option<u32> {
        each!(&self.inner, image => image.block_size())
    }

    /// The parts of `range` (bytes; cut to the disk) that may hold anything but zeroes: sorted,
    /// disjoint, neighbours joined. What is left out reads as zeroes.
    pub fn allocated(&self, range: Range<u64>) -> Vec<Extent> {
        let range = range.start..range.end.min(self.virtual_size());
        each!(&self.inner, image => image.allocated(range))
    }

    /// Splits `range` (bytes; cut to the disk) by where it lies, for callers that move bytes by
    /// themselves: sorted and without gaps.
    pub fn segments(&self, range: Range<u64>) -> Result<Vec<Segment<'_>>, ImageError> {
        let range = range.start..range.end.min(self.virtual_size());
        each!(&self.inner, image => image.segments(range))
    }

    /// Fills `buffer` from byte `offset` of the disk; any alignment.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        check_range(self.virtual_size(), offset, buffer.len())?;
        each!(&self.inner, image => image.read_at(buffer, offset))
    }

    /// Writes `data` at byte `offset` of the disk; any alignment. Durable after [`Self::flush`].
    pub fn write_at(&mut self, data: &[u8], offset: u64) -> Result<(), ImageError> {
        check_range(self.virtual_size(), offset, data.len())?;
        each!(&mut self.inner, image => image.write_at(data, offset))
    }

    /// Returns when everything written before survives a power cut.
    pub fn flush(&mut self) -> Result<(), ImageError> {
        each!(&mut self.inner, image => image.flush())
    }

    /// Changes the size of the disk to `size` bytes; a power cut leaves the old or the new size.
    /// New bytes are zero. Making it smaller needs the bytes behind the new end to be zero:
    /// `OutOfRange` otherwise. Differencing disks only grow, and only above a parent that is no
    /// larger than they are. Everything written before is durable afterwards.
    pub fn resize(&mut self, size: u64) -> Result<(), ImageError> {
        each!(&mut self.inner, image => image.resize(size))
    }

    /// Gives a VHDX another identity, which its guest sees (Page 83); `Unsupported` for others.
    pub fn set_id(&mut self, id: Uuid) -> Result<(), ImageError> {
        self.vhdx_only("identity")?.set_id(id)
    }

    /// Changes what a VHDX says of its physical sectors: 512 or 4096 bytes.
    pub fn set_physical_sector_size(&mut self, size: u32) -> Result<(), ImageError> {
        self.vhdx_only("physical sector size")?
            .set_physical_sector_size(size)
    }

    /// Changes whether owners of a VHDX keep blocks allocated once they are: it says "fixed".
    pub fn set_leave_blocks_allocated(&mut self, leave: bool) -> Result<(), ImageError> {
        self.vhdx_only("file parameters")?
            .set_leave_blocks_allocated(leave)
    }

    /// Makes a differencing VHDX remember other places of its parent, and `linkage` as the
    /// parent's state. Other keys of its parent locator stay.
    pub fn set_parent(
        &mut self,
        linkage: Uuid,
        locators: &[ParentLocator],
    ) -> Result<(), ImageError> {
        self.vhdx_only("parent locator")?
            .set_parent(linkage, locators)
    }

    fn vhdx_only(&mut self, what: &str) -> Result<&mut VhdxImage, ImageError> {
        match &mut self.inner {
            Inner::Vhdx(image) => Ok(image),
            _ => Err(ImageError::unsupported(
                what,
                "only a VHDX keeps it as metadata",
            )),
        }
    }

    /// Flushes and marks the file clean (a VHDX has nothing to replay afterwards).
    pub fn close(self) -> Result<(), ImageError> {
        each!(self.inner, image => image.close())
    }

    /// Everything the image says about itself.
    pub fn info(&self) -> Result<ImageInfo, ImageError> {
        each!(&self.inner, image => image.info())
    }
}

impl BlockRead for DiskImage {
    fn virtual_size(&self) -> u64 {
        Self::virtual_size(self)
    }

    fn logical_sector_size(&self) -> u32 {
        Self::logical_sector_size(self)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), ImageError> {
        Self::read_at(self, buffer, offset)
    }
}

pub(crate) fn open_path(path: &Path, access: Access) -> Result<File, ImageError> {
    OpenOptions::new()
        .read(true)
        .write(access == Access::ReadWrite)
        .open(path)
        .map_err(|e| ImageError::io(path.display().to_string(), 0, "open the file", e))
}

fn check_range(virtual_size: u64, offset: u64, length: usize) -> Result<(), ImageError> {
    match offset.checked_add(length as u64) {
        Some(end) if end <= virtual_size => Ok(()),
        _ => Err(ImageError::new(
            ErrorKind::OutOfRange,
            "disk",
            format!("{length} bytes at {offset} pass the end at {virtual_size}"),
        )),
    }
}
