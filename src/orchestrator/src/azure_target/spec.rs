//! The VM that shall be made, from the item's settings, its network, the source's shape and, once they are there, its page blobs.

use arm_model::neighbours::VirtualNetworkProperties;
use arm_model::{ArmError, ProtectedItemId, VaultId};
use azure_compute::{
    DiskSpec, Finding, Generation, Network, Place, Severity, SubnetSpec, TargetSpec,
};
use engine_protocol::v1;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::facts::{self, Facts, Problem};
use super::record::AzureVm;
use super::wish::Drill;
use crate::app::App;
use crate::gateway::desired::hex;
use crate::networks;
use crate::store::StoreError;
use crate::store::records::{self, Item, Vault};

const MIB: u64 = 1 << 20;

/// What is to be made.
pub(super) struct Wanted<'a> {
    /// VM id.
    pub(super) id: &'a str,
    pub(super) item: &'a Item,
    pub(super) drill: Option<&'a Drill>,
    /// Its page blobs; none = before there are any.
    pub(super) made: Option<&'a AzureVm>,
}

/// Why it can't be made.
pub(super) enum NoSpec {
    Problem(Problem),
    Store(StoreError),
}

impl From<Problem> for NoSpec {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<StoreError> for NoSpec {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The specification.
pub(super) async fn build(app: &App, wanted: &Wanted<'_>) -> Result<TargetSpec, NoSpec> {
    let item = wanted.item;
    let facts = facts::of(item)?;
    let live = app.fleet.get(&item.engine_id).unwrap_or_default();
    // What the host told last is kept when the host is lost.
    let machine = live.last_machine(&item.vm_id).ok_or_else(|| {
        Problem::new(
            "protectableItemId",
            format!(
                "The host of `{}` has never told what the VM is like.",
                item.vm_name
            ),
        )
    })?;
    let name = item.request.target_azure_vm_name.as_ref();
    Ok(TargetSpec {
        recovery_id: wanted.id.to_owned(),
        place: Place {
            subscription_id: facts.group.0.clone(),
            resource_group: facts.group.1.clone(),
            location: location(app, item).await?,
        },
        vm_name: name.unwrap_or(&item.vm_name).clone(),
        drill: wanted.drill.is_some(),
        cores: machine.processor_count,
        memory_mib: machine.memory_bytes / MIB,
        generation: if machine.generation == 1 {
            Generation::V1
        } else {
            Generation::V2
        },
        os: facts::os(item, machine),
        size: item
            .request
            .target_vm_size
            .clone()
            .filter(|size| !size.is_empty()),
        disks: disks(wanted, machine, &facts),
        managed_disks: facts.managed_disks,
        network: network(app, wanted, &live).await?,
        nics: facts::nics(item, machine)?,
        primary_nic: networks::primary(item, &machine.network_adapters)
            .map(|adapter| networks::nic_id(&item.vm_id, &adapter.id)),
        placement: facts.placement,
        proximity_group_id: facts.proximity_group_id,
        capacity_group_id: facts.capacity_group_id,
        licence: facts.licence,
        tags: facts.tags,
    })
}

/// Region of the vault: VM, network and storage account are in it, too.
async fn location(app: &App, item: &Item) -> Result<String, NoSpec> {
    let vault = ProtectedItemId::parse(&item.id)
        .ok()
        .and_then(|id| VaultId::of(&id));
    let key = vault.map(|vault| vault.key()).unwrap_or_default();
    let vault = records::get::<Vault>(app.store.as_ref(), &key).await?;
    vault
        .map(|vault| vault.record.0.location)
        .ok_or_else(|| NoSpec::Problem(Problem::new("id", "The item's vault is gone.")))
}

fn disks(wanted: &Wanted<'_>, machine: &v1::VirtualMachine, facts: &Facts) -> Vec<DiskSpec> {
    let is_os = |id: &str| {
        let disk = machine.disks.iter().find(|disk| same(&disk.id, id));
        disk.is_some_and(|disk| disk.operating_system)
    };
    let spec = |id: &str, name: &str, bytes: u64, blob_uri: String| {
        let chosen = facts.disks.iter().find(|disk| same(&disk.disk_id, id));
        let chosen = chosen.cloned().unwrap_or_default();
        DiskSpec {
            id: id.to_owned(),
            name: name.to_owned(),
            is_os: is_os(id),
            bytes: padded(bytes),
            blob_uri,
            storage_account_id: wanted.item.storage_id.clone(),
            target_name: chosen.target_disk_name,
            disk_type: chosen.disk_type.unwrap_or(facts.disk_type),
            size_gib: chosen.disk_size_in_gb,
            encryption_set_id: chosen.disk_encryption_set_id,
            lun: None,
        }
    };
    match wanted.made {
        Some(vm) => vm
            .blobs
            .iter()
            .map(|blob| {
                spec(
                    &blob.disk.to_string(),
                    &blob.name,
                    blob.bytes,
                    uri(vm, &blob.blob),
                )
            })
            .collect(),
        None => machine
            .disks
            .iter()
            .filter(|disk| wanted.item.disk_ids.iter().any(|id| same(id, &disk.id)))
            .map(|disk| {
                // Nothing is there yet; what counts for the plan is whether blobs of this account can be used.
                let container = wanted.item.azure.as_ref();
                let endpoint = container.map_or("", |place| place.endpoint.as_str());
                spec(
                    &disk.id,
                    &disk.name,
                    disk.size_bytes,
                    format!("{endpoint}/{}.vhd", disk.id),
                )
            })
            .collect(),
    }
}

/// Address of a page blob, without a signature.
pub(super) fn uri(vm: &AzureVm, blob: &str) -> String {
    let (endpoint, container) = vm.replica.azure.as_ref().map_or(("", ""), |place| {
        (place.endpoint.as_str(), place.container.as_str())
    });
    format!("{endpoint}/{container}/{blob}")
}

/// A VHD that Azure takes has whole mebibytes.
pub(super) fn padded(bytes: u64) -> u64 {
    bytes.div_ceil(MIB) * MIB
}

/// Ids of disks are GUIDs, however they are written.
fn same(one: &str, other: &str) -> bool {
    match (one.parse::<Uuid>(), other.parse::<Uuid>()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one.eq_ignore_ascii_case(other),
    }
}

/// Who owns the network of a drill that has one of its own: the drill, so that its VMs share it.
pub(super) fn network_owner(drill: &Drill) -> String {
    format!("drill-{}", drill.job.rsplit('/').next().unwrap_or_default())
}

/// Name of a drill's own network. VMs of one drill share it when they share the production network; else each has one of its own.
pub(super) fn isolated_name(owner: &str, like: &str, subnets: &[SubnetSpec]) -> String {
    let mut digest = Sha256::new();
    digest.update(like.to_ascii_lowercase());
    for subnet in subnets {
        digest.update(format!("\n{}\n{}", subnet.name, subnet.prefix));
    }
    let digest = hex(&digest.finalize());
    format!(
        "siterecovery-{}-{}",
        owner.get(..owner.len().min(14)).unwrap_or("drill"),
        digest.get(..8).unwrap_or_default()
    )
}

async fn network(
    app: &App,
    wanted: &Wanted<'_>,
    live: &crate::fleet::Live,
) -> Result<Network, NoSpec> {
    let item = wanted.item;
    let production = networks::of_item(app, item, live).await?;
    match wanted.drill {
        None => production
            .map(|network| Network::Existing {
                id: network.id,
                production: true,
            })
            .ok_or_else(|| {
                NoSpec::Problem(Problem::new(
                    "targetAzureNetworkId",
                    format!("`{}` has no network in Azure, and a VM there has one: choose one for the VM, or map its virtual switch.", item.vm_name),
                ))
            }),
        Some(Drill {
            network_id: Some(id),
            ..
        }) => Ok(Network::Existing {
            id: id.clone(),
            production: production.is_some_and(|network| network.id.eq_ignore_ascii_case(id)),
        }),
        Some(drill) => {
            let owner = network_owner(drill);
            let like = production.map(|network| network.id).unwrap_or_default();
            let mut subnets = match like.as_str() {
                "" => Vec::new(),
                network => subnets(app, network).await?,
            };
            if subnets.is_empty() {
                subnets.push(SubnetSpec {
                    name: "default".to_owned(),
                    prefix: "10.255.0.0/24".to_owned(),
                });
            }
            Ok(Network::Isolated {
                name: isolated_name(&owner, &like, &subnets),
                owner,
                subnets,
            })
        }
    }
}

/// Subnets of a network, as its record has them.
async fn subnets(app: &App, network: &str) -> Result<Vec<SubnetSpec>, StoreError> {
    let key = network.to_ascii_lowercase();
    let Some(stored) = records::get::<records::Network>(app.store.as_ref(), &key).await? else {
        return Ok(Vec::new());
    };
    let properties = stored
        .record
        .0
        .body
        .get("properties")
        .cloned()
        .unwrap_or_default();
    let properties: VirtualNetworkProperties =
        serde_json::from_value(properties).unwrap_or_default();
    let subnets = properties.subnets.into_iter().map(|subnet| SubnetSpec {
        name: subnet.name,
        prefix: subnet.properties.address_prefix,
    });
    Ok(subnets.collect())
}

/// The property of the item that a finding is about.
pub(super) fn property(finding: &Finding) -> &'static str {
    let about = finding.about.as_str();
    let text = finding.text.as_str();
    for (prefix, property) in [
        ("network ", "targetAzureNetworkId"),
        ("security group ", "targetAzureNetworkId"),
        ("resource group ", "targetAzureV2ResourceGroupId"),
        ("storage account ", "targetStorageAccountId"),
        ("availability set ", "targetAvailabilitySetId"),
        ("NIC", "vmNics"),
        ("public address ", "vmNics"),
        ("disk", "disksToInclude"),
    ] {
        if about.starts_with(prefix) {
            return property;
        }
    }
    if text.contains("size") {
        "targetVmSize"
    } else if text.contains("licence") {
        "licenseType"
    } else if text.contains("page blobs") {
        "useManagedDisks"
    } else if text.contains("NIC") {
        "vmNics"
    } else {
        "targetAzureVmName"
    }
}

/// A finding of the plan, as an error or a warning about the item.
pub(super) fn told(finding: &Finding, item: &Item) -> ArmError {
    let code = match finding.severity {
        Severity::Error => "AzureTargetNotPossible",
        Severity::Warning | Severity::Note => "AzureTargetWarning",
    };
    ArmError::new(
        code,
        format!("`{}`: {}: {}.", item.vm_name, finding.about, finding.text),
    )
    .at(format!(
        "properties.providerSpecificDetails.{}",
        property(finding)
    ))
    .advise("", &format!("{}.", finding.next_step))
}
