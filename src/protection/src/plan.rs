//! Order of a recovery plan: groups one after another, the VMs of a group together.

use std::collections::BTreeSet;

/// Most boot groups.
pub const MAX_GROUPS: usize = 7;
/// Most VMs.
pub const MAX_ITEMS: usize = 100;

/// Why a plan can't be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// No VM at all.
    #[error("the plan has no VM")]
    Empty,
    /// One VM twice.
    #[error("`{0}` is in more than one place")]
    Twice(String),
    /// Too many groups.
    #[error("{0} boot groups; at most {MAX_GROUPS} are possible")]
    TooManyGroups(usize),
    /// Too many VMs.
    #[error("{0} VMs; at most {MAX_ITEMS} are possible")]
    TooManyItems(usize),
}

/// Checks the boot groups and gives those that have VMs, in order. Items are compared by `key`.
///
/// # Errors
/// When the plan breaks a rule.
pub fn boot_order<T: Clone>(
    groups: &[Vec<T>],
    key: impl Fn(&T) -> String,
) -> Result<Vec<Vec<T>>, PlanError> {
    if groups.len() > MAX_GROUPS {
        return Err(PlanError::TooManyGroups(groups.len()));
    }
    let count: usize = groups.iter().map(Vec::len).sum();
    if count == 0 {
        return Err(PlanError::Empty);
    }
    if count > MAX_ITEMS {
        return Err(PlanError::TooManyItems(count));
    }
    let mut seen = BTreeSet::new();
    for item in groups.iter().flatten() {
        let key = key(item);
        if !seen.insert(key.clone()) {
            return Err(PlanError::Twice(key));
        }
    }
    Ok(groups
        .iter()
        .filter(|group| !group.is_empty())
        .cloned()
        .collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn order_of_groups_and_members_is_kept(sizes in prop::collection::vec(0..5usize, 1..7)) {
            let mut next = 0u32;
            let groups: Vec<Vec<u32>> = sizes
                .iter()
                .map(|size| (0..*size).map(|_| { next += 1; next }).collect())
                .collect();
            match boot_order(&groups, u32::to_string) {
                Ok(order) => {
                    prop_assert_eq!(order.concat(), groups.concat());
                    prop_assert!(order.iter().all(|group| !group.is_empty()));
                }
                Err(error) => prop_assert_eq!(error, PlanError::Empty),
            }
        }
    }

    #[test]
    fn one_vm_in_two_groups_is_refused() {
        let error = boot_order(&[vec!["a"], vec!["a"]], |s| (*s).to_owned()).expect_err("twice");
        assert_eq!(error, PlanError::Twice("a".to_owned()));
    }
}
