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
    /// Extension: the key that journals are encrypted with, never the key itself; absent before the first need.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_encryption_key: Option<EncryptionKey>,
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

/// Extension: what is told of a vault's encryption key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EncryptionKey {
    /// GUID of the key that new objects are encrypted with.
    pub key_id: String,
    /// When it was made.
    pub created_time: String,
    /// Keys that are still kept because objects need them, the active one among them.
    pub kept_key_ids: Vec<String>,
}
