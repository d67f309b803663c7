//! Recovery point objective as it really is.

/// Age of the newest point. `None` without a point. A point of the future (clocks differ) is 0 s old.
#[must_use]
pub fn rpo_seconds(newest_point_unix_ms: Option<i64>, now_unix_ms: i64) -> Option<u64> {
    let newest = newest_point_unix_ms?;
    u64::try_from(now_unix_ms.saturating_sub(newest).max(0) / 1000).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn age_is_never_negative_and_grows_with_time(point in any::<i64>(), now in any::<i64>(), later in 0..i64::MAX) {
            let age = rpo_seconds(Some(point), now).expect("a point");
            let older = rpo_seconds(Some(point), now.saturating_add(later)).expect("a point");
            prop_assert!(older >= age);
        }
    }

    #[test]
    fn without_a_point_there_is_no_rpo() {
        assert_eq!(rpo_seconds(None, 5), None);
        assert_eq!(rpo_seconds(Some(1_000), 31_999), Some(30));
    }
}
