//! GRUB's two images for BIOS machines, checked, and told where they will lie.
//!
//! ```text
//!   boot.img   one sector: loads the first sector of core.img          bytes 0..3 and 0x5a..0x1b8 go into LBA 0
//!   core.img   first sector (diskboot.img) loads the rest by its block list at 0x1f4, then the whole decompresses itself
//! ```

use crate::bytes::{le16, le64};

use super::SECTOR;

/// Where boot.img keeps the LBA of core.img.
const BOOT_CORE_LBA: usize = 0x5c;
/// Where boot.img keeps the drive to read from; 0xff is the one the BIOS started from.
const BOOT_DRIVE: usize = 0x64;
/// A jump of boot.img that would skip the BIOS's answer about the drive; two NOPs take it.
const BOOT_DRIVE_CHECK: usize = 0x66;
/// The block list of core.img's first sector: first LBA (8), sectors (2), segment (2).
const CORE_LIST: usize = 0x1f4;
/// GRUB's own limit for a core on BIOS machines.
const MAX_CORE: usize = 0x78000;

/// A boot loader for BIOS machines, as `grub-mkimage` of the host made it.
#[derive(Clone, PartialEq, Eq)]
pub struct BootLoader {
    boot: [u8; SECTOR],
    core: Vec<u8>,
}

/// Why two files are no boot loader that a disk could be given.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoaderError {
    /// Not GRUB's boot.img.
    #[error("GRUB's boot.img is not usable: {0}; install grub-pc-bin again on this host")]
    Boot(&'static str),
    /// Not a core image that this boot.img could load.
    #[error(
        "GRUB's core image is not usable: {0}; install grub-pc-bin and grub-common in the same version on this host"
    )]
    Core(&'static str),
}

impl BootLoader {
    /// Takes the content of `boot.img` and of a core image made with [`super::grub`]'s recipe.
    ///
    /// # Errors
    /// [`LoaderError`] when either is something else.
    pub fn new(boot_img: &[u8], core_img: &[u8]) -> Result<Self, LoaderError> {
        let boot: [u8; SECTOR] = boot_img
            .try_into()
            .map_err(|_| LoaderError::Boot("it is not 512 bytes long"))?;
        if !is_boot_code(&boot) {
            return Err(LoaderError::Boot(
                "it does not look like GRUB's boot sector",
            ));
        }
        if core_img.len() > MAX_CORE {
            return Err(LoaderError::Core("it is too large for a BIOS machine"));
        }
        let Some(first) = core_img.first_chunk::<SECTOR>() else {
            return Err(LoaderError::Core("it is shorter than a sector"));
        };
        if !is_core_start(first) {
            return Err(LoaderError::Core(
                "it does not begin with GRUB's disk loader",
            ));
        }
        let sectors = core_img.len().div_ceil(SECTOR);
        // One run behind the first sector: what is written here in one piece.
        if usize::from(le16(first, CORE_LIST + 8)) != sectors - 1 {
            return Err(LoaderError::Core(
                "its block list does not cover it in one piece",
            ));
        }
        let mut core = core_img.to_vec();
        core.resize(sectors * SECTOR, 0);
        Ok(Self { boot, core })
    }

    /// Bytes of the core image on the disk: whole sectors of 512 bytes.
    pub fn core_bytes(&self) -> u64 {
        self.core.len() as u64
    }

    /// Boot code for a disk whose core image begins at `lba`.
    pub(super) fn boot_code(&self, lba: u64) -> [u8; SECTOR] {
        let mut boot = self.boot;
        put(&mut boot, BOOT_CORE_LBA, &lba.to_le_bytes());
        put(&mut boot, BOOT_DRIVE, &[0xff]);
        put(&mut boot, BOOT_DRIVE_CHECK, &[0x90, 0x90]);
        boot
    }

    /// The core image for that place.
    pub(super) fn core(&self, lba: u64) -> Vec<u8> {
        let mut core = self.core.clone();
        put(&mut core, CORE_LIST, &(lba + 1).to_le_bytes());
        core
    }
}

impl std::fmt::Debug for BootLoader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BootLoader")
            .field("core_bytes", &self.core.len())
            .finish_non_exhaustive()
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    for (place, byte) in bytes.iter_mut().skip(at).zip(value) {
        *place = *byte;
    }
}

/// Whether a boot sector holds GRUB 2's boot code.
pub(super) fn is_boot_code(sector: &[u8; SECTOR]) -> bool {
    sector.ends_with(&[0x55, 0xaa]) && contains(sector, b"GRUB \0Geom\0")
}

/// Where GRUB's boot code expects its core image, as an LBA of 512-byte sectors.
pub(super) fn core_lba(boot: &[u8; SECTOR]) -> u64 {
    le64(boot, BOOT_CORE_LBA)
}

/// Whether a sector is the first one of a core image of GRUB 2.
pub(super) fn is_core_start(sector: &[u8; SECTOR]) -> bool {
    contains(sector, b"loading\0") && contains(sector, b"\0Geom\0")
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}
