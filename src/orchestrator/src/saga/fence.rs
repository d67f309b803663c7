//! Generations, and whose a replica is.
//!
//! A replica lies at `<vault's folder>/<item's name>` of its store, whatever site the item is in. So generations are counted
//! for a name of a vault: they go on rising when a VM moves from one site to another, and a replica that an earlier item left
//! behind refuses nobody who comes later. And two items of one name never have a place in common: the second would take the
//! replica of the first.

use arm_model::ArmError;

use super::enable_protection::item_name;
use crate::app::App;
use crate::fault::Fault;
use crate::gateway::reports::vault_of;
use crate::store::records::{self, Fence, Item};
use crate::store::{Change, Expect, StoreError};

fn key_of(item: &Item) -> String {
    let name = format!("{}/{}", item.vault_key, item_name(&item.id));
    records::fence_key(&name.to_ascii_lowercase())
}

/// Takes the next generation for an item.
///
/// # Errors
/// Failures of the store; a conflict when another activation takes one at the same time.
pub async fn next(app: &App, item: &Item) -> Result<u64, StoreError> {
    let store = app.store.as_ref();
    let key = key_of(item);
    let fence = records::get::<Fence>(store, &key).await?;
    let expect = fence
        .as_ref()
        .map_or(Expect::Absent, |fence| Expect::Etag(fence.etag));
    let counted = fence.map_or(0, |fence| fence.record.generation);
    let present = records::get::<Item>(store, &item.id.to_ascii_lowercase()).await?;
    let given_out = present.map_or(0, |present| present.record.life.counter.0);
    let generation = counted.max(given_out).max(before_names(app, item).await?) + 1;
    let fence = Fence { generation };
    store
        .apply(vec![records::put(key, &fence, expect)?])
        .await?;
    Ok(generation)
}

/// The newest generation that an earlier release gave: it counted for each item id.
async fn before_names(app: &App, item: &Item) -> Result<u64, StoreError> {
    let Some(vault) = vault_of(item) else {
        return Ok(0);
    };
    let end = format!("/{}", item_name(&item.id).to_ascii_lowercase());
    let below = records::fence_key(&format!("{}/", vault.key()));
    let old = records::list::<Fence>(app.store.as_ref(), &below).await?;
    let of_name = old.into_iter().filter(|fence| fence.key.ends_with(&end));
    Ok(of_name
        .map(|fence| fence.record.generation)
        .max()
        .unwrap_or(0))
}

/// Makes sure that no other item has the replica.
///
/// # Errors
/// 409 that names the other item; failures of the store.
pub async fn alone(app: &App, item: &Item) -> Result<(), Fault> {
    let vault = vault_of(item).map_or_else(String::new, |vault| format!("{}/", vault.key()));
    let items = records::list::<Item>(app.store.as_ref(), &vault).await?;
    let other = items.into_iter().find(|other| {
        !other.record.id.eq_ignore_ascii_case(&item.id)
            && item_name(&other.record.id).eq_ignore_ascii_case(item_name(&item.id))
            && meet(&other.record, item)
    });
    match other {
        None => Ok(()),
        Some(other) => Err(Fault::refuse(
            409,
            ArmError::new(
                "ReplicaNameInUse",
                format!(
                    "`{}` replicates into the same place of the same storage account: the replica would belong to both.",
                    other.record.id
                ),
            )
            .at("properties.providerSpecificDetails.targetStorageAccountId")
            .advise(
                "Two sites of one vault have a protected VM of this name.",
                "Use another name for the item or another storage account, or switch the protection of the other one off first.",
            ),
        )),
    }
}

/// Whether two items have a place in common.
fn meet(one: &Item, other: &Item) -> bool {
    let places = |item: &Item| -> Vec<_> {
        item.places()
            .map(|(place, _)| {
                let folder = place.folder.trim_end_matches(['/', '\\']).to_owned();
                (folder, place.azure.cloned())
            })
            .collect()
    };
    let others = places(other);
    places(one).iter().any(|place| others.contains(place))
}

/// [`alone`], and the change that makes it hold for what is stored together with it: of two items of one name that are
/// written at the same time the second conflicts here, and is refused when it looks again.
///
/// # Errors
/// As [`alone`].
pub async fn hold(app: &App, item: &Item) -> Result<Change, Fault> {
    let counted = count(app, item).await?;
    alone(app, item).await?;
    Ok(counted)
}

/// The change that remembers the numbers that a life has given out: they outlive the item. It conflicts when another
/// one counts at the same time.
///
/// # Errors
/// Failures of the store.
pub async fn count(app: &App, item: &Item) -> Result<Change, StoreError> {
    let key = key_of(item);
    let fence = records::get::<Fence>(app.store.as_ref(), &key).await?;
    let expect = fence
        .as_ref()
        .map_or(Expect::Absent, |fence| Expect::Etag(fence.etag));
    let counted = fence.map_or(0, |fence| fence.record.generation);
    let fence = Fence {
        generation: counted.max(item.life.counter.0),
    };
    records::put(key, &fence, expect)
}
