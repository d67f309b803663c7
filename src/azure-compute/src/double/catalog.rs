//! Sizes and quotas of the double's one region.

use serde_json::{Value, json};

use super::state::State;

/// Name, family, cores, memory in GiB, data disks, NICs, premium, generations, architecture, zones.
type Row = (
    &'static str,
    &'static str,
    u32,
    &'static str,
    u32,
    u32,
    bool,
    &'static str,
    &'static str,
);

const SIZES: &[Row] = &[
    (
        "Standard_A1_v2",
        "standardAv2Family",
        1,
        "2",
        2,
        2,
        false,
        "V1",
        "x64",
    ),
    (
        "Standard_B1s",
        "standardBSFamily",
        1,
        "1",
        2,
        2,
        true,
        "V1,V2",
        "x64",
    ),
    (
        "Standard_B2s",
        "standardBSFamily",
        2,
        "4",
        4,
        3,
        true,
        "V1,V2",
        "x64",
    ),
    (
        "Standard_D2ps_v5",
        "standardDPSv5Family",
        2,
        "8",
        4,
        2,
        true,
        "V2",
        "Arm64",
    ),
    (
        "Standard_D2s_v3",
        "standardDSv3Family",
        2,
        "8",
        4,
        2,
        true,
        "V1,V2",
        "x64",
    ),
    (
        "Standard_D2s_v6",
        "standardDsv6Family",
        2,
        "8",
        4,
        2,
        true,
        "V2",
        "x64",
    ),
    (
        "Standard_D4s_v3",
        "standardDSv3Family",
        4,
        "16",
        8,
        2,
        true,
        "V1,V2",
        "x64",
    ),
    (
        "Standard_D8s_v3",
        "standardDSv3Family",
        8,
        "32",
        16,
        4,
        true,
        "V1,V2",
        "x64",
    ),
    (
        "Standard_M208s_v2",
        "standardMSv2Family",
        208,
        "2850",
        64,
        8,
        true,
        "V2",
        "x64",
    ),
];

pub(super) fn skus(location: &str) -> Vec<Value> {
    let mut all: Vec<Value> = SIZES
        .iter()
        .map(|(name, family, cores, memory, disks, nics, premium, generations, architecture)| {
            let capability = |name: &str, value: String| json!({ "name": name, "value": value });
            let nvme_only = name.ends_with("_v6");
            let barred = *name == "Standard_M208s_v2";
            json!({
                "resourceType": "virtualMachines", "name": name, "tier": "Standard", "family": family,
                "locations": [location],
                "locationInfo": [{ "location": location, "zones": ["1", "2", "3"], "zoneDetails": [] }],
                "capabilities": [
                    capability("vCPUs", cores.to_string()),
                    capability("MemoryGB", (*memory).to_owned()),
                    capability("MaxDataDiskCount", disks.to_string()),
                    capability("MaxNetworkInterfaces", nics.to_string()),
                    capability("PremiumIO", if *premium { "True" } else { "False" }.to_owned()),
                    capability("HyperVGenerations", (*generations).to_owned()),
                    capability("CpuArchitectureType", (*architecture).to_owned()),
                    capability("AcceleratedNetworkingEnabled", if *cores > 1 { "True" } else { "False" }.to_owned()),
                    capability("DiskControllerTypes", if nvme_only { "NVMe" } else { "SCSI" }.to_owned()),
                ],
                "restrictions": if barred {
                    json!([{ "type": "Location", "values": [location], "reasonCode": "NotAvailableForSubscription",
                        "restrictionInfo": { "locations": [location] } }])
                } else { json!([]) },
            })
        })
        .collect();
    all.push(json!({ "resourceType": "disks", "name": "Premium_LRS", "tier": "Premium", "size": "P10", "locations": [location],
        "locationInfo": [{ "location": location, "zones": [] }], "capabilities": [], "restrictions": [] }));
    all
}

/// Cores of a size; nothing for one that the region doesn't have.
pub(super) fn cores(size: &str) -> Option<u64> {
    row(size).map(|r| u64::from(r.2))
}

pub(super) fn row(size: &str) -> Option<&'static Row> {
    SIZES.iter().find(|r| r.0.eq_ignore_ascii_case(size))
}

pub(super) fn cores_in_use(state: &State) -> u64 {
    state
        .of_type("Microsoft.Compute/virtualMachines")
        .filter(|vm| vm.power == "running")
        .filter_map(|vm| {
            cores(super::state::text(
                &vm.body,
                "/properties/hardwareProfile/vmSize",
            ))
        })
        .sum()
}

pub(super) fn usages(state: &State) -> Vec<Value> {
    let usage = |name: &str, used: u64, limit: u64| {
        json!({ "name": { "value": name, "localizedValue": name }, "unit": "Count",
        "currentValue": used, "limit": limit })
    };
    vec![
        usage("cores", cores_in_use(state), state.core_limit),
        usage("standardDSv3Family", 0, 100),
        usage("availabilitySets", 0, 2500),
    ]
}
