//! The way round, the original's tables, and hostile orders of events. `tests/model` explores the rest.

use proptest::prelude::*;

use super::*;
use crate::machine::{self, Observed};

fn ask(life: Life, request: Request) -> Life {
    step(life, Event::Request(request)).expect("possible").0
}

fn source(life: Life, said: SourceSaid) -> Life {
    let epoch = life.source_epoch;
    step(life, Event::Source { epoch, said }).expect("report").0
}

fn recovery(life: Life, said: RecoverySaid) -> Life {
    let epoch = life.recovery_epoch;
    step(life, Event::Recovery { epoch, said })
        .expect("report")
        .0
}

fn protected(life: Life) -> Life {
    let report = machine::Event::Report {
        generation: life.item.generation,
        observed: Observed::Protected,
    };
    step(life, Event::Item(report)).expect("report").0
}

fn names(life: &Life) -> Vec<&'static str> {
    life.allowed_operations()
        .into_iter()
        .map(Operation::as_str)
        .collect()
}

fn state(life: &Life) -> (&'static str, &'static str) {
    (life.texts().0, life.active_location())
}

fn failed_over_as_planned() -> Life {
    let life = protected(Life::new(Generation(1)));
    let life = ask(life, Request::PlannedFailover);
    let life = source(life, SourceSaid::Shipped);
    recovery(life, RecoverySaid::Running)
}

fn failed_over_without_the_source() -> Life {
    let life = protected(Life::new(Generation(1)));
    let life = ask(life, Request::UnplannedFailover(ShutDown::Skip));
    recovery(life, RecoverySaid::Running)
}

#[test]
fn the_whole_circle_ends_where_it_began() {
    let life = ask(failed_over_as_planned(), Request::Commit);
    let life = ask(life, Request::Failback(DataOption::MinimiseDowntime));
    assert!(matches!(life.orders().source.1, SourceOrder::Receive));
    assert!(matches!(
        life.orders().recovery.1,
        RecoveryOrder::Run { .. }
    ));
    let life = source(life, SourceSaid::Received);
    let life = ask(life, Request::FinalizeFailback);
    let life = recovery(life, RecoverySaid::Stopped);
    let life = source(life, SourceSaid::Received);
    assert!(matches!(life.orders().source.1, SourceOrder::Run(licence) if licence > life.takes));
    let life = source(life, SourceSaid::Running);
    let life = ask(life, Request::Commit);
    let life = recovery(life, RecoverySaid::Absent);
    assert_eq!(names(&life), ["ReverseReplicate", "DisableProtection"]);
    let life = ask(life, Request::ReverseReplicate);
    assert_eq!(
        names(&life),
        ["UnplannedFailover", "DisableProtection"],
        "in a disaster the points of before are better than none"
    );
    let life = protected(life);
    assert_eq!(state(&life), ("Protected", "Primary"));
    assert!(names(&life).contains(&"PlannedFailover"));
}

#[test]
fn states_and_operations_are_the_originals() {
    let life = protected(Life::new(Generation(1)));
    assert_eq!(state(&life), ("Protected", "Primary"));
    let mut of_original = names(&life);
    of_original.retain(|name| *name != "RepairReplication");
    of_original.sort_unstable();
    assert_eq!(
        of_original,
        [
            "DisableProtection",
            "PlannedFailover",
            "TestFailover",
            "UnplannedFailover"
        ]
    );
    // `CancelFailover` is ours: undo before commit.
    let commit_pending = [
        "CompleteMigration",
        "Commit",
        "DisableProtection",
        "ChangePit",
        "CancelFailover",
    ];
    let planned = failed_over_as_planned();
    assert_eq!(
        state(&planned),
        ("PlannedFailoverCommitRequired", "Recovery")
    );
    assert_eq!(planned.texts().1, "Planned failover finished");
    assert_eq!(names(&planned), commit_pending);
    let unplanned = failed_over_without_the_source();
    assert_eq!(
        state(&unplanned),
        ("UnplannedFailoverCommitPendingStatesBegin", "Recovery")
    );
    assert_eq!(unplanned.texts().1, "Failover completed");
    assert_eq!(names(&unplanned), commit_pending);
    let committed = ask(planned, Request::Commit);
    assert_eq!(
        state(&committed),
        ("PlannedFailoverStatesBegin", "Recovery")
    );
    assert_eq!(committed.texts().1, "Planned failover committed");
    assert_eq!(
        names(&committed),
        ["CompleteMigration", "DisableProtection", "Failback"]
    );
}

#[test]
fn only_the_cleanup_is_possible_while_a_drill_waits_for_it() {
    let mut life = protected(Life::new(Generation(1)));
    for event in [machine::Event::DrillStart, machine::Event::DrillReady] {
        life = step(life, Event::Item(event)).expect("possible").0;
    }
    assert_eq!(names(&life), ["TestFailoverCleanup"]);
    assert_eq!(life.texts(), ("Protected", "Cleanup test failover pending"));
    assert!(step(life, Event::Request(Request::PlannedFailover)).is_err());
}

#[test]
fn a_returned_source_is_held_and_not_written_over_until_a_person_decides() {
    let life = ask(failed_over_without_the_source(), Request::Commit);
    assert_eq!(life.standing, Standing::Unconfirmed);
    assert!(
        !names(&life).contains(&"Failback"),
        "nobody knows what the source has"
    );
    assert_eq!(life.orders().source.1, SourceOrder::Hold);
    let life = source(life, SourceSaid::Held);
    assert_eq!(life.orders().source.1, SourceOrder::Hold);
    assert!(names(&life).contains(&"Failback"));
}

#[test]
fn a_source_that_does_not_answer_does_not_stop_an_unplanned_failover_but_a_planned_one() {
    let life = protected(Life::new(Generation(1)));
    let planned = ask(life, Request::PlannedFailover);
    assert_eq!(
        step(planned, Event::ShutDownFailed),
        Ok((planned, Vec::new()))
    );
    let unplanned = ask(life, Request::UnplannedFailover(ShutDown::Attempt));
    let (next, effects) = step(unplanned, Event::ShutDownFailed).expect("report");
    assert_eq!(
        next.phase,
        Phase::StartingRecovered(Kind::Unplanned, Choice::First)
    );
    assert!(matches!(
        effects.first(),
        Some(Effect::Source(_, SourceOrder::Hold))
    ));
}

#[test]
fn cancelling_before_anything_was_made_keeps_the_activation() {
    let life = protected(Life::new(Generation(1)));
    let cancelled = ask(ask(life, Request::PlannedFailover), Request::CancelFailover);
    assert_eq!(cancelled.item, life.item);
    assert_eq!(cancelled.phase, Phase::AtSource);
    assert!(
        cancelled.source_epoch > life.source_epoch,
        "it must be told to go on"
    );
}

#[test]
fn undo_waits_for_the_recovered_vm_and_then_licenses_the_source_above_its_fence() {
    let life = ask(failed_over_without_the_source(), Request::CancelFailover);
    assert_eq!(life.orders().source.1, SourceOrder::Hold);
    let fence = life.takes;
    let life = recovery(life, RecoverySaid::Absent);
    assert!(matches!(life.orders().source.1, SourceOrder::Replicate(licence) if licence > fence));
    assert!(life.item.copied_once, "its points are still there");
    assert!(names(&life).contains(&"UnplannedFailover"));
}

#[test]
fn an_undone_failover_leaves_drills_possible_though_the_source_says_nothing() {
    let before = protected(Life::new(Generation(1)));
    let life = ask(before, Request::UnplannedFailover(ShutDown::Skip));
    let life = recovery(life, RecoverySaid::Running);
    let life = recovery(ask(life, Request::CancelFailover), RecoverySaid::Absent);
    assert_eq!(life.phase, Phase::AtSource);
    assert_eq!(life.item.replication, before.item.replication);
    assert_eq!(life.texts(), before.texts());
    assert!(names(&life).contains(&"TestFailover"), "{:?}", names(&life));
    let started = step(life, Event::Item(machine::Event::DrillStart)).expect("a drill");
    assert_eq!(started.0.item.drill, crate::DrillState::Starting);
    // A newer activation may still turn up.
    let fenced = Event::Item(machine::Event::Report {
        generation: life.item.generation,
        observed: Observed::Fenced,
    });
    let (life, _) = step(life, fenced).expect("report");
    assert!(!names(&life).contains(&"TestFailover"));
}

#[test]
fn each_failback_ships_under_a_number_of_its_own() {
    let start = ask(failed_over_as_planned(), Request::Commit);
    let begun = ask(start, Request::Failback(DataOption::MinimiseDowntime));
    for cancelled in [begun, source(begun, SourceSaid::Received)] {
        let life = ask(cancelled, Request::CancelFailover);
        assert_eq!(life.phase, Phase::Committed(Kind::Planned));
        let second = ask(life, Request::Failback(DataOption::MinimiseDowntime));
        assert!(
            second.takes > begun.takes,
            "the first one's points don't count"
        );
        assert_eq!(
            second.instance, begun.instance,
            "the recovered VM is the same"
        );
    }
}

#[test]
fn a_source_that_dies_during_the_failback_is_left_for_the_recovered_vm() {
    let life = ask(failed_over_as_planned(), Request::Commit);
    let life = ask(life, Request::Failback(DataOption::FullDownload));
    let life = recovery(life, RecoverySaid::Stopped);
    let life = source(life, SourceSaid::Received);
    let licence = life.item.generation;
    let life = ask(life, Request::UnplannedFailover(ShutDown::Skip));
    assert_eq!(life.phase, Phase::Committed(Kind::Unplanned));
    assert!(
        life.takes > licence,
        "a source that comes back can't prove its licence"
    );
    assert_eq!(life.standing, Standing::Unconfirmed);
}

#[test]
fn a_migration_ends_when_both_sides_have_let_go() {
    let life = ask(failed_over_as_planned(), Request::CompleteMigration);
    let life = recovery(life, RecoverySaid::Left);
    assert!(matches!(life.phase, Phase::Leaving(Awaited::Source)));
    let (life, effects) = step(
        life,
        Event::Source {
            epoch: life.source_epoch,
            said: SourceSaid::Left,
        },
    )
    .expect("report");
    assert_eq!(life.phase, Phase::Gone);
    assert!(effects.contains(&Effect::Item(machine::Effect::RemoveRecord)));
}

#[test]
fn a_refusal_says_what_is_possible() {
    let error = step(
        failed_over_as_planned(),
        Event::Request(Request::FinalizeFailback),
    )
    .expect_err("not now");
    assert_eq!(
        error.to_string(),
        "FinalizeFailback is not possible while the protected VM is in state `PlannedFailoverCommitRequired`; \
         possible are: CompleteMigration, Commit, DisableProtection, ChangePit, CancelFailover"
    );
}

#[test]
fn an_engine_starts_nothing_without_proof() {
    let guard = Guard::new(Generation(4), SourceOrder::Replicate(Generation(3)));
    assert!(!guard.may_start(Proof::None));
    assert!(guard.may_start(Proof::Store(Generation(3))));
    assert!(!guard.may_start(Proof::Store(Generation(5))), "superseded");
    assert!(guard.may_start(Proof::Answer(Generation(4))));
    assert!(
        !guard.may_start(Proof::Answer(Generation(6))),
        "there is a newer order"
    );
    let held = Guard::new(Generation(4), SourceOrder::Hold);
    assert!(!held.may_start(Proof::Answer(Generation(4))));
}

#[test]
fn a_source_that_moves_is_a_host_that_nobody_has_heard_of_and_the_former_one_counts_no_more() {
    for standing in [Standing::Held, Standing::Unconfirmed] {
        let before = Life {
            standing,
            ..ask(failed_over_as_planned(), Request::Commit)
        };
        let (life, effects) = step(before, Event::SourceMoved).expect("committed");
        let told = (life.source_epoch, SourceOrder::Hold);
        assert_eq!(effects, [Effect::Source(told.0, told.1)]);
        assert_eq!(life.orders().source, told);
        assert_eq!(
            life.orders().recovery,
            before.orders().recovery,
            "it runs on"
        );
        assert_eq!(life.standing, Standing::Unconfirmed);
        assert!(
            !names(&life).contains(&"Failback"),
            "not before it has answered"
        );
        let former = Former::left(&before, &life);
        let stale = Event::Source {
            epoch: former.held().0,
            said: SourceSaid::Held,
        };
        assert_eq!(step(life, stale), Ok((life, Vec::new())));
        assert!(former.held().0 < former.let_go().0 && former.let_go().0 < told.0);
        let life = source(life, SourceSaid::Held);
        assert!(names(&life).contains(&"Failback"));
        // It may move once more, back too: every number is newer than all that anybody knows.
        let (again, _) = step(life, Event::SourceMoved).expect("still committed");
        assert!(Former::left(&life, &again).leave > life.source_epoch);
    }
    for elsewhere in [
        failed_over_as_planned(),
        ask(
            ask(failed_over_as_planned(), Request::Commit),
            Request::Failback(DataOption::MinimiseDowntime),
        ),
        protected(Life::new(Generation(1))),
    ] {
        step(elsewhere, Event::SourceMoved).expect_err("only when it is committed");
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    let requests = prop_oneof![
        Just(Request::PlannedFailover),
        Just(Request::UnplannedFailover(ShutDown::Attempt)),
        Just(Request::UnplannedFailover(ShutDown::Skip)),
        Just(Request::ChangePit),
        Just(Request::Commit),
        Just(Request::CancelFailover),
        Just(Request::CompleteMigration),
        Just(Request::Failback(DataOption::MinimiseDowntime)),
        Just(Request::Failback(DataOption::FullDownload)),
        Just(Request::FinalizeFailback),
        Just(Request::ReverseReplicate),
    ];
    let source = prop_oneof![
        Just(SourceSaid::Running),
        Just(SourceSaid::Held),
        Just(SourceSaid::Shipped),
        Just(SourceSaid::Received),
        Just(SourceSaid::Left),
    ];
    let recovery = prop_oneof![
        Just(RecoverySaid::Running),
        Just(RecoverySaid::Stopped),
        Just(RecoverySaid::Absent),
        Just(RecoverySaid::Left),
    ];
    let number = || (0..12u64).prop_map(Generation);
    prop_oneof![
        6 => requests.prop_map(Event::Request),
        6 => (number(), source).prop_map(|(epoch, said)| Event::Source { epoch, said }),
        6 => (number(), recovery).prop_map(|(epoch, said)| Event::Recovery { epoch, said }),
        1 => Just(Event::ShutDownFailed),
        1 => Just(Event::SourceMoved),
        1 => Just(Event::Item(machine::Event::DrillStart)),
        1 => Just(Event::Item(machine::Event::DrillAbort)),
        1 => any::<bool>().prop_map(|delete_replica| Event::Item(machine::Event::Disable { delete_replica })),
        1 => Just(Event::Item(machine::Event::Purge)),
        1 => number().prop_map(|generation| Event::Item(machine::Event::Activate { generation })),
        3 => number().prop_map(|generation| Event::Item(machine::Event::Report { generation, observed: Observed::Protected })),
    ]
}

fn run(events: &[Event]) -> Life {
    events
        .iter()
        .fold(protected(Life::new(Generation(1))), |life, event| {
            step(life, *event).map_or(life, |(next, _)| next)
        })
}

proptest! {
    #[test]
    fn orders_change_only_with_their_number_and_numbers_only_grow(
        events in prop::collection::vec(any_event(), 0..40),
        event in any_event(),
    ) {
        let before = run(&events);
        if let Ok((after, effects)) = step(before, event) {
            let (old, new) = (before.orders(), after.orders());
            // Another host gets the same order under a number of its own.
            let moved = event == Event::SourceMoved;
            prop_assert_eq!(old.source.1 == new.source.1 && !moved, old.source.0 == new.source.0);
            prop_assert_eq!(old.recovery.1 == new.recovery.1, old.recovery.0 == new.recovery.0);
            prop_assert!(new.source.0 >= old.source.0 && new.recovery.0 >= old.recovery.0);
            prop_assert!(after.counter >= before.counter && after.counter >= after.source_epoch.max(after.recovery_epoch));
            let told = effects.iter().any(|effect| matches!(effect, Effect::Source(..)));
            prop_assert_eq!(told, old.source != new.source);
        }
    }

    #[test]
    fn a_report_about_an_order_that_is_not_in_force_changes_nothing(
        events in prop::collection::vec(any_event(), 0..40),
        number in 0..12u64,
    ) {
        let life = run(&events);
        prop_assume!(Generation(number) != life.source_epoch);
        for said in [SourceSaid::Running, SourceSaid::Held, SourceSaid::Shipped, SourceSaid::Received, SourceSaid::Left] {
            prop_assert_eq!(step(life, Event::Source { epoch: Generation(number), said }), Ok((life, Vec::new())));
        }
    }

    #[test]
    fn a_guard_that_refused_a_number_refuses_it_for_ever(numbers in prop::collection::vec(0..12u64, 1..20)) {
        let mut guard = Guard::new(Generation(0), SourceOrder::Hold);
        for number in numbers {
            let before = guard;
            match guard.take(Generation(number), SourceOrder::Replicate(Generation(number))) {
                Taken::New => prop_assert!(guard.epoch > before.epoch),
                Taken::Again | Taken::Stale | Taken::Contradiction => prop_assert_eq!(guard, before),
            }
            prop_assert!(guard.epoch >= Generation(number));
        }
    }
}

#[test]
fn whether_the_replica_goes_may_be_said_again_while_protection_ends() {
    let mut life = protected(Life::new(Generation(1)));
    let mut numbers = Vec::new();
    for delete_replica in [true, true, false] {
        let disable = machine::Event::Disable { delete_replica };
        life = step(life, disable).expect("possible").0;
        let chosen = life.item.disabled.expect("protection ends");
        assert_eq!(chosen.delete_replica, delete_replica);
        numbers.push(life.source_epoch);
    }
    // The order is the same all along: the VM runs on.
    assert!(numbers.windows(2).all(|pair| pair[0] == pair[1]));
}
