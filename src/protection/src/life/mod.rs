//! The whole life of a protected VM: protection, drills, failover, failback, and leaving.
//!
//! ```text
//!                 planned            shipped             running           commit
//!   AtSource ──► StoppingSource ──► StartingRecovered ──► FailedOver ───────► Committed ◄───────────┐
//!    ▲ ▲ │          │ cancel          ▲ │ cancel   point ◄─┘ │ undo           │  │ failback          │ cancel
//!    │ │ │ unplanned│                 │ ▼                    ▼                │  ▼                   │
//!    │ │ └──────────┼─────────────────┘ UndoingFailover ◄────┘                │ Synchronising ─► Synchronised
//!    │ └────────────┘                          │ recovered VM is gone         │                      │ complete
//!    └─────────────────────────────────────────┘                   full copy  └──► StoppingRecovered ◄┘
//!                                                                                      │ stopped
//!   AtSource ◄── FailbackCommitted ◄── CommittingFailback ◄── FailedBack ◄── StartingSource ◄── Receiving
//!        reverse replicate       copy removed            commit        running        all blocks are here
//!
//!   FailedOver, Committed ── complete migration, disable ──► Leaving ──► Gone
//! ```
//!
//! A phase says where the VM may run. From the phase follow two [orders](orders), one for each side, sent whole
//! and again until they are confirmed; so nothing depends on a message arriving, arriving once, or in order, and a
//! crash between writing the record and sending costs nothing: [`Life::orders`] gives them again.
//!
//! Every change of an order takes a new number from one counter. Engines keep the highest number they have seen and
//! obey no lower one ([`guard`]); a report counts only when it carries the number of the order in force.
//! The record is written by compare-and-swap, so of two orchestrators only one makes a step.
//!
//! # What is promised
//! * The right to run passes from one side to the other only after the first side has confirmed, under the order in
//!   force, that its VM is off and stays off. The one exception is an unplanned failover, which a person asks for
//!   because the source can't answer. Then the source's VM may still be running where nobody reaches it; that can't be
//!   excluded, and no product without a power switch excludes it. What is promised: we never *start* a second copy
//!   beside a recovered one, and the first contact with the returned source stops its VM and holds it.
//! * So that a returned source doesn't start its VM by itself, its engine takes over the automatic start when
//!   protection begins, and starts the VM only after proving that its licence is still in force: by an answer of the
//!   orchestrator to a question asked just now, or by the store, whose fence the recovered copy raised before it started.
//! * A held source is neither started nor written over until a person decides: undo (its own state wins), failback
//!   (the recovered VM's state wins) or complete migration (it stays off).
//! * The source may become another host ([`Event::SourceMoved`]) while the VM runs at the recovery side for good, also when
//!   the host of before was never heard of again. That one is a [`Former`] source: its VM is never started again, however long
//!   it was away, because its licence is fenced and each answer that it gets is an order to hold.
//! * A planned failover, and a failback, move the right to run only after the last write has arrived.
//!
//! What a person asks for is possible exactly when [`Life::allowed_operations`] names it. Beyond the tables of the
//! original it names `CancelFailover` in every phase that can be taken back, and `UnplannedFailover` while a failback is
//! not committed: the source may die then, and the recovered copy is still there.

pub mod event;
mod former;
pub mod guard;
pub mod orders;
mod step;
mod words;

use serde::{Deserialize, Serialize};

pub use event::{DataOption, Effect, Event, Refused, Request, ShutDown};
pub use former::Former;
pub use guard::{Guard, Proof, RecoveryFacts, RecoverySaid, SourceSaid, Taken, fence};
pub use orders::{Orders, RecoveryOrder, SourceOrder};
pub use step::step;

use crate::machine::{DrillState, Generation, Item, Operation, ReplicationState};

/// How the VM came to the recovery side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Source stopped in order, everything shipped.
    Planned,
    /// Whatever was in the store; the source may not have answered.
    Unplanned,
}

/// Which recovery point a recovered VM is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Choice {
    /// As the failover asked; in a planned one the state at the source's shutdown.
    First,
    /// Another one, chosen after the first was seen.
    Changed,
}

/// Who has still to confirm that it has let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Awaited {
    /// Both sides.
    Both,
    /// Only the source.
    Source,
    /// Only the recovery side.
    Recovery,
}

/// Where the VM is in its life. The kind is kept to the end, for the names of the states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Runs at the source; replication and drills are told by [`Life::item`].
    AtSource,
    /// The source is being shut down and ships the rest.
    StoppingSource(Kind),
    /// The recovered VM is being made and started.
    StartingRecovered(Kind, Choice),
    /// Runs at the recovery side, not committed.
    FailedOver(Kind),
    /// The recovered VM is being removed; then the source may run again.
    UndoingFailover,
    /// Runs at the recovery side for good.
    Committed(Kind),
    /// The source's disks receive what differs while the recovered VM runs.
    Synchronising(Kind),
    /// Only a short rest differs; a person says when to complete.
    Synchronised(Kind),
    /// The recovered VM is being shut down for the failback.
    StoppingRecovered(Kind),
    /// The source's disks receive the rest, or everything, while no copy runs.
    Receiving(Kind),
    /// The source's VM is being started.
    StartingSource(Kind),
    /// Runs at the source again, not committed; the recovered copy is kept, off.
    FailedBack(Kind),
    /// The source's VM is being stopped; then the recovered one starts again.
    UndoingFailback(Kind),
    /// The recovered copy is being removed.
    CommittingFailback,
    /// Runs at the source, not replicated.
    FailbackCommitted,
    /// The VM stays at the recovery side and we let go of it.
    Leaving(Awaited),
    /// Nothing is left but the record, which goes too.
    Gone,
}

/// What is known of the source's right to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Standing {
    /// It may run.
    Permitted,
    /// It may not, and has not confirmed: after an unplanned failover it may still be running out of reach.
    Unconfirmed,
    /// It confirmed under the order in force that its VM is off and stays off.
    Held,
}

/// The life of one protected VM: what is stored of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Life {
    /// Replication and drill. Its generation is also the source's licence to run and to write to the replica.
    pub item: Item,
    /// Where the VM is.
    pub phase: Phase,
    /// What is known of the source.
    pub standing: Standing,
    /// The recovered VM; a VM made from another point is another one.
    pub instance: Option<Generation>,
    /// Fence that the recovered VM raises in the store before it runs.
    pub takes: Generation,
    /// Highest number given out so far.
    pub counter: Generation,
    /// Number of the order in force at the source.
    pub source_epoch: Generation,
    /// Number of the order in force at the recovery side.
    pub recovery_epoch: Generation,
}

// === impl Life ===

impl Life {
    /// A fresh activation.
    #[must_use]
    pub fn new(generation: Generation) -> Self {
        Self::of(Item::new(generation))
    }

    /// The life of an item that was never failed over.
    #[must_use]
    pub fn of(item: Item) -> Self {
        let gone = item.replication == ReplicationState::Removed;
        Self {
            phase: if gone { Phase::Gone } else { Phase::AtSource },
            standing: Standing::Permitted,
            instance: None,
            takes: Generation(0),
            counter: item.generation,
            source_epoch: item.generation,
            recovery_epoch: item.generation,
            item,
        }
    }

    /// The orders in force, with their numbers. Sending them again is always right.
    #[must_use]
    pub fn orders(&self) -> Orders {
        Orders {
            source: (self.source_epoch, orders::source(self)),
            recovery: (self.recovery_epoch, orders::recovery(self)),
        }
    }

    /// What may be asked now, in the order of the original's tables. [`step`] accepts exactly these.
    #[must_use]
    pub fn allowed_operations(&self) -> Vec<Operation> {
        use Operation as O;
        match self.phase {
            Phase::AtSource => self.allowed_at_source(),
            Phase::FailedOver(_) => vec![
                O::CompleteMigration,
                O::Commit,
                O::DisableProtection,
                O::ChangePit,
                O::CancelFailover,
            ],
            Phase::Committed(_) => {
                let mut allowed = vec![O::CompleteMigration, O::DisableProtection];
                if self.standing == Standing::Held {
                    allowed.push(O::Failback);
                }
                allowed
            }
            Phase::Synchronised(_) => vec![O::FinalizeFailback, O::CancelFailover],
            Phase::FailedBack(_) => vec![O::Commit, O::CancelFailover, O::UnplannedFailover],
            Phase::StartingSource(_) => vec![O::CancelFailover, O::UnplannedFailover],
            Phase::UndoingFailback(_) => vec![O::UnplannedFailover],
            Phase::FailbackCommitted => vec![O::ReverseReplicate, O::DisableProtection],
            Phase::StoppingSource(_)
            | Phase::StartingRecovered(..)
            | Phase::Synchronising(_)
            | Phase::StoppingRecovered(_)
            | Phase::Receiving(_) => vec![O::CancelFailover],
            Phase::UndoingFailover
            | Phase::CommittingFailback
            | Phase::Leaving(_)
            | Phase::Gone => Vec::new(),
        }
    }

    fn allowed_at_source(&self) -> Vec<Operation> {
        let of_item = self.item.allowed_operations();
        let mut allowed = Vec::new();
        if of_item.contains(&Operation::TestFailover) {
            allowed.push(Operation::PlannedFailover);
        }
        // In a disaster any point is better than none, whatever replication is doing.
        if self.item.copied_once && self.item.drill == DrillState::None && self.item.is_active() {
            allowed.push(Operation::UnplannedFailover);
        }
        allowed.extend(of_item);
        allowed
    }

    /// Whether the VM belongs to the recovery side (`activeLocation` `Recovery`, else `Primary`).
    #[must_use]
    pub fn is_at_recovery(&self) -> bool {
        matches!(
            self.phase,
            Phase::FailedOver(_)
                | Phase::UndoingFailover
                | Phase::Committed(_)
                | Phase::Synchronising(_)
                | Phase::Synchronised(_)
                | Phase::StoppingRecovered(_)
                | Phase::Receiving(_)
                | Phase::StartingSource(_)
                | Phase::Leaving(_)
        )
    }
}

#[cfg(test)]
mod tests;
