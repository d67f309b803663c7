//! The rules under test: the production ones, each of which a test may break to see that the checker notices.

use protection::life::{
    self, Effect, Event, Former, Guard, Orders, Proof, RecoveryOrder, Refused, SourceOrder,
    SourceSaid, Taken,
};
use protection::{Generation, Life, Operation};

/// What the world asks of the product.
pub trait Rules: Sync {
    /// The state machine.
    ///
    /// # Errors
    /// As [`life::step`].
    fn step(&self, life: Life, event: Event) -> Result<(Life, Vec<Effect>), Refused> {
        life::step(life, event)
    }
    /// What a person may ask for.
    fn allowed(&self, life: &Life) -> Vec<Operation> {
        life.allowed_operations()
    }
    /// The orders in force.
    fn orders(&self, life: &Life) -> Orders {
        life.orders()
    }
    /// What a host that was the source before is told while the item is there.
    fn former_order(&self, former: Former) -> (Generation, SourceOrder) {
        former.held()
    }
    /// Whether the database takes a record from somebody who read the present one, or an older one.
    fn may_write(&self, read_the_present: bool) -> bool {
        read_the_present
    }
    /// An order arrives at the source.
    fn take_source(
        &self,
        guard: &mut Guard<SourceOrder>,
        epoch: Generation,
        order: SourceOrder,
    ) -> Taken {
        guard.take(epoch, order)
    }
    /// An order arrives at the recovery host.
    fn take_recovery(
        &self,
        guard: &mut Guard<RecoveryOrder>,
        epoch: Generation,
        order: RecoveryOrder,
    ) -> Taken {
        guard.take(epoch, order)
    }
    /// Whether the source's engine may start the VM.
    fn source_may_start(&self, guard: &Guard<SourceOrder>, proof: Proof) -> bool {
        guard.may_start(proof)
    }
    /// Whether the source's hypervisor starts the VM by itself.
    fn starts_by_itself(&self, guard: &Guard<SourceOrder>) -> bool {
        guard.starts_by_itself()
    }
    /// What the source reports.
    fn source_says(&self, guard: &Guard<SourceOrder>, running: bool) -> Option<SourceSaid> {
        guard.says(running)
    }
    /// Whether the source's disks may be written over.
    fn may_receive(&self, guard: &Guard<SourceOrder>, running: bool) -> bool {
        guard.may_receive(running)
    }
    /// The store's fence.
    fn fence(&self, present: Generation, brought: Generation) -> Option<Generation> {
        life::fence(present, brought)
    }
    /// Whether guards outlive a restart of their host.
    fn guards_are_durable(&self) -> bool {
        true
    }

    /// Whether messages and orchestrators are forgotten as soon as they are too old to have any effect. That is exact
    /// as long as numbers only grow, old numbers are refused and the database compares; each of the three is
    /// itself checked on every step. Rules that break one of them are explored without.
    fn forget_the_ineffective(&self) -> bool {
        true
    }
}

/// What runs in production.
#[derive(Debug, Clone, Copy)]
pub struct Production;

impl Rules for Production {}
