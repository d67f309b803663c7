//! VMs of generation 2 on recovery hosts that support it and on such that don't. The boot loader is the host's own GRUB.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use disk_image::boot::{ConversionPlan, PlanState};
use disk_image::{Access, DiskImage, MemoryFile};
use engine::recovered::places;
use engine_protocol::v1::recovered_vm_status::State;
use engine_protocol::v1::{Finding, RecoveredVmStatus};
use hypervisor::{DiskSource, Generation};
use protection::life::{RecoveryOrder, RecoverySaid};
use replica_store::{PointSelector, ReplicaReader, StoreTarget};
use uuid::Uuid;

use crate::boot_disks::BootDisk;
use crate::host::StopAt;
use crate::world::{A, World, codes, id, key, leave, no_pauses, run};

const DISK: Uuid = Uuid::from_u128(1);

/// One life of the engine as by [`crate::world::life`], by the real clock: it waits for another program.
pub fn life<T>(life: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let end = runtime.block_on(life);
    runtime.shutdown_background();
    end
}

/// A host without generation 2, and what is to run on it.
fn world(disk: &BootDisk) -> World {
    World {
        generations: vec![Generation::One],
        ..World::of(2, disk.bytes.clone())
    }
}

fn windows() -> BootDisk {
    BootDisk::new(4)
        .partition("1:2048:+2048", "ef00")
        .partition("2:4096:+2048", "0700")
        .system(&["EFI/Microsoft/Boot/bootmgfw.efi"])
}

fn kept(world: &World) -> PathBuf {
    let folder = world.guard().parent().unwrap().to_owned();
    folder.join(format!("{}.conversion", id(A)))
}

fn plan(world: &World) -> ConversionPlan {
    ConversionPlan::from_bytes(&std::fs::read(kept(world)).unwrap()).unwrap()
}

/// What the guest reads.
pub async fn served(world: &World) -> Vec<u8> {
    let machine = world.host.machine(id(A)).unwrap();
    let DiskSource::Nbd {
        socket,
        export,
        size_bytes,
        ..
    } = machine.new.disks[0].source.clone()
    else {
        panic!("{machine:?}");
    };
    let export = format!("nbd+unix:///{export}?socket={}", socket.display());
    let raw = world.folder.path().join("read.raw");
    let status = tokio::process::Command::new("qemu-img")
        .args(["convert", "-O", "raw", &export])
        .arg(&raw)
        .status();
    assert!(status.await.unwrap().success());
    let all = std::fs::read(&raw).unwrap();
    assert_eq!(all.len() as u64, size_bytes);
    all
}

async fn replica_is(world: &World, disk: &BootDisk) {
    let store = StoreTarget::Folder(world.store());
    let reader = ReplicaReader::open(&store, &key()).await.unwrap();
    let view = reader.view(PointSelector::Newest).await.unwrap();
    let held = view.read(DISK, 0, disk.bytes.len()).await.unwrap();
    assert!(held == disk.bytes, "the replica was written");
}

fn image(bytes: &[u8]) -> DiskImage {
    let file = Box::new(MemoryFile::from_bytes(bytes.to_vec()));
    DiskImage::open_raw(file, Access::ReadOnly, 512).unwrap()
}

fn finding(all: &[RecoveredVmStatus]) -> Option<Finding> {
    all.iter()
        .find(|vm| codes(vm) == ["GENERATION_NOT_SUPPORTED"])
        .map(|vm| vm.findings[0].clone())
}

#[test]
fn a_linux_vm_of_generation_2_is_made_as_generation_1_and_its_disk_is_converted_on_its_way() {
    let disk = BootDisk::linux();
    let mut world = world(&disk);
    let before = life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(10, run(A), A)).await;
        engine.says(10, RecoverySaid::Running).await;
        let machine = world.host.machine(id(A)).unwrap();
        assert_eq!(machine.new.generation, Generation::One);
        let read = served(&world).await;
        let plan = plan(&world);
        assert_eq!(plan.state(&image(&read)).unwrap(), PlanState::Converted);
        let mut back = read.clone();
        plan.restore(0, &mut back);
        assert!(back == disk.bytes, "more than the conversion differs");
        replica_is(&world, &disk).await;
        engine.vms.stop().await;
        read
    });
    // The VM's layer holds copies of what was read: other settings must not change what it lies on.
    world.generations = vec![Generation::One, Generation::Two];
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(11, RecoveryOrder::Stop, A)).await;
        engine.says(11, RecoverySaid::Stopped).await;
        engine.tell(&world.listed(12, run(A), A)).await;
        engine.says(12, RecoverySaid::Running).await;
        assert!(served(&world).await == before);
        engine.tell(&world.listed(13, leave(A), A)).await;
        engine.says(13, RecoverySaid::Left).await;
        assert!(
            !kept(&world).exists(),
            "nothing is kept of a VM that is left"
        );
        let machine = world.host.machine(id(A)).unwrap();
        assert_eq!(machine.new.generation, Generation::One);
    });
}

#[test]
fn where_the_host_supports_it_generation_2_is_kept_and_nothing_is_converted() {
    let disk = BootDisk::linux();
    let world = World {
        generations: vec![Generation::One, Generation::Two],
        ..world(&disk)
    };
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(10, run(A), A)).await;
        engine.says(10, RecoverySaid::Running).await;
        let machine = world.host.machine(id(A)).unwrap();
        assert_eq!(machine.new.generation, Generation::Two);
        assert!(served(&world).await == disk.bytes);
        assert!(!kept(&world).exists());
    });
}

#[test]
fn an_engine_that_is_killed_between_plan_and_use_goes_on_with_the_same_plan() {
    for place in [
        places::CONVERSION_KEPT,
        places::POINT_HELD,
        places::MADE,
        places::STARTED,
    ] {
        let disk = BootDisk::linux();
        let world = world(&disk);
        let first = life(async {
            let stop = StopAt::new(place, 0);
            let mut engine = world.engine(stop.clone());
            engine.tell(&world.listed(10, run(A), A)).await;
            stop.reached.notified().await;
            std::fs::metadata(kept(&world)).ok().map(|file| file.ino())
        });
        assert_eq!(first.is_none(), place == places::POINT_HELD);
        assert_eq!(
            world.host.machine(id(A)).is_none(),
            matches!(place, places::POINT_HELD | places::CONVERSION_KEPT),
            "nothing is made before the plan is durable"
        );
        life(async {
            let mut engine = world.engine(no_pauses());
            engine.tell(&world.listed(10, run(A), A)).await;
            engine.says(10, RecoverySaid::Running).await;
            // One that the first life had started is noted once its disks are served again.
            engine
                .until("it is served", |all| {
                    all.iter().any(|vm| vm.started_unix_ms > 0)
                })
                .await;
            let file = std::fs::metadata(kept(&world)).unwrap();
            assert!(
                first.is_none_or(|first| first == file.ino()),
                "killed at {place}: another plan was made"
            );
            let read = served(&world).await;
            let state = plan(&world).state(&image(&read)).unwrap();
            assert_eq!(state, PlanState::Converted, "killed at {place}");
            engine
                .tell(&world.listed(11, RecoveryOrder::Absent, A))
                .await;
            engine.says(11, RecoverySaid::Absent).await;
            assert!(!kept(&world).exists());
            replica_is(&world, &disk).await;
        });
    }
}

#[test]
fn a_windows_vm_is_refused_at_once_with_its_name_the_cause_and_what_to_do() {
    let world = world(&windows());
    life(async {
        let mut engine = world.engine(no_pauses());
        let drill = world.drill(Uuid::from_u128(77));
        engine
            .vms
            .apply(&[drill, world.listed(10, run(A), A)])
            .await;
        engine
            .until("both are refused", |all| {
                let failed = |vm: &&RecoveredVmStatus| {
                    vm.state() == State::Failed && codes(vm) == ["GENERATION_NOT_SUPPORTED"]
                };
                all.iter().filter(failed).count() == 2
            })
            .await;
        let finding = finding(&engine.board.snapshot().recovered).unwrap();
        assert!(finding.critical);
        for word in ["web01", "os.vhdx", "Windows", "generation 1 only"] {
            assert!(finding.summary.contains(word), "{finding:#?}");
        }
        let action = &finding.recommended_action;
        assert!(action.contains("target with generation 2"), "{action}");
        assert!(world.host.machines.lock().unwrap().is_empty());
        assert!(!kept(&world).exists());
    });
}

#[test]
fn a_plan_that_is_lost_or_damaged_stops_its_vm_from_being_started_as_another_one() {
    let disk = BootDisk::linux();
    let world = world(&disk);
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(10, run(A), A)).await;
        engine.says(10, RecoverySaid::Running).await;
        engine.tell(&world.listed(11, RecoveryOrder::Stop, A)).await;
        engine.says(11, RecoverySaid::Stopped).await;
        engine.vms.stop().await;
    });
    let whole = std::fs::read(kept(&world)).unwrap();
    let mut damaged = whole.clone();
    damaged[1000] ^= 1;
    for content in [None, Some(damaged)] {
        match &content {
            Some(content) => std::fs::write(kept(&world), content).unwrap(),
            None => std::fs::remove_file(kept(&world)).unwrap(),
        }
        life(async {
            let mut engine = world.engine(no_pauses());
            engine.tell(&world.listed(12, run(A), A)).await;
            engine
                .until("it fails", |all| {
                    all.iter().any(|vm| {
                        codes(vm) == ["ORDER_NOT_CARRIED_OUT"]
                            && vm.findings[0].summary.contains(".conversion")
                    })
                })
                .await;
            assert!(!world.host.is_running(id(A)));
        });
    }
    std::fs::write(kept(&world), whole).unwrap();
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(12, run(A), A)).await;
        engine.says(12, RecoverySaid::Running).await;
    });
}
