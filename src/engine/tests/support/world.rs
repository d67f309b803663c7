//! One engine's folders around the host in memory, and what the store must hold in the end.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engine::board::Board;
use engine::replicator::Context;
use engine::replicator::pauses::Pauses;
use engine::replicator::spec::{Policy, Spec, Wish};
use engine::replicator::throttle::Unthrottled;
use engine_protocol::v1::ReplicationStatus;
use replica_store::fault::Faults;
use replica_store::{ReplicaKey, RetentionPolicy, StoreTarget};

use super::{FakeHost, ITEM, VAULT};

/// One engine's worth of folders around a fake host. Lives end, this stays.
pub struct World {
    pub folder: tempfile::TempDir,
    pub host: Arc<FakeHost>,
    pub free_bytes: Arc<AtomicU64>,
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self::with_disks(seed, &[40, 33])
    }

    /// With disks of so many blocks.
    pub fn with_disks(seed: u64, blocks: &[usize]) -> Self {
        // Thousands of syncs: in memory where the machine has such a folder.
        let folder = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let vm = folder.path().join("vm");
        let host = Arc::new(FakeHost::with_disks(&vm, seed, blocks));
        std::fs::create_dir_all(folder.path().join("state")).unwrap();
        std::fs::create_dir_all(folder.path().join("store")).unwrap();
        Self {
            folder,
            host,
            free_bytes: Arc::new(AtomicU64::new(1 << 40)),
        }
    }

    pub fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub fn context(
        &self,
        pauses: Arc<dyn Pauses>,
        faults: Option<Arc<dyn Faults>>,
    ) -> Arc<Context> {
        let (host, free) = (self.host.clone(), self.free_bytes.clone());
        Arc::new(Context {
            hypervisor: self.host.clone(),
            board: Arc::new(Board::default()),
            state_folder: self.folder.path().join("state"),
            pauses,
            clock: Arc::new(move || host.now()),
            store_faults: faults,
            free_bytes: Arc::new(move |_| Some(free.load(Ordering::SeqCst))),
            throttle: Arc::new(Unthrottled),
            groups: Arc::default(),
        })
    }

    pub fn spec(&self, generation: u64) -> Spec {
        Spec {
            item_id: ITEM.to_owned(),
            key: ReplicaKey::new(VAULT, ITEM).unwrap(),
            generation: replica_store::Generation(generation),
            vm: self.host.vm,
            vm_name: "web01".to_owned(),
            disks: self.host.disks(),
            store: StoreTarget::Folder(self.store()),
            store_folder: self.store(),
        }
    }

    /// Files of ours beside the disks and in the state folder.
    pub fn leftovers(&self) -> Vec<String> {
        ["vm", "state"]
            .iter()
            .flat_map(|name| std::fs::read_dir(self.folder.path().join(name)).unwrap())
            .map(|entry| entry.unwrap().path().display().to_string())
            .collect()
    }
}

impl FakeHost {
    /// The wall clock goes on, and nothing happens.
    pub fn let_pass(&self, time: Duration) {
        self.inner.lock().unwrap().clock += time.as_millis() as i64;
    }
}

/// Every ten seconds, kept for a hundred hours.
pub fn active() -> Wish {
    Wish::Active(Box::new(Policy::new(
        Duration::from_secs(10),
        RetentionPolicy::hours(100),
    )))
}

/// Runs `life` as one life of the engine process: what it leaves running ends with it, as by `kill -9`; the clock
/// jumps from timer to timer.
pub fn life<T>(life: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(life)
}

/// Waits until the item's status is as wanted, while the guest goes on writing.
pub async fn wait_for(
    context: &Context,
    host: &FakeHost,
    what: &str,
    wanted: impl Fn(&ReplicationStatus) -> bool,
) -> ReplicationStatus {
    for _ in 0..3_000 {
        if let Some(status) = context.board.replication(ITEM)
            && wanted(&status)
        {
            return status;
        }
        host.guest_writes();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!(
        "never came true: {what}; status is {:#?}",
        context.board.replication(ITEM)
    );
}
