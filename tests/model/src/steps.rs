//! Everything that may happen next in a world, and which promise it breaks.

use protection::life::{
    Event, Orders, Proof, RecoveryOrder, RecoverySaid, SourceOrder, SourceSaid, Taken,
};
use protection::machine;
use protection::{DrillState, Generation, Observed};

use crate::rules::Rules;
use crate::world::{Late, World};

mod former;
mod hosts;
mod operations;
mod promises;
mod settings;

pub use operations::{ALL_OPERATIONS, events_of, is_of_drill};
pub use promises::{PROMISES, is_leaving, is_settled};
pub use settings::{CALM, Channel, LONG_WORLDS, Moves, Settings, WORLDS};

/// Who speaks to the database and to the engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Who {
    /// An orchestrator that has read the present record.
    Current,
    /// One that read it earlier.
    Slow,
}

/// One step of somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Somebody's event becomes the record; `true`: another orchestrator stays behind with the old one.
    Decide(Who, Event, bool),
    /// The record names what may be asked.
    Offers,
    /// The slow orchestrator reads again.
    Reads,
    /// An order of the record arrives.
    TellSource(Who),
    /// An order of the record arrives.
    TellRecovery(Who),
    /// An order is under way for a long time.
    DelayToSource,
    /// An order is under way for a long time.
    DelayToRecovery,
    /// A report is under way for a long time.
    DelayFromSource,
    /// A report is under way for a long time.
    DelayFromRecovery,
    /// What was under way arrives, and may arrive again.
    LateToSource,
    /// What was under way arrives, and may arrive again.
    LateToRecovery,
    /// What is under way is lost.
    LoseToSource,
    /// What is under way is lost.
    LoseToRecovery,
    /// What is under way is lost.
    LoseFromSource,
    /// What is under way is lost.
    LoseFromRecovery,
    /// The source host starts anew.
    SourceRestarts,
    /// The recovery host starts anew.
    RecoveryRestarts,
    /// The engine shuts the VM down.
    SourceStops,
    /// The engine starts the VM.
    SourceStarts(Proof),
    /// A hypervisor or a person starts the VM without asking the engine.
    SomebodyStartsSource,
    /// The guest writes.
    SourceWrites,
    /// A cycle is shipped.
    SourceShips,
    /// The disks begin to be written over.
    SourceReceives,
    /// They are as the recovered VM's.
    SourceReceived,
    /// The engine shuts the VM down.
    RecoveryStops,
    /// An order to hold arrives at the former source.
    TellFormer(Who),
    /// What was under way arrives there.
    LateToFormer,
    /// What is under way to it is lost.
    LoseToFormer,
    /// The former source host starts anew.
    FormerRestarts,
    /// Its engine shuts the VM down.
    FormerStops,
    /// Its engine starts the VM.
    FormerStarts(Proof),
    /// A hypervisor or a person starts the VM there without asking the engine.
    SomebodyStartsFormer,
    /// Its engine ships.
    FormerShips,
    /// The engine removes the VM.
    RecoveryRemoves,
    /// The engine makes the VM from a point.
    RecoveryMakes,
    /// The engine starts the VM.
    RecoveryStarts,
    /// The guest writes.
    RecoveryWrites,
    /// The VM's disks are whole without the replica.
    RecoveryHydrates,
}

// === impl Action ===

impl Action {
    /// Whether hardware, network or an orchestrator fails here: no way out may need that.
    #[must_use]
    pub fn is_fault(self) -> bool {
        match self {
            Self::Decide(who, _, behind) => behind || who == Who::Slow,
            Self::TellSource(who) | Self::TellRecovery(who) | Self::TellFormer(who) => {
                who == Who::Slow
            }
            Self::DelayToSource
            | Self::DelayToRecovery
            | Self::DelayFromSource
            | Self::DelayFromRecovery
            | Self::LateToSource
            | Self::LateToRecovery
            | Self::LoseToSource
            | Self::LoseToRecovery
            | Self::LoseFromSource
            | Self::LoseFromRecovery
            | Self::SourceRestarts
            | Self::SomebodyStartsSource
            | Self::LateToFormer
            | Self::LoseToFormer
            | Self::FormerRestarts
            | Self::SomebodyStartsFormer
            | Self::RecoveryRestarts => true,
            _ => false,
        }
    }
}

/// The model: rules in a world.
pub struct Model<'a> {
    /// The rules under test.
    pub rules: &'a dyn Rules,
    /// How adverse the world is.
    pub settings: Settings,
}

type Successors = Vec<(Action, World)>;

// === impl Model ===

impl Model<'_> {
    /// Everything that may happen next, each state in canonical form, with the promise that it breaks.
    pub fn successors(&self, world: &World, out: &mut Successors) {
        if let Some(broken) = self.decisions(world, out) {
            // The state itself is at fault.
            let mut bad = *world;
            bad.broken = Some(broken);
            out.push((Action::Offers, bad));
            return;
        }
        self.messages(world, out);
        self.failures(world, out);
        self.source(world, out);
        self.recovery(world, out);
        self.former(world, out);
        for (action, next) in out.iter_mut() {
            self.settle_former(next);
            if next.broken.is_none() {
                next.broken = promises::broken(world, *action, next);
            }
            if self.rules.forget_the_ineffective() && !grows(world, *action, next) {
                next.broken = Some("numbers only grow");
            }
            if self.rules.forget_the_ineffective() {
                self.forget(next);
            }
            *next = next.canonical();
        }
    }

    /// Drops what is too old to have any effect, now or later.
    fn forget(&self, world: &mut World) {
        let order_to_source = |world: &World, epoch, order| {
            let mut guard = world.source.guard;
            let taken = self.rules.take_source(&mut guard, epoch, order);
            epoch > guard.epoch || guard != world.source.guard || taken == Taken::Contradiction
        };
        let order_to_recovery = |world: &World, epoch, order| {
            let mut guard = world.recovery.guard;
            let taken = self.rules.take_recovery(&mut guard, epoch, order);
            epoch > guard.epoch || guard != world.recovery.guard || taken == Taken::Contradiction
        };
        if let Some((epoch, order)) = world.late.to_source
            && !order_to_source(world, epoch, order)
        {
            world.late.to_source = None;
        }
        if let Some((epoch, order)) = world.late.to_recovery
            && !order_to_recovery(world, epoch, order)
        {
            world.late.to_recovery = None;
        }
        let report = |event| {
            self.rules
                .step(world.record, event)
                .is_ok_and(|(next, _)| next != world.record)
        };
        if let Some((epoch, said)) = world.late.from_source
            && epoch < world.record.source_epoch
            && !report(Event::Source { epoch, said })
        {
            world.late.from_source = None;
        }
        if let Some((epoch, said)) = world.late.from_recovery
            && epoch < world.record.recovery_epoch
            && !report(Event::Recovery { epoch, said })
        {
            world.late.from_recovery = None;
        }
        if let Some(slow) = &world.slow {
            let orders = self.rules.orders(slow);
            let mut former = world
                .former
                .filter(|_| former::is_for_former(world, orders.source.0));
            let to_former = former.as_mut().is_some_and(|former| {
                let (epoch, order) = orders.source;
                let known = former.guard;
                let taken = self.rules.take_source(&mut former.guard, epoch, order);
                epoch > known.epoch || former.guard != known || taken == Taken::Contradiction
            });
            if *slow != world.record
                && !self.rules.may_write(false)
                && !to_former
                && (former.is_some() || !order_to_source(world, orders.source.0, orders.source.1))
                && !order_to_recovery(world, orders.recovery.0, orders.recovery.1)
            {
                world.slow = None;
            }
        }
    }

    /// Events that reach the record. Gives the promise that the state breaks by what it allows.
    fn decisions(&self, world: &World, out: &mut Successors) -> Option<&'static str> {
        let life = world.record;
        let allowed = self.rules.allowed(&life);
        for operation in ALL_OPERATIONS {
            let named = allowed.contains(&operation);
            for event in events_of(operation) {
                let accepted = self
                    .rules
                    .step(life, event)
                    .is_ok_and(|(next, effects)| next != life || !effects.is_empty());
                if accepted != named {
                    return Some("allowedOperations are exactly what is accepted");
                }
                if accepted && (self.settings.drills || !is_of_drill(operation)) {
                    self.decide(world, event, out);
                }
            }
        }
        self.decide(world, Event::ShutDownFailed, out);
        self.moves(world, out);
        for event in self.reports(world) {
            self.decide(world, event, out);
        }
        if self.settings.drills && life.item.drill != DrillState::None {
            for event in [
                machine::Event::DrillReady,
                machine::Event::DrillAbort,
                machine::Event::CleanupDone,
                machine::Event::CleanupFail,
            ] {
                self.decide(world, Event::Item(event), out);
            }
        }
        if world.slow.is_some() {
            self.slow_decisions(world, out);
        }
        None
    }

    fn decide(&self, world: &World, event: Event, out: &mut Successors) {
        let Ok((record, _)) = self.rules.step(world.record, event) else {
            return;
        };
        if record == world.record {
            return;
        }
        let next = World { record, ..*world };
        out.push((Action::Decide(Who::Current, event, false), next));
        if self.settings.slow && world.slow.is_none() {
            let slow = Some(world.record);
            out.push((
                Action::Decide(Who::Current, event, true),
                World { slow, ..next },
            ));
        }
    }

    /// The slow orchestrator decides on what it read. The database refuses it, and it reads again.
    fn slow_decisions(&self, world: &World, out: &mut Successors) {
        out.push((
            Action::Reads,
            World {
                slow: None,
                ..*world
            },
        ));
        let Some(life) = world.slow else { return };
        if !self.rules.may_write(life == world.record) {
            return;
        }
        let asked = self
            .rules
            .allowed(&life)
            .into_iter()
            .filter(|operation| !is_of_drill(*operation))
            .flat_map(events_of);
        for event in asked.chain(self.reports(world)) {
            if let Ok((record, _)) = self.rules.step(life, event) {
                let next = World {
                    record,
                    slow: None,
                    ..*world
                };
                out.push((Action::Decide(Who::Slow, event, false), next));
            }
        }
    }

    /// Reports that may arrive now: those that engines would make now, and those that are under way.
    fn reports(&self, world: &World) -> Vec<Event> {
        let mut events = Vec::new();
        let guard = world.source.guard;
        if let Some((epoch, said)) = self.source_reports(world) {
            events.push(Event::Source { epoch, said });
        }
        if let Some((epoch, said)) = self.former_reports(world) {
            events.push(Event::Source { epoch, said });
        }
        if let Some((epoch, said)) = recovery_reports(world) {
            events.push(Event::Recovery { epoch, said });
        }
        if let Some((epoch, said)) = world.late.from_source {
            events.push(Event::Source { epoch, said });
        }
        if let Some((epoch, said)) = world.late.from_recovery {
            events.push(Event::Recovery { epoch, said });
        }
        let mut replication = |generation, observed| {
            events.push(Event::Item(machine::Event::Report {
                generation,
                observed,
            }));
        };
        match guard.order {
            SourceOrder::Replicate(licence) if world.store.fence > licence => {
                replication(licence, Observed::Fenced);
            }
            SourceOrder::Replicate(licence) => {
                if world.source.guard.done {
                    replication(licence, Observed::Protected);
                }
                if self.settings.drills {
                    replication(licence, Observed::Comparing);
                }
            }
            SourceOrder::LeaveRunning if guard.epoch == world.record.source_epoch => {
                replication(world.record.item.generation, Observed::Retired);
            }
            _ => {}
        }
        events
    }

    /// What the source's engine would report now.
    fn source_reports(&self, world: &World) -> Option<(Generation, SourceSaid)> {
        let guard = world.source.guard;
        let said = self.rules.source_says(&guard, world.source.running)?;
        Some((guard.epoch, said))
    }

    fn messages(&self, world: &World, out: &mut Successors) {
        let orders = self.rules.orders(&world.record);
        self.tell(world, Who::Current, &orders, out);
        if let Some(slow) = &world.slow {
            self.tell(world, Who::Slow, &self.rules.orders(slow), out);
        }
        let late = world.late;
        let mut now = |action, change: &dyn Fn(&mut Late)| {
            let mut next = *world;
            change(&mut next.late);
            if next != *world {
                out.push((action, next));
            }
        };
        for channel in self.settings.late {
            match channel {
                Channel::ToSource if late.to_source.is_some() => {
                    now(Action::LoseToSource, &|late| late.to_source = None);
                }
                Channel::ToSource => now(Action::DelayToSource, &|late| {
                    late.to_source = Some(orders.source);
                }),
                Channel::ToRecovery if late.to_recovery.is_some() => {
                    now(Action::LoseToRecovery, &|late| late.to_recovery = None);
                }
                Channel::ToRecovery => now(Action::DelayToRecovery, &|late| {
                    late.to_recovery = Some(orders.recovery);
                }),
                Channel::FromSource if late.from_source.is_some() => {
                    now(Action::LoseFromSource, &|late| late.from_source = None);
                }
                Channel::FromSource => now(Action::DelayFromSource, &|late| {
                    late.from_source = self.source_reports(world);
                }),
                Channel::FromRecovery if late.from_recovery.is_some() => {
                    now(Action::LoseFromRecovery, &|late| late.from_recovery = None);
                }
                Channel::FromRecovery => now(Action::DelayFromRecovery, &|late| {
                    late.from_recovery = recovery_reports(world);
                }),
            }
        }
        if let Some((epoch, order)) = late.to_source {
            self.to_source(world, Action::LateToSource, epoch, order, out);
        }
        if let Some((epoch, order)) = late.to_recovery {
            self.to_recovery(world, Action::LateToRecovery, epoch, order, out);
        }
    }

    fn tell(&self, world: &World, who: Who, orders: &Orders, out: &mut Successors) {
        let (epoch, order) = orders.source;
        if former::is_for_former(world, epoch) {
            // Its record has the host of before.
            self.to_former(world, Action::TellFormer(who), epoch, order, out);
        } else {
            self.to_source(world, Action::TellSource(who), epoch, order, out);
        }
        let (epoch, order) = orders.recovery;
        self.to_recovery(world, Action::TellRecovery(who), epoch, order, out);
    }

    fn to_source(
        &self,
        world: &World,
        action: Action,
        epoch: Generation,
        order: SourceOrder,
        out: &mut Successors,
    ) {
        let mut next = *world;
        let taken = self.rules.take_source(&mut next.source.guard, epoch, order);
        arrived(taken, &mut next);
        if next != *world {
            out.push((action, next));
        }
    }

    fn to_recovery(
        &self,
        world: &World,
        action: Action,
        epoch: Generation,
        order: RecoveryOrder,
        out: &mut Successors,
    ) {
        let mut next = *world;
        let taken = self
            .rules
            .take_recovery(&mut next.recovery.guard, epoch, order);
        arrived(taken, &mut next);
        if next != *world {
            out.push((action, next));
        }
    }
}

/// What the recovery engine would report now.
fn recovery_reports(world: &World) -> Option<(Generation, RecoverySaid)> {
    let guard = world.recovery.guard;
    let said = guard.says(world.recovery_facts())?;
    Some((guard.epoch, said))
}

/// Numbers of the record and of what the engines know.
fn grows(before: &World, action: Action, next: &World) -> bool {
    // The guard is another host's then.
    let moved = matches!(action, Action::Decide(_, Event::SourceMoved, _));
    next.record.counter >= before.record.counter
        && next.record.source_epoch >= before.record.source_epoch
        && next.record.recovery_epoch >= before.record.recovery_epoch
        && (moved || next.source.guard.epoch >= before.source.guard.epoch)
        && next.recovery.guard.epoch >= before.recovery.guard.epoch
        && next.store.fence >= before.store.fence
}

fn arrived(taken: Taken, next: &mut World) {
    if taken == Taken::Contradiction {
        next.broken = Some("one number never means two orders");
    }
}
