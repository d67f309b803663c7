//! Which limit applies at an instant of the week: pure.

use super::bucket::Rate;
use crate::replicator::throttle::Limit;

const MINUTE_MS: i64 = 60_000;

/// The smallest limit whose window is open.
pub fn rate(limits: &[Limit], unix_ms: i64) -> Rate {
    limits
        .iter()
        .filter(|limit| crate::time_window::any_open(&limit.windows, unix_ms))
        .map(|limit| limit.bytes_per_second)
        .min()
        .map_or(Rate::Unlimited, Rate::Limited)
}

/// Milliseconds until the answer may be another one: windows open and close on whole minutes. `None` = never.
pub fn changes_in_ms(limits: &[Limit], unix_ms: i64) -> Option<i64> {
    limits
        .iter()
        .any(|limit| !limit.windows.is_empty())
        .then(|| MINUTE_MS - unix_ms.rem_euclid(MINUTE_MS))
}

#[cfg(test)]
mod tests {
    use engine_protocol::v1;

    use super::*;
    use crate::time_window;

    /// Wednesday 2026-11-25, 12:00 UTC.
    const NOON: i64 = 1_795_608_000_000;
    const HOUR: i64 = 3_600_000;

    fn limit(bytes_per_second: u64, windows: &[(u32, u32)]) -> Limit {
        let windows: Vec<_> = windows
            .iter()
            .map(|(start, end)| v1::TimeWindow {
                start_minute: *start,
                end_minute: *end,
                ..v1::TimeWindow::default()
            })
            .collect();
        Limit {
            bytes_per_second,
            windows: time_window::read_all(&windows).unwrap(),
        }
    }

    #[test]
    fn the_smallest_limit_that_applies_now_counts() {
        let limits = [limit(1000, &[]), limit(10, &[(8 * 60, 18 * 60)])];
        assert_eq!(rate(&limits, NOON), Rate::Limited(10));
        assert_eq!(rate(&limits, NOON + 7 * HOUR), Rate::Limited(1000));
        assert_eq!(rate(&limits[1..], NOON + 7 * HOUR), Rate::Unlimited);
        assert_eq!(rate(&[], NOON), Rate::Unlimited);
    }

    #[test]
    fn a_change_comes_on_a_whole_minute_or_not_at_all() {
        assert_eq!(changes_in_ms(&[limit(1, &[])], NOON + 1), None);
        let windows = [limit(1, &[(0, 60)])];
        assert_eq!(changes_in_ms(&windows, NOON + 1), Some(MINUTE_MS - 1));
        assert_eq!(changes_in_ms(&windows, NOON), Some(MINUTE_MS));
    }
}
