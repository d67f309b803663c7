//! Private segments with real guests: who reaches whom, ports and agents that answer, and another process that goes on.

mod support;

use std::time::{Duration, Instant};

use hypervisor::{ErrorKind, Hypervisor, PortAnswer, QemuDriver, Stop, VmId};
use support::{Lab, build_guest};
use uuid::Uuid;

/// A boot takes some seconds in software emulation, and much longer beside other tests.
const PATIENCE: Duration = Duration::from_secs(300);

/// A guest in a segment; off.
fn guest(lab: &Lab, name: &str, segment: Uuid, options: &str, more: &[&str]) -> VmId {
    let id = Uuid::new_v4();
    let options = format!("lab.rate=20 {options}");
    let mut arguments = vec!["--name", name, "--append", &options];
    arguments.extend_from_slice(more);
    build_guest(lab, id, &arguments);
    let path = lab.vms().join(name).join("vm.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let connected = text.replace("name = \"lan\"", &format!("segment = \"{segment}\""));
    assert_ne!(connected, text);
    std::fs::write(path, connected).unwrap();
    VmId(id)
}

async fn console(lab: &Lab, vm: VmId) -> String {
    let path = lab.driver.console(vm).await.unwrap();
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

async fn wait_for_console(lab: &Lab, vm: VmId, text: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let console = console(lab, vm).await;
        if console.contains(text) {
            return;
        }
        assert!(Instant::now() < deadline, "no {text:?} in {console}");
        // A file that another process appends to has no event.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Asks until it is answered: a guest in software emulation may be slow.
async fn ask(driver: &QemuDriver, vm: VmId, port: u16) -> PortAnswer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = driver.ask_port(vm, port).await.unwrap();
        if !matches!(answer, PortAnswer::Silent | PortAnswer::NoAddress) {
            return answer;
        }
        assert!(Instant::now() < deadline, "port {port}: {answer:?}");
    }
}

async fn wait_for_agent(driver: &QemuDriver, vm: VmId) {
    let deadline = Instant::now() + PATIENCE;
    while !driver.agent_answers(vm).await.unwrap() {
        assert!(Instant::now() < deadline, "no agent");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_of_a_segment_reach_one_another_and_nobody_else_and_their_ports_can_be_asked() {
    let mut lab = Lab::new();
    let [drill, other_drill] = [Uuid::new_v4(), Uuid::new_v4()];
    let web = guest(
        &lab,
        "web",
        drill,
        "net.ip=10.9.0.1/24 net.listen=80 net.peer=10.9.0.2",
        &["--app-mib", "16"],
    );
    let database = guest(
        &lab,
        "db",
        drill,
        "net.ip=10.9.0.2/24 net.peer=10.9.0.1",
        &[],
    );
    // The database of another drill has the same address, and calls the same neighbour.
    let copy = guest(
        &lab,
        "copy",
        other_drill,
        "net.ip=10.9.0.2/24 net.peer=10.9.0.1",
        &[],
    );
    for vm in [web, database, copy] {
        lab.driver.start(vm).await.unwrap();
    }
    wait_for_console(&lab, web, "LAB peer ip=10.9.0.2 answers").await;
    wait_for_console(&lab, database, "LAB peer ip=10.9.0.1 answers").await;
    wait_for_console(&lab, copy, "LAB peer ip=10.9.0.1 silent tries=3").await;

    assert_eq!(ask(&lab.driver, web, 80).await, PortAnswer::Open);
    assert_eq!(ask(&lab.driver, web, 81).await, PortAnswer::Refused);
    assert_eq!(ask(&lab.driver, database, 80).await, PortAnswer::Refused);
    assert_eq!(ask(&lab.driver, copy, 80).await, PortAnswer::Refused);
    wait_for_agent(&lab.driver, web).await;
    assert!(!lab.driver.agent_answers(database).await.unwrap());
    // Still nobody, with all that was said meanwhile.
    let said = console(&lab, copy).await;
    assert!(!said.contains("answers"), "{said}");

    // As somebody who starts a VM by hand beside a running engine: nothing is taken from that.
    let another = lab.another_driver();
    another.recover().await.unwrap();
    let refused = another.start(web).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert!(refused.to_string().contains("running engine"), "{refused}");
    assert_eq!(ask(&lab.driver, web, 80).await, PortAnswer::Open);

    // When the first process has ended another one goes on; what it has not seen it learns from the agent.
    let idle = lab.another_driver();
    drop(std::mem::replace(&mut lab.driver, idle));
    another.recover().await.unwrap();
    assert_eq!(ask(&another, web, 80).await, PortAnswer::Open);

    for vm in [web, database, copy] {
        another.stop(vm, Stop::TurnOff).await.unwrap();
    }
    let error = another.ask_port(web, 80).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::VmNotRunning);
    let folder = std::fs::read_dir(lab.vms().join("segments"));
    let left = folder.unwrap_err().kind();
    assert_eq!(
        left,
        std::io::ErrorKind::NotFound,
        "a segment outlived its VMs"
    );
}

#[tokio::test]
async fn a_vm_without_a_segment_can_not_be_asked_for_a_port() {
    let lab = Lab::new();
    let vm = lab.running_vm("plain", 1, &[16]).await;
    let answer = lab.driver.ask_port(vm.id, 80).await.unwrap();
    assert_eq!(answer, PortAnswer::NotConnected);
    // Nothing boots from an empty disk, so nothing listens to the agent's port, and nothing is written to it.
    assert!(!lab.driver.agent_answers(vm.id).await.unwrap());
    lab.driver.stop(vm.id, Stop::TurnOff).await.unwrap();
}
