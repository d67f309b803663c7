//! The engine's local window: a socket named after the data folder that answers every connection with one JSON
//! document, the state of this instant. For `status`, for `start` (has it come up?), for a curious operator.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use engine_protocol::v1;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::board::Board;
use crate::platform::{self, LocalListener};

/// An answer longer than this is not ours.
const LONGEST_ANSWER: u64 = 64 << 20;

/// What never changes while an engine runs, plus its link to the orchestrator.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct About {
    /// The engine's id.
    pub engine_id: String,
    /// Its version.
    pub version: String,
    /// Its process.
    pub process_id: u32,
    /// `host:port`, empty before enrolment.
    pub gateway: String,
    /// Whether the session to the orchestrator is up.
    pub connected: bool,
    /// Why it is not, when it is not.
    pub problem: String,
}

/// The document that a connection gets.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Who answers.
    #[serde(flatten)]
    pub about: About,
    /// Newest desired state that was taken in whole.
    pub observed_generation: u64,
    /// Protected items.
    pub replications: Vec<Replication>,
    /// Recovered VMs.
    pub recovered_virtual_machines: Vec<Recovered>,
}

/// A protected item in [`Status`].
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Replication {
    /// The item.
    pub item_id: String,
    /// Its fencing generation.
    pub generation: u64,
    /// Such as `PROTECTED`.
    pub state: String,
    /// Of initial replication or comparison.
    pub progress_done_bytes: u64,
    /// Of initial replication or comparison.
    pub progress_total_bytes: u64,
    /// How many recovery points there are.
    pub recovery_points: usize,
    /// Freeze instant of the newest point; 0 when there is none.
    pub newest_point_unix_ms: i64,
    /// Changed bytes of the last cycle.
    pub last_cycle_changed_bytes: u64,
    /// Bytes sent for the last cycle.
    pub last_cycle_sent_bytes: u64,
    /// Bytes sent since replication was enabled.
    pub total_sent_bytes: u64,
    /// Captured, not yet in the store.
    pub backlog_cycles: u64,
    /// Problems, as `CODE: summary`.
    pub findings: Vec<String>,
}

/// A recovered VM in [`Status`].
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Recovered {
    /// Its id.
    pub id: String,
    /// Such as `BOOTED`.
    pub state: String,
    /// The point in use.
    pub point_id: String,
    /// File with its console.
    pub console_path: String,
    /// Problems, as `CODE: summary`.
    pub findings: Vec<String>,
}

/// Listens on `path` for the life of the process. The caller holds the instance lock, so a socket that is there is a leftover.
pub fn listen(path: &Path) -> anyhow::Result<LocalListener> {
    LocalListener::bind(path)
}

/// Answers connections until the task is dropped.
pub async fn serve(
    mut listener: LocalListener,
    board: Arc<Board>,
    about: tokio::sync::watch::Receiver<About>,
) {
    loop {
        match listener.accept().await {
            Ok(mut stream) => {
                let status = Status::new(about.borrow().clone(), &board);
                if let Ok(bytes) = serde_json::to_vec(&status) {
                    // A client that hangs up or does not read hurts nobody but itself.
                    tokio::time::timeout(Duration::from_secs(5), stream.write_all(&bytes))
                        .await
                        .ok();
                }
            }
            Err(error) => {
                tracing::warn!(%error, "control socket");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Asks a running engine.
pub async fn ask(path: &Path) -> anyhow::Result<Status> {
    let work = async {
        let stream = platform::connect(path).await?;
        let mut bytes = Vec::new();
        stream.take(LONGEST_ANSWER).read_to_end(&mut bytes).await?;
        Ok::<_, std::io::Error>(bytes)
    };
    let bytes = tokio::time::timeout(Duration::from_secs(5), work)
        .await
        .with_context(|| format!("the engine does not answer on {}", path.display()))?
        .with_context(|| format!("connect to {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("answer of {}", path.display()))
}

// === impl Status ===

impl Status {
    fn new(about: About, board: &Board) -> Self {
        let snapshot = board.snapshot();
        Self {
            about,
            observed_generation: snapshot.observed_generation,
            replications: snapshot
                .replications
                .iter()
                .map(Replication::from)
                .collect(),
            recovered_virtual_machines: snapshot.recovered.iter().map(Recovered::from).collect(),
        }
    }
}

impl From<&v1::ReplicationStatus> for Replication {
    fn from(status: &v1::ReplicationStatus) -> Self {
        Self {
            item_id: status.item_id.clone(),
            generation: status.generation,
            state: short(status.state().as_str_name()),
            progress_done_bytes: status.progress_done_bytes,
            progress_total_bytes: status.progress_total_bytes,
            recovery_points: status.recovery_points.len(),
            newest_point_unix_ms: status
                .recovery_points
                .last()
                .map_or(0, |point| point.time_unix_ms),
            last_cycle_changed_bytes: status.last_cycle_changed_bytes,
            last_cycle_sent_bytes: status.last_cycle_sent_bytes,
            total_sent_bytes: status.total_sent_bytes,
            backlog_cycles: status.backlog_cycles,
            findings: texts(&status.findings),
        }
    }
}

impl From<&v1::RecoveredVmStatus> for Recovered {
    fn from(status: &v1::RecoveredVmStatus) -> Self {
        Self {
            id: status.id.clone(),
            state: short(status.state().as_str_name()),
            point_id: status.point_id.clone(),
            console_path: status.console_path.clone(),
            findings: texts(&status.findings),
        }
    }
}

fn short(name: &str) -> String {
    name.strip_prefix("STATE_").unwrap_or(name).to_owned()
}

fn texts(findings: &[v1::Finding]) -> Vec<String> {
    findings
        .iter()
        .map(|finding| format!("{}: {}", finding.code, finding.summary))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_gets_the_state_of_this_instant() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("engine.sock");
        let board = Arc::new(Board::default());
        board.update_replication("item", |status| {
            status.set_state(v1::replication_status::State::Protected);
            status.backlog_cycles = 3;
        });
        let about = About {
            engine_id: "e".to_owned(),
            process_id: 7,
            ..About::default()
        };
        let (_sender, receiver) = tokio::sync::watch::channel(about.clone());
        let server = tokio::spawn(serve(listen(&path).unwrap(), board.clone(), receiver));
        let status = ask(&path).await.unwrap();
        assert_eq!(status.about, about);
        assert_eq!(
            (
                status.replications[0].state.as_str(),
                status.replications[0].backlog_cycles
            ),
            ("PROTECTED", 3)
        );
        server.abort();
        assert!(server.await.unwrap_err().is_cancelled());
        assert!(ask(&path).await.is_err());
    }
}
