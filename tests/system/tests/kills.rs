//! `kill -9` of orchestrator, engine and QEMU in the middle of initial replication and of a cycle. Afterwards replication goes
//! on by itself, and the checker in a drill finds every stamp up to some sequence.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use system_tests::process::{catch, is_alive, kill_9, pid_in, wait_for};
use system_tests::story::{
    BOOT, check_drill, drill_vms, files_below, newest_position, show, start_guests, variables,
};
use system_tests::{Cli, Lab, Orchestrator, Terraform};

/// Each is killed at in its own initial replication: engine, orchestrator, QEMU.
const GUESTS: [(&str, u8); 3] = [("db01", 2), ("db02", 1), ("db03", 2)];
const LIMIT: Duration = Duration::from_secs(240);
/// Enough that initial replication takes its time.
const ENOUGH_MIB: u32 = 96;
/// In the middle of initial replication: some of the data is there, far from all of it.
const SOME_BYTES: u64 = 12 << 20;

#[test]
fn replication_goes_on_by_itself_after_every_kill() -> Result<()> {
    let mut lab = Lab::new("kills")?;
    let outcome = kills(&lab);
    if outcome.is_err() {
        lab.failed();
    }
    outcome
}

fn kills(lab: &Lab) -> Result<()> {
    let mut orchestrator = Orchestrator::start(lab)?;
    let cli = Cli::new(lab, &orchestrator)?;
    start_guests(lab, &GUESTS, ENOUGH_MIB)?;
    let terraform = Terraform::new(
        lab,
        "first-light",
        &orchestrator.environment()?,
        &variables(lab, &["db01"], false),
    )?;
    terraform.run(&["init"])?;

    show("kill -9 of the engine in initial replication");
    in_initial_replication(lab, &terraform, &["db01"], || kill_engine(lab))?;
    show("kill -9 of the orchestrator in initial replication");
    in_initial_replication(lab, &terraform, &["db01", "db02"], || {
        orchestrator.kill()?;
        orchestrator.restart()
    })?;
    show("kill -9 of QEMU in initial replication");
    in_initial_replication(lab, &terraform, &["db01", "db02", "db03"], || {
        kill_qemu(lab, "db03")
    })?;

    for round in 1..=2 {
        show(&format!("kill -9 of the engine in a cycle, round {round}"));
        in_a_cycle(lab, &cli, "db01", || kill_engine(lab))?;
    }
    show("kill -9 of the orchestrator in a cycle");
    in_a_cycle(lab, &cli, "db02", || {
        orchestrator.kill()?;
        orchestrator.restart()
    })?;
    show("kill -9 of QEMU in a cycle");
    in_a_cycle(lab, &cli, "db03", || kill_qemu(lab, "db03"))?;

    show("a drill of all three");
    terraform.variables(&variables(lab, &GUESTS.map(|(name, _)| name), true))?;
    terraform.apply()?;
    check_drill(&drill_vms(&terraform)?)?;
    terraform.destroy()?;
    Ok(())
}

/// Applies with `names` protected and acts when the newest of them is half-way; the apply has to succeed all the same.
fn in_initial_replication(
    lab: &Lab,
    terraform: &Terraform,
    names: &[&str],
    act: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let complete_before = replicas(lab).len();
    terraform.variables(&variables(lab, names, false))?;
    let apply = terraform.spawn(&["apply", "-auto-approve"])?;
    catch("initial replication is half-way", LIMIT, || {
        let begun = replicas(lab)
            .iter()
            .filter(|replica| {
                !replica.join("points").exists() || files_below(&replica.join("points")).is_empty()
            })
            .map(|r| base_bytes(r))
            .sum::<u64>();
        Ok((begun > SOME_BYTES).then_some(()))
    })?;
    act()?;
    let ended = apply.wait_with_output()?;
    ensure!(
        ended.status.success(),
        "apply did not survive the kill:\n{}{}",
        String::from_utf8_lossy(&ended.stdout),
        String::from_utf8_lossy(&ended.stderr)
    );
    ensure!(replicas(lab).len() > complete_before, "no replica was made");
    Ok(())
}

/// Acts while a replication log lies beside a disk of `vm`, then waits for two more points.
fn in_a_cycle(lab: &Lab, cli: &Cli, vm: &str, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = newest_position(cli, vm)?;
    let folder = lab.vm_folder().join(vm);
    catch("a cycle writes its log", LIMIT, || {
        Ok(files_below(&folder)
            .iter()
            .any(|file| file.contains(".hrl"))
            .then_some(()))
    })?;
    act()?;
    wait_for(&format!("{vm} gets two more points"), LIMIT, || {
        Ok((newest_position(cli, vm)? >= before + 2).then_some(()))
    })
}

fn kill_engine(lab: &Lab) -> Result<()> {
    let file = lab.folder().join("host/data/engine.pid");
    let pid = pid_in(&file)?;
    kill_9(pid)?;
    wait_for("the service shell starts the engine again", LIMIT, || {
        Ok(pid_in(&file)
            .ok()
            .filter(|new| *new != pid && is_alive(*new))
            .map(drop))
    })
}

/// Kills QEMU and starts the VM again, as the host's administrator would; its own disk has to be consistent too.
fn kill_qemu(lab: &Lab, vm: &str) -> Result<()> {
    let pid = pid_in(&lab.vm_folder().join(vm).join("run/pid"))?;
    kill_9(pid)?;
    wait_for("QEMU is gone", LIMIT, || Ok((!is_alive(pid)).then_some(())))?;
    lab.start_vm(vm)?;
    lab.console(vm).wait_for_sequence(1, BOOT).map(drop)
}

/// Folders of the replicas in the store.
fn replicas(lab: &Lab) -> Vec<PathBuf> {
    let bases = files_below(&lab.folder().join("storage"))
        .into_iter()
        .filter(|file| file.ends_with("base.vhd"));
    let mut replicas: Vec<PathBuf> = bases
        .filter_map(|base| Some(Path::new(&base).parent()?.parent()?.to_owned()))
        .collect();
    replicas.sort();
    replicas.dedup();
    replicas
}

/// Bytes that the base files of a replica occupy.
fn base_bytes(replica: &Path) -> u64 {
    let bases = files_below(replica)
        .into_iter()
        .filter(|file| file.ends_with("base.vhd"));
    bases
        .filter_map(|base| std::fs::metadata(base).context("base").ok())
        .map(|metadata| metadata.blocks() * 512)
        .sum()
}
