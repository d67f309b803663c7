//! What the next cycle will take, from those before it.
//!
//! A cycle's work is taken as a fixed part and one that grows with its bytes; bytes grow with the time since the cycle
//! before. All are moving averages, so that a quiet night is forgotten in some cycles and one odd cycle changes little.

use std::time::Duration;

/// Weight of the newest cycle.
const NEWEST: f64 = 0.3;
/// Weight of the newest cycle in what is usual for this VM.
const NEWEST_USUAL: f64 = 0.03;
/// Cycles smaller than this tell the fixed part, others the part that grows.
const SMALL_BYTES: f64 = (1 << 20) as f64;

/// An average that begins with its first value.
#[derive(Clone, Copy, Debug, Default)]
struct Average(Option<f64>);

impl Average {
    fn add(&mut self, value: f64, weight: f64) {
        self.0 = Some(match self.0 {
            Some(old) => old + (value - old) * weight,
            None => value,
        });
    }

    fn get(self) -> f64 {
        self.0.unwrap_or(0.0)
    }
}

/// How long a kind of work takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    fixed_seconds: Average,
    seconds_per_byte: Average,
}

impl Work {
    /// Work on so many bytes took so long.
    pub fn add(&mut self, bytes: u64, took: Duration) {
        let (bytes, took) = (bytes as f64, took.as_secs_f64());
        if bytes < SMALL_BYTES {
            self.fixed_seconds.add(took, NEWEST);
        } else {
            let grown = (took - self.fixed_seconds.get()).max(0.0);
            self.seconds_per_byte.add(grown / bytes, NEWEST);
        }
    }

    /// Seconds that work on so many bytes will take.
    pub fn seconds(&self, bytes: f64) -> f64 {
        self.fixed_seconds.get() + bytes * self.seconds_per_byte.get()
    }
}

/// What past cycles tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Predictor {
    bytes_per_second: Average,
    usual_bytes_per_second: Average,
    capture: Work,
    ship: Work,
}

impl Predictor {
    /// A cycle was captured: what had changed since the freeze before it, and how long it took to make it durable.
    pub fn captured(&mut self, since_last: Option<Duration>, bytes: u64, took: Duration) {
        self.capture.add(bytes, took);
        if let Some(since) = since_last.filter(|since| !since.is_zero()) {
            let rate = bytes as f64 / since.as_secs_f64();
            self.bytes_per_second.add(rate, NEWEST);
            self.usual_bytes_per_second.add(rate, NEWEST_USUAL);
        }
    }

    /// A cycle of so many changed bytes was shipped.
    pub fn shipped(&mut self, bytes: u64, took: Duration) {
        self.ship.add(bytes, took);
    }

    /// Seconds from the freeze to the durable record of a cycle that gathers changes for so long.
    pub fn capture_seconds(&self, gap: Duration) -> f64 {
        self.capture
            .seconds(self.bytes_per_second.get() * gap.as_secs_f64())
    }

    /// Seconds of shipping it.
    pub fn ship_seconds(&self, gap: Duration) -> f64 {
        self.ship
            .seconds(self.bytes_per_second.get() * gap.as_secs_f64())
    }

    /// Whether the VM changes far more than it usually does.
    pub fn churn_is_high(&self) -> bool {
        self.bytes_per_second.get() > 2.0 * self.usual_bytes_per_second.get()
    }

    /// The longest gap after which the next point is recoverable within `interval` since the last freeze; at least half of
    /// it. Bytes are taken to grow evenly with the gap.
    pub fn gap_within(&self, interval: Duration) -> Duration {
        let fixed = self.capture.fixed_seconds.get() + self.ship.fixed_seconds.get();
        let per_byte = self.capture.seconds_per_byte.get() + self.ship.seconds_per_byte.get();
        let room = (interval.as_secs_f64() - fixed).max(0.0);
        let gap = room / (1.0 + self.bytes_per_second.get() * per_byte);
        Duration::try_from_secs_f64(gap)
            .unwrap_or(interval)
            .clamp(interval / 2, interval)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn nothing_known_means_the_whole_interval() {
        assert_eq!(Predictor::default().gap_within(SECOND * 30), SECOND * 30);
    }

    #[test]
    fn a_cycle_begins_so_early_that_it_ends_in_time() {
        let mut predictor = Predictor::default();
        for _ in 0..50 {
            // 1 MiB a second, captured at 20 MiB a second, shipped at 10.
            predictor.captured(Some(SECOND * 20), 20 << 20, SECOND);
            predictor.shipped(20 << 20, SECOND * 2);
        }
        let interval = SECOND * 30;
        let gap = predictor.gap_within(interval);
        let end = gap.as_secs_f64() + predictor.capture_seconds(gap) + predictor.ship_seconds(gap);
        assert!((end - 30.0).abs() < 0.1, "{end}");
        assert!(gap < SECOND * 27 && gap > SECOND * 25, "{gap:?}");
    }

    #[test]
    fn high_churn_is_told_from_what_is_usual() {
        let mut predictor = Predictor::default();
        for _ in 0..20 {
            predictor.captured(Some(SECOND), 1000, SECOND);
        }
        assert!(!predictor.churn_is_high());
        for _ in 0..4 {
            predictor.captured(Some(SECOND), 100_000, SECOND);
        }
        assert!(predictor.churn_is_high());
    }

    proptest! {
        #[test]
        fn the_gap_is_always_between_half_and_all_of_the_interval(
            cycles in prop::collection::vec((0u64..1 << 40, 0u64..10_000_000, 0u64..10_000_000, 0u64..1_000_000), 0..50),
            interval in 1u64..100_000,
        ) {
            let mut predictor = Predictor::default();
            for (bytes, capture, ship, since) in cycles {
                predictor.captured(Some(Duration::from_millis(since)), bytes, Duration::from_millis(capture));
                predictor.shipped(bytes, Duration::from_millis(ship));
            }
            let interval = Duration::from_secs(interval);
            let gap = predictor.gap_within(interval);
            prop_assert!(gap >= interval / 2 && gap <= interval);
        }
    }
}
