//! A VM to recover, and a target that talks to the double without pauses.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::Ipv4Addr;
use std::time::Duration;

use azure_compute::double::Double;
use azure_compute::{
    Address, CancellationToken, ClientConfig, DiskSpec, DiskType, Generation, Licence, Limits,
    Network, NicSpec, OsType, Placement, PublicAddress, Secret, Selection, Target, TargetPlan,
    TargetSpec, WishedTags,
};

pub const RECOVERY: &str = "vault-1/web-1/failover-1";
const GIB: u64 = 1 << 30;

pub fn target(double: &Double, attempts: u32) -> Target {
    let mut config =
        ClientConfig::new(double.endpoint(), "tenant", "client", Secret::new("secret"));
    config.back_off = Duration::from_millis(1);
    let limits = Limits {
        resource: Duration::from_secs(60),
        pause: Duration::from_millis(1),
        attempts,
    };
    Target::new(config, limits).unwrap()
}

/// A client that tries nothing twice: the caller does.
pub fn impatient(double: &Double) -> Target {
    let mut config =
        ClientConfig::new(double.endpoint(), "tenant", "client", Secret::new("secret"));
    config.attempts = 1;
    let limits = Limits {
        resource: Duration::from_secs(60),
        pause: Duration::from_millis(1),
        attempts: 1,
    };
    Target::new(config, limits).unwrap()
}

pub fn go() -> CancellationToken {
    CancellationToken::new()
}

pub fn uri(name: &str) -> String {
    format!("https://replicas.blob.core.windows.net/vhds/{name}.vhd")
}

pub fn disk(double: &Double, name: &str, is_os: bool, gib: u64) -> DiskSpec {
    double.add_vhd(&uri(name), gib * GIB);
    DiskSpec {
        id: format!("disk-{name}"),
        name: name.to_owned(),
        is_os,
        bytes: gib * GIB,
        blob_uri: uri(name),
        storage_account_id: double.world().account_id.clone(),
        target_name: None,
        disk_type: DiskType::StandardSSD_LRS,
        size_gib: None,
        encryption_set_id: None,
        lun: None,
    }
}

pub fn nic(id: &str, subnet: &str, address: Address) -> NicSpec {
    NicSpec {
        id: id.to_owned(),
        selection: Selection::SelectedByDefault,
        source_subnet: Some(subnet.to_owned()),
        subnet: None,
        address,
        public_address: PublicAddress::None,
        target_name: None,
        security_group_id: None,
        accelerated: false,
    }
}

pub fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, last)
}

/// Two cores, two disks, two NICs, one of them with a public address.
pub fn spec(double: &Double) -> TargetSpec {
    let mut first = nic("nic-a", "web", Address::Keep(ip(10)));
    first.public_address = PublicAddress::New;
    TargetSpec {
        recovery_id: RECOVERY.to_owned(),
        place: double.world().place.clone(),
        vm_name: "web-1".to_owned(),
        drill: false,
        cores: 2,
        memory_mib: 8192,
        generation: Generation::V2,
        os: OsType::Linux,
        size: None,
        disks: vec![
            disk(double, "system", true, 30),
            disk(double, "data", false, 100),
        ],
        managed_disks: true,
        network: Network::Existing {
            id: double.world().network_id.clone(),
            production: false,
        },
        nics: vec![first, nic("nic-b", "apps", Address::Dynamic)],
        primary_nic: None,
        placement: Placement::Region,
        proximity_group_id: None,
        capacity_group_id: None,
        licence: Licence::None,
        tags: WishedTags::default(),
    }
}

pub async fn planned(target: &Target, spec: &TargetSpec) -> TargetPlan {
    let plan = target.plan(spec).await.unwrap();
    assert!(plan.is_possible(), "{:#?}", plan.findings);
    plan
}

/// The errors among what a plan found.
pub fn errors(plan: &TargetPlan) -> Vec<String> {
    let errors = plan
        .findings
        .iter()
        .filter(|f| f.severity == azure_compute::Severity::Error);
    errors.map(|f| format!("{}: {}", f.about, f.text)).collect()
}
