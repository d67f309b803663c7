//! Storage accounts: `properties.folder` (extension) is where replicas are kept, as the hosts see it.

use arm_model::neighbours::{Sku, StorageAccountProperties};
use arm_model::{ArmError, StorageAccountId, validate};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::entry::{Call, page, unknown_path};
use super::reply::Reply;
use super::{load, plain};
use crate::fault::Fault;
use crate::store::records::{self, Item, Policy, Storage};

/// PUT, PATCH, GET, list, DELETE.
///
/// # Errors
/// What is refused.
pub async fn handle(call: &Call<'_>) -> Result<Reply, Fault> {
    if call.method == "GET"
        && call.route.tail.as_deref() == Some("storageaccounts")
        && call.route.id.is_none()
    {
        let accounts = plain::list::<Storage>(call).await?;
        return page(
            accounts
                .iter()
                .map(|account| answer(&account.record, account.etag))
                .collect(),
        );
    }
    let id = call
        .route
        .id
        .clone()
        .filter(|_| call.route.tail.is_none())
        .ok_or_else(|| unknown_path(&call.path))?;
    let id = StorageAccountId::try_from(id).map_err(|_| unknown_path(&call.path))?;
    match call.method {
        "GET" => {
            let account = load::require::<Storage>(call.app, id.as_str()).await?;
            Reply::versioned(&answer(&account.record, account.etag), account.etag)
        }
        "PUT" => put(call, &id).await,
        "DELETE" => delete(call, &id).await,
        _ => Err(unknown_path(&call.path)),
    }
}

async fn put(call: &Call<'_>, id: &StorageAccountId) -> Result<Reply, Fault> {
    let refuse = |target: &'static str| {
        move |violation: validate::Violation| Fault::refuse(400, violation.into_error(target))
    };
    validate::storage_account_name(id.name()).map_err(refuse("name"))?;
    let location = plain::location(call)?;
    let sku: Sku =
        serde_json::from_value(call.body.get("sku").cloned().unwrap_or_else(|| json!({})))
            .map_err(|error| {
                Fault::invalid(
                    "sku",
                    format!("The kind of storage can't be read: {error}."),
                )
            })?;
    if sku.name.is_empty() {
        return Err(Fault::refuse(
            400,
            ArmError::new("InvalidParameter", "The property `sku.name` is required.")
                .at("sku.name")
                .advise("", "Use `Standard_LRS` or `Premium_LRS`."),
        ));
    }
    let properties: StorageAccountProperties = call.properties()?;
    let folder = properties.folder.unwrap_or_default();
    validate::storage_folder(&folder).map_err(refuse("properties.folder"))?;
    let stored = records::get::<Storage>(call.app.store.as_ref(), &id.key()).await?;
    let etag = stored.as_ref().map(|stored| stored.etag);
    let present = stored.as_ref().map(|stored| &stored.record.0);
    call.precondition(etag)?;
    plain::same_location(present, &location)?;
    if let Some(stored) = &stored
        && folder_of(&stored.record) != folder
        && in_use(call, id).await?
    {
        return Err(Fault::conflict(
            "StorageAccountInUse",
            "properties.folder",
            format!(
                "The folder of storage account `{}` can't be changed while VMs replicate into it.",
                id.name()
            ),
            "Switch protection of these VMs off first, or use another storage account.",
        ));
    }
    let record = Storage(plain::record(id, present, &location, &call.body));
    plain::save(call, id, etag, &record, answer).await
}

async fn delete(call: &Call<'_>, id: &StorageAccountId) -> Result<Reply, Fault> {
    let store = call.app.store.as_ref();
    let Some(stored) = records::get::<Storage>(store, &id.key()).await? else {
        return Ok(Reply::Empty(StatusCode::NO_CONTENT));
    };
    call.precondition(Some(stored.etag))?;
    let by_policy = records::list::<Policy>(store, "")
        .await?
        .into_iter()
        .any(|policy| {
            policy
                .record
                .details
                .active_storage_account_id
                .as_deref()
                .is_some_and(|account| account.eq_ignore_ascii_case(id.as_str()))
        });
    if by_policy || in_use(call, id).await? {
        return Err(Fault::conflict(
            "StorageAccountInUse",
            id.as_str(),
            format!(
                "The storage account `{}` is used by protected VMs or a policy.",
                id.name()
            ),
            "Switch protection off and remove the policy first.",
        ));
    }
    store
        .apply(vec![crate::store::Change::Delete {
            key: id.key(),
            expect: crate::store::Expect::Etag(stored.etag),
        }])
        .await?;
    Ok(Reply::Empty(StatusCode::NO_CONTENT))
}

async fn in_use(call: &Call<'_>, id: &StorageAccountId) -> Result<bool, Fault> {
    let items = records::list::<Item>(call.app.store.as_ref(), "").await?;
    Ok(items
        .iter()
        .any(|item| item.record.storage_id.eq_ignore_ascii_case(id.as_str())))
}

/// Folder of an account.
#[must_use]
pub fn folder_of(account: &Storage) -> String {
    account
        .0
        .body
        .pointer("/properties/folder")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

/// Kind of an account's storage.
#[must_use]
pub fn sku_of(account: &Storage) -> String {
    account
        .0
        .body
        .pointer("/sku/name")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn answer(account: &Storage, etag: u64) -> Value {
    let mut answer = plain::answer(&account.0, etag, &[]);
    let tier = if validate::is_premium(&sku_of(account)) {
        "Premium"
    } else {
        "Standard"
    };
    if let Some(fields) = answer.as_object_mut() {
        fields.entry("kind").or_insert_with(|| json!("StorageV2"));
        if let Some(sku) = fields.get_mut("sku").and_then(Value::as_object_mut) {
            sku.insert("tier".to_owned(), json!(tier));
        }
    }
    answer
}
