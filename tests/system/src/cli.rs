//! The operator's command line, asked for JSON.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::lab::Lab;
use crate::orchestrator::Orchestrator;
use crate::process::run;

/// `siterecovery` with an admin's environment.
#[derive(Clone)]
pub struct Cli {
    program: PathBuf,
    environment: BTreeMap<String, String>,
}

// === impl Cli ===

impl Cli {
    /// For this orchestrator.
    pub fn new(lab: &Lab, orchestrator: &Orchestrator) -> Result<Self> {
        Ok(Self {
            program: lab.program("siterecovery"),
            environment: orchestrator.environment()?,
        })
    }

    /// The command, to be run as one likes.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).envs(&self.environment);
        command
    }

    /// Runs and reads the JSON answer.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let output = run(self.command(arguments).arg("--json"))?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`siterecovery {}` printed no JSON", arguments.join(" ")))
    }

    /// Runs and gives what a person would see.
    pub fn text(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.command(arguments))
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs whatever the outcome.
    pub fn attempt(&self, arguments: &[&str]) -> Result<Output> {
        self.command(arguments)
            .output()
            .context("start siterecovery")
    }
}
