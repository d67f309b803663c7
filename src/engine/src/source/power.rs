//! Keeps the VM off or lets it run, as the order in force says, and tells what is true of it.
//!
//! ```text
//! may not run:  running ─► shut down ─► [patience] ─► turned off ─► off ─► "held"
//! may run:      off, and we owe the start ─► proof ─► start ─► fence again ─► running
//!                                              └── none: not started; asked again
//! ```
//!
//! Proof is the orchestrator's answer that came a moment ago, or the store's fence. A fence that is above the licence
//! outweighs any answer: somebody has raised it, and only a recovered VM does. After a start that only the store spoke
//! for, the fence is read again, because it may have been raised meanwhile.

use std::sync::Arc;
use std::time::Duration;

use engine_protocol::orders::source_report;
use engine_protocol::v1;
use hypervisor::{HypervisorError, PowerState, Stop};
use protection::Generation;
use protection::life::{Proof, SourceOrder};
use replica_store::ReplicaReader;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use v1::replication_status::State;

use super::keeper::{Critical, Keeper, Kept};
use super::receiving::is_half_received;
use super::{Answer, Course, GUEST_PATIENCE, findings};
use crate::backoff;
use crate::finding;
use crate::receive::Progress;
use crate::replicator::spec::{Spec, Wish};
use crate::replicator::status::{Origin, StatusLine};
use crate::replicator::trouble::chain;
use crate::replicator::{Context, Replicator};

/// How often the VM is looked at while that matters.
const POLL: Duration = Duration::from_secs(2);
/// An answer of the orchestrator speaks for a start for so long.
const ANSWER_LIFE: Duration = Duration::from_secs(60);
/// For reading the fence.
const STORE_PATIENCE: Duration = Duration::from_secs(20);
/// How often the fence is read behind a start before not reading it counts as the worst.
const FENCE_TRIES: u32 = 3;
/// A guest that was asked to shut down may still do so within this; if it does, it is started again.
const LATE_SHUT_DOWN: Duration = GUEST_PATIENCE.saturating_mul(2);
/// How often the list of points is asked for until it comes.
const POINTS_RETRY: Duration = Duration::from_secs(60);

/// The task's things.
pub(super) struct Power {
    pub context: Arc<Context>,
    pub spec: Spec,
    pub keeper: Arc<Keeper>,
    pub line: StatusLine,
    pub course: Course,
    pub answers: watch::Receiver<Answer>,
    /// Of an order to receive.
    pub progress: Option<watch::Receiver<Progress>>,
    pub stop: CancellationToken,
}

/// What the task knows of its own doing; lost with it, and done again.
#[derive(Default)]
struct Doing {
    /// A VM that is off holds nothing at the host any more.
    ended: bool,
    /// A guest that outlasted an earlier order may shut down as ever.
    let_go: bool,
    /// It was seen running, by permission, since.
    running_since: Option<Instant>,
    /// When points were asked for.
    points_asked: Option<Instant>,
    retiring: Option<Replicator>,
}

impl Power {
    /// Runs until it is stopped.
    pub(super) async fn run(mut self) {
        let mut doing = Doing::default();
        let mut failures = 0;
        let mut changes = self.keeper.watch();
        if self.course.is_still() {
            self.line.phase(State::Held);
        }
        loop {
            changes.mark_unchanged();
            self.answers.mark_unchanged();
            let kept = self.keeper.kept().await;
            let wait = match self.round(&mut doing, &kept).await {
                Ok(wait) => {
                    failures = 0;
                    wait
                }
                Err(found) => {
                    failures += 1;
                    self.line.say(None);
                    self.line.notice(Origin::Power, Some(*found));
                    Some(backoff::ship_delay(failures))
                }
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                // The keeper is ours, too.
                _ = changes.changed() => {}
                changed = self.answers.changed() => if changed.is_err() {
                    break;
                },
                () = pause(wait) => {}
            }
        }
        if let Some(retiring) = doing.retiring {
            retiring.stop().await;
        }
    }

    /// One look and what follows; says when to look again.
    async fn round(
        &self,
        doing: &mut Doing,
        kept: &Kept,
    ) -> Result<Option<Duration>, Box<v1::Finding>> {
        let is_rest = matches!(kept.guard.order, SourceOrder::ShipRest(_));
        let runs_by_order = matches!(kept.guard.order, SourceOrder::Run(_));
        if is_rest && !kept.guard.done {
            // Replication's business until everything is shipped.
            return Ok(None);
        }
        if is_rest {
            self.line.phase(State::Held);
        }
        if !kept.guard.must_stop() && !kept.owes_start && !runs_by_order {
            self.line.say(None);
            return Ok(None);
        }
        let seen = self.look().await?;
        let missed = || finding::vm_not_found(&self.spec.vm_name, &self.spec.vm.to_string());
        let Some(mut power) = seen.or(off_when_gone(kept)) else {
            return Err(missed().into());
        };
        if kept.guard.must_stop() {
            if seen.is_none() {
                // Nothing is there that could run; what comes back under its id is looked at again.
                doing.ended = false;
            } else if power == PowerState::Running {
                doing.ended = false;
                self.keep_off().await?;
                power = self.look().await?.unwrap_or(PowerState::Off);
            } else if !is_rest && !doing.ended {
                // What a shutdown kept of it was for shipping the rest.
                let ended = self.context.hypervisor.stop(self.spec.vm, Stop::TurnOff);
                ended
                    .await
                    .map_err(|error| self.failed("turned off", &error))?;
                doing.ended = true;
            }
        } else {
            power = self.let_run(doing, kept, power).await?;
        }
        if power == PowerState::Off || !kept.guard.must_stop() {
            // Off it is; a person should know why.
            let found = seen.is_none().then(missed);
            self.line.notice(Origin::Power, found);
        }
        self.list_points(doing).await;
        let left = self.leave(doing, kept, power);
        self.say(power, left).await;
        Ok(Some(POLL))
    }

    /// Whether it runs; `None` = the host has no such VM.
    async fn look(&self) -> Result<Option<PowerState>, Box<v1::Finding>> {
        let listed = self.context.hypervisor.virtual_machines().await;
        let machines = listed.map_err(|error| self.failed("looked at", &error))?;
        let found = machines.into_iter().find(|vm| vm.id == self.spec.vm);
        if found.is_none() {
            let gone = self.context.hypervisor.is_gone(self.spec.vm).await;
            if !gone.map_err(|error| self.failed("looked for", &error))? {
                let (name, id) = (&self.spec.vm_name, self.spec.vm.to_string());
                return Err(finding::vm_not_found(name, &id).into());
            }
        }
        Ok(found.map(|vm| vm.power_state))
    }

    /// The VM runs and may not.
    async fn keep_off(&self) -> Result<(), Box<v1::Finding>> {
        let host = &self.context.hypervisor;
        {
            let mut critical = self.keeper.critical().await;
            if !critical.kept().guard.must_stop() {
                return Ok(());
            }
            // Whoever lets it run again must know that it was us.
            self.note(&mut critical, true).await?;
        }
        tracing::warn!(
            item = self.spec.item_id,
            vm = self.spec.vm_name,
            "the virtual machine runs and may not: shutting it down"
        );
        self.line
            .notice(Origin::Power, Some(findings::stopping(&self.spec.vm_name)));
        let mut changes = self.keeper.watch();
        let gently = Stop::Shutdown {
            timeout: GUEST_PATIENCE,
        };
        let stopped = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Ok(()),
            _ = changes.changed() => return Ok(()),
            stopped = host.stop(self.spec.vm, gently) => stopped,
        };
        match stopped {
            Ok(()) => return Ok(()),
            // A guest that does not react, or a hypervisor that does not listen: either way it must end.
            Err(error) => {
                tracing::warn!(item = self.spec.item_id, vm = self.spec.vm_name, %error, "it could not be shut down in order");
            }
        }
        // A copy runs elsewhere, or will: here it must end.
        let critical = self.keeper.critical().await;
        if critical.kept().guard.must_stop() {
            tracing::warn!(
                item = self.spec.item_id,
                vm = self.spec.vm_name,
                "turning it off"
            );
            let turned_off = host.stop(self.spec.vm, Stop::TurnOff).await;
            turned_off.map_err(|error| self.failed("turned off", &error))?;
        }
        Ok(())
    }

    /// The VM may run; it is started if we owe that.
    async fn let_run(
        &self,
        doing: &mut Doing,
        kept: &Kept,
        power: PowerState,
    ) -> Result<PowerState, Box<v1::Finding>> {
        if power == PowerState::Running {
            let since = *doing.running_since.get_or_insert_with(Instant::now);
            if matches!(kept.guard.order, SourceOrder::Run(_)) && !doing.let_go {
                // Replication would do it; here nobody else has a point frozen.
                let cleaned = self.context.hypervisor.clean_up(self.spec.vm).await;
                cleaned.map_err(|error| self.failed("let go on", &error))?;
                doing.let_go = true;
            }
            if kept.owes_start && since.elapsed() >= LATE_SHUT_DOWN {
                let mut critical = self.keeper.critical().await;
                self.note(&mut critical, false).await?;
            }
            return Ok(power);
        }
        doing.running_since = None;
        if !kept.owes_start {
            return Ok(power);
        }
        // No order comes between the question and the running VM.
        let mut critical = self.keeper.critical().await;
        let guard = critical.kept().guard;
        let proof = self.proof(&guard.order).await;
        if !guard.may_start(proof) {
            let cause = match proof {
                Proof::Store(fence) => format!(
                    "the store belongs to generation {}, as it does once a recovered copy was started",
                    fence.0
                ),
                _ => "neither the orchestrator has said just now that it may run, nor can the storage account be asked"
                    .to_owned(),
            };
            return Err(findings::start_withheld(&self.spec.vm_name, &cause).into());
        }
        if is_half_received(&self.context, &self.spec.item_id, self.spec.vm).await {
            return Err(findings::half_received(&self.spec.vm_name).into());
        }
        let host = &self.context.hypervisor;
        let started = host.start(self.spec.vm).await;
        started.map_err(|error| self.failed("started", &error))?;
        if let Proof::Store(_) = proof
            && !self.is_still_ours(&guard.order).await
        {
            let stopped = host.stop(self.spec.vm, Stop::TurnOff).await;
            stopped.map_err(|error| self.failed("turned off", &error))?;
            let cause = "a recovered copy was started at the same moment, or the store does not answer any more";
            return Err(findings::start_withheld(&self.spec.vm_name, cause).into());
        }
        self.note(&mut critical, false).await?;
        tracing::info!(
            item = self.spec.item_id,
            vm = self.spec.vm_name,
            ?proof,
            "the virtual machine may run again and was started"
        );
        Ok(PowerState::Running)
    }

    /// How the licence is known to be in force at this moment.
    async fn proof(&self, order: &SourceOrder) -> Proof {
        let (SourceOrder::Replicate(licence) | SourceOrder::Run(licence)) = order else {
            return Proof::None;
        };
        let answered = *self.answers.borrow();
        let answered = answered.filter(|(_, at)| at.elapsed() < ANSWER_LIFE);
        match (answered, self.fence().await) {
            (_, Some(fence)) if fence > *licence => Proof::Store(fence),
            (Some((epoch, _)), _) => Proof::Answer(epoch),
            (None, Some(fence)) => Proof::Store(fence),
            (None, None) => Proof::None,
        }
    }

    /// Whether the store's fence is not above the licence; not knowing counts as no.
    async fn is_still_ours(&self, order: &SourceOrder) -> bool {
        let (SourceOrder::Replicate(licence) | SourceOrder::Run(licence)) = order else {
            return false;
        };
        for _ in 0..FENCE_TRIES {
            if let Some(fence) = self.fence().await {
                return fence <= *licence;
            }
        }
        false
    }

    /// The store's fence. Where nothing is, nothing is proven: the volume may not be mounted.
    async fn fence(&self) -> Option<Generation> {
        let read = replica_store::owner_generation(&self.spec.store, &self.spec.key);
        match timeout(STORE_PATIENCE, read).await {
            Ok(Ok(fence)) => fence.map(|fence| Generation(fence.0)),
            Ok(Err(error)) => {
                tracing::warn!(
                    item = self.spec.item_id,
                    error = chain(&error),
                    "the store's fence can't be read"
                );
                None
            }
            Err(_) => None,
        }
    }

    /// Points stay listed while nothing is replicated: an engine that was restarted meanwhile has none to show.
    async fn list_points(&self, doing: &mut Doing) {
        let waits = |asked: &Instant| asked.elapsed() < POINTS_RETRY;
        let leaves = matches!(self.course, Course::LeaveOff { .. });
        if leaves || self.line.has_points() || doing.points_asked.as_ref().is_some_and(waits) {
            return;
        }
        doing.points_asked = Some(Instant::now());
        let read = async {
            let reader = ReplicaReader::open(&self.spec.store, &self.spec.key).await?;
            reader.points().await
        };
        match timeout(STORE_PATIENCE, read).await {
            Ok(Ok(points)) => self.line.points(&points),
            Ok(Err(error)) => tracing::debug!(
                item = self.spec.item_id,
                error = chain(&error),
                "points can't be listed now"
            ),
            Err(_) => {}
        }
    }

    /// The last step of leaving a VM that is off. `true` = nothing is left to be done.
    fn leave(&self, doing: &mut Doing, kept: &Kept, power: PowerState) -> bool {
        let Course::LeaveOff { delete_replica } = self.course else {
            return true;
        };
        if power == PowerState::Off && kept.guard.must_stop() && doing.retiring.is_none() {
            doing.retiring = Some(Replicator::ordered(
                self.context.clone(),
                self.spec.clone(),
                Wish::Retired { delete_replica },
                self.line.clone(),
                None,
            ));
        }
        let status = self.context.board.replication(&self.spec.item_id);
        status.is_some_and(|status| status.state() == State::Retired)
    }

    /// Says what is true of the order in force.
    async fn say(&self, power: PowerState, left: bool) {
        let kept = self.keeper.kept().await;
        let said = kept.guard.says(power == PowerState::Running);
        let point = kept.point.map_or_else(String::new, |id| id.to_string());
        let mut report = said.map(|said| source_report(kept.guard.epoch, said, &point));
        if let Some(progress) = &self.progress {
            let progress = *progress.borrow();
            let report = report.get_or_insert_with(|| v1::SourceReport {
                epoch: kept.guard.epoch.0,
                ..v1::SourceReport::default()
            });
            report.received_bytes = progress.received_bytes;
            report.to_receive_bytes = progress.to_receive_bytes;
        }
        self.line.say(report.filter(|_| left));
    }

    async fn note(
        &self,
        critical: &mut Critical<'_>,
        owes_start: bool,
    ) -> Result<(), Box<v1::Finding>> {
        let noted = critical.set_owes_start(owes_start).await;
        noted.map_err(|error| {
            findings::guard_unusable(&self.spec.vm_name, &error.to_string()).into()
        })
    }

    fn failed(&self, doing: &str, error: &HypervisorError) -> Box<v1::Finding> {
        findings::power_failed(&self.spec.vm_name, doing, &chain(error)).into()
    }
}

/// A VM that is to stay off, and was deleted, is off: so an item whose source is lost still has a way back, and out. One
/// whose rest is to be shipped is missed.
fn off_when_gone(kept: &Kept) -> Option<PowerState> {
    let is_rest = matches!(kept.guard.order, SourceOrder::ShipRest(_));
    (kept.guard.must_stop() && !is_rest).then_some(PowerState::Off)
}

async fn pause(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
