//! Where an item's VM runs: one step of its life, stored, and what the record keeps of its recovered VM.
//!
//! ```text
//!   request or report ─► protection::step ─► record (compare-and-swap) ─► desired state of both engines
//!                                              └ recovery side: host, point, name
//! ```
//!
//! An effect needs nothing more than the record: [`crate::gateway::desired`] tells both sides their orders from it, again
//! and again until they are confirmed.

use protection::life::{Effect, Event, Kind, Phase, RecoveryOrder, SourceSaid};
use protection::{Generation, Life, machine};
use uuid::Uuid;

use crate::app::App;
use crate::fault::Fault;
use crate::gateway::reports::vault_of;
use crate::store::records::{self, Item, LastFailover, RecoverySide, Stored};
use crate::store::{Change, Expect, StoreError};

/// Id of an item's recovered VM outside of drills; another one for each recovery point that was chosen.
#[must_use]
pub fn vm_id(item: &Item) -> Option<Uuid> {
    let instance = item.life.instance?;
    let text = format!("{}|{}", item.id.to_ascii_lowercase(), instance.0);
    Some(Uuid::new_v5(&Uuid::NAMESPACE_URL, text.as_bytes()))
}

/// The generation under which a recovered VM ships what it writes, during a failback; else 0.
#[must_use]
pub fn ship_generation(life: &Life) -> u64 {
    match life.phase {
        Phase::Synchronising(_)
        | Phase::Synchronised(_)
        | Phase::StoppingRecovered(_)
        | Phase::Receiving(_) => life.takes.0,
        _ => 0,
    }
}

/// The record after a step of its life: the recovery side goes with the recovered VM, and the end of a failover is noted.
#[must_use]
pub fn settled(item: &Item, life: Life, now: &str) -> Item {
    let mut next = Item {
        life,
        ..item.clone()
    };
    let nothing_there =
        life.instance.is_none() && life.orders().recovery.1 == RecoveryOrder::Absent;
    if nothing_there && !matches!(life.phase, Phase::StoppingSource(_)) {
        next.recovery = None;
    }
    // Who was never told of the VM has to say, too, that it is not there.
    if let (Phase::UndoingFailover, Some(side)) = (life.phase, &mut next.recovery) {
        side.due = true;
    }
    let ended = match (item.life.phase, life.phase) {
        (Phase::StartingRecovered(..), Phase::FailedOver(kind)) => Some(kind == Kind::Planned),
        (Phase::StartingSource(_), Phase::FailedBack(_)) => Some(true),
        _ => None,
    };
    if let Some(planned) = ended {
        let time = now.to_owned();
        next.last_failover = Some(LastFailover { time, planned });
    }
    next
}

/// Stores a step of an item's life, if nobody came between. An item whose life has ended goes.
///
/// # Errors
/// A conflict when somebody came between; failures of the store.
pub async fn write(
    app: &App,
    stored: Stored<Item>,
    (life, effects): (Life, Vec<Effect>),
    side: Option<RecoverySide>,
) -> Result<Item, StoreError> {
    let before = stored.record.life;
    let item = Item {
        recovery: side,
        ..stored.record
    };
    let next = settled(&item, life, &app.now_text());
    tracing::info!(item = %next.id, from = ?(before.phase, before.item.replication), to = ?(life.phase, life.item.replication), "the state of a protected VM changes");
    let expect = Expect::Etag(stored.etag);
    let changes = if effects.contains(&Effect::Item(machine::Effect::RemoveRecord)) {
        let goes = life.item.disabled.is_some_and(|how| how.delete_replica);
        if !goes && let Some(vault) = vault_of(&item) {
            // The replica stays without us: what it is encrypted with must stay too.
            crate::vault_keys::keep_for(app, &vault, &item).await?;
        }
        let key = stored.key;
        let mut changes = crate::alternate_host::left_behind(&key, &next)?;
        changes.push(Change::Delete { key, expect });
        changes.push(crate::saga::fence::count(app, &next).await?);
        changes
    } else {
        vec![records::put(stored.key, &next, expect)?]
    };
    app.store.apply(changes).await?;
    Ok(next)
}

/// Makes a step of an item's life, and changes its recovery side with it. A step that changes nothing stores nothing.
///
/// # Errors
/// 404 without the item; 409 when the life doesn't allow the event; failures of the store.
pub async fn advance(
    app: &App,
    key: &str,
    event: Event,
    side: impl Fn(&Item) -> Option<RecoverySide> + Send + Sync,
) -> Result<Item, Fault> {
    loop {
        let stored = records::get::<Item>(app.store.as_ref(), key)
            .await?
            .ok_or_else(|| Fault::not_found(key))?;
        let step = protection::step(stored.record.life, event)?;
        if step.0 == stored.record.life {
            return Ok(stored.record);
        }
        let side = side(&stored.record);
        match write(app, stored, step, side).await {
            Ok(next) => {
                app.ring();
                return Ok(next);
            }
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// As [`advance`], with the recovery side as it is.
///
/// # Errors
/// As [`advance`].
pub async fn ask(app: &App, key: &str, event: Event) -> Result<Item, Fault> {
    advance(app, key, event, |item| item.recovery.clone()).await
}

/// The recovery side after a source's report: what it shipped last is what the VM is made from, unless a point was chosen.
#[must_use]
pub fn with_last_point(
    item: &Item,
    (epoch, said): (Generation, SourceSaid),
    point: Option<(String, i64)>,
) -> Option<RecoverySide> {
    let mut side = item.recovery.clone();
    let shipped = said == SourceSaid::Shipped && epoch == item.life.source_epoch;
    if let Some(side) = &mut side
        && shipped
        && side.point_id.is_empty()
        && let Some((id, at_ms)) = point
    {
        side.point_id = id;
        side.point_ms = at_ms;
    }
    side
}
