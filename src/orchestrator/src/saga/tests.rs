//! Every workflow: each node repeated, each node failed in turn, the process killed after each stored step.

use std::collections::BTreeMap;
use std::sync::Arc;

use arm_model::job::{JobDetails, JobState};
use arm_model::{ArmId, VaultId};
use engine_protocol::Authority;
use engine_protocol::v1::{self, recovered_vm_status, replication_status};
use protection::{DrillState, Event, Generation, Observed};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::drill::DrillInput;
use super::runner::{Step, Trial, step_with};
use super::start::{NewJob, start};
use super::{
    disable_protection, drill, drill_cleanup, enable_protection, initial_replication, state,
};
use crate::app::{App, Parts, Patience};
use crate::auth::jwt::SigningKey;
use crate::auth::token::TokenIssuer;
use crate::gateway::desired;
use crate::gateway::reports::Intake;
use crate::store::records::{
    self, EngineRecord, Item, JobRecord, Mapping, Plan, Policy, Recovered,
};
use crate::store::sqlite::SqliteStore;
use crate::store::{Expect, Query, ResourceStore as _};

const ENGINE: &str = "9d3c2f10-77aa-4c55-8a10-6b2f1d0e9a77";
/// A job that takes more steps than this doesn't end.
const MANY: usize = 200;

/// A store with a vault, a site, a host and a policy; apps come and go.
struct Bench {
    _folder: TempDir,
    store: SqliteStore,
    vault: VaultId,
    token_key: Vec<u8>,
    ca: (String, String),
    points: BTreeMap<String, String>,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let store = SqliteStore::open(&folder.path().join("metadata.db")).expect("store");
        let authority = Authority::generate("test", time::OffsetDateTime::now_utc()).expect("CA");
        let bench = Self {
            _folder: folder,
            store,
            vault: VaultId::new("s", "g", "v"),
            token_key: SigningKey::generate().expect("key"),
            ca: (
                authority.certificate_pem().to_owned(),
                authority.key_pem().to_owned(),
            ),
            points: BTreeMap::new(),
        };
        let fabric = bench.vault.fabric("f");
        let policy = bench.vault.policy("p");
        let engine = EngineRecord {
            engine_id: ENGINE.to_owned(),
            provider_id: fabric.provider(ENGINE).to_string(),
            fabric_id: fabric.to_string(),
            site_id: "site".to_owned(),
            report: String::new(),
            last_seen_unix_ms: 0,
        };
        let policy_record = Policy {
            id: policy.to_string(),
            details: arm_model::policy::PolicyDetails::default(),
        };
        let mapping = fabric.container("c").mapping("m");
        let mapping_record = Mapping {
            id: mapping.to_string(),
            policy_id: policy.to_string(),
        };
        let changes = vec![
            records::put(records::engine_key(ENGINE), &engine, Expect::Absent).expect("record"),
            records::put(policy.key(), &policy_record, Expect::Absent).expect("record"),
            records::put(mapping.key(), &mapping_record, Expect::Absent).expect("record"),
        ];
        bench.store.apply(changes).await.expect("stored");
        bench
    }

    /// A fresh process on the same store, and the engine's report to it.
    async fn app(&mut self) -> Arc<App> {
        let authority = Authority::from_pem(self.ca.0.clone(), self.ca.1.clone()).expect("CA");
        let key = SigningKey::from_pkcs8(&self.token_key).expect("key");
        let (app, _receiver) = App::new(Parts {
            store: Arc::new(self.store.clone()),
            authority,
            tokens: TokenIssuer::new(key, "https://localhost", "t"),
            public_url: "https://localhost".to_owned(),
            gateway: "localhost:1".to_owned(),
            regions: Vec::new(),
            tenant_id: "t".to_owned(),
            patience: Patience::default(),
        });
        self.report(&app).await;
        app
    }

    /// The engine does everything at once and reports it.
    async fn report(&mut self, app: &App) {
        let wanted = desired::refresh(app, ENGINE).await.expect("desired state");
        let replications = wanted.replications.iter().map(|one| {
            let state = if one.phase() == v1::replication::Phase::Retired {
                replication_status::State::Retired
            } else {
                replication_status::State::Protected
            };
            let point = self
                .points
                .entry(one.item_id.clone())
                .or_insert_with(|| uuid::Uuid::new_v4().to_string());
            v1::ReplicationStatus {
                item_id: one.item_id.clone(),
                generation: one.generation,
                state: state.into(),
                recovery_points: vec![v1::RecoveryPoint {
                    id: point.clone(),
                    time_unix_ms: 1_000,
                    ..Default::default()
                }],
                ..Default::default()
            }
        });
        let recovered_vms = wanted.recovered_vms.iter().map(|vm| {
            let state = if vm.power() == v1::recovered_vm::Power::Running {
                recovered_vm_status::State::Booted
            } else {
                recovered_vm_status::State::Off
            };
            v1::RecoveredVmStatus {
                id: vm.id.clone(),
                state: state.into(),
                ..Default::default()
            }
        });
        let vms = ["vm-a", "vm-b"].map(|id| v1::VirtualMachine {
            id: id.to_owned(),
            name: id.to_owned(),
            ..Default::default()
        });
        let report = v1::EngineReport {
            observed_generation: wanted.generation,
            host: Some(v1::Host {
                name: "hv1".to_owned(),
                recovery_role: true,
                ..Default::default()
            }),
            virtual_machines: vms.to_vec(),
            replications: replications.collect(),
            recovered_vms: recovered_vms.collect(),
        };
        Intake::new(ENGINE).take(app, report).await.expect("report");
    }

    fn item_id(&self, name: &str) -> ArmId {
        self.vault
            .fabric("f")
            .container("c")
            .protected_item(name)
            .into()
    }

    fn item(&self, name: &str) -> Item {
        Item {
            id: self.item_id(name).to_string(),
            machine: protection::Item::new(Generation(0)),
            engine_id: ENGINE.to_owned(),
            vm_id: name.to_owned(),
            vm_name: name.to_owned(),
            disk_ids: vec!["disk".to_owned()],
            policy_id: self.vault.policy("p").to_string(),
            storage_id:
                "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/st"
                    .to_owned(),
            folder: "/srv/store".to_owned(),
            vault_key: "v-00000000".to_owned(),
            request: arm_model::protected_item::EnableDetails::default(),
            last_test_failover: None,
            drill_job: None,
            correlation_id: String::new(),
        }
    }

    /// An item that is protected already.
    async fn protected(&self, name: &str) {
        let mut item = self.item(name);
        let report = Event::Report {
            generation: Generation(0),
            observed: Observed::Protected,
        };
        item.machine = protection::step(item.machine, report).expect("report").0;
        self.store
            .apply(vec![
                records::put(self.item_id(name).key(), &item, Expect::Any).expect("record"),
            ])
            .await
            .expect("stored");
    }

    /// Everything but jobs, and without what only grows.
    async fn remains(&self) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::new();
        for kind in [
            "item",
            "plan",
            "policy",
            "mapping",
            "recovered",
            "lock",
            "fabric",
        ] {
            for document in self.store.list(Query::below(kind, "")).await.expect("list") {
                all.insert(document.key, document.body);
            }
        }
        all
    }
}

/// A workflow to try: how its world is prepared and how its job is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Put,
    Remove,
    Enable,
    Completion,
    Disable,
    ItemDrill,
    PlanDrill,
    Cleanup,
}

const ALL: [Case; 8] = [
    Case::Put,
    Case::Remove,
    Case::Enable,
    Case::Completion,
    Case::Disable,
    Case::ItemDrill,
    Case::PlanDrill,
    Case::Cleanup,
];

impl Case {
    async fn prepare(self, bench: &mut Bench) {
        match self {
            Self::Put | Self::Remove | Self::Enable => {}
            Self::Completion | Self::Disable | Self::ItemDrill => bench.protected("vm-a").await,
            Self::PlanDrill | Self::Cleanup => {
                bench.protected("vm-a").await;
                bench.protected("vm-b").await;
                let plan = bench.vault.plan("plan");
                let record = Plan {
                    id: plan.to_string(),
                    fabric_id: bench.vault.fabric("f").to_string(),
                    deployment_model: String::new(),
                    groups: Vec::new(),
                    last_test_failover: None,
                    drill_job: None,
                };
                bench
                    .store
                    .apply(vec![
                        records::put(plan.key(), &record, Expect::Any).expect("record"),
                    ])
                    .await
                    .expect("stored");
            }
        }
        if self == Self::Cleanup {
            let key = Self::PlanDrill.begin(bench).await;
            assert_eq!(
                run(bench, &key, Trial::default(), false).await,
                JobState::Succeeded
            );
        }
    }

    async fn begin(self, bench: &mut Bench) -> String {
        let app = bench.app().await;
        let vault = bench.vault.clone();
        let plan: ArmId = vault.plan("plan").into();
        let drill_input = |plan: Option<String>, groups: Vec<Vec<String>>| DrillInput {
            plan,
            groups,
            point: None,
            application_consistent: false,
            isolated: true,
            requested_unix_ms: 2_000,
        };
        let (a, b) = (bench.item_id("vm-a"), bench.item_id("vm-b"));
        let text = |id: &ArmId| id.as_str().to_owned();
        let policy: ArmId = vault.policy("new").into();
        let one = |name: &str| {
            vec![
                state::fresh_task("check", "check"),
                state::fresh_task(name, name),
            ]
        };
        let (resource, workflow, input, tasks) = match self {
            Self::Put => {
                let body = Policy {
                    id: text(&policy),
                    details: arm_model::policy::PolicyDetails::default(),
                };
                (
                    policy.clone(),
                    "put",
                    json!({ "key": policy.key(), "kind": "policy", "body": body, "before": null }),
                    one("put"),
                )
            }
            Self::Remove => {
                let mapping: ArmId = vault.fabric("f").container("c").mapping("m").into();
                let body = bench
                    .store
                    .get(&mapping.key())
                    .await
                    .expect("get")
                    .expect("mapping")
                    .body;
                (
                    mapping.clone(),
                    "remove",
                    json!({ "documents": [{ "key": mapping.key(), "kind": "mapping", "body": body }], "engines": [] }),
                    one("remove"),
                )
            }
            Self::Enable => (
                a.clone(),
                "enableProtection",
                json!({ "item": bench.item("vm-a") }),
                enable_protection::tasks(),
            ),
            Self::Completion => (
                a.clone(),
                "initialReplication",
                json!({ "item": a, "generation": 0 }),
                initial_replication::tasks(),
            ),
            Self::Disable => (
                a.clone(),
                "disableProtection",
                json!({ "item": a, "deleteReplica": true }),
                disable_protection::tasks(),
            ),
            Self::ItemDrill => {
                let input = drill_input(None, vec![vec![text(&a)]]);
                (
                    a.clone(),
                    "testFailover",
                    json!(input),
                    drill::tasks(&input.groups, false),
                )
            }
            Self::PlanDrill => {
                let input = drill_input(Some(text(&plan)), vec![vec![text(&b)], vec![text(&a)]]);
                (
                    plan.clone(),
                    "testFailover",
                    json!(input),
                    drill::tasks(&input.groups, true),
                )
            }
            Self::Cleanup => (
                plan.clone(),
                "testFailoverCleanup",
                json!({ "plan": plan, "items": [a, b], "comments": "done" }),
                drill_cleanup::tasks(),
            ),
        };
        let job = start(
            &app,
            NewJob {
                vault: &vault,
                resource: &resource,
                removes: false,
                scenario: "Trial",
                friendly_name: "Trial",
                target_name: "trial",
                target_type: "Other",
                workflow,
                input,
                tasks,
                details: JobDetails::default(),
                locks: vec![resource.key()],
                request_id: "",
                changes: Vec::new(),
                name: None,
            },
        )
        .await
        .expect("job");
        job.key()
    }

    /// What must hold after success.
    async fn check(self, bench: &Bench) {
        let store = &bench.store;
        let item = records::get::<Item>(store, &bench.item_id("vm-a").key())
            .await
            .expect("get")
            .map(|item| item.record);
        let vms = records::list::<Recovered>(store, "~recovered/")
            .await
            .expect("list")
            .len();
        match self {
            Self::Put => assert!(
                store
                    .get(&bench.vault.policy("new").key())
                    .await
                    .expect("get")
                    .is_some()
            ),
            Self::Remove => assert!(
                records::list::<Mapping>(store, "")
                    .await
                    .expect("list")
                    .is_empty()
            ),
            Self::Enable => assert!(item.expect("item").machine.copied_once),
            Self::Completion => assert!(item.is_some()),
            Self::Disable => assert!(item.is_none()),
            Self::ItemDrill | Self::PlanDrill => {
                assert_eq!(
                    item.expect("item").machine.drill,
                    DrillState::WaitingForCleanup
                );
                assert_eq!(
                    vms,
                    if self == Self::PlanDrill { 2 } else { 1 },
                    "one VM each, however often nodes ran"
                );
            }
            Self::Cleanup => {
                let item = item.expect("item");
                assert_eq!(
                    (item.machine.drill, item.drill_job, vms),
                    (DrillState::None, None, 0)
                );
                let plan = records::get::<Plan>(store, &bench.vault.plan("plan").key())
                    .await
                    .expect("get")
                    .expect("plan");
                assert_eq!(plan.record.drill_job, None);
            }
        }
        assert!(
            !records::any::<records::Lock>(store, "")
                .await
                .expect("locks"),
            "locks are given back"
        );
    }

    fn tasks(self) -> usize {
        match self {
            Self::Put | Self::Remove | Self::Completion => 2,
            Self::Enable | Self::PlanDrill => 5,
            Self::Disable | Self::Cleanup => 3,
            Self::ItemDrill => 4,
        }
    }
}

/// Runs a job to its end. With `killed`, each step is made by a fresh process.
async fn run(bench: &mut Bench, key: &str, trial: Trial, killed: bool) -> JobState {
    let mut app = bench.app().await;
    for _ in 0..MANY {
        if killed {
            app = bench.app().await;
        }
        match step_with(&app, key, trial).await {
            Ok(Step::Ended) => {
                let job = records::get::<JobRecord>(&bench.store, key)
                    .await
                    .expect("get")
                    .expect("job");
                return job.record.properties.state;
            }
            Ok(_) => bench.report(&app).await,
            Err(error) if error.is_conflict() => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the job doesn't end");
}

#[tokio::test]
async fn every_workflow_goes_through_with_each_node_run_twice() {
    for case in ALL {
        let mut bench = Bench::new().await;
        case.prepare(&mut bench).await;
        let key = case.begin(&mut bench).await;
        let state = run(
            &mut bench,
            &key,
            Trial {
                repeat: true,
                fail_after: None,
            },
            false,
        )
        .await;
        assert_eq!(state, JobState::Succeeded, "{case:?}");
        case.check(&bench).await;
    }
}

#[tokio::test]
async fn every_workflow_goes_through_when_killed_after_each_step() {
    for case in ALL {
        let mut bench = Bench::new().await;
        case.prepare(&mut bench).await;
        let key = case.begin(&mut bench).await;
        assert_eq!(
            run(&mut bench, &key, Trial::default(), true).await,
            JobState::Succeeded,
            "{case:?}"
        );
        case.check(&bench).await;
    }
}

#[tokio::test]
async fn a_failure_of_any_node_leaves_nothing_even_when_undone_twice_or_killed() {
    // Switching off and cleaning up can't be taken back: they can be repeated, which the next test shows.
    for case in [
        Case::Put,
        Case::Remove,
        Case::Enable,
        Case::Completion,
        Case::ItemDrill,
        Case::PlanDrill,
    ] {
        for node in 0..case.tasks() {
            for (repeat, killed) in [(false, false), (true, false), (false, true)] {
                let mut bench = Bench::new().await;
                case.prepare(&mut bench).await;
                let before = bench.remains().await;
                let key = case.begin(&mut bench).await;
                let state = run(
                    &mut bench,
                    &key,
                    Trial {
                        fail_after: Some(node),
                        repeat,
                    },
                    killed,
                )
                .await;
                assert_eq!(state, JobState::Failed, "{case:?} node {node}");
                let mut after = bench.remains().await;
                forget_drill_times(&mut after);
                assert_eq!(
                    after, before,
                    "{case:?} node {node} repeat {repeat} killed {killed}"
                );
            }
        }
    }
}

/// A drill that failed at its very end did go well for a moment; only the time of it may stay.
fn forget_drill_times(documents: &mut BTreeMap<String, Value>) {
    for body in documents.values_mut() {
        if let Some(time) = body.get_mut("last_test_failover") {
            *time = Value::Null;
        }
    }
}

#[tokio::test]
async fn what_can_not_be_taken_back_can_be_repeated() {
    for case in [Case::Disable, Case::Cleanup] {
        for node in 0..case.tasks() {
            let mut bench = Bench::new().await;
            case.prepare(&mut bench).await;
            let key = case.begin(&mut bench).await;
            assert_eq!(
                run(
                    &mut bench,
                    &key,
                    Trial {
                        fail_after: Some(node),
                        repeat: false
                    },
                    true
                )
                .await,
                JobState::Failed
            );
            let key = case.begin(&mut bench).await;
            assert_eq!(
                run(&mut bench, &key, Trial::default(), false).await,
                JobState::Succeeded,
                "{case:?} after a failure of node {node}"
            );
            case.check(&bench).await;
        }
    }
}

#[tokio::test]
async fn a_second_job_on_the_same_object_is_refused_until_the_first_has_ended() {
    let mut bench = Bench::new().await;
    Case::ItemDrill.prepare(&mut bench).await;
    let first = Case::ItemDrill.begin(&mut bench).await;
    let app = bench.app().await;
    let item = bench.item_id("vm-a");
    let second = start(
        &app,
        NewJob {
            vault: &bench.vault,
            resource: &item,
            removes: true,
            scenario: "Trial",
            friendly_name: "Trial",
            target_name: "trial",
            target_type: "Other",
            workflow: "disableProtection",
            input: json!({ "item": item }),
            tasks: disable_protection::tasks(),
            details: JobDetails::default(),
            locks: vec![item.key()],
            request_id: "",
            changes: Vec::new(),
            name: None,
        },
    )
    .await
    .expect_err("the item is busy");
    assert!(
        second
            .to_string()
            .contains(bench.vault.job("").as_str().trim_end_matches('/')),
        "{second}"
    );
    assert_eq!(
        run(&mut bench, &first, Trial::default(), false).await,
        JobState::Succeeded
    );
}

#[tokio::test]
async fn a_cancelled_job_takes_everything_back() {
    let mut bench = Bench::new().await;
    Case::ItemDrill.prepare(&mut bench).await;
    let before = bench.remains().await;
    let key = Case::ItemDrill.begin(&mut bench).await;
    let app = bench.app().await;
    for _ in 0..3 {
        step_with(&app, &key, Trial::default()).await.expect("step");
    }
    assert_ne!(bench.remains().await, before, "something was done");
    records::update::<JobRecord>(&bench.store, &key, |job| {
        Some(JobRecord {
            cancel: true,
            ..job.clone()
        })
    })
    .await
    .expect("cancel");
    assert_eq!(
        run(&mut bench, &key, Trial::default(), false).await,
        JobState::Cancelled
    );
    assert_eq!(bench.remains().await, before);
}
