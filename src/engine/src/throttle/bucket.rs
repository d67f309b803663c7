//! A token bucket that may go into debt: pure, the clock is passed in.
//!
//! Whoever finds it not in debt may take as much as it needs at once, however large; the debt is what the next one
//! waits for. So no piece is ever too large for a small rate, and over time the rate holds.

use std::time::Duration;

/// How long unused rate is kept for a burst.
const BURST: Duration = Duration::from_millis(250);
const NANOS: i128 = 1_000_000_000;

/// What may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// As much as one likes.
    Unlimited,
    /// So many bytes per second; 0 = nothing.
    Limited(u64),
}

/// When something may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// Now.
    Now,
    /// After so long, at the present rate.
    In(Duration),
    /// Never, at the present rate.
    Paused,
}

/// The bucket. Time is counted from any fixed instant.
#[derive(Clone, Debug)]
pub struct Bucket {
    rate: Rate,
    /// In billionths of a byte, so that no rate loses anything by rounding; below zero = debt.
    level: i128,
    at: Duration,
}

impl Bucket {
    /// Full, at this rate.
    pub fn new(rate: Rate, now: Duration) -> Self {
        Self {
            rate,
            level: most(rate),
            at: now,
        }
    }

    /// What it fills at.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Changes the rate; what was used up at the old one stays used up.
    pub fn set_rate(&mut self, rate: Rate, now: Duration) {
        self.fill(now);
        self.rate = rate;
        self.level = match rate {
            Rate::Unlimited => 0,
            Rate::Limited(_) => self.level.min(most(rate)),
        };
    }

    /// Whether something may be taken.
    pub fn ready(&mut self, now: Duration) -> Ready {
        self.fill(now);
        match self.rate {
            Rate::Unlimited => Ready::Now,
            Rate::Limited(0) => Ready::Paused,
            Rate::Limited(_) if self.level >= 0 => Ready::Now,
            Rate::Limited(rate) => {
                // Rounded up: asked again after it, the debt is paid.
                let nanos = (-self.level + i128::from(rate) - 1) / i128::from(rate);
                Ready::In(Duration::from_nanos(
                    u64::try_from(nanos).unwrap_or(u64::MAX),
                ))
            }
        }
    }

    /// Takes `bytes`, whatever the level.
    pub fn take(&mut self, bytes: u64, now: Duration) {
        self.fill(now);
        if self.rate != Rate::Unlimited {
            self.level -= i128::from(bytes) * NANOS;
        }
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        if let Rate::Limited(rate) = self.rate {
            // Below zero the burst's limit must not cut what a full bucket owes.
            let nanos = i128::try_from(passed.as_nanos()).unwrap_or(i128::MAX / NANOS);
            let filled = self
                .level
                .saturating_add(i128::from(rate).saturating_mul(nanos));
            self.level = filled.min(most(self.rate));
        }
    }
}

/// A full bucket.
fn most(rate: Rate) -> i128 {
    match rate {
        Rate::Unlimited => 0,
        Rate::Limited(rate) => i128::from(rate) * i128::try_from(BURST.as_nanos()).unwrap_or(NANOS),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_piece_larger_than_the_rate_is_let_through_and_paid_for() {
        let mut bucket = Bucket::new(Rate::Limited(1000), Duration::ZERO);
        assert_eq!(bucket.ready(Duration::ZERO), Ready::Now);
        bucket.take(10_250, Duration::ZERO);
        assert_eq!(bucket.ready(Duration::ZERO), Ready::In(SECOND * 10));
        assert_eq!(bucket.ready(SECOND * 10), Ready::Now);
    }

    #[test]
    fn a_raised_rate_shortens_the_wait_at_once() {
        let mut bucket = Bucket::new(Rate::Limited(1000), Duration::ZERO);
        bucket.take(10_250, Duration::ZERO);
        bucket.set_rate(Rate::Limited(10_000), Duration::ZERO);
        assert_eq!(bucket.ready(Duration::ZERO), Ready::In(SECOND));
        bucket.set_rate(Rate::Limited(0), Duration::ZERO);
        assert_eq!(bucket.ready(SECOND * 1000), Ready::Paused);
        bucket.set_rate(Rate::Unlimited, SECOND);
        assert_eq!(bucket.ready(SECOND), Ready::Now);
    }

    proptest! {
        #[test]
        fn over_time_no_more_than_the_rate_is_taken(
            rate in 1u64..10_000_000,
            pieces in prop::collection::vec(1u64..2_000_000, 1..200),
        ) {
            let mut bucket = Bucket::new(Rate::Limited(rate), Duration::ZERO);
            let (mut now, mut sent) = (Duration::ZERO, 0u128);
            for piece in &pieces {
                match bucket.ready(now) {
                    Ready::Now => {}
                    Ready::In(wait) => {
                        now += wait;
                        prop_assert_eq!(bucket.ready(now), Ready::Now, "the wait is enough");
                    }
                    Ready::Paused => prop_assert!(false, "a rate above zero never pauses"),
                }
                // What was sent before this piece kept the rate, but for one burst.
                let allowed = u128::from(rate) * (now + BURST).as_nanos() / 1_000_000_000;
                prop_assert!(sent <= allowed + 1, "{} > {}", sent, allowed);
                bucket.take(*piece, now);
                sent += u128::from(*piece);
            }
        }

        #[test]
        fn a_clock_that_stands_or_goes_back_gives_nothing(rate in 1u64..1_000_000, bytes in 1u64..1_000_000) {
            let mut bucket = Bucket::new(Rate::Limited(rate), SECOND);
            bucket.take(rate + bytes, SECOND);
            let wait = bucket.ready(SECOND);
            prop_assert_eq!(bucket.ready(Duration::ZERO), wait);
        }
    }
}
