//! Fixed VHD: the bytes of the disk and a footer of 512 bytes behind them.

use uuid::Uuid;

use crate::ImageError;

/// Length of the footer in bytes.
pub const FOOTER_LENGTH: u64 = 512;

/// The footer of a fixed VHD of `size` bytes, `created_unix` seconds after the Unix epoch.
/// `OutOfRange` unless `size` is a whole number of sectors, not 0, and at most 2040 GiB.
pub fn footer(_size: u64, _id: Uuid, _created_unix: u64) -> Result<[u8; 512], ImageError> {
    Err(ImageError::unsupported("VHD", "not built yet"))
}
