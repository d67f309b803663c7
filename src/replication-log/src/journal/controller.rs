//! Chooses the compression level from what the processor and the link can do. Pure: rates come in.
//!
//! Compressing and sending run side by side, so raw bytes leave at the rate of the slower of the two:
//!
//! ```text
//! throughput(level) = min( rate of the compressor(level), rate of the link / ratio(level) )
//! ```
//!
//! A level that was not tried yet is judged by what is known of zstd in general, scaled by what was
//! measured. The lowest level that comes within a few percent of the best is taken, because the
//! processor belongs to the guests. The level moves one step at a time, after enough was measured.

use std::time::Duration;

use super::CompressionLevel;

/// Raw MB/s and stored/raw of typical disk data, by level; only relations between levels matter.
const TYPICAL: [(f64, f64); 10] = [
    (6000.0, 1.0),
    (500.0, 0.42),
    (400.0, 0.405),
    (300.0, 0.385),
    (220.0, 0.383),
    (130.0, 0.372),
    (100.0, 0.365),
    (80.0, 0.360),
    (65.0, 0.358),
    (50.0, 0.355),
];
/// A lower level that is nearly as good is better.
const NEARLY: f64 = 0.97;
/// Raw bytes that a level must have compressed before it is left.
const ENOUGH_BYTES: u64 = 4 << 20;
/// Weight of the newest measurement.
const NEWEST: f64 = 0.3;

/// Holds what was measured. Give it to [`JournalBuilder::adapt`](super::JournalBuilder::adapt) and
/// tell it of the link.
#[derive(Clone, Debug)]
pub struct CompressionController {
    lowest: CompressionLevel,
    highest: CompressionLevel,
    level: CompressionLevel,
    /// Measured in relation to [`TYPICAL`].
    speed: Option<f64>,
    ratio: Option<f64>,
    link_bytes_per_second: Option<f64>,
    at_this_level: u64,
}

impl Default for CompressionController {
    fn default() -> Self {
        Self::new(CompressionLevel::FASTEST, CompressionLevel::HIGHEST)
    }
}

impl CompressionController {
    /// Chooses among these levels; begins with the lowest.
    pub fn new(lowest: CompressionLevel, highest: CompressionLevel) -> Self {
        CompressionController {
            lowest,
            highest: highest.max(lowest),
            level: lowest,
            speed: None,
            ratio: None,
            link_bytes_per_second: None,
            at_this_level: 0,
        }
    }

    /// The level to use now.
    pub fn level(&self) -> CompressionLevel {
        self.level
    }

    /// So many bytes became so many at this level, in this time.
    pub fn observe_compression(
        &mut self,
        level: CompressionLevel,
        raw_bytes: u64,
        stored_bytes: u64,
        took: Duration,
    ) {
        if raw_bytes == 0 || level == CompressionLevel::STORE {
            return;
        }
        let (typical_speed, typical_ratio) = TYPICAL[usize::from(level.number())];
        let seconds = took.as_secs_f64();
        if seconds > 0.0 {
            let speed = raw_bytes as f64 / seconds / 1e6 / typical_speed;
            blend(&mut self.speed, speed);
        }
        let ratio = stored_bytes as f64 / raw_bytes as f64;
        blend(&mut self.ratio, ratio / typical_ratio);
        if level == self.level {
            self.at_this_level = self.at_this_level.saturating_add(raw_bytes);
        }
        self.step();
    }

    /// The store took so many bytes in this time, while it was the one that was waited for.
    pub fn observe_link(&mut self, bytes: u64, took: Duration) {
        let seconds = took.as_secs_f64();
        if bytes == 0 || seconds <= 0.0 {
            return;
        }
        blend(&mut self.link_bytes_per_second, bytes as f64 / seconds);
        self.step();
    }

    /// Raw bytes a second that would leave the host at this level.
    fn throughput(&self, level: u8, link: f64) -> f64 {
        let (speed, ratio) = TYPICAL[usize::from(level)];
        let compressor = speed * 1e6 * self.speed.unwrap_or(1.0);
        let ratio = match level {
            0 => 1.0,
            _ => (ratio * self.ratio.unwrap_or(1.0)).clamp(0.001, 1.0),
        };
        compressor.min(link / ratio)
    }

    /// The level that would be right for good.
    fn wanted(&self) -> u8 {
        let Some(link) = self.link_bytes_per_second else {
            return self.lowest.number();
        };
        let levels = self.lowest.number()..=self.highest.number();
        let best = levels
            .clone()
            .map(|level| self.throughput(level, link))
            .fold(0.0, f64::max);
        levels
            .clone()
            .find(|level| self.throughput(*level, link) >= best * NEARLY)
            .unwrap_or(self.lowest.number())
    }

    fn step(&mut self) {
        let present = self.level.number();
        let wanted = self.wanted();
        // At "store" nothing is measured, so nothing is waited for.
        if wanted == present || (present > 0 && self.at_this_level < ENOUGH_BYTES) {
            return;
        }
        let next = if wanted > present {
            present + 1
        } else {
            present - 1
        };
        self.level = CompressionLevel::new(next);
        self.at_this_level = 0;
    }
}

fn blend(known: &mut Option<f64>, newest: f64) {
    *known = Some(known.map_or(newest, |known| known + (newest - known) * NEWEST));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A machine whose compressor and link have these speeds, in relation to typical ones.
    fn settle(controller: &mut CompressionController, speed: f64, ratio: f64, link_mb: f64) -> u8 {
        for _ in 0..200 {
            let level = controller.level();
            let (typical, packed) = TYPICAL[usize::from(level.number())];
            let raw = 8_000_000u64;
            let stored = (raw as f64 * (packed * ratio).min(1.0)) as u64;
            let seconds = raw as f64 / (typical * speed * 1e6);
            controller.observe_compression(level, raw, stored, Duration::from_secs_f64(seconds));
            let sending = stored as f64 / (link_mb * 1e6);
            controller.observe_link(stored, Duration::from_secs_f64(sending));
        }
        controller.level().number()
    }

    #[test]
    fn a_slow_link_earns_effort_and_a_fast_one_does_not() {
        let at = |link| settle(&mut CompressionController::default(), 1.0, 1.0, link);
        assert_eq!(at(10_000.0), 1, "local");
        assert!(at(5.0) >= 5, "{} at 5 MB/s", at(5.0));
        assert!(at(60.0) > 1 && at(60.0) <= at(5.0));
    }

    #[test]
    fn a_busy_processor_lowers_the_level_again() {
        let mut controller = CompressionController::default();
        let high = settle(&mut controller, 1.0, 1.0, 20.0);
        let low = settle(&mut controller, 0.05, 1.0, 20.0);
        assert!(low < high, "{low} {high}");
    }

    #[test]
    fn without_a_measured_link_the_processor_is_spared() {
        let mut controller = CompressionController::default();
        for _ in 0..100 {
            let took = Duration::from_millis(1);
            controller.observe_compression(controller.level(), 10_000_000, 4_000_000, took);
        }
        assert_eq!(controller.level(), CompressionLevel::FASTEST);
    }

    #[test]
    fn a_link_faster_than_any_compressor_is_fed_raw_where_that_is_allowed() {
        let mut controller =
            CompressionController::new(CompressionLevel::STORE, CompressionLevel::HIGHEST);
        assert_eq!(settle(&mut controller, 0.1, 1.0, 3_000.0), 0);
        assert!(settle(&mut controller, 0.1, 1.0, 5.0) > 0, "and back");
    }

    proptest! {
        #[test]
        fn any_measurements_leave_the_level_in_bounds_and_move_it_by_single_steps(
            lowest in 0u8..10,
            highest in 0u8..10,
            seen in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>()), 0..80),
        ) {
            let (lowest, highest) = (CompressionLevel::new(lowest), CompressionLevel::new(highest));
            let mut controller = CompressionController::new(lowest, highest);
            for (raw, stored, nanos, link) in seen {
                let before = controller.level();
                let took = Duration::from_nanos(nanos);
                if link {
                    controller.observe_link(raw, took);
                } else {
                    controller.observe_compression(before, raw, stored, took);
                }
                let after = controller.level();
                prop_assert!(after >= lowest && after <= highest.max(lowest));
                prop_assert!(after.number().abs_diff(before.number()) <= 1);
            }
        }

        #[test]
        fn a_slower_link_never_settles_on_a_lower_level(
            speed in 0.05f64..4.0, ratio in 0.2f64..2.0, link in 1.0f64..2_000.0, slower in 0.01f64..1.0,
        ) {
            let fast = settle(&mut CompressionController::default(), speed, ratio, link);
            let slow = settle(&mut CompressionController::default(), speed, ratio, link * slower);
            prop_assert!(slow >= fast, "{slow} at {} MB/s, {fast} at {link} MB/s", link * slower);
        }
    }
}
