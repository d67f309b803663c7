//! What the fuzz targets share: bytes as numbers, small images, checksums put right.

pub mod forge;

/// Reads an input from its start; an exhausted one gives zeroes, so that every input means something.
pub struct Input<'a> {
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    /// All of it.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// The next number of `width` bytes, at most 8, little endian.
    pub fn number(&mut self, width: usize) -> u64 {
        self.take(width.min(8))
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// A number below `limit` from four bytes; 0 when the limit is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.number(4).checked_rem(limit).unwrap_or(0)
    }

    /// Up to `count` bytes.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (now, later) = self.bytes.split_at(count.min(self.bytes.len()));
        self.bytes = later;
        now
    }
}
