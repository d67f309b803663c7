//! What an engine may do with orders: obey none older than the newest it knows, start nothing without proof.
//!
//! The guard lies beside the VM and is on disk before an order is obeyed or confirmed. The engine asks it again before
//! each action, and takes no order between the question and the action: both are one critical section. By the time it
//! has taken an order that permits nothing to run, the hypervisor's own automatic start of the VM is off.
//!
//! A start takes time, and a fence that was read before it may be raised during it. So a source's engine that proved
//! its licence by the store reads the fence again after the start, and stops the VM when the licence fell below it.

use serde::{Deserialize, Serialize};

use super::orders::{RecoveryOrder, SourceOrder};
use crate::machine::Generation;

/// The newest order that an engine knows of one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Guard<Order> {
    /// Its number.
    pub epoch: Generation,
    /// The order.
    pub order: Order,
    /// All that it wants shipped, received or made independent is; on disk before it is reported, so that nothing is
    /// begun again after somebody may have relied on it.
    pub done: bool,
}

/// What became of an order that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Taken {
    /// Newer than the one known: in force now.
    New,
    /// Known already.
    Again,
    /// Older than the one known: to be dropped.
    Stale,
    /// The number of the known one with another content: a broken orchestrator. To be dropped and reported.
    Contradiction,
}

/// How the source's engine knows, just before it starts the VM, that its licence is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proof {
    /// It doesn't.
    None,
    /// The store's fence, read just now. A recovered VM raises it before it starts.
    Store(Generation),
    /// Number of the order in force: the orchestrator's answer to a question that was asked just now.
    Answer(Generation),
}

/// What the recovery engine sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecoveryFacts {
    /// The recovered VM that is there.
    pub instance: Option<Generation>,
    /// It runs.
    pub running: bool,
}

/// What a source reports of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SourceSaid {
    /// The VM runs by permission.
    Running,
    /// Off, and stays off.
    Held,
    /// Off, and the store has every write.
    Shipped,
    /// Off, and the disks have what the recovered VM's had; nearly, when that one runs.
    Received,
    /// Forgotten; off.
    Left,
}

/// What a recovery side reports of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RecoverySaid {
    /// The wanted VM runs.
    Running,
    /// It is off and kept.
    Stopped,
    /// Nothing is there.
    Absent,
    /// Forgotten; it runs on.
    Left,
}

// === impl Guard ===

impl<Order: Copy + Eq> Guard<Order> {
    /// Knows this order, which is not carried out yet.
    #[must_use]
    pub fn new(epoch: Generation, order: Order) -> Self {
        Self {
            epoch,
            order,
            done: false,
        }
    }

    /// Takes an order, if it is newer. The guard must be durable before the order is obeyed or confirmed.
    pub fn take(&mut self, epoch: Generation, order: Order) -> Taken {
        use std::cmp::Ordering as O;
        match epoch.cmp(&self.epoch) {
            O::Less => Taken::Stale,
            O::Equal if order == self.order => Taken::Again,
            O::Equal => Taken::Contradiction,
            O::Greater => {
                *self = Self::new(epoch, order);
                Taken::New
            }
        }
    }
}

impl Guard<SourceOrder> {
    /// Whether a running VM must be stopped.
    #[must_use]
    pub fn must_stop(&self) -> bool {
        !self.order.permits_running()
    }

    /// Whether the engine may start the VM now.
    #[must_use]
    pub fn may_start(&self, proof: Proof) -> bool {
        let licence = match self.order {
            SourceOrder::Replicate(licence) | SourceOrder::Run(licence) => licence,
            _ => return false,
        };
        match proof {
            Proof::None => false,
            Proof::Store(fence) => fence <= licence,
            Proof::Answer(epoch) => epoch == self.epoch,
        }
    }

    /// Whether the hypervisor may start the VM without us when the host starts.
    #[must_use]
    pub fn starts_by_itself(&self) -> bool {
        self.order == SourceOrder::LeaveRunning
    }

    /// Licence to write to the replica.
    #[must_use]
    pub fn may_ship(&self) -> Option<Generation> {
        match self.order {
            SourceOrder::Replicate(licence) | SourceOrder::ShipRest(licence) => Some(licence),
            _ => None,
        }
    }

    /// Whether the VM's disks may be written over with what the recovered VM has. Not again once the rest has been
    /// received: the VM may be started any moment.
    #[must_use]
    pub fn may_receive(&self, running: bool) -> bool {
        !running
            && match self.order {
                SourceOrder::Receive => true,
                SourceOrder::ReceiveRest => !self.done,
                _ => false,
            }
    }

    /// What there is to report of the order; nothing while it is being obeyed. Of `Replicate` the reports of
    /// replication tell.
    #[must_use]
    pub fn says(&self, running: bool) -> Option<SourceSaid> {
        match (self.order, running) {
            (SourceOrder::Run(_), true) => Some(SourceSaid::Running),
            (SourceOrder::Hold, false) => Some(SourceSaid::Held),
            (SourceOrder::ShipRest(_), false) if self.done => Some(SourceSaid::Shipped),
            (SourceOrder::Receive | SourceOrder::ReceiveRest, false) if self.done => {
                Some(SourceSaid::Received)
            }
            (SourceOrder::LeaveOff, false) => Some(SourceSaid::Left),
            _ => None,
        }
    }
}

impl Guard<RecoveryOrder> {
    /// Whether a running VM must be stopped: nothing may run, or another one is wanted.
    #[must_use]
    pub fn must_stop(&self, there: Option<Generation>) -> bool {
        match self.order {
            RecoveryOrder::Absent | RecoveryOrder::Stop => true,
            RecoveryOrder::Run { instance, .. } | RecoveryOrder::Leave { instance, .. } => {
                there != Some(instance)
            }
        }
    }

    /// Whether the VM that is there must be removed, once it is off.
    #[must_use]
    pub fn must_remove(&self, there: Option<Generation>) -> bool {
        there.is_some()
            && match self.order {
                RecoveryOrder::Absent => true,
                RecoveryOrder::Run { instance, .. } => there != Some(instance),
                RecoveryOrder::Stop | RecoveryOrder::Leave { .. } => false,
            }
    }

    /// The VM to make when none is there, and the fence to raise in the store before its point is read.
    #[must_use]
    pub fn must_make(&self, there: Option<Generation>) -> Option<(Generation, Generation)> {
        match (self.order, there) {
            (RecoveryOrder::Run { instance, takes }, None) => Some((instance, takes)),
            _ => None,
        }
    }

    /// Fence to raise in the store and then to start under; nothing when the VM may not start.
    #[must_use]
    pub fn may_start(&self, there: Option<Generation>) -> Option<Generation> {
        match self.order {
            RecoveryOrder::Run { instance, takes } | RecoveryOrder::Leave { instance, takes }
                if there == Some(instance) =>
            {
                Some(takes)
            }
            _ => None,
        }
    }

    /// Whether the hypervisor may start the VM without us when the host starts: only after we have let go. Before
    /// that the engine starts it, and every start raises the fence first.
    #[must_use]
    pub fn starts_by_itself(&self, there: Option<Generation>) -> bool {
        self.done && there.is_some() && matches!(self.order, RecoveryOrder::Leave { .. })
    }

    /// What there is to report of the order.
    #[must_use]
    pub fn says(&self, facts: RecoveryFacts) -> Option<RecoverySaid> {
        match (self.order, facts.instance, facts.running) {
            (RecoveryOrder::Absent, None, false) => Some(RecoverySaid::Absent),
            (RecoveryOrder::Run { instance, .. }, Some(there), true) if instance == there => {
                Some(RecoverySaid::Running)
            }
            (RecoveryOrder::Stop, _, false) => Some(RecoverySaid::Stopped),
            (RecoveryOrder::Leave { .. }, _, _) if self.done => Some(RecoverySaid::Left),
            _ => None,
        }
    }
}

/// The store's rule: who brings a number below the fence is refused, who brings a higher one raises it. `None` is
/// a refusal. `replica-store` enforces it for every write.
#[must_use]
pub fn fence(present: Generation, brought: Generation) -> Option<Generation> {
    (brought >= present).then_some(brought)
}
