//! The throw-away VM's disks and its guest: one boot sector that writes all the time, through the BIOS alone. It runs wherever
//! a generation 1 VM does, and needs no image of an operating system.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use disk_image::{CreateOptions, DiskImage, Format};
use hypervisor::{DiskId, HypervisorError, VmId};

const MIB: u64 = 1 << 20;
/// Virtual sizes of the VM's disks in bytes, that of the guest first. All drivers promise blocks of 64 KiB.
pub const SIZES: [u64; 2] = [16 * MIB, 8 * MIB];
/// Where the guest writes on its first disk; nowhere else.
pub const WRITTEN: std::ops::Range<u64> = MIB..2 * MIB;
/// What is written before the VM is made: known content, which no compressor makes smaller.
const FILLED: [std::ops::Range<u64>; 2] = [4 * MIB..9 * MIB, MIB..3 * MIB];

/// 16-bit code. Every five ticks of the BIOS's clock (0.27 s) it writes one sector (INT 13h, AH = 43h, drive 80h), full of a
/// counter that only grows, into the next of 16 blocks of 64 KiB from 1 MiB on.
const CODE: [u8; 112] = [
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, // segments, stack
    0xa3, 0x00, 0x7e, 0xfc, 0xfb, // counter = 0
    0xa1, 0x00, 0x7e, 0x40, 0xa3, 0x00, 0x7e, // again: counter + 1
    0xbf, 0x00, 0x80, 0xb9, 0x00, 0x01, 0xf3, 0xab, // fills a sector
    0x83, 0xe0, 0x0f, 0xc1, 0xe0, 0x07, 0x05, 0x00, 0x08, 0xa3, 0x18,
    0x7e, // which: 2048 + 128 * (counter % 16)
    0xc7, 0x06, 0x10, 0x7e, 0x10, 0x00, 0xc7, 0x06, 0x12, 0x7e, 0x01,
    0x00, // packet: one sector
    0xc7, 0x06, 0x14, 0x7e, 0x00, 0x80, 0xc7, 0x06, 0x16, 0x7e, 0x00, 0x00, // from 0000:8000
    0xc7, 0x06, 0x1a, 0x7e, 0x00, 0x00, 0xc7, 0x06, 0x1c, 0x7e, 0x00, 0x00, //
    0xc7, 0x06, 0x1e, 0x7e, 0x00, 0x00, 0xbe, 0x10, 0x7e, //
    0xb8, 0x00, 0x43, 0xb2, 0x80, 0xcd, 0x13, // write
    0x8b, 0x1e, 0x6c, 0x04, 0xf4, 0xa1, 0x6c, 0x04, 0x29, 0xd8, 0x83, 0xf8, 0x05, 0x72,
    0xf5, // five ticks
    0xeb, 0xa0, // again
];

/// What writes to the VM's first disk, in [`WRITTEN`] only.
#[async_trait]
pub trait Guest: Send + Sync {
    /// In which it surely writes by itself.
    fn period(&self) -> Duration {
        Duration::from_secs(1)
    }

    /// Lets it write once. A guest that writes all the time has nothing to do.
    ///
    /// # Errors
    /// When it can't.
    async fn write(&self, vm: VmId, disk: DiskId) -> Result<(), HypervisorError>;
}

/// The guest of the boot sector.
pub struct BootSector;

#[async_trait]
impl Guest for BootSector {
    async fn write(&self, _vm: VmId, _disk: DiskId) -> Result<(), HypervisorError> {
        Ok(())
    }
}

/// Makes the VM's disks in `folder`, with the boot sector on the first and known content on both.
///
/// # Errors
/// When a file can't be made.
pub fn make_disk(file: &Path, index: usize, id: DiskId) -> anyhow::Result<()> {
    let step = || format!("make {}", file.display());
    let mut options = CreateOptions::new(Format::VhdxDynamic, SIZES[index]);
    options.block_size = Some(1 << 20);
    options.id = Some(id.0);
    let mut image = DiskImage::create(file, &options).with_context(step)?;
    if index == 0 {
        let mut sector = [0; 512];
        sector[..CODE.len()].copy_from_slice(&CODE);
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        image.write_at(&sector, 0).with_context(step)?;
    }
    let filled = &FILLED[index];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[u8::try_from(index).unwrap_or_default()]);
    let mut content = hasher.finalize_xof();
    let mut piece = vec![0; 1 << 20];
    for offset in filled.clone().step_by(piece.len()) {
        content.fill(&mut piece);
        image.write_at(&piece, offset).with_context(step)?;
    }
    image.close().with_context(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_jumps_go_where_they_say_and_it_writes_only_where_it_says() {
        assert_eq!(CODE[95..99], [0x8b, 0x1e, 0x6c, 0x04]);
        // `jmp again` at 110: 112 - 96 = 16.
        assert_eq!(CODE[110..], [0xeb, 0xa0]);
        assert_eq!(CODE[16], 0xa1);
        let last = 2048 + 128 * 15;
        assert!(2048 * 512 == WRITTEN.start && (last + 1) * 512 <= WRITTEN.end);
        assert!(
            FILLED
                .iter()
                .all(|filled| filled.start >= WRITTEN.end || filled == &FILLED[1])
        );
    }
}
