//! A VM of generation 2 that runs as generation 1: real QEMU above a converted view, and what of its writes reaches the replica.
//!
//! The disk's boot menu starts nothing and speaks to the serial port: the guest is GRUB, which was converted onto the disk. What
//! a guest would write comes through its device by QEMU's own tool.

#[path = "../../disk-image/tests/boot_disks/mod.rs"]
mod boot_disks;
#[path = "../../hypervisor/tests/support/mod.rs"]
mod lab;

use std::sync::Arc;
use std::time::Duration;

use boot_disks::BootDisk;
use bytes::Bytes;
use disk_image::boot::ConversionPlan;
use engine::board::Board;
use engine::recovered::reverse::own_disk;
use engine::recovered::{RecoveredVms, RecoveryHost};
use engine_protocol::orders;
use engine_protocol::v1::{RecoveredVm, RecoveredVmStatus, StoreTarget as Target, store_target};
use hypervisor::{DiskId, Generation, Hypervisor as _, QemuDriver, Stop, VmId};
use lab::{Lab, MIB};
use protection::life::{RecoveryOrder, RecoverySaid};
use replica_store::{
    DiskSpec, PointSelector, Position, RecoveryPoint, ReplicaKey, ReplicaReader, ReplicaWriter,
    StoreTarget,
};
use serde_json::json;
use uuid::Uuid;

const ITEM: &str = "11111111-2222-3333-4444-555555555555";
const VAULT: &str = "vault-0a1b2c3d";
const VM: Uuid = Uuid::from_u128(0x5e);
const DISK: Uuid = Uuid::from_u128(1);
const INSTANCE: protection::Generation = protection::Generation(2);
const LIMIT: Duration = Duration::from_secs(120);
/// Long enough for [`MENU`] in the file that the disk's maker fills with its own name.
const MENU_FILE: &str = "EFI/a-system-that-does-nothing-but-to-say-that-it-was-reached/grub.cfg";
const MENU: &str = "serial --unit=0\nterminal_output serial\necho up\n";
/// In the gap, where GRUB's core lies.
const IN_CORE: u64 = 64 << 10;

/// A replica of a disk of generation 2, a host that has generation 1 only, and what the replica must hold.
struct World {
    lab: Lab,
    driver: Arc<QemuDriver>,
    board: Arc<Board>,
    vms: RecoveredVms,
    model: Vec<u8>,
}

fn key() -> ReplicaKey {
    ReplicaKey::new(VAULT, ITEM).unwrap()
}

fn point() -> RecoveryPoint {
    RecoveryPoint {
        id: Uuid::from_u128(100),
        position: Position(0),
        time_unix_ms: 1_700_000_000_000,
        vm_config: json!({
            "name": "web01", "generation": 2, "processors": 1, "memoryBytes": 64 << 20, "osType": "Linux",
            "disks": [{ "id": DISK, "name": "os.vhdx", "sizeBytes": 4 * MIB, "operatingSystem": true }],
            "networkAdapters": [],
        }),
        ..RecoveryPoint::default()
    }
}

impl World {
    async fn new() -> Self {
        let lab = Lab::new();
        let store = lab.folder.path().join("store");
        std::fs::create_dir(&store).unwrap();
        let mut disk = BootDisk::new(4)
            .partition("1:2048:+2048", "ef00")
            .partition("2:4096:+2048", "8300")
            .system(&[MENU_FILE]);
        let mut places = disk.bytes.windows(MENU_FILE.len());
        let menu = places.position(|place| place == MENU_FILE.as_bytes());
        let text = format!("{MENU:\n<0$}", MENU_FILE.len());
        disk.put(menu.unwrap(), text.as_bytes());
        // What lies in the gap is somebody's, and comes back as it was.
        disk.put(40 * 512, &[0xa7; 500_000]);
        let spec = DiskSpec {
            id: DISK,
            name: "os.vhdx".to_owned(),
            size_bytes: disk.bytes.len() as u64,
        };
        let licence = replica_store::Generation(1);
        let target = StoreTarget::Folder(store);
        let writer = ReplicaWriter::open(&target, &key(), licence, &[spec])
            .await
            .unwrap();
        let data = Bytes::from(disk.bytes.clone());
        writer.base_write(DISK, 0, data).await.unwrap();
        writer.complete_base(point()).await.unwrap();
        let driver = Arc::new(lab.another_driver());
        let board = Arc::new(Board::default());
        let mut host = RecoveryHost::new(driver.clone(), board.clone(), lab.vms());
        host.generations = vec![Generation::One];
        // GRUB hears no power button.
        host.shutdown_patience = Duration::from_millis(1);
        Self {
            driver,
            board,
            vms: RecoveredVms::new(Arc::new(host)),
            model: disk.bytes,
            lab,
        }
    }

    async fn tell(&mut self, epoch: u64, order: RecoveryOrder, ships: bool) {
        let store = self.lab.folder.path().join("store");
        let vm = RecoveredVm {
            id: VM.to_string(),
            name: "web01".to_owned(),
            item_id: ITEM.to_owned(),
            vault_key: VAULT.to_owned(),
            store: Some(Target {
                kind: Some(store_target::Kind::Folder(
                    store.to_str().unwrap().to_owned(),
                )),
                log: None,
            }),
            point_id: point().id.to_string(),
            order: Some(orders::recovery_message(
                protection::Generation(epoch),
                order,
            )),
            ships,
            ship_generation: if ships { INSTANCE.0 } else { 0 },
            ..RecoveredVm::default()
        };
        self.vms.apply(std::slice::from_ref(&vm)).await;
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
        let report = orders::recovery_report(protection::Generation(epoch), said);
        self.until(&format!("{said:?}"), |status| {
            status.recovery.as_ref() == Some(&report)
        })
        .await;
    }

    /// The guest writes; what the replica must hold then.
    async fn write(&mut self, offset: u64, length: u64, byte: u8) {
        let disk = own_disk(VM, DiskId(DISK));
        self.driver
            .write_as_guest(VmId(VM), disk, offset, length, byte)
            .await
            .unwrap();
        self.model[offset as usize..(offset + length) as usize].fill(byte);
    }

    async fn reader(&self) -> ReplicaReader {
        let store = StoreTarget::Folder(self.lab.folder.path().join("store"));
        ReplicaReader::open(&store, &key()).await.unwrap()
    }

    async fn replica_is_the_model(&self) -> RecoveryPoint {
        let view = self.reader().await.view(PointSelector::Newest).await;
        let view = view.unwrap();
        let held = view.read(DISK, 0, self.model.len()).await.unwrap();
        let mut sectors = held.chunks(512).zip(self.model.chunks(512));
        assert_eq!(
            sectors.position(|(held, wanted)| held != wanted),
            None,
            "a sector differs"
        );
        let point = view.point().unwrap().clone();
        assert_eq!(point.vm_config["generation"], 2, "as at the source");
        point
    }

    fn plan(&self) -> ConversionPlan {
        let folder = self.lab.vms().join("failovers").join(VAULT).join(ITEM);
        let bytes = std::fs::read(folder.join(format!("{VM}.conversion"))).unwrap();
        ConversionPlan::from_bytes(&bytes).unwrap()
    }
}

/// The whole disk of the VM, which is off, by QEMU's own tool.
fn own(lab: &Lab) -> Vec<u8> {
    let layer = lab.vms().join(format!("{VM}/disk0.qcow2"));
    let raw = lab.folder.path().join("layer.raw");
    let (layer, raw) = (layer.to_str().unwrap(), raw.to_str().unwrap());
    boot_disks::tool("qemu-img", &["convert", "-O", "raw", layer, raw]);
    std::fs::read(raw).unwrap()
}

fn run() -> RecoveryOrder {
    RecoveryOrder::Run {
        instance: INSTANCE,
        takes: INSTANCE,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_only_for_generation_1_never_reaches_the_replica_and_what_the_guest_wrote_there_does()
 {
    let mut world = World::new().await;
    world.tell(10, run(), false).await;
    world.says(10, RecoverySaid::Running).await;
    // The BIOS has started GRUB, and GRUB has found the guest's menu.
    world
        .until("the boot loader runs", |status| {
            status.first_output_unix_ms > 0
        })
        .await;
    let core = world.plan().pieces()[0].clone();
    assert!((core.offset..core.offset + core.new.len() as u64).contains(&IN_CORE));

    // A byte beside the core makes QEMU copy all of the cluster, converted sectors and all, into the VM's layer.
    world.write(8 << 10, 512, 0x11).await;
    world.write(3 * MIB, 4096, 0x22).await;
    // The guest writes a sector of the core itself.
    world.write(IN_CORE, 512, 0x33).await;
    world.tell(10, run(), true).await;
    world
        .until("it ships", |status| status.shipped_unix_ms > 0)
        .await;
    let first = world.replica_is_the_model().await;
    assert_eq!(first.changed_bytes, 3 * 4096, "whole blocks that differ");

    // By tracking now, and again by comparison once the VM was turned off.
    let before = world.status().shipped_unix_ms;
    world.write(IN_CORE + 4096, 512, 0x44).await;
    world.write(2 * MIB, 512, 0x55).await;
    world.tell(11, RecoveryOrder::Stop, true).await;
    world.says(11, RecoverySaid::Stopped).await;
    let last = world.replica_is_the_model().await;
    assert!(last.time_unix_ms > before);
    assert_eq!(last.changed_bytes, 2 * 4096);

    // Another failover begins with what the source would have: the plan of the first has no part in it.
    world.tell(12, RecoveryOrder::Absent, false).await;
    world.says(12, RecoverySaid::Absent).await;
    world.vms.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_left_for_good_keeps_its_generation_and_has_its_boot_loader_as_its_own() {
    let mut world = World::new().await;
    world.tell(10, run(), false).await;
    world.says(10, RecoverySaid::Running).await;
    world.write(3 * MIB, 4096, 0x22).await;
    let plan = world.plan();
    let leave = RecoveryOrder::Leave {
        instance: INSTANCE,
        takes: INSTANCE,
    };
    world.tell(11, leave, false).await;
    world.says(11, RecoverySaid::Left).await;
    world.vms.stop().await;
    let machines = world.driver.virtual_machines().await.unwrap();
    assert_eq!(machines[0].generation, Generation::One);
    world.driver.stop(VmId(VM), Stop::TurnOff).await.unwrap();
    // Nobody serves anything any more.
    let mut wanted = world.model.clone();
    plan.convert(0, &mut wanted);
    assert!(own(&world.lab) == wanted);
}
