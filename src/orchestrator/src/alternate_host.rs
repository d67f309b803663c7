//! Another host becomes the source of an item, and what the hosts are told that were it before.
//!
//! ```text
//!  failback to host B ─► the life's source moves, the record names B, A is kept as a former source   (one write)
//!                          ├─ B: hold, then as any source: receive, run, replicate
//!                          └─ A: hold, for as long as the item is there ─► its end ─► let go, stay off ─► forgotten
//! ```
//!
//! Promise: a former source is told to hold in every state that it gets, however late it comes back, and nothing that it says
//! moves the item's life. What it is told outlives the item until it has let go of the VM.

use protection::life::{Event, Former, SourceSaid};
use protection::{Generation, step};
use tracing::info;

use crate::app::App;
use crate::failover;
use crate::fault::Fault;
use crate::store::former::{FormerSource, LeftBehind, left_behind_key, left_behind_prefix};
use crate::store::records::{self, EngineRecord, Item, Stored};
use crate::store::{Change, Expect, StoreError};

/// Makes another host the source of an item that runs at the recovery side for good. Repeating it changes nothing.
///
/// # Errors
/// 404 without the item; 409 when the VM isn't at the recovery side for good, or the host was removed; failures of the store.
pub async fn move_source(app: &App, key: &str, to: &str) -> Result<Item, Fault> {
    loop {
        let stored = records::get::<Item>(app.store.as_ref(), key)
            .await?
            .ok_or_else(|| Fault::not_found(key))?;
        let item = &stored.record;
        if item.engine_id == to {
            return Ok(stored.record);
        }
        let engine = records::engine_key(to);
        if records::get::<EngineRecord>(app.store.as_ref(), &engine)
            .await?
            .is_none()
        {
            return Err(removed_meanwhile(item));
        }
        let moved = step(item.life, Event::SourceMoved)?;
        // Who becomes the source again is told newer orders than all that it knows.
        let others = item.formers.iter().filter(|former| former.engine_id != to);
        let left = FormerSource {
            engine_id: item.engine_id.clone(),
            numbers: Former::left(&item.life, &moved.0),
        };
        let record = Item {
            engine_id: to.to_owned(),
            formers: others.cloned().chain([left]).collect(),
            ..item.clone()
        };
        info!(item = %item.id, from = item.engine_id, to, "the source of a protected VM becomes another host");
        let side = record.recovery.clone();
        match failover::write(app, Stored { record, ..stored }, moved, side).await {
            Ok(next) => {
                app.ring();
                return Ok(next);
            }
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The host was there when the failback was asked for: the VM stays with the host that it has.
fn removed_meanwhile(item: &Item) -> Fault {
    Fault::conflict(
        "AlternateHostNotFound",
        &item.id,
        format!(
            "The host that the failback of `{}` names was removed meanwhile.",
            item.vm_name
        ),
        "Start it again with a host that is registered: `siterecovery host list` shows them.",
    )
}

/// What goes into the store with the end of an item: its former sources still have to let go.
///
/// # Errors
/// When a record can't be written as JSON.
pub fn left_behind(key: &str, item: &Item) -> Result<Vec<Change>, StoreError> {
    let left = item.formers.iter().map(|source| {
        let left = LeftBehind {
            item: item.clone(),
            source: source.clone(),
        };
        let key = left_behind_key(&source.engine_id, key);
        records::put(key, &left, Expect::Any)
    });
    left.collect()
}

/// Copies that hosts still have of VMs whose items ended elsewhere, by engine and VM.
///
/// # Errors
/// Failures of the store.
pub async fn left_at(app: &App) -> Result<Vec<(String, String)>, StoreError> {
    let all = records::list::<LeftBehind>(app.store.as_ref(), left_behind_prefix()).await?;
    let left = all.into_iter().map(|left| left.record);
    Ok(left
        .map(|left| (left.source.engine_id, left.item.vm_id))
        .collect())
}

/// Forgets a former source of an item that has ended, once it has said that it let go.
///
/// # Errors
/// Failures of the store.
pub async fn said(
    app: &App,
    engine_id: &str,
    item_id: &str,
    (epoch, said): (Generation, SourceSaid),
) -> Result<(), StoreError> {
    if said != SourceSaid::Left {
        return Ok(());
    }
    let store = app.store.as_ref();
    for left in records::list::<LeftBehind>(store, &left_behind_key(engine_id, "")).await? {
        let name = left.record.item.id.rsplit('/').next();
        let is_it = name.is_some_and(|name| name.eq_ignore_ascii_case(item_id));
        if is_it && left.record.source.numbers.leave == epoch {
            let (key, expect) = (left.key, Expect::Etag(left.etag));
            match store.apply(vec![Change::Delete { key, expect }]).await {
                Err(error) if error.is_conflict() => {}
                done => {
                    done?;
                }
            }
        }
    }
    Ok(())
}
