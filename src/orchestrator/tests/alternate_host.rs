//! A failback to another host over the API: the VM's own host is lost, or left, and stays held whenever it comes back.

mod harness;

use engine_protocol::v1::{self, source_order};
use harness::engine::{BROKEN, Behaviour, DB, Engine, WEB, enrol};
use harness::{World, ready};
use reqwest::StatusCode;
use serde_json::{Value, json};

fn property<'a>(item: &'a Value, name: &str) -> &'a Value {
    &item["properties"][name]
}

/// A host without VMs.
async fn bare(world: &World) -> Engine {
    let id = uuid::Uuid::new_v4().to_string();
    let key = world.registration_key().await;
    let (identity, response) = enrol(&key, &id).await.expect("enrolment");
    let behaviour = Behaviour {
        lacks: vec![WEB, DB, BROKEN],
        ..Behaviour::default()
    };
    let gateway = world.orchestrator.gateway.to_string();
    Engine::resume(id, identity, response.provider_arm_id, &gateway, behaviour)
}

fn back(data: &str, creation: &str, host: &str) -> Value {
    json!({ "properties": {
        "failoverDirection": "RecoveryToPrimary",
        "providerSpecificDetails": {
            "instanceType": "HyperVReplicaAzureFailback",
            "dataSyncOption": data,
            "recoveryVmCreationOption": creation,
            "providerIdForAlternateRecovery": host,
        },
    } })
}

/// Whether the item warns of a host that had the VM before.
fn unconfirmed(item: &Value) -> bool {
    let errors = property(item, "healthErrors").as_array();
    let mut errors = errors.into_iter().flatten();
    errors.any(|error| error["errorCode"] == "FormerHostNotConfirmed")
}

/// The orders that an engine was given, of one item.
fn orders(engine: &Engine) -> Vec<source_order::Kind> {
    let seen = engine.seen.lock().expect("lock");
    let replications = seen.states.iter().flat_map(|state| &state.replications);
    replications
        .filter_map(|one| one.order.as_ref())
        .map(v1::SourceOrder::kind)
        .collect()
}

async fn until(world: &World, holds: impl Fn() -> bool) {
    let mut bell = world.orchestrator.app.listen();
    let wait = async {
        while !holds() {
            bell.changed().await.expect("a report");
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), wait)
        .await
        .expect("it never held");
}

async fn committed(world: &World, web: &str, failover: &str, body: Value) {
    let moved = world.post(&format!("{web}/{failover}"), body).await;
    world.done(&moved).await;
    let commit = format!("{web}/failoverCommit");
    world.done(&world.post(&commit, json!({})).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_host_is_lost_goes_back_to_another_one_and_stays_held_at_the_first() {
    let (world, lost) = ready().await;
    world.associate().await;
    let web = world.protect(WEB).await;
    // It keeps no recovered VM of this generation, so another host recovers it.
    lost.behave(|behaviour| behaviour.recovery_generations = Some(vec![1]));
    let told = |host: &Value| property(host, "recoveryGenerations") == &json!([1]);
    world.until(&lost.provider_id, told).await;
    let (one, two) = (bare(&world).await, bare(&world).await);
    for host in [&one, &two] {
        let app = &world.orchestrator.app;
        until(&world, || app.fleet.connected(&host.id, app.now_ms())).await;
    }
    let (id, identity, provider) = lost.stop().await;

    let body = json!({ "properties": { "failoverDirection": "PrimaryToRecovery", "sourceSiteOperations": "NotRequired" } });
    committed(&world, &web, "unplannedFailover", body).await;
    let (recovery, target) = if one.last().recovered_vms.is_empty() {
        (two, one)
    } else {
        (one, two)
    };
    let path = format!("{web}/plannedFailover");
    let own = world
        .post(&path, back("ForSynchronization", "CreateVmIfNotFound", ""))
        .await;
    assert_eq!(
        own.status,
        StatusCode::CONFLICT,
        "its host was never heard of again"
    );
    let to = |creation: &str| back("ForSynchronization", creation, &target.provider_id);
    let refused = world.post(&path, to("NoAction")).await;
    let status = world.finish(&refused).await;
    assert_eq!(status["error"]["code"], "SourceVirtualMachineNotFound");
    assert_eq!(orders(&target), [], "nothing was touched");

    // A host that only recovers VMs can't become the host of one.
    target.behave(|behaviour| behaviour.recovers_only = true);
    let has_none = |host: &Value| property(host, "allowedScenarios") == &json!([]);
    world.until(&target.provider_id, has_none).await;
    let refused = world.post(&path, to("CreateVmIfNotFound")).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    let code = &refused.body["error"]["code"];
    assert_eq!(
        code, "AlternateHostHasNoVirtualMachines",
        "{}",
        refused.body
    );
    target.behave(|behaviour| behaviour.recovers_only = false);
    let has_some = |host: &Value| !has_none(host);
    world.until(&target.provider_id, has_some).await;

    let made = world.post(&path, to("CreateVmIfNotFound")).await;
    let item = world.done(&made).await;
    assert!(
        unconfirmed(&item),
        "the lost host has said nothing yet: {item}"
    );
    assert_eq!(property(&item, "protectionState"), "FailbackCommitRequired");
    assert_eq!(
        property(&item, "recoveryServicesProviderId"),
        target.provider_id.as_str()
    );
    let told = orders(&target);
    assert_eq!(told.first(), Some(&source_order::Kind::Hold), "{told:?}");
    assert_eq!(told.last(), Some(&source_order::Kind::Run), "{told:?}");

    // The lost host comes back, with its VM.
    let gateway = world.orchestrator.gateway.to_string();
    let lost = Engine::resume(id, identity, provider, &gateway, Behaviour::default());
    target.behave(|behaviour| behaviour.lacks = vec![DB, BROKEN]);
    until(&world, || !orders(&lost).is_empty()).await;
    world.until(&web, |item| !unconfirmed(item)).await;
    let commit = format!("{web}/failoverCommit");
    world.done(&world.post(&commit, json!({})).await).await;
    let body = json!({ "properties": { "failoverDirection": "PrimaryToRecovery" } });
    world
        .done(&world.post(&format!("{web}/reProtect"), body).await)
        .await;
    let item = world
        .until(&web, |item| {
            property(item, "protectionState") == "Protected"
        })
        .await;
    assert_eq!(property(&item, "activeLocation"), "Primary");
    let list = format!("{}/replicationProtectableItems", world.container().await);
    let there = |list: &Value| -> Vec<Value> {
        let all = list["value"].as_array().cloned().unwrap_or_default();
        all.into_iter().filter(|vm| vm["name"] == WEB).collect()
    };
    let list = world.until(&list, |list| !there(list).is_empty()).await;
    let found = there(&list);
    assert_eq!(found.len(), 1);
    assert_eq!(
        property(&found[0], "recoveryServicesProviderId"),
        target.provider_id.as_str()
    );
    assert_eq!(property(&found[0], "protectionStatus"), "Protected");
    let held = source_order::Kind::Hold;
    assert!(
        orders(&lost).iter().all(|order| *order == held),
        "nothing else"
    );
    // A repeated enable neither forgets the first host nor takes its copy for the VM.
    let again = world.enable_body(WEB).await;
    let item = world.done(&world.put(&web, again).await).await;
    assert_eq!(
        property(&item, "recoveryServicesProviderId"),
        target.provider_id.as_str()
    );
    assert_eq!(lost.last().replications.len(), 1);
    assert_eq!(recovery.last().recovered_vms, []);

    // The end of the item is told to both, and the first host is forgotten once it has let go.
    let body = json!({ "properties": { "disableProtectionReason": "NotSpecified" } });
    world
        .finish(&world.post(&format!("{web}/remove"), body).await)
        .await;
    assert_eq!(world.get(&web).await.status, StatusCode::NOT_FOUND);
    until(&world, || {
        lost.last().replications.is_empty()
            && orders(&lost).last() == Some(&source_order::Kind::LeaveOff)
    })
    .await;
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failback_to_another_host_that_is_cancelled_may_be_made_to_the_first_one_again() {
    let (world, first) = ready().await;
    world.associate().await;
    let web = world.protect(WEB).await;
    let other = bare(&world).await;
    let app = &world.orchestrator.app;
    until(&world, || app.fleet.connected(&other.id, app.now_ms())).await;
    let body = json!({ "properties": {
        "failoverDirection": "PrimaryToRecovery",
        "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure" },
    } });
    committed(&world, &web, "plannedFailover", body).await;
    let path = format!("{web}/plannedFailover");
    let begun = back("ForDownTime", "CreateVmIfNotFound", &other.provider_id);
    // Somebody has started a copy there: it is not written over.
    let lists = |host: &Engine| {
        let live = app.fleet.get(&host.id).unwrap_or_default();
        live.machine(WEB).is_some()
    };
    other.behave(|behaviour| behaviour.lacks = vec![DB, BROKEN]);
    until(&world, || lists(&other)).await;
    let refused = world.finish(&world.post(&path, begun.clone()).await).await;
    let code = &refused["error"]["code"];
    assert_eq!(code, "AlternateHostRunsVirtualMachine", "{refused}");
    assert_eq!(orders(&other), [], "nothing was touched");
    other.behave(|behaviour| behaviour.lacks = vec![WEB, DB, BROKEN]);
    until(&world, || !lists(&other)).await;
    let begun = world.post(&path, begun).await;
    let scenario = world.get(&web).await.body["properties"]["currentScenario"]["jobId"].clone();
    let job = scenario.as_str().expect("job").to_owned();
    world
        .until(&job, |job| property(job, "state") == "Suspended")
        .await;
    let item = world.get(&web).await.body;
    assert_eq!(
        property(&item, "recoveryServicesProviderId"),
        other.provider_id.as_str()
    );
    world.post(&format!("{job}/cancel"), json!({})).await;
    world.finish(&begun).await;
    let item = world.get(&web).await.body;
    assert_eq!(
        property(&item, "protectionState"),
        "PlannedFailoverStatesBegin"
    );
    assert_eq!(property(&item, "activeLocation"), "Recovery");

    let again = back("ForSynchronization", "NoAction", &first.provider_id);
    let item = world.done(&world.post(&path, again).await).await;
    assert_eq!(property(&item, "protectionState"), "FailbackCommitRequired");
    assert_eq!(
        property(&item, "recoveryServicesProviderId"),
        first.provider_id.as_str()
    );
    assert_eq!(orders(&first).last(), Some(&source_order::Kind::Run));
    until(&world, || {
        orders(&other).last() == Some(&source_order::Kind::Hold)
    })
    .await;
    world.orchestrator.stop().await;
}
