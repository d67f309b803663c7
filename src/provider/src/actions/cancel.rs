//! `siterecovery_cancel`: ends what is under way, by its job, by the VM, or by the plan.

use std::time::{Duration, Instant};

use arm_client::{Method, Progress as Look, TaskProgress};
use arm_model::job::{JobProperties, JobState};
use arm_model::protected_item::CurrentScenario;
use arm_model::{JobId, Resource as Answer};
use async_trait::async_trait;
use serde_json::Value as Json;
use tf_provider::{Action, Context, Diagnostics, Object, Progress, Schema};

use super::arguments::{self, PLAN, VM};
use super::follow::{self, Ask, Told};
use crate::errors::Fields;
use crate::remote::Remote;
use crate::{Session, fields};

const JOB: &str = "job_id";
const WHAT: &str = "cancel";
const FIELDS: Fields = &[];
/// Between two looks at a job that is being cancelled.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Scenarios whose job a cancel of their VM or plan means.
const UNDER_WAY: [&str; 4] = [
    "PlannedFailover",
    "UnplannedFailover",
    "ChangeRecoveryPoint",
    "TestFailover",
];

/// The action.
pub(crate) struct CancelAction;

#[async_trait]
impl Action<Session> for CancelAction {
    fn type_name(&self) -> &str {
        "siterecovery_cancel"
    }

    fn schema(&self) -> Schema {
        let schema = Schema::new().describe(
            "Ends what is under way. With `job_id`: that job, which takes back what it has done. With a protected VM or a recovery plan: its failover, \
             failback or drill while that runs; otherwise a failover or failback that is not committed is taken back: what the recovered VM has \
             written goes with it, and the source is protected as before.",
        );
        let schema = arguments::add_subject(schema).attribute(
            JOB,
            fields::arm_id::<JobId>("a job")
                .optional()
                .describe("Id of the job, in place of a VM or a plan."),
        );
        arguments::add_timeout(schema)
    }

    async fn validate(&self, _cx: &Context<Session>, config: &Object, report: &mut Diagnostics) {
        check(config, report);
    }

    async fn invoke(
        &self,
        cx: &Context<Session>,
        config: &Object,
        progress: &Progress,
    ) -> Result<(), Diagnostics> {
        let remote = Remote::new(cx, WHAT, FIELDS, arguments::limit(config))?;
        if let Some(job) = config.str(JOB) {
            return end(&remote, job, progress).await;
        }
        let subject = arguments::subject(config)?;
        if let Some(job) = under_way(&remote, subject.as_str()).await? {
            return end(&remote, &job, progress).await;
        }
        let path = format!("{subject}/failoverCancel");
        follow::follow(cx, &remote, &Ask::new(&path, None), None, progress).await
    }
}

fn check(config: &Object, report: &mut Diagnostics) {
    if config.is_null(JOB) {
        return arguments::check_subject(config, report);
    }
    for name in [PLAN, VM] {
        if !config.is_null(name) {
            report.push_error(
                name,
                "A job, a VM or a plan",
                "Give job_id, recovery_plan_id or protected_vm_id, and only one of them.",
            );
        }
    }
}

/// The job of a failover, failback or drill that a VM or a plan is in the middle of.
async fn under_way(remote: &Remote<'_>, subject: &str) -> Result<Option<String>, Diagnostics> {
    let found = remote.find::<Json>(subject).await?;
    let scenario = found.and_then(|found| {
        let scenario = found.pointer("/properties/currentScenario")?.clone();
        serde_json::from_value::<CurrentScenario>(scenario).ok()
    });
    let Some(scenario) = scenario.filter(|now| UNDER_WAY.contains(&now.scenario_name.as_str()))
    else {
        return Ok(None);
    };
    // A drill that waits for its clean-up is named too, and its job has ended.
    let job = remote
        .find::<Answer<JobProperties>>(&scenario.job_id)
        .await?;
    let runs = job.is_some_and(|job| !job.properties.state.is_final());
    Ok(runs.then_some(scenario.job_id))
}

/// Cancels a job and waits until it has taken back what it did.
async fn end(remote: &Remote<'_>, job: &str, progress: &Progress) -> Result<(), Diagnostics> {
    let name = job.rsplit('/').next().unwrap_or_default();
    let path = format!("{job}/cancel");
    let api = &remote.session.api;
    api.request(Method::Post, &path, None)
        .await
        .map_err(|error| remote.failed("Asking for", &error))?;
    progress
        .send(format!("job {name}: asked to take back what it has done"))
        .await;
    let mut told = Told::default();
    let until = Instant::now() + remote.limit();
    loop {
        let Some(found) = remote.find::<Answer<JobProperties>>(job).await? else {
            return Ok(());
        };
        follow::tell(&mut told, &look(&found), progress).await;
        match found.properties.state {
            JobState::Cancelled => return Ok(()),
            state if state.is_final() => {
                return Err(Diagnostics::error(
                    "The job was not cancelled",
                    format!(
                        "Job {name} ({} of {}) ended as {} before it was.\nWhat to do: look at the state of what it is about; a failover that has \
                         ended can be taken back until it is committed.",
                        found.properties.friendly_name,
                        found.properties.target_object_name,
                        state.as_str()
                    ),
                ));
            }
            _ if Instant::now() >= until => {
                return Err(Diagnostics::error(
                    "The job takes longer to be cancelled",
                    format!(
                        "Job {name} did not end within {} seconds; it still takes back what it has done.\nWhat to do: look at it with \
                         `siterecovery job show {name}`.",
                        remote.limit().as_secs()
                    ),
                ));
            }
            _ => remote.pause(LOOK_AGAIN).await?,
        }
    }
}

fn look(job: &Answer<JobProperties>) -> Look {
    let properties = &job.properties;
    let tasks = properties.tasks.iter().map(|task| TaskProgress {
        title: task.friendly_name.clone(),
        state: task.state.as_str().to_owned(),
        description: task.state_description.clone(),
    });
    Look {
        job_id: job.name.clone(),
        title: properties.friendly_name.clone(),
        target: properties.target_object_name.clone(),
        state: properties.state.as_str().to_owned(),
        tasks: tasks.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancel_is_of_a_job_a_vm_or_a_plan() {
        let problems = |names: &[&str]| {
            let config = names
                .iter()
                .fold(Object::new(), |config, name| config.with(*name, "x"));
            let mut report = Diagnostics::new();
            check(&config, &mut report);
            let paths = report.iter().map(|d| d.attribute.to_string());
            paths.collect::<Vec<_>>()
        };
        assert_eq!(problems(&[]), [PLAN]);
        assert_eq!(problems(&[PLAN, VM]), [VM]);
        assert_eq!(problems(&[JOB, PLAN, VM]), [PLAN, VM]);
        for one in [JOB, PLAN, VM] {
            assert!(problems(&[one]).is_empty(), "{one}");
        }
    }
}
