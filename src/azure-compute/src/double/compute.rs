//! Rules of Compute.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::catalog;
use super::state::{Entry, Outcome, State, list, refuse, text};

const MIB: u64 = 1 << 20;
const VM: &str = "Microsoft.Compute/virtualMachines";

/// Checks a disk and fills in what Azure computes.
pub(super) fn disk(state: &State, id: &str, body: &mut Value) -> Outcome<()> {
    match text(body, "/properties/creationData/createOption") {
        "" => {
            return refuse(
                400,
                "InvalidParameter",
                "Required parameter 'creationData.createOption' is missing (null).",
            );
        }
        "Import" => {}
        "Empty" => {
            if body.pointer("/properties/diskSizeGB").is_none() {
                return refuse(
                    400,
                    "InvalidParameter",
                    "Required parameter 'diskSizeGB' is missing (null).",
                );
            }
            return Ok(());
        }
        other => {
            return refuse(
                400,
                "InvalidParameter",
                format!("The double knows no {other}."),
            );
        }
    }
    if let Some(before) = state.entry(id) {
        let source = "/properties/creationData/sourceUri";
        if text(&before.body, source) != text(body, source) {
            return refuse(
                409,
                "PropertyChangeNotAllowed",
                "Changing property 'creationData' is not allowed.",
            );
        }
        if before.state == "Failed" {
            return refuse(
                409,
                "OperationNotAllowed",
                "The import into this disk has failed.",
            );
        }
    }
    if matches!(text(body, "/sku/name"), "UltraSSD_LRS" | "PremiumV2_LRS") {
        return refuse(
            400,
            "InvalidParameter",
            "Disks of this type can't be imported.",
        );
    }
    let account_id = text(body, "/properties/creationData/storageAccountId");
    if account_id.is_empty() {
        return refuse(
            400,
            "InvalidParameter",
            "Required parameter 'creationData.storageAccountId' is missing (null).",
        );
    }
    let Some(account) = state.entry(account_id) else {
        return refuse(
            404,
            "ResourceNotFound",
            format!("The storage account {account_id} was not found."),
        );
    };
    if text(&account.body, "/location") != text(body, "/location") {
        return refuse(
            400,
            "BadRequest",
            "The storage account is in another region than the disk.",
        );
    }
    let bytes = vhd(state, text(body, "/properties/creationData/sourceUri"))?;
    let gib = bytes.div_ceil(1 << 30);
    let wished = body
        .pointer("/properties/diskSizeGB")
        .and_then(Value::as_u64);
    if wished.is_some_and(|w| w < gib) {
        return refuse(400, "BadRequest", "The disk is smaller than its source.");
    }
    body["properties"]["diskSizeGB"] = wished.unwrap_or(gib).into();
    body["properties"]["diskSizeBytes"] = bytes.into();
    if state.entry(id).is_none()
        && let Some(disks) = &state.contents.0
    {
        let uri = text(body, "/properties/creationData/sourceUri");
        disks.import(&id.to_lowercase(), uri);
    }
    Ok(())
}

/// Virtual size of the VHD in a blob.
fn vhd(state: &State, uri: &str) -> Outcome<u64> {
    let Some(blob) = state.blob(uri) else {
        return refuse(
            400,
            "ImportSourceBlobNotFound",
            format!("Source blob {uri} was not found."),
        );
    };
    if !blob.is_page_blob {
        return refuse(
            400,
            "InvalidBlobType",
            format!("Source blob {uri} is not a page blob."),
        );
    }
    let size = blob.bytes.saturating_sub(512);
    if !blob.has_footer || size == 0 || !size.is_multiple_of(MIB) {
        return refuse(
            400,
            "InvalidVhd",
            format!("The VHD {uri} has an unsupported virtual size of {size} bytes or no footer."),
        );
    }
    Ok(size)
}

/// The VM that a disk is attached to.
pub(super) fn user_of_disk<'a>(state: &'a State, id: &str) -> Option<&'a Entry> {
    state
        .of_type(VM)
        .find(|vm| disks_of(&vm.body).any(|d| text(d, "/managedDisk/id").eq_ignore_ascii_case(id)))
}

/// The VM that a NIC belongs to.
pub(super) fn user_of_nic(state: &State, id: &str) -> Option<String> {
    state
        .of_type(VM)
        .find(|vm| {
            list(&vm.body, "/properties/networkProfile/networkInterfaces")
                .any(|n| text(n, "/id").eq_ignore_ascii_case(id))
        })
        .map(|vm| vm.id.clone())
}

fn disks_of(vm: &Value) -> impl Iterator<Item = &Value> {
    vm.pointer("/properties/storageProfile/osDisk")
        .into_iter()
        .chain(list(vm, "/properties/storageProfile/dataDisks"))
}

/// Checks a VM.
pub(super) fn vm(state: &State, id: &str, body: &mut Value) -> Outcome<()> {
    let size = text(body, "/properties/hardwareProfile/vmSize");
    let Some(row) = catalog::row(size) else {
        return refuse(
            400,
            "InvalidParameter",
            format!("The value {size} provided for the VM size is not valid."),
        );
    };
    if row.0 == "Standard_M208s_v2" {
        return refuse(
            409,
            "SkuNotAvailable",
            format!("The requested VM size {size} is currently not available in this location."),
        );
    }
    let others = state
        .entry(id)
        .filter(|vm| vm.power == "running")
        .map_or(0, |_| u64::from(row.2));
    if catalog::cores_in_use(state) - others + u64::from(row.2) > state.core_limit {
        return refuse(
            409,
            "OperationNotAllowed",
            "Operation could not be completed as it results in exceeding approved Total Regional Cores quota.",
        );
    }
    if list(body, "/zones").next().is_some()
        && body.pointer("/properties/availabilitySet").is_some()
    {
        return refuse(
            400,
            "BadRequest",
            "A VM in an availability set can't be in a zone.",
        );
    }
    let set = text(body, "/properties/availabilitySet/id");
    if !set.is_empty() && state.entry(set).is_none() {
        return refuse(
            404,
            "InvalidResourceReference",
            format!("The set {set} was not found."),
        );
    }
    check_nics(state, id, body, row.5)?;
    check_disks(state, id, body, row)?;
    body["properties"]["vmId"] = format!("vm-{}", id.len()).into();
    Ok(())
}

fn check_nics(state: &State, id: &str, body: &Value, most: u32) -> Outcome<()> {
    let nics: Vec<&Value> = list(body, "/properties/networkProfile/networkInterfaces").collect();
    if nics.is_empty() {
        return refuse(
            400,
            "InvalidParameter",
            "Required parameter 'networkProfile.networkInterfaces' is missing.",
        );
    }
    if nics.len() > most as usize {
        return refuse(
            400,
            "NetworkInterfaceCountExceeded",
            format!("The number of network interfaces exceeds the maximum of {most} for the size."),
        );
    }
    let primaries = nics
        .iter()
        .filter(|n| n.pointer("/properties/primary").and_then(Value::as_bool) == Some(true))
        .count();
    if nics.len() > 1 && primaries != 1 {
        return refuse(
            400,
            "VirtualMachineMustHaveOneNetworkInterfaceAsPrimary",
            "Virtual machine must have one network interface set as the primary.",
        );
    }
    for nic in nics {
        let nic = text(nic, "/id");
        match state.entry(nic) {
            None => {
                return refuse(
                    404,
                    "InvalidResourceReference",
                    format!("Resource {nic} was not found."),
                );
            }
            Some(entry) if entry.state != "Succeeded" => {
                return refuse(
                    409,
                    "ReferencedResourceNotProvisioned",
                    format!("{nic} is not provisioned."),
                );
            }
            Some(_) => {}
        }
        if user_of_nic(state, nic).is_some_and(|vm| !vm.eq_ignore_ascii_case(id)) {
            return refuse(
                400,
                "NicInUse",
                format!("Network Interface {nic} is used by another VM."),
            );
        }
    }
    Ok(())
}

fn check_disks(
    state: &State,
    id: &str,
    body: &Value,
    row: &(&str, &str, u32, &str, u32, u32, bool, &str, &str),
) -> Outcome<()> {
    let Some(system) = body.pointer("/properties/storageProfile/osDisk") else {
        return refuse(
            400,
            "InvalidParameter",
            "Required parameter 'osDisk' is missing (null).",
        );
    };
    if text(system, "/createOption") == "Attach" && text(system, "/osType").is_empty() {
        return refuse(
            400,
            "InvalidParameter",
            "Required parameter 'osDisk.osType' is missing (null).",
        );
    }
    let data: Vec<&Value> = list(body, "/properties/storageProfile/dataDisks").collect();
    if data.len() > row.4 as usize {
        return refuse(
            409,
            "OperationNotAllowed",
            format!(
                "The maximum number of data disks allowed to be attached to a VM of this size is {}.",
                row.4
            ),
        );
    }
    let mut units = BTreeSet::new();
    for disk in &data {
        match disk.get("lun").and_then(Value::as_u64) {
            Some(lun) if lun < 64 && units.insert(lun) => {}
            _ => {
                return refuse(
                    400,
                    "InvalidParameter",
                    "Unit numbers must be given and differ.",
                );
            }
        }
    }
    for disk in std::iter::once(system).chain(data) {
        if text(disk, "/createOption") != "Attach" {
            return refuse(400, "InvalidParameter", "The double attaches disks only.");
        }
        let managed = text(disk, "/managedDisk/id");
        if managed.is_empty() {
            vhd(state, text(disk, "/vhd/uri"))?;
            if list(body, "/zones").next().is_some() {
                return refuse(400, "BadRequest", "A VM in a zone needs managed disks.");
            }
            continue;
        }
        check_managed(state, id, body, managed, row)?;
    }
    Ok(())
}

fn check_managed(
    state: &State,
    id: &str,
    body: &Value,
    managed: &str,
    row: &(&str, &str, u32, &str, u32, u32, bool, &str, &str),
) -> Outcome<()> {
    let Some(entry) = state.entry(managed) else {
        return refuse(404, "NotFound", format!("Disk {managed} is not found."));
    };
    if entry.state != "Succeeded" {
        return refuse(
            409,
            "ReferencedResourceNotProvisioned",
            format!("Disk {managed} is not provisioned."),
        );
    }
    if user_of_disk(state, managed).is_some_and(|vm| !vm.id.eq_ignore_ascii_case(id)) {
        return refuse(
            409,
            "AttachDiskWhileInUse",
            format!("Cannot attach disk {managed} as it is already owned by another VM."),
        );
    }
    let generation = text(&entry.body, "/properties/hyperVGeneration");
    if !generation.is_empty() && !row.7.split(',').any(|g| g == generation) {
        return refuse(
            400,
            "BadRequest",
            format!("The selected VM size cannot boot Hypervisor Generation '{generation}'."),
        );
    }
    if text(&entry.body, "/sku/name").starts_with("Premium") && !row.6 {
        return refuse(
            400,
            "InvalidParameter",
            "Requested operation cannot be performed because the VM size does not support premium storage.",
        );
    }
    let zone_of = |value: &Value| list(value, "/zones").next().cloned();
    let redundant = text(&entry.body, "/sku/name").ends_with("_ZRS");
    if !redundant && zone_of(&entry.body) != zone_of(body) {
        return refuse(
            400,
            "BadRequest",
            format!("Disk {managed} is not in the zone of the VM."),
        );
    }
    Ok(())
}

/// What stands in the way of a removal.
pub(super) fn blocked(state: &State, id: &str, kind: &str) -> Outcome<()> {
    if kind == "disks"
        && let Some(vm) = user_of_disk(state, id)
    {
        return refuse(
            409,
            "OperationNotAllowed",
            format!("Disk {id} is attached to VM {}.", vm.id),
        );
    }
    Ok(())
}

/// What Azure adds when it shows a disk.
pub(super) fn show_disk(state: &State, id: &str, body: &mut Value) {
    let user = user_of_disk(state, id);
    body["properties"]["diskState"] = match user {
        Some(vm) if vm.power == "running" => "Attached",
        Some(_) => "Reserved",
        None => "Unattached",
    }
    .into();
    if let Some(vm) = user {
        body["managedBy"] = vm.id.clone().into();
    }
}

/// A VM's instance view.
pub(super) fn instance_view(entry: &Entry) -> Value {
    let state = entry.state.to_lowercase();
    json!({
        "statuses": [
            { "code": format!("ProvisioningState/{state}"), "level": "Info", "displayStatus": format!("Provisioning {state}"),
              "time": format!("2026-12-01T00:00:00.{:07}+00:00", entry.changes) },
            { "code": format!("PowerState/{}", entry.power), "level": "Info", "displayStatus": format!("VM {}", entry.power) },
        ],
        "vmAgent": { "vmAgentVersion": "Unknown", "statuses": [
            { "code": "ProvisioningState/Unavailable", "level": "Warning", "displayStatus": "Not Ready" },
        ] },
    })
}
