//! Disks that grow, come, go or are replaced, replicas that are gone, keys that change: nothing is copied again, nothing is lost.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engine::replicator::pauses::{self, NoPauses};
use engine::replicator::{Context, Replicator};
use engine_protocol::v1::ReplicationStatus;
use engine_protocol::v1::replication_status::State;
use replica_store::fault::Faults;
use replica_store::{ReplicaKey, ReplicaReader, StoreTarget};
use replication_log::KeyRing;
use support::item::{count, has, points, protect, quiet, with};
use support::{BLOCK, BadStore, ITEM, StopAt, VAULT, World, active, life, wait_for};
use uuid::Uuid;

#[test]
fn a_disk_that_grows_goes_on_without_a_copy() {
    let world = World::new(41);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = protect(&world, &context, 3).await;
        world.host.grow_disk(1, 60);
        world.host.write(1, 59 * BLOCK, &[5; 5000]);
        wait_for(&context, &world.host, "points", points(7)).await;
        replicator.stop().await;
        world.host.restart_vm();
    });
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = protect(&world, &context, 10).await;
        replicator.stop().await;
        let all = world.host.check_store(&world.store()).await;
        assert!(all.len() >= 10);
    });
}

#[test]
fn a_disk_that_shrinks_or_is_replaced_is_told_and_nothing_is_copied_blindly() {
    let world = World::new(42);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let spec = world.spec(1);
        let replicator = protect(&world, &context, 2).await;
        world.host.replace_disk(1, 99);
        let status = wait_for(&context, &world.host, "told", has("DISK_REPLACED")).await;
        assert_eq!(status.state(), State::Blocked);
        world.host.replace_disk(1, 2);
        wait_for(&context, &world.host, "points", points(4)).await;
        replicator.stop().await;
        world.host.shrink_disk(1, 20);
        let replicator = Replicator::start(context.clone(), spec, active());
        let status = wait_for_quietly(&context, "told", has("DISK_SHRUNK")).await;
        assert_eq!(status.state(), State::Blocked);
        replicator.stop().await;
    });
}

async fn wait_for_quietly(
    context: &Context,
    what: &str,
    wanted: impl Fn(&ReplicationStatus) -> bool,
) -> ReplicationStatus {
    quiet(context, what, wanted).await;
    context.board.replication(ITEM).unwrap()
}

#[test]
fn an_added_disk_joins_while_the_others_go_on_and_an_excluded_one_leaves() {
    let world = World::new(43);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let two = world.spec(1);
        let replicator = protect(&world, &context, 3).await;
        let id = world.host.add_disk(3, "more.vhdx", 50);
        for block in 0..50 {
            world
                .host
                .write(2, block * BLOCK + 100, &[block as u8; 4000]);
        }
        let three = world.spec(1);
        assert!(
            !replicator.adopt(&three, active()),
            "a new task takes it up"
        );
        replicator.stop().await;
        let replicator = Replicator::start(context.clone(), three, active());
        wait_for(&context, &world.host, "points", points(8)).await;
        replicator.stop().await;
        let all = world.host.check_store(&world.store()).await;
        let key = ReplicaKey::new(VAULT, ITEM).unwrap();
        let target = StoreTarget::Folder(world.store());
        let reader = ReplicaReader::open(&target, &key).await.unwrap();
        let newest = replica_store::PointSelector::Id(all.last().unwrap().id);
        let view = reader.view(newest).await.unwrap();
        assert!(view.disks().iter().any(|disk| disk.id == id.0));
        let oldest = replica_store::PointSelector::Id(all[0].id);
        assert_eq!(reader.view(oldest).await.unwrap().disks().len(), 2);
        // It leaves, and comes back.
        for spec in [two, world.spec(1)] {
            let disks = spec.disks.len();
            let replicator = Replicator::start(context.clone(), spec, active());
            let count = count(&context);
            wait_for(&context, &world.host, "points", points(count + 3)).await;
            replicator.stop().await;
            let all = world.host.check_store(&world.store()).await;
            let newest = replica_store::PointSelector::Id(all.last().unwrap().id);
            assert_eq!(reader.view(newest).await.unwrap().disks().len(), disks);
        }
    });
}

#[test]
fn joining_goes_on_after_a_kill_and_with_a_store_that_was_away() {
    for visits in 0..3 {
        let world = World::new(44);
        life(async {
            let context = world.context(Arc::new(NoPauses), None);
            protect(&world, &context, 3).await.stop().await;
        });
        world.host.add_disk(3, "more.vhdx", 50);
        for block in 0..50 {
            world.host.write(2, block * BLOCK, &[block as u8 + 1; 700]);
        }
        life(async {
            let place = [pauses::JOINING, pauses::BASE_WRITING, pauses::LOGS_CLOSED][visits];
            let stop_at = StopAt::new(Some(place), visits as u64 % 2);
            let context = world.context(stop_at.clone(), None);
            let _replicator = Replicator::start(context.clone(), world.spec(1), active());
            tokio::select! {
                () = stop_at.reached.notified() => {}
                () = tokio::time::sleep(Duration::from_secs(200)) => {}
            }
        });
        let store = BadStore::new(0, 0);
        store.away.store(true, Ordering::SeqCst);
        life(async {
            let faults = Some(store.clone() as Arc<dyn Faults>);
            let context = world.context(Arc::new(NoPauses), faults);
            let replicator = Replicator::start(context.clone(), world.spec(1), active());
            wait_for(&context, &world.host, "the others go on", |status| {
                status.backlog_cycles >= 2
            })
            .await;
            store.away.store(false, Ordering::SeqCst);
            wait_for(&context, &world.host, "points", points(8)).await;
            replicator.stop().await;
            let all = world.host.check_store(&world.store()).await;
            let key = ReplicaKey::new(VAULT, ITEM).unwrap();
            let target = StoreTarget::Folder(world.store());
            let reader = ReplicaReader::open(&target, &key).await.unwrap();
            let newest = replica_store::PointSelector::Id(all.last().unwrap().id);
            assert_eq!(reader.view(newest).await.unwrap().disks().len(), 3);
        });
    }
}

#[test]
fn a_replica_that_was_complete_once_is_never_begun_anew_in_an_empty_store() {
    let world = World::new(45);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        protect(&world, &context, 2).await.stop().await;
    });
    // Replica and all state of the engine are lost.
    for name in ["store", "state"] {
        let folder = world.folder.path().join(name);
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::create_dir(folder).unwrap();
    }
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let wish = with(|policy| policy.replica_exists = true);
        let replicator = Replicator::start(context.clone(), world.spec(1), wish);
        let status = wait_for(&context, &world.host, "told", has("REPLICA_MISSING")).await;
        assert_eq!(status.state(), State::Blocked);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(std::fs::read_dir(world.store()).unwrap().count(), 0);
        replicator.stop().await;
    });
}

#[test]
fn a_new_key_encrypts_what_comes_after_it_and_the_old_one_still_opens_what_came_before() {
    let world = World::new(46);
    let (old, new) = (Uuid::from_u128(0xa), Uuid::from_u128(0xb));
    let ring = |ids: &[Uuid], active: Uuid| {
        let mut keys = KeyRing::new();
        for id in ids {
            keys.insert(*id, &[id.as_u128() as u8; 32]).unwrap();
        }
        keys.activate(Some(active)).unwrap();
        keys
    };
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let first = ring(&[old], old);
        let wish = with(|policy| policy.keys = first);
        let replicator = Replicator::start(context.clone(), world.spec(1), wish);
        wait_for(&context, &world.host, "points", points(4)).await;
        let both = ring(&[old, new], new);
        let rotated = with(|policy| policy.keys = both.clone());
        assert!(replicator.adopt(&world.spec(1), rotated));
        wait_for(&context, &world.host, "points", points(8)).await;
        replicator.stop().await;
        let key = ReplicaKey::new(VAULT, ITEM).unwrap();
        let target = StoreTarget::Folder(world.store());
        for (keys, readable) in [
            (both, true),
            (ring(&[old], old), false),
            (KeyRing::new(), false),
        ] {
            let reader = ReplicaReader::open_with_keys(&target, &key, keys)
                .await
                .unwrap();
            let newest = reader.view(replica_store::PointSelector::Newest).await;
            let read = match newest {
                Ok(view) => {
                    let disk = view.disks()[0].clone();
                    view.read(disk.id, 0, disk.size_bytes as usize)
                        .await
                        .is_ok()
                }
                Err(_) => false,
            };
            assert_eq!(read, readable);
        }
    });
}
