//! Carries out the actions of a plan, each as a node of its job.
//!
//! The end of an action is remembered in the job before anything that follows from it, so a repeated node does nothing
//! twice. A failed action ends the job, but in an unplanned failover: there the others go on, the task is told as failed,
//! and the job ends as failed when the VMs are up.

mod console;
mod context;
mod readiness;
mod script;
mod webhook;

use arm_model::ArmError;
use arm_model::job::{JobError, JobState, Task, TaskDetails};
use arm_model::plan_action::Work;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use self::readiness::Asked;
use super::state::fresh_task;
use super::steps::{ActionStep, Scenario};
use super::{Outcome, Run, failures, person};
use crate::fault::Fault;

/// What an action belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Of<'a> {
    /// ARM id of the plan.
    pub(super) plan: &'a str,
    /// What the plan is carried out as.
    pub(super) scenario: Scenario,
    /// ARM ids of the job's VMs by group.
    pub(super) groups: &'a [Vec<String>],
}

/// How an action ended.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct End {
    /// Why it failed; absent = it went well.
    error: Option<ArmError>,
    /// For the task's details.
    told: Value,
}

/// How far an action is.
enum Seen {
    Waits,
    Ended(End),
}

impl Seen {
    fn well(told: Value) -> Self {
        Self::Ended(End { error: None, told })
    }

    fn badly(error: ArmError, told: Value) -> Self {
        let error = Some(error);
        Self::Ended(End { error, told })
    }
}

/// The task of an action.
pub(super) fn task(step: &ActionStep) -> Task {
    let (id, details) = match step.action.work() {
        Ok(Work::Manual { .. }) => ("ManualActionTask", "ManualActionTaskDetails"),
        Ok(Work::Script { .. }) => ("ScriptActionTask", "ScriptActionTaskDetails"),
        Ok(Work::Webhook { .. }) => ("WebhookActionTask", "WebhookActionTaskDetails"),
        Ok(
            Work::Console { .. } | Work::GuestAgent { .. } | Work::Port { .. } | Work::Delay { .. },
        )
        | Err(_) => ("ReadinessCheckTask", "ReadinessCheckTaskDetails"),
    };
    let when = if step.after {
        "post-action"
    } else {
        "pre-action"
    };
    let name = &step.action.action_name;
    let mut task = Task {
        custom_details: Some(TaskDetails {
            instance_type: details.to_owned(),
            ..TaskDetails::default()
        }),
        ..fresh_task(id, &format!("{}: {when}: {name}", step.place))
    };
    tell(&mut task, &json!({ "name": name }));
    match step.action.work() {
        Ok(Work::Manual { instructions }) => {
            tell(&mut task, &json!({ "instructions": instructions }));
        }
        Ok(Work::Script {
            path,
            is_primary_side,
            ..
        }) => {
            tell(
                &mut task,
                &json!({ "path": path, "isPrimarySideScript": is_primary_side }),
            );
        }
        _ => {}
    }
    task
}

fn tell(task: &mut Task, told: &Value) {
    if let (Some(details), Some(told)) = (&mut task.custom_details, told.as_object()) {
        details.extra.extend(told.clone());
    }
}

/// The id of an action in a job: the same whenever its node is repeated.
fn id(run: &Run<'_>) -> Uuid {
    id_at(run, run.job.node)
}

fn id_at(run: &Run<'_>, node: usize) -> Uuid {
    let text = format!("{}|action|{node}", run.job.id);
    Uuid::new_v5(&Uuid::NAMESPACE_URL, text.as_bytes())
}

fn memo(node: usize) -> String {
    format!("action {node}")
}

/// Carries an action out.
pub(super) async fn act(
    run: &mut Run<'_>,
    of: &Of<'_>,
    step: &ActionStep,
) -> Result<Outcome, Fault> {
    let node = run.job.node;
    if let Some(end) = recall(run, node) {
        return finish(run, of, step, end).await;
    }
    let work = step.action.work();
    let seen = match &work {
        // As any failed action: an unplanned failover goes on.
        Err(problem) => {
            let error = ArmError::new("InvalidAction", problem.message.as_str());
            Seen::badly(error.advise("", &problem.advice), Value::Null)
        }
        Ok(Work::Manual { .. }) => manual(run),
        Ok(order @ Work::Script { .. }) => script::act(run, of, step, order).await?,
        Ok(Work::Webhook { url, limit_seconds }) => {
            webhook::act(run, of, step, url, *limit_seconds).await?
        }
        Ok(Work::Console { limit_seconds }) => console::act(run, step, *limit_seconds).await?,
        Ok(Work::GuestAgent { limit_seconds }) => {
            readiness::act(run, step, Asked::Agent, *limit_seconds).await?
        }
        Ok(Work::Port {
            port,
            limit_seconds,
        }) => readiness::act(run, step, Asked::Port(*port), *limit_seconds).await?,
        Ok(Work::Delay { seconds }) if elapsed_ms(run) < millis(*seconds) => Seen::Waits,
        Ok(Work::Delay { .. }) => Seen::well(Value::Null),
    };
    let Seen::Ended(end) = seen else {
        return Ok(Outcome::Wait);
    };
    let kept = serde_json::to_value(&end).unwrap_or_default();
    run.job.remember(&memo(node), kept);
    if matches!(work, Ok(Work::Script { .. })) {
        // Stored before its order goes: without either it could be given again.
        run.app.ring();
        return Ok(Outcome::Wait);
    }
    finish(run, of, step, end).await
}

/// How long the present action has been going on, whatever restarted meanwhile: its start is kept with the job.
fn elapsed_ms(run: &mut Run<'_>) -> i64 {
    let memo = format!("began {}", run.job.node);
    let began = run.job.recall(&memo).and_then(Value::as_i64);
    let began = began.unwrap_or_else(|| {
        // Stored when the node first waits.
        run.job.remember(&memo, run.job.node_since_unix_ms);
        run.job.node_since_unix_ms
    });
    run.app.now_ms().saturating_sub(began)
}

fn recall(run: &Run<'_>, node: usize) -> Option<End> {
    let kept = run.job.recall(&memo(node))?;
    serde_json::from_value(kept.clone()).ok()
}

fn manual(run: &mut Run<'_>) -> Seen {
    if let Some(comments) = person::comments(run.job) {
        return Seen::well(json!({ "observation": comments }));
    }
    person::suspend(run.job, "WaitingForManualAction");
    let node = run.job.node;
    if let Some(task) = run.job.properties.tasks.get_mut(node) {
        task.state = JobState::Suspended;
        "WaitingForManualAction".clone_into(&mut task.state_description);
    }
    Seen::Waits
}

async fn finish(
    run: &mut Run<'_>,
    of: &Of<'_>,
    step: &ActionStep,
    end: End,
) -> Result<Outcome, Fault> {
    script::forget(run, step).await?;
    readiness::forget(run).await?;
    let node = run.job.node;
    if let Some(task) = run.job.properties.tasks.get_mut(node) {
        tell(task, &end.told);
    }
    let Some(cause) = end.error else {
        return Ok(Outcome::Done);
    };
    let error = failed(of, step, &cause);
    if of.scenario != Scenario::Unplanned {
        return Err(Fault::refuse(409, error));
    }
    let at = run.app.now_text();
    run.job.mark(node, JobState::Failed, "Failed", &at);
    let activity = run.job.properties.activity_id.clone();
    if let Some(task) = run.job.properties.tasks.get_mut(node) {
        task.errors = vec![JobError::from_arm(&error, &task.task_id, &at, &activity)];
    }
    failures::note(run, &format!("action {node}"), error);
    Ok(Outcome::Done)
}

/// Plan, group, action, cause, next step.
fn failed(of: &Of<'_>, step: &ActionStep, cause: &ArmError) -> ArmError {
    let plan = of.plan.rsplit('/').next().unwrap_or_default();
    let when = if step.after { "after" } else { "before" };
    ArmError::new(
        &cause.code,
        format!(
            "The action `{}` {when} {} of the plan `{plan}` failed: {}",
            step.action.action_name, step.place, cause.message
        ),
    )
    .at(of.plan)
    .advise(
        cause.possible_causes().unwrap_or_default(),
        cause.recommended_action().unwrap_or_default(),
    )
}

/// Takes an action back as far as that goes: what still runs of it is ended.
pub(super) async fn undo(run: &mut Run<'_>, step: &ActionStep) -> Result<Outcome, Fault> {
    readiness::withdraw(run).await?;
    script::withdraw(run, step).await
}

fn millis(seconds: u32) -> i64 {
    i64::from(seconds) * 1_000
}
