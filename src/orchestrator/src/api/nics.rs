//! What a person chooses for the adapters of a recovered VM: which ones it gets, their subnets and addresses.
//!
//! Rules of the original: one network for all adapters of a VM; exactly one primary adapter, which is recovered; an
//! address that is taken makes a failover fail, so it is refused here, while there is time.

use std::net::IpAddr;

use arm_model::neighbours::VirtualNetworkProperties;
use arm_model::network::{NOT_SELECTED, NicChoice, SELECTED_BY_DEFAULT, SELECTED_BY_USER};
use arm_model::{ProtectedItemId, VaultId};
use engine_protocol::v1;

use super::entry::Call;
use crate::fault::Fault;
use crate::networks;
use crate::store::records::{self, Item, Network};

/// The choices of before with those of a request: adapters that it does not name keep theirs.
#[must_use]
pub fn merged(before: Option<&Vec<NicChoice>>, wanted: Vec<NicChoice>) -> Vec<NicChoice> {
    let mut choices = before.cloned().unwrap_or_default();
    for choice in wanted {
        choices.retain(|known| known.nic_id != choice.nic_id);
        choices.push(choice);
    }
    choices
}

/// Drops choices for adapters that the VM has no more. Nothing is dropped while its host says nothing of it.
pub fn drop_gone(call: &Call<'_>, item: &mut Item) {
    let live = call.app.fleet.get(&item.engine_id).unwrap_or_default();
    let Some(machine) = live.machine(&item.vm_id) else {
        return;
    };
    let of_vm = |adapter: &v1::NetworkAdapter| networks::nic_id(&item.vm_id, &adapter.id);
    let ids: Vec<String> = machine.network_adapters.iter().map(of_vm).collect();
    if let Some(choices) = &mut item.request.vm_nics {
        choices.retain(|choice| ids.contains(&choice.nic_id));
    }
    if item
        .request
        .selected_source_nic_id
        .as_ref()
        .is_some_and(|id| !ids.contains(id))
    {
        item.request.selected_source_nic_id = None;
    }
}

/// Checks the choices of an item against its adapters, its network and what other VMs were given.
///
/// # Errors
/// 400 at the choice, with every reason of the first wrong one.
pub async fn check(call: &Call<'_>, item: &Item, at: &str) -> Result<(), Fault> {
    let live = call.app.fleet.get(&item.engine_id).unwrap_or_default();
    let adapters = live
        .last_machine(&item.vm_id)
        .map(|machine| machine.network_adapters.clone())
        .unwrap_or_default();
    let choices = item.request.vm_nics.as_deref().unwrap_or_default();
    selection(item, &adapters, choices, at)?;
    let network = networks::of_item(call.app, item, &live).await?;
    let Some(network) = network else {
        // Without its host nobody knows the VM's switch.
        if adapters.is_empty() {
            return Ok(());
        }
        return match choices.iter().position(|choice| choice.address().is_some()) {
            None => Ok(()),
            Some(index) => Err(Fault::invalid(
                &format!("{at}.vmNics[{index}]"),
                "An address needs a network: choose one for the VM, or map its virtual switch.",
            )),
        };
    };
    let store = call.app.store.as_ref();
    let Some(stored) = records::get::<Network>(store, &network.id.to_ascii_lowercase()).await?
    else {
        return Ok(());
    };
    let properties = stored.record.0.body.get("properties").cloned();
    let properties: VirtualNetworkProperties =
        serde_json::from_value(properties.unwrap_or_default()).unwrap_or_default();
    for (index, choice) in choices.iter().enumerate() {
        placement(choice, &properties)
            .map_err(|message| Fault::invalid(&format!("{at}.vmNics[{index}]"), message))?;
    }
    taken(call, item, &network.id, choices, at).await
}

/// Adapters that exist, a selection that is one, a primary adapter that is recovered.
fn selection(
    item: &Item,
    adapters: &[v1::NetworkAdapter],
    choices: &[NicChoice],
    at: &str,
) -> Result<(), Fault> {
    let ids: Vec<String> = adapters
        .iter()
        .map(|adapter| networks::nic_id(&item.vm_id, &adapter.id))
        .collect();
    // Without its host the VM's adapters are those that were known to have choices.
    let is_known = |id: &str| ids.is_empty() || ids.iter().any(|known| known == id);
    for (index, choice) in choices.iter().enumerate() {
        let target = format!("{at}.vmNics[{index}]");
        if !is_known(&choice.nic_id) {
            return Err(Fault::invalid(
                &format!("{target}.nicId"),
                format!(
                    "`{}` has no adapter `{}`. It has: {}.",
                    item.vm_name,
                    choice.nic_id,
                    ids.join(", ")
                ),
            ));
        }
        let kind = choice.selection_type.as_str();
        if !["", SELECTED_BY_DEFAULT, SELECTED_BY_USER, NOT_SELECTED].contains(&kind) {
            return Err(Fault::invalid(
                &format!("{target}.selectionType"),
                format!("`{kind}` is no choice; use `{SELECTED_BY_USER}` or `{NOT_SELECTED}`."),
            ));
        }
    }
    let is_left_out = |id: &str| {
        let choice = choices.iter().find(|choice| choice.nic_id == id);
        choice.is_some_and(|choice| !choice.is_selected())
    };
    if let Some(primary) = &item.request.selected_source_nic_id
        && (!is_known(primary) || is_left_out(primary))
    {
        return Err(Fault::invalid(
            &format!("{at}.selectedSourceNicId"),
            "The primary adapter must be one of the VM's, and one that is recovered.",
        ));
    }
    if !ids.is_empty() && ids.iter().all(|id| is_left_out(id)) {
        return Err(Fault::invalid(
            &format!("{at}.vmNics"),
            "At least one adapter must be recovered: a failover needs a primary one.",
        ));
    }
    Ok(())
}

/// Whether subnet and address of an adapter fit the network.
fn placement(choice: &NicChoice, network: &VirtualNetworkProperties) -> Result<(), String> {
    let subnets = &network.subnets;
    let subnet = match choice.subnet() {
        None => None,
        Some(name) => {
            let found = subnets
                .iter()
                .find(|subnet| subnet.name.eq_ignore_ascii_case(name));
            let names: Vec<&str> = subnets.iter().map(|subnet| subnet.name.as_str()).collect();
            Some(found.ok_or_else(|| {
                format!(
                    "The network has no subnet `{name}`. It has: {}.",
                    names.join(", ")
                )
            })?)
        }
    };
    let Some(text) = choice.address() else {
        return Ok(());
    };
    let address: IpAddr = text
        .parse()
        .map_err(|_| format!("`{text}` is no IP address."))?;
    let ranges: Vec<&str> = match subnet {
        Some(subnet) => vec![subnet.properties.address_prefix.as_str()],
        None => subnets
            .iter()
            .map(|subnet| subnet.properties.address_prefix.as_str())
            .collect(),
    };
    match ranges.iter().find_map(|range| place(address, range)) {
        Some(Place::Free) => Ok(()),
        Some(Place::Reserved) => Err(format!(
            "`{text}` is one of the first four addresses or the last one of its subnet, which Azure keeps for itself."
        )),
        None => Err(format!("`{text}` lies in none of: {}.", ranges.join(", "))),
    }
}

enum Place {
    Free,
    Reserved,
}

/// Where an address is in a range; `None` = outside.
fn place(address: IpAddr, range: &str) -> Option<Place> {
    let (base, bits) = range.split_once('/')?;
    let bits: u32 = bits.parse().ok()?;
    let (address, base, width) = match (address, base.parse().ok()?) {
        (IpAddr::V4(address), IpAddr::V4(base)) => (
            u128::from(address.to_bits()),
            u128::from(base.to_bits()),
            32,
        ),
        (IpAddr::V6(address), IpAddr::V6(base)) => (address.to_bits(), base.to_bits(), 128),
        _ => return None,
    };
    let free_bits = width - bits.min(width);
    let size = 1_u128.checked_shl(free_bits).unwrap_or(u128::MAX);
    let first = base & !(size - 1);
    let offset = address.checked_sub(first).filter(|offset| *offset < size)?;
    Some(if offset < 4 || offset == size - 1 {
        Place::Reserved
    } else {
        Place::Free
    })
}

/// No two VMs of one network have one address.
async fn taken(
    call: &Call<'_>,
    item: &Item,
    network: &str,
    choices: &[NicChoice],
    at: &str,
) -> Result<(), Fault> {
    let parsed = |choice: &NicChoice| choice.address()?.parse::<IpAddr>().ok();
    if choices.iter().all(|choice| choice.address().is_none()) {
        return Ok(());
    }
    let vault = |id: &str| {
        ProtectedItemId::parse(id)
            .ok()
            .and_then(|id| VaultId::of(&id))
    };
    let items = records::list::<Item>(call.app.store.as_ref(), "").await?;
    for (index, choice) in choices.iter().enumerate() {
        let Some(address) = parsed(choice) else {
            continue;
        };
        let refuse = |owner: &str| {
            Err(Fault::conflict(
                "PrivateIPAddressInUse",
                &format!("{at}.vmNics[{index}]"),
                format!("The address {address} is kept for `{owner}` already."),
                "Choose another address, or none to get any free one.",
            ))
        };
        if choices
            .iter()
            .take(index)
            .any(|other| parsed(other) == Some(address))
        {
            return refuse(&item.vm_name);
        }
        for other in items.iter().map(|other| &other.record) {
            let has_it = other
                .request
                .vm_nics
                .iter()
                .flatten()
                .any(|nic| parsed(nic) == Some(address));
            if !has_it || other.id.eq_ignore_ascii_case(&item.id) {
                continue;
            }
            let live = call.app.fleet.get(&other.engine_id).unwrap_or_default();
            let theirs = networks::of_item(call.app, other, &live).await?;
            if theirs.is_some_and(|theirs| theirs.id.eq_ignore_ascii_case(network)) {
                // Names of another vault are nobody's business here.
                let is_ours = vault(&other.id) == vault(&item.id);
                return refuse(if is_ours {
                    &other.vm_name
                } else {
                    "a VM of another vault"
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> VirtualNetworkProperties {
        serde_json::from_value(serde_json::json!({
            "addressSpace": { "addressPrefixes": ["10.1.0.0/16"] },
            "subnets": [
                { "name": "web", "properties": { "addressPrefix": "10.1.1.0/24" } },
                { "name": "db", "properties": { "addressPrefix": "10.1.2.0/24" } },
            ],
        }))
        .expect("shape")
    }

    fn choice(subnet: &str, address: &str) -> NicChoice {
        serde_json::from_value(serde_json::json!({
            "nicId": "n",
            "ipConfigs": [{ "recoverySubnetName": subnet, "recoveryStaticIPAddress": address }],
        }))
        .expect("shape")
    }

    #[test]
    fn an_address_must_lie_in_its_subnet_and_not_be_one_that_azure_keeps() {
        let check = |subnet, address| placement(&choice(subnet, address), &network());
        assert!(check("web", "10.1.1.4").is_ok());
        assert!(check("", "10.1.2.254").is_ok());
        assert!(check("web", "10.1.2.4").is_err());
        for kept in ["10.1.1.0", "10.1.1.3", "10.1.1.255"] {
            assert!(check("web", kept).expect_err(kept).contains("Azure keeps"));
        }
        assert!(check("web", "10.1.1").is_err());
        assert!(check("mail", "").expect_err("unknown").contains("web, db"));
    }

    #[test]
    fn an_adapter_that_is_not_named_keeps_its_choice() {
        let before = vec![choice("web", "10.1.1.4")];
        let other = NicChoice {
            nic_id: "m".to_owned(),
            ..choice("db", "")
        };
        let both = merged(Some(&before), vec![other.clone()]);
        assert_eq!(both, [before[0].clone(), other]);
        let changed = merged(Some(&both), vec![choice("db", "")]);
        assert_eq!(changed.iter().filter(|nic| nic.nic_id == "n").count(), 1);
    }
}
