//! A source under orders on real QEMU, with a guest that writes while it shuts down.

#[allow(dead_code, reason = "of the double's tests one thing is used")]
#[path = "support/faults.rs"]
mod faults;
#[path = "../../hypervisor/tests/support/mod.rs"]
mod lab;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use disk_image::{Access, DiskImage};
use engine::board::Board;
use engine::desired::DesiredFile;
use engine::engine::now_unix_ms;
use engine::reconcile::Reconciler;
use engine::replicator::Context;
use engine::replicator::pauses::{self, NoPauses, Pauses};
use engine::replicator::throttle::Unthrottled;
use engine_protocol::orders::{source_message, source_said};
use engine_protocol::v1::{self, DesiredState, ReplicationStatus};
use faults::StopAt;
use hypervisor::{Hypervisor, QemuDriver};
use lab::boot_sector::{self, End, SECTOR};
use lab::{BLOCK, Lab, LabVm, kill_qemu, qemu_pid};
use protection::Generation;
use protection::life::{SourceOrder, SourceSaid};
use replica_store::{PointSelector, ReplicaKey, ReplicaReader, StoreTarget};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const ITEM: &str = "11111111-2222-3333-4444-555555555555";
const VAULT: &str = "vault-0a1b2c3d";
const LICENCE: Generation = Generation(1);
const LIMIT: Duration = Duration::from_secs(120);

struct Site {
    lab: Lab,
    vm: LabVm,
    state: PathBuf,
    store: PathBuf,
}

impl Site {
    async fn new() -> Self {
        let lab = Lab::new();
        let vm = lab.vm("web01", 1, &[8, 16]).await;
        boot_sector::install(&vm.folder.join("d0.vhdx"), End::PowersOff);
        lab.driver.start(vm.id).await.unwrap();
        boot_sector::is_up(&vm.folder).await;
        let (state, store) = (
            lab.folder.path().join("state"),
            lab.folder.path().join("store"),
        );
        std::fs::create_dir(&state).unwrap();
        std::fs::create_dir(&store).unwrap();
        Self {
            lab,
            vm,
            state,
            store,
        }
    }

    fn message(&self, epoch: u64, order: SourceOrder) -> v1::Replication {
        v1::Replication {
            item_id: ITEM.to_owned(),
            vault_key: VAULT.to_owned(),
            generation: LICENCE.0,
            vm_id: self.vm.id.to_string(),
            disk_ids: self.vm.disks.iter().map(ToString::to_string).collect(),
            store: Some(v1::StoreTarget {
                kind: Some(v1::store_target::Kind::Folder(
                    self.store.display().to_string(),
                )),
                ..v1::StoreTarget::default()
            }),
            policy: Some(v1::Policy {
                replication_interval_seconds: 1,
                retention_hours: 1,
                ..v1::Policy::default()
            }),
            phase: v1::replication::Phase::Active.into(),
            vm_name: "web01".to_owned(),
            order: Some(source_message(Generation(epoch), order)),
            ..v1::Replication::default()
        }
    }

    /// Every disk's newest point is the image as it is.
    async fn newest_point_is_the_images(&self) {
        let key = ReplicaKey::new(VAULT, ITEM).unwrap();
        let target = StoreTarget::Folder(self.store.clone());
        let reader = ReplicaReader::open(&target, &key).await.unwrap();
        let view = reader.view(PointSelector::Newest).await.unwrap();
        for (index, disk) in self.vm.disks.iter().enumerate() {
            let path = self.vm.folder.join(format!("d{index}.vhdx"));
            let image = DiskImage::open(path, Access::ReadOnly).unwrap();
            let mut there = vec![0; image.virtual_size() as usize];
            image.read_at(&mut there, 0).unwrap();
            let stored = view.read(disk.0, 0, there.len()).await.unwrap();
            assert!(
                blake3::hash(&stored) == blake3::hash(&there),
                "disk {index}"
            );
        }
        let last = view.read(self.vm.disks[0].0, SECTOR as u64, SECTOR);
        let last = last.await.unwrap();
        assert!(
            last[..] == boot_sector::code(End::PowersOff),
            "what the guest wrote while it shut down"
        );
    }
}

/// An engine without its process.
struct Engine {
    context: Arc<Context>,
    desired: watch::Sender<Option<DesiredState>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Engine {
    fn start(site: &Site, driver: Arc<QemuDriver>, pauses: Arc<dyn Pauses>) -> Self {
        let context = Arc::new(Context {
            hypervisor: driver,
            board: Arc::new(Board::default()),
            state_folder: site.state.clone(),
            pauses,
            clock: Arc::new(now_unix_ms),
            store_faults: None,
            free_bytes: Arc::new(|_| None),
            throttle: Arc::new(Unthrottled),
            groups: Arc::default(),
        });
        let (desired, seen) = watch::channel(None);
        let stop = CancellationToken::new();
        let file = DesiredFile::new(&site.state);
        let reconciler = Reconciler::new(context.clone(), file, true, None);
        let task = tokio::spawn(reconciler.run(seen, stop.clone()));
        Self {
            context,
            desired,
            stop,
            task,
        }
    }

    fn order(&self, site: &Site, epoch: u64, order: SourceOrder) {
        self.desired.send_replace(Some(DesiredState {
            generation: 1,
            replications: vec![site.message(epoch, order)],
            ..DesiredState::default()
        }));
    }

    async fn wait(
        &self,
        what: &str,
        wanted: impl Fn(&ReplicationStatus) -> bool,
    ) -> ReplicationStatus {
        let mut changes = self.context.board.watch();
        let begin = Instant::now();
        loop {
            if let Some(status) = self.context.board.replication(ITEM)
                && wanted(&status)
            {
                return status;
            }
            let left = LIMIT.saturating_sub(begin.elapsed());
            let changed = tokio::time::timeout(left, changes.changed()).await;
            let status = self.context.board.replication(ITEM);
            changed
                .unwrap_or_else(|_| panic!("never came true: {what}; {status:#?}"))
                .unwrap();
        }
    }

    async fn says(&self, epoch: u64, said: SourceSaid) -> ReplicationStatus {
        self.wait(&format!("{said:?}"), |status| {
            let source = status.source.as_ref().and_then(source_said);
            source == Some((Generation(epoch), said))
        })
        .await
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn driver(site: &Site) -> Arc<QemuDriver> {
    Arc::new(site.lab.another_driver())
}

fn more_points(than: usize) -> impl Fn(&ReplicationStatus) -> bool {
    move |status| status.recovery_points.len() > than && status.backlog_cycles == 0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_failover_ships_the_guests_last_write_and_a_cancelled_one_lets_it_run_again() {
    let site = Site::new().await;
    let engine = Engine::start(&site, driver(&site), Arc::new(NoPauses));
    engine.order(&site, 1, SourceOrder::Replicate(LICENCE));
    engine.wait("points", more_points(1)).await;
    site.lab.write(&site.vm, 1, 9 * BLOCK, 4096, 0x5a).await;
    engine.order(&site, 2, SourceOrder::ShipRest(LICENCE));
    let status = engine.says(2, SourceSaid::Shipped).await;
    let newest = status.recovery_points.last().unwrap();
    assert_eq!(status.source.unwrap().point_id, newest.id);
    assert!(
        newest.changed_bytes < 1 << 20,
        "its bitmaps told what changed: {} bytes",
        newest.changed_bytes
    );
    site.newest_point_is_the_images().await;

    engine.order(&site, 3, SourceOrder::Hold);
    engine.says(3, SourceSaid::Held).await;
    assert!(qemu_pid(&site.vm.folder).is_none(), "nothing of it is left");
    // By hand.
    site.lab.driver.start(site.vm.id).await.unwrap();
    boot_sector::is_up(&site.vm.folder).await;
    engine
        .wait("stopped", |_| qemu_pid(&site.vm.folder).is_none())
        .await;
    engine.says(3, SourceSaid::Held).await;

    let count = status.recovery_points.len();
    engine.order(&site, 4, SourceOrder::Replicate(LICENCE));
    engine.wait("points", more_points(count)).await;
    assert!(qemu_pid(&site.vm.folder).is_some());
    engine.stop().await;
}

#[test]
fn with_its_process_killed_behind_the_shutdown_the_images_are_compared_and_shipped() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.enable_all().build().unwrap()
    };
    let first = runtime();
    let site = first.block_on(async {
        let site = Site::new().await;
        let engine = Engine::start(&site, driver(&site), Arc::new(NoPauses));
        engine.order(&site, 1, SourceOrder::Replicate(LICENCE));
        engine.wait("points", more_points(1)).await;
        engine.stop().await;
        site.lab.write(&site.vm, 1, 3 * BLOCK, 4096, 0x6b).await;
        let stop_at = StopAt::new(Some(pauses::SHUT_DOWN), 0);
        let engine = Engine::start(&site, driver(&site), stop_at.clone());
        engine.order(&site, 2, SourceOrder::ShipRest(LICENCE));
        tokio::time::timeout(LIMIT, stop_at.reached.notified())
            .await
            .unwrap();
        kill_qemu(&site.vm.folder).await;
        site
    });
    // As `kill -9`: nothing of the engine comes to its end.
    first.shutdown_background();
    runtime().block_on(async {
        let engine = Engine::start(&site, driver(&site), Arc::new(NoPauses));
        engine.says(2, SourceSaid::Shipped).await;
        site.newest_point_is_the_images().await;
        engine.stop().await;
    });
}
