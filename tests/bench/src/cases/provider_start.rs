//! `provider-start`: from the provider's start to its handshake line, beside `terraform version`, the least that any
//! Terraform command costs.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::outcome::{Measure, Outcome, median};
use crate::process::execute;
use crate::setting::Setting;

const ROUNDS: usize = 15;
/// What Terraform sets so that a provider knows it was not started by hand.
const COOKIE: (&str, &str) = (
    "TF_PLUGIN_MAGIC_COOKIE",
    "d602bf8f470bc67ca7faa0386276bbdd4330efaf76d1a219cb4d6991ca9872b2",
);

/// Both in turn, so that a change of the machine's mood meets both.
pub fn run(setting: &Setting) -> Result<Outcome> {
    let provider = setting
        .root
        .join("target/release/terraform-provider-siterecovery");
    let terraform = std::env::var_os("TERRAFORM").unwrap_or_else(|| "terraform".into());
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(handshake(&provider)?);
        let mut command = Command::new(&terraform);
        let (_, cost) = execute(command.arg("version").env("CHECKPOINT_DISABLE", "1"))?;
        peer.push(cost.wall * 1000.0);
    }
    Ok(Outcome {
        name: "provider-start",
        what: "start to handshake line; peer: `terraform version`".to_owned(),
        measures: vec![Measure::new("time", median(ours), median(peer), "ms")],
        ceiling: None,
        notes: Vec::new(),
    })
}

fn handshake(provider: &Path) -> Result<f64> {
    let start = Instant::now();
    let mut child = Command::new(provider)
        .env(COOKIE.0, COOKIE.1)
        .env("PLUGIN_PROTOCOL_VERSIONS", "5,6")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start {}", provider.display()))?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("stdout is piped")?).read_line(&mut line)?;
    let elapsed = start.elapsed().as_secs_f64() * 1000.0;
    child.kill()?;
    child.wait()?;
    ensure!(line.starts_with("1|6|"), "not a handshake: {line}");
    Ok(elapsed)
}
