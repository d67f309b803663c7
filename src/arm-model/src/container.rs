//! Protection containers and their mappings to policies.

use serde::{Deserialize, Serialize};

use crate::envelope::{Extra, InstanceType};
use crate::health::HealthError;

/// Properties of a container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerProperties {
    /// Site name.
    pub fabric_friendly_name: String,
    /// Site name.
    pub friendly_name: String,
    /// `HyperVSite`.
    pub fabric_type: String,
    /// Protected VMs in it.
    pub protected_item_count: u64,
    /// `Paired` once a mapping exists, else `NotPaired`.
    pub pairing_status: String,
    /// `Primary` or empty.
    pub role: String,
    /// Variant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fabric_specific_details: Option<InstanceType>,
}

/// Request properties of a mapping.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MappingCreation {
    /// Policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_id: Option<String>,
    /// [`MICROSOFT_AZURE`](crate::MICROSOFT_AZURE).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_protection_container_id: Option<String>,
    /// Variant; may be absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider_specific_input: Option<InstanceType>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Properties of a mapping.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MappingProperties {
    /// Policy.
    pub policy_id: String,
    /// Policy name.
    pub policy_friendly_name: String,
    /// [`MICROSOFT_AZURE`](crate::MICROSOFT_AZURE).
    pub target_protection_container_id: String,
    /// [`MICROSOFT_AZURE`](crate::MICROSOFT_AZURE).
    pub target_protection_container_friendly_name: String,
    /// [`MICROSOFT_AZURE`](crate::MICROSOFT_AZURE).
    pub target_fabric_friendly_name: String,
    /// Site name.
    pub source_protection_container_friendly_name: String,
    /// Site name.
    pub source_fabric_friendly_name: String,
    /// `Paired`.
    pub state: String,
    /// `Normal`.
    pub health: String,
    /// Problems.
    pub health_error_details: Vec<HealthError>,
}
