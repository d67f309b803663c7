//! The layout of disks.

use proptest::prelude::*;

use super::*;
use crate::finding::{Finding, Severity};

fn disk(name: &str, is_os: bool, gib: u64) -> DiskSpec {
    DiskSpec {
        id: format!("id-{name}"),
        name: name.to_owned(),
        is_os,
        bytes: gib * GIB,
        blob_uri: format!("https://account.blob.core.windows.net/vhds/{name}.vhd"),
        storage_account_id:
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/account"
                .to_owned(),
        target_name: None,
        disk_type: DiskType::Premium_LRS,
        size_gib: None,
        encryption_set_id: None,
        lun: None,
    }
}

fn lay(
    disks: &[DiskSpec],
    generation: Generation,
    managed: bool,
) -> (Vec<ChosenDisk>, Vec<Finding>) {
    let mut findings = Findings::default();
    let chosen = lay_out(
        "vm",
        false,
        disks,
        generation,
        managed,
        &Placement::Region,
        &mut findings,
    );
    (chosen, findings.0)
}

fn refused(disk: DiskSpec, generation: Generation, managed: bool) -> bool {
    let mut disks = vec![disk];
    if !disks[0].is_os {
        disks.push(self::disk("os", true, 30));
    }
    let (_, findings) = lay(&disks, generation, managed);
    findings.iter().any(|f| f.severity == Severity::Error)
}

#[test]
fn the_limits_of_azure_hold_to_the_gibibyte() {
    let v1 = Generation::V1;
    for (gib, os, generation, managed, good) in [
        (2048, true, v1, true, true),
        (2049, true, v1, true, false),
        (4095, true, Generation::V2, true, true),
        (4096, true, Generation::V2, true, false),
        (32_767, false, v1, true, true),
        (32_768, false, v1, true, false),
        (4095, false, v1, false, true),
        (4096, false, v1, false, false),
    ] {
        assert_eq!(
            !refused(disk("d", os, gib), generation, managed),
            good,
            "{gib} {os} {generation:?} {managed}"
        );
    }
}

#[test]
fn what_azure_refuses_is_found_before() {
    let v1 = Generation::V1;
    let with = |change: fn(&mut DiskSpec)| {
        let mut disk = disk("d", false, 10);
        change(&mut disk);
        disk
    };
    assert!(!refused(with(|_| ()), v1, true));
    assert!(
        refused(with(|d| d.bytes += 512), v1, true),
        "not whole mebibytes"
    );
    assert!(
        refused(with(|d| d.size_gib = Some(9)), v1, true),
        "shrinking"
    );
    assert!(refused(
        with(|d| d.disk_type = DiskType::UltraSSD_LRS),
        v1,
        true
    ));
    assert!(refused(
        with(|d| d.blob_uri.push_str("?sig=secret")),
        v1,
        true
    ));
    assert!(refused(with(|d| d.lun = Some(64)), v1, true));
    assert!(refused(
        with(|d| d.target_name = Some("-x".to_owned())),
        v1,
        true
    ));
    assert!(refused(
        with(|d| d.encryption_set_id = Some("/e".to_owned())),
        v1,
        false
    ));
    assert!(
        refused(disk("os", true, 30), Generation::V2, false),
        "generation 2 from page blobs"
    );
}

#[test]
fn a_signature_is_in_no_finding() {
    let mut bad = disk("d", true, 10);
    bad.blob_uri.push_str("?sig=secret");
    let (_, findings) = lay(&[bad], Generation::V1, true);
    assert!(!format!("{findings:?}").contains("secret"));
}

#[test]
fn large_disks_are_not_cached() {
    let (chosen, _) = lay(
        &[
            disk("os", true, 30),
            disk("a", false, 10),
            disk("b", false, 5000),
        ],
        Generation::V1,
        true,
    );
    let caching: Vec<_> = chosen.iter().map(|d| d.caching).collect();
    assert_eq!(
        caching,
        [Caching::ReadWrite, Caching::ReadOnly, Caching::None]
    );
}

proptest! {
    #[test]
    fn units_differ_and_wished_ones_stay(
        wishes in proptest::collection::vec(proptest::option::of(0_u32..64), 1..40)
    ) {
        let mut disks = vec![disk("os", true, 30)];
        disks.extend(wishes.iter().enumerate().map(|(i, lun)| {
            let mut d = disk(&format!("d{i}"), false, 1);
            d.lun = *lun;
            d
        }));
        let (chosen, findings) = lay(&disks, Generation::V1, true);
        prop_assert_eq!(chosen.len(), disks.len());
        prop_assert_eq!(chosen[0].lun, None);
        let clash = findings.iter().any(|f| f.severity == Severity::Error);
        let units: BTreeSet<_> = chosen.iter().filter_map(|d| d.lun).collect();
        prop_assert_eq!(units.len() == wishes.len(), !clash);
        for (i, wish) in wishes.iter().enumerate() {
            let made = chosen.iter().find(|d| d.source_id == format!("id-d{i}")).unwrap();
            prop_assert!(wish.is_none() || *wish == made.lun);
        }
    }
}
