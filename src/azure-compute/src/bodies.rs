//! Bodies of what is made, as the documented contracts of Compute and Network have them.

use serde_json::{Value, json};

use crate::disks::ChosenDisk;
use crate::nics::ChosenNic;
use crate::spec::{DiskSpec, Network, Placement, SubnetSpec, TargetSpec};

/// A managed disk out of a page blob.
pub(crate) fn disk(spec: &TargetSpec, source: &DiskSpec, chosen: &ChosenDisk) -> Value {
    let mut properties = json!({
        "creationData": {
            "createOption": "Import",
            "sourceUri": source.blob_uri,
            "storageAccountId": source.storage_account_id,
        },
    });
    if source.is_os {
        properties["osType"] = spec.os.word().into();
        properties["hyperVGeneration"] = spec.generation.word().into();
    }
    if let Some(size) = chosen.size_gib {
        properties["diskSizeGB"] = size.into();
    }
    if let Some(set) = &source.encryption_set_id {
        properties["encryption"] = json!({
            "type": "EncryptionAtRestWithCustomerKey",
            "diskEncryptionSetId": set,
        });
    }
    let mut body = json!({
        "location": spec.place.location,
        "sku": { "name": source.disk_type.word() },
        "properties": properties,
    });
    // A disk in all zones belongs to none.
    if let (Placement::Zone(zone), false) = (&spec.placement, source.disk_type.is_zone_redundant())
    {
        body["zones"] = json!([zone]);
    }
    body
}

/// An incremental snapshot of a managed disk.
pub(crate) fn snapshot(location: &str, disk_id: &str) -> Value {
    json!({ "location": location, "properties": {
        "creationData": { "createOption": "Copy", "sourceResourceId": disk_id },
        "incremental": true,
    } })
}

/// A static public address.
pub(crate) fn public_address(spec: &TargetSpec) -> Value {
    let mut body = json!({
        "location": spec.place.location,
        "sku": { "name": "Standard" },
        "properties": { "publicIPAllocationMethod": "Static", "publicIPAddressVersion": "IPv4" },
    });
    if let Placement::Zone(zone) = &spec.placement {
        body["zones"] = json!([zone]);
    }
    body
}

/// A NIC; with `fixed` false without its fixed address.
pub(crate) fn nic(
    spec: &TargetSpec,
    chosen: &ChosenNic,
    public: Option<&str>,
    fixed: bool,
) -> Value {
    let mut address = json!({ "subnet": { "id": chosen.subnet_id }, "primary": true });
    match chosen.address.filter(|_| fixed) {
        Some(wished) => {
            address["privateIPAllocationMethod"] = "Static".into();
            address["privateIPAddress"] = wished.to_string().into();
        }
        None => address["privateIPAllocationMethod"] = "Dynamic".into(),
    }
    if let Some(id) = public {
        address["publicIPAddress"] = json!({ "id": id });
    }
    let mut properties = json!({
        "ipConfigurations": [{ "name": "ipconfig1", "properties": address }],
        "enableAcceleratedNetworking": chosen.accelerated,
    });
    if let Some(id) = &chosen.security_group_id {
        properties["networkSecurityGroup"] = json!({ "id": id });
    }
    json!({ "location": spec.place.location, "properties": properties })
}

/// The VM. `disk_id` gives the ARM id of a managed disk by its name.
pub(crate) fn vm(
    spec: &TargetSpec,
    size: &str,
    disks: &[ChosenDisk],
    disk_id: &dyn Fn(&str) -> String,
    nics: &[(String, bool)],
) -> Value {
    let place_of = |disk: &ChosenDisk| {
        if spec.managed_disks {
            ("managedDisk", json!({ "id": disk_id(&disk.name) }))
        } else {
            let source = spec.disks.iter().find(|d| d.id == disk.source_id);
            let uri = source.map_or("", |d| d.blob_uri.as_str());
            ("vhd", json!({ "uri": uri }))
        }
    };
    let mut storage = json!({ "dataDisks": [] });
    let mut data = Vec::new();
    for disk in disks {
        let (word, place) = place_of(disk);
        let mut entry =
            json!({ "name": disk.name, "createOption": "Attach", "caching": disk.caching.word() });
        entry[word] = place;
        match disk.lun {
            Some(lun) => {
                entry["lun"] = lun.into();
                data.push(entry);
            }
            None => {
                entry["osType"] = spec.os.word().into();
                storage["osDisk"] = entry;
            }
        }
    }
    storage["dataDisks"] = Value::Array(data);
    let mut properties = json!({
        "hardwareProfile": { "vmSize": size },
        "storageProfile": storage,
        "networkProfile": {
            "networkInterfaces": nics.iter().map(|(id, primary)| json!({ "id": id, "properties": { "primary": primary } })).collect::<Vec<_>>(),
        },
        // Screenshots and the serial console, for drill reports and for whoever can't log on.
        "diagnosticsProfile": { "bootDiagnostics": { "enabled": true } },
    });
    if let Placement::AvailabilitySet(id) = &spec.placement {
        properties["availabilitySet"] = json!({ "id": id });
    }
    if let Some(id) = &spec.proximity_group_id {
        properties["proximityPlacementGroup"] = json!({ "id": id });
    }
    if let Some(id) = &spec.capacity_group_id {
        properties["capacityReservation"] = json!({ "capacityReservationGroup": { "id": id } });
    }
    if let Some(word) = spec.licence.word() {
        properties["licenseType"] = word.into();
    }
    let mut body = json!({ "location": spec.place.location, "properties": properties });
    if let Placement::Zone(zone) = &spec.placement {
        body["zones"] = json!([zone]);
    }
    body
}

/// Security group of an isolated network: nothing to and from the internet, everything inside.
pub(crate) fn isolation(location: &str) -> Value {
    let rule = |name: &str, direction: &str, from: &str, to: &str| {
        json!({ "name": name, "properties": {
            "priority": 100, "direction": direction, "access": "Deny", "protocol": "*",
            "sourceAddressPrefix": from, "sourcePortRange": "*",
            "destinationAddressPrefix": to, "destinationPortRange": "*",
        } })
    };
    json!({ "location": location, "properties": { "securityRules": [
        rule("deny-internet-out", "Outbound", "*", "Internet"),
        rule("deny-internet-in", "Inbound", "Internet", "*"),
    ] } })
}

/// An isolated network.
pub(crate) fn network(location: &str, subnets: &[SubnetSpec], security_group: &str) -> Value {
    let mut prefixes: Vec<&str> = subnets.iter().map(|s| s.prefix.as_str()).collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    let subnets: Vec<Value> = subnets
        .iter()
        .map(|s| {
            json!({ "name": s.name, "properties": {
                "addressPrefix": s.prefix, "networkSecurityGroup": { "id": security_group },
            } })
        })
        .collect();
    json!({ "location": location, "properties": {
        "addressSpace": { "addressPrefixes": prefixes }, "subnets": subnets,
    } })
}

/// Name and owner of the isolated network, if there is one.
pub(crate) fn isolated(network: &Network) -> Option<(&str, &str, &[SubnetSpec])> {
    match network {
        Network::Isolated {
            name,
            owner,
            subnets,
        } => Some((name, owner, subnets)),
        Network::Existing { .. } => None,
    }
}
