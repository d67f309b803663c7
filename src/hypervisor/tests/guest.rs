//! A real guest with Debian's guest agent: what its disk holds says whether a point was taken at rest.
//!
//! The guest is built by `tests/lab/build-guest.sh`, which caches its ingredients in `target/lab-guest-cache`.

mod support;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use hypervisor::{Consistency, FrozenPoint, Hypervisor, Quiescence, Stop, VmId};
use support::{Lab, build_guest, frozen_content, tool, tracking};
use uuid::Uuid;

/// A boot takes some seconds in software emulation, and much longer beside other tests.
const BOOT: Duration = Duration::from_secs(300);
/// The application's disk, behind those of the system and of the stamps.
const APPLICATION: usize = 2;

async fn wait_for_console(lab: &Lab, vm: VmId, text: &str) {
    let path = lab.driver.console(vm).await.unwrap();
    let deadline = Instant::now() + BOOT;
    let mut console = String::new();
    while !console.contains(text) {
        assert!(Instant::now() < deadline, "no {text:?} in {console}");
        // A file that another process appends to has no event.
        tokio::time::sleep(Duration::from_millis(50)).await;
        console = String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).into_owned();
    }
}

/// What the application's disk says by itself: whether its journal is empty, and what the agent's hook wrote last.
async fn at_rest(lab: &Lab, point: &FrozenPoint) -> (bool, String) {
    let disk: PathBuf = lab.folder.path().join("application.raw");
    std::fs::write(&disk, frozen_content(&point.disks[APPLICATION]).await).unwrap();
    let disk = disk.to_str().unwrap();
    let debugfs = |request: &str| tool("/sbin/debugfs", &["-R", request, disk]);
    let features = debugfs("features");
    let recovery = features.contains("needs_recovery");
    if recovery {
        // What a boot does; it ends with 1 when there was something to do.
        let replay = Command::new("/sbin/e2fsck")
            .args(["-p", disk])
            .output()
            .unwrap();
        assert!(matches!(replay.status.code(), Some(0 | 1)), "{replay:?}");
    }
    (!recovery, debugfs("cat /state").trim().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_that_the_guest_confirmed_is_at_rest_and_another_is_not() {
    let lab = Lab::new();
    let id = Uuid::new_v4();
    build_guest(&lab, id, &["--app-mib", "32", "--append", "lab.rate=50"]);
    let vm = VmId(id);
    lab.driver.start(vm).await.unwrap();
    wait_for_console(&lab, vm, "LAB agent started").await;
    wait_for_console(&lab, vm, "LAB sequence=").await;
    let machines = lab.driver.virtual_machines().await.unwrap();
    let disks: Vec<_> = machines[0].disks.iter().map(|disk| disk.id).collect();
    let freeze = async |number, consistency| {
        let point = lab
            .driver
            .freeze(vm, &disks, None, tracking(number), consistency)
            .await
            .unwrap();
        let found = at_rest(&lab, &point).await;
        let quiescence = point.quiescence.clone();
        lab.driver.release(point).await.unwrap();
        (quiescence, found)
    };
    let (quiescence, found) = freeze(1, Consistency::Crash).await;
    assert_eq!(quiescence, Quiescence::NotAsked);
    assert_eq!(found, (false, "running".to_owned()));
    for number in 1..=2 {
        let (quiescence, found) = freeze(number + 1, Consistency::Application).await;
        assert_eq!(quiescence, Quiescence::Confirmed { file_systems: 1 });
        assert_eq!(found, (true, format!("frozen {number}")));
    }
    wait_for_console(&lab, vm, "LAB hook thaw 2").await;
    let (quiescence, found) = freeze(4, Consistency::Crash).await;
    assert_eq!(quiescence, Quiescence::NotAsked);
    assert_eq!(found, (false, "thawed 2".to_owned()));
    lab.driver.stop(vm, Stop::TurnOff).await.unwrap();
}
