//! Recovery plans.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::envelope::Extra;
use crate::failover::{PRIMARY_TO_RECOVERY, RECOVERY_TO_PRIMARY};
use crate::plan_action::{DELAY, PlanAction, READINESS, repeated_names};
use crate::protected_item::CurrentScenario;

/// `groupType` of groups that start VMs.
pub const BOOT: &str = "Boot";

/// Request properties of `PUT`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlanCreation {
    /// Site.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary_fabric_id: Option<String>,
    /// [`MICROSOFT_AZURE`](crate::MICROSOFT_AZURE).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_fabric_id: Option<String>,
    /// `ResourceManager`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover_deployment_model: Option<String>,
    /// Groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<PlanGroup>>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Request properties of `PATCH`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlanUpdate {
    /// The whole list of groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<PlanGroup>>,
}

/// A group of a plan.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlanGroup {
    /// `Shutdown`, `Failover` or `Boot`; only `Boot` groups carry items.
    pub group_type: String,
    /// Items.
    pub replication_protected_items: Vec<PlanItem>,
    /// Actions before.
    pub start_group_actions: Vec<PlanAction>,
    /// Actions after.
    pub end_group_actions: Vec<PlanAction>,
}

/// A rule that an action of a plan breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanProblem {
    /// Group, from 0, as they were given.
    pub group: usize,
    /// After the group, not before.
    pub after: bool,
    /// Action, from 0.
    pub action: usize,
    /// Property below the action, such as `customDetails.path`.
    pub field: &'static str,
    /// What is wrong, a sentence.
    pub message: String,
    /// What to do, a sentence.
    pub advice: String,
}

impl PlanProblem {
    /// Where it is, in a request.
    #[must_use]
    pub fn target(&self) -> String {
        let list = if self.after {
            "endGroupActions"
        } else {
            "startGroupActions"
        };
        format!(
            "properties.groups[{}].{list}[{}].{}",
            self.group, self.action, self.field
        )
    }
}

/// All rules that the actions of a plan break.
#[must_use]
pub fn action_problems(groups: &[PlanGroup]) -> Vec<PlanProblem> {
    let mut all = Vec::new();
    for (group, one) in groups.iter().enumerate() {
        let lists = [
            (false, &one.start_group_actions),
            (true, &one.end_group_actions),
        ];
        for (after, actions) in lists {
            let numbered = actions.iter().enumerate();
            all.extend(numbered.map(|(number, action)| (group, after, number, action)));
        }
    }
    let mut found = Vec::new();
    for &(group, after, action, one) in &all {
        found.extend(one.problems().into_iter().map(|problem| PlanProblem {
            group,
            after,
            action,
            field: problem.field,
            message: problem.message,
            advice: problem.advice,
        }));
    }
    for &(group, after, action, one) in &all {
        let check = one.custom_details.check.as_deref().unwrap_or_default();
        let looks = check != DELAY && one.custom_details.instance_type == READINESS;
        let is_boot = groups
            .get(group)
            .is_some_and(|group| group.group_type == BOOT);
        let comes_back = one
            .failover_directions
            .iter()
            .any(|way| way == RECOVERY_TO_PRIMARY);
        let (field, message) = if !looks {
            continue;
        } else if !after || !is_boot {
            (
                "customDetails.check",
                "Before a group, and around shutdown and failover, there is no recovered VM to be looked at.",
            )
        } else if comes_back {
            (
                "failoverDirections",
                "A VM that is back at its source is not looked at.",
            )
        } else {
            continue;
        };
        found.push(PlanProblem {
            group,
            after,
            action,
            field,
            message: message.to_owned(),
            advice: format!("Use {check} after a boot group, in the direction {PRIMARY_TO_RECOVERY}; elsewhere a delay."),
        });
    }
    let names = all
        .iter()
        .map(|(_, _, _, action)| action.action_name.as_str());
    for (_, later) in repeated_names(names) {
        if let Some(&(group, after, action, one)) = all.get(later) {
            found.push(PlanProblem {
                group,
                after,
                action,
                field: "actionName",
                message: format!("The plan has an action `{}` already.", one.action_name),
                advice: "Give each action of a plan a name of its own.".to_owned(),
            });
        }
    }
    found
}

/// An item of a group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlanItem {
    /// Protected item.
    pub id: String,
    /// Its `providerSpecificDetails.vmId`.
    pub virtual_machine_id: String,
}

/// Properties of a plan.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlanProperties {
    /// Name.
    pub friendly_name: String,
    /// Site.
    pub primary_fabric_id: String,
    /// Site name.
    pub primary_fabric_friendly_name: String,
    /// [`MICROSOFT_AZURE`](crate::MICROSOFT_AZURE).
    pub recovery_fabric_id: String,
    /// [`MICROSOFT_AZURE`](crate::MICROSOFT_AZURE).
    pub recovery_fabric_friendly_name: String,
    /// `ResourceManager`.
    pub failover_deployment_model: String,
    /// `HyperVReplicaAzure`.
    pub replication_providers: Vec<String>,
    /// What may be called next.
    pub allowed_operations: Vec<String>,
    /// Last drill.
    pub last_test_failover_time: Option<String>,
    /// Last planned failover.
    pub last_planned_failover_time: Option<String>,
    /// Last unplanned failover.
    pub last_unplanned_failover_time: Option<String>,
    /// Running job.
    pub current_scenario: CurrentScenario,
    /// `None`, or the drill's state.
    pub current_scenario_status: String,
    /// The same for people.
    pub current_scenario_status_description: String,
    /// Groups; the service puts one Shutdown and one Failover group in front.
    pub groups: Vec<PlanGroup>,
    /// Empty.
    pub provider_specific_details: Vec<Value>,
}
