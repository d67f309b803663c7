//! The way back: what a recovered VM writes goes into the replica that it was made from.
//!
//! ```text
//!   recovered VM ─► freeze ─► what the replica's head has not ─► journal + recovery point ─► source host takes it from there
//!                     ▲                                                     │
//!                     └─── as the policy wants; once more when it is off ───┘
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

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hypervisor::{HypervisorError, VmId};
use replica_store::{ErrorKind, StoreError};
use replication_log::KeyRing;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::RecoveryHost;
use crate::backoff;
use crate::replicator::outgoing::Effort;
use crate::task::{blocking, spawn_named};
use cycle::{Guest, Way};
use ground::Ground;
pub use ground::{Errand, own_disk};
pub use record::ShipRecord;

/// From one point to the next while the VM runs, when the policy wants no shorter one: what was not shipped when the VM is
/// stopped is downtime.
pub const LONGEST_INTERVAL: Duration = Duration::from_secs(30);
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
    keys: watch::Sender<KeyRing>,
    interval: watch::Sender<Duration>,
    stop: CancellationToken,
    task: JoinHandle<Option<()>>,
}

/// When the next cycle is.
enum Next {
    AtOnce,
    /// When its interval is over.
    InTime,
    /// Never: there is nothing more to ship.
    Nothing,
}

struct Task {
    host: Arc<RecoveryHost>,
    errand: Errand,
    guest: Guest,
    effort: Effort,
    ground: Option<Ground>,
    keys: watch::Receiver<KeyRing>,
    interval: watch::Receiver<Duration>,
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
        let (keys, newest_keys) = watch::channel(errand.keys.clone());
        let (interval, newest_interval) = watch::channel(errand.interval);
        let stop = CancellationToken::new();
        let name = format!("ship recovered {}", errand.vm);
        let task = Task {
            host,
            errand,
            guest,
            effort: Effort::default(),
            ground: None,
            keys: newest_keys,
            interval: newest_interval,
            unclean: true,
            off: false,
            seen: sender,
        };
        let task = spawn_named(name, task.live(stop.clone()));
        Self {
            seen,
            keys,
            interval,
            stop,
            task,
        }
    }

    /// How far it is.
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// The vault's keys, which may have changed: the next cycle uses these.
    pub fn set_keys(&self, keys: KeyRing) {
        self.keys.send_if_modified(|known| {
            let differs = *known != keys;
            if differs {
                *known = keys;
            }
            differs
        });
    }

    /// From one point to the next, as the policy wants it now: also of the pause that is on.
    pub fn set_interval(&self, interval: Duration) {
        self.interval.send_if_modified(|known| {
            let differs = *known != interval;
            *known = interval;
            differs
        });
    }

    /// Waits until [`Shipper::seen`] has changed. Never ends when nothing changes any more.
    pub async fn changed(&mut self) {
        if self.seen.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether its task has died before its time, which was logged.
    pub fn has_died(&self) -> bool {
        let seen = self.seen.borrow();
        self.task.is_finished() && !seen.rest_shipped && !seen.fenced
    }

    /// Ends it. Nothing of the VM is frozen afterwards; tracking goes on.
    pub async fn stop(self) {
        self.stop.cancel();
        // A panic was logged by the task itself.
        self.task.await.ok();
    }
}

/// Notes durably that a VM ships, before anybody relies on it. What it shipped under another generation is forgotten.
pub async fn begin(records: &Path, vm: Uuid, generation: u64) -> anyhow::Result<()> {
    let record = known(records, vm).await?;
    if record.is_some_and(|record| record.generation == generation) {
        return Ok(());
    }
    let records = records.to_owned();
    blocking(move || ShipRecord::new(vm, generation).write(&records))
        .await
        .context("note that the recovered VM ships what it writes")
}

/// Whether a VM ships what it writes, by what is on disk, and how far it is. A damaged record says that it does, and nothing
/// else: that costs a comparison, and nobody is told that the rest is shipped.
pub async fn known(records: &Path, vm: Uuid) -> anyhow::Result<Option<ShipRecord>> {
    let records = records.to_owned();
    let read = blocking(move || ShipRecord::read(&records, vm)).await;
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            tracing::error!(%vm, %error, "the record of how far a recovered VM is shipped can't be read; it is compared with its replica");
            Ok(Some(ShipRecord::new(vm, 0)))
        }
        other => other,
    }
        .context("read how far the recovered VM is shipped")
}

/// The VM ships no more: nothing of it is tracked from here on. Can be repeated.
pub async fn end(host: &RecoveryHost, records: &Path, vm: Uuid) -> anyhow::Result<()> {
    host.hypervisor
        .forget_all(VmId(vm))
        .await
        .context("drop tracking of the recovered VM")?;
    forget(records, vm).await
}

/// Removes the record of a VM that is gone.
pub async fn forget(records: &Path, vm: Uuid) -> anyhow::Result<()> {
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
                    Ok(Next::Nothing) => return,
                    Ok(Next::AtOnce) => {
                        failures = 0;
                        continue;
                    }
                    Ok(Next::InTime) => {
                        failures = 0;
                        None
                    }
                    Err(error) => {
                        if self.failed(&error) {
                            break;
                        }
                        failures += 1;
                        Some(backoff::ship_delay(failures))
                    }
                },
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = wait(&mut self.interval, begin, pause) => {}
            }
        }
        // A frozen point that nobody releases would cost the guest ever more.
        if self.unclean
            && let Err(error) = self.host.hypervisor.clean_up(self.errand.vm).await
        {
            tracing::warn!(vm = %self.errand.vm, %error, "a recovered VM may still be frozen; it is cleaned up when it is shipped again");
        }
    }

    /// One cycle, and when the next one is.
    async fn once(&mut self) -> anyhow::Result<Next> {
        let keys = self.keys.borrow().clone();
        let host = self.host.clone();
        let errand = Errand {
            keys: keys.clone(),
            ..self.errand.clone()
        };
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
        ground.writer.set_keys(keys);
        let way = Way {
            host: &host,
            errand: &errand,
            ground: &ground,
            effort: &self.effort,
        };
        let (round, off) = match (way.ship(self.guest).await, self.guest) {
            (Err(error), Guest::On) if is_off(&error) && self.off => (None, true),
            // It was shut down from inside.
            (Err(error), Guest::On) if is_off(&error) => (Some(way.ship(Guest::Off).await?), true),
            (round, _) => (Some(round?), false),
        };
        self.off = off;
        self.ground = Some(ground);
        self.unclean = false;
        let Some(round) = round else {
            return Ok(Next::InTime);
        };
        let rest_shipped = self.guest == Guest::Off;
        self.seen.send_replace(Seen {
            sent_bytes: round.record.sent_bytes,
            point_unix_ms: round.record.point_unix_ms(),
            rest_shipped,
            fenced: false,
            problem: None,
        });
        if rest_shipped {
            return Ok(Next::Nothing);
        }
        Ok(if round.changed_bytes >= BACKLOG_BYTES {
            Next::AtOnce
        } else {
            Next::InTime
        })
    }

    /// Takes note of a failure; whether it is the last one.
    fn failed(&mut self, error: &anyhow::Error) -> bool {
        // What it knows of the store may be what is wrong.
        self.ground = None;
        let fenced = is_of_store(error, ErrorKind::Fenced);
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

/// Until the next cycle: an interval after the last one began, whatever the interval becomes meanwhile; or a fixed pause.
async fn wait(interval: &mut watch::Receiver<Duration>, begin: Instant, pause: Option<Duration>) {
    if let Some(pause) = pause {
        return tokio::time::sleep(pause).await;
    }
    loop {
        let until = begin + *interval.borrow_and_update();
        tokio::select! {
            () = tokio::time::sleep_until(until) => return,
            // Whoever set it is gone: it stays as it is.
            changed = interval.changed() => if changed.is_err() {
                return tokio::time::sleep_until(until).await;
            },
        }
    }
}

/// Whether an error comes from a store that said this.
fn is_of_store(error: &anyhow::Error, kind: ErrorKind) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<StoreError>()
            .is_some_and(|error| error.kind() == kind)
    })
}

fn is_off(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<HypervisorError>()
            .is_some_and(|error| error.kind() == hypervisor::ErrorKind::VmNotRunning)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_interval_that_changes_holds_for_the_pause_that_is_on() {
        let (sender, mut interval) = watch::channel(Duration::from_secs(30));
        let begin = Instant::now();
        let shorter = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            sender.send_replace(Duration::from_secs(5));
        };
        tokio::join!(wait(&mut interval, begin, None), shorter);
        assert_eq!(begin.elapsed(), Duration::from_secs(5));
        drop(sender);
        wait(&mut interval, Instant::now(), None).await;
        assert_eq!(begin.elapsed(), Duration::from_secs(10));
    }
}
