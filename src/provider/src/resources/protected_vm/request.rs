//! Which VM and which disks are meant, and the requests that protect them or change their target.

use arm_model::protectable_item::ProtectableItemProperties;
use arm_model::{HYPER_V_REPLICA_AZURE, Resource as Answer};
use serde_json::{Value as Json, json};
use tf_provider::{Change, Diagnostics, Object};

use super::{CHANGEABLE, GROUP, LOG_ACCOUNT, azure};
use crate::errors::sentence;
use crate::limits;
use crate::resources::protection::{is_called, names_of};

/// The request that changes what can be changed without a new copy.
pub(super) fn patch(planned: &Object, changed: impl Fn(&str) -> bool) -> Json {
    let mut properties = json!({
        "recoveryAzureVMName": planned.str("target_vm_name"),
        // An empty text takes network and subnet out; what is absent would stay.
        "selectedRecoveryAzureNetworkId": planned.str("target_network_id").unwrap_or_default(),
        "providerSpecificDetails": {
            "instanceType": HYPER_V_REPLICA_AZURE,
            "recoveryAzureV2ResourceGroupId": planned.str("target_resource_group_id"),
        },
    });
    // What Azure Site Recovery has no word for is sent only when it has changed.
    let specific = &mut properties["providerSpecificDetails"];
    if changed(GROUP) {
        specific["multiVmGroupName"] = json!(planned.str(GROUP).unwrap_or_default());
    }
    if changed("throttle") {
        specific["throttles"] = limits::throttles_of(planned);
    }
    if changed("seed") {
        specific["seeds"] = seeds_of(planned);
    }
    azure::patch(planned, &changed, &mut properties);
    let subnet = planned.str("target_subnet_name").unwrap_or_default();
    properties["vmNics"] =
        json!([{ "ipConfigs": [{ "isPrimary": true, "recoverySubnetName": subnet }] }]);
    json!({ "properties": properties })
}

/// The actions that bring the replicated disks from what they were to what they shall be.
pub(super) fn disk_changes(change: &Change) -> Vec<(&'static str, Json)> {
    let name = "disks_to_include";
    if !change.changed(name) || !change.planned.get(name).is_wholly_known() {
        return Vec::new();
    }
    let before = change
        .prior
        .as_ref()
        .map(|prior| prior.strings(name))
        .unwrap_or_default();
    let after = change.planned.strings(name);
    let missing = |these: &[String], those: &[String]| -> Vec<String> {
        these
            .iter()
            .filter(|id| !those.iter().any(|other| other.eq_ignore_ascii_case(id)))
            .cloned()
            .collect()
    };
    let action = |action, disks: Vec<String>| {
        let body = json!({ "properties": { "providerSpecificDetails": {
            "instanceType": HYPER_V_REPLICA_AZURE, "diskIds": disks } } });
        (!disks.is_empty()).then_some((action, body))
    };
    [
        action("addDisks", missing(&after, &before)),
        action("removeDisks", missing(&before, &after)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn seeds_of(planned: &Object) -> Json {
    let seed = |seed: &&Object| json!({ "diskId": seed.str("disk_id"), "path": seed.str("path") });
    Json::Array(planned.objects("seed").iter().map(seed).collect())
}

/// A service that quietly leaves out a part of a change must not look as if it had made it.
pub(super) fn taken_over(planned: &Object, read: &Object) -> Result<(), Diagnostics> {
    let mut report = Diagnostics::new();
    for name in CHANGEABLE.into_iter().chain(azure::attributes()) {
        if planned.get(name) != read.get(name) {
            report.push_error(
                name,
                "The service has not taken over the change",
                format!(
                    "{name} is still {:?}.\nWhat to do: protect the VM anew (terraform apply -replace), or take the change back.",
                    read.str(name).unwrap_or_default()
                ),
            );
        }
    }
    report.into_result()
}

pub(super) type Vm = Answer<ProtectableItemProperties>;

pub(super) fn choose<'a>(items: &'a [Vm], wanted: &str, at: &str) -> Result<&'a Vm, Diagnostics> {
    let found: Vec<&Vm> = items
        .iter()
        .filter(|item| is_called(item, wanted))
        .collect();
    let vm = match found.as_slice() {
        [vm] => *vm,
        [] => {
            return Err(Diagnostics::error_at(
                at,
                "There is no such VM",
                format!(
                    "No host of the site reports a VM {wanted:?}. The VMs it knows: {}.\nWhat to do: check the name, and that the \
                     VM lies in the vm_folder of a host of this site.",
                    names_of(items)
                ),
            ));
        }
        several => {
            return Err(Diagnostics::error_at(
                at,
                "More than one VM has this name",
                format!(
                    "{} VMs are called {wanted:?}.\nWhat to do: name the VM by vm_id.",
                    several.len()
                ),
            ));
        }
    };
    let errors = &vm.properties.protection_readiness_errors;
    // A service that tells its findings is asked for those of what is configured: see `readiness`.
    if errors.is_empty() || !vm.properties.readiness_findings.is_empty() {
        return Ok(vm);
    }
    let reasons: Vec<String> = errors
        .iter()
        .map(|text| format!("- {}", sentence(text)))
        .collect();
    Err(Diagnostics::error_at(
        at,
        "The VM can't be protected",
        format!(
            "The host says of {:?}:\n{}",
            vm.properties.friendly_name,
            reasons.join("\n")
        ),
    ))
}

/// The disks to replicate, in the order of the VM; every named one must be there.
pub(super) fn disks(vm: &Vm, planned: &Object) -> Result<Vec<String>, Diagnostics> {
    let all: Vec<String> = vm
        .properties
        .custom_details
        .disk_details
        .iter()
        .map(|d| d.vhd_id.clone())
        .collect();
    let named = planned.strings("disks_to_include");
    let has = |id: &String| all.iter().any(|own| own.eq_ignore_ascii_case(id));
    if let Some(missing) = named.iter().find(|id| !has(id)) {
        return Err(Diagnostics::error_at(
            "disks_to_include",
            "The VM has no such disk",
            format!(
                "{missing:?} is not a disk of {:?}. Its disks: {}.",
                vm.properties.friendly_name,
                all.join(", ")
            ),
        ));
    }
    if let Some(os_disk) = planned
        .str("os_disk_id")
        .map(ToOwned::to_owned)
        .filter(|id| !has(id))
    {
        return Err(Diagnostics::error_at(
            "os_disk_id",
            "The VM has no such disk",
            format!(
                "{os_disk:?} is not a disk of {:?}. Its disks: {}.",
                vm.properties.friendly_name,
                all.join(", ")
            ),
        ));
    }
    if named.is_empty() {
        return Ok(all);
    }
    Ok(all
        .into_iter()
        .filter(|own| named.iter().any(|id| id.eq_ignore_ascii_case(own)))
        .collect())
}

pub(super) fn enable(vm: &Vm, planned: &Object, disks: &[String]) -> Json {
    let details = &vm.properties.custom_details;
    let system_disk = details
        .disk_details
        .iter()
        .find(|d| d.vhd_type == "OperatingSystem");
    let os_disk = planned
        .str("os_disk_id")
        .map(ToOwned::to_owned)
        .or_else(|| system_disk.map(|d| d.vhd_id.clone()))
        .or_else(|| disks.first().cloned());
    let os_type = planned
        .str("os_type")
        .map(ToOwned::to_owned)
        .or_else(|| details.os_details.as_ref().map(|os| os.os_type.clone()))
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "Linux".to_owned());
    let mut specific = json!({
        "instanceType": HYPER_V_REPLICA_AZURE,
        "hvHostVmId": vm.name,
        "vmName": vm.properties.friendly_name,
        "osType": os_type,
        "vhdId": os_disk,
        "disksToInclude": disks,
        "targetStorageAccountId": planned.str("target_storage_account_id"),
        "targetAzureV2ResourceGroupId": planned.str("target_resource_group_id"),
        "targetAzureVmName": planned.str("target_vm_name").unwrap_or(&vm.properties.friendly_name),
    });
    let optional = [
        ("logStorageAccountId", LOG_ACCOUNT),
        ("targetAzureNetworkId", "target_network_id"),
        ("targetAzureSubnetId", "target_subnet_name"),
    ];
    for (property, attribute) in optional {
        if let Some(text) = planned.str(attribute) {
            specific[property] = Json::from(text);
        }
    }
    azure::enable(planned, &mut specific);
    if let Some(group) = planned.str(GROUP) {
        specific["multiVmGroupName"] = Json::from(group);
    }
    if !planned.objects("throttle").is_empty() {
        specific["throttles"] = limits::throttles_of(planned);
    }
    if !planned.objects("seed").is_empty() {
        specific["seeds"] = seeds_of(planned);
    }
    json!({ "properties": {
        "policyId": planned.str("replication_policy_id"),
        "protectableItemId": vm.id,
        "providerSpecificDetails": specific,
    } })
}
