//! `start`, `stop` and `status` of a detached engine, for hosts without a service manager.
//!
//! ```text
//! start ──spawn──► supervise ──► run --detached ──setsid──► engine.pid, engine.log, engine.sock
//!   └── returns when the socket answers, or the child ended (then with its last words)
//! ```

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::config::Config;
use crate::control;
use crate::durable;
use crate::instance::InstanceLock;

/// How long an engine may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long an engine may take to end its cycle before it is killed, which is safe at any instant.
const STOP_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

/// Starts an engine that outlives this process. One that runs already is fine; it gets a supervisor if its own was killed.
pub async fn start(config_path: &Path, config: &Config) -> anyhow::Result<String> {
    durable::create_folder(&config.data_folder)
        .with_context(|| format!("create data folder {}", config.data_folder.display()))?;
    let is_there = InstanceLock::is_held(&config.data_folder);
    if supervisor(config).is_some() {
        let status = wait_for_answer(config, || Ok(())).await?;
        return Ok(format!(
            "engine runs already (process {})",
            status.about.process_id
        ));
    }
    let program = std::env::current_exe().context("find the engine's own program file")?;
    let config_path = std::fs::canonicalize(config_path)
        .with_context(|| format!("find {}", config_path.display()))?;
    let last_words = config.data_folder.join("engine.start.log");
    let output =
        File::create(&last_words).with_context(|| format!("create {}", last_words.display()))?;
    let mut child = std::process::Command::new(&program)
        .args(["supervise", "--config"])
        .arg(&config_path)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output.try_clone().context("share the output file")?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    let supervisor_id = child.id();
    let status = wait_for_answer(config, || match child.try_wait() {
        Ok(Some(status)) => {
            let text = std::fs::read_to_string(&last_words).unwrap_or_default();
            bail!(
                "the engine ended at once ({status}): {}",
                last_lines(&text, &config.log_file())
            );
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error).context("watch the engine"),
    })
    .await;
    match status {
        Ok(status) => {
            durable::remove_if_there(&last_words).ok();
            let what = if is_there {
                "engine runs already, and is watched again"
            } else {
                "engine started"
            };
            Ok(format!("{what} (process {})", status.about.process_id))
        }
        Err(error) => {
            // Nothing half-started may stay behind.
            if child.try_wait().ok().flatten().is_none() {
                kill(Pid::from_raw(supervisor_id as i32), Signal::SIGTERM).ok();
                child.wait().ok();
            }
            Err(error)
        }
    }
}

/// Stops the engine of this data folder and waits for its end. One that does not run is fine.
pub async fn stop(config: &Config) -> anyhow::Result<String> {
    let supervisor = supervisor(config);
    if let Some(supervisor) = supervisor {
        // First, or it would start again what is stopped below. It passes the signal on to its engine.
        kill(supervisor, Signal::SIGTERM)
            .with_context(|| format!("signal supervisor {supervisor}"))?;
    }
    let held = InstanceLock::is_held(&config.data_folder);
    if !held && supervisor.is_none() {
        for path in [config.pid_file(), config.supervisor_pid_file()] {
            durable::remove_if_there(&path).ok();
        }
        return Ok("engine is not running".to_owned());
    }
    let process = match held.then(|| running_process(config)).transpose() {
        // By the supervisor's hand it may be ending already, and its file goes before its lock.
        Err(_) if supervisor.is_some() => None,
        other => other?,
    };
    if let (Some(process), None) = (process, supervisor) {
        kill(process, Signal::SIGTERM).with_context(|| format!("signal process {process}"))?;
    }
    let mut signal = "stopped";
    let begin = Instant::now();
    while InstanceLock::is_held(&config.data_folder) || self::supervisor(config).is_some() {
        if begin.elapsed() > STOP_LIMIT + Duration::from_secs(5) {
            bail!("the engine does not end, not even after SIGKILL");
        }
        if let (true, "stopped", Some(process)) = (begin.elapsed() > STOP_LIMIT, signal, process) {
            kill(process, Signal::SIGKILL).with_context(|| format!("kill process {process}"))?;
            signal = "killed";
        }
        tokio::time::sleep(POLL).await;
    }
    for path in [
        config.pid_file(),
        config.supervisor_pid_file(),
        config.control_socket(),
    ] {
        durable::remove_if_there(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(match process {
        Some(process) => format!("engine {signal} (process {process})"),
        None => format!("engine {signal}"),
    })
}

/// Makes this process a session of its own: no terminal, no signals meant for the shell that started it.
pub fn detach() -> anyhow::Result<()> {
    nix::unistd::setsid().context("leave the terminal's session")?;
    Ok(())
}

/// The supervisor of this configuration, if one is alive. A pid file alone proves nothing after a kill or a reboot, so the
/// process must also be one, with a configuration of the same data folder.
fn supervisor(config: &Config) -> Option<Pid> {
    let text = std::fs::read_to_string(config.supervisor_pid_file()).ok()?;
    let number: i32 = text.trim().parse().ok().filter(|number| *number > 1)?;
    let line = std::fs::read(format!("/proc/{number}/cmdline")).ok()?;
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let [_, b"supervise", _, theirs, ..] = words.as_slice() else {
        return None;
    };
    let theirs = Config::load(Path::new(std::str::from_utf8(theirs).ok()?)).ok()?;
    let is_one = theirs.data_folder == config.data_folder;
    is_one.then(|| Pid::from_raw(number))
}

/// The process that holds the data folder's lock, by the pid file.
pub(crate) fn running_process(config: &Config) -> anyhow::Result<Pid> {
    let path = config.pid_file();
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let number: i32 = text
        .trim()
        .parse()
        .with_context(|| format!("{} holds no process id", path.display()))?;
    if number <= 1 {
        bail!("{} holds no process id", path.display());
    }
    Ok(Pid::from_raw(number))
}

async fn wait_for_answer(
    config: &Config,
    mut alive: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<control::Status> {
    let begin = Instant::now();
    loop {
        match control::ask(&config.control_socket()).await {
            Ok(status) => return Ok(status),
            Err(error) if begin.elapsed() > START_LIMIT => {
                return Err(error).with_context(|| {
                    format!(
                        "the engine has not come up in {} s; see {}",
                        START_LIMIT.as_secs(),
                        config.log_file().display()
                    )
                });
            }
            Err(_) => {}
        }
        alive()?;
        tokio::time::sleep(POLL).await;
    }
}

fn last_lines(text: &str, log: &Path) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    match lines.len() {
        0 => format!("it said nothing; see {}", log.display()),
        count => lines[count.saturating_sub(8)..].join("; "),
    }
}
