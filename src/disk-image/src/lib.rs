//! VHD, VHDX and raw disk images: read, write, replay, check.
//!
//! ```text
//!   DiskImage::open ─► detect ─┬─► vhdx  (fixed, dynamic, differencing; log replayed)  ┐
//!   DiskImage::create ─────────┼─► vhd   (fixed, dynamic, differencing)                ├─► dyn ImageFile ─► std::fs::File
//!                              └─► raw                                                 ┘                └─► MemoryFile (tests)
//!   parents of a differencing image ─► ParentGate of the caller ─► nothing, or files in allowed folders
//!   convert ─────────► any of them into any other, holes and zeroes left out
//!   live_allocation ─► block allocation table of an image another process is writing
//!   partitions::read ─► MBR or GPT of any BlockRead
//!   boot ─► can it start in the other generation, and the bytes that make it so
//! ```
//!
//! Life cycle of an image opened for writing: `open` (a pending log is replayed) → `write_at` …
//! → `flush` (what was written before survives a power cut) → `close` (the file is marked clean).
//! An image dropped without `close` is as after a power cut: consistent, and a VHDX keeps its log
//! to be replayed by the next opener.
//!
//! Everything is synchronous and knows nothing of async run times. Bytes from a file are never
//! trusted: what is read although the specification says otherwise is decided in [`deviations`];
//! checksums, offsets and sizes are verified before use, and a broken image gives an
//! [`ImageError`] that names the object, where it lies and why it was refused.

pub mod boot;
mod bytes;
mod convert;
pub mod deviations;
mod error;
mod extent;
mod file;
mod folder_gate;
mod image;
mod info;
mod layer;
mod live;
mod memory;
mod parents;
pub mod partitions;
mod raw;
pub mod vhd;
pub mod vhdx;
mod zero;

pub use convert::{ConvertOptions, Converted, convert};
pub use error::{ErrorKind, ImageError};
pub use extent::Extent;
pub use file::ImageFile;
pub use folder_gate::FolderGate;
pub use image::{Access, BlockRead, CreateOptions, DiskImage, Format};
pub use info::{
    Details, HeaderInfo, ImageInfo, LogInfo, MetadataItemInfo, RegionInfo, VhdInfo, VhdParentInfo,
    VhdxInfo, VhdxParentInfo,
};
pub use layer::{Segment, Source};
pub use live::{LiveAllocation, live_allocation, live_allocation_of};
pub use memory::MemoryFile;
pub use parents::{
    LocatorKind, MAX_CHAIN, NoParents, ParentFile, ParentGate, ParentLocator, SuppliedParents,
};
