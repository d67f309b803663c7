//! What the actions ask for, what they tell, and what they refuse; the service is a double that writes requests down.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use arm_client::{Client, ClientConfig, Secret};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Json as Body, Router};
use serde_json::json;
use tf_provider::{Cancel, ClientCapabilities, Severity};

use super::*;

const VAULT: &str =
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.RecoveryServices/vaults/v";

fn item() -> String {
    format!(
        "{VAULT}/replicationFabrics/f/replicationProtectionContainers/c/replicationProtectedItems/i"
    )
}

fn plan() -> String {
    format!("{VAULT}/replicationRecoveryPlans/shop")
}

/// Accepts every action and shows its job in these states, the last one again and again.
#[derive(Clone)]
struct Service {
    address: String,
    states: Arc<Mutex<VecDeque<&'static str>>>,
    asked: Arc<Mutex<Vec<(String, Json)>>>,
    /// Ends the action's work when the job is looked at.
    interrupt: Option<Cancel>,
}

impl Service {
    async fn start(states: &[&'static str], interrupt: Option<Cancel>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            states: Arc::new(Mutex::new(states.iter().copied().collect())),
            asked: Arc::default(),
            interrupt,
        };
        let router = Router::new().fallback(answer).with_state(service.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        service
    }

    fn context(&self) -> Context<Session> {
        let secret = Secret::new("secret");
        let config = ClientConfig::new(&self.address, "tenant", "client", secret);
        let session = Session {
            api: Client::new(config).unwrap(),
            subscription_id: "s".to_owned(),
            engine_path: PathBuf::new(),
            ssh: crate::session::SshSecrets::default(),
        };
        Context::new(
            Some(Arc::new(session)),
            self.interrupt.clone().unwrap_or_default(),
            ClientCapabilities::default(),
        )
    }

    /// What an action did: its outcome and the lines it told.
    async fn invoke(
        &self,
        action: FailoverAction,
        config: &Object,
    ) -> (Result<(), Diagnostics>, Vec<String>) {
        let (progress, mut told) = Progress::channel(16);
        let outcome = action.invoke(&self.context(), config, &progress).await;
        drop(progress);
        let mut lines = Vec::new();
        while let Some(line) = told.recv().await {
            lines.push(line);
        }
        (outcome, lines)
    }

    fn asked(&self) -> Vec<(String, Json)> {
        self.asked.lock().unwrap().clone()
    }
}

async fn answer(State(service): State<Service>, method: Method, uri: Uri, body: Bytes) -> Response {
    let path = uri.path();
    let now = || {
        let mut states = service.states.lock().unwrap();
        let now = states.pop_front().unwrap();
        if states.is_empty() {
            states.push_back(now);
        }
        now
    };
    if path.ends_with("/oauth2/v2.0/token") {
        return Body(json!({ "access_token": "token", "expires_in": 3600 })).into_response();
    }
    if method == Method::POST {
        let below = path.strip_prefix(VAULT).unwrap_or(path).to_owned();
        let body = serde_json::from_slice(&body).unwrap_or(Json::Null);
        service.asked.lock().unwrap().push((below, body));
        let at = |kind: &str| format!("{}{VAULT}/{kind}/job-1?api-version=1", service.address);
        let headers = [
            ("Location", at("operationresults")),
            ("Azure-AsyncOperation", at("replicationOperationStatus")),
            ("Retry-After", "0".to_owned()),
        ];
        return (StatusCode::ACCEPTED, headers).into_response();
    }
    if path.ends_with("/replicationOperationStatus/job-1") {
        let state = now();
        return Body(json!({ "status": state, "error": { "code": "HostUnreachable", "message": "hv1 did not answer.",
            "details": [{ "code": "1", "message": "m", "recommendedAction": "Fail over unplanned." }] } }))
        .into_response();
    }
    if path.ends_with("/replicationJobs/job-1/drillReport") {
        return Body(json!({ "report": { "verdict": "Failed" }, "sha256": "0" })).into_response();
    }
    if path.ends_with("/replicationJobs/job-1") {
        if let Some(interrupt) = &service.interrupt {
            interrupt.cancel();
        }
        let state = *service.states.lock().unwrap().front().unwrap();
        return Body(json!({ "id": format!("{VAULT}/replicationJobs/job-1"), "name": "job-1", "properties": {
            "friendlyName": "Planned failover", "targetObjectName": "web01", "state": state,
            "tasks": [{ "friendlyName": "Shutting down", "taskId": "WaitForUserInputTask", "state": state }, { "friendlyName": "Starting", "state": "NotStarted" }],
            "customDetails": { "instanceType": "FailoverJobDetails", "protectedItemDetails": [{
                "friendlyName": "web01", "testVmFriendlyName": "web01-dr", "state": "Running", "recoveryHost": "hv2",
                "recoveryPointTime": "2031-03-04T05:06:07Z" }] },
        } }))
        .into_response();
    }
    StatusCode::NOT_FOUND.into_response()
}

fn problems(action: FailoverAction, config: &Object) -> Vec<String> {
    let mut report = Diagnostics::new();
    action.check(config, &mut report);
    report
        .iter()
        .filter(|d| d.severity == Severity::Error)
        .map(|d| d.attribute.to_string())
        .collect()
}

#[tokio::test]
async fn a_planned_failover_tells_its_tasks_and_where_the_vm_runs() {
    let service = Service::start(&["InProgress", "Succeeded"], None).await;
    let config = Object::new().with(VM, item());
    let (outcome, told) = service.invoke(FailoverAction::Planned, &config).await;
    outcome.unwrap();
    assert_eq!(
        told,
        [
            "job job-1",
            "web01: Shutting down: InProgress",
            "web01: Shutting down: Succeeded",
            "VM web01-dr is Running, host hv2, point of 2031-03-04T05:06:07Z",
        ]
    );
    let path = format!("{}/plannedFailover", item().strip_prefix(VAULT).unwrap());
    let body = json!({ "properties": { "failoverDirection": "PrimaryToRecovery",
        "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure" } } });
    assert_eq!(service.asked(), [(path, body)]);
}

#[tokio::test]
async fn a_failed_failover_tells_why_and_what_to_do() {
    let service = Service::start(&["Failed"], None).await;
    let config = Object::new().with(PLAN, plan());
    let (outcome, _) = service.invoke(FailoverAction::Unplanned, &config).await;
    let error = outcome.unwrap_err().to_string();
    for part in [
        "unplanned failover",
        "Hv1 did not answer.",
        "Fail over unplanned.",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
    let body = json!({ "properties": { "failoverDirection": "PrimaryToRecovery", "sourceSiteOperations": "NotRequired",
        "providerSpecificDetails": [{ "instanceType": "HyperVReplicaAzure", "recoveryPointType": "Latest" }] } });
    let path = "/replicationRecoveryPlans/shop/unplannedFailover".to_owned();
    assert_eq!(service.asked(), [(path, body)]);
}

#[tokio::test]
async fn an_interrupt_ends_the_waiting_and_names_the_job_that_goes_on() {
    let service = Service::start(&["InProgress"], Some(Cancel::new())).await;
    let config = Object::new().with(VM, item());
    let (outcome, _) = service.invoke(FailoverAction::Commit, &config).await;
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("Job job-1 goes on."), "{error}");
    let asked = service.asked();
    assert_eq!(asked.len(), 1, "nothing was cancelled");
    assert_eq!(asked[0].1, Json::Null, "a commit has no body");
}

#[tokio::test]
async fn a_failback_says_go_when_the_data_is_there_unless_it_is_told_not_to() {
    let config = Object::new().with(VM, item());
    let service = Service::start(&["InProgress", "Suspended", "Succeeded"], None).await;
    let (outcome, told) = service.invoke(FailoverAction::Failback, &config).await;
    outcome.unwrap();
    assert!(
        told.contains(&"the data is there: completing the failback".to_owned()),
        "{told:?}"
    );
    let asked: Vec<String> = service.asked().into_iter().map(|(path, _)| path).collect();
    assert_eq!(asked[1], "/replicationJobs/job-1/resume");
    assert_eq!(asked.len(), 2, "once: {asked:?}");

    let service = Service::start(&["Suspended"], None).await;
    let config = config.with(COMPLETE, false);
    let (outcome, told) = service.invoke(FailoverAction::Failback, &config).await;
    outcome.unwrap();
    assert_eq!(service.asked().len(), 1, "nobody said go");
    let last = told.last().unwrap();
    assert!(
        last.contains("siterecovery failover complete web01"),
        "{last}"
    );
}

#[tokio::test]
async fn a_report_is_written_of_a_job_that_failed_too_and_not_begun_without_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("drill.json");
    let config = Object::new()
        .with(VM, item())
        .with("report_path", file.display().to_string());
    let service = Service::start(&["Failed"], None).await;
    let (outcome, told) = service.invoke(FailoverAction::Unplanned, &config).await;
    assert!(
        outcome
            .unwrap_err()
            .to_string()
            .contains("Hv1 did not answer.")
    );
    assert_eq!(told.last(), Some(&format!("report: {}", file.display())));
    let report: Json = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(report["report"]["verdict"], "Failed");

    let config = config.with(
        "report_path",
        folder.path().join("no/drill.json").display().to_string(),
    );
    let (outcome, _) = service.invoke(FailoverAction::Unplanned, &config).await;
    let error = outcome.unwrap_err();
    assert_eq!(
        error.iter().next().unwrap().attribute.to_string(),
        "report_path"
    );
    assert_eq!(service.asked().len(), 1, "nothing was begun");
}

#[test]
fn parts_and_common_points_of_a_plan_reach_the_request() {
    let config = Object::new()
        .with(PLAN, plan())
        .with(GROUPS, tf_provider::Value::list([2_u32]))
        .with(MEMBERS, tf_provider::Value::list([item()]))
        .with(COMMON_POINT, USE_GROUP_POINT);
    let body = FailoverAction::Unplanned.request(&config).unwrap().unwrap();
    let properties = &body["properties"];
    assert_eq!(properties["groupIds"], json!([2]));
    assert_eq!(properties["protectedItemIds"], json!([item()]));
    let details = &properties["providerSpecificDetails"][0];
    assert_eq!(details["multiVmSyncPointOption"], USE_GROUP_POINT);
    let back = FailoverAction::Failback.request(&config).unwrap().unwrap();
    assert_eq!(back["properties"]["failoverDirection"], "RecoveryToPrimary");
    assert_eq!(back["properties"]["groupIds"], json!([2]));
    let again = FailoverAction::ReverseReplicate.request(&config).unwrap();
    assert_eq!(again, None, "a plan's reProtect has no body");
}

#[test]
fn a_point_and_a_shutdown_reach_the_request() {
    let point = format!("{}/recoveryPoints/p", item());
    let config = Object::new()
        .with(VM, item())
        .with(POINT, point.as_str())
        .with(SHUT_DOWN, true);
    let body = FailoverAction::Unplanned.request(&config).unwrap().unwrap();
    assert_eq!(
        body,
        json!({ "properties": { "failoverDirection": "PrimaryToRecovery", "sourceSiteOperations": "Required",
            "providerSpecificDetails": { "instanceType": "HyperVReplicaAzure", "recoveryPointId": point } } })
    );
    let body = FailoverAction::ChangePoint
        .request(&config)
        .unwrap()
        .unwrap();
    assert_eq!(body["properties"]["recoveryPointId"], point.as_str());
}

#[test]
fn an_action_is_of_a_vm_or_of_a_plan_and_a_point_is_of_its_vm() {
    let (none, vm) = (Object::new(), Object::new().with(VM, item()));
    let both = vm.clone().with(PLAN, plan());
    for action in [
        FailoverAction::Planned,
        FailoverAction::Unplanned,
        FailoverAction::Commit,
        FailoverAction::Failback,
        FailoverAction::ReverseReplicate,
    ] {
        assert_eq!(problems(action, &none), [PLAN], "{action:?}");
        assert_eq!(problems(action, &both), [VM], "{action:?}");
        assert!(problems(action, &vm).is_empty(), "{action:?}");
    }
    let of_plan = Object::new()
        .with(PLAN, plan())
        .with(POINT, format!("{}/recoveryPoints/p", item()));
    assert_eq!(problems(FailoverAction::Unplanned, &of_plan), [POINT]);
    let kind = vm.clone().with(POINT_TYPE, LATEST);
    assert_eq!(problems(FailoverAction::Unplanned, &kind), [POINT_TYPE]);
    let common = vm.clone().with(COMMON_POINT, USE_OWN_POINT);
    assert_eq!(problems(FailoverAction::Unplanned, &common), [COMMON_POINT]);
    let down = vm
        .clone()
        .with(DATA, FOR_SYNCHRONIZATION)
        .with(COMPLETE, false);
    assert_eq!(problems(FailoverAction::Failback, &down), [COMPLETE]);
    let other = vm.with(POINT, format!("{}x/recoveryPoints/p", item()));
    for action in [FailoverAction::Unplanned, FailoverAction::ChangePoint] {
        assert_eq!(problems(action, &other), [POINT], "{action:?}");
    }
}

#[tokio::test]
async fn a_failback_to_another_host_names_it_and_has_the_vm_made_there() {
    let host = format!("{VAULT}/replicationFabrics/f/replicationRecoveryServicesProviders/hv3");
    let service = Service::start(&["Succeeded"], None).await;
    let config = Object::new().with(VM, item()).with(HOST, host.as_str());
    let (outcome, _) = service.invoke(FailoverAction::Failback, &config).await;
    outcome.unwrap();
    let details = &service.asked()[0].1["properties"]["providerSpecificDetails"];
    assert_eq!(details["providerIdForAlternateRecovery"], host);
    assert_eq!(details["recoveryVmCreationOption"], CREATE_VM_IF_NOT_FOUND);

    let of_plan = Object::new().with(PLAN, plan()).with(HOST, host);
    assert_eq!(problems(FailoverAction::Failback, &of_plan), [HOST]);
    let of_plan = Object::new().with(PLAN, plan()).with(CREATE, true);
    let service = Service::start(&["Succeeded"], None).await;
    let (outcome, _) = service.invoke(FailoverAction::Failback, &of_plan).await;
    outcome.unwrap();
    let details = &service.asked()[0].1["properties"]["providerSpecificDetails"][0];
    assert_eq!(details["recoveryVmCreationOption"], CREATE_VM_IF_NOT_FOUND);
}
