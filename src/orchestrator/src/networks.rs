//! Which network a recovered VM belongs to: what was chosen for it, else what its source's network is mapped to.
//!
//! ```text
//!  the VM's own network ──► that one, for all its adapters
//!  none ─► the primary adapter's virtual switch ─► its mapping in the site ─► the mapped network
//! ```
//!
//! Nothing is remembered at the VM, so a mapping that changes moves every VM that follows it, as in ASR. All adapters of a VM
//! are in one network (ASR: "changing it moves all its NICs").

use arm_model::network::NicChoice;
use arm_model::{FabricId, NetworkId, ProtectedItemId};
use base64::Engine as _;
use engine_protocol::v1;
use uuid::Uuid;

use crate::app::App;
use crate::fleet::Live;
use crate::store::StoreError;
use crate::store::records::{self, Item, NetworkMapping};

/// Names of networks are made of the site's id and the switch, so that they stay the same on every host and after every restart.
const NAMES: Uuid = Uuid::from_u128(0x5d3c_51a4_8f0b_4b39_9a5e_6c1d_27e0_84b1);

/// The network of a recovered VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryNetwork {
    /// Virtual network's ARM id.
    pub id: String,
    /// It follows from a mapping.
    pub is_mapped: bool,
}

/// The site's network that is one virtual switch.
#[must_use]
pub fn network_id(fabric: &FabricId, switch: &str) -> NetworkId {
    let text = format!("{}\n{}", fabric.key(), switch.to_lowercase());
    fabric.network(&Uuid::new_v5(&NAMES, text.as_bytes()).to_string())
}

/// `nicId` of an adapter, as ASR builds it.
#[must_use]
pub fn nic_id(vm_id: &str, adapter: &str) -> String {
    let text = format!("Microsoft:{vm_id}\\{adapter}");
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// Adapters, by their names on the host, that the recovered VM does not get.
#[must_use]
pub fn left_out(item: &Item) -> Vec<String> {
    let choices = item.request.vm_nics.as_deref().unwrap_or_default();
    let left_out = choices.iter().filter(|choice| !choice.is_selected());
    left_out
        .filter_map(|choice| {
            let text = base64::engine::general_purpose::STANDARD.decode(&choice.nic_id);
            let text = String::from_utf8(text.ok()?).ok()?;
            let (_, adapter) = text.split_once('\\')?;
            Some(adapter.to_owned())
        })
        .collect()
}

/// What was chosen for an adapter.
#[must_use]
pub fn choice<'a>(item: &'a Item, nic_id: &str) -> Option<&'a NicChoice> {
    let choices = item.request.vm_nics.as_deref().unwrap_or_default();
    choices.iter().find(|choice| choice.nic_id == nic_id)
}

/// The adapter that becomes the primary one: the chosen one, else the first that is recovered at all.
#[must_use]
pub fn primary<'a>(
    item: &Item,
    adapters: &'a [v1::NetworkAdapter],
) -> Option<&'a v1::NetworkAdapter> {
    let id = |adapter: &v1::NetworkAdapter| nic_id(&item.vm_id, &adapter.id);
    let chosen = item.request.selected_source_nic_id.as_deref();
    adapters
        .iter()
        .find(|adapter| Some(id(adapter).as_str()) == chosen)
        .or_else(|| {
            adapters
                .iter()
                .find(|adapter| choice(item, &id(adapter)).is_none_or(NicChoice::is_selected))
        })
}

/// The network of a VM after a failover.
#[must_use]
pub fn after_failover(
    item: &Item,
    adapters: &[v1::NetworkAdapter],
    mappings: &[NetworkMapping],
) -> Option<RecoveryNetwork> {
    if let Some(id) = &item.request.target_azure_network_id {
        return Some(RecoveryNetwork {
            id: id.clone(),
            is_mapped: false,
        });
    }
    let switch = &primary(item, adapters)?.network_name;
    let fabric = ProtectedItemId::parse(&item.id)
        .ok()
        .and_then(|id| FabricId::of(&id))?;
    let network = format!("{}/", network_id(&fabric, switch).key());
    let mapping = mappings
        .iter()
        .find(|mapping| mapping.id.to_ascii_lowercase().starts_with(&network))?;
    Some(RecoveryNetwork {
        id: mapping.network_id.clone(),
        is_mapped: true,
    })
}

/// The network of a VM after a failover, of what is known now.
///
/// # Errors
/// Failures of the store.
pub async fn of_item(
    app: &App,
    item: &Item,
    live: &Live,
) -> Result<Option<RecoveryNetwork>, StoreError> {
    let adapters = live
        .last_machine(&item.vm_id)
        .map(|machine| machine.network_adapters.clone())
        .unwrap_or_default();
    let mappings = of_site(app, &item.id).await?;
    Ok(after_failover(item, &adapters, &mappings))
}

/// Mappings of the site that an item, or anything else below a site, lies in.
///
/// # Errors
/// Failures of the store.
pub async fn of_site(app: &App, below: &str) -> Result<Vec<NetworkMapping>, StoreError> {
    let fabric = arm_model::ArmId::parse(below)
        .ok()
        .and_then(|id| FabricId::of(&id));
    let Some(fabric) = fabric else {
        return Ok(Vec::new());
    };
    let prefix = format!("{}/replicationnetworks/", fabric.key());
    let stored = records::list::<NetworkMapping>(app.store.as_ref(), &prefix).await?;
    Ok(stored.into_iter().map(|mapping| mapping.record).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.RecoveryServices/vaults/v/replicationFabrics/site";

    fn site() -> FabricId {
        FabricId::parse(SITE).expect("id")
    }

    fn item(request: &serde_json::Value) -> Item {
        serde_json::from_value(serde_json::json!({
            "id": format!("{SITE}/replicationProtectionContainers/c/replicationProtectedItems/i"),
            "life": protection::Life::new(protection::Generation(1)),
            "engine_id": "e", "vm_id": "vm", "vm_name": "web", "disk_ids": [], "policy_id": "", "storage_id": "",
            "folder": "", "vault_key": "", "request": request, "last_test_failover": null, "drill_job": null,
            "correlation_id": "",
        }))
        .expect("item")
    }

    fn adapters() -> Vec<v1::NetworkAdapter> {
        [("nic0", "LAN"), ("nic1", "Backup")]
            .map(|(id, switch)| v1::NetworkAdapter {
                id: id.to_owned(),
                network_name: switch.to_owned(),
                ..v1::NetworkAdapter::default()
            })
            .to_vec()
    }

    fn mapping(switch: &str, network: &str) -> NetworkMapping {
        NetworkMapping {
            id: network_id(&site(), switch).mapping("m").to_string(),
            switch: switch.to_owned(),
            network_id: network.to_owned(),
        }
    }

    #[test]
    fn a_switch_is_one_network_whatever_its_case_and_another_in_another_site() {
        assert_eq!(network_id(&site(), "LAN"), network_id(&site(), "lan"));
        let other = FabricId::parse(&format!("{SITE}2")).expect("id");
        assert_ne!(
            network_id(&site(), "LAN").name(),
            network_id(&other, "LAN").name()
        );
    }

    #[test]
    fn the_vms_own_network_comes_before_any_mapping() {
        let item = item(&serde_json::json!({ "targetAzureNetworkId": "own" }));
        let found = after_failover(&item, &adapters(), &[mapping("LAN", "mapped")]).expect("one");
        assert_eq!((found.id.as_str(), found.is_mapped), ("own", false));
    }

    #[test]
    fn the_mapping_of_the_primary_adapters_switch_decides() {
        let mappings = [mapping("backup", "b"), mapping("lan", "l")];
        let plain = item(&serde_json::json!({}));
        let found = after_failover(&plain, &adapters(), &mappings).expect("one");
        assert_eq!((found.id.as_str(), found.is_mapped), ("l", true));
        let second = item(&serde_json::json!({ "selectedSourceNicId": nic_id("vm", "nic1") }));
        let found = after_failover(&second, &adapters(), &mappings).expect("one");
        assert_eq!(found.id, "b");
        let first_left_out = item(&serde_json::json!({ "vmNics": [
            { "nicId": nic_id("vm", "nic0"), "selectionType": "NotSelected" }] }));
        let found = after_failover(&first_left_out, &adapters(), &mappings).expect("one");
        assert_eq!(found.id, "b");
    }

    #[test]
    fn adapters_that_are_not_selected_are_told_by_their_names_on_the_host() {
        let item = item(&serde_json::json!({ "vmNics": [
            { "nicId": nic_id("vm", "nic0"), "selectionType": "NotSelected" },
            { "nicId": nic_id("vm", "nic1"), "selectionType": "SelectedByUser" },
            { "nicId": "no base64", "selectionType": "NotSelected" }] }));
        assert_eq!(left_out(&item), ["nic0"]);
    }

    #[test]
    fn without_a_mapping_there_is_no_network() {
        let plain = item(&serde_json::json!({}));
        assert_eq!(
            after_failover(&plain, &adapters(), &[mapping("WAN", "w")]),
            None
        );
    }
}
