//! The end of a source's part in a planned failover: the guest shuts down, the last cycle has everything.
//!
//! ```text
//! guest asked to shut down ─► off ─► last cycle ─► in the store ─► still off, images untouched ─► guard: shipped ─► told
//!     │ still runs: cycles go on, asked again                            │ no: one more cycle
//! ```
//!
//! Promise: what is told is durable, and the point that it names holds every write of the VM. Nothing in between is
//! remembered, so whatever dies at whatever step, the next try begins with a VM that is off and compares or tracks as after
//! any restart; at worst there is one more point that holds the same.

use std::sync::Arc;
use std::time::Duration;

use hypervisor::{ErrorKind, FreezeRequest, PowerState};
use replica_store::PointKind;
use tokio::sync::watch;

use super::cadence::Frozen;
use super::capture::wait_for_fewer;
use super::cycle::Taken;
use super::disks::{find_vm, marks};
use super::kept;
use super::pauses;
use super::shared::{Item, Shared};
use super::state::ImageMark;
use super::status::Origin;
use super::trouble::Trouble;
use crate::source::{GUEST_PATIENCE, Keeper, findings};
use crate::task::blocking;

/// Between two tries that did not come to the end: whatever they wait for takes longer.
const PAUSE: Duration = Duration::from_secs(1);

/// An order to ship the rest.
#[derive(Clone)]
pub struct Rest {
    keeper: Arc<Keeper>,
    /// The VM is off: what waits for the store is downtime.
    off: Arc<watch::Sender<bool>>,
}

impl Rest {
    /// For the order that is in force.
    pub fn new(keeper: Arc<Keeper>) -> Self {
        Self {
            keeper,
            off: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Returns when the VM is off.
    pub(super) async fn is_off(&self) {
        // `self` keeps the sender, so this ends only so.
        self.off.subscribe().wait_for(|off| *off).await.ok();
    }

    /// Shuts the guest down; `false` = it still runs, and replication goes on before it is asked again.
    pub(super) async fn shut_down(&self, item: &Item, shared: &Shared) -> Result<bool, Trouble> {
        let vm = find_vm(item).await?;
        if vm.power_state == PowerState::Running {
            self.off.send_replace(false);
            // Whoever lets the VM run again must know that it was us.
            self.keeper.owe_start().await.map_err(Trouble::io(
                "note that the virtual machine is shut down by an order",
            ))?;
            tracing::info!(
                item = item.spec.item_id,
                vm = item.spec.vm_name,
                "shutting the virtual machine down, as ordered"
            );
            let host = &item.context.hypervisor;
            let asked = tokio::select! {
                biased;
                () = shared.halt.cancelled() => return Err(Trouble::Stopped),
                asked = host.shut_down(item.spec.vm, GUEST_PATIENCE) => asked,
            };
            match asked {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Timeout => {
                    let found = findings::shut_down_failed(&item.spec.vm_name, GUEST_PATIENCE);
                    item.status.notice(Origin::Power, Some(found));
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.off.send_replace(true);
        item.status.notice(Origin::Power, None);
        item.pass(pauses::SHUT_DOWN).await;
        Ok(true)
    }

    /// The last cycle was captured. When it holds everything and is in the store, that becomes durable, and the item stops.
    pub(super) async fn finish(
        &self,
        item: &Item,
        shared: &Shared,
        taken: Option<Taken>,
        before: Vec<Option<ImageMark>>,
    ) -> Result<(), Trouble> {
        tokio::select! {
            biased;
            () = shared.halt.cancelled() => return Err(Trouble::Stopped),
            () = wait_for_fewer(shared, 1) => {}
        }
        let state = shared.state().await;
        let record = match taken {
            Some(Taken::Cycle(record)) => record,
            _ => return again(shared).await,
        };
        let mut disks = item.spec.disks.iter();
        let holds_all = record.recoverable
            && state.instant == record.point_id
            && disks.all(|disk| record.knowledge.members.contains(disk));
        let is_off = find_vm(item).await?.power_state == PowerState::Off;
        if !holds_all || !is_off || marks(&state.disks).await? != before {
            return again(shared).await;
        }
        let points = shared.writer(item).await?.points().await?;
        if points.iter().all(|point| point.id != record.point_id) {
            return again(shared).await;
        }
        item.status.points(&points);
        item.pass(pauses::REST_SHIPPED).await;
        let (files, point) = (item.files.clone(), record.point_id);
        let noted = blocking(move || kept::note_shipped(&files, &state, point, before)).await;
        if let Err(error) = noted {
            tracing::warn!(
                item = item.spec.item_id,
                %error,
                "a failback will read all of the disks"
            );
        }
        self.keeper
            .shipped(record.point_id)
            .await
            .map_err(Trouble::io("note that everything is shipped"))?;
        tracing::info!(
            item = item.spec.item_id,
            point = %record.point_id,
            position = record.position,
            "every write is in the store, and the virtual machine is off"
        );
        Err(Trouble::Stopped)
    }
}

async fn again(shared: &Shared) -> Result<(), Trouble> {
    tokio::select! {
        biased;
        () = shared.halt.cancelled() => Err(Trouble::Stopped),
        () = tokio::time::sleep(PAUSE) => Ok(()),
    }
}

/// Freezes a VM that is off.
pub(super) async fn freeze(item: &Item, request: &FreezeRequest) -> Result<Frozen, Trouble> {
    let host = &item.context.hypervisor;
    let point = host
        .freeze_off(request.vm, &request.disks, request.since, request.next)
        .await?;
    Ok(Frozen {
        point,
        kind: PointKind::Crash,
        group_point: None,
    })
}
