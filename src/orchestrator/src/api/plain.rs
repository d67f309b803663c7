//! What vaults, storage accounts and networks have in common: kept as sent, changed at once, no job.

use arm_model::{ArmError, ArmId, validate};
use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::entry::Call;
use super::reply::{Reply, etag_text};
use crate::fault::Fault;
use crate::store::records::{self, Plain, Record, Stored};

/// Region of a request, in its normal form.
///
/// # Errors
/// 400 without a region, or with one that this installation doesn't have.
pub fn location(call: &Call<'_>) -> Result<String, Fault> {
    let location = call
        .body
        .get("location")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let location = validate::normal_region(location);
    if location.is_empty() {
        return Err(Fault::refuse(
            400,
            ArmError::new("LocationRequired", "The property `location` is required.")
                .at("location"),
        ));
    }
    let regions = &call.app.regions;
    if !regions.is_empty()
        && !regions
            .iter()
            .any(|region| validate::same_region(region, &location))
    {
        return Err(Fault::refuse(
            400,
            ArmError::new(
                "LocationNotAvailable",
                format!("The region `{location}` is not available here."),
            )
            .at("location")
            .advise("", &format!("Use one of: {}.", regions.join(", "))),
        ));
    }
    Ok(location)
}

/// Refuses to move a resource.
///
/// # Errors
/// 409.
pub fn same_location(present: Option<&Plain>, location: &str) -> Result<(), Fault> {
    match present {
        Some(present) if !validate::same_region(&present.location, location) => {
            Err(Fault::conflict(
                "InvalidResourceLocation",
                "location",
                format!(
                    "`{}` is in region `{}` and can't be moved to `{location}`.",
                    present.id, present.location
                ),
                "Remove it and make it anew, or keep the region.",
            ))
        }
        _ => Ok(()),
    }
}

/// The record of a request: everything that was sent, without what belongs to the envelope.
#[must_use]
pub fn record(id: &ArmId, present: Option<&Plain>, location: &str, body: &Value) -> Plain {
    let mut fields = body.as_object().cloned().unwrap_or_default();
    for name in ["id", "name", "type", "etag", "location", "systemData"] {
        fields.remove(name);
    }
    Plain {
        id: present.map_or_else(|| id.as_str().to_owned(), |present| present.id.clone()),
        location: location.to_owned(),
        body: Value::Object(fields),
    }
}

/// The answer for a record. `defaults` are properties that are there when nobody sent them.
#[must_use]
pub fn answer(record: &Plain, etag: u64, defaults: &[(&str, Value)]) -> Value {
    let mut fields = Map::new();
    if let Ok(id) = ArmId::parse(&record.id) {
        fields.insert("id".to_owned(), json!(id.as_str()));
        fields.insert("name".to_owned(), json!(id.name()));
        fields.insert("type".to_owned(), json!(id.resource_type()));
    }
    fields.insert("location".to_owned(), json!(record.location));
    fields.insert("etag".to_owned(), json!(etag_text(etag)));
    for (name, value) in record.body.as_object().into_iter().flatten() {
        fields.insert(name.clone(), value.clone());
    }
    let mut properties = record
        .body
        .get("properties")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    for (name, value) in defaults {
        if properties.get(*name).is_none_or(Value::is_null) {
            properties.insert((*name).to_owned(), value.clone());
        }
    }
    properties.insert("provisioningState".to_owned(), json!("Succeeded"));
    fields.insert("properties".to_owned(), Value::Object(properties));
    Value::Object(fields)
}

/// Stores a record; 201 when it is new.
///
/// # Errors
/// 412 when somebody else was faster; failures of the store.
pub async fn save<R: Record>(
    call: &Call<'_>,
    id: &ArmId,
    present: Option<u64>,
    record: &R,
    answer: impl Fn(&R, u64) -> Value,
) -> Result<Reply, Fault> {
    let change = records::put(id.key(), record, Call::expect(present))?;
    let etags = call.app.store.apply(vec![change]).await?;
    let etag = etags.first().copied().unwrap_or_default();
    call.app.ring();
    let status = if present.is_some() {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    Reply::json(status, &answer(record, etag), Some(etag))
}

/// Records in a subscription or a group.
///
/// # Errors
/// Failures of the store.
pub async fn list<R: Record>(call: &Call<'_>) -> Result<Vec<Stored<R>>, Fault> {
    let subscription = call.route.subscription.to_ascii_lowercase();
    let prefix = match &call.route.group {
        Some(group) => format!(
            "/subscriptions/{subscription}/resourcegroups/{}/",
            group.to_ascii_lowercase()
        ),
        None => format!("/subscriptions/{subscription}/"),
    };
    Ok(records::list::<R>(call.app.store.as_ref(), &prefix).await?)
}
