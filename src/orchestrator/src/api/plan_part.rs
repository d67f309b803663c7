//! Extension: a plan carried out in part. The request names groups, VMs, or both; without either it is the whole plan.

use std::collections::BTreeSet;

use arm_model::recovery_plan::{BOOT, PlanGroup};
use serde::Deserialize;

use super::entry::Call;
use crate::fault::Fault;

/// What a request names.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Named {
    /// Numbers of groups, from 1.
    group_ids: Option<Vec<usize>>,
    /// ARM ids of protected items.
    protected_item_ids: Option<Vec<String>>,
}

/// Keys of the VMs that are asked for.
pub(super) struct Wanted(Option<BTreeSet<String>>);

impl Wanted {
    /// Whether a VM is asked for.
    pub(super) fn has(&self, id: &str) -> bool {
        let Self(named) = self;
        let key = || id.to_ascii_lowercase();
        named.as_ref().is_none_or(|named| named.contains(&key()))
    }
}

/// Reads what is asked for.
///
/// # Errors
/// 400 for a group or a VM that the plan doesn't have, and for none at all.
pub(super) fn read(call: &Call<'_>, groups: &[PlanGroup]) -> Result<Wanted, Fault> {
    let named: Named = call.properties()?;
    if named.group_ids.is_none() && named.protected_item_ids.is_none() {
        return Ok(Wanted(None));
    }
    let boot: Vec<&PlanGroup> = groups
        .iter()
        .filter(|group| group.group_type == BOOT)
        .collect();
    let keys = |group: &PlanGroup| -> Vec<String> {
        let items = group.replication_protected_items.iter();
        items.map(|item| item.id.to_ascii_lowercase()).collect()
    };
    let mut wanted = BTreeSet::new();
    for (index, number) in named.group_ids.iter().flatten().enumerate() {
        let group = number.checked_sub(1).and_then(|number| boot.get(number));
        let group = group.ok_or_else(|| {
            Fault::invalid(
                &format!("properties.groupIds[{index}]"),
                format!("The plan has {} groups, and no group {number}.", boot.len()),
            )
        })?;
        wanted.extend(keys(group));
    }
    let all: BTreeSet<String> = boot.iter().flat_map(|group| keys(group)).collect();
    for (index, id) in named.protected_item_ids.iter().flatten().enumerate() {
        let key = id.to_ascii_lowercase();
        if !all.contains(&key) {
            return Err(Fault::invalid(
                &format!("properties.protectedItemIds[{index}]"),
                format!("`{id}` is no VM of the plan."),
            ));
        }
        wanted.insert(key);
    }
    if wanted.is_empty() {
        return Err(Fault::invalid(
            "properties.groupIds",
            "The part that is asked for has no VM.",
        ));
    }
    Ok(Wanted(Some(wanted)))
}
