//! What may go wrong while an engine is put onto a host or taken away.

use std::io;
use std::path::Path;

/// What kind of trouble it is, for callers that decide by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeployErrorKind {
    /// The host doesn't answer.
    Unreachable,
    /// The user of this process may not do it.
    PermissionDenied,
    /// The volume is full.
    DiskFull,
    /// The volume is mounted read-only.
    ReadOnly,
    /// A file or folder that must be there isn't.
    Missing,
    /// A path of the deployment is not fit for its purpose, for instance a relative one.
    InvalidPath,
    /// The engine was started and ended, or says that it can't run.
    EngineFailed,
    /// An engine of somebody else is there.
    InUse,
    /// It took longer than allowed.
    TimedOut,
    /// The host's key is not the expected one, or nothing says which one is.
    Untrusted,
    /// The host doesn't let this user in.
    AuthenticationFailed,
    /// The connection was lost; what was begun goes on with the next run.
    Interrupted,
    /// The host is of a kind that this engine does not run on.
    Unsupported,
    /// Anything else.
    Other,
}

/// A failed step of a deployment.
#[derive(Debug, thiserror::Error)]
#[error("{step} {object}: {cause}")]
pub struct DeployError {
    kind: DeployErrorKind,
    step: String,
    object: String,
    cause: String,
    next_step: String,
    #[source]
    source: Option<io::Error>,
}

impl DeployError {
    pub(crate) fn new(
        kind: DeployErrorKind,
        step: impl Into<String>,
        object: impl Into<String>,
        cause: impl Into<String>,
        next_step: impl Into<String>,
    ) -> Self {
        DeployError {
            kind,
            step: step.into(),
            object: object.into(),
            cause: cause.into(),
            next_step: next_step.into(),
            source: None,
        }
    }

    pub(crate) fn io(step: &str, path: &Path, error: io::Error) -> Self {
        let (kind, cause, next) = match error.kind() {
            io::ErrorKind::PermissionDenied => (
                DeployErrorKind::PermissionDenied,
                "permission denied",
                "run as a user that may write there, or choose another folder",
            ),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (
                DeployErrorKind::DiskFull,
                "the volume is full",
                "free space on that volume, or choose another folder",
            ),
            io::ErrorKind::ReadOnlyFilesystem => (
                DeployErrorKind::ReadOnly,
                "the volume is read-only",
                "choose a folder on a volume that can be written",
            ),
            io::ErrorKind::NotFound => (
                DeployErrorKind::Missing,
                "no such file or folder",
                "check the path",
            ),
            io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => (
                DeployErrorKind::InvalidPath,
                "something that is not a folder is in the way",
                "remove it, or choose another folder",
            ),
            _ => (
                DeployErrorKind::Other,
                "input or output failed",
                "look at the cause, then try again",
            ),
        };
        let cause = if kind == DeployErrorKind::Other {
            format!("{cause} ({error})")
        } else {
            cause.to_owned()
        };
        DeployError {
            kind,
            step: step.to_owned(),
            object: path.display().to_string(),
            cause,
            next_step: next.to_owned(),
            source: Some(error),
        }
    }

    /// The same, naming the host that it happened on.
    pub(crate) fn on(mut self, host: &str) -> Self {
        self.object = format!("{} on {host}", self.object);
        self
    }

    /// The same as a failure of the engine, with another next step.
    pub(crate) fn engine_failed(mut self, next_step: String) -> Self {
        self.kind = DeployErrorKind::EngineFailed;
        self.next_step = next_step;
        self
    }

    /// What kind of trouble it is.
    pub fn kind(&self) -> DeployErrorKind {
        self.kind
    }

    /// What was being done, such as `writing`.
    pub fn step(&self) -> &str {
        &self.step
    }

    /// The file, folder, unit or process that it was done to.
    pub fn object(&self) -> &str {
        &self.object
    }

    /// What a person can do about it.
    pub fn next_step(&self) -> &str {
        &self.next_step
    }
}
