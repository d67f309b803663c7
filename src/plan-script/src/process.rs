//! One process: started behind a gate, followed to its end or its limit, killed with its group.

use std::collections::VecDeque;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use crate::note::Outcome;
use crate::{CONTEXT_VARIABLE, MOST_OUTPUT};

/// The shell reads one line before it becomes the script. Without the line (we died) it ends and nothing was run.
const GATE: &str = "read -r _ && exec \"$0\"";
/// After the script's end, what it left in the pipes is read for so long; a daemon that it started may hold them for ever.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// A killed process is waited for at most so long: one that hangs in the kernel must not hold its order for ever.
const LONGEST_DEATH: Duration = Duration::from_secs(10);

type Tail = Arc<Mutex<VecDeque<u8>>>;

/// A process that waits at its gate.
pub(crate) struct Gated {
    child: Child,
    /// It leads the group of this number.
    pub(crate) group: i32,
}

/// Starts the shell; the script does not run yet.
pub(crate) fn start(script: &Path, context: &Path) -> io::Result<Gated> {
    let folder = script.parent().unwrap_or_else(|| Path::new("/"));
    let child = Command::new("/bin/sh")
        .arg("-c")
        .arg(GATE)
        .arg(script)
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env(CONTEXT_VARIABLE, context)
        .current_dir(folder)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let group = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .ok_or_else(|| io::Error::other("the process ended at once"))?;
    Ok(Gated { child, group })
}

impl Gated {
    /// Opens the gate and follows the script.
    pub(crate) async fn run(
        mut self,
        context: &str,
        limit: Duration,
        withdrawn: oneshot::Receiver<()>,
    ) -> (Outcome, String) {
        let tail: Tail = Arc::default();
        let readers = [
            self.child
                .stdout
                .take()
                .map(|out| tokio::spawn(collect(out, tail.clone()))),
            self.child
                .stderr
                .take()
                .map(|out| tokio::spawn(collect(out, tail.clone()))),
        ];
        if let Some(mut input) = self.child.stdin.take() {
            let text = format!("go\n{context}\n");
            // A script that does not read its input is no failure.
            tokio::spawn(async move {
                input.write_all(text.as_bytes()).await.ok();
            });
        }
        let outcome = tokio::select! {
            ended = self.child.wait() => match ended {
                Ok(status) => match (status.code(), status.signal()) {
                    (Some(code), _) => Outcome::Exited(code),
                    (None, signal) => Outcome::Signalled(signal.unwrap_or_default()),
                },
                Err(_) => Outcome::Unknown,
            },
            () = tokio::time::sleep(limit) => self.kill(Outcome::TimedOut).await,
            Ok(()) = withdrawn => self.kill(Outcome::Withdrawn).await,
        };
        let reading = async {
            for reader in readers.into_iter().flatten() {
                reader.await.ok();
            }
        };
        tokio::time::timeout(LAST_WORDS, reading).await.ok();
        let bytes: Vec<u8> = lock(&tail).iter().copied().collect();
        (outcome, String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn kill(&mut self, outcome: Outcome) -> Outcome {
        killpg(Pid::from_raw(self.group), Signal::SIGKILL).ok();
        self.child.start_kill().ok();
        tokio::time::timeout(LONGEST_DEATH, self.child.wait())
            .await
            .ok();
        outcome
    }
}

async fn collect(mut from: impl AsyncRead + Unpin, tail: Tail) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let mut tail = lock(&tail);
        tail.extend(buffer.iter().take(count));
        let over = tail.len().saturating_sub(MOST_OUTPUT);
        tail.drain(..over);
    }
}

fn lock(tail: &Mutex<VecDeque<u8>>) -> std::sync::MutexGuard<'_, VecDeque<u8>> {
    tail.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills a group of an earlier run, if its leader is still the process it was.
pub(crate) fn kill_left_behind(group: i32, born: u64) {
    if group > 1 && birth(group) == Some(born) {
        killpg(Pid::from_raw(group), Signal::SIGKILL).ok();
    }
}

/// When a process was born, in ticks since the machine started.
pub(crate) fn birth(process: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may hold anything; what follows the last one is in columns, the 20th of which it is.
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}
