//! Webhooks of plans: tried again with one key, never sent elsewhere, their URL told to nobody.

use std::time::Duration;

use arm_model::job::JobState;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::bench::Bench;
use super::job;
use super::plan_actions::{action, begin, group, world};
use crate::saga::runner::{Step, Trial, step_with};
use crate::saga::steps::Scenario;

/// Answers requests one after another; gives what came.
async fn web(answers: Vec<&'static str>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
    engine_protocol::tls::install_crypto();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bind");
    let url = format!(
        "http://{}/hook?token=t0ps3cret",
        listener.local_addr().expect("address")
    );
    let served = tokio::spawn(async move {
        let mut came = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut text = Vec::new();
            let mut buffer = [0; 4096];
            while !is_whole(&text) {
                let count = stream.read(&mut buffer).await.expect("read");
                assert!(count > 0, "the request ended early");
                text.extend_from_slice(&buffer[..count]);
            }
            came.push(String::from_utf8(text).expect("text"));
            let answer =
                format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.expect("write");
        }
        came
    });
    (url, served)
}

fn is_whole(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .split("content-length: ")
        .nth(1)
        .and_then(|rest| rest.lines().next());
    length
        .and_then(|length| length.parse().ok())
        .is_some_and(|length: usize| body.len() >= length)
}

async fn hook(url: &str) -> (Bench, String, JobState) {
    let mut bench = world(Scenario::Planned).await;
    let act = action(
        "hook",
        json!({ "instanceType": "WebhookActionDetails", "url": url, "timeout": "600" }),
    );
    let groups = [group(&bench, "vm-a", vec![], vec![act])];
    let key = begin(&mut bench, Scenario::Planned, &groups).await;
    let app = bench.app().await;
    loop {
        match step_with(&app, &key, Trial::default()).await.expect("step") {
            Step::Ended => break,
            Step::Waiting => app.advance(Duration::from_secs(3)),
            Step::Advanced => {}
        }
        bench.report(&app).await;
    }
    let state = job(&bench, &key).await.properties.state;
    (bench, key, state)
}

#[tokio::test]
async fn a_webhook_is_tried_again_with_the_same_key_until_it_is_taken() {
    let (url, served) = web(vec![
        "503 Service Unavailable",
        "429 Too Many Requests",
        "204 No Content",
    ])
    .await;
    let (_, _, state) = hook(&url).await;
    assert_eq!(state, JobState::Succeeded);
    let came = served.await.expect("served");
    let part = |text: &String| {
        let (head, body) = text.split_once("\r\n\r\n").expect("body");
        let key = head
            .lines()
            .find(|line| line.starts_with("idempotency-key:"));
        (key.expect("key").to_owned(), body.to_owned())
    };
    let parts: Vec<_> = came.iter().map(part).collect();
    assert!(parts.windows(2).all(|two| two[0] == two[1]), "{parts:?}");
    assert!(parts[0].1.contains("\"RecoveryPlanName\":\"plan\""));
}

#[tokio::test]
async fn a_webhook_that_refuses_or_sends_elsewhere_fails_and_its_url_is_told_to_nobody() {
    for (answer, said) in [("302 Found", "not followed"), ("400 Bad Request", "400")] {
        let (url, served) = web(vec![answer]).await;
        let (bench, key, state) = hook(&url).await;
        assert_eq!(state, JobState::Failed);
        served.await.expect("served");
        let job = job(&bench, &key).await;
        let shown = serde_json::to_string(&job.properties).expect("json");
        assert!(shown.contains(said), "{shown}");
        assert!(!shown.contains("t0ps3cret"), "{shown}");
    }
}
