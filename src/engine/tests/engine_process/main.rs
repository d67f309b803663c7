//! The real program with real QEMU and a small orchestrator: enrolment, replication, `kill -9`, recovery, retirement.
//!
//! The VM has no operating system; its firmware is enough to run, QEMU's own writes stand in for the guest's.

mod failover;
mod lab;
mod scripts;

use std::sync::atomic::Ordering;

use engine_protocol::v1::recovered_vm_status::State as RecoveredState;
use engine_protocol::v1::replication_status::State;
use engine_protocol::v1::{EngineReport, RecoveredVm, recovered_vm, replication};
use replica_store::{PointSelector, ReplicaKey, ReplicaReader};
use uuid::Uuid;

use lab::{DATA_BYTES, ITEM, Lab, OS_BYTES, VAULT, after, protected, whole};

#[tokio::test(flavor = "multi_thread")]
async fn a_real_engine_replicates_survives_kills_recovers_and_retires() {
    let lab = Lab::new().await;
    let vms = lab.vms.to_str().unwrap().to_owned();
    lab.good(&["vm", "start", "--vm-folder", &vms, "lab"]).await;

    // Not running: told apart by the exit code. A second start is fine.
    let status = lab
        .engine(&["status", "--config", lab.config.to_str().unwrap()])
        .await;
    assert_eq!(status.status.code(), Some(3));
    lab.with_config("start").await;
    assert!(lab.with_config("start").await.contains("already"));
    // Nor does a killed supervisor leave the engine unwatched for good.
    lab.kill_supervisor().await;
    assert!(lab.with_config("start").await.contains("watched again"));

    // Enrolled once, the key is gone, the secret is in no log.
    let vm_id = lab.vm.to_string();
    let report = lab
        .report("first report", |report| {
            report.virtual_machines.iter().any(|vm| vm.id == vm_id)
        })
        .await;
    assert_eq!(report.virtual_machines[0].disks.len(), 2);
    assert!(!lab.folder.path().join("registration.key").exists());
    let replication = lab.replication();
    lab.want(|state| state.replications = vec![replication]);
    lab.item("protected", protected(3)).await;

    // Killed while cycles go round; what is written meanwhile is in the next point.
    for round in 0u8..3 {
        lab.kill_engine().await;
        lab.writes(1, u64::from(round) * (2 << 20), 0xA0 + round)
            .await;
        lab.with_config("start").await;
        lab.writes(0, (u64::from(round) + 5) * (1 << 20), 0xB0 + round)
            .await;
        let now = lab.now();
        let status = lab.item("a point after the kill", after(now)).await;
        let moved: u64 = status
            .recovery_points
            .iter()
            .skip(1)
            .map(|point| point.changed_bytes)
            .sum();
        assert!(
            moved < 8 << 20,
            "no full copy: {moved} bytes were moved by cycles"
        );
    }
    let now = lab.now();
    let status = lab.item("the newest point", after(now)).await;
    let newest = status.recovery_points.last().unwrap().clone();
    assert_eq!(lab.enrolments.load(Ordering::SeqCst), 1);
    let ids = lab.engine_ids.lock().unwrap().clone();
    assert!(
        ids.len() >= 4 && ids.iter().all(|id| *id == ids[0]),
        "one identity for all lives: {ids:?}"
    );
    {
        // Its certificate was old: renewed once without a hand, and used from the next life on.
        let certificates = lab.certificates.lock().unwrap();
        let shown = &certificates.shown;
        assert_eq!(certificates.renewed, 1);
        assert!(shown[0] != shown[1] && shown[1..].iter().all(|one| *one == shown[1]));
    }

    // A drill: the point runs as a VM, and goes on running while the engine is killed.
    let id = Uuid::new_v4();
    let drill = RecoveredVm {
        id: id.to_string(),
        name: "lab-test".to_owned(),
        item_id: ITEM.to_owned(),
        vault_key: VAULT.to_owned(),
        store: Some(lab.target()),
        point_id: newest.id.clone(),
        isolated: true,
        power: recovered_vm::Power::Running.into(),
        ..RecoveredVm::default()
    };
    lab.want(|state| state.recovered_vms = vec![drill]);
    let up = |report: &EngineReport| {
        report
            .recovered_vms
            .iter()
            .any(|vm| vm.state() == RecoveredState::Booted)
    };
    let report = lab
        .report("recovered VM has written to its console", up)
        .await;
    let recovered = &report.recovered_vms[0];
    assert_eq!(recovered.point_id, newest.id);
    assert!(
        recovered.first_output_unix_ms >= recovered.started_unix_ms
            && recovered.started_unix_ms > 0
    );
    assert!(std::fs::metadata(&recovered.console_path).unwrap().len() > 0);
    assert!(
        report
            .virtual_machines
            .iter()
            .all(|vm| vm.id != id.to_string()),
        "a recovered VM is not offered for protection"
    );
    lab.kill_engine().await;
    lab.with_config("start").await;
    let points = newest.time_unix_ms + 1;
    lab.report("both go on", |report| {
        up(report) && report.replications.iter().any(after(points))
    })
    .await;
    let recovery = lab.recovery.to_str().unwrap().to_owned();
    let list = lab
        .good(&["vm", "list", "--json", "--vm-folder", &recovery])
        .await;
    assert!(list.contains("Running"), "{list}");
    lab.want(|state| state.recovered_vms.clear());
    lab.report("recovered VM is gone", |report| {
        report.recovered_vms.is_empty()
    })
    .await;
    assert_eq!(std::fs::read_dir(&lab.recovery).unwrap().count(), 0);

    // The store holds what the disks hold.
    let shown = lab
        .good(&[
            "points",
            "--store",
            lab.store.to_str().unwrap(),
            "--vault-key",
            VAULT,
            "--item",
            ITEM,
        ])
        .await;
    assert!(
        shown.contains("CrashConsistent") && shown.contains("pins: 0"),
        "{shown}"
    );
    let now = lab.now();
    lab.item("one more point", after(now)).await;
    lab.good(&["vm", "stop", "--turn-off", "--vm-folder", &vms, "lab"])
        .await;
    let key = ReplicaKey::new(VAULT, ITEM).unwrap();
    let target = replica_store::StoreTarget::Folder(lab.store.clone());
    let view = ReplicaReader::open(&target, &key)
        .await
        .unwrap()
        .view(PointSelector::Newest)
        .await
        .unwrap();
    for (disk, name, size) in [(0, "os.vhdx", OS_BYTES), (1, "data.vhdx", DATA_BYTES)] {
        let source = whole(&lab.vms.join("lab").join(name), size);
        let mut at = 0;
        while at < size {
            let piece = view.read(lab.disks[disk], at, 1 << 20).await.unwrap();
            assert!(
                piece == source[at as usize..][..1 << 20],
                "{name} differs in the mebibyte at {at}"
            );
            at += 1 << 20;
        }
    }

    // Retirement leaves nothing.
    lab.want(|state| {
        state.replications[0].set_phase(replication::Phase::Retired);
        state.replications[0].delete_replica = true;
    });
    lab.item("retired", |status| status.state() == State::Retired)
        .await;
    assert!(!lab.store.join(VAULT).join(ITEM).join("manifest").exists());
    let logs = std::fs::read_dir(lab.vms.join("lab"))
        .unwrap()
        .filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .path()
                .extension()
                .is_some_and(|extension| extension == "hrl")
        });
    assert_eq!(logs.count(), 0);
    assert!(lab.with_config("stop").await.contains("stopped"));
    assert!(lab.with_config("stop").await.contains("not running"));
    let log = std::fs::read_to_string(lab.folder.path().join("data/engine.log")).unwrap();
    assert!(!log.contains("s3cret-of-the-test") && !log.contains("PRIVATE KEY"));
}
