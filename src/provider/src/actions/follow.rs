//! A job of an action, from the request to its end, told line by line.

use std::collections::BTreeMap;

use arm_client::{CancellationToken, Method, Progress as Look, Wait, job_path};
use arm_model::Resource as Answer;
use arm_model::job::JobProperties;
use arm_model::test_failover::DrillVm;
use serde_json::Value as Json;
use tf_provider::{Cancel, Context, Diagnostics, Progress};
use tokio::sync::mpsc;

use crate::Session;
use crate::remote::Remote;

/// Sends the request and tells its job's changes until the end. An interrupt ends the looking, not the job.
pub(super) async fn follow(
    cx: &Context<Session>,
    remote: &Remote<'_>,
    path: &str,
    body: Option<&Json>,
    progress: &Progress,
) -> Result<(), Diagnostics> {
    let api = &remote.session.api;
    let begun = cx
        .cancel()
        .guard(api.begin(Method::Post, path, body))
        .await
        .map_err(|_| interrupted("The job may have begun."))?;
    let operation = begun.map_err(|error| remote.failed("Starting", &error))?;
    let job = operation.job_id().unwrap_or_default().to_owned();

    let (looks, mut seen) = mpsc::unbounded_channel();
    // Nobody reads any more only when this function is over.
    let report = move |look: &Look| drop(looks.send(look.clone()));
    let mut wait = Wait::new(remote.limit(), CancellationToken::new());
    wait.progress = Some(&report);
    let mut told = Told::default();
    let outcome = {
        let mut end = std::pin::pin!(cx.cancel().guard(api.finish(&operation, &wait)));
        loop {
            tokio::select! {
                biased;
                Some(look) = seen.recv() => tell(&mut told, &look, progress).await,
                outcome = &mut end => break outcome,
            }
        }
    };
    while let Ok(look) = seen.try_recv() {
        tell(&mut told, &look, progress).await;
    }
    outcome
        .map_err(|_| interrupted(&format!("Job {job} goes on.")))?
        .map_err(|error| remote.failed("Carrying out", &error))?;
    for line in machines(remote, path, &job).await? {
        progress.send(line).await;
    }
    Ok(())
}

async fn tell(told: &mut Told, look: &Look, progress: &Progress) {
    for line in told.news(look) {
        progress.send(line).await;
    }
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
async fn machines(remote: &Remote<'_>, path: &str, job: &str) -> Result<Vec<String>, Diagnostics> {
    let Some(at) = job_path(path, job).filter(|_| !job.is_empty()) else {
        return Ok(Vec::new());
    };
    let found = remote.find::<Answer<JobProperties>>(&at).await?;
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
struct Told(BTreeMap<usize, String>);

// === impl Told ===

impl Told {
    fn news(&mut self, look: &Look) -> Vec<String> {
        let mut news = Vec::new();
        for (number, task) in look.tasks.iter().enumerate() {
            let known = self.0.get(&number) == Some(&task.state);
            if known || matches!(task.state.as_str(), "" | "NotStarted") {
                continue;
            }
            self.0.insert(number, task.state.clone());
            news.push(format!("{}: {}: {}", look.target, task.title, task.state));
        }
        news
    }
}
