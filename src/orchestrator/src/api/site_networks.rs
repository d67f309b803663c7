//! Networks of a site: the virtual switches that its hosts' VMs are connected to. They are found, never made.

use std::collections::BTreeMap;

use arm_model::network::NetworkProperties;
use arm_model::{FabricId, HYPER_V_SITE, Resource};

use super::entry::{Call, page};
use super::load;
use super::reply::Reply;
use crate::fault::Fault;
use crate::networks;
use crate::store::records::{self, Fabric};

/// `F/replicationNetworks/{network}`.
///
/// # Errors
/// 404.
pub async fn get(call: &Call<'_>) -> Result<Reply, Fault> {
    let (_, fabric, _) = load::fabric(call).await?;
    let name = load::name(call, "replicationNetworks")?;
    let switch = switch(call, &fabric, &name).await?;
    Reply::ok(&answer(&fabric, &switch))
}

/// `F/replicationNetworks`.
///
/// # Errors
/// 404 without a site.
pub async fn list_of_fabric(call: &Call<'_>) -> Result<Reply, Fault> {
    let (_, fabric, _) = load::fabric(call).await?;
    page(answers(call, &fabric).await?)
}

/// `V/replicationNetworks`.
///
/// # Errors
/// 404 without a vault.
pub async fn list_of_vault(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    let prefix = format!("{}/", vault.key());
    let mut all = Vec::new();
    for stored in records::list::<Fabric>(call.app.store.as_ref(), &prefix).await? {
        if let Ok(fabric) = FabricId::parse(&stored.record.id) {
            all.extend(answers(call, &fabric).await?);
        }
    }
    page(all)
}

/// The switch that a network's name stands for.
///
/// # Errors
/// 404 when no VM of the site is connected to it and nothing maps it.
pub async fn switch(call: &Call<'_>, fabric: &FabricId, name: &str) -> Result<String, Fault> {
    let wanted = fabric.network(name);
    switches(call, fabric)
        .await?
        .into_iter()
        .find(|switch| networks::network_id(fabric, switch).key() == wanted.key())
        .ok_or_else(|| Fault::not_found(wanted.as_str()))
}

/// Switches by name. A mapped one stays although no VM is connected to it now.
async fn switches(call: &Call<'_>, fabric: &FabricId) -> Result<Vec<String>, Fault> {
    let mut found = BTreeMap::new();
    for engine in load::engines(call.app, fabric).await? {
        let live = call.app.fleet.get(&engine.engine_id).unwrap_or_default();
        for machine in &live.report.virtual_machines {
            for adapter in &machine.network_adapters {
                let switch = &adapter.network_name;
                found
                    .entry(switch.to_lowercase())
                    .or_insert_with(|| switch.clone());
            }
        }
    }
    for mapping in networks::of_site(call.app, fabric.as_str()).await? {
        let switch = mapping.switch;
        found.entry(switch.to_lowercase()).or_insert(switch);
    }
    Ok(found
        .into_values()
        .filter(|switch| !switch.is_empty())
        .collect())
}

async fn answers(
    call: &Call<'_>,
    fabric: &FabricId,
) -> Result<Vec<Resource<NetworkProperties>>, Fault> {
    let switches = switches(call, fabric).await?;
    Ok(switches
        .iter()
        .map(|switch| answer(fabric, switch))
        .collect())
}

fn answer(fabric: &FabricId, switch: &str) -> Resource<NetworkProperties> {
    Resource::answer(
        &networks::network_id(fabric, switch),
        NetworkProperties {
            fabric_type: HYPER_V_SITE.to_owned(),
            subnets: Vec::new(),
            friendly_name: switch.to_owned(),
            network_type: "VirtualSwitch".to_owned(),
        },
    )
}
