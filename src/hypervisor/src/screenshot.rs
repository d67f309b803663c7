//! A picture of a VM's display.

use std::io::Cursor;

use bytes::Bytes;

const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";
/// Memory that a picture may take while it is read: more than the largest mode of a display needs.
const MOST_MEMORY: usize = 256 << 20;
/// A picture is made smaller by no more than this: below it nothing on it could be told.
const MOST_SHRUNK: u32 = 16;

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

    /// The same picture in at most so many bytes of PNG: as it is, packed better, or else smaller by the least whole number that
    /// suffices, each pixel being the mean of those that it stands for. `None` when it can't be read, or not be made so small.
    #[must_use]
    pub fn within(self, most_bytes: usize) -> Option<Self> {
        if self.png.len() <= most_bytes {
            return Some(self);
        }
        let pixels = Pixels::read(&self.png)?;
        for by in 1..=MOST_SHRUNK {
            let png = pixels.shrunk(by).write()?;
            if png.len() <= most_bytes {
                return Self::from_png(png.into());
            }
        }
        None
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

/// Red, green and blue of each pixel, row by row.
struct Pixels {
    width: u32,
    height: u32,
    rgb: Vec<u8>,
}

impl Pixels {
    fn read(png: &[u8]) -> Option<Self> {
        let mut decoder =
            png::Decoder::new_with_limits(Cursor::new(png), png::Limits { bytes: MOST_MEMORY });
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        let mut reader = decoder.read_info().ok()?;
        let size = reader
            .output_buffer_size()
            .filter(|size| *size <= MOST_MEMORY)?;
        let mut data = vec![0; size];
        let frame = reader.next_frame(&mut data).ok()?;
        data.truncate(frame.buffer_size());
        let samples = frame.color_type.samples();
        let rgb = match samples {
            // Grey, with or without transparency.
            1 | 2 => data
                .chunks_exact(samples)
                .flat_map(|pixel| [pixel[0]; 3])
                .collect(),
            3 => data,
            _ => data
                .chunks_exact(samples)
                .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]])
                .collect(),
        };
        Some(Self {
            width: frame.width,
            height: frame.height,
            rgb,
        })
    }

    fn shrunk(&self, by: u32) -> Self {
        let (width, height) = (self.width.div_ceil(by), self.height.div_ceil(by));
        let mut rgb = Vec::with_capacity(width as usize * height as usize * 3);
        for y in 0..height {
            for x in 0..width {
                rgb.extend_from_slice(&self.mean(x * by, y * by, by));
            }
        }
        Self { width, height, rgb }
    }

    /// Of a square, as far as it lies inside.
    fn mean(&self, x: u32, y: u32, side: u32) -> [u8; 3] {
        let (right, bottom) = ((x + side).min(self.width), (y + side).min(self.height));
        let (mut sums, mut count) = ([0_u32; 3], 0);
        for row in y..bottom {
            for column in x..right {
                let at = (row as usize * self.width as usize + column as usize) * 3;
                let pixel = self.rgb.get(at..at + 3).unwrap_or_default();
                sums.iter_mut()
                    .zip(pixel)
                    .for_each(|(sum, one)| *sum += u32::from(*one));
                count += 1;
            }
        }
        sums.map(|sum| u8::try_from(sum / count.max(1)).unwrap_or(u8::MAX))
    }

    fn write(&self) -> Option<Vec<u8>> {
        let mut png = Vec::new();
        let mut encoder = png::Encoder::new(&mut png, self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::High);
        let mut writer = encoder.write_header().ok()?;
        writer.write_image_data(&self.rgb).ok()?;
        writer.finish().ok()?;
        Some(png)
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

    fn picture(width: u32, height: u32, color: impl Fn(u32, u32) -> [u8; 3]) -> Screenshot {
        let rows = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let rgb = rows.flat_map(|(x, y)| color(x, y)).collect();
        let pixels = Pixels { width, height, rgb };
        Screenshot::from_png(pixels.write().unwrap().into()).unwrap()
    }

    /// As of a photograph: nothing packs it.
    fn noise(x: u32, y: u32) -> [u8; 3] {
        let mut seed = (u64::from(x) << 32 | u64::from(y)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for _ in 0..3 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
        }
        [seed as u8, (seed >> 8) as u8, (seed >> 16) as u8]
    }

    #[test]
    fn a_graphical_desktop_of_any_size_is_kept_smaller_and_not_dropped() {
        let most = 256 << 10;
        for (width, height) in [(1_280, 800), (1_921, 1_079)] {
            let large = picture(width, height, noise);
            assert!(large.png().len() > most);
            let small = large.within(most).unwrap();
            assert!(small.png().len() <= most, "{small:?}");
            let by = width.div_ceil(small.width());
            assert!(by > 1 && small.height() == height.div_ceil(by), "{small:?}");
            Pixels::read(small.png()).unwrap();
        }
        let text = picture(720, 400, |x, _| [if x % 9 < 4 { 170 } else { 0 }; 3]);
        let same = text.clone().within(most).unwrap();
        assert_eq!(same, text, "one that fits stays byte by byte");
    }

    #[test]
    fn what_a_smaller_picture_shows_is_where_it_was() {
        let halves = picture(
            301,
            200,
            |x, _| if x < 150 { [255, 0, 0] } else { [0, 0, 255] },
        );
        let small = Pixels::read(halves.png()).unwrap().shrunk(3);
        assert_eq!((small.width, small.height), (101, 67));
        let at = |x: usize, y: usize| &small.rgb[(y * 101 + x) * 3..][..3];
        assert_eq!((at(0, 0), at(49, 66)), (&[255, 0, 0][..], &[255, 0, 0][..]));
        assert_eq!(
            (at(50, 0), at(100, 66)),
            (&[0, 0, 255][..], &[0, 0, 255][..])
        );
    }

    #[test]
    fn a_damaged_picture_that_is_too_large_is_none() {
        let mut png = picture(600, 600, noise).png().to_vec();
        png.truncate(png.len() / 2);
        let cut = Screenshot::from_png(png.into()).unwrap();
        assert_eq!(cut.within(10_000), None);
    }

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
