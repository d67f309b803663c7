//! The promises of replication, one test each, on a host in memory and a real folder store.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engine::replicator::pauses::{self, NoPauses, PLACES};
use engine::replicator::spec::Wish;
use engine::replicator::{Context, Replicator};
use engine_protocol::v1::replication_status::State;
use replica_store::fault::Faults;
use support::{BLOCK, BadStore, StopAt, World, active, life, wait_for};

fn points(count: usize) -> impl Fn(&engine_protocol::v1::ReplicationStatus) -> bool {
    move |status| status.recovery_points.len() >= count && status.backlog_cycles == 0
}

fn has(code: &'static str) -> impl Fn(&engine_protocol::v1::ReplicationStatus) -> bool {
    move |status| status.findings.iter().any(|finding| finding.code == code)
}

async fn protect(world: &World, context: &Arc<Context>, count: usize) -> Replicator {
    let replicator = Replicator::start(context.clone(), world.spec(1), active());
    wait_for(context, &world.host, "protected with points", points(count)).await;
    replicator
}

#[test]
fn initial_replication_reads_allocated_blocks_only_and_every_point_is_exact() {
    let world = World::new(1);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = Replicator::start(context.clone(), world.spec(1), active());
        wait_for(&context, &world.host, "first point", points(1)).await;
        assert!(world.host.read_bytes() <= world.host.allocated_bytes());
        assert!(world.host.read_bytes() < world.host.total_bytes());
        let status = wait_for(&context, &world.host, "five points", points(5)).await;
        assert_eq!(status.state(), State::Protected);
        assert!(status.findings.is_empty(), "{:?}", status.findings);
        assert!(status.last_cycle_changed_bytes > 0 && status.total_sent_bytes > 0);
        replicator.stop().await;
        assert!(!world.host.is_frozen());
        let stored = world.host.check_store(&world.store()).await;
        let times: Vec<i64> = stored.iter().map(|point| point.time_unix_ms).collect();
        assert!(times.is_sorted());
    });
}

#[test]
#[should_panic(expected = "differs in block")]
fn the_check_of_these_tests_notices_a_single_lost_block() {
    let world = World::new(12);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = protect(&world, &context, 2).await;
        world.host.be_forgetful();
        wait_for(&context, &world.host, "points", points(4)).await;
        replicator.stop().await;
        world.host.check_store(&world.store()).await;
    });
}

#[test]
fn cycles_follow_the_interval_from_freeze_to_freeze() {
    let world = World::new(2);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = protect(&world, &context, 2).await;
        let begin = tokio::time::Instant::now();
        wait_for(&context, &world.host, "ten more points", points(12)).await;
        let took = begin.elapsed().as_secs_f64();
        assert!(
            (90.0..=103.0).contains(&took),
            "ten cycles of 10 s took {took} s"
        );
        assert!(
            world.host.tracking_count() <= 2,
            "older tracking is dropped"
        );
        replicator.stop().await;
    });
}

#[test]
fn killed_at_any_named_place_replication_goes_on_without_a_full_copy() {
    for (number, place) in PLACES
        .iter()
        .enumerate()
        // Of these there are tests of their own.
        .filter(|(_, place)| {
            ![
                pauses::RETIRING,
                pauses::JOINING,
                pauses::GIVEN_UP,
                pauses::SHUT_DOWN,
                pauses::REST_SHIPPED,
            ]
            .contains(place)
        })
    {
        for visits in [0, 2] {
            let world = World::new(100 + number as u64);
            life(async {
                let stop_at = StopAt::new(Some(place), visits);
                let context = world.context(stop_at.clone(), None);
                let _replicator = Replicator::start(context.clone(), world.spec(1), active());
                let guest = async {
                    for number in 0u64.. {
                        world.host.guest_writes();
                        if *place == pauses::COMPARING && number % 200 == 199 {
                            world.host.restart_vm();
                        }
                        tokio::time::sleep(Duration::from_millis(300)).await;
                    }
                };
                tokio::select! {
                    () = stop_at.reached.notified() => {}
                    () = guest => {}
                    // Places of initial replication are passed once only.
                    () = tokio::time::sleep(Duration::from_secs(300)) => assert!(visits > 0, "{place} was never passed"),
                }
            });
            let read_before = world.host.read_bytes();
            life(async {
                let context = world.context(Arc::new(NoPauses), None);
                let count = context
                    .board
                    .replication(support::ITEM)
                    .map_or(0, |status| status.recovery_points.len());
                let replicator = protect(&world, &context, count + 4).await;
                replicator.stop().await;
                let stored = world.host.check_store(&world.store()).await;
                let highest = stored.last().unwrap().position.0;
                assert_eq!(
                    stored.len() as u64,
                    highest + 1,
                    "{place}: no position without its point"
                );
            });
            assert!(world.host.read_bytes() - read_before < 3 * world.host.total_bytes());
        }
    }
}

#[test]
fn a_cut_initial_replication_sends_only_what_is_missing() {
    let world = World::new(3);
    life(async {
        // Two pieces of a mebibyte are written, the third is not.
        let stop_at = StopAt::new(Some(pauses::BASE_WRITING), 2);
        let context = world.context(stop_at.clone(), None);
        let _replicator = Replicator::start(context.clone(), world.spec(1), active());
        stop_at.reached.notified().await;
    });
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = protect(&world, &context, 1).await;
        replicator.stop().await;
        let stored = world.host.check_store(&world.store()).await;
        assert!(
            stored[0].sent_bytes + (BLOCK as u64) < world.host.allocated_bytes(),
            "{} of {}",
            stored[0].sent_bytes,
            world.host.allocated_bytes()
        );
    });
}

#[test]
fn captures_go_on_while_the_store_is_away_and_are_shipped_in_order_afterwards() {
    let world = World::new(4);
    let store = BadStore::new(0, 0);
    life(async {
        let context = world.context(Arc::new(NoPauses), Some(store.clone() as Arc<dyn Faults>));
        let replicator = protect(&world, &context, 2).await;
        store.away.store(true, Ordering::SeqCst);
        let status = wait_for(&context, &world.host, "a backlog", |status| {
            status.backlog_cycles >= 6
        })
        .await;
        assert!(
            has("STORE_UNAVAILABLE")(&status) && has("REPLICATION_BACKLOG")(&status),
            "{:?}",
            status.findings
        );
        replicator.stop().await;
    });
    // The engine is started again while the store is still away: it goes on capturing.
    life(async {
        let context = world.context(Arc::new(NoPauses), Some(store.clone() as Arc<dyn Faults>));
        let replicator = Replicator::start(context.clone(), world.spec(1), active());
        wait_for(&context, &world.host, "more backlog", |status| {
            status.backlog_cycles >= 8
        })
        .await;
        store.away.store(false, Ordering::SeqCst);
        let status = wait_for(&context, &world.host, "shipped", points(10)).await;
        assert!(status.findings.is_empty(), "{:?}", status.findings);
        replicator.stop().await;
        world.host.check_store(&world.store()).await;
    });
}

#[test]
fn a_store_folder_that_is_gone_is_never_filled_anew() {
    let world = World::new(5);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = protect(&world, &context, 2).await;
        let (store, aside) = (world.store(), world.folder.path().join("aside"));
        std::fs::rename(&store, &aside).unwrap();
        std::fs::create_dir(&store).unwrap();
        let status = wait_for(&context, &world.host, "blocked", |status| {
            status.state() == State::Blocked
        })
        .await;
        let summary = &status.findings[0].summary;
        assert!(summary.contains(&store.display().to_string()), "{summary}");
        wait_for(&context, &world.host, "a backlog", |status| {
            status.backlog_cycles >= 3
        })
        .await;
        assert_eq!(std::fs::read_dir(&store).unwrap().count(), 0);
        std::fs::remove_dir(&store).unwrap();
        std::fs::rename(&aside, &store).unwrap();
        wait_for(&context, &world.host, "protected again", |status| {
            status.state() == State::Protected && points(6)(status)
        })
        .await;
        replicator.stop().await;
        world.host.check_store(&store).await;
    });
}

#[test]
fn lost_tracking_is_healed_by_comparing_and_only_differences_are_sent() {
    let world = World::new(6);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = protect(&world, &context, 3).await;
        world.host.restart_vm();
        wait_for(&context, &world.host, "more points", points(6)).await;
        replicator.stop().await;
        // `check_store` bounds each cycle by what the guest has written.
        world.host.check_store(&world.store()).await;
    });
    // All state of the engine is lost.
    std::fs::remove_dir_all(world.folder.path().join("state")).unwrap();
    std::fs::create_dir(world.folder.path().join("state")).unwrap();
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = protect(&world, &context, 9).await;
        replicator.stop().await;
        world.host.check_store(&world.store()).await;
    });
}

#[test]
fn a_vm_that_is_off_is_told_and_goes_on_by_itself_when_it_is_back() {
    let world = World::new(7);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = protect(&world, &context, 2).await;
        world.host.set_running(false);
        let status = wait_for(&context, &world.host, "finding", has("VM_NOT_RUNNING")).await;
        assert_eq!(status.state(), State::Protected);
        world.host.set_running(true);
        let status = wait_for(&context, &world.host, "points again", points(4)).await;
        assert!(!has("VM_NOT_RUNNING")(&status));
        replicator.stop().await;
        world.host.check_store(&world.store()).await;
    });
}

#[test]
fn a_failing_read_gives_the_point_back_and_loses_no_change() {
    let world = World::new(8);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = protect(&world, &context, 2).await;
        world.host.fail_reads(true);
        wait_for(&context, &world.host, "finding", has("CAPTURE_FAILED")).await;
        assert!(!world.host.is_frozen());
        world.host.fail_reads(false);
        wait_for(&context, &world.host, "points again", points(5)).await;
        replicator.stop().await;
        world.host.check_store(&world.store()).await;
    });
}

#[test]
fn captures_pause_when_the_host_is_nearly_full() {
    let world = World::new(9);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = protect(&world, &context, 2).await;
        world.free_bytes.store(1 << 20, Ordering::SeqCst);
        let status = wait_for(&context, &world.host, "finding", has("HOST_SPACE_LOW")).await;
        assert!(!world.host.is_frozen());
        let before = status.recovery_points.len();
        world.free_bytes.store(1 << 40, Ordering::SeqCst);
        wait_for(&context, &world.host, "points again", points(before + 2)).await;
        replicator.stop().await;
        world.host.check_store(&world.store()).await;
    });
}

#[test]
fn an_engine_of_an_older_generation_stops_for_good() {
    let world = World::new(10);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let old = protect(&world, &context, 2).await;
        // A second engine, with its own state, is given generation 2.
        let other = World::new(10);
        let second = Context {
            hypervisor: other.host.clone(),
            ..Arc::into_inner(other.context(Arc::new(NoPauses), None)).unwrap()
        };
        let second = Arc::new(second);
        let new = Replicator::start(second.clone(), world.spec(2), active());
        wait_for(&second, &other.host, "taken over", |status| {
            status.state() == State::Protected && points(3)(status)
        })
        .await;
        let status = wait_for(&context, &world.host, "fenced", |status| {
            status.state() == State::Fenced
        })
        .await;
        assert!(has("FENCED")(&status));
        assert!(!world.host.is_frozen());
        let before = world.host.now();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(
            world.host.now(),
            before,
            "a fenced item is not frozen any more"
        );
        new.stop().await;
        old.stop().await;
    });
}

#[test]
fn retirement_leaves_nothing_even_when_it_is_killed_in_between() {
    for (visits, delete_replica) in [(0, true), (1, true), (2, false)] {
        let world = World::new(11);
        life(async {
            let context = world.context(Arc::new(NoPauses), None);
            protect(&world, &context, 3).await.stop().await;
        });
        life(async {
            let stop_at = StopAt::new(Some(pauses::RETIRING), visits);
            let context = world.context(stop_at.clone(), None);
            let _replicator =
                Replicator::start(context, world.spec(1), Wish::Retired { delete_replica });
            tokio::time::timeout(Duration::from_secs(60), stop_at.reached.notified())
                .await
                .ok();
        });
        life(async {
            let context = world.context(Arc::new(NoPauses), None);
            let replicator = Replicator::start(
                context.clone(),
                world.spec(1),
                Wish::Retired { delete_replica },
            );
            let status = wait_for(&context, &world.host, "retired", |status| {
                status.state() == State::Retired
            })
            .await;
            assert!(status.findings.is_empty());
            replicator.stop().await;
        });
        assert_eq!(world.leftovers(), Vec::<String>::new());
        assert_eq!(world.host.tracking_count(), 0);
        let replica = world.store().join(support::VAULT).join(support::ITEM);
        // A tombstone stays, so that no stale engine makes it anew.
        assert_eq!(replica.join("manifest").exists(), !delete_replica);
    }
}
