//! Fixed VHD: the bytes of the disk and a footer of 512 bytes behind them.

use uuid::Uuid;

use super::footer::{DiskType, Footer, SECTOR};
use crate::{ErrorKind, ImageError};

pub use super::footer::FOOTER_LENGTH;

/// Largest size [`footer`] takes: 64 TiB, what a VHDX may have. Windows and QEMU open fixed VHDs
/// up to [`super::MAX_SIZE`] only; Azure takes larger ones.
pub const MAX_FOOTER_SIZE: u64 = 64 << 40;

/// The footer of a fixed VHD of `size` bytes, created `created_unix` seconds after the Unix epoch.
/// `OutOfRange` unless `size` is a whole number of 512-byte sectors, not 0, and at most 64 TiB.
pub fn footer(size: u64, id: Uuid, created_unix: u64) -> Result<[u8; 512], ImageError> {
    if size == 0 || !size.is_multiple_of(SECTOR) || size > MAX_FOOTER_SIZE {
        return Err(ImageError::new(
            ErrorKind::OutOfRange,
            "fixed VHD",
            format!("a disk of {size} bytes can't be expressed"),
        ));
    }
    Ok(Footer::new(DiskType::Fixed, size, id, created_unix).to_bytes())
}

/// What the footer of a fixed VHD says about its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedFooter {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Unique id of the disk.
    pub id: Uuid,
}

/// Reads and verifies the footer of a fixed VHD.
pub fn parse_footer(bytes: &[u8; 512]) -> Result<FixedFooter, ImageError> {
    let footer = Footer::parse(bytes, "VHD footer", 0)?;
    if footer.disk_type != DiskType::Fixed {
        return Err(ImageError::unsupported(
            "VHD footer",
            "it belongs to no fixed VHD",
        ));
    }
    Ok(FixedFooter {
        size: footer.virtual_size(),
        id: footer.id,
    })
}
