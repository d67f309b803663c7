//! What an item says of its VM in Azure, read out of its settings. Pure.

use std::collections::BTreeMap;

use arm_model::{Extra, ResourceGroupId};
use azure_compute::{
    Address, DiskType, Licence, NicSpec, OsType, Placement, PublicAddress, Selection, WishedTags,
};
use engine_protocol::v1;
use serde::Deserialize;
use serde_json::Value;

use crate::networks;
use crate::store::records::Item;

/// A setting that can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// Property of the request.
    pub(super) property: &'static str,
    /// A sentence.
    pub(super) text: String,
}

impl Problem {
    pub(super) fn new(property: &'static str, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { property, text }
    }
}

/// Settings of the VM.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// Subscription and name of the resource group.
    pub(super) group: (String, String),
    /// Managed disks, or page blobs as they are.
    pub(super) managed_disks: bool,
    pub(super) placement: Placement,
    pub(super) proximity_group_id: Option<String>,
    pub(super) capacity_group_id: Option<String>,
    pub(super) licence: Licence,
    pub(super) tags: WishedTags,
    pub(super) disk_type: DiskType,
    pub(super) disks: Vec<ChosenDisk>,
}

/// What is said of one disk.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ChosenDisk {
    pub(super) disk_id: String,
    pub(super) disk_type: Option<DiskType>,
    pub(super) disk_encryption_set_id: Option<String>,
    #[serde(rename = "diskSizeInGB")]
    pub(super) disk_size_in_gb: Option<u32>,
    pub(super) target_disk_name: Option<String>,
}

/// A text among further fields; an empty one is none.
pub(super) fn text<'a>(extra: &'a Extra, name: &str) -> Option<&'a str> {
    extra.get(name)?.as_str().filter(|text| !text.is_empty())
}

fn owned(extra: &Extra, name: &str) -> Option<String> {
    text(extra, name).map(str::to_owned)
}

/// Whether all settings can be used.
pub(super) fn check(item: &Item) -> Result<(), Problem> {
    of(item).map(drop)
}

/// The settings of an item.
pub(super) fn of(item: &Item) -> Result<Facts, Problem> {
    let extra = &item.request.extra;
    let wanted = item.request.target_azure_v2_resource_group_id.as_deref();
    let group = ResourceGroupId::parse(wanted.unwrap_or_default()).map_err(|_| {
        Problem::new(
            "targetAzureV2ResourceGroupId",
            "The resource group that the VM is made in, by its id in Azure, is required.",
        )
    })?;
    let managed_disks = match item.request.use_managed_disks.as_deref() {
        None | Some("") => true,
        Some(word) if word.eq_ignore_ascii_case("true") => true,
        Some(word) if word.eq_ignore_ascii_case("false") => false,
        Some(word) => {
            return Err(Problem::new(
                "useManagedDisks",
                format!("`{word}` is neither `true` nor `false`."),
            ));
        }
    };
    let set = owned(extra, "targetAvailabilitySetId");
    let zone = owned(extra, "targetAvailabilityZone");
    let placement = match (set, zone) {
        (None, None) => Placement::Region,
        (Some(set), None) => Placement::AvailabilitySet(set),
        (None, Some(zone)) => Placement::Zone(zone),
        (Some(_), Some(_)) => {
            return Err(Problem::new(
                "targetAvailabilityZone",
                "A VM is in an availability set or in a zone, not in both.",
            ));
        }
    };
    let licence = Licence::from_site_recovery(
        text(extra, "licenseType").unwrap_or_default(),
        text(extra, "linuxLicenseType").unwrap_or_default(),
        text(extra, "osName").unwrap_or_default(),
    )
    .map_err(|why| Problem::new("licenseType", format!("{why}.")))?;
    let disk_type = match extra.get("diskType").filter(|word| *word != "") {
        None | Some(Value::Null) => DiskType::StandardSSD_LRS,
        Some(word) => serde_json::from_value(word.clone()).map_err(|_| {
            Problem::new("diskType", format!("{word} is no type of a managed disk."))
        })?,
    };
    let disks = match extra.get("disksToIncludeForManagedDisks") {
        None | Some(Value::Null) => Vec::new(),
        Some(list) => serde_json::from_value(list.clone()).map_err(|error| {
            Problem::new(
                "disksToIncludeForManagedDisks",
                format!("The list can't be read: {error}."),
            )
        })?,
    };
    Ok(Facts {
        group: (
            group.as_arm().subscription().to_owned(),
            group.as_arm().name().to_owned(),
        ),
        managed_disks,
        placement,
        proximity_group_id: owned(extra, "targetProximityPlacementGroupId"),
        capacity_group_id: owned(extra, "targetCapacityReservationGroupId"),
        licence,
        tags: WishedTags {
            vm: tags(extra, "targetVmTags")?,
            nics: tags(extra, "targetNicTags")?,
            disks: tags(extra, "targetManagedDiskTags")?,
        },
        disk_type,
        disks,
    })
}

fn tags(extra: &Extra, name: &'static str) -> Result<BTreeMap<String, String>, Problem> {
    match extra.get(name) {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(map) => serde_json::from_value(map.clone())
            .map_err(|_| Problem::new(name, "Tags are names with texts.")),
    }
}

/// The guest's operating system.
pub(super) fn os(item: &Item, machine: &v1::VirtualMachine) -> OsType {
    let told = item.request.os_type.as_ref().unwrap_or(&machine.os_type);
    if told.eq_ignore_ascii_case("Windows") {
        OsType::Windows
    } else {
        OsType::Linux
    }
}

/// The adapters of the VM with what was chosen for them.
pub(super) fn nics(item: &Item, machine: &v1::VirtualMachine) -> Result<Vec<NicSpec>, Problem> {
    machine
        .network_adapters
        .iter()
        .map(|adapter| nic(item, adapter))
        .collect()
}

fn nic(item: &Item, adapter: &v1::NetworkAdapter) -> Result<NicSpec, Problem> {
    let id = networks::nic_id(&item.vm_id, &adapter.id);
    let choice = networks::choice(item, &id);
    let selection = match choice {
        Some(choice) if !choice.is_selected() => Selection::NotSelected,
        Some(choice) if choice.selection_type == arm_model::network::SELECTED_BY_USER => {
            Selection::SelectedByUser
        }
        _ => Selection::SelectedByDefault,
    };
    let address = match choice.and_then(|choice| choice.address()) {
        None => Address::Dynamic,
        Some(text) => Address::Exactly(text.parse().map_err(|_| {
            Problem::new(
                "vmNics",
                format!("`{text}` is no IPv4 address; others are not made in Azure."),
            )
        })?),
    };
    let of_ip = choice
        .and_then(|choice| choice.ip_configs.first())
        .and_then(|ip| owned(&ip.extra, "recoveryPublicIPAddressId"));
    let of_nic = |name: &str| choice.and_then(|choice| owned(&choice.extra, name));
    Ok(NicSpec {
        selection,
        source_subnet: None,
        subnet: choice
            .and_then(|choice| choice.subnet())
            .or(item.request.target_azure_subnet_id.as_deref())
            .map(str::to_owned),
        address,
        public_address: match of_ip {
            None => PublicAddress::None,
            Some(word) if word.eq_ignore_ascii_case("New") => PublicAddress::New,
            Some(id) => PublicAddress::Existing(id),
        },
        target_name: of_nic("targetNicName"),
        security_group_id: of_nic("recoveryNetworkSecurityGroupId"),
        accelerated: choice
            .and_then(|choice| choice.extra.get("enableAcceleratedNetworkingOnRecovery"))
            .is_some_and(|flag| flag == &Value::Bool(true)),
        id,
    })
}
