//! A guest of generation 1 that is one boot sector: it waits for the power button, writes a sector, and ends.

use std::path::Path;
use std::time::{Duration, Instant};

use disk_image::{Access, DiskImage};

pub const SECTOR: usize = 512;
/// Firmware and code take milliseconds on a machine that is not busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// How the guest ends.
#[derive(Clone, Copy)]
pub enum End {
    PowersOff,
    Restarts,
}

/// 16-bit code behind the BIOS: "R" to the serial port, wait for the power button, sector 0 to sector 1, end.
pub fn code(end: End) -> [u8; SECTOR] {
    let mut code = vec![
        0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, // ds = es = 0
        0xba, 0x02, 0x06, 0xb8, 0x00, 0x01, 0xef, // PM1 enable: the power button
        0xba, 0xf8, 0x03, 0xb0, b'R', 0xee, // COM1: it is up
        0xba, 0x00, 0x06, 0xed, 0xf6, 0xc4, 0x01, 0x74, 0xf7, // until PM1 status says pressed
        0xb8, 0x01, 0x03, 0xb9, 0x02, 0x00, // write one sector, the second
        0xba, 0x80, 0x00, 0xbb, 0x00, 0x7c, 0xcd, 0x13, // of the first disk, from here
    ];
    code.extend(match end {
        End::PowersOff => [0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef].as_slice(), // PM1 control: S5
        End::Restarts => [0xb0, 0xfe, 0xe6, 0x64].as_slice(), // keyboard controller: reset
    });
    code.extend([0xf4, 0xeb, 0xfd]);
    let mut sector = [0; SECTOR];
    sector[..code.len()].copy_from_slice(&code);
    sector[SECTOR - 2..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// Makes an image that nobody has open boot it.
pub fn install(image: &Path, end: End) {
    let mut image = DiskImage::open(image, Access::ReadWrite).unwrap();
    image.write_at(&code(end), 0).unwrap();
    image.close().unwrap();
}

/// Waits until the guest of a VM's folder is up.
pub async fn is_up(folder: &Path) {
    let console = folder.join("run/console.log");
    let begin = Instant::now();
    // A file that another process appends to has no event.
    while !std::fs::read(&console).is_ok_and(|text| text.contains(&b'R')) {
        assert!(begin.elapsed() < PATIENCE, "the guest is not up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
