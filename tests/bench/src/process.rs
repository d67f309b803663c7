//! Starts programs and says what they cost: wall time, and processor time with all their children.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Usage as Rusage, UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What a piece of work cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Seconds on the clock.
    pub wall: f64,
    /// Seconds of processor time, user and system, of it and its children.
    pub cpu: f64,
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            wall: self.wall + other.wall,
            cpu: self.cpu + other.cpu,
        }
    }
}

/// Runs a program to its end; its output is kept, and shown when it fails.
pub fn execute(command: &mut Command) -> Result<(Output, Cost)> {
    let before = cpu(UsageWho::RUSAGE_CHILDREN)?;
    let begin = Instant::now();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", name(command)))?;
    let wall = begin.elapsed().as_secs_f64();
    let cost = Cost {
        wall,
        cpu: cpu(UsageWho::RUSAGE_CHILDREN)? - before,
    };
    if !output.status.success() {
        bail!(
            "{} failed ({}): {}{}",
            name(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok((output, cost))
}

/// Runs a program and reads the JSON that it prints.
pub fn run_json(command: &mut Command) -> Result<(serde_json::Value, Cost)> {
    let (output, cost) = execute(command)?;
    let value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("read the JSON of {}", name(command)))?;
    Ok((value, cost))
}

fn name(command: &Command) -> String {
    let arguments: Vec<_> = command
        .get_args()
        .map(|argument| argument.to_string_lossy().into_owned())
        // Signatures of storage accounts end up on command lines of peers.
        .map(|argument| match argument.split_once('?') {
            Some((place, _)) => format!("{place}?..."),
            None => argument,
        })
        .collect();
    format!(
        "{} {}",
        command.get_program().to_string_lossy(),
        arguments.join(" ")
    )
}

/// Measures work of this process itself.
pub struct Meter {
    begin: Instant,
    cpu: f64,
}

impl Meter {
    /// From now on.
    pub fn start() -> Result<Self> {
        Ok(Self {
            begin: Instant::now(),
            cpu: cpu(UsageWho::RUSAGE_SELF)?,
        })
    }

    /// Until now.
    pub fn read(&self) -> Result<Cost> {
        Ok(Cost {
            wall: self.begin.elapsed().as_secs_f64(),
            cpu: cpu(UsageWho::RUSAGE_SELF)? - self.cpu,
        })
    }
}

fn cpu(who: UsageWho) -> Result<f64> {
    let usage: Rusage = getrusage(who).context("read the processor time")?;
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// A program in the background; ended with this.
pub struct Background {
    child: Child,
}

impl Background {
    /// Starts it with its output thrown away, or into `log`.
    pub fn start(command: &mut Command, log: Option<&Path>) -> Result<Self> {
        let sink = || -> Result<Stdio> {
            Ok(match log {
                None => Stdio::null(),
                Some(path) => std::fs::File::options()
                    .append(true)
                    .create(true)
                    .open(path)?
                    .into(),
            })
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(sink()?)
            .stderr(sink()?)
            .spawn()
            .with_context(|| format!("start {}", name(command)))?;
        Ok(Self { child })
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The most memory it ever had resident, bytes.
    pub fn peak_resident_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        text.lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|rest| {
                rest.trim()
                    .trim_end_matches("kB")
                    .trim()
                    .parse::<u64>()
                    .ok()
            })
            .map(|kib| kib << 10)
            .context("the system does not tell the peak of resident memory")
    }

    /// Asks it to end and waits.
    pub fn interrupt(mut self) -> Result<()> {
        let id = i32::try_from(self.child.id()).context("process id")?;
        kill(Pid::from_raw(id), Signal::SIGINT).context("interrupt")?;
        self.child.wait().context("wait for the end")?;
        Ok(())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Gone already, when it was asked to end.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Waits for a condition, a few times a second.
pub fn wait_for(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let begin = Instant::now();
    while !condition()? {
        if begin.elapsed() > limit {
            bail!("{what}: not within {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Everything written so far is on the disk, so that nobody pays for somebody else's writes.
pub fn settle() -> Result<()> {
    execute(&mut Command::new("sync")).map(drop)
}
