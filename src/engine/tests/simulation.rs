//! Lives and deaths of an engine, drawn from seeds: crashes at named places and in the middle of nothing, a store
//! that fails in all three ways or is away, VMs that restart. Afterwards every recovery point must equal what
//! the disks held at its freeze, and no cycle may have sent more than the guest wrote.
//!
//! Replay one seed: `SIMULATION_SEED=7 cargo test -p engine --test simulation`.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engine::replicator::Replicator;
use engine::replicator::pauses::{NoPauses, PLACES};
use replica_store::fault::Faults;
use support::{BadStore, Random, StopAt, World, active, life, wait_for};

const SEEDS: u64 = 60;
const LIVES: u64 = 6;

#[test]
fn every_point_equals_its_freeze_whatever_happened() {
    let seeds = match std::env::var("SIMULATION_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..SEEDS).collect(),
    };
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| simulate(seed));
        if let Err(panic) = outcome {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            panic!("seed {seed} failed (replay with SIMULATION_SEED={seed}): {text}");
        }
    }
}

fn simulate(seed: u64) {
    let mut random = Random::new(seed);
    let world = World::new(seed);
    for number in 0..LIVES {
        one_life(&world, &mut random, seed * LIVES + number);
        if random.chance(30) {
            world.host.restart_vm();
        }
        for _ in 0..random.below(20) {
            world.host.guest_writes();
        }
    }
    life(async {
        world.host.restart_vm();
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = Replicator::start(context.clone(), world.spec(1), active());
        let first = wait_for(&context, &world.host, "protected", |status| {
            !status.recovery_points.is_empty() && status.backlog_cycles == 0
        })
        .await;
        let count = first.recovery_points.len();
        wait_for(&context, &world.host, "two more points", |status| {
            status.recovery_points.len() >= count + 2
        })
        .await;
        replicator.stop().await;
        assert!(!world.host.is_frozen());
        let stored = world.host.check_store(&world.store()).await;
        assert_eq!(
            stored.len() as u64,
            stored.last().unwrap().position.0 + 1,
            "no position without its point"
        );
    });
}

/// One life: ends by a crash at a place, at a random instant, or in good order.
fn one_life(world: &World, random: &mut Random, seed: u64) {
    let place = random
        .chance(60)
        .then(|| PLACES[random.below(PLACES.len() as u64) as usize]);
    let stop_at = StopAt::new(place, random.below(4));
    let percent = [0, 0, 2, 8][random.below(4) as usize];
    let store = BadStore::new(seed, percent);
    let seconds = 5 + random.below(120);
    let in_order = random.chance(25);
    life(async {
        let context = world.context(stop_at.clone(), Some(store.clone() as Arc<dyn Faults>));
        let replicator = Replicator::start(context, world.spec(1), active());
        let mut chaos = random.clone();
        let guest = async {
            loop {
                world.host.guest_writes();
                if chaos.chance(2) {
                    world.host.restart_vm();
                }
                if chaos.chance(2) {
                    store.away.store(chaos.chance(50), Ordering::SeqCst);
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let crashed = tokio::select! {
            () = stop_at.reached.notified() => true,
            () = guest => true,
            () = tokio::time::sleep(Duration::from_secs(seconds)) => false,
        };
        if in_order && !crashed && place.is_none() {
            replicator.stop().await;
            assert!(
                !world.host.is_frozen(),
                "a point stays frozen after an orderly stop"
            );
        }
    });
    random.next();
}
