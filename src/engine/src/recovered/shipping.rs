//! A recovery side's part in a failback: when its VM is shipped, and when its rest is.
//!
//! ```text
//!   RUN, ships    served, started ─► a shipper goes on beside everything else
//!   STOP, ships   shipper ends ─► guest shuts down, tracking stays ─► rest is shipped ─► VM ends ─► done ─► STOPPED is said
//!   otherwise     no shipper; what was noted of it goes
//! ```
//!
//! Promise: that a VM ships is on disk before an order of a failback is; so a restarted engine, which knows the order before
//! any message, says STOPPED only when the rest is in the replica.

use std::time::Duration;

use anyhow::{Context as _, bail};
use engine_protocol::v1;
use hypervisor::{Stop, VmId};
use protection::Generation;
use protection::life::{Guard, RecoveryOrder};
use uuid::Uuid;

use super::failover::{Next, Side, There};
use super::record::Record;
use super::reverse::{self, Errand, ShipRecord, Shipper};
use super::{POWER_POLL, making, places};
use crate::finding;
use crate::replicator::policy;

/// How often it is looked whether the rest is shipped: the other side waits for it.
const REST_POLL: Duration = Duration::from_millis(200);

/// A shipper and what it was started for.
pub(super) struct Shipping {
    purpose: Purpose,
    shipper: Shipper,
    /// In force.
    throttles: Vec<v1::Throttle>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Purpose {
    vm: Uuid,
    generation: u64,
    /// The order that the rest is shipped for.
    rest_for: Option<Generation>,
}

impl Side {
    /// Notes that the message's VM ships, if it does.
    pub(super) async fn note_shipping(&self, message: &v1::RecoveredVm) -> anyhow::Result<()> {
        if !message.ships {
            return Ok(());
        }
        if message.ship_generation == 0 {
            bail!(
                "an order of a failback of {} names no generation to ship under",
                self.place.key()
            );
        }
        let id = message.id.parse::<Uuid>();
        let id = id.with_context(|| format!("recovered VM id {:?} is not a GUID", message.id))?;
        if !self.place.records().exists() {
            // No VM of the item was ever here.
            return Ok(());
        }
        reverse::begin(self.place.records(), id, message.ship_generation).await
    }

    /// Whether a VM ships what it writes: by the message in force, or by what is on disk until that comes again.
    pub(super) async fn ships(&self, record: &Record) -> anyhow::Result<Option<ShipRecord>> {
        if self.wish.as_ref().is_some_and(|wish| !wish.ships) {
            return Ok(None);
        }
        let known = reverse::known(self.place.records(), record.id).await?;
        // A message that came before there was anything of the item could not be noted.
        let wish = self.wish.as_ref().filter(|wish| wish.ships);
        Ok(known.or_else(|| wish.map(|wish| ShipRecord::new(record.id, wish.ship_generation))))
    }

    /// Lets a shipper run when, and only when, there is something to ship.
    pub(super) async fn ship(
        &mut self,
        guard: Guard<RecoveryOrder>,
        there: &There,
    ) -> anyhow::Result<()> {
        let purpose = self.purpose(guard, there);
        let shipping = self.shipping.as_ref();
        if shipping.is_some_and(|shipping| shipping.shipper.has_died())
            || shipping.map(|shipping| shipping.purpose) != purpose
        {
            self.end_shipping().await;
            if let (Some(purpose), Some(record)) = (purpose, &there.record) {
                self.begin_shipping(purpose, record)?;
            }
        }
        if let (Some(shipping), Some(newest)) = (&mut self.shipping, &self.newest) {
            shipping.shipper.set_keys(making::keys(newest)?);
            shipping.shipper.set_interval(interval(newest));
            if shipping.throttles != newest.throttles {
                // Those before stay in force when these can't be read: none at all could be the worse surprise.
                let limits = policy::limits(&newest.throttles).map_err(anyhow::Error::msg)?;
                let item = self.place.key().item_id();
                self.host.throttle.limit_item(item, &limits);
                shipping.throttles.clone_from(&newest.throttles);
            }
        }
        let over = self.wish.as_ref().is_some_and(|wish| !wish.ships);
        if let Some(record) = there.record.as_ref().filter(|_| over) {
            let records = self.place.records();
            if reverse::known(records, record.id).await?.is_some() {
                reverse::end(&self.host, records, record.id).await?;
                tracing::info!(vm = %record.id, name = record.name, "a recovered VM ships no more");
            }
        }
        Ok(())
    }

    fn purpose(&self, guard: Guard<RecoveryOrder>, there: &There) -> Option<Purpose> {
        let record = there.record.as_ref()?;
        let wish = self.wish.as_ref().filter(|wish| wish.ships)?;
        if there.ships.is_none() || record.point_id.is_nil() || !self.serves(record) {
            return None;
        }
        let rest_for = match guard.order {
            RecoveryOrder::Run { instance, .. }
                if record.instance == Some(instance) && record.started_unix_ms != 0 =>
            {
                None
            }
            RecoveryOrder::Stop if !there.running && !guard.done => Some(guard.epoch),
            _ => return None,
        };
        Some(Purpose {
            vm: record.id,
            generation: wish.ship_generation,
            rest_for,
        })
    }

    fn begin_shipping(&mut self, purpose: Purpose, record: &Record) -> anyhow::Result<()> {
        let Some(newest) = &self.newest else {
            return Ok(());
        };
        let errand = Errand {
            vm: VmId(record.id),
            name: record.name.clone(),
            generation: replica_store::Generation(purpose.generation),
            store: self.store(record)?,
            key: self.place.key().clone(),
            keys: making::keys(newest)?,
            immutability_hours: newest.immutability_hours,
            interval: interval(newest),
            point: record.point_id,
            records: self.place.records().to_owned(),
            // It is served, or nothing of it would be shipped.
            conversion: self
                .served
                .as_ref()
                .and_then(|served| served.conversion.clone()),
        };
        let host = self.host.clone();
        let shipper = match purpose.rest_for {
            None => Shipper::run(host, errand),
            Some(_) => Shipper::ship_rest(host, errand),
        };
        self.shipping = Some(Shipping {
            purpose,
            shipper,
            throttles: Vec::new(),
        });
        Ok(())
    }

    /// Nothing of the VM is frozen afterwards, and nothing is under way to the store.
    pub(super) async fn end_shipping(&mut self) {
        if let Some(shipping) = self.shipping.take() {
            shipping.shipper.stop().await;
            let item = self.place.key().item_id();
            self.host.throttle.limit_item(item, &[]);
        }
    }

    /// The VM is off, and its last writes are to be in the replica before that is said.
    pub(super) async fn ship_rest(
        &mut self,
        guard: Guard<RecoveryOrder>,
        mut record: Record,
    ) -> anyhow::Result<Next> {
        if !self.serves(&record) {
            // What was never written is read from the point.
            return self.serve(&mut record, Generation(0)).await;
        }
        self.note_stopped(&mut record).await?;
        let rest_for = Some(guard.epoch);
        let shipping = self.shipping.as_ref();
        let Some(shipping) = shipping.filter(|shipping| shipping.purpose.rest_for == rest_for)
        else {
            // Until the message comes again, which has the keys.
            return Ok(Next::Look(POWER_POLL));
        };
        if !shipping.shipper.seen().rest_shipped {
            return Ok(Next::Look(REST_POLL));
        }
        self.host.pauses.pass(places::REST_SHIPPED).await;
        self.end_shipping().await;
        // It was kept for its tracking.
        self.host
            .hypervisor
            .stop(VmId(record.id), Stop::TurnOff)
            .await
            .context("end the virtual machine")?;
        tracing::info!(vm = %record.id, name = record.name, "all that a recovered VM wrote is in the replica");
        self.note_done(guard).await
    }

    /// Why a VM is not shipped as it should be.
    pub(super) fn shipping_problem(&self) -> Option<v1::Finding> {
        let shipping = self.shipping.as_ref()?;
        let seen = shipping.shipper.seen();
        let name = self.wish.as_ref().map(|wish| wish.name.as_str());
        if seen.fenced {
            return Some(finding::finding(
                "SHIPPING_BACK_FENCED",
                format!(
                    "what recovered virtual machine {:?} writes can't be shipped into its replica: a newer activation owns it",
                    name.unwrap_or_default()
                ),
                "The VM was protected anew, or failed over again, while it was on its way back.",
                "Cancel the failback, and find out who protects the VM: `siterecovery-engine inspect` names the owner of the replica.",
                true,
            ));
        }
        let problem = seen.problem?;
        Some(finding::finding(
            "SHIPPING_BACK_FAILED",
            format!(
                "what recovered virtual machine {:?} writes could not be shipped into its replica: {problem}",
                name.unwrap_or_default()
            ),
            "The storage account is away or full, or the recovery host can't read the virtual machine's disks.",
            "The engine tries again by itself, and nothing is lost. See the engine's log on the recovery host.",
            false,
        ))
    }
}

/// From one point to the next: the policy's interval, but no longer than what may wait when the VM is stopped.
fn interval(message: &v1::RecoveredVm) -> Duration {
    match message.replication_interval_seconds {
        0 => reverse::LONGEST_INTERVAL,
        seconds => Duration::from_secs(seconds.into()).min(reverse::LONGEST_INTERVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failback_ships_as_often_as_the_policy_wants_and_no_more_seldom_than_its_downtime_allows() {
        let of = |replication_interval_seconds| {
            interval(&v1::RecoveredVm {
                replication_interval_seconds,
                ..v1::RecoveredVm::default()
            })
        };
        assert_eq!(of(5), Duration::from_secs(5));
        assert_eq!(of(900), reverse::LONGEST_INTERVAL);
        assert_eq!(of(0), reverse::LONGEST_INTERVAL);
    }
}
