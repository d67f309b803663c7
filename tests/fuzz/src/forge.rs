//! Images as a forger makes them: a small real image, some of its structures changed, checksums
//! put right so that the change is looked at.

use crate::Input;

/// Where the structures of an image of this crate's making lie.
pub fn structures(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    const MIB: usize = 1 << 20;
    let mut places = if bytes.starts_with(b"vhdxfile") {
        vec![
            0..600,
            64 << 10..(64 << 10) + 128,
            128 << 10..(128 << 10) + 128,
            192 << 10..(192 << 10) + 160,
            256 << 10..(256 << 10) + 160,
            MIB..MIB + (32 << 10),
            2 * MIB..2 * MIB + 320,
            2 * MIB + (64 << 10)..2 * MIB + (64 << 10) + 512,
            3 * MIB..3 * MIB + 96,
        ]
    } else {
        vec![
            0..512 + 1024 + 64,
            bytes.len().saturating_sub(512)..bytes.len(),
        ]
    };
    places.retain(|place| place.end <= bytes.len() && place.len() >= 8);
    places
}

/// Applies changes until the input ends: each names a structure, a place in it and bytes.
pub fn change(bytes: &mut Vec<u8>, input: &mut Input<'_>) {
    let places = structures(bytes);
    for _ in 0..32 {
        if input.is_empty() || places.is_empty() {
            return;
        }
        let place = &places[usize::from(input.byte()) % places.len()];
        let at = place.start + input.number(2) as usize % place.len();
        let width = usize::from(input.byte() % 40);
        let end = (at + width).min(bytes.len());
        let new = input.take(end - at);
        bytes[at..at + new.len()].copy_from_slice(new);
    }
}

/// Recomputes the checksums of VHDX headers, region tables and log entries, and of VHD structures.
pub fn put_checksums_right(bytes: &mut [u8]) {
    let mut crc = |at: usize, length: usize| {
        if let Some(part) = bytes.get_mut(at..at.saturating_add(length)) {
            part[4..8].fill(0);
            let value = crc32c::crc32c(part);
            part[4..8].copy_from_slice(&value.to_le_bytes());
        }
    };
    for at in [64 << 10, 128 << 10] {
        crc(at, 4096);
    }
    for at in [192 << 10, 256 << 10] {
        crc(at, 64 << 10);
    }
    for sector in 0..8 {
        let at = (1 << 20) + sector * 4096;
        let Some(header) = bytes
            .get(at..at + 12)
            .filter(|header| header.starts_with(b"loge"))
        else {
            continue;
        };
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        if (4096..=1 << 20).contains(&length)
            && let Some(part) = bytes.get_mut(at..at + length)
        {
            part[4..8].fill(0);
            let value = crc32c::crc32c(part);
            part[4..8].copy_from_slice(&value.to_le_bytes());
        }
    }
    let end = bytes.len().saturating_sub(512);
    for (at, length, field) in [(0, 512, 64), (512, 1024, 36), (end, 512, 64)] {
        if let Some(part) = bytes.get_mut(at..at + length)
            && (part.starts_with(b"conectix") || part.starts_with(b"cxsparse"))
        {
            part[field..field + 4].fill(0);
            let sum = part
                .iter()
                .fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
            part[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
        }
    }
}
