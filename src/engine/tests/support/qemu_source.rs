//! A source under orders on real QEMU, without a process of the engine: host, store, orders, and what is said of them.

#![allow(dead_code, reason = "each test program uses its part of it")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lab::boot_sector::{self, End, SECTOR};
use super::lab::{Lab, LabVm};
use disk_image::{Access, DiskImage};
use engine::board::Board;
use engine::desired::DesiredFile;
use engine::engine::now_unix_ms;
use engine::reconcile::Reconciler;
use engine::replicator::Context;
use engine::replicator::pauses::Pauses;
use engine::replicator::throttle::Unthrottled;
use engine_protocol::orders::{source_message, source_said};
use engine_protocol::v1::{self, DesiredState, ReplicationStatus};
use hypervisor::{Hypervisor, QemuDriver};
use protection::Generation;
use protection::life::{SourceOrder, SourceSaid};
use replica_store::{PointSelector, ReplicaKey, ReplicaReader, StoreTarget};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub const ITEM: &str = "11111111-2222-3333-4444-555555555555";
pub const VAULT: &str = "vault-0a1b2c3d";
pub const LICENCE: Generation = Generation(1);
pub const LIMIT: Duration = Duration::from_secs(120);

pub struct Site {
    pub lab: Lab,
    pub vm: LabVm,
    pub state: PathBuf,
    pub store: PathBuf,
}

impl Site {
    pub async fn new() -> Self {
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

    pub fn message(&self, epoch: u64, order: SourceOrder) -> v1::Replication {
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
    pub async fn newest_point_is_the_images(&self) {
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
pub struct Engine {
    pub context: Arc<Context>,
    desired: watch::Sender<Option<DesiredState>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Engine {
    pub fn start(site: &Site, driver: Arc<QemuDriver>, pauses: Arc<dyn Pauses>) -> Self {
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

    pub fn order(&self, site: &Site, epoch: u64, order: SourceOrder) {
        self.tell(site.message(epoch, order));
    }

    /// The orchestrator says so.
    pub fn tell(&self, message: v1::Replication) {
        self.desired.send_replace(Some(DesiredState {
            generation: 1,
            replications: vec![message],
            ..DesiredState::default()
        }));
    }

    pub async fn wait(
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

    pub async fn says(&self, epoch: u64, said: SourceSaid) -> ReplicationStatus {
        self.wait(&format!("{said:?}"), |status| {
            let source = status.source.as_ref().and_then(source_said);
            source == Some((Generation(epoch), said))
        })
        .await
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

pub fn driver(site: &Site) -> Arc<QemuDriver> {
    Arc::new(site.lab.another_driver())
}

pub fn more_points(than: usize) -> impl Fn(&ReplicationStatus) -> bool {
    move |status| status.recovery_points.len() > than && status.backlog_cycles == 0
}
