//! How hard frames are compressed.

/// A zstd level, or none: frames are then stored as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CompressionLevel(u8);

impl CompressionLevel {
    /// Frames are stored as they are.
    pub const STORE: CompressionLevel = CompressionLevel(0);
    /// The least effort: a host's cycle must not wait for its compressor.
    pub const FASTEST: CompressionLevel = CompressionLevel(1);
    /// The most effort that pays on a slow link.
    pub const HIGHEST: CompressionLevel = CompressionLevel(9);

    /// The nearest level to this number: 0 stores, 1 to 9 are zstd's.
    pub fn new(level: u8) -> Self {
        CompressionLevel(level.min(Self::HIGHEST.0))
    }

    /// The level's number; 0 stores.
    pub fn number(self) -> u8 {
        self.0
    }
}

impl Default for CompressionLevel {
    fn default() -> Self {
        CompressionLevel::FASTEST
    }
}
