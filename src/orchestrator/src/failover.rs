//! Where an item's VM runs: one step of its life, stored, and what the record keeps of its recovered VM.
//!
//! ```text
//!   request or report ─► protection::step ─► record (compare-and-swap) ─► desired state of both engines
//!                                              └ recovery side: host, point, name
//! ```
//!
//! An effect needs nothing more than the record: [`crate::gateway::desired`] tells both sides their orders from it, again
//! and again until they are confirmed.

use protection::life::{Event, Kind, Phase, RecoveryOrder, SourceSaid};
use protection::{Generation, Life};
use uuid::Uuid;

use crate::app::App;
use crate::fault::Fault;
use crate::store::Expect;
use crate::store::records::{self, Item, LastFailover, RecoverySide};

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
    let store = app.store.as_ref();
    loop {
        let stored = records::get::<Item>(store, key)
            .await?
            .ok_or_else(|| Fault::not_found(key))?;
        let (life, _) = protection::step(stored.record.life, event)?;
        if life == stored.record.life {
            return Ok(stored.record);
        }
        let item = Item {
            recovery: side(&stored.record),
            ..stored.record.clone()
        };
        let next = settled(&item, life, &app.now_text());
        let change = records::put(key, &next, Expect::Etag(stored.etag))?;
        match store.apply(vec![change]).await {
            Ok(_) => {
                tracing::info!(item = %next.id, from = ?stored.record.life.phase, to = ?life.phase, "the VM's life goes on");
                app.ring();
                return Ok(next);
            }
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error.into()),
        }
    }
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
