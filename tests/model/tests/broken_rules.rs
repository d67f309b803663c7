//! The checker has teeth: each of these broken rules is found, by the promise that it breaks.

use model_check::explore::{WAY_OUT, explore};
use model_check::rules::{Production, Rules};
use model_check::steps::{CALM, Channel, Model, Moves, Settings};
use protection::life::{
    self, Effect, Event, Former, Guard, Phase, Proof, RecoveryOrder, RecoverySaid, Refused,
    Request, SourceOrder, SourceSaid, Standing, Taken,
};
use protection::{Generation, Life, Operation};

const TWO_ORCHESTRATORS: Settings = Settings { slow: true, ..CALM };
const LATE_TO_SOURCE: Settings = Settings {
    late: &[Channel::ToSource],
    ..CALM
};
const LATE_TO_RECOVERY: Settings = Settings {
    late: &[Channel::ToRecovery],
    ..CALM
};
const LATE_REPORTS: Settings = Settings {
    late: &[Channel::FromSource, Channel::FromRecovery],
    ..CALM
};

const MOVES: Settings = Settings {
    moves: Moves::Once,
    stubborn: true,
    ..CALM
};

type Stepped = Result<(Life, Vec<Effect>), Refused>;

#[track_caller]
fn finds(rules: &dyn Rules, settings: Settings, promises: &[&str]) {
    let outcome = explore(&Model { rules, settings }, 3_000_000, 2).expect("small enough");
    let broken = outcome.broken.expect("the checker must notice");
    assert!(
        promises.contains(&broken.promise),
        "found another one: {}\n{}",
        broken.promise,
        broken.story
    );
    assert!(
        !broken.story.is_empty(),
        "a finding without a story helps nobody"
    );
}

#[test]
fn the_real_rules_hold_while_hosts_restart_and_messages_are_lost() {
    let model = Model {
        rules: &Production,
        settings: CALM,
    };
    let outcome = explore(&model, 1_000_000, 2).expect("small enough");
    assert!(outcome.broken.is_none(), "{:?}", outcome.broken);
    assert!(outcome.states > 10_000, "{} states", outcome.states);
}

#[test]
fn dropping_old_messages_early_hides_no_state_of_the_rest() {
    // Without the reduction the same promises hold, in a world that is small enough for it.
    struct Unreduced;
    impl Rules for Unreduced {
        fn forget_the_ineffective(&self) -> bool {
            false
        }
    }
    let model = Model {
        rules: &Unreduced,
        settings: Settings {
            late: &[Channel::FromRecovery],
            ..CALM
        },
    };
    let outcome = explore(&model, 3_000_000, 2).expect("small enough");
    assert!(outcome.broken.is_none(), "{:?}", outcome.broken);
}

#[test]
fn a_database_that_does_not_compare_is_found() {
    struct LastWriterWins;
    impl Rules for LastWriterWins {
        fn may_write(&self, _: bool) -> bool {
            true
        }
        fn forget_the_ineffective(&self) -> bool {
            false
        }
    }
    finds(
        &LastWriterWins,
        TWO_ORCHESTRATORS,
        &[
            "one number never means two orders",
            "two copies run only while a lost source has not answered",
            "the source's right to run excludes a running recovered copy",
            "a source that confirmed being held is off",
            "a source that may run is not fenced",
        ],
    );
}

#[test]
fn a_source_that_obeys_old_orders_is_found() {
    struct Obedient;
    impl Rules for Obedient {
        fn take_source(
            &self,
            guard: &mut Guard<SourceOrder>,
            epoch: Generation,
            order: SourceOrder,
        ) -> Taken {
            if epoch == guard.epoch {
                return guard.take(epoch, order);
            }
            *guard = Guard::new(epoch, order);
            Taken::New
        }
        fn forget_the_ineffective(&self) -> bool {
            false
        }
    }
    finds(
        &Obedient,
        LATE_TO_SOURCE,
        &[
            "a source that confirmed being held is off",
            "no engine starts the source's VM beside a running recovered one",
            "two copies run only while a lost source has not answered",
        ],
    );
}

#[test]
fn a_recovery_host_that_obeys_old_orders_is_found() {
    struct Obedient;
    impl Rules for Obedient {
        fn take_recovery(
            &self,
            guard: &mut Guard<RecoveryOrder>,
            epoch: Generation,
            order: RecoveryOrder,
        ) -> Taken {
            if epoch == guard.epoch {
                return guard.take(epoch, order);
            }
            *guard = Guard::new(epoch, order);
            Taken::New
        }
        fn forget_the_ineffective(&self) -> bool {
            false
        }
    }
    finds(
        &Obedient,
        LATE_TO_RECOVERY,
        &[
            "the source's right to run excludes a running recovered copy",
            "two copies run only while a lost source has not answered",
            "a failback loses no acknowledged write",
            "a source that may run is not fenced",
        ],
    );
}

#[test]
fn a_source_that_starts_without_proof_is_found() {
    struct Credulous;
    impl Rules for Credulous {
        fn source_may_start(&self, guard: &Guard<SourceOrder>, _: Proof) -> bool {
            guard.may_start(Proof::Answer(guard.epoch))
        }
    }
    finds(
        &Credulous,
        CALM,
        &["no engine starts the source's VM beside a running recovered one"],
    );
}

#[test]
fn a_hypervisor_that_starts_a_held_vm_is_found() {
    struct AutomaticStart;
    impl Rules for AutomaticStart {
        fn starts_by_itself(&self, _: &Guard<SourceOrder>) -> bool {
            true
        }
    }
    finds(
        &AutomaticStart,
        CALM,
        &["a source that confirmed being held is off"],
    );
}

#[test]
fn a_store_without_a_fence_is_found() {
    struct Unfenced;
    impl Rules for Unfenced {
        fn fence(&self, present: Generation, brought: Generation) -> Option<Generation> {
            Some(present.max(brought))
        }
    }
    finds(
        &Unfenced,
        CALM,
        &["a superseded source writes nothing to the replica"],
    );
}

#[test]
fn a_guard_that_a_restart_forgets_is_found() {
    struct Forgetful;
    impl Rules for Forgetful {
        fn guards_are_durable(&self) -> bool {
            false
        }
        fn forget_the_ineffective(&self) -> bool {
            false
        }
    }
    finds(
        &Forgetful,
        LATE_TO_RECOVERY,
        &[
            "the source's right to run excludes a running recovered copy",
            "two copies run only while a lost source has not answered",
            "a source that may run is not fenced",
        ],
    );
}

#[test]
fn an_undo_that_does_not_wait_for_the_recovered_vm_is_found() {
    struct Hasty;
    impl Rules for Hasty {
        fn step(&self, life: Life, event: Event) -> Stepped {
            let (next, effects) = life::step(life, event)?;
            if next.phase == Phase::UndoingFailover {
                let absent = Event::Recovery {
                    epoch: next.recovery_epoch,
                    said: RecoverySaid::Absent,
                };
                return life::step(next, absent);
            }
            Ok((next, effects))
        }
    }
    finds(
        &Hasty,
        CALM,
        &[
            "two copies run only while a lost source has not answered",
            "the source's right to run excludes a running recovered copy",
        ],
    );
}

#[test]
fn an_orchestrator_that_believes_old_reports_is_found() {
    struct Believing;
    impl Rules for Believing {
        fn step(&self, life: Life, event: Event) -> Stepped {
            let event = match event {
                Event::Source { said, .. } => Event::Source {
                    epoch: life.source_epoch,
                    said,
                },
                Event::Recovery { said, .. } => Event::Recovery {
                    epoch: life.recovery_epoch,
                    said,
                },
                other => other,
            };
            life::step(life, event)
        }
        fn forget_the_ineffective(&self) -> bool {
            false
        }
    }
    finds(
        &Believing,
        LATE_REPORTS,
        &[
            "two copies run only while a lost source has not answered",
            "a source that confirmed being held is off",
            "the source's right to run excludes a running recovered copy",
            "a planned failover loses no acknowledged write",
            "a failback loses no acknowledged write",
        ],
    );
}

#[test]
fn a_planned_failover_that_goes_on_without_the_rest_is_found() {
    struct Impatient;
    impl Rules for Impatient {
        fn step(&self, life: Life, event: Event) -> Stepped {
            let planned = matches!(life.phase, Phase::StoppingSource(life::Kind::Planned));
            if planned && event == Event::ShutDownFailed {
                let shipped = Event::Source {
                    epoch: life.source_epoch,
                    said: SourceSaid::Shipped,
                };
                return life::step(life, shipped);
            }
            life::step(life, event)
        }
    }
    finds(
        &Impatient,
        CALM,
        &[
            "a planned failover loses no acknowledged write",
            "a source that confirmed being held is off",
        ],
    );
}

#[test]
fn a_source_that_says_held_before_it_is_off_is_found() {
    struct Hasty;
    impl Rules for Hasty {
        fn source_says(&self, guard: &Guard<SourceOrder>, _: bool) -> Option<SourceSaid> {
            guard.says(false)
        }
    }
    finds(&Hasty, CALM, &["a source that confirmed being held is off"]);
}

#[test]
fn a_failback_over_a_source_that_nobody_has_heard_of_is_found() {
    struct Careless;
    impl Rules for Careless {
        fn allowed(&self, life: &Life) -> Vec<Operation> {
            held(*life).allowed_operations()
        }
        fn step(&self, life: Life, event: Event) -> Stepped {
            match event {
                Event::Request(Request::Failback(_)) => life::step(held(life), event),
                _ => life::step(life, event),
            }
        }
    }
    fn held(life: Life) -> Life {
        Life {
            standing: Standing::Held,
            ..life
        }
    }
    finds(
        &Careless,
        CALM,
        &[
            "two copies run only while a lost source has not answered",
            "a source that confirmed being held is off",
        ],
    );
}

#[test]
fn a_cancelled_failback_that_starts_half_written_disks_is_found() {
    struct Wrong;
    impl Rules for Wrong {
        fn step(&self, life: Life, event: Event) -> Stepped {
            let cancelled = event == Event::Request(Request::CancelFailover);
            if let (Phase::Receiving(_), true) = (life.phase, cancelled) {
                let received = Event::Source {
                    epoch: life.source_epoch,
                    said: SourceSaid::Received,
                };
                return life::step(life, received);
            }
            life::step(life, event)
        }
    }
    finds(
        &Wrong,
        CALM,
        &[
            "a failback loses no acknowledged write",
            "no VM starts from half-written disks",
        ],
    );
}

#[test]
fn a_source_that_receives_again_after_it_said_received_is_found() {
    struct Eager;
    impl Rules for Eager {
        fn may_receive(&self, guard: &Guard<SourceOrder>, running: bool) -> bool {
            let again = Guard {
                done: false,
                ..*guard
            };
            again.may_receive(running)
        }
    }
    finds(
        &Eager,
        CALM,
        &[
            "a source is written over only while it is held and a person asked for it",
            "no VM starts from half-written disks",
        ],
    );
}

#[test]
fn a_source_that_moves_under_the_old_number_is_found() {
    struct Unnumbered;
    impl Rules for Unnumbered {
        fn step(&self, life: Life, event: Event) -> Stepped {
            let (next, effects) = life::step(life, event)?;
            if event == Event::SourceMoved {
                let source_epoch = life.source_epoch;
                let next = Life {
                    source_epoch,
                    standing: life.standing,
                    ..next
                };
                return Ok((next, effects));
            }
            Ok((next, effects))
        }
    }
    finds(
        &Unnumbered,
        MOVES,
        &[
            "a source that confirmed being held is off",
            "two copies run only while a lost source has not answered",
        ],
    );
}

#[test]
fn a_former_source_that_is_told_what_the_new_one_is_told_is_found() {
    struct Confused;
    impl Rules for Confused {
        fn former_order(&self, former: Former) -> (Generation, SourceOrder) {
            (former.leave, SourceOrder::LeaveRunning)
        }
    }
    finds(
        &Confused,
        MOVES,
        &[
            "a former source that was held once stays off",
            "one number never means two orders",
        ],
    );
}

#[test]
fn an_order_that_changes_without_a_new_number_is_found() {
    struct Unnumbered;
    impl Rules for Unnumbered {
        fn step(&self, life: Life, event: Event) -> Stepped {
            let (next, effects) = life::step(life, event)?;
            let next = Life {
                source_epoch: life.source_epoch,
                ..next
            };
            Ok((next, effects))
        }
    }
    finds(&Unnumbered, CALM, &["one number never means two orders"]);
}

#[test]
fn an_operation_that_is_offered_in_vain_is_found() {
    struct Boasting;
    impl Rules for Boasting {
        fn allowed(&self, life: &Life) -> Vec<Operation> {
            let mut allowed = life.allowed_operations();
            if life.phase == Phase::CommittingFailback {
                allowed.push(Operation::CancelFailover);
            }
            allowed
        }
    }
    finds(
        &Boasting,
        CALM,
        &["allowedOperations are exactly what is accepted"],
    );
}

#[test]
fn an_operation_that_is_accepted_but_not_offered_is_found() {
    struct Shy;
    impl Rules for Shy {
        fn allowed(&self, life: &Life) -> Vec<Operation> {
            let mut allowed = life.allowed_operations();
            allowed.retain(|operation| *operation != Operation::ChangePit);
            allowed
        }
    }
    finds(
        &Shy,
        CALM,
        &["allowedOperations are exactly what is accepted"],
    );
}

#[test]
fn a_state_without_a_way_out_is_found() {
    struct Stuck;
    impl Rules for Stuck {
        fn step(&self, life: Life, event: Event) -> Stepped {
            match (life.phase, event) {
                (Phase::UndoingFailback(_), Event::Source { .. }) => Ok((life, Vec::new())),
                _ => life::step(life, event),
            }
        }
    }
    // `UnplannedFailover` is still a way out of that one, so the rule that is broken must be one without.
    struct ReallyStuck;
    impl Rules for ReallyStuck {
        fn step(&self, life: Life, event: Event) -> Stepped {
            match (life.phase, event) {
                (Phase::UndoingFailover, Event::Recovery { .. }) => Ok((life, Vec::new())),
                _ => life::step(life, event),
            }
        }
    }
    let model = Model {
        rules: &Stuck,
        settings: CALM,
    };
    let outcome = explore(&model, 1_000_000, 2).expect("small enough");
    assert!(outcome.broken.is_none(), "{:?}", outcome.broken);
    finds(&ReallyStuck, CALM, &[WAY_OUT]);
}
