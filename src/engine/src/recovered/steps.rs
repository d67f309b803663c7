//! The actions of a recovery side. Each is one step of [`super::failover`], may be cut anywhere and done again.
//!
//! ```text
//!  run    fence ─► record ─► (fence) point held, served, VM made ─► fence ─► start
//!  stop   noted ─► guest shuts down, or is turned off
//!  leave  own disks, while it runs ─► noted ─► point let go ─► record goes: the VM is not ours any more
//! ```
//!
//! Promise: a VM is started only after the store has refused to be written by anybody older. A VM that was stopped by an
//! order is started by the next order to run, with all that its guest wrote; one that was shut down from inside stays off,
//! unless the host was started since: then it is what the host's own automatic start would have been.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use hypervisor::nbd::NbdServer;
use hypervisor::{Independence, Stop, VmId};
use protection::Generation;
use protection::life::{Guard, RecoveryOrder};
use replica_store::{PointSelector, ReplicaView, StoreTarget};
use replication_log::KeyRing;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::adapters::Adapters;
use super::conversion::Conversion;
use super::evidence::Watch;
use super::failover::{Next, Side};
use super::hydration::{self, Copies, Hydration, Room};
use super::record::Record;
use super::{POWER_POLL, local_copy, making, places, readiness, reverse};
use crate::engine::now_unix_ms;
use crate::stores;
use crate::task::{blocking, spawn_named};

/// How often a VM that is being made independent is looked at.
const INDEPENDENCE_POLL: Duration = Duration::from_secs(1);

/// A guest that says nothing on its console is taken for booted after that.
const BOOT_ALONE: Duration = Duration::from_secs(60);

/// Disks that are served.
pub(super) struct Served {
    id: Uuid,
    /// Where the guest's first serial port goes.
    pub(super) console: PathBuf,
    /// What they are read through.
    pub(super) conversion: Option<Arc<Conversion>>,
    /// As long as this lives.
    _server: NbdServer,
    /// Its disks, and the point that they are at.
    copies: Copies,
    view: ReplicaView,
    /// They come to this host.
    hydration: Option<Hydration>,
    /// Its guest is asked whether it is up.
    asking: Option<AbortOnDropHandle<Option<()>>>,
    /// Its display and console are looked at.
    watched: Option<Watch>,
}

impl Side {
    /// Nothing is there: raises the fence and notes which VM is made.
    pub(super) async fn begin(
        &mut self,
        instance: Generation,
        takes: Generation,
    ) -> anyhow::Result<Next> {
        let Some(wish) = &self.wish else {
            // After a restart, until the message that ordered it comes again.
            return Ok(Next::Look(POWER_POLL));
        };
        let id = wish.id.parse::<Uuid>();
        let id = id.with_context(|| format!("recovered VM id {:?} is not a GUID", wish.id))?;
        let (store, place) =
            stores::target(wish.store.as_ref()).map_err(|problem| anyhow!(problem))?;
        let drills = self.host.folder.clone();
        if blocking(move || Record::read(&drills, id))
            .await
            .is_ok_and(|known| known.is_none())
        {
            let key = self.place.key();
            let mut record = Record::new(
                id,
                wish.name.clone(),
                place,
                key.vault_key().to_owned(),
                key.item_id().to_owned(),
            );
            record.instance = Some(instance);
            record.adapters = Adapters::of(wish);
            self.raise(&store, takes).await?;
            making::keep(self.place.records(), &record).await?;
            self.host.pauses.pass(places::NOTED).await;
            return Ok(Next::Again);
        }
        bail!("the id {id} is in use for a virtual machine of a drill")
    }

    /// The VM is there and may run: serves it, starts it, follows it; lets go of it when that is ordered.
    pub(super) async fn run(
        &mut self,
        guard: Guard<RecoveryOrder>,
        mut record: Record,
        takes: Generation,
        running: bool,
    ) -> anyhow::Result<Next> {
        let leaving = matches!(guard.order, RecoveryOrder::Leave { .. });
        if leaving && guard.done {
            return self.let_go(&record).await;
        }
        if !self.serves(&record) {
            return self.serve(&mut record, takes).await;
        }
        let vm = VmId(record.id);
        let boot = &self.host.boot;
        let started = record.started_unix_ms != 0;
        let host_restarted = !boot.is_empty() && record.started_in_boot != *boot;
        if !running && (!started || host_restarted) {
            let store = self.store(&record)?;
            self.raise(&store, takes).await?;
            self.host
                .hypervisor
                .start(vm)
                .await
                .context("start the virtual machine")?;
            self.host.pauses.pass(places::STARTED).await;
        }
        // One that runs and is not noted was started by an engine that was killed then.
        if !started || (host_restarted && !running) {
            record.started_unix_ms = now_unix_ms();
            record.first_output_unix_ms = 0;
            record.started_in_boot.clone_from(&self.host.boot);
            making::keep(self.place.records(), &record).await?;
            tracing::info!(vm = %record.id, name = record.name, point = %record.point_id, "recovered VM is running");
            return Ok(Next::Again);
        }
        if leaving {
            return self.make_independent(guard, &record).await;
        }
        if running {
            self.hydrate(&record);
            self.ask(record.id);
            self.watch(&record);
        }
        let console = self.served.as_ref().map(|served| served.console.clone());
        let Some(console) = console.filter(|_| running && record.first_output_unix_ms == 0) else {
            return Ok(Next::Look(POWER_POLL));
        };
        if !making::has_bytes(console.clone()).await {
            return Ok(Next::Console(console));
        }
        record.first_output_unix_ms = now_unix_ms();
        making::keep(self.place.records(), &record).await?;
        tracing::info!(vm = %record.id, name = record.name, "recovered VM has written its first output");
        Ok(Next::Again)
    }

    /// Nothing of the item may run, or another VM of it.
    pub(super) async fn stop(
        &mut self,
        guard: Guard<RecoveryOrder>,
        mut record: Record,
        ships: bool,
    ) -> anyhow::Result<Next> {
        let vm = VmId(record.id);
        let hypervisor = self.host.hypervisor.clone();
        if guard.order == RecoveryOrder::Stop {
            self.note_stopped(&mut record).await?;
            // The guest writes while it shuts down, and reads what it needs for that.
            if self.served.is_none()
                && let Err(error) = self.serve(&mut record, Generation(0)).await
            {
                tracing::warn!(vm = %record.id, error = format!("{error:#}"), "a recovered VM is shut down without its disks being served");
            }
            let patience = self.host.shutdown_patience;
            let shut_down = if ships {
                // What it wrote last need not be looked for then.
                hypervisor.shut_down(vm, patience).await
            } else {
                let how = Stop::Shutdown { timeout: patience };
                hypervisor.stop(vm, how).await
            };
            if let Err(error) = shut_down {
                tracing::warn!(vm = %record.id, name = record.name, %error, "the guest of a recovered VM does not shut down; it is turned off");
                hypervisor
                    .stop(vm, Stop::TurnOff)
                    .await
                    .context("turn the virtual machine off")?;
            }
        } else {
            hypervisor
                .stop(vm, Stop::TurnOff)
                .await
                .context("turn the virtual machine off")?;
        }
        self.host.pauses.pass(places::STOPPED).await;
        tracing::info!(vm = %record.id, name = record.name, order = ?guard.order, "recovered VM is off");
        Ok(Next::Again)
    }

    /// Asks the guest what somebody wants to know, until the VM is stopped.
    fn ask(&mut self, id: Uuid) {
        let host = self.host.clone();
        if let Some(served) = &mut self.served {
            served.asking.get_or_insert_with(|| {
                let name = format!("ask recovered {id}");
                AbortOnDropHandle::new(spawn_named(name, async move {
                    match readiness::ask(&host, id).await {}
                }))
            });
        }
    }

    /// Looks at the VM for the report of its failover.
    fn watch(&mut self, record: &Record) {
        // A message tells what was received already.
        let (Some(newest), Some(served)) = (&self.newest, &mut self.served) else {
            return;
        };
        match &served.watched {
            Some(watched) => watched.tell(record),
            None => {
                let received = !newest.evidence_received.is_empty();
                let (host, console) = (self.host.clone(), served.console.clone());
                served.watched = Some(Watch::start(host, record.clone(), console, received));
            }
        }
    }

    /// Brings the disks to this host once the guest has booted: until then it has the link and the store to itself.
    fn hydrate(&mut self, record: &Record) {
        let age = now_unix_ms().saturating_sub(record.started_unix_ms);
        let is_up = record.first_output_unix_ms != 0 || age > BOOT_ALONE.as_millis() as i64;
        if let Some(served) = self.served.as_mut().filter(|_| is_up)
            && served.hydration.is_none()
            && !served.copies.is_empty()
        {
            let (view, copies) = (served.view.clone(), served.copies.clone());
            served.hydration = Some(hydration::start(&self.host, record.id, view, copies));
        }
    }

    /// It is off and kept.
    pub(super) async fn stay_off(&mut self, mut record: Record) -> anyhow::Result<Next> {
        self.note_stopped(&mut record).await?;
        self.unserve().await;
        if (self.host.room)(&self.host.folder) == Room::Tight {
            // Other guests need it now; this one can fetch its disks again.
            let folder = self.host.folder.join(record.id.to_string());
            blocking(move || local_copy::remove_all(&folder))
                .await
                .context("remove the local copies of its disks")?;
        }
        Ok(Next::Look(POWER_POLL))
    }

    /// The next order to run starts it, also if its guest shut it down before.
    pub(super) async fn note_stopped(&self, record: &mut Record) -> anyhow::Result<()> {
        if record.started_unix_ms == 0 {
            return Ok(());
        }
        record.started_unix_ms = 0;
        record.first_output_unix_ms = 0;
        making::keep(self.place.records(), record).await
    }

    /// It is off and not wanted.
    pub(super) async fn remove(&mut self, record: Record) -> anyhow::Result<Next> {
        self.unserve().await;
        making::remove(&self.host, self.place.records(), record.id).await?;
        reverse::forget(self.place.records(), record.id).await?;
        self.host.pauses.pass(places::REMOVED).await;
        Ok(Next::Again)
    }

    /// Serves no disks any more. Afterwards nobody writes to their copies.
    async fn unserve(&mut self) {
        let hydration = self.served.take().and_then(|served| served.hydration);
        if let Some(hydration) = hydration {
            hydration.end().await;
        }
    }

    /// Whether the disks of a VM are served.
    pub(super) fn serves(&self, record: &Record) -> bool {
        let served = self.served.as_ref();
        served.is_some_and(|served| served.id == record.id)
    }

    pub(super) async fn serve(
        &mut self,
        record: &mut Record,
        takes: Generation,
    ) -> anyhow::Result<Next> {
        // One server a socket; that of another VM has no one to serve any more.
        self.unserve().await;
        let store = self.store(record)?;
        let wanted = match &self.wish {
            Some(wish) => making::wanted_point(wish)?,
            None if record.point_id.is_nil() => return Ok(Next::Look(POWER_POLL)),
            None => PointSelector::Id(record.point_id),
        };
        if record.point_id.is_nil() {
            // Before the point is chosen: what is newest then stays the newest.
            self.raise(&store, takes).await?;
        }
        let keys = match &self.newest {
            Some(newest) => making::keys(newest)?,
            None => KeyRing::new(),
        };
        // Made anew it would be as at its point: what the guest wrote since would be lost without a word.
        if record.made && !self.is_there(record.id).await? {
            bail!(
                "the recovered VM {} was removed from this host, with all that its guest wrote: choose a recovery point anew, or undo the failover",
                record.id
            );
        }
        let reader = making::reader(&store, self.place.key(), keys).await?;
        let records = self.place.records();
        let view = making::open(records, record, &reader, wanted).await?;
        self.host.pauses.pass(places::POINT_HELD).await;
        let made = making::make(&self.host, records, record, &view).await?;
        let console = self.host.hypervisor.console(VmId(record.id)).await;
        self.served = Some(Served {
            id: record.id,
            console: console.context("find the console of the virtual machine")?,
            conversion: made.conversion,
            _server: made.server,
            copies: made.copies,
            view,
            hydration: None,
            asking: None,
            watched: None,
        });
        if !record.made {
            record.made = true;
            making::keep(records, record).await?;
        }
        self.host.pauses.pass(places::MADE).await;
        Ok(Next::Again)
    }

    async fn is_there(&self, id: Uuid) -> anyhow::Result<bool> {
        let machines = making::machines(&self.host).await?;
        Ok(machines.iter().any(|machine| machine.id == VmId(id)))
    }

    async fn make_independent(
        &mut self,
        guard: Guard<RecoveryOrder>,
        record: &Record,
    ) -> anyhow::Result<Next> {
        self.make_room(record.id).await;
        let step = self.host.hypervisor.make_independent(VmId(record.id));
        match step
            .await
            .context("make the virtual machine independent of the recovery point")?
        {
            Independence::UnderWay {
                copied_bytes,
                total_bytes,
            } => {
                tracing::debug!(vm = %record.id, name = record.name, copied_bytes, total_bytes, "recovered VM is being made independent");
                Ok(Next::Look(INDEPENDENCE_POLL))
            }
            Independence::Complete => {
                self.host.pauses.pass(places::INDEPENDENT).await;
                self.note_done(guard).await
            }
        }
    }

    /// All that a VM reads goes into its own layers from here on: it needs no second copy, and may need the room of the first.
    async fn make_room(&mut self, id: Uuid) {
        let Some(served) = &mut self.served else {
            return;
        };
        if let Some(hydration) = served.hydration.take() {
            hydration.end().await;
        }
        served.copies.iter().for_each(|copy| copy.keep_more(false));
        if (self.host.room)(&self.host.folder) == Room::Ample {
            return;
        }
        if served.copies.iter().any(|copy| !copy.is_discarded()) {
            hydration::give_up(id, &served.copies).await;
        }
    }

    /// The order is carried out.
    pub(super) async fn note_done(
        &mut self,
        mut guard: Guard<RecoveryOrder>,
    ) -> anyhow::Result<Next> {
        guard.done = true;
        self.keep_guard(guard).await?;
        self.host.pauses.pass(places::DONE).await;
        Ok(Next::Again)
    }

    /// The VM needs nothing of us any more. What it holds goes first: without its record nobody would know of it.
    async fn let_go(&mut self, record: &Record) -> anyhow::Result<Next> {
        self.unserve().await;
        making::let_point_go(record).await?;
        self.host.pauses.pass(places::POINT_LET_GO).await;
        let folder = self.host.folder.join(record.id.to_string());
        blocking(move || local_copy::remove_all(&folder))
            .await
            .context("remove the local copies of its disks")?;
        making::forget(self.place.records(), record.id).await?;
        tracing::info!(vm = %record.id, name = record.name, "recovered VM is left to itself");
        Ok(Next::Again)
    }

    /// From here on nobody older writes to the replica.
    async fn raise(&self, store: &StoreTarget, takes: Generation) -> anyhow::Result<()> {
        let generation = replica_store::Generation(takes.0);
        replica_store::take_over(store, self.place.key(), generation)
            .await
            .with_context(|| format!("take the replica over under generation {}", takes.0))?;
        self.host.pauses.pass(places::FENCE_RAISED).await;
        Ok(())
    }

    /// Where the replica of a VM is.
    pub(super) fn store(&self, record: &Record) -> anyhow::Result<StoreTarget> {
        if let Some(wish) = &self.wish {
            let (store, place) =
                stores::target(wish.store.as_ref()).map_err(|problem| anyhow!(problem))?;
            if place != record.store_folder {
                bail!(
                    "the recovered VM {} was made from a replica in {}, not in {}",
                    record.id,
                    record.store_folder.display(),
                    place.display()
                );
            }
            return Ok(store);
        }
        stores::named(&record.store_folder).with_context(|| {
            format!(
                "no credential for {} has come from the orchestrator yet",
                record.store_folder.display()
            )
        })
    }
}
