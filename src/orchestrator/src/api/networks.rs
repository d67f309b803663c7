//! Virtual networks that recovered VMs are connected to.

use std::net::IpAddr;

use arm_model::neighbours::VirtualNetworkProperties;
use arm_model::{VirtualNetworkId, validate};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::entry::{Call, page, unknown_path};
use super::reply::Reply;
use super::{load, plain};
use crate::fault::Fault;
use crate::store::records::{self, Item, Network, NetworkMapping};

/// PUT, GET, list, DELETE.
///
/// # Errors
/// What is refused.
pub async fn handle(call: &Call<'_>) -> Result<Reply, Fault> {
    if call.method == "GET"
        && call.route.tail.as_deref() == Some("virtualnetworks")
        && call.route.id.is_none()
    {
        let networks = plain::list::<Network>(call).await?;
        return page(
            networks
                .iter()
                .map(|network| answer(&network.record, network.etag))
                .collect(),
        );
    }
    let id = call
        .route
        .id
        .clone()
        .filter(|_| call.route.tail.is_none())
        .ok_or_else(|| unknown_path(&call.path))?;
    let id = VirtualNetworkId::try_from(id).map_err(|_| unknown_path(&call.path))?;
    match call.method {
        "GET" => {
            let network = load::require::<Network>(call.app, id.as_str()).await?;
            Reply::versioned(&answer(&network.record, network.etag), network.etag)
        }
        "PUT" => put(call, &id).await,
        "DELETE" => delete(call, &id).await,
        _ => Err(unknown_path(&call.path)),
    }
}

async fn put(call: &Call<'_>, id: &VirtualNetworkId) -> Result<Reply, Fault> {
    validate::resource_name(id.name())
        .map_err(|violation| Fault::refuse(400, violation.into_error("name")))?;
    let location = plain::location(call)?;
    let properties: VirtualNetworkProperties = call.properties()?;
    check(&properties)?;
    let stored = records::get::<Network>(call.app.store.as_ref(), &id.key()).await?;
    let etag = stored.as_ref().map(|stored| stored.etag);
    let present = stored.as_ref().map(|stored| &stored.record.0);
    call.precondition(etag)?;
    plain::same_location(present, &location)?;
    let record = Network(plain::record(id, present, &location, &call.body));
    plain::save(call, id, etag, &record, answer).await
}

fn check(properties: &VirtualNetworkProperties) -> Result<(), Fault> {
    let ranges = &properties.address_space.address_prefixes;
    if ranges.is_empty() {
        return Err(Fault::invalid(
            "properties.addressSpace.addressPrefixes",
            "A virtual network needs at least one address range.",
        ));
    }
    if let Some(range) = ranges.iter().find(|range| !is_range(range)) {
        return Err(Fault::invalid(
            "properties.addressSpace.addressPrefixes",
            format!("`{range}` is no address range such as 10.0.0.0/16."),
        ));
    }
    for (index, subnet) in properties.subnets.iter().enumerate() {
        let target = format!("properties.subnets[{index}]");
        if subnet.name.is_empty() {
            return Err(Fault::invalid(
                &format!("{target}.name"),
                "A subnet needs a name.",
            ));
        }
        if !is_range(&subnet.properties.address_prefix) {
            return Err(Fault::invalid(
                &format!("{target}.properties.addressPrefix"),
                format!(
                    "`{}` is no address range such as 10.0.1.0/24.",
                    subnet.properties.address_prefix
                ),
            ));
        }
        if properties
            .subnets
            .iter()
            .take(index)
            .any(|other| other.name.eq_ignore_ascii_case(&subnet.name))
        {
            return Err(Fault::invalid(
                &format!("{target}.name"),
                format!("The subnet `{}` is there twice.", subnet.name),
            ));
        }
    }
    Ok(())
}

fn is_range(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else {
        return false;
    };
    let most = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.parse::<u8>().is_ok_and(|bits| bits <= most)
}

async fn delete(call: &Call<'_>, id: &VirtualNetworkId) -> Result<Reply, Fault> {
    let store = call.app.store.as_ref();
    let Some(stored) = records::get::<Network>(store, &id.key()).await? else {
        return Ok(Reply::Empty(StatusCode::NO_CONTENT));
    };
    call.precondition(Some(stored.etag))?;
    let used = records::list::<Item>(store, "")
        .await?
        .into_iter()
        .any(|item| {
            item.record
                .request
                .target_azure_network_id
                .as_deref()
                .is_some_and(|network| network.eq_ignore_ascii_case(id.as_str()))
        });
    if used {
        return Err(Fault::conflict(
            "NetworkInUse",
            id.as_str(),
            format!(
                "Protected VMs are to be connected to the network `{}`.",
                id.name()
            ),
            "Switch their protection off, or give them another network first.",
        ));
    }
    let mappings = records::list::<NetworkMapping>(store, "").await?;
    let mapping = mappings
        .into_iter()
        .map(|mapping| mapping.record)
        .find(|mapping| mapping.network_id.eq_ignore_ascii_case(id.as_str()));
    if let Some(mapping) = mapping {
        return Err(Fault::conflict(
            "NetworkInUse",
            id.as_str(),
            format!(
                "The site's network `{}` is mapped to the network `{}`, by `{}`.",
                mapping.switch,
                id.name(),
                mapping.id
            ),
            "Remove the mapping, or map to another network first.",
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

fn answer(network: &Network, etag: u64) -> Value {
    let mut answer = plain::answer(&network.0, etag, &[("subnets", json!([]))]);
    let id = network.0.id.clone();
    if let Some(subnets) = answer
        .pointer_mut("/properties/subnets")
        .and_then(Value::as_array_mut)
    {
        for subnet in subnets {
            let name = subnet
                .get("name")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned();
            if let Some(fields) = subnet.as_object_mut() {
                fields.insert("id".to_owned(), json!(format!("{id}/subnets/{name}")));
            }
        }
    }
    answer
}
