//! Guests at rest, groups, and guests that are never left held, on real QEMU machines with agents of the tests' own.

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use hypervisor::{
    Consistency, FreezeRequest, Hypervisor, QuiesceReason, Quiescence, TrackingId, VmId,
};
use serde_json::{Value, json};
use support::{BLOCK, Lab, LabVm, MIB, changed_blocks, frozen_content, tracking};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

/// A guest agent of the test in place of the guest's: it answers at the socket of the VM's port.
struct FakeAgent {
    frozen: Arc<AtomicBool>,
    thaws: Arc<AtomicU32>,
    /// Whether it reads what it is sent.
    hears: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

/// What the agent does when asked to freeze.
#[derive(Clone, Copy, PartialEq)]
enum Freezes {
    Well,
    Nothing,
    WithAnError,
    /// It does, and never says so.
    InSilence,
    /// It hangs in it, until the test lets it hear again.
    AndHangs,
    /// Something thaws it right after.
    NotForLong,
}

impl FakeAgent {
    fn in_place_of(vm: &LabVm, freezes: Freezes) -> Self {
        let path = vm.folder.join("run/agent.sock");
        std::fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(path).unwrap();
        let (frozen, thaws) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU32::new(0)),
        );
        let hears = Arc::new(AtomicBool::new(true));
        let (state, count, hearing) = (frozen.clone(), thaws.clone(), hears.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (reader, mut writer) = stream.into_split();
                let mut reader = BufReader::new(reader);
                let mut line = Vec::new();
                while reader.read_until(b'\n', &mut line).await.unwrap_or(0) > 0 {
                    if !hearing.load(Ordering::SeqCst) {
                        line.clear();
                        continue;
                    }
                    let start = line.iter().position(|byte| *byte == b'{').unwrap_or(0);
                    let request: Value = serde_json::from_slice(&line[start..]).unwrap();
                    line.clear();
                    let answer = match request["execute"].as_str().unwrap() {
                        "guest-sync-delimited" => {
                            Some(json!({ "return": request["arguments"]["id"] }))
                        }
                        "guest-fsfreeze-freeze" => {
                            let freezing = matches!(
                                freezes,
                                Freezes::Well | Freezes::InSilence | Freezes::AndHangs
                            );
                            state.store(freezing, Ordering::SeqCst);
                            match freezes {
                                Freezes::AndHangs if count.load(Ordering::SeqCst) == 0 => {
                                    hearing.store(false, Ordering::SeqCst);
                                    None
                                }
                                Freezes::AndHangs => Some(json!({ "return": 2 })),
                                Freezes::Well | Freezes::NotForLong => Some(json!({ "return": 2 })),
                                Freezes::Nothing => Some(json!({ "return": 0 })),
                                Freezes::WithAnError => {
                                    Some(json!({ "error": { "desc": "the hook failed" } }))
                                }
                                Freezes::InSilence => None,
                            }
                        }
                        "guest-fsfreeze-thaw" => {
                            count.fetch_add(1, Ordering::SeqCst);
                            let was = state.swap(false, Ordering::SeqCst);
                            Some(json!({ "return": if was { 2 } else { 0 } }))
                        }
                        other => panic!("{other}"),
                    };
                    if let Some(answer) = answer {
                        writer.write_all(&[0xff]).await.ok();
                        writer
                            .write_all(format!("{answer}\n").as_bytes())
                            .await
                            .ok();
                    }
                }
            }
        });
        Self {
            frozen,
            thaws,
            hears,
            task,
        }
    }

    fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn application_point(lab: &Lab, vm: &LabVm, number: u64) -> Quiescence {
    let point = lab
        .driver
        .freeze(
            vm.id,
            &vm.disks,
            None,
            tracking(number),
            Consistency::Application,
        )
        .await
        .unwrap();
    let quiescence = point.quiescence.clone();
    lab.driver.release(point).await.unwrap();
    quiescence
}

fn marks(vm: &LabVm) -> Vec<PathBuf> {
    ["paused-by-freeze", "quiesced-by-freeze"]
        .map(|name| vm.folder.join("run").join(name))
        .into_iter()
        .filter(|path| path.exists())
        .collect()
}

async fn is_running(lab: &Lab, vm: VmId) -> bool {
    let mut qmp = lab.driver.qmp(vm).await.unwrap();
    let status = qmp.execute("query-status", Value::Null).await.unwrap();
    status["running"].as_bool().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_is_application_consistent_only_if_the_guest_confirmed_it() {
    let lab = Lab::new();
    let vm = lab.running_vm("agent", 1, &[8]).await;
    let agent = FakeAgent::in_place_of(&vm, Freezes::Well);
    let quiescence = application_point(&lab, &vm, 1).await;
    assert_eq!(quiescence, Quiescence::Confirmed { file_systems: 2 });
    assert!(!agent.is_frozen());
    drop(agent);

    for (number, freezes, expected) in [
        (2, Freezes::Nothing, QuiesceReason::NothingToFreeze),
        (3, Freezes::WithAnError, QuiesceReason::Refused),
        (4, Freezes::NotForLong, QuiesceReason::Timeout),
    ] {
        let agent = FakeAgent::in_place_of(&vm, freezes);
        let quiescence = application_point(&lab, &vm, number).await;
        let Quiescence::NotConfirmed { reason, text } = quiescence else {
            panic!("{quiescence:?}");
        };
        assert_eq!(reason, expected, "{text}");
        assert!(!agent.is_frozen());
        assert_eq!(agent.thaws.load(Ordering::SeqCst), 1, "always thawed");
        assert!(marks(&vm).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_without_an_agent_still_has_its_point() {
    let lab = Lab::new();
    let vm = lab.running_vm("no-agent", 1, &[8]).await;
    lab.write(&vm, 0, 0, 512, 7).await;
    let point = lab
        .driver
        .freeze(
            vm.id,
            &vm.disks,
            None,
            tracking(1),
            Consistency::Application,
        )
        .await
        .unwrap();
    assert!(matches!(
        point.quiescence,
        Quiescence::NotConfirmed {
            reason: QuiesceReason::NoAgent,
            ..
        }
    ));
    assert_eq!(frozen_content(&point.disks[0]).await[..512], [7; 512]);
    lab.driver.release(point).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_hangs_in_the_freeze_is_thawed_all_the_same() {
    let lab = Lab::new();
    let vm = lab.running_vm("hangs", 1, &[8]).await;
    let agent = FakeAgent::in_place_of(&vm, Freezes::InSilence);
    let quiescence = application_point(&lab, &vm, 1).await;
    assert!(
        matches!(
            quiescence,
            Quiescence::NotConfirmed {
                reason: QuiesceReason::Timeout,
                ..
            }
        ),
        "{quiescence:?}"
    );
    // A task of its own insists on the thaw.
    while agent.is_frozen() || !marks(&vm).is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_hangs_for_good_stops_no_crash_consistent_point() {
    let lab = Lab::new();
    let vm = lab.running_vm("deaf", 1, &[8]).await;
    let agent = FakeAgent::in_place_of(&vm, Freezes::AndHangs);
    let crash = |number| {
        lab.driver
            .freeze(vm.id, &vm.disks, None, tracking(number), Consistency::Crash)
    };
    for number in [1, 2] {
        // The second is not even asked for: the first has not ended.
        let quiescence = application_point(&lab, &vm, number).await;
        let Quiescence::NotConfirmed { reason, .. } = quiescence else {
            panic!("{quiescence:?}");
        };
        assert_eq!(reason, QuiesceReason::Timeout);
    }
    for number in [3, 4] {
        let point = crash(number).await.unwrap();
        lab.driver.release(point).await.unwrap();
        lab.driver.clean_up(vm.id).await.unwrap();
    }
    assert!(agent.is_frozen() && !marks(&vm).is_empty());
    agent.hears.store(true, Ordering::SeqCst);
    while agent.is_frozen() || !marks(&vm).is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let quiescence = application_point(&lab, &vm, 5).await;
    assert_eq!(quiescence, Quiescence::Confirmed { file_systems: 2 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_dropped_at_any_moment_leaves_nobody_held() {
    let lab = Lab::new();
    let vm = lab.running_vm("dropped", 1, &[8, 8]).await;
    let agent = FakeAgent::in_place_of(&vm, Freezes::Well);
    for number in 1..40 {
        let patience = Duration::from_millis(number * 3);
        let freeze = lab.driver.freeze(
            vm.id,
            &vm.disks,
            None,
            tracking(number),
            Consistency::Application,
        );
        match tokio::time::timeout(patience, freeze).await {
            Ok(point) => lab.driver.release(point.unwrap()).await.unwrap(),
            Err(_) => lab.driver.clean_up(vm.id).await.unwrap(),
        }
        while agent.is_frozen() || !marks(&vm).is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(is_running(&lab, vm.id).await, "after {patience:?}");
        lab.driver.forget_all(vm.id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_engine_left_held_goes_on_at_the_next_start() {
    let lab = Lab::new();
    let paused = lab.running_vm("paused", 1, &[8]).await;
    let quiet = lab.running_vm("quiet", 1, &[8]).await;
    let by_hand = lab.running_vm("by-hand", 1, &[8]).await;
    let agent = FakeAgent::in_place_of(&quiet, Freezes::Well);
    // As a kill between the mark and its removal leaves it.
    agent.frozen.store(true, Ordering::SeqCst);
    std::fs::write(quiet.folder.join("run/quiesced-by-freeze"), b"").unwrap();
    std::fs::write(paused.folder.join("run/paused-by-freeze"), b"").unwrap();
    for vm in [&paused, &by_hand] {
        let mut qmp = lab.driver.qmp(vm.id).await.unwrap();
        qmp.execute("stop", Value::Null).await.unwrap();
    }
    let heir = lab.another_driver();
    let mut woken = heir.recover().await.unwrap();
    woken.sort();
    let mut expected = [paused.id, quiet.id];
    expected.sort();
    assert_eq!(woken, expected);
    assert!(is_running(&lab, paused.id).await);
    assert!(!agent.is_frozen());
    assert!(
        !is_running(&lab, by_hand.id).await,
        "what a person paused stays paused"
    );
    assert!(heir.recover().await.unwrap().is_empty());

    // A freeze of a VM that a person has paused works, and leaves it paused.
    let point = heir
        .freeze(
            by_hand.id,
            &by_hand.disks,
            None,
            tracking(1),
            Consistency::Crash,
        )
        .await
        .unwrap();
    heir.release(point).await.unwrap();
    assert!(!is_running(&lab, by_hand.id).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_has_one_instant_over_all_its_machines() {
    let lab = Lab::new();
    let mut vms = Vec::new();
    for name in ["a", "b", "c"] {
        vms.push(lab.running_vm(name, 1, &[8]).await);
    }
    let requests = |since: Option<TrackingId>, next: u64| -> Vec<FreezeRequest> {
        vms.iter()
            .map(|vm| FreezeRequest {
                vm: vm.id,
                disks: vm.disks.clone(),
                since,
                next: tracking(next),
            })
            .collect()
    };
    let driver = &lab.driver;
    // One writer goes from machine to machine: number n is written only when n-1 is on the machine before.
    let stop = AtomicBool::new(false);
    let writer = async {
        let mut number = 1u64;
        while !stop.load(Ordering::SeqCst) {
            let vm = &vms[(number % 3) as usize];
            let at = number / 3 % 15_000 * 512;
            // Each number has a sector of its own: how many are filled tells how far it came.
            driver
                .write_as_guest(vm.id, vm.disks[0], at, 512, 0xa5)
                .await
                .unwrap();
            number += 1;
        }
        number
    };
    let freezer = async {
        for number in 1..=8 {
            let points = driver
                .freeze_group(&requests(None, number), Consistency::Crash)
                .await
                .unwrap();
            let mut counts = Vec::new();
            for point in &points {
                let content = frozen_content(&point.disks[0]).await;
                counts.push(
                    content
                        .chunks(512)
                        .filter(|sector| sector[0] == 0xa5)
                        .count(),
                );
            }
            // Sector 0 of the first machine would be number 0, which is never written.
            counts[0] += 1;
            // In the order of writing: the first machine is at most one ahead, nobody is behind.
            let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
            assert!(most - least <= 1, "{counts:?}");
            let mut sorted = counts.clone();
            sorted.sort_unstable_by(|a, b| b.cmp(a));
            assert_eq!(counts, sorted, "a later write is in, an earlier one is not");
            for point in points {
                assert!(point.pause > Duration::ZERO);
                driver.release(point).await.unwrap();
            }
        }
        stop.store(true, Ordering::SeqCst);
    };
    let (written, ()) = tokio::join!(writer, freezer);
    assert!(written > 8, "the writer got on meanwhile");
    for vm in &vms {
        assert!(is_running(&lab, vm.id).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_off_leaves_the_others_unfrozen_and_running() {
    let lab = Lab::new();
    let running = lab.running_vm("running", 1, &[8]).await;
    let off = lab.vm("off", 1, &[8]).await;
    let request = |vm: &LabVm| FreezeRequest {
        vm: vm.id,
        disks: vm.disks.clone(),
        since: None,
        next: tracking(1),
    };
    let error = lab
        .driver
        .freeze_group(
            &[request(&running), request(&off)],
            Consistency::Application,
        )
        .await
        .unwrap_err();
    assert_eq!(error.vm, Some(off.id));
    assert!(is_running(&lab, running.id).await);
    assert!(lab.driver.tracking(running.id).await.unwrap().is_empty());
    let point = lab
        .driver
        .freeze(
            running.id,
            &running.disks,
            None,
            tracking(1),
            Consistency::Crash,
        )
        .await
        .unwrap();
    lab.driver.release(point).await.unwrap();
}

/// The volume of the scratch folder is full: a limit on how far into a file QEMU may write stands in for it.
#[tokio::test(flavor = "multi_thread")]
async fn old_data_without_room_breaks_the_point_and_not_the_guests_write() {
    let lab = Lab::new();
    let vm = lab.running_vm("full", 2, &[64]).await;
    // The first block that is written lies at the front of the image, wherever it is on the disk.
    lab.write(&vm, 0, 40 * MIB, BLOCK, 0x11).await;
    let point = lab
        .driver
        .freeze(vm.id, &vm.disks, None, tracking(1), Consistency::Crash)
        .await
        .unwrap();
    let reader = &point.disks[0].reader;
    assert!(reader.read(40 * MIB, 512).await.unwrap() == vec![0x11; 512]);
    let pid = support::qemu_pid(&vm.folder).unwrap();
    // Of the image only the front is written; of the scratch file what lies at the place on the disk.
    limit_file_size(pid, 32 * MIB);
    // Written as a guest would: an error would be one of the guest's.
    lab.write(&vm, 0, 40 * MIB, BLOCK, 0x22).await;
    assert!(
        reader.read(40 * MIB, 512).await.is_err(),
        "the old data are gone, so nothing may be shown in their place"
    );
    limit_file_size(pid, u64::MAX);
    lab.driver.release(point).await.unwrap();
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
    assert_eq!(changed_blocks(&point.disks[0]), [640]);
    assert!(point.disks[0].reader.read(40 * MIB, 512).await.unwrap() == vec![0x22; 512]);
    lab.driver.release(point).await.unwrap();
}

fn limit_file_size(pid: i32, bytes: u64) {
    let limit = if bytes == u64::MAX {
        "unlimited".to_owned()
    } else {
        bytes.to_string()
    };
    support::tool(
        "prlimit",
        &[
            "--pid",
            &pid.to_string(),
            &format!("--fsize={limit}:unlimited"),
        ],
    );
}
