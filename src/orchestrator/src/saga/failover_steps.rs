//! The short steps after a failover: commit, another recovery point, take back, protect again. Each asks the life of its
//! items once and waits until they are where the step leads. Input: [`StepInput`].
//!
//! None of them can be taken back by its own undo: what a step began goes on by itself, and `failoverCancel` is the way back
//! where there is one.

use arm_model::ArmError;
use arm_model::job::Task;
use async_trait::async_trait;
use protection::life::{Event, Phase, Request};
use serde::{Deserialize, Serialize};

use super::choose::{self, PointChoice};
use super::state::fresh_task;
use super::{Outcome, Run, Workflow};
use crate::azure_target;
use crate::failover::{advance, vm_id};
use crate::fault::Fault;
use crate::store::records::{Item, RecoverySide};

/// See the module.
pub struct FailoverStep;

/// Which step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Accept a failover or a failback.
    Commit,
    /// Make the recovered VM from another point.
    ChangePoint,
    /// Take back what is not committed.
    Cancel,
    /// Protect again after a failback.
    ReProtect,
}

/// Parameters.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StepInput {
    /// Which step.
    pub step: Step,
    /// ARM ids of the items.
    pub items: Vec<String>,
    /// The point of [`Step::ChangePoint`].
    pub point: Option<PointChoice>,
}

/// Tasks.
#[must_use]
pub fn tasks(step: Step) -> Vec<Task> {
    let (check, name, friendly) = match step {
        Step::Commit => (
            "CommitFailoverPreflightChecksTask",
            "CommitFailoverTask",
            "Committing the failover",
        ),
        Step::ChangePoint => (
            "ChangeRecoveryPointPreflightChecksTask",
            "ChangeRecoveryPointTask",
            "Changing the recovery point",
        ),
        Step::Cancel => (
            "CancelFailoverPreflightChecksTask",
            "CancelFailoverTask",
            "Taking the failover back",
        ),
        Step::ReProtect => (
            "ReverseReplicationPreflightChecksTask",
            "ReverseReplicationTask",
            "Protecting the virtual machine again",
        ),
    };
    vec![
        fresh_task(check, "Prerequisites check"),
        fresh_task(name, friendly),
    ]
}

#[async_trait]
impl Workflow for FailoverStep {
    async fn act(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        let input: StepInput = run.request()?;
        if node == 0 {
            return check(run, &input).await;
        }
        let mut is_there = true;
        for id in &input.items {
            is_there &= one(run, &input, &id.to_ascii_lowercase()).await?;
        }
        if is_there {
            return Ok(Outcome::Done);
        }
        let limit = run.app.patience.boot_ms.max(run.app.patience.removal_ms);
        if run.waited_ms() > limit && !is_copying(run, &input).await? {
            return Err(too_late(&input));
        }
        Ok(Outcome::Wait)
    }

    async fn undo(&self, _run: &mut Run<'_>, _node: usize) -> Result<Outcome, Fault> {
        Ok(Outcome::Done)
    }
}

/// Whether a disk is still on its way into Azure: that takes as long as it is large.
async fn is_copying(run: &Run<'_>, input: &StepInput) -> Result<bool, Fault> {
    for id in &input.items {
        let item = run.item(id).await?;
        if let (Some(side), Some(vm)) = (&item.recovery, vm_id(&item)) {
            let live = run.app.fleet.get(&side.engine_id).unwrap_or_default();
            let status = live.recovered(&vm.to_string());
            if azure_target::takes_its_time(&side.engine_id, status) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn too_late(input: &StepInput) -> Fault {
    Fault::refuse(
        504,
        ArmError::new(
            "EngineSilent",
            "The hosts did not report the end of the step in time.",
        )
        .at(input.items.first().cloned().unwrap_or_default())
        .advise(
            "A host is away, or the recovered VM can't be started or removed.",
            "The step goes on by itself when the host is back; `protectionState` of the item shows it.",
        ),
    )
}

/// Whether the step may begin; remembers which numbers were given out, so that a repeated node knows what it did.
async fn check(run: &mut Run<'_>, input: &StepInput) -> Result<Outcome, Fault> {
    for id in &input.items {
        let item = run.item(id).await?;
        protection::step(item.life, Event::Request(input.step.request()))?;
        if let Some(choice) = &input.point {
            choose::point(run.app, &item, choice)?;
        }
        run.job.remember(&from(id), item.life.counter.0);
    }
    Ok(Outcome::Done)
}

fn from(id: &str) -> String {
    format!("from {}", id.to_ascii_lowercase())
}

/// Asks, unless that was done; tells whether the item is where the step leads.
async fn one(run: &Run<'_>, input: &StepInput, key: &str) -> Result<bool, Fault> {
    let mut item = run.item(key).await?;
    let before = run
        .job
        .recall(&from(key))
        .and_then(serde_json::Value::as_u64);
    if is_to_ask(input.step, &item, before) {
        let point = match &input.point {
            Some(choice) => Some(choose::point(run.app, &item, choice)?),
            None => None,
        };
        let (job, now) = (run.job.id.clone(), run.app.now_ms());
        let side = |item: &Item| {
            let side = item.recovery.clone()?;
            Some(match &point {
                None => side,
                Some(point) => RecoverySide {
                    point_id: point.id.clone(),
                    point_ms: point.time_unix_ms,
                    job: job.clone(),
                    asked_unix_ms: now,
                    ..side
                },
            })
        };
        item = advance(run.app, key, Event::Request(input.step.request()), side).await?;
    }
    if input.step == Step::ChangePoint
        && let Some(finding) = given_up(run, &item)
    {
        return Err(finding);
    }
    Ok(input.step.ends_in(item.life.phase))
}

/// The step's own phases tell that it was asked for. A change of the point leads back to where it began: there the numbers
/// that were given out since the check tell it.
fn is_to_ask(step: Step, item: &Item, before: Option<u64>) -> bool {
    match (step, item.life.phase) {
        (Step::Commit, Phase::FailedOver(_) | Phase::FailedBack(_))
        | (Step::ReProtect, Phase::FailbackCommitted) => true,
        (Step::ChangePoint, Phase::FailedOver(_)) => before == Some(item.life.counter.0),
        (
            Step::Cancel,
            Phase::StoppingSource(_)
            | Phase::StartingRecovered(..)
            | Phase::FailedOver(_)
            | Phase::Synchronising(_)
            | Phase::Synchronised(_)
            | Phase::StoppingRecovered(_)
            | Phase::Receiving(_)
            | Phase::StartingSource(_)
            | Phase::FailedBack(_),
        ) => true,
        _ => false,
    }
}

/// The engine's reason, when it has given the new recovered VM up.
fn given_up(run: &Run<'_>, item: &Item) -> Option<Fault> {
    let side = item.recovery.as_ref()?;
    let live = run.app.fleet.get(&side.engine_id)?;
    let id = vm_id(item)?.to_string();
    let status = live.recovered(&id)?;
    let failed = status.state() == engine_protocol::v1::recovered_vm_status::State::Failed;
    let finding = status.findings.iter().find(|finding| finding.critical)?;
    failed.then(|| {
        let error = super::enable_protection::from_finding(finding, &item.id);
        Fault::refuse(409, error)
    })
}

// === impl Step ===

impl Step {
    /// What is asked of each life.
    #[must_use]
    pub fn request(self) -> Request {
        match self {
            Self::Commit => Request::Commit,
            Self::ChangePoint => Request::ChangePit,
            Self::Cancel => Request::CancelFailover,
            Self::ReProtect => Request::ReverseReplicate,
        }
    }

    /// Whether a phase is where the step leads.
    fn ends_in(self, phase: Phase) -> bool {
        match self {
            Self::Commit => matches!(phase, Phase::Committed(_) | Phase::FailbackCommitted),
            Self::ChangePoint => matches!(phase, Phase::FailedOver(_)),
            Self::Cancel => matches!(phase, Phase::AtSource | Phase::Committed(_)),
            Self::ReProtect => phase == Phase::AtSource,
        }
    }
}
