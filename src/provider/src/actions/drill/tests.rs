//! A drill that Terraform does not see to its end leaves nothing behind; the service is a double with one drill.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use arm_client::{Client, ClientConfig, Secret};
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Json as Body, Router};
use serde_json::Value as Json;
use tf_provider::{Cancel, ClientCapabilities};

use super::*;

const VAULT: &str =
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.RecoveryServices/vaults/v";

fn plan() -> String {
    format!("{VAULT}/replicationRecoveryPlans/shop")
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// Terraform is interrupted while the drill runs.
    Interrupt,
    /// The connection breaks in the middle of the start's answer.
    StartUnanswered,
    /// The drill takes longer than the configuration allows.
    Slow,
    /// The job can't be read once it has ended.
    LastRead,
    /// Terraform is interrupted when the drill has just ended.
    InterruptAtTheEnd,
    /// The service refuses the cancel, for ever.
    NoCancel,
}

/// The drill at the service.
#[derive(Default)]
struct Kept {
    state: &'static str,
    cleaned: bool,
    /// Looks at the job since it has ended.
    looks: usize,
    asked: Vec<String>,
}

#[derive(Clone)]
struct Service {
    address: String,
    trouble: Trouble,
    cancel: Cancel,
    kept: Arc<Mutex<Kept>>,
}

impl Service {
    async fn start(trouble: Trouble) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            trouble,
            cancel: Cancel::new(),
            kept: Arc::default(),
        };
        let router = Router::new().fallback(answer).with_state(service.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        service
    }

    fn context(&self) -> Context<Session> {
        let secret = Secret::new("secret");
        let client = ClientConfig::new(&self.address, "tenant", "client", secret);
        let session = Session {
            api: Client::new(client).unwrap(),
            subscription_id: "s".to_owned(),
            engine_path: PathBuf::new(),
            ssh: crate::session::SshSecrets::default(),
        };
        Context::new(
            Some(Arc::new(session)),
            self.cancel.clone(),
            ClientCapabilities::default(),
        )
    }

    /// Invokes the action; gives its error.
    async fn invoke(&self, config: Object) -> String {
        let (progress, mut told) = Progress::channel(64);
        let config = config.with(arguments::PLAN, plan());
        let outcome = DrillAction
            .invoke(&self.context(), &config, &progress)
            .await;
        drop(progress);
        while told.recv().await.is_some() {}
        outcome.unwrap_err().to_string()
    }

    fn asked(&self) -> Vec<String> {
        self.kept.lock().unwrap().asked.clone()
    }

    fn is_clean(&self) -> bool {
        let kept = self.kept.lock().unwrap();
        kept.cleaned || kept.state == "Cancelled"
    }
}

async fn answer(State(service): State<Service>, method: Method, uri: Uri) -> Response {
    let path = uri.path();
    let mut kept = service.kept.lock().unwrap();
    let job = format!("{VAULT}/replicationJobs/job-1");
    let status = |state: &str| Body(json!({ "status": state })).into_response();
    if path.ends_with("/oauth2/v2.0/token") {
        return Body(json!({ "access_token": "token", "expires_in": 3600 })).into_response();
    }
    if method == Method::POST {
        kept.asked
            .push(path.rsplit('/').next().unwrap_or_default().to_owned());
        let name = if path.ends_with("/testFailover") {
            kept.state = "InProgress";
            if service.trouble == Trouble::StartUnanswered {
                return StatusCode::GATEWAY_TIMEOUT.into_response();
            }
            "job-1"
        } else if path.ends_with("/testFailoverCleanup") {
            kept.cleaned = true;
            "cleanup"
        } else if service.trouble == Trouble::NoCancel {
            return StatusCode::FORBIDDEN.into_response();
        } else {
            kept.state = "Cancelled";
            return StatusCode::ACCEPTED.into_response();
        };
        let at = |kind: &str| format!("{}{VAULT}/{kind}/{name}?api-version=1", service.address);
        let headers = [
            ("Location", at("operationresults")),
            ("Azure-AsyncOperation", at("replicationOperationStatus")),
            ("Retry-After", "0".to_owned()),
        ];
        return (StatusCode::ACCEPTED, headers).into_response();
    }
    if path.ends_with("/replicationOperationStatus/cleanup") {
        return status("Succeeded");
    }
    if path.ends_with("/replicationOperationStatus/job-1") {
        return match service.trouble {
            Trouble::LastRead | Trouble::InterruptAtTheEnd => {
                kept.state = "Succeeded";
                if service.trouble == Trouble::InterruptAtTheEnd {
                    service.cancel.cancel();
                }
                status("Succeeded")
            }
            Trouble::Interrupt | Trouble::NoCancel => {
                service.cancel.cancel();
                status("InProgress")
            }
            _ => status("InProgress"),
        };
    }
    if path == job {
        kept.looks += usize::from(kept.state == "Succeeded");
        // The client's own look for its progress lines may be the first one; whoever asks again and again gets an answer.
        if service.trouble == Trouble::LastRead && (1..4).contains(&kept.looks) {
            return StatusCode::BAD_REQUEST.into_response();
        }
        let drill = match (kept.state, kept.cleaned) {
            (_, true) => Json::from("Completed"),
            ("Succeeded", _) => Json::from("WaitingForCompletion"),
            _ => Json::Null,
        };
        return Body(json!({ "id": job, "name": "job-1", "properties": {
            "friendlyName": "Test failover", "targetObjectName": "shop", "state": kept.state,
            "customDetails": { "instanceType": "TestFailoverJobDetails", "testFailoverStatus": drill } } }))
        .into_response();
    }
    if path.ends_with("/replicationRecoveryPlans/shop") {
        let scenario = match kept.state {
            "" => Json::Null,
            _ => json!({ "scenarioName": "TestFailover", "jobId": job }),
        };
        return Body(json!({ "properties": { "currentScenario": scenario } })).into_response();
    }
    StatusCode::NOT_FOUND.into_response()
}

#[tokio::test]
async fn a_drill_whose_end_is_not_seen_is_taken_back_or_cleaned_up() {
    for (trouble, ends_with) in [
        (Trouble::Interrupt, "cancel"),
        (Trouble::StartUnanswered, "cancel"),
        (Trouble::Slow, "cancel"),
        (Trouble::LastRead, "testFailoverCleanup"),
        (Trouble::InterruptAtTheEnd, "testFailoverCleanup"),
    ] {
        let service = Service::start(trouble).await;
        let config = match trouble {
            Trouble::Slow => Object::new().with("timeout", "1s"),
            _ => Object::new(),
        };
        let error = service.invoke(config).await;
        assert!(service.is_clean(), "{trouble:?}: {error}");
        assert_eq!(
            service.asked(),
            ["testFailover", ends_with],
            "{trouble:?}: {error}"
        );
        assert!(
            error.contains("none of its test VMs is left"),
            "{trouble:?}: {error}"
        );
    }
}

#[tokio::test]
async fn test_vms_that_are_to_stay_are_left_and_it_is_said_how_to_remove_them() {
    let service = Service::start(Trouble::Interrupt).await;
    let error = service.invoke(Object::new().with(CLEAN, false)).await;
    assert_eq!(service.asked(), ["testFailover"]);
    for part in [
        "clean_up = false",
        "siterecovery job cancel job-1",
        "siterecovery test-failover cleanup --plan shop",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn what_can_not_be_taken_back_in_time_is_handed_over_with_the_commands() {
    let service = Service::start(Trouble::NoCancel).await;
    service.kept.lock().unwrap().state = "InProgress";
    let cx = service.context();
    let remote = Remote::new(&cx, "test failover", FIELDS, PATIENCE).unwrap();
    let subject = arm_model::ArmId::parse(&plan()).unwrap();
    let drill = Drill {
        subject: &subject,
        job: &format!("{VAULT}/replicationJobs/job-1"),
        clean_up: Some(&json!({})),
        patience: std::time::Duration::from_secs(1),
    };
    let (progress, _told) = Progress::channel(64);
    let before = Diagnostics::error("Starting failed", "It took too long.");
    let error = drill.end(&remote, before, &progress).await.to_string();
    assert!(!service.is_clean());
    for part in [
        "It took too long.",
        "may still run",
        "siterecovery job cancel job-1",
        "siterecovery test-failover cleanup --plan shop",
    ] {
        assert!(error.contains(part), "{error}");
    }
}
