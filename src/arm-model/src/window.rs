//! Hours of the week, and rate limits that hold in them (extensions of the API).
//!
//! A window is written as people write it (`Monday`, `18:30`, `+01:00`) and read into minutes by
//! [`TimeWindow::parse`]. A window that ends at or before its start runs over midnight and belongs to the day of its
//! start; without times it lasts the whole day.

use serde::{Deserialize, Serialize};

use crate::validate::Violation;

/// Days as they are written; the index is the number on the wire to engines.
pub const DAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];
/// Farthest time zone, in minutes.
const MAX_OFFSET_MINUTES: u32 = 14 * 60;

/// Hours of the week.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TimeWindow {
    /// Days; empty = every day.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<String>,
    /// `hh:mm`; absent = `00:00`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<String>,
    /// `hh:mm`; absent = `00:00`, the end of the day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time: Option<String>,
    /// Time zone of the times, such as `+01:00`; absent = UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub utc_offset: Option<String>,
}

/// A window in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Minutes {
    /// 0 = Monday; empty = every day.
    pub days: Vec<u32>,
    /// Minute of the day at which it begins.
    pub start: u32,
    /// Minute of the day at which it ends.
    pub end: u32,
    /// Minutes that local time is ahead of UTC.
    pub utc_offset: i32,
}

/// A rate limit. The smallest one that applies now counts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Throttle {
    /// Bytes that go to the store in a second; 0 = nothing is sent.
    pub bytes_per_second: Option<u64>,
    /// When it holds; without days and times always.
    #[serde(flatten)]
    pub window: TimeWindow,
}

// === impl TimeWindow ===

impl TimeWindow {
    /// Whether it names neither days nor times, so that it never ends.
    #[must_use]
    pub fn is_always(&self) -> bool {
        self.days.is_empty() && self.start_time.is_none() && self.end_time.is_none()
    }

    /// The window in numbers.
    ///
    /// # Errors
    /// The part that can't be read.
    pub fn parse(&self) -> Result<Minutes, Violation> {
        if self.days.len() > DAYS.len() {
            return Err(Violation::new(
                format!("A window names {} days.", self.days.len()),
                "Name each day once; without days it is every day.",
            ));
        }
        Ok(Minutes {
            days: self
                .days
                .iter()
                .map(|day| number_of(day))
                .collect::<Result<_, _>>()?,
            start: self.start_time.as_deref().map_or(Ok(0), minute_of_day)?,
            end: self.end_time.as_deref().map_or(Ok(0), minute_of_day)?,
            utc_offset: self.utc_offset.as_deref().map_or(Ok(0), utc_offset)?,
        })
    }
}

// === impl Throttle ===

impl Throttle {
    /// The window in numbers; `None` when the limit always holds.
    ///
    /// # Errors
    /// The part that can't be read, or that is missing.
    pub fn parse(&self) -> Result<(u64, Option<Minutes>), Violation> {
        let rate = self.bytes_per_second.ok_or_else(|| {
            Violation::new(
                "A throttle has no rate.",
                "Give the bytes per second; 0 pauses replication.",
            )
        })?;
        let window = self.window.parse()?;
        Ok((rate, (!self.window.is_always()).then_some(window)))
    }
}

/// The number of a day, in any case.
///
/// # Errors
/// When it is no day.
pub fn number_of(day: &str) -> Result<u32, Violation> {
    DAYS.iter()
        .zip(0..)
        .find(|(known, _)| known.eq_ignore_ascii_case(day))
        .map(|(_, number)| number)
        .ok_or_else(|| {
            Violation::new(
                format!("`{}` is no day of the week.", short(day)),
                "Use `Monday` to `Sunday`.",
            )
        })
}

/// Minute of the day of `hh:mm`.
///
/// # Errors
/// When it is no time of day.
pub fn minute_of_day(text: &str) -> Result<u32, Violation> {
    hours_and_minutes(text)
        .filter(|minutes| *minutes < 24 * 60)
        .ok_or_else(|| {
            Violation::new(
                format!("`{}` is no time of day.", short(text)),
                "Write `hh:mm`, from `00:00` to `23:59`.",
            )
        })
}

/// Minutes of `+hh:mm` or `-hh:mm`; `Z` is none.
///
/// # Errors
/// When it is no time zone.
pub fn utc_offset(text: &str) -> Result<i32, Violation> {
    if text == "Z" {
        return Ok(0);
    }
    let (sign, rest) = match text.split_at_checked(1) {
        Some(("+", rest)) => (1, rest),
        Some(("-", rest)) => (-1, rest),
        _ => (0, ""),
    };
    hours_and_minutes(rest)
        .filter(|minutes| *minutes <= MAX_OFFSET_MINUTES)
        .and_then(|minutes| i32::try_from(minutes).ok())
        .map(|minutes| sign * minutes)
        .ok_or_else(|| {
            Violation::new(
                format!("`{}` is no distance from UTC.", short(text)),
                "Write `+hh:mm` or `-hh:mm`, at most 14 hours.",
            )
        })
}

fn hours_and_minutes(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |part: &str| {
        (part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit()))
            .then(|| part.parse::<u32>().ok())
            .flatten()
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (minutes < 60).then_some(hours * 60 + minutes)
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_window_is_read_into_minutes() {
        let window = TimeWindow {
            days: vec!["monday".to_owned(), "Sunday".to_owned()],
            start_time: Some("18:30".to_owned()),
            end_time: Some("06:00".to_owned()),
            utc_offset: Some("-05:30".to_owned()),
        };
        let minutes = Minutes {
            days: vec![0, 6],
            start: 1110,
            end: 360,
            utc_offset: -330,
        };
        assert_eq!(window.parse(), Ok(minutes));
        assert!(TimeWindow::default().is_always());
    }

    #[test]
    fn what_is_no_day_time_or_zone_is_refused() {
        for time in ["24:00", "6:00", "06:60", "0600", "", "aa:bb"] {
            assert!(minute_of_day(time).is_err(), "{time:?}");
        }
        for zone in ["01:00", "+14:01", "+1", "", "−01:00"] {
            assert!(utc_offset(zone).is_err(), "{zone:?}");
        }
        assert!(number_of("Mon").is_err());
        assert!(Throttle::default().parse().is_err());
        let every_day_twice = TimeWindow {
            days: DAYS
                .iter()
                .chain(&DAYS)
                .map(|day| day.to_string())
                .collect(),
            ..TimeWindow::default()
        };
        assert!(every_day_twice.parse().is_err());
    }

    proptest! {
        #[test]
        fn every_minute_of_the_day_is_read_back(minute in 0..1440_u32) {
            let text = format!("{:02}:{:02}", minute / 60, minute % 60);
            prop_assert_eq!(minute_of_day(&text), Ok(minute));
        }

        #[test]
        fn any_text_is_read_or_refused_and_never_panics(text in ".{0,8}") {
            let _ = minute_of_day(&text);
            let _ = utc_offset(&text);
            let _ = number_of(&text);
        }
    }
}
