//! Health errors and the health summary of a vault.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One problem with cause and advice.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HealthError {
    /// `Engine` or `Orchestrator`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_source: Option<String>,
    /// `Error` or `Warning`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_level: Option<String>,
    /// Such as `Replication`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_category: Option<String>,
    /// Code for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// One line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary_message: Option<String>,
    /// Whole message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// What may have led to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub possible_causes: Option<String>,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recommended_action: Option<String>,
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_time_utc: Option<String>,
    /// Whom it concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity_id: Option<String>,
}

/// Properties of `replicationVaultHealth`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VaultHealth {
    /// Problems of the vault itself.
    pub vault_errors: Vec<HealthError>,
    /// Protected VMs.
    pub protected_items_health: ResourceHealth,
    /// Sites.
    pub fabrics_health: ResourceHealth,
    /// Containers.
    pub containers_health: ResourceHealth,
}

/// How many resources of one kind are well.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceHealth {
    /// All of them.
    pub resource_count: u64,
    /// Kinds of problems.
    pub issues: Vec<HealthIssue>,
    /// Number by health.
    pub categorized_resource_counts: BTreeMap<String, u64>,
}

/// One kind of problem.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HealthIssue {
    /// Code.
    pub summary_code: String,
    /// Category.
    pub category: String,
    /// `Warning` or `Error`.
    pub severity: String,
    /// One line.
    pub summary_message: String,
    /// Type of the resources concerned.
    pub affected_resource_type: String,
    /// Correlation ids of the resources concerned.
    pub affected_resource_correlation_ids: Vec<String>,
}
