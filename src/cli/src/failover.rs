//! Failover and failback from the terminal: each step starts a job and shows it until it ends.
//!
//! ```text
//! planned | unplanned ─► look at the VM ─► [change-point] ─► commit ─► back ─► complete ─► commit ─► reprotect
//!                              └─► cancel                       └─► complete-migration
//! ```

mod confirm;
mod options;

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use arm_client::{Method, Retry};
use arm_model::HYPER_V_REPLICA_AZURE;
use arm_model::envelope::InstanceType;
use arm_model::failover::{
    AT_PRIMARY, ApplyRecoveryPoint, ApplyRecoveryPointDetails, CREATE_VM_IF_NOT_FOUND, FAILBACK,
    FOR_DOWN_TIME, FOR_SYNCHRONIZATION, MIGRATION_COMPLETE, NO_ACTION, PRIMARY_TO_RECOVERY,
    PlanFailoverDetails, PlanPlannedFailover, PlanUnplannedFailover, PlannedFailover,
    PlannedFailoverDetails, RECOVERY_TO_PRIMARY, ReverseReplication, ReverseReplicationDetails,
    SOURCE_NOT_REQUIRED, SOURCE_REQUIRED, USE_GROUP_POINT, USE_OWN_POINT, UnplannedFailover,
};
use arm_model::job::JobState;
use arm_model::protected_item::DisableProtection;
use serde::Serialize;
use serde_json::{Value, json};

pub use self::options::Failover;
use self::options::{
    Back, ChangePoint, Commit, CompleteMigration, Data, Planned, Simple, SyncPoint, Unplanned,
    Waiting, named,
};
use crate::job_watch::{self, End};
use crate::lookup::{Vault, text};
use crate::point_choice::{self, Choice, Kind};
use crate::{show, show_job};

/// The job waits for a person.
const EXIT_WAITS: u8 = 3;
/// What a shell reports of a program that Ctrl-C ended.
const EXIT_INTERRUPTED: u8 = 130;

/// What to send, and how to wait.
struct Step<'a> {
    /// ARM id, action included.
    path: String,
    body: Option<Value>,
    waiting: &'a Waiting,
    /// The job that goes on, where none begins.
    resumed: Option<String>,
}

/// Carries a step out. Success means that its job has succeeded, or has begun where nobody waits for it.
pub async fn run(vault: &Vault, step: &Failover, json: bool) -> Result<ExitCode> {
    let step = match step {
        Failover::Planned(options) => planned(vault, options).await?,
        Failover::Unplanned(options) => unplanned(vault, options).await?,
        Failover::ChangePoint(options) => change_point(vault, options).await?,
        Failover::Commit(options) => commit(vault, options).await?,
        Failover::Cancel(options) => {
            let target = options.which.find(vault).await?;
            Step::new(&target, "failoverCancel", None, &options.waiting)
        }
        Failover::Back(options) => back(vault, options).await?,
        Failover::Complete(options) => complete(vault, options).await?,
        Failover::Reprotect(options) => reprotect(vault, options).await?,
        Failover::CompleteMigration(options) => complete_migration(vault, options).await?,
    };
    step.take(vault, json).await
}

async fn planned<'a>(vault: &Vault, options: &'a Planned) -> Result<Step<'a>> {
    let target = options.which.find(vault).await?;
    let mut body = if options.which.is_plan() {
        properties(&PlanPlannedFailover::away())?
    } else {
        properties(&PlannedFailover::away())?
    };
    options.part.set(vault, &mut body).await?;
    Ok(Step::new(
        &target,
        "plannedFailover",
        Some(body),
        &options.waiting,
    ))
}

async fn unplanned<'a>(vault: &Vault, options: &'a Unplanned) -> Result<Step<'a>> {
    let choice = Choice::parse(options.point.as_deref(), options.at.as_deref())?;
    let target = options.which.find(vault).await?;
    let source = if options.shut_down_source {
        SOURCE_REQUIRED
    } else {
        SOURCE_NOT_REQUIRED
    };
    let (mut body, from) = if options.which.is_plan() {
        let Choice::Kind(kind) = choice else {
            bail!(
                "a plan takes a kind of point, no single one; there are: {}",
                point_choice::KINDS
            );
        };
        let mut body = PlanUnplannedFailover::away(source, kind.of_plan());
        let option = options.multi_vm_sync_point.map(|option| match option {
            SyncPoint::PerVm => USE_OWN_POINT,
            SyncPoint::Shared => USE_GROUP_POINT,
        });
        for details in &mut body.provider_specific_details {
            details.multi_vm_sync_point_option = option.map(ToOwned::to_owned);
        }
        let from = match options.multi_vm_sync_point {
            Some(SyncPoint::Shared) => format!(
                "point of each VM: {}; of VMs that share their points, the newest that they have in common",
                kind.of_plan()
            ),
            _ => format!("point of each VM: {}", kind.of_plan()),
        };
        (properties(&body)?, from)
    } else {
        let (recovery_point_id, from) = match choice {
            // Left to the service, which first makes a point of what was already sent.
            Choice::Kind(Kind::Latest) => (None, "its newest recovery point".to_owned()),
            choice => {
                let points = vault.points(&target).await?;
                let point = choice.pick(&points)?;
                let from = format!("the point of {}", point_choice::describe(point));
                (Some(text(point, "/id").to_owned()), from)
            }
        };
        let body = properties(&UnplannedFailover::away(source, recovery_point_id))?;
        (body, from)
    };
    options.part.set(vault, &mut body).await?;
    let source = if options.shut_down_source {
        "The source is shut down if it can be reached"
    } else {
        "The source is not shut down: make sure that it doesn't run"
    };
    options.confirm.ask(&format!(
        "Unplanned failover of {}, from {from}. What changed since then is lost. {source}.",
        options.which.part_text(&target, &options.part)
    ))?;
    Ok(Step::new(
        &target,
        "unplannedFailover",
        Some(body),
        &options.waiting,
    ))
}

async fn change_point<'a>(vault: &Vault, options: &'a ChangePoint) -> Result<Step<'a>> {
    let choice = Choice::parse(options.point.as_deref(), options.at.as_deref())?;
    let item = vault.item(&options.item).await?;
    let points = vault.points(&item).await?;
    let point = choice.pick(&points)?;
    eprintln!("recovery point: {}", point_choice::describe(point));
    let body = properties(&ApplyRecoveryPoint {
        recovery_point_id: Some(text(point, "/id").to_owned()),
        provider_specific_details: Some(ApplyRecoveryPointDetails {
            instance_type: HYPER_V_REPLICA_AZURE.to_owned(),
            ..ApplyRecoveryPointDetails::default()
        }),
        ..ApplyRecoveryPoint::default()
    })?;
    Ok(Step::new(
        &item,
        "applyRecoveryPoint",
        Some(body),
        &options.waiting,
    ))
}

async fn commit<'a>(vault: &Vault, options: &'a Commit) -> Result<Step<'a>> {
    let target = options.which.find(vault).await?;
    let what = options.which.text(&target);
    options.confirm.ask(&match text(&target, "/properties/activeLocation") {
        _ if options.which.is_plan() => format!(
            "Commit of {what}: after a failover no other recovery point and no cancel is possible any more, after a failback the recovered VMs are removed."
        ),
        AT_PRIMARY => format!("Commit of the failback of {what}: the recovered VM and its disks are removed."),
        _ => format!(
            "Commit of the failover of {what}: neither another recovery point nor a cancel is possible afterwards."
        ),
    })?;
    Ok(Step::new(&target, "failoverCommit", None, &options.waiting))
}

async fn back<'a>(vault: &Vault, options: &'a Back) -> Result<Step<'a>> {
    let target = options.which.find(vault).await?;
    let data = match options.data {
        Data::MinimiseDowntime => FOR_DOWN_TIME,
        Data::FullDownload => FOR_SYNCHRONIZATION,
    };
    let creation = if options.create_vm_if_missing {
        CREATE_VM_IF_NOT_FOUND
    } else {
        NO_ACTION
    };
    let host = match &options.host {
        Some(host) => Some(text(&vault.host(host).await?, "/id").to_owned()),
        None => None,
    };
    let body = failback(
        options.which.is_plan(),
        Some(data),
        Some(creation),
        host.as_deref(),
    )?;
    let rest = match options.data {
        Data::MinimiseDowntime => {
            "The recovered VM goes on running until `siterecovery failover complete`."
        }
        Data::FullDownload => "The recovered VM is shut down now.",
    };
    options.confirm.ask(&format!(
        "Failback of {}: the disks of the source are overwritten with those of the recovered VM. {rest}",
        options.which.text(&target)
    ))?;
    Ok(Step::new(
        &target,
        "plannedFailover",
        Some(body),
        &options.waiting,
    ))
}

/// A job that waits is told to go on; where the first part of the failback was a job of its own, the failback is asked
/// for once more. Never without something that waits: the same request would begin a failback.
async fn complete<'a>(vault: &Vault, options: &'a Simple) -> Result<Step<'a>> {
    let target = options.which.find(vault).await?;
    if let Some(job) = waiting_job(vault, &target).await? {
        return Ok(Step {
            path: format!("{}/resume", text(&job, "/id")),
            body: Some(json!({ "properties": { "comments": "" } })),
            waiting: &options.waiting,
            resumed: Some(text(&job, "/name").to_owned()),
        });
    }
    let allowed = show::allowed(&target);
    if !allowed.contains(&"FinalizeFailback") {
        bail!(
            "no failback of {} waits for its completion; allowed now: {}",
            options.which.text(&target),
            if allowed.is_empty() {
                "nothing, a job is running".to_owned()
            } else {
                allowed.join(", ")
            }
        );
    }
    let body = failback(options.which.is_plan(), None, None, None)?;
    Ok(Step::new(
        &target,
        "plannedFailover",
        Some(body),
        &options.waiting,
    ))
}

async fn reprotect<'a>(vault: &Vault, options: &'a Simple) -> Result<Step<'a>> {
    let target = options.which.find(vault).await?;
    let body = if options.which.is_plan() {
        None
    } else {
        // All else stays as it was before the failover.
        Some(properties(&ReverseReplication {
            failover_direction: Some(PRIMARY_TO_RECOVERY.to_owned()),
            provider_specific_details: Some(ReverseReplicationDetails {
                instance_type: HYPER_V_REPLICA_AZURE.to_owned(),
                ..ReverseReplicationDetails::default()
            }),
            ..ReverseReplication::default()
        })?)
    };
    Ok(Step::new(&target, "reProtect", body, &options.waiting))
}

async fn complete_migration<'a>(vault: &Vault, options: &'a CompleteMigration) -> Result<Step<'a>> {
    let item = vault.item(&options.item).await?;
    options.confirm.ask(&format!(
        "Complete migration of {}: the recovered VM stays, protection ends, and there is no failback afterwards.",
        named(&item)
    ))?;
    let body = properties(&DisableProtection {
        disable_protection_reason: Some(MIGRATION_COMPLETE.to_owned()),
        replication_provider_input: Some(InstanceType {
            instance_type: Some(HYPER_V_REPLICA_AZURE.to_owned()),
            ..InstanceType::default()
        }),
        ..DisableProtection::default()
    })?;
    Ok(Step::new(&item, "remove", Some(body), &options.waiting))
}

/// Body of `plannedFailover` back to the source.
fn failback(
    plan: bool,
    data: Option<&str>,
    creation: Option<&str>,
    host: Option<&str>,
) -> Result<Value> {
    let failover_direction = Some(RECOVERY_TO_PRIMARY.to_owned());
    let own = |text: Option<&str>| text.map(ToOwned::to_owned);
    if plan {
        return properties(&PlanPlannedFailover {
            failover_direction,
            provider_specific_details: vec![PlanFailoverDetails {
                instance_type: FAILBACK.to_owned(),
                data_sync_option: own(data),
                recovery_vm_creation_option: own(creation),
                ..PlanFailoverDetails::default()
            }],
            ..PlanPlannedFailover::default()
        });
    }
    properties(&PlannedFailover {
        failover_direction,
        provider_specific_details: Some(PlannedFailoverDetails {
            instance_type: FAILBACK.to_owned(),
            data_sync_option: own(data),
            recovery_vm_creation_option: own(creation),
            provider_id_for_alternate_recovery: own(host),
            ..PlannedFailoverDetails::default()
        }),
        ..PlannedFailover::default()
    })
}

/// The object's current job, if it waits for a person.
async fn waiting_job(vault: &Vault, target: &Value) -> Result<Option<Value>> {
    let scenario = target.pointer("/properties/currentScenario");
    let id = scenario.map_or("", |scenario| text(scenario, "/jobId"));
    let name = id.rsplit('/').next().unwrap_or_default();
    if matches!(name, "" | "None") {
        return Ok(None);
    }
    let job = vault.job(name).await?;
    let suspended = text(&job, "/properties/state") == JobState::Suspended.as_str();
    Ok(suspended.then_some(job))
}

fn properties(body: &impl Serialize) -> Result<Value> {
    Ok(json!({ "properties": serde_json::to_value(body)? }))
}

// === impl Step ===

impl<'a> Step<'a> {
    fn new(target: &Value, action: &str, body: Option<Value>, waiting: &'a Waiting) -> Self {
        Self {
            path: format!("{}/{action}", text(target, "/id")),
            body,
            waiting,
            resumed: None,
        }
    }

    async fn take(self, vault: &Vault, json: bool) -> Result<ExitCode> {
        let mut interrupt = pin!(job_watch::interrupt());
        let begun = tokio::select! {
            begun = vault.client.begin(Method::Post, &self.path, self.body.as_ref()) => begun,
            () = &mut interrupt => {
                eprintln!("interrupted while asking: the job may have begun; `siterecovery job list` shows it");
                return Ok(ExitCode::from(EXIT_INTERRUPTED));
            }
        };
        let begun = match begun {
            Err(error) if error.retry() == Retry::UnknownOutcome => {
                return Err(error)
                    .context("the job may have begun; `siterecovery job list` shows it");
            }
            begun => begun?,
        };
        let job = self
            .resumed
            .as_deref()
            .or(begun.job_id())
            .context("the service names no job; `siterecovery item show` tells what has become of the VM")?
            .to_owned();
        if self.waiting.no_wait {
            if json {
                show::whole(&vault.job(&job).await?)?;
            } else {
                println!("{job}");
            }
            return Ok(ExitCode::SUCCESS);
        }
        let limit = Duration::from_secs(self.waiting.timeout_minutes.saturating_mul(60));
        let end = job_watch::follow(vault, &job, limit, self.resumed.is_some(), interrupt).await?;
        let goes_on = |why: &str| {
            eprintln!(
                "{why}: the job goes on\n  siterecovery job show {job}     shows it\n  siterecovery job cancel {job}   asks it to stop"
            );
        };
        match end {
            End::Over(body) => {
                show_job::job(&body, json)?;
                let succeeded = text(&body, "/properties/state") == JobState::Succeeded.as_str();
                Ok(if succeeded {
                    ExitCode::SUCCESS
                } else {
                    ExitCode::FAILURE
                })
            }
            End::Waits(body) => {
                show_job::job(&body, json)?;
                let plan = if text(&body, "/properties/targetInstanceType") == "RecoveryPlan" {
                    "--plan "
                } else {
                    ""
                };
                eprintln!(
                    "the job waits for you: `siterecovery failover complete {plan}{}` goes on with it, `siterecovery job cancel {job}` ends it",
                    show::property(&body, "targetObjectName")
                );
                Ok(ExitCode::from(EXIT_WAITS))
            }
            End::OutOfTime => {
                goes_on("time is up");
                Ok(ExitCode::FAILURE)
            }
            End::Interrupted => {
                goes_on("interrupted");
                Ok(ExitCode::from(EXIT_INTERRUPTED))
            }
        }
    }
}
