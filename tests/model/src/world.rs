//! The world: record, hosts, store, what is under way between them; and its canonical form.

use protection::life::{
    Former, Guard, RecoveryFacts, RecoveryOrder, RecoverySaid, SourceOrder, SourceSaid,
};
use protection::{Generation, Life};

/// Nothing was ever written.
pub const NOTHING: u8 = u8::MAX;
/// Half written: boots nothing.
pub const TORN: u8 = u8::MAX - 1;
/// Something that no disk had before.
pub const FRESH: u8 = u8::MAX - 2;

/// The source host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source {
    /// Newest order known.
    pub guard: Guard<SourceOrder>,
    /// The VM runs.
    pub running: bool,
    /// What is on the VM's disks: only equality counts.
    pub disk: u8,
}

/// A host that was the source before another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Left {
    /// The numbers that the record keeps of it.
    pub numbers: Former,
    /// Newest order known.
    pub guard: Guard<SourceOrder>,
    /// The VM runs.
    pub running: bool,
    /// It was off, and under an order to stay so, once.
    pub held: bool,
    /// An order that was under way when the source moved.
    pub late: Option<(Generation, SourceOrder)>,
}

/// The recovery host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Recovery {
    /// Newest order known.
    pub guard: Guard<RecoveryOrder>,
    /// The recovered VM that is there.
    pub instance: Option<Generation>,
    /// It runs.
    pub running: bool,
    /// What is on its disks.
    pub disk: u8,
}

/// The replica's store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Store {
    /// Highest number brought so far.
    pub fence: Generation,
    /// Newest point.
    pub point: u8,
}

/// Messages that were sent once and may arrive at any time, also behind newer ones and more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Late {
    /// An order for the source.
    pub to_source: Option<(Generation, SourceOrder)>,
    /// An order for the recovery host.
    pub to_recovery: Option<(Generation, RecoveryOrder)>,
    /// A report of the source.
    pub from_source: Option<(Generation, SourceSaid)>,
    /// A report of the recovery host.
    pub from_recovery: Option<(Generation, RecoverySaid)>,
}

/// Everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct World {
    /// What the database has.
    pub record: Life,
    /// What a second orchestrator read earlier and takes for the present.
    pub slow: Option<Life>,
    /// Under way.
    pub late: Late,
    /// The source host.
    pub source: Source,
    /// Another host that was the source before.
    pub former: Option<Left>,
    /// The recovery host.
    pub recovery: Recovery,
    /// The store.
    pub store: Store,
    /// A promise that the step into this state broke.
    pub broken: Option<&'static str>,
}

// === impl World ===

impl World {
    /// Protection has just been asked for; the VM runs.
    #[must_use]
    pub fn new() -> Self {
        let record = Life::new(Generation(1));
        let orders = record.orders();
        Self {
            record,
            slow: None,
            late: Late::default(),
            source: Source {
                guard: Guard::new(orders.source.0, orders.source.1),
                running: true,
                disk: 0,
            },
            former: None,
            recovery: Recovery {
                guard: Guard::new(orders.recovery.0, orders.recovery.1),
                instance: None,
                running: false,
                disk: NOTHING,
            },
            store: Store {
                fence: Generation(0),
                point: NOTHING,
            },
            broken: None,
        }
        .canonical()
    }

    /// The same state with the smallest numbers: generations by rank, disks by equality.
    #[must_use]
    pub fn canonical(mut self) -> Self {
        // 0 is "none so far" and stays. A world holds at most 33 numbers; many are equal.
        let mut numbers = [0_u64; 40];
        let mut used = 1;
        self.visit(&mut |number| {
            let known = numbers.get(..used).unwrap_or_default();
            if let Err(place) = known.binary_search(&number.0)
                && used < numbers.len()
            {
                numbers.copy_within(place..used, place + 1);
                if let Some(slot) = numbers.get_mut(place) {
                    *slot = number.0;
                }
                used += 1;
            }
        });
        let numbers = numbers.get(..used).unwrap_or_default();
        self.visit(&mut |number| {
            let rank = numbers.partition_point(|known| *known < number.0);
            number.0 = u64::try_from(rank).unwrap_or(u64::MAX);
        });
        let mut names: [(u8, u8); 3] = [(NOTHING, NOTHING); 3];
        let mut used = 0;
        for disk in [
            &mut self.source.disk,
            &mut self.store.point,
            &mut self.recovery.disk,
        ] {
            if matches!(*disk, NOTHING | TORN) {
                continue;
            }
            let known = names.iter().take(used).find(|(from, _)| from == disk);
            let name = if let Some((_, name)) = known {
                *name
            } else {
                let name = u8::try_from(used).unwrap_or(NOTHING);
                if let Some(slot) = names.get_mut(used) {
                    *slot = (*disk, name);
                }
                used += 1;
                name
            };
            *disk = name;
        }
        self
    }

    fn visit(&mut self, see: &mut impl FnMut(&mut Generation)) {
        visit_life(&mut self.record, see);
        if let Some(slow) = &mut self.slow {
            visit_life(slow, see);
        }
        if let Some((epoch, order)) = &mut self.late.to_source {
            see(epoch);
            visit_source(order, see);
        }
        if let Some((epoch, order)) = &mut self.late.to_recovery {
            see(epoch);
            visit_recovery(order, see);
        }
        if let Some((epoch, _)) = &mut self.late.from_source {
            see(epoch);
        }
        if let Some((epoch, _)) = &mut self.late.from_recovery {
            see(epoch);
        }
        see(&mut self.source.guard.epoch);
        visit_source(&mut self.source.guard.order, see);
        if let Some(former) = &mut self.former {
            see(&mut former.numbers.hold);
            see(&mut former.numbers.leave);
            see(&mut former.guard.epoch);
            visit_source(&mut former.guard.order, see);
            if let Some((epoch, order)) = &mut former.late {
                see(epoch);
                visit_source(order, see);
            }
        }
        see(&mut self.recovery.guard.epoch);
        visit_recovery(&mut self.recovery.guard.order, see);
        if let Some(instance) = &mut self.recovery.instance {
            see(instance);
        }
        see(&mut self.store.fence);
    }

    /// What the recovery engine sees.
    #[must_use]
    pub fn recovery_facts(&self) -> RecoveryFacts {
        RecoveryFacts {
            instance: self.recovery.instance,
            running: self.recovery.running,
        }
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

fn visit_life(life: &mut Life, see: &mut impl FnMut(&mut Generation)) {
    see(&mut life.item.generation);
    if let Some(instance) = &mut life.instance {
        see(instance);
    }
    see(&mut life.takes);
    see(&mut life.counter);
    see(&mut life.source_epoch);
    see(&mut life.recovery_epoch);
}

fn visit_source(order: &mut SourceOrder, see: &mut impl FnMut(&mut Generation)) {
    match order {
        SourceOrder::Replicate(licence)
        | SourceOrder::Run(licence)
        | SourceOrder::ShipRest(licence) => see(licence),
        SourceOrder::Hold
        | SourceOrder::Receive
        | SourceOrder::ReceiveRest
        | SourceOrder::LeaveRunning
        | SourceOrder::LeaveOff => {}
    }
}

fn visit_recovery(order: &mut RecoveryOrder, see: &mut impl FnMut(&mut Generation)) {
    match order {
        RecoveryOrder::Run { instance, takes } | RecoveryOrder::Leave { instance, takes } => {
            see(instance);
            see(takes);
        }
        RecoveryOrder::Absent | RecoveryOrder::Stop => {}
    }
}
