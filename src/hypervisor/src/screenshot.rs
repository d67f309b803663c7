//! A picture of a VM's display.

use bytes::Bytes;

const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";

/// A picture of a VM's display, as a whole PNG file.
#[derive(Clone, PartialEq, Eq)]
pub struct Screenshot {
    png: Bytes,
    width: u32,
    height: u32,
}

// === impl Screenshot ===

impl Screenshot {
    /// From the bytes of a PNG file. `None` when they don't begin as one with at least one pixel does.
    ///
    /// A PNG file is its signature, then chunks, of which IHDR with width and height is the first (PNG, section 5.3 and 11.2.1).
    #[must_use]
    pub fn from_png(png: Bytes) -> Option<Self> {
        let number = |at: usize| -> Option<u32> {
            let bytes = png.get(at..at + 4)?;
            Some(u32::from_be_bytes(bytes.try_into().ok()?))
        };
        let begins = png.starts_with(&SIGNATURE) && png.get(12..16) == Some(b"IHDR");
        let (width, height) = (number(16)?, number(20)?);
        (begins && width > 0 && height > 0).then_some(Self { png, width, height })
    }

    /// The file.
    #[must_use]
    pub fn png(&self) -> &Bytes {
        &self.png
    }

    /// Pixels.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Pixels.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }
}

impl std::fmt::Debug for Screenshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (width, height, bytes) = (self.width, self.height, self.png.len());
        write!(f, "Screenshot({width}x{height}, {bytes} bytes)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(width: u32, height: u32) -> Vec<u8> {
        let mut png = SIGNATURE.to_vec();
        png.extend(13_u32.to_be_bytes());
        png.extend(b"IHDR");
        png.extend(width.to_be_bytes());
        png.extend(height.to_be_bytes());
        png
    }

    #[test]
    fn size_comes_from_the_header_and_everything_else_is_no_picture() {
        let picture = Screenshot::from_png(header(720, 400).into()).unwrap();
        assert_eq!((picture.width(), picture.height()), (720, 400));
        let whole = header(720, 400);
        for end in 0..whole.len() {
            assert!(Screenshot::from_png(whole[..end].to_vec().into()).is_none());
        }
        for no_picture in [
            header(0, 400),
            header(720, 0),
            b"P6 720 400 255 and more bytes".to_vec(),
        ] {
            assert!(Screenshot::from_png(no_picture.into()).is_none());
        }
    }
}
