//! A running orchestrator, an HTTP client for it, and an engine that does as it is told.
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod azure;
pub mod engine;

use std::time::Duration;

use orchestrator::app::Patience;
use orchestrator::azure_target::Settings;
use orchestrator::{AdminClient, Config, Orchestrator};
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use tempfile::TempDir;

pub const VERSION: &str = "api-version=2025-08-01";
/// Longest that a test waits for anything.
pub const LONG: Duration = Duration::from_secs(60);

/// A running orchestrator with the credentials of its first start.
pub struct World {
    pub folder: TempDir,
    pub orchestrator: Orchestrator,
    pub admin: AdminClient,
    pub http: reqwest::Client,
    pub token: String,
    pub base: String,
    pub group: String,
    pub azure_target: Option<Settings>,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn code(&self) -> &str {
        self.body
            .pointer("/error/code")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    pub fn target(&self) -> &str {
        self.body
            .pointer("/error/target")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }
}

pub fn config(folder: &TempDir, patience: Patience) -> Config {
    Config {
        data: folder.path().join("data"),
        listen: "127.0.0.1:0".parse().expect("address"),
        gateway: "127.0.0.1:0".parse().expect("address"),
        public_url: None,
        public_gateway: None,
        regions: Vec::new(),
        patience,
        scripts_folder: None,
        azure_target: None,
    }
}

pub fn patience() -> Patience {
    Patience {
        engine_ms: 8_000,
        boot_ms: 20_000,
        removal_ms: 8_000,
        shut_down_ms: 8_000,
    }
}

impl World {
    pub async fn start() -> Self {
        Self::with(patience()).await
    }

    pub async fn with(patience: Patience) -> Self {
        Self::aimed(patience, None).await
    }

    /// With a way into Azure.
    pub async fn aimed(patience: Patience, azure_target: Option<Settings>) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut config = config(&folder, patience);
        config.azure_target.clone_from(&azure_target);
        let orchestrator = Orchestrator::start(config).await.expect("start");
        let admin = orchestrator.admin.clone().expect("first start");
        let ca = std::fs::read(admin.value("SITERECOVERY_CA_FILE")).expect("CA");
        let http = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&ca).expect("CA")])
            .no_proxy()
            .build()
            .expect("client");
        let base = admin.value("SITERECOVERY_ENDPOINT").to_owned();
        let group = format!(
            "/subscriptions/{}/resourceGroups/rg-dr",
            admin.value("SITERECOVERY_SUBSCRIPTION_ID")
        );
        let mut world = Self {
            folder,
            orchestrator,
            admin,
            http,
            token: String::new(),
            base,
            group,
            azure_target,
        };
        let answer = world
            .token(
                world.admin.value("SITERECOVERY_CLIENT_ID"),
                world.admin.value("SITERECOVERY_CLIENT_SECRET"),
            )
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        world.token = answer.body["access_token"]
            .as_str()
            .expect("token")
            .to_owned();
        world
    }

    /// Stops and starts on the same data and the same ports.
    pub async fn restart(self) -> Self {
        let Self {
            folder,
            orchestrator,
            admin,
            http,
            token,
            base,
            group,
            azure_target,
        } = self;
        let mut config = config(&folder, orchestrator.app.patience);
        config.listen = orchestrator.api;
        config.gateway = orchestrator.gateway;
        config.azure_target.clone_from(&azure_target);
        orchestrator.stop().await;
        let orchestrator = Orchestrator::start(config).await.expect("start again");
        assert!(orchestrator.admin.is_none(), "credentials are told once");
        Self {
            folder,
            orchestrator,
            admin,
            http,
            token,
            base,
            group,
            azure_target,
        }
    }

    pub async fn token(&self, client: &str, secret: &str) -> Answer {
        let url = format!(
            "{}/{}/oauth2/v2.0/token",
            self.base,
            self.admin.value("SITERECOVERY_TENANT_ID")
        );
        let body = format!(
            "grant_type=client_credentials&client_id={client}&client_secret={secret}&scope=https%3A%2F%2Fmanagement.azure.com%2F.default"
        );
        let request = self
            .http
            .post(url)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body);
        Self::read(request).await
    }

    /// Signs in as this client.
    pub async fn sign_in(&mut self, client: &str, secret: &str) {
        let answer = self.token(client, secret).await;
        let token = answer.body["access_token"].as_str().expect("token");
        self.token = token.to_owned();
    }

    /// Signs in as the admin again, for tests that move the clock.
    pub async fn sign_in_again(&mut self) {
        let client = self.admin.value("SITERECOVERY_CLIENT_ID").to_owned();
        let secret = self.admin.value("SITERECOVERY_CLIENT_SECRET").to_owned();
        self.sign_in(&client, &secret).await;
    }

    pub async fn read(request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.expect("answer");
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await.expect("body");
        let body = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).expect("JSON")
        };
        Answer {
            status,
            headers,
            body,
        }
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = if path.starts_with("https://") {
            path.to_owned()
        } else {
            let sign = if path.contains('?') { '&' } else { '?' };
            format!("{}{path}{sign}{VERSION}", self.base)
        };
        self.http.request(method, url).bearer_auth(&self.token)
    }

    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let request = self.request(method, path);
        let request = match body {
            Some(body) => request
                .header("content-type", "application/json")
                .body(body.to_string()),
            None => request.header("content-length", "0"),
        };
        Self::read(request).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, None).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.call(Method::PUT, path, Some(body)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, None).await
    }

    /// Polls the operation of a 202 to its end; gives the status body.
    pub async fn finish(&self, answer: &Answer) -> Value {
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
        let header = |name: &str| {
            answer
                .headers
                .get(name)
                .expect("operation header")
                .to_str()
                .expect("text")
                .to_owned()
        };
        assert!(header("location").contains("/operationresults/"));
        assert_eq!(header("retry-after"), "1");
        let url = header("azure-asyncoperation");
        let mut bell = self.orchestrator.app.listen();
        let end = tokio::time::Instant::now() + LONG;
        loop {
            let status = self.get(&url).await;
            assert_eq!(status.status, StatusCode::OK, "{status:?}");
            if status.body["status"] != "InProgress" {
                return status.body;
            }
            assert!(
                tokio::time::Instant::now() < end,
                "operation doesn't end: {}",
                status.body
            );
            let _rang_or_not =
                tokio::time::timeout(Duration::from_millis(200), bell.changed()).await;
        }
    }

    /// Like `finish`, and the operation must have gone well; gives the result body.
    pub async fn done(&self, answer: &Answer) -> Value {
        let status = self.finish(answer).await;
        assert_eq!(status["status"], "Succeeded", "{status}");
        let location = answer.headers["location"]
            .to_str()
            .expect("text")
            .to_owned();
        let result = self.get(&location).await;
        assert!(result.status.is_success(), "{result:?}");
        result.body
    }

    /// The job of a 202.
    pub async fn job(&self, answer: &Answer) -> Value {
        let url = answer.headers["azure-asyncoperation"]
            .to_str()
            .expect("text");
        let name = url
            .split('?')
            .next()
            .and_then(|url| url.rsplit('/').next())
            .expect("job");
        self.get(&format!("{}/replicationJobs/{name}", self.vault()))
            .await
            .body
    }

    pub fn vault(&self) -> String {
        format!(
            "{}/providers/Microsoft.RecoveryServices/vaults/vault-dr",
            self.group
        )
    }

    pub fn fabric(&self) -> String {
        format!("{}/replicationFabrics/site-oslo", self.vault())
    }

    pub fn storage(&self) -> String {
        format!(
            "{}/providers/Microsoft.Storage/storageAccounts/stdr",
            self.group
        )
    }

    pub fn network(&self) -> String {
        format!(
            "{}/providers/Microsoft.Network/virtualNetworks/vnet-dr",
            self.group
        )
    }

    pub fn policy(&self) -> String {
        format!("{}/replicationPolicies/pol-30s", self.vault())
    }

    /// Vault, storage account, network, site and policy.
    pub async fn base_resources(&self) {
        let location = "northeurope";
        assert_eq!(
            self.put(
                &self.vault(),
                json!({ "location": location, "sku": { "name": "RS0" } })
            )
            .await
            .status,
            StatusCode::CREATED
        );
        let folder = self.folder.path().join("store").display().to_string();
        let storage = json!({ "location": location, "sku": { "name": "Standard_LRS" }, "kind": "StorageV2", "properties": { "folder": folder } });
        assert_eq!(
            self.put(&self.storage(), storage).await.status,
            StatusCode::CREATED
        );
        let network = json!({ "location": location, "properties": { "addressSpace": { "addressPrefixes": ["10.0.0.0/16"] }, "subnets": [{ "name": "front", "properties": { "addressPrefix": "10.0.1.0/24" } }] } });
        assert_eq!(
            self.put(&self.network(), network).await.status,
            StatusCode::CREATED
        );
        self.done(
            &self
                .put(
                    &self.fabric(),
                    json!({ "properties": { "customDetails": { "instanceType": "HyperVSite" } } }),
                )
                .await,
        )
        .await;
        self.done(&self.put(&self.policy(), policy_body(30)).await)
            .await;
    }

    /// A registration key of the site.
    pub async fn registration_key(&self) -> String {
        let answer = self
            .post(
                &format!("{}/registrationKeys", self.fabric()),
                json!({ "properties": { "validityInHours": 1 } }),
            )
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        answer.body["properties"]["key"]
            .as_str()
            .expect("key")
            .to_owned()
    }

    /// The site's container; a host must be registered.
    pub async fn container(&self) -> String {
        let list = self
            .get(&format!(
                "{}/replicationProtectionContainers",
                self.fabric()
            ))
            .await;
        list.body["value"][0]["id"]
            .as_str()
            .expect("one container")
            .to_owned()
    }

    /// Associates the policy.
    pub async fn associate(&self) {
        let mapping = format!(
            "{}/replicationProtectionContainerMappings/map",
            self.container().await
        );
        let body = json!({ "properties": { "policyId": self.policy(), "targetProtectionContainerId": "Microsoft Azure" } });
        self.done(&self.put(&mapping, body).await).await;
    }

    pub async fn item(&self, vm: &str) -> String {
        format!("{}/replicationProtectedItems/{vm}", self.container().await)
    }

    pub async fn enable_body(&self, vm: &str) -> Value {
        json!({ "properties": {
            "policyId": self.policy(),
            "protectableItemId": format!("{}/replicationProtectableItems/{vm}", self.container().await),
            "providerSpecificDetails": {
                "instanceType": "HyperVReplicaAzure", "hvHostVmId": vm, "targetStorageAccountId": self.storage(),
                "targetAzureNetworkId": self.network(), "targetAzureSubnetId": "front",
            },
        } })
    }

    /// Enables replication and waits for the end of the first copy.
    pub async fn protect(&self, vm: &str) -> String {
        let item = self.item(vm).await;
        self.done(&self.put(&item, self.enable_body(vm).await).await)
            .await;
        self.until(&item, |item| {
            item["properties"]["protectionState"] == "Protected"
        })
        .await;
        item
    }

    /// Reads until a condition holds.
    pub async fn until(&self, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut bell = self.orchestrator.app.listen();
        let end = tokio::time::Instant::now() + LONG;
        loop {
            let answer = self.get(path).await;
            if holds(&answer.body) {
                return answer.body;
            }
            assert!(
                tokio::time::Instant::now() < end,
                "condition never held: {}",
                answer.body
            );
            let _rang_or_not =
                tokio::time::timeout(Duration::from_millis(200), bell.changed()).await;
        }
    }
}

pub fn policy_body(interval: u32) -> Value {
    json!({ "properties": { "providerSpecificInput": {
        "instanceType": "HyperVReplicaAzure", "recoveryPointHistoryDuration": 4,
        "applicationConsistentSnapshotFrequencyInHours": 1, "replicationInterval": interval,
    } } })
}

/// Base resources, and an engine that has reported its VMs.
pub async fn ready() -> (World, engine::Engine) {
    let world = World::start().await;
    world.base_resources().await;
    let engine = engine::Engine::start(
        &world.registration_key().await,
        &world.orchestrator.gateway.to_string(),
    )
    .await;
    let container = world.container().await;
    world
        .until(
            &format!("{container}/replicationProtectableItems"),
            |list| list["value"].as_array().is_some_and(|list| list.len() == 3),
        )
        .await;
    (world, engine)
}
