//! How long to wait before trying again: pure, with the random part passed in.

use std::time::Duration;

/// Waits after failures 1, 2, … of shipping: quick at first, then steady, because an outage of the
/// store ends at a time nobody knows and thirty seconds of extra delay is the most we want to add.
pub const SHIP_SECONDS: [u64; 6] = [1, 2, 4, 8, 10, 30];

/// The wait after the `failures`-th failure in a row (1 = first) of shipping a cycle.
pub fn ship_delay(failures: u32) -> Duration {
    let index = (failures.max(1) as usize - 1).min(SHIP_SECONDS.len() - 1);
    Duration::from_secs(SHIP_SECONDS[index])
}

/// The wait before dialling the orchestrator again: doubles from 0.5 s to 30 s, with jitter so that
/// a thousand engines do not come back in the same instant. `unit` is a random number in [0, 1).
pub fn reconnect_delay(failures: u32, unit: f64) -> Duration {
    let exponent = failures.clamp(1, 7) - 1;
    let full = (0.5 * f64::from(1u32 << exponent)).min(30.0);
    Duration::from_secs_f64(full * (0.5 + 0.5 * unit.clamp(0.0, 1.0)))
}

/// A random number in [0, 1), good enough for jitter.
pub fn random_unit() -> f64 {
    let bytes = uuid::Uuid::new_v4().into_bytes();
    f64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipping_waits_grow_to_thirty_seconds_and_stay() {
        let waits: Vec<u64> = (1..=8).map(|n| ship_delay(n).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 10, 30, 30, 30]);
        assert_eq!(ship_delay(0), ship_delay(1));
    }

    #[test]
    fn reconnecting_never_waits_longer_than_thirty_seconds_nor_shorter_than_a_quarter() {
        for failures in 0..100 {
            for unit in [0.0, 0.3, 0.999] {
                let wait = reconnect_delay(failures, unit);
                assert!(
                    wait >= Duration::from_millis(250) && wait <= Duration::from_secs(30),
                    "{failures} {wait:?}"
                );
            }
        }
    }

    #[test]
    fn jitter_spreads_engines() {
        assert!(reconnect_delay(5, 0.0) < reconnect_delay(5, 0.9));
        let unit = random_unit();
        assert!((0.0..1.0).contains(&unit));
    }
}
