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

/// Properties of a storage account. Without `Debug`: a request holds the account's key.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StorageAccountProperties {
    /// `Succeeded`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provisioning_state: Option<String>,
    /// Extension: absolute path of the folder that holds the replicas, on the hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// Extension: where an account in Azure is reached, such as `https://account.blob.core.windows.net`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blob_endpoint: Option<String>,
    /// Extension: container of the replicas; one for each vault when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_name: Option<String>,
    /// Extension, in requests only: key of the account. No answer has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account_key: Option<String>,
    /// Extension: client that has access to the account, in place of a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_client: Option<AccessClient>,
    /// Extension: `AccountKey`, `Client` or `None`; in answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_kind: Option<String>,
    /// Extension: page blobs that a disk's base is spread over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stripes: Option<u32>,
    /// Extension: HTTP proxy for storage traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_url: Option<String>,
    /// Extension: further certificate authorities that the endpoint may use, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A client of Entra ID that has access to a storage account.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessClient {
    /// Tenant.
    pub tenant_id: String,
    /// Client.
    pub client_id: String,
    /// Its secret; in requests only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_secret: Option<String>,
    /// Where it signs in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
}

impl std::fmt::Debug for AccessClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessClient")
            .field("tenant_id", &self.tenant_id)
            .field("client_id", &self.client_id)
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

/// A storage account: the one resource with `sku` and `kind` that both sides read.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
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
