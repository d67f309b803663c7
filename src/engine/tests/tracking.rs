//! Change tracking that can't lie: what is sent is what changed, and whatever could hide a change is found and healed.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use engine::replicator::Replicator;
use engine::replicator::pauses::{self, NoPauses, Pauses};
use engine::time_window::TimeWindow;
use engine_protocol::v1;
use engine_protocol::v1::disk_status::Tracking;
use engine_protocol::v1::replication_status::State;
use replica_store::fault::Faults;
use support::item::{count, has, points, protect, quiet, stored, tracking_of, with};
use support::{BLOCK, BadStore, ITEM, Random, StopAt, World, active, life, wait_for};

#[test]
fn what_is_sent_is_what_changed_at_4_kib_however_coarse_the_tracker_is() {
    let world = World::with_disks(31, &[1024]);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = protect(&world, &context, 2).await;
        let mut random = Random::new(31);
        for round in 0..4 {
            let before = count(&context);
            quiet(&context, "a quiet point", points(before + 1)).await;
            for _ in 0..60 {
                let length = 4096 * (1 + random.below(16) as usize);
                let offset = 4096 * random.below(1024 * 16 - 16) as usize;
                // Some of it is what is there already.
                let value = (random.below(3) * 85) as u8 + round;
                world.host.write(0, offset, &vec![value; length]);
            }
            quiet(&context, "the point after it", points(before + 3)).await;
        }
        replicator.stop().await;
        let all = world.host.check_store(&world.store()).await;
        let (mut sent, mut changed) = (0, 0);
        for pair in all[2..].windows(2) {
            sent += pair[1].changed_bytes;
            changed += world
                .host
                .differing_bytes(pair[0].time_unix_ms, pair[1].time_unix_ms);
        }
        assert!(changed > 4 << 20, "{changed}");
        assert!(sent * 10 <= changed * 11, "{sent} of {changed}");
    });
}

#[test]
fn writes_that_change_nothing_are_not_sent() {
    let world = World::new(32);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = protect(&world, &context, 2).await;
        world.host.write(0, 5 * BLOCK, &[7; BLOCK]);
        quiet(&context, "sent", points(4)).await;
        world.host.write(0, 5 * BLOCK, &[7; BLOCK]);
        world.host.write(1, 6 * BLOCK + 4096, &[9; 100]);
        let before = count(&context);
        quiet(&context, "sent again", points(before + 2)).await;
        replicator.stop().await;
        let all = world.host.check_store(&world.store()).await;
        // The reader lets the guest write now and then, so a cycle may have more than the two writes.
        for pair in all[before - 1..].windows(2) {
            let differing = world
                .host
                .differing_bytes(pair[0].time_unix_ms, pair[1].time_unix_ms);
            assert_eq!(pair[1].changed_bytes, differing);
        }
    });
}

#[test]
fn maps_that_are_lost_or_damaged_only_cost_bytes() {
    for damage in ["gone", "garbage", "one page"] {
        let world = World::new(33);
        life(async {
            let context = world.context(Arc::new(NoPauses), None);
            protect(&world, &context, 4).await.stop().await;
        });
        let folder = world
            .folder
            .path()
            .join("state")
            .join(format!("{ITEM}.hashes"));
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match damage {
                "gone" => std::fs::remove_file(path).unwrap(),
                "garbage" => std::fs::write(path, vec![0x5a; 30_000]).unwrap(),
                _ => {
                    let mut bytes = std::fs::read(&path).unwrap();
                    bytes[2 * 4096 + 5] ^= 1;
                    std::fs::write(path, bytes).unwrap();
                }
            }
        }
        life(async {
            world.host.restart_vm();
            let context = world.context(Arc::new(NoPauses), None);
            let replicator = protect(&world, &context, 9).await;
            // The comparison has asked the store, so the map knows again.
            world.host.restart_vm();
            wait_for(&context, &world.host, "compared again", points(12)).await;
            replicator.stop().await;
            world.host.check_store(&world.store()).await;
        });
    }
}

/// Every piece of a comparison takes longer than a slice may.
#[derive(Debug)]
struct SlowComparisons;

#[async_trait]
impl Pauses for SlowComparisons {
    async fn pass(&self, place: &'static str) {
        if place == pauses::COMPARING {
            tokio::time::sleep(Duration::from_secs(310)).await;
        }
    }
}

#[test]
fn a_long_comparison_runs_in_slices_and_points_come_when_every_disk_is_known() {
    let world = World::with_disks(34, &[200, 33]);
    life(async {
        let context = world.context(Arc::new(SlowComparisons), None);
        let replicator = protect(&world, &context, 3).await;
        let before = count(&context);
        world.host.lose_tracking_of(0);
        wait_for(&context, &world.host, "comparing", |status| {
            tracking_of(status, 0) == Tracking::Comparing
        })
        .await;
        let status = wait_for(&context, &world.host, "the second slice", |status| {
            status
                .disks
                .first()
                .is_some_and(|disk| disk.compared_bytes > 4 << 20)
        })
        .await;
        assert_eq!(status.state(), State::Comparing);
        assert_eq!(tracking_of(&status, 1), Tracking::Tracked);
        assert!(!status.disks[0].reason.is_empty());
        assert!(status.recovery_points.len() <= before + 2);
        wait_for(&context, &world.host, "the last slice", |status| {
            status
                .disks
                .first()
                .is_some_and(|disk| disk.compared_bytes > 8 << 20)
        })
        .await;
        wait_for(&context, &world.host, "its end", |status| {
            status
                .disks
                .first()
                .is_some_and(|disk| disk.compared_bytes > 12 << 20)
        })
        .await;
        wait_for(&context, &world.host, "protected again", |status| {
            status.state() == State::Protected
        })
        .await;
        wait_for(&context, &world.host, "points again", points(before + 3)).await;
        replicator.stop().await;
        let all = world.host.check_store(&world.store()).await;
        let newest = all.last().unwrap().position.0 as usize;
        assert!(newest > all.len(), "slices are cycles without points");
    });
}

#[test]
fn a_killed_comparison_goes_on_where_it_was() {
    for visits in 0..4 {
        let world = World::with_disks(35, &[200, 33]);
        life(async {
            let context = world.context(Arc::new(NoPauses), None);
            protect(&world, &context, 3).await.stop().await;
            world.host.lose_tracking_of(0);
        });
        life(async {
            // Stops the world at a slice; slices are cut by time.
            let stop_at = StopAt::new(Some(pauses::RECORDED), visits);
            let context = world.context(stop_at.clone(), None);
            let _replicator = Replicator::start(context.clone(), world.spec(1), active());
            tokio::select! {
                () = stop_at.reached.notified() => {}
                () = async {
                    loop {
                        world.host.guest_writes();
                        tokio::time::sleep(Duration::from_millis(300)).await;
                    }
                } => {}
            }
        });
        life(async {
            let context = world.context(Arc::new(NoPauses), None);
            let replicator = protect(&world, &context, 8).await;
            replicator.stop().await;
            world.host.check_store(&world.store()).await;
        });
    }
}

#[test]
fn comparisons_wait_for_their_window_and_say_until_when() {
    let world = World::new(36);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = protect(&world, &context, 3).await;
        // The host in memory lives in the night of a Tuesday.
        let closed = TimeWindow::read(&v1::TimeWindow {
            days: vec![4],
            start_minute: 60,
            end_minute: 120,
            utc_offset_minutes: 0,
        });
        let waits = with(|policy| policy.comparison_windows = vec![closed.unwrap()]);
        assert!(replicator.adopt(&world.spec(1), waits));
        world.host.lose_tracking_of(1);
        let status = wait_for(&context, &world.host, "waiting", has("COMPARISON_WAITS")).await;
        let finding = status
            .findings
            .iter()
            .find(|finding| finding.code == "COMPARISON_WAITS");
        assert!(
            finding.unwrap().summary.contains("2023-11-17T01:00:"),
            "{finding:?}"
        );
        assert_eq!(tracking_of(&status, 1), Tracking::Suspect);
        let before = stored(&world).await.len();
        for _ in 0..300 {
            world.host.guest_writes();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(
            stored(&world).await.len(),
            before,
            "no point without all disks"
        );
        assert!(replicator.adopt(&world.spec(1), active()));
        wait_for(&context, &world.host, "healed", |status| {
            points(before + 2)(status) && !has("COMPARISON_WAITS")(status)
        })
        .await;
        replicator.stop().await;
        world.host.check_store(&world.store()).await;
    });
}

#[test]
fn logs_over_their_quota_are_dropped_and_the_disk_is_compared() {
    let world = World::with_disks(37, &[1024, 33]);
    let store = BadStore::new(0, 0);
    life(async {
        let faults = Some(store.clone() as Arc<dyn Faults>);
        let context = world.context(Arc::new(NoPauses), faults);
        let replicator = protect(&world, &context, 2).await;
        let low = with(|policy| policy.log_quota_percent = 30);
        assert!(replicator.adopt(&world.spec(1), low));
        store.away.store(true, Ordering::SeqCst);
        let mut random = Random::new(37);
        let mut most = 0;
        for _ in 0..40 {
            for _ in 0..4 {
                let value = 1 + random.below(255) as u8;
                let at = random.below(1000) as usize * BLOCK;
                world.host.write(0, at, &vec![value; 12 * BLOCK]);
            }
            tokio::time::sleep(Duration::from_secs(10)).await;
            let status = context.board.replication(ITEM).unwrap();
            most = most.max(status.backlog_bytes);
        }
        let quota = (1024 * BLOCK as u64) * 30 / 100;
        assert!(most > quota / 2 && most < 2 * quota, "{most} of {quota}");
        let status = context.board.replication(ITEM).unwrap();
        assert_ne!(tracking_of(&status, 0), Tracking::Tracked);
        assert!(
            status.disks[0].reason.contains("MiB"),
            "{}",
            status.disks[0].reason
        );
        assert!(!world.host.is_frozen());
        let before = count(&context);
        store.away.store(false, Ordering::SeqCst);
        wait_for(&context, &world.host, "healed", |status| {
            points(before + 3)(status) && tracking_of(status, 0) == Tracking::Tracked
        })
        .await;
        replicator.stop().await;
        world.host.check_store(&world.store()).await;
    });
}

#[test]
fn a_comparison_that_a_person_asks_for_is_carried_out_once() {
    let world = World::new(38);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = protect(&world, &context, 3).await;
        let before = world.host.read_bytes();
        let asked = || with(|policy| policy.resynchronize = 7);
        assert!(replicator.adopt(&world.spec(1), asked()));
        let status = wait_for(&context, &world.host, "carried out", |status| {
            status.resynchronized == 7
        })
        .await;
        assert!(world.host.read_bytes() - before >= world.host.allocated_bytes() / 2);
        assert!(replicator.adopt(&world.spec(1), asked()));
        let count = status.recovery_points.len();
        wait_for(&context, &world.host, "points", points(count + 3)).await;
        replicator.stop().await;
        world.host.check_store(&world.store()).await;
    });
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let wish = with(|policy| policy.resynchronize = 7);
        let replicator = Replicator::start(context.clone(), world.spec(1), wish);
        let status = wait_for(&context, &world.host, "known after a restart", points(3)).await;
        assert_eq!(status.resynchronized, 7);
        replicator.stop().await;
    });
}

#[test]
fn an_image_that_is_written_while_its_vm_is_off_is_found_even_when_tracking_survives() {
    for engine_looks in [true, false] {
        let world = World::new(39);
        world.host.make_image_files();
        world.host.let_tracking_survive();
        let edit = |world: &World| {
            world.host.edit_image(1, 30 * BLOCK + 9, 0xee);
            world.host.set_running(true);
        };
        life(async {
            let context = world.context(Arc::new(NoPauses), None);
            let replicator = protect(&world, &context, 3).await;
            if engine_looks {
                world.host.set_running(false);
                wait_for(&context, &world.host, "seen off", has("VM_NOT_RUNNING")).await;
                tokio::time::sleep(Duration::from_secs(10)).await;
                world.host.edit_image(1, 30 * BLOCK + 9, 0xee);
                tokio::time::sleep(Duration::from_secs(10)).await;
                world.host.set_running(true);
                wait_for(&context, &world.host, "points", points(6)).await;
            }
            replicator.stop().await;
        });
        if !engine_looks {
            world.host.set_running(false);
            edit(&world);
            world.host.set_running(false);
        }
        life(async {
            let context = world.context(Arc::new(NoPauses), None);
            let replicator = Replicator::start(context.clone(), world.spec(1), active());
            tokio::time::sleep(Duration::from_secs(20)).await;
            world.host.set_running(true);
            wait_for(&context, &world.host, "points", points(8)).await;
            replicator.stop().await;
            world.host.check_store(&world.store()).await;
        });
    }
}

#[test]
fn a_vm_that_was_off_untouched_is_not_compared() {
    let world = World::new(40);
    world.host.make_image_files();
    world.host.let_tracking_survive();
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = protect(&world, &context, 3).await;
        world.host.set_running(false);
        wait_for(&context, &world.host, "seen off", has("VM_NOT_RUNNING")).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        let before = world.host.read_bytes();
        world.host.set_running(true);
        quiet(&context, "points", points(6)).await;
        assert!(world.host.read_bytes() - before < world.host.allocated_bytes() / 2);
        replicator.stop().await;
        world.host.check_store(&world.store()).await;
    });
}
