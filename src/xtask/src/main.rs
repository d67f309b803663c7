//! Developer commands. `cargo xtask help` lists them; CI and `make` run the same words.

#![allow(clippy::print_stdout, reason = "a command talks to its terminal")]

mod bench;
mod crash;
mod deps;
mod files;
mod fuzz;
mod metadata;
mod rings;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of Site Recovery")]
struct Arguments {
    #[command(subcommand)]
    word: Word,
}

#[derive(Subcommand)]
enum Word {
    /// A crate may use only crates of its own ring or of rings inside it; ring 1 knows no network and no runtime
    Rings,
    /// No crate that we ruled out, no licence that we did not agree to, nothing from outside crates.io
    Deps,
    /// Source files stay short, say what they are, and hold nothing half-made
    Files,
    /// All static checks: rings, deps, files, rustfmt, clippy
    Lint,
    /// Real VMs write while engine, orchestrator, QEMU and store are killed at random; every recovery point is proven
    Soak {
        /// How long faults are injected
        #[arg(long, default_value_t = 20)]
        minutes: u64,
        /// Chooses the faults; printed when not given
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Real VMs of both generations fail over, planned and after a disaster, and come back; the checkers in them decide
    Circle,
    /// The power goes off at every write and every flush of journal, block hashes, manifest, points and images
    Crash {
        /// Only components whose name has this in it
        component: Option<String>,
        /// Draws workloads and samples
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Deterministic simulation of engine, store and orchestrator: faults from seeds, every recovery point checked
    Sim {
        /// So many seeds, from 0 on
        #[arg(long, default_value_t = 500)]
        seeds: u64,
        /// Replay this one
        #[arg(long)]
        seed: Option<u64>,
        /// Seeds at a time
        #[arg(long, default_value_t = 2)]
        threads: u64,
    },
    /// Model checker of failover and failback: every state of orchestrators, hosts, store and network
    Model {
        /// Only the world whose name has this in it
        world: Option<String>,
    },
    /// Build the fuzz targets with coverage and run them for a bounded time from kept seeds
    Fuzz {
        /// Which target; all of them without a name
        target: Option<String>,
        /// Seconds for all targets together
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Run this input again in place of looking for new ones
        #[arg(long, value_name = "FILE")]
        reproduce: Option<PathBuf>,
        /// Replace the seeds by the smallest set that covers what earlier runs covered
        #[arg(long)]
        keep: bool,
    },
    /// Compare ours with a peer on the same input, in one run
    Bench {
        /// Which comparison; all of them without a name
        name: Option<String>,
        /// Print JSON lines in place of text
        #[arg(long)]
        json: bool,
        /// Factor on all sizes: below 1 for a smoke test, whose figures mean nothing
        #[arg(long, default_value_t = 1.0)]
        scale: f64,
        /// How often cheap measurements are repeated
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().word {
        Word::Rings => rings::check(),
        Word::Deps => deps::check(),
        Word::Files => files::check(&root()?),
        Word::Lint => {
            rings::check()?;
            deps::check()?;
            files::check(&root()?)?;
            cargo(&["fmt", "--all", "--check"])?;
            cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ])
        }
        Word::Circle => {
            cargo(&["build", "--workspace", "--bins"])?;
            cargo(&[
                "nextest",
                "run",
                "-p",
                "system-tests",
                "--test",
                "circle",
                "--no-capture",
            ])
        }
        Word::Soak { minutes, seed } => {
            cargo(&["build", "--workspace", "--bins"])?;
            let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
            cargo(&[
                "run",
                "--quiet",
                "--package",
                "system-tests",
                "--bin",
                "soak",
                "--",
                &minutes.to_string(),
                &seed.to_string(),
            ])
        }
        Word::Crash { component, seed } => crash::run(component.as_deref(), seed),
        Word::Sim {
            seeds,
            seed,
            threads,
        } => {
            let seeds = seed.map_or(crash::Seeds::Count(seeds), crash::Seeds::One);
            crash::simulate(&seeds, threads)
        }
        Word::Model { world } => {
            // Optimised: millions of states, and the crates that it builds are two small ones.
            let mut arguments = vec![
                "run",
                "--quiet",
                "--release",
                "--package",
                "model-check",
                "--bin",
                "model",
                "--",
            ];
            arguments.extend(world.as_deref());
            cargo(&arguments)
        }
        Word::Fuzz {
            target,
            seconds,
            reproduce,
            keep,
        } => fuzz::run(
            &root()?,
            &fuzz::Wish {
                target: target.as_deref(),
                seconds,
                reproduce: reproduce.as_deref(),
                keep,
            },
        ),
        Word::Bench {
            name,
            json,
            scale,
            rounds,
        } => bench::run(
            &root()?,
            &bench::Options {
                name: name.as_deref(),
                json,
                scale,
                rounds,
            },
        ),
    }
}

/// The workspace's folder.
fn root() -> Result<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .map(PathBuf::from)
        .context("xtask lies two folders below the workspace")
}

/// A program of the workspace that was built beside this one.
fn built(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe().context("the path of this program is not known")?;
    Ok(here.with_file_name(name))
}

/// Cargo as a person starts it. What this process has from the cargo that runs it tells of this package, and build scripts that look at such
/// variables (ring's) would be run anew, with all that is built on them, each time that cargo is started the one way and the other.
fn cargo_command() -> Command {
    let mut command = Command::new(env!("CARGO"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let told = [
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_BIN_",
            "CARGO_CRATE_",
        ];
        if told.iter().any(|prefix| text.starts_with(prefix)) || text == "CARGO_PRIMARY_PACKAGE" {
            command.env_remove(&name);
        }
    }
    command
}

fn cargo(arguments: &[&str]) -> Result<()> {
    let status = cargo_command()
        .args(arguments)
        .status()
        .context("cargo can't be started")?;
    if !status.success() {
        bail!(
            "`cargo {}` failed; what it printed above says where",
            arguments.join(" ")
        );
    }
    Ok(())
}
