//! The recovery side of one item: its newest order against what is there, one action at a time.
//!
//! ```text
//!  order ─► guard on disk ─► what is there? ─► report ─► one action ─┐
//!                              ▲                                     │
//!                              └─────────────────────────────────────┘
//! ```
//!
//! Promise: no order is obeyed or confirmed before it is on disk; between the question to the guard and the action no order
//! is taken. Everything is decided from records on disk and from what the hypervisor says, so a killed engine goes on
//! where it was; all of an item is done by one task, so two VMs of it never run. The VM goes by an order only.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use engine_protocol::{orders, v1};
use hypervisor::{PowerState, VmId};
use protection::Generation;
use protection::life::{Guard, RecoveryFacts, RecoveryOrder, RecoverySaid, Taken};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use v1::recovered_vm_status::State;

use super::conversion::Unfit;
use super::guard::Place;
use super::record::Record;
use super::reverse::ShipRecord;
use super::shipping::Shipping;
use super::steps::Served;
use super::{CONSOLE_POLL, POWER_POLL, RecoveryHost, making, places};
use crate::backoff;
use crate::finding;
use crate::task::{blocking, spawn_named};

/// Turns in a row that fail before who waits is told to give up: about half a minute.
const LASTS: u32 = 6;

/// What a message says of an item; `None` = it is not listed, which orders nothing.
type Message = Option<v1::RecoveredVm>;

/// The task of an item's recovery side.
pub(super) struct Failover {
    messages: watch::Sender<Message>,
    shown: Arc<Mutex<String>>,
    stop: CancellationToken,
    task: JoinHandle<Option<()>>,
}

/// What the task knows.
pub(super) struct Side {
    pub(super) host: Arc<RecoveryHost>,
    pub(super) place: Place,
    pub(super) guard: Option<Guard<RecoveryOrder>>,
    /// The message that brought the order in force; none after a restart until it comes again.
    pub(super) wish: Message,
    /// The newest message, whatever it orders: it has the newest keys.
    pub(super) newest: Message,
    pub(super) served: Option<Served>,
    /// Of a failback.
    pub(super) shipping: Option<Shipping>,
    /// Nothing to do with the order in force: one that could not be taken.
    pub(super) trouble: Option<v1::Finding>,
    failure: Option<v1::Finding>,
    shown: Arc<Mutex<String>>,
}

/// What is there.
pub(super) struct There {
    /// The VM; one that nobody wants comes first.
    pub(super) record: Option<Record>,
    /// It runs.
    pub(super) running: bool,
    /// What it writes goes into the replica, and so far it is.
    pub(super) ships: Option<ShipRecord>,
}

/// When the next turn is.
#[derive(Debug)]
pub(super) enum Next {
    /// At once: something was done.
    Again,
    /// After so long, or when a message comes.
    Look(Duration),
    /// When the guest has written to its console, or it is time to look again.
    Console(PathBuf),
}

impl There {
    /// Which recovered VM it is.
    pub(super) fn instance(&self) -> Option<Generation> {
        self.record.as_ref().and_then(|record| record.instance)
    }
}

impl Failover {
    /// Begins with what is on disk, and with a message if there is one.
    pub(super) fn start(host: Arc<RecoveryHost>, place: Place, message: Message) -> Self {
        let (messages, heard) = watch::channel(message);
        let shown = Arc::new(Mutex::new(String::new()));
        let stop = CancellationToken::new();
        let name = format!("recovery side of {}", place.key());
        let side = Side {
            host,
            place,
            guard: None,
            wish: None,
            newest: None,
            served: None,
            shipping: None,
            trouble: None,
            failure: None,
            shown: shown.clone(),
        };
        let task = spawn_named(name, side.live(heard, stop.clone()));
        Self {
            messages,
            shown,
            stop,
            task,
        }
    }

    /// Hands a message over; the task takes its order between two actions.
    pub(super) fn tell(&self, message: Message) {
        self.messages.send_if_modified(|known| {
            let differs = *known != message;
            if differs {
                *known = message;
            }
            differs
        });
    }

    /// The id under which the item is on the board; empty when it isn't.
    pub(super) fn shown(&self) -> String {
        lock(&self.shown).clone()
    }

    /// Ends the task; a VM goes on running and waits for its disks.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        // A panic was logged by the task itself.
        self.task.await.ok();
    }
}

impl Side {
    async fn live(mut self, messages: watch::Receiver<Message>, stop: CancellationToken) {
        self.take_turns(messages, stop).await;
        self.end_shipping().await;
    }

    async fn take_turns(
        &mut self,
        mut messages: watch::Receiver<Message>,
        stop: CancellationToken,
    ) {
        let mut failures = 0;
        loop {
            let message = messages.borrow_and_update().clone();
            let next = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                next = self.turn(message.as_ref()) => next,
            };
            let next = match next {
                Ok(next) => {
                    failures = 0;
                    // What is shown is shown without it.
                    if self.failure.take().is_some() {
                        Next::Again
                    } else {
                        next
                    }
                }
                Err(error) => {
                    failures += 1;
                    let lasts = failures >= LASTS;
                    self.fail(&error, lasts, message.as_ref());
                    Next::Look(backoff::ship_delay(failures))
                }
            };
            let wait = async {
                match next {
                    Next::Again => {}
                    Next::Look(pause) => tokio::time::sleep(pause).await,
                    Next::Console(console) => first_output(console).await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = messages.changed() => if changed.is_err() {
                    return;
                },
                () = wait => {}
            }
        }
    }

    async fn turn(&mut self, message: Option<&v1::RecoveredVm>) -> anyhow::Result<Next> {
        self.hear(message).await?;
        let there = match self.look().await {
            Ok(there) => there,
            Err(error) => {
                self.withdraw();
                return Err(error);
            }
        };
        if message.is_none() && there.record.is_none() {
            self.show_as("");
        } else {
            self.publish(&there);
        }
        let Some(guard) = self.guard else {
            return Ok(Next::Look(POWER_POLL));
        };
        // What keeps a VM from being shipped doesn't keep an order from being obeyed.
        let shipping = self.ship(guard, &there).await;
        let next = self.act(guard, there).await?;
        shipping.map(|()| next)
    }

    /// Takes the order of a message; returns when it is on disk.
    async fn hear(&mut self, message: Option<&v1::RecoveredVm>) -> anyhow::Result<()> {
        if self.guard.is_none() {
            let place = self.place.clone();
            self.guard = blocking(move || place.read())
                .await
                .with_context(|| format!("read what was ordered last of {}", self.place.key()))?;
        }
        let Some(message) = message else {
            return Ok(());
        };
        if self.newest.as_ref() == Some(message) {
            return Ok(());
        }
        let read = message.order.as_ref().and_then(orders::recovery_order);
        let Some((epoch, order)) = read else {
            tracing::error!(item = %self.place.key(), order = ?message.order, "an order is of a kind that this release does not know: it is not obeyed");
            self.trouble = Some(finding::order_not_taken(
                &message.name,
                "it is of a kind that this engine does not know",
            ));
            self.newest = Some(message.clone());
            return Ok(());
        };
        let mut guard = self.guard.unwrap_or_else(|| Guard::new(epoch, order));
        let taken = if self.guard.is_some() {
            guard.take(epoch, order)
        } else {
            Taken::New
        };
        if matches!(taken, Taken::New | Taken::Again) {
            // Before the order: from then on it may be said that it is carried out.
            self.note_shipping(message).await?;
        }
        match taken {
            Taken::New => {
                self.keep_guard(guard).await?;
                self.host.pauses.pass(places::ORDER_TAKEN).await;
                tracing::info!(item = %self.place.key(), epoch = epoch.0, ?order, "an order is taken");
                self.wish = Some(message.clone());
                self.trouble = None;
            }
            Taken::Again => {
                self.wish = Some(message.clone());
                self.trouble = None;
            }
            Taken::Stale => {
                tracing::info!(item = %self.place.key(), epoch = epoch.0, known = guard.epoch.0, ?order, "an old order is dropped");
            }
            Taken::Contradiction => {
                tracing::error!(item = %self.place.key(), epoch = epoch.0, ?order, known = ?guard.order, "an order contradicts the one of the same number: it is not obeyed");
                self.trouble = Some(finding::order_not_taken(
                    &message.name,
                    "it contradicts another one of the same number",
                ));
            }
        }
        self.newest = Some(message.clone());
        Ok(())
    }

    /// Makes a guard durable; from then on it is in force.
    pub(super) async fn keep_guard(&mut self, guard: Guard<RecoveryOrder>) -> anyhow::Result<()> {
        let place = self.place.clone();
        blocking(move || place.write(&guard))
            .await
            .with_context(|| format!("keep what is ordered of {}", self.place.key()))?;
        self.guard = Some(guard);
        Ok(())
    }

    async fn look(&self) -> anyhow::Result<There> {
        let place = self.place.clone();
        let records = blocking(move || place.vms())
            .await
            .with_context(|| format!("read which recovered VMs {} has", self.place.key()))?;
        if let Some(odd) = records.iter().find(|record| record.instance.is_none()) {
            bail!(
                "the record of {} does not say which recovered VM it is",
                odd.id
            );
        }
        let wanted = self.guard.and_then(|guard| match guard.order {
            RecoveryOrder::Run { instance, .. } | RecoveryOrder::Leave { instance, .. } => {
                Some(instance)
            }
            RecoveryOrder::Absent | RecoveryOrder::Stop => None,
        });
        let other = records.iter().find(|record| record.instance != wanted);
        let Some(record) = other.or(records.first()).cloned() else {
            return Ok(There {
                record: None,
                running: false,
                ships: None,
            });
        };
        let running = making::machines(&self.host).await?.iter().any(|machine| {
            machine.id == VmId(record.id) && machine.power_state == PowerState::Running
        });
        Ok(There {
            ships: self.ships(&record).await?,
            record: Some(record),
            running,
        })
    }

    async fn act(&mut self, guard: Guard<RecoveryOrder>, there: There) -> anyhow::Result<Next> {
        let instance = there.instance();
        let Some(record) = there.record else {
            if let Some((instance, takes)) = guard.must_make(None) {
                return self.begin(instance, takes).await;
            }
            if matches!(guard.order, RecoveryOrder::Leave { .. }) && !guard.done {
                tracing::warn!(item = %self.place.key(), "the recovered VM that is to be left is not here any more");
                return self.note_done(guard).await;
            }
            return Ok(Next::Look(POWER_POLL));
        };
        if guard.must_stop(instance) {
            if there.running {
                return self.stop(guard, record, there.ships.is_some()).await;
            }
            if guard.must_remove(instance) {
                return self.remove(record).await;
            }
            if guard.order == RecoveryOrder::Stop {
                if there.ships.is_some() && !guard.done {
                    return self.ship_rest(guard, record).await;
                }
                return self.stay_off(record).await;
            }
        } else if guard.must_remove(instance) {
            return self.remove(record).await;
        }
        match guard.may_start(instance) {
            Some(takes) => self.run(guard, record, takes, there.running).await,
            None => bail!(
                "the order is to leave another recovered VM than the one that is here, {}",
                record.id
            ),
        }
    }

    fn said(&self, there: &There) -> Option<v1::RecoveryReport> {
        let guard = self.guard?;
        let said = guard.says(RecoveryFacts {
            instance: there.instance(),
            running: there.running,
        })?;
        let early = match said {
            // Its point is still held.
            RecoverySaid::Left => there.record.is_some(),
            // Its last writes are not in the replica yet.
            RecoverySaid::Stopped => there.ships.is_some() && !guard.done,
            RecoverySaid::Running | RecoverySaid::Absent => false,
        };
        (!early).then(|| orders::recovery_report(guard.epoch, said))
    }

    fn publish(&self, there: &There) {
        let recovery = self.said(there);
        let findings = self.trouble.iter().chain(&self.failure).cloned();
        let findings = findings.chain(self.shipping_problem()).collect();
        let (shipped_bytes, shipped_unix_ms) = match &there.ships {
            Some(ships) => (ships.sent_bytes, ships.point_unix_ms()),
            None => (0, 0),
        };
        let wants = matches!(
            self.guard.map(|guard| guard.order),
            Some(RecoveryOrder::Run { .. })
        );
        let state = match &there.record {
            _ if self.failure.is_some() => State::Failed,
            _ if self.guard.is_none() && self.trouble.is_some() => State::Failed,
            Some(record) if there.running && record.first_output_unix_ms != 0 => State::Booted,
            Some(_) if there.running => State::Running,
            Some(record) if wants && record.started_unix_ms == 0 => State::Preparing,
            None if wants => State::Preparing,
            // It runs on, or does not: nobody looks any more.
            None if self.guard.is_some_and(|guard| guard.done) => State::Unspecified,
            _ => State::Off,
        };
        let id = self.shown_id(there.record.as_ref());
        let record = there.record.clone();
        let console = self.served.as_ref().map(|served| &served.console);
        let console = console.map(|path| path.display().to_string());
        self.show_as(&id);
        self.host.board.update_recovered(&id, |status| {
            status.set_state(state);
            status.recovery = recovery;
            status.findings = findings;
            status.shipped_bytes = shipped_bytes;
            status.shipped_unix_ms = shipped_unix_ms;
            status.console_path = console.unwrap_or_default();
            let point = record.as_ref().map(|record| record.point_id);
            let point = point.filter(|point| !point.is_nil());
            status.point_id = point.map(|point| point.to_string()).unwrap_or_default();
            let times = record.as_ref().map_or((0, 0, 0), |record| {
                let started = (record.started_unix_ms, record.first_output_unix_ms);
                (record.point_time_unix_ms, started.0, started.1)
            });
            (
                status.point_time_unix_ms,
                status.started_unix_ms,
                status.first_output_unix_ms,
            ) = times;
        });
    }

    /// Shows why a turn failed, whatever could be seen in it.
    fn fail(&mut self, error: &anyhow::Error, lasts: bool, message: Option<&v1::RecoveredVm>) {
        let name = message.or(self.newest.as_ref()).map(|vm| vm.name.clone());
        let name = name.unwrap_or_else(|| self.place.key().to_string());
        let text = format!("{error:#}");
        tracing::error!(item = %self.place.key(), name, error = text, "the recovery side of a failover");
        let failure = match Unfit::of(error) {
            Some(unfit) => unfit.finding(&name),
            None => finding::order_not_carried_out(&name, &text, lasts),
        };
        let findings = self.trouble.iter().chain([&failure]).cloned().collect();
        let mut id = lock(&self.shown).clone();
        if id.is_empty() {
            id = message.map(|vm| vm.id.clone()).unwrap_or_default();
        }
        self.failure = Some(failure);
        if id.is_empty() {
            return;
        }
        self.show_as(&id);
        self.host.board.update_recovered(&id, |status| {
            status.set_state(State::Failed);
            status.findings = findings;
        });
    }

    /// What can't be seen is not said to be so.
    fn withdraw(&self) {
        let id = lock(&self.shown).clone();
        if !id.is_empty() {
            self.host
                .board
                .update_recovered(&id, |status| status.recovery = None);
        }
    }

    fn shown_id(&self, record: Option<&Record>) -> String {
        let message = self.wish.as_ref().or(self.newest.as_ref());
        match (message, record) {
            (Some(message), _) => message.id.clone(),
            (None, Some(record)) => record.id.to_string(),
            (None, None) => lock(&self.shown).clone(),
        }
    }

    /// From here on the item is on the board under this id, and no other; under none when it is empty.
    fn show_as(&self, id: &str) {
        let before = std::mem::replace(&mut *lock(&self.shown), id.to_owned());
        if !before.is_empty() && before != id {
            self.host.board.drop_recovered(&before);
        }
    }
}

async fn first_output(console: PathBuf) {
    let until = tokio::time::Instant::now() + POWER_POLL;
    while tokio::time::Instant::now() < until && !making::has_bytes(console.clone()).await {
        tokio::time::sleep(CONSOLE_POLL).await;
    }
}

fn lock(shown: &Mutex<String>) -> std::sync::MutexGuard<'_, String> {
    // A name is replaced whole.
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}
