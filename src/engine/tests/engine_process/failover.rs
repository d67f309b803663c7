//! A failover on the real program: the source's own engine is refused, the VM outlives kills, and is left in the end.

use std::path::PathBuf;

use engine_protocol::orders;
use engine_protocol::v1::replication_status::State;
use engine_protocol::v1::{EngineReport, RecoveredVm};
use hypervisor::{DiskId, Hypervisor as _, PowerState, QemuDriver, VmId};
use protection::Generation;
use protection::life::{RecoveryOrder, RecoverySaid};
use replica_store::{ReplicaKey, ReplicaReader};
use uuid::Uuid;

use crate::lab::{DATA_BYTES, ITEM, Lab, VAULT, protected};

const INSTANCE: Generation = Generation(5);
const TAKES: Generation = Generation(2);

fn says(epoch: u64, said: RecoverySaid) -> impl Fn(&EngineReport) -> bool {
    move |report| {
        report.recovered_vms.iter().any(|vm| {
            let report = vm.recovery.as_ref().and_then(orders::recovery_said);
            report == Some((Generation(epoch), said))
        })
    }
}

async fn order(lab: &Lab, id: Uuid, epoch: u64, order: RecoveryOrder) {
    let vm = RecoveredVm {
        id: id.to_string(),
        name: "lab-recovered".to_owned(),
        item_id: ITEM.to_owned(),
        vault_key: VAULT.to_owned(),
        store: Some(lab.target()),
        order: Some(orders::recovery_message(Generation(epoch), order)),
        ..RecoveredVm::default()
    };
    lab.want(|state| state.recovered_vms = vec![vm]);
}

fn process(lab: &Lab, id: Uuid) -> String {
    let file = lab.recovery.join(id.to_string()).join("run/pid");
    std::fs::read_to_string(file).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_engine_fails_over_outlives_a_kill_and_leaves_a_vm_that_needs_nothing() {
    let lab = Lab::new().await;
    let vms = lab.vms.to_str().unwrap().to_owned();
    lab.good(&["vm", "start", "--vm-folder", &vms, "lab"]).await;
    lab.with_config("start").await;
    let replication = lab.replication();
    lab.want(|state| state.replications = vec![replication]);
    lab.item("protected", protected(2)).await;
    // A disaster: the source's VM is gone, its engine believes that it still replicates.
    lab.good(&["vm", "stop", "--turn-off", "--vm-folder", &vms, "lab"])
        .await;

    let id = Uuid::new_v4();
    let run = RecoveryOrder::Run {
        instance: INSTANCE,
        takes: TAKES,
    };
    order(&lab, id, 10, run).await;
    lab.report("it runs", says(10, RecoverySaid::Running)).await;
    let key = ReplicaKey::new(VAULT, ITEM).unwrap();
    let store = replica_store::StoreTarget::Folder(lab.store.clone());
    let older = replica_store::Generation(1);
    let refused = replica_store::take_over(&store, &key, older).await;
    assert_eq!(
        refused.unwrap_err().kind(),
        replica_store::ErrorKind::Fenced
    );
    lab.good(&["vm", "start", "--vm-folder", &vms, "lab"]).await;
    lab.item("the source's engine is refused", |status| {
        status.state() == State::Fenced
    })
    .await;

    // The engine dies; the VM, which waits for its disks, goes on in the same process, with what its guest wrote.
    let driver = QemuDriver::new(
        vec![lab.recovery.clone()],
        lab.folder.path().join("scratch"),
    )
    .unwrap();
    let disk = Uuid::new_v5(&id, lab.disks[1].as_bytes());
    let before = process(&lab, id);
    let write = async |offset: u64| {
        driver
            .write_as_guest(VmId(id), DiskId(disk), offset, 64 << 10, 0xEE)
            .await
            .unwrap();
    };
    write(5 << 20).await;
    lab.kill_engine().await;
    lab.with_config("start").await;
    lab.report("it runs again", says(10, RecoverySaid::Running))
        .await;
    assert_eq!(process(&lab, id), before);

    // Left while it runs, with one more kill in the middle.
    let leave = RecoveryOrder::Leave {
        instance: INSTANCE,
        takes: TAKES,
    };
    order(&lab, id, 11, leave).await;
    lab.kill_engine().await;
    lab.with_config("start").await;
    lab.report("it is left", says(11, RecoverySaid::Left)).await;
    write(9 << 20).await;
    lab.want(|state| state.recovered_vms.clear());
    lab.report("nothing is shown of it", |report| {
        report.recovered_vms.is_empty()
    })
    .await;
    assert_eq!(process(&lab, id), before);
    let reader = ReplicaReader::open(&store, &key).await.unwrap();
    assert!(reader.pins().await.unwrap().is_empty());
    let point = reader.points().await.unwrap().pop().unwrap();
    let view = reader
        .view(replica_store::PointSelector::Id(point.id))
        .await
        .unwrap();
    let mut expected = view
        .read(lab.disks[1], 0, DATA_BYTES as usize)
        .await
        .unwrap()
        .to_vec();
    for offset in [5 << 20, 9 << 20] {
        expected[offset..][..64 << 10].fill(0xEE);
    }

    // Without engine and store it has all its data.
    lab.with_config("stop").await;
    let machines = driver.virtual_machines().await.unwrap();
    assert_eq!(machines[0].power_state, PowerState::Running);
    driver
        .stop(VmId(id), hypervisor::Stop::TurnOff)
        .await
        .unwrap();
    let layer = driver.disk_path(VmId(id), DiskId(disk)).await.unwrap();
    let raw: PathBuf = lab.folder.path().join("left.raw");
    let converted = tokio::process::Command::new("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "raw"])
        .args([&layer, &raw])
        .status();
    assert!(converted.await.unwrap().success());
    assert!(std::fs::read(&raw).unwrap() == expected);
}
