//! Holding guests still for an instant, and letting them go on whatever happens.
//!
//! ```text
//!   mark "quiesced" ─► agent: fsfreeze ─► mark "paused" ─► stop ─► (the instant) ─► cont ─► unmark ─► thaw ─► unmark
//! ```
//!
//! Promise: no guest stays held. A mark in the VM's `run` folder is made before the act and goes when its reversal is
//! certain, so whoever comes after a process that died knows what to undo ([`wake`]). It needs no flush to the
//! medium: what loses the mark (the host's end) ends the held QEMU as well. A call that is dropped in the middle wakes
//! the guest from a task of its own. A guest is held for [`HOLD_LIMIT`] at most.
//!
//! A guest whose agent hangs in its freeze can't be thawed by anybody until the agent answers. A task insists meanwhile;
//! crash-consistent points need no agent and go on.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, info, warn};

use super::agent::{Agent, AgentError};
use super::{FoundVm, connect, from_qmp};
use crate::qmp::Qmp;
use crate::{ErrorKind, HypervisorError, QuiesceReason, Quiescence};

/// No guest is held longer. Applications notice some seconds; a cluster's heartbeat may give up after ten.
pub(super) const HOLD_LIMIT: Duration = Duration::from_secs(10);
/// An agent answers at once or is not there.
const CALL_PATIENCE: Duration = Duration::from_secs(3);
/// For bringing file systems to rest; what is left of the limit is for the instant itself.
const QUIESCE_PATIENCE: Duration = Duration::from_secs(7);
const THAW_PATIENCE: Duration = Duration::from_secs(10);
/// For waking a guest that somebody else left at rest: its agent may be busy with the freeze still.
const WAKE_PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries of a task that insists on a thaw: an agent that is not there is found missing at once.
const INSIST_EVERY: Duration = Duration::from_secs(2);
/// Guests whose thaw a task of this process insists on, by their marks.
static INSISTED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Paused,
    Quiesced,
}

impl Mark {
    fn path(self, found: &FoundVm) -> PathBuf {
        match self {
            Mark::Paused => found.folder.paused_mark(),
            Mark::Quiesced => found.folder.quiesced_mark(),
        }
    }

    fn set(self, found: &FoundVm) -> Result<(), HypervisorError> {
        std::fs::write(self.path(found), b"").map_err(|error| {
            let step = format!("mark vm {} as held", found.config.name);
            HypervisorError::with_source(ErrorKind::Io, step, error)
        })
    }

    fn is_set(self, found: &FoundVm) -> bool {
        self.path(found).exists()
    }

    fn clear(self, found: &FoundVm) {
        match std::fs::remove_file(self.path(found)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // Waking a guest that is awake does nothing, so a mark that stays costs a look.
                warn!(vm = %found.config.name, %error, "a mark could not be removed");
            }
            _ => {}
        }
    }
}

/// Whether a freeze left the guest held.
pub(super) fn is_marked(found: &FoundVm) -> bool {
    is_paused(found) || Mark::Quiesced.is_set(found)
}

/// Whether a freeze left the processors standing.
pub(super) fn is_paused(found: &FoundVm) -> bool {
    Mark::Paused.is_set(found)
}

/// Wakes the guest if the call that holds it is dropped.
struct Guard {
    found: Option<FoundVm>,
}

impl Guard {
    fn new(found: &FoundVm) -> Self {
        Self {
            found: Some(found.clone()),
        }
    }

    fn disarm(mut self) {
        self.found = None;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(found) = self.found.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move {
                if let Err(error) = resume(&found).await {
                    warn!(vm = %found.config.name, ?error, "a guest may still be held");
                }
                insist(&found);
            });
        }
    }
}

/// A guest whose file systems are at rest.
pub(super) struct Quiet {
    agent: Agent,
    file_systems: u32,
    guard: Guard,
}

/// What became of asking a guest to rest.
pub(super) enum Asked {
    Resting(Box<Quiet>),
    Not(Quiescence),
}

/// Asks the guest's agent to bring applications and file systems to rest.
pub(super) async fn quiesce(found: &FoundVm) -> Result<Asked, HypervisorError> {
    let not = |reason, error: &dyn std::fmt::Display| {
        Asked::Not(Quiescence::NotConfirmed {
            reason,
            text: error.to_string(),
        })
    };
    if Mark::Quiesced.is_set(found) {
        let text = "the guest agent has not yet confirmed the thaw after an earlier freeze";
        return Ok(not(QuiesceReason::Timeout, &text));
    }
    let mut agent = match Agent::call(&found.folder.agent_socket(), CALL_PATIENCE).await {
        Ok(agent) => agent,
        Err(error) => return Ok(not(QuiesceReason::NoAgent, &error)),
    };
    Mark::Quiesced.set(found)?;
    let guard = Guard::new(found);
    let answer = agent
        .execute("guest-fsfreeze-freeze", QUIESCE_PATIENCE)
        .await;
    let frozen = answer.map(|value| value.as_u64().and_then(|count| u32::try_from(count).ok()));
    let (reason, text) = match frozen {
        Ok(Some(file_systems)) if file_systems > 0 => {
            return Ok(Asked::Resting(Box::new(Quiet {
                agent,
                file_systems,
                guard,
            })));
        }
        Ok(Some(_)) => (
            QuiesceReason::NothingToFreeze,
            "the guest has no file system that its agent can freeze".to_owned(),
        ),
        Ok(None) => (
            QuiesceReason::Refused,
            "the guest agent's answer to guest-fsfreeze-freeze is no number".to_owned(),
        ),
        Err(error @ AgentError::Refused { .. }) => (QuiesceReason::Refused, error.to_string()),
        Err(error) => {
            // Still at it: dropping the guard lets a task insist on a thaw.
            return Ok(not(QuiesceReason::Timeout, &error));
        }
    };
    // Also after a refusal: one of several file systems may be frozen.
    if thaw(found, &mut agent).await.is_some() {
        guard.disarm();
    }
    Ok(not(reason, &text))
}

impl Quiet {
    /// Thaws, and says whether the guest was at rest until now.
    pub(super) async fn thaw(self, found: &FoundVm) -> Quiescence {
        let Self {
            mut agent,
            file_systems,
            guard,
        } = self;
        match thaw(found, &mut agent).await {
            Some(thawed) => {
                guard.disarm();
                if thawed >= file_systems {
                    return Quiescence::Confirmed { file_systems };
                }
                Quiescence::NotConfirmed {
                    reason: QuiesceReason::Timeout,
                    text: format!(
                        "only {thawed} of {file_systems} file systems were still frozen after the point"
                    ),
                }
            }
            None => Quiescence::NotConfirmed {
                reason: QuiesceReason::Timeout,
                text: "the guest agent did not confirm the thaw".to_owned(),
            },
        }
    }
}

/// Thaws; gives how many file systems were still frozen, `None` when that is not known.
async fn thaw(found: &FoundVm, agent: &mut Agent) -> Option<u32> {
    match agent.execute("guest-fsfreeze-thaw", THAW_PATIENCE).await {
        Ok(value) => {
            Mark::Quiesced.clear(found);
            value.as_u64().and_then(|count| u32::try_from(count).ok())
        }
        Err(error) => {
            debug!(vm = %found.config.name, %error, "thaw");
            None
        }
    }
}

/// A VM whose processors stand still.
pub(super) struct Paused {
    since: Instant,
    /// `None` when it had been paused by somebody else, who will let it go on.
    guard: Option<Guard>,
}

/// Stops the VM's processors; what they have written is then in the images.
pub(super) async fn pause(
    found: &FoundVm,
    qmp: &mut Qmp,
    deadline: Instant,
) -> Result<Paused, HypervisorError> {
    let step = || format!("pause vm {}", found.config.name);
    let since = Instant::now();
    let status = qmp
        .execute("query-status", Value::Null)
        .await
        .map_err(|error| from_qmp(step(), error))?;
    if status["running"].as_bool() != Some(true) {
        return Ok(Paused { since, guard: None });
    }
    Mark::Paused.set(found)?;
    let guard = Guard::new(found);
    let stopped = timeout_at(deadline, qmp.execute("stop", Value::Null))
        .await
        .map_err(|_| HypervisorError::new(ErrorKind::Timeout, step()))?;
    stopped.map_err(|error| from_qmp(step(), error))?;
    Ok(Paused {
        since,
        guard: Some(guard),
    })
}

impl Paused {
    /// Lets the VM go on; gives how long it stood still. An error leaves it to a task that insists.
    pub(super) async fn resume(
        self,
        found: &FoundVm,
        qmp: &mut Qmp,
    ) -> Result<Duration, HypervisorError> {
        let Some(guard) = self.guard else {
            return Ok(Duration::ZERO);
        };
        let step = || format!("let vm {} go on", found.config.name);
        qmp.execute("cont", Value::Null)
            .await
            .map_err(|error| from_qmp(step(), error))?;
        Mark::Paused.clear(found);
        guard.disarm();
        Ok(self.since.elapsed())
    }
}

/// Lets a guest go on that a freeze left held, by its marks. A VM that is off holds nobody. After an error of the agent
/// a task goes on trying.
pub(super) async fn wake(found: &FoundVm) -> Result<(), HypervisorError> {
    resume(found).await?;
    let thawed = thaw_marked(found, WAKE_PATIENCE).await;
    if thawed.is_err() {
        insist(found);
    }
    thawed
}

/// As [`wake`], for a caller whom an agent that does not answer must not stop: its processors go on or it is an error;
/// the thaw is tried for a moment, then left to a task.
pub(super) async fn wake_soon(found: &FoundVm) -> Result<(), HypervisorError> {
    resume(found).await?;
    thaw_soon(found).await;
    Ok(())
}

/// As [`wake_soon`], for who holds the one connection to the VM.
pub(super) async fn wake_by(found: &FoundVm, qmp: &mut Qmp) -> Result<(), HypervisorError> {
    if Mark::Paused.is_set(found) {
        resume_marked(found, qmp).await?;
    }
    thaw_soon(found).await;
    Ok(())
}

async fn resume(found: &FoundVm) -> Result<(), HypervisorError> {
    if Mark::Paused.is_set(found) {
        let mut qmp = connect(found).await?;
        resume_marked(found, &mut qmp).await?;
    }
    Ok(())
}

async fn thaw_soon(found: &FoundVm) {
    if !is_insisted(found)
        && let Err(error) = thaw_marked(found, CALL_PATIENCE).await
    {
        warn!(vm = %found.config.name, ?error, "a guest's file systems may still be frozen; a task goes on trying to thaw them");
        insist(found);
    }
}

fn is_insisted(found: &FoundVm) -> bool {
    let insisted = INSISTED.lock().unwrap_or_else(PoisonError::into_inner);
    insisted.contains(&Mark::Quiesced.path(found))
}

/// Tries to thaw, in a task of its own, until the guest's mark is gone. One such task is enough for a guest.
fn insist(found: &FoundVm) {
    /// Out of the list however the task ends.
    struct Entry(PathBuf);
    impl Drop for Entry {
        fn drop(&mut self) {
            let mut insisted = INSISTED.lock().unwrap_or_else(PoisonError::into_inner);
            insisted.remove(&self.0);
        }
    }

    let path = Mark::Quiesced.path(found);
    let is_new = INSISTED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(path.clone());
    if !is_new {
        return;
    }
    let (entry, found) = (Entry(path), found.clone());
    tokio::spawn(async move {
        let _entry = entry;
        while let Err(error) = thaw_marked(&found, WAKE_PATIENCE).await {
            debug!(vm = %found.config.name, ?error, "not thawed yet");
            sleep(INSIST_EVERY).await;
        }
    });
}

async fn resume_marked(found: &FoundVm, qmp: &mut Qmp) -> Result<(), HypervisorError> {
    let failed = |error| from_qmp(format!("let vm {} go on", found.config.name), error);
    let status = qmp
        .execute("query-status", Value::Null)
        .await
        .map_err(failed)?;
    if status["status"].as_str() == Some("paused") {
        qmp.execute("cont", Value::Null).await.map_err(failed)?;
        info!(vm = %found.config.name, "goes on after a freeze that was cut off");
    }
    Mark::Paused.clear(found);
    Ok(())
}

async fn thaw_marked(found: &FoundVm, patience: Duration) -> Result<(), HypervisorError> {
    if !Mark::Quiesced.is_set(found) {
        return Ok(());
    }
    if found.folder.running_pid().is_none() {
        Mark::Quiesced.clear(found);
        return Ok(());
    }
    let failed = |error| {
        let step = format!("thaw the file systems of vm {}", found.config.name);
        HypervisorError::with_source(ErrorKind::Timeout, step, error)
    };
    let mut agent = Agent::call(&found.folder.agent_socket(), patience)
        .await
        .map_err(failed)?;
    let thawed = agent
        .execute("guest-fsfreeze-thaw", THAW_PATIENCE)
        .await
        .map_err(failed)?;
    info!(vm = %found.config.name, file_systems = %thawed, "thawed after a freeze that was cut off");
    Mark::Quiesced.clear(found);
    Ok(())
}
