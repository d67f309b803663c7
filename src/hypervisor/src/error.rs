//! The error of all drivers: opaque, with a kind for programs and a text that names VM, disk and step.

use std::error::Error as StdError;
use std::fmt;

use crate::VmId;

/// What kind of failure it is, for a caller that must decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The host has no VM of this id.
    VmNotFound,
    /// The VM is off, and the call needs it running; or it went off during the call.
    VmNotRunning,
    /// The VM runs, and the call needs it off.
    VmRunning,
    /// The VM has no such disk.
    DiskNotFound,
    /// A point of this VM is frozen already.
    Busy,
    /// The request contradicts itself or the state of the host.
    InvalidRequest,
    /// `vm.toml` or an image can't be used as it is.
    Configuration,
    /// Not enough room on the host.
    NoSpace,
    /// The hypervisor did not answer, or did not finish, in time. The outcome is unknown.
    Timeout,
    /// The hypervisor answered with an error.
    Refused,
    /// The hypervisor's answer made no sense.
    Protocol,
    /// A file or socket could not be used.
    Io,
    /// A program that the driver needs is missing.
    Missing,
}

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// The same call would fail the same way.
    No,
    /// Nothing was done; the same call may succeed later.
    Yes,
    /// It may have been done: look, then decide.
    UnknownOutcome,
}

/// A failure of a hypervisor driver.
pub struct HypervisorError {
    kind: ErrorKind,
    text: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl HypervisorError {
    /// A failure without a cause below it. `text` is a lower-case fragment that names VM, disk and step.
    pub fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
            source: None,
        }
    }

    /// A failure with its cause.
    pub fn with_source(
        kind: ErrorKind,
        text: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            text: text.into(),
            source: Some(source.into()),
        }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self.kind {
            ErrorKind::VmNotFound
            | ErrorKind::DiskNotFound
            | ErrorKind::InvalidRequest
            | ErrorKind::Configuration
            | ErrorKind::Missing => Retry::No,
            ErrorKind::VmNotRunning
            | ErrorKind::VmRunning
            | ErrorKind::Busy
            | ErrorKind::NoSpace
            | ErrorKind::Refused
            | ErrorKind::Io => Retry::Yes,
            ErrorKind::Timeout | ErrorKind::Protocol => Retry::UnknownOutcome,
        }
    }

    /// The same failure seen from one level above: same kind, this one as the cause.
    #[must_use]
    pub fn context(self, text: impl Into<String>) -> Self {
        Self {
            kind: self.kind,
            text: text.into(),
            source: Some(Box::new(self)),
        }
    }
}

impl fmt::Debug for HypervisorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.text)?;
        let mut cause = StdError::source(self);
        while let Some(inner) = cause {
            write!(f, ": {inner}")?;
            cause = inner.source();
        }
        Ok(())
    }
}

impl fmt::Display for HypervisorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for HypervisorError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.source {
            Some(source) => Some(source.as_ref()),
            None => None,
        }
    }
}

/// A freeze of several VMs that came to nothing; none of them is frozen.
#[derive(Debug, thiserror::Error)]
#[error("freeze a group of vms")]
pub struct GroupFreezeError {
    /// The VM that could not take part; `None` when it was no single one's fault.
    pub vm: Option<VmId>,
    /// Why.
    pub source: HypervisorError,
}
