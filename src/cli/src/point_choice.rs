//! Which recovery point a person means: by id, by kind, or by time.

use anyhow::{Context as _, Result, bail};
use arm_model::recovery_point::{APPLICATION_CONSISTENT, CRASH_CONSISTENT};
use arm_model::{failover, timestamp};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::lookup::text;
use crate::show;

/// What may stand in place of a point's id.
pub const KINDS: &str = "latest, latest-processed, latest-app-consistent, latest-crash-consistent";

/// Points that are chosen by what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The newest, after what was already sent became a point.
    Latest,
    /// The newest that is there.
    LatestProcessed,
    /// The newest with quiesced file systems.
    LatestAppConsistent,
    /// The newest at which the guest was not told.
    LatestCrashConsistent,
}

/// Which point is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// By what it is.
    Kind(Kind),
    /// The newest that is no younger.
    At(Moment),
    /// Id or name.
    Named(String),
}

/// An instant as a person gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    instant: OffsetDateTime,
    /// Tables show points to the second; a time copied from there means any point within that second.
    to_the_second: bool,
}

// === impl Kind ===

impl Kind {
    fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "latest" => Self::Latest,
            "latest-processed" => Self::LatestProcessed,
            "latest-app-consistent" => Self::LatestAppConsistent,
            "latest-crash-consistent" => Self::LatestCrashConsistent,
            _ => return None,
        })
    }

    /// How a plan says it.
    pub fn of_plan(self) -> &'static str {
        match self {
            Self::Latest => failover::LATEST,
            Self::LatestProcessed => failover::LATEST_PROCESSED,
            Self::LatestAppConsistent => failover::LATEST_APPLICATION_CONSISTENT,
            Self::LatestCrashConsistent => failover::LATEST_CRASH_CONSISTENT,
        }
    }
}

// === impl Choice ===

impl Choice {
    /// Reads the options; the newest point without any.
    pub fn parse(point: Option<&str>, at: Option<&str>) -> Result<Self> {
        match (point, at) {
            (Some(point), _) => Ok(match Kind::parse(point) {
                Some(kind) => Self::Kind(kind),
                None if point.starts_with("latest-") => {
                    bail!("`{point}` is no kind of point; there are: {KINDS}")
                }
                None => Self::Named(point.to_owned()),
            }),
            (None, Some(at)) => Ok(Self::At(Moment::parse(at)?)),
            (None, None) => Ok(Self::Kind(Kind::Latest)),
        }
    }

    /// The point among those that there are, oldest first.
    pub fn pick<'a>(&self, points: &'a [Value]) -> Result<&'a Value> {
        let of_kind = |kind: &str| {
            let found = points
                .iter()
                .rfind(|point| text(point, "/properties/recoveryPointType") == kind);
            found.with_context(|| {
                format!(
                    "none of the {} recovery points is {kind}; {}",
                    points.len(),
                    available(points)
                )
            })
        };
        match self {
            Self::Kind(Kind::Latest | Kind::LatestProcessed) => {
                points.last().context("there is no recovery point yet")
            }
            Self::Kind(Kind::LatestAppConsistent) => of_kind(APPLICATION_CONSISTENT),
            Self::Kind(Kind::LatestCrashConsistent) => of_kind(CRASH_CONSISTENT),
            Self::At(moment) => {
                let found = points.iter().rfind(|point| {
                    instant(point).is_some_and(|instant| !moment.is_before(instant))
                });
                found.with_context(|| {
                    format!(
                        "no recovery point is as old as {}; {}",
                        moment.text(),
                        available(points)
                    )
                })
            }
            Self::Named(wanted) => {
                let found = points.iter().find(|point| {
                    ["/id", "/name"]
                        .iter()
                        .any(|key| text(point, key).eq_ignore_ascii_case(wanted))
                });
                found
                    .with_context(|| format!("no recovery point `{wanted}`; {}", available(points)))
            }
        }
    }
}

// === impl Moment ===

impl Moment {
    fn parse(given: &str) -> Result<Self> {
        let joined = given.trim().replacen(' ', "T", 1);
        // Without a zone it is UTC, as everything that the tables show.
        let candidates = [
            joined.clone(),
            format!("{joined}Z"),
            format!("{joined}:00Z"),
        ];
        let instant = candidates
            .iter()
            .find_map(|text| OffsetDateTime::parse(text, &Rfc3339).ok())
            .with_context(|| {
                format!(
                    "`{given}` is no time such as 2031-03-04T05:06:07Z or 2031-03-04T05:06 (UTC)"
                )
            })?;
        Ok(Self {
            instant,
            to_the_second: instant.nanosecond() == 0,
        })
    }

    fn is_before(self, point: OffsetDateTime) -> bool {
        let point = if self.to_the_second {
            point.replace_nanosecond(0).unwrap_or(point)
        } else {
            point
        };
        self.instant < point
    }

    fn text(self) -> String {
        show::time(&timestamp::format(self.instant))
    }
}

/// A point as a person would name it.
pub fn describe(point: &Value) -> String {
    format!(
        "{} ({})",
        show::time(text(point, "/properties/recoveryPointTime")),
        text(point, "/properties/recoveryPointType")
    )
}

fn instant(point: &Value) -> Option<OffsetDateTime> {
    timestamp::parse(text(point, "/properties/recoveryPointTime"))
}

fn available(points: &[Value]) -> String {
    match (points.first(), points.last()) {
        (Some(oldest), Some(newest)) => format!(
            "the oldest is of {}, the newest of {}",
            describe(oldest),
            describe(newest)
        ),
        _ => "there is none yet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn points() -> Vec<Value> {
        [
            ("p1", "2031-03-04T05:00:00.25Z", CRASH_CONSISTENT),
            ("p2", "2031-03-04T05:05:00Z", APPLICATION_CONSISTENT),
            ("p3", "2031-03-04T05:10:00.75Z", CRASH_CONSISTENT),
            ("p4", "2031-03-04T05:15:00Z", "Other"),
        ]
        .map(|(name, time, kind)| {
            json!({ "id": format!("/items/i/recoveryPoints/{name}"), "name": name,
                "properties": { "recoveryPointTime": time, "recoveryPointType": kind } })
        })
        .to_vec()
    }

    fn pick(point: Option<&str>, at: Option<&str>) -> Result<String> {
        let points = points();
        let point = Choice::parse(point, at)?.pick(&points)?;
        Ok(text(point, "/name").to_owned())
    }

    #[test]
    fn a_kind_means_the_newest_of_it() {
        assert_eq!(pick(None, None).unwrap(), "p4");
        assert_eq!(pick(Some("latest-processed"), None).unwrap(), "p4");
        assert_eq!(pick(Some("Latest-App-Consistent"), None).unwrap(), "p2");
        assert_eq!(pick(Some("latest-crash-consistent"), None).unwrap(), "p3");
    }

    #[test]
    fn a_point_is_found_by_name_and_by_id() {
        assert_eq!(pick(Some("P2"), None).unwrap(), "p2");
        assert_eq!(
            pick(Some("/items/i/recoveryPoints/p3"), None).unwrap(),
            "p3"
        );
        let error = pick(Some("p9"), None).unwrap_err().to_string();
        assert!(
            error.contains("`p9`") && error.contains("the oldest is of"),
            "{error}"
        );
    }

    #[test]
    fn a_word_that_looks_like_a_kind_is_never_taken_for_a_name() {
        let error = pick(Some("latest-application"), None)
            .unwrap_err()
            .to_string();
        assert!(error.contains(KINDS), "{error}");
    }

    #[test]
    fn a_time_means_the_newest_point_that_is_no_younger() {
        for (at, point) in [
            ("2031-03-04T05:09:59Z", "p2"),
            ("2031-03-04T05:05:00Z", "p2"),
            ("2031-03-04T06:04:59+01:00", "p1"),
            ("2031-03-04 05:15", "p4"),
            ("2031-03-04 05:14:59", "p3"),
            ("2099-01-01T00:00:00Z", "p4"),
        ] {
            assert_eq!(pick(None, Some(at)).unwrap(), point, "{at}");
        }
    }

    #[test]
    fn a_time_that_was_copied_from_the_table_finds_the_point_it_stood_beside() {
        assert_eq!(pick(None, Some("2031-03-04T05:10:00Z")).unwrap(), "p3");
        assert_eq!(pick(None, Some("2031-03-04T05:10:00.5Z")).unwrap(), "p2");
    }

    #[test]
    fn a_time_before_all_points_is_refused_with_what_there_is() {
        let error = pick(None, Some("2031-03-04T04:00:00Z"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("2031-03-04T04:00:00Z"), "{error}");
        assert!(
            error.contains("the oldest is of 2031-03-04T05:00:00Z (CrashConsistent)"),
            "{error}"
        );
        assert!(
            error.contains("the newest of 2031-03-04T05:15:00Z"),
            "{error}"
        );
        assert!(pick(None, Some("yesterday")).is_err());
    }

    #[test]
    fn a_kind_that_no_point_has_is_refused_with_what_there_is() {
        let choice = Choice::parse(Some("latest-app-consistent"), None).unwrap();
        let only = &points()[..1];
        let error = choice.pick(only).unwrap_err().to_string();
        assert!(
            error.contains("none of the 1 recovery points is ApplicationConsistent"),
            "{error}"
        );
        assert!(choice.pick(&[]).is_err());
    }
}
