//! A failback to a host that has lost the VM, or a disk of it, on real QEMU: it is made again, filled, and runs.

#[allow(dead_code, reason = "of the double's tests one thing is used")]
#[path = "support/faults.rs"]
mod faults;
#[path = "../../hypervisor/tests/support/mod.rs"]
mod lab;
#[path = "support/qemu_source.rs"]
mod qemu_source;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use disk_image::{Access, DiskImage};
use engine::receive;
use engine::replicator::pauses::NoPauses;
use engine_protocol::v1;
use faults::StopAt;
use hypervisor::{Hypervisor, PowerState, VirtualMachine};
use lab::{BLOCK, boot_sector, qemu_pid};
use protection::Generation;
use protection::life::{SourceOrder, SourceSaid};
use qemu_source::*;
use replica_store::{
    CyclePlan, DiskSpec, PointKind, PointSelector, Position, RecoveryPoint, ReplicaKey,
    ReplicaReader, ReplicaState, ReplicaWriter, StoreTarget, WriterOptions,
};
use tokio::runtime::Runtime;
use uuid::Uuid;

const ORIGIN: u64 = 5;
const AGAIN: u64 = 9;

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().build().unwrap()
}

fn key() -> ReplicaKey {
    ReplicaKey::new(VAULT, ITEM).unwrap()
}

/// A VM that has failed over: everything is in the store, and it is held.
async fn failed_over() -> Site {
    let site = Site::new().await;
    let engine = Engine::start(&site, driver(&site), Arc::new(NoPauses));
    engine.order(&site, 1, SourceOrder::Replicate(LICENCE));
    engine.wait("points", more_points(1)).await;
    site.lab.write(&site.vm, 0, 40 * BLOCK, 4096, 0x41).await;
    site.lab.write(&site.vm, 1, 9 * BLOCK, 4096, 0x5a).await;
    engine.order(&site, 2, SourceOrder::ShipRest(LICENCE));
    engine.says(2, SourceSaid::Shipped).await;
    engine.order(&site, 3, SourceOrder::Hold);
    engine.says(3, SourceSaid::Held).await;
    engine.stop().await;
    site
}

/// The recovered VM writes 4 KiB at an offset of its second disk, and ships that.
async fn recovered_writes(site: &Site, offset: u64, value: u8) {
    let target = StoreTarget::Folder(site.store.clone());
    let sizes = [8 << 20, 16 << 20];
    let disks = site.vm.disks.iter().zip(sizes);
    let specs: Vec<DiskSpec> = disks
        .map(|(id, size_bytes)| DiskSpec {
            id: id.0,
            size_bytes,
            name: id.to_string(),
        })
        .collect();
    let options = WriterOptions {
        any_disks: true,
        ..WriterOptions::default()
    };
    let by = replica_store::Generation(ORIGIN);
    let opened = ReplicaWriter::open_with(options, &target, &key(), by, &specs).await;
    let writer = opened.unwrap();
    let ReplicaState::Complete { head_position, .. } = writer.state().await.unwrap() else {
        panic!("no replica");
    };
    let position = Position(head_position.0 + 1);
    let newest = writer.points().await.unwrap().pop().unwrap();
    let plan = CyclePlan {
        position,
        time_unix_ms: newest.time_unix_ms + 1000,
        disks: Some(specs.clone()),
        compression: replication_log::journal::CompressionLevel::default(),
    };
    let mut cycle = writer.begin_cycle_with(plan).await.unwrap();
    let data = Bytes::from(vec![value; 4096]);
    cycle.write(specs[1].id, offset, data).await.unwrap();
    cycle.commit().await.unwrap();
    let point = RecoveryPoint {
        id: Uuid::new_v4(),
        time_unix_ms: newest.time_unix_ms + 1000,
        kind: PointKind::Crash,
        position,
        vm_config: newest.vm_config,
        ..RecoveryPoint::default()
    };
    writer.add_point(point).await.unwrap();
}

fn receive(site: &Site, epoch: u64, order: SourceOrder, creates: bool) -> v1::Replication {
    v1::Replication {
        origin: ORIGIN,
        create_vm: creates,
        ..site.message(epoch, order)
    }
}

async fn machine(site: &Site) -> Option<VirtualMachine> {
    let machines = site.lab.driver.virtual_machines().await.unwrap();
    machines.into_iter().find(|vm| vm.id == site.vm.id)
}

/// Every disk of the VM has every byte of the newest point.
async fn disks_are_the_newest_point(site: &Site) {
    let target = StoreTarget::Folder(site.store.clone());
    let reader = ReplicaReader::open(&target, &key()).await.unwrap();
    let view = reader.view(PointSelector::Newest).await.unwrap();
    for disk in &site.vm.disks {
        let path = site.lab.driver.disk_path(site.vm.id, *disk).await.unwrap();
        let image = DiskImage::open(path, Access::ReadOnly).unwrap();
        let mut here = vec![0; image.virtual_size() as usize];
        image.read_at(&mut here, 0).unwrap();
        let there = view.read(disk.0, 0, here.len()).await.unwrap();
        assert!(blake3::hash(&here) == blake3::hash(&there), "disk {disk}");
    }
}

#[test]
fn a_vm_that_was_deleted_is_made_again_whatever_dies_in_between_and_runs_protected() {
    let world = runtime();
    let (site, before) = world.block_on(async {
        let site = failed_over().await;
        let before = machine(&site).await.unwrap();
        recovered_writes(&site, 77 * BLOCK, 0x77).await;
        std::fs::remove_dir_all(&site.vm.folder).unwrap();
        (site, before)
    });
    let places = [
        receive::LOST,
        receive::MADE,
        receive::UNDER_WAY,
        receive::WRITING,
        receive::FLUSHED,
        receive::PROVEN,
        receive::MAPPED,
        receive::SETTLED,
        receive::ARRIVED,
    ];
    for place in places {
        let life = runtime();
        life.block_on(async {
            let stop_at = StopAt::new(Some(place), 0);
            let engine = Engine::start(&site, driver(&site), stop_at.clone());
            engine.tell(receive(&site, 6, SourceOrder::Receive, true));
            tokio::time::timeout(LIMIT, stop_at.reached.notified())
                .await
                .unwrap_or_else(|_| panic!("never at {place}"));
        });
        // As `kill -9`: nothing of the engine comes to its end.
        life.shutdown_background();
        assert_eq!(qemu_pid(&site.vm.folder), None, "started at {place}");
    }
    world.block_on(async {
        let engine = Engine::start(&site, driver(&site), Arc::new(NoPauses));
        engine.tell(receive(&site, 6, SourceOrder::Receive, true));
        engine.says(6, SourceSaid::Received).await;
        recovered_writes(&site, 78 * BLOCK, 0x78).await;
        engine.tell(receive(&site, 7, SourceOrder::ReceiveRest, true));
        engine.says(7, SourceSaid::Received).await;
        disks_are_the_newest_point(&site).await;
        let made = machine(&site).await.unwrap();
        assert_eq!(made.power_state, PowerState::Off, "not before it may");
        assert_eq!(made.findings, []);
        let as_before = VirtualMachine {
            power_state: PowerState::Off,
            ..before
        };
        assert_eq!(made, as_before, "with all that it had");

        let mut again = site.message(8, SourceOrder::Replicate(Generation(AGAIN)));
        again.generation = AGAIN;
        let points = engine.context.board.replication(ITEM).unwrap();
        let points = points.recovery_points.len();
        engine.tell(again);
        engine.wait("protected", more_points(points)).await;
        boot_sector::is_up(&site.vm.folder).await;
        engine.stop().await;
    });
}

#[test]
fn another_host_that_never_had_the_vm_gets_it_whole_and_the_first_one_keeps_it_off() {
    runtime().block_on(async {
        let site = failed_over().await;
        let before = machine(&site).await.unwrap();
        recovered_writes(&site, 77 * BLOCK, 0x77).await;
        let lab = lab::Lab::new();
        let state = lab.folder.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let folder = lab.folder.path().join("vms").join("web01");
        let vm = lab::LabVm {
            folder,
            ..site.vm.clone()
        };
        let other = Site {
            lab,
            vm,
            state,
            store: site.store.clone(),
        };
        let engine = Engine::start(&other, driver(&other), Arc::new(NoPauses));
        // What isn't there is off: the answer that the failback waits for.
        engine.order(&other, 6, SourceOrder::Hold);
        engine.says(6, SourceSaid::Held).await;
        engine.tell(receive(&other, 7, SourceOrder::Receive, true));
        engine.says(7, SourceSaid::Received).await;
        recovered_writes(&site, 78 * BLOCK, 0x78).await;
        engine.tell(receive(&other, 8, SourceOrder::ReceiveRest, true));
        engine.says(8, SourceSaid::Received).await;
        disks_are_the_newest_point(&other).await;
        let made = machine(&other).await.unwrap();
        let as_before = VirtualMachine {
            power_state: PowerState::Off,
            ..before
        };
        assert_eq!(made, as_before, "with all that it had");

        let licence = Generation(AGAIN);
        engine.order(&other, 9, SourceOrder::Run(licence));
        engine.says(9, SourceSaid::Running).await;
        let mut again = other.message(10, SourceOrder::Replicate(licence));
        again.generation = AGAIN;
        let points = engine.context.board.replication(ITEM).unwrap();
        let points = points.recovery_points.len();
        engine.tell(again);
        engine.wait("protected", more_points(points)).await;
        boot_sector::is_up(&other.vm.folder).await;

        // The first host comes back: told to hold, and to let go in the end. Its VM is there, and off.
        let first = Engine::start(&site, driver(&site), Arc::new(NoPauses));
        first.order(&site, 3, SourceOrder::Hold);
        first.says(3, SourceSaid::Held).await;
        first.order(&site, 4, SourceOrder::LeaveOff);
        first.says(4, SourceSaid::Left).await;
        assert_eq!(qemu_pid(&site.vm.folder), None, "two copies");
        let kept = machine(&site).await.unwrap();
        assert_eq!(kept.power_state, PowerState::Off);
        first.stop().await;
        engine.stop().await;
    });
}

#[test]
fn a_disk_that_was_lost_alone_is_filled_and_the_others_get_only_what_changed() {
    runtime().block_on(async {
        let site = failed_over().await;
        recovered_writes(&site, 77 * BLOCK, 0x77).await;
        let files = |site: &Site| -> [PathBuf; 2] {
            ["d0.vhdx", "d1.vhdx"].map(|name| site.vm.folder.join(name))
        };
        std::fs::remove_file(&files(&site)[1]).unwrap();
        let engine = Engine::start(&site, driver(&site), Arc::new(NoPauses));
        engine.tell(receive(&site, 6, SourceOrder::ReceiveRest, true));
        let status = engine.says(6, SourceSaid::Received).await;
        disks_are_the_newest_point(&site).await;
        // Both writes of the lost disk's past; none of the other one's.
        let received = status.source.unwrap().received_bytes;
        assert_eq!(received, 2 * 4096, "zeroes are not written");
        assert!(files(&site).iter().all(|file| file.is_file()));
        engine.stop().await;
    });
}

#[test]
fn without_the_wish_nothing_is_made_and_the_item_says_what_is_missing() {
    runtime().block_on(async {
        let site = failed_over().await;
        recovered_writes(&site, 77 * BLOCK, 0x77).await;
        std::fs::remove_dir_all(&site.vm.folder).unwrap();
        let engine = Engine::start(&site, driver(&site), Arc::new(NoPauses));
        engine.tell(receive(&site, 6, SourceOrder::Receive, false));
        let missed = |status: &v1::ReplicationStatus| {
            let mut codes = status.findings.iter().map(|finding| finding.code.as_str());
            codes.any(|code| code == "VM_NOT_FOUND")
        };
        engine.wait("missed", missed).await;
        assert_eq!(machine(&site).await, None);
        // It is off, which is all that an order to hold wants.
        engine.order(&site, 7, SourceOrder::Hold);
        engine.says(7, SourceSaid::Held).await;
        engine.stop().await;
    });
}

#[test]
fn a_folder_that_nobody_can_read_is_in_the_way_until_it_is_moved() {
    runtime().block_on(async {
        let site = failed_over().await;
        recovered_writes(&site, 77 * BLOCK, 0x77).await;
        std::fs::remove_dir_all(&site.vm.folder).unwrap();
        std::fs::create_dir(&site.vm.folder).unwrap();
        let unreadable = site.vm.folder.join("vm.toml");
        std::fs::write(&unreadable, "id = ?").unwrap();
        let engine = Engine::start(&site, driver(&site), Arc::new(NoPauses));
        engine.tell(receive(&site, 6, SourceOrder::Receive, true));
        let refused = |status: &v1::ReplicationStatus| {
            let mut codes = status.findings.iter().map(|finding| finding.code.as_str());
            codes.any(|code| code == "FAILBACK_VM_NOT_CREATED")
        };
        engine.wait("refused", refused).await;
        assert_eq!(std::fs::read(&unreadable).unwrap(), b"id = ?");
        std::fs::remove_file(&unreadable).unwrap();
        engine.says(6, SourceSaid::Received).await;
        disks_are_the_newest_point(&site).await;
        engine.stop().await;
    });
}
