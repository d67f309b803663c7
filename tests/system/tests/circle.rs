//! The whole circle with real VMs of both generations, which write all the time: protected → drill → planned failover →
//! commit → failback → commit → protected again → drill; and once more with an unplanned failover, after the source's host
//! and VMs were killed in the middle of a cycle, to a recovery host that has lost generation 2: what UEFI started at the
//! source is started by a BIOS there, and by UEFI again after the way back. The checker in the guests decides.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use system_tests::process::{catch, is_alive, kill_9, pid_in, wait_for};
use system_tests::story::{
    BOOT, files_below, newest_position, nothing_is_left, show, start_guests, wait_for_points,
};
use system_tests::{Cli, Console, Lab, Orchestrator, Terraform};

const GUESTS: [(&str, u8); 2] = [("shop01", 2), ("shop02", 1)];
/// Their generations on a recovery host that supports both, and on one that supports generation 1 only.
const KEPT: [u8; 2] = [2, 1];
const CONVERTED: [u8; 2] = [1, 1];
const LIMIT: Duration = Duration::from_secs(240);
const FILL_MIB: u32 = 24;
/// Exit code of a command whose job waits for a person.
const WAITS: i32 = 3;

#[test]
fn vms_go_to_the_recovery_side_and_back_and_lose_nothing() -> Result<()> {
    let mut lab = Lab::new("circle")?;
    let outcome = circle(&lab);
    if outcome.is_err() {
        lab.failed();
        let log = lab.folder().join("recovery/data/engine.log");
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let tail: Vec<&str> = text.lines().rev().take(25).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        eprintln!("── end of the recovery host's log\n{}", tail.join("\n"));
    }
    outcome
}

fn circle(lab: &Lab) -> Result<()> {
    let orchestrator = Orchestrator::start(lab)?;
    let cli = Cli::new(lab, &orchestrator)?;
    start_guests(lab, &GUESTS, FILL_MIB)?;
    let mut variables = json!({
        "vm_folder": lab.vm_folder(),
        "source_folder": lab.folder().join("host"),
        "recovery_folder": lab.folder().join("recovery"),
        "replica_folder": lab.folder().join("storage"),
        "boot_order": GUESTS.iter().map(|(name, _)| [name]).collect::<Vec<_>>(),
        "replication_interval_in_seconds": 30,
    });
    let environment = orchestrator.environment()?;
    let terraform = Terraform::new(lab, "failover", &environment, &variables)?;
    terraform.run(&["init"])?;
    terraform.apply()?;
    let plan = terraform.outputs()?;
    let plan = plan.pointer("/recovery_plan/value");
    let plan = plan.and_then(Value::as_str).context("no plan")?.to_owned();
    for (name, _) in GUESTS {
        wait_for_points(&cli, name, 1)?;
    }
    drill(lab, &cli, &plan, &KEPT)?;

    show("planned failover: nothing that was written may be missing");
    failover(&cli, &plan, &["planned"])?;
    let mut written = Vec::new();
    for (name, _) in GUESTS {
        written.push((name, is_off(lab, name)?));
    }
    at_recovery(lab, &cli, &written, &KEPT)?;
    back(lab, &cli, &plan)?;
    drill(lab, &cli, &plan, &KEPT)?;

    show("from now on the recovery host supports generation 1 only");
    if let Some(all) = variables.as_object_mut() {
        all.insert("recovery_generations".to_owned(), json!([1]));
    }
    terraform.variables(&variables)?;
    terraform.apply()?;

    show("the source's host and its VMs are killed in the middle of a cycle");
    let points = positions(&cli)?;
    catch("a cycle writes its log", LIMIT, || {
        let files = files_below(&lab.vm_folder());
        Ok(files.iter().any(|file| file.contains(".hrl")).then_some(()))
    })?;
    kill_source(lab)?;
    failover(&cli, &plan, &["unplanned", "--yes"])?;
    let known: Vec<(&str, u64)> = GUESTS.iter().map(|(name, _)| (*name, 1)).collect();
    at_recovery(lab, &cli, &known, &CONVERTED)?;

    show("the source's host comes back: its VMs are held");
    terraform.apply()?;
    for (name, _) in GUESTS {
        wait_for(&format!("{name} is held"), LIMIT, || {
            let item = cli.json(&["item", "show", name])?;
            Ok(may(&item, "Failback").then_some(()))
        })?;
        is_off(lab, name)?;
    }
    back(lab, &cli, &plan)?;
    for ((name, _), before) in GUESTS.iter().zip(points) {
        ensure!(
            newest_position(&cli, name)? > before,
            "{name} has no new point"
        );
    }
    drill(lab, &cli, &plan, &CONVERTED)?;
    terraform.plan_is_empty()?;
    terraform.destroy()?;
    nothing_is_left(lab)
}

/// A step of `siterecovery failover` for the plan, to its end.
fn failover(cli: &Cli, plan: &str, words: &[&str]) -> Result<()> {
    let mut arguments = vec!["failover"];
    arguments.extend_from_slice(words);
    arguments.extend_from_slice(&["--plan", plan]);
    show(&cli.text(&arguments)?);
    Ok(())
}

fn positions(cli: &Cli) -> Result<Vec<u64>> {
    let all = GUESTS.iter().map(|(name, _)| newest_position(cli, name));
    all.collect()
}

fn may(item: &Value, operation: &str) -> bool {
    let allowed = item.pointer("/properties/allowedOperations");
    let allowed = allowed.and_then(Value::as_array);
    allowed.is_some_and(|all| all.iter().any(|one| one == operation))
}

/// A drill of the plan finds every stamp; replication goes on.
fn drill(lab: &Lab, cli: &Cli, plan: &str, generations: &[u8]) -> Result<()> {
    show("a drill");
    cli.text(&["test-failover", "start", "--plan", plan])?;
    for ((name, _), generation) in GUESTS.iter().zip(generations) {
        is_of_generation(lab, name, *generation)?;
        let check = recovered(lab, name)?.wait_for_check(BOOT)?;
        show(&format!("{name}: {}", check.line));
        ensure!(check.last_sequence > 0, "{name} holds no stamp");
    }
    let job = cli.json(&["job", "list"])?;
    let job = newest_job(&job, "TestFailover").context("the drill has no job")?;
    proven_by_report(cli, &job)?;
    cli.text(&[
        "test-failover",
        "cleanup",
        "--plan",
        plan,
        "--comments",
        "seen",
    ])?;
    let report = cli.json(&["test-failover", "report", &job, "--format", "json"])?;
    let notes = report.pointer("/report/cleanup/notes");
    ensure!(
        notes == Some(&"seen".into()),
        "the clean-up is not in the report: {notes:?}"
    );
    Ok(())
}

/// Name of the newest job of a kind.
fn newest_job(jobs: &Value, scenario: &str) -> Option<String> {
    let text = |job: &Value, pointer: &str| {
        job.pointer(pointer)
            .and_then(Value::as_str)
            .map(ToOwned::to_owned)
    };
    let all = jobs.as_array()?.iter();
    let ours = all.filter(|job| text(job, "/properties/scenarioName").as_deref() == Some(scenario));
    let newest = ours.max_by_key(|job| text(job, "/properties/startTime"))?;
    text(newest, "/name")
}

/// The auditor's report of a drill holds what was measured, and what the VMs' displays showed.
fn proven_by_report(cli: &Cli, job: &str) -> Result<()> {
    let seen = wait_for("the report shows every display", LIMIT, || {
        let report = cli.json(&["test-failover", "report", job, "--format", "json"])?;
        let vms = report.pointer("/report/virtualMachines");
        let vms = vms.and_then(Value::as_array).cloned().unwrap_or_default();
        let shown = |vm: &Value| vm.pointer("/evidence/width").and_then(Value::as_u64) > Some(0);
        Ok((vms.len() == GUESTS.len() && vms.iter().all(shown)).then_some(report))
    })?;
    let number = |pointer: &str| seen.pointer(pointer).and_then(Value::as_i64);
    let booted = number("/report/figures/booted");
    ensure!(
        booted == i64::try_from(GUESTS.len()).ok(),
        "{booted:?} VMs have booted"
    );
    for figure in ["worstRtoMs", "worstRpoMs"] {
        let value = number(&format!("/report/figures/{figure}"));
        ensure!(
            value.is_some_and(|value| value > 0),
            "{figure} is {value:?}"
        );
    }
    let verdict = seen.pointer("/report/verdict").and_then(Value::as_str);
    ensure!(
        matches!(verdict, Some("Passed" | "PassedWithRemarks")),
        "the drill's verdict is {verdict:?}"
    );
    show(&format!(
        "report: {}, RTO {} ms, RPO {} ms",
        verdict.unwrap_or_default(),
        number("/report/figures/worstRtoMs").unwrap_or_default(),
        number("/report/figures/worstRpoMs").unwrap_or_default()
    ));
    Ok(())
}

/// A recovered VM has the firmware of this generation.
fn is_of_generation(lab: &Lab, name: &str, generation: u8) -> Result<()> {
    let file = recovered_folder(lab, name)?.join("vm.toml");
    let text = std::fs::read_to_string(&file)?;
    ensure!(
        text.lines()
            .any(|line| line == format!("generation = {generation}")),
        "{name} is not recovered as generation {generation}:\n{text}"
    );
    Ok(())
}

/// The console of a recovered VM, found by the name of its source.
fn recovered(lab: &Lab, name: &str) -> Result<Console> {
    let folder = recovered_folder(lab, name)?;
    Ok(Console::at(&folder.join("run/console.log")))
}

fn recovered_folder(lab: &Lab, name: &str) -> Result<PathBuf> {
    let all = lab.folder().join("recovery/data/recovered");
    let files = files_below(&all);
    let mut folders = files
        .iter()
        .filter(|file| file.ends_with("/vm.toml"))
        .filter(|file| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            text.contains(&format!("\"{name}-dr"))
        });
    let file = folders
        .next()
        .with_context(|| format!("{name} has no recovered VM"))?;
    if let Some(second) = folders.next() {
        bail!("{name} has two recovered VMs: {file} and {second}");
    }
    let file = PathBuf::from(file);
    Ok(file.parent().context("a folder")?.to_owned())
}

/// The source's VM is off; gives the last sequence that its guest spoke of.
fn is_off(lab: &Lab, name: &str) -> Result<u64> {
    let runs = |lab: &Lab| {
        let pid = pid_in(&lab.vm_folder().join(name).join("run/pid"));
        pid.is_ok_and(is_alive)
    };
    wait_for(&format!("{name} is off at the source"), LIMIT, || {
        Ok((!runs(lab)).then_some(()))
    })?;
    lab.console(name)
        .sequence()
        .with_context(|| format!("{name} never stamped"))
}

/// The recovered VMs have what was written, and go on writing; then the failover is accepted.
fn at_recovery(lab: &Lab, cli: &Cli, written: &[(&str, u64)], generations: &[u8]) -> Result<()> {
    for ((name, least), generation) in written.iter().zip(generations) {
        is_of_generation(lab, name, *generation)?;
        let console = recovered(lab, name)?;
        let check = console.wait_for_check(BOOT)?;
        show(&format!("{name} at the recovery side: {}", check.line));
        ensure!(
            check.last_sequence >= *least,
            "{name} had stamped {least} at the source and has {} at the recovery side",
            check.last_sequence
        );
        console.wait_for_sequence(check.last_sequence + 1, BOOT)?;
        let item = cli.json(&["item", "show", name])?;
        ensure!(
            item.pointer("/properties/activeLocation") == Some(&"Recovery".into()),
            "{name} is not shown at the recovery side"
        );
        hydrated(lab, cli, name)?;
        cli.text(&["failover", "commit", name, "--yes"])?;
    }
    Ok(())
}

/// The disks of a recovered VM come to its host while it runs, if that has the room that it keeps for guests.
fn hydrated(lab: &Lab, cli: &Cli, name: &str) -> Result<()> {
    let volume = nix::sys::statvfs::statvfs(lab.folder())?;
    if volume.blocks_available() < volume.blocks() / 8 {
        show(&format!("{name}: too little room for its disks here"));
        return Ok(());
    }
    let whole = wait_for(&format!("the disks of {name} are local"), LIMIT, || {
        let item = cli.json(&["item", "show", name])?;
        let bytes = |field: &str| {
            let pointer = format!("/properties/providerSpecificDetails/{field}");
            item.pointer(&pointer).and_then(Value::as_u64)
        };
        let whole = bytes("recoveredVmDiskBytes");
        Ok(whole.filter(|whole| bytes("recoveredVmLocalBytes") == Some(*whole)))
    })?;
    show(&format!("{name}: all {whole} bytes are on its host"));
    Ok(())
}

/// Failback: data moves while the recovered VMs run; a person says go; the sources have every write of theirs.
fn back(lab: &Lab, cli: &Cli, plan: &str) -> Result<()> {
    show("failback: synchronise while the recovered VMs run");
    for (name, _) in GUESTS {
        wait_for(&format!("{name} may go back"), LIMIT, || {
            let item = cli.json(&["item", "show", name])?;
            Ok(may(&item, "Failback").then_some(()))
        })?;
    }
    let output = cli.attempt(&["failover", "back", "--plan", plan, "--yes"])?;
    ensure!(
        output.status.code() == Some(WAITS),
        "the failback does not wait for a person:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let mut last = Vec::new();
    for (name, _) in GUESTS {
        let console = recovered(lab, name)?;
        let now = console
            .sequence()
            .with_context(|| format!("{name} does not stamp"))?;
        last.push((name, console.wait_for_sequence(now + 1, BOOT)?));
    }
    show("failback: the rest");
    failover(cli, plan, &["complete"])?;
    for (name, least) in last {
        let console = lab.console(name);
        let check = console.wait_for_check(BOOT)?;
        show(&format!("{name} at the source: {}", check.line));
        ensure!(
            check.last_sequence >= least,
            "{name} had stamped {least} at the recovery side and has {} at the source",
            check.last_sequence
        );
        console.wait_for_sequence(check.last_sequence + 1, BOOT)?;
    }
    let before = positions(cli)?;
    failover(cli, plan, &["commit", "--yes"])?;
    failover(cli, plan, &["reprotect"])?;
    for ((name, _), before) in GUESTS.iter().zip(before) {
        wait_for(&format!("{name} is protected again"), LIMIT, || {
            Ok((newest_position(cli, name)? > before).then_some(()))
        })?;
        let left = recovered_folder(lab, name);
        ensure!(left.is_err(), "the recovered copy of {name} is still there");
    }
    Ok(())
}

/// `kill -9` of the source's engine, its service shell, and its VMs: the host is gone.
fn kill_source(lab: &Lab) -> Result<()> {
    let data = lab.folder().join("host/data");
    for file in [data.join("supervisor.pid"), data.join("engine.pid")] {
        kill_9(pid_in(&file)?)?;
    }
    for (name, _) in GUESTS {
        kill_9(pid_in(&lab.vm_folder().join(name).join("run/pid"))?)?;
    }
    Ok(())
}
