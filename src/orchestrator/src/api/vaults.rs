//! Vaults and their settings.

use arm_model::vault::{EncryptionKey, VaultSettingProperties};
use arm_model::{Resource, VaultId, validate};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::entry::{Call, page, unknown_path};
use super::reply::Reply;
use super::{load, plain};
use crate::fault::Fault;
use crate::saga::state::Phase;
use crate::schedule::Schedule;
use crate::store::records::{self, Fabric, JobRecord, Plan, Policy, Vault, VaultKeys};
use crate::vault_keys;

/// Vaults: PUT, PATCH, GET, list, DELETE.
///
/// # Errors
/// What is refused.
pub async fn handle(call: &Call<'_>) -> Result<Reply, Fault> {
    match (call.method, call.route.tail.as_deref()) {
        ("GET", Some("vaults")) => {
            let vaults = plain::list::<Vault>(call).await?;
            page(
                vaults
                    .iter()
                    .map(|vault| answer(&vault.record, vault.etag))
                    .collect(),
            )
        }
        ("GET", Some("operations")) => page::<()>(Vec::new()),
        ("GET", None) => {
            let (id, vault) = load::vault(call).await?;
            let mut answer = answer(&vault.record, vault.etag);
            show_key(&mut answer, &vault_keys::load(call.app, &id).await?);
            Reply::versioned(&answer, vault.etag)
        }
        ("PUT", None) => put(call).await,
        ("PATCH", None) => patch(call).await,
        ("DELETE", None) => delete(call).await,
        _ => Err(unknown_path(&call.path)),
    }
}

async fn put(call: &Call<'_>) -> Result<Reply, Fault> {
    let id = call
        .route
        .id
        .clone()
        .ok_or_else(|| unknown_path(&call.path))?;
    let id = VaultId::try_from(id).map_err(|error| Fault::invalid("id", error.to_string()))?;
    validate::vault_name(id.name())
        .map_err(|violation| Fault::refuse(400, violation.into_error("name")))?;
    let location = plain::location(call)?;
    let stored = records::get::<Vault>(call.app.store.as_ref(), &id.key()).await?;
    let etag = stored.as_ref().map(|stored| stored.etag);
    let present = stored.as_ref().map(|stored| &stored.record.0);
    call.precondition(etag)?;
    plain::same_location(present, &location)?;
    let mut body = call.body.clone();
    if let Some(properties) = body.get_mut("properties").and_then(Value::as_object_mut) {
        properties.remove("replicationEncryptionKey");
    }
    let record = Vault(plain::record(&id, present, &location, &body));
    plain::save(call, &id, etag, &record, answer).await
}

async fn patch(call: &Call<'_>) -> Result<Reply, Fault> {
    let (id, stored) = load::vault(call).await?;
    call.precondition(Some(stored.etag))?;
    let mut record = stored.record;
    for (name, value) in call.body.as_object().into_iter().flatten() {
        if let Some(fields) = record.0.body.as_object_mut()
            && matches!(name.as_str(), "tags" | "sku" | "identity" | "properties")
        {
            merge(
                fields.entry(name.clone()).or_insert(Value::Null),
                value,
                name == "properties",
            );
        }
    }
    plain::save(call, &id, Some(stored.etag), &record, answer).await
}

fn merge(present: &mut Value, sent: &Value, deep: bool) {
    match (present.as_object_mut(), sent.as_object()) {
        (Some(fields), Some(sent)) if deep => {
            for (name, value) in sent {
                fields.insert(name.clone(), value.clone());
            }
        }
        _ => *present = sent.clone(),
    }
}

async fn delete(call: &Call<'_>) -> Result<Reply, Fault> {
    let id = call
        .route
        .id
        .as_ref()
        .and_then(VaultId::of)
        .ok_or_else(|| unknown_path(&call.path))?;
    let store = call.app.store.as_ref();
    let Some(stored) = records::get::<Vault>(store, &id.key()).await? else {
        return Ok(Reply::Empty(StatusCode::NO_CONTENT));
    };
    call.precondition(Some(stored.etag))?;
    let below = format!("{}/", id.key());
    let children = [
        (
            "Hyper-V sites",
            records::any::<Fabric>(store, &below).await?,
        ),
        ("recovery plans", records::any::<Plan>(store, &below).await?),
        (
            "replication policies",
            records::any::<Policy>(store, &below).await?,
        ),
    ];
    if let Some((what, _)) = children.iter().find(|(_, there)| *there) {
        return Err(Fault::conflict(
            "VaultNotEmpty",
            id.as_str(),
            format!("The vault `{}` still has {what}.", id.name()),
            "Switch protection off, then remove hosts, sites, plans and policies first.",
        ));
    }
    let jobs = records::list::<JobRecord>(store, &below).await?;
    if let Some(job) = jobs.iter().find(|job| job.record.phase != Phase::Ended) {
        return Err(Fault::conflict(
            "VaultNotEmpty",
            id.as_str(),
            format!(
                "The job `{}` ({}) of the vault `{}` has not ended.",
                job.record.properties.friendly_name,
                job.record.id,
                id.name()
            ),
            "Wait until the job has ended, or cancel it.",
        ));
    }
    let mut changes = vec![crate::store::Change::Delete {
        key: id.key(),
        expect: crate::store::Expect::Etag(stored.etag),
    }];
    let keys = vault_keys::load(call.app, &id).await?;
    if !keys.keys.iter().any(|key| key.kept) {
        // Replicas that were left in the store stay readable when a vault of this id is made again.
        changes.push(records::delete(records::vault_keys_key(&id.key())));
    }
    changes.extend(jobs.into_iter().map(|job| records::delete(job.key)));
    let schedules = records::list::<Schedule>(store, &below).await?;
    changes.extend(schedules.into_iter().map(|one| records::delete(one.key)));
    store.apply(changes).await?;
    Ok(Reply::Empty(StatusCode::NO_CONTENT))
}

fn answer(vault: &Vault, etag: u64) -> Value {
    let mut answer = plain::answer(
        &vault.0,
        etag,
        &[
            ("publicNetworkAccess", json!("Enabled")),
            ("privateEndpointStateForBackup", json!("None")),
            ("privateEndpointStateForSiteRecovery", json!("None")),
        ],
    );
    if let Some(fields) = answer.as_object_mut() {
        fields
            .entry("sku")
            .or_insert_with(|| json!({ "name": "RS0", "tier": "Standard" }));
    }
    answer
}

/// Id and age of the encryption key; the key itself is never shown.
fn show_key(answer: &mut Value, keys: &VaultKeys) {
    let properties = answer.get_mut("properties").and_then(Value::as_object_mut);
    if let (Some(properties), Some(shown)) = (properties, shown_key(keys)) {
        properties.insert("replicationEncryptionKey".to_owned(), json!(shown));
    }
}

fn shown_key(keys: &VaultKeys) -> Option<EncryptionKey> {
    let active = keys.keys.last()?;
    Some(EncryptionKey {
        key_id: active.id.clone(),
        created_time: arm_model::timestamp::from_unix_ms(active.created_unix_ms)
            .unwrap_or_default(),
        kept_key_ids: keys.keys.iter().map(|key| key.id.clone()).collect(),
    })
}

/// Extension: `POST V/rotateEncryptionKey`. New objects are encrypted with a new key; old keys stay for as long as
/// objects need them.
///
/// # Errors
/// 404 without a vault; failures of the store.
pub async fn rotate_key(call: &Call<'_>) -> Result<Reply, Fault> {
    let (id, stored) = load::vault(call).await?;
    call.precondition(Some(stored.etag))?;
    let keys = vault_keys::rotate(call.app, &id).await?;
    Reply::ok(&json!({ "properties": shown_key(&keys).unwrap_or_default() }))
}

/// `V/replicationVaultSettings/default`.
///
/// # Errors
/// 404.
pub async fn setting(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    let name = load::name(call, "replicationVaultSettings")?;
    if !name.eq_ignore_ascii_case("default") {
        return Err(Fault::not_found(
            vault.child("replicationVaultSettings", &name).as_str(),
        ));
    }
    Reply::ok(&default_setting(&vault))
}

/// `V/replicationVaultSettings`.
///
/// # Errors
/// 404.
pub async fn settings(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    page(vec![default_setting(&vault)])
}

fn default_setting(vault: &VaultId) -> Resource<VaultSettingProperties> {
    Resource::answer(
        &vault.child("replicationVaultSettings", "default"),
        VaultSettingProperties::default(),
    )
}
