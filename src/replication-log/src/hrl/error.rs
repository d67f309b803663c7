//! Errors of replica logs.

use std::io;

/// What went wrong with a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HrlErrorKind {
    /// Reading or writing failed.
    Io,
    /// The log was never closed (its writer was cut off): not usable.
    NotClosed,
    /// The writer noted an error in the header: changes may be missing.
    WriterFailed,
    /// Bytes do not verify.
    Corrupt,
    /// A version, file type or operation that this reader does not know.
    Unsupported,
    /// The caller's request is out of bounds.
    Invalid,
}

/// An error of a log file.
#[derive(Debug, thiserror::Error)]
#[error("replication log: {message}")]
pub struct HrlError {
    kind: HrlErrorKind,
    message: String,
    #[source]
    source: Option<io::Error>,
}

impl HrlError {
    /// What went wrong.
    pub fn kind(&self) -> HrlErrorKind {
        self.kind
    }

    pub(super) fn new(kind: HrlErrorKind, message: impl Into<String>) -> Self {
        HrlError {
            kind,
            message: message.into(),
            source: None,
        }
    }

    pub(super) fn corrupt(message: impl Into<String>) -> Self {
        Self::new(HrlErrorKind::Corrupt, message)
    }
}

impl From<io::Error> for HrlError {
    fn from(source: io::Error) -> Self {
        let (kind, message) = match source.kind() {
            io::ErrorKind::UnexpectedEof => (HrlErrorKind::Corrupt, "file is shorter than it says"),
            _ => (HrlErrorKind::Io, "input/output failed"),
        };
        HrlError {
            kind,
            message: message.to_owned(),
            source: Some(source),
        }
    }
}
