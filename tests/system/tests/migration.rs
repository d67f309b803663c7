//! A migration with a real VM: protected → planned failover → complete migration. The VM then runs without replica, store
//! and engine; also after `terraform destroy` of everything else.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use system_tests::process::{is_alive, kill_9, pid_in};
use system_tests::refusal::{refused, says};
use system_tests::story::{
    BOOT, files_below, nothing_is_left, show, start_guests, wait_for_points,
};
use system_tests::{Cli, Console, Lab, Orchestrator, Terraform};

const VM: &str = "move01";

#[test]
fn a_migrated_vm_runs_on_when_replica_engine_and_orchestrator_are_gone() -> Result<()> {
    let mut lab = Lab::new("migrate")?;
    let outcome = migration(&lab);
    if outcome.is_err() {
        lab.failed();
    }
    outcome
}

fn migration(lab: &Lab) -> Result<()> {
    let orchestrator = Orchestrator::start(lab)?;
    let cli = Cli::new(lab, &orchestrator)?;
    start_guests(lab, &[(VM, 2)], 16)?;
    let variables = json!({
        "vm_folder": lab.vm_folder(),
        "source_folder": lab.folder().join("host"),
        "recovery_folder": lab.folder().join("recovery"),
        "replica_folder": lab.folder().join("storage"),
        "boot_order": [[VM]],
        "replication_interval_in_seconds": 30,
    });
    let terraform = Terraform::new(lab, "failover", &orchestrator.environment()?, &variables)?;
    terraform.run(&["init"])?;
    terraform.apply()?;
    wait_for_points(&cli, VM, 1)?;

    show("planned failover, and complete the migration");
    show(&cli.text(&["failover", "planned", VM])?);
    let (folder, console) = recovered(lab)?;
    let check = console.wait_for_check(BOOT)?;
    show(&format!("{VM} at its new host: {}", check.line));

    show("as long as the failed-over VM counts, its host's engine is not taken away");
    let host = [
        "destroy",
        "-auto-approve",
        "-no-color",
        "-target=siterecovery_hyperv_host.recovery",
    ];
    says(
        &refused(&terraform, &host)?,
        &["VMs of this host are protected", "HostInUse"],
    )?;

    // A VM that is migrated is no member of a plan any more.
    terraform.run(&[
        "destroy",
        "-auto-approve",
        "-target=siterecovery_recovery_plan.this",
    ])?;
    show(&cli.text(&["failover", "complete-migration", VM, "--yes"])?);
    std::fs::remove_dir_all(lab.folder().join("storage")).context("remove the store")?;
    let before = console.sequence().context("it does not stamp")?;
    terraform.destroy()?;
    nothing_is_left(lab)?;

    show("replica, engines and configuration are gone; the VM runs on");
    let pid = pid_in(&folder.join("run/pid"))?;
    ensure!(is_alive(pid), "{VM} was stopped");
    console.wait_for_sequence(before + 2, BOOT)?;
    ensure!(
        folder.join("vm.toml").exists(),
        "{VM} lost its configuration"
    );
    kill_9(pid)
}

/// Folder and console of the recovered VM.
fn recovered(lab: &Lab) -> Result<(PathBuf, Console)> {
    let files = files_below(&lab.folder().join("recovery/data/recovered"));
    let file = files.iter().find(|file| file.ends_with("/vm.toml"));
    let folder = PathBuf::from(file.context("no recovered VM")?);
    let folder = folder.parent().context("a folder")?.to_owned();
    let console = Console::at(&folder.join("run/console.log"));
    Ok((folder, console))
}
