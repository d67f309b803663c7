//! `bench`: builds what the comparisons need, runs them one by one, and writes the table into `docs/benchmarks.md`.
//!
//! The comparisons themselves are in `tests/bench`, a program of its own, so that this one stays light. A comparison that
//! breaks does not keep the others from running; one that misses its bound is said at the end, with exit code 1.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// How the comparisons are run.
pub struct Options<'a> {
    /// Which one; all of them without a name.
    pub name: Option<&'a str>,
    /// JSON lines in place of text.
    pub json: bool,
    /// Factor on all sizes.
    pub scale: f64,
    /// How often cheap measurements are repeated.
    pub rounds: usize,
}

/// Exit code of `bench` when a bound is not met; the figures are printed all the same.
const NOT_MET: i32 = 3;

/// Runs one comparison, or all; all of them also write the table.
pub fn run(root: &Path, options: &Options<'_>) -> Result<()> {
    let mut packages = vec!["engine", "bench"];
    packages.extend(further_packages(options.name));
    let mut build = vec!["build", "--release", "--quiet"];
    for package in packages {
        build.extend(["--package", package]);
    }
    crate::cargo(&build)?;
    let program = root.join("target/release/bench");
    let names = match options.name {
        Some(name) => vec![name.to_owned()],
        None => names(&program)?,
    };
    let begin = Instant::now();
    let (mut outcomes, mut troubles) = (Vec::new(), Vec::new());
    for name in &names {
        let started = Instant::now();
        match one(&program, name, options) {
            Ok(mut outcome) => {
                outcome["seconds"] = started.elapsed().as_secs().into();
                if options.json {
                    println!("{outcome}");
                } else {
                    println!("{}", text(&outcome));
                }
                outcomes.push(outcome);
            }
            Err(error) if names.len() > 1 => {
                eprintln!("{name}: {error:#}");
                troubles.push(name.clone());
            }
            Err(error) => return Err(error),
        }
    }
    if options.name.is_none() {
        let page = page(&outcomes, &troubles, options, begin.elapsed().as_secs());
        fs::write(root.join("docs/benchmarks.md"), page).context("write docs/benchmarks.md")?;
    }
    let missed: Vec<&str> = outcomes
        .iter()
        .filter(|outcome| !is_met(outcome))
        .filter_map(|outcome| outcome["name"].as_str())
        .collect();
    if !troubles.is_empty() || !missed.is_empty() {
        bail!(
            "not measured: {}; bound not met: {}",
            list(&troubles),
            list(&missed)
        );
    }
    Ok(())
}

/// What a comparison needs beside engine and bench.
fn further_packages(name: Option<&str>) -> &'static [&'static str] {
    match name {
        Some("provider-start") => &["provider"],
        None | Some("rto" | "failback") => &["provider", "orchestrator", "cli"],
        Some(_) => &[],
    }
}

fn list<T: AsRef<str>>(names: &[T]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names
        .iter()
        .map(AsRef::as_ref)
        .collect::<Vec<_>>()
        .join(", ")
}

fn names(program: &Path) -> Result<Vec<String>> {
    let output = Command::new(program)
        .arg("--list")
        .output()
        .with_context(|| format!("start {}", program.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect())
}

fn one(program: &Path, name: &str, options: &Options<'_>) -> Result<Value> {
    let output = Command::new(program)
        .args([name, "--json"])
        .args(["--scale", &options.scale.to_string()])
        .args(["--rounds", &options.rounds.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("start {}", program.display()))?;
    if !output.status.success() && output.status.code() != Some(NOT_MET) {
        bail!("it could not be measured; what it printed above says why");
    }
    serde_json::from_slice(&output.stdout).context("read what it printed")
}

/// A measure and those that belong to it, each as an object.
fn measures(outcome: &Value) -> Vec<&Value> {
    let further = outcome["further"].as_array().into_iter().flatten();
    std::iter::once(outcome).chain(further).collect()
}

fn is_met(outcome: &Value) -> bool {
    measures(outcome)
        .iter()
        .all(|measure| measure["met"] == Value::Bool(true))
}

/// What was measured: the first measure keeps its words under another key.
fn measured(measure: &Value) -> &str {
    measure["measured"]
        .as_str()
        .or(measure["what"].as_str())
        .unwrap_or_default()
}

fn text(outcome: &Value) -> String {
    let mut text = String::new();
    // Writing into a String can't fail.
    let _infallible = writeln!(
        text,
        "{}: {}",
        plain(&outcome["name"]),
        plain(&outcome["what"])
    );
    for measure in measures(outcome) {
        let _infallible = writeln!(
            text,
            "  {}: ours {}, peer {} {}; ratio {} ({}){}",
            measured(measure),
            plain(&measure["ours"]),
            plain(&measure["peer"]),
            plain(&measure["unit"]),
            plain(&measure["ratio"]),
            plain(&measure["bound"]),
            if measure["met"] == Value::Bool(true) {
                ""
            } else {
                "  NOT MET"
            }
        );
    }
    if !outcome["ceiling"].is_null() {
        let _infallible = writeln!(
            text,
            "  machine ceiling: {} ({})",
            plain(&outcome["ceiling"]),
            plain(&outcome["ceilingWhat"])
        );
    }
    for note in outcome["notes"].as_array().into_iter().flatten() {
        let _infallible = writeln!(text, "  {}", plain(note));
    }
    text
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn page(outcomes: &[Value], troubles: &[String], options: &Options<'_>, seconds: u64) -> String {
    let mut page = String::from(
        "# Benchmarks\n\n\
         Written by `cargo xtask bench`. Each comparison gives ours and a peer the same input, in turn, in one run, and\n\
         checks what both made of it. Absolute figures are those of this machine; what carries over to others is the ratio.\n\n",
    );
    page.push_str(&machine());
    let _infallible = writeln!(
        page,
        "Sizes times {}, {} rounds (the middle one counts), {} minutes in all.\n",
        options.scale,
        options.rounds,
        seconds.div_ceil(60)
    );
    page.push_str(
        "| comparison | measured | ours | peer | unit | ratio | bound | met |\n|---|---|---:|---:|---|---:|---|---|\n",
    );
    for outcome in outcomes {
        let name = plain(&outcome["name"]);
        for (number, measure) in measures(outcome).iter().enumerate() {
            let _infallible = writeln!(
                page,
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                if number == 0 {
                    format!("[`{name}`](#{name})")
                } else {
                    String::new()
                },
                measured(measure),
                plain(&measure["ours"]),
                plain(&measure["peer"]),
                plain(&measure["unit"]),
                plain(&measure["ratio"]),
                plain(&measure["bound"]),
                match (measure["bound"].as_str(), &measure["met"]) {
                    (Some(bound), _) if bound.starts_with("reported") => "",
                    (_, Value::Bool(true)) => "yes",
                    _ => "**no**",
                }
            );
        }
    }
    if !troubles.is_empty() {
        let _infallible = writeln!(page, "\nNot measured this time: {}.", list(troubles));
    }
    page.push_str(
        "\nThe ratio is the quantity that its bound is about: time, bytes or processor time of ours by that of the peer; a rate\n\
         of ours by that of the peer; for `heal` how many times faster ours is; for `delta-scaling` the costliest disk size by\n\
         the cheapest; for `guest-impact` the guest's rate without by that with replication; for `rto` and `failback` what the\n\
         measure's name says. Both sides find the page cache in\n\
         the same state, and nothing of an earlier measurement waits to be written. `siterecovery-engine bench` tells what the\n\
         machine itself can do.\n",
    );
    for outcome in outcomes {
        page.push_str(&section(outcome));
    }
    page
}

/// What was compared, what the machine could do at best, what a reader must know, and how to repeat it.
fn section(outcome: &Value) -> String {
    let mut text = String::new();
    let _infallible = writeln!(
        text,
        "\n## {}\n\n{}.\n",
        plain(&outcome["name"]),
        capital(&plain(&outcome["what"]))
    );
    if !outcome["ceiling"].is_null() {
        let _infallible = writeln!(
            text,
            "- ceiling of this machine: {} ({})",
            plain(&outcome["ceiling"]),
            plain(&outcome["ceilingWhat"])
        );
    }
    for note in outcome["notes"].as_array().into_iter().flatten() {
        let _infallible = writeln!(text, "- {}", plain(note));
    }
    let _infallible = writeln!(
        text,
        "- again: `cargo xtask bench {}` ({} s)",
        plain(&outcome["name"]),
        plain(&outcome["seconds"])
    );
    text
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().chain(letters).collect())
        .unwrap_or_default()
}

/// The machine and the day.
fn machine() -> String {
    let processor = fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| "unknown processor".to_owned());
    let memory = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
            let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
            Some(kib >> 20)
        })
        .unwrap_or_default();
    let date = Command::new("date")
        .args(["-u", "+%Y-%m-%d"])
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default();
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("Machine: {processor}, {count} cores, {memory} GiB of memory. {date}.\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_page_says_what_is_not_met_and_what_was_not_measured() {
        let outcome = json!({
            "name": "points", "what": "24 points", "measured": "stored bytes",
            "ours": 1.0, "peer": 2.0, "unit": "MiB", "ratio": 0.5, "bound": "at most 1", "met": true,
            "ceiling": 3.5, "ceilingWhat": "plain copy", "notes": ["equal by hash"], "seconds": 12,
            "further": [{ "what": "processor time", "ours": 2.0, "peer": 2.0, "unit": "s", "ratio": 1.0,
                "bound": "at most 0.5", "met": false }],
        });
        assert!(!is_met(&outcome));
        let options = Options {
            name: None,
            json: false,
            scale: 1.0,
            rounds: 3,
        };
        let page = page(
            std::slice::from_ref(&outcome),
            &["heal".to_owned()],
            &options,
            61,
        );
        assert!(page.contains(
            "| [`points`](#points) | stored bytes | 1.0 | 2.0 | MiB | 0.5 | at most 1 | yes |"
        ));
        assert!(page.contains("## points\n\n24 points.\n\n- ceiling of this machine: 3.5 (plain copy)\n- equal by hash\n"));
        assert!(page.contains("`cargo xtask bench points` (12 s)"));
        assert!(page.contains("| at most 0.5 | **no** |"));
        assert!(page.contains("Not measured this time: heal."));
        assert!(text(&outcome).contains("NOT MET"));
    }
}
