//! Pictures of single rules, and properties against the promises.

use proptest::prelude::*;

use super::*;
use crate::model::RetentionTier;

const NOW: i64 = 1_800_000_000_000;
const MINUTE: i64 = 60_000;
const HOUR: u64 = 3600;

/// Points as a running engine makes them: at these minutes, with these kinds.
fn made(minutes: &[i64], kinds: &[PointKind], immutable_hours: u32) -> Vec<PointAge> {
    let mut points: Vec<PointAge> = Vec::new();
    for (n, minute) in minutes.iter().enumerate() {
        let time_unix_ms = NOW + minute * MINUTE;
        points.push(PointAge {
            id: Uuid::from_u128(n as u128),
            position: Position(n as u64),
            time_unix_ms,
            kind: kinds.get(n).copied().unwrap_or_default(),
            clock_ms: Some(next_clock(points.last(), time_unix_ms)),
            immutable_hours,
        });
    }
    points
}

/// `x` expires, `.` stays; oldest first.
fn picture(
    points: &[PointAge],
    held: &[u128],
    policy: &RetentionPolicy,
    now_minute: i64,
) -> String {
    let held: Vec<_> = held.iter().map(|n| Uuid::from_u128(*n)).collect();
    let expired = expired_points(points, &held, policy, NOW + now_minute * MINUTE);
    let mark = |p: &PointAge| if expired.contains(&p.id) { 'x' } else { '.' };
    points.iter().map(mark).collect()
}

#[test]
fn the_plain_window_in_pictures() {
    let hourly = made(&[0, 60, 120, 180, 240, 300], &[], 0);
    let hours = RetentionPolicy::hours;
    assert_eq!(picture(&hourly, &[], &hours(24), 300), "......");
    assert_eq!(picture(&hourly, &[], &hours(5), 300), "......"); // exactly on the horizon stays
    assert_eq!(picture(&hourly, &[], &hours(4), 300), "x.....");
    assert_eq!(picture(&hourly, &[], &hours(1), 300), "xxxx..");
    assert_eq!(picture(&hourly, &[], &hours(0), 300), "xxxxx.");
    assert_eq!(picture(&hourly, &[1, 3], &hours(0), 300), "x.x.x.");
    assert_eq!(picture(&[], &[], &hours(0), 300), "");
    assert_eq!(picture(&hourly, &[], &hours(u32::MAX), 300), "......");
}

#[test]
fn neither_an_outage_nor_a_clock_that_jumps_drops_points() {
    let hours = RetentionPolicy::hours;
    // Off for a year after the third point, or a clock that says so.
    let outage = made(&[0, 10, 20, 525_600, 525_610], &[], 0);
    assert_eq!(picture(&outage, &[], &hours(2), 525_610), ".....");
    assert_eq!(picture(&outage[..3], &[], &hours(2), 525_600), "...");
    // Set back by a day: the newest is newest by position, nothing is dropped, and ageing goes on.
    let mut back = made(&[0, 10, 20, -1440, -1430], &[], 0);
    assert_eq!(picture(&back, &[], &hours(2), -1430), ".....");
    let last = back[4];
    back.push(PointAge {
        id: Uuid::from_u128(9),
        position: Position(9),
        time_unix_ms: last.time_unix_ms + 10 * MINUTE,
        clock_ms: last.clock_ms.map(|clock| clock + 110 * MINUTE),
        ..last
    });
    assert_eq!(picture(&back, &[], &hours(2), -1420), "xx....");
}

#[test]
fn tiers_keep_one_of_each_period_and_prefer_application_consistent_points() {
    use PointKind::{Application as A, Crash as C};
    let tiers = [
        RetentionTier {
            every_seconds: HOUR,
            for_seconds: 6 * HOUR,
        },
        RetentionTier {
            every_seconds: 6 * HOUR,
            for_seconds: 1000 * HOUR,
        },
    ];
    let policy = RetentionPolicy::hours(1).with_tiers(&tiers).unwrap();
    // Every half hour over 12 hours.
    let minutes: Vec<i64> = (0..25).map(|n| n * 30).collect();
    let plain = made(&minutes, &[], 0);
    //  0     3     6     9     12 h
    assert_eq!(
        picture(&plain, &[], &policy, 720),
        ".xxxxxxxxxxx.x.x.x.x.x...",
    );
    let kinds: Vec<_> = (0..25).map(|n| if n == 7 { A } else { C }).collect();
    let application = made(&minutes, &kinds, 0);
    assert_eq!(
        picture(&application, &[], &policy, 720),
        "xxxxxxx.xxxx.x.x.x.x.x...",
    );
    assert!(
        RetentionPolicy::hours(1)
            .with_tiers(&[tiers[0]; 9])
            .is_none()
    );
}

#[test]
fn the_newest_application_consistent_point_can_be_kept_longer() {
    use PointKind::{Application as A, Crash as C};
    let points = made(&[0, 10, 20, 30, 40], &[A, C, A, C, C], 0);
    let mut policy = RetentionPolicy::hours(0);
    assert_eq!(picture(&points, &[], &policy, 40), "xxxx.");
    policy.latest_application_hours = 24;
    assert_eq!(picture(&points, &[], &policy, 40), "xx.x.");
}

#[test]
fn an_immutable_point_stays_whatever_policy_and_clock_say() {
    let points = made(&[0, 60, 120, 180, 240], &[], 3);
    let none = RetentionPolicy::hours(0);
    // Points that are 4 hours old by clock and by replicated time may go.
    assert_eq!(picture(&points, &[], &none, 240), "xx...");
    // The clock is set ahead by years: nobody gains anything but one step.
    assert_eq!(picture(&points, &[], &none, 10_000_000), "xxx..");
    // It is set back: they stay.
    assert_eq!(picture(&points, &[], &none, 100), ".....");
    // A policy with a longer window holds for what is there already.
    let longer = RetentionPolicy {
        immutability_hours: 4,
        ..none
    };
    assert_eq!(picture(&points, &[], &longer, 240), "x....");
}

#[test]
fn a_point_that_a_wrong_clock_made_gets_no_second_promise_when_the_clock_comes_by_again() {
    // The clock was weeks ahead for the first point, and was then set right.
    let points = made(&[1, -56_000, -55_930, -55_880], &[], 1);
    let none = RetentionPolicy::hours(0);
    assert_eq!(picture(&points, &[], &none, -55_880), "xx..");
    // Whether the journal was tidied weeks ago or only now, the same points go.
    assert_eq!(picture(&points, &[], &none, 2), "xxx.");
    // A clock that is set back after the newest point doesn't end what it promised.
    let points = made(&[0, 60, 59, 118, 60, 61], &[], 2);
    assert_eq!(picture(&points, &[], &none, 0), "......");
}

fn policies() -> impl Strategy<Value = RetentionPolicy> {
    let tier = (1u64..20, 1u64..400).prop_map(|(every, span)| RetentionTier {
        every_seconds: every * 1800,
        for_seconds: span * 1800,
    });
    (0u32..20, prop::collection::vec(tier, 0..4), 0u32..10).prop_map(|(hours, tiers, immutable)| {
        RetentionPolicy {
            immutability_hours: immutable,
            ..RetentionPolicy::hours(hours).with_tiers(&tiers).unwrap()
        }
    })
}

proptest! {
    /// Minutes between points; negative ones and huge ones are clocks that jump.
    #[test]
    fn the_promises_hold_for_every_history(
        gaps in prop::collection::vec(prop_oneof![8 => 1i64..90, 1 => -100_000i64..0, 1 => 1000i64..10_000_000], 1..60),
        applications in prop::collection::vec(any::<bool>(), 60),
        held in prop::collection::vec(0u128..60, 0..4),
        policy in policies(),
        ahead in -1000i64..100_000,
    ) {
        let mut minutes = Vec::new();
        let mut at = 0;
        for gap in &gaps {
            at += gap;
            minutes.push(at);
        }
        let kinds: Vec<_> = applications
            .iter()
            .map(|a| if *a { PointKind::Application } else { PointKind::Crash })
            .collect();
        let points = made(&minutes, &kinds, 0);
        let ids: Vec<_> = held.iter().map(|n| Uuid::from_u128(*n)).collect();
        let now = NOW + (at + ahead) * MINUTE;
        let expired = expired_points(&points, &ids, &policy, now);
        let newest = points.last().unwrap();
        let present = newest.clock_ms.unwrap() + step(newest.time_unix_ms, now);
        for point in &points {
            let age = present - point.clock_ms.unwrap();
            let window = hours_ms(policy.hours.max(policy.immutability_hours));
            let must_stay = point.id == newest.id
                || ids.contains(&point.id)
                || (window > 0 && age < window);
            prop_assert!(!(must_stay && expired.contains(&point.id)), "{point:?}");
        }
        // Each period of each tier still has a point if it had one.
        let kept: Vec<_> = points.iter().filter(|p| !expired.contains(&p.id)).copied().collect();
        for tier in policy.tiers.iter().flatten() {
            let every = seconds_ms(tier.every_seconds);
            for point in &points {
                let clock = point.clock_ms.unwrap();
                let first = points
                    .iter()
                    .find(|p| p.clock_ms.unwrap().div_euclid(every) == clock.div_euclid(every))
                    .unwrap();
                if present - first.clock_ms.unwrap() <= seconds_ms(tier.for_seconds) {
                    let has = kept.iter().any(|p| {
                        p.clock_ms.unwrap().div_euclid(every) == clock.div_euclid(every)
                    });
                    prop_assert!(has, "a period is empty");
                }
            }
        }
        // Retiring twice is retiring once, and retiring often keeps what retiring late keeps.
        prop_assert!(expired_points(&kept, &ids, &policy, now).is_empty());
        let later = now + 90 * MINUTE;
        let late: HashSet<_> = expired_points(&points, &ids, &policy, later).into_iter().collect();
        let often: HashSet<_> = expired_points(&kept, &ids, &policy, later)
            .into_iter()
            .chain(expired)
            .collect();
        prop_assert_eq!(late, often);
    }

    /// Clocks that were never stored (the first release) give the same answers while nothing jumps and
    /// nothing was thinned out.
    #[test]
    fn points_without_a_clock_are_counted_from_their_neighbours(
        gaps in prop::collection::vec(1i64..60, 1..40),
        policy in policies(),
    ) {
        let minutes: Vec<i64> = gaps.iter().scan(0, |at, gap| { *at += gap; Some(*at) }).collect();
        let points = made(&minutes, &[], 0);
        let bare: Vec<_> = points.iter().map(|p| PointAge { clock_ms: None, ..*p }).collect();
        let now = NOW + minutes.last().unwrap() * MINUTE;
        prop_assert_eq!(
            expired_points(&points, &[], &policy, now),
            expired_points(&bare, &[], &policy, now)
        );
    }
}
