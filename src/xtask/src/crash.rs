//! Crash enumeration and simulation: starts the programs that do it.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

/// Cuts the power everywhere; the program prints the table.
pub fn run(component: Option<&str>, seed: u64) -> Result<()> {
    // With the workspace's features, as everything else that tests build: those of one package would build most of it again.
    crate::cargo(&["build", "--quiet", "--workspace", "--bins", "--examples"])?;
    let status = Command::new(crate::built("crash")?)
        .args(["--seed", &seed.to_string()])
        .args(component)
        .status()
        .context("the crash enumeration can't be started")?;
    ensure!(
        status.success(),
        "the crash enumeration failed; what it printed above names the cut that breaks a promise"
    );
    Ok(())
}

/// What to simulate.
pub enum Seeds {
    /// The first so many.
    Count(u64),
    /// One that failed, again.
    One(u64),
}

/// Runs the engine's simulation, which is a test program of it, with these seeds.
pub fn simulate(seeds: &Seeds, threads: u64) -> Result<()> {
    let (name, value) = match seeds {
        Seeds::Count(count) => ("SIMULATION_SEEDS", count),
        Seeds::One(seed) => ("SIMULATION_SEED", seed),
    };
    let arguments = [
        "test",
        "--quiet",
        "--workspace",
        "--test",
        "simulation",
        "--",
        "--nocapture",
        "every_point_equals_its_freeze_whatever_happened",
    ];
    let status = crate::cargo_command()
        .args(arguments)
        .env(name, value.to_string())
        .env("SIMULATION_THREADS", threads.to_string())
        .status()
        .context("cargo can't be started")?;
    if !status.success() {
        bail!("the simulation failed; what it printed above names the seed that replays it");
    }
    Ok(())
}
