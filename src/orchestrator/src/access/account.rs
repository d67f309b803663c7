//! A storage account in Azure, read out of its record.

use arm_model::neighbours::StorageAccountProperties;
use arm_model::validate;

use crate::api::storage_accounts::sku_of;
use crate::store::records::{AzurePlace, Storage};

/// See the module.
#[derive(Clone)]
pub struct Account {
    /// Key of the record.
    pub key: String,
    /// Account name, as signatures name it.
    pub name: String,
    /// Blob endpoint without a slash at the end.
    pub endpoint: String,
    /// Container; one for each vault when absent.
    pub container: Option<String>,
    /// Premium storage.
    pub premium: bool,
    /// Stripes of a disk's base; 0 = one.
    pub stripes: u32,
    /// HTTP proxy.
    pub proxy_url: Option<String>,
    /// Further authorities.
    pub ca_pem: Option<String>,
    /// Client with access, in place of a key.
    pub client: Option<Client>,
}

/// A client of Entra ID, without its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Client {
    /// Tenant.
    pub tenant_id: String,
    /// Client.
    pub client_id: String,
    /// Where it signs in.
    pub authority: String,
}

// === impl Account ===

impl Account {
    /// The account of a record; `None` for a folder.
    #[must_use]
    pub fn of(storage: &Storage) -> Option<Self> {
        let properties = storage.0.body.get("properties")?.clone();
        let properties: StorageAccountProperties = serde_json::from_value(properties).ok()?;
        let endpoint = properties
            .blob_endpoint
            .as_deref()?
            .trim_end_matches('/')
            .to_owned();
        Some(Self {
            key: storage.0.id.to_ascii_lowercase(),
            name: validate::account_of_endpoint(&endpoint)?.to_owned(),
            endpoint,
            container: properties.container_name,
            premium: validate::is_premium(&sku_of(storage)),
            stripes: properties.stripes.unwrap_or_default(),
            proxy_url: properties.proxy_url,
            ca_pem: properties.ca_pem,
            client: properties.access_client.map(|client| Client {
                tenant_id: client.tenant_id,
                client_id: client.client_id,
                authority: client
                    .authority
                    .unwrap_or_else(|| validate::DEFAULT_AUTHORITY.to_owned()),
            }),
        })
    }

    /// Where the replicas of a vault lie.
    #[must_use]
    pub fn place(&self, vault_key: &str) -> AzurePlace {
        AzurePlace {
            endpoint: self.endpoint.clone(),
            container: self
                .container
                .clone()
                .unwrap_or_else(|| validate::default_container(vault_key)),
        }
    }
}
