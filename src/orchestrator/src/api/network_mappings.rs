//! Mappings of a site's networks to virtual networks. A change moves every VM that follows the mapping, and nothing is
//! copied, so it is done at once.

use arm_model::network::{
    FabricSpecific, NetworkMappingInput, NetworkMappingProperties, PAIRED, VMM_TO_AZURE,
};
use arm_model::{
    ArmId, FabricId, MICROSOFT_AZURE, NetworkMappingId, Resource, VirtualNetworkId, validate,
};
use axum::http::StatusCode;

use super::entry::{Call, page, unknown_path};
use super::reply::Reply;
use super::{enable, load, site_networks};
use crate::fault::Fault;
use crate::networks;
use crate::store::records::{self, NetworkMapping, NetworkTurn, Stored};
use crate::store::{Change, Expect, StoreError};

/// PUT, PATCH, GET, DELETE, and the list of a network's mappings.
///
/// # Errors
/// What is refused.
pub async fn handle(call: &Call<'_>) -> Result<Reply, Fault> {
    let (_, fabric, _) = load::fabric(call).await?;
    let network = load::name(call, "replicationNetworks")?;
    let id = fabric
        .network(&network)
        .mapping(&load::name(call, "replicationNetworkMappings")?);
    let stored = records::get::<NetworkMapping>(call.app.store.as_ref(), &id.key()).await?;
    match (call.method, stored) {
        ("GET", Some(stored)) => Reply::versioned(&answer(&stored.record)?, stored.etag),
        ("PUT", stored) => {
            let switch = site_networks::switch(call, &fabric, &network).await?;
            put(call, &fabric, &id, switch, stored).await
        }
        ("PATCH", Some(stored)) => {
            let switch = stored.record.switch.clone();
            put(call, &fabric, &id, switch, Some(stored)).await
        }
        ("DELETE", Some(stored)) => {
            call.precondition(Some(stored.etag))?;
            let change = Change::Delete {
                key: stored.key,
                expect: Expect::Etag(stored.etag),
            };
            // Whoever maps the network at this moment looks again.
            let turn = records::delete(turn_key(&id));
            call.app.store.apply(vec![change, turn]).await?;
            call.app.ring();
            Ok(Reply::Empty(StatusCode::NO_CONTENT))
        }
        ("DELETE", None) => Ok(Reply::Empty(StatusCode::NO_CONTENT)),
        ("GET" | "PATCH", None) => Err(Fault::not_found(id.as_str())),
        _ => Err(unknown_path(&call.path)),
    }
}

/// `F/replicationNetworks/{network}/replicationNetworkMappings`.
///
/// # Errors
/// 404 without the network.
pub async fn list(call: &Call<'_>) -> Result<Reply, Fault> {
    let (_, fabric, _) = load::fabric(call).await?;
    let name = load::name(call, "replicationNetworks")?;
    let switch = site_networks::switch(call, &fabric, &name).await?;
    below(call, &networks::network_id(&fabric, &switch).key()).await
}

/// `V/replicationNetworkMappings`.
///
/// # Errors
/// 404 without a vault.
pub async fn list_of_vault(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    below(call, &vault.key()).await
}

async fn below(call: &Call<'_>, key: &str) -> Result<Reply, Fault> {
    let store = call.app.store.as_ref();
    let mappings = records::list::<NetworkMapping>(store, &format!("{key}/")).await?;
    let answers = mappings.iter().map(|mapping| answer(&mapping.record));
    page(answers.collect::<Result<Vec<_>, _>>()?)
}

async fn put(
    call: &Call<'_>,
    fabric: &FabricId,
    id: &NetworkMappingId,
    switch: String,
    stored: Option<Stored<NetworkMapping>>,
) -> Result<Reply, Fault> {
    let etag = stored.as_ref().map(|stored| stored.etag);
    call.precondition(etag)?;
    validate::resource_name(id.name())
        .map_err(|violation| Fault::refuse(400, violation.into_error("name")))?;
    let body: NetworkMappingInput = call.properties()?;
    let to_azure = |name: &String| {
        let is_constant = name.is_empty() || name.eq_ignore_ascii_case(MICROSOFT_AZURE);
        // Clients of VMM mappings name the fabric of Azure by a constant of their own.
        is_constant
            || name.eq_ignore_ascii_case(
                "d49858f157601230a6ac5862fbbc6e63bf38d23ecd96cf953767945d457fe9d5",
            )
    };
    if !body.recovery_fabric_name.as_ref().is_none_or(to_azure) {
        return Err(Fault::invalid(
            "properties.recoveryFabricName",
            format!("Networks of a Hyper-V site are mapped to `{MICROSOFT_AZURE}` only."),
        ));
    }
    if let Some(details) = &body.fabric_specific_details
        && !matches!(details.instance_type.as_str(), "" | VMM_TO_AZURE)
    {
        return Err(Fault::invalid(
            "properties.fabricSpecificDetails.instanceType",
            format!(
                "A mapping of type `{}` is not possible here; use `{VMM_TO_AZURE}` or leave it out.",
                details.instance_type
            ),
        ));
    }
    let target = "properties.recoveryNetworkId";
    let wanted = match (&body.recovery_network_id, &stored) {
        (Some(wanted), _) => wanted.clone(),
        (None, Some(stored)) => stored.record.network_id.clone(),
        (None, None) => String::new(),
    };
    if wanted.is_empty() {
        return Err(Fault::invalid(
            target,
            "A mapping needs the id of a virtual network.",
        ));
    }
    let (_, vault) = load::vault(call).await?;
    let network = enable::network(call, &wanted, &vault.record.0.location, target).await?;
    let record = NetworkMapping {
        id: stored.map_or_else(|| id.to_string(), |stored| stored.record.id),
        switch,
        network_id: network.0.id,
    };
    let etags = loop {
        match store(call, fabric, id, &record, etag).await {
            // Another mapping of the network came between.
            Err(Fault::Store(StoreError::Conflict { key })) if key == turn_key(id) => {}
            other => break other?,
        }
    };
    call.app.ring();
    Reply::versioned(
        &answer(&record)?,
        etags.first().copied().unwrap_or_default(),
    )
}

/// Stores a mapping, if it is the only one of its switch. The network's turn was read before the others were, and is written
/// with it: of two at the same time one meets a conflict.
async fn store(
    call: &Call<'_>,
    fabric: &FabricId,
    id: &NetworkMappingId,
    record: &NetworkMapping,
    etag: Option<u64>,
) -> Result<Vec<u64>, Fault> {
    let store = call.app.store.as_ref();
    let turn = records::get::<NetworkTurn>(store, &turn_key(id)).await?;
    let others = networks::of_site(call.app, fabric.as_str()).await?;
    let switch = &record.switch;
    let of_switch = |other: &&NetworkMapping| {
        let is_other = !other.id.eq_ignore_ascii_case(id.as_str());
        is_other && other.switch.to_lowercase() == switch.to_lowercase()
    };
    if let Some(other) = others.iter().find(of_switch) {
        return Err(Fault::conflict(
            "NetworkAlreadyMapped",
            id.as_str(),
            format!(
                "The network `{switch}` is mapped already, by `{}`.",
                other.id
            ),
            "Change that mapping, or remove it first.",
        ));
    }
    let next = NetworkTurn {
        mapping: record.id.clone(),
    };
    let changes = vec![
        records::put(id.key(), record, Call::expect(etag))?,
        // Nobody removes the network meanwhile.
        Change::Check {
            key: record.network_id.to_ascii_lowercase(),
            expect: Expect::Present,
        },
        records::put(
            turn_key(id),
            &next,
            Call::expect(turn.map(|turn| turn.etag)),
        )?,
    ];
    Ok(store.apply(changes).await?)
}

/// Below the site, so that it goes with it.
fn turn_key(id: &NetworkMappingId) -> String {
    let network = id.parent().map(|network| network.key());
    format!("{}/turn", network.unwrap_or_default())
}

fn answer(mapping: &NetworkMapping) -> Result<Resource<NetworkMappingProperties>, Fault> {
    let id = NetworkMappingId::parse(&mapping.id)
        .map_err(|error| Fault::invalid("id", error.to_string()))?;
    let network = id.parent().as_ref().map(ArmId::to_string);
    let site = FabricId::of(&id).map(|site| site.name().to_owned());
    let recovery = VirtualNetworkId::parse(&mapping.network_id)
        .map(|network| network.name().to_owned())
        .unwrap_or_default();
    Ok(Resource::answer(
        &id,
        NetworkMappingProperties {
            state: PAIRED.to_owned(),
            primary_network_friendly_name: mapping.switch.clone(),
            primary_network_id: network.unwrap_or_default(),
            primary_fabric_friendly_name: site.unwrap_or_default(),
            recovery_network_friendly_name: recovery,
            recovery_network_id: mapping.network_id.clone(),
            recovery_fabric_arm_id: MICROSOFT_AZURE.to_owned(),
            recovery_fabric_friendly_name: MICROSOFT_AZURE.to_owned(),
            fabric_specific_settings: FabricSpecific {
                instance_type: VMM_TO_AZURE.to_owned(),
            },
        },
    ))
}
