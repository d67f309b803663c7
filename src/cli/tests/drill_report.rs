//! `siterecovery test-failover report` as a process, against a double of the orchestrator.

use std::process::Stdio;

use axum::Router;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::process::Command;

const VAULTS: &str = "/subscriptions/s/providers/Microsoft.RecoveryServices/vaults";
const VAULT: &str =
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.RecoveryServices/vaults/v";
const PAGE: &str = "<!DOCTYPE html>\n<p>report</p>\n";

async fn answer(uri: Uri) -> Response {
    let json = |body: Value| axum::Json(body).into_response();
    let report = format!("{VAULT}/replicationJobs/job-1/drillReport");
    let query = uri.query().unwrap_or_default();
    match uri.path() {
        path if path.ends_with("/oauth2/v2.0/token") => {
            json(json!({ "access_token": "token", "expires_in": 3600 }))
        }
        VAULTS => json(json!({ "value": [{ "id": VAULT, "name": "v" }] })),
        path if path == report && query.contains("format=html") => {
            ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], PAGE).into_response()
        }
        path if path == report && query.contains("format=json") => {
            json(json!({ "sha256": "00", "report": {} }))
        }
        _ => {
            let error =
                json!({ "error": { "code": "ResourceNotFound", "message": "No such job." } });
            (StatusCode::NOT_FOUND, axum::Json(error)).into_response()
        }
    }
}

async fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    let output = Command::new(env!("CARGO_BIN_EXE_siterecovery"))
        .env_clear()
        .args(["--endpoint", &address, "--tenant-id", "t"])
        .args(["--client-id", "c", "--client-secret", "x"])
        .args(["--subscription-id", "s", "test-failover", "report"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[tokio::test]
async fn a_report_is_a_page_unless_a_document_is_asked_for() {
    let id = format!("{VAULT}/replicationJobs/job-1");
    assert_eq!(run(&[&id]).await.1, PAGE);
    for arguments in [&["job-1", "--format", "json"][..], &["job-1", "--json"]] {
        let (code, out, _) = run(arguments).await;
        let document: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, document["sha256"].as_str()), (Some(0), Some("00")));
    }
}

#[tokio::test]
async fn a_report_goes_into_the_file_that_is_named_and_a_missing_job_into_none() {
    let folder = std::env::temp_dir().join(format!("drill-report-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("drill.html");
    let (code, out, err) = run(&["job-1", "--output", file.to_str().unwrap()]).await;
    assert_eq!((code, out.as_str()), (Some(0), ""), "{err}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), PAGE);
    let none = folder.join("none.html");
    let (code, _, err) = run(&["job-2", "--output", none.to_str().unwrap()]).await;
    assert_eq!(code, Some(1));
    assert!(err.contains("No such job."), "{err}");
    assert!(!none.exists());
    std::fs::remove_dir_all(&folder).unwrap();
}
