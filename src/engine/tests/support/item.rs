//! One protected item in tests: its policies, its points, what it says of its tracking.

use std::sync::Arc;
use std::time::Duration;

use engine::replicator::pauses::NoPauses;
use engine::replicator::spec::{Policy, Spec, Wish};
use engine::replicator::{Context, Replicator};
use engine_protocol::v1::ReplicationStatus;
use engine_protocol::v1::disk_status::Tracking;
use replica_store::{RecoveryPoint, ReplicaKey, ReplicaReader, RetentionPolicy, StoreTarget};

use super::{ITEM, StopAt, VAULT, World, active, life, wait_for};

pub fn points(count: usize) -> impl Fn(&ReplicationStatus) -> bool {
    move |status| status.recovery_points.len() >= count && status.backlog_cycles == 0
}

pub fn has(code: &'static str) -> impl Fn(&ReplicationStatus) -> bool {
    move |status| status.findings.iter().any(|finding| finding.code == code)
}

pub fn policy() -> Policy {
    Policy::new(Duration::from_secs(10), RetentionPolicy::hours(100))
}

pub fn with(change: impl FnOnce(&mut Policy)) -> Wish {
    let mut policy = policy();
    change(&mut policy);
    Wish::Active(Box::new(policy))
}

pub async fn protect(world: &World, context: &Arc<Context>, count: usize) -> Replicator {
    let replicator = Replicator::start(context.clone(), world.spec(1), active());
    wait_for(context, &world.host, "protected with points", points(count)).await;
    replicator
}

/// Waits without a guest that writes.
pub async fn quiet(context: &Context, what: &str, wanted: impl Fn(&ReplicationStatus) -> bool) {
    for _ in 0..3_000 {
        if context
            .board
            .replication(ITEM)
            .is_some_and(|status| wanted(&status))
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!(
        "never came true: {what}; {:#?}",
        context.board.replication(ITEM)
    );
}

pub async fn stored(world: &World) -> Vec<RecoveryPoint> {
    let key = ReplicaKey::new(VAULT, ITEM).unwrap();
    let target = StoreTarget::Folder(world.store());
    let reader = ReplicaReader::open(&target, &key).await.unwrap();
    reader.points().await.unwrap()
}

pub fn count(context: &Context) -> usize {
    let status = context.board.replication(ITEM);
    status.map_or(0, |status| status.recovery_points.len())
}

pub fn tracking_of(status: &ReplicationStatus, disk: usize) -> Tracking {
    status
        .disks
        .get(disk)
        .map_or(Tracking::Unspecified, |disk| disk.tracking())
}

/// A life of the engine that ends at a place, as a kill there does; `after`: so many passes of it later.
pub fn killed_at(world: &World, place: &'static str, after: u64, spec: Spec, wish: Wish) {
    life(async {
        let stop_at = StopAt::new(Some(place), after);
        let context = world.context(stop_at.clone(), None);
        let _replicator = Replicator::start(context.clone(), spec, wish);
        stop_at.reached.notified().await;
    });
}

/// A life that comes to so many points, each of them as the disks were at its freeze.
pub fn comes_to_points(world: &World, count: usize) {
    life(async {
        let context = world.context(Arc::new(NoPauses), None);
        let replicator = Replicator::start(context.clone(), world.spec(1), active());
        wait_for(&context, &world.host, "points", points(count)).await;
        replicator.stop().await;
        world.host.check_store(&world.store()).await;
    });
}
