//! Storage accounts: a folder of the hosts (`properties.folder`) or a container in Azure (`properties.blobEndpoint`).
//! Both are extensions. Credentials come in and never go out: they are taken out of the body before it is stored.

use arm_model::neighbours::{Sku, StorageAccountProperties};
use arm_model::validate::{self, Violation};
use arm_model::{ArmError, StorageAccountId};
use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::entry::{Call, page, unknown_path};
use super::reply::Reply;
use super::{load, plain};
use crate::access::{self, Account};
use crate::fault::Fault;
use crate::store::records::{self, AccountSecret, Item, Policy, Storage, Stored};
use crate::store::{Change, Expect};

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
        "PUT" => {
            let stored = records::get::<Storage>(call.app.store.as_ref(), &id.key()).await?;
            save(call, &id, stored, call.body.clone()).await
        }
        "PATCH" => {
            let stored = load::require::<Storage>(call.app, id.as_str()).await?;
            let body = patched(&stored.record, &call.body);
            save(call, &id, Some(stored), body).await
        }
        "DELETE" => delete(call, &id).await,
        _ => Err(unknown_path(&call.path)),
    }
}

/// The stored body with what a PATCH names.
fn patched(stored: &Storage, sent: &Value) -> Value {
    let mut body = stored.0.body.clone();
    if let Some(fields) = body.as_object_mut() {
        fields.insert("location".to_owned(), json!(stored.0.location));
        for (name, value) in sent.as_object().into_iter().flatten() {
            match (
                name.as_str(),
                fields.get_mut(name).and_then(Value::as_object_mut),
            ) {
                ("properties", Some(present)) => present.extend(
                    value
                        .as_object()
                        .into_iter()
                        .flatten()
                        .map(|(name, value)| (name.clone(), value.clone())),
                ),
                ("properties" | "sku" | "tags" | "kind", _) => {
                    fields.insert(name.clone(), value.clone());
                }
                _ => {}
            }
        }
    }
    body
}

/// What a request gives to get access with. Without `Debug`.
#[derive(Default)]
struct Given {
    account_key: Option<String>,
    client_secret: Option<String>,
}

/// Takes credentials out of a body, so that nothing later can store, show or log them.
fn take_secrets(body: &mut Value) -> Given {
    let mut given = Given::default();
    let Some(properties) = body.get_mut("properties").and_then(Value::as_object_mut) else {
        scrub(body);
        return given;
    };
    let text = |value: Option<Value>| match value {
        Some(Value::String(text)) if !text.is_empty() => Some(text),
        _ => None,
    };
    given.account_key = text(properties.remove("accountKey"));
    if let Some(client) = properties.get_mut("accessClient") {
        given.client_secret = text(
            client
                .as_object_mut()
                .and_then(|client| client.remove("clientSecret")),
        );
        if !client.is_object() {
            *client = Value::Null;
        }
    }
    // What answers add is not stored.
    for name in ["accessKind", "primaryEndpoints"] {
        properties.remove(name);
    }
    scrub(body);
    given
}

/// Removes credentials from wherever else they were put.
fn scrub(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| {
                !["accountKey", "clientSecret"]
                    .iter()
                    .any(|secret| secret.eq_ignore_ascii_case(name))
            });
            fields.values_mut().for_each(scrub);
        }
        Value::Array(values) => values.iter_mut().for_each(scrub),
        _ => {}
    }
}

async fn save(
    call: &Call<'_>,
    id: &StorageAccountId,
    stored: Option<Stored<Storage>>,
    mut body: Value,
) -> Result<Reply, Fault> {
    let store = call.app.store.as_ref();
    let given = take_secrets(&mut body);
    validate::storage_account_name(id.name()).map_err(refuse("name"))?;
    let location = match call.method {
        "PATCH" => stored
            .as_ref()
            .map(|stored| stored.record.0.location.clone())
            .unwrap_or_default(),
        _ => plain::location(call)?,
    };
    check_sku(&body)?;
    let properties = properties(&body)?;
    check_place(&properties)?;
    let etag = stored.as_ref().map(|stored| stored.etag);
    let present = stored.as_ref().map(|stored| &stored.record.0);
    call.precondition(etag)?;
    plain::same_location(present, &location)?;
    let record = Storage(plain::record(id, present, &location, &body));
    if let Some(stored) = &stored {
        stays_where_it_is(call, id, &stored.record, &record).await?;
    }
    let account = Account::of(&record);
    let secret = secret_after(call, id, stored.as_ref(), account.as_ref(), given).await?;
    let mut changes = vec![records::put(id.key(), &record, Call::expect(etag))?];
    let secret_key = records::account_secret_key(&id.key());
    changes.push(match &secret {
        Some(secret) => records::put(secret_key, secret, Expect::Any)?,
        None => records::delete(secret_key),
    });
    let etags = store.apply(changes).await?;
    if let Some(account) = &account {
        access::loans::try_out(call.app, account).await?;
    }
    call.app.ring();
    let etag = etags.first().copied().unwrap_or_default();
    let status = if stored.is_some() {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    Reply::json(status, &answer(&record, etag), Some(etag))
}

fn refuse(target: &'static str) -> impl Fn(Violation) -> Fault {
    move |violation| Fault::refuse(400, violation.into_error(target))
}

fn check_sku(body: &Value) -> Result<(), Fault> {
    let sku: Sku = serde_json::from_value(body.get("sku").cloned().unwrap_or_else(|| json!({})))
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
    Ok(())
}

fn properties(body: &Value) -> Result<StorageAccountProperties, Fault> {
    let properties = body.get("properties").filter(|value| !value.is_null());
    let properties = properties.cloned().unwrap_or_else(|| json!({}));
    serde_json::from_value(properties).map_err(|error| {
        Fault::refuse(
            400,
            ArmError::new(
                "InvalidRequestContent",
                format!("The request body can't be read: {error}."),
            )
            .at("properties"),
        )
    })
}

/// Either a folder or a container in Azure, each with what belongs to it.
fn check_place(properties: &StorageAccountProperties) -> Result<(), Fault> {
    let azure_only = [
        (
            "properties.containerName",
            properties.container_name.is_some(),
        ),
        (
            "properties.accessClient",
            properties.access_client.is_some(),
        ),
        ("properties.stripes", properties.stripes.is_some()),
        ("properties.proxyUrl", properties.proxy_url.is_some()),
        ("properties.caPem", properties.ca_pem.is_some()),
    ];
    match (&properties.folder, &properties.blob_endpoint) {
        (Some(_), Some(_)) => Err(Fault::invalid(
            "properties.blobEndpoint",
            "A storage account is a folder or lies in Azure, not both.",
        )),
        (None, None) => Err(Fault::refuse(
            400,
            ArmError::new(
                "InvalidParameter",
                "The storage account has no place for replicas.",
            )
            .at("properties.folder")
            .advise(
                "",
                "Give `properties.folder`, a folder of the hosts, or `properties.blobEndpoint` with a credential.",
            ),
        )),
        (Some(folder), None) => {
            validate::storage_folder(folder).map_err(refuse("properties.folder"))?;
            match azure_only.iter().find(|(_, given)| *given) {
                Some((target, _)) => Err(Fault::invalid(
                    target,
                    "This belongs to a storage account in Azure; the account is a folder.",
                )),
                None => Ok(()),
            }
        }
        (None, Some(endpoint)) => {
            validate::blob_endpoint(endpoint).map_err(refuse("properties.blobEndpoint"))?;
            let checks: [(&'static str, Option<Result<(), Violation>>); 4] = [
                (
                    "properties.containerName",
                    properties.container_name.as_deref().map(validate::container_name),
                ),
                ("properties.stripes", properties.stripes.map(validate::stripes)),
                (
                    "properties.proxyUrl",
                    properties.proxy_url.as_deref().map(validate::proxy_url),
                ),
                ("properties.caPem", properties.ca_pem.as_deref().map(validate::ca_pem)),
            ];
            for (target, result) in checks {
                result.transpose().map_err(refuse(target))?;
            }
            if let Some(client) = &properties.access_client {
                if client.tenant_id.is_empty() || client.client_id.is_empty() {
                    return Err(Fault::invalid(
                        "properties.accessClient",
                        "An access client has `tenantId` and `clientId`.",
                    ));
                }
                if let Some(authority) = &client.authority {
                    validate::authority(authority)
                        .map_err(refuse("properties.accessClient.authority"))?;
                }
            }
            Ok(())
        }
    }
}

/// Replicas stay where they are: the place can't change while VMs replicate there.
async fn stays_where_it_is(
    call: &Call<'_>,
    id: &StorageAccountId,
    before: &Storage,
    after: &Storage,
) -> Result<(), Fault> {
    let place = |storage: &Storage| {
        let account = Account::of(storage);
        (
            folder_of(storage),
            account.map(|account| (account.endpoint, account.container)),
        )
    };
    let premium = |storage: &Storage| validate::is_premium(&sku_of(storage));
    let moved = place(before) != place(after);
    if (!moved && premium(before) == premium(after)) || !in_use(call, id).await? {
        return Ok(());
    }
    let (target, what) = match (moved, place(after).0.is_empty()) {
        (true, true) => ("properties.blobEndpoint", "endpoint and container"),
        (true, false) => ("properties.folder", "folder"),
        (false, _) => ("sku.name", "tier"),
    };
    Err(Fault::conflict(
        "StorageAccountInUse",
        target,
        format!(
            "The {what} of storage account `{}` can't be changed while VMs replicate into it.",
            id.name()
        ),
        "Switch protection of these VMs off first, or use another storage account.",
    ))
}

/// The credential after a change: the one that was given, or the one that is there. A credential that is there is not
/// used for another endpoint or another place to sign in, nor by another way there (a proxy with an authority of its own reads
/// what passes): whoever changes these knows the credential.
async fn secret_after(
    call: &Call<'_>,
    id: &StorageAccountId,
    stored: Option<&Stored<Storage>>,
    account: Option<&Account>,
    given: Given,
) -> Result<Option<AccountSecret>, Fault> {
    let Some(account) = account else {
        return Ok(None);
    };
    let name = records::account_secret_key(&id.key());
    let seal = |secret: &str| {
        call.app
            .sealer
            .seal(&name, secret.as_bytes())
            .map_err(|error| {
                Fault::refuse(500, ArmError::new("InternalError", format!("{error}.")))
            })
    };
    let present = records::get::<AccountSecret>(call.app.store.as_ref(), &name)
        .await?
        .map(|stored| stored.record)
        .unwrap_or_default();
    let before = stored.and_then(|stored| Account::of(&stored.record));
    let same_target = before.as_ref().is_some_and(|before| {
        before.endpoint == account.endpoint
            && before.client == account.client
            && before.proxy_url == account.proxy_url
            && before.ca_pem == account.ca_pem
    });
    let missing = |target: &'static str, what: &str| {
        Err(Fault::refuse(
            400,
            ArmError::new(
                "StorageCredentialRequired",
                format!("The storage account needs {what}."),
            )
            .at(target)
            .advise(
                "The credential was never given, or endpoint, access client, proxy or authorities are others than before.",
                "Give the credential with the request; it is never shown again.",
            ),
        ))
    };
    if account.client.is_some() {
        if given.account_key.is_some() {
            return Err(Fault::invalid(
                "properties.accountKey",
                "The storage account is used with an access client or with a key, not with both.",
            ));
        }
        let client_secret = match given.client_secret {
            Some(secret) => Some(seal(&secret)?),
            None => present.client_secret.filter(|_| same_target),
        };
        if client_secret.is_none() {
            return missing(
                "properties.accessClient.clientSecret",
                "the secret of its access client",
            );
        }
        return Ok(Some(AccountSecret {
            account_key: None,
            client_secret,
        }));
    }
    if let Some(key) = &given.account_key {
        validate::account_key(key).map_err(refuse("properties.accountKey"))?;
    }
    let account_key = match given.account_key {
        Some(key) => Some(seal(&key)?),
        None => present.account_key.filter(|_| same_target),
    };
    if account_key.is_none() {
        return missing(
            "properties.accountKey",
            "an account key or an access client",
        );
    }
    Ok(Some(AccountSecret {
        account_key,
        client_secret: None,
    }))
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
        .apply(vec![
            Change::Delete {
                key: id.key(),
                expect: Expect::Etag(stored.etag),
            },
            records::delete(records::account_secret_key(&id.key())),
            records::delete(records::loan_key(&id.key())),
        ])
        .await?;
    Ok(Reply::Empty(StatusCode::NO_CONTENT))
}

async fn in_use(call: &Call<'_>, id: &StorageAccountId) -> Result<bool, Fault> {
    let items = records::list::<Item>(call.app.store.as_ref(), "").await?;
    Ok(items.iter().any(|item| item.record.uses(id.as_str())))
}

/// Folder of an account; empty for one in Azure.
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
        if let (Some(azure), Some(properties)) = (
            Account::of(account),
            fields.get_mut("properties").and_then(Value::as_object_mut),
        ) {
            show_azure(&azure, properties);
        }
    }
    answer
}

fn show_azure(account: &Account, properties: &mut Map<String, Value>) {
    let kind = if account.client.is_some() {
        "Client"
    } else {
        "AccountKey"
    };
    properties.insert("accessKind".to_owned(), json!(kind));
    properties.insert(
        "primaryEndpoints".to_owned(),
        json!({ "blob": format!("{}/", account.endpoint) }),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_credential_is_left_in_a_body() {
        let mut body = json!({ "properties": { "accountKey": "SECRET", "accessKind": "x",
            "accessClient": { "clientId": "c", "clientSecret": "SECRET" } } });
        let given = take_secrets(&mut body);
        assert_eq!(given.account_key.as_deref(), Some("SECRET"));
        assert_eq!(given.client_secret.as_deref(), Some("SECRET"));
        assert!(!body.to_string().contains("SECRET"));
        // Not even one at a wrong place or of a wrong shape.
        let mut body = json!({ "clientSecret": "SECRET", "properties": { "accountKey": ["SECRET"], "accessClient": "SECRET",
            "more": [{ "accountKey": "SECRET" }] } });
        take_secrets(&mut body);
        assert!(!body.to_string().contains("SECRET"));
    }
}
