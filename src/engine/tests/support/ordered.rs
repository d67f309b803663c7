//! An engine whose items are under orders: what the orchestrator sends it, and what it says.

use std::sync::Arc;

use engine::desired::DesiredFile;
use engine::reconcile::Reconciler;
use engine::replicator::Context;
use engine::replicator::pauses::Pauses;
use engine_protocol::orders::{source_message, source_said};
use engine_protocol::v1::{self, DesiredState, ReplicationStatus};
use protection::Generation;
use protection::life::{SourceOrder, SourceSaid};
use replica_store::{PointSelector, ReplicaKey, ReplicaReader, StoreTarget};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{ITEM, VAULT, World, wait_for};

/// Licence of the activation.
pub const LICENCE: Generation = Generation(1);

/// An engine that runs.
pub struct Engine {
    pub context: Arc<Context>,
    desired: watch::Sender<Option<DesiredState>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Engine {
    /// Starts it; it takes up the state that is kept.
    pub fn start(world: &World, pauses: Arc<dyn Pauses>) -> Self {
        let context = world.context(pauses, None);
        let (desired, seen) = watch::channel(None);
        let file = DesiredFile::new(&context.state_folder);
        let stop = CancellationToken::new();
        let reconciler = Reconciler::new(context.clone(), file, true, None);
        let task = tokio::spawn(reconciler.run(seen, stop.clone()));
        Self {
            context,
            desired,
            stop,
            task,
        }
    }

    /// The orchestrator says so.
    pub fn tell(&self, message: v1::Replication) {
        self.desired.send_replace(Some(DesiredState {
            generation: 1,
            replications: vec![message],
            ..DesiredState::default()
        }));
    }

    pub fn order(&self, world: &World, epoch: u64, order: SourceOrder) {
        self.tell(message(world, epoch, order));
    }

    pub async fn wait(
        &self,
        world: &World,
        what: &str,
        wanted: impl Fn(&ReplicationStatus) -> bool,
    ) -> ReplicationStatus {
        wait_for(&self.context, &world.host, what, wanted).await
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// The item under an order.
pub fn message(world: &World, epoch: u64, order: SourceOrder) -> v1::Replication {
    let leaves = matches!(order, SourceOrder::LeaveRunning | SourceOrder::LeaveOff);
    let phase = if leaves {
        v1::replication::Phase::Retired
    } else {
        v1::replication::Phase::Active
    };
    v1::Replication {
        item_id: ITEM.to_owned(),
        vault_key: VAULT.to_owned(),
        generation: LICENCE.0,
        vm_id: world.host.vm.to_string(),
        disk_ids: world.host.disks().iter().map(ToString::to_string).collect(),
        store: Some(v1::StoreTarget {
            kind: Some(v1::store_target::Kind::Folder(
                world.store().display().to_string(),
            )),
            ..v1::StoreTarget::default()
        }),
        policy: Some(v1::Policy {
            replication_interval_seconds: 10,
            retention_hours: 100,
            ..v1::Policy::default()
        }),
        phase: phase.into(),
        vm_name: "web01".to_owned(),
        order: Some(source_message(Generation(epoch), order)),
        ..v1::Replication::default()
    }
}

/// The item says this of this order.
pub fn says(epoch: u64, said: SourceSaid) -> impl Fn(&ReplicationStatus) -> bool {
    move |status| {
        let source = status.source.as_ref();
        source.and_then(source_said) == Some((Generation(epoch), said))
    }
}

/// The newest point is the one that was named, and holds what the disks hold now.
pub async fn newest_is(world: &World, status: &ReplicationStatus) {
    let named = status.source.as_ref().unwrap().point_id.clone();
    let target = StoreTarget::Folder(world.store());
    let key = ReplicaKey::new(VAULT, ITEM).unwrap();
    let reader = ReplicaReader::open(&target, &key).await.unwrap();
    let newest = reader.points().await.unwrap().pop().unwrap();
    assert_eq!(newest.id.to_string(), named);
    let listed = status.recovery_points.last();
    assert_eq!(listed.map(|point| point.id.clone()), Some(named));
    let view = reader.view(PointSelector::Id(newest.id)).await.unwrap();
    for (id, expected) in world.host.disks().iter().zip(world.host.contents()) {
        let got = view.read(id.0, 0, expected.len()).await.unwrap();
        assert!(
            blake3::hash(&got) == blake3::hash(&expected),
            "disk {id} is not in the point as it was left"
        );
    }
}
