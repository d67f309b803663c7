//! The promises, checked on every step.

use protection::life::{Kind, Phase, Standing};
use protection::{DrillState, ReplicationState};

use super::Action;
use crate::world::{NOTHING, TORN, World};

/// All promises that are checked on every step, in the words in which a broken one is reported.
pub const PROMISES: [&str; 18] = [
    "allowedOperations are exactly what is accepted",
    "one number never means two orders",
    "two copies run only while a lost source has not answered",
    "the source's right to run excludes a running recovered copy",
    "a source that confirmed being held is off",
    "no engine starts the source's VM beside a running recovered one",
    "no VM starts from half-written disks",
    "a planned failover has a source that is held",
    "a planned failover loses no acknowledged write",
    "a failback loses no acknowledged write",
    "a superseded source writes nothing to the replica",
    "a source that may run is not fenced",
    "a source is written over only while it is held and a person asked for it",
    "no failover without a point, and no drill beside a failover",
    "a life that ended leaves exactly one copy that may run",
    "no engine of a former source starts its VM beside another copy, or writes to the replica",
    "a former source that was held once stays off",
    "numbers only grow",
];

/// What this step breaks.
pub(super) fn broken(before: &World, action: Action, next: &World) -> Option<&'static str> {
    let checks = [
        (2, two_copies(next)),
        (
            3,
            next.record.standing == Standing::Permitted && next.recovery.running,
        ),
        (
            4,
            next.record.standing == Standing::Held && next.source.running,
        ),
        (
            5,
            matches!(action, Action::SourceStarts(_)) && before.recovery.running,
        ),
        (6, torn_start(action, next)),
        (7, planned_but_not_held(next)),
        (8, planned_loses(before, action, next)),
        (9, failback_loses(before, action, next)),
        (10, stale_write(before, action)),
        (11, fenced_while_permitted(next)),
        (12, written_over(before, action)),
        (13, failover_from_nothing(next)),
        (14, ended_wrongly(next)),
        (
            15,
            action == Action::FormerShips
                || (matches!(action, Action::FormerStarts(_)) && another_counts(before)),
        ),
        (
            16,
            next.former
                .is_some_and(|former| former.held && former.running),
        ),
    ];
    checks
        .into_iter()
        .find(|(_, broken)| *broken)
        .and_then(|(promise, _)| PROMISES.get(promise).copied())
}

fn two_copies(world: &World) -> bool {
    world.source.running && world.recovery.running && world.record.standing != Standing::Unconfirmed
}

/// A copy runs, or may any moment; a lost source that runs out of reach is not counted. Until a recovered VM that was given up and taken back runs again, the host that died with
/// the right to run is as any lost source.
fn another_counts(world: &World) -> bool {
    world.recovery.running || world.record.standing == Standing::Permitted
}

fn torn_start(action: Action, next: &World) -> bool {
    match action {
        Action::SourceStarts(_) => matches!(next.source.disk, TORN | NOTHING),
        Action::RecoveryStarts => matches!(next.recovery.disk, TORN | NOTHING),
        _ => false,
    }
}

fn planned_but_not_held(world: &World) -> bool {
    matches!(
        world.record.phase,
        Phase::StartingRecovered(Kind::Planned, _) | Phase::FailedOver(Kind::Planned)
    ) && world.record.standing != Standing::Held
}

/// The recovered VM of a planned failover is made of what the source's disks had when the source stopped.
fn planned_loses(before: &World, action: Action, next: &World) -> bool {
    use protection::life::Choice;
    let first = Phase::StartingRecovered(Kind::Planned, Choice::First);
    if next.record.phase != first {
        return false;
    }
    let decided = before.record.phase != first
        && (next.source.running || next.store.point != next.source.disk);
    let made = action == Action::RecoveryMakes
        && next.recovery.instance == next.record.instance
        && next.recovery.disk != next.source.disk;
    decided || made
}

/// The source gets the right to run with exactly what the stopped recovered VM had.
fn failback_loses(before: &World, action: Action, next: &World) -> bool {
    matches!(action, Action::Decide(..))
        && matches!(next.record.phase, Phase::StartingSource(_))
        && !matches!(before.record.phase, Phase::StartingSource(_))
        && (next.recovery.running || next.source.running || next.source.disk != next.recovery.disk)
}

fn stale_write(before: &World, action: Action) -> bool {
    action == Action::SourceShips
        && before.record.standing != Standing::Permitted
        && before.recovery.instance.is_some()
        && before.recovery.instance == before.record.instance
}

fn fenced_while_permitted(world: &World) -> bool {
    world.record.standing == Standing::Permitted
        && world.record.item.is_active()
        && world.record.phase != Phase::Gone
        && world.store.fence > world.record.item.generation
}

fn written_over(before: &World, action: Action) -> bool {
    // A host that was left while it received, and is the source again, goes on with that until it hears of it: a person asked
    // for it, and it is off.
    let comes_back =
        before.former.is_some() && before.source.guard.epoch < before.record.source_epoch;
    let held = before.record.standing == Standing::Held
        || (before.record.standing == Standing::Unconfirmed && comes_back);
    matches!(action, Action::SourceReceives | Action::SourceReceived)
        && (before.source.running || !held || before.recovery.instance.is_none())
}

fn failover_from_nothing(world: &World) -> bool {
    let elsewhere = !matches!(world.record.phase, Phase::AtSource | Phase::Gone);
    elsewhere
        && (world.record.item.drill != DrillState::None
            || (world.recovery.running && world.recovery.disk == NOTHING))
}

fn ended_wrongly(world: &World) -> bool {
    if world.record.phase != Phase::Gone {
        return false;
    }
    if world.record.instance.is_some() {
        // Stays at the recovery side.
        world.source.running || !world.recovery.guard.done
    } else {
        world.recovery.running
    }
}

/// Everything in order: replicated, running where it should, nothing left over.
#[must_use]
pub fn is_settled(world: &World) -> bool {
    let life = &world.record;
    life.phase == Phase::AtSource
        && life.item.replication == ReplicationState::Protected
        && life.item.drill == DrillState::None
        && world.source.running
        && world.source.guard.epoch == life.source_epoch
        && world.store.point == world.source.disk
        && !world.recovery.running
        && world.recovery.instance.is_none()
}

/// Somebody has decided that protection ends: the way out is the end.
#[must_use]
pub fn is_leaving(world: &World) -> bool {
    matches!(world.record.phase, Phase::Leaving(_) | Phase::Gone)
        || world.record.item.disabled.is_some()
}
