//! What a replica needs of the place where it is kept; everything else is written once, above this.
//!
//! ```text
//!            small objects              journal objects            base, one per disk
//!            get, put_new, replace      stage ─► publish, open     base_create, base_open, base_fence
//!            └─ generation, manifest,   └─ immutable               └─ written in place
//!               points, pins ...
//! folder     temporary + rename         temporary + rename         sparse file
//! Azure      block blob, ETag           staged blocks, block list  page blob, sequence number
//! ```
//!
//! Names are relative to the replica (`<vault_key>/<item_id>/` in front of them is the medium's
//! affair) and use `/`. Calls are synchronous; the store makes them from blocking threads, several at
//! once.
//!
//! Promises that every medium keeps, and that the logic above is built on:
//! - An object is there as a whole or not at all. What a call has acknowledged survives a power loss.
//! - [`Medium::put_new`] and [`Staged::publish`] never replace anything, [`Medium::replace`] replaces
//!   only the version that the caller has seen. Of two racing calls one is [`Put::Refused`].
//! - [`Medium::list`] and [`Medium::get`] see every call that was acknowledged before they began.
//! - A failed call says by [`crate::Outcome`] whether it may have happened. Repeating any call is safe.
//!
//! Exclusion is *not* promised for a medium in the network: a section is a lease that may end while
//! its holder sleeps. So the logic never relies on it where wrong bytes could follow: generation and
//! manifest change by `replace` only, and writes to base carry a [`Fence`].

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use disk_image::ImageFile;
use replication_log::ReadAt;

use crate::error::Result;
use crate::model::Generation;

/// Which version of an object was seen.
#[derive(Clone, Debug)]
pub(crate) enum Version {
    /// A file, held open so that its inode number is not used again, and the hash of its content.
    File(Option<Arc<File>>, blake3::Hash),
    /// The entity tag of a blob.
    Etag(String),
}

/// Whether a removal may go on; its error ends the removal.
pub(crate) type Still<'a> = &'a dyn Fn() -> Result<()>;

/// End of a conditional write.
#[derive(Clone, Debug)]
pub(crate) enum Put {
    /// It is durable.
    Done(Version),
    /// Nothing was written: the object exists, or is not the version that was expected.
    Refused,
}

/// What a look at an object found that was seen before.
#[derive(Clone, Debug)]
pub(crate) enum Newer {
    /// It is still that version.
    Unchanged,
    /// It is not there (any more).
    Gone,
    /// It is another one.
    Changed(Vec<u8>, Version),
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Name behind the prefix that was listed.
    pub(crate) name: String,
    /// Bytes.
    pub(crate) length: u64,
}

/// Orders the writers of base. It is in the manifest and grows whenever base gets another writer: at
/// each take-over and each round of maintenance that moves base. Azure: the page blob's sequence
/// number, compared by the service at each write. Folder: compared by the caller in the section.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub(crate) struct Fence(pub(crate) u64);

impl Fence {
    /// The first fence of a generation, above all of older ones: what an older owner may still have
    /// under way is refused also where base was removed and made anew in between.
    pub(crate) fn first_of(generation: Generation) -> Fence {
        // Sequence numbers of page blobs have 63 bits.
        Fence((generation.0.min(u64::from(u32::MAX >> 1)) << 32) | 1)
    }

    /// Above every fence of a generation that is in use, below all of the next one.
    pub(crate) fn last_of(generation: Generation) -> Fence {
        Fence(Fence::first_of(generation).0 | u64::from(u32::MAX))
    }
}

/// A change of base.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    /// These bytes at this offset.
    Data(u64, bytes::Bytes),
    /// So many zeroes at this offset; a hole where the medium has holes.
    Zeroes(u64, u64),
}

/// Immutable bytes that can be read at an offset, from several threads. Errors of reading are
/// [`io::Error`]s; one that wraps a [`crate::StoreError`] (`io::Error::other`) is handed on as it is.
/// `NotFound` when the object is gone.
pub(crate) trait Object: ReadAt + Debug + Send + Sync {}
impl<T: ReadAt + Debug + Send + Sync> Object for T {}

/// The place of one replica.
pub(crate) trait Medium: Debug + Send + Sync {
    /// Where a name is, for messages: a path, or a URL without credentials. The empty name is the
    /// replica itself.
    fn describe(&self, name: &str) -> String;

    /// A small object (at most some MiB) as a whole; `None` when it is not there.
    fn get(&self, name: &str) -> Result<Option<(Vec<u8>, Version)>>;

    /// As `get`, cheaper when it is still `known` (`If-None-Match`).
    fn get_newer(&self, name: &str, known: &Version) -> Result<Newer>;

    /// Writes an object that must not exist (`If-None-Match: *`).
    fn put_new(&self, name: &str, content: &[u8]) -> Result<Put>;

    /// Replaces the version that was seen (`If-Match`).
    fn replace(&self, name: &str, content: &[u8], seen: &Version) -> Result<Put>;

    /// Removes objects of one prefix (base included); those that are gone already are fine. In this
    /// order, so that what is named first is gone first. For names that nobody uses a second time.
    fn remove(&self, names: &[String]) -> Result<()>;

    /// As `remove`, for names that somebody may use again: removes what is there now, if `still` holds after
    /// the look at it. What is put there later stays, however long this call sleeps in between.
    fn remove_while(&self, names: &[String], still: Still<'_>) -> Result<()>;

    /// Removes everything of the replica but this one object, as `remove_while` does; can be repeated after
    /// a cut. Base that belongs to a journal elsewhere is not of the replica.
    fn clear(&self, keep: &str, still: Still<'_>) -> Result<()>;

    /// All objects whose name begins with `prefix` (empty, or ending in `/`), sorted by name, without
    /// what is still being written. A prefix without objects gives none.
    fn list(&self, prefix: &str) -> Result<Vec<Listed>>;

    /// Makes durable what a killed writer may have published without hearing of it.
    fn settle(&self, prefix: &str) -> Result<()>;

    /// Makes what an empty replica needs before the first object (folders, container).
    fn prepare(&self, prefixes: &[&str]) -> Result<()>;

    /// Removes what killed writers left half written under these prefixes.
    fn sweep(&self, prefixes: &[&str]) -> Result<()>;

    /// Begins an object that is streamed. It has its name from [`Staged::publish`] on; dropped
    /// before, it never was. Several may be on their way to one name (Azure: block ids must differ).
    fn stage(&self, name: &str) -> Result<Box<dyn Staged>>;

    /// Opens an object (or base) for reading; `None` when it is not there.
    fn open(&self, name: &str) -> Result<Option<Arc<dyn Object>>>;

    /// Creates base, all zeroes but `footer` in its last bytes, with this fence. May be repeated:
    /// then what is there becomes that again.
    fn base_create(&self, name: &str, length: u64, footer: &[u8], fence: Fence) -> Result<()>;

    /// From here on writes with a lower fence fail. `Overtaken` when a higher one was set.
    fn base_fence(&self, name: &str, fence: Fence) -> Result<()>;

    /// Opens base for writing under a fence; `None` when it is not there.
    fn base_open(&self, name: &str, fence: Fence) -> Result<Option<Arc<dyn BaseWrite>>>;

    /// A disk copy that was brought to the store's side, for reading: the path of a file on this machine,
    /// or the name of a blob in the container. `Invalid` when it is not there.
    fn open_copy(&self, name: &Path) -> Result<Box<dyn ImageFile>>;

    /// Where base is, when that is elsewhere than the rest of the replica.
    fn base_place(&self) -> Option<String> {
        None
    }

    /// The journal elsewhere that base here belongs to, as [`Medium::mark_base`] was told it.
    fn base_owner(&self) -> Result<Option<String>>;

    /// Notes the journal that base here belongs to, in printable ASCII; `Refused` when one is noted.
    fn mark_base(&self, journal: &str) -> Result<Put>;

    /// Takes the place of base for this replica, before base is made. `Invalid` when it belongs to a
    /// replica whose journal is elsewhere.
    fn claim_base(&self) -> Result<()> {
        match self.base_owner()? {
            None => Ok(()),
            Some(owner) => Err(crate::apart::claimed(&self.describe(""), Some(&owner))),
        }
    }

    /// Removes every base here, and the note at last, if they belong to this journal, as `remove_while`
    /// does. Can be repeated.
    fn clear_base(&self, journal: &str, still: Still<'_>) -> Result<()>;

    /// Whether the medium itself compares the fence at every write to base. If not, the caller
    /// compares it in a section, which then must exclude others for certain.
    fn compares_fence(&self) -> bool;

    /// Enters a section; waits for others. With `create` the replica may be new. A medium whose
    /// conditional writes suffice may give a guard that excludes nobody.
    fn enter(&self, section: Section, create: bool) -> Result<Box<dyn Guard>>;
}

/// What a section is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    /// A few small objects change.
    Short,
    /// Only base is written, disjoint ranges by several tasks; excludes short sections.
    Shared,
    /// A round of maintenance, around many short sections: two rounds at once would only waste work
    /// (folder: nothing, Azure: a lease).
    Maintenance,
}

/// Held while in a section; dropping it leaves the section.
pub(crate) trait Guard: Debug + Send {}

/// An object on its way into the store. Writes may be any size; the medium buffers.
pub(crate) trait Staged: io::Write + Debug + Send {
    /// Makes all content durable, still without a name.
    fn seal(&mut self) -> Result<()>;

    /// Gives the sealed object its name, durably. `Refused` when there is an object of that name.
    /// Azure: commits the block list with `If-None-Match: *`; blocks that another's commit has
    /// discarded are `Refused` as well.
    fn publish(self: Box<Self>) -> Result<Put>;
}

/// Base, open for writing. Usable from several threads at once for disjoint ranges.
pub(crate) trait BaseWrite: Debug + Send + Sync {
    /// Bytes, footer included.
    fn length(&self) -> Result<u64>;

    /// Carries out disjoint changes, in any order, several at once where that is faster. Offsets and
    /// lengths may be odd: a medium with pages reads, changes and writes the pages at the edges.
    /// `Overtaken` when a higher fence was set. After a failure any part may have happened.
    fn write(&self, pieces: &[Piece]) -> Result<()>;

    /// Makes all acknowledged writes durable.
    fn flush(&self) -> Result<()>;

    /// Grows to `length`, what is new is zero.
    fn resize(&self, length: u64) -> Result<()>;
}
