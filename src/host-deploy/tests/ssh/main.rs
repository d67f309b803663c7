//! The channel over SSH against a real OpenSSH server. The engine is a stand-in: a shell script with the same subcommands.

mod sshd;
mod trust;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use host_deploy::ssh::SshDeployer;
use host_deploy::{DeployErrorKind, Deployer, Deployment, EngineSettings, RegistrationKey};

use sshd::{Proxy, Sshd};

const SCRIPT: &str = r#"#!/bin/sh
data=$(sed -n 's/^data_folder = "\(.*\)"/\1/p' "$3" 2>/dev/null)
alive() { [ -f "$data/engine.pid" ] && grep -qs ') [^Z] ' "/proc/$(cat "$data/engine.pid")/stat"; }
case "$1" in
  --version) echo "siterecovery-engine VERSION" ;;
  start)
    BROKEN
    mkdir -p "$data/identity"
    echo 11111111-2222-4333-8444-555555555555 > "$data/identity/engine_id"
    rm -f "$data/registration.key"
    setsid sleep 600 > /dev/null 2>&1 & echo $! > "$data/engine.pid" ;;
  status) alive ;;
  stop) if alive; then kill "$(cat "$data/engine.pid")"; rm "$data/engine.pid"; fi ;;
  vm) echo "$2 $5" >> "$4/../calls" ;;
  *) echo "unknown word $1" >&2; exit 2 ;;
esac
exit
"#;

/// What lies in the install folder once nothing is under way.
const INSTALLED: [&str; 2] = [".siterecovery-engine.owner", "siterecovery-engine"];

struct Lab {
    folder: tempfile::TempDir,
    server: Sshd,
    deployment: Deployment,
}

fn executable(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn script(version: &str) -> String {
    SCRIPT.replace("VERSION", version).replace("BROKEN", ":")
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let server = Sshd::start(&root.join("sshd"));
        fs::create_dir(root.join("bundle")).unwrap();
        executable(&root.join("bundle/siterecovery-engine"), &script("1.2.3"));
        // Names that need quoting everywhere.
        let host = root.join("it's a \"host\" $HOME");
        let deployment = Deployment {
            bundled_engine: root.join("bundle/siterecovery-engine"),
            install_folder: host.join("opt/site recovery/bin"),
            settings: EngineSettings {
                vm_folder: None,
                data_folder: root.join("data/engine"),
                recovery_folder: host.join("recovered"),
                recovery_role: true,
                recovery_generations: None,
                host_name: "hv1".into(),
            },
            owner: "site".into(),
        };
        Lab {
            folder,
            server,
            deployment,
        }
    }

    fn deployer(&self) -> SshDeployer {
        SshDeployer::new(self.server.connection()).with_start_limit(Duration::from_secs(10))
    }

    fn through(&self, proxy: &Proxy) -> SshDeployer {
        let mut connection = self.server.connection();
        connection.port = proxy.port;
        SshDeployer::new(connection)
    }

    /// A new version in the bundle.
    fn bundle(&self, text: &str) {
        executable(&self.deployment.bundled_engine, text);
    }
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
    let lab = Lab::new();
    let (deployer, deployment) = (lab.deployer(), &lab.deployment);
    let before = deployer.inspect(deployment).await.unwrap();
    assert_eq!(
        (
            before.engine_sha256.clone(),
            before.running,
            before.is_current()
        ),
        (None, false, false)
    );
    assert_eq!(before.host_key_fingerprint, Some(lab.server.fingerprint()));

    let key = RegistrationKey::new("srk1.secret");
    assert!(deployer.install(deployment, Some(&key)).await.unwrap());
    assert_eq!(mode(deployment.config_path()), 0o600);
    assert_eq!(mode(deployment.key_path()), 0o600);
    assert_eq!(mode(deployment.engine_path()), 0o755);
    assert_eq!(mode(deployment.settings.data_folder.clone()), 0o700);
    assert_eq!(
        fs::read_to_string(deployment.key_path()).unwrap(),
        "srk1.secret"
    );

    deployer.restart(deployment).await.unwrap();
    let id = deployer
        .wait_ready(deployment, Duration::from_secs(20))
        .await
        .unwrap();
    assert_eq!(id, "11111111-2222-4333-8444-555555555555");
    let after = deployer.inspect(deployment).await.unwrap();
    assert!(after.is_current() && after.running);
    assert_eq!(after.engine_version.as_deref(), Some("1.2.3"));
    assert_eq!(after.owner.as_deref(), Some("site"));

    // What the plan of an unchanged configuration would do.
    assert!(!deployer.install(deployment, None).await.unwrap());
    assert!(!deployer.upgrade(deployment).await.unwrap());

    deployer.uninstall(deployment).await.unwrap();
    assert_eq!(names(lab.folder.path()), ["bundle", "sshd"]);
    assert_eq!(names(&lab.server.folder.join("home")), [""; 0]);
    deployer.uninstall(deployment).await.unwrap();
}

#[tokio::test]
async fn drift_is_seen_and_mended() {
    let lab = Lab::new();
    let (deployer, deployment) = (lab.deployer(), &lab.deployment);
    deployer.upgrade(deployment).await.unwrap();
    let seen = deployer.inspect(deployment).await.unwrap();
    assert!(seen.is_current() && seen.running);

    let pid = fs::read_to_string(deployment.settings.data_folder.join("engine.pid")).unwrap();
    end(&pid);
    assert!(!deployer.inspect(deployment).await.unwrap().running);
    assert!(!deployer.upgrade(deployment).await.unwrap());
    assert!(deployer.inspect(deployment).await.unwrap().running);

    fs::write(deployment.engine_path(), "#!/bin/sh\nexit 1\n").unwrap();
    fs::write(deployment.config_path(), "data_folder = 7").unwrap();
    let torn = deployer.inspect(deployment).await.unwrap();
    assert!(!torn.is_current() && !torn.running && !torn.config_current);
    assert!(deployer.install(deployment, None).await.unwrap());
    let unconfirmed = deployer.inspect(deployment).await.unwrap();
    assert!(unconfirmed.is_current() && !unconfirmed.running);
    assert!(deployer.upgrade(deployment).await.unwrap());
    let mended = deployer.inspect(deployment).await.unwrap();
    assert!(mended.is_current() && mended.running);
    deployer.uninstall(deployment).await.unwrap();
}

fn end(pid: &str) {
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_new_engine_is_an_upgrade_and_one_that_does_not_come_up_is_rolled_back() {
    let lab = Lab::new();
    let (deployer, deployment) = (lab.deployer(), &lab.deployment);
    deployer.upgrade(deployment).await.unwrap();

    lab.bundle(&script("1.2.4"));
    assert!(!deployer.inspect(deployment).await.unwrap().is_current());
    assert!(deployer.upgrade(deployment).await.unwrap());
    let good = deployer.inspect(deployment).await.unwrap();
    assert_eq!(
        (good.engine_version.as_deref(), good.running),
        (Some("1.2.4"), true)
    );
    assert_eq!(names(&deployment.install_folder), INSTALLED);

    let broken = SCRIPT
        .replace("VERSION", "2.0.0")
        .replace("BROKEN", "echo 'no such kernel feature' >&2; exit 3");
    lab.bundle(&broken);
    let mut other = deployment.clone();
    other.settings.host_name = "another name".into();
    let error = deployer.upgrade(&other).await.unwrap_err();
    assert_eq!(error.kind(), DeployErrorKind::EngineFailed);
    for part in ["no such kernel feature", "previous engine", "127.0.0.1"] {
        assert!(error.to_string().contains(part), "{part} in {error}");
    }
    let back = deployer.inspect(deployment).await.unwrap();
    assert_eq!(
        (back.engine_version.as_deref(), back.running),
        (Some("1.2.4"), true)
    );
    assert_eq!(back.engine_sha256, good.engine_sha256);
    assert!(back.config_current, "the old configuration is back, too");
    assert_eq!(names(&deployment.install_folder), INSTALLED);
    deployer.uninstall(deployment).await.unwrap();
}

#[tokio::test]
async fn an_upgrade_that_was_cut_short_before_its_restart_is_finished_by_the_next_run() {
    let lab = Lab::new();
    let (deployer, deployment) = (lab.deployer(), &lab.deployment);
    deployer.upgrade(deployment).await.unwrap();
    let data = &deployment.settings.data_folder;
    let first = fs::read_to_string(data.join("engine.pid")).unwrap();
    lab.bundle(&script("1.2.4"));
    // As far as a run comes that dies behind it.
    assert!(deployer.install(deployment, None).await.unwrap());
    let seen = deployer.inspect(deployment).await.unwrap();
    assert!(
        seen.is_current() && !seen.running,
        "the old one still runs: a difference"
    );
    assert!(deployer.upgrade(deployment).await.unwrap());
    assert_ne!(fs::read_to_string(data.join("engine.pid")).unwrap(), first);
    assert!(deployer.inspect(deployment).await.unwrap().running);
    deployer.uninstall(deployment).await.unwrap();
}

/// An engine of some MiB that can't be compressed.
fn large(version: &str) -> String {
    let mut text = script(version);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    while text.len() < 6 << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push_str(&format!("# {state:016x}\n"));
    }
    text
}

#[tokio::test]
async fn an_upload_that_was_cut_goes_on_where_it_stopped() {
    let lab = Lab::new();
    let deployment = &lab.deployment;
    lab.bundle(&large("1.2.3"));
    let whole = fs::metadata(&deployment.bundled_engine).unwrap().len();

    let cut = Proxy::start(lab.server.port, 4 << 20).await;
    let error = lab
        .through(&cut)
        .install(deployment, None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), DeployErrorKind::Interrupted, "{error}");
    assert!(!deployment.engine_path().exists(), "half an engine is none");
    let there = names(&deployment.install_folder);
    let part = deployment.install_folder.join(&there[0]);
    assert!(
        there.len() == 2 && there[1] == INSTALLED[0] && part == seen_part(deployment),
        "{there:?}"
    );

    let open = Proxy::start(lab.server.port, u64::MAX).await;
    assert!(lab.through(&open).install(deployment, None).await.unwrap());
    // The server writes on for a moment with what had arrived, so the exact place of the cut is not known.
    assert!(
        open.sent() < whole / 2 && open.sent() > whole - (4 << 20),
        "sent {} of {whole} after a cut at 4 MiB",
        open.sent()
    );
    assert_eq!(names(&deployment.install_folder), INSTALLED);
    let seen = lab.deployer().inspect(deployment).await.unwrap();
    assert_eq!(seen.engine_sha256, seen.bundled_sha256);

    // A beginning that is not the engine's is not built upon.
    lab.bundle(&large("1.2.4"));
    fs::write(&part, "something else").unwrap();
    let named = seen_part(deployment);
    fs::rename(&part, &named).unwrap();
    assert!(lab.deployer().install(deployment, None).await.unwrap());
    let seen = lab.deployer().inspect(deployment).await.unwrap();
    assert_eq!(seen.engine_sha256, seen.bundled_sha256);
}

/// Name of the upload of what is in the bundle now.
fn seen_part(deployment: &Deployment) -> PathBuf {
    let sum = host_deploy::file_sha256(&deployment.bundled_engine)
        .unwrap()
        .unwrap();
    deployment
        .install_folder
        .join(format!(".siterecovery-engine-{}.part", &sum[..16]))
}

/// A small volume that goes with the test.
struct Volume(PathBuf);

impl Volume {
    fn new(at: &Path, kib: u64) -> Self {
        fs::create_dir(at).unwrap();
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"])
            .arg(at)
            .status()
            .unwrap();
        assert!(status.success(), "a tmpfs can only be mounted as root");
        Volume(at.to_owned())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_volume_is_named_and_the_next_run_succeeds_once_there_is_room() {
    let lab = Lab::new();
    lab.bundle(&large("1.2.3"));
    let volume = Volume::new(&lab.folder.path().join("small"), 12 << 10);
    let mut deployment = lab.deployment.clone();
    deployment.install_folder = volume.0.join("bin");
    fs::write(volume.0.join("filler"), vec![7; 8 << 20]).unwrap();
    let error = lab.deployer().install(&deployment, None).await.unwrap_err();
    assert_eq!(error.kind(), DeployErrorKind::DiskFull);
    for part in ["KiB are needed", "small/bin", "127.0.0.1"] {
        assert!(error.to_string().contains(part), "{part} in {error}");
    }
    assert!(error.next_step().contains("free space"));

    fs::remove_file(volume.0.join("filler")).unwrap();
    lab.deployer().install(&deployment, None).await.unwrap();
    let seen = lab.deployer().inspect(&deployment).await.unwrap();
    assert_eq!(seen.engine_sha256, seen.bundled_sha256);

    // The volume of the data, which is small files only: full to the last block.
    let mut deployment = lab.deployment.clone();
    deployment.settings.data_folder = volume.0.join("data");
    fs::create_dir(&deployment.settings.data_folder).unwrap();
    let _ = fs::write(volume.0.join("filler"), vec![7; 12 << 20]);
    let error = lab.deployer().install(&deployment, None).await.unwrap_err();
    assert_eq!(error.kind(), DeployErrorKind::DiskFull, "{error}");
}

#[tokio::test]
async fn two_deployments_at_once_end_as_one() {
    let lab = Lab::new();
    let deployment = &lab.deployment;
    lab.bundle(&large("1.2.3"));
    let (left, right) = (lab.deployer(), lab.deployer());
    let (left, right) = tokio::join!(left.upgrade(deployment), right.upgrade(deployment));
    let changed = [left.unwrap(), right.unwrap()];
    assert_eq!(changed.iter().filter(|changed| **changed).count(), 1);
    assert_eq!(names(&deployment.install_folder), INSTALLED);
    let seen = lab.deployer().inspect(deployment).await.unwrap();
    assert!(seen.is_current() && seen.running);
    lab.deployer().uninstall(deployment).await.unwrap();
}

#[tokio::test]
async fn the_engine_of_another_owner_is_neither_replaced_nor_removed() {
    let lab = Lab::new();
    let (deployer, deployment) = (lab.deployer(), &lab.deployment);
    deployer.upgrade(deployment).await.unwrap();
    let mut other = deployment.clone();
    other.owner = "another site".into();
    let error = deployer.install(&other, None).await.unwrap_err();
    assert_eq!(error.kind(), DeployErrorKind::InUse);
    deployer.uninstall(&other).await.unwrap();
    let seen = deployer.inspect(&other).await.unwrap();
    assert_eq!((seen.owner.as_deref(), seen.running), (Some("site"), true));
    deployer.uninstall(deployment).await.unwrap();
}

#[tokio::test]
async fn an_engine_with_another_data_folder_takes_nothing_of_the_one_that_is_there() {
    let lab = Lab::new();
    let (deployer, deployment) = (lab.deployer(), &lab.deployment);
    deployer.upgrade(deployment).await.unwrap();
    let mut other = deployment.clone();
    other.owner = "another site".into();
    other.settings.data_folder = lab.folder.path().join("data/other");
    let error = deployer.install(&other, None).await.unwrap_err();
    assert_eq!(error.kind(), DeployErrorKind::InUse, "{error}");
    assert!(error.to_string().contains("data/engine"), "{error}");
    deployer.uninstall(&other).await.unwrap();
    let seen = deployer.inspect(deployment).await.unwrap();
    assert!(seen.running && seen.is_current(), "{seen:?}");
    deployer.uninstall(deployment).await.unwrap();
    assert!(!deployment.engine_path().exists());
}

#[tokio::test]
async fn a_file_that_somebody_put_in_the_uploads_place_is_not_written_to() {
    let lab = Lab::new();
    let (deployer, deployment) = (lab.deployer(), &lab.deployment);
    let bytes = fs::read(&deployment.bundled_engine).unwrap();
    fs::create_dir_all(&deployment.install_folder).unwrap();
    let victim = lab.folder.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    std::os::unix::fs::symlink(&victim, seen_part(deployment)).unwrap();
    deployer.install(deployment, None).await.unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert_eq!(fs::read(deployment.engine_path()).unwrap(), bytes);
    deployer.uninstall(deployment).await.unwrap();
}

#[tokio::test]
async fn uninstall_needs_neither_a_whole_executable_nor_a_whole_configuration_and_leaves_what_others_keep()
 {
    let lab = Lab::new();
    let (deployer, deployment) = (lab.deployer(), &lab.deployment);
    let data = &deployment.settings.data_folder;
    fs::create_dir_all(data.join("replicas/vault")).unwrap();
    fs::write(data.join("notes"), "x").unwrap();
    // A process that is told apart by its arguments, as the real engine is.
    lab.bundle(&script("1.2.3").replace(
        "setsid sleep 600",
        "setsid sh -c 'sleep 600; :' engine run --config \"$3\"",
    ));
    deployer.upgrade(deployment).await.unwrap();
    let pid = fs::read_to_string(data.join("engine.pid")).unwrap();
    fs::remove_file(deployment.engine_path()).unwrap();
    fs::write(deployment.config_path(), "data_fol").unwrap();
    deployer.uninstall(deployment).await.unwrap();
    assert!(!process_runs(pid.trim()));
    assert_eq!(names(data), ["notes", "replicas"]);
}

/// A killed child that nobody has waited for yet is still listed, as a zombie.
fn process_runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !(stat.is_empty() || stat.contains(") Z "))
}

const DRILL: &str = "11111111-0000-4000-8000-000000000001";
const COUNTS: &str = "22222222-0000-4000-8000-000000000002";
const LEFT: &str = "33333333-0000-4000-8000-000000000003";

/// A recovered VM as the engine keeps it; with its record, if it has one.
fn recovered_vm(deployment: &Deployment, id: &str, records: Option<&str>) {
    let folder = &deployment.settings.recovery_folder;
    fs::create_dir_all(folder.join(id)).unwrap();
    fs::write(folder.join(id).join("vm.toml"), "").unwrap();
    if let Some(records) = records {
        let records = folder.join(records);
        fs::create_dir_all(&records).unwrap();
        let record = format!(r#"{{"version":1,"id":"{id}","name":"web01-dr"}}"#);
        fs::write(records.join(format!("{id}.json")), record).unwrap();
        fs::write(records.join("guard.json"), "{}").unwrap();
    }
}

#[tokio::test]
async fn a_failed_over_vm_keeps_its_engine_drills_go_and_vms_left_to_themselves_stay() {
    let lab = Lab::new();
    let (deployer, deployment) = (lab.deployer(), &lab.deployment);
    let folder = &deployment.settings.recovery_folder;
    deployer.upgrade(deployment).await.unwrap();
    recovered_vm(deployment, COUNTS, Some("failovers/vault/item"));
    let error = deployer.uninstall(deployment).await.unwrap_err();
    assert_eq!(error.kind(), DeployErrorKind::InUse);
    let text = format!("{error}; {}", error.next_step());
    for part in ["web01-dr", "fail it back", COUNTS] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(deployer.inspect(deployment).await.unwrap().running);

    fs::remove_file(folder.join(format!("failovers/vault/item/{COUNTS}.json"))).unwrap();
    fs::remove_dir_all(folder.join(COUNTS)).unwrap();
    recovered_vm(deployment, DRILL, Some(""));
    recovered_vm(deployment, LEFT, None);
    deployer.uninstall(deployment).await.unwrap();
    let calls = fs::read_to_string(folder.join("../calls")).unwrap();
    assert_eq!(calls, format!("stop {DRILL}\n"), "no other is stopped");
    assert_eq!(names(folder), [LEFT]);
    assert_eq!(names(&folder.join(LEFT)), ["vm.toml"]);
}

/// Does with a unit what systemd would, and notes what it was asked.
const SYSTEMCTL: &str = r#"#!/bin/sh
echo "$*" >> "FOLDER/calls"
for unit; do :; done
[ -f "FOLDER/units/$unit" ] && eval "set -- \"$1\" $(sed -n 's/^ExecStart=//p' "FOLDER/units/$unit" | sed -e 's/\$\$/\$/g' -e 's/\$/\\$/g')"
case $1 in
  enable) "$2" start --config "$5" ;;
  disable) "$2" stop --config "$5" ;;
esac
"#;

#[tokio::test]
async fn where_systemd_runs_the_engine_is_a_unit_of_it() {
    assert!(nix::unistd::geteuid().is_root(), "only root can make units");
    let lab = Lab::new();
    let folder = lab.folder.path().join("systemd");
    fs::create_dir_all(folder.join("units")).unwrap();
    let systemctl = SYSTEMCTL.replace("FOLDER", folder.to_str().unwrap());
    executable(&lab.server.folder.join("bin/systemctl"), &systemctl);
    let units = folder.join("units");
    let deployer = lab
        .deployer()
        .with_systemd_in(folder.to_str().unwrap(), units.to_str().unwrap());
    deployer.upgrade(&lab.deployment).await.unwrap();
    let unit = fs::read_to_string(units.join("siterecovery-engine.service")).unwrap();
    assert!(
        unit.contains("Restart=always")
            && unit.contains("/opt/site recovery/bin/siterecovery-engine\" run")
    );
    assert!(deployer.inspect(&lab.deployment).await.unwrap().running);
    let calls = || fs::read_to_string(folder.join("calls")).unwrap();
    assert_eq!(
        calls(),
        "daemon-reload\nenable --now -- siterecovery-engine.service\n"
    );

    // The unit is the host's only one: another data folder's engine neither takes it nor takes it away.
    let mut other = lab.deployment.clone();
    other.owner = "another site".into();
    other.settings.data_folder = lab.folder.path().join("data/other");
    other.install_folder = lab.folder.path().join("other bin");
    let error = deployer.install(&other, None).await.unwrap_err();
    assert_eq!(error.kind(), DeployErrorKind::InUse, "{error}");
    deployer.uninstall(&other).await.unwrap();
    assert!(!calls().contains("disable"), "{}", calls());
    assert_eq!(names(&units), ["siterecovery-engine.service"]);
    assert!(deployer.inspect(&lab.deployment).await.unwrap().running);

    fs::write(units.join(".siterecovery-engine.service.new"), "cut").unwrap();
    deployer.uninstall(&lab.deployment).await.unwrap();
    assert_eq!(names(&units), [""; 0]);
    assert!(calls().ends_with("disable --now -- siterecovery-engine.service\ndaemon-reload\n"));
}
