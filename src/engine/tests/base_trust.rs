//! What vouches for base stops doing so before base becomes something else: else a first copy would be silently wrong.

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use engine::replicator::Replicator;
use engine::replicator::pauses::{self, NoPauses, Pauses};
use engine::replicator::spec::Seed;
use replica_store::fault::{Fault, Faults, StepKind};
use support::item::{comes_to_points, killed_at, points, with};
use support::{BLOCK, World, active, life, wait_for};

/// Kills an engine in the first copy, when the first disk is in base, and known to be, and the second is not.
fn first_disk_is_filled(world: &World) {
    killed_at(world, pauses::BASE_WRITING, 1, world.spec(1), active());
}

#[test]
fn a_disk_that_is_resized_during_the_first_copy_is_copied_anew() {
    for blocks in [[60].as_slice(), &[30], &[60, 40], &[30, 40]] {
        let world = World::new(81);
        first_disk_is_filled(&world);
        for blocks in blocks {
            if *blocks < 40 {
                world.host.shrink_disk(0, *blocks);
            } else {
                world.host.grow_disk(0, *blocks);
            }
            killed_at(&world, pauses::BASE_WRITING, 0, world.spec(1), active());
        }
        comes_to_points(&world, 2);
    }
}

#[test]
fn a_disk_that_leaves_during_the_first_copy_and_comes_back_is_copied_anew() {
    let world = World::new(82);
    first_disk_is_filled(&world);
    let mut without = world.spec(1);
    without.disks.remove(0);
    for spec in [without, world.spec(1)] {
        killed_at(&world, pauses::BASE_WRITING, 0, spec, active());
    }
    comes_to_points(&world, 2);
}

#[test]
fn a_seed_that_comes_during_the_first_copy_does_not_bring_back_its_older_content() {
    let world = World::new(83);
    let disk = world.host.disks()[0];
    let seed = world.folder.path().join("seed.raw");
    world.host.save_raw(0, &seed);
    for block in 0..20 {
        world.host.write(0, block * BLOCK, &[0xee; 4096]);
    }
    first_disk_is_filled(&world);
    let seeded = || {
        with(|policy| {
            let path = seed.clone();
            policy.seeds = vec![Seed { disk, path }];
        })
    };
    killed_at(&world, pauses::BASE_WRITING, 0, world.spec(1), seeded());
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = Replicator::start(context.clone(), world.spec(1), seeded());
        wait_for(&context, &world.host, "points", points(2)).await;
        tokio::time::timeout(Duration::from_secs(60), replicator.stop())
            .await
            .unwrap();
        world.host.check_store(&world.store()).await;
    });
}

/// Lets the first write of a frozen disk to the first base hang until it is let go.
#[derive(Debug, Default)]
struct SlowStore {
    is_frozen: AtomicBool,
    hangs: AtomicBool,
    is_free: Mutex<bool>,
    freed: Condvar,
}

impl SlowStore {
    fn let_go(&self) {
        *self.is_free.lock().unwrap() = true;
        self.freed.notify_all();
    }
}

#[async_trait]
impl Pauses for SlowStore {
    async fn pass(&self, place: &'static str) {
        if place == pauses::FROZEN {
            self.is_frozen.store(true, Ordering::SeqCst);
        }
    }
}

impl Faults for SlowStore {
    fn before(&self, kind: StepKind, path: &Path) -> Fault {
        let is_base = path.ends_with("00000000-0000-0000-0000-000000000001/base.vhd");
        let is_begun = kind == StepKind::Write && self.is_frozen.load(Ordering::SeqCst);
        if is_base && is_begun && !self.hangs.swap(true, Ordering::SeqCst) {
            let mut is_free = self.is_free.lock().unwrap();
            while !*is_free {
                is_free = self.freed.wait(is_free).unwrap();
            }
        }
        Fault::None
    }
}

#[test]
fn a_write_of_a_try_that_was_cut_never_lands_on_what_the_next_try_writes() {
    let world = World::new(84);
    world.host.write(0, 0, &[1; BLOCK]);
    let store = Arc::new(SlowStore::default());
    let (host, free) = (world.host.clone(), world.free_bytes.clone());
    life(async {
        let context = world.context(store.clone(), Some(store.clone()));
        let replicator = Replicator::start(context.clone(), world.spec(1), active());
        // Real threads work here: time is given to them, not waited for.
        let turn = async || {
            tokio::task::spawn_blocking(std::thread::yield_now)
                .await
                .unwrap();
            tokio::time::advance(Duration::from_millis(100)).await;
        };
        while !store.hangs.load(Ordering::SeqCst) {
            turn().await;
        }
        // The try is cut, and the guest goes on.
        free.store(0, Ordering::SeqCst);
        while host.is_frozen() {
            turn().await;
        }
        free.store(1 << 40, Ordering::SeqCst);
        host.write(0, 0, &[2; BLOCK]);
        let read = host.read_bytes();
        for _ in 0..3_000 {
            turn().await;
        }
        assert_eq!(
            host.read_bytes(),
            read,
            "no try beside a write of the last one"
        );
        store.let_go();
        wait_for(&context, &world.host, "points", points(2)).await;
        replicator.stop().await;
        world.host.check_store(&world.store()).await;
    });
}
