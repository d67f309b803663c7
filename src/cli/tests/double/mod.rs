//! A small orchestrator: one vault with a protected VM, a host and a plan. Actions are accepted and written down; the job
//! shows the states of a script, the last one again and again.

use std::collections::VecDeque;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::sync::watch;

pub const VAULT: &str =
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.RecoveryServices/vaults/v";
pub const ITEM: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.RecoveryServices/vaults/v/replicationFabrics/f/\
                        replicationProtectionContainers/c/replicationProtectedItems/i";

/// A request that was to change something.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// Below the vault.
    pub path: String,
    /// `Null` without one.
    pub body: Value,
}

#[derive(Clone)]
pub struct Double {
    address: String,
    world: Arc<Mutex<World>>,
    looks: watch::Sender<usize>,
}

struct World {
    item: Value,
    plan: Value,
    job: VecDeque<Value>,
    refuse: Option<(u16, Value)>,
    asked: Vec<Asked>,
}

// === impl Double ===

impl Double {
    /// A vault whose job shows these states.
    pub async fn start(job: impl IntoIterator<Item = Value>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let double = Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            world: Arc::new(Mutex::new(World {
                item: item(),
                plan: json!({ "id": format!("{VAULT}/replicationRecoveryPlans/shop"), "name": "shop",
                    "properties": { "friendlyName": "shop" } }),
                job: job.into_iter().collect(),
                refuse: None,
                asked: Vec::new(),
            })),
            looks: watch::Sender::new(0),
        };
        let router = Router::new().fallback(answer).with_state(double.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        double
    }

    /// Changes properties of the protected VM.
    pub fn item(&self, properties: &Value) {
        let mut world = self.world.lock().unwrap();
        let at = world.item["properties"].as_object_mut().unwrap();
        at.extend(properties.as_object().unwrap().clone());
    }

    /// Every action is refused from now on.
    pub fn refuse(&self, status: u16, error: Value) {
        self.world.lock().unwrap().refuse = Some((status, error));
    }

    /// What was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.world.lock().unwrap().asked.clone()
    }

    /// Waits until the job was looked at so often.
    pub async fn looked(&self, times: usize) {
        let mut looks = self.looks.subscribe();
        looks.wait_for(|seen| *seen >= times).await.unwrap();
    }

    /// Looks at the job so far.
    pub fn looks(&self) -> usize {
        *self.looks.borrow()
    }

    /// Starts `siterecovery failover …` without a terminal.
    pub fn spawn(&self, arguments: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_siterecovery"))
            .env_clear()
            .args(["--endpoint", &self.address, "--tenant-id", "t"])
            .args(["--client-id", "c", "--client-secret", "x"])
            .args(["--subscription-id", "s", "failover"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    /// Runs `siterecovery failover …` to its end.
    pub async fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.spawn(arguments).wait_with_output().await.unwrap())
    }
}

/// What a command left behind.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

// === impl Ran ===

impl Ran {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn item() -> Value {
    json!({ "id": ITEM, "name": "i", "properties": {
        "friendlyName": "web01", "protectionState": "Protected", "activeLocation": "Primary",
        "allowedOperations": ["PlannedFailover", "UnplannedFailover"],
        "currentScenario": { "scenarioName": "None", "jobId": format!("{VAULT}/replicationJobs/None") },
    } })
}

fn point(name: &str, time: &str, kind: &str) -> Value {
    json!({ "id": format!("{ITEM}/recoveryPoints/{name}"), "name": name,
        "properties": { "recoveryPointTime": time, "recoveryPointType": kind } })
}

/// A job in a state, with two tasks.
pub fn job(state: &str, first: &str, second: &str) -> Value {
    json!({ "id": format!("{VAULT}/replicationJobs/job-1"), "name": "job-1", "properties": {
        "scenarioName": "PlannedFailover", "friendlyName": "Planned failover", "state": state,
        "targetObjectName": "web01", "targetInstanceType": "ProtectionEntity", "errors": [],
        "tasks": [
            { "friendlyName": "Shutting down the virtual machine", "state": first, "errors": [] },
            { "friendlyName": "Starting failover", "state": second, "errors": [] },
        ],
    } })
}

/// The usual course of a job.
pub fn succeeds() -> [Value; 2] {
    [
        job("InProgress", "InProgress", "NotStarted"),
        job("Succeeded", "Succeeded", "Succeeded"),
    ]
}

async fn answer(State(double): State<Double>, method: Method, uri: Uri, body: Bytes) -> Response {
    let path = uri.path();
    if path.ends_with("/oauth2/v2.0/token") {
        return Json(json!({ "access_token": "token", "expires_in": 3600 })).into_response();
    }
    let below = path.strip_prefix(VAULT).unwrap_or(path).to_owned();
    if method != Method::GET {
        let mut world = double.world.lock().unwrap();
        world.asked.push(Asked {
            path: below,
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        });
        if let Some((status, error)) = &world.refuse {
            let status = StatusCode::from_u16(*status).unwrap();
            return (status, Json(json!({ "error": error }))).into_response();
        }
        let operation = format!(
            "{}{VAULT}/operationresults/job-1?api-version=1",
            double.address
        );
        return (StatusCode::ACCEPTED, [(header::LOCATION, operation)]).into_response();
    }
    let list = |entries: Value| Json(json!({ "value": entries })).into_response();
    let mut world = double.world.lock().unwrap();
    if below.ends_with("/recoveryPoints") {
        return list(json!([
            point("p2", "2031-03-04T05:05:00Z", "ApplicationConsistent"),
            point("p1", "2031-03-04T05:00:00Z", "CrashConsistent"),
            point("p3", "2031-03-04T05:10:00Z", "CrashConsistent"),
        ]));
    }
    match below.as_str() {
        "/subscriptions/s/providers/Microsoft.RecoveryServices/vaults" => {
            list(json!([{ "id": VAULT, "name": "v" }]))
        }
        "/replicationProtectedItems" => list(json!([world.item])),
        "/replicationRecoveryPlans" => list(json!([world.plan])),
        "/replicationRecoveryServicesProviders" => list(json!([{
            "id": format!("{VAULT}/hosts/h2"), "name": "h2", "properties": { "friendlyName": "hv2" } }])),
        "/replicationJobs/job-1" => {
            double.looks.send_modify(|looks| *looks += 1);
            let now = world.job.pop_front().unwrap();
            if world.job.is_empty() {
                world.job.push_back(now.clone());
            }
            Json(now).into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}
