//! The workflows: how the world of each is prepared, how its job is begun, what must hold afterwards.

use arm_model::ArmId;
use arm_model::job::{JobDetails, JobState};
use protection::DrillState;
use protection::life::{Kind, Phase};
use serde_json::json;

use super::bench::{Bench, ENGINE, OTHER};
use super::run;
use crate::saga::choose::PointChoice;
use crate::saga::drill::DrillInput;
use crate::saga::failback::{self, FailbackInput};
use crate::saga::failover::{self, FailoverInput};
use crate::saga::failover_steps::{self, Step, StepInput};
use crate::saga::runner::Trial;
use crate::saga::start::{NewJob, start};
use crate::saga::{
    disable_protection, drill, drill_cleanup, enable_protection, initial_replication, reshape,
    resynchronize, state,
};
use crate::store::records::{self, Item, Mapping, Plan, Policy, Recovered};
use crate::store::{Expect, ResourceStore as _};

/// A workflow to try: how its world is prepared and how its job is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    Put,
    Remove,
    Enable,
    Completion,
    Disable,
    ItemDrill,
    PlanDrill,
    Cleanup,
    Reshape,
    Resynchronize,
    Planned,
    Unplanned,
    UnplannedAttempt,
    PlanFailover,
    UnplannedPlan,
    Commit,
    ChangePoint,
    Cancel,
    Migrate,
    Failback,
    FullDownload,
    OtherHost,
    CommitFailback,
    ReProtect,
}

pub(super) const ALL: [Case; 24] = [
    Case::Planned,
    Case::Unplanned,
    Case::UnplannedAttempt,
    Case::PlanFailover,
    Case::UnplannedPlan,
    Case::Commit,
    Case::ChangePoint,
    Case::Cancel,
    Case::Migrate,
    Case::Failback,
    Case::FullDownload,
    Case::OtherHost,
    Case::CommitFailback,
    Case::ReProtect,
    Case::Reshape,
    Case::Resynchronize,
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
    pub(super) async fn prepare(self, bench: &mut Bench) {
        match self {
            Self::Put | Self::Remove | Self::Enable => {}
            Self::Completion
            | Self::Disable
            | Self::ItemDrill
            | Self::Reshape
            | Self::Planned
            | Self::Unplanned
            | Self::UnplannedAttempt
            | Self::Commit
            | Self::ChangePoint
            | Self::Cancel
            | Self::Migrate
            | Self::Failback
            | Self::FullDownload
            | Self::OtherHost
            | Self::CommitFailback
            | Self::ReProtect
            | Self::Resynchronize => bench.protected("vm-a").await,
            Self::PlanDrill | Self::PlanFailover | Self::UnplannedPlan | Self::Cleanup => {
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
        let first: &[Self] = match self {
            Self::Cleanup => &[Self::PlanDrill],
            Self::Commit | Self::ChangePoint | Self::Cancel | Self::Migrate => &[Self::Planned],
            Self::Failback | Self::FullDownload | Self::OtherHost => &[Self::Planned, Self::Commit],
            Self::CommitFailback => &[Self::Planned, Self::Commit, Self::Failback],
            Self::ReProtect => &[
                Self::Planned,
                Self::Commit,
                Self::Failback,
                Self::CommitFailback,
            ],
            _ => &[],
        };
        for first in first {
            let key = Box::pin(first.begin(bench)).await;
            assert_eq!(
                run(bench, &key, Trial::default(), false).await,
                JobState::Succeeded
            );
        }
    }

    pub(super) async fn begin(self, bench: &mut Bench) -> String {
        let app = bench.app().await;
        let vault = bench.vault.clone();
        let plan: ArmId = vault.plan("plan").into();
        let drill_input = |plan: Option<String>, groups: Vec<Vec<String>>| DrillInput {
            plan,
            groups,
            point: None,
            application_consistent: false,
            isolated: true,
            network_id: None,
            requested_unix_ms: 2_000,
            steps: Vec::new(),
        };
        let failover = |plan: Option<String>, groups: Vec<Vec<String>>, planned| FailoverInput {
            plan,
            groups,
            planned,
            shut_down: planned,
            point: PointChoice::Newest,
            common_point: false,
            requested_unix_ms: 2_000,
            steps: Vec::new(),
        };
        let (a, b) = (bench.item_id("vm-a"), bench.item_id("vm-b"));
        let step = |step| {
            let point = (step == Step::ChangePoint).then_some(PointChoice::Newest);
            let items = vec![a.to_string()];
            (
                a.clone(),
                "failoverStep",
                json!(StepInput { step, items, point }),
                failover_steps::tasks(step),
            )
        };
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
                    promise: None,
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
                    drill::tasks(&input),
                )
            }
            Self::PlanDrill => {
                let input = drill_input(Some(text(&plan)), vec![vec![text(&b)], vec![text(&a)]]);
                (
                    plan.clone(),
                    "testFailover",
                    json!(input),
                    drill::tasks(&input),
                )
            }
            Self::Planned | Self::Unplanned | Self::UnplannedAttempt => {
                let mut input = failover(None, vec![vec![text(&a)]], self == Self::Planned);
                input.shut_down = self != Self::Unplanned;
                let tasks = failover::tasks(&input);
                (a.clone(), "failover", json!(input), tasks)
            }
            Self::PlanFailover | Self::UnplannedPlan => {
                let groups = vec![vec![text(&b)], vec![text(&a)]];
                let input = failover(Some(text(&plan)), groups, self == Self::PlanFailover);
                let tasks = failover::tasks(&input);
                (plan.clone(), "failover", json!(input), tasks)
            }
            Self::Commit | Self::CommitFailback => step(Step::Commit),
            Self::ReProtect => step(Step::ReProtect),
            Self::Failback | Self::FullDownload | Self::OtherHost => {
                let to = (self == Self::OtherHost).then(|| OTHER.to_owned());
                let input = FailbackInput {
                    plan: None,
                    steps: Vec::new(),
                    items: vec![text(&a)],
                    groups: Vec::new(),
                    creates: to.is_some(),
                    to,
                    minimise_downtime: self != Self::FullDownload,
                };
                (a.clone(), "failback", json!(input), failback::tasks(&input))
            }
            Self::ChangePoint => step(Step::ChangePoint),
            Self::Cancel => step(Step::Cancel),
            Self::Migrate => (
                a.clone(),
                "disableProtection",
                json!({ "item": a, "deleteReplica": false }),
                disable_protection::tasks(),
            ),
            Self::Reshape => (
                a.clone(),
                "reshape",
                json!({ "item": a, "disks": ["disk", "more"], "before": ["disk"] }),
                reshape::tasks(),
            ),
            Self::Resynchronize => (
                a.clone(),
                "resynchronize",
                json!({ "item": a }),
                resynchronize::tasks(),
            ),
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
    pub(super) async fn check(self, bench: &Bench) {
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
            Self::Enable => assert!(item.expect("item").life.item.copied_once),
            Self::Completion => assert!(item.is_some()),
            Self::Disable | Self::Migrate => assert!(item.is_none()),
            Self::Planned
            | Self::Unplanned
            | Self::UnplannedAttempt
            | Self::PlanFailover
            | Self::UnplannedPlan
            | Self::ChangePoint => {
                let item = item.expect("item");
                let kind = match self {
                    Self::Unplanned | Self::UnplannedAttempt | Self::UnplannedPlan => {
                        Kind::Unplanned
                    }
                    _ => Kind::Planned,
                };
                assert_eq!(item.life.phase, Phase::FailedOver(kind));
                let side = item.recovery.expect("recovery side");
                assert!(side.due && !side.point_id.is_empty());
                let failovers = if self == Self::ChangePoint { 2 } else { 1 };
                let numbers = item.life.instance.expect("instance").0;
                assert!(
                    numbers <= 4 * failovers,
                    "one VM a failover, however often nodes ran: {numbers}"
                );
            }
            Self::Commit => assert_eq!(
                item.expect("item").life.phase,
                Phase::Committed(Kind::Planned)
            ),
            Self::Failback | Self::FullDownload => {
                let item = item.expect("item");
                assert_eq!(item.life.phase, Phase::FailedBack(Kind::Planned));
                assert!(item.recovery.is_some(), "the copy is kept until the commit");
            }
            Self::OtherHost => {
                let item = item.expect("item");
                assert_eq!(item.life.phase, Phase::FailedBack(Kind::Planned));
                assert_eq!(item.engine_id, OTHER);
                let formers = item.formers.iter().map(|former| &former.engine_id);
                assert_eq!(
                    formers.collect::<Vec<_>>(),
                    [ENGINE],
                    "one host was left, however often nodes ran"
                );
            }
            Self::CommitFailback => {
                let item = item.expect("item");
                assert_eq!(
                    (item.life.phase, item.recovery),
                    (Phase::FailbackCommitted, None)
                );
            }
            Self::ReProtect => {
                let life = item.expect("item").life;
                assert_eq!(life.phase, Phase::AtSource);
                assert!(life.item.is_active());
            }
            Self::Cancel => {
                let item = item.expect("item");
                assert_eq!((item.life.phase, item.recovery), (Phase::AtSource, None));
                assert!(item.life.item.copied_once, "points are kept");
            }
            Self::Reshape => assert_eq!(item.expect("item").disk_ids, ["disk", "more"]),
            Self::Resynchronize => {
                assert_eq!(
                    item.expect("item").resynchronize,
                    1,
                    "one comparison, however often nodes ran"
                );
            }
            Self::ItemDrill | Self::PlanDrill => {
                assert_eq!(
                    item.expect("item").life.item.drill,
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
                    (item.life.item.drill, item.drill_job, vms),
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

    pub(super) fn tasks(self) -> usize {
        match self {
            Self::Put | Self::Remove | Self::Completion => 2,
            Self::Commit
            | Self::ChangePoint
            | Self::Cancel
            | Self::CommitFailback
            | Self::ReProtect => 2,
            Self::Failback | Self::FullDownload | Self::OtherHost => 6,
            Self::Enable | Self::PlanDrill => 5,
            Self::Planned
            | Self::Unplanned
            | Self::UnplannedAttempt
            | Self::PlanFailover
            | Self::UnplannedPlan => 5,
            Self::Migrate | Self::Disable | Self::Cleanup | Self::Reshape | Self::Resynchronize => {
                3
            }
            Self::ItemDrill => 4,
        }
    }
}
