//! Hours of the week in which something may happen: pure, the clock is passed in.
//!
//! A window that ends at or before its start runs over midnight and belongs to the day of its start.

use engine_protocol::v1;

const DAY_MINUTES: i64 = 24 * 60;
const WEEK_MINUTES: i64 = 7 * DAY_MINUTES;
const MINUTE_MS: i64 = 60_000;
/// 1970-01-01 was a Thursday; weeks begin on Monday.
const EPOCH_MINUTE_OF_WEEK: i64 = 3 * DAY_MINUTES;
/// No place on Earth is further from UTC than this.
const MOST_OFFSET_MINUTES: i32 = 18 * 60;

/// Hours of some days of the week.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TimeWindow {
    /// By day, Monday first.
    days: [bool; 7],
    start_minute: i64,
    length_minutes: i64,
    utc_offset_minutes: i64,
}

impl TimeWindow {
    /// Reads a message; the error is for a finding.
    pub fn read(message: &v1::TimeWindow) -> Result<Self, String> {
        let mut days = [message.days.is_empty(); 7];
        for day in &message.days {
            match days.get_mut(*day as usize) {
                Some(day) => *day = true,
                None => return Err(format!("a time window names day {day} of the week")),
            }
        }
        let (start, end) = (
            i64::from(message.start_minute),
            i64::from(message.end_minute),
        );
        if start >= DAY_MINUTES || end > DAY_MINUTES {
            return Err(format!(
                "a time window from minute {start} to {end} is not within a day"
            ));
        }
        if message.utc_offset_minutes.abs() > MOST_OFFSET_MINUTES {
            return Err(format!(
                "a time window is {} minutes from UTC",
                message.utc_offset_minutes
            ));
        }
        let length_minutes = if end > start {
            end - start
        } else {
            end + DAY_MINUTES - start
        };
        Ok(Self {
            days,
            start_minute: start,
            length_minutes,
            utc_offset_minutes: message.utc_offset_minutes.into(),
        })
    }

    /// Whether the instant lies in the window.
    pub fn contains(&self, unix_ms: i64) -> bool {
        let now = self.minute_of_week(unix_ms);
        self.starts()
            .any(|start| (now - start).rem_euclid(WEEK_MINUTES) < self.length_minutes)
    }

    /// Milliseconds until the window opens next; 0 while it is open.
    pub fn opens_in_ms(&self, unix_ms: i64) -> i64 {
        if self.contains(unix_ms) {
            return 0;
        }
        let now = self.minute_of_week(unix_ms);
        let minutes = self
            .starts()
            .map(|start| (start - now).rem_euclid(WEEK_MINUTES))
            .min()
            .unwrap_or(WEEK_MINUTES);
        // `now` was rounded down to a whole minute.
        minutes * MINUTE_MS - unix_ms.rem_euclid(MINUTE_MS)
    }

    fn starts(&self) -> impl Iterator<Item = i64> {
        let start = self.start_minute;
        let days = self.days;
        (0i64..)
            .zip(days)
            .filter(|(_, on)| *on)
            .map(move |(day, _)| day * DAY_MINUTES + start)
    }

    fn minute_of_week(&self, unix_ms: i64) -> i64 {
        let minutes = unix_ms.div_euclid(MINUTE_MS);
        (minutes + EPOCH_MINUTE_OF_WEEK + self.utc_offset_minutes).rem_euclid(WEEK_MINUTES)
    }
}

/// Reads all windows of a message.
pub fn read_all(messages: &[v1::TimeWindow]) -> Result<Vec<TimeWindow>, String> {
    messages.iter().map(TimeWindow::read).collect()
}

/// Whether one of the windows is open; without windows it always is.
pub fn any_open(windows: &[TimeWindow], unix_ms: i64) -> bool {
    windows.is_empty() || windows.iter().any(|window| window.contains(unix_ms))
}

/// Milliseconds until one of the windows opens; 0 while one is open, or when there is none.
pub fn opens_in_ms(windows: &[TimeWindow], unix_ms: i64) -> i64 {
    windows
        .iter()
        .map(|window| window.opens_in_ms(unix_ms))
        .min()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn window(days: &[u32], start: u32, end: u32, offset: i32) -> TimeWindow {
        TimeWindow::read(&v1::TimeWindow {
            days: days.to_vec(),
            start_minute: start,
            end_minute: end,
            utc_offset_minutes: offset,
        })
        .unwrap()
    }

    /// 2026-11-25 is a Wednesday.
    const WEDNESDAY_NOON: i64 = 1_795_608_000_000;
    const HOUR: i64 = 3_600_000;

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_of_its_start() {
        let night = window(&[2], 22 * 60, 6 * 60, 0);
        assert!(!night.contains(WEDNESDAY_NOON));
        assert!(night.contains(WEDNESDAY_NOON + 11 * HOUR));
        assert!(night.contains(WEDNESDAY_NOON + 17 * HOUR));
        assert!(!night.contains(WEDNESDAY_NOON + 18 * HOUR));
        assert!(
            !night.contains(WEDNESDAY_NOON - 8 * HOUR),
            "Tuesday's night"
        );
        assert_eq!(night.opens_in_ms(WEDNESDAY_NOON), 10 * HOUR);
    }

    #[test]
    fn minutes_are_counted_in_the_windows_own_time() {
        let morning = window(&[], 8 * 60, 9 * 60, 60);
        assert!(morning.contains(WEDNESDAY_NOON - 5 * HOUR));
        assert!(!morning.contains(WEDNESDAY_NOON - 4 * HOUR));
    }

    #[test]
    fn equal_start_and_end_is_a_whole_day_and_no_window_is_always() {
        assert!(window(&[2], 0, 0, 0).contains(WEDNESDAY_NOON));
        assert!(!window(&[3], 0, 0, 0).contains(WEDNESDAY_NOON));
        assert!(any_open(&[], 5) && opens_in_ms(&[], 5) == 0);
    }

    #[test]
    fn windows_outside_of_a_week_are_refused() {
        for (days, start, end, offset) in [
            (vec![7], 0, 60, 0),
            (vec![], 1440, 1, 0),
            (vec![], 0, 1441, 0),
            (vec![], 0, 60, 5000),
        ] {
            let message = v1::TimeWindow {
                days,
                start_minute: start,
                end_minute: end,
                utc_offset_minutes: offset,
            };
            assert!(TimeWindow::read(&message).is_err(), "{message:?}");
        }
    }

    proptest! {
        #[test]
        fn a_window_opens_exactly_when_it_says(
            days in proptest::collection::vec(0u32..7, 0..4), start in 0u32..1440, end in 0u32..=1440,
            offset in -720i32..=840, now in 0i64..4_000_000_000_000
        ) {
            let window = window(&days, start, end, offset);
            let wait = window.opens_in_ms(now);
            prop_assert!(wait >= 0);
            prop_assert!(window.contains(now + wait));
            if wait > 0 {
                prop_assert!(!window.contains(now) && !window.contains(now + wait - 1));
            }
        }
    }
}
