//! A node that waits for a person: the job is suspended, and goes on when somebody says so. Stored, so it survives restarts.

use arm_model::job::JobState;

use super::state::JobRecord;

/// A person goes on with a job that waits. `false` = it doesn't wait.
pub fn resume(job: &mut JobRecord, comments: Option<&str>) -> bool {
    let waits = job.properties.state == JobState::Suspended && !job.cancel;
    if waits {
        job.remember(&resumed(job.node), comments.unwrap_or_default());
        job.properties.state = JobState::InProgress;
        "InProgress".clone_into(&mut job.properties.state_description);
        job.properties.allowed_actions = vec!["Cancel".to_owned()];
    }
    waits
}

fn resumed(node: usize) -> String {
    format!("resumed {node}")
}

/// What was said when somebody went on with the present node.
pub(super) fn comments(job: &JobRecord) -> Option<&str> {
    job.recall_text(&resumed(job.node))
}

/// Suspends the job at the present node.
pub(super) fn suspend(job: &mut JobRecord, description: &str) {
    job.properties.state = JobState::Suspended;
    description.clone_into(&mut job.properties.state_description);
    job.properties.allowed_actions = vec!["Cancel".to_owned(), "Resume".to_owned()];
}
