//! Which recovery points expire: a pure function of points, policy and time.
//!
//! **Ages** count time in which replication ran. Each point carries a clock that was advanced from the
//! point before by the time between the two, but at most by [`MAX_STEP_MS`] and never backwards. So a
//! clock that jumps ahead by a year, or a host that was off for a month, makes no point older than one
//! step, and a clock that is set back makes none younger. Thinning out points does not change the ages
//! of the others.
//!
//! **A point stays** when any of these says so:
//!
//! ```text
//! newest of all             held by a pin              not older than `hours`
//! one of a tier's periods   immutable                  newest application-consistent one
//! ```
//!
//! The periods of a tier are fixed stretches of the clock, and each keeps its oldest
//! application-consistent point, or else its oldest: the choice does not change while time goes on,
//! and what a fine tier keeps a coarse one finds. Expiry breaks no younger point: base only ever moves
//! to the oldest point that stays.

use std::collections::{BTreeMap, HashSet};

use uuid::Uuid;

use crate::model::{PointKind, Position, RetentionPolicy};

const MS_PER_HOUR: i64 = 3_600_000;
/// Longest time between two points that counts: replication that pauses longer does not age points.
pub const MAX_STEP_MS: i64 = MS_PER_HOUR;

/// What retention needs to know of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PointAge {
    /// Names the point.
    pub id: Uuid,
    /// Its place in the journal.
    pub position: Position,
    /// The instant of the freeze, by the host's clock.
    pub time_unix_ms: i64,
    /// How consistent it is.
    pub kind: PointKind,
    /// Its replicated time; `None` in points of the first release.
    pub clock_ms: Option<i64>,
    /// For how long it was promised to stay when it was made.
    pub immutable_hours: u32,
}

impl PointAge {
    fn order(&self) -> (Position, i64, Uuid) {
        (self.position, self.time_unix_ms, self.id)
    }

    /// Until when nobody may delete it, by the host's clock.
    pub fn immutable_until_unix_ms(&self) -> i64 {
        self.time_unix_ms
            .saturating_add(hours_ms(self.immutable_hours))
    }
}

fn hours_ms(hours: u32) -> i64 {
    i64::from(hours).saturating_mul(MS_PER_HOUR)
}

fn seconds_ms(seconds: u64) -> i64 {
    i64::try_from(seconds)
        .unwrap_or(i64::MAX)
        .saturating_mul(1000)
}

fn step(from_unix_ms: i64, to_unix_ms: i64) -> i64 {
    to_unix_ms
        .saturating_sub(from_unix_ms)
        .clamp(0, MAX_STEP_MS)
}

/// The clock of a new point, from the newest one there is.
pub fn next_clock(newest: Option<&PointAge>, time_unix_ms: i64) -> i64 {
    newest.map_or(0, |newest| {
        newest
            .clock_ms
            .unwrap_or(0)
            .saturating_add(step(newest.time_unix_ms, time_unix_ms))
    })
}

/// Ids of the points that may go, oldest first.
pub fn expired_points(
    points: &[PointAge],
    held: &[Uuid],
    policy: &RetentionPolicy,
    now_unix_ms: i64,
) -> Vec<Uuid> {
    let points = clocked(points);
    let Some((newest, newest_clock)) = points.last() else {
        return Vec::new();
    };
    let present = newest_clock.saturating_add(step(newest.time_unix_ms, now_unix_ms));
    let age = |clock: i64| present.saturating_sub(clock);
    let host_time = HostTime::of(newest, now_unix_ms);
    let held: HashSet<Uuid> = held.iter().copied().collect();
    let chosen = chosen_by_tiers(&points, policy, present);
    let newest_application = points
        .iter()
        .rev()
        .find(|(point, _)| point.kind == PointKind::Application)
        .filter(|(_, clock)| age(*clock) <= hours_ms(policy.latest_application_hours))
        .filter(|_| policy.latest_application_hours > 0)
        .map(|(point, _)| point.id);
    let stays = |point: &PointAge, clock: i64| {
        point.id == newest.id
            || held.contains(&point.id)
            || (policy.hours > 0 && age(clock) <= hours_ms(policy.hours))
            || chosen.contains(&point.id)
            || Some(point.id) == newest_application
            || is_immutable(point, age(clock), policy, &host_time)
    };
    points
        .iter()
        .filter(|(point, clock)| !stays(point, *clock))
        .map(|(point, _)| point.id)
        .collect()
}

/// Ids of the points that nobody may touch yet.
pub(crate) fn immutable_points(
    points: &[PointAge],
    policy: &RetentionPolicy,
    now_unix_ms: i64,
) -> HashSet<Uuid> {
    let points = clocked(points);
    let Some((newest, newest_clock)) = points.last() else {
        return HashSet::new();
    };
    let present = newest_clock.saturating_add(step(newest.time_unix_ms, now_unix_ms));
    let host_time = HostTime::of(newest, now_unix_ms);
    points
        .iter()
        .filter(|(point, clock)| {
            is_immutable(point, present.saturating_sub(*clock), policy, &host_time)
        })
        .map(|(point, _)| point.id)
        .collect()
}

/// What the host's clock says, with the newest point as its witness: that one never expires, so what a
/// point is promised doesn't depend on when its neighbours were retired.
struct HostTime {
    newest_unix_ms: i64,
    now_unix_ms: i64,
}

impl HostTime {
    fn of(newest: &PointAge, now_unix_ms: i64) -> Self {
        Self {
            newest_unix_ms: newest.time_unix_ms,
            now_unix_ms,
        }
    }
}

/// Neither replication that ran too short a time nor a clock that was set ahead ends the promise. A
/// point that claims to be younger than the newest one (the clock was wrong when it was made) is
/// promised by replicated time alone, also when the clock comes by its instant again.
fn is_immutable(point: &PointAge, age_ms: i64, policy: &RetentionPolicy, host: &HostTime) -> bool {
    let hours = point.immutable_hours.max(policy.immutability_hours);
    if hours == 0 {
        return false;
    }
    let by_clock = point.time_unix_ms <= host.newest_unix_ms
        && host.now_unix_ms < point.time_unix_ms.saturating_add(hours_ms(hours));
    by_clock || age_ms < hours_ms(hours)
}

/// The points in order, each with its clock. Where the first release stored none, it is counted from
/// the neighbours.
fn clocked(points: &[PointAge]) -> Vec<(PointAge, i64)> {
    let mut points = points.to_vec();
    points.sort_by_key(PointAge::order);
    let mut clocks: Vec<i64> = Vec::with_capacity(points.len());
    let mut last: Option<PointAge> = None;
    for point in &points {
        let counted = next_clock(last.as_ref(), point.time_unix_ms);
        let before = last.and_then(|last| last.clock_ms).unwrap_or(i64::MIN);
        let clock = point.clock_ms.unwrap_or(counted).max(before);
        clocks.push(clock);
        last = Some(PointAge {
            clock_ms: Some(clock),
            ..*point
        });
    }
    points.into_iter().zip(clocks).collect()
}

fn chosen_by_tiers(
    points: &[(PointAge, i64)],
    policy: &RetentionPolicy,
    present: i64,
) -> HashSet<Uuid> {
    let mut chosen = HashSet::new();
    for tier in policy.tiers.iter().flatten() {
        let every = seconds_ms(tier.every_seconds).max(1);
        let mut periods: BTreeMap<i64, (PointAge, i64)> = BTreeMap::new();
        for (point, clock) in points {
            let period = clock.div_euclid(every);
            let is_better = periods.get(&period).is_none_or(|(best, _)| {
                best.kind != PointKind::Application && point.kind == PointKind::Application
            });
            if is_better {
                periods.insert(period, (*point, *clock));
            }
        }
        let young = |clock: i64| present.saturating_sub(clock) <= seconds_ms(tier.for_seconds);
        chosen.extend(
            periods
                .values()
                .filter(|(_, clock)| young(*clock))
                .map(|(point, _)| point.id),
        );
    }
    chosen
}

#[cfg(test)]
mod tests;
