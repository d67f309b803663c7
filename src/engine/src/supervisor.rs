//! The service shell of hosts without a service manager: one small process that starts the engine again when it dies.
//!
//! ```text
//! start ──spawn──► supervise ──setsid──► supervisor.pid
//!                     └── run --detached, again and again ──► ends by itself: done · is killed or fails: once more
//! ```
//!
//! Promise: an engine that was killed runs again within a second; one that can't run at all is tried ever more seldom, up to
//! every 30 seconds; one that fails at its very first start is not tried again, so that `start` can say why.
//! When the supervisor itself is killed, the engine goes on; the next `start` brings a supervisor that watches it by the
//! lock of its data folder, and the next `stop` ends it.

use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

use crate::config::Config;
use crate::control;
use crate::daemon::running_process;
use crate::durable::{self, Access};
use crate::instance::InstanceLock;

/// Pause before the first restart; it doubles while the engine keeps dying early.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// An engine that lived as long as this was well; the pauses begin anew.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// Runs the engine until it ends by itself or this process is asked to stop.
pub async fn supervise(config_path: &Path, config: &Config) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("find the engine's own program file")?;
    durable::create_folder(&config.data_folder)
        .with_context(|| format!("create data folder {}", config.data_folder.display()))?;
    let pid_file = config.supervisor_pid_file();
    durable::replace(
        &pid_file,
        format!("{}\n", std::process::id()).as_bytes(),
        Access::Plain,
    )
    .with_context(|| format!("write {}", pid_file.display()))?;
    let outcome = keep_running(&program, config_path, config).await;
    durable::remove_if_there(&pid_file)
        .with_context(|| format!("remove {}", pid_file.display()))?;
    outcome
}

async fn keep_running(program: &Path, config_path: &Path, config: &Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut pause = FIRST_PAUSE;
    let mut has_been_up = InstanceLock::is_held(&config.data_folder);
    loop {
        if adopt(config, &mut terminate).await? {
            return Ok(());
        }
        let start = Instant::now();
        let mut child = tokio::process::Command::new(program)
            .args(["run", "--detached", "--config"])
            .arg(config_path)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let status = tokio::select! {
            status = child.wait() => status.context("wait for the engine")?,
            () = answers(config), if !has_been_up => {
                has_been_up = true;
                tokio::select! {
                    status = child.wait() => status.context("wait for the engine")?,
                    _ = terminate.recv() => return end(&mut child).await,
                }
            }
            _ = terminate.recv() => return end(&mut child).await,
        };
        if status.success() {
            return Ok(());
        }
        if !has_been_up {
            anyhow::bail!("the engine did not come up ({status})");
        }
        if start.elapsed() > WELL_AFTER {
            pause = FIRST_PAUSE;
        }
        tell(config, status, pause);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = terminate.recv() => return Ok(()),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Watches an engine that somebody else started, until it has ended; passes the wish to stop on, and says whether there was
/// one.
async fn adopt(config: &Config, terminate: &mut Signals) -> anyhow::Result<bool> {
    while InstanceLock::is_held(&config.data_folder) {
        tokio::select! {
            () = tokio::time::sleep(FIRST_PAUSE) => {}
            _ = terminate.recv() => {
                let engine = running_process(config)?;
                kill(engine, Signal::SIGTERM).context("signal the engine")?;
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Ends when the engine answers on its control socket.
async fn answers(config: &Config) {
    while control::ask(&config.control_socket()).await.is_err() {
        tokio::time::sleep(FIRST_PAUSE).await;
    }
}

/// Passes the wish to stop on. Who asked for it also kills an engine that does not listen.
async fn end(child: &mut tokio::process::Child) -> anyhow::Result<()> {
    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
        kill(Pid::from_raw(id), Signal::SIGTERM).context("signal the engine")?;
    }
    child.wait().await.context("wait for the engine")?;
    Ok(())
}

/// Leaves a line in the engine's own log, where one looks first.
fn tell(config: &Config, status: ExitStatus, pause: Duration) {
    use std::io::Write as _;
    let line = format!(
        "{} ERROR supervisor: engine ended, starting it again status=\"{status}\" pause_ms={}\n",
        time::OffsetDateTime::now_utc()
            .format(&time::format_description::well_known::Rfc3339)
            .unwrap_or_default(),
        pause.as_millis()
    );
    let log = std::fs::File::options()
        .append(true)
        .create(true)
        .open(config.log_file());
    // Without a log the engine is started all the same.
    if let Ok(mut log) = log {
        log.write_all(line.as_bytes()).ok();
    }
}
