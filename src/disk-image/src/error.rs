//! The one error of this crate: what was refused, where it lies in the file, and why.

use std::fmt;
use std::io;

/// What a caller can decide on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file has no signature of any format that was asked for.
    NotAnImage,
    /// The file is of a known format and its content contradicts that format.
    Corrupt,
    /// Valid, and uses something this crate does not do (unknown required items, for example).
    Unsupported,
    /// A read, write or option lies outside what the disk or the format allows.
    OutOfRange,
    /// The image was opened for reading only.
    ReadOnly,
    /// A differencing image's parent is not allowed, not found, or not the one that it remembers.
    Parent,
    /// The operating system refused the I/O; see [`std::error::Error::source`].
    Io,
    /// An earlier write failed half-way; the image must be closed and opened again.
    Poisoned,
}

/// Why an image could not be opened, read or written.
///
/// The text names the object, its place in the file and the cause, as in
/// `region table 2 at 256 KiB: checksum is 0x00000001, computed 0x1f2e3d4c`.
#[derive(Debug)]
pub struct ImageError {
    kind: ErrorKind,
    object: String,
    at: Option<u64>,
    cause: String,
    source: Option<io::Error>,
}

impl ImageError {
    pub(crate) fn new(
        kind: ErrorKind,
        object: impl Into<String>,
        cause: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            object: object.into(),
            at: None,
            cause: cause.into(),
            source: None,
        }
    }

    pub(crate) fn corrupt(object: impl Into<String>, at: u64, cause: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, object, cause).at(at)
    }

    pub(crate) fn unsupported(object: impl Into<String>, cause: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, object, cause)
    }

    pub(crate) fn checksum(object: impl Into<String>, at: u64, stored: u32, computed: u32) -> Self {
        Self::corrupt(
            object,
            at,
            format!("checksum is {stored:#010x}, computed {computed:#010x}"),
        )
    }

    pub(crate) fn io(object: impl Into<String>, at: u64, doing: &str, source: io::Error) -> Self {
        Self {
            source: Some(source),
            ..Self::new(ErrorKind::Io, object, format!("can't {doing}")).at(at)
        }
    }

    /// A disk that is none of this crate's could not be read: for others' [`crate::BlockRead`].
    pub fn reading(object: impl Into<String>, offset: u64, source: io::Error) -> Self {
        Self::io(object, offset, "read", source)
    }

    pub(crate) fn at(mut self, offset: u64) -> Self {
        self.at = Some(offset);
        self
    }

    /// What a caller can decide on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The object that was refused, as `header 1` or `BAT entry 17`.
    pub fn object(&self) -> &str {
        &self.object
    }

    /// Why it was refused, without object and place.
    pub fn cause(&self) -> &str {
        &self.cause
    }

    /// Byte offset of the object in the file, where it has one.
    pub fn offset(&self) -> Option<u64> {
        self.at
    }

    /// Whether trying the same again may help: only for I/O errors of the operating system.
    pub fn is_retryable(&self) -> bool {
        self.kind == ErrorKind::Io
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.object)?;
        if let Some(at) = self.at {
            write!(f, " at {}", Place(at))?;
        }
        write!(f, ": {}", self.cause)
    }
}

impl std::error::Error for ImageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_ref()
            .map(|e| e as &(dyn std::error::Error + 'static))
    }
}

/// A byte offset as people read it: whole MiB or KiB where it is one.
pub(crate) struct Place(pub(crate) u64);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("byte 0"),
            n if n % (1 << 20) == 0 => write!(f, "{} MiB", n >> 20),
            n if n % (1 << 10) == 0 => write!(f, "{} KiB", n >> 10),
            n => write!(f, "byte {n}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_object_place_and_cause() {
        let error = ImageError::checksum("region table 2", 256 << 10, 1, 0x1f2e_3d4c);
        assert_eq!(
            error.to_string(),
            "region table 2 at 256 KiB: checksum is 0x00000001, computed 0x1f2e3d4c"
        );
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}
