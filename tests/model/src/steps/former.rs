//! The source becomes another host, and what the former one does from then on: it comes back whenever it likes.

use protection::Generation;
use protection::life::{Event, Former, Guard, Proof, SourceOrder, SourceSaid, Standing};

use super::{Action, Model, Moves, Successors, Who, arrived};
use crate::world::{FRESH, Left, NOTHING, Source, TORN, World};

// === impl Model ===

impl Model<'_> {
    /// A person brings the VM back to another host.
    pub(super) fn moves(&self, world: &World, out: &mut Successors) {
        let possible = match self.settings.moves {
            Moves::Never => false,
            Moves::Once => world.former.is_none(),
            Moves::AndBack => true,
        };
        if !possible {
            return;
        }
        let Ok((record, _)) = self.rules.step(world.record, Event::SourceMoved) else {
            return;
        };
        let left = Left {
            numbers: Former::left(&world.record, &record),
            guard: world.source.guard,
            running: world.source.running,
            held: world.record.standing == Standing::Held,
            late: world.late.to_source,
        };
        // What is on a disk that was left is nothing that anybody knows.
        let mut sources = match world.former {
            Some(former) => vec![Source {
                guard: former.guard,
                running: former.running,
                disk: FRESH,
            }],
            None => vec![Source {
                guard: Guard::new(Generation(0), SourceOrder::Hold),
                running: false,
                disk: NOTHING,
            }],
        };
        if world.former.is_none() && self.settings.stubborn {
            // Somebody carried the VM there by hand, and it runs.
            sources.extend(sources.first().copied().map(|source| Source {
                running: true,
                disk: FRESH,
                ..source
            }));
        }
        for source in sources {
            let mut next = World {
                record,
                source,
                former: Some(left),
                ..*world
            };
            next.late.to_source = None;
            let moved = |behind| Action::Decide(Who::Current, Event::SourceMoved, behind);
            out.push((moved(false), next));
            if self.settings.slow && world.slow.is_none() {
                next.slow = Some(world.record);
                out.push((moved(true), next));
            }
        }
    }

    /// What the former source does, and what is done to it.
    pub(super) fn former(&self, world: &World, out: &mut Successors) {
        let Some(former) = world.former else { return };
        let mut now = |action, change: &dyn Fn(&mut Left)| {
            let mut next = *world;
            if let Some(former) = &mut next.former {
                change(former);
                if world.former != Some(*former) {
                    out.push((action, next));
                }
            }
        };
        now(Action::FormerRestarts, &|former| {
            if !self.rules.guards_are_durable() {
                former.guard.epoch = Generation(0);
            }
            former.running = self.rules.starts_by_itself(&former.guard);
        });
        if former.running && former.guard.must_stop() {
            now(Action::FormerStops, &|former| former.running = false);
        }
        if !former.running {
            for proof in [
                Proof::None,
                Proof::Store(world.store.fence),
                Proof::Answer(former.numbers.hold),
            ] {
                if self.rules.source_may_start(&former.guard, proof) {
                    now(Action::FormerStarts(proof), &|former| former.running = true);
                }
            }
            if self.settings.stubborn && former.guard.order.permits_running() {
                now(Action::SomebodyStartsFormer, &|former| {
                    former.running = true
                });
            }
        }
        if former.late.is_some() {
            now(Action::LoseToFormer, &|former| former.late = None);
        }
        if let Some(licence) = former.guard.may_ship()
            && let Some(fence) = self.rules.fence(world.store.fence, licence)
        {
            let mut next = *world;
            next.store.fence = fence;
            next.store.point = TORN;
            out.push((Action::FormerShips, next));
        }
        let (epoch, order) = self.rules.former_order(former.numbers);
        self.to_former(world, Action::TellFormer(Who::Current), epoch, order, out);
        if let Some((epoch, order)) = former.late {
            self.to_former(world, Action::LateToFormer, epoch, order, out);
        }
    }

    pub(super) fn to_former(
        &self,
        world: &World,
        action: Action,
        epoch: Generation,
        order: SourceOrder,
        out: &mut Successors,
    ) {
        let mut next = *world;
        let Some(former) = &mut next.former else {
            return;
        };
        let taken = self.rules.take_source(&mut former.guard, epoch, order);
        arrived(taken, &mut next);
        if next != *world {
            out.push((action, next));
        }
    }

    /// What the former source's engine would report now.
    pub(super) fn former_reports(&self, world: &World) -> Option<(Generation, SourceSaid)> {
        let former = world.former?;
        let said = self.rules.source_says(&former.guard, former.running)?;
        Some((former.guard.epoch, said))
    }

    /// Notes that it is held, and drops an order that is too old for it.
    pub(super) fn settle_former(&self, world: &mut World) {
        let said = self.former_reports(world).map(|(_, said)| said);
        let Some(former) = &mut world.former else {
            return;
        };
        former.held |= said == Some(SourceSaid::Held);
        if let Some((epoch, order)) = former.late
            && self.rules.forget_the_ineffective()
        {
            let mut guard = former.guard;
            let taken = self.rules.take_source(&mut guard, epoch, order);
            if epoch <= former.guard.epoch
                && guard == former.guard
                && taken != protection::life::Taken::Contradiction
            {
                former.late = None;
            }
        }
        // It obeys its order, and all that may still come is older: from then on it is as if it had never known a number.
        let slow = world.slow.map(|slow| self.rules.orders(&slow).source.0);
        let is_done = !former.running
            && former.late.is_none()
            && (former.guard.epoch, former.guard.order) == former.numbers.held()
            && slow.is_none_or(|epoch| epoch >= former.numbers.leave);
        if is_done && self.rules.forget_the_ineffective() {
            let none = Generation(0);
            former.numbers = Former {
                hold: none,
                leave: none,
            };
            former.guard = Guard::new(none, SourceOrder::Hold);
        }
    }
}

/// Whether an order of this number, of whoever, is for the former source: it was given before the source moved.
pub(super) fn is_for_former(world: &World, epoch: Generation) -> bool {
    let former = world.former.as_ref();
    former.is_some_and(|former| epoch < former.numbers.leave)
}
