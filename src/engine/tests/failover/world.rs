//! A replica of two points, a recovery host, and what the orchestrator lists of the item.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::board::Board;
use engine::recovered::{RecoveredVms, RecoveryHost, Room};
use engine::replicator::pauses::{NoPauses, Pauses};
use engine_protocol::orders;
use engine_protocol::v1::{RecoveredVm, RecoveredVmStatus, StoreTarget as Target, store_target};
use hypervisor::Hypervisor;
use protection::Generation;
use protection::life::{RecoveryOrder, RecoverySaid};
use replica_store::{
    DiskSpec, Position, RecoveryPoint, ReplicaKey, ReplicaReader, ReplicaWriter, StoreTarget,
};
use uuid::Uuid;

use crate::host::Host;

pub const VAULT: &str = "vault-0a1b2c3d";
pub const ITEM: &str = "11111111-2222-3333-4444-555555555555";
pub const SIZE: u64 = 1 << 20;
pub const LIMIT: Duration = Duration::from_secs(3600);

/// Two instances, each made from a point of its own.
pub const A: u64 = 5;
pub const B: u64 = 6;

pub struct World {
    pub folder: tempfile::TempDir,
    pub host: Arc<Host>,
    /// The boot of the host.
    pub boot: String,
    /// What it runs.
    pub generations: Vec<hypervisor::Generation>,
}

/// One life of the engine.
pub struct Engine {
    pub vms: RecoveredVms,
    pub board: Arc<Board>,
}

pub fn key() -> ReplicaKey {
    ReplicaKey::new(VAULT, ITEM).unwrap()
}

pub fn point(position: u64) -> RecoveryPoint {
    point_of(position, 1, SIZE)
}

/// Of a VM of this generation whose disk has this size.
pub fn point_of(position: u64, generation: u32, size_bytes: u64) -> RecoveryPoint {
    let disk = Uuid::from_u128(1);
    RecoveryPoint {
        id: Uuid::from_u128(100 + u128::from(position)),
        position: Position(position),
        time_unix_ms: 1_700_000_000_000 + position as i64 * 60_000,
        changed_bytes: 0,
        vm_config: serde_json::json!({
            "name": "web01", "generation": generation, "processors": 1, "memoryBytes": 64 << 20, "osType": "Linux",
            "disks": [{ "id": disk, "name": "os.vhdx", "sizeBytes": size_bytes, "operatingSystem": true }],
            "networkAdapters": [{ "networkName": "production", "macAddress": "52:54:00:00:00:01" }],
        }),
        ..RecoveryPoint::default()
    }
}

impl World {
    /// With a replica of two points, written under licence 1.
    pub fn new() -> Self {
        Self::of(1, vec![7; SIZE as usize])
    }

    /// As [`World::new`], of a VM of this generation with this disk.
    pub fn of(generation: u32, disk: Vec<u8>) -> Self {
        let size_bytes = disk.len() as u64;
        let folder = tempfile::tempdir().unwrap();
        let store = StoreTarget::Folder(folder.path().join("store"));
        std::fs::create_dir(folder.path().join("store")).unwrap();
        let host = Arc::new(Host::new(store.clone(), key()));
        life(async {
            let disks = [DiskSpec {
                id: Uuid::from_u128(1),
                name: "os.vhdx".to_owned(),
                size_bytes,
            }];
            let licence = replica_store::Generation(1);
            let writer = ReplicaWriter::open(&store, &key(), licence, &disks)
                .await
                .unwrap();
            let data = Bytes::from(disk);
            writer.base_write(disks[0].id, 0, data).await.unwrap();
            let point = |position| point_of(position, generation, size_bytes);
            writer.complete_base(point(0)).await.unwrap();
            let cycle = writer.begin_cycle(Position(1), 1).await.unwrap();
            cycle.commit().await.unwrap();
            writer.add_point(point(1)).await.unwrap();
        });
        Self {
            folder,
            host,
            boot: "first".to_owned(),
            generations: vec![hypervisor::Generation::One, hypervisor::Generation::Two],
        }
    }

    pub fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub fn recovery(&self) -> PathBuf {
        self.folder.path().join("recovery")
    }

    pub fn engine(&self, pauses: Arc<dyn Pauses>) -> Engine {
        let board = Arc::new(Board::default());
        let hypervisor: Arc<dyn Hypervisor> = self.host.clone();
        let mut host = RecoveryHost::new(hypervisor, board.clone(), self.recovery());
        host.pauses = pauses;
        host.boot = self.boot.clone();
        host.generations = self.generations.clone();
        host.room = |_| Room::Ample;
        Engine {
            vms: RecoveredVms::new(Arc::new(host)),
            board,
        }
    }

    /// What the orchestrator lists of the item.
    pub fn listed(&self, epoch: u64, order: RecoveryOrder, instance: u64) -> RecoveredVm {
        RecoveredVm {
            id: id(instance).to_string(),
            name: "web01".to_owned(),
            item_id: ITEM.to_owned(),
            vault_key: VAULT.to_owned(),
            store: Some(Target {
                kind: Some(store_target::Kind::Folder(
                    self.store().to_str().unwrap().to_owned(),
                )),
                log: None,
            }),
            point_id: point(instance - A).id.to_string(),
            order: Some(orders::recovery_message(Generation(epoch), order)),
            ..RecoveredVm::default()
        }
    }

    pub fn drill(&self, id: Uuid) -> RecoveredVm {
        self.host.drills.lock().unwrap().push(id);
        RecoveredVm {
            id: id.to_string(),
            name: "web01-test".to_owned(),
            order: None,
            ..self.listed(1, RecoveryOrder::Stop, A)
        }
    }

    /// Who holds points.
    pub async fn pins(&self) -> Vec<String> {
        let store = StoreTarget::Folder(self.store());
        let reader = ReplicaReader::open(&store, &key()).await.unwrap();
        let pins = reader.pins().await.unwrap();
        pins.into_iter().map(|pin| pin.owner).collect()
    }

    pub fn guard(&self) -> PathBuf {
        let folder = self.recovery().join("failovers").join(VAULT).join(ITEM);
        folder.join("guard.json")
    }
}

impl Engine {
    pub async fn tell(&mut self, vm: &RecoveredVm) {
        self.vms.apply(std::slice::from_ref(vm)).await;
    }

    pub async fn until(&self, what: &str, wanted: impl Fn(&[RecoveredVmStatus]) -> bool) {
        let mut changes = self.board.watch();
        let seen = async {
            while !wanted(&self.board.snapshot().recovered) {
                changes.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(LIMIT, seen).await.is_err() {
            panic!("never came true: {what}; {:#?}", self.board.snapshot());
        }
    }

    /// Until it is said of an order.
    pub async fn says(&self, epoch: u64, said: RecoverySaid) {
        let what = format!("{said:?} of {epoch}");
        self.until(&what, |all| {
            all.iter().any(|vm| report(vm) == Some((epoch, said)))
        })
        .await;
    }

    pub fn status(&self, instance: u64) -> RecoveredVmStatus {
        self.board.recovered(&id(instance).to_string()).unwrap()
    }
}

pub fn report(status: &RecoveredVmStatus) -> Option<(u64, RecoverySaid)> {
    let (epoch, said) = orders::recovery_said(status.recovery.as_ref()?)?;
    Some((epoch.0, said))
}

pub fn codes(status: &RecoveredVmStatus) -> Vec<&str> {
    status.findings.iter().map(|found| &*found.code).collect()
}

pub fn id(instance: u64) -> Uuid {
    Uuid::from_u128(u128::from(instance))
}

pub fn run(instance: u64) -> RecoveryOrder {
    RecoveryOrder::Run {
        instance: Generation(instance),
        takes: Generation(2),
    }
}

pub fn leave(instance: u64) -> RecoveryOrder {
    RecoveryOrder::Leave {
        instance: Generation(instance),
        takes: Generation(2),
    }
}

pub fn no_pauses() -> Arc<dyn Pauses> {
    Arc::new(NoPauses)
}

/// Runs `life` as one life of the engine: what it leaves running ends with it, as by `kill -9`; the clock jumps from timer
/// to timer.
pub fn life<T>(life: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(life)
}
