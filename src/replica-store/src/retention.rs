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
