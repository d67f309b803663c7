//! Fabrics (Hyper-V sites) and the registration key extension.

use serde::{Deserialize, Serialize};

use crate::envelope::{Extra, InstanceType};
use crate::health::HealthError;

/// Request properties of a fabric.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FabricCreation {
    /// `HyperVSite`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom_details: Option<InstanceType>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Properties of a fabric.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FabricProperties {
    /// Equals the name for a site.
    pub friendly_name: String,
    /// Site id (GUID).
    pub internal_identifier: String,
    /// `Valid`.
    pub bcdr_state: String,
    /// None, Normal, Warning, Critical.
    pub health: String,
    /// Problems.
    pub health_error_details: Vec<HealthError>,
    /// Not used: `kekState` None.
    pub encryption_details: EncryptionDetails,
    /// Not used: `kekState` None.
    pub rollover_encryption_details: EncryptionDetails,
    /// Hosts.
    pub custom_details: FabricDetails,
}

/// Encryption by VMM; always off here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EncryptionDetails {
    /// `None`.
    pub kek_state: String,
    /// Thumbprint.
    pub kek_cert_thumbprint: Option<String>,
}

impl Default for EncryptionDetails {
    fn default() -> Self {
        Self {
            kek_state: "None".to_owned(),
            kek_cert_thumbprint: None,
        }
    }
}

/// The site's part of a fabric.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FabricDetails {
    /// `HyperVSite`.
    pub instance_type: String,
    /// Registered hosts.
    #[serde(rename = "hyperVHosts")]
    pub hyper_v_hosts: Vec<HyperVHost>,
}

/// One host in a site's details.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HyperVHost {
    /// Lower-case host name with dots turned into underscores.
    pub id: String,
    /// Host name.
    pub name: String,
    /// Version of the engine.
    pub mars_agent_version: Option<String>,
}

/// Request properties of the extension `POST {fabric}/registrationKeys`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RegistrationKeyRequest {
    /// How long hosts may be enrolled with it, 1 to 720 hours; 120 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validity_in_hours: Option<u32>,
}

/// Answer properties of the extension `POST {fabric}/registrationKeys`. Secret.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RegistrationKeyProperties {
    /// The key as text.
    pub key: String,
    /// Instant, ISO 8601.
    pub expires_on: String,
}

impl std::fmt::Debug for RegistrationKeyProperties {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistrationKeyProperties")
            .field("expires_on", &self.expires_on)
            .finish_non_exhaustive()
    }
}
