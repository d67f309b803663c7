//! What may go wrong with the blob service, so that a caller can decide and a person can act.
//!
//! Rules: `kind` says what to do next, `outcome` says whether the call may have happened. The text names the
//! object and the next step; the cause is in `source()`. Nothing here carries a credential.

use crate::redact::redact;

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such container, blob, snapshot or lease.
    NotFound,
    /// It is there already (a condition said that it must not be).
    AlreadyExists,
    /// An ETag or lease condition did not hold: somebody else changed or holds the blob.
    ConditionNotMet,
    /// A sequence number condition did not hold: the blob belongs to a higher generation.
    SequenceNumberConditionNotMet,
    /// The credential was refused or has expired, and no newer one came in time.
    Unauthorized,
    /// The credential is good, yet doesn't allow this.
    Forbidden,
    /// The service asks to slow down (429, 503), and did so for too long.
    Throttled,
    /// The service or the way to it is down, or answered too late.
    Unavailable,
    /// Bytes were changed on their way; they were refused.
    IntegrityMismatch,
    /// The service refuses the request as such: it would be refused again.
    Invalid,
    /// This account can't do it (a page blob account takes no block blobs).
    Unsupported,
    /// The blob is longer than anything that is read as a whole.
    TooLarge,
}

/// Whether a failed call may have happened all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It surely did not happen.
    NotDone,
    /// It may or may not have happened: look, or repeat under a condition.
    Unknown,
}

/// A call of the blob service failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    outcome: Outcome,
    message: String,
    code: Option<String>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Text of a cause that went through [`redact`]; the original may hold a URL with its signature.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Cause(String);

impl Error {
    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether it may have happened all the same.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// The service's own error code, such as `ServerBusy`.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// Whether the same call may succeed later without anyone changing it.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Throttled
                | ErrorKind::Unavailable
                | ErrorKind::Unauthorized
                | ErrorKind::IntegrityMismatch
        )
    }

    /// The program ended, or something vanished, while a call was under way.
    pub fn interrupted(doing: &str) -> Self {
        Error::new(ErrorKind::Unavailable, format!("{doing}: interrupted")).unknown()
    }

    /// A caller has seen for itself that a blob has a higher sequence number than it may write under.
    pub fn fenced(name: &str) -> Self {
        Error::new(
            ErrorKind::SequenceNumberConditionNotMet,
            format!("page blob {name} has a higher sequence number"),
        )
    }

    pub(crate) fn new(kind: ErrorKind, message: impl AsRef<str>) -> Self {
        Error {
            kind,
            outcome: Outcome::NotDone,
            message: redact(message.as_ref()),
            code: None,
            source: None,
        }
    }

    pub(crate) fn unknown(mut self) -> Self {
        self.outcome = Outcome::Unknown;
        self
    }

    pub(crate) fn with_code(mut self, code: &str) -> Self {
        self.code = Some(redact(code));
        self
    }

    /// Hangs the cause on, as text without credentials.
    pub(crate) fn caused_by(mut self, cause: &dyn std::error::Error) -> Self {
        let mut text = redact(&cause.to_string());
        let mut next = cause.source();
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&redact(&cause.to_string()));
            next = cause.source();
        }
        self.source = Some(Box::new(Cause(text)));
        self
    }
}

pub(crate) type Result<T> = std::result::Result<T, Error>;
