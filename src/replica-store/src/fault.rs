//! Faults for crash tests: what a test may do to every durable step of the store.
//!
//! Two layers ask: the folder before each step that changes a file (`WriterOptions::faults`), and, over
//! any medium, the store before each call of it (`WriterOptions::medium_faults`). The answer models a process that is killed
//! there ([`Fault::Fail`] for this and every later step), a torn write, a full disk, or the nasty
//! case that the step happened and its caller was told otherwise.

use std::cell::Cell;
use std::fmt::Debug;
use std::io;
use std::path::Path;

/// The kind of a durable step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepKind {
    /// A folder is created.
    CreateFolder,
    /// A file is created.
    CreateFile,
    /// Bytes are written to a file.
    Write,
    /// A range becomes zeroes.
    Zero,
    /// The length of a file is set.
    SetLength,
    /// A file's content is made durable.
    Sync,
    /// A file or folder gets its final name.
    Rename,
    /// A folder's names are made durable.
    SyncFolder,
    /// A file or folder is removed.
    Remove,
    /// Of a medium: something is read, looked at or waited for.
    Read,
    /// Of a medium: a small object is written that must not exist.
    Put,
    /// Of a medium: a version of a small object is replaced.
    Replace,
    /// Of a medium: a streamed object gets its name.
    Publish,
    /// Of a medium: base gets a higher fence.
    Fence,
}

/// What happens to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: the step is carried out.
    None,
    /// It is not carried out and fails.
    Fail(io::ErrorKind),
    /// A write is carried out by half and fails; other steps just fail.
    Torn(io::ErrorKind),
    /// It is carried out and reported as failed.
    DoneButFails(io::ErrorKind),
}

/// Decides the fate of each durable step.
pub trait Faults: Debug + Send + Sync {
    /// Called before the step.
    fn before(&self, kind: StepKind, path: &Path) -> Fault;
}

thread_local! {
    static INLINE: Cell<bool> = const { Cell::new(false) };
}

/// From here on file work that is asked for on this thread runs on it, in place of a thread that may
/// wait: for simulations, which must do the same things in the same order each time.
pub fn run_inline(inline: bool) {
    INLINE.with(|flag| flag.set(inline));
}

/// Whether [`run_inline`] is in force on this thread.
pub fn runs_inline() -> bool {
    INLINE.with(Cell::get)
}
