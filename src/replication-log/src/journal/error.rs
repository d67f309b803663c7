//! Errors of journal objects.

use std::io;

/// What went wrong with a journal object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JournalErrorKind {
    /// Reading or writing failed.
    Io,
    /// Bytes do not verify, or the object was cut.
    Corrupt,
    /// A version that this reader does not know.
    Unsupported,
    /// The object is encrypted with a key that the key ring does not hold.
    MissingKey,
    /// The caller's request is out of bounds.
    Invalid,
}

/// An error of a journal object.
#[derive(Debug, thiserror::Error)]
#[error("journal object: {message}")]
pub struct JournalError {
    kind: JournalErrorKind,
    message: String,
    #[source]
    source: Option<io::Error>,
}

impl JournalError {
    /// What went wrong.
    pub fn kind(&self) -> JournalErrorKind {
        self.kind
    }

    /// The input/output error behind it, if there is one.
    pub fn into_io(self) -> Result<io::Error, JournalError> {
        match self {
            JournalError {
                source: Some(source),
                ..
            } => Ok(source),
            other => Err(other),
        }
    }

    pub(super) fn new(kind: JournalErrorKind, message: impl Into<String>) -> Self {
        JournalError {
            kind,
            message: message.into(),
            source: None,
        }
    }

    pub(super) fn corrupt(message: impl Into<String>) -> Self {
        Self::new(JournalErrorKind::Corrupt, message)
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(JournalErrorKind::Invalid, message)
    }
}

impl From<io::Error> for JournalError {
    fn from(source: io::Error) -> Self {
        let (kind, message) = match source.kind() {
            io::ErrorKind::UnexpectedEof => {
                (JournalErrorKind::Corrupt, "file is shorter than it says")
            }
            _ => (JournalErrorKind::Io, "input/output failed"),
        };
        JournalError {
            kind,
            message: message.to_owned(),
            source: Some(source),
        }
    }
}
