//! Vaults and their settings.

use arm_model::vault::VaultSettingProperties;
use arm_model::{Resource, VaultId, validate};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::entry::{Call, page, unknown_path};
use super::reply::Reply;
use super::{load, plain};
use crate::fault::Fault;
use crate::store::records::{self, Fabric, JobRecord, Plan, Policy, Vault};

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
            let (_, vault) = load::vault(call).await?;
            Reply::versioned(&answer(&vault.record, vault.etag), vault.etag)
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
    let record = Vault(plain::record(&id, present, &location, &call.body));
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
    let mut changes = vec![crate::store::Change::Delete {
        key: id.key(),
        expect: crate::store::Expect::Etag(stored.etag),
    }];
    for job in records::list::<JobRecord>(store, &below).await? {
        changes.push(records::delete(job.key));
    }
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
