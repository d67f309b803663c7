//! Subscriptions and resource groups, as far as tools need them before anything else.
//!
//! A group is there when it was made, or when anything is in it.

use arm_model::ResourceGroupId;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::entry::{Call, page, unknown_path};
use super::reply::Reply;
use crate::fault::Fault;
use crate::store::Expect;
use crate::store::records::{self, Group, Network, Plain, Storage, Vault};

const PROVIDERS: &[&str] = &[
    "Microsoft.RecoveryServices",
    "Microsoft.Storage",
    "Microsoft.Network",
];

/// Subscription and group level.
///
/// # Errors
/// What is refused.
pub async fn handle(call: &Call<'_>) -> Result<Reply, Fault> {
    let subscription = &call.route.subscription;
    match (call.method, &call.route.group, call.route.tail.as_deref()) {
        (_, Some(name), None) => group(call, name).await,
        ("GET", None, None) => Reply::ok(&json!({
            "id": format!("/subscriptions/{subscription}"), "subscriptionId": subscription,
            "displayName": "Site Recovery", "state": "Enabled", "tenantId": call.app.tenant_id,
        })),
        ("GET", None, Some("providers")) => {
            page(PROVIDERS.iter().map(|namespace| json!({ "namespace": namespace, "registrationState": "Registered", "resourceTypes": [] })).collect::<Vec<Value>>())
        }
        ("GET", None, Some("resourcegroups")) => {
            let prefix = format!("/subscriptions/{}/resourcegroups/", subscription.to_ascii_lowercase());
            let groups = records::list::<Group>(call.app.store.as_ref(), &prefix).await?;
            page(groups.iter().map(|group| answer(&group.record.0)).collect())
        }
        _ => Err(unknown_path(&call.path)),
    }
}

async fn group(call: &Call<'_>, name: &str) -> Result<Reply, Fault> {
    let id = ResourceGroupId::new(&call.route.subscription, name);
    let key = id.as_arm().key();
    let store = call.app.store.as_ref();
    let stored = records::get::<Group>(store, &key).await?;
    let etag = stored.as_ref().map(|stored| stored.etag);
    let children = format!("{key}/");
    let used = records::any::<Vault>(store, &children).await?
        || records::any::<Storage>(store, &children).await?
        || records::any::<Network>(store, &children).await?;
    match call.method {
        "GET" => match stored {
            Some(stored) => Reply::versioned(&answer(&stored.record.0), stored.etag),
            None if used => Reply::ok(
                &json!({ "id": id.to_string(), "name": name, "type": "Microsoft.Resources/resourceGroups", "location": "", "properties": { "provisioningState": "Succeeded" } }),
            ),
            None => Err(Fault::refuse(
                404,
                arm_model::ArmError::new(
                    "ResourceGroupNotFound",
                    format!("The resource group `{name}` was not found."),
                ),
            )),
        },
        "HEAD" => Ok(Reply::Empty(if stored.is_some() || used {
            StatusCode::NO_CONTENT
        } else {
            StatusCode::NOT_FOUND
        })),
        "PUT" => {
            call.precondition(etag)?;
            arm_model::validate::resource_name(name)
                .map_err(|violation| Fault::refuse(400, violation.into_error("name")))?;
            let location = call
                .body
                .get("location")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned();
            let id = stored
                .as_ref()
                .map_or_else(|| id.to_string(), |stored| stored.record.0.id.clone());
            let record = Group(Plain {
                id,
                location,
                body: call.body.clone(),
            });
            let etags = store
                .apply(vec![records::put(key, &record, Call::expect(etag))?])
                .await?;
            let status = if etag.is_some() {
                StatusCode::OK
            } else {
                StatusCode::CREATED
            };
            Reply::json(status, &answer(&record.0), etags.first().copied())
        }
        "DELETE" => {
            call.precondition(etag)?;
            if used {
                return Err(Fault::conflict(
                    "ResourceGroupNotEmpty",
                    id.as_arm().as_str(),
                    format!("The resource group `{name}` is not empty."),
                    "Remove vaults, storage accounts and networks first.",
                ));
            }
            store
                .apply(vec![crate::store::Change::Delete {
                    key,
                    expect: Expect::Any,
                }])
                .await?;
            Ok(Reply::Empty(StatusCode::OK))
        }
        _ => Err(unknown_path(&call.path)),
    }
}

fn answer(group: &Plain) -> Value {
    let name = group.id.rsplit('/').next().unwrap_or_default();
    json!({
        "id": group.id, "name": name, "type": "Microsoft.Resources/resourceGroups", "location": group.location,
        "tags": group.body.get("tags").cloned().unwrap_or(Value::Null),
        "properties": { "provisioningState": "Succeeded" },
    })
}
