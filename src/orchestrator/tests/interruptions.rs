//! What comes in between: a restart, a cancellation, a change of policy.

mod harness;

use harness::engine::WEB;
use harness::{policy_body, ready};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn jobs_and_drills_go_on_over_a_restart_of_the_orchestrator() {
    let (world, engine) = ready().await;
    world.associate().await;
    let item = world.protect(WEB).await;
    engine.behave(|behaviour| {
        behaviour.vm_state = Some(engine_protocol::v1::recovered_vm_status::State::Preparing)
    });
    let started = world.post(&format!("{item}/testFailover"), json!({})).await;
    world
        .until(&item, |item| {
            item["properties"]["testFailoverState"] == "InProgress"
        })
        .await;
    let world = world.restart().await;
    let shown = world.get(&item).await.body;
    assert_eq!(
        shown["properties"]["providerSpecificDetails"]["recoveryPointCount"], 1,
        "points are known before the engine is back"
    );
    engine.behave(|behaviour| behaviour.vm_state = None);
    world.done(&started).await;
    assert_eq!(
        world.get(&item).await.body["properties"]["testFailoverState"],
        "WaitingForCompletion"
    );
    engine.stop().await;
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_first_enable_leaves_nothing_and_a_purge_needs_no_host() {
    let (world, engine) = ready().await;
    world.associate().await;
    engine.behave(|behaviour| {
        behaviour.copying = true;
        behaviour.keeps_replicas = true;
    });
    let item = world.item(WEB).await;
    world
        .done(&world.put(&item, world.enable_body(WEB).await).await)
        .await;
    let copying = world.get(&item).await.body;
    assert_eq!(
        copying["properties"]["protectionState"],
        "InitialReplicationInProgress"
    );
    assert_eq!(
        copying["properties"]["providerSpecificDetails"]["initialReplicationDetails"]["initialReplicationProgressPercentage"],
        "25"
    );
    assert_eq!(
        world
            .post(&format!("{item}/testFailover"), json!({}))
            .await
            .status,
        StatusCode::CONFLICT
    );
    let removing = world.post(&format!("{item}/remove"), json!({})).await;
    assert_eq!(removing.status, StatusCode::ACCEPTED);
    let again = world.post(&format!("{item}/remove"), json!({})).await;
    assert_eq!(again.code(), "AnotherOperationInProgress");
    let job = world.job(&removing).await["id"]
        .as_str()
        .expect("id")
        .to_owned();
    assert_eq!(
        world
            .post(&format!("{job}/cancel"), Value::Null)
            .await
            .status,
        StatusCode::OK
    );
    assert_eq!(world.finish(&removing).await["status"], "Canceled");
    assert_eq!(
        world.get(&job).await.body["properties"]["state"],
        "Cancelled"
    );
    engine.stop().await;
    assert_eq!(
        world.call(Method::DELETE, &item, None).await.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(world.get(&item).await.status, StatusCode::NOT_FOUND);
    world.orchestrator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_change_reaches_the_engine() {
    let (world, engine) = ready().await;
    world.associate().await;
    let item = world.protect(WEB).await;
    let body = json!({ "properties": { "replicationProviderSettings": { "instanceType": "HyperVReplicaAzure", "replicationInterval": 300 } } });
    let patched = world
        .done(&world.call(Method::PATCH, &world.policy(), Some(body)).await)
        .await;
    assert_eq!(
        patched["properties"]["providerSpecificDetails"]["replicationInterval"],
        300
    );
    assert_eq!(
        patched["properties"]["providerSpecificDetails"]["recoveryPointHistoryDurationInHours"],
        4
    );
    world
        .until(&item, |_| {
            engine.last().replications[0]
                .policy
                .as_ref()
                .is_some_and(|policy| policy.replication_interval_seconds == 300)
        })
        .await;
    let wrong = world.put(&world.policy(), policy_body(901)).await;
    assert_eq!(
        wrong.target(),
        "properties.providerSpecificInput.replicationInterval"
    );
    engine.stop().await;
    world.orchestrator.stop().await;
}
