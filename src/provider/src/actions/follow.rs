//! A job of an action, from the request to its end, told line by line.

use std::collections::BTreeMap;

use arm_client::{CancellationToken, Method, Operation, Progress as Look, Wait, job_path};
use arm_model::Resource as Answer;
use arm_model::job::{JobProperties, JobState};
use arm_model::test_failover::DrillVm;
use serde_json::{Value as Json, json};
use tf_provider::{Cancel, Context, Diagnostics, Progress};
use tokio::sync::mpsc;

use super::report::Report;
use crate::Session;
use crate::remote::Remote;

/// The task of a failback that has brought its data over, and waits for a person to say go.
const WAITS_FOR_GO: &str = "WaitForUserInputTask";

/// What is asked for.
pub(super) struct Ask<'a> {
    /// Path with the action.
    pub(super) path: &'a str,
    pub(super) body: Option<&'a Json>,
    /// A failback that waits for a person to say go: say it, or end the waiting there.
    pub(super) says_go: bool,
}

impl<'a> Ask<'a> {
    pub(super) fn new(path: &'a str, body: Option<&'a Json>) -> Self {
        Self {
            path,
            body,
            says_go: true,
        }
    }
}

/// A job that was followed.
pub(super) struct Followed {
    /// Its ARM id; empty when the service names none.
    pub(super) job: String,
    /// How it ended; an interrupt ends the looking, not the job.
    pub(super) outcome: Result<(), Diagnostics>,
}

/// How the looking ends.
enum End {
    Over(Result<(), Diagnostics>),
    /// The job waits for a go that is not ours to give.
    Waits,
}

/// Sends the request and tells its job's changes until the end.
///
/// # Errors
/// When no job has begun.
pub(super) async fn begin_and_follow(
    cx: &Context<Session>,
    remote: &Remote<'_>,
    ask: &Ask<'_>,
    progress: &Progress,
) -> Result<Followed, Diagnostics> {
    let api = &remote.session.api;
    let begun = cx
        .cancel()
        .guard(api.begin(Method::Post, ask.path, ask.body))
        .await
        .map_err(|_| interrupted("The job may have begun."))?;
    let operation = begun.map_err(|error| remote.failed("Starting", &error))?;
    Ok(follow_begun(cx, remote, ask, &operation, progress).await)
}

/// Tells the changes of a job that has begun until its end.
pub(super) async fn follow_begun(
    cx: &Context<Session>,
    remote: &Remote<'_>,
    ask: &Ask<'_>,
    operation: &Operation,
    progress: &Progress,
) -> Followed {
    let api = &remote.session.api;
    let name = operation.job_id().unwrap_or_default().to_owned();
    let job = job_path(ask.path, &name).filter(|_| !name.is_empty());
    let job = job.unwrap_or_default();
    if !name.is_empty() {
        progress.send(format!("job {name}")).await;
    }

    let (looks, mut seen) = mpsc::unbounded_channel();
    // Nobody reads any more only when this function is over.
    let report = move |look: &Look| drop(looks.send(look.clone()));
    let mut wait = Wait::new(remote.limit(), CancellationToken::new());
    wait.progress = Some(&report);
    let mut told = Told::default();
    let mut end = std::pin::pin!(cx.cancel().guard(api.finish(operation, &wait)));
    let ended = loop {
        tokio::select! {
            biased;
            Some(look) = seen.recv() => {
                tell(&mut told, &look, progress).await;
                if told.suspends(&look) {
                    match waits(remote, &job, ask, progress).await {
                        Ok(false) => {}
                        Ok(true) => break End::Waits,
                        Err(error) => break End::Over(Err(error)),
                    }
                }
            }
            outcome = &mut end => break End::Over(match outcome {
                Err(_) => Err(interrupted(&format!("Job {name} goes on."))),
                Ok(Err(error)) => Err(remote.failed("Carrying out", &error)),
                Ok(Ok(_)) => Ok(()),
            }),
        }
    };
    while let Ok(look) = seen.try_recv() {
        tell(&mut told, &look, progress).await;
    }
    let outcome = match ended {
        End::Waits => Ok(()),
        End::Over(Err(error)) => Err(error),
        End::Over(Ok(())) => match machines(remote, &job).await {
            Ok(lines) => {
                for line in lines {
                    progress.send(line).await;
                }
                Ok(())
            }
            Err(error) => Err(error),
        },
    };
    Followed { job, outcome }
}

/// [`begin_and_follow`], then the job's report, however the job has ended.
pub(super) async fn follow(
    cx: &Context<Session>,
    remote: &Remote<'_>,
    ask: &Ask<'_>,
    report: Option<&Report>,
    progress: &Progress,
) -> Result<(), Diagnostics> {
    let followed = begin_and_follow(cx, remote, ask, progress).await?;
    file(remote, followed, report, progress).await
}

/// Writes the report of a job that was followed; both may have gone wrong.
pub(super) async fn file(
    remote: &Remote<'_>,
    followed: Followed,
    report: Option<&Report>,
    progress: &Progress,
) -> Result<(), Diagnostics> {
    let Followed { job, outcome } = followed;
    let Some(report) = report.filter(|_| !job.is_empty() && !remote.interrupted()) else {
        return outcome;
    };
    match (report.write(remote, &job).await, outcome) {
        (Ok(line), outcome) => {
            progress.send(line).await;
            outcome
        }
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(mut first)) => {
            first.extend(error);
            Err(first)
        }
    }
}

pub(super) async fn tell(told: &mut Told, look: &Look, progress: &Progress) {
    for line in told.news(look) {
        progress.send(line).await;
    }
}

/// A job waits for a person: says go where that is ours to say. `true` = nothing more is to be waited for.
async fn waits(
    remote: &Remote<'_>,
    job: &str,
    ask: &Ask<'_>,
    progress: &Progress,
) -> Result<bool, Diagnostics> {
    let Some(found) = remote.find::<Answer<JobProperties>>(job).await? else {
        return Ok(false);
    };
    let properties = &found.properties;
    if properties.state != JobState::Suspended {
        return Ok(false);
    }
    let for_go = properties.tasks.iter().any(|task| {
        task.task_id == WAITS_FOR_GO
            && matches!(task.state, JobState::InProgress | JobState::Suspended)
    });
    if for_go && ask.says_go {
        let body = json!({ "properties": { "comments": "Completed by Terraform." } });
        let path = format!("{job}/resume");
        let api = &remote.session.api;
        match api.request(Method::Post, &path, Some(&body)).await {
            Ok(_) => {
                progress
                    .send("the data is there: completing the failback")
                    .await;
            }
            // Somebody else was faster.
            Err(error) if error.status() == Some(409) => {}
            Err(error) => return Err(remote.failed("Completing", &error)),
        }
        return Ok(false);
    }
    let plan = if properties.target_instance_type == "RecoveryPlan" {
        "--plan "
    } else {
        ""
    };
    progress
        .send(format!(
            "job {} waits for a person: `siterecovery failover complete {plan}{}` goes on with it, the action `siterecovery_cancel` or \
             `siterecovery job cancel` ends it",
            found.name, properties.target_object_name
        ))
        .await;
    Ok(for_go)
}

fn interrupted(what: &str) -> Diagnostics {
    let mut report = Diagnostics::new();
    for diagnostic in &Cancel::error() {
        let mut diagnostic = diagnostic.clone();
        diagnostic.detail = format!(
            "Terraform was interrupted. {what}\nWhat to do: look at the VM's state and at the vault's jobs before this is done again."
        );
        report.push(diagnostic);
    }
    report
}

/// Where the VMs are that the job has started.
async fn machines(remote: &Remote<'_>, job: &str) -> Result<Vec<String>, Diagnostics> {
    if job.is_empty() {
        return Ok(Vec::new());
    }
    let found = remote.find::<Answer<JobProperties>>(job).await?;
    let details = found.and_then(|job| job.properties.custom_details.protected_item_details);
    Ok(details.unwrap_or_default().iter().map(machine).collect())
}

fn machine(vm: &DrillVm) -> String {
    let name = if vm.test_vm_friendly_name.is_empty() {
        &vm.friendly_name
    } else {
        &vm.test_vm_friendly_name
    };
    let mut text = format!("VM {name}");
    for (word, value) in [
        (" is ", vm.state.as_str()),
        (", host ", &vm.recovery_host),
        (
            ", point of ",
            vm.recovery_point_time.as_deref().unwrap_or_default(),
        ),
    ] {
        if !value.is_empty() {
            text.push_str(word);
            text.push_str(value);
        }
    }
    text
}

/// What was told already, so that each change is told once.
#[derive(Default)]
pub(super) struct Told {
    tasks: BTreeMap<usize, String>,
    suspended: bool,
}

// === impl Told ===

impl Told {
    fn news(&mut self, look: &Look) -> Vec<String> {
        let mut news = Vec::new();
        for (number, task) in look.tasks.iter().enumerate() {
            let known = self.tasks.get(&number) == Some(&task.state);
            if known || matches!(task.state.as_str(), "" | "NotStarted") {
                continue;
            }
            self.tasks.insert(number, task.state.clone());
            news.push(format!("{}: {}: {}", look.target, task.title, task.state));
        }
        news
    }

    /// Whether the job has begun to wait for a person.
    fn suspends(&mut self, look: &Look) -> bool {
        let now = look.state == JobState::Suspended.as_str();
        let before = std::mem::replace(&mut self.suspended, now);
        now && !before
    }
}
