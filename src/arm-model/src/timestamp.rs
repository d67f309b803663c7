//! Instants as the API writes them: ISO 8601, UTC, `Z`.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// "Not started yet" of tasks.
pub const NEVER_STARTED: &str = "0001-01-01T00:00:00";
/// "No scenario" of idle items.
pub const NO_SCENARIO: &str = "1753-01-01T01:01:01Z";

/// Writes an instant with millisecond precision.
#[must_use]
pub fn format(instant: OffsetDateTime) -> String {
    let instant = instant.to_offset(time::UtcOffset::UTC);
    let whole = instant
        .replace_millisecond(instant.millisecond())
        .unwrap_or(instant);
    // Only years beyond 9999 can't be written.
    whole.format(&Rfc3339).unwrap_or_default()
}

/// Writes Unix milliseconds; zero and below mean "not known".
#[must_use]
pub fn from_unix_ms(ms: i64) -> Option<String> {
    if ms <= 0 {
        return None;
    }
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .ok()
        .map(format)
}

/// Reads an instant; the API's forms of "never" give `None`.
#[must_use]
pub fn parse(text: &str) -> Option<OffsetDateTime> {
    if text.starts_with("0001-") || text.starts_with("1753-") {
        return None;
    }
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

/// Unix milliseconds of a text.
#[must_use]
pub fn to_unix_ms(text: &str) -> Option<i64> {
    parse(text).and_then(|instant| i64::try_from(instant.unix_timestamp_nanos() / 1_000_000).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_survive_the_text_form() {
        let text = from_unix_ms(1_700_000_000_123).expect("an instant");
        assert_eq!(text, "2023-11-14T22:13:20.123Z");
        assert_eq!(to_unix_ms(&text), Some(1_700_000_000_123));
        assert_eq!(from_unix_ms(0), None);
        assert_eq!(to_unix_ms(NEVER_STARTED), None);
    }
}
