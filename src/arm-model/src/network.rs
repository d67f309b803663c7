//! Networks of a site (the hosts' virtual switches), what they are mapped to, and the choices for a VM's adapters.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::envelope::Extra;

/// `selectionType` of an adapter that nobody has decided about: it is recovered.
pub const SELECTED_BY_DEFAULT: &str = "SelectedByDefault";
/// `selectionType` of an adapter that a person wants.
pub const SELECTED_BY_USER: &str = "SelectedByUser";
/// `selectionType` of an adapter that the recovered VM does not get.
pub const NOT_SELECTED: &str = "NotSelected";
/// `instanceType` of a mapping to a virtual network of Azure, as clients send it.
pub const VMM_TO_AZURE: &str = "VmmToAzure";
/// `state` of a mapping.
pub const PAIRED: &str = "Paired";

/// Properties of a site's network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkProperties {
    /// `HyperVSite`.
    pub fabric_type: String,
    /// Empty: a virtual switch knows nothing of addresses.
    pub subnets: Vec<Value>,
    /// Name of the virtual switch.
    pub friendly_name: String,
    /// `VirtualSwitch`.
    pub network_type: String,
}

/// Request properties of a network mapping's `PUT` and `PATCH`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkMappingInput {
    /// [`MICROSOFT_AZURE`](crate::MICROSOFT_AZURE) or absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_fabric_name: Option<String>,
    /// Virtual network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_network_id: Option<String>,
    /// `{ instanceType }`, [`VMM_TO_AZURE`] or absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fabric_specific_details: Option<FabricSpecific>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `fabricSpecificDetails`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FabricSpecific {
    /// [`VMM_TO_AZURE`].
    pub instance_type: String,
}

/// Properties of a network mapping.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkMappingProperties {
    /// [`PAIRED`].
    pub state: String,
    /// Name of the virtual switch.
    pub primary_network_friendly_name: String,
    /// The site's network.
    pub primary_network_id: String,
    /// Site name.
    pub primary_fabric_friendly_name: String,
    /// Name of the virtual network.
    pub recovery_network_friendly_name: String,
    /// Virtual network.
    pub recovery_network_id: String,
    /// [`MICROSOFT_AZURE`](crate::MICROSOFT_AZURE).
    pub recovery_fabric_arm_id: String,
    /// [`MICROSOFT_AZURE`](crate::MICROSOFT_AZURE).
    pub recovery_fabric_friendly_name: String,
    /// `{ instanceType }`.
    pub fabric_specific_settings: FabricSpecific,
}

/// What a person wants of one adapter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NicChoice {
    /// As in [`VmNic::nic_id`](crate::protected_item::VmNic::nic_id).
    pub nic_id: String,
    /// [`SELECTED_BY_USER`] or [`NOT_SELECTED`].
    pub selection_type: String,
    /// Addresses; the first one counts.
    pub ip_configs: Vec<IpChoice>,
    /// Spelling of clients before 2021: subnet.
    #[serde(
        rename = "recoveryVMSubnetName",
        skip_serializing_if = "Option::is_none"
    )]
    pub recovery_vm_subnet_name: Option<String>,
    /// Spelling of clients before 2021: address.
    #[serde(
        rename = "replicaNicStaticIPAddress",
        skip_serializing_if = "Option::is_none"
    )]
    pub replica_nic_static_ip_address: Option<String>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What a person wants of one address of an adapter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IpChoice {
    /// Subnet by name; absent = the one of the VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_subnet_name: Option<String>,
    /// Address; absent = any free one.
    #[serde(
        rename = "recoveryStaticIPAddress",
        skip_serializing_if = "Option::is_none"
    )]
    pub recovery_static_ip_address: Option<String>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

// === impl NicChoice ===

impl NicChoice {
    /// Whether the recovered VM gets the adapter.
    #[must_use]
    pub fn is_selected(&self) -> bool {
        self.selection_type != NOT_SELECTED
    }

    /// Subnet by name, in either spelling.
    #[must_use]
    pub fn subnet(&self) -> Option<&str> {
        let of_first = self.ip_configs.first();
        of_first
            .and_then(|ip| ip.recovery_subnet_name.as_deref())
            .or(self.recovery_vm_subnet_name.as_deref())
            .filter(|name| !name.is_empty())
    }

    /// Address that is to be kept, in either spelling.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        let of_first = self.ip_configs.first();
        of_first
            .and_then(|ip| ip.recovery_static_ip_address.as_deref())
            .or(self.replica_nic_static_ip_address.as_deref())
            .filter(|address| !address.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_an_adapters_subnet_and_address_are_read() {
        let now: NicChoice = serde_json::from_value(serde_json::json!({
            "nicId": "n", "selectionType": "SelectedByUser",
            "ipConfigs": [{ "ipConfigName": "ip0", "recoverySubnetName": "web", "recoveryStaticIPAddress": "10.0.0.9" }],
        }))
        .expect("shape");
        let before: NicChoice = serde_json::from_value(serde_json::json!({
            "nicId": "n", "recoveryVMSubnetName": "web", "replicaNicStaticIPAddress": "10.0.0.9",
        }))
        .expect("shape");
        assert_eq!(
            (now.subnet(), now.address()),
            (before.subnet(), before.address())
        );
        assert!(now.is_selected() && before.is_selected());
    }
}
