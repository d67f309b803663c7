//! What may go wrong in a store, so that a caller can decide and a person can act.
//!
//! Rules: public functions return [`StoreError`]; its `kind` says what to do next, its `outcome`
//! says whether the operation may have happened. The text names the path and the next step, the
//! cause is in `source()`.

use std::io;
use std::path::{Path, PathBuf};

use replication_log::journal::{JournalError, JournalErrorKind};

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The store has no room (ENOSPC, EDQUOT, EFBIG). Retry after room was made.
    Full,
    /// The store can't be written (EROFS, EACCES, EPERM). Retry after it was mended.
    ReadOnly,
    /// A writer with a higher generation owns the replica. Stop for good.
    Fenced,
    /// Somebody has opened the replica, or works on base, under the same generation since. Open it again, then
    /// repeat.
    Overtaken,
    /// Stored bytes do not verify.
    Corrupt,
    /// No such replica, point or disk.
    NotFound,
    /// The point was retired: base has moved past it.
    Expired,
    /// Something uses the replica: pins hold it.
    Pinned,
    /// A journal object is encrypted with a key that was not given.
    MissingKey,
    /// A point is so young that the policy of its making forbids to delete it.
    Immutable,
    /// The request contradicts what is stored: gap, other content at a position, other disks.
    Conflict,
    /// The request is malformed: bad name, range outside the disk.
    Invalid,
    /// Any other input/output failure. Retry later.
    Io,
}

/// Whether a failed operation may have happened all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It surely did not happen.
    NotDone,
    /// It may or may not have happened: look at the state, or repeat (operations are idempotent).
    Unknown,
}

/// An operation on a store failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    kind: ErrorKind,
    outcome: Outcome,
    message: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether it may have happened all the same.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Whether the same call may succeed later without anyone changing the request.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Full | ErrorKind::ReadOnly | ErrorKind::Overtaken | ErrorKind::Io
        )
    }

    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        StoreError {
            kind,
            outcome: Outcome::NotDone,
            message: message.into(),
            source: None,
        }
    }

    /// A call of a medium in the network failed.
    pub(crate) fn remote(
        kind: ErrorKind,
        outcome: Outcome,
        message: String,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        StoreError {
            kind,
            outcome,
            message,
            source: Some(Box::new(source)),
        }
    }

    pub(crate) fn unknown(mut self) -> Self {
        self.outcome = Outcome::Unknown;
        self
    }

    /// An input/output error while `doing` something with `place`.
    pub(crate) fn io(doing: &str, place: &(impl Place + ?Sized), source: io::Error) -> Self {
        // A medium that knows more has said it already.
        let source = match source.downcast::<StoreError>() {
            Ok(known) => return known,
            Err(source) => source,
        };
        let kind = match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => ErrorKind::Full,
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                ErrorKind::ReadOnly
            }
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Io,
        };
        let advice = match kind {
            ErrorKind::Full => ": the store is full, make room or shorten the retention",
            ErrorKind::ReadOnly => {
                ": the store refuses access, make the folder readable and writable for the engine"
            }
            ErrorKind::NotFound => ": it is not there",
            _ => "",
        };
        StoreError {
            kind,
            outcome: Outcome::NotDone,
            message: format!("{doing} {}{advice}", place.place()),
            source: Some(Box::new(source)),
        }
    }

    pub(crate) fn corrupt(place: &(impl Place + ?Sized), what: impl std::fmt::Display) -> Self {
        StoreError::new(
            ErrorKind::Corrupt,
            format!(
                "{} does not verify ({what}): resynchronize the VM to rebuild its replica",
                place.place()
            ),
        )
    }

    pub(crate) fn journal(place: &(impl Place + ?Sized), source: JournalError) -> Self {
        match source.kind() {
            JournalErrorKind::Io => match source.into_io() {
                Ok(source) => StoreError::io("read journal object", place, source),
                Err(source) => StoreError::corrupt(place, source),
            },
            JournalErrorKind::MissingKey => StoreError::new(
                ErrorKind::MissingKey,
                format!("read journal object {}: {source}", place.place()),
            ),
            JournalErrorKind::Invalid => StoreError::new(ErrorKind::Invalid, source.to_string()),
            _ => {
                let mut error = StoreError::corrupt(place, &source);
                error.source = Some(Box::new(source));
                error
            }
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, StoreError>;

/// Names a place in a store, for messages.
pub(crate) trait Place {
    /// A path, or a URL without credentials.
    fn place(&self) -> String;
}

impl Place for Path {
    fn place(&self) -> String {
        self.display().to_string()
    }
}

impl Place for PathBuf {
    fn place(&self) -> String {
        self.display().to_string()
    }
}

impl Place for str {
    fn place(&self) -> String {
        self.to_owned()
    }
}

impl Place for String {
    fn place(&self) -> String {
        self.clone()
    }
}
