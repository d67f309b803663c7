//! The disks of a recovered VM come to its host, and then it needs the store no more.

use std::path::PathBuf;

use engine_protocol::v1::RecoveredVmStatus;
use hypervisor::{Hypervisor as _, VmId};
use protection::life::{RecoveryOrder, RecoverySaid};
use uuid::Uuid;

use crate::generations::{life, served};
use crate::world::{A, Engine, World, id, leave, no_pauses, run};

/// Some of it zero, and not whole blocks.
fn disk() -> Vec<u8> {
    let byte = |at: usize| {
        if at % 700_000 < 300_000 {
            0
        } else {
            (at / 5 % 251) as u8 | 1
        }
    };
    (0..3 << 20).map(byte).chain([9; 4096]).collect()
}

/// The guest says its first word, whereupon its disks are fetched.
async fn boots(world: &World) {
    let console = world.host.console(VmId(id(A))).await.unwrap();
    std::fs::write(console, "up\n").unwrap();
}

async fn all_here(engine: &Engine, size: u64) {
    let here = |vm: &RecoveredVmStatus| vm.local_bytes == size && vm.disk_bytes == size;
    engine
        .until("all is here", |all| all.iter().any(here))
        .await;
}

fn copies(world: &World, vm: Uuid) -> Vec<PathBuf> {
    let folder = world.recovery().join(vm.to_string());
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.to_string_lossy().contains(".copy"))
        .collect()
}

#[test]
fn a_vm_whose_disks_have_come_to_its_host_reads_on_without_the_store_and_is_let_go_without_a_trace()
{
    let (disk, world) = (disk(), World::of(1, disk()));
    let away = world.folder.path().join("away");
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(10, run(A), A)).await;
        engine.says(10, RecoverySaid::Running).await;
        boots(&world).await;
        all_here(&engine, disk.len() as u64).await;
        std::fs::rename(world.store(), &away).unwrap();
        assert!(served(&world).await == disk, "read without the store");
        std::fs::rename(&away, world.store()).unwrap();
    });
    assert_eq!(copies(&world, id(A)).len(), 2);
    // The next life of the engine finds what is here and fetches nothing again.
    life(async {
        let mut engine = world.engine(no_pauses());
        engine.tell(&world.listed(10, run(A), A)).await;
        all_here(&engine, disk.len() as u64).await;
        std::fs::rename(world.store(), &away).unwrap();
        assert!(served(&world).await == disk, "after a restart");
        std::fs::rename(&away, world.store()).unwrap();
        engine.tell(&world.listed(11, leave(A), A)).await;
        engine.says(11, RecoverySaid::Left).await;
    });
    assert_eq!(copies(&world, id(A)), Vec::<PathBuf>::new());
}

#[test]
fn a_drill_and_a_removed_vm_leave_no_copies() {
    let world = World::of(1, disk());
    life(async {
        let mut engine = world.engine(no_pauses());
        let drill = Uuid::from_u128(77);
        let both = [world.listed(10, run(A), A), world.drill(drill)];
        engine.vms.apply(&both).await;
        engine.says(10, RecoverySaid::Running).await;
        let of_drill = drill.to_string();
        engine
            .until("the drill runs", |all| {
                all.iter()
                    .any(|vm| vm.id == of_drill && vm.started_unix_ms > 0)
            })
            .await;
        assert_eq!(copies(&world, drill), Vec::<PathBuf>::new());
        assert!(!copies(&world, id(A)).is_empty());
        engine
            .tell(&world.listed(11, RecoveryOrder::Absent, A))
            .await;
        engine.says(11, RecoverySaid::Absent).await;
    });
    assert_eq!(copies(&world, id(A)), Vec::<PathBuf>::new());
}
