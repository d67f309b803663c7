//! Recovery plans.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::envelope::Extra;
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
    pub start_group_actions: Vec<Value>,
    /// Actions after.
    pub end_group_actions: Vec<Value>,
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
