//! Checksums on the wire: the service refuses a body that isn't what we sent, we refuse one that isn't what it sent.
//!
//! The blob service's CRC-64 is the one that NVMe uses (reflected polynomial 0x9A6C9329AC4BC9B5, all ones before and
//! after), little endian, in base64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// What goes with bodies of pages and blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integrity {
    /// CRC-64: what Azure verifies, at the speed of memory.
    Crc64,
    /// Nothing: for emulators that refuse CRC-64 and ignore MD5.
    None,
}

/// The header's value for this body.
pub(crate) fn crc64(body: &[u8]) -> String {
    let mut digest = crc64fast_nvme::Digest::new();
    digest.write(body);
    STANDARD.encode(digest.sum64().to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::crc64;

    /// One bit at a time, as the polynomial says.
    fn slow(body: &[u8]) -> u64 {
        let mut value = u64::MAX;
        for byte in body {
            value ^= u64::from(*byte);
            for _ in 0..8 {
                value = if value & 1 == 1 {
                    (value >> 1) ^ 0x9A6C_9329_AC4B_C9B5
                } else {
                    value >> 1
                };
            }
        }
        !value
    }

    #[test]
    fn it_is_the_documented_polynomial() {
        use base64::Engine as _;
        // The catalogue's check value of CRC-64/NVME.
        assert_eq!(slow(b"123456789"), 0xAE8B_1486_0A79_9888);
        for length in [0usize, 1, 9, 511, 512, 4096, 70_000] {
            let body: Vec<u8> = (0..length).map(|n| (n * 7 + n / 251) as u8).collect();
            let expected =
                base64::engine::general_purpose::STANDARD.encode(slow(&body).to_le_bytes());
            assert_eq!(crc64(&body), expected, "{length} bytes");
        }
    }
}
