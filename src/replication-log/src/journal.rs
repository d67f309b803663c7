//! The journal object: one cycle of a whole VM, immutable, compressed, checksummed, encrypted if wanted.
//!
//! ```text
//! prelude   magic "SRJRNL\r\n" | version u32 | header length u32 | header | blake3 of all before (32)
//! frames    <= 256 KiB of data each; zstd, or stored when that is not smaller; then AES-256-GCM
//! index     frame table, then entries per disk; zstd, then AES-256-GCM
//! trailer   where the index is and how it is packed | blake3(prelude digest, these numbers, index) | magic
//! ```
//!
//! All numbers little endian. Frames, index and trailer follow each other without gaps, so every
//! byte of the object is accounted for. A frame's checksum is over its *raw* bytes: what is read
//! is what was written, whatever compressor or cipher lay between, and two objects with the same
//! changes have the same [`ContentId`]. The trailer comes last: a cut object has none and is refused.
//!
//! # Changes
//!
//! The entries of a disk are sorted and disjoint: where writes overlap the later one won, neighbours
//! are joined. Blocks of [`BLOCK`] bytes that are zero are entries without data. Objects of version 1,
//! which are still read, keep the order in which the writes were made.
//!
//! # Merged objects
//!
//! Version 3 is version 2 with one more field: which object stands for *several* cycles. It holds the
//! newest version of every range that they changed ([`Merged`]), so replaying it comes to the same as
//! replaying them, and nothing in between can be had any more. Cycles are still written as version 2.
//!
//! # Encryption
//!
//! ```text
//! vault key ─┐
//! salt (32 random bytes, in the header) ─┼─ HKDF-SHA-256 ─► key of this one object
//! digest of the prelude ─────────────────┘                  nonce: frame number (index: its own domain)
//! ```
//!
//! Only the header is in the clear: whose cycle it is, its instant, sizes of disks, the id of the key.
//! Which blocks changed says much about a guest, so the index is encrypted like the data. Every object
//! has a key of its own, under which a nonce is used once because frames are numbered; sending a cycle
//! again draws another salt. The key depends on the prelude, so an object can't be passed off as that
//! of another item, position, generation or time; a frame opens only at its own number; the index says
//! how many frames there are. Compressed lengths are visible.
//!
//! [`JournalBuilder`] streams (it keeps the index, not the data); [`JournalReader`] reads the index
//! once and then any entry by itself. [`CompressionController`] chooses the level.

use uuid::Uuid;

mod build;
mod cipher;
mod compression;
mod controller;
mod coverage;
mod cursor;
mod error;
mod format;
mod index;
mod read;

pub use build::{BuildOptions, Finished, JournalBuilder, Work};
pub use compression::CompressionLevel;
pub use controller::CompressionController;
pub use error::{JournalError, JournalErrorKind};
pub use index::{Entry, EntryData};
pub use read::{Frame, JournalReader, Outline, read_header, read_outline};

/// Most raw bytes in one frame.
pub const FRAME_SIZE: usize = 256 * 1024;

/// What changes are refined to, and zeroes are looked for in.
pub const BLOCK: u64 = 4096;

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

/// That an object stands for several cycles, the last of which its header names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The first position whose changes it holds; at most the header's.
    pub first_position: u64,
    /// So many of the header's disks, counted from the front, are the VM's at the header's position. The
    /// others were excluded on the way: what changed on them is kept for a later cycle that takes them in.
    pub present_disks: u32,
}

/// Identifies what an object says, without the generation that wrote it, compression and encryption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContentId(pub [u8; 32]);
