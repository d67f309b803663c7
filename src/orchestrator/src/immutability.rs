//! Immutability: until when nobody, an administrator included, may delete the points of a VM.
//!
//! What was promised to points that exist is kept when a policy is changed: a shorter time counts from the moment on
//! at which no point of the longer promise is left.

use arm_model::{ArmError, timestamp};

use crate::app::App;
use crate::fault::Fault;
use crate::saga::enable_protection::item_name;
use crate::store::StoreError;
use crate::store::records::{self, Item, Policy, Promise};

const HOUR_MS: i64 = 3_600_000;

/// Hours that count now.
#[must_use]
pub fn hours(policy: &Policy, now_ms: i64) -> u32 {
    let promised = policy
        .promise
        .filter(|promise| now_ms < promise.until_unix_ms)
        .map_or(0, |promise| promise.hours);
    policy.details.immutability_in_hours.max(promised)
}

/// The promise that a policy goes on to keep after a change to `next_hours`.
#[must_use]
pub fn promise_after(before: &Policy, next_hours: u32, now_ms: i64) -> Option<Promise> {
    let present = hours(before, now_ms);
    if next_hours >= present {
        return None;
    }
    let until = now_ms.saturating_add(i64::from(present) * HOUR_MS);
    Some(Promise {
        hours: present,
        until_unix_ms: until,
    })
}

/// Until when the newest point of an item is immutable; `None` when nothing is held.
///
/// # Errors
/// Failures of the store.
pub async fn until(app: &App, item: &Item) -> Result<Option<i64>, StoreError> {
    let policy =
        records::get::<Policy>(app.store.as_ref(), &item.policy_id.to_ascii_lowercase()).await?;
    let now = app.now_ms();
    let hours = policy.map_or(0, |policy| hours(&policy.record, now));
    if hours == 0 {
        return Ok(None);
    }
    let live = app.fleet.get(&item.engine_id).unwrap_or_default();
    let newest = live
        .replication(item_name(&item.id))
        .and_then(|status| status.recovery_points.last())
        .map(|point| point.time_unix_ms)
        // Points that we were not told of may be as new as can be.
        .or_else(|| item.life.item.copied_once.then_some(now));
    let until = newest.map(|newest| newest.min(now).saturating_add(i64::from(hours) * HOUR_MS));
    Ok(until.filter(|until| *until > now))
}

/// Refuses what would delete points before their time.
///
/// # Errors
/// 409 that names the time.
pub async fn allows_deletion(app: &App, item: &Item, advice: &str) -> Result<(), Fault> {
    match until(app, item).await? {
        None => Ok(()),
        Some(until) => {
            let until = timestamp::from_unix_ms(until).unwrap_or_default();
            Err(Fault::refuse(
                409,
                ArmError::new(
                    "RecoveryPointsImmutable",
                    format!(
                        "The recovery points of `{}` are immutable: nobody can delete the newest of them before {until}.",
                        item.vm_name
                    ),
                )
                .at(item.id.clone())
                .advise("The replication policy has an immutability.", advice),
            ))
        }
    }
}

/// Refuses a policy under which points of an item would lose what they were promised.
///
/// # Errors
/// 409 that names both; failures of the store.
pub async fn allows_policy(app: &App, present: &Item, next: &Policy) -> Result<(), Fault> {
    if !present.life.item.copied_once || present.policy_id.eq_ignore_ascii_case(&next.id) {
        return Ok(());
    }
    let now = app.now_ms();
    let key = present.policy_id.to_ascii_lowercase();
    let before = records::get::<Policy>(app.store.as_ref(), &key).await?;
    let promised = before.map_or(0, |policy| hours(&policy.record, now));
    if hours(next, now) >= promised {
        return Ok(());
    }
    Err(Fault::refuse(
        409,
        ArmError::new(
            "RecoveryPointsImmutable",
            format!(
                "The recovery points of `{}` are immutable for {promised} hours, under the policy `{}` for {} only.",
                present.vm_name,
                item_name(&next.id),
                hours(next, now)
            ),
        )
        .at("properties.policyId")
        .advise(
            "The present policy has a longer immutability.",
            "Shorten the immutability of the present policy first; when the time of its points is over, the policy can be changed.",
        ),
    ))
}

#[cfg(test)]
mod tests {
    use arm_model::policy::PolicyDetails;
    use proptest::prelude::*;

    use super::*;

    fn policy(hours: u32, promise: Option<Promise>) -> Policy {
        Policy {
            id: String::new(),
            details: PolicyDetails {
                immutability_in_hours: hours,
                ..PolicyDetails::default()
            },
            promise,
        }
    }

    proptest! {
        #[test]
        fn no_row_of_changes_shortens_what_was_promised_to_a_point(
            changes in prop::collection::vec((0..100_i64, 0..50_u32), 1..20),
            first in 0..50_u32,
            age in 0..100_i64,
        ) {
            // A point is made at time 0 under `first` hours; changes come at growing times.
            let mut present = policy(first, None);
            let mut now = 0;
            for (pause, next) in changes {
                now += pause * HOUR_MS / 4;
                let promise = promise_after(&present, next, now);
                present = policy(next, promise);
            }
            let at = now.max(age * HOUR_MS / 4);
            if at < i64::from(first) * HOUR_MS {
                prop_assert!(i64::from(hours(&present, at)) * HOUR_MS > at);
            }
        }
    }

    #[test]
    fn a_longer_time_counts_at_once_and_a_shorter_one_when_the_promise_is_over() {
        let before = policy(10, None);
        assert_eq!(promise_after(&before, 20, 0), None);
        let after = policy(2, promise_after(&before, 2, 0));
        assert_eq!(hours(&after, 9 * HOUR_MS), 10);
        assert_eq!(hours(&after, 10 * HOUR_MS), 2);
    }
}
