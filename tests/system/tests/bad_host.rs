//! A host that does not answer, an engine that is stopped, an orchestrator that is down, a wrong secret: each is a clear error
//! in bounded time, and the next apply mends it.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use system_tests::process::{is_alive, kill_9, pid_in, run, wait_for};
use system_tests::refusal::{refused, says};
use system_tests::story::{FILL_MIB, nothing_is_left, show, start_guests, variables};
use system_tests::{Cli, Lab, Orchestrator, Terraform};

const LIMIT: Duration = Duration::from_secs(120);
const VM: &str = "host01";
/// Nothing listens there.
const UNREACHABLE: &str = "127.0.0.1:9";

#[test]
fn what_can_not_be_reached_is_named_in_bounded_time_and_the_next_apply_succeeds() -> Result<()> {
    let mut lab = Lab::new("bad-host")?;
    let outcome = unreachable(&lab);
    if outcome.is_err() {
        lab.failed();
    }
    outcome
}

fn unreachable(lab: &Lab) -> Result<()> {
    let mut orchestrator = Orchestrator::start(lab)?;
    let cli = Cli::new(lab, &orchestrator)?;
    start_guests(lab, &[(VM, 1)], FILL_MIB)?;
    let environment = orchestrator.environment()?;
    let endpoint = environment
        .get("SITERECOVERY_ENDPOINT")
        .context("no endpoint")?
        .trim_start_matches("https://")
        .to_owned();
    let terraform = Terraform::new(
        lab,
        "first-light",
        &environment,
        &variables(lab, &[VM], false),
    )?;
    terraform.run(&["init"])?;

    show("a wrong secret");
    wrong_secret(&cli)?;

    show("the orchestrator is down");
    orchestrator.kill()?;
    let error = refused(&terraform, &["apply", "-auto-approve"])?;
    says(
        &error,
        &[&endpoint, "Check that the orchestrator runs", "endpoint"],
    )?;
    let output = cli.attempt(&["vault", "list"])?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(1) && text.contains(&endpoint),
        "the command line said: {text}"
    );
    orchestrator.restart()?;

    show("everything but the VM is there; then the host does not answer any more");
    let host = "siterecovery_replication_policy_association.this";
    terraform.run(&["apply", "-auto-approve", "-target", host])?;
    let gateway = dial(lab, UNREACHABLE)?;
    connection(&cli, "Disconnected")?;
    let error = refused(&terraform, &["apply", "-auto-approve"])?;
    says(
        &error,
        &[
            &format!("siterecovery_protected_vm.this[\"{VM}\"]"),
            "has not reported for 30 seconds",
            "HostDisconnected",
            "the host can't reach the gateway",
            "Start the engine",
        ],
    )?;
    dial(lab, &gateway)?;
    connection(&cli, "Connected")?;
    terraform.apply()?;
    terraform.plan_is_empty()?;

    show("a stopped engine is started by the next apply");
    let pid = engine_pid(lab)?;
    let config = lab.folder().join("host/data/engine.toml");
    let mut stop = Command::new(lab.program("siterecovery-engine"));
    run(stop.arg("stop").arg("--config").arg(&config))?;
    ensure!(!is_alive(pid), "the engine was not stopped");
    terraform.apply()?;
    connection(&cli, "Connected")?;
    terraform.plan_is_empty()?;
    terraform.destroy()?;
    nothing_is_left(lab)
}

fn wrong_secret(cli: &Cli) -> Result<()> {
    let secret = "not-the-secret-0815";
    let output = cli
        .command(&["vault", "list"])
        .env("SITERECOVERY_CLIENT_SECRET", secret)
        .output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    ensure!(
        output.status.code() == Some(1),
        "exit code {:?}: {text}",
        output.status.code()
    );
    ensure!(!text.contains(secret), "the secret is printed: {text}");
    ensure!(
        text.contains("client") && text.contains("secret"),
        "what is wrong is not named: {text}"
    );
    show(&text);
    Ok(())
}

/// Cuts or mends the engine's way to the gateway: it keeps the address, and reads it at its start only. Gives the one before.
fn dial(lab: &Lab, gateway: &str) -> Result<String> {
    let file = lab.folder().join("host/data/identity/enrolment.json");
    let mut enrolment: Value = serde_json::from_slice(&fs::read(&file)?)?;
    let before = enrolment["gateway"]
        .as_str()
        .context("no gateway")?
        .to_owned();
    enrolment["gateway"] = gateway.into();
    fs::write(&file, serde_json::to_vec(&enrolment)?)?;
    let pid = engine_pid(lab)?;
    kill_9(pid)?;
    wait_for("the engine is started again", LIMIT, || {
        Ok(engine_pid(lab)
            .ok()
            .filter(|new| *new != pid && is_alive(*new)))
    })?;
    Ok(before)
}

fn engine_pid(lab: &Lab) -> Result<i32> {
    pid_in(&lab.folder().join("host/data/engine.pid"))
}

/// Waits until the host's connection is like this.
fn connection(cli: &Cli, status: &str) -> Result<()> {
    wait_for(&format!("the host is {status}"), LIMIT, || {
        let hosts = cli.json(&["host", "list"])?;
        let now = hosts
            .pointer("/0/properties/connectionStatus")
            .and_then(Value::as_str)
            .map(str::to_owned);
        Ok((now.as_deref() == Some(status)).then_some(()))
    })
}
