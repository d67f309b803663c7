//! The whole life of recovered VMs against the double.

mod support;

use azure_compute::double::{Double, Fault, Rule};
use azure_compute::{
    Address, DiskType, Generation, Kind, Licence, Network, OsType, Placement, Power, SubnetSpec,
    TargetErrorKind,
};
use serde_json::{Value, json};
use support::{RECOVERY, disk, errors, go, ip, nic, planned, spec, target, uri};

#[tokio::test]
async fn a_vm_is_planned_made_stopped_started_and_removed() {
    let double = Double::start(2).await.unwrap();
    let before = double.ids();
    let target = target(&double, 4);
    let mut wish = spec(&double);
    wish.tags.vm.insert("team".to_owned(), "web".to_owned());
    wish.tags.disks.insert("cost".to_owned(), "42".to_owned());
    let plan = planned(&target, &wish).await;
    assert_eq!(
        plan.size, "Standard_D2s_v3",
        "Arm64, NVMe only and burstable sizes are left aside"
    );
    assert_eq!(double.ids(), before, "a plan makes nothing");

    let made = target.make(&plan, &go()).await.unwrap();
    let address = |name: &str| {
        made.iter()
            .find(|m| m.name == name)
            .unwrap()
            .address
            .clone()
    };
    assert_eq!(
        address("web-1-nic0").as_deref(),
        Some("10.0.1.10"),
        "kept, because it is free"
    );
    assert_eq!(
        address("web-1-nic1").as_deref(),
        Some("10.0.2.4"),
        "the next free one of its subnet"
    );
    assert!(address("web-1-nic0-ip").unwrap().starts_with("203.0.113."));
    let vm = double.body(&plan.vm_id).unwrap();
    assert_eq!(vm["tags"]["team"], "web");
    assert_eq!(vm["properties"]["storageProfile"]["dataDisks"][0]["lun"], 0);
    let system = double
        .body(&Kind::Disk.id_of(&wish.place, "web-1-system"))
        .unwrap();
    assert_eq!(system["properties"]["hyperVGeneration"], "V2");
    assert_eq!(system["tags"]["cost"], "42");

    let view = target.view(&plan.vm_id, RECOVERY).await.unwrap().unwrap();
    assert_eq!(
        (view.power, view.provisioning_state.as_str()),
        (Power::Running, "Succeeded")
    );
    target.stop(&plan.vm_id, RECOVERY, &go()).await.unwrap();
    assert_eq!(
        target
            .view(&plan.vm_id, RECOVERY)
            .await
            .unwrap()
            .unwrap()
            .power,
        Power::Deallocated
    );
    target.start(&plan.vm_id, RECOVERY, &go()).await.unwrap();
    let posts = double.faults().calls().len();
    target.start(&plan.vm_id, RECOVERY, &go()).await.unwrap();
    let again = double.faults().calls();
    assert!(
        again[posts..].iter().all(|c| c.method == "GET"),
        "a VM that runs is left alone"
    );

    let removed = target.remove(&wish.place, RECOVERY, &go()).await.unwrap();
    assert_eq!(removed.len(), made.len());
    assert_eq!(removed[0], plan.vm_id, "the VM goes first");
    assert_eq!(double.ids(), before, "nothing is left");
    assert!(
        target
            .remove(&wish.place, RECOVERY, &go())
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(target.view(&plan.vm_id, RECOVERY).await.unwrap(), None);
    assert_eq!(double.collisions(), 0);
}

#[tokio::test]
async fn making_twice_makes_nothing_twice() {
    let double = Double::start(1).await.unwrap();
    let target = target(&double, 4);
    let plan = planned(&target, &spec(&double)).await;
    let first = target.make(&plan, &go()).await.unwrap();
    let text = serde_json::to_string(&plan).unwrap();
    let stored = serde_json::from_str(&text).unwrap();
    let writes = double
        .faults()
        .calls()
        .iter()
        .filter(|c| c.method == "PUT")
        .count();
    assert_eq!(
        target.make(&stored, &go()).await.unwrap(),
        first,
        "a stored plan is the same plan"
    );
    let after = double
        .faults()
        .calls()
        .iter()
        .filter(|c| c.method == "PUT")
        .count();
    assert_eq!(writes, after);
    // Planned anew, its own address is not in its way.
    let again = planned(&target, &spec(&double)).await;
    assert_eq!(again.resources, plan.resources);
}

#[tokio::test]
async fn a_drill_in_an_isolated_network_leaves_nothing_and_touches_no_production() {
    let double = Double::start(1).await.unwrap();
    let before = double.ids();
    let target = target(&double, 4);
    let place = double.world().place.clone();
    let isolated = Network::Isolated {
        name: "drill-7".to_owned(),
        owner: "drill-7".to_owned(),
        subnets: vec![
            SubnetSpec {
                name: "web".to_owned(),
                prefix: "10.0.1.0/24".to_owned(),
            },
            SubnetSpec {
                name: "apps".to_owned(),
                prefix: "10.0.2.0/24".to_owned(),
            },
        ],
    };
    for name in ["web-1", "web-2"] {
        let mut wish = spec(&double);
        wish.recovery_id = format!("drill-7/{name}");
        wish.drill = true;
        wish.vm_name = name.to_owned();
        wish.network = isolated.clone();
        let last = if name == "web-1" { 10 } else { 11 };
        wish.nics = vec![nic("nic-a", "web", Address::Exactly(ip(last)))];
        let plan = planned(&target, &wish).await;
        assert_eq!(plan.vm_name, format!("{name}-test"));
        let made = target.make(&plan, &go()).await.unwrap();
        let nic = made.iter().find(|m| m.kind == Kind::Nic).unwrap();
        assert_eq!(
            nic.address.as_deref(),
            Some(format!("10.0.1.{last}").as_str()),
            "the same address as in production"
        );
        let subnet = double.body(&nic.id).unwrap()["properties"]["ipConfigurations"][0]["properties"]["subnet"]["id"].clone();
        assert!(
            subnet
                .as_str()
                .unwrap()
                .ends_with("/virtualNetworks/drill-7/subnets/web")
        );
    }
    let group = double
        .body(&Kind::SecurityGroup.id_of(&place, "drill-7-nsg"))
        .unwrap();
    let rules = group["properties"]["securityRules"].as_array().unwrap();
    assert!(rules.iter().all(|r| r["properties"]["access"] == "Deny") && rules.len() == 2);

    target.remove(&place, "drill-7/web-1", &go()).await.unwrap();
    let error = target.remove(&place, "drill-7", &go()).await.unwrap_err();
    assert_eq!(
        error.kind(),
        TargetErrorKind::InUse,
        "the other VM is still in it: {error}"
    );
    target.remove(&place, "drill-7/web-2", &go()).await.unwrap();
    target.remove(&place, "drill-7", &go()).await.unwrap();
    assert_eq!(double.ids(), before);
}

#[tokio::test]
async fn a_drill_in_the_production_network_is_warned_of() {
    let double = Double::start(0).await.unwrap();
    let mut wish = spec(&double);
    wish.drill = true;
    wish.network = Network::Existing {
        id: double.world().network_id.clone(),
        production: true,
    };
    let plan = planned(&target(&double, 2), &wish).await;
    assert!(
        plan.findings
            .iter()
            .any(|f| f.text.contains("production network"))
    );
}

#[tokio::test]
async fn a_vm_runs_on_page_blobs_in_a_classic_set() {
    let double = Double::start(1).await.unwrap();
    let target = target(&double, 3);
    let mut wish = spec(&double);
    wish.managed_disks = false;
    wish.generation = Generation::V1;
    wish.os = OsType::Windows;
    wish.licence = Licence::WindowsServer;
    wish.placement = Placement::AvailabilitySet(double.world().set_id.clone());
    assert_eq!(
        errors(&target.plan(&wish).await.unwrap()),
        ["availability set set-managed: it is for VMs with managed disks"]
    );
    wish.placement = Placement::AvailabilitySet(double.world().classic_set_id.clone());
    let plan = planned(&target, &wish).await;
    assert_eq!(plan.blobs, [uri("system"), uri("data")]);
    target.make(&plan, &go()).await.unwrap();
    let vm = double.body(&plan.vm_id).unwrap();
    assert_eq!(
        vm["properties"]["storageProfile"]["osDisk"]["vhd"]["uri"],
        uri("system")
    );
    assert_eq!(vm["properties"]["licenseType"], "Windows_Server");
    assert!(!double.ids().iter().any(|id| id.contains("/disks/")));
}

#[tokio::test]
async fn a_vm_in_a_zone_has_its_disks_and_address_there() {
    let double = Double::start(1).await.unwrap();
    let target = target(&double, 3);
    let mut wish = spec(&double);
    wish.placement = Placement::Zone("2".to_owned());
    wish.disks[1].disk_type = DiskType::Premium_ZRS;
    let plan = planned(&target, &wish).await;
    target.make(&plan, &go()).await.unwrap();
    let zones =
        |name: &str| double.body(&Kind::Disk.id_of(&wish.place, name)).unwrap()["zones"].clone();
    assert_eq!(zones("web-1-system"), json!(["2"]));
    assert_eq!(zones("web-1-data"), Value::Null, "it lies in all of them");
}

#[tokio::test]
async fn everything_that_stands_in_the_way_is_said_at_once_and_nothing_is_made() {
    let double = Double::start(0).await.unwrap();
    let before = double.ids();
    let target = target(&double, 2);
    let mut wish = spec(&double);
    wish.vm_name = "bad_name-".to_owned();
    wish.place.resource_group = "rg-gone".to_owned();
    wish.size = Some("Standard_A1_v2".to_owned());
    wish.network = Network::Existing {
        id: format!("{}x", double.world().network_id),
        production: false,
    };
    wish.disks[0].storage_account_id = "/subscriptions/s".to_owned();
    wish.disks[1] = disk(&double, "data", false, 40_000);
    wish.licence = Licence::WindowsServer;
    let plan = target.plan(&wish).await.unwrap();
    let errors = errors(&plan);
    assert_eq!(errors.len(), 7, "{errors:#?}");
    let error = target.make(&plan, &go()).await.unwrap_err();
    assert_eq!(error.kind(), TargetErrorKind::ImpossiblePlan);
    assert!(plan.findings.iter().all(|f| !f.next_step.is_empty()));
    assert_eq!(double.ids(), before);
}

#[tokio::test]
async fn a_taken_address_fails_a_failover_and_not_a_drill() {
    let double = Double::start(0).await.unwrap();
    let world = double.world().clone();
    let other = Kind::Nic.id_of(&world.place, "printer");
    double.add_resource(&other, json!({ "location": "westeurope", "properties": { "ipConfigurations": [
        { "name": "a", "properties": { "privateIPAddress": "10.0.1.10", "subnet": { "id": format!("{}/subnets/web", world.network_id) } } }] } }));
    let target = target(&double, 2);
    let mut wish = spec(&double);
    wish.nics = vec![nic("nic-a", "web", Address::Exactly(ip(10)))];
    assert_eq!(
        errors(&target.plan(&wish).await.unwrap()),
        ["NIC nic-a: 10.0.1.10 is taken in the network"]
    );
    wish.drill = true;
    let plan = planned(&target, &wish).await;
    let made = target.make(&plan, &go()).await.unwrap();
    let nic = made.iter().find(|m| m.kind == Kind::Nic).unwrap();
    assert_eq!(nic.address.as_deref(), Some("10.0.1.4"));
}

#[tokio::test]
async fn an_address_that_is_taken_after_the_plan_is_replaced_only_where_another_will_do() {
    for (address, drill, good) in [
        (Address::Keep(ip(10)), false, true),
        (Address::Exactly(ip(10)), true, true),
        (Address::Exactly(ip(10)), false, false),
    ] {
        let double = Double::start(0).await.unwrap();
        let world = double.world().clone();
        let target = target(&double, 2);
        let mut wish = spec(&double);
        wish.drill = drill;
        wish.nics = vec![nic("nic-a", "web", address)];
        let plan = planned(&target, &wish).await;
        double.add_resource(&Kind::Nic.id_of(&world.place, "printer"), json!({ "location": "westeurope", "properties": { "ipConfigurations": [
            { "name": "a", "properties": { "privateIPAddress": "10.0.1.10", "subnet": { "id": format!("{}/subnets/web", world.network_id) } } }] } }));
        match target.make(&plan, &go()).await {
            Ok(made) => {
                assert!(good);
                assert_eq!(
                    made.iter()
                        .find(|m| m.kind == Kind::Nic)
                        .unwrap()
                        .address
                        .as_deref(),
                    Some("10.0.1.4")
                );
                // The other body counts as made from this plan.
                target.make(&plan, &go()).await.unwrap();
            }
            Err(error) => {
                assert!(!good);
                assert_eq!(error.kind(), TargetErrorKind::AddressInUse);
                assert!(error.to_string().contains("free the address"), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn what_belongs_to_somebody_else_is_neither_taken_nor_changed_nor_removed() {
    let double = Double::start(1).await.unwrap();
    let target = target(&double, 3);
    let wish = spec(&double);
    let plan = planned(&target, &wish).await;
    for resource in &plan.resources {
        let theirs = json!({ "location": "westeurope", "tags": { "owner": "somebody" }, "properties": { "note": "theirs" } });
        double.add_resource(&resource.id, theirs.clone());
        let found = errors(&target.plan(&wish).await.unwrap());
        assert!(
            found
                .iter()
                .any(|e| e.contains("does not belong to this recovery")),
            "{found:?}"
        );
        let error = target.make(&plan, &go()).await.unwrap_err();
        assert_eq!(error.kind(), TargetErrorKind::Foreign, "{error}");
        target.remove(&wish.place, RECOVERY, &go()).await.unwrap();
        assert_eq!(double.body(&resource.id).unwrap(), theirs);
        double.take_resource(&resource.id);
    }
    // A VM of another recovery of the same item, too.
    target.make(&plan, &go()).await.unwrap();
    for step in [
        target.start(&plan.vm_id, "other", &go()).await,
        target.stop(&plan.vm_id, "other", &go()).await,
    ] {
        assert_eq!(step.unwrap_err().kind(), TargetErrorKind::Foreign);
    }
    assert!(
        target
            .remove(&wish.place, "other", &go())
            .await
            .unwrap()
            .is_empty()
    );
    assert!(double.body(&plan.vm_id).is_some());
}

#[tokio::test]
async fn a_leftover_of_another_plan_is_not_taken_for_this_one() {
    let double = Double::start(0).await.unwrap();
    let target = target(&double, 3);
    let mut wish = spec(&double);
    target
        .make(&planned(&target, &wish).await, &go())
        .await
        .unwrap();
    wish.disks[0] = disk(&double, "system", true, 30);
    double.add_vhd(&uri("later-point"), 30 << 30);
    wish.disks[0].blob_uri = uri("later-point");
    let plan = target.plan(&wish).await.unwrap();
    assert_eq!(errors(&plan).len(), 1);
    let mut forced = plan.clone();
    forced.findings.clear();
    assert_eq!(
        target.make(&forced, &go()).await.unwrap_err().kind(),
        TargetErrorKind::OtherPlan
    );
    target.remove(&wish.place, RECOVERY, &go()).await.unwrap();
    target
        .make(&planned(&target, &wish).await, &go())
        .await
        .unwrap();
}

#[tokio::test]
async fn an_allocation_that_fails_is_told_and_works_when_there_is_room_again() {
    for (code, kind) in [
        ("AllocationFailed", TargetErrorKind::Capacity),
        ("ZonalAllocationFailed", TargetErrorKind::Capacity),
        ("SkuNotAvailable", TargetErrorKind::SizeNotAvailable),
        ("QuotaExceeded", TargetErrorKind::Quota),
        ("RequestDisallowedByPolicy", TargetErrorKind::Policy),
    ] {
        let double = Double::start(1).await.unwrap();
        let target = target(&double, 3);
        let plan = planned(&target, &spec(&double)).await;
        double.faults().add(Rule::once(Fault::FailLater(code), |c| {
            c.method == "PUT" && c.path.contains("/virtualMachines/")
        }));
        let error = target.make(&plan, &go()).await.unwrap_err();
        assert_eq!((error.kind(), error.code()), (kind, code));
        target.make(&plan, &go()).await.unwrap();
        assert_eq!(
            double.times_created(&plan.vm_id),
            1,
            "the failed one is made good"
        );
    }
}

#[tokio::test]
async fn an_import_that_failed_is_begun_anew() {
    let double = Double::start(1).await.unwrap();
    let target = target(&double, 3);
    let plan = planned(&target, &spec(&double)).await;
    double.faults().add(Rule::once(
        Fault::FailLater("InternalExecutionError"),
        |c| c.method == "PUT" && c.path.contains("/disks/web-1-data"),
    ));
    target.make(&plan, &go()).await.unwrap_err();
    target.make(&plan, &go()).await.unwrap();
}

#[tokio::test]
async fn cores_that_are_used_up_after_the_plan_are_told_as_a_quota() {
    let double = Double::start(0).await.unwrap();
    let target = target(&double, 2);
    let wish = spec(&double);
    let plan = planned(&target, &wish).await;
    double.limit_cores(1);
    let found = errors(&target.plan(&wish).await.unwrap());
    assert!(
        found[0].contains("the quota `cores` leaves 1 of 1 cores"),
        "{found:?}"
    );
    assert_eq!(
        target.make(&plan, &go()).await.unwrap_err().kind(),
        TargetErrorKind::Quota
    );
}

#[tokio::test]
async fn a_blob_that_is_no_vhd_is_told_as_such() {
    type Spoil = fn(&Double);
    let cases: [Spoil; 3] = [
        |d| d.add_blob(&uri("data"), (100 << 30) + 512, false, false),
        |d| d.add_blob(&uri("data"), (100 << 30) + 512, true, false),
        |d| d.add_blob(&uri("data"), (100 << 30) + 1024, true, true),
    ];
    for spoil in cases {
        let double = Double::start(0).await.unwrap();
        let target = target(&double, 2);
        let plan = planned(&target, &spec(&double)).await;
        spoil(&double);
        let error = target.make(&plan, &go()).await.unwrap_err();
        assert_eq!(error.kind(), TargetErrorKind::BadImage, "{error}");
        assert!(error.next_step().contains("fixed VHD"));
    }
}

#[tokio::test]
async fn a_token_that_ends_is_renewed_and_a_caller_can_stop() {
    let double = Double::start(1).await.unwrap();
    let target = target(&double, 3);
    let plan = planned(&target, &spec(&double)).await;
    double.end_tokens();
    let stop = go();
    stop.cancel();
    let error = target.make(&plan, &stop).await.unwrap_err();
    assert_eq!(error.kind(), TargetErrorKind::Interrupted);
    target.make(&plan, &go()).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_is_opened_again_after_any_lost_answer_and_removed_though_it_was_left_open() {
    let double = Double::start(1).await.unwrap();
    let before = double.ids();
    let target = target(&double, 4);
    let wish = spec(&double);
    let plan = planned(&target, &wish).await;
    target.make(&plan, &go()).await.unwrap();
    let disk = Kind::Disk.id_of(&wish.place, "web-1-system");
    let take = |name: &'static str| {
        let (target, place, disk) = (&target, &wish.place, &disk);
        async move { target.snapshot(place, disk, name, RECOVERY, &go()).await }
    };
    double
        .faults()
        .add(Rule::once(Fault::DropAfter, |call| call.method == "PUT"));
    let snapshot = take("frozen-1").await.unwrap();
    assert_eq!(double.times_created(&snapshot), 1);
    let body = double.body(&snapshot).unwrap();
    assert_eq!(body["properties"]["incremental"], true);
    for lost in ["beginGetAccess", "endGetAccess"] {
        double
            .faults()
            .add(Rule::once(Fault::DropAfter, move |call| {
                call.path.ends_with(lost)
            }));
        let access = target
            .open(&snapshot, RECOVERY, 600, &go())
            .await
            .unwrap_or_else(|error| panic!("{lost}: {error}"));
        assert!(access.address().contains("sig="));
        assert!(!format!("{access:?}").contains("sig"), "a secret is shown");
    }
    assert!(double.faults().used_up());
    let foreign = target
        .open(&snapshot, "another", 600, &go())
        .await
        .unwrap_err();
    assert_eq!(foreign.kind(), TargetErrorKind::Foreign);
    // Whoever opened it died. A stranger's stays.
    let stranger = Kind::Snapshot.id_of(&wish.place, "theirs");
    double.add_resource(&stranger, json!({ "location": "westeurope" }));
    assert_eq!(double.open_snapshots().len(), 1);
    let found = target.snapshots(&wish.place, RECOVERY).await.unwrap();
    assert_eq!(found, std::slice::from_ref(&snapshot));
    for _ in 0..2 {
        target
            .remove_snapshot(&snapshot, RECOVERY, &go())
            .await
            .unwrap();
    }
    assert!(double.open_snapshots().is_empty());
    let gone = target.open(&snapshot, RECOVERY, 600, &go()).await;
    assert_eq!(gone.unwrap_err().kind(), TargetErrorKind::NotFound);
    target.remove(&wish.place, RECOVERY, &go()).await.unwrap();
    double.take_resource(&stranger);
    assert_eq!(double.ids(), before);
}
