//! Ways in which a replica could become silently wrong, or replication stand still for ever: each once happened.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use engine::replicator::pauses::{self, NoPauses, Pauses};
use engine::replicator::state::{CycleRecord, ItemFiles, ItemState};
use engine::replicator::{Context, Replicator};
use engine::vm_config::VmConfig;
use hypervisor::{Hypervisor as _, TrackingId};
use replica_store::fault::Faults;
use replica_store::{DiskSpec, Generation, Position, ReplicaKey, ReplicaWriter, StoreTarget};
use support::item::{comes_to_points, killed_at, points};
use support::{BLOCK, BadStore, ITEM, VAULT, World, active, life, wait_for};
use tokio::sync::{Notify, Semaphore};
use uuid::Uuid;

/// Puts a cycle of somebody else at the head of the replica: zeroes over the first blocks of every disk.
async fn foreign_cycle(world: &World) -> Position {
    let target = StoreTarget::Folder(world.store());
    let key = ReplicaKey::new(VAULT, ITEM).unwrap();
    let reader = replica_store::ReplicaReader::open(&target, &key)
        .await
        .unwrap();
    let head = reader.points().await.unwrap().last().unwrap().position;
    let sizes = [40 * BLOCK as u64, 33 * BLOCK as u64];
    let disks: Vec<DiskSpec> = world
        .host
        .disks()
        .iter()
        .zip(sizes)
        .map(|(id, size_bytes)| DiskSpec {
            id: id.0,
            size_bytes,
            name: String::new(),
        })
        .collect();
    let writer = ReplicaWriter::open(&target, &key, Generation(1), &disks)
        .await
        .unwrap();
    let position = Position(head.0 + 1);
    let mut cycle = writer.begin_cycle(position, 1).await.unwrap();
    for disk in &disks {
        cycle.zero(disk.id, 0, 20 * BLOCK as u64).await.unwrap();
    }
    cycle.commit().await.unwrap();
    position
}

/// Holds every capture up in front of its record while it is shut.
#[derive(Debug)]
struct Gate {
    shut: AtomicBool,
    reached: Notify,
    open: Semaphore,
}

#[async_trait]
impl Pauses for Gate {
    async fn pass(&self, place: &'static str) {
        if place == pauses::LOGS_CLOSED && self.shut.load(Ordering::SeqCst) {
            self.reached.notify_one();
            self.open.acquire().await.unwrap().forget();
        }
    }
}

async fn protected(world: &World, context: &Arc<Context>) -> Replicator {
    let replicator = Replicator::start(context.clone(), world.spec(1), active());
    wait_for(context, &world.host, "protected", points(3)).await;
    replicator
}

async fn backlog(world: &World, context: &Context, count: u64) {
    wait_for(context, &world.host, "a backlog", |status| {
        status.backlog_cycles >= count
    })
    .await;
}

#[test]
fn a_cycle_that_builds_on_dropped_cycles_never_reaches_the_store() {
    let world = World::new(21);
    let store = BadStore::new(0, 0);
    let gate = Arc::new(Gate {
        shut: AtomicBool::new(false),
        reached: Notify::new(),
        open: Semaphore::new(0),
    });
    life(async {
        let faults = Some(store.clone() as Arc<dyn Faults>);
        let context = world.context(gate.clone(), faults);
        let replicator = protected(&world, &context).await;
        store.away.store(true, Ordering::SeqCst);
        backlog(&world, &context, 1).await;
        gate.shut.store(true, Ordering::SeqCst);
        gate.reached.notified().await;
        // Somebody has taken the place of the oldest waiting cycle: the waiting ones are given up.
        foreign_cycle(&world).await;
        store.away.store(false, Ordering::SeqCst);
        wait_for(&context, &world.host, "given up", |status| {
            status.backlog_cycles == 0
        })
        .await;
        gate.shut.store(false, Ordering::SeqCst);
        gate.open.add_permits(1);
        wait_for(&context, &world.host, "more points", points(6)).await;
        replicator.stop().await;
        world.host.check_store(&world.store()).await;
    });
}

#[test]
fn every_disk_is_compared_when_the_store_is_not_where_it_was_left() {
    let world = World::new(22);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        protected(&world, &context).await.stop().await;
        foreign_cycle(&world).await;
        world.host.lose_tracking_of(1);
    });
    comes_to_points(&world, 6);
}

#[test]
fn a_record_that_was_left_of_another_chain_of_cycles_is_never_shipped() {
    let world = World::new(26);
    let (generation, vm) = (1, world.host.vm);
    let config = life(async {
        let machines = world.host.virtual_machines().await.unwrap();
        VmConfig::of(&machines[0], &world.host.disks())
    });
    let record = |position, previous| {
        let tracking = TrackingId {
            generation,
            number: position,
        };
        let mut record = CycleRecord::new(generation, position, 1, tracking, config.clone());
        record.previous = previous;
        record
    };
    let files = ItemFiles::new(&world.folder.path().join("state"), ITEM);
    let mut state = ItemState::new(generation, vm, Vec::new());
    (state.complete, state.shipped) = (true, 3);
    let (first, stale) = (record(4, state.instant), record(5, Uuid::from_u128(9)));
    let second = record(5, first.point_id);
    for (next, kept) in [(&stale, 1), (&second, 2)] {
        files.store_record(&first).unwrap();
        files.store_record(next).unwrap();
        assert_eq!(files.load_spool(&state).unwrap().len(), kept);
    }
    // The store was found elsewhere, at the same position: what was captured on top of the other content goes.
    state.move_to(3);
    assert!(files.load_spool(&state).unwrap().is_empty());
    files.store_record(&second).unwrap();
    files.remove_records().unwrap();
    (state.shipped, state.instant) = (4, first.point_id);
    assert!(files.load_spool(&state).unwrap().is_empty());
}

#[test]
fn a_kill_between_giving_up_and_comparing_leaves_nothing_that_vouches_for_the_store() {
    let world = World::new(25);
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        protected(&world, &context).await.stop().await;
        foreign_cycle(&world).await;
    });
    killed_at(&world, pauses::GIVEN_UP, 0, world.spec(1), active());
    comes_to_points(&world, 6);
}

#[test]
fn a_waiting_log_that_is_gone_or_damaged_is_captured_again_without_a_restart() {
    for damage in ["gone", "damaged", "another"] {
        let world = World::new(23);
        let store = BadStore::new(0, 0);
        life(async {
            let faults = Some(store.clone() as Arc<dyn Faults>);
            let context = world.context(Arc::new(NoPauses), faults);
            let replicator = protected(&world, &context).await;
            store.away.store(true, Ordering::SeqCst);
            backlog(&world, &context, 3).await;
            let logs: Vec<_> = std::fs::read_dir(world.folder.path().join("vm"))
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            assert!(!logs.is_empty());
            for log in &logs {
                if damage == "another" {
                    // A whole log, of another cycle.
                    std::fs::copy(&logs[0], log).unwrap();
                } else if damage == "damaged" {
                    // Data of the first entry: only reading it tells.
                    let mut bytes = std::fs::read(log).unwrap();
                    for byte in &mut bytes[4096..4096 + BLOCK] {
                        *byte ^= 0xff;
                    }
                    std::fs::write(log, bytes).unwrap();
                } else {
                    std::fs::remove_file(log).unwrap();
                }
            }
            store.away.store(false, Ordering::SeqCst);
            wait_for(&context, &world.host, "points again", |status| {
                points(6)(status) && status.findings.is_empty()
            })
            .await;
            replicator.stop().await;
            world.host.check_store(&world.store()).await;
        });
    }
}

#[test]
fn captures_pause_when_the_volume_of_the_old_data_is_nearly_full() {
    let world = World::new(24);
    life(async {
        // The disks' volume has room; the engine's data folder, where the frozen point's old data go, has not.
        let full = Arc::new(AtomicBool::new(false));
        let (state, is_full) = (world.folder.path().join("state"), full.clone());
        let context = Context {
            free_bytes: Arc::new(move |path| {
                let low = is_full.load(Ordering::SeqCst) && path.starts_with(&state);
                Some(if low { 1 << 20 } else { 1 << 40 })
            }),
            ..Arc::into_inner(world.context(Arc::new(NoPauses), None)).unwrap()
        };
        let context = Arc::new(context);
        let replicator = protected(&world, &context).await;
        full.store(true, Ordering::SeqCst);
        wait_for(&context, &world.host, "finding", |status| {
            status
                .findings
                .iter()
                .any(|finding| finding.code == "HOST_SPACE_LOW")
        })
        .await;
        assert!(!world.host.is_frozen());
        full.store(false, Ordering::SeqCst);
        wait_for(&context, &world.host, "points again", points(5)).await;
        tokio::time::timeout(Duration::from_secs(60), replicator.stop())
            .await
            .unwrap();
    });
}
