//! Freezing, tracking and what survives which crash, on real QEMU machines.

mod support;

use std::time::Duration;

use hypervisor::{Changes, Consistency, ErrorKind, Hypervisor, conformance};
use serde_json::json;
use support::{
    BLOCK, Lab, LabFixture, MIB, apply, changed_blocks, content, frozen_content, kill_qemu,
    tracking,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_1_machine_passes_the_conformance_suite() {
    let lab = Lab::new();
    let vm = lab.running_vm("one", 1, &[32, 16, 8]).await;
    let companion = lab.running_vm("companion", 1, &[8]).await;
    let fixture = LabFixture {
        lab: &lab,
        vm,
        companion,
    };
    conformance::run(&lab.driver, &fixture).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_2_machine_passes_the_conformance_suite() {
    let lab = Lab::new();
    let vm = lab.running_vm("two", 2, &[32, 16, 8]).await;
    let companion = lab.running_vm("companion", 1, &[8]).await;
    let fixture = LabFixture {
        lab: &lab,
        vm,
        companion,
    };
    conformance::run(&lab.driver, &fixture).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_the_written_blocks_are_reported_and_all_disks_stand_at_one_instant() {
    let lab = Lab::new();
    let vm = lab.running_vm("group", 2, &[64, 64, 64]).await;
    let first = lab
        .driver
        .freeze(vm.id, &vm.disks, None, tracking(1), Consistency::Crash)
        .await
        .unwrap();
    assert!(
        first
            .disks
            .iter()
            .all(|disk| disk.changes == Changes::Unknown)
    );
    assert!(
        first.disks.iter().all(|disk| disk.allocated.is_empty()),
        "an empty VHDX has nothing to copy"
    );
    lab.driver.release(first).await.unwrap();

    lab.write(&vm, 0, 0, 512, 1).await;
    lab.write(&vm, 0, 17 * BLOCK - 512, 1024, 2).await;
    lab.write(&vm, 0, 64 * MIB - 512, 512, 3).await;
    lab.write(&vm, 2, 5 * MIB, 3 * BLOCK, 4).await;
    let point = lab
        .driver
        .freeze(
            vm.id,
            &vm.disks,
            Some(tracking(1)),
            tracking(2),
            Consistency::Crash,
        )
        .await
        .unwrap();
    assert_eq!(changed_blocks(&point.disks[0]), [0, 16, 17, 1023]);
    assert_eq!(changed_blocks(&point.disks[1]), [0u64; 0]);
    assert_eq!(changed_blocks(&point.disks[2]), [80, 81, 82]);
    assert!(!point.disks[0].allocated.is_empty());
    assert!(point.disks[1].allocated.is_empty());

    let before: Vec<Vec<u8>> = {
        let mut all = Vec::new();
        for disk in &point.disks {
            all.push(frozen_content(disk).await);
        }
        all
    };
    assert_eq!(before[0][512..1024], [0; 512]);
    assert_eq!(before[0][17 * BLOCK as usize - 512..][..1024], [2; 1024]);
    for disk in 0..3 {
        lab.write(&vm, disk, 0, MIB, 0xee).await;
        lab.write(&vm, disk, 33 * MIB, BLOCK, 0xee).await;
        lab.write(&vm, disk, 64 * MIB - 512, 512, 0xee).await;
    }
    for (disk, before) in point.disks.iter().zip(&before) {
        assert!(frozen_content(disk).await == *before, "the view moved");
    }
    lab.driver.release(point).await.unwrap();

    let scratch = lab.folder.path().join("scratch");
    assert_eq!(
        std::fs::read_dir(scratch).unwrap().count(),
        0,
        "scratch files are left"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn cycles_replicate_byte_for_byte() {
    let lab = Lab::new();
    let vm = lab.running_vm("cycles", 1, &[32, 32]).await;
    lab.write(&vm, 0, MIB, MIB, 0x77).await;
    let point = lab
        .driver
        .freeze(vm.id, &vm.disks, None, tracking(1), Consistency::Crash)
        .await
        .unwrap();
    let mut replicas = Vec::new();
    for disk in &point.disks {
        // As a first copy does: only what is allocated.
        let mut replica = vec![0; disk.size_bytes as usize];
        for range in &disk.allocated {
            let data = disk
                .reader
                .read(range.offset, range.length as usize)
                .await
                .unwrap();
            replica[range.offset as usize..][..data.len()].copy_from_slice(&data);
        }
        assert!(
            replica == frozen_content(disk).await,
            "allocated ranges miss data"
        );
        replicas.push(replica);
    }
    lab.driver.release(point).await.unwrap();

    for cycle in 1..=3u64 {
        for step in 0..12u64 {
            let offset = (step * 7919 + cycle * 104_729) % 65_000 * 512;
            lab.write(
                &vm,
                (step % 2) as usize,
                offset,
                512 * (1 + step),
                (cycle * 16 + step) as u8,
            )
            .await;
        }
        let point = lab
            .driver
            .freeze(
                vm.id,
                &vm.disks,
                Some(tracking(cycle)),
                tracking(cycle + 1),
                Consistency::Crash,
            )
            .await
            .unwrap();
        lab.write(&vm, 0, 20 * MIB, BLOCK, 0xa0 + cycle as u8).await;
        for (replica, disk) in replicas.iter_mut().zip(&point.disks) {
            apply(replica, disk).await;
            assert!(
                *replica == frozen_content(disk).await,
                "replica differs in cycle {cycle}"
            );
        }
        lab.driver.release(point).await.unwrap();
        lab.driver.forget(vm.id, tracking(cycle + 1)).await.unwrap();
        assert_eq!(
            lab.driver.tracking(vm.id).await.unwrap(),
            [tracking(cycle + 1)]
        );
    }
    lab.driver
        .stop(vm.id, hypervisor::Stop::TurnOff)
        .await
        .unwrap();
    // What was written behind the last freeze is on the source only.
    replicas[0][20 * MIB as usize..][..BLOCK as usize].fill(0xa3);
    for (index, replica) in replicas.iter().enumerate() {
        assert!(content(&vm.folder.join(format!("d{index}.vhdx"))) == *replica);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_dies_between_freeze_and_release_loses_no_change() {
    let lab = Lab::new();
    let vm = lab.running_vm("crash", 1, &[16, 16]).await;
    let point = lab
        .driver
        .freeze(vm.id, &vm.disks, None, tracking(1), Consistency::Crash)
        .await
        .unwrap();
    lab.driver.release(point).await.unwrap();
    lab.write(&vm, 0, BLOCK, 512, 1).await;

    let dead = lab.another_driver();
    let point = dead
        .freeze(
            vm.id,
            &vm.disks,
            Some(tracking(1)),
            tracking(2),
            Consistency::Crash,
        )
        .await
        .unwrap();
    lab.write(&vm, 0, 2 * BLOCK, 512, 2).await;
    drop((point, dead));

    let heir = lab.another_driver();
    let refused = heir
        .freeze(
            vm.id,
            &vm.disks,
            Some(tracking(1)),
            tracking(3),
            Consistency::Crash,
        )
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    heir.clean_up(vm.id).await.unwrap();
    assert_eq!(
        heir.tracking(vm.id).await.unwrap(),
        [tracking(1), tracking(2)]
    );
    lab.write(&vm, 1, 3 * BLOCK, 512, 3).await;
    let point = heir
        .freeze(
            vm.id,
            &vm.disks,
            Some(tracking(1)),
            tracking(3),
            Consistency::Crash,
        )
        .await
        .unwrap();
    assert_eq!(changed_blocks(&point.disks[0]), [1, 2]);
    assert_eq!(changed_blocks(&point.disks[1]), [3]);
    heir.release(point).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_the_machine_changes_are_unknown() {
    let lab = Lab::new();
    let vm = lab.running_vm("restart", 1, &[16]).await;
    let point = lab
        .driver
        .freeze(vm.id, &vm.disks, None, tracking(1), Consistency::Crash)
        .await
        .unwrap();
    lab.driver.release(point).await.unwrap();
    lab.driver
        .stop(vm.id, hypervisor::Stop::TurnOff)
        .await
        .unwrap();
    assert_eq!(lab.driver.tracking(vm.id).await.unwrap(), []);
    let off = lab
        .driver
        .freeze(
            vm.id,
            &vm.disks,
            Some(tracking(1)),
            tracking(2),
            Consistency::Crash,
        )
        .await
        .unwrap_err();
    assert_eq!(off.kind(), ErrorKind::VmNotRunning);
    lab.driver.start(vm.id).await.unwrap();
    let point = lab
        .driver
        .freeze(
            vm.id,
            &vm.disks,
            Some(tracking(1)),
            tracking(2),
            Consistency::Crash,
        )
        .await
        .unwrap();
    assert_eq!(point.disks[0].changes, Changes::Unknown);
    lab.driver.release(point).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_is_killed_while_a_point_is_frozen_starts_again_and_tracks_anew() {
    let lab = Lab::new();
    let vm = lab.running_vm("killed", 2, &[16, 16]).await;
    lab.write(&vm, 0, 0, MIB, 0x5a).await;
    let point = lab
        .driver
        .freeze(vm.id, &vm.disks, None, tracking(1), Consistency::Crash)
        .await
        .unwrap();
    kill_qemu(&vm.folder).await;
    assert!(point.disks[0].reader.read(0, 512).await.is_err());
    lab.driver.release(point).await.unwrap();

    lab.driver.start(vm.id).await.unwrap();
    assert_eq!(lab.driver.tracking(vm.id).await.unwrap(), []);
    let point = lab
        .driver
        .freeze(
            vm.id,
            &vm.disks,
            Some(tracking(1)),
            tracking(2),
            Consistency::Crash,
        )
        .await
        .unwrap();
    assert_eq!(point.disks[0].changes, Changes::Unknown);
    assert_eq!(
        point.disks[0].reader.read(0, 512).await.unwrap(),
        vec![0x5a; 512]
    );
    lab.driver.release(point).await.unwrap();
    lab.write(&vm, 1, 9 * BLOCK, 512, 1).await;
    let point = lab
        .driver
        .freeze(
            vm.id,
            &vm.disks,
            Some(tracking(2)),
            tracking(3),
            Consistency::Crash,
        )
        .await
        .unwrap();
    assert_eq!(changed_blocks(&point.disks[1]), [9]);
    lab.driver.release(point).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_that_fails_leaves_tracking_as_it_was() {
    let lab = Lab::new();
    let vm = lab.running_vm("fails", 1, &[16, 16]).await;
    let freeze = async |since, next| {
        lab.driver
            .freeze(vm.id, &vm.disks, since, next, Consistency::Crash)
            .await
    };
    let point = freeze(None, tracking(1)).await.unwrap();
    lab.driver.release(point).await.unwrap();
    lab.write(&vm, 0, BLOCK, 512, 1).await;
    lab.write(&vm, 1, 8 * MIB, 8 * BLOCK, 1).await;

    // The transaction fails: somebody uses the bitmap that it has to end on the second disk.
    foreign_job_begins(&lab, &vm, "sr-1-1").await;
    let error = freeze(Some(tracking(1)), tracking(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    foreign_job_ends(&lab, &vm).await;
    assert_eq!(lab.driver.tracking(vm.id).await.unwrap(), [tracking(1)]);
    lab.write(&vm, 0, 2 * BLOCK, 512, 2).await;
    let point = freeze(Some(tracking(1)), tracking(2)).await.unwrap();
    assert_eq!(changed_blocks(&point.disks[0]), [1, 2]);
    assert_eq!(
        changed_blocks(&point.disks[1]),
        (128..136).collect::<Vec<_>>()
    );
    lab.driver.release(point).await.unwrap();
    lab.write(&vm, 0, 3 * BLOCK, 512, 3).await;

    // The export behind the transaction fails: somebody uses an older bitmap that it has to show.
    foreign_job_begins(&lab, &vm, "sr-1-1").await;
    let error = freeze(Some(tracking(1)), tracking(3)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    assert!(error.to_string().contains("export disk"), "{error:?}");
    foreign_job_ends(&lab, &vm).await;
    assert_eq!(
        lab.driver.tracking(vm.id).await.unwrap(),
        [tracking(1), tracking(2)]
    );
    lab.write(&vm, 0, 4 * BLOCK, 512, 4).await;
    let point = freeze(Some(tracking(2)), tracking(3)).await.unwrap();
    assert_eq!(changed_blocks(&point.disks[0]), [3, 4]);
    assert_eq!(changed_blocks(&point.disks[1]), [0u64; 0]);
    lab.driver.release(point).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_that_changed_places_under_a_running_machine_are_never_mixed_up() {
    let lab = Lab::new();
    let vm = lab.running_vm("places", 2, &[16, 16]).await;
    lab.write(&vm, 0, 0, BLOCK, 0x0a).await;
    lab.write(&vm, 1, 0, BLOCK, 0x0b).await;
    let file = vm.folder.join("vm.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let swapped = text
        .replace("d0.vhdx", "dx.vhdx")
        .replace("d1.vhdx", "d0.vhdx")
        .replace("dx.vhdx", "d1.vhdx");
    assert_ne!(text, swapped);
    std::fs::write(&file, swapped).unwrap();
    let refused = lab
        .driver
        .freeze(vm.id, &vm.disks, None, tracking(1), Consistency::Crash)
        .await
        .map(|point| point.disks.len())
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::DiskNotFound, "{refused}");
    std::fs::write(&file, text).unwrap();
    let point = lab
        .driver
        .freeze(vm.id, &vm.disks, None, tracking(1), Consistency::Crash)
        .await
        .unwrap();
    assert_eq!(
        point.disks[0].reader.read(0, 512).await.unwrap(),
        vec![0x0a; 512]
    );
    lab.driver.release(point).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_whose_point_was_taken_away_never_shows_a_later_one() {
    let lab = Lab::new();
    let vm = lab.running_vm("later", 1, &[16]).await;
    lab.write(&vm, 0, 0, BLOCK, 0x0a).await;
    let early = lab
        .driver
        .freeze(vm.id, &vm.disks, None, tracking(1), Consistency::Crash)
        .await
        .unwrap();
    assert_eq!(
        early.disks[0].reader.read(0, 512).await.unwrap(),
        vec![0x0a; 512]
    );
    let other = lab.another_driver();
    other.clean_up(vm.id).await.unwrap();
    lab.write(&vm, 0, 0, BLOCK, 0x0b).await;
    let late = other
        .freeze(vm.id, &vm.disks, None, tracking(2), Consistency::Crash)
        .await
        .unwrap();
    for _ in 0..3 {
        assert!(early.disks[0].reader.read(0, 512).await.is_err());
    }
    assert_eq!(
        late.disks[0].reader.read(0, 512).await.unwrap(),
        vec![0x0b; 512]
    );
    other.release(late).await.unwrap();
}

/// A slow backup by somebody else that keeps a bitmap of the second disk busy.
async fn foreign_job_begins(lab: &Lab, vm: &support::LabVm, bitmap: &str) {
    let target = lab.folder.path().join("foreign.qcow2");
    support::tool(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            target.to_str().unwrap(),
            "16M",
        ],
    );
    let mut qmp = lab.driver.qmp(vm.id).await.unwrap();
    let node = json!({
        "driver": "qcow2", "node-name": "foreign-target",
        "file": { "driver": "file", "filename": target.to_str().unwrap() },
    });
    qmp.execute("blockdev-add", node).await.unwrap();
    let job = json!({
        "job-id": "foreign", "device": "disk1", "target": "foreign-target",
        "speed": 1, "x-perf": { "max-workers": 1, "max-chunk": 65536 },
        "sync": "bitmap", "bitmap": bitmap, "bitmap-mode": "never",
    });
    qmp.execute("blockdev-backup", job).await.unwrap();
}

async fn foreign_job_ends(lab: &Lab, vm: &support::LabVm) {
    let mut qmp = lab.driver.qmp(vm.id).await.unwrap();
    qmp.execute(
        "block-job-cancel",
        json!({ "device": "foreign", "force": true }),
    )
    .await
    .unwrap();
    qmp.wait_event(
        |event| event.name == "BLOCK_JOB_CANCELLED",
        Duration::from_secs(30),
    )
    .await
    .unwrap();
    qmp.execute("blockdev-del", json!({ "node-name": "foreign-target" }))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_joins_later_is_unknown_and_the_others_are_not() {
    let lab = Lab::new();
    let vm = lab.running_vm("joins", 1, &[16, 16]).await;
    let point = lab
        .driver
        .freeze(vm.id, &vm.disks[..1], None, tracking(1), Consistency::Crash)
        .await
        .unwrap();
    lab.driver.release(point).await.unwrap();
    lab.write(&vm, 0, 4 * BLOCK, 512, 1).await;
    let point = lab
        .driver
        .freeze(
            vm.id,
            &vm.disks,
            Some(tracking(1)),
            tracking(2),
            Consistency::Crash,
        )
        .await
        .unwrap();
    assert_eq!(changed_blocks(&point.disks[0]), [4]);
    assert_eq!(point.disks[1].changes, Changes::Unknown);
    lab.driver.release(point).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_is_dropped_half_way_does_not_spoil_the_next_one() {
    let lab = Lab::new();
    let vm = lab.running_vm("dropped", 1, &[64]).await;
    lab.write(&vm, 0, 0, 32 * MIB, 0x3c).await;
    let point = lab
        .driver
        .freeze(vm.id, &vm.disks, None, tracking(1), Consistency::Crash)
        .await
        .unwrap();
    let reader = &point.disks[0].reader;
    for _ in 0..20 {
        let read = reader.read(0, 32 << 20);
        tokio::select! {
            biased;
            _ = read => {}
            () = tokio::task::yield_now() => {}
        }
        assert_eq!(reader.read(MIB, 4096).await.unwrap(), vec![0x3c; 4096]);
    }
    assert_eq!(reader.read(40 * MIB, 4096).await.unwrap(), vec![0; 4096]);
    lab.driver.release(point).await.unwrap();
}
