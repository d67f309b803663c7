//! What a recovered VM writes goes back into its replica: real QEMU, a real store, kills in between.
//!
//! The guest is one boot sector that waits for the power button, writes a sector and ends; QEMU's own tool writes the rest.

#[allow(dead_code, reason = "of the double's tests one thing is used")]
#[path = "support/faults.rs"]
mod faults;
#[path = "reverse/keys.rs"]
mod keys;
#[path = "../../hypervisor/tests/support/mod.rs"]
mod lab;
#[path = "reverse/limits.rs"]
mod limits;
#[path = "reverse/room.rs"]
mod room;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use engine::board::Board;
use engine::recovered::reverse::{Errand, Seen, Shipper, own_disk};
use engine::recovered::{RecoveredVms, RecoveryHost, places};
use engine::replicator::pauses::{self, NoPauses, Pauses};
use engine_protocol::v1::{RecoveredVm, RecoveredVmStatus, StoreTarget as Target, store_target};
use engine_protocol::{orders, v1};
use faults::{Random, StopAt};
use hypervisor::{DiskId, QemuDriver, VmId};
use keys::{encryption, keys};
use lab::boot_sector::{self, End, SECTOR};
use lab::{BLOCK, Lab, MIB, kill_qemu};
use protection::Generation;
use protection::life::{RecoveryOrder, RecoverySaid};
use replica_store::{
    DiskSpec, PointSelector, Position, RecoveryPoint, ReplicaKey, ReplicaReader, ReplicaWriter,
    StoreTarget, take_over,
};
use replication_log::KeyRing;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use uuid::Uuid;

const ITEM: &str = "11111111-2222-3333-4444-555555555555";
const VAULT: &str = "vault-0a1b2c3d";
const VM: Uuid = Uuid::from_u128(0x5e);
/// Of the VM, and of its shipping.
const INSTANCE: Generation = Generation(2);
const PAGE: u64 = 4096;
const SIZE: u64 = 32 * MIB;
const LIMIT: Duration = Duration::from_secs(120);

/// A replica of two disks with two points, and what its recovered VM's disks must hold.
struct World {
    lab: Lab,
    driver: Arc<QemuDriver>,
    point: RecoveryPoint,
    model: Vec<Vec<u8>>,
    random: Random,
    /// Blocks of 64 KiB by disk that the source wrote behind the first point.
    behind: Vec<(usize, u64)>,
}

/// One life of the engine.
struct Engine {
    vms: RecoveredVms,
    board: Arc<Board>,
}

fn key() -> ReplicaKey {
    ReplicaKey::new(VAULT, ITEM).unwrap()
}

fn source_disk(number: usize) -> DiskId {
    DiskId(Uuid::from_u128(number as u128 + 1))
}

fn point(position: u64) -> RecoveryPoint {
    let disks: Vec<_> = (0..2)
        .map(|number| {
            json!({ "id": source_disk(number), "name": format!("d{number}.vhdx"), "sizeBytes": SIZE,
                "operatingSystem": number == 0 })
        })
        .collect();
    RecoveryPoint {
        id: Uuid::from_u128(100 + u128::from(position)),
        position: Position(position),
        // The source's clock is ahead.
        time_unix_ms: 4_000_000_000_000 + position as i64 * 60_000,
        vm_config: json!({
            "name": "web01", "generation": 1, "processors": 1, "memoryBytes": 32 << 20, "osType": "Linux",
            "disks": disks, "networkAdapters": [],
        }),
        ..RecoveryPoint::default()
    }
}

impl World {
    /// The VM will be recovered from the newest point, or from the one before.
    async fn new(newest: bool) -> Self {
        let lab = Lab::new();
        let store = lab.folder.path().join("store");
        std::fs::create_dir(&store).unwrap();
        let mut random = Random::new(7);
        let mut model: Vec<Vec<u8>> = (0..2)
            .map(|_| {
                let blocks = SIZE / BLOCK;
                (0..blocks)
                    .flat_map(|block| {
                        let byte = if block % 3 == 0 {
                            0
                        } else {
                            random.next() as u8
                        };
                        std::iter::repeat_n(byte, BLOCK as usize)
                    })
                    .collect()
            })
            .collect();
        model[0][..SECTOR].copy_from_slice(&boot_sector::code(End::PowersOff));
        let specs: Vec<DiskSpec> = (0..2)
            .map(|number| DiskSpec {
                id: source_disk(number).0,
                name: format!("d{number}.vhdx"),
                size_bytes: SIZE,
            })
            .collect();
        let target = StoreTarget::Folder(store);
        let licence = replica_store::Generation(1);
        let writer = ReplicaWriter::open(&target, &key(), licence, &specs)
            .await
            .unwrap();
        for (spec, content) in specs.iter().zip(&model) {
            let data = Bytes::from(content.clone());
            writer.base_write(spec.id, 0, data).await.unwrap();
        }
        writer.complete_base(point(0)).await.unwrap();
        let before = model.clone();
        let behind = vec![(0, 100), (1, 3), (1, 200)];
        let mut cycle = writer.begin_cycle(Position(1), 1).await.unwrap();
        for (disk, block) in &behind {
            let data = Bytes::from(vec![0x77; BLOCK as usize]);
            let at = (block * BLOCK) as usize;
            model[*disk][at..at + BLOCK as usize].copy_from_slice(&data);
            let id = source_disk(*disk).0;
            cycle.write(id, block * BLOCK, data).await.unwrap();
        }
        cycle.commit().await.unwrap();
        writer.add_point(point(1)).await.unwrap();
        Self {
            driver: Arc::new(lab.another_driver()),
            lab,
            point: point(u64::from(newest)),
            model: if newest { model } else { before },
            random,
            behind,
        }
    }

    fn store(&self) -> PathBuf {
        self.lab.folder.path().join("store")
    }

    fn target(&self) -> StoreTarget {
        StoreTarget::Folder(self.store())
    }

    fn host(&self, pauses: Arc<dyn Pauses>) -> RecoveryHost {
        let board = Arc::new(Board::default());
        let mut host = RecoveryHost::new(self.driver.clone(), board, self.lab.vms());
        host.shutdown_patience = LIMIT;
        host.pauses = pauses;
        host
    }

    fn engine(&self, pauses: Arc<dyn Pauses>) -> Engine {
        let host = self.host(pauses);
        Engine {
            board: host.board.clone(),
            vms: RecoveredVms::new(Arc::new(host)),
        }
    }

    fn listed(&self, epoch: u64, order: RecoveryOrder, ships: bool) -> RecoveredVm {
        RecoveredVm {
            id: VM.to_string(),
            name: "web01".to_owned(),
            item_id: ITEM.to_owned(),
            vault_key: VAULT.to_owned(),
            store: Some(Target {
                kind: Some(store_target::Kind::Folder(
                    self.store().to_str().unwrap().to_owned(),
                )),
                log: None,
            }),
            point_id: self.point.id.to_string(),
            order: Some(orders::recovery_message(Generation(epoch), order)),
            ships,
            ship_generation: if ships { INSTANCE.0 } else { 0 },
            ..RecoveredVm::default()
        }
    }

    fn errand(&self) -> Errand {
        Errand {
            vm: VmId(VM),
            name: "web01".to_owned(),
            generation: replica_store::Generation(INSTANCE.0),
            store: self.target(),
            key: key(),
            keys: KeyRing::new(),
            immutability_hours: 0,
            interval: Duration::from_secs(30),
            point: self.point.id,
            records: self.lab.folder.path().to_owned(),
            conversion: None,
        }
    }

    fn vm_folder(&self) -> PathBuf {
        self.lab.vms().join(VM.to_string())
    }

    /// The guest writes.
    async fn write(&mut self, disk: usize, offset: u64, length: u64) {
        let byte = self.random.next() as u8 | 1;
        let id = own_disk(VM, source_disk(disk));
        let written = self
            .driver
            .write_as_guest(VmId(VM), id, offset, length, byte);
        written.await.unwrap();
        let at = offset as usize;
        self.model[disk][at..at + length as usize].fill(byte);
    }

    /// A percent of the disks in single pages, each in a block of its own; gives their bytes.
    async fn churn(&mut self) -> u64 {
        let pages = 2 * SIZE / PAGE / 100;
        for page in 0..pages {
            let (disk, block) = ((page % 2) as usize, 5 + page / 2 * 6);
            self.write(disk, block * BLOCK + 3 * PAGE, PAGE).await;
        }
        pages * PAGE
    }

    /// What the guest wrote when the power button was pressed.
    fn ended(&mut self) {
        self.model[0].copy_within(..SECTOR, SECTOR);
    }

    async fn points(&self) -> Vec<RecoveryPoint> {
        let reader = ReplicaReader::open(&self.target(), &key()).await.unwrap();
        reader.points().await.unwrap()
    }

    /// The newest point, which must hold what the VM's disks hold, and be of a VM as the points before.
    async fn newest_is_the_vm(&self) -> RecoveryPoint {
        let reader = ReplicaReader::open_with_keys(&self.target(), &key(), keys())
            .await
            .unwrap();
        let view = reader.view(PointSelector::Newest).await.unwrap();
        for (number, content) in self.model.iter().enumerate() {
            let got = view.read(source_disk(number).0, 0, SIZE as usize);
            let got = got.await.unwrap();
            let differs = got
                .chunks(PAGE as usize)
                .zip(content.chunks(PAGE as usize))
                .position(|(a, b)| a != b);
            assert_eq!(differs, None, "a page of disk {number} differs");
        }
        let point = view.point().unwrap().clone();
        assert_eq!(point.vm_config, self.point.vm_config);
        let head = match reader.state().await.unwrap() {
            replica_store::ReplicaState::Complete { head_position, .. } => head_position,
            other => panic!("{other:?}"),
        };
        assert_eq!(point.position, head, "nothing lies behind the newest point");
        point
    }
}

impl Engine {
    async fn tell(&mut self, message: &RecoveredVm) {
        self.vms.apply(std::slice::from_ref(message)).await;
    }

    fn status(&self) -> RecoveredVmStatus {
        self.board.recovered(&VM.to_string()).unwrap_or_default()
    }

    async fn until(&self, what: &str, wanted: impl Fn(&RecoveredVmStatus) -> bool) {
        let mut changes = self.board.watch();
        let done = tokio::time::timeout(LIMIT, async {
            while !wanted(&self.status()) {
                changes.changed().await.unwrap();
            }
        });
        if done.await.is_err() {
            panic!("never came true: {what}; status is {:#?}", self.status());
        }
    }

    async fn says(&self, epoch: u64, said: RecoverySaid) {
        let report = orders::recovery_report(Generation(epoch), said);
        self.until(&format!("{said:?}"), |status| {
            status.recovery.as_ref() == Some(&report)
        })
        .await;
    }

    async fn ships_beyond(&self, unix_ms: i64) {
        self.until("a point is shipped", |status| {
            status.shipped_unix_ms > unix_ms
        })
        .await;
    }
}

fn run() -> RecoveryOrder {
    RecoveryOrder::Run {
        instance: INSTANCE,
        takes: INSTANCE,
    }
}

/// Lets a test do something while a shipper is at a place.
#[derive(Default)]
struct HoldAt {
    place: &'static str,
    reached: Notify,
    go_on: Notify,
}

#[async_trait]
impl Pauses for HoldAt {
    async fn pass(&self, place: &'static str) {
        if place == self.place {
            self.reached.notify_one();
            self.go_on.notified().await;
            // Only once.
            self.go_on.notify_one();
        }
    }
}

async fn seen(shipper: &mut Shipper, what: &str, wanted: impl Fn(&Seen) -> bool) -> Seen {
    let done = tokio::time::timeout(LIMIT, async {
        while !wanted(&shipper.seen()) {
            shipper.changed().await;
        }
    });
    if done.await.is_err() {
        panic!("never came true: {what}; it is {:?}", shipper.seen());
    }
    shipper.seen()
}

async fn started(world: &World, engine: &mut Engine) {
    engine.tell(&world.listed(10, run(), false)).await;
    engine.says(10, RecoverySaid::Running).await;
    boot_sector::is_up(&world.vm_folder()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_cycle_has_what_the_guest_wrote_and_the_rest_is_there_before_it_is_said_to_be_stopped()
 {
    let mut world = World::new(true).await;
    let mut engine = world.engine(Arc::new(NoPauses));
    started(&world, &mut engine).await;
    let changed = world.churn().await;
    engine.tell(&world.listed(10, run(), true)).await;
    engine.ships_beyond(0).await;
    let first = world.newest_is_the_vm().await;
    assert_eq!(first.position, Position(2));
    assert!(first.changed_bytes <= changed * 11 / 10, "{first:?}");
    assert!(first.sent_bytes <= changed * 11 / 10, "{first:?}");
    assert_eq!(engine.status().shipped_unix_ms, first.time_unix_ms);
    assert!(engine.status().shipped_bytes >= first.sent_bytes);

    world.write(1, 9 * MIB, BLOCK).await;
    engine
        .tell(&world.listed(11, RecoveryOrder::Stop, true))
        .await;
    engine.says(11, RecoverySaid::Stopped).await;
    world.ended();
    let last = world.newest_is_the_vm().await;
    assert_eq!(last.changed_bytes, BLOCK + PAGE);
    assert_eq!(lab::qemu_pid(&world.vm_folder()), None);

    // It may have to run again: what it writes then is shipped as well.
    engine.tell(&world.listed(12, run(), true)).await;
    engine.says(12, RecoverySaid::Running).await;
    boot_sector::is_up(&world.vm_folder()).await;
    world.write(0, 20 * MIB, BLOCK).await;
    engine
        .tell(&world.listed(13, RecoveryOrder::Stop, true))
        .await;
    engine.says(13, RecoverySaid::Stopped).await;
    world.newest_is_the_vm().await;
    engine.vms.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_an_older_point_the_replica_gets_what_it_had_there_encrypted_and_no_disk_as_a_whole() {
    let mut world = World::new(false).await;
    let mut engine = world.engine(Arc::new(NoPauses));
    started(&world, &mut engine).await;
    world.write(0, 8 * MIB, BLOCK).await;
    // What both wrote counts once.
    world.write(1, 3 * BLOCK, PAGE).await;
    let mut message = world.listed(10, run(), true);
    message.encryption = Some(encryption());
    engine.tell(&message).await;
    engine.ships_beyond(0).await;
    let reader = ReplicaReader::open(&world.target(), &key()).await.unwrap();
    let without = reader.view(PointSelector::Newest).await.unwrap_err();
    assert_eq!(without.kind(), replica_store::ErrorKind::MissingKey);
    let first = world.newest_is_the_vm().await;
    assert_eq!(first.changed_bytes, (world.behind.len() as u64 + 1) * BLOCK);
    engine.vms.stop().await;
}

#[test]
fn an_engine_that_is_killed_at_any_step_goes_on_and_says_stopped_only_when_all_is_there() {
    let main = Runtime::new().unwrap();
    let mut world = main.block_on(World::new(true));
    // Of lives that end by themselves.
    let life = |world: &World, place: Option<&'static str>, message: &RecoveredVm| {
        let runtime = Runtime::new().unwrap();
        let stop = StopAt::new(place, 0);
        runtime.block_on(async {
            let mut engine = world.engine(stop.clone());
            engine.tell(message).await;
            tokio::time::timeout(LIMIT, stop.reached.notified())
                .await
                .unwrap_or_else(|_| panic!("never at {place:?}: {:#?}", engine.status()));
            assert_eq!(
                engine
                    .status()
                    .recovery
                    .filter(|report| { report.said() == v1::recovery_report::Said::Stopped }),
                None,
                "{place:?}"
            );
        });
        // As `kill -9`: nothing gets to its end.
        runtime.shutdown_background();
    };
    main.block_on(async {
        let mut engine = world.engine(Arc::new(NoPauses));
        started(&world, &mut engine).await;
        engine.vms.stop().await;
    });
    let steps = [
        pauses::FROZEN,
        pauses::SENDING,
        pauses::APPENDED,
        pauses::POINT_ADDED,
        pauses::STATE_WRITTEN,
    ];
    for (at, place) in (1..).zip(steps) {
        // Whole clusters: nobody serves the point below them now.
        main.block_on(world.write(0, at * MIB, BLOCK));
        life(&world, Some(place), &world.listed(10, run(), true));
        main.block_on(world.write(1, at * MIB, BLOCK));
    }
    main.block_on(async {
        let mut engine = world.engine(Arc::new(NoPauses));
        let before = world.points().await.pop().unwrap().time_unix_ms;
        engine.tell(&world.listed(10, run(), true)).await;
        engine.ships_beyond(before).await;
        engine.vms.stop().await;
        // Once more for what was written since the shipper of before began.
        let mut engine = world.engine(Arc::new(NoPauses));
        world.write(0, 30 * MIB, BLOCK).await;
        let newest = world.points().await.pop().unwrap().time_unix_ms;
        engine.tell(&world.listed(10, run(), true)).await;
        engine.ships_beyond(newest).await;
        let point = world.newest_is_the_vm().await;
        assert_eq!(point.changed_bytes, BLOCK, "tracking outlived the kills");
        world.write(1, 31 * MIB, BLOCK).await;
        engine.vms.stop().await;
    });
    let stop = world.listed(11, RecoveryOrder::Stop, true);
    for place in steps.into_iter().chain([places::REST_SHIPPED]) {
        life(&world, Some(place), &stop);
    }
    main.block_on(async {
        world.ended();
        // Without a message it knows the order, and that it is not carried out.
        let mut engine = world.engine(Arc::new(NoPauses));
        engine.vms.apply(&[]).await;
        engine
            .until("the VM is shown", |status| !status.point_id.is_empty())
            .await;
        assert_eq!(engine.status().recovery, None);
        engine.tell(&stop).await;
        engine.says(11, RecoverySaid::Stopped).await;
        world.newest_is_the_vm().await;
        engine.vms.stop().await;
        let mut engine = world.engine(Arc::new(NoPauses));
        engine.vms.apply(&[]).await;
        engine.says(11, RecoverySaid::Stopped).await;
        engine.vms.stop().await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_qemu_was_killed_is_compared_by_what_it_wrote_and_nothing_is_lost() {
    let mut world = World::new(true).await;
    let mut engine = world.engine(Arc::new(NoPauses));
    started(&world, &mut engine).await;
    world.churn().await;
    engine.tell(&world.listed(10, run(), true)).await;
    engine.ships_beyond(0).await;
    world.newest_is_the_vm().await;
    world.write(0, 21 * MIB, BLOCK).await;
    let mut qmp = world.driver.qmp(VmId(VM)).await.unwrap();
    for device in ["device0", "device1"] {
        // What a guest has flushed outlives QEMU.
        let line = json!({ "command-line": format!("qemu-io -d {device} flush") });
        qmp.execute("human-monitor-command", line).await.unwrap();
    }
    drop(qmp);
    kill_qemu(&world.vm_folder()).await;
    engine
        .tell(&world.listed(11, RecoveryOrder::Stop, true))
        .await;
    engine.says(11, RecoverySaid::Stopped).await;
    let last = world.newest_is_the_vm().await;
    assert_eq!(last.changed_bytes, BLOCK);
    engine.vms.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shipper_that_is_fenced_in_the_middle_ends_and_adds_no_point() {
    let mut world = World::new(true).await;
    let mut engine = world.engine(Arc::new(NoPauses));
    started(&world, &mut engine).await;
    world.churn().await;
    let hold = Arc::new(HoldAt {
        place: pauses::SENDING,
        ..HoldAt::default()
    });
    let mut shipper = Shipper::run(Arc::new(world.host(hold.clone())), world.errand());
    hold.reached.notified().await;
    let newer = replica_store::Generation(INSTANCE.0 + 1);
    take_over(&world.target(), &key(), newer).await.unwrap();
    hold.go_on.notify_one();
    let seen = seen(&mut shipper, "it is fenced", |seen| seen.fenced).await;
    assert_eq!((seen.problem, seen.point_unix_ms), (None, 0));
    assert_eq!(world.points().await.len(), 2);
    shipper.stop().await;
    // Nothing stays frozen.
    world.write(0, MIB, BLOCK).await;
    let left = std::fs::read_dir(world.lab.folder.path().join("scratch").join(VM.to_string()));
    assert_eq!(left.map_or(0, Iterator::count), 0);
    engine.vms.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_goes_away_in_the_middle_costs_time_only() {
    let mut world = World::new(true).await;
    let mut engine = world.engine(Arc::new(NoPauses));
    started(&world, &mut engine).await;
    let changed = world.churn().await;
    let hold = Arc::new(HoldAt {
        place: pauses::SENDING,
        ..HoldAt::default()
    });
    let mut shipper = Shipper::run(Arc::new(world.host(hold.clone())), world.errand());
    hold.reached.notified().await;
    let away = world.lab.folder.path().join("away");
    std::fs::rename(world.store(), &away).unwrap();
    hold.go_on.notify_one();
    let failed = seen(&mut shipper, "it fails", |seen| seen.problem.is_some()).await;
    assert!(!failed.fenced && failed.point_unix_ms == 0, "{failed:?}");
    assert!(
        !world.store().join(VAULT).exists(),
        "no replica is made anew"
    );
    std::fs::rename(&away, world.store()).unwrap();
    seen(&mut shipper, "it ships", |seen| seen.point_unix_ms > 0).await;
    let point = world.newest_is_the_vm().await;
    assert_eq!(point.changed_bytes, changed);
    shipper.stop().await;
    engine.vms.stop().await;
}
