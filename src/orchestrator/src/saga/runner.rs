//! Runs stored jobs: one task per job, one step at a time, each step stored.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arm_model::ArmError;
use arm_model::job::{JobError, JobState};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::state::{JobRecord, Phase};
use super::{Outcome, Run, workflow};
use crate::app::App;
use crate::fault::Fault;
use crate::store::records::{self, Lock, Stored};
use crate::store::{Change, Expect, StoreError};

/// A waiting node is asked again after so long, even when no bell rings.
const RECHECK: Duration = Duration::from_secs(1);
/// Pause after a failure of the store.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// Pause after a step that met somebody else's change; doubled each time in a row, up to [`RECHECK`].
const CONFLICT_RETRY: Duration = Duration::from_millis(1);
/// Jobs that are stored but that nobody drives are looked for so often: a request may have died between the two.
const RESCAN: Duration = Duration::from_secs(60);

/// Result of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something was done and stored.
    Advanced,
    /// The node waits.
    Waiting,
    /// The job has ended.
    Ended,
}

/// Takes up unfinished jobs, then runs new ones until `stop`. Unfinished jobs stay for the next start.
///
/// # Errors
/// When the store can't be read at the start.
pub async fn run(
    app: Arc<App>,
    new_jobs: mpsc::UnboundedReceiver<String>,
    stop: CancellationToken,
) -> Result<(), StoreError> {
    run_with(app, new_jobs, stop, RESCAN).await
}

pub(super) async fn run_with(
    app: Arc<App>,
    mut new_jobs: mpsc::UnboundedReceiver<String>,
    stop: CancellationToken,
    rescan: Duration,
) -> Result<(), StoreError> {
    let drivers = Drivers {
        app: Arc::clone(&app),
        stop: stop.clone(),
        tracker: TaskTracker::new(),
        driven: Arc::default(),
    };
    for job in unfinished(&app).await? {
        info!(job = %job.record.id, "job goes on after a restart");
        // Nobody could report while we were away: that time doesn't count as waiting.
        let now = app.now_ms();
        records::update::<JobRecord>(app.store.as_ref(), &job.key, |job| {
            Some(JobRecord {
                node_since_unix_ms: now,
                ..job.clone()
            })
        })
        .await?;
        drivers.drive(job.key);
    }
    let mut rescan = tokio::time::interval_at(tokio::time::Instant::now() + rescan, rescan);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            key = new_jobs.recv() => match key {
                Some(key) => drivers.drive(key),
                None => break,
            },
            _ = rescan.tick() => match unfinished(&app).await {
                Ok(jobs) => jobs.into_iter().for_each(|job| drivers.drive(job.key)),
                Err(error) => warn!(error = &error as &dyn std::error::Error, "jobs can't be looked through; it is repeated"),
            },
        }
    }
    drivers.tracker.close();
    drivers.tracker.wait().await;
    Ok(())
}

/// Jobs that have not ended and that this release can drive.
async fn unfinished(app: &App) -> Result<Vec<Stored<JobRecord>>, StoreError> {
    let mut jobs = records::list::<JobRecord>(app.store.as_ref(), "").await?;
    jobs.retain(|job| job.record.phase != Phase::Ended && workflow(&job.record.workflow).is_some());
    Ok(jobs)
}

/// Who drives which job.
struct Drivers {
    app: Arc<App>,
    stop: CancellationToken,
    tracker: TaskTracker,
    driven: Arc<Mutex<BTreeSet<String>>>,
}

impl Drivers {
    /// Drives a job, unless somebody does already.
    fn drive(&self, key: String) {
        if !lock(&self.driven).insert(key.clone()) {
            return;
        }
        let (app, stop) = (Arc::clone(&self.app), self.stop.clone());
        let driven = Arc::clone(&self.driven);
        self.tracker.spawn(async move {
            drive(app, key.clone(), stop).await;
            lock(&driven).remove(&key);
        });
    }
}

fn lock(driven: &Mutex<BTreeSet<String>>) -> MutexGuard<'_, BTreeSet<String>> {
    driven.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn drive(app: Arc<App>, key: String, stop: CancellationToken) {
    let mut bell = app.listen();
    let mut conflicts = 0;
    while !stop.is_cancelled() {
        bell.mark_unchanged();
        let pause = match step(&app, &key).await {
            Ok(Step::Advanced) => {
                conflicts = 0;
                continue;
            }
            Ok(Step::Ended) => return,
            Ok(Step::Waiting) => {
                conflicts = 0;
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = bell.changed() => {}
                    () = tokio::time::sleep(RECHECK) => {}
                }
                continue;
            }
            // Somebody (a cancel, a report) changed what the node read: look again.
            Err(error) if error.is_conflict() => {
                conflicts += 1;
                conflict_pause(conflicts)
            }
            Err(error) => {
                error!(job = %key, error = &error as &dyn std::error::Error, "job can't be stored; trying again");
                STORE_RETRY
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// How long to wait after so many conflicts in a row: a step that conflicts for ever must not take a processor.
fn conflict_pause(conflicts: u32) -> Duration {
    let doublings = conflicts.saturating_sub(1).min(16);
    (CONFLICT_RETRY * (1 << doublings)).min(RECHECK)
}

/// What tests do to a job; the real runner does nothing of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trial {
    /// After this node has done its work, it counts as failed.
    pub fail_after: Option<usize>,
    /// Each node, and each undo, is run twice.
    pub repeat: bool,
}

/// One step of a job.
///
/// # Errors
/// Failures of the store; the step may be repeated.
pub async fn step(app: &App, key: &str) -> Result<Step, StoreError> {
    step_with(app, key, Trial::default()).await
}

/// One step of a job on trial.
///
/// # Errors
/// Failures of the store; the step may be repeated.
pub async fn step_with(app: &App, key: &str, trial: Trial) -> Result<Step, StoreError> {
    let Some(stored) = records::get::<JobRecord>(app.store.as_ref(), key).await? else {
        return Ok(Step::Ended);
    };
    let Some(workflow) = workflow(&stored.record.workflow) else {
        warn!(job = %key, workflow = %stored.record.workflow, "a newer release made this job; leaving it alone");
        return Ok(Step::Ended);
    };
    let mut job = stored.record.clone();
    match job.phase {
        Phase::Ended => return Ok(Step::Ended),
        Phase::Forward if job.cancel => {
            let error = workflow.cancelled(&Run { app, job: &mut job });
            if let Some(error) = &error {
                note(app, &mut job, error);
            }
            job.failure =
                Some(error.unwrap_or_else(|| {
                    ArmError::new("OperationCancelled", "The job was cancelled.")
                }));
            unwind(app, &mut job, JobState::Cancelled);
        }
        Phase::Forward => {
            let node = job.node;
            job.mark(node, JobState::InProgress, "InProgress", &app.now_text());
            let mut result = workflow.act(&mut Run { app, job: &mut job }, node).await;
            if trial.repeat && matches!(result, Ok(Outcome::Done)) {
                result = workflow.act(&mut Run { app, job: &mut job }, node).await;
            }
            if trial.fail_after == Some(node) && matches!(result, Ok(Outcome::Done)) {
                let error = ArmError::new("InjectedFailure", "The node counts as failed.");
                result = Err(Fault::refuse(500, error));
            }
            match result {
                Ok(Outcome::Wait) => {
                    let changed = job.properties != stored.record.properties
                        || job.memo != stored.record.memo;
                    if changed {
                        save(app, &stored, &job).await?;
                    }
                    return Ok(Step::Waiting);
                }
                Ok(Outcome::Done) => {
                    // A node that failed without ending the job has said so itself.
                    let told = job.properties.tasks.get(node).map(|task| task.state);
                    if told != Some(JobState::Failed) {
                        job.mark(node, JobState::Succeeded, "Completed", &app.now_text());
                    }
                    job.node += 1;
                    job.node_since_unix_ms = app.now_ms();
                    if job.node >= job.properties.tasks.len() {
                        return end(app, &stored, job, JobState::Succeeded).await;
                    }
                }
                Err(Fault::Store(error)) => return Err(error),
                Err(Fault::Refused { error, .. }) => {
                    warn!(job = %job.id, node, code = %error.code, message = %error.message, "job fails");
                    fail(app, &mut job, error);
                }
            }
        }
        Phase::Unwinding => {
            let Some(node) = job.node.checked_sub(1) else {
                let state = if job.cancel {
                    JobState::Cancelled
                } else {
                    JobState::Failed
                };
                if let Err(Fault::Store(error)) =
                    workflow.failed(&mut Run { app, job: &mut job }).await
                {
                    return Err(error);
                }
                return end(app, &stored, job, state).await;
            };
            let mut result = workflow.undo(&mut Run { app, job: &mut job }, node).await;
            if trial.repeat && matches!(result, Ok(Outcome::Done)) {
                result = workflow.undo(&mut Run { app, job: &mut job }, node).await;
            }
            match result {
                Ok(Outcome::Wait) => return Ok(Step::Waiting),
                Ok(Outcome::Done) => {}
                Err(Fault::Store(error)) => return Err(error),
                // What can't be taken back is told and left: the rest must still be undone.
                Err(Fault::Refused { error, .. }) => {
                    warn!(job = %job.id, node, message = %error.message, "a step could not be taken back");
                    let at = app.now_text();
                    let task = task_id(&job, node);
                    let entry = JobError::from_arm(&error, &task, &at, &job.properties.activity_id);
                    job.properties.errors.push(entry);
                }
            }
            job.node = node;
            job.node_since_unix_ms = app.now_ms();
        }
    }
    save(app, &stored, &job).await?;
    app.ring();
    Ok(Step::Advanced)
}

/// Tells an error at the present node and at the job.
fn note(app: &App, job: &mut JobRecord, error: &ArmError) {
    let at = app.now_text();
    let task = task_id(job, job.node);
    let entry = JobError::from_arm(error, &task, &at, &job.properties.activity_id);
    if let Some(task) = job.properties.tasks.get_mut(job.node) {
        task.errors.push(entry.clone());
    }
    job.properties.errors.push(entry);
}

fn fail(app: &App, job: &mut JobRecord, error: ArmError) {
    note(app, job, &error);
    job.failure = Some(error);
    unwind(app, job, JobState::Failed);
}

/// Turns round.
fn unwind(app: &App, job: &mut JobRecord, state: JobState) {
    job.mark(job.node, state, state.as_str(), &app.now_text());
    job.turn(app.now_ms());
}

fn task_id(job: &JobRecord, node: usize) -> String {
    job.properties
        .tasks
        .get(node)
        .map(|task| task.task_id.clone())
        .unwrap_or_default()
}

async fn save(app: &App, stored: &Stored<JobRecord>, job: &JobRecord) -> Result<(), StoreError> {
    let change = records::put(stored.key.as_str(), job, Expect::Etag(stored.etag))?;
    app.store.apply(vec![change]).await?;
    Ok(())
}

async fn end(
    app: &App,
    stored: &Stored<JobRecord>,
    mut job: JobRecord,
    state: JobState,
) -> Result<Step, StoreError> {
    job.phase = Phase::Ended;
    job.properties.state = state;
    job.properties.state_description = match state {
        JobState::Succeeded => "Completed".to_owned(),
        other => other.as_str().to_owned(),
    };
    job.properties.end_time = Some(app.now_text());
    job.properties.allowed_actions.clear();
    let mut changes = vec![records::put(
        stored.key.as_str(),
        &job,
        Expect::Etag(stored.etag),
    )?];
    for lock in &job.locks {
        let key = records::lock_key(lock);
        // Only our own lock goes: a forced removal may have let somebody else in.
        let ours = records::get::<Lock>(app.store.as_ref(), &key)
            .await?
            .filter(|holder| holder.record.job == stored.key);
        if let Some(holder) = ours {
            changes.push(Change::Delete {
                key,
                expect: Expect::Etag(holder.etag),
            });
        }
    }
    app.store.apply(changes).await?;
    info!(job = %job.id, scenario = %job.properties.scenario_name, state = state.as_str(), "job ended");
    app.ring();
    Ok(Step::Ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_after_conflicts_grow_to_the_pace_of_waiting_nodes() {
        assert_eq!(conflict_pause(1), CONFLICT_RETRY);
        let pauses: Vec<Duration> = (1..40).map(conflict_pause).collect();
        assert!(pauses.windows(2).all(|two| two[0] <= two[1]), "{pauses:?}");
        assert_eq!(conflict_pause(u32::MAX), RECHECK);
    }
}
