//! What people ask for, and by which events.

use protection::life::{DataOption, Event, Request, ShutDown};
use protection::machine::{self, Operation};

/// Every operation of the API.
pub const ALL_OPERATIONS: [Operation; 13] = [
    Operation::DisableProtection,
    Operation::TestFailover,
    Operation::TestFailoverCleanup,
    Operation::RepairReplication,
    Operation::PlannedFailover,
    Operation::UnplannedFailover,
    Operation::ChangePit,
    Operation::Commit,
    Operation::CancelFailover,
    Operation::CompleteMigration,
    Operation::Failback,
    Operation::FinalizeFailback,
    Operation::ReverseReplicate,
];

/// Whether it belongs to drills and repairs.
#[must_use]
pub fn is_of_drill(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::TestFailover | Operation::TestFailoverCleanup | Operation::RepairReplication
    )
}

/// The events by which a person does it.
#[must_use]
pub fn events_of(operation: Operation) -> Vec<Event> {
    let ask = |request| vec![Event::Request(request)];
    match operation {
        Operation::DisableProtection => vec![Event::Item(machine::Event::Disable {
            delete_replica: false,
        })],
        Operation::TestFailover => vec![Event::Item(machine::Event::DrillStart)],
        Operation::TestFailoverCleanup => vec![Event::Item(machine::Event::CleanupStart)],
        Operation::RepairReplication => vec![Event::Item(machine::Event::Resynchronise)],
        Operation::PlannedFailover => ask(Request::PlannedFailover),
        Operation::UnplannedFailover => vec![
            Event::Request(Request::UnplannedFailover(ShutDown::Attempt)),
            Event::Request(Request::UnplannedFailover(ShutDown::Skip)),
        ],
        Operation::ChangePit => ask(Request::ChangePit),
        Operation::Commit => ask(Request::Commit),
        Operation::CancelFailover => ask(Request::CancelFailover),
        Operation::CompleteMigration => ask(Request::CompleteMigration),
        Operation::Failback => vec![
            Event::Request(Request::Failback(DataOption::MinimiseDowntime)),
            Event::Request(Request::Failback(DataOption::FullDownload)),
        ],
        Operation::FinalizeFailback => ask(Request::FinalizeFailback),
        Operation::ReverseReplicate => ask(Request::ReverseReplicate),
    }
}
