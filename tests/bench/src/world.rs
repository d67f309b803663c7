//! The real replicator over a host of the benchmark and a folder store, one cycle at a time.
//!
//! A cycle is one life of the replicator: it starts, finds a cycle due, ships it, and ends. So a cycle's cost is that of
//! the engine's work for it, with opening its state and the store, and without waiting for a schedule.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use engine::board::Board;
use engine::replicate;
use engine::replicator::Replicator;
use engine::replicator::spec::Spec;
use engine_protocol::v1;
use engine_protocol::v1::replication_status::State;
use hypervisor::{DiskId, Hypervisor, VmId};
use replica_store::{PointSelector, RecoveryPoint, ReplicaKey, ReplicaReader, StoreTarget};

use crate::process::{Cost, Meter};

const ITEM: &str = "0be0cafe-0000-4000-8000-000000000001";
const VAULT: &str = "bench";
const LIMIT: Duration = Duration::from_secs(600);

/// One protected VM.
pub struct World {
    host: Arc<dyn Hypervisor>,
    vm: VmId,
    disks: Vec<DiskId>,
    folder: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl World {
    /// In an empty folder.
    pub fn new(
        host: Arc<dyn Hypervisor>,
        vm: VmId,
        disks: Vec<DiskId>,
        folder: &Path,
    ) -> Result<Self> {
        for name in ["state", "store"] {
            std::fs::create_dir_all(folder.join(name))?;
        }
        Ok(Self {
            host,
            vm,
            disks,
            folder: folder.to_owned(),
            runtime: tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .context("start the runtime")?,
        })
    }

    /// The store's folder.
    pub fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    /// The replica's folder in it.
    pub fn replica(&self) -> PathBuf {
        self.store().join(VAULT).join(ITEM)
    }

    /// One cycle (initial replication at first): its point, and what it cost.
    pub fn cycle(&self) -> Result<(RecoveryPoint, Cost)> {
        self.runtime.block_on(async {
            let before = self.points().await.map_or(0, |points| points.len());
            let meter = Meter::start()?;
            let board = Arc::new(Board::default());
            let context =
                replicate::context(self.host.clone(), board.clone(), self.folder.join("state"));
            let replicator = self.start(context, 86_400)?;
            let reached = wait(&board, |status| {
                status.recovery_points.len() > before
                    && status.backlog_cycles == 0
                    && status.state() == State::Protected
            })
            .await;
            let cost = meter.read()?;
            replicator.stop().await;
            reached?;
            let point = self
                .points()
                .await?
                .pop()
                .context("a cycle left no recovery point")?;
            Ok((point, cost))
        })
    }

    /// Replicates at an interval for as long as `work` takes.
    pub fn replicating<T>(
        &self,
        interval_seconds: u32,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let _entered = self.runtime.enter();
        let board = Arc::new(Board::default());
        let context =
            replicate::context(self.host.clone(), board.clone(), self.folder.join("state"));
        let replicator = self.start(context, interval_seconds)?;
        let reached = self
            .runtime
            .block_on(wait(&board, |status| status.state() == State::Protected));
        let result = reached.and_then(|()| work());
        self.runtime.block_on(replicator.stop());
        result
    }

    /// All points, oldest first.
    pub async fn points(&self) -> Result<Vec<RecoveryPoint>> {
        Ok(self.reader().await?.points().await?)
    }

    /// BLAKE3 of a disk at the newest point.
    pub fn newest_hash(&self, disk: usize) -> Result<String> {
        self.runtime.block_on(async {
            let view = self.reader().await?.view(PointSelector::Newest).await?;
            let size = view.disks().get(disk).context("no such disk")?.size_bytes;
            let mut hasher = blake3::Hasher::new();
            let mut at = 0;
            while at < size {
                let part = (size - at).min(4 << 20);
                hasher.update(&view.read(self.disks[disk].0, at, part as usize).await?);
                at += part;
            }
            Ok(hasher.finalize().to_hex().to_string())
        })
    }

    async fn reader(&self) -> Result<ReplicaReader> {
        let key = ReplicaKey::new(VAULT, ITEM)?;
        Ok(ReplicaReader::open(&StoreTarget::Folder(self.store()), &key).await?)
    }

    fn start(
        &self,
        context: Arc<engine::replicator::Context>,
        interval_seconds: u32,
    ) -> Result<Replicator> {
        let message = v1::Replication {
            item_id: ITEM.to_owned(),
            vault_key: VAULT.to_owned(),
            generation: 1,
            vm_id: self.vm.to_string(),
            disk_ids: self.disks.iter().map(DiskId::to_string).collect(),
            store: Some(v1::StoreTarget {
                kind: Some(v1::store_target::Kind::Folder(
                    self.store()
                        .into_os_string()
                        .into_string()
                        .map_err(|_| anyhow!("the scratch folder's path is not UTF-8"))?,
                )),
                log: None,
            }),
            policy: Some(v1::Policy {
                replication_interval_seconds: interval_seconds,
                retention_hours: 24,
                ..v1::Policy::default()
            }),
            phase: v1::replication::Phase::Active.into(),
            vm_name: "bench".to_owned(),
            ..v1::Replication::default()
        };
        let (spec, wish) = Spec::read(&message).map_err(|problem| anyhow!(problem))?;
        Ok(Replicator::start(context, spec, wish))
    }
}

async fn wait(board: &Board, reached: impl Fn(&v1::ReplicationStatus) -> bool) -> Result<()> {
    let mut changes = board.watch();
    let begin = std::time::Instant::now();
    loop {
        changes.borrow_and_update();
        if let Some(status) = board.replication(ITEM) {
            if reached(&status) {
                return Ok(());
            }
            if matches!(status.state(), State::Blocked | State::Fenced) || begin.elapsed() > LIMIT {
                bail!("the replicator does not get on: {status:?}");
            }
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}
