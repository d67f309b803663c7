//! The journal object: one cycle of a whole VM, immutable, compressed, checksummed.
//!
//! ```text
//! prelude   magic "SRJRNL\r\n" | version u32 | header length u32 | header | blake3 of all before (32)
//! frames    <= 256 KiB of data each, zstd, or stored when that is not smaller
//! index     frame table, then entries per disk
//! trailer   index offset u64 | index length u64 | blake3(prelude digest, both numbers, index) | magic
//! ```
//!
//! All numbers little endian. Frames, index and trailer follow each other without gaps, so every
//! byte of the object is accounted for. A frame's checksum is over its *raw* bytes: what is read
//! is what was written, whatever compressor lay between, and two objects with the same changes
//! have the same [`ContentId`]. A range of zeroes is an entry without data. The trailer comes last:
//! a cut object has none and is refused.
//!
//! [`JournalBuilder`] streams (it keeps the index, not the data); [`JournalReader`] reads the index
//! once and then any entry by itself.

use uuid::Uuid;

mod build;
mod compression;
mod error;
mod format;
mod read;

pub use build::{BuildOptions, Finished, JournalBuilder};
pub use compression::CompressionLevel;
pub use error::{JournalError, JournalErrorKind};
pub use read::{Entry, EntryData, Frame, JournalReader};

/// Most raw bytes in one frame.
pub const FRAME_SIZE: usize = 256 * 1024;

/// Whose cycle an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalHeader {
    /// The protected item; at most 1,024 bytes.
    pub item: String,
    /// Fencing generation of the writer.
    pub generation: u64,
    /// Position in the journal.
    pub position: u64,
    /// The instant at which the source was frozen, milliseconds since the Unix epoch.
    pub time_unix_ms: i64,
    /// The VM's disks, all of them, changed or not; at most 1,024.
    pub disks: Vec<JournalDisk>,
}

/// A disk of the VM, at the time of the cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalDisk {
    /// The virtual disk's GUID.
    pub id: Uuid,
    /// Virtual size, bytes.
    pub size_bytes: u64,
}

/// Identifies what an object says, without the generation that wrote it and without compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContentId(pub [u8; 32]);
