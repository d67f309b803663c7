//! Vaults and their settings.

use serde::{Deserialize, Serialize};

use crate::envelope::Extra;

/// Properties of a vault. What a client sends beyond the named ones is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VaultProperties {
    /// `Succeeded` once it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provisioning_state: Option<String>,
    /// `Enabled` or `Disabled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_network_access: Option<String>,
    /// Everything else, echoed.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Properties of a vault setting.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VaultSettingProperties {
    /// Migration solution; of no meaning for Hyper-V.
    pub migration_solution_id: Option<String>,
    /// Of no meaning for Hyper-V.
    pub vmware_to_azure_provider_type: Option<String>,
}
