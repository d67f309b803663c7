//! What happens to a life, what follows, and why something is refused.

use super::guard::{RecoverySaid, SourceSaid};
use super::orders::{RecoveryOrder, SourceOrder};
use crate::machine::{self, Generation, Refusal};

/// How a failback moves data; the API's `dataSyncOption`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataOption {
    /// Synchronise while the recovered VM runs, then a short rest when a person says so.
    MinimiseDowntime,
    /// Stop the recovered VM first, then move what is needed.
    FullDownload,
}

/// Whether an unplanned failover tries to shut the source down first; the API's `sourceSiteOperations`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ShutDown {
    /// Try; go on when it fails.
    Attempt,
    /// The source is lost: don't lose time.
    Skip,
}

/// What a person asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    /// Move to the recovery side without loss.
    PlannedFailover,
    /// Move to the recovery side with what is in the store. While a failback is not committed: back to the recovered VM.
    UnplannedFailover(ShutDown),
    /// Another recovery point, before commit.
    ChangePit,
    /// Accept the failover or the failback.
    Commit,
    /// Take back what is not committed.
    CancelFailover,
    /// Stay at the recovery side and end protection.
    CompleteMigration,
    /// Move back to the source. The source's own state since the failover, if it has one, is given up.
    Failback(DataOption),
    /// Stop the recovered VM and move the rest.
    FinalizeFailback,
    /// Protect again after a committed failback.
    ReverseReplicate,
}

/// What happens to a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A person asks for something. Drills, disabling and repair are [`machine::Event`]s.
    Request(Request),
    /// The source reports. Of another order than the one in force: ignored.
    Source {
        /// Number of the order that the report is about.
        epoch: Generation,
        /// What it says.
        said: SourceSaid,
    },
    /// The recovery side reports.
    Recovery {
        /// Number of the order that the report is about.
        epoch: Generation,
        /// What it says.
        said: RecoverySaid,
    },
    /// The source is another host from now on: whoever was it must stay off for good ([`super::Former`]), and may never have
    /// heard of anything. Only while the VM runs at the recovery side for good.
    SourceMoved,
    /// The attempt to shut the source down failed or took too long: an unplanned failover goes on without.
    ShutDownFailed,
    /// Replication, drill, disabling.
    Item(machine::Event),
}

/// What the caller has to do after the new state is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Tell the source. A lost one is given again by [`super::Life::orders`].
    Source(Generation, SourceOrder),
    /// Tell the recovery side.
    Recovery(Generation, RecoveryOrder),
    /// As the replication wants it.
    Item(machine::Effect),
}

/// Why an event is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Not in this phase.
    #[error(
        "{event} is not possible while the protected VM is in state `{state}`; possible are: {allowed}"
    )]
    Phase {
        /// What was asked.
        event: &'static str,
        /// `protectionState` of the API.
        state: &'static str,
        /// `allowedOperations` of the API.
        allowed: String,
    },
    /// Replication or drill don't allow it.
    #[error(transparent)]
    Item(#[from] Refusal),
}

// === impl Event ===

impl From<machine::Event> for Event {
    fn from(event: machine::Event) -> Self {
        Self::Item(event)
    }
}

// === impl Request ===

impl Request {
    /// The operation that allows it.
    #[must_use]
    pub fn operation(self) -> machine::Operation {
        use machine::Operation as O;
        match self {
            Self::PlannedFailover => O::PlannedFailover,
            Self::UnplannedFailover(_) => O::UnplannedFailover,
            Self::ChangePit => O::ChangePit,
            Self::Commit => O::Commit,
            Self::CancelFailover => O::CancelFailover,
            Self::CompleteMigration => O::CompleteMigration,
            Self::Failback(_) => O::Failback,
            Self::FinalizeFailback => O::FinalizeFailback,
            Self::ReverseReplicate => O::ReverseReplicate,
        }
    }
}
