//! Finding a vault, an item, a plan or a job by what a person would type.

use anyhow::{Context as _, Result, bail};
use arm_client::{Client, encode_segment};
use arm_model::timestamp;
use serde_json::Value;

use crate::connection::Connection;

/// One vault.
pub struct Vault {
    /// The REST client.
    pub client: Client,
    id: String,
}

// === impl Vault ===

impl Vault {
    /// The vault of this name or id; without one, the only vault there is.
    pub async fn find(connection: &Connection, wanted: Option<&str>) -> Result<Self> {
        let vaults = connection.vaults().await?;
        let found = match wanted {
            Some(wanted) => named(&vaults, wanted)
                .with_context(|| format!("no vault `{wanted}`; there are: {}", names(&vaults)))?,
            None => match vaults.as_slice() {
                [only] => only,
                [] => bail!("the subscription has no vault yet"),
                _ => bail!(
                    "--vault is needed, because there are several: {}",
                    names(&vaults)
                ),
            },
        };
        Ok(Self {
            client: connection.client.clone(),
            id: text(found, "/id").to_owned(),
        })
    }

    /// ARM id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A registered host by name or id.
    pub async fn host(&self, wanted: &str) -> Result<Value> {
        let hosts = self.list("replicationRecoveryServicesProviders").await?;
        named(&hosts, wanted)
            .cloned()
            .with_context(|| format!("no host `{wanted}`; there are: {}", names(&hosts)))
    }

    /// A list right below the vault.
    pub async fn list(&self, segment: &str) -> Result<Vec<Value>> {
        Ok(self.client.list(&format!("{}/{segment}", self.id)).await?)
    }

    /// VMs of all sites.
    pub async fn protectable_items(&self) -> Result<Vec<Value>> {
        let mut items = Vec::new();
        for container in self.list("replicationProtectionContainers").await? {
            let path = format!("{}/replicationProtectableItems", text(&container, "/id"));
            items.extend(self.client.list::<Value>(&path).await?);
        }
        Ok(items)
    }

    /// A VM of a host by name or id, with the findings for one recovery target or for all.
    pub async fn protectable_item(&self, wanted: &str, target: Option<&str>) -> Result<Value> {
        let items = self.protectable_items().await?;
        let found = named(&items, wanted)
            .with_context(|| format!("no VM `{wanted}`; there are: {}", names(&items)))?;
        let query = target.map(|target| format!("?recoveryTarget={}", encode_segment(target)));
        let path = format!("{}{}", text(found, "/id"), query.unwrap_or_default());
        Ok(self.client.get(&path).await?)
    }

    /// A protected VM by VM name, item name or id.
    pub async fn item(&self, wanted: &str) -> Result<Value> {
        let items = self.list("replicationProtectedItems").await?;
        named(&items, wanted)
            .cloned()
            .with_context(|| format!("no protected VM `{wanted}`; there are: {}", names(&items)))
    }

    /// A recovery plan by name or id.
    pub async fn plan(&self, wanted: &str) -> Result<Value> {
        let plans = self.list("replicationRecoveryPlans").await?;
        named(&plans, wanted)
            .cloned()
            .with_context(|| format!("no recovery plan `{wanted}`; there are: {}", names(&plans)))
    }

    /// Recovery points of an item, oldest first.
    pub async fn points(&self, item: &Value) -> Result<Vec<Value>> {
        let mut points: Vec<Value> = self
            .client
            .list(&format!("{}/recoveryPoints", text(item, "/id")))
            .await?;
        // By instant, not by text: a second without a fraction is written shorter than one with it.
        points.sort_by_key(|point| {
            timestamp::to_unix_ms(text(point, "/properties/recoveryPointTime"))
        });
        Ok(points)
    }

    /// A job with its tasks.
    pub async fn job(&self, job: &str) -> Result<Value> {
        Ok(self
            .client
            .get(&format!(
                "{}/replicationJobs/{}",
                self.id,
                encode_segment(job)
            ))
            .await?)
    }

    /// Asks a job to stop.
    pub async fn cancel(&self, job: &str) -> Result<()> {
        Ok(self.client.cancel_job(&self.id, job).await?)
    }
}

/// A text inside a body, or nothing.
pub fn text<'a>(body: &'a Value, pointer: &str) -> &'a str {
    body.pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn named<'a>(bodies: &'a [Value], wanted: &str) -> Option<&'a Value> {
    let keys = ["/id", "/name", "/properties/friendlyName"];
    bodies.iter().find(|body| {
        keys.iter()
            .any(|key| text(body, key).eq_ignore_ascii_case(wanted))
    })
}

fn names(bodies: &[Value]) -> String {
    let name = |body: &Value| match text(body, "/properties/friendlyName") {
        "" => text(body, "/name").to_owned(),
        friendly => friendly.to_owned(),
    };
    if bodies.is_empty() {
        "none".to_owned()
    } else {
        bodies.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}
