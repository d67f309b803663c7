//! One step of a life, and how orders get their numbers.

use super::event::{DataOption, Effect, Event, Refused, Request, ShutDown};
use super::guard::{RecoverySaid, SourceSaid};
use super::{Awaited, Choice, Kind, Life, Phase, Standing};
use crate::machine::{self, Disabled, Generation, Item, Operation, ReplicationState};

/// One step. An event that changes nothing (a repeated or a stale report) gives the same life and no effect.
///
/// The caller stores the new life by compare-and-swap on what it read, and only then carries out the effects; when
/// it dies in between, [`Life::orders`] gives the orders again.
///
/// # Errors
/// When what a person asks for is not possible in this state. Reports are never refused, only ignored.
pub fn step(life: Life, event: impl Into<Event>) -> Result<(Life, Vec<Effect>), Refused> {
    let mut next = life;
    let mut effects = Vec::new();
    match event.into() {
        Event::Request(request) => {
            if !life.allowed_operations().contains(&request.operation()) {
                return Err(life.refuse(request.operation()));
            }
            requested(&mut next, request);
        }
        Event::Source { epoch, said } if epoch == life.source_epoch => {
            source_said(&mut next, said);
        }
        Event::Recovery { epoch, said } if epoch == life.recovery_epoch => {
            recovery_said(&mut next, said);
        }
        Event::Source { .. } | Event::Recovery { .. } => {}
        Event::SourceMoved => moved(&mut next, &mut effects)?,
        Event::ShutDownFailed => {
            if life.phase == Phase::StoppingSource(Kind::Unplanned) {
                next.start_recovered(Kind::Unplanned, Choice::First);
            }
        }
        Event::Item(event) => of_item(&mut next, event, &mut effects)?,
    }
    if matches!(life.phase, Phase::Leaving(_)) && next.phase == Phase::Gone {
        effects.push(Effect::Item(machine::Effect::RemoveRecord));
    }
    number(&life, &mut next, &mut effects);
    Ok((next, effects))
}

fn requested(next: &mut Life, request: Request) {
    match (request, next.phase) {
        (Request::PlannedFailover, _) => next.phase = Phase::StoppingSource(Kind::Planned),
        (Request::UnplannedFailover(shut_down), Phase::AtSource) => match shut_down {
            ShutDown::Attempt => next.phase = Phase::StoppingSource(Kind::Unplanned),
            ShutDown::Skip => next.start_recovered(Kind::Unplanned, Choice::First),
        },
        // The source died while it took the VM back: the recovered copy, which is still there, goes on.
        (Request::UnplannedFailover(_), _) => next.run_recovered_again(Kind::Unplanned),
        (Request::ChangePit, Phase::FailedOver(kind)) => {
            next.start_recovered(kind, Choice::Changed);
        }
        (Request::Commit, Phase::FailedOver(kind)) => next.phase = Phase::Committed(kind),
        (Request::Commit, _) => next.phase = Phase::CommittingFailback,
        (Request::CancelFailover, _) => cancel(next),
        (Request::CompleteMigration, _) => next.phase = Phase::Leaving(Awaited::Both),
        (Request::Failback(option), Phase::Committed(kind)) => {
            next.phase = match option {
                DataOption::MinimiseDowntime => Phase::Synchronising(kind),
                DataOption::FullDownload => Phase::StoppingRecovered(kind),
            };
        }
        (Request::FinalizeFailback, Phase::Synchronised(kind)) => {
            next.phase = Phase::StoppingRecovered(kind);
        }
        (Request::ReverseReplicate, _) => next.phase = Phase::AtSource,
        // Not named by `allowed_operations` in any other phase.
        (Request::ChangePit | Request::Failback(_) | Request::FinalizeFailback, _) => {}
    }
}

/// Takes back what is not committed. Wherever a copy may run, it is stopped first; the other one waits for that.
fn cancel(next: &mut Life) {
    match next.phase {
        // The recovery side was told nothing yet.
        Phase::StoppingSource(_) => next.phase = Phase::AtSource,
        Phase::StartingRecovered(..) | Phase::FailedOver(_) => {
            next.phase = Phase::UndoingFailover;
        }
        // The source's disks are half written; it stays held, and the next failback heals them. That one ships under a number of
        // its own: points of this one must not count as what it has received.
        Phase::Synchronising(kind)
        | Phase::Synchronised(kind)
        | Phase::StoppingRecovered(kind)
        | Phase::Receiving(kind) => next.run_recovered_again(kind),
        Phase::StartingSource(kind) | Phase::FailedBack(kind) => {
            next.phase = Phase::UndoingFailback(kind);
        }
        _ => {}
    }
}

/// The order is the same, for another host: a new number, so that nothing that the former one says counts for this one. The
/// number before it is nobody's yet; with it the former one is let go of in the end.
fn moved(next: &mut Life, effects: &mut Vec<Effect>) -> Result<(), Refused> {
    if !matches!(next.phase, Phase::Committed(_)) {
        return Err(next.refused("failback to another host"));
    }
    next.draw();
    next.source_epoch = next.draw();
    next.standing = Standing::Unconfirmed;
    let (epoch, order) = next.orders().source;
    effects.push(Effect::Source(epoch, order));
    Ok(())
}

fn source_said(next: &mut Life, said: SourceSaid) {
    // Everything but "running" is said by a source whose VM is off and stays off.
    if said != SourceSaid::Running {
        next.standing = Standing::Held;
    }
    match (next.phase, said) {
        (Phase::StoppingSource(kind), SourceSaid::Shipped) => {
            next.start_recovered(kind, Choice::First);
        }
        (Phase::Synchronising(kind), SourceSaid::Received) => {
            next.phase = Phase::Synchronised(kind);
        }
        (Phase::Receiving(kind), SourceSaid::Received) => {
            // A new licence, above every fence that a recovered VM raised; the points are still there.
            next.item = Item {
                copied_once: next.item.copied_once,
                ..Item::new(next.draw())
            };
            next.phase = Phase::StartingSource(kind);
        }
        (Phase::StartingSource(kind), SourceSaid::Running) => {
            next.phase = Phase::FailedBack(kind);
        }
        (Phase::UndoingFailback(kind), SourceSaid::Held) => next.run_recovered_again(kind),
        (Phase::Leaving(awaited), SourceSaid::Left) => {
            next.phase = match awaited {
                Awaited::Both => Phase::Leaving(Awaited::Recovery),
                Awaited::Source => Phase::Gone,
                Awaited::Recovery => next.phase,
            };
        }
        _ => {}
    }
}

fn recovery_said(next: &mut Life, said: RecoverySaid) {
    match (next.phase, said) {
        (Phase::StartingRecovered(kind, _), RecoverySaid::Running) => {
            next.phase = Phase::FailedOver(kind);
        }
        (Phase::UndoingFailover, RecoverySaid::Absent) => {
            // The recovered VM has fenced the old licence; points are kept.
            next.item = Item {
                copied_once: next.item.copied_once,
                replication: goes_on(next.item),
                ..Item::new(next.draw())
            };
            next.instance = None;
            next.phase = Phase::AtSource;
        }
        (Phase::StoppingRecovered(kind), RecoverySaid::Stopped) => {
            next.phase = Phase::Receiving(kind);
        }
        (Phase::CommittingFailback, RecoverySaid::Absent) => {
            next.instance = None;
            next.phase = Phase::FailbackCommitted;
        }
        (Phase::Leaving(awaited), RecoverySaid::Left) => {
            next.phase = match awaited {
                Awaited::Both => Phase::Leaving(Awaited::Source),
                Awaited::Recovery => Phase::Gone,
                Awaited::Source => next.phase,
            };
        }
        _ => {}
    }
}

/// What an item is again once its failover is undone: what it was. A source that is off, or away, may not report for long,
/// and drills need nothing of it but the points that are there.
fn goes_on(item: Item) -> ReplicationState {
    use ReplicationState as R;
    match item.replication {
        R::Protected if item.copied_once => R::Protected,
        R::EnablingProtection | R::InitialReplication | R::Resynchronising if item.copied_once => {
            R::Resynchronising
        }
        _ => R::EnablingProtection,
    }
}

fn of_item(
    next: &mut Life,
    event: machine::Event,
    effects: &mut Vec<Effect>,
) -> Result<(), Refused> {
    use machine::Event as E;
    match event {
        // The replica's old activation has nothing to say while the VM is elsewhere.
        E::Report { .. } if next.phase != Phase::AtSource => return Ok(()),
        E::Purge => next.phase = Phase::Gone,
        // A repeated request. Another choice about the replica counts.
        E::Disable { delete_replica }
            if next.phase == Phase::AtSource
                && next.item.disabled == Some(Disabled { delete_replica }) =>
        {
            return Ok(());
        }
        E::Disable { .. } if next.phase != Phase::AtSource => {
            if !next
                .allowed_operations()
                .contains(&Operation::DisableProtection)
            {
                return Err(next.refuse(Operation::DisableProtection));
            }
            if next.phase != Phase::FailbackCommitted {
                // The VM stays where it runs.
                next.phase = Phase::Leaving(Awaited::Both);
                return Ok(());
            }
            next.phase = Phase::AtSource;
        }
        E::Activate { generation }
            if next.phase != Phase::AtSource || generation <= next.counter =>
        {
            return Err(next.refused("a new activation"));
        }
        E::DrillStart if next.phase != Phase::AtSource => {
            return Err(next.refuse(Operation::TestFailover));
        }
        E::CleanupStart if next.phase != Phase::AtSource => {
            return Err(next.refuse(Operation::TestFailoverCleanup));
        }
        E::Resynchronise if next.phase != Phase::AtSource => {
            return Err(next.refuse(Operation::RepairReplication));
        }
        _ => {}
    }
    let (item, its_effects) = machine::step(next.item, event)?;
    next.item = item;
    next.counter = next.counter.max(item.generation);
    if item.replication == machine::ReplicationState::Removed {
        next.phase = Phase::Gone;
    }
    effects.extend(its_effects.into_iter().map(Effect::Item));
    Ok(())
}

/// Gives changed orders new numbers, and says them.
fn number(before: &Life, next: &mut Life, effects: &mut Vec<Effect>) {
    let (old, new) = (before.orders(), next.orders());
    if new.source.1 != old.source.1 {
        next.source_epoch = next.draw();
        effects.push(Effect::Source(next.source_epoch, new.source.1));
    }
    if new.recovery.1 != old.recovery.1 {
        next.recovery_epoch = next.draw();
        effects.push(Effect::Recovery(next.recovery_epoch, new.recovery.1));
    }
    if new.source.1.permits_running() {
        next.standing = Standing::Permitted;
    } else if next.standing == Standing::Permitted {
        next.standing = Standing::Unconfirmed;
    }
}

// === impl Life ===

impl Life {
    /// The next number.
    fn draw(&mut self) -> Generation {
        self.counter = Generation(self.counter.0.saturating_add(1));
        self.counter
    }

    /// A recovered VM that wasn't there before.
    fn start_recovered(&mut self, kind: Kind, choice: Choice) {
        let number = self.draw();
        self.instance = Some(number);
        self.takes = number;
        self.phase = Phase::StartingRecovered(kind, choice);
    }

    /// The recovered VM that is kept gets the right to run again, above every licence given out meanwhile.
    fn run_recovered_again(&mut self, kind: Kind) {
        self.takes = self.draw();
        self.phase = Phase::Committed(kind);
    }

    fn refuse(&self, operation: Operation) -> Refused {
        self.refused(operation.as_str())
    }

    fn refused(&self, event: &'static str) -> Refused {
        let allowed = self
            .allowed_operations()
            .into_iter()
            .map(Operation::as_str)
            .collect::<Vec<_>>();
        Refused::Phase {
            event,
            state: self.texts().0,
            allowed: if allowed.is_empty() {
                "none until what runs now has ended".to_owned()
            } else {
                allowed.join(", ")
            },
        }
    }
}
