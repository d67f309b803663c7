//! The source of a protected VM under orders: what it may do, who it is told, and what is replicated meanwhile.
//!
//! ```text
//! order ─► keeper (durable) ─► stop what the order before had running ─► replicator, if the order is to ship
//!                                                                     └► power: off or on, as the guard says ─► report
//! ```
//!
//! | order | replication | the VM |
//! |---|---|---|
//! | replicate | as ever | started if we had shut it down |
//! | ship the rest | to the last write: [`crate::replicator::rest`] | shut down by its guest only |
//! | run | none | started once |
//! | receive | from the recovered VM: [`crate::receive`] | as hold |
//! | hold | none, all files stay | shut down, then turned off; again when somebody starts it |
//! | leave running | retired | as it is |
//! | leave off | retired, once it is off | as hold |
//!
//! Promise: nothing is obeyed that is not on disk, nothing is said that is not true, and a VM is started only with proof
//! that its licence is in force ([`power`]). A user's VM that is off by his own doing is not started.

pub mod findings;
mod keeper;
mod power;
mod receiving;

use std::sync::Arc;
use std::time::Duration;

use engine_protocol::orders::source_order;
use engine_protocol::v1;
use protection::Generation;
use protection::life::{SourceOrder, Taken};
use replication_log::KeyRing;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use keeper::{Critical, Keeper, Kept};

use crate::receive::Until;
use crate::replicator::rest::Rest;
use crate::replicator::spec::{Spec, Wish};
use crate::replicator::status::{Origin, StatusLine};
use crate::replicator::{Context, Replicator};
use crate::task::spawn_named;
use power::Power;
use receiving::{Job, Receiving};

/// How long a guest may take to shut down before that is a problem, or before it is turned off where it must be off.
pub const GUEST_PATIENCE: Duration = Duration::from_secs(120);

/// Where a desired state comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// From the disk, at the engine's start: true once.
    Before,
    /// From the orchestrator, just now.
    Now,
}

/// The orchestrator's answer: the number of the order in force, and when it came.
pub(crate) type Answer = Option<(Generation, Instant)>;

/// What came of a message's order.
pub enum Received {
    /// There never was one: the item is as its phase says.
    Unordered,
    /// The keeper's guard is in force; a finding tells why the message's order is not.
    InForce(Arc<Keeper>, Option<v1::Finding>),
    /// Nothing may be obeyed.
    Unusable(v1::Finding),
}

/// Takes the order of a message. `known` is the item's keeper, when this process has it already.
pub async fn receive(
    context: &Context,
    known: Option<Arc<Keeper>>,
    spec: &Spec,
    message: &v1::Replication,
) -> Received {
    let unusable = |error: std::io::Error| {
        tracing::error!(item = spec.item_id, %error, "the guard of an item can't be used");
        Received::Unusable(findings::guard_unusable(&spec.vm_name, &error.to_string()))
    };
    let keeper = match known {
        Some(keeper) => Some(keeper),
        None => match Keeper::open(&context.state_folder, &spec.key).await {
            Ok(opened) => opened.map(Arc::new),
            Err(error) => return unusable(error),
        },
    };
    let Some(order) = &message.order else {
        // From before orders; or a state that is older than the guard.
        return match keeper {
            Some(keeper) => Received::InForce(keeper, None),
            None => Received::Unordered,
        };
    };
    let Some((epoch, order)) = source_order(order) else {
        let found = findings::order_unknown(&spec.vm_name);
        tracing::error!(item = spec.item_id, ?order, "order of an unknown kind");
        return match keeper {
            Some(keeper) => Received::InForce(keeper, Some(found)),
            None => Received::Unusable(found),
        };
    };
    let Some(keeper) = keeper else {
        let begun = Keeper::begin(&context.state_folder, &spec.key, spec.vm, epoch, order).await;
        return match begun {
            Ok(keeper) => {
                tracing::info!(item = spec.item_id, epoch = epoch.0, ?order, "first order");
                Received::InForce(Arc::new(keeper), None)
            }
            Err(error) => unusable(error),
        };
    };
    let found = match keeper.take(spec.vm, epoch, order).await {
        Ok(Taken::Again) => None,
        Ok(Taken::New) => {
            tracing::info!(item = spec.item_id, epoch = epoch.0, ?order, "new order");
            None
        }
        Ok(Taken::Stale) => {
            let newest = keeper.kept().await.guard.epoch.0;
            tracing::warn!(
                item = spec.item_id,
                epoch = epoch.0,
                newest,
                ?order,
                "an order that is older than the newest one known is dropped"
            );
            None
        }
        Ok(Taken::Contradiction) => {
            let known = keeper.kept().await.guard.order;
            tracing::error!(
                item = spec.item_id,
                epoch = epoch.0,
                ?order,
                ?known,
                "an order contradicts the one of its number and is dropped"
            );
            Some(findings::order_contradiction(&spec.vm_name, epoch.0))
        }
        Err(error) => return unusable(error),
    };
    Received::InForce(keeper, found)
}

/// What an item's order makes of it, apart from what may change while it is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Course {
    Replicate,
    ShipRest,
    /// No replication.
    Still,
    /// No replication; the recovered VM's disks are taken over.
    Receive {
        origin: u64,
        until: Until,
        creates: bool,
    },
    LeaveRunning {
        delete_replica: bool,
    },
    LeaveOff {
        delete_replica: bool,
    },
    /// The order and its item do not fit: nothing is replicated.
    Misfit(String),
}

impl Course {
    fn of(kept: &Kept, message: &v1::Replication) -> Self {
        let delete_replica = message.delete_replica;
        if let Some(licence) = kept.guard.may_ship()
            && licence.0 != message.generation
        {
            return Self::Misfit(format!(
                "the order has licence {}, the item has generation {}",
                licence.0, message.generation
            ));
        }
        match kept.guard.order {
            SourceOrder::Replicate(_) => Self::Replicate,
            SourceOrder::ShipRest(_) => Self::ShipRest,
            SourceOrder::Run(_) | SourceOrder::Hold => Self::Still,
            SourceOrder::Receive => Self::receive(kept, message, Until::Stopped),
            // What somebody may rely on is not touched again.
            SourceOrder::ReceiveRest if kept.guard.done => Self::Still,
            SourceOrder::ReceiveRest => Self::receive(kept, message, Until::Equal),
            SourceOrder::LeaveRunning => Self::LeaveRunning { delete_replica },
            SourceOrder::LeaveOff => Self::LeaveOff { delete_replica },
        }
    }

    /// Whose points are received is said by the message of that very order.
    fn receive(kept: &Kept, message: &v1::Replication, until: Until) -> Self {
        let order = message.order.as_ref().and_then(source_order);
        match order {
            Some((epoch, _)) if epoch == kept.guard.epoch && message.origin > 0 => Self::Receive {
                origin: message.origin,
                until,
                creates: message.create_vm,
            },
            Some((epoch, _)) if epoch == kept.guard.epoch => {
                Self::Misfit("the order to receive does not say from which generation".to_owned())
            }
            _ => Self::Still,
        }
    }

    /// Whether the VM is held and nothing is shipped.
    fn is_still(&self) -> bool {
        matches!(self, Self::Still | Self::Receive { .. })
    }
}

/// One item under an order.
pub struct Source {
    keeper: Arc<Keeper>,
    spec: Spec,
    epoch: Generation,
    course: Course,
    line: StatusLine,
    answer: watch::Sender<Answer>,
    stop: CancellationToken,
    task: JoinHandle<Option<()>>,
    replicator: Option<Replicator>,
    receiving: Option<Receiving>,
}

impl Source {
    /// Begins to obey the order in force. `wish` is what the message says of replication, or why that can't be read.
    pub async fn start(
        context: Arc<Context>,
        keeper: Arc<Keeper>,
        spec: Spec,
        wish: Result<Wish, String>,
        message: &v1::Replication,
        told: Told,
    ) -> Self {
        let kept = keeper.kept().await;
        let line = StatusLine::new(context.board.clone(), &spec);
        // What was said of the order before is not said of this one.
        line.say(None);
        let wanted = Course::of(&kept, message);
        let rest = (wanted == Course::ShipRest).then(|| Rest::new(keeper.clone()));
        let begin = |wish, rest| {
            let (context, spec) = (context.clone(), spec.clone());
            Replicator::ordered(context, spec, wish, line.clone(), rest)
        };
        let keys = keys(&wish);
        let (course, replicator) = match (wanted, wish) {
            // What somebody may rely on is not begun again.
            (Course::ShipRest, _) if kept.guard.done => (Course::ShipRest, None),
            (course @ (Course::Replicate | Course::ShipRest), Ok(wish @ Wish::Active(_))) => {
                (course, Some(begin(wish, rest)))
            }
            (Course::Replicate | Course::ShipRest, Ok(Wish::Retired { .. })) => {
                (Course::Misfit("its phase is retired".to_owned()), None)
            }
            (Course::Replicate | Course::ShipRest, Err(problem)) => (Course::Misfit(problem), None),
            (course @ Course::LeaveRunning { delete_replica }, _) => {
                (course, Some(begin(Wish::Retired { delete_replica }, None)))
            }
            (course, _) => (course, None),
        };
        if let Course::Misfit(cause) = &course {
            let found = findings::order_misfit(&spec.vm_name, cause);
            line.notice(Origin::Ship, Some(found));
        }
        let job = |origin, until, creates| Job {
            context: context.clone(),
            spec: spec.clone(),
            keeper: keeper.clone(),
            epoch: kept.guard.epoch,
            origin,
            until,
            creates,
            keys,
            line: line.clone(),
        };
        let (receiving, progress) = match course {
            Course::Receive {
                origin,
                until,
                creates,
            } => {
                let (receiving, progress) = Receiving::start(job(origin, until, creates));
                (Some(receiving), Some(progress))
            }
            _ => (None, None),
        };
        let (answer, answers) = watch::channel(answer(&kept, message, told));
        let stop = CancellationToken::new();
        let power = Power {
            context,
            spec: spec.clone(),
            keeper: keeper.clone(),
            line: line.clone(),
            course: course.clone(),
            answers,
            progress,
            stop: stop.clone(),
        };
        let task = spawn_named(format!("power {}", spec.item_id), power.run());
        Self {
            keeper,
            spec,
            epoch: kept.guard.epoch,
            course,
            line,
            answer,
            stop,
            task,
            replicator,
            receiving,
        }
    }

    /// The item's guard.
    pub fn keeper(&self) -> Arc<Keeper> {
        self.keeper.clone()
    }

    /// Why the newest message's order is not the one in force; `None` = it is.
    pub fn tell(&self, found: Option<v1::Finding>) {
        self.line.notice(Origin::Order, found);
    }

    /// Takes a message over, when what runs serves it; `false` = start anew.
    pub async fn adopt(
        &self,
        spec: &Spec,
        wish: &Result<Wish, String>,
        message: &v1::Replication,
        told: Told,
    ) -> bool {
        let kept = self.keeper.kept().await;
        let course = Course::of(&kept, message);
        // Carried out: its task has ended, or does in a moment.
        let is_received = course == Course::Still
            && matches!(self.course, Course::Receive { .. })
            && kept.guard.done;
        if *spec != self.spec
            || kept.guard.epoch != self.epoch
            || (course != self.course && !is_received)
            || self.task.is_finished()
        {
            return false;
        }
        if let Some(receiving) = &self.receiving
            && !is_received
            && !receiving.has(&keys(wish))
        {
            return false;
        }
        let is_over = course == Course::ShipRest && kept.guard.done;
        let serves = match (&self.replicator, &course, wish) {
            (None, ..) => true,
            _ if is_over => true,
            (Some(running), Course::LeaveRunning { delete_replica }, _) => {
                let delete_replica = *delete_replica;
                running.adopt(spec, Wish::Retired { delete_replica })
            }
            (Some(running), _, Ok(wish)) => running.adopt(spec, wish.clone()),
            (Some(_), _, Err(_)) => false,
        };
        if serves && let Some(newer) = answer(&kept, message, told) {
            self.answer.send_replace(Some(newer));
        }
        serves
    }

    /// Ends what runs, each at its next safe place. The VM stays as it is.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Some(replicator) = self.replicator {
            replicator.stop().await;
        }
        if let Some(receiving) = self.receiving {
            receiving.stop().await;
        }
        // A panic was logged by the task itself.
        self.task.await.ok();
    }
}

/// Keys that journals may need.
fn keys(wish: &Result<Wish, String>) -> KeyRing {
    match wish {
        Ok(Wish::Active(policy)) => policy.keys.clone(),
        _ => KeyRing::new(),
    }
}

/// An order that came just now and is the one in force.
fn answer(kept: &Kept, message: &v1::Replication, told: Told) -> Answer {
    let (epoch, order) = source_order(message.order.as_ref()?)?;
    let is_in_force = epoch == kept.guard.epoch && order == kept.guard.order;
    (told == Told::Now && is_in_force).then(|| (epoch, Instant::now()))
}
