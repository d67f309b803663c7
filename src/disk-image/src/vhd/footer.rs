//! The 512-byte footer of every VHD: big endian, with a byte-sum checksum.
//!
//! ```text
//!   0 "conectix"   8 features   12 version   16 data offset   24 time since 2000   28 creator
//!  32 creator version   36 creator host   40 original size   48 current size   56 geometry
//!  60 type   64 checksum   68 unique id   84 saved state
//! ```

use uuid::Uuid;

use crate::bytes::{array, be16, be32, be64, put};
use crate::{ErrorKind, ImageError};

/// Length of the footer in bytes.
pub const FOOTER_LENGTH: u64 = 512;
/// Bytes of a VHD sector.
pub(crate) const SECTOR: u64 = 512;
/// Largest disk that Windows and QEMU accept in a VHD: 2040 GiB.
pub const MAX_SIZE: u64 = 2040 << 30;

pub(crate) const COOKIE: &[u8; 8] = b"conectix";
const VERSION: u32 = 0x0001_0000;
/// Bit 1 of the features is reserved and always set.
const FEATURES: u32 = 2;
const CHECKSUM_AT: usize = 64;
/// 2000-01-01T00:00:00Z in Unix time.
const EPOCH_2000: u64 = 946_684_800;
/// The largest disk that cylinders, heads and sectors can express, in sectors.
const MAX_CHS_SECTORS: u64 = 65535 * 16 * 255;

/// Kind of a VHD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskType {
    Fixed,
    Dynamic,
    Differencing,
}

/// A footer whose checksum and fields were verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) data_offset: u64,
    pub(crate) timestamp: u32,
    pub(crate) creator: [u8; 4],
    pub(crate) creator_version: u32,
    pub(crate) creator_os: [u8; 4],
    pub(crate) original_size: u64,
    pub(crate) current_size: u64,
    pub(crate) geometry: (u16, u8, u8),
    pub(crate) disk_type: DiskType,
    pub(crate) id: Uuid,
    pub(crate) saved_state: bool,
}

impl Footer {
    /// A footer for a new disk. The creator says Windows, because readers (QEMU among them) take
    /// the size of disks by unknown creators from the rounded geometry.
    pub(crate) fn new(disk_type: DiskType, size: u64, id: Uuid, created_unix: u64) -> Self {
        Self {
            data_offset: if disk_type == DiskType::Fixed {
                u64::MAX
            } else {
                FOOTER_LENGTH
            },
            timestamp: u32::try_from(created_unix.saturating_sub(EPOCH_2000)).unwrap_or(u32::MAX),
            creator: *b"win ",
            creator_version: 0x000a_0000,
            creator_os: *b"Wi2k",
            original_size: size,
            current_size: size,
            geometry: geometry(size),
            disk_type,
            id,
            saved_state: false,
        }
    }

    /// Reads the footer in `bytes` that lies at `at` of the file; `object` names it in errors.
    pub(crate) fn parse(bytes: &[u8; 512], object: &str, at: u64) -> Result<Self, ImageError> {
        if array::<8>(bytes, 0) != *COOKIE {
            return Err(ImageError::new(
                ErrorKind::NotAnImage,
                object,
                "the signature conectix is missing",
            )
            .at(at));
        }
        let (stored, computed) = (be32(bytes, CHECKSUM_AT), checksum(bytes, CHECKSUM_AT));
        if stored != computed {
            return Err(ImageError::checksum(object, at, stored, computed));
        }
        let version = be32(bytes, 12);
        if version >> 16 != VERSION >> 16 {
            return Err(ImageError::unsupported(
                object,
                format!("format version {version:#010x} is unknown"),
            )
            .at(at));
        }
        let disk_type = match be32(bytes, 60) {
            2 => DiskType::Fixed,
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            other => {
                return Err(ImageError::corrupt(
                    object,
                    at,
                    format!("disk type {other} is unknown"),
                ));
            }
        };
        Ok(Self {
            data_offset: be64(bytes, 16),
            timestamp: be32(bytes, 24),
            creator: array(bytes, 28),
            creator_version: be32(bytes, 32),
            creator_os: array(bytes, 36),
            original_size: be64(bytes, 40),
            current_size: be64(bytes, 48),
            geometry: (be16(bytes, 56), bytes[58], bytes[59]),
            disk_type,
            id: Uuid::from_bytes(array(bytes, 68)),
            saved_state: bytes[84] != 0,
        })
    }

    /// The footer as stored.
    pub(crate) fn to_bytes(&self) -> [u8; 512] {
        let mut bytes = [0; 512];
        put(&mut bytes, 0, COOKIE);
        put(&mut bytes, 8, &FEATURES.to_be_bytes());
        put(&mut bytes, 12, &VERSION.to_be_bytes());
        put(&mut bytes, 16, &self.data_offset.to_be_bytes());
        put(&mut bytes, 24, &self.timestamp.to_be_bytes());
        put(&mut bytes, 28, &self.creator);
        put(&mut bytes, 32, &self.creator_version.to_be_bytes());
        put(&mut bytes, 36, &self.creator_os);
        put(&mut bytes, 40, &self.original_size.to_be_bytes());
        put(&mut bytes, 48, &self.current_size.to_be_bytes());
        put(&mut bytes, 56, &self.geometry.0.to_be_bytes());
        bytes[58] = self.geometry.1;
        bytes[59] = self.geometry.2;
        let disk_type: u32 = match self.disk_type {
            DiskType::Fixed => 2,
            DiskType::Dynamic => 3,
            DiskType::Differencing => 4,
        };
        put(&mut bytes, 60, &disk_type.to_be_bytes());
        put(&mut bytes, 68, self.id.as_bytes());
        bytes[84] = u8::from(self.saved_state);
        let sum = checksum(&bytes, CHECKSUM_AT);
        put(&mut bytes, CHECKSUM_AT, &sum.to_be_bytes());
        bytes
    }

    /// Size of the disk. Virtual PC and old QEMU mean the geometry, everybody else the current
    /// size; a geometry at its maximum can't be meant by anyone.
    pub(crate) fn virtual_size(&self) -> u64 {
        let (cylinders, heads, sectors) = self.geometry;
        let by_geometry = u64::from(cylinders) * u64::from(heads) * u64::from(sectors);
        let means_geometry = matches!(&self.creator, b"vpc " | b"qemu");
        if means_geometry && by_geometry != 0 && by_geometry < MAX_CHS_SECTORS {
            by_geometry * SECTOR
        } else {
            self.current_size
        }
    }
}

/// One's complement of the byte sum, the field of four bytes at `field` left out.
pub(crate) fn checksum(bytes: &[u8], field: usize) -> u32 {
    let sum = |part: &[u8]| {
        part.iter()
            .fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))
    };
    !sum(&bytes[..field]).wrapping_add(sum(&bytes[field + 4..]))
}

/// Cylinders, heads and sectors per track by the algorithm of the VHD specification.
pub(crate) fn geometry(size: u64) -> (u16, u8, u8) {
    let total = (size / SECTOR).min(MAX_CHS_SECTORS);
    let (heads, sectors, tracks);
    if total >= 65535 * 16 * 63 {
        (sectors, heads) = (255, 16);
        tracks = total / sectors;
    } else {
        let mut s = 17;
        let mut t = total / s;
        let mut h = t.div_ceil(1024).max(4);
        if t >= h * 1024 || h > 16 {
            (s, h) = (31, 16);
            t = total / s;
        }
        if t >= h * 1024 {
            (s, h) = (63, 16);
            t = total / s;
        }
        (sectors, heads, tracks) = (s, h, t);
    }
    (
        u16::try_from(tracks / heads).unwrap_or(u16::MAX),
        heads as u8,
        sectors as u8,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn footer_reads_back_what_was_written() {
        let id = Uuid::from_u128(7);
        let footer = Footer::new(DiskType::Fixed, 3 << 30, id, EPOCH_2000 + 5);
        assert_eq!(footer.timestamp, 5);
        assert_eq!(
            Footer::parse(&footer.to_bytes(), "footer", 0).unwrap(),
            footer
        );
    }

    #[test]
    fn every_flipped_bit_of_the_footer_is_found() {
        let good =
            Footer::new(DiskType::Dynamic, 3 << 30, Uuid::from_u128(7), EPOCH_2000).to_bytes();
        for bit in 0..512 * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Footer::parse(&bad, "footer", 0).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn geometry_follows_the_specification() {
        assert_eq!(geometry(64 << 20), (963, 8, 17));
        assert_eq!(geometry(127 << 30), (65278, 16, 255));
        assert_eq!(geometry(2040 << 30), (65535, 16, 255));
        assert_eq!(geometry(0), (0, 4, 17));
    }

    #[test]
    fn virtual_pc_disks_have_the_size_of_their_geometry() {
        let mut footer = Footer::new(DiskType::Fixed, 64 << 20, Uuid::nil(), EPOCH_2000);
        assert_eq!(footer.virtual_size(), 64 << 20);
        footer.creator = *b"vpc ";
        assert_eq!(footer.virtual_size(), 963 * 8 * 17 * 512);
        footer.geometry = (65535, 16, 255);
        assert_eq!(footer.virtual_size(), 64 << 20);
    }
}
