//! Processes: run to the end, find by command line, kill, wait for a condition.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How often one that passes quickly.
const LOOK_CLOSELY: Duration = Duration::from_millis(5);

/// Runs to the end; an exit code other than 0 is an error that holds what was printed.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// Looks at `condition` until it gives something; fails after `limit`, saying `what` was waited for.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    look_every(LOOK, what, limit, condition)
}

/// As [`wait_for`], for what is over in a moment: a file that is there for the length of a cycle.
pub fn catch<T>(
    what: &str,
    limit: Duration,
    condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    look_every(LOOK_CLOSELY, what, limit, condition)
}

fn look_every<T>(
    pause: Duration,
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = condition()? {
            return Ok(found);
        }
        if start.elapsed() > limit {
            bail!("{what}: not within {} s", limit.as_secs());
        }
        std::thread::park_timeout(pause);
    }
}

/// Processes whose command line holds `text`, with that command line.
pub fn matching(text: &str) -> Vec<(i32, String)> {
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| u32::try_from(*pid) != Ok(own))
        .filter_map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(text).then_some((pid, line))
        })
        .collect()
}

/// `kill -9`.
pub fn kill_9(pid: i32) -> Result<()> {
    run(Command::new("kill").args(["-9", &pid.to_string()])).map(drop)
}

/// The number in a pid file.
pub fn pid_in(file: &Path) -> Result<i32> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    text.trim()
        .parse()
        .with_context(|| format!("{} holds no process id", file.display()))
}

/// True while the process runs (a zombie does not).
pub fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().next().map(str::to_owned));
        state.is_some_and(|state| state != "Z" && state != "X")
    })
}

/// Resident memory in KiB.
pub fn resident_kib(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid}"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    line.trim()
        .trim_end_matches(" kB")
        .trim()
        .parse()
        .context("VmRSS is no number")
}
