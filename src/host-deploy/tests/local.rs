//! The local channel against a stand-in for the engine: a shell script with the same subcommands.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use host_deploy::local::LocalDeployer;
use host_deploy::{DeployErrorKind, Deployer, Deployment, EngineSettings, RegistrationKey};

const SCRIPT: &str = r#"#!/bin/sh
data=$(sed -n 's/^data_folder = "\(.*\)"/\1/p' "$3" 2>/dev/null)
alive() { [ -f "$data/engine.pid" ] && kill -0 "$(cat "$data/engine.pid")" 2>/dev/null; }
case "$1" in
  --version) echo "siterecovery-engine VERSION" ;;
  start)
    mkdir -p "$data/identity"
    echo 11111111-2222-4333-8444-555555555555 > "$data/identity/engine_id"
    rm -f "$data/registration.key"
    setsid sleep 600 > /dev/null 2>&1 & echo $! > "$data/engine.pid" ;;
  status) alive ;;
  stop) if alive; then kill "$(cat "$data/engine.pid")"; rm "$data/engine.pid"; fi ;;
  vm) echo "$2 $5" >> "$4/../../../bundle/calls" ;;
  *) echo "unknown word $1" >&2; exit 2 ;;
esac
"#;

struct Lab {
    folder: tempfile::TempDir,
    deployment: Deployment,
}

fn executable(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn lab() -> Lab {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir(root.join("vms")).unwrap();
    fs::write(root.join("vms/mine"), "x").unwrap();
    fs::create_dir(root.join("bundle")).unwrap();
    executable(
        &root.join("bundle/siterecovery-engine"),
        &SCRIPT.replace("VERSION", "1.2.3"),
    );
    let deployment = Deployment {
        bundled_engine: root.join("bundle/siterecovery-engine"),
        install_folder: root.join("opt/siterecovery/bin"),
        settings: EngineSettings {
            vm_folder: Some(root.join("vms")),
            data_folder: root.join("var/engine"),
            recovery_folder: root.join("var/engine/recovered"),
            recovery_role: true,
            recovery_generations: Some(vec![1]),
            host_name: "hv1".into(),
        },
        owner: "site".into(),
    };
    Lab { folder, deployment }
}

fn mode(path: PathBuf) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn install_start_and_uninstall_leave_nothing_behind() {
    let lab = lab();
    let (deployer, deployment) = (LocalDeployer::detached(), &lab.deployment);
    let before = deployer.inspect(deployment).await.unwrap();
    assert_eq!(
        (
            before.engine_sha256.clone(),
            before.running,
            before.is_current()
        ),
        (None, false, false)
    );

    let key = RegistrationKey::new("srk1.secret");
    assert!(deployer.install(deployment, Some(&key)).await.unwrap());
    assert_eq!(mode(deployment.config_path()), 0o600);
    assert_eq!(mode(deployment.key_path()), 0o600);
    assert_eq!(
        fs::read_to_string(deployment.key_path()).unwrap(),
        "srk1.secret"
    );

    deployer.start(deployment).await.unwrap();
    let id = deployer
        .wait_ready(deployment, Duration::from_secs(20))
        .await
        .unwrap();
    assert_eq!(id, "11111111-2222-4333-8444-555555555555");
    let after = deployer.inspect(deployment).await.unwrap();
    assert!(after.is_current() && after.running);
    assert_eq!(after.engine_version.as_deref(), Some("1.2.3"));

    deployer.uninstall(deployment).await.unwrap();
    assert_eq!(names(lab.folder.path()), ["bundle", "vms"]);
    assert_eq!(names(&lab.folder.path().join("vms")), ["mine"]);
    deployer.uninstall(deployment).await.unwrap();
}

#[tokio::test]
async fn a_second_install_changes_nothing_and_a_new_engine_is_an_upgrade() {
    let lab = lab();
    let (deployer, deployment) = (LocalDeployer::detached(), &lab.deployment);
    assert!(deployer.install(deployment, None).await.unwrap());
    assert!(!deployer.install(deployment, None).await.unwrap());
    assert!(!deployer.upgrade(deployment).await.unwrap());

    executable(
        &deployment.bundled_engine,
        &SCRIPT.replace("VERSION", "1.2.4"),
    );
    assert!(!deployer.inspect(deployment).await.unwrap().is_current());
    assert!(deployer.upgrade(deployment).await.unwrap());
    let after = deployer.inspect(deployment).await.unwrap();
    assert_eq!(
        (after.engine_version.as_deref(), after.running),
        (Some("1.2.4"), true)
    );
    deployer.uninstall(deployment).await.unwrap();
}

#[tokio::test]
async fn a_damaged_engine_and_configuration_are_mended() {
    let lab = lab();
    let (deployer, deployment) = (LocalDeployer::detached(), &lab.deployment);
    deployer.install(deployment, None).await.unwrap();
    fs::write(deployment.engine_path(), "torn").unwrap();
    fs::write(deployment.config_path(), "data_folder = 7").unwrap();
    assert!(!deployer.inspect(deployment).await.unwrap().is_current());
    assert!(deployer.install(deployment, None).await.unwrap());
    assert!(deployer.inspect(deployment).await.unwrap().is_current());
    assert_eq!(names(&deployment.install_folder), ["siterecovery-engine"]);
}

#[tokio::test]
async fn uninstall_stops_the_engine_even_when_its_executable_is_gone() {
    let lab = lab();
    let (deployer, deployment) = (LocalDeployer::detached(), &lab.deployment);
    deployer.install(deployment, None).await.unwrap();
    deployer.start(deployment).await.unwrap();
    let pid = fs::read_to_string(deployment.settings.data_folder.join("engine.pid")).unwrap();
    fs::remove_file(deployment.engine_path()).unwrap();
    deployer.uninstall(deployment).await.unwrap();
    assert!(!process_runs(pid.trim()));
    assert_eq!(names(lab.folder.path()), ["bundle", "vms"]);
}

/// A killed child that nobody has waited for yet is still listed, as a zombie.
fn process_runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !(stat.is_empty() || stat.contains(") Z "))
}

#[tokio::test]
async fn errors_name_the_object_and_the_kind_but_never_the_key() {
    let lab = lab();
    let deployer = LocalDeployer::detached();
    let mut missing = lab.deployment.clone();
    missing.bundled_engine = lab.folder.path().join("nowhere/siterecovery-engine");
    let error = deployer.install(&missing, None).await.unwrap_err();
    assert_eq!(error.kind(), DeployErrorKind::Missing);
    assert!(
        error.object().ends_with("nowhere/siterecovery-engine"),
        "{error}"
    );

    let mut blocked = lab.deployment.clone();
    blocked.settings.data_folder = lab.folder.path().join("vms/mine/data");
    let key = RegistrationKey::new("srk1.secret");
    let error = deployer.install(&blocked, Some(&key)).await.unwrap_err();
    assert!(!format!("{error} {error:?} {key:?}").contains("secret"));

    let mut inside = lab.deployment.clone();
    inside.settings.vm_folder = Some(inside.settings.data_folder.join("vms"));
    let error = deployer.install(&inside, None).await.unwrap_err();
    assert_eq!(error.kind(), DeployErrorKind::InvalidPath);

    let mut full = lab.deployment.clone();
    full.settings.data_folder = "/proc/siterecovery".into();
    let error = deployer.install(&full, None).await.unwrap_err();
    assert_eq!(error.object(), "/proc/siterecovery");
}

#[tokio::test]
async fn an_engine_that_ends_at_once_is_reported_with_its_last_words() {
    let lab = lab();
    executable(
        &lab.deployment.bundled_engine,
        "#!/bin/sh\necho 'no such kernel feature' >&2\nexit 3\n",
    );
    let deployer = LocalDeployer::detached();
    deployer.install(&lab.deployment, None).await.unwrap();
    let error = deployer.start(&lab.deployment).await.unwrap_err();
    assert_eq!(error.kind(), DeployErrorKind::EngineFailed);
    assert!(
        error.to_string().contains("no such kernel feature"),
        "{error}"
    );
}

#[tokio::test]
async fn the_engine_of_another_owner_is_not_touched() {
    let lab = lab();
    let deployer = LocalDeployer::detached();
    deployer.install(&lab.deployment, None).await.unwrap();
    let mut other = lab.deployment.clone();
    other.owner = "another site".into();
    let error = deployer.install(&other, None).await.unwrap_err();
    assert_eq!(error.kind(), DeployErrorKind::InUse);
    let seen = deployer.inspect(&other).await.unwrap();
    assert_eq!(seen.owner.as_deref(), Some("site"));
}

#[tokio::test]
async fn uninstall_mends_a_torn_configuration_so_that_the_engine_can_be_stopped() {
    let lab = lab();
    let (deployer, deployment) = (LocalDeployer::detached(), &lab.deployment);
    deployer.install(deployment, None).await.unwrap();
    deployer.start(deployment).await.unwrap();
    let pid = fs::read_to_string(deployment.settings.data_folder.join("engine.pid")).unwrap();
    fs::write(deployment.config_path(), "data_fol").unwrap();
    deployer.uninstall(deployment).await.unwrap();
    assert!(!process_runs(pid.trim()));
    assert_eq!(names(lab.folder.path()), ["bundle", "vms"]);
}

#[tokio::test]
async fn uninstall_leaves_what_others_keep_in_the_data_folder() {
    let lab = lab();
    let (deployer, deployment) = (LocalDeployer::detached(), &lab.deployment);
    let data = &deployment.settings.data_folder;
    fs::create_dir_all(data.join("replicas/vault")).unwrap();
    fs::write(data.join("replicas/vault/base.vhd"), "x").unwrap();
    fs::write(data.join("notes"), "x").unwrap();
    let key = RegistrationKey::new("srk1.secret");
    deployer.install(deployment, Some(&key)).await.unwrap();
    deployer.start(deployment).await.unwrap();
    deployer.uninstall(deployment).await.unwrap();
    assert_eq!(names(data), ["notes", "replicas"]);
    assert!(data.join("replicas/vault/base.vhd").exists());
}

const DRILL: &str = "11111111-0000-4000-8000-000000000001";
const COUNTS: &str = "22222222-0000-4000-8000-000000000002";
const LEFT: &str = "33333333-0000-4000-8000-000000000003";

/// A recovered VM as the engine keeps it; with its record, if it has one.
fn recovered_vm(deployment: &Deployment, id: &str, records: Option<&str>) {
    let folder = &deployment.settings.recovery_folder;
    fs::create_dir_all(folder.join(id)).unwrap();
    fs::write(folder.join(id).join("vm.toml"), "").unwrap();
    fs::write(folder.join(id).join("disk.qcow2"), "all that it wrote").unwrap();
    if let Some(records) = records {
        let records = folder.join(records);
        fs::create_dir_all(&records).unwrap();
        let record = format!(r#"{{"version":1,"id":"{id}","name":"web01-dr"}}"#);
        fs::write(records.join(format!("{id}.json")), record).unwrap();
        fs::write(records.join("guard.json"), "{}").unwrap();
    }
}

#[tokio::test]
async fn a_vm_that_was_failed_over_keeps_its_engine() {
    let lab = lab();
    let (deployer, deployment) = (LocalDeployer::detached(), &lab.deployment);
    deployer.install(deployment, None).await.unwrap();
    deployer.start(deployment).await.unwrap();
    recovered_vm(deployment, COUNTS, Some("failovers/vault/item"));
    let error = deployer.uninstall(deployment).await.unwrap_err();
    assert_eq!(error.kind(), DeployErrorKind::InUse);
    let text = format!("{error}; {}", error.next_step());
    for part in ["web01-dr", "fail it back", COUNTS] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(deployer.inspect(deployment).await.unwrap().running);

    // When the failover is over its guard stays and its VM is gone.
    let records = deployment
        .settings
        .recovery_folder
        .join("failovers/vault/item");
    fs::remove_file(records.join(format!("{COUNTS}.json"))).unwrap();
    fs::remove_dir_all(deployment.settings.recovery_folder.join(COUNTS)).unwrap();
    deployer.uninstall(deployment).await.unwrap();
    assert_eq!(names(lab.folder.path()), ["bundle", "vms"]);
}

#[tokio::test]
async fn a_vm_that_was_left_to_itself_outlives_the_engine_and_drills_do_not() {
    let lab = lab();
    let (deployer, deployment) = (LocalDeployer::detached(), &lab.deployment);
    deployer.install(deployment, None).await.unwrap();
    recovered_vm(deployment, DRILL, Some(""));
    recovered_vm(deployment, LEFT, None);
    deployer.uninstall(deployment).await.unwrap();
    let calls = fs::read_to_string(lab.folder.path().join("bundle/calls")).unwrap();
    assert_eq!(calls, format!("stop {DRILL}\n"), "no other is stopped");
    assert_eq!(names(&deployment.settings.data_folder), ["recovered"]);
    let recovered = &deployment.settings.recovery_folder;
    assert_eq!(names(recovered), [LEFT]);
    assert_eq!(names(&recovered.join(LEFT)), ["disk.qcow2", "vm.toml"]);
    deployer.uninstall(deployment).await.unwrap();
    assert_eq!(names(&recovered.join(LEFT)), ["disk.qcow2", "vm.toml"]);
}
