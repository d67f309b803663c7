//! Where the orchestrator is and who asks: options or `SITERECOVERY_*`, as the provider takes them.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use arm_client::{Client, ClientConfig, Secret};
use clap::Args;
use serde_json::Value;

/// Options of every command.
#[derive(Args)]
pub struct ConnectionArguments {
    /// Address of the orchestrator, `https://host:port`
    #[arg(long, global = true, env = "SITERECOVERY_ENDPOINT")]
    endpoint: Option<String>,
    /// Certificate (PEM file) that the orchestrator's certificate is verified against
    #[arg(long, global = true, env = "SITERECOVERY_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// Tenant
    #[arg(long, global = true, env = "SITERECOVERY_TENANT_ID")]
    tenant_id: Option<String>,
    /// Client id
    #[arg(long, global = true, env = "SITERECOVERY_CLIENT_ID")]
    client_id: Option<String>,
    /// Client secret; better given by the environment than on the command line
    #[arg(
        long,
        global = true,
        env = "SITERECOVERY_CLIENT_SECRET",
        hide_env_values = true
    )]
    client_secret: Option<String>,
    /// Subscription
    #[arg(long, global = true, env = "SITERECOVERY_SUBSCRIPTION_ID")]
    subscription_id: Option<String>,
}

/// A client with the subscription it works in.
pub struct Connection {
    /// The REST client.
    pub client: Client,
    subscription: String,
}

// === impl Connection ===

impl Connection {
    /// Checks the options; nothing is sent yet.
    pub fn new(arguments: &ConnectionArguments) -> Result<Self> {
        let need = |value: &Option<String>, option: &str, variable: &str| {
            value.clone().filter(|text| !text.is_empty()).with_context(|| format!("--{option} or {variable} is needed; the orchestrator printed it at its first start"))
        };
        let mut config = ClientConfig::new(
            need(&arguments.endpoint, "endpoint", "SITERECOVERY_ENDPOINT")?,
            need(&arguments.tenant_id, "tenant-id", "SITERECOVERY_TENANT_ID")?,
            need(&arguments.client_id, "client-id", "SITERECOVERY_CLIENT_ID")?,
            Secret::new(need(
                &arguments.client_secret,
                "client-secret",
                "SITERECOVERY_CLIENT_SECRET",
            )?),
        );
        if let Some(file) = &arguments.ca_file {
            let pem = std::fs::read_to_string(file)
                .with_context(|| format!("the CA file {} can't be read", file.display()))?;
            config.ca_pem = Some(pem);
        }
        let subscription = need(
            &arguments.subscription_id,
            "subscription-id",
            "SITERECOVERY_SUBSCRIPTION_ID",
        )?;
        Ok(Self {
            client: Client::new(config)?,
            subscription,
        })
    }

    /// The subscription that requests are about.
    pub fn subscription(&self) -> &str {
        &self.subscription
    }

    /// All storage accounts of the subscription.
    pub async fn storage_accounts(&self) -> Result<Vec<Value>> {
        let path = format!(
            "/subscriptions/{}/providers/Microsoft.Storage/storageAccounts",
            self.subscription
        );
        Ok(self.client.list(&path).await?)
    }

    /// All vaults of the subscription.
    pub async fn vaults(&self) -> Result<Vec<Value>> {
        let path = format!(
            "/subscriptions/{}/providers/Microsoft.RecoveryServices/vaults",
            self.subscription
        );
        Ok(self.client.list(&path).await?)
    }
}
