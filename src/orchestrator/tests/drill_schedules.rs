//! Scheduled drills: once for each due time over a restart, cleaned up, told to webhooks; refused when they make no sense.

mod harness;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::engine::{WEB, recovered_vm_failed};
use harness::{World, ready};
use reqwest::StatusCode;
use serde_json::{Value, json};

/// A webhook: refuses so many messages, then takes them.
async fn webhook(refuse: usize) -> (String, Arc<Mutex<Vec<Value>>>) {
    let taken = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::new(Mutex::new(0));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("port");
    let url = format!("http://{}/hook", listener.local_addr().expect("address"));
    let messages = Arc::clone(&taken);
    let handler = move |body: String| async move {
        let mut seen = seen.lock().expect("lock");
        *seen += 1;
        if *seen <= refuse {
            return axum::http::StatusCode::SERVICE_UNAVAILABLE;
        }
        messages
            .lock()
            .expect("lock")
            .push(serde_json::from_str(&body).expect("JSON"));
        axum::http::StatusCode::OK
    };
    let router = axum::Router::new().fallback(handler);
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, taken)
}

fn hours(count: u64) -> Duration {
    Duration::from_secs(count * 3_600)
}

fn schedule(world: &World) -> String {
    format!("{}/drillSchedules/hourly", world.vault())
}

fn run(schedule: &Value) -> Value {
    schedule
        .pointer("/properties/runs/0")
        .cloned()
        .unwrap_or_default()
}

async fn drills(world: &World) -> usize {
    let jobs = world
        .get(&format!("{}/replicationJobs", world.vault()))
        .await;
    let jobs = jobs.body["value"].as_array().expect("jobs").clone();
    jobs.iter()
        .filter(|job| job["properties"]["scenarioName"] == "TestFailover")
        .count()
}

#[tokio::test]
async fn a_drill_that_was_due_while_nobody_was_there_is_made_up_for_once_cleaned_up_and_told() {
    let (mut world, _engine) = ready().await;
    world.associate().await;
    let item = world.protect(WEB).await;
    let (url, told) = webhook(1).await;
    let body = json!({ "properties": {
        "targetId": item, "everyHours": 1, "keepForMinutes": 10, "webhooks": [url], "notify": "Always",
    } });
    let made = world.put(&schedule(&world), body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    assert_eq!(made.body["properties"]["runs"], json!([]));
    // The address is not shown; whoever puts back what was shown keeps it: the message below arrives.
    let shown = url.replace("/hook", "/…");
    assert_eq!(made.body["properties"]["webhooks"], json!([shown]));
    let again = world.put(&schedule(&world), made.body).await;
    assert_eq!(again.status, StatusCode::OK, "{again:?}");
    assert_eq!(again.body["properties"]["webhooks"], json!([shown]));
    world
        .orchestrator
        .app
        .advance(hours(3) + Duration::from_secs(60));
    world.sign_in_again().await;
    let noted = world
        .until(&schedule(&world), |schedule| {
            run(schedule)["jobId"] != "" && !run(schedule).is_null()
        })
        .await;
    assert_eq!(run(&noted)["missedDrills"], 2);
    let mut world = world.restart().await;
    world.sign_in_again().await;
    let early = world.delete(&schedule(&world)).await;
    assert_eq!(early.status, StatusCode::CONFLICT, "{early:?}");
    // A restart sets the tests' clock back: nothing more is due, and what is due is known.
    let over = world
        .until(&schedule(&world), |schedule| run(schedule)["verdict"] != "")
        .await;
    // The engine's clock did not move: its point is three hours old, so a drill that went well proves no RPO.
    assert_eq!(run(&over)["verdict"], "Failed", "{over}");
    let job = run(&over)["jobId"].as_str().expect("job").to_owned();
    let report = world.get(&format!("{job}/drillReport")).await.body;
    assert_eq!(report["report"]["run"]["requestedBy"], "schedule hourly");

    world
        .orchestrator
        .app
        .advance(hours(3) + Duration::from_secs(12 * 60));
    world.sign_in_again().await;
    let cleaned = world
        .until(&schedule(&world), |schedule| {
            run(schedule)["cleanup"]["done"] == true
                && run(schedule)["notification"]["delivered"] == true
        })
        .await;
    assert_eq!(
        cleaned["properties"]["runs"].as_array().map(Vec::len),
        Some(1),
        "{cleaned}"
    );
    assert_eq!(drills(&world).await, 1);
    assert_eq!(
        world.get(&item).await.body["properties"]["testFailoverState"],
        "None"
    );
    let report = world.get(&format!("{job}/drillReport")).await.body;
    assert_eq!(
        report["report"]["cleanup"]["notes"],
        "Removed by schedule hourly."
    );
    // The first try was refused; the second one was taken, and there is no third.
    let told = told.lock().expect("lock").clone();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(
        (&told[0]["verdict"], &told[0]["jobId"]),
        (&json!("Failed"), &json!(job))
    );
    assert!(
        told[0]["reportUrl"]
            .as_str()
            .is_some_and(|url| url.contains("/drillReport"))
    );
    assert_eq!(run(&cleaned)["notification"]["tries"], 2);
}

#[tokio::test]
async fn a_drill_that_fails_or_can_not_begin_is_told_with_the_reason() {
    let (mut world, engine) = ready().await;
    world.associate().await;
    let item = world.protect(WEB).await;
    let (url, told) = webhook(0).await;
    engine.behave(recovered_vm_failed);
    let body = json!({ "properties": { "targetId": item, "everyHours": 1, "webhooks": [url] } });
    world.put(&schedule(&world), body).await;
    world.orchestrator.app.advance(hours(1));
    world.sign_in_again().await;
    let failed = world
        .until(&schedule(&world), |schedule| {
            run(schedule)["notification"]["delivered"] == true
        })
        .await;
    assert_eq!(run(&failed)["verdict"], "Failed", "{failed}");
    assert_eq!(
        run(&failed)["cleanup"]["done"],
        true,
        "it took its VMs back itself"
    );
    assert_eq!(told.lock().expect("lock")[0]["verdict"], "Failed");

    // Somebody's own drill is under way when the next one is due.
    engine.behave(|behaviour| behaviour.vm_state = None);
    let own = world.post(&format!("{item}/testFailover"), json!({})).await;
    world.done(&own).await;
    world.orchestrator.app.advance(hours(1));
    world.sign_in_again().await;
    let skipped = world
        .until(&schedule(&world), |schedule| {
            run(schedule)["skippedReason"] != ""
                && run(schedule)["notification"]["delivered"] == true
        })
        .await;
    let reason = run(&skipped)["skippedReason"]
        .as_str()
        .expect("reason")
        .to_owned();
    assert!(!reason.is_empty());
    assert_eq!(told.lock().expect("lock")[1]["verdict"], "Skipped");
    assert_eq!(told.lock().expect("lock")[1]["reason"], reason);
    assert_eq!(world.delete(&schedule(&world)).await.status, StatusCode::OK);
    assert_eq!(
        world.delete(&schedule(&world)).await.status,
        StatusCode::NO_CONTENT
    );
}

#[tokio::test]
async fn a_schedule_that_makes_no_sense_is_refused_at_the_property() {
    let (world, _engine) = ready().await;
    world.associate().await;
    let item = world.protect(WEB).await;
    for (change, target) in [
        (json!({ "targetId": world.policy() }), "properties.targetId"),
        (json!({ "everyHours": 0 }), "properties.everyHours"),
        (
            json!({ "everyHours": null, "days": ["Monday"], "time": "24:00" }),
            "properties.time",
        ),
        (
            json!({ "everyHours": null, "days": ["Funday"], "time": "02:30" }),
            "properties.days",
        ),
        (
            json!({ "everyHours": 1, "days": ["Monday"], "time": "02:30" }),
            "properties",
        ),
        (json!({ "keepForMinutes": 0 }), "properties.keepForMinutes"),
        (
            json!({ "webhooks": ["file:///etc/passwd"] }),
            "properties.webhooks",
        ),
        (
            json!({ "webhooks": ["https://user:word@hooks.example/dr"] }),
            "properties.webhooks",
        ),
        (
            json!({ "webhooks": ["http://hooks.example/dr"] }),
            "properties.webhooks",
        ),
        (json!({ "notify": "Never" }), "properties.notify"),
    ] {
        let mut properties = json!({ "targetId": item, "everyHours": 1 });
        let fields = properties.as_object_mut().expect("object");
        fields.extend(change.as_object().expect("object").clone());
        let refused = world
            .put(&schedule(&world), json!({ "properties": properties }))
            .await;
        assert_eq!(
            (refused.status, refused.target()),
            (StatusCode::BAD_REQUEST, target),
            "{refused:?}"
        );
    }
    let weekly = json!({ "targetId": item, "days": ["Sunday", "Monday"], "time": "02:30" });
    let made = world
        .put(&schedule(&world), json!({ "properties": weekly }))
        .await;
    assert_eq!(
        made.body["properties"]["days"],
        json!(["Monday", "Sunday"]),
        "{made:?}"
    );
    let list = world
        .get(&format!("{}/drillSchedules", world.vault()))
        .await;
    assert_eq!(list.body["value"].as_array().map(Vec::len), Some(1));
}
