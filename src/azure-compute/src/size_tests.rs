//! The choice of a size, against an independent definition of "smallest that fits".

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn needs() -> Needs {
    Needs {
        cores: 2,
        memory_mib: 4096,
        data_disks: 2,
        nics: 1,
        premium: false,
        generation: Generation::V1,
        zone: None,
    }
}

fn size(name: &str, cores: u32, gib: u64) -> Size {
    Size {
        name: name.to_owned(),
        family: "standardDSv3Family".to_owned(),
        cores,
        memory_mib: gib * 1024,
        data_disks: cores * 2,
        nics: 2,
        premium: true,
        accelerated: true,
        generations: vec![Generation::V1, Generation::V2],
        x64: true,
        scsi: true,
        gpu: false,
        zones: vec!["1".to_owned(), "2".to_owned()],
        barred_zones: Vec::new(),
        barred: None,
    }
}

#[test]
fn the_smallest_that_fits_is_taken() {
    let sizes = [
        size("Standard_D4s_v3", 4, 16),
        size("Standard_D2s_v3", 2, 8),
        size("Standard_D1", 1, 4),
    ];
    let chosen = choose(&sizes, &needs(), None, &[]).unwrap();
    assert_eq!(chosen.name, "Standard_D2s_v3");
}

#[test]
fn a_wished_size_may_be_smaller_than_the_source_but_must_take_its_disks_and_nics() {
    let sizes = [size("Standard_D1", 1, 4), size("Standard_D2s_v3", 2, 8)];
    assert_eq!(
        choose(&sizes, &needs(), Some("standard_d1"), &[])
            .unwrap()
            .name,
        "Standard_D1"
    );
    let many = Needs {
        data_disks: 4,
        nics: 2,
        ..needs()
    };
    let none = choose(&sizes, &many, Some("Standard_D1"), &[]).unwrap_err();
    assert_eq!(none.reasons, ["it takes 2 data disks, 4 are needed"]);
    assert_eq!(none.instead.as_deref(), Some("Standard_D2s_v3"));
}

#[test]
fn every_reason_against_a_wished_size_is_named() {
    let mut bad = size("Standard_D2ps_v6", 2, 8);
    (bad.x64, bad.scsi, bad.premium, bad.nics) = (false, false, false, 1);
    bad.barred = Some("NotAvailableForSubscription".to_owned());
    bad.generations = vec![Generation::V2];
    let needs = Needs {
        nics: 3,
        premium: true,
        zone: Some("3".to_owned()),
        ..needs()
    };
    let quota = Quota {
        name: "standardDSv3Family".to_owned(),
        used: 9,
        limit: 10,
    };
    let none = choose(&[bad], &needs, Some("Standard_D2ps_v6"), &[quota]).unwrap_err();
    assert_eq!(none.reasons.len(), 8, "{:?}", none.reasons);
    assert_eq!(none.instead, None);
}

#[test]
fn without_any_size_the_nearest_ones_say_why() {
    let sizes = [size("Standard_D2s_v3", 2, 8)];
    let why = |needs: Needs| choose(&sizes, &needs, None, &[]).unwrap_err().reasons;
    assert_eq!(
        why(Needs { nics: 9, ..needs() }),
        ["Standard_D2s_v3: it takes 2 NICs, 9 are needed"]
    );
    assert_eq!(
        why(Needs {
            cores: 64,
            ..needs()
        }),
        ["no size of the region has 64 cores and 4096 MiB of memory"]
    );
}

#[test]
fn a_sku_is_read_as_azure_writes_it() {
    let sku = json!({
        "resourceType": "virtualMachines", "name": "Standard_D2s_v3", "tier": "Standard", "size": "D2s_v3",
        "family": "standardDSv3Family", "locations": ["westeurope"],
        "locationInfo": [{ "location": "westeurope", "zones": ["2", "1", "3"], "zoneDetails": [] }],
        "capabilities": [
            { "name": "vCPUs", "value": "2" }, { "name": "MemoryGB", "value": "3.5" },
            { "name": "MaxDataDiskCount", "value": "4" }, { "name": "MaxNetworkInterfaces", "value": "2" },
            { "name": "PremiumIO", "value": "True" }, { "name": "HyperVGenerations", "value": "V1,V2" },
            { "name": "CpuArchitectureType", "value": "x64" }, { "name": "AcceleratedNetworkingEnabled", "value": "True" },
            { "name": "DiskControllerTypes", "value": "SCSI, NVMe" },
        ],
        "restrictions": [{ "type": "Zone", "values": ["westeurope"], "reasonCode": "NotAvailableForSubscription",
            "restrictionInfo": { "locations": ["westeurope"], "zones": ["3"] } }],
    });
    let read = Size::from_sku(&sku, "WestEurope").unwrap();
    assert_eq!(
        (read.cores, read.memory_mib, read.data_disks, read.nics),
        (2, 3584, 4, 2)
    );
    assert!(read.premium && read.x64 && read.scsi && read.barred.is_none());
    assert_eq!(read.barred_zones, ["3"]);
    assert_eq!(read.generations, [Generation::V1, Generation::V2]);
    assert_eq!(Size::from_sku(&sku, "northeurope"), None);
}

fn any_size() -> impl Strategy<Value = Size> {
    let numbers = (1_u32..16, 1_u64..64, 0_u32..16, 1_u32..5);
    let flags = (
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    );
    (numbers, flags, "[A-Z][0-9]{3}").prop_map(|((cores, gib, data_disks, nics), flags, name)| {
        Size {
            name,
            family: "f".to_owned(),
            data_disks,
            nics,
            premium: flags.0,
            x64: flags.1,
            scsi: flags.2,
            gpu: flags.3,
            barred: flags.4.then(|| "QuotaId".to_owned()),
            generations: if flags.5 {
                vec![Generation::V1]
            } else {
                vec![Generation::V2]
            },
            ..size("", cores, gib)
        }
    })
}

proptest! {
    #[test]
    fn what_is_chosen_fits_and_nothing_smaller_does(
        sizes in proptest::collection::vec(any_size(), 0..12),
        cores in 1_u32..8, gib in 1_u64..32, data_disks in 0_u32..8, nics in 1_u32..4,
        premium in any::<bool>(), limit in 0_u64..20,
    ) {
        let needs = Needs { cores, memory_mib: gib * 1024, data_disks, nics, premium, ..needs() };
        let quota = Quota { name: "cores".to_owned(), used: 0, limit };
        let fits = |s: &Size| s.cores >= cores && s.memory_mib >= gib * 1024 && s.data_disks >= data_disks
            && s.nics >= nics && (s.premium || !premium) && s.x64 && s.scsi && s.barred.is_none()
            && s.generations == [Generation::V1] && u64::from(s.cores) <= limit;
        match choose(&sizes, &needs, None, &[quota]) {
            Ok(chosen) => {
                prop_assert!(fits(chosen));
                for other in sizes.iter().filter(|s| fits(s) && s.gpu <= chosen.gpu) {
                    prop_assert!((other.cores, other.memory_mib) >= (chosen.cores, chosen.memory_mib)
                        || other.gpu != chosen.gpu);
                }
            }
            Err(none) => {
                prop_assert!(!sizes.iter().any(fits));
                prop_assert!(!none.reasons.is_empty());
            }
        }
    }
}
