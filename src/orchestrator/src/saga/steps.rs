//! The nodes of a plan's job: those of its workflow, with the plan's actions between them.
//!
//! ```text
//!  failover  check ─► ‹Shutdown: before› ─► shut down ─► ‹Shutdown: after› ─► ‹Failover: before› ─► prepare ─► ‹Failover: after›
//!            ─► ‹group 1: before› ─► start group 1 ─► ‹group 1: after› ─► ‹group 2: before› ─► …
//!  drill     the same without shutdown and its actions
//!  failback  check ─► synchronise ─► ‹Shutdown: before› ─► stop (last group first) ─► ‹Shutdown: after› ─►
//!            ‹Failover: before› ─► receive the rest ─► ‹Failover: after› ─► ‹group 1: before› ─► start group 1 ─► …
//! ```

use arm_model::ArmError;
use arm_model::failover::{PRIMARY_TO_RECOVERY, RECOVERY_TO_PRIMARY};
use arm_model::job::Task;
use arm_model::plan_action::PlanAction;
use arm_model::recovery_plan::{BOOT, PlanGroup};
use serde::{Deserialize, Serialize};

use super::plan_action;
use super::state::JobRecord;

/// A node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Step {
    /// The workflow's own, by its number without actions.
    Own(usize),
    /// An action of the plan.
    Action(Box<ActionStep>),
}

/// An action and where it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActionStep {
    /// What to do.
    pub action: PlanAction,
    /// Group's number in the plan, from 1; 0 = before all groups.
    pub group: usize,
    /// For people, such as `Group 1`.
    pub place: String,
    /// After the group, not before.
    pub after: bool,
    /// ARM ids of the group's VMs that the job recovers.
    pub items: Vec<String>,
}

/// What a plan is carried out as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// Drill.
    Test,
    /// Planned failover.
    Planned,
    /// Unplanned failover.
    Unplanned,
    /// Failback.
    Back,
}

// === impl Scenario ===

impl Scenario {
    /// Name in an action's `failoverTypes`. A failback is a planned failover in the other direction.
    #[must_use]
    pub fn failover_type(self) -> &'static str {
        match self {
            Self::Test => "TestFailover",
            Self::Planned | Self::Back => "PlannedFailover",
            Self::Unplanned => "UnplannedFailover",
        }
    }

    /// Name in an action's `failoverDirections`.
    #[must_use]
    pub fn direction(self) -> &'static str {
        match self {
            Self::Back => RECOVERY_TO_PRIMARY,
            _ => PRIMARY_TO_RECOVERY,
        }
    }
}

/// A boot group as the job runs it.
#[derive(Debug, Clone, Default)]
pub struct Part {
    /// ARM ids of the VMs that the job recovers.
    pub items: Vec<String>,
    before: Vec<Step>,
    after: Vec<Step>,
}

/// The plan as a job runs it.
#[derive(Debug, Clone, Default)]
pub struct Arranged {
    parts: Vec<Part>,
    shutdown: Part,
    failover: Part,
}

impl Arranged {
    /// `wanted`: the VM was asked for; its group's actions run. `open`: it is still to be recovered.
    #[must_use]
    pub fn new(
        groups: &[PlanGroup],
        scenario: Scenario,
        wanted: impl Fn(&str) -> bool,
        open: impl Fn(&str) -> bool,
    ) -> Self {
        let mut arranged = Self::default();
        let mut number = 0;
        for group in groups {
            let is_boot = group.group_type == BOOT;
            number += usize::from(is_boot);
            let ids = group.replication_protected_items.iter();
            let asked: Vec<&str> = ids
                .map(|item| item.id.as_str())
                .filter(|id| wanted(id))
                .collect();
            if is_boot && asked.is_empty() {
                continue;
            }
            let still = asked.iter().filter(|id| open(id));
            let items: Vec<String> = still.map(|id| (*id).to_owned()).collect();
            let place = if is_boot {
                format!("Group {number}")
            } else {
                group.group_type.clone()
            };
            let steps = |actions: &[PlanAction], after| {
                let (kind, direction) = (scenario.failover_type(), scenario.direction());
                let run = actions.iter().filter(|one| one.runs_on(kind, direction));
                run.map(|action| {
                    Step::Action(Box::new(ActionStep {
                        action: action.clone(),
                        group: if is_boot { number } else { 0 },
                        place: place.clone(),
                        after,
                        items: items.clone(),
                    }))
                })
                .collect::<Vec<_>>()
            };
            let before = steps(&group.start_group_actions, false);
            let after = steps(&group.end_group_actions, true);
            let part = Part {
                items,
                before,
                after,
            };
            match group.group_type.as_str() {
                "Shutdown" => arranged.shutdown = part,
                "Failover" => arranged.failover = part,
                _ => arranged.parts.push(part),
            }
        }
        arranged
    }

    /// The groups that have VMs to recover.
    #[must_use]
    pub fn groups(&self) -> Vec<Vec<String>> {
        let all = self.parts.iter().map(|part| part.items.clone());
        all.filter(|items| !items.is_empty()).collect()
    }

    /// Nodes of a failover or a drill, whose own three come before those of the groups.
    #[must_use]
    pub fn away(self, scenario: Scenario) -> Vec<Step> {
        let mut steps = vec![Step::Own(0)];
        if scenario == Scenario::Test {
            steps.extend(self.failover.before);
            steps.extend([Step::Own(1), Step::Own(2)]);
        } else {
            steps.extend(self.shutdown.before);
            steps.push(Step::Own(1));
            steps.extend(self.shutdown.after);
            steps.extend(self.failover.before);
            steps.push(Step::Own(2));
        }
        steps.extend(self.failover.after);
        Self::starts(self.parts, 3, &mut steps);
        steps
    }

    /// Nodes of a failback. `stops_at`: its own node from which the recovered VMs stop; `starts`: the one of its first
    /// group.
    #[must_use]
    pub fn back(self, starts: usize, stops_at: usize) -> Vec<Step> {
        // The last own node before the starts is the one that receives.
        let receives = starts - 1;
        let mut steps: Vec<Step> = (0..stops_at).map(Step::Own).collect();
        steps.extend(self.shutdown.before);
        steps.extend((stops_at..receives).map(Step::Own));
        steps.extend(self.shutdown.after);
        steps.extend(self.failover.before);
        steps.push(Step::Own(receives));
        steps.extend(self.failover.after);
        Self::starts(self.parts, starts, &mut steps);
        steps
    }

    /// The groups in order, each between its actions; those without a VM to recover have nothing but these.
    fn starts(parts: Vec<Part>, first: usize, steps: &mut Vec<Step>) {
        let mut own = first;
        for part in parts {
            steps.extend(part.before);
            if !part.items.is_empty() {
                steps.push(Step::Own(own));
                own += 1;
            }
            steps.extend(part.after);
        }
    }
}

/// The node of this number. A job without steps is one of an item, or of a release without actions.
#[must_use]
pub fn at(steps: &[Step], node: usize) -> Step {
    match steps.get(node) {
        Some(step) => step.clone(),
        None => Step::Own(node),
    }
}

/// The action at which a job was cancelled: there a person stopped the plan, not the VMs that are up already, so it counts
/// as a failure of the action. A cancel anywhere else takes back what the job did.
#[must_use]
pub fn stopped_at<'a>(steps: &'a [Step], job: &JobRecord) -> Option<&'a ActionStep> {
    let node = job.turned_at().unwrap_or(job.node);
    match steps.get(node).filter(|_| job.cancel)? {
        Step::Action(step) => Some(step),
        Step::Own(_) => None,
    }
}

/// What is told of it. `there`: where VMs that are up stay; `ways`: how they go on.
#[must_use]
pub fn stopped(steps: &[Step], job: &JobRecord, there: &str, ways: &str) -> Option<ArmError> {
    let step = stopped_at(steps, job)?;
    let when = if step.after { "after" } else { "before" };
    let (name, place) = (&step.action.action_name, &step.place);
    let message = format!(
        "The plan was stopped at its action `{name}` {when} {place}. VMs that run {there} already stay as they are; what was only on its way is taken back."
    );
    Some(ArmError::new("OperationCancelled", message).advise("A person cancelled the job.", ways))
}

/// The number of the workflow's own node among all.
#[must_use]
pub fn position(steps: &[Step], own: usize) -> usize {
    let is_it = |step: &Step| *step == Step::Own(own);
    steps.iter().position(is_it).unwrap_or(own)
}

/// The workflow's own tasks, with those of the actions between them.
#[must_use]
pub fn tasks(steps: &[Step], own: Vec<Task>) -> Vec<Task> {
    if steps.is_empty() {
        return own;
    }
    let all = steps.iter().filter_map(|step| match step {
        Step::Own(number) => own.get(*number).cloned(),
        Step::Action(step) => Some(plan_action::task(step)),
    });
    all.collect()
}
