//! The client against a small HTTP server that answers as scripted, and as badly as scripted.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arm_client::{
    CancellationToken, Client, ClientConfig, ClientErrorKind, Method, Progress, Retry, Secret, Wait,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const VAULT: &str =
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.RecoveryServices/vaults/v";

/// What the server does with a request.
enum Reply {
    /// Status, extra headers, body.
    Answer(u16, Vec<(&'static str, String)>, String),
    /// Reads the request and closes the connection.
    Drop,
    /// Reads the request and never answers.
    Hang,
}

fn ok(body: &Value) -> Reply {
    Reply::Answer(200, Vec::new(), body.to_string())
}

fn error(status: u16, code: &str) -> Reply {
    let body = json!({ "error": { "code": code, "message": "it went wrong", "target": "properties.folder",
        "details": [{ "code": "7", "message": "deeper", "recommendedAction": "Do this." }] } });
    Reply::Answer(
        status,
        vec![("x-ms-request-id", "req-1".into())],
        body.to_string(),
    )
}

fn accepted(base: &str) -> Reply {
    let headers = vec![
        (
            "Location",
            format!("{base}{VAULT}/operationresults/job-1?api-version=1"),
        ),
        (
            "Azure-AsyncOperation",
            format!("{base}{VAULT}/replicationOperationStatus/job-1?api-version=1"),
        ),
        ("Retry-After", "0".into()),
    ];
    Reply::Answer(202, headers, String::new())
}

#[derive(Clone)]
struct Server {
    address: String,
    script: Arc<Mutex<VecDeque<Reply>>>,
    seen: Arc<Mutex<Vec<String>>>,
    tokens: Arc<Mutex<u32>>,
}

impl Server {
    /// Tokens are always issued; everything else gets the next reply of the script.
    async fn start(script: impl FnOnce(&str) -> Vec<Reply>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = Server {
            script: Arc::new(Mutex::new(script(&address).into())),
            seen: Arc::default(),
            tokens: Arc::default(),
            address,
        };
        let shared = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(shared.clone().serve(stream));
            }
        });
        server
    }

    async fn serve(self, mut stream: TcpStream) {
        while let Some(head) = read_request(&mut stream).await {
            let reply = if head.contains("/oauth2/v2.0/token ") {
                let number = {
                    let mut tokens = self.tokens.lock().unwrap();
                    *tokens += 1;
                    *tokens
                };
                ok(&json!({ "access_token": format!("token-{number}"), "expires_in": 3600 }))
            } else {
                let line = head.lines().next().unwrap_or_default().to_owned();
                let bearer = head
                    .lines()
                    .find(|l| l.to_lowercase().starts_with("authorization:"));
                self.seen
                    .lock()
                    .unwrap()
                    .push(format!("{line} {}", bearer.unwrap_or_default()));
                let next = self.script.lock().unwrap().pop_front();
                next.unwrap_or_else(|| error(418, "ScriptIsOver"))
            };
            match reply {
                Reply::Answer(status, headers, body) => {
                    let mut text =
                        format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n", body.len());
                    for (name, value) in headers {
                        text += &format!("{name}: {value}\r\n");
                    }
                    text += &format!("\r\n{body}");
                    if stream.write_all(text.as_bytes()).await.is_err() {
                        return;
                    }
                }
                Reply::Drop => return,
                Reply::Hang => std::future::pending().await,
            }
        }
    }

    fn client(&self) -> Client {
        let mut config =
            ClientConfig::new(&self.address, "tenant", "client", Secret::new("s3cret"));
        config.back_off = Duration::from_millis(1);
        config.attempts = 3;
        config.request_timeout = Duration::from_millis(400);
        Client::new(config).unwrap()
    }

    fn lines(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        seen.iter()
            .map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" "))
            .collect()
    }

    fn left(&self) -> usize {
        self.script.lock().unwrap().len()
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0_u8; 4096];
    loop {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length: usize = head
                .lines()
                .find_map(|l| {
                    l.to_lowercase()
                        .strip_prefix("content-length:")
                        .map(|v| v.trim().parse().unwrap())
                })
                .unwrap_or(0);
            while bytes.len() < end + 4 + length {
                match stream.read(&mut buffer).await {
                    Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
                    _ => return None,
                }
            }
            return Some(head);
        }
        match stream.read(&mut buffer).await {
            Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
            _ => return None,
        }
    }
}

fn wait() -> Wait<'static> {
    Wait::new(Duration::from_secs(10), CancellationToken::new())
}

#[tokio::test]
async fn throttling_and_an_overloaded_service_are_waited_out() {
    let server = Server::start(|_| {
        vec![
            error(429, "TooMany"),
            error(503, "Busy"),
            ok(&json!({ "name": "v" })),
        ]
    })
    .await;
    let found: Value = server.client().get(VAULT).await.unwrap();
    assert_eq!(found["name"], "v");
    assert_eq!(server.lines().len(), 3);
}

#[tokio::test]
async fn trouble_that_stays_ends_with_all_that_the_service_said() {
    let server = Server::start(|_| (0..3).map(|_| error(503, "Busy")).collect()).await;
    let problem = server.client().get::<Value>(VAULT).await.unwrap_err();
    assert_eq!(
        (problem.kind(), problem.retry()),
        (ClientErrorKind::Service, Retry::Yes)
    );
    assert_eq!(
        (problem.code(), problem.message()),
        ("Busy", "it went wrong")
    );
    assert_eq!(
        (problem.target(), problem.request_id()),
        (Some("properties.folder"), Some("req-1"))
    );
    assert_eq!(
        problem.details()[0].recommended_action.as_deref(),
        Some("Do this.")
    );
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_except_for_an_action() {
    let server =
        Server::start(|_| vec![Reply::Drop, Reply::Hang, ok(&json!({ "name": "v" }))]).await;
    let body = json!({ "location": "x" });
    let answer = server
        .client()
        .request(Method::Put, VAULT, Some(&body))
        .await
        .unwrap();
    assert_eq!(answer.body["name"], "v");

    let server = Server::start(|_| vec![Reply::Drop, ok(&json!({}))]).await;
    let problem = server
        .client()
        .request(Method::Post, VAULT, None)
        .await
        .unwrap_err();
    assert_eq!(
        (problem.kind(), problem.retry()),
        (ClientErrorKind::UnknownOutcome, Retry::UnknownOutcome)
    );
    assert_eq!(server.left(), 1, "an action must not be sent twice");

    let server = Server::start(|_| vec![error(502, "Gateway"), ok(&json!({}))]).await;
    let problem = server
        .client()
        .request(Method::Post, VAULT, None)
        .await
        .unwrap_err();
    assert_eq!(problem.retry(), Retry::UnknownOutcome);
    assert_eq!(
        server.left(),
        1,
        "a gateway doesn't say whether the action has begun"
    );
}

#[tokio::test]
async fn a_removal_whose_answer_was_lost_is_done_when_the_thing_is_gone() {
    let server = Server::start(|_| vec![Reply::Drop, error(404, "ResourceNotFound")]).await;
    let answer = server
        .client()
        .request(Method::Delete, VAULT, None)
        .await
        .unwrap();
    assert_eq!(answer.status, 204);

    let server = Server::start(|_| vec![error(404, "ResourceNotFound")]).await;
    let problem = server
        .client()
        .request(Method::Delete, VAULT, None)
        .await
        .unwrap_err();
    assert!(problem.is_not_found());
}

#[tokio::test]
async fn answers_that_are_no_json_are_errors_and_no_panics() {
    for body in ["<html>", "{\"a\":", "\u{0}", "[1,2"] {
        let server = Server::start(|_| vec![Reply::Answer(200, Vec::new(), body.to_owned())]).await;
        let problem = server.client().get::<Value>(VAULT).await.unwrap_err();
        assert_eq!(problem.kind(), ClientErrorKind::BadAnswer);
        let server = Server::start(|_| vec![Reply::Answer(409, Vec::new(), body.to_owned())]).await;
        let problem = server.client().get::<Value>(VAULT).await.unwrap_err();
        assert_eq!(problem.kind(), ClientErrorKind::Conflict);
    }
}

#[tokio::test]
async fn the_token_is_kept_and_renewed_once_when_it_is_refused() {
    let server = Server::start(|_| {
        vec![
            ok(&json!({})),
            ok(&json!({})),
            error(401, "Expired"),
            ok(&json!({})),
            error(401, "No"),
            error(401, "No"),
        ]
    })
    .await;
    let client = server.client();
    for _ in 0..3 {
        client.get::<Value>(VAULT).await.unwrap();
    }
    assert_eq!(*server.tokens.lock().unwrap(), 2);
    let problem = client.get::<Value>(VAULT).await.unwrap_err();
    assert_eq!(problem.kind(), ClientErrorKind::Unauthorized);
    let seen = server.seen.lock().unwrap();
    assert!(
        seen[0].ends_with("Bearer token-1") && seen[3].ends_with("Bearer token-2"),
        "{seen:?}"
    );
}

#[tokio::test]
async fn nothing_that_is_printed_holds_a_secret() {
    let server = Server::start(|_| vec![error(400, "Bad")]).await;
    let client = server.client();
    let problem = client.get::<Value>(VAULT).await.unwrap_err();
    let config = ClientConfig::new("http://localhost", "t", "c", Secret::new("s3cret"));
    let printed = format!("{client:?} {problem} {problem:?} {config:?}");
    assert!(
        !printed.contains("s3cret") && !printed.contains("token-1"),
        "{printed}"
    );
}

#[tokio::test]
async fn a_list_is_read_to_its_last_page_on_the_configured_host_only() {
    let server = Server::start(|_| {
        vec![
            ok(&json!({ "value": [1, 2], "nextLink": format!("https://elsewhere.example{VAULT}/jobs?api-version=1&skip=2") })),
            ok(&json!({ "value": [3], "nextLink": null })),
        ]
    })
    .await;
    let all: Vec<u32> = server
        .client()
        .list(&format!("{VAULT}/jobs"))
        .await
        .unwrap();
    assert_eq!(all, [1, 2, 3]);
    assert_eq!(
        server.lines()[1],
        format!("GET {VAULT}/jobs?api-version=1&skip=2")
    );
}

#[tokio::test]
async fn pages_that_lead_in_a_circle_end_with_an_error() {
    let page = || ok(&json!({ "value": [1], "nextLink": format!("http://x{VAULT}/jobs?again") }));
    let server = Server::start(|_| (0..10).map(|_| page()).collect()).await;
    let problem = server
        .client()
        .list::<u32>(&format!("{VAULT}/jobs"))
        .await
        .unwrap_err();
    assert_eq!(problem.kind(), ClientErrorKind::BadAnswer);
}

#[tokio::test]
async fn an_operation_is_followed_to_its_end_with_progress() {
    let job = |state: &str| {
        ok(
            &json!({ "name": "job-1", "properties": { "friendlyName": "Enable replication", "state": "InProgress",
            "targetObjectName": "web01", "tasks": [
                { "friendlyName": "Check", "state": "Succeeded" }, { "friendlyName": "Copy", "state": state } ] } }),
        )
    };
    let server = Server::start(|base| {
        vec![
            accepted(base),
            job("NotStarted"),
            ok(&json!({ "status": "InProgress" })),
            job("InProgress"),
            ok(&json!({ "status": "Succeeded" })),
            job("Succeeded"),
            ok(&json!({ "name": "v" })),
        ]
    })
    .await;
    let lines = Mutex::new(Vec::new());
    let note = |p: &Progress| {
        lines
            .lock()
            .unwrap()
            .push(format!("{} {} {}", p.target, p.tasks[1].state, p.percent()))
    };
    let mut wait = wait();
    wait.progress = Some(&note);
    let done = server
        .client()
        .operate(Method::Put, VAULT, Some(&json!({})), &wait)
        .await
        .unwrap();
    assert_eq!(done["name"], "v");
    assert_eq!(
        *lines.lock().unwrap(),
        [
            "web01 NotStarted 50",
            "web01 InProgress 50",
            "web01 Succeeded 100"
        ]
    );
}

#[tokio::test]
async fn an_action_gives_back_the_body_of_its_result() {
    let server = Server::start(|base| {
        vec![
            accepted(base),
            ok(&json!({ "status": "Succeeded" })),
            ok(&json!({ "name": "item" })),
        ]
    })
    .await;
    let done = server
        .client()
        .operate(Method::Post, &format!("{VAULT}/act"), None, &wait())
        .await
        .unwrap();
    assert_eq!(done["name"], "item");
    assert_eq!(
        server.lines()[2],
        format!("GET {VAULT}/operationresults/job-1?api-version=1")
    );
}

#[tokio::test]
async fn a_failed_operation_carries_reason_and_job() {
    let server = Server::start(|base| {
        vec![
            accepted(base),
            ok(&json!({ "status": "Failed", "error": { "code": "HostUnreachable", "message": "hv1 is silent" } })),
        ]
    })
    .await;
    let problem = server
        .client()
        .operate(Method::Post, &format!("{VAULT}/act"), None, &wait())
        .await
        .unwrap_err();
    assert_eq!(problem.kind(), ClientErrorKind::OperationFailed);
    assert_eq!(
        (problem.code(), problem.message(), problem.job_id()),
        ("HostUnreachable", "hv1 is silent", Some("job-1"))
    );
}

#[tokio::test]
async fn both_spellings_of_a_cancelled_operation_end_the_waiting() {
    for spelling in ["Canceled", "Cancelled"] {
        let server =
            Server::start(|base| vec![accepted(base), ok(&json!({ "status": spelling }))]).await;
        let problem = server
            .client()
            .operate(Method::Delete, VAULT, None, &wait())
            .await
            .unwrap_err();
        assert_eq!(problem.kind(), ClientErrorKind::OperationCancelled);
    }
}

#[tokio::test]
async fn without_a_status_url_the_location_is_followed_until_it_is_no_longer_202() {
    let location = |base: &str| {
        vec![
            ("Location", format!("{base}{VAULT}/operationresults/j")),
            ("Retry-After", "0".to_owned()),
        ]
    };
    let server = Server::start(|base| {
        vec![
            Reply::Answer(202, location(base), String::new()),
            Reply::Answer(202, location(base), String::new()),
            error(404, "Gone"),
        ]
    })
    .await;
    let done = server
        .client()
        .operate(Method::Delete, VAULT, None, &wait())
        .await
        .unwrap();
    assert_eq!(done, Value::Null);
}

#[tokio::test]
async fn a_body_that_is_still_provisioned_is_polled() {
    let state = |s: &str| {
        Reply::Answer(
            200,
            vec![("Retry-After", "0".into())],
            json!({ "properties": { "provisioningState": s } }).to_string(),
        )
    };
    let server =
        Server::start(|_| vec![state("Pending"), state("Pending"), state("Succeeded")]).await;
    server
        .client()
        .operate(Method::Put, VAULT, Some(&json!({})), &wait())
        .await
        .unwrap();
    assert_eq!(server.left(), 0);
}

#[tokio::test]
async fn waiting_ends_when_time_is_over_or_the_caller_wants_it() {
    let running = |base: &str| {
        let mut replies = vec![accepted(base)];
        replies.extend((0..10_000).map(|_| ok(&json!({ "status": "InProgress" }))));
        replies
    };
    let server = Server::start(running).await;
    let short = Wait::new(Duration::from_millis(50), CancellationToken::new());
    let problem = server
        .client()
        .operate(Method::Delete, VAULT, None, &short)
        .await
        .unwrap_err();
    assert_eq!(
        (problem.kind(), problem.job_id()),
        (ClientErrorKind::TimedOut, Some("job-1"))
    );

    let server = Server::start(|base| vec![accepted(base), Reply::Hang]).await;
    let cancel = CancellationToken::new();
    let client = server.client();
    let waiting = Wait::new(Duration::from_secs(600), cancel.clone());
    let watch = async {
        while server.left() > 0 {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let (outcome, ()) = tokio::join!(client.operate(Method::Delete, VAULT, None, &waiting), watch);
    assert_eq!(outcome.unwrap_err().kind(), ClientErrorKind::Interrupted);
}

#[tokio::test]
async fn a_service_that_is_not_there_is_unreachable_and_may_be_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let mut config = ClientConfig::new(address.clone(), "t", "c", Secret::new("s"));
    config.attempts = 2;
    config.back_off = Duration::from_millis(1);
    let problem = Client::new(config)
        .unwrap()
        .get::<Value>(VAULT)
        .await
        .unwrap_err();
    assert_eq!(
        (problem.kind(), problem.retry()),
        (ClientErrorKind::Unreachable, Retry::Yes)
    );
    assert!(
        problem.message().contains(&address) && !problem.message().contains(VAULT),
        "{}",
        problem.message()
    );
}

#[test]
fn a_token_never_leaves_over_plain_http_to_another_machine() {
    let config = ClientConfig::new("http://example.com", "t", "c", Secret::new("s"));
    assert_eq!(
        Client::new(config).unwrap_err().kind(),
        ClientErrorKind::Configuration
    );
    let mut config = ClientConfig::new("https://example.com", "t", "c", Secret::new("s"));
    config.ca_pem = Some("no certificate".into());
    assert_eq!(
        Client::new(config).unwrap_err().kind(),
        ClientErrorKind::Configuration
    );
}
