//! Which recovery points expire: a pure function of points, policy and time.

use uuid::Uuid;

use crate::model::{RecoveryPoint, RetentionPolicy};

const MS_PER_HOUR: i64 = 3_600_000;

/// Ids of the points that may go, oldest first.
///
/// A point stays while it is not older than the policy says, while it is in `held` (pinned), and
/// always when it is the newest. With 0 hours only the newest and the held ones stay. A point of
/// the future (a clock was set back) stays.
pub fn expired_points(
    points: &[RecoveryPoint],
    held: &[Uuid],
    policy: RetentionPolicy,
    now_unix_ms: i64,
) -> Vec<Uuid> {
    let order = |point: &&RecoveryPoint| (point.position, point.time_unix_ms, point.id);
    let newest = points.iter().max_by_key(order).map(|point| point.id);
    let horizon = now_unix_ms.saturating_sub(i64::from(policy.hours).saturating_mul(MS_PER_HOUR));
    let mut expired: Vec<&RecoveryPoint> = points
        .iter()
        .filter(|point| Some(point.id) != newest && !held.contains(&point.id))
        .filter(|point| policy.hours == 0 || point.time_unix_ms < horizon)
        .collect();
    expired.sort_by_key(order);
    expired.into_iter().map(|point| point.id).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{PointKind, Position};

    const NOW: i64 = 1_800_000_000_000;

    fn point(position: u64, age_minutes: i64) -> RecoveryPoint {
        RecoveryPoint {
            id: Uuid::from_u128(u128::from(position)),
            time_unix_ms: NOW - age_minutes * 60_000,
            kind: PointKind::Crash,
            position: Position(position),
            vm_config: serde_json::Value::Null,
            changed_bytes: 0,
            sent_bytes: 0,
            group_point_id: None,
        }
    }

    /// `x` expires, `.` stays; oldest first.
    fn picture(points: &[RecoveryPoint], held: &[u64], hours: u32) -> String {
        let held: Vec<_> = held
            .iter()
            .map(|p| Uuid::from_u128(u128::from(*p)))
            .collect();
        let expired = expired_points(points, &held, RetentionPolicy { hours }, NOW);
        let mark = |p: &RecoveryPoint| if expired.contains(&p.id) { 'x' } else { '.' };
        points.iter().map(mark).collect()
    }

    #[test]
    fn the_rules_in_pictures() {
        // Ages in minutes: 300, 240, ... 60, 0.
        let hourly: Vec<_> = (0..6).map(|n| point(n, 300 - 60 * n as i64)).collect();
        assert_eq!(picture(&hourly, &[], 24), "......");
        assert_eq!(picture(&hourly, &[], 5), "......"); // exactly on the horizon stays
        assert_eq!(picture(&hourly, &[], 4), "x.....");
        assert_eq!(picture(&hourly, &[], 1), "xxxx..");
        assert_eq!(picture(&hourly, &[], 0), "xxxxx.");
        assert_eq!(picture(&hourly, &[1, 3], 0), "x.x.x.");
        // An outage: everything is too old, the newest stays.
        let old: Vec<_> = (0..3).map(|n| point(n, 9000 - n as i64)).collect();
        assert_eq!(picture(&old, &[], 24), "xx.");
        // The clock was set back: the newest is newest by position, not by time.
        let back = [point(1, -600), point(2, 30), point(3, 20)];
        assert_eq!(picture(&back, &[], 0), "xx.");
        assert_eq!(picture(&back, &[], 24), "...");
        assert_eq!(picture(&[], &[], 0), "");
        assert_eq!(picture(&hourly, &[], u32::MAX), "......");
    }

    proptest! {
        #[test]
        fn the_newest_and_the_held_and_the_young_stay(
            ages in prop::collection::vec(-100i64..10_000, 1..40),
            held in prop::collection::vec(0u64..40, 0..5),
            hours in 0u32..100,
        ) {
            let points: Vec<_> = (0u64..).zip(&ages).map(|(n, age)| point(n, *age)).collect();
            let ids: Vec<_> = held.iter().map(|n| Uuid::from_u128(u128::from(*n))).collect();
            let policy = RetentionPolicy { hours };
            let expired = expired_points(&points, &ids, policy, NOW);
            for (n, p) in points.iter().enumerate() {
                let stays = n + 1 == points.len()
                    || held.contains(&(n as u64))
                    || (hours > 0 && ages[n] <= i64::from(hours) * 60);
                prop_assert_eq!(!expired.contains(&p.id), stays, "point {}", n);
            }
            // Retiring twice is retiring once, and time only takes more.
            let kept: Vec<_> = points.iter().filter(|p| !expired.contains(&p.id)).cloned().collect();
            prop_assert!(expired_points(&kept, &ids, policy, NOW).is_empty());
            let later = expired_points(&points, &ids, policy, NOW + 60_000);
            prop_assert!(expired.iter().all(|id| later.contains(id)));
        }
    }
}
