//! Orders: what follows from a phase for each side. Whole, idempotent, safe to repeat.
//!
//! | phase | source | recovery side |
//! |---|---|---|
//! | `AtSource` | replicate (may run) | absent |
//! | `StoppingSource` | stop, ship the rest, stay off | absent |
//! | `StartingRecovered`, `FailedOver`, `Committed` | hold | run |
//! | `UndoingFailover` | hold | absent |
//! | `Synchronising`, `Synchronised` | receive | run |
//! | `StoppingRecovered` | receive | stop |
//! | `Receiving` | receive the rest | stop |
//! | `StartingSource`, `FailedBack` | run | stop |
//! | `UndoingFailback` | hold | stop |
//! | `CommittingFailback`, `FailbackCommitted` | run | absent |
//! | `Leaving` | leave, off | leave, running |

use serde::{Deserialize, Serialize};

use super::{Life, Phase};
use crate::machine::Generation;

/// What the source shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SourceOrder {
    /// The VM may run, and is replicated, under this licence.
    Replicate(Generation),
    /// The VM may run under this licence; nothing is replicated.
    Run(Generation),
    /// Shut the VM down, ship the rest under this licence, stay off.
    ShipRest(Generation),
    /// Stay off.
    Hold,
    /// Stay off; take from the recovered VM what differs, again and again.
    Receive,
    /// Stay off; the recovered VM is off too: take what still differs.
    ReceiveRest,
    /// Forget the VM; it may run, as before we came.
    LeaveRunning,
    /// Forget the VM; it stays off, because it lives elsewhere now.
    LeaveOff,
}

/// What the recovery side shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RecoveryOrder {
    /// No recovered VM; one that is there is stopped and removed.
    Absent,
    /// Make this VM if it isn't there (another one is removed first), raise the store's fence, let it run.
    Run {
        /// Which recovered VM.
        instance: Generation,
        /// Fence to raise before every start.
        takes: Generation,
    },
    /// Shut it down and keep it.
    Stop,
    /// As `Run`; and make the VM independent of the replica, then forget it: it runs on.
    Leave {
        /// Which recovered VM.
        instance: Generation,
        /// Fence to raise before every start.
        takes: Generation,
    },
}

/// The orders in force, each with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Orders {
    /// For the source.
    pub source: (Generation, SourceOrder),
    /// For the recovery side.
    pub recovery: (Generation, RecoveryOrder),
}

// === impl SourceOrder ===

impl SourceOrder {
    /// Whether the source's VM may run.
    #[must_use]
    pub fn permits_running(self) -> bool {
        matches!(self, Self::Replicate(_) | Self::Run(_) | Self::LeaveRunning)
    }
}

/// The source's order in this phase.
#[must_use]
pub fn source(life: &Life) -> SourceOrder {
    let licence = life.item.generation;
    match life.phase {
        Phase::AtSource if life.item.is_active() => SourceOrder::Replicate(licence),
        Phase::AtSource => SourceOrder::LeaveRunning,
        Phase::StoppingSource(_) => SourceOrder::ShipRest(licence),
        Phase::StartingRecovered(..)
        | Phase::FailedOver(_)
        | Phase::UndoingFailover
        | Phase::Committed(_)
        | Phase::UndoingFailback(_) => SourceOrder::Hold,
        Phase::Synchronising(_) | Phase::Synchronised(_) | Phase::StoppingRecovered(_) => {
            SourceOrder::Receive
        }
        Phase::Receiving(_) => SourceOrder::ReceiveRest,
        Phase::StartingSource(_)
        | Phase::FailedBack(_)
        | Phase::CommittingFailback
        | Phase::FailbackCommitted => SourceOrder::Run(licence),
        Phase::Leaving(_) => SourceOrder::LeaveOff,
        // Whoever is asked after the end gives back what the end was.
        Phase::Gone if life.instance.is_some() => SourceOrder::LeaveOff,
        Phase::Gone => SourceOrder::LeaveRunning,
    }
}

/// The recovery side's order in this phase.
#[must_use]
pub fn recovery(life: &Life) -> RecoveryOrder {
    match life.phase {
        Phase::AtSource
        | Phase::StoppingSource(_)
        | Phase::UndoingFailover
        | Phase::CommittingFailback
        | Phase::FailbackCommitted => RecoveryOrder::Absent,
        Phase::StartingRecovered(..)
        | Phase::FailedOver(_)
        | Phase::Committed(_)
        | Phase::Synchronising(_)
        | Phase::Synchronised(_) => of_instance(life, |instance, takes| RecoveryOrder::Run {
            instance,
            takes,
        }),
        Phase::StoppingRecovered(_)
        | Phase::Receiving(_)
        | Phase::StartingSource(_)
        | Phase::FailedBack(_)
        | Phase::UndoingFailback(_) => RecoveryOrder::Stop,
        Phase::Leaving(_) | Phase::Gone => of_instance(life, |instance, takes| {
            RecoveryOrder::Leave { instance, takes }
        }),
    }
}

/// Without a recovered VM nothing shall run.
fn of_instance(
    life: &Life,
    order: impl Fn(Generation, Generation) -> RecoveryOrder,
) -> RecoveryOrder {
    life.instance.map_or(RecoveryOrder::Absent, |instance| {
        order(instance, life.takes)
    })
}
