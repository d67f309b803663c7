//! A job as it is stored: what the API shows and where the saga stands.

use std::collections::BTreeMap;

use arm_model::ArmError;
use arm_model::job::{JobProperties, JobState, Task};
use arm_model::timestamp::NEVER_STARTED;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Memo of the node at which a job turned round.
const TURNED: &str = "turned at";

/// Direction of a saga.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Nodes are done one after another.
    Forward,
    /// A node failed or the job was cancelled: done nodes are undone, last first.
    Unwinding,
    /// Nothing more will happen.
    Ended,
}

/// A stored job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobRecord {
    /// ARM id.
    pub id: String,
    /// ARM id of the resource that the operation is about.
    pub resource: String,
    /// Whether the resource is gone after success.
    pub removes: bool,
    /// What the API shows.
    pub properties: JobProperties,
    /// Workflow.
    pub workflow: String,
    /// Parameters of the workflow.
    pub input: Value,
    /// What nodes hand to later nodes.
    pub memo: BTreeMap<String, Value>,
    /// Next node going forward; number of nodes still to undo when unwinding.
    pub node: usize,
    /// Direction.
    pub phase: Phase,
    /// Why it unwinds.
    pub failure: Option<ArmError>,
    /// Somebody asked to cancel.
    pub cancel: bool,
    /// Keys of resources that the job has to itself.
    pub locks: Vec<String>,
    /// When the present node began.
    pub node_since_unix_ms: i64,
    /// When the job was made.
    pub created_unix_ms: i64,
}

// === impl JobRecord ===

impl JobRecord {
    /// Marks a task.
    pub fn mark(&mut self, node: usize, state: JobState, description: &str, at: &str) {
        let Some(task) = self.properties.tasks.get_mut(node) else {
            return;
        };
        if task.start_time == NEVER_STARTED {
            at.clone_into(&mut task.start_time);
        }
        task.state = state;
        description.clone_into(&mut task.state_description);
        if state.is_final() {
            at.clone_into(&mut task.end_time);
            for child in children(task) {
                if !child.state.is_final() {
                    child.state = state;
                    description.clone_into(&mut child.state_description);
                    at.clone_into(&mut child.end_time);
                }
            }
        }
    }

    /// Reads a memo.
    #[must_use]
    pub fn recall(&self, name: &str) -> Option<&Value> {
        self.memo.get(name)
    }

    /// Reads a memo that is text.
    #[must_use]
    pub fn recall_text(&self, name: &str) -> Option<&str> {
        self.memo.get(name).and_then(Value::as_str)
    }

    /// The node at which the job turned round, while it unwinds.
    #[must_use]
    pub fn turned_at(&self) -> Option<usize> {
        let node = self.recall(TURNED)?.as_u64()?;
        usize::try_from(node).ok()
    }

    /// From here on everything is undone, the present node first: it may be half done.
    pub fn turn(&mut self, now_ms: i64) {
        self.remember(TURNED, self.node as u64);
        self.phase = Phase::Unwinding;
        self.node = (self.node + 1).min(self.properties.tasks.len());
        self.node_since_unix_ms = now_ms;
        self.properties.allowed_actions.clear();
    }

    /// Writes a memo.
    pub fn remember(&mut self, name: &str, value: impl Into<Value>) {
        self.memo.insert(name.to_owned(), value.into());
    }
}

/// Child tasks of a group's task.
pub fn children(task: &mut Task) -> &mut [Task] {
    task.group_task_custom_details
        .as_mut()
        .map_or(&mut [], |group| group.child_tasks.as_mut_slice())
}

/// A task that has not begun.
#[must_use]
pub fn fresh_task(task_id: &str, friendly_name: &str) -> Task {
    Task {
        task_id: task_id.to_owned(),
        name: task_id.to_owned(),
        friendly_name: friendly_name.to_owned(),
        state: JobState::NotStarted,
        state_description: "NotStarted".to_owned(),
        start_time: NEVER_STARTED.to_owned(),
        end_time: NEVER_STARTED.to_owned(),
        ..Task::default()
    }
}
