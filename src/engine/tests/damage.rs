//! Damage in the store is healed out of the source, and no point that shows it is made meanwhile.

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engine::replicator::Replicator;
use engine::replicator::pauses::NoPauses;
use engine::replicator::spec::Wish;
use replica_store::{PointSelector, ReplicaKey, ReplicaReader, StoreTarget};
use support::item::{count, has, points, protect, with};
use support::{BLOCK, ITEM, VAULT, World, life, wait_for};

/// The journal's objects, oldest first.
fn objects(world: &World) -> Vec<PathBuf> {
    let journal = world.store().join(VAULT).join(ITEM).join("journal");
    let mut objects: Vec<_> = std::fs::read_dir(journal)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    objects.sort();
    objects
}

/// Nothing of the object can be read any more: it may have changed anything.
fn destroy(object: &PathBuf) {
    let mut bytes = std::fs::read(object).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 0xff);
    std::fs::write(object, bytes).unwrap();
}

/// Whether all of the newest point can be read.
async fn newest_is_whole(world: &World) -> bool {
    let key = ReplicaKey::new(VAULT, ITEM).unwrap();
    let target = StoreTarget::Folder(world.store());
    let reader = ReplicaReader::open(&target, &key).await.unwrap();
    let view = reader.view(PointSelector::Newest).await.unwrap();
    for disk in view.disks().to_vec() {
        for at in (0..disk.size_bytes).step_by(BLOCK) {
            if view.read(disk.id, at, BLOCK).await.is_err() {
                return false;
            }
        }
    }
    true
}

#[test]
fn a_damaged_object_that_hides_a_large_disk_is_healed_slice_by_slice_and_points_come_when_it_is() {
    // The first disk has four times what its waiting logs may take.
    let world = World::with_disks(91, &[1024, 33]);
    for block in 0..1024 {
        let text = vec![(block % 251) as u8 + 1; BLOCK];
        world.host.write(0, block * BLOCK, &text);
    }
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let verified = || {
            with(|policy| {
                policy.verification = Some(Duration::from_secs(20));
                policy.log_quota_percent = 1;
            })
        };
        let replicator = Replicator::start(context.clone(), world.spec(1), verified());
        wait_for(&context, &world.host, "points", points(4)).await;
        destroy(&objects(&world)[1]);
        wait_for(&context, &world.host, "told", has("POINTS_DAMAGED")).await;
        let before = count(&context);
        wait_for(&context, &world.host, "points again", points(before + 2)).await;
        assert!(newest_is_whole(&world).await);
        replicator.stop().await;
    });
}

#[test]
fn a_comparison_with_a_damaged_replica_sends_what_can_not_be_read_there() {
    let world = World::new(92);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        protect(&world, &context, 4).await.stop().await;
    });
    destroy(&objects(&world)[1]);
    // No map tells what the replica holds: it is asked itself.
    let maps = world.folder.path().join("state");
    std::fs::remove_dir_all(maps.join(format!("{ITEM}.hashes"))).unwrap();
    world.host.restart_vm();
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let plain: Wish = with(|_| {});
        let replicator = Replicator::start(context.clone(), world.spec(1), plain);
        wait_for(&context, &world.host, "points", points(6)).await;
        assert!(newest_is_whole(&world).await);
        replicator.stop().await;
    });
}
