//! Neighbouring namespaces, as far as this product needs them: resource groups, storage accounts,
//! virtual networks.

use serde::{Deserialize, Serialize};

use crate::envelope::Extra;

/// Properties of a resource group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceGroupProperties {
    /// `Succeeded`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provisioning_state: Option<String>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// `sku` of a storage account.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Sku {
    /// Such as `Standard_LRS`, `Premium_LRS`.
    pub name: String,
    /// `Standard` or `Premium`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
}

/// Properties of a storage account.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StorageAccountProperties {
    /// `Succeeded`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provisioning_state: Option<String>,
    /// Extension: absolute path of the folder that holds the replicas, on the hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A storage account: the one resource with `sku` and `kind` that both sides read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StorageAccount {
    /// ARM id; empty in requests.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Name; empty in requests.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Type; empty in requests.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub resource_type: String,
    /// Region.
    pub location: String,
    /// Replication and performance.
    pub sku: Sku,
    /// `StorageV2`.
    pub kind: String,
    /// Tags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<std::collections::BTreeMap<String, String>>,
    /// Properties.
    pub properties: StorageAccountProperties,
}

/// Properties of a virtual network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualNetworkProperties {
    /// `Succeeded`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provisioning_state: Option<String>,
    /// Address ranges.
    pub address_space: AddressSpace,
    /// Subnets.
    pub subnets: Vec<Subnet>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Address ranges of a network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AddressSpace {
    /// CIDR ranges.
    pub address_prefixes: Vec<String>,
}

/// A subnet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Subnet {
    /// ARM id; empty in requests.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Name.
    pub name: String,
    /// Properties.
    pub properties: SubnetProperties,
}

/// Properties of a subnet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubnetProperties {
    /// CIDR range.
    pub address_prefix: String,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}
