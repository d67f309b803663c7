//! When a scheduled drill is due: pure, in UTC, so that no hour is missing or there twice.

use serde::{Deserialize, Serialize};

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;

/// How often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rule {
    /// Every so many hours after the schedule was made.
    Every {
        /// From 1.
        hours: u32,
    },
    /// On these days of the week.
    Weekly {
        /// 0 = Monday … 6 = Sunday; at least one.
        days: Vec<u8>,
        /// Minute of the day.
        minute: u32,
    },
}

/// What became due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The newest instant: the one that is made up for.
    pub at_ms: i64,
    /// Older ones, which are not.
    pub missed: u32,
}

impl Rule {
    /// The first instant after `after_ms`. `since_ms`: when the schedule was made.
    #[must_use]
    pub fn next(&self, since_ms: i64, after_ms: i64) -> Option<i64> {
        match self {
            Self::Every { hours } => {
                let period = i64::from(*hours)
                    .checked_mul(HOUR_MS)
                    .filter(|period| *period > 0)?;
                let passed = after_ms.saturating_sub(since_ms).max(0) / period;
                since_ms.checked_add(period.checked_mul(passed + 1)?)
            }
            Self::Weekly { days, minute } => {
                let today = after_ms.div_euclid(DAY_MS);
                (today..=today + 7)
                    // 1 January 1970 was a Thursday.
                    .filter(|day| {
                        days.iter()
                            .any(|wanted| i64::from(*wanted) == (day + 3).rem_euclid(7))
                    })
                    .map(|day| day * DAY_MS + i64::from(*minute) * MINUTE_MS)
                    .find(|at| *at > after_ms)
            }
        }
    }

    /// What became due after `after_ms`, and not later than `now_ms`.
    #[must_use]
    pub fn due(&self, since_ms: i64, after_ms: i64, now_ms: i64) -> Option<Due> {
        let mut due: Option<Due> = None;
        let mut after = after_ms;
        while let Some(at) = self.next(since_ms, after).filter(|at| *at <= now_ms) {
            let missed = due.map_or(0, |due| due.missed.saturating_add(1));
            due = Some(Due { at_ms: at, missed });
            after = at;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_weekly_drill_is_on_its_day_and_at_its_time() {
        let rule = Rule::Weekly {
            days: vec![0],
            minute: 150,
        };
        // 2031-03-04 was a Tuesday: the next Monday is the 10th.
        let tuesday = arm_model::timestamp::to_unix_ms("2031-03-04T05:06:07Z").unwrap();
        let next = rule
            .next(0, tuesday)
            .and_then(arm_model::timestamp::from_unix_ms);
        assert_eq!(next.as_deref(), Some("2031-03-10T02:30:00Z"));
    }

    fn rules() -> impl Strategy<Value = Rule> {
        prop_oneof![
            (1_u32..400).prop_map(|hours| Rule::Every { hours }),
            (prop::collection::btree_set(0_u8..7, 1..7), 0_u32..1_440).prop_map(
                |(days, minute)| Rule::Weekly {
                    days: days.into_iter().collect(),
                    minute,
                }
            ),
        ]
    }

    proptest! {
        #[test]
        fn each_instant_is_due_once_however_often_it_is_looked(
            rule in rules(), since in 0_i64..2_000_000_000_000, looks in prop::collection::vec(1_i64..3_000_000_000, 1..20),
        ) {
            let (mut after, mut now, mut seen) = (since, since, 0_u64);
            for step in looks {
                now += step;
                if let Some(due) = rule.due(since, after, now) {
                    prop_assert!(due.at_ms > after && due.at_ms <= now);
                    prop_assert!(rule.due(since, due.at_ms, now).is_none(), "it is the newest");
                    seen += 1 + u64::from(due.missed);
                    after = due.at_ms;
                }
            }
            let at_once = rule.due(since, since, now).map_or(0, |due| 1 + u64::from(due.missed));
            prop_assert_eq!(seen, at_once);
        }

        #[test]
        fn the_next_instant_is_later_and_never_more_than_a_period_away(rule in rules(), since in 0_i64..2_000_000_000_000, after in 0_i64..3_000_000_000_000) {
            let next = rule.next(since, after).expect("there is always one");
            let period = match &rule {
                Rule::Every { hours } => i64::from(*hours) * HOUR_MS,
                Rule::Weekly { .. } => 7 * DAY_MS,
            };
            prop_assert!(next > after && next <= after.max(since) + period);
        }
    }
}
