//! Recovery in Azure over the API: the double of Compute and Network makes the VMs, out of page blobs that the double of Azure Storage
//! holds, which came from a real replica.

mod disks;
#[path = "../harness/mod.rs"]
mod harness;
mod world;

use azure_compute::double::Double;
use harness::engine::WEB;
use harness::{World, patience};
use reqwest::StatusCode;
use serde_json::json;
use world::{
    Azure, away, back, base, enable_body, group, location, point, property, settings, site, storage,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_runs_in_azure_in_a_network_of_its_own_and_its_cleanup_leaves_nothing() {
    let azure = Azure::start().await;
    let world = &azure.world;
    let shown = world.get(&azure.item).await.body;
    let details = &shown["properties"]["providerSpecificDetails"];
    assert_eq!(details["recoveryTarget"], "Azure");
    assert_eq!(
        details["recoveryAzureResourceGroupId"],
        group(&azure.compute)
    );
    assert_eq!(details["recoveryAzureVmName"], "web-dr");
    assert_eq!(details["useManagedDisks"], "true");
    assert_eq!(details["targetVmTags"]["team"], "web");

    let started = world
        .post(&format!("{}/testFailover", azure.item), json!({}))
        .await;
    world.done(&started).await;
    let job = world.job(&started).await;
    let tasks: Vec<&str> = property(&job, "tasks")
        .as_array()
        .expect("tasks")
        .iter()
        .filter_map(|task| task["taskId"].as_str())
        .collect();
    assert_eq!(
        tasks,
        [
            "TestFailoverPreflightChecksTask",
            "BeginTestFailoverTask",
            "PrepareTestProtectedEntitiesTask",
            "BootTestProtectedEntitiesTask"
        ]
    );
    let told = &job["properties"]["customDetails"]["protectedItemDetails"][0];
    assert_eq!(
        (&told["state"], &told["recoveryHost"]),
        (&json!("Booted"), &json!("Microsoft Azure"))
    );
    azure.check_disks();
    let vm = azure.vm("web-dr-test").expect("the drill's VM");
    assert_eq!(vm["tags"]["team"], "web");
    let nic = vm["properties"]["networkProfile"]["networkInterfaces"][0]["id"]
        .as_str()
        .expect("NIC");
    let subnet = azure.compute.body(nic).expect("NIC")["properties"]["ipConfigurations"][0]["properties"]["subnet"]["id"].clone();
    let subnet = subnet.as_str().expect("subnet");
    assert!(
        subnet.contains("/virtualNetworks/siterecovery-drill-")
            && subnet.ends_with("/subnets/apps"),
        "{subnet}"
    );
    assert_eq!(
        azure.blobs("recovered/").await,
        Vec::<String>::new(),
        "managed disks need no page blobs"
    );
    let item = world.get(&azure.item).await.body;
    assert_eq!(property(&item, "testFailoverState"), "WaitingForCompletion");
    assert_eq!(
        property(&item, "protectionState"),
        "Protected",
        "replication goes on"
    );

    // A stranger's machine of the same kind stays.
    let stranger = format!(
        "{}/providers/Microsoft.Network/publicIPAddresses/theirs",
        group(&azure.compute)
    );
    azure.compute.add_resource(
        &stranger,
        json!({ "location": location(), "tags": { "siterecovery-recovery-id": "another" } }),
    );
    let cleaned = world
        .post(
            &format!("{}/testFailoverCleanup", azure.item),
            json!({ "properties": { "comments": "well" } }),
        )
        .await;
    world.done(&cleaned).await;
    assert!(azure.compute.body(&stranger).is_some());
    azure.compute.take_resource(&stranger);
    azure.check_nothing_is_left().await;
    azure.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_failover_into_azure_is_fenced_and_can_be_committed_and_left() {
    let azure = Azure::start().await;
    let world = &azure.world;
    let started = world
        .post(&format!("{}/plannedFailover", azure.item), away())
        .await;
    let item = world.done(&started).await;
    assert_eq!(
        property(&item, "protectionState"),
        "PlannedFailoverCommitRequired"
    );
    assert_eq!(property(&item, "activeLocation"), "Recovery");
    azure.check_disks();
    let vm = azure.vm("web-dr").expect("the recovered VM");
    let nic = vm["properties"]["networkProfile"]["networkInterfaces"][0]["id"]
        .as_str()
        .expect("NIC");
    let subnet = azure.compute.body(nic).expect("NIC")["properties"]["ipConfigurations"][0]["properties"]["subnet"]["id"].clone();
    assert_eq!(
        subnet,
        format!("{}/subnets/apps", azure.compute.world().network_id)
    );
    // The source's engine can't write any more.
    let late = azure.writer.add_point(point(1)).await.expect_err("fenced");
    assert_eq!(late.kind(), replica_store::ErrorKind::Fenced, "{late}");

    let committed = world
        .post(&format!("{}/failoverCommit", azure.item), json!({}))
        .await;
    world.done(&committed).await;
    let body = json!({ "properties": { "disableProtectionReason": "MigrationComplete" } });
    let removed = world.post(&format!("{}/remove", azure.item), body).await;
    let end = world.finish(&removed).await;
    assert_eq!(end["status"], "Succeeded", "{end}");
    assert_eq!(world.get(&azure.item).await.status, StatusCode::NOT_FOUND);
    assert!(
        azure.vm("web-dr").is_some(),
        "a VM that was left for good stays"
    );
    assert_eq!(azure.blobs("recovered/").await, Vec::<String>::new());
    azure.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failback_brings_what_the_vm_in_azure_wrote_and_its_commit_removes_the_vm() {
    let mut azure = Azure::start().await;
    let path = format!("{}/plannedFailover", azure.item);
    let started = azure.world.post(&path, away()).await;
    azure.world.done(&started).await;
    let commit = format!("{}/failoverCommit", azure.item);
    let committed = azure.world.post(&commit, json!({})).await;
    azure.world.done(&committed).await;
    azure.guest_writes(7);

    // First one that is taken back while it synchronises.
    azure.world.post(&path, back("ForDownTime")).await;
    let job = azure.suspended().await;
    azure.comes_into_the_replica().await;
    assert_eq!(azure.power(), "running");
    let cancelled = azure.world.post(&format!("{job}/cancel"), json!({})).await;
    assert!(cancelled.status.is_success(), "{cancelled:?}");
    azure
        .world
        .until(&job, |job| property(job, "state") == "Cancelled")
        .await;
    azure
        .world
        .until(&azure.item.clone(), |item| {
            property(item, "allowedOperations")
                .to_string()
                .contains("\"Failback\"")
        })
        .await;
    assert_eq!(azure.power(), "running");

    // Then one to its end, with a restart of the orchestrator in the middle.
    let begun = azure.world.post(&path, back("ForDownTime")).await;
    let job = azure.suspended().await;
    azure.guest_writes(9);
    azure.world = azure.world.restart().await;
    let resumed = azure
        .world
        .post(
            &format!("{job}/resume"),
            json!({ "properties": { "comments": "go" } }),
        )
        .await;
    assert_eq!(resumed.status, StatusCode::OK, "{resumed:?}");
    let item = azure.world.done(&begun).await;
    assert_eq!(property(&item, "protectionState"), "FailbackCommitRequired");
    assert_eq!(azure.power(), "deallocated");
    azure.check_replica().await;
    azure.nothing_is_frozen().await;

    let committed = azure.world.post(&commit, json!({})).await;
    azure.world.done(&committed).await;
    azure.check_nothing_is_left().await;
    azure.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_download_stops_the_vm_in_azure_first_and_an_undone_failback_starts_it_again() {
    let mut azure = Azure::start().await;
    let path = format!("{}/plannedFailover", azure.item);
    let started = azure.world.post(&path, away()).await;
    azure.world.done(&started).await;
    let commit = format!("{}/failoverCommit", azure.item);
    let committed = azure.world.post(&commit, json!({})).await;
    azure.world.done(&committed).await;
    for byte in [11, 12] {
        azure.guest_writes(byte);
        let begun = azure.world.post(&path, back("ForSynchronization")).await;
        let item = azure.world.done(&begun).await;
        assert_eq!(property(&item, "protectionState"), "FailbackCommitRequired");
        assert_eq!(azure.power(), "deallocated");
        azure.check_replica().await;
        if byte == 12 {
            break;
        }
        let cancelled = azure
            .world
            .post(&format!("{}/failoverCancel", azure.item), json!({}))
            .await;
        azure.world.done(&cancelled).await;
        azure.runs_again().await;
        azure.nothing_is_frozen().await;
    }
    let committed = azure.world.post(&commit, json!({})).await;
    azure.world.done(&committed).await;
    azure.check_nothing_is_left().await;
    azure.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unplanned_failover_goes_to_another_point_survives_a_restart_and_is_taken_back() {
    let mut azure = Azure::start().await;
    let first = azure.images.clone();
    azure.cycle(2).await;
    let body = json!({ "properties": { "failoverDirection": "PrimaryToRecovery", "sourceSiteOperations": "NotRequired" } });
    let started = azure
        .world
        .post(&format!("{}/unplannedFailover", azure.item), body)
        .await;
    let item = azure.world.done(&started).await;
    assert_eq!(
        property(&item, "protectionState"),
        "UnplannedFailoverCommitPendingStatesBegin"
    );
    azure.check_disks();
    let vm_of =
        |azure: &Azure| azure.vm("web-dr").expect("VM")["tags"]["siterecovery-recovery-id"].clone();
    let before = vm_of(&azure);

    // The source tells of its newest point only; this one it told of before.
    let older = point(1);
    azure.engine.behave(|behaviour| {
        if let Some(told) = &mut behaviour.point {
            told.id = older.id.to_string();
            told.time_unix_ms = older.time_unix_ms;
        }
    });
    let wanted = format!("{}/recoveryPoints/{}", azure.item, older.id);
    let points = format!("{}/recoveryPoints", azure.item);
    azure
        .world
        .until(&points, |list| {
            list.to_string().contains(&older.id.to_string())
        })
        .await;
    let body = json!({ "properties": { "recoveryPointId": wanted, "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure" } } });
    let changed = azure
        .world
        .post(&format!("{}/applyRecoveryPoint", azure.item), body)
        .await;
    azure.world.done(&changed).await;
    azure.images = first;
    azure.check_disks();
    assert_ne!(vm_of(&azure), before, "another point is another VM");

    let calls = azure.compute.faults().calls().len();
    azure.world = azure.world.restart().await;
    azure
        .world
        .until(&azure.item.clone(), |item| {
            property(item, "activeLocation") == "Recovery"
        })
        .await;
    let cancelled = azure
        .world
        .post(&format!("{}/failoverCancel", azure.item), json!({}))
        .await;
    azure.world.done(&cancelled).await;
    let made_again = azure.compute.faults().calls()[calls..]
        .iter()
        .filter(|call| call.method == "PUT")
        .count();
    assert_eq!(made_again, 0, "a restart makes nothing again");
    azure
        .world
        .until(&azure.item.clone(), |item| {
            property(item, "protectionState") == "Protected"
        })
        .await;
    azure.check_nothing_is_left().await;
    azure.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_is_told_at_its_setting_before_the_source_is_touched() {
    let azure = Azure::start().await;
    let world = &azure.world;
    for (change, target) in [
        (
            json!({ "properties": { "recoveryAzureVMSize": "Standard_Unheard_Of" } }),
            "targetVmSize",
        ),
        (
            json!({ "properties": { "recoveryAzureVMSize": "", "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure",
            "recoveryAzureV2ResourceGroupId": format!("{}-gone", group(&azure.compute)) } } }),
            "targetAzureV2ResourceGroupId",
        ),
        (
            json!({ "properties": { "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure", "recoveryAzureV2ResourceGroupId": group(&azure.compute) },
            "recoveryAvailabilitySetId": format!("{}/providers/Microsoft.Compute/availabilitySets/none", group(&azure.compute)) } }),
            "targetAvailabilitySetId",
        ),
    ] {
        let answer = world
            .call(reqwest::Method::PATCH, &azure.item, Some(change))
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        let before = azure.engine.last();
        for action in ["plannedFailover", "testFailover"] {
            let body = if action == "testFailover" {
                json!({})
            } else {
                away()
            };
            let started = world.post(&format!("{}/{action}", azure.item), body).await;
            let end = world.finish(&started).await;
            assert_eq!(end["status"], "Failed", "{end}");
            assert_eq!(
                end["error"]["target"],
                format!("properties.providerSpecificDetails.{target}"),
                "{end}"
            );
        }
        assert_eq!(azure.engine.last(), before, "the source was told nothing");
        let item = world.get(&azure.item).await.body;
        assert_eq!(property(&item, "protectionState"), "Protected");
        azure.check_nothing_is_left().await;
    }
    for (change, target) in [
        (json!({ "licenseType": "Free" }), "licenseType"),
        (json!({ "diskType": "Floppy" }), "diskType"),
        (json!({ "recoveryTarget": "Moon" }), "recoveryTarget"),
    ] {
        let body = json!({ "properties": { "providerSpecificDetails": change } });
        let answer = world
            .call(reqwest::Method::PATCH, &azure.item, Some(body))
            .await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{answer:?}");
        assert_eq!(
            answer.target(),
            format!("properties.providerSpecificDetails.{target}")
        );
    }
    azure.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_way_into_azure_or_with_a_folder_the_request_says_what_to_configure() {
    let compute = Double::start(1).await.expect("compute");
    let storage = storage().await;
    let world = World::start().await;
    base(&world, &compute, &storage).await;
    let _engine = site(&world).await;
    let item = world.item(WEB).await;
    let answer = world.put(&item, enable_body(&world, &compute).await).await;
    assert_eq!(
        (answer.status, answer.code()),
        (StatusCode::BAD_REQUEST, "AzureTargetNotConfigured"),
        "{answer:?}"
    );
    assert_eq!(
        answer.target(),
        "properties.providerSpecificDetails.recoveryTarget"
    );
    assert!(
        answer.body.to_string().contains("--azure-target"),
        "{answer:?}"
    );
    assert!(!answer.body.to_string().contains("arm-secret"));
    world.orchestrator.stop().await;

    let world = World::aimed(patience(), Some(settings(&compute))).await;
    base(&world, &compute, &storage).await;
    let _engine = site(&world).await;
    let folder = world.folder.path().join("store").display().to_string();
    let account = json!({ "location": location(), "sku": { "name": "Standard_LRS" }, "kind": "StorageV2", "properties": { "folder": folder } });
    assert_eq!(
        world.put(&world.storage(), account).await.status,
        StatusCode::CREATED
    );
    let mut body = enable_body(&world, &compute).await;
    body["properties"]["providerSpecificDetails"]["targetStorageAccountId"] =
        world.storage().into();
    let answer = world.put(&world.item(WEB).await, body).await;
    assert_eq!(
        answer.target(),
        "properties.providerSpecificDetails.targetStorageAccountId",
        "{answer:?}"
    );
    world.orchestrator.stop().await;
}
