//! What is kept in the documents, typed.
//!
//! ```text
//!  <vault id>                     Vault           ~engine/<engine id>            EngineRecord
//!  ~vault-keys/<vault id>         VaultKeys       ~account-secret/<account id>   AccountSecret
//!                                                 ~loan/<account id>             Loan
//!  <vault id>/replicationpolicies Policy          ~desired/<engine id>           Desired
//!  …/replicationfabrics           Fabric          ~recovered/<engine id>/<vm id> Recovered
//!  …/replicationnetworkmappings   NetworkMapping
//!  …/replicationprotecteditems    Item            ~key/<key id>                  EnrolmentKey
//!  …/replicationjobs              Job (saga)      ~client/<client id>            Client
//!                                                 ~lock/<resource key>           Lock
//!                                                 ~script/<engine id>/<id>       ScriptOrder
//!                                                 ~fence/<item key>              Fence
//! ```

use arm_model::policy::PolicyDetails;
use arm_model::protected_item::EnableDetails;
use arm_model::recovery_plan::PlanGroup;
use arm_model::window::Throttle;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Change, Expect, Query, ResourceStore, StoreError};

/// A typed document.
pub trait Record: Serialize + DeserializeOwned + Send + Sync {
    /// Kind of the document.
    const KIND: &'static str;
}

/// A typed document with its version.
#[derive(Debug, Clone)]
pub struct Stored<R> {
    /// Key.
    pub key: String,
    /// Version.
    pub etag: u64,
    /// Contents.
    pub record: R,
}

macro_rules! record {
    ($name:ident, $kind:literal) => {
        impl Record for $name {
            const KIND: &'static str = $kind;
        }
    };
}

/// A resource that is kept as the client sent it: resource group, vault, storage account, virtual network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plain {
    /// ARM id with the spelling of the first request.
    pub id: String,
    /// Region in its normal form.
    pub location: String,
    /// Body without id, name, type.
    pub body: Value,
}

/// A vault.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Vault(pub Plain);
record!(Vault, "vault");

/// A resource group.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Group(pub Plain);
record!(Group, "group");

/// A storage account.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Storage(pub Plain);
record!(Storage, "storage");

/// A virtual network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Network(pub Plain);
record!(Network, "network");

/// A Hyper-V site.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fabric {
    /// ARM id.
    pub id: String,
    /// Site id; part of the container's name.
    pub internal_identifier: String,
}
record!(Fabric, "fabric");

/// A replication policy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Policy {
    /// ARM id.
    pub id: String,
    /// Numbers.
    pub details: PolicyDetails,
    /// Immutability that was promised before it was shortened, and holds until its points are old enough.
    #[serde(default)]
    pub promise: Option<Promise>,
}
record!(Policy, "policy");

/// An immutability that was promised to points that are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// Hours.
    pub hours: u32,
    /// From then on no point is left to which it was promised.
    pub until_unix_ms: i64,
}

/// A policy association.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mapping {
    /// ARM id.
    pub id: String,
    /// Policy's ARM id.
    pub policy_id: String,
}
record!(Mapping, "mapping");

/// What a site's network is mapped to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkMapping {
    /// ARM id.
    pub id: String,
    /// Name of the virtual switch.
    pub switch: String,
    /// Virtual network's ARM id.
    pub network_id: String,
}
record!(NetworkMapping, "network-mapping");

/// Changes with every mapping that is made of one network: of requests that are checked at the same time one is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkTurn {
    /// ARM id of the mapping that had it last.
    pub mapping: String,
}
record!(NetworkTurn, "network-turn");

/// A protected VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Item {
    /// ARM id.
    pub id: String,
    /// Where the VM is in its life.
    #[serde(alias = "machine", deserialize_with = "super::kept_life::read")]
    pub life: protection::Life,
    /// Engine that replicates it.
    pub engine_id: String,
    /// VM id on the host.
    pub vm_id: String,
    /// VM name when protection began.
    pub vm_name: String,
    /// Disks that are replicated.
    pub disk_ids: Vec<String>,
    /// Policy's ARM id.
    pub policy_id: String,
    /// Storage account's ARM id.
    pub storage_id: String,
    /// Folder of the storage account when protection began; empty for an account in Azure.
    pub folder: String,
    /// Container in Azure when protection began; absent for a folder.
    #[serde(default)]
    pub azure: Option<AzurePlace>,
    /// Where everything but base is; absent = there too.
    #[serde(default)]
    pub log: Option<LogStore>,
    /// Vault's folder name in the store.
    pub vault_key: String,
    /// Resynchronisations that were asked for.
    #[serde(default)]
    pub resynchronize: u64,
    /// Keys that its journal needs, as the engine last said.
    #[serde(default)]
    pub key_ids: Vec<String>,
    /// Key that the engine encrypts with, as it last said; empty = it doesn't.
    #[serde(default)]
    pub active_key_id: String,
    /// The request.
    pub request: EnableDetails,
    /// End of the last drill that went well.
    pub last_test_failover: Option<String>,
    /// Drill's job, while there is a drill.
    pub drill_job: Option<String>,
    /// Its recovered VM outside of drills, while there is or shall be one.
    #[serde(default)]
    pub recovery: Option<RecoverySide>,
    /// Hosts that were its source before.
    #[serde(default)]
    pub formers: Vec<super::former::FormerSource>,
    /// The last failover, or failback, that went well.
    #[serde(default)]
    pub last_failover: Option<LastFailover>,
    /// Joins the item with its events.
    pub correlation_id: String,
}
record!(Item, "item");

/// A recovery plan.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// ARM id.
    pub id: String,
    /// Site's ARM id.
    pub fabric_id: String,
    /// Deployment model as sent.
    pub deployment_model: String,
    /// Groups, with Shutdown and Failover in front.
    pub groups: Vec<PlanGroup>,
    /// End of the last drill that went well.
    pub last_test_failover: Option<String>,
    /// Drill's job, while there is a drill.
    pub drill_job: Option<String>,
}
record!(Plan, "plan");

/// A registered host with its engine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EngineRecord {
    /// Engine id.
    pub engine_id: String,
    /// ARM id of the recovery services provider.
    pub provider_id: String,
    /// ARM id of the site.
    pub fabric_id: String,
    /// Site id.
    pub site_id: String,
    /// SHA-256 of the public key that the engine enrolled with; nobody else takes its name.
    #[serde(default)]
    pub key_digest: String,
    /// Rate limits of all VMs of the host together.
    #[serde(default)]
    pub throttles: Vec<Throttle>,
    /// Last report, protobuf in base64; points and inventory outlive a restart with it.
    pub report: String,
    /// When the last report came.
    pub last_seen_unix_ms: i64,
}
record!(EngineRecord, "engine");

/// Desired state last told to an engine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Desired {
    /// Generation.
    pub generation: u64,
    /// Digest of the contents.
    pub digest: String,
}
record!(Desired, "desired");

/// A VM that shall exist on a recovery host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Recovered {
    /// VM id.
    pub id: String,
    /// VM name.
    pub name: String,
    /// Recovery host's engine.
    pub engine_id: String,
    /// ARM id of the item.
    pub item: String,
    /// Item's name.
    pub item_id: String,
    /// Vault's folder name in the store.
    pub vault_key: String,
    /// Folder of the storage account; empty for an account in Azure.
    pub folder: String,
    /// Container in Azure.
    #[serde(default)]
    pub azure: Option<AzurePlace>,
    /// Where everything but base is; absent = there too.
    #[serde(default)]
    pub log: Option<LogStore>,
    /// Storage account's ARM id.
    #[serde(default)]
    pub storage_id: String,
    /// Recovery point.
    pub point_id: String,
    /// No adapter is connected.
    pub isolated: bool,
    /// ARM id of the network that its drill was asked for.
    #[serde(default)]
    pub network_id: Option<String>,
    /// Started, or only made.
    pub running: bool,
    /// Job that made it.
    pub job: String,
}
record!(Recovered, "recovered");

/// A script of a recovery plan that a host shall run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScriptOrder {
    /// Follows from job and action.
    pub id: String,
    /// Host's engine.
    pub engine_id: String,
    /// Inside the host's scripts folder.
    pub path: String,
    /// JSON.
    pub context: String,
    /// Time limit.
    pub timeout_seconds: u32,
    /// May run again when its end is unknown.
    pub repeatable: bool,
    /// Job that made it.
    pub job: String,
}
record!(ScriptOrder, "script");

/// What the guest of a recovered VM is asked for, for an action of a recovery plan.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Question {
    /// Recovery host's engine.
    pub engine_id: String,
    /// The recovered VM's id there.
    pub vm_id: String,
    /// TCP port; absent = its guest agent.
    pub port: Option<u16>,
    /// Job that made it.
    pub job: String,
}
record!(Question, "question");

/// A registration key, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnrolmentKey {
    /// ARM id of the site.
    pub fabric_id: String,
    /// Salt and hash of the secret.
    pub hash: String,
    /// Refused from then on.
    pub expires_unix: i64,
    /// Engine that used it.
    pub engine_id: Option<String>,
}
record!(EnrolmentKey, "enrolment-key");

/// An API client.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Client {
    /// Client id.
    pub client_id: String,
    /// For people.
    pub name: String,
    /// Salt and hash of the secret.
    pub hash: String,
    /// Built-in role.
    pub role: crate::auth::roles::Role,
    /// ARM scope, lower case; `/` = everything.
    pub scope: String,
}
record!(Client, "client");

/// The encryption keys of a vault, sealed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct VaultKeys {
    /// Oldest first; the last one is active.
    pub keys: Vec<VaultKey>,
}
record!(VaultKeys, "vault-keys");

/// One key of a vault.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VaultKey {
    /// GUID.
    pub id: String,
    /// When it was made.
    pub created_unix_ms: i64,
    /// The key, sealed.
    pub sealed: String,
    /// A replica that was left in the store may need it: it is never dropped.
    #[serde(default)]
    pub kept: bool,
}

/// How the orchestrator gets access to a storage account in Azure; sealed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct AccountSecret {
    /// Account key, sealed.
    #[serde(default)]
    pub account_key: Option<String>,
    /// Secret of the access client, sealed.
    #[serde(default)]
    pub client_secret: Option<String>,
}
record!(AccountSecret, "account-secret");

/// A key that Azure lent to the access client of a storage account; sealed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Loan {
    /// Endpoint and client that it was lent to.
    pub borrower: String,
    /// When it ends.
    pub expires_unix_ms: i64,
    /// The key, sealed.
    pub sealed: String,
}
record!(Loan, "loan");

/// A job that has an object to itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lock {
    /// Job's key.
    pub job: String,
}
record!(Lock, "lock");

/// Newest fencing generation of an item; outlives the item, so that generations never repeat.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fence {
    /// Generation.
    pub generation: u64,
}
record!(Fence, "fence");

record!(JobRecord, "job");

pub use super::place::{AzurePlace, LogStore, Place};
pub use super::recovery_side::{LastFailover, RecoverySide, WayBack};
pub use crate::saga::state::JobRecord;

/// Reads one record.
///
/// # Errors
/// When the store fails or the document is of another shape.
pub async fn get<R: Record>(
    store: &dyn ResourceStore,
    key: &str,
) -> Result<Option<Stored<R>>, StoreError> {
    let document = store.get(key).await?;
    document
        .filter(|document| document.kind == R::KIND)
        .map(typed)
        .transpose()
}

/// Reads many records.
///
/// # Errors
/// When the store fails or a document is of another shape.
pub async fn list<R: Record>(
    store: &dyn ResourceStore,
    prefix: &str,
) -> Result<Vec<Stored<R>>, StoreError> {
    let documents = store.list(Query::below(R::KIND, prefix)).await?;
    documents.into_iter().map(typed).collect()
}

/// Whether there is any record of a kind below a key.
///
/// # Errors
/// When the store fails.
pub async fn any<R: Record>(store: &dyn ResourceStore, prefix: &str) -> Result<bool, StoreError> {
    Ok(!store
        .list(Query::below(R::KIND, prefix).first())
        .await?
        .is_empty())
}

/// The change that writes a record.
///
/// # Errors
/// When the record can't be written as JSON.
pub fn put<R: Record>(
    key: impl Into<String>,
    record: &R,
    expect: Expect,
) -> Result<Change, StoreError> {
    let key = key.into();
    let body = serde_json::to_value(record).map_err(|source| StoreError::Malformed {
        key: key.clone(),
        source,
    })?;
    Ok(Change::Put {
        key,
        kind: R::KIND,
        body,
        expect,
    })
}

/// The change that removes a document.
#[must_use]
pub fn delete(key: impl Into<String>) -> Change {
    Change::Delete {
        key: key.into(),
        expect: Expect::Any,
    }
}

/// Reads, changes and writes one record until nobody came between. `None` from `change` leaves it alone.
///
/// # Errors
/// When the store fails.
pub async fn update<R: Record + Clone>(
    store: &dyn ResourceStore,
    key: &str,
    change: impl Fn(&R) -> Option<R> + Send + Sync,
) -> Result<Option<R>, StoreError> {
    loop {
        let Some(stored) = get::<R>(store, key).await? else {
            return Ok(None);
        };
        let Some(changed) = change(&stored.record) else {
            return Ok(Some(stored.record));
        };
        match store
            .apply(vec![put(key, &changed, Expect::Etag(stored.etag))?])
            .await
        {
            Ok(_) => return Ok(Some(changed)),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
}

fn typed<R: Record>(document: super::Document) -> Result<Stored<R>, StoreError> {
    let record = serde_json::from_value(document.body).map_err(|source| StoreError::Malformed {
        key: document.key.clone(),
        source,
    })?;
    Ok(Stored {
        key: document.key,
        etag: document.etag,
        record,
    })
}

/// Key of an engine.
#[must_use]
pub fn engine_key(engine_id: &str) -> String {
    format!("~engine/{}", engine_id.to_ascii_lowercase())
}

/// Key of the desired state of an engine.
#[must_use]
pub fn desired_key(engine_id: &str) -> String {
    format!("~desired/{}", engine_id.to_ascii_lowercase())
}

/// Key of a recovered VM, or the prefix of all of an engine.
#[must_use]
pub fn recovered_key(engine_id: &str, vm_id: &str) -> String {
    format!("~recovered/{}/{vm_id}", engine_id.to_ascii_lowercase())
}

/// Key of what an action asks of a recovered VM, or the prefix of all that it asks.
#[must_use]
pub fn question_key(action_id: &str, vm_id: &str) -> String {
    format!("~question/{action_id}/{vm_id}")
}

/// Key of a script's order.
#[must_use]
pub fn script_key(engine_id: &str, id: &str) -> String {
    format!("~script/{}/{id}", engine_id.to_ascii_lowercase())
}

/// Key of the lock of a resource.
#[must_use]
pub fn lock_key(resource_key: &str) -> String {
    format!("~lock/{resource_key}")
}

/// Key of the encryption keys of a vault.
#[must_use]
pub fn vault_keys_key(vault_key: &str) -> String {
    format!("~vault-keys/{vault_key}")
}

/// Key of the secret of a storage account.
#[must_use]
pub fn account_secret_key(account_key: &str) -> String {
    format!("~account-secret/{account_key}")
}

/// Key of what was lent to a storage account's client.
#[must_use]
pub fn loan_key(account_key: &str) -> String {
    format!("~loan/{account_key}")
}

/// Key of the fence of an item.
#[must_use]
pub fn fence_key(item_key: &str) -> String {
    format!("~fence/{item_key}")
}
