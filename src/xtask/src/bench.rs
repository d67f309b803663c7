//! Comparisons with a peer: same input, same run, output verified, printed as a ratio with the machine's ceiling beside it.

mod provider_start;
mod vhdx_read;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

/// One comparison's outcome.
#[derive(Serialize)]
pub struct Outcome {
    /// Its name on the command line.
    pub name: &'static str,
    /// What was compared.
    pub what: String,
    /// Ours.
    pub ours: f64,
    /// The peer.
    pub peer: f64,
    /// Unit of both.
    pub unit: &'static str,
    /// Ours divided by the peer.
    pub ratio: f64,
    /// What the machine itself can do, in the same unit; nothing where no such limit applies.
    pub ceiling: Option<f64>,
}

type Comparison = fn(&Path) -> Result<Outcome>;

const COMPARISONS: &[(&str, Comparison)] = &[
    ("provider-start", provider_start::run),
    ("vhdx-read", vhdx_read::run),
];

/// Runs one comparison, or all; all of them also write the table into `docs/benchmarks.md`.
pub fn run(root: &Path, name: Option<&str>, json: bool) -> Result<()> {
    let chosen: Vec<_> = COMPARISONS
        .iter()
        .filter(|(known, _)| name.is_none_or(|name| name == *known))
        .collect();
    if chosen.is_empty() {
        let known: Vec<&str> = COMPARISONS.iter().map(|(known, _)| *known).collect();
        bail!(
            "no comparison of the name `{}`; there are: {}",
            name.unwrap_or(""),
            known.join(", ")
        );
    }
    crate::cargo(&["build", "--release", "--bins", "--quiet"])?;
    let mut outcomes = Vec::new();
    for (name, comparison) in chosen {
        let outcome = comparison(root).with_context(|| format!("comparison `{name}`"))?;
        if json {
            println!("{}", serde_json::to_string(&outcome)?);
        }
        outcomes.push(outcome);
    }
    let table = table(&outcomes)?;
    if !json {
        println!("{table}");
    }
    if name.is_none() {
        let text = format!(
            "# Benchmarks\n\nWritten by `cargo xtask bench`: ours and a peer on the same input in one run.\n\n{table}"
        );
        fs::write(root.join("docs/benchmarks.md"), text).context("write docs/benchmarks.md")?;
    }
    Ok(())
}

fn table(outcomes: &[Outcome]) -> Result<String> {
    let mut text = String::from(
        "| name | what | ours | peer | unit | ratio ours/peer | machine ceiling |\n|---|---|---:|---:|---|---:|---:|\n",
    );
    for outcome in outcomes {
        let Outcome {
            name,
            what,
            ours,
            peer,
            unit,
            ratio,
            ceiling,
        } = outcome;
        let ceiling = ceiling.map_or_else(|| "-".to_owned(), |ceiling| format!("{ceiling:.1}"));
        writeln!(
            text,
            "| {name} | {what} | {ours:.1} | {peer:.1} | {unit} | {ratio:.2} | {ceiling} |"
        )?;
    }
    Ok(text)
}

/// The middle one of several measurements.
fn median(mut values: Vec<f64>) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    values
        .get(values.len() / 2)
        .copied()
        .context("nothing was measured")
}
