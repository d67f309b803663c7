//! The report of a drill over the API: figures and evidence from the engine, people from the requests, all of it gone with
//! the job.

mod harness;

use std::time::Duration;

use engine_protocol::v1;
use harness::engine::{WEB, recovered_vm_failed};
use harness::{World, ready};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// The beginning of a PNG file of 720 × 400 pixels.
fn picture() -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR".to_vec();
    png.extend(720_u32.to_be_bytes());
    png.extend(400_u32.to_be_bytes());
    png
}

async fn job_of(world: &World, answer: &harness::Answer) -> String {
    let job = world.job(answer).await;
    job["id"].as_str().expect("id").to_owned()
}

#[tokio::test]
async fn a_drill_is_reported_with_who_when_how_fast_and_what_was_seen_until_its_job_goes() {
    let (mut world, engine) = ready().await;
    world.associate().await;
    let item = world.protect(WEB).await;
    engine.behave(|behaviour| {
        behaviour.evidence = Some(("web01 login: <b>".to_owned(), picture()));
    });
    let started = world.post(&format!("{item}/testFailover"), json!({})).await;
    world.done(&started).await;
    let job = job_of(&world, &started).await;
    let path = format!("{job}/drillReport");
    let seen = |answer: &Value| {
        answer
            .pointer("/report/virtualMachines/0/evidence/console")
            .is_some()
    };
    let document = world.until(&path, seen).await;
    let report = &document["report"];
    assert_eq!(report["verdict"], "Passed", "{document}");
    let client = world.admin.value("SITERECOVERY_CLIENT_ID");
    assert_eq!(report["run"]["requestedBy"], client);
    assert_eq!(report["subject"]["name"], "web01");
    let vm = &report["virtualMachines"][0];
    assert_eq!(vm["evidence"]["console"], "web01 login: <b>");
    assert_eq!(
        (&vm["evidence"]["width"], &vm["evidence"]["height"]),
        (&json!(720), &json!(400))
    );
    assert_eq!(vm["point"]["kind"], "CrashConsistent");
    assert_eq!(
        (&vm["policy"], &vm["policyFrequencySeconds"]),
        (&json!("pol-30s"), &json!(30))
    );
    assert_eq!(vm["engineVersion"], "0.1.0");
    assert!(
        vm["rto"]["bootedMs"].is_i64() && vm["point"]["ageMs"].is_i64(),
        "{vm}"
    );
    assert_eq!(report["cleanup"]["state"], "Pending");

    // Once it is kept, the engine is told so, and says it no more: whole desired states, so it may take a moment.
    let mut bell = world.orchestrator.app.listen();
    while engine
        .last()
        .recovered_vms
        .first()
        .is_none_or(|vm| vm.evidence_received.is_empty())
    {
        let rang = tokio::time::timeout(harness::LONG, bell.changed()).await;
        rang.expect("in time").expect("bell");
    }

    let comments = json!({ "properties": { "comments": "Quarterly drill, all well." } });
    let cleaned = world
        .post(&format!("{item}/testFailoverCleanup"), comments)
        .await;
    world.done(&cleaned).await;
    let report = world.get(&path).await.body["report"].clone();
    assert_eq!(report["cleanup"]["state"], "Done");
    assert_eq!(report["cleanup"]["notes"], "Quarterly drill, all well.");
    assert_eq!(report["cleanup"]["requestedBy"], client);
    assert_eq!(
        report["cleanup"]["job"],
        job_of(&world, &cleaned).await.as_str()
    );
    assert_eq!(
        report["verdict"], "Passed",
        "a clean-up proves and disproves nothing"
    );
    assert!(
        seen(&json!({ "report": report })),
        "evidence outlives the VM"
    );

    // The page is locked down, and escapes what the guest wrote.
    let request = world.request(Method::GET, &format!("{path}?format=html"));
    let response = request.send().await.expect("answer");
    let policy = response.headers()["content-security-policy"]
        .to_str()
        .expect("text");
    assert!(policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
    assert_eq!(
        response.headers()["content-type"],
        "text/html; charset=utf-8"
    );
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    let page = response.text().await.expect("page");
    assert!(page.contains("web01 login: &lt;b&gt;") && page.contains("data:image/png;base64,"));

    let app = world.orchestrator.app.clone();
    assert_eq!(orchestrator::evidence::sweep(&app).await.expect("sweep"), 0);
    app.advance(Duration::from_secs(31 * 24 * 3_600));
    orchestrator::housekeeping::sweep_ended_jobs(&app)
        .await
        .expect("sweep");
    assert_eq!(orchestrator::evidence::sweep(&app).await.expect("sweep"), 2);
    assert_eq!(
        orchestrator::evidence::of_job(&app, &job)
            .await
            .expect("list"),
        []
    );
    world.sign_in_again().await;
    assert_eq!(world.get(&path).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_drill_that_failed_is_reported_as_failed_and_other_jobs_have_no_report() {
    let (world, engine) = ready().await;
    world.associate().await;
    let item = world.protect(WEB).await;
    engine.behave(recovered_vm_failed);
    let started = world.post(&format!("{item}/testFailover"), json!({})).await;
    assert_eq!(world.finish(&started).await["status"], "Failed");
    let job = job_of(&world, &started).await;
    let report = world
        .get(&format!("{job}/drillReport?format=json"))
        .await
        .body["report"]
        .clone();
    assert_eq!(report["verdict"], "Failed", "{report}");
    assert_eq!(report["cleanup"]["state"], "TakenBack");
    assert_ne!(report["problems"], json!([]));
    let other = world.get(&format!("{job}/drillReport?format=pdf")).await;
    assert_eq!(
        (other.status, other.target()),
        (StatusCode::BAD_REQUEST, "format")
    );

    let resync = world
        .post(&format!("{item}/repairReplication"), json!({}))
        .await;
    let job = job_of(&world, &resync).await;
    let none = world.get(&format!("{job}/drillReport")).await;
    assert_eq!(
        (none.status, none.code()),
        (StatusCode::CONFLICT, "OperationNotAllowed")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_is_reported_with_who_asked_and_what_was_seen_and_later_looks_change_nothing() {
    let (world, engine) = ready().await;
    world.associate().await;
    let item = world.protect(WEB).await;
    engine.behave(|behaviour| {
        behaviour.evidence = Some(("web01 login:".to_owned(), picture()));
    });
    let body = json!({ "properties": {
        "failoverDirection": "PrimaryToRecovery",
        "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure" },
    } });
    let started = world.post(&format!("{item}/plannedFailover"), body).await;
    world.done(&started).await;
    let path = format!("{}/drillReport", job_of(&world, &started).await);
    let console = "/report/virtualMachines/0/evidence/console";
    let document = world
        .until(&path, |answer| answer.pointer(console).is_some())
        .await;
    assert_eq!(document.pointer(console), Some(&json!("web01 login:")));
    let client = world.admin.value("SITERECOVERY_CLIENT_ID");
    assert_eq!(document["report"]["run"]["requestedBy"], client);
    // The engine is told, and says it no more.
    let mut bell = world.orchestrator.app.listen();
    while engine.last().recovered_vms[0].evidence_received.is_empty() {
        let rang = tokio::time::timeout(harness::LONG, bell.changed()).await;
        rang.expect("in time").expect("bell");
    }

    engine.behave(|behaviour| behaviour.evidence = None);
    // The VM lives on. What is seen of it weeks later is acknowledged, and is none of the failover's.
    let app = &world.orchestrator.app;
    let vm = &engine.last().recovered_vms[0].id;
    let later = v1::Evidence {
        vm_id: vm.clone(),
        id: "later".to_owned(),
        taken_unix_ms: app.now_ms() + 7 * 24 * 3_600_000,
        console_tail: "upgraded".to_owned(),
        ..v1::Evidence::default()
    };
    let host = &engine.id;
    orchestrator::evidence::take(app, host, later)
        .await
        .expect("taken");
    let marked = orchestrator::evidence::received(app, host, vm).await;
    assert_eq!(marked.expect("mark"), "later");
    let after = world.get(&path).await.body;
    assert_eq!(
        after["report"]["virtualMachines"],
        document["report"]["virtualMachines"]
    );
}
