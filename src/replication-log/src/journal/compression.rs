//! How hard frames are compressed, and when it is not worth trying.

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

/// So many frames in a row that did not shrink make it likely that the next one does not either.
const MISSES: u32 = 4;
/// Then only one frame in so many is tried.
const PROBE: u32 = 16;

/// Remembers whether the last frames shrank.
#[derive(Debug, Default)]
pub(super) struct FrameGauge {
    misses: u32,
    skipped: u32,
}

impl FrameGauge {
    /// Whether the next frame is worth a try.
    pub(super) fn try_next(&mut self) -> bool {
        if self.misses < MISSES {
            return true;
        }
        self.skipped = (self.skipped + 1) % PROBE;
        self.skipped == 0
    }

    /// Takes the result of a try: whether the smaller form is worth unpacking later.
    pub(super) fn pays(&mut self, raw: usize, packed: usize) -> bool {
        let pays = packed < raw - raw / 32;
        self.misses = if pays { 0 } else { self.misses + 1 };
        pays
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_does_not_shrink_is_tried_now_and_then_only() {
        let mut gauge = FrameGauge::default();
        let tries = (0..100)
            .filter(|_| {
                let tried = gauge.try_next();
                if tried {
                    gauge.pays(100_000, 99_000);
                }
                tried
            })
            .count();
        assert_eq!(tries, 4 + 6);
        // As soon as one shrinks, all are tried.
        while !gauge.try_next() {}
        assert!(gauge.pays(100_000, 50_000));
        assert!((0..100).all(|_| gauge.try_next() && gauge.pays(100_000, 50_000)));
    }
}
