//! Failover over the API: to the recovery side, another point, commit or back, and what is refused on the way.

mod harness;

use engine_protocol::v1;
use harness::engine::{DB, WEB};
use harness::ready;
use reqwest::StatusCode;
use serde_json::{Value, json};

fn property<'a>(item: &'a Value, name: &str) -> &'a Value {
    &item["properties"][name]
}

fn away() -> Value {
    json!({ "properties": {
        "failoverDirection": "PrimaryToRecovery",
        "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure" },
    } })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_failover_ends_at_the_recovery_side_and_can_be_committed() {
    let (world, engine) = ready().await;
    world.associate().await;
    let web = world.protect(WEB).await;
    let started = world.post(&format!("{web}/plannedFailover"), away()).await;
    let item = world.done(&started).await;
    assert_eq!(property(&item, "activeLocation"), "Recovery");
    assert_eq!(
        property(&item, "protectionState"),
        "PlannedFailoverCommitRequired"
    );
    assert_eq!(
        property(&item, "allowedOperations"),
        &json!([
            "CompleteMigration",
            "Commit",
            "DisableProtection",
            "ChangePit",
            "CancelFailover"
        ])
    );
    let point = property(&item, "failoverRecoveryPointId").as_str();
    assert!(point.is_some_and(|point| point.contains("/recoveryPoints/")));
    assert!(property(&item, "lastSuccessfulFailoverTime").is_string());
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
            "PlannedFailoverPreflightChecksTask",
            "ShutdownVmOnPrimary",
            "PrepareForFailoverTask",
            "FailoverTask",
            "StartVmOnSecondary"
        ]
    );
    let vm = &job["properties"]["customDetails"]["protectedItemDetails"][0];
    assert_eq!(vm["state"], "Booted");
    assert!(vm["rtoInSeconds"].is_number());

    // Another point is another VM; the source stays held all along.
    let first = engine.last().recovered_vms[0].clone();
    let body = json!({ "properties": { "recoveryPointId": point, "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure" } } });
    let changed = world.post(&format!("{web}/applyRecoveryPoint"), body).await;
    world.done(&changed).await;
    let second = engine.last().recovered_vms[0].clone();
    assert_ne!(first.id, second.id);
    assert_eq!(engine.last().recovered_vms.len(), 1);

    let committed = world
        .post(&format!("{web}/failoverCommit"), json!({}))
        .await;
    let item = world.done(&committed).await;
    assert_eq!(
        property(&item, "protectionState"),
        "PlannedFailoverStatesBegin"
    );
    assert_eq!(
        property(&item, "allowedOperations"),
        &json!(["CompleteMigration", "DisableProtection", "Failback"])
    );
    let again = world
        .post(&format!("{web}/failoverCommit"), json!({}))
        .await;
    assert_eq!(
        (again.status, again.code()),
        (StatusCode::CONFLICT, "OperationNotAllowed")
    );
    let drill = world.post(&format!("{web}/testFailover"), json!({})).await;
    assert_eq!(
        drill.status,
        StatusCode::CONFLICT,
        "no drill of a VM that is elsewhere"
    );

    // The migration is complete: the VM stays where it runs, and nothing is left of the item.
    let body = json!({ "properties": { "disableProtectionReason": "MigrationComplete" } });
    let removed = world.post(&format!("{web}/remove"), body).await;
    world.finish(&removed).await;
    let job = world.job(&removed).await;
    assert_eq!(property(&job, "scenarioName"), "CompleteMigration");
    assert_eq!(world.get(&web).await.status, StatusCode::NOT_FOUND);
    assert_eq!(engine.last().recovered_vms, []);
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_that_is_taken_back_replicates_again_under_a_new_licence() {
    let (world, engine) = ready().await;
    world.associate().await;
    let web = world.protect(WEB).await;
    let before = engine.last().replications[0].generation;
    let body = json!({ "properties": { "failoverDirection": "PrimaryToRecovery", "sourceSiteOperations": "NotRequired" } });
    let started = world.post(&format!("{web}/unplannedFailover"), body).await;
    let item = world.done(&started).await;
    assert_eq!(
        property(&item, "protectionState"),
        "UnplannedFailoverCommitPendingStatesBegin"
    );
    let cancelled = world
        .post(&format!("{web}/failoverCancel"), json!({}))
        .await;
    world.done(&cancelled).await;
    let item = world
        .until(&web, |item| {
            property(item, "protectionState") == "Protected"
        })
        .await;
    assert_eq!(property(&item, "activeLocation"), "Primary");
    assert_eq!(property(&item, "failoverRecoveryPointId"), &Value::Null);
    let state = engine.last();
    assert!(state.replications[0].generation > before);
    assert_eq!(state.recovered_vms, []);
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_fails_over_and_is_committed_as_one() {
    let (world, engine) = ready().await;
    world.associate().await;
    let web = world.protect(WEB).await;
    let db = world.protect(DB).await;
    let plan = format!("{}/replicationRecoveryPlans/plan-a", world.vault());
    let boot =
        |item: &str| json!({ "groupType": "Boot", "replicationProtectedItems": [{ "id": item }] });
    let body = json!({ "properties": { "primaryFabricId": world.fabric(), "recoveryFabricId": "Microsoft Azure", "groups": [boot(&db), boot(&web)] } });
    let made = world.done(&world.put(&plan, body).await).await;
    assert_eq!(
        property(&made, "allowedOperations"),
        &json!(["TestFailover", "PlannedFailover", "UnplannedFailover"])
    );
    let body = json!({ "properties": {
        "failoverDirection": "PrimaryToRecovery",
        "providerSpecificDetails": [{ "instanceType": "HyperVReplicaAzure", "recoveryPointType": "Latest" }],
    } });
    let started = world.post(&format!("{plan}/plannedFailover"), body).await;
    let after = world.done(&started).await;
    assert_eq!(
        property(&after, "allowedOperations"),
        &json!(["Commit", "CancelFailover"])
    );
    assert!(property(&after, "lastPlannedFailoverTime").is_string());
    let job = world.job(&started).await;
    let group = &job["properties"]["tasks"][3];
    assert_eq!(group["taskType"], "RecoveryPlanGroupTask");
    let child = &group["groupTaskCustomDetails"]["childTasks"][0];
    assert_eq!(child["state"], "Succeeded");
    let committed = world
        .post(&format!("{plan}/failoverCommit"), json!({}))
        .await;
    world.done(&committed).await;
    for item in [&web, &db] {
        let item = world.get(item).await.body;
        assert_eq!(
            property(&item, "protectionState"),
            "PlannedFailoverStatesBegin"
        );
    }
    assert_eq!(engine.last().recovered_vms.len(), 2);
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_name_the_property_and_change_nothing() {
    let (world, engine) = ready().await;
    world.associate().await;
    let web = world.protect(WEB).await;
    let before = engine.last();
    for (action, body, target) in [
        ("plannedFailover", json!({}), "properties.failoverDirection"),
        (
            "plannedFailover",
            json!({ "failoverDirection": "Sideways" }),
            "properties.failoverDirection",
        ),
        (
            "plannedFailover",
            json!({ "failoverDirection": "PrimaryToRecovery", "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure", "recoveryPointId": format!("{web}/recoveryPoints/any") } }),
            "properties.providerSpecificDetails.recoveryPointId",
        ),
        (
            "unplannedFailover",
            json!({ "failoverDirection": "RecoveryToPrimary" }),
            "properties.failoverDirection",
        ),
        (
            "unplannedFailover",
            json!({ "sourceSiteOperations": "Perhaps" }),
            "properties.sourceSiteOperations",
        ),
        (
            "unplannedFailover",
            json!({ "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure", "recoveryPointId": format!("{web}/recoveryPoints/none") } }),
            "properties.providerSpecificDetails.recoveryPointId",
        ),
    ] {
        let answer = world
            .post(&format!("{web}/{action}"), json!({ "properties": body }))
            .await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{action} {body}");
        assert_eq!(answer.target(), target, "{action} {body}");
    }
    for action in [
        "failoverCommit",
        "failoverCancel",
        "applyRecoveryPoint",
        "reProtect",
    ] {
        let answer = world.post(&format!("{web}/{action}"), json!({})).await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::CONFLICT, "OperationNotAllowed"),
            "{action}"
        );
    }
    let body = json!({ "properties": { "disableProtectionReason": "MigrationComplete" } });
    let answer = world.post(&format!("{web}/remove"), body).await;
    assert_eq!(answer.status, StatusCode::CONFLICT, "it runs at its source");
    let after = engine.last();
    assert_eq!(after.replications, before.replications);
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_shut_down_ends_the_planned_failover_at_the_source() {
    let (world, engine) = ready().await;
    world.associate().await;
    let web = world.protect(WEB).await;
    engine.behave(|behaviour| behaviour.mute_source = true);
    let started = world.post(&format!("{web}/plannedFailover"), away()).await;
    assert_eq!(started.status, StatusCode::ACCEPTED);
    world.finish(&started).await;
    let job = world.job(&started).await;
    assert_eq!(property(&job, "state"), "Failed");
    let error = &job["properties"]["errors"][0]["serviceErrorDetails"];
    assert_eq!(error["code"], "ShutdownTimeout");
    let action = error["recommendedAction"].as_str().expect("next step");
    assert!(action.contains("unplanned failover"), "{action}");
    let item = world.get(&web).await.body;
    assert_eq!(property(&item, "activeLocation"), "Primary");
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failback_of_a_vm_that_is_gone_needs_the_wish_to_make_it_again() {
    let (world, engine) = ready().await;
    world.associate().await;
    let web = world.protect(WEB).await;
    let moved = world.post(&format!("{web}/plannedFailover"), away()).await;
    world.done(&moved).await;
    let commit = format!("{web}/failoverCommit");
    let committed = world.post(&commit, json!({})).await;
    world.done(&committed).await;

    let back = |creation: &str| {
        json!({ "properties": {
            "failoverDirection": "RecoveryToPrimary",
            "providerSpecificDetails": {
                "instanceType": "HyperVReplicaAzureFailback",
                "dataSyncOption": "ForSynchronization",
                "recoveryVmCreationOption": creation,
            },
        } })
    };
    let path = format!("{web}/plannedFailover");
    let refused = world.post(&path, back("Perhaps")).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    let target = "properties.providerSpecificDetails.recoveryVmCreationOption";
    assert_eq!(refused.target(), target);

    let os = v1::Disk {
        id: format!("{WEB}-disk-0"),
        ..v1::Disk::default()
    };
    engine.behave(|behaviour| behaviour.disks = Some(vec![os]));
    let before = engine.seen.lock().expect("lock").states.len();
    for (lacks, code) in [
        (vec![], "SourceDiskNotFound"),
        (vec![WEB], "SourceVirtualMachineNotFound"),
    ] {
        let is_gone = !lacks.is_empty();
        engine.behave(|behaviour| behaviour.lacks = lacks);
        let app = &world.orchestrator.app;
        let mut bell = app.listen();
        loop {
            let live = app.fleet.get(&engine.id).unwrap_or_default();
            let disks = live.machine(WEB).map(|vm| vm.disks.len());
            if disks == (!is_gone).then_some(1) {
                break;
            }
            bell.changed().await.expect("a report");
        }
        let refused = world.post(&path, back("NoAction")).await;
        let status = world.finish(&refused).await;
        assert_eq!(status["error"]["code"], code, "{status}");
        let item = world.get(&web).await;
        assert_eq!(
            property(&item.body, "protectionState"),
            "PlannedFailoverStatesBegin"
        );
    }
    let told = engine.seen.lock().expect("lock").states.clone();
    let mut said = told
        .iter()
        .skip(before)
        .flat_map(|state| &state.replications);
    assert!(said.all(|one| one.origin == 0), "nothing was touched");

    let made = world.post(&path, back("CreateVmIfNotFound")).await;
    let item = world.done(&made).await;
    assert_eq!(property(&item, "protectionState"), "FailbackCommitRequired");
    let told = engine.seen.lock().expect("lock").states.clone();
    let mut said = told.iter().flat_map(|state| &state.replications);
    assert!(said.any(|one| one.create_vm && one.origin > 0));
    let last = engine.last().replications[0].clone();
    assert!(!last.create_vm, "not when its disks are received");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failback_waits_for_a_person_and_leads_back_to_protection() {
    let (world, engine) = ready().await;
    world.associate().await;
    let web = world.protect(WEB).await;
    let first = engine.last().replications[0].generation;
    let moved = world.post(&format!("{web}/plannedFailover"), away()).await;
    world.done(&moved).await;
    let committed = world
        .post(&format!("{web}/failoverCommit"), json!({}))
        .await;
    world.done(&committed).await;

    let elsewhere = json!({ "properties": {
        "failoverDirection": "RecoveryToPrimary",
        "providerSpecificDetails": {
            "instanceType": "HyperVReplicaAzureFailback",
            "recoveryVmCreationOption": "CreateVmIfNotFound",
            "providerIdForAlternateRecovery": format!("{}/replicationRecoveryServicesProviders/other", world.fabric()),
        },
    } });
    let refused = world
        .post(&format!("{web}/plannedFailover"), elsewhere)
        .await;
    assert_eq!(refused.code(), "AlternateHostNotFound");
    let target = "properties.providerSpecificDetails.providerIdForAlternateRecovery";
    assert_eq!(refused.target(), target);
    let body = json!({ "properties": {
        "failoverDirection": "RecoveryToPrimary",
        "providerSpecificDetails": {
            "instanceType": "HyperVReplicaAzureFailback",
            "dataSyncOption": "ForDownTime",
            "recoveryVmCreationOption": "NoAction",
        },
    } });
    let back = world.post(&format!("{web}/plannedFailover"), body).await;
    let scenario = |item: &Value| item["properties"]["currentScenario"]["jobId"].clone();
    let job = scenario(&world.get(&web).await.body);
    let job = job.as_str().expect("job").to_owned();
    world
        .until(&job, |job| property(job, "state") == "Suspended")
        .await;
    let shipping = engine.last().recovered_vms[0].clone();
    assert!(shipping.ships && shipping.ship_generation > 0);
    assert_eq!(
        engine.last().replications[0].origin,
        shipping.ship_generation
    );
    let resumed = world
        .post(
            &format!("{job}/resume"),
            json!({ "properties": { "comments": "go" } }),
        )
        .await;
    assert_eq!(resumed.status, StatusCode::OK);
    let item = world.done(&back).await;
    assert_eq!(property(&item, "activeLocation"), "Primary");
    assert_eq!(property(&item, "protectionState"), "FailbackCommitRequired");
    let again = world.post(&format!("{job}/resume"), json!({})).await;
    assert_eq!(again.status, StatusCode::CONFLICT);

    let committed = world
        .post(&format!("{web}/failoverCommit"), json!({}))
        .await;
    let item = world.done(&committed).await;
    assert_eq!(
        property(&item, "allowedOperations"),
        &json!(["ReverseReplicate", "DisableProtection"])
    );
    assert_eq!(engine.last().recovered_vms, []);
    let body = json!({ "properties": { "failoverDirection": "PrimaryToRecovery" } });
    let again = world.post(&format!("{web}/reProtect"), body).await;
    world.done(&again).await;
    world
        .until(&web, |item| {
            property(item, "protectionState") == "Protected"
        })
        .await;
    assert!(engine.last().replications[0].generation > first);
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_no_recovery_host_can_start_is_refused_before_its_source_is_stopped() {
    let (world, engine) = ready().await;
    world.associate().await;
    let web = world.protect(WEB).await;
    let db = world.protect(DB).await;
    engine.behave(|behaviour| behaviour.recovery_generations = Some(vec![1]));
    let told = |host: &Value| property(host, "recoveryGenerations") == &json!([1]);
    world.until(&engine.provider_id, told).await;
    // Linux of generation 2 may be convertible: the recovery host finds out.
    let started = world.post(&format!("{db}/plannedFailover"), away()).await;
    let item = world.done(&started).await;
    assert_eq!(property(&item, "activeLocation"), "Recovery");

    engine.behave(|behaviour| behaviour.os_type = Some("Windows"));
    let told = |item: &Value| item.to_string().contains(r#""Windows""#);
    world.until(&web, told).await;
    let started = world.post(&format!("{web}/plannedFailover"), away()).await;
    world.finish(&started).await;
    let job = world.job(&started).await;
    assert_eq!(property(&job, "state"), "Failed");
    let error = &job["properties"]["errors"][0]["serviceErrorDetails"];
    assert_eq!(error["code"], "GenerationNotSupported", "{job}");
    let message = error["message"].as_str().expect("message");
    assert!(
        message.contains("web01") && message.contains("Windows"),
        "{message}"
    );
    let item = world.get(&web).await.body;
    assert_eq!(property(&item, "activeLocation"), "Primary");
    assert_eq!(property(&item, "protectionState"), "Protected");
    assert_eq!(engine.last().recovered_vms.len(), 1, "only the other one's");
    world.orchestrator.stop().await;
}
