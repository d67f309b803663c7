//! The straight road: enrol, protect, drill, clean up, disable, remove; and what goes wrong on it.

mod harness;

use harness::engine::{BROKEN, DB, WEB, finding};
use harness::ready;
use reqwest::StatusCode;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_protected_drilled_and_released_and_everything_can_be_removed() {
    let (world, engine) = ready().await;
    world.associate().await;
    let web = world.protect(WEB).await;
    let db = world.protect(DB).await;

    let item = world.get(&web).await.body;
    let details = &item["properties"]["providerSpecificDetails"];
    assert_eq!(
        item["properties"]["allowedOperations"],
        json!([
            "PlannedFailover",
            "UnplannedFailover",
            "TestFailover",
            "DisableProtection",
            "RepairReplication"
        ])
    );
    assert_eq!(details["recoveryPointCount"], 1);
    assert_eq!(details["lastCycleChangedBytes"], 4096);
    assert_eq!(
        details["azureVmDiskDetails"][0]["vhdType"],
        "OperatingSystem"
    );
    let points = world.get(&format!("{web}/recoveryPoints")).await.body;
    assert_eq!(
        points["value"][0]["properties"]["recoveryPointType"],
        "CrashConsistent"
    );
    assert_eq!(
        points["value"][0]["properties"]["providerSpecificDetails"]["changedBytes"],
        4096
    );
    assert_eq!(
        world
            .get(points["value"][0]["id"].as_str().expect("id"))
            .await
            .status,
        StatusCode::OK
    );
    let jobs = world
        .get(&format!(
            "{}/replicationJobs?$filter=jobName%20eq%20'IrCompletion'",
            world.vault()
        ))
        .await
        .body;
    assert_eq!(jobs["value"].as_array().expect("list").len(), 2);

    // A plan of two groups.
    let plan = format!("{}/replicationRecoveryPlans/plan-a", world.vault());
    let boot =
        |item: &str| json!({ "groupType": "Boot", "replicationProtectedItems": [{ "id": item }] });
    let body = json!({ "properties": { "primaryFabricId": world.fabric(), "recoveryFabricId": "Microsoft Azure", "groups": [boot(&db), boot(&web)] } });
    let made = world.done(&world.put(&plan, body).await).await;
    assert_eq!(
        made["properties"]["groups"]
            .as_array()
            .expect("groups")
            .len(),
        4
    );
    assert_eq!(
        made["properties"]["groups"][2]["replicationProtectedItems"][0]["virtualMachineId"],
        DB
    );

    // The drill boots group after group and leaves replication alone.
    let before = engine.last().replications;
    let started = world.post(&format!("{plan}/testFailover"), json!({ "properties": { "failoverDirection": "PrimaryToRecovery", "networkType": "NoNetworkAttachAsInput" } })).await;
    let after = world.done(&started).await;
    assert_eq!(
        after["properties"]["allowedOperations"],
        json!(["TestFailoverCleanup"])
    );
    let job = world.job(&started).await;
    let vms = job["properties"]["customDetails"]["protectedItemDetails"]
        .as_array()
        .expect("VMs")
        .clone();
    assert_eq!(vms.len(), 2);
    assert!(
        vms.iter().all(|vm| vm["state"] == "Booted"
            && vm["rtoInSeconds"].is_number()
            && vm["rpoInSeconds"].is_number()),
        "{vms:?}"
    );
    assert_eq!(
        engine.last().replications,
        before,
        "a drill never touches replication"
    );
    assert!(
        engine
            .last()
            .recovered_vms
            .iter()
            .all(|vm| vm.isolated && vm.name.ends_with("-test"))
    );
    let order: Vec<usize> = engine
        .seen
        .lock()
        .expect("lock")
        .states
        .iter()
        .map(running)
        .collect();
    assert!(
        order.contains(&1) && order.last() == Some(&2),
        "group after group: {order:?}"
    );
    let drilled = world.get(&web).await.body;
    assert_eq!(
        drilled["properties"]["testFailoverState"],
        "WaitingForCompletion"
    );
    assert_eq!(drilled["properties"]["protectionState"], "Protected");
    assert_eq!(
        world.post(&format!("{web}/remove"), json!({})).await.status,
        StatusCode::CONFLICT
    );

    world
        .done(
            &world
                .post(
                    &format!("{plan}/testFailoverCleanup"),
                    json!({ "properties": { "comments": "fine" } }),
                )
                .await,
        )
        .await;
    assert!(engine.last().recovered_vms.is_empty());
    let job = world.job(&started).await;
    assert_eq!(
        job["properties"]["customDetails"]["testFailoverStatus"],
        "Completed"
    );
    assert_eq!(job["properties"]["customDetails"]["comments"], "fine");
    assert_eq!(
        world.get(&web).await.body["properties"]["testFailoverState"],
        "None"
    );

    // Down again, each thing refusing while something hangs on it.
    assert_eq!(
        world.post(&format!("{web}/remove"), json!({})).await.code(),
        "ItemInRecoveryPlan"
    );
    world.finish(&world.delete(&plan).await).await;
    assert_eq!(
        world.delete(&world.storage()).await.code(),
        "StorageAccountInUse"
    );
    assert_eq!(world.delete(&world.policy()).await.code(), "PolicyInUse");
    assert_eq!(world.delete(&world.vault()).await.code(), "VaultNotEmpty");
    for item in [&web, &db] {
        let gone = world
            .post(
                &format!("{item}/remove"),
                json!({ "properties": { "deleteReplica": true } }),
            )
            .await;
        world.done(&gone).await;
        assert_eq!(world.get(item).await.status, StatusCode::NOT_FOUND);
    }
    let seen: Vec<bool> = engine
        .seen
        .lock()
        .expect("lock")
        .states
        .iter()
        .flat_map(|state| state.replications.clone())
        .filter(|one| one.phase == 2)
        .map(|one| one.delete_replica)
        .collect();
    assert!(!seen.is_empty() && seen.iter().all(|delete| *delete));
    let mapping = format!(
        "{}/replicationProtectionContainerMappings/map",
        world.container().await
    );
    assert_eq!(
        world
            .post(&format!("{}/remove", world.fabric()), json!({}))
            .await
            .code(),
        "FabricInUse"
    );
    world
        .done(&world.post(&format!("{mapping}/remove"), json!({})).await)
        .await;
    world
        .done(
            &world
                .post(&format!("{}/remove", engine.provider_id), json!({}))
                .await,
        )
        .await;
    assert_eq!(
        world.get(&engine.provider_id).await.status,
        StatusCode::NOT_FOUND
    );
    world
        .done(
            &world
                .post(&format!("{}/remove", world.fabric()), json!({}))
                .await,
        )
        .await;
    world.done(&world.delete(&world.policy()).await).await;
    for path in [world.storage(), world.network(), world.vault()] {
        assert_eq!(
            world.delete(&path).await.status,
            StatusCode::NO_CONTENT,
            "{path}"
        );
        assert_eq!(world.get(&path).await.status, StatusCode::NOT_FOUND);
    }
    engine.stop().await;
    world.orchestrator.stop().await;
}

fn running(state: &engine_protocol::v1::DesiredState) -> usize {
    state
        .recovered_vms
        .iter()
        .filter(|vm| vm.power() == engine_protocol::v1::recovered_vm::Power::Running)
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_told_at_their_property_and_make_no_job() {
    let (world, engine) = ready().await;
    let item = world.item(WEB).await;
    let body = world.enable_body(WEB).await;
    let unmapped = world.put(&item, body.clone()).await;
    assert_eq!(
        (unmapped.code(), unmapped.target()),
        ("PolicyNotAssociated", "properties.policyId")
    );
    world.associate().await;
    let change = |path: &str, value: Value| {
        let mut body = body.clone();
        *body.pointer_mut(path).expect("property") = value;
        body
    };
    let container = world.container().await;
    let other = format!(
        "{}/providers/Microsoft.Storage/storageAccounts/stsouth",
        world.group
    );
    let premium = format!(
        "{}/providers/Microsoft.Storage/storageAccounts/stfast",
        world.group
    );
    let folder = json!({ "folder": "/srv/x" });
    world.put(&other, json!({ "location": "southeurope", "sku": { "name": "Standard_LRS" }, "properties": folder })).await;
    world.put(&premium, json!({ "location": "North Europe", "sku": { "name": "Premium_LRS" }, "properties": folder })).await;
    let storage = "/properties/providerSpecificDetails/targetStorageAccountId";
    for (body, status, target) in [
        (
            change(
                "/properties/protectableItemId",
                json!(format!(
                    "{container}/replicationProtectableItems/00000000-0000-4000-8000-000000000000"
                )),
            ),
            404,
            "properties.protectableItemId",
        ),
        (
            change(
                "/properties/protectableItemId",
                json!(format!("{container}/replicationProtectableItems/{BROKEN}")),
            ),
            400,
            "properties.protectableItemId",
        ),
        (
            change("/properties/policyId", json!("nonsense")),
            400,
            "properties.policyId",
        ),
        (
            change(storage, json!(other)),
            400,
            "properties.providerSpecificDetails.targetStorageAccountId",
        ),
        (
            change(storage, json!(premium)),
            400,
            "properties.providerSpecificDetails.targetStorageAccountId",
        ),
        (
            change(storage, json!(world.vault())),
            400,
            "properties.providerSpecificDetails.targetStorageAccountId",
        ),
        (
            change(
                "/properties/providerSpecificDetails/targetAzureNetworkId",
                json!(format!("{}x", world.network())),
            ),
            400,
            "properties.providerSpecificDetails.targetAzureNetworkId",
        ),
        (
            change(
                "/properties/providerSpecificDetails/instanceType",
                json!("A2A"),
            ),
            400,
            "properties.providerSpecificDetails.instanceType",
        ),
        (
            change("/properties/providerSpecificDetails/hvHostVmId", json!(DB)),
            400,
            "properties.providerSpecificDetails.hvHostVmId",
        ),
    ] {
        let answer = world.put(&item, body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.target()),
            (status, target),
            "{answer:?}"
        );
    }
    let jobs = world
        .get(&format!(
            "{}/replicationJobs?$filter=jobName%20eq%20'EnableDr'",
            world.vault()
        ))
        .await;
    assert_eq!(jobs.body["value"], json!([]));
    assert_eq!(world.get(&item).await.status, StatusCode::NOT_FOUND);
    engine.stop().await;
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_can_not_be_written_fails_the_job_and_the_same_request_mends_it() {
    let (world, engine) = ready().await;
    world.associate().await;
    engine.behave(|behaviour| behaviour.blocked = Some(finding("StoreReadOnly")));
    let item = world.item(WEB).await;
    let started = world.put(&item, world.enable_body(WEB).await).await;
    let status = world.finish(&started).await;
    assert_eq!(status["status"], "Failed");
    assert_eq!(status["error"]["code"], "StoreReadOnly");
    assert_eq!(
        status["error"]["details"][0]["recommendedAction"],
        "Make it writable."
    );
    let job = world.job(&started).await;
    assert_eq!(
        job["properties"]["errors"][0]["taskId"],
        "StartInitialReplicationTask"
    );
    let shown = world.get(&item).await.body;
    assert_eq!(
        shown["properties"]["healthErrors"][0]["errorCode"],
        "StoreReadOnly"
    );
    assert_eq!(shown["properties"]["replicationHealth"], "Critical");
    assert_eq!(
        shown["properties"]["allowedOperations"],
        json!(["DisableProtection"])
    );

    engine.behave(|behaviour| behaviour.blocked = None);
    assert_eq!(world.protect(WEB).await, item);
    // A repeated request on a protected VM changes nothing.
    let generation = world.get(&item).await.body["properties"]["providerSpecificDetails"]["replicationGeneration"].clone();
    world
        .done(&world.put(&item, world.enable_body(WEB).await).await)
        .await;
    assert_eq!(
        world.get(&item).await.body["properties"]["providerSpecificDetails"]["replicationGeneration"],
        generation
    );

    engine.behave(|behaviour| behaviour.blocked = Some(finding("StoreReadOnly")));
    world
        .done(&world.post(&format!("{item}/remove"), json!({})).await)
        .await;
    engine.stop().await;
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn generations_grow_over_disable_and_enable() {
    let (world, engine) = ready().await;
    world.associate().await;
    let item = world.protect(WEB).await;
    let generation = |item: &Value| {
        item["properties"]["providerSpecificDetails"]["replicationGeneration"]
            .as_u64()
            .expect("generation")
    };
    let first = generation(&world.get(&item).await.body);
    world
        .done(&world.post(&format!("{item}/remove"), json!({})).await)
        .await;
    world.protect(WEB).await;
    assert!(generation(&world.get(&item).await.body) > first);
    engine.stop().await;
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_that_fails_leaves_nothing_and_can_be_repeated() {
    let (world, engine) = ready().await;
    world.associate().await;
    let item = world.protect(WEB).await;
    engine.behave(|behaviour| {
        behaviour.vm_state = Some(engine_protocol::v1::recovered_vm_status::State::Failed)
    });
    let status = world
        .finish(&world.post(&format!("{item}/testFailover"), json!({})).await)
        .await;
    assert_eq!(status["status"], "Failed");
    assert_eq!(status["error"]["code"], "ViewUnreadable");
    assert!(engine.last().recovered_vms.is_empty());
    assert_eq!(
        world.get(&item).await.body["properties"]["testFailoverState"],
        "None"
    );
    engine.behave(|behaviour| behaviour.vm_state = None);

    let other = format!("{}/recoveryPoints/{}", item, uuid::Uuid::new_v4());
    let unknown = world.post(&format!("{item}/testFailover"), json!({ "properties": { "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure", "recoveryPointId": other } } })).await;
    assert_eq!(
        unknown.target(),
        "properties.providerSpecificDetails.recoveryPointId"
    );
    let point = world.get(&format!("{item}/recoveryPoints")).await.body["value"][0]["id"].clone();
    let started = world
        .post(&format!("{item}/testFailover"), json!({ "properties": { "networkType": "VmNetworkAsInput", "networkId": world.network(), "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure", "recoveryPointId": point } } }))
        .await;
    world.done(&started).await;
    assert!(!engine.last().recovered_vms[0].isolated);
    let job = world.job(&started).await;
    assert_eq!(
        job["properties"]["customDetails"]["protectedItemDetails"][0]["recoveryPointId"],
        point
    );
    assert_eq!(
        world
            .post(&format!("{item}/testFailover"), json!({}))
            .await
            .status,
        StatusCode::CONFLICT
    );
    world
        .done(
            &world
                .post(&format!("{item}/testFailoverCleanup"), json!({}))
                .await,
        )
        .await;
    engine.stop().await;
    world.orchestrator.stop().await;
}
