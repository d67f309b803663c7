//! Extension: drills that start by themselves, `<vault>/drillSchedules/<name>`: the body, and the rules that both ends check.

use serde::{Deserialize, Serialize};

use crate::envelope::Extra;
use crate::plan_action::is_postable;
pub use crate::window::DAYS;

/// Most hours between two drills: a year.
pub const MAX_HOURS: u32 = 365 * 24;
/// Longest time that test VMs are kept, minutes: a week.
pub const MAX_KEEP_MINUTES: u32 = 7 * 24 * 60;
/// How long test VMs are kept when nobody says, minutes.
pub const DEFAULT_KEEP_MINUTES: u32 = 60;
/// Most webhooks.
pub const MAX_WEBHOOKS: usize = 10;
/// Longest address of a webhook, bytes.
pub const MAX_URL: usize = 2_000;
/// `notify`: webhooks are told of drills that failed or were skipped.
pub const ON_FAILURE: &str = "OnFailure";
/// `notify`: webhooks are told of every drill.
pub const ALWAYS: &str = "Always";

/// Properties of a schedule, in requests and answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DrillScheduleProperties {
    /// ARM id of the recovery plan or the protected item.
    pub target_id: String,
    /// Some of [`DAYS`], with `time`.
    pub days: Vec<String>,
    /// Time of day, UTC, `hh:mm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// In place of `days` and `time`: hours from one drill to the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_hours: Option<u32>,
    /// Test VMs are removed so many minutes after their drill.
    pub keep_for_minutes: u32,
    /// Who is told. Answers have scheme and host only, see [`shortened`].
    pub webhooks: Vec<String>,
    /// [`ON_FAILURE`] or [`ALWAYS`].
    pub notify: String,
    /// `false`: no more drills start.
    pub enabled: bool,
    /// Answers: when the next drill starts; absent while it is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_drill_time: Option<String>,
    /// Answers: its drills, newest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<DrillRun>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A drill of a schedule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DrillRun {
    /// When it was due.
    pub due_time: Option<String>,
    /// Older due times that it stands for, too.
    pub missed_drills: u32,
    /// ARM id of its job; empty when there was no drill.
    pub job_id: String,
    /// Why there was no drill; empty when there was one.
    pub skipped_reason: String,
    /// Verdict of its report; empty while it is not over.
    pub verdict: String,
    /// Removal of its VMs.
    pub cleanup: DrillCleanup,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Removal of the VMs of a schedule's drill.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DrillCleanup {
    /// ARM id of its job; empty when none was needed.
    pub job_id: String,
    /// Nothing is left to be removed.
    pub done: bool,
    /// Why the last try failed; empty when it did not.
    pub problem: String,
}

impl Default for DrillScheduleProperties {
    fn default() -> Self {
        Self {
            target_id: String::new(),
            days: Vec::new(),
            time: None,
            every_hours: None,
            keep_for_minutes: DEFAULT_KEEP_MINUTES,
            webhooks: Vec::new(),
            notify: ON_FAILURE.to_owned(),
            enabled: true,
            next_drill_time: None,
            runs: Vec::new(),
            extra: Extra::default(),
        }
    }
}

/// Minute of the day of a time such as `02:30`.
#[must_use]
pub fn minute_of_day(time: &str) -> Option<u32> {
    let (hour, minute) = time.split_once(':')?;
    let number = |text: &str, most: u32| {
        let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        digits
            .then(|| text.parse::<u32>().ok())
            .flatten()
            .filter(|number| *number <= most)
    };
    Some(number(hour, 23)? * 60 + number(minute, 59)?)
}

/// Whether messages may be posted to an address.
#[must_use]
pub fn is_webhook(url: &str) -> bool {
    is_postable(url) && url.len() <= MAX_URL
}

/// Scheme and host: the rest of a webhook's address is often its only secret.
#[must_use]
pub fn shortened(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}/…")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_client_leaves_out_has_the_documented_default() {
        let read: DrillScheduleProperties =
            serde_json::from_value(json!({ "targetId": "x", "everyHours": 24 })).expect("body");
        assert_eq!((read.keep_for_minutes, read.enabled), (60, true));
        assert_eq!(read.notify, ON_FAILURE);
    }

    #[test]
    fn a_time_of_day_is_two_digits_and_two_digits() {
        assert_eq!(minute_of_day("02:30"), Some(150));
        assert_eq!(minute_of_day("23:59"), Some(1_439));
        for wrong in ["2:30", "24:00", "02:60", "0230", "+1:30", "", "02:30:00"] {
            assert_eq!(minute_of_day(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_shortened_address_holds_nothing_but_scheme_and_host() {
        for url in [
            "https://hooks.example/T0/secret",
            "https://user:word@hooks.example?key=1",
            "https://hooks.example#x",
        ] {
            assert_eq!(shortened(url), "https://hooks.example/…", "{url}");
        }
    }
}
