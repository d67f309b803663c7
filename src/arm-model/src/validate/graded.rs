//! Rules of a policy beyond Azure Site Recovery's: graded retention, immutability, quota, verification.

use super::Violation;
use crate::policy::RetentionTier;

/// Most tiers of a policy.
pub const MAX_TIERS: usize = 8;
/// Longest that a tier keeps points: ten years, in hours.
pub const MAX_TIER_HOURS: u32 = 87_600;
/// Longest immutability: ten years, in hours.
pub const MAX_IMMUTABILITY_HOURS: u32 = 87_600;
/// Longest distance of verifications: a year, in hours.
pub const MAX_VERIFICATION_HOURS: u32 = 8_760;

/// Tiers grow in both distance and duration, and the first one goes beyond the hours for which all points are kept.
///
/// # Errors
/// The rule that is broken.
pub fn retention_tiers(tiers: &[RetentionTier], retention_hours: u32) -> Result<(), Violation> {
    if tiers.len() > MAX_TIERS {
        return Err(Violation::new(
            format!("A policy can't have {} tiers of retention.", tiers.len()),
            format!("Use at most {MAX_TIERS}."),
        ));
    }
    let (mut interval, mut duration) = (0, retention_hours);
    for tier in tiers {
        let (every, keeps) = (tier.interval_in_minutes, tier.duration_in_hours);
        if every == 0 || every.div_ceil(60) > keeps || keeps > MAX_TIER_HOURS {
            return Err(Violation::new(
                format!(
                    "A tier of one point every {every} minutes for {keeps} hours is not possible."
                ),
                format!(
                    "Keep points at least for as long as they are apart, and for {MAX_TIER_HOURS} hours at most."
                ),
            ));
        }
        if every <= interval || keeps <= duration {
            return Err(Violation::new(
                format!(
                    "The tier of one point every {every} minutes for {keeps} hours keeps nothing beyond what is kept before it."
                ),
                "Order the tiers so that each has points farther apart and keeps them longer than the one before; the first one \
                 longer than all points are kept.",
            ));
        }
        (interval, duration) = (every, keeps);
    }
    Ok(())
}

/// Minutes between application-consistent points; 0 = hours count.
///
/// # Errors
/// The rule that is broken.
pub fn app_consistent_minutes(
    minutes: u32,
    hours: u32,
    interval_seconds: u32,
) -> Result<(), Violation> {
    if minutes == 0 {
        return Ok(());
    }
    if hours > 0 {
        return Err(Violation::new(
            "The distance of application-consistent points is given in hours and in minutes.",
            "Give one of both.",
        ));
    }
    if minutes > super::MAX_APP_CONSISTENT_HOURS * 60
        || u64::from(minutes) * 60 < u64::from(interval_seconds)
    {
        return Err(Violation::new(
            format!("Application-consistent points every {minutes} minutes are not possible."),
            format!(
                "Use 1 to {} minutes, and not less than the copy frequency.",
                super::MAX_APP_CONSISTENT_HOURS * 60
            ),
        ));
    }
    Ok(())
}

/// Hours in which nobody can delete a point; 0 = off.
///
/// # Errors
/// The rule that is broken.
pub fn immutability(hours: u32) -> Result<(), Violation> {
    at_most(hours, MAX_IMMUTABILITY_HOURS, "An immutability", "hours")
}

/// Percent of a disk's size that waiting changes may take.
///
/// # Errors
/// The rule that is broken.
pub fn log_quota(percent: u32) -> Result<(), Violation> {
    if (1..=100).contains(&percent) {
        return Ok(());
    }
    Err(Violation::new(
        format!("A quota of {percent} percent is not possible."),
        "Use 1 to 100 percent of the disk's size.",
    ))
}

/// Hours between verifications; 0 = off.
///
/// # Errors
/// The rule that is broken.
pub fn verification_interval(hours: u32) -> Result<(), Violation> {
    at_most(
        hours,
        MAX_VERIFICATION_HOURS,
        "A verification interval",
        "hours",
    )
}

fn at_most(number: u32, most: u32, what: &str, unit: &str) -> Result<(), Violation> {
    if number <= most {
        return Ok(());
    }
    Err(Violation::new(
        format!("{what} of {number} {unit} is not possible."),
        format!("Use 0 (off) to {most} {unit}."),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tier(interval_in_minutes: u32, duration_in_hours: u32) -> RetentionTier {
        RetentionTier {
            interval_in_minutes,
            duration_in_hours,
        }
    }

    #[test]
    fn tiers_must_each_reach_beyond_the_one_before() {
        assert!(
            retention_tiers(&[tier(60, 168), tier(1440, 720), tier(43_200, 43_800)], 24).is_ok()
        );
        for bad in [
            vec![tier(0, 48)],
            vec![tier(60, 24)],
            vec![tier(60, 168), tier(60, 720)],
            vec![tier(1440, 720), tier(2880, 700)],
            vec![tier(120, 1)],
            vec![tier(60, MAX_TIER_HOURS + 1)],
            vec![tier(60, 48); MAX_TIERS + 1],
        ] {
            assert!(retention_tiers(&bad, 24).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn numbers_have_limits() {
        assert!(app_consistent_minutes(0, 12, 30).is_ok());
        assert!(app_consistent_minutes(10, 0, 300).is_ok());
        assert!(app_consistent_minutes(10, 1, 300).is_err());
        assert!(app_consistent_minutes(1, 0, 300).is_err());
        assert!(app_consistent_minutes(721, 0, 300).is_err());
        assert!(log_quota(0).is_err() && log_quota(50).is_ok() && log_quota(101).is_err());
        assert!(immutability(0).is_ok() && immutability(u32::MAX).is_err());
        assert!(verification_interval(24).is_ok() && verification_interval(9_000).is_err());
    }
}
