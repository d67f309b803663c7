//! Planned and unplanned failover of an item or a plan. Input: [`FailoverInput`].
//!
//! ```text
//!  preflight ─► shut down (last group first; its rest is sent) ─► prepare ─► start group 1 ─► start group 2 ─► …
//!  (points, hosts)   unplanned: tried, or skipped                 (who may run has changed sides)
//! ```
//!
//! Who may run where is decided by [`protection::life`] alone; the job asks for its steps and waits for them. So a job that
//! dies, or is run twice, can't make two copies run. A job that is cancelled takes everything back; one that fails, or is
//! cancelled at an action of its plan, takes back what does not run at the recovery side yet, and leaves alone what does: in
//! a disaster a VM that is up stays up, and a person decides.

mod act;
mod show;

use arm_model::ArmError;
use arm_model::job::Task;
use async_trait::async_trait;
use protection::life::{Request, ShutDown};
use serde::{Deserialize, Serialize};

use super::choose::PointChoice;
use super::drill::group_task;
use super::state::fresh_task;
use super::steps::{self, Scenario, Step};
use super::{Outcome, Run, Workflow, failures, plan_action};
use crate::fault::Fault;

/// Nodes before VMs are started.
const BEFORE_START: usize = 3;

/// See the module.
pub struct Failover;

/// Parameters.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FailoverInput {
    /// ARM id of the plan, for a plan's failover.
    pub plan: Option<String>,
    /// ARM ids of the items by group.
    pub groups: Vec<Vec<String>>,
    /// Without loss: the source is shut down and its rest is sent.
    pub planned: bool,
    /// Unplanned: whether the source is shut down first, if it can be.
    pub shut_down: bool,
    /// Point of each VM. After a shutdown the newest one is the one with the rest.
    pub point: PointChoice,
    /// The VMs get the newest point that they have in common.
    pub common_point: bool,
    /// When it was asked for.
    pub requested_unix_ms: i64,
    /// Nodes of a plan; none = those of the groups alone.
    #[serde(default)]
    pub steps: Vec<Step>,
}

/// What the preflight decides for each VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Chosen {
    /// Item's key.
    item: String,
    /// Recovery host's engine.
    engine_id: String,
    /// Recovery point; empty = the newest one, known when the source is down.
    point_id: String,
    /// Instant of that point.
    point_ms: i64,
    /// Group, from 0.
    group: usize,
}

/// Tasks.
#[must_use]
pub fn tasks(input: &FailoverInput) -> Vec<Task> {
    let check = if input.planned {
        "PlannedFailoverPreflightChecksTask"
    } else {
        "UnplannedFailoverPreflightChecksTask"
    };
    let mut tasks = vec![
        fresh_task(check, "Prerequisites check for failover"),
        fresh_task("ShutdownVmOnPrimary", "Shutting down the virtual machine"),
        fresh_task("PrepareForFailoverTask", "Preparing for failover"),
    ];
    if input.plan.is_some() {
        let groups = input.groups.iter().enumerate();
        tasks.extend(groups.map(|(index, group)| group_task(index, group, "FailoverTask")));
    } else {
        tasks.push(fresh_task("FailoverTask", "Starting failover"));
        tasks.push(fresh_task(
            "StartVmOnSecondary",
            "Starting the recovered virtual machine",
        ));
    }
    steps::tasks(&input.steps, tasks)
}

#[async_trait]
impl Workflow for Failover {
    async fn act(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        let input: FailoverInput = run.request()?;
        let outcome = match steps::at(&input.steps, node) {
            Step::Own(own) => input.own(run, own).await?,
            Step::Action(step) => {
                let of = plan_action::Of {
                    plan: input.plan.as_deref().unwrap_or_default(),
                    scenario: input.scenario(),
                    groups: &input.groups,
                };
                plan_action::act(run, &of, &step).await?
            }
        };
        let is_last = node + 1 == run.job.properties.tasks.len();
        match failures::first(run).filter(|_| is_last && outcome == Outcome::Done) {
            Some(failure) => Err(failure),
            None => Ok(outcome),
        }
    }

    async fn undo(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        match steps::at(&run.request::<FailoverInput>()?.steps, node) {
            Step::Own(1 | 2) => act::take_back(run).await,
            Step::Own(_) => Ok(Outcome::Done),
            Step::Action(step) => plan_action::undo(run, &step).await,
        }
    }

    fn cancelled(&self, run: &Run<'_>) -> Option<ArmError> {
        let steps = run.request::<FailoverInput>().ok()?.steps;
        let ways = "Commit the failover of these VMs, or cancel it: `allowedOperations` of each tells what is possible.";
        steps::stopped(&steps, run.job, "at the recovery side", ways)
    }
}

// === impl FailoverInput ===

impl FailoverInput {
    async fn own(&self, run: &mut Run<'_>, node: usize) -> Result<Outcome, Fault> {
        match node {
            0 => act::preflight(run, self).await,
            1 => act::shut_down(run, self).await,
            2 => act::prepare(run, self).await,
            _ if self.plan.is_some() => {
                let group = node - BEFORE_START;
                act::start(run, self, group, act::Until::Booted).await
            }
            BEFORE_START => act::start(run, self, 0, act::Until::Running).await,
            _ => act::start(run, self, 0, act::Until::Booted).await,
        }
    }

    /// What a plan is carried out as.
    #[must_use]
    pub fn scenario(&self) -> Scenario {
        if self.planned {
            Scenario::Planned
        } else {
            Scenario::Unplanned
        }
    }

    /// What is asked of each life.
    #[must_use]
    pub fn request(&self) -> Request {
        match (self.planned, self.shut_down) {
            (true, _) => Request::PlannedFailover,
            (false, true) => Request::UnplannedFailover(ShutDown::Attempt),
            (false, false) => Request::UnplannedFailover(ShutDown::Skip),
        }
    }
}

fn chosen(run: &Run<'_>) -> Vec<Chosen> {
    let memo = run.job.recall("vms").cloned().unwrap_or_default();
    serde_json::from_value(memo).unwrap_or_default()
}
