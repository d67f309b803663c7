//! `protectionState` of the API in every phase, and the same for people. Names that the original publishes are its
//! own; the others are made in the style of its successor's list.

use super::{Choice, Kind, Life, Phase};
use crate::machine::DrillState;

// === impl Life ===

impl Life {
    /// `protectionState` and `protectionStateDescription`.
    #[must_use]
    pub fn texts(&self) -> (&'static str, &'static str) {
        use Kind::{Planned, Unplanned};
        match self.phase {
            Phase::AtSource => self.texts_at_source(),
            Phase::StoppingSource(Planned) => (
                "PlannedFailoverInitiated",
                "Planned failover: shutting down the source virtual machine",
            ),
            Phase::StoppingSource(Unplanned) => (
                "UnplannedFailoverInitiated",
                "Failover: trying to shut down the source virtual machine",
            ),
            Phase::StartingRecovered(_, Choice::Changed) => (
                "ChangeRecoveryPointInitiated",
                "Changing the recovery point",
            ),
            Phase::StartingRecovered(Planned, Choice::First) => (
                "PlannedFailoverCompleting",
                "Planned failover: starting the recovered virtual machine",
            ),
            Phase::StartingRecovered(Unplanned, Choice::First) => (
                "UnplannedFailoverCompleting",
                "Failover: starting the recovered virtual machine",
            ),
            Phase::FailedOver(Planned) => {
                ("PlannedFailoverCommitRequired", "Planned failover finished")
            }
            Phase::FailedOver(Unplanned) => (
                "UnplannedFailoverCommitPendingStatesBegin",
                "Failover completed",
            ),
            Phase::UndoingFailover => (
                "CancelFailoverInProgressOnRecovery",
                "Removing the recovered virtual machine",
            ),
            Phase::Committed(Planned) => {
                ("PlannedFailoverStatesBegin", "Planned failover committed")
            }
            Phase::Committed(Unplanned) => ("UnplannedFailoverStatesBegin", "Failover committed"),
            Phase::Synchronising(_) => ("FailbackSynchronizing", "Failback: synchronizing data"),
            Phase::Synchronised(_) => (
                "FailbackWaitingForUserInputAfterDataSync",
                "Failback: data synchronized, waiting for user input",
            ),
            Phase::StoppingRecovered(_) => (
                "FailbackInitiated",
                "Failback: shutting down the recovered virtual machine",
            ),
            Phase::Receiving(_) => ("FailbackCompleting", "Failback: receiving the last changes"),
            Phase::StartingSource(_) => (
                "FailbackStartingOnPrimary",
                "Failback: starting the source virtual machine",
            ),
            Phase::FailedBack(_) => ("FailbackCommitRequired", "Failback finished"),
            Phase::UndoingFailback(_) => (
                "CancelFailoverInProgressOnPrimary",
                "Shutting down the source virtual machine",
            ),
            Phase::CommittingFailback => (
                "CommitFailoverInProgressOnRecovery",
                "Failback committed, removing the recovered virtual machine",
            ),
            Phase::FailbackCommitted => ("CommitFailoverCompleted", "Failback committed"),
            Phase::Leaving(_) => ("DisablingProtection", "Ending protection after failover"),
            Phase::Gone => ("UnprotectedStatesEnd", "Not protected"),
        }
    }

    fn texts_at_source(&self) -> (&'static str, &'static str) {
        let (state, description) = self.item.replication.texts();
        match self.item.drill {
            DrillState::WaitingForCleanup => (state, "Cleanup test failover pending"),
            _ => (state, description),
        }
    }

    /// `activeLocation` of the API.
    #[must_use]
    pub fn active_location(&self) -> &'static str {
        if self.is_at_recovery() {
            "Recovery"
        } else {
            "Primary"
        }
    }
}
