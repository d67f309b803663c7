//! Actions of plans: once each, whatever dies; what follows when one fails; waiting for a person; cancel.

#![allow(
    clippy::needless_pass_by_value,
    reason = "bodies are written as literals"
)]

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use arm_model::ArmId;
use arm_model::job::{JobDetails, JobState, Task};
use arm_model::recovery_plan::PlanGroup;
use arm_model::timestamp::NEVER_STARTED;
use engine_protocol::v1::script_status::Outcome as Said;
use protection::life::{Kind, Phase};
use serde_json::{Value, json};

use super::bench::{Bench, ENGINE};
use super::case::Case;
use super::{job, run};
use crate::saga::choose::PointChoice;
use crate::saga::drill::{self, DrillInput};
use crate::saga::failback::{self, FailbackInput};
use crate::saga::failover::{self, FailoverInput};
use crate::saga::person;
use crate::saga::runner::{Step, Trial, step_with};
use crate::saga::start::{NewJob, start};
use crate::saga::steps::{self, Arranged, Scenario};
use crate::store::records::{self, Item, JobRecord, Lock, ScriptOrder};

const SCENARIOS: [Scenario; 4] = [
    Scenario::Test,
    Scenario::Planned,
    Scenario::Unplanned,
    Scenario::Back,
];

pub(super) fn action(name: &str, details: Value) -> Value {
    let console = details["check"] == "Console";
    let back = ["PrimaryToRecovery", "RecoveryToPrimary"];
    let ways = if console { &back[..1] } else { &back[..] };
    json!({ "actionName": name, "failoverTypes": ["TestFailover", "PlannedFailover", "UnplannedFailover"],
        "failoverDirections": ways, "customDetails": details })
}

pub(super) fn manual(name: &str) -> Value {
    action(
        name,
        json!({ "instanceType": "ManualActionDetails", "description": "look" }),
    )
}

fn script(bench: &Bench, name: &str) -> Value {
    let host = bench.vault.fabric("f").provider(ENGINE).to_string();
    action(
        name,
        json!({ "instanceType": "ScriptActionDetails", "path": "x.sh", "fabricLocation": "Primary", "hostId": host }),
    )
}

pub(super) fn console(name: &str) -> Value {
    action(
        name,
        json!({ "instanceType": "ReadinessCheckActionDetails", "check": "Console" }),
    )
}

pub(super) fn group(bench: &Bench, vm: &str, before: Vec<Value>, after: Vec<Value>) -> PlanGroup {
    let item = bench.item_id(vm).to_string();
    serde_json::from_value(
        json!({ "groupType": "Boot", "replicationProtectedItems": [{ "id": item }],
        "startGroupActions": before, "endGroupActions": after }),
    )
    .expect("group")
}

/// A plan with every kind of wait: the shutdown's and both groups' actions.
fn whole(bench: &Bench, scenario: Scenario) -> Vec<PlanGroup> {
    let shutdown = PlanGroup {
        group_type: "Shutdown".to_owned(),
        start_group_actions: vec![serde_json::from_value(script(bench, "down")).expect("action")],
        ..PlanGroup::default()
    };
    let first = group(
        bench,
        if scenario == Scenario::Back {
            "vm-a"
        } else {
            "vm-b"
        },
        vec![manual("m1"), script(bench, "s1")],
        vec![console("c1")],
    );
    let mut groups = vec![shutdown, first];
    if scenario != Scenario::Back {
        let second = group(
            bench,
            "vm-a",
            vec![],
            vec![script(bench, "s2"), manual("m2")],
        );
        groups.push(second);
    }
    groups
}

pub(super) async fn world(scenario: Scenario) -> Bench {
    let mut bench = Bench::new().await;
    let case = match scenario {
        Scenario::Back => Case::Failback,
        _ => Case::PlanFailover,
    };
    case.prepare(&mut bench).await;
    bench
}

pub(super) async fn begin(bench: &mut Bench, scenario: Scenario, groups: &[PlanGroup]) -> String {
    let app = bench.app().await;
    let plan: ArmId = bench.vault.plan("plan").into();
    let name = Some(plan.as_str().to_owned());
    let arranged = Arranged::new(groups, scenario, |_| true, |_| true);
    let members = arranged.groups();
    let (workflow, input, tasks): (_, Value, Vec<Task>) = match scenario {
        Scenario::Test => {
            let input = DrillInput {
                plan: name,
                groups: members,
                point: None,
                application_consistent: false,
                isolated: true,
                network_id: None,
                requested_unix_ms: 2_000,
                steps: arranged.away(scenario),
            };
            ("testFailover", json!(input), drill::tasks(&input))
        }
        Scenario::Back => {
            let input = FailbackInput {
                plan: name,
                steps: arranged.back(failback::STARTS, FailbackInput::stops_at(true)),
                items: members.concat(),
                groups: members,
                creates: false,
                to: None,
                minimise_downtime: true,
            };
            ("failback", json!(input), failback::tasks(&input))
        }
        _ => {
            let planned = scenario == Scenario::Planned;
            let input = FailoverInput {
                plan: name,
                groups: members,
                planned,
                shut_down: planned,
                point: PointChoice::Newest,
                common_point: false,
                requested_unix_ms: 2_000,
                steps: arranged.away(scenario),
            };
            ("failover", json!(input), failover::tasks(&input))
        }
    };
    let job = start(
        &app,
        NewJob {
            vault: &bench.vault,
            resource: &plan,
            removes: false,
            scenario: "Trial",
            friendly_name: "Trial",
            target_name: "trial",
            target_type: "Other",
            workflow,
            input,
            tasks,
            details: JobDetails::default(),
            locks: vec![plan.key()],
            request_id: "",
            changes: Vec::new(),
            name: None,
        },
    )
    .await
    .expect("job");
    job.key()
}

pub(super) fn task<'a>(job: &'a JobRecord, name: &str) -> &'a Task {
    let mut tasks = job.properties.tasks.iter();
    let found = tasks.find(|task| task.friendly_name.ends_with(&format!("action: {name}")));
    found.expect("task of the action")
}

pub(super) async fn phase(bench: &Bench, vm: &str) -> Phase {
    let item = records::get::<Item>(&bench.store, &bench.item_id(vm).key()).await;
    item.expect("get").expect("item").record.life.phase
}

/// No order of a script and no lock stays behind.
pub(super) async fn is_tidy(bench: &Bench) {
    assert!(
        !records::any::<ScriptOrder>(&bench.store, "")
            .await
            .expect("orders")
    );
    assert!(!records::any::<Lock>(&bench.store, "").await.expect("locks"));
}

fn names(bench: &Bench) -> Vec<String> {
    let contexts = bench.begun.iter().map(|order| &order.context_json);
    let read = contexts.map(|text| serde_json::from_str::<Value>(text).expect("context"));
    read.map(|context| {
        context["ActionName"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    })
    .collect()
}

#[tokio::test]
async fn every_action_runs_once_and_in_order_with_nodes_run_twice_or_the_process_killed() {
    for scenario in SCENARIOS {
        for (repeat, killed) in [(false, false), (true, false), (false, true)] {
            let mut bench = world(scenario).await;
            let groups = whole(&bench, scenario);
            let key = begin(&mut bench, scenario, &groups).await;
            let trial = Trial {
                repeat,
                fail_after: None,
            };
            let state = run(&mut bench, &key, trial, killed).await;
            let job = job(&bench, &key).await;
            assert_eq!(state, JobState::Succeeded, "{scenario:?} {:?}", job.failure);
            let wanted: &[&str] = match scenario {
                Scenario::Test => &["s1", "s2"],
                Scenario::Back => &["down", "s1"],
                _ => &["down", "s1", "s2"],
            };
            assert_eq!(names(&bench), wanted, "{scenario:?} {repeat} {killed}");
            for task in &job.properties.tasks {
                let name = &task.friendly_name;
                assert_eq!(task.state, JobState::Succeeded, "{scenario:?} {name}");
                assert_ne!(task.end_time, NEVER_STARTED, "{name}");
            }
            let said = &task(&job, "s1")
                .custom_details
                .as_ref()
                .expect("details")
                .extra;
            assert_eq!(said["output"], "said");
            is_tidy(&bench).await;
        }
    }
}

#[tokio::test]
async fn the_context_names_the_recovered_vm_once_it_is_up() {
    let mut bench = world(Scenario::Planned).await;
    let groups = [group(
        &bench,
        "vm-a",
        vec![script(&bench, "before")],
        vec![script(&bench, "after")],
    )];
    let key = begin(&mut bench, Scenario::Planned, &groups).await;
    run(&mut bench, &key, Trial::default(), false).await;
    let contexts: Vec<Value> = bench
        .begun
        .iter()
        .map(|order| serde_json::from_str(&order.context_json).expect("context"))
        .collect();
    let [before, after] = contexts.as_slice() else {
        panic!("{contexts:?}");
    };
    assert_eq!(before["VmMap"]["vm-a"]["RoleName"], "");
    assert_eq!(after["VmMap"]["vm-a"]["RoleName"], "vm-a");
    assert_eq!(after["RecoveryPlanName"], "plan");
    assert_eq!(after["FailoverType"], "Planned");
    assert_eq!(after["FailoverDirection"], "PrimaryToSecondary");
    assert_eq!(after["GroupId"], "1");
    assert_ne!(before["ActionId"], after["ActionId"]);
}

#[tokio::test]
async fn a_failure_at_any_action_of_a_drill_leaves_nothing_and_of_a_failover_keeps_what_is_up() {
    for scenario in [Scenario::Test, Scenario::Planned, Scenario::Unplanned] {
        let nodes = {
            let bench = world(scenario).await;
            let groups = whole(&bench, scenario);
            Arranged::new(&groups, scenario, |_| true, |_| true).away(scenario)
        };
        for (node, step) in nodes.iter().enumerate() {
            if matches!(step, steps::Step::Own(_)) {
                continue;
            }
            for (repeat, killed) in [(true, false), (false, true)] {
                let mut bench = world(scenario).await;
                let before = bench.remains().await;
                let groups = whole(&bench, scenario);
                let key = begin(&mut bench, scenario, &groups).await;
                let trial = Trial {
                    repeat,
                    fail_after: Some(node),
                };
                let state = run(&mut bench, &key, trial, killed).await;
                assert_eq!(state, JobState::Failed, "{scenario:?} {node}");
                is_tidy(&bench).await;
                if scenario == Scenario::Test {
                    let mut after = bench.remains().await;
                    super::forget_drill_times(&mut after);
                    assert_eq!(after, before, "node {node}");
                    continue;
                }
                let started = |own| node > steps::position(&nodes, own);
                let kind = if scenario == Scenario::Planned {
                    Kind::Planned
                } else {
                    Kind::Unplanned
                };
                for (vm, own) in [("vm-b", 3), ("vm-a", 4)] {
                    let wanted = if started(own) {
                        Phase::FailedOver(kind)
                    } else {
                        Phase::AtSource
                    };
                    assert_eq!(phase(&bench, vm).await, wanted, "{scenario:?} {node} {vm}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_failed_script_stops_a_planned_failover_and_says_where() {
    let mut bench = world(Scenario::Planned).await;
    bench.script = Some((Said::Exited, 3));
    let groups = [
        group(&bench, "vm-b", vec![], vec![script(&bench, "check")]),
        group(&bench, "vm-a", vec![], vec![]),
    ];
    let key = begin(&mut bench, Scenario::Planned, &groups).await;
    assert_eq!(
        run(&mut bench, &key, Trial::default(), true).await,
        JobState::Failed
    );
    let job = job(&bench, &key).await;
    let error = job.failure.clone().expect("failure");
    for part in ["`check`", "after Group 1", "`plan`", "code 3"] {
        assert!(error.message.contains(part), "{part}: {}", error.message);
    }
    assert!(error.recommended_action().is_some());
    assert_eq!(task(&job, "check").state, JobState::Failed);
    assert_eq!(
        phase(&bench, "vm-b").await,
        Phase::FailedOver(Kind::Planned)
    );
    assert_eq!(phase(&bench, "vm-a").await, Phase::AtSource);
    is_tidy(&bench).await;
}

#[tokio::test]
async fn a_failed_script_does_not_keep_the_rest_down_in_an_unplanned_failover() {
    for (outcome, code) in [
        (Said::Exited, "ScriptFailed"),
        (Said::TimedOut, "ScriptTimeout"),
        (Said::Unknown, "ScriptEndUnknown"),
        (Said::Refused, "ScriptRefused"),
    ] {
        for killed in [false, true] {
            let mut bench = world(Scenario::Unplanned).await;
            bench.script = Some((outcome, 1));
            let groups = [
                group(&bench, "vm-b", vec![script(&bench, "s")], vec![]),
                group(&bench, "vm-a", vec![], vec![console("c")]),
            ];
            let key = begin(&mut bench, Scenario::Unplanned, &groups).await;
            let state = run(&mut bench, &key, Trial::default(), killed).await;
            assert_eq!(state, JobState::Failed);
            let job = job(&bench, &key).await;
            assert_eq!(job.failure.as_ref().expect("failure").code, code);
            assert_eq!(task(&job, "s").state, JobState::Failed);
            assert_eq!(task(&job, "s").errors.len(), 1);
            for vm in ["vm-a", "vm-b"] {
                assert_eq!(phase(&bench, vm).await, Phase::FailedOver(Kind::Unplanned));
            }
            is_tidy(&bench).await;
        }
    }
}

/// Makes steps, each by a fresh process, until the job is as wanted.
pub(super) async fn until(
    bench: &mut Bench,
    key: &str,
    wanted: impl Fn(&JobRecord, &Bench) -> bool,
) {
    for _ in 0..200 {
        let app = bench.app().await;
        step_with(&app, key, Trial::default()).await.expect("step");
        bench.report(&app).await;
        let job = job(bench, key).await;
        if wanted(&job, bench) {
            return;
        }
    }
    panic!("never came true");
}

pub(super) async fn cancel(bench: &Bench, key: &str) {
    let cancel = |job: &JobRecord| {
        Some(JobRecord {
            cancel: true,
            ..job.clone()
        })
    };
    records::update::<JobRecord>(&bench.store, key, cancel)
        .await
        .expect("cancel");
}

#[tokio::test]
async fn a_manual_action_waits_over_restarts_and_goes_on_with_what_was_said() {
    let mut bench = world(Scenario::Planned).await;
    let groups = [group(&bench, "vm-a", vec![manual("m")], vec![])];
    let key = begin(&mut bench, Scenario::Planned, &groups).await;
    let waits = |job: &JobRecord, _: &Bench| job.properties.state == JobState::Suspended;
    until(&mut bench, &key, waits).await;
    for _ in 0..5 {
        let app = bench.app().await;
        let step = step_with(&app, &key, Trial::default()).await.expect("step");
        assert_eq!(step, Step::Waiting);
    }
    let waiting = job(&bench, &key).await;
    let details = task(&waiting, "m").custom_details.clone().expect("details");
    assert_eq!(details.instance_type, "ManualActionTaskDetails");
    assert_eq!(details.extra["instructions"], "look");
    assert_eq!(waiting.properties.allowed_actions, ["Cancel", "Resume"]);
    let present = phase(&bench, "vm-a").await;
    assert!(
        matches!(present, Phase::StartingRecovered(..)),
        "{present:?}"
    );
    let resumed = |job: &JobRecord| {
        let mut job = job.clone();
        person::resume(&mut job, Some("seen")).then_some(job)
    };
    records::update::<JobRecord>(&bench.store, &key, resumed)
        .await
        .expect("resumed");
    assert_eq!(
        run(&mut bench, &key, Trial::default(), true).await,
        JobState::Succeeded
    );
    let ended = job(&bench, &key).await;
    let details = task(&ended, "m").custom_details.clone().expect("details");
    assert_eq!(details.extra["observation"], "seen");
}

#[tokio::test]
async fn a_plan_that_waits_or_runs_a_script_can_be_cancelled_and_takes_everything_back() {
    for waits_for in ["person", "script"] {
        let mut bench = world(Scenario::Planned).await;
        bench.script = Some((Said::Running, 0));
        let act = match waits_for {
            "person" => manual("x"),
            _ => script(&bench, "x"),
        };
        let groups = [group(&bench, "vm-a", vec![act], vec![])];
        let key = begin(&mut bench, Scenario::Planned, &groups).await;
        until(&mut bench, &key, |job, bench| {
            job.properties.state == JobState::Suspended || !bench.begun.is_empty()
        })
        .await;
        cancel(&bench, &key).await;
        assert_eq!(
            run(&mut bench, &key, Trial::default(), true).await,
            JobState::Cancelled
        );
        assert_eq!(phase(&bench, "vm-a").await, Phase::AtSource, "{waits_for}");
        is_tidy(&bench).await;
    }
}

#[tokio::test]
async fn a_host_that_is_silent_about_a_script_ends_the_wait() {
    let mut bench = world(Scenario::Planned).await;
    bench.script = None;
    let groups = [group(&bench, "vm-a", vec![script(&bench, "s")], vec![])];
    let key = begin(&mut bench, Scenario::Planned, &groups).await;
    let app = bench.app().await;
    loop {
        match step_with(&app, &key, Trial::default()).await.expect("step") {
            Step::Ended => break,
            Step::Waiting => app.advance(Duration::from_secs(20)),
            Step::Advanced => {}
        }
        bench.report(&app).await;
    }
    let failure = job(&bench, &key).await.failure.expect("failure");
    assert_eq!(failure.code, "ScriptHostSilent", "{}", failure.message);
    is_tidy(&bench).await;
}

#[tokio::test]
async fn a_script_that_may_run_twice_is_waited_for_while_its_end_is_unknown() {
    let mut bench = world(Scenario::Planned).await;
    bench.script = Some((Said::Unknown, 0));
    let mut act = script(&bench, "s");
    act["customDetails"]["idempotent"] = json!(true);
    let groups = [group(&bench, "vm-a", vec![act], vec![])];
    let key = begin(&mut bench, Scenario::Planned, &groups).await;
    until(&mut bench, &key, |_, bench| !bench.begun.is_empty()).await;
    let app = bench.app().await;
    let step = step_with(&app, &key, Trial::default()).await.expect("step");
    assert_eq!(step, Step::Waiting);
    bench.script = Some((Said::Exited, 0));
    let state = run(&mut bench, &key, Trial::default(), true).await;
    assert_eq!(state, JobState::Succeeded);
}

#[tokio::test]
async fn a_script_of_the_orchestrator_runs_once_though_each_step_is_another_process() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("count.sh");
    let count = folder.path().join("count");
    let text = format!("#!/bin/sh\ncat >> {}\n", count.display());
    std::fs::write(&file, text).expect("script");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("mode");
    let mut bench = world(Scenario::Planned).await;
    let notes = folder.path().join("notes");
    let scripts = plan_script::Scripts::open(Some(folder.path().to_owned()), notes).expect("notes");
    let mut changes = scripts.watch();
    bench.here = Some(scripts);
    let act = action(
        "here",
        json!({ "instanceType": "ScriptActionDetails", "path": "count.sh", "fabricLocation": "Recovery" }),
    );
    let groups = [group(&bench, "vm-a", vec![], vec![act])];
    let key = begin(&mut bench, Scenario::Planned, &groups).await;
    let begun = |job: &JobRecord, _: &Bench| task(job, "here").state == JobState::InProgress;
    until(&mut bench, &key, begun).await;
    let id = format!("{}|action|4", job(&bench, &key).await.id);
    let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, id.as_bytes()).to_string();
    let here = bench.here.clone().expect("scripts");
    while here
        .status(&id)
        .is_none_or(|one| one.outcome == plan_script::Outcome::Running)
    {
        let app = bench.app().await;
        step_with(&app, &key, Trial::default()).await.expect("step");
        changes.changed().await.expect("change");
    }
    assert_eq!(
        run(&mut bench, &key, Trial::default(), true).await,
        JobState::Succeeded
    );
    let said = std::fs::read_to_string(&count).expect("context");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("\"RecoveryPlanName\":\"plan\""), "{said}");
}

#[tokio::test]
async fn a_group_whose_vms_are_up_runs_its_actions_and_one_that_is_not_asked_for_does_not() {
    let bench = Bench::new().await;
    let groups = [
        group(&bench, "vm-a", vec![manual("m1")], vec![]),
        group(&bench, "vm-b", vec![manual("m2")], vec![]),
    ];
    let is = |vm: &'static str| {
        let id = bench.item_id(vm).to_string();
        move |other: &str| other == id
    };
    let names = |steps: Vec<steps::Step>| -> Vec<String> {
        let texts = steps.into_iter().map(|step| match step {
            steps::Step::Own(own) => own.to_string(),
            steps::Step::Action(step) => format!("{}@{}", step.action.action_name, step.group),
        });
        texts.collect()
    };
    let rest = Arranged::new(&groups, Scenario::Planned, |_| true, is("vm-b"));
    assert_eq!(rest.groups(), [[bench.item_id("vm-b").to_string()]]);
    let rest = names(rest.away(Scenario::Planned));
    assert_eq!(rest, ["0", "1", "2", "m1@1", "m2@2", "3"]);
    let part = Arranged::new(&groups, Scenario::Planned, is("vm-b"), |_| true);
    assert_eq!(
        names(part.away(Scenario::Planned)),
        ["0", "1", "2", "m2@2", "3"]
    );
    let back = Arranged::new(&groups, Scenario::Back, |_| true, |_| true);
    let back = names(back.back(failback::STARTS, FailbackInput::stops_at(true)));
    assert_eq!(back, ["0", "1", "2", "3", "4", "m1@1", "5", "m2@2", "6"]);
}
