//! Writer and reader of MS-HRL files, the replica log of one disk: data first, metadata behind it.
//!
//! ```text
//! | header 4096 | metadata 4096 | data of group 1 | metadata 4096 | data of group 2 | metadata 4096 | <- EOL
//!                 (no entries)
//! ```
//!
//! All fields little endian and packed. A metadata block holds a 32-byte header (distance back to the
//! block before, valid entries, checksum of these 32 bytes) and up to 127 entries of 32 bytes. While
//! the log is open the header says EOL = 0; closing writes the last metadata block, syncs, and only then
//! rewrites the header, so a log is either closed and whole or refused as [`HrlErrorKind::NotClosed`].
//! A log names its predecessor (`previous_id`) and the state of the disk that it belongs to
//! (`data_write_guid`). It does not say how large that disk is.
//!
//! # What we write, and what we read
//!
//! Written strictly by the specification, and like its published example where the text leaves room:
//! cookie padded with a blank, an empty metadata block behind the header, sizes in the header are those
//! of the file, locations and flags zero. Read liberally where real files stray, each with its reason:
//!
//! | what is found | what is done | why |
//! |---|---|---|
//! | cookie padded with NUL | taken | the text gives seven letters in a field of eight |
//! | no data checksum (0) | data is taken unverified | the published example has none; nothing hashes to 0 |
//! | entry checksum made before the data checksum was filled in | taken | the example can't tell the two apart |
//! | metadata checksum over the whole block | taken | our own first release wrote so |
//! | location, flags, reserved bytes, minor version | not looked at | they carry no change of the disk |
//! | first group right behind the header | taken | the text allows it, our first release wrote so |
//! | metadata blocks of another size | taken, 64 bytes to 1 MiB | the header says which |
//! | bytes behind EOL | not looked at | files may be preallocated |
//! | EOL 0 | [`HrlErrorKind::NotClosed`] | the writer was cut off: the tail is unknown |
//! | an error code | [`HrlErrorKind::WriterFailed`] | changes may be missing |
//! | format 1, another file type, another operation | [`HrlErrorKind::Unsupported`] | not published, not changes of a disk |
//!
//! # Zeroes
//!
//! MS-HRL knows one operation, write, so a range of zeroes is a write of zeroes. [`HrlWriter::zero`]
//! leaves it as a hole in the file, which costs no room where the file system has holes, and
//! [`HrlEntry::is_zero`] tells it from the entry alone, without reading the data.

mod error;
mod format;
mod read;
mod write;

use uuid::Uuid;

pub use error::{HrlError, HrlErrorKind};
pub use read::{HrlEntry, HrlReader};
pub use write::{HrlFile, HrlWriter};

/// The most data that one entry of a log of ours has; larger writes are cut.
pub const MAX_ENTRY: usize = 16 << 20;

/// What a log says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HrlInfo {
    /// This log.
    pub id: Uuid,
    /// The log before it of the same disk; nil for the first.
    pub previous_id: Uuid,
    /// State of the disk that the log belongs to.
    pub data_write_guid: Uuid,
    /// Creation time, milliseconds since the Unix epoch (the file keeps whole seconds).
    pub created_unix_ms: i64,
}

impl HrlInfo {
    /// Whether this log is the next one after `previous` in the chain of one disk.
    pub fn follows(&self, previous: &HrlInfo) -> bool {
        !previous.id.is_nil() && self.previous_id == previous.id
    }
}
