//! The source under orders, on a host in memory and a real folder store: what it may run, and what it says.

mod support;

use std::sync::Arc;
use std::time::Duration;

use engine::replicator::pauses::{self, NoPauses, PLACES};
use engine::source::GUEST_PATIENCE;
use engine_protocol::v1::{self, replication_status::State};
use protection::Generation;
use protection::life::{SourceOrder, SourceSaid};
use replica_store::{ReplicaKey, StoreTarget};
use support::item::{has, points, stored};
use support::ordered::{Engine, LICENCE, message, newest_is, says};
use support::{ITEM, StopAt, VAULT, World, life};

const REPLICATE: SourceOrder = SourceOrder::Replicate(LICENCE);
const SHIP: SourceOrder = SourceOrder::ShipRest(LICENCE);

/// A life in which the item comes to so many points under its first order.
fn protect(world: &World, count: usize) {
    life(async {
        let engine = Engine::start(world, Arc::new(NoPauses));
        engine.order(world, 1, REPLICATE);
        engine.wait(world, "protected", points(count)).await;
        engine.stop().await;
    });
}

/// A life in which the rest is shipped; everything is in the newest point.
fn ships_the_rest(world: &World, what: &str) {
    life(async {
        let engine = Engine::start(world, Arc::new(NoPauses));
        engine.order(world, 2, SHIP);
        let status = engine.wait(world, what, says(2, SourceSaid::Shipped)).await;
        assert!(!world.host.is_running(), "{what}");
        assert_eq!(status.state(), State::Held, "{what}");
        newest_is(world, &status).await;
        engine.stop().await;
        assert!(!world.host.is_frozen());
        world.host.check_store(&world.store()).await;
    });
}

/// A recovered VM raises the fence.
async fn raise_fence(world: &World, generation: u64) {
    let target = StoreTarget::Folder(world.store());
    let key = ReplicaKey::new(VAULT, ITEM).unwrap();
    let generation = replica_store::Generation(generation);
    replica_store::take_over(&target, &key, generation)
        .await
        .unwrap();
}

async fn passes(time: Duration) {
    // Time is the runtime's: it jumps.
    tokio::time::sleep(time).await;
}

#[test]
fn what_the_guest_writes_last_is_in_the_newest_point_with_tracking_and_without() {
    for survives in [true, false] {
        let world = World::new(1);
        if survives {
            world.host.let_tracking_survive();
        }
        protect(&world, 3);
        let read_before = world.host.read_bytes();
        ships_the_rest(&world, "shipped");
        assert_eq!(world.host.powered().shut_down, 1);
        assert_eq!(world.host.powered().turned_off, 0);
        let read = world.host.read_bytes() - read_before;
        if survives {
            assert!(
                read < world.host.total_bytes() / 2,
                "{read} bytes were read"
            );
        }
    }
}

#[test]
fn a_vm_that_was_off_all_the_time_is_compared_and_shipped() {
    let world = World::new(2);
    world.host.make_image_files();
    protect(&world, 2);
    world.host.set_running(false);
    world.host.edit_image(0, 17, 0xee);
    ships_the_rest(&world, "shipped");
    assert_eq!(world.host.powered(), support::power::Counts::default());
}

#[test]
fn killed_anywhere_on_the_way_the_next_engine_ships_the_rest() {
    let mut reached = Vec::new();
    for (number, place) in PLACES.iter().enumerate() {
        for survives in [true, false] {
            let world = World::new(100 + number as u64);
            if survives {
                world.host.let_tracking_survive();
            }
            protect(&world, 2);
            life(async {
                let stop_at = StopAt::new(Some(place), 0);
                let engine = Engine::start(&world, stop_at.clone());
                engine.order(&world, 2, SHIP);
                tokio::select! {
                    () = stop_at.reached.notified() => reached.push(*place),
                    // Of another path.
                    _ = engine.wait(&world, "shipped", says(2, SourceSaid::Shipped)) => {}
                }
            });
            if !survives {
                // The VM's process went, too.
                world.host.set_running(world.host.is_running());
            }
            ships_the_rest(&world, place);
        }
    }
    for place in [
        pauses::SHUT_DOWN,
        pauses::FROZEN,
        pauses::LOGS_CLOSED,
        pauses::RECORDED,
        pauses::RELEASED,
        pauses::SENDING,
        pauses::APPENDED,
        pauses::POINT_ADDED,
        pauses::STATE_WRITTEN,
        pauses::HASHES_WRITTEN,
        pauses::REST_SHIPPED,
    ] {
        assert!(reached.contains(&place), "{place} was never passed");
    }
}

#[test]
fn a_guest_that_does_not_shut_down_is_never_turned_off_and_goes_on_being_replicated() {
    let world = World::new(3);
    world.host.ignore_power_button(true);
    protect(&world, 2);
    life(async {
        let engine = Engine::start(&world, Arc::new(NoPauses));
        engine.order(&world, 2, SHIP);
        let status = engine
            .wait(&world, "a finding", has("SHUT_DOWN_FAILED"))
            .await;
        assert!(status.source.is_none());
        let count = status.recovery_points.len();
        engine.wait(&world, "points", points(count + 2)).await;
        assert!(world.host.is_running());
        assert_eq!(world.host.powered().turned_off, 0);
        world.host.ignore_power_button(false);
        let shipped = says(2, SourceSaid::Shipped);
        let status = engine.wait(&world, "shipped", shipped).await;
        assert!(status.findings.is_empty(), "{:?}", status.findings);
        newest_is(&world, &status).await;
        engine.stop().await;
    });
}

#[test]
fn a_vm_that_is_started_behind_the_last_point_is_stopped_and_the_report_withdrawn_meanwhile() {
    let world = World::new(4);
    protect(&world, 2);
    ships_the_rest(&world, "shipped");
    let count = life(async { stored(&world).await.len() });
    life(async {
        let engine = Engine::start(&world, Arc::new(NoPauses));
        engine
            .wait(&world, "said again", says(2, SourceSaid::Shipped))
            .await;
        world.host.ignore_power_button(true);
        world.host.set_running(true);
        let gone =
            |status: &engine_protocol::v1::ReplicationStatus| has("STOPPING_HELD_VM")(status);
        engine.wait(&world, "being stopped", gone).await;
        engine
            .wait(&world, "said again", |status| {
                says(2, SourceSaid::Shipped)(status) && status.findings.is_empty()
            })
            .await;
        assert!(!world.host.is_running());
        // Somebody may rely on the point: nothing is shipped again.
        assert_eq!(stored(&world).await.len(), count);
        engine.stop().await;
    });
}

#[test]
fn hold_stops_a_running_vm_keeps_everything_and_says_so_only_when_it_is_off() {
    let world = World::new(5);
    world.host.ignore_power_button(true);
    protect(&world, 2);
    life(async {
        let engine = Engine::start(&world, Arc::new(NoPauses));
        engine.order(&world, 2, SourceOrder::Hold);
        let begin = tokio::time::Instant::now();
        let status = engine
            .wait(&world, "held", |status| {
                let held = says(2, SourceSaid::Held)(status);
                assert!(!held || !world.host.is_running(), "held, and it runs");
                held
            })
            .await;
        assert!(
            begin.elapsed() >= GUEST_PATIENCE,
            "its guest was given time"
        );
        assert_eq!(world.host.powered().turned_off, 1);
        assert_eq!(status.state(), State::Held);
        assert!(status.recovery_points.len() >= 2, "points stay listed");
        let state = world.folder.path().join("state");
        assert!(state.join(format!("{ITEM}.json")).exists());
        let hashes = std::fs::read_dir(state.join(format!("{ITEM}.hashes"))).unwrap();
        assert_eq!(hashes.count(), 2, "a map for each disk");

        // By hand.
        world.host.ignore_power_button(false);
        world.host.set_running(true);
        let withdrawn = |status: &engine_protocol::v1::ReplicationStatus| {
            !world.host.is_running() && says(2, SourceSaid::Held)(status)
        };
        engine.wait(&world, "held again", withdrawn).await;
        assert_eq!(world.host.powered().shut_down, 1);
        engine.stop().await;
    });
}

#[test]
fn a_held_vm_that_can_not_be_shut_down_in_order_is_turned_off_all_the_same() {
    let world = World::new(5);
    world.host.refuse_power_button();
    protect(&world, 2);
    life(async {
        let engine = Engine::start(&world, Arc::new(NoPauses));
        engine.order(&world, 2, SourceOrder::Hold);
        engine.wait(&world, "held", says(2, SourceSaid::Held)).await;
        assert!(!world.host.is_running());
        assert_eq!(world.host.powered().turned_off, 1);
        engine.stop().await;
    });
}

#[test]
fn a_held_vm_runs_and_is_replicated_again_when_that_is_ordered_but_not_one_that_a_user_turned_off()
{
    for by_user in [true, false] {
        let world = World::new(6);
        protect(&world, 2);
        if by_user {
            world.host.set_running(false);
        }
        life(async {
            let engine = Engine::start(&world, Arc::new(NoPauses));
            engine.order(&world, 2, SHIP);
            engine
                .wait(&world, "shipped", says(2, SourceSaid::Shipped))
                .await;
            engine.order(&world, 3, SourceOrder::Hold);
            engine.wait(&world, "held", says(3, SourceSaid::Held)).await;
            engine.order(&world, 4, REPLICATE);
            if by_user {
                engine.wait(&world, "off", has("VM_NOT_RUNNING")).await;
                passes(Duration::from_secs(600)).await;
                assert!(!world.host.is_running());
            } else {
                let count = stored(&world).await.len();
                engine.wait(&world, "points", points(count + 2)).await;
                assert!(world.host.is_running());
                assert_eq!(world.host.powered().started, 1);
            }
            engine.stop().await;
            world.host.check_store(&world.store()).await;
        });
    }
}

#[test]
fn a_damaged_note_of_what_was_shipped_costs_a_comparison_and_nothing_else() {
    let world = World::new(15);
    protect(&world, 2);
    ships_the_rest(&world, "the rest");
    let state = world.folder.path().join("state");
    let note = state.join(format!("{ITEM}.hashes/receive.json"));
    assert!(note.exists());
    std::fs::write(&note, "{").unwrap();
    life(async {
        let count = stored(&world).await.len();
        let engine = Engine::start(&world, Arc::new(NoPauses));
        let licence = Generation(LICENCE.0 + 1);
        engine.tell(v1::Replication {
            generation: licence.0,
            ..message(&world, 3, SourceOrder::Replicate(licence))
        });
        engine.wait(&world, "points", points(count + 2)).await;
        engine.stop().await;
        world.host.check_store(&world.store()).await;
    });
}

#[test]
fn a_guest_that_shuts_down_after_the_failover_was_cancelled_is_started_again() {
    let world = World::new(7);
    world.host.ignore_power_button(true);
    protect(&world, 2);
    life(async {
        let engine = Engine::start(&world, Arc::new(NoPauses));
        engine.order(&world, 2, SHIP);
        engine
            .wait(&world, "a finding", has("SHUT_DOWN_FAILED"))
            .await;
        engine.order(&world, 3, REPLICATE);
        engine
            .wait(&world, "replicated", |status| {
                status.state() == State::Protected
            })
            .await;
        world.host.set_running(false);
        engine
            .wait(&world, "started", |_| world.host.is_running())
            .await;
        // Once it has run for long enough, being off is the user's wish.
        passes(GUEST_PATIENCE * 3).await;
        world.host.set_running(false);
        passes(Duration::from_secs(600)).await;
        assert!(!world.host.is_running());
        engine.stop().await;
    });
}

#[test]
fn a_restarted_engine_starts_nothing_against_the_store_and_with_it_what_it_owes() {
    for fence in [LICENCE.0, 5] {
        let world = World::new(8);
        protect(&world, 2);
        life(async {
            let engine = Engine::start(&world, Arc::new(NoPauses));
            engine.order(&world, 2, SourceOrder::Hold);
            engine.wait(&world, "held", says(2, SourceSaid::Held)).await;
            // The engine ends before it gets to the start.
            let stop_at = world.host.powered().started;
            engine.order(&world, 3, REPLICATE);
            engine
                .wait(&world, "running", |_| {
                    world.host.powered().started > stop_at
                })
                .await;
            engine.order(&world, 4, SourceOrder::Hold);
            engine.wait(&world, "held", says(4, SourceSaid::Held)).await;
            engine.stop().await;
            // What was kept is an order to replicate, obeyed by nobody yet.
            let file = engine::desired::DesiredFile::new(&world.folder.path().join("state"));
            file.write(&engine_protocol::v1::DesiredState {
                generation: 1,
                replications: vec![message(&world, 5, REPLICATE)],
                ..engine_protocol::v1::DesiredState::default()
            })
            .unwrap();
            raise_fence(&world, fence).await;
        });
        life(async {
            let engine = Engine::start(&world, Arc::new(NoPauses));
            if fence > LICENCE.0 {
                passes(Duration::from_secs(300)).await;
                let status = engine.context.board.replication(ITEM).unwrap();
                assert!(has("START_WITHHELD")(&status), "{:?}", status.findings);
                assert!(!world.host.is_running());
                // Not even when the orchestrator, whose answer is older, says so.
                engine.order(&world, 5, REPLICATE);
                passes(Duration::from_secs(300)).await;
                assert!(!world.host.is_running());
            } else {
                engine
                    .wait(&world, "started", |_| world.host.is_running())
                    .await;
            }
            engine.stop().await;
        });
    }
}

#[test]
fn without_store_and_orchestrator_nothing_is_started_and_an_answer_is_enough() {
    let world = World::new(9);
    protect(&world, 2);
    let away = world.folder.path().join("away");
    life(async {
        let engine = Engine::start(&world, Arc::new(NoPauses));
        engine.order(&world, 2, SourceOrder::Hold);
        engine.wait(&world, "held", says(2, SourceSaid::Held)).await;
        engine.stop().await;
        std::fs::rename(world.store(), &away).unwrap();
        let file = engine::desired::DesiredFile::new(&world.folder.path().join("state"));
        file.write(&engine_protocol::v1::DesiredState {
            generation: 1,
            replications: vec![message(&world, 3, SourceOrder::Run(Generation(3)))],
            ..engine_protocol::v1::DesiredState::default()
        })
        .unwrap();
    });
    life(async {
        let engine = Engine::start(&world, Arc::new(NoPauses));
        engine.wait(&world, "withheld", has("START_WITHHELD")).await;
        assert!(!world.host.is_running());
        engine.order(&world, 3, SourceOrder::Run(Generation(3)));
        let status = engine
            .wait(&world, "running", says(3, SourceSaid::Running))
            .await;
        assert!(world.host.is_running());
        assert!(status.findings.is_empty(), "{:?}", status.findings);
        engine.stop().await;
    });
}

#[test]
fn a_vm_that_runs_without_replication_is_started_once_and_not_replicated() {
    let world = World::new(10);
    protect(&world, 2);
    world.host.set_running(false);
    life(async {
        let engine = Engine::start(&world, Arc::new(NoPauses));
        engine.order(&world, 2, SourceOrder::Run(LICENCE));
        let running = says(2, SourceSaid::Running);
        engine.wait(&world, "running", &running).await;
        let count = stored(&world).await.len();
        passes(Duration::from_secs(600)).await;
        assert_eq!(stored(&world).await.len(), count);
        world.host.set_running(false);
        engine
            .wait(&world, "off", |status| status.source.is_none())
            .await;
        passes(Duration::from_secs(600)).await;
        assert!(!world.host.is_running(), "a user may turn it off");
        engine.stop().await;
    });
}

#[test]
fn an_order_from_before_the_newest_is_not_obeyed_after_a_restart() {
    let world = World::new(11);
    protect(&world, 2);
    life(async {
        let engine = Engine::start(&world, Arc::new(NoPauses));
        engine.order(&world, 9, SourceOrder::Hold);
        engine.wait(&world, "held", says(9, SourceSaid::Held)).await;
        engine.stop().await;
        // As after a crash between the guard and the kept state, and with an orchestrator that lags behind.
        let file = engine::desired::DesiredFile::new(&world.folder.path().join("state"));
        file.write(&engine_protocol::v1::DesiredState {
            generation: 1,
            replications: vec![message(&world, 8, REPLICATE)],
            ..engine_protocol::v1::DesiredState::default()
        })
        .unwrap();
    });
    life(async {
        let engine = Engine::start(&world, Arc::new(NoPauses));
        for told in [true, false] {
            if told {
                engine.order(&world, 8, REPLICATE);
            } else {
                // From a time without orders.
                engine.tell(engine_protocol::v1::Replication {
                    order: None,
                    ..message(&world, 8, REPLICATE)
                });
            }
            passes(Duration::from_secs(300)).await;
            assert!(!world.host.is_running());
            let held = says(9, SourceSaid::Held);
            let status = engine.wait(&world, "held", held).await;
            assert_eq!(status.state(), State::Held);
        }
        engine.stop().await;
    });
}

#[test]
fn orders_that_make_no_sense_are_told_and_not_obeyed() {
    let world = World::new(12);
    protect(&world, 2);
    life(async {
        let engine = Engine::start(&world, Arc::new(NoPauses));
        engine.order(&world, 1, SourceOrder::Hold);
        engine
            .wait(&world, "a finding", has("ORDER_CONTRADICTION"))
            .await;
        assert!(world.host.is_running());
        let mut unknown = message(&world, 7, REPLICATE);
        unknown.order.as_mut().unwrap().kind = 99;
        engine.tell(unknown);
        let status = engine.wait(&world, "a finding", has("ORDER_UNKNOWN")).await;
        let count = status.recovery_points.len();
        engine
            .wait(&world, "it goes on as ordered before", points(count + 2))
            .await;
        engine.order(&world, 8, SourceOrder::Replicate(Generation(2)));
        engine.wait(&world, "a finding", has("ORDER_MISFIT")).await;
        let count = stored(&world).await.len();
        passes(Duration::from_secs(300)).await;
        assert_eq!(stored(&world).await.len(), count, "without its licence");
        engine.order(&world, 9, SourceOrder::Receive);
        engine
            .wait(&world, "off", |_| !world.host.is_running())
            .await;
        // It does not say from whom.
        let status = engine.wait(&world, "a finding", has("ORDER_MISFIT")).await;
        assert!(status.source.is_none());
        engine.stop().await;
    });
}

#[test]
fn an_unknown_first_order_lets_nothing_begin() {
    let world = World::new(13);
    life(async {
        let engine = Engine::start(&world, Arc::new(NoPauses));
        let mut unknown = message(&world, 7, REPLICATE);
        unknown.order.as_mut().unwrap().kind = 99;
        engine.tell(unknown);
        let status = engine.wait(&world, "a finding", has("ORDER_UNKNOWN")).await;
        assert_eq!(status.state(), State::Blocked);
        engine.order(&world, 8, REPLICATE);
        engine.wait(&world, "points", points(2)).await;
        engine.stop().await;
    });
}

#[test]
fn leaving_takes_our_files_and_lets_the_vm_be_as_ordered() {
    for (order, runs) in [
        (SourceOrder::LeaveOff, false),
        (SourceOrder::LeaveRunning, true),
    ] {
        let world = World::new(14);
        protect(&world, 2);
        life(async {
            let engine = Engine::start(&world, Arc::new(NoPauses));
            engine.order(&world, 2, order);
            let left = |status: &engine_protocol::v1::ReplicationStatus| {
                let retired = status.state() == State::Retired;
                retired && (runs || says(2, SourceSaid::Left)(status))
            };
            let status = engine.wait(&world, "left", left).await;
            assert!(!runs || status.source.is_none());
            assert_eq!(world.host.is_running(), runs);
            let files = world.leftovers();
            assert!(
                files.iter().all(|file| file.ends_with("desired.bin")
                    || file.ends_with("guards")
                    || file.ends_with(".vhdx")),
                "{files:?}"
            );
            assert!(!stored(&world).await.is_empty(), "nobody asked for its end");
            engine.stop().await;
        });
    }
}
