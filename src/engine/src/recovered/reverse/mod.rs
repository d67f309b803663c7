//! The way back: what a recovered VM writes goes into the replica that it was made from.
//!
//! ```text
//!   recovered VM ─► freeze ─► what the replica's head has not ─► journal + recovery point ─► source host takes it from there
//!                     ▲                                                     │
//!                     └────────── every 30 s; once more when it is off ─────┘
//! ```
//!
//! The first cycle sends what the VM wrote above its point, and what the replica got behind that point, as far as either
//! differs from the head; never a disk as a whole for want of knowledge of what was written, as long as the layer tells. Later
//! cycles follow the hypervisor's tracking.
//!
//! Promise: a [`Shipper`] never gives up but when a newer generation owns the replica; an outage, a kill of the engine or of
//! the VM's process costs time and nothing else. [`Shipper::ship_rest`] says that the rest is there only after the VM's last
//! write is in a recovery point, durably.

mod cycle;
mod differ;
mod ground;
mod record;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hypervisor::{HypervisorError, VmId};
use replica_store::StoreError;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::RecoveryHost;
use crate::backoff;
use crate::replicator::outgoing::Effort;
use crate::task::{blocking, spawn_named};
use cycle::Guest;
use ground::Ground;
pub use ground::{Errand, own_disk};
use record::ShipRecord;

/// From one point to the next while the VM runs. The message of a recovered VM names no interval.
const INTERVAL: Duration = Duration::from_secs(30);
/// A cycle of so many changed bytes took long enough that as many may wait again: the next one begins at once.
const BACKLOG_BYTES: u64 = 256 << 20;

/// What is known of a VM's shipping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Sent under this generation.
    pub sent_bytes: u64,
    /// Freeze of the newest point that was shipped; 0 = none yet.
    pub point_unix_ms: i64,
    /// The VM was off, and every write of it is in the newest point.
    pub rest_shipped: bool,
    /// A newer generation owns the replica: nothing is shipped any more.
    pub fenced: bool,
    /// Why the last try failed; none when it didn't.
    pub problem: Option<String>,
}

/// The task that ships one recovered VM.
pub struct Shipper {
    seen: watch::Receiver<Seen>,
    stop: CancellationToken,
    task: JoinHandle<Option<()>>,
}

struct Task {
    host: Arc<RecoveryHost>,
    errand: Errand,
    guest: Guest,
    effort: Effort,
    ground: Option<Ground>,
    /// Something may be frozen that nobody holds.
    unclean: bool,
    /// The VM has been off since its last write was shipped.
    off: bool,
    seen: watch::Sender<Seen>,
}

// === impl Shipper ===

impl Shipper {
    /// Ships a VM that may run, again and again.
    pub fn run(host: Arc<RecoveryHost>, errand: Errand) -> Self {
        Self::start(host, errand, Guest::On)
    }

    /// Ships what is left of a VM that is off and stays off, then ends; see [`Seen::rest_shipped`]. Its point must be served.
    pub fn ship_rest(host: Arc<RecoveryHost>, errand: Errand) -> Self {
        Self::start(host, errand, Guest::Off)
    }

    fn start(host: Arc<RecoveryHost>, errand: Errand, guest: Guest) -> Self {
        let (sender, seen) = watch::channel(Seen::default());
        let stop = CancellationToken::new();
        let name = format!("ship recovered {}", errand.vm);
        let task = Task {
            host,
            errand,
            guest,
            effort: Effort::default(),
            ground: None,
            unclean: true,
            off: false,
            seen: sender,
        };
        let task = spawn_named(name, task.live(stop.clone()));
        Self { seen, stop, task }
    }

    /// How far it is.
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until [`Shipper::seen`] has changed. Never ends when nothing changes any more.
    pub async fn changed(&mut self) {
        if self.seen.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Ends it. Nothing of the VM is frozen afterwards; tracking goes on.
    pub async fn stop(self) {
        self.stop.cancel();
        // A panic was logged by the task itself.
        self.task.await.ok();
    }
}

/// Notes durably that a VM ships, before anybody relies on it; see [`ships`].
pub async fn begin(
    errand_records: &std::path::Path,
    vm: Uuid,
    generation: u64,
) -> anyhow::Result<()> {
    let records = errand_records.to_owned();
    blocking(move || match ShipRecord::read(&records, vm)? {
        Some(record) if record.generation == generation => Ok(()),
        _ => ShipRecord::new(vm, generation).write(&records),
    })
    .await
    .context("note that the recovered VM ships what it writes")
}

/// Whether a VM ships what it writes, by what is on disk.
pub async fn ships(records: &std::path::Path, vm: Uuid) -> anyhow::Result<bool> {
    let records = records.to_owned();
    let record = blocking(move || ShipRecord::read(&records, vm))
        .await
        .context("read whether the recovered VM ships what it writes")?;
    Ok(record.is_some())
}

/// The VM ships no more: nothing of it is tracked from here on. Can be repeated.
pub async fn end(host: &RecoveryHost, records: &std::path::Path, vm: Uuid) -> anyhow::Result<()> {
    host.hypervisor
        .forget_all(VmId(vm))
        .await
        .context("drop tracking of the recovered VM")?;
    let records = records.to_owned();
    blocking(move || ShipRecord::remove(&records, vm))
        .await
        .context("remove the record of what was shipped")
}

// === impl Task ===

impl Task {
    async fn live(mut self, stop: CancellationToken) {
        let mut failures = 0;
        loop {
            let begin = Instant::now();
            let pause = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                result = self.once() => match result {
                    Ok(None) => return,
                    Ok(Some(pause)) => {
                        failures = 0;
                        pause.saturating_sub(begin.elapsed())
                    }
                    Err(error) => {
                        if self.failed(&error) {
                            break;
                        }
                        failures += 1;
                        backoff::ship_delay(failures)
                    }
                },
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        // A frozen point that nobody releases would cost the guest ever more.
        if self.unclean
            && let Err(error) = self.host.hypervisor.clean_up(self.errand.vm).await
        {
            tracing::warn!(vm = %self.errand.vm, %error, "a recovered VM may still be frozen; it is cleaned up when it is shipped again");
        }
    }

    /// One cycle; how long to wait for the next one, counted from its begin. `None` = there is nothing more to ship.
    async fn once(&mut self) -> anyhow::Result<Option<Duration>> {
        let (host, errand) = (self.host.clone(), self.errand.clone());
        if self.unclean {
            host.hypervisor
                .clean_up(errand.vm)
                .await
                .context("clean up what was frozen of the recovered VM before")?;
        }
        self.unclean = true;
        let ground = match self.ground.take() {
            Some(ground) => ground,
            None => Ground::open(&errand).await?,
        };
        let shipped = cycle::ship(&host, &errand, &ground, &self.effort, self.guest).await;
        let round = match (shipped, self.guest) {
            (Err(error), Guest::On) if is_off(&error) => {
                self.unclean = false;
                self.ground = Some(ground);
                if self.off {
                    return Ok(Some(INTERVAL));
                }
                // It was shut down from inside.
                self.unclean = true;
                let ground = self.ground.take().context("the replica is open")?;
                let round = cycle::ship(&host, &errand, &ground, &self.effort, Guest::Off).await?;
                self.off = true;
                self.ground = Some(ground);
                round
            }
            (shipped, _) => {
                let round = shipped?;
                self.off = false;
                self.ground = Some(ground);
                round
            }
        };
        self.unclean = false;
        let rest_shipped = self.guest == Guest::Off;
        self.seen.send_replace(Seen {
            sent_bytes: round.record.sent_bytes,
            point_unix_ms: round
                .record
                .shipped
                .as_ref()
                .map_or(0, |shipped| shipped.point_unix_ms),
            rest_shipped,
            fenced: false,
            problem: None,
        });
        if rest_shipped {
            return Ok(None);
        }
        Ok(Some(if round.changed_bytes >= BACKLOG_BYTES {
            Duration::ZERO
        } else {
            INTERVAL
        }))
    }

    /// Takes note of a failure; whether it is the last one.
    fn failed(&mut self, error: &anyhow::Error) -> bool {
        // What it knows of the store may be what is wrong.
        self.ground = None;
        let fenced = is_fenced(error);
        let (vm, name) = (self.errand.vm, &self.errand.name);
        let text = format!("{error:#}");
        if fenced {
            tracing::warn!(%vm, name, error = text, "a newer generation owns the replica; a recovered VM ships no more");
        } else {
            tracing::warn!(%vm, name, error = text, "what a recovered VM writes could not be shipped; it is tried again");
        }
        self.seen.send_modify(|seen| {
            seen.fenced = fenced;
            seen.problem = (!fenced).then_some(text);
        });
        fenced
    }
}

fn is_fenced(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<StoreError>()
            .is_some_and(|error| error.kind() == replica_store::ErrorKind::Fenced)
    })
}

fn is_off(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<HypervisorError>()
            .is_some_and(|error| error.kind() == hypervisor::ErrorKind::VmNotRunning)
    })
}
