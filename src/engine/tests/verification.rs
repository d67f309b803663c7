//! What lies in the store is proven, what is damaged there is told and sent again; a first copy may begin with a seed.

mod support;

use std::sync::Arc;
use std::time::Duration;

use engine::replicator::Replicator;
use engine::replicator::pauses::NoPauses;
use engine::replicator::spec::Seed;
use replica_store::{PointSelector, ReplicaKey, ReplicaReader, StoreTarget};
use support::item::{has, points, with};
use support::{BLOCK, ITEM, VAULT, World, life, wait_for};

#[test]
fn verification_waits_for_the_first_copy_and_then_proves_what_is_there() {
    let world = World::new(41);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let wish = with(|policy| policy.verification = Some(Duration::from_secs(3600)));
        let replicator = Replicator::start(context.clone(), world.spec(1), wish);
        let status = wait_for(&context, &world.host, "verified", |status| {
            assert!(status.findings.is_empty(), "{:?}", status.findings);
            status.last_verified_unix_ms > 0
        })
        .await;
        assert!(!status.recovery_points.is_empty());
        replicator.stop().await;
    });
}

#[test]
fn damage_in_the_store_is_told_and_points_from_then_on_are_whole() {
    let world = World::new(42);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let wish = with(|policy| policy.verification = Some(Duration::from_secs(20)));
        let replicator = Replicator::start(context.clone(), world.spec(1), wish);
        wait_for(&context, &world.host, "some points", points(3)).await;
        let journal = world.store().join(VAULT).join(ITEM).join("journal");
        let mut objects: Vec<_> = std::fs::read_dir(journal)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        objects.sort();
        let mut bytes = std::fs::read(&objects[0]).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        std::fs::write(&objects[0], &bytes).unwrap();
        let told = wait_for(
            &context,
            &world.host,
            "damage is told",
            has("POINTS_DAMAGED"),
        )
        .await;
        let count = told.recovery_points.len();
        wait_for(&context, &world.host, "two more points", points(count + 2)).await;
        replicator.stop().await;

        let key = ReplicaKey::new(VAULT, ITEM).unwrap();
        let reader = ReplicaReader::open(&StoreTarget::Folder(world.store()), &key)
            .await
            .unwrap();
        let view = reader.view(PointSelector::Newest).await.unwrap();
        for disk in view.disks() {
            for at in (0..disk.size_bytes).step_by(BLOCK) {
                view.read(disk.id, at, BLOCK).await.unwrap();
            }
        }
    });
}

#[test]
fn a_copy_that_was_brought_to_the_store_leaves_only_differences_to_be_sent() {
    let world = World::new(43);
    let disk = world.host.disks()[0];
    let seed = world.folder.path().join("seed.raw");
    world.host.save_raw(0, &seed);
    for _ in 0..10 {
        world.host.guest_writes();
    }
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let wish = with(|policy| {
            policy.seeds = vec![Seed {
                disk,
                path: seed.clone(),
            }];
        });
        let replicator = Replicator::start(context.clone(), world.spec(1), wish);
        let status = wait_for(&context, &world.host, "the first point", points(1)).await;
        replicator.stop().await;
        let seeded = std::fs::metadata(&seed).unwrap().len();
        let first = &status.recovery_points[0];
        assert!(
            first.sent_bytes + seeded / 2 < world.host.total_bytes(),
            "{} bytes were sent although {seeded} were there",
            first.sent_bytes
        );
        world.host.check_store(&world.store()).await;
    });
}
