//! What the two hosts do: their engines what the guards allow, their guests and their hardware what they like.

use protection::Generation;
use protection::life::{Proof, RecoveryOrder, SourceOrder};

use super::{Action, Model, Successors};
use crate::world::{FRESH, NOTHING, TORN, World};

// === impl Model ===

impl Model<'_> {
    pub(super) fn failures(&self, world: &World, out: &mut Successors) {
        let durable = self.rules.guards_are_durable();
        let mut next = *world;
        if !durable {
            next.source.guard.epoch = Generation(0);
            next.recovery.guard.epoch = Generation(0);
        }
        next.source.running = self.rules.starts_by_itself(&next.source.guard);
        if next != *world {
            out.push((Action::SourceRestarts, next));
        }
        let mut next = *world;
        if !durable {
            next.recovery.guard.epoch = Generation(0);
        }
        next.recovery.running = next.recovery.guard.starts_by_itself(next.recovery.instance);
        if next != *world {
            out.push((Action::RecoveryRestarts, next));
        }
    }

    pub(super) fn source(&self, world: &World, out: &mut Successors) {
        let source = world.source;
        let guard = source.guard;
        let mut now = |action, next: World| {
            if next != *world {
                out.push((action, next));
            }
        };
        if source.running {
            if guard.must_stop() {
                let mut next = *world;
                next.source.running = false;
                now(Action::SourceStops, next);
            }
            let mut next = *world;
            next.source.disk = FRESH;
            now(Action::SourceWrites, next);
        } else {
            for proof in [
                Proof::None,
                Proof::Store(world.store.fence),
                Proof::Answer(world.record.source_epoch),
            ] {
                if self.rules.source_may_start(&guard, proof) {
                    let mut next = *world;
                    next.source.running = true;
                    now(Action::SourceStarts(proof), next);
                }
            }
            if self.settings.stubborn && guard.order.permits_running() {
                let mut next = *world;
                next.source.running = true;
                now(Action::SomebodyStartsSource, next);
            }
        }
        if let Some(licence) = guard.may_ship()
            && let Some(fence) = self.rules.fence(world.store.fence, licence)
        {
            let mut next = *world;
            next.store.fence = fence;
            next.store.point = source.disk;
            let all = matches!(guard.order, SourceOrder::Replicate(_)) || !source.running;
            next.source.guard.done |= all;
            now(Action::SourceShips, next);
        }
        // What is received was shipped under the number that the order is about, and shipping raises the fence.
        let shipped = if guard.epoch == world.record.source_epoch {
            self.rules.fence(world.store.fence, world.record.takes)
        } else {
            Some(world.store.fence)
        };
        if self.rules.may_receive(&guard, source.running)
            && world.recovery.instance.is_some()
            && let Some(fence) = shipped
        {
            let mut world = *world;
            world.store.fence = fence;
            let world = &world;
            let mut next = *world;
            next.source.disk = TORN;
            if guard.order == SourceOrder::Receive {
                next.source.guard.done = true;
                now(Action::SourceReceives, next);
            } else {
                now(Action::SourceReceives, next);
                let mut next = *world;
                next.source.disk = world.recovery.disk;
                next.source.guard.done = true;
                now(Action::SourceReceived, next);
            }
        }
    }

    pub(super) fn recovery(&self, world: &World, out: &mut Successors) {
        let recovery = world.recovery;
        let (guard, there) = (recovery.guard, recovery.instance);
        let mut now = |action, next: World| {
            if next != *world {
                out.push((action, next));
            }
        };
        if recovery.running {
            if guard.must_stop(there) {
                let mut next = *world;
                next.recovery.running = false;
                now(Action::RecoveryStops, next);
            }
            let mut next = *world;
            next.recovery.disk = FRESH;
            now(Action::RecoveryWrites, next);
            if matches!(guard.order, RecoveryOrder::Leave { .. }) {
                let mut next = *world;
                next.recovery.guard.done = true;
                now(Action::RecoveryHydrates, next);
            }
            return;
        }
        if guard.must_remove(there) {
            let mut next = *world;
            next.recovery.instance = None;
            next.recovery.disk = NOTHING;
            now(Action::RecoveryRemoves, next);
        }
        if let Some((instance, takes)) = guard.must_make(there)
            && let Some(fence) = self.rules.fence(world.store.fence, takes)
        {
            let mut next = *world;
            next.store.fence = fence;
            next.recovery.instance = Some(instance);
            next.recovery.disk = world.store.point;
            now(Action::RecoveryMakes, next);
        }
        if let Some(takes) = guard.may_start(there)
            && let Some(fence) = self.rules.fence(world.store.fence, takes)
        {
            let mut next = *world;
            next.store.fence = fence;
            next.recovery.running = true;
            now(Action::RecoveryStarts, next);
        }
    }
}
