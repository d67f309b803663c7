//! When the next freeze comes, of which kind, and with whom.
//!
//! Capture asks [`Cadence::due`], freezes through [`Cadence::freeze`] and tells what came of it; everything else about
//! time is decided here, by [`crate::schedule`], and told to the item's status. Only monotonic time counts, but for the
//! age of the newest application-consistent point when an engine starts.

use std::time::Duration;

use hypervisor::{Consistency, FreezeRequest, FrozenPoint, HypervisorError, Quiescence};
use replica_store::PointKind;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::notices;
use super::policy::Policy;
use super::shared::{Item, Shared};
use super::status::Origin;
use crate::group::{GroupPoint, Seat};
use crate::schedule::plan::Plan;

pub(super) use crate::schedule::plan::Kind as FreezeKind;

/// How long a member waits for its group: a part of its interval, within these bounds.
const GROUP_PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What a capture that came to its end took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    /// From freeze to the durable record.
    pub took: Duration,
    /// Bytes in the logs.
    pub changed_bytes: u64,
    /// Disks were compared in it, or waited for that.
    pub compared: bool,
}

/// A frozen point, and what its recovery point may be called.
#[derive(Debug)]
pub(super) struct Frozen {
    /// To be given back.
    pub point: FrozenPoint,
    /// Application-consistent only if the guest confirmed it.
    pub kind: PointKind,
    /// Shared with the points of the VM's group.
    pub group_point: Option<Uuid>,
}

/// Plans and takes the freezes of one item.
pub(super) struct Cadence<'a> {
    item: &'a Item,
    shared: &'a Shared,
    policy: watch::Receiver<Policy>,
    start: Instant,
    plan: Plan,
    seat: Option<Seat>,
}

impl<'a> Cadence<'a> {
    /// The first freeze is due at once; an application-consistent one is due when the newest of them is old enough,
    /// whether this engine made it or one before it.
    pub async fn new(item: &'a Item, shared: &'a Shared) -> Self {
        let policy = item.policy.clone();
        let start = Instant::now();
        let age = application_age(item, shared).await;
        let plan = {
            let policy = policy.borrow();
            Plan::new(policy.interval, policy.app_consistent, age, Duration::ZERO)
        };
        Self {
            item,
            shared,
            policy,
            start,
            plan,
            seat: None,
        }
    }

    /// Returns when the next freeze is due. Dropping it changes nothing. A changed policy counts at once, so does what
    /// shipping finds, and a call of the VM's group.
    pub async fn due(&mut self) -> FreezeKind {
        let mut waiting = self.shared.waiting();
        loop {
            waiting.borrow_and_update();
            self.take_policy();
            self.take_news();
            let due = self.start.checked_add(self.plan.due());
            let mut changes = self.policy.clone();
            tokio::select! {
                biased;
                () = until(due) => break,
                () = called(&mut self.seat) => break,
                changed = changes.changed() => {
                    if changed.is_err() {
                        // The item's handle is gone; its halt comes next.
                        until(due).await;
                        break;
                    }
                    self.policy = changes;
                }
                // The sender lives as long as `shared`.
                _ = waiting.changed() => {}
            }
        }
        // A comparison fills the spool by itself, and is no reason to come less often.
        let whole = self.shared.captured().await.knowledge.is_whole();
        let count = if whole {
            *self.shared.waiting().borrow()
        } else {
            0
        };
        let kind = self.plan.begin(self.start.elapsed(), count);
        self.tell();
        kind
    }

    /// Freezes: a cycle of a kind, with the VM's group if it has one and `whole` says that a recovery point will come
    /// of it; or, without a kind, the start of initial replication, which is always the VM's own.
    pub async fn freeze(
        &mut self,
        request: FreezeRequest,
        kind: Option<FreezeKind>,
        whole: bool,
    ) -> Result<Frozen, HypervisorError> {
        let host = &*self.item.context.hypervisor;
        let consistency = match kind {
            Some(FreezeKind::Application) => Consistency::Application,
            Some(FreezeKind::Crash) | None => Consistency::Crash,
        };
        let interval = self.policy.borrow().interval;
        let taken = match &mut self.seat {
            Some(seat) if kind.is_some() => {
                let (least, most) = GROUP_PATIENCE;
                let patience = (interval / 2).clamp(least, most);
                seat.freeze(host, request, consistency, whole, patience)
                    .await?
            }
            _ => {
                let point = host
                    .freeze(
                        request.vm,
                        &request.disks,
                        request.since,
                        request.next,
                        consistency,
                    )
                    .await?;
                GroupPoint {
                    point,
                    shared: None,
                    alone_because: None,
                }
            }
        };
        let quiescence = &taken.point.quiescence;
        let confirmed = quiescence.is_confirmed();
        self.plan.froze(
            self.start.elapsed(),
            kind.unwrap_or(FreezeKind::Crash),
            confirmed,
        );
        self.notice_quiescence(quiescence);
        self.notice_group(&taken);
        if consistency == Consistency::Application || taken.shared.is_some() {
            tracing::debug!(
                item = self.item.spec.item_id,
                ?quiescence,
                shared = ?taken.shared,
                pause_ms = taken.point.pause.as_millis() as u64,
                "frozen"
            );
        }
        Ok(Frozen {
            kind: if confirmed {
                PointKind::Application
            } else {
                PointKind::Crash
            },
            group_point: taken.shared,
            point: taken.point,
        })
    }

    /// Takes no part in the points of a group any more: the VM is off for good.
    pub fn leave_group(&mut self) {
        if self.seat.take().is_some() {
            self.item.status.notice(Origin::Group, None);
        }
    }

    /// Points were found that this engine did not know of.
    pub async fn found_points(&mut self) {
        if let Some(age) = application_age(self.item, self.shared).await {
            self.plan.application_was(age, self.start.elapsed());
        }
    }

    /// What was frozen last is captured.
    pub fn captured(&mut self, done: Done) {
        // What a comparison takes says nothing about ordinary cycles.
        if !done.compared {
            self.plan.captured(done.changed_bytes, done.took);
        }
    }

    /// What was frozen last came to nothing, and there is no reason to wait for the next.
    pub fn at_once(&mut self) {
        self.plan.at_once();
    }

    fn take_policy(&mut self) {
        let (interval, application, group) = {
            let policy = self.policy.borrow_and_update();
            (
                policy.interval,
                policy.app_consistent,
                policy.group_name.clone(),
            )
        };
        self.plan
            .set_policy(interval, application, self.start.elapsed());
        if application.is_none() {
            self.item.status.notice(Origin::Application, None);
        }
        if self.seat.as_ref().map_or("", Seat::group) != group {
            self.item.status.notice(Origin::Group, None);
            let spec = &self.item.spec;
            let groups = &self.item.context.groups;
            self.seat =
                (!group.is_empty()).then(|| groups.join(&group, &spec.item_id, &spec.vm_name));
        }
    }

    /// What shipping has to tell.
    fn take_news(&mut self) {
        for shipped in self.item.meter.take() {
            self.plan.shipped(&shipped);
        }
        if self.item.meter.throttled_now() > self.plan.report().effective_interval / 2 {
            self.plan.throttled(true);
        }
        self.tell();
    }

    fn tell(&self) {
        let report = self.plan.report();
        let effective = report.effective_interval;
        let why = report
            .degraded
            .map(|reason| reason.to_string())
            .unwrap_or_default();
        let interval = self.policy.borrow().interval;
        let found = report
            .degraded
            .map(|_| notices::degraded(&self.item.spec.vm_name, interval, effective, &why));
        self.item.status.schedule(effective, &why);
        self.item.status.notice(Origin::Schedule, found);
    }

    fn notice_quiescence(&self, quiescence: &Quiescence) {
        match quiescence {
            Quiescence::NotAsked => {}
            Quiescence::Confirmed { .. } => self.item.status.notice(Origin::Application, None),
            Quiescence::NotConfirmed { reason, text } => {
                let name = &self.item.spec.vm_name;
                let found = notices::not_application_consistent(name, *reason, text);
                self.item.status.notice(Origin::Application, Some(found));
            }
        }
    }

    fn notice_group(&self, taken: &GroupPoint) {
        let found = taken.alone_because.as_ref().zip(self.seat.as_ref());
        let found = found
            .map(|(why, seat)| notices::no_group_point(&self.item.spec.vm_name, seat.group(), why));
        self.item.status.notice(Origin::Group, found);
    }
}

/// How old the newest application-consistent point is, as far as it is known.
async fn application_age(item: &Item, shared: &Shared) -> Option<Duration> {
    let last = shared.last_application_unix_ms().await?;
    let age = (item.context.clock)().checked_sub(last)?;
    // A point of the future says that a clock was wrong, not that the next one is far away.
    u64::try_from(age).ok().map(Duration::from_millis)
}

async fn called(seat: &mut Option<Seat>) {
    match seat {
        Some(seat) => seat.called().await,
        None => std::future::pending().await,
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
