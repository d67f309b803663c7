//! The failback of a plan: recovered VMs stop and sources start group by group.

use arm_model::job::{JobDetails, JobState};
use protection::life::Phase;
use serde_json::json;

use super::bench::{Bench, ENGINE};
use super::case::Case;
use super::{resume, run};
use crate::gateway::desired;
use crate::saga::failback::{self, FailbackInput};
use crate::saga::failover_steps::{self, Step as Short, StepInput};
use crate::saga::runner::{Step, Trial, step_with};
use crate::saga::start::{NewJob, start};
use crate::store::records::{self, Item, Lock};

const MANY: usize = 200;
/// Group 1 holds vm-b, group 2 vm-a.
const GROUPS: [&str; 2] = ["vm-b", "vm-a"];

async fn job(
    bench: &mut Bench,
    workflow: &'static str,
    input: serde_json::Value,
    tasks: Vec<arm_model::job::Task>,
) -> String {
    let app = bench.app().await;
    let plan = bench.vault.plan("plan").into();
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
    );
    job.await.expect("job").key()
}

/// Both VMs of the plan run at the recovery side for good.
async fn failed_over() -> Bench {
    let mut bench = Bench::new().await;
    Case::PlanFailover.prepare(&mut bench).await;
    let key = Case::PlanFailover.begin(&mut bench).await;
    let state = run(&mut bench, &key, Trial::default(), false).await;
    assert_eq!(state, JobState::Succeeded);
    let items = GROUPS.map(|name| bench.item_id(name).to_string()).to_vec();
    let input = StepInput {
        step: Short::Commit,
        items,
        point: None,
    };
    let tasks = failover_steps::tasks(Short::Commit);
    let key = job(&mut bench, "failoverStep", json!(input), tasks).await;
    let state = run(&mut bench, &key, Trial::default(), false).await;
    assert_eq!(state, JobState::Succeeded);
    bench
}

async fn begin(bench: &mut Bench, minimise_downtime: bool) -> String {
    let groups: Vec<Vec<String>> = GROUPS
        .iter()
        .map(|name| vec![bench.item_id(name).to_string()])
        .collect();
    let input = FailbackInput {
        plan: Some(bench.vault.plan("plan").to_string()),
        steps: Vec::new(),
        items: groups.concat(),
        groups,
        creates: false,
        to: None,
        minimise_downtime,
    };
    let tasks = failback::tasks(&input);
    assert_eq!(tasks.len(), failback::STARTS + GROUPS.len());
    job(bench, "failback", json!(input), tasks).await
}

async fn phases(bench: &Bench) -> [Phase; 2] {
    let mut phases = Vec::new();
    for name in GROUPS {
        let item = records::get::<Item>(&bench.store, &bench.item_id(name).key()).await;
        phases.push(item.expect("get").expect("item").record.life.phase);
    }
    [phases[0], phases[1]]
}

/// The recovered VM is off, or on its way.
fn has_stopped(phase: Phase) -> bool {
    matches!(
        phase,
        Phase::Receiving(_) | Phase::StartingSource(_) | Phase::FailedBack(_)
    )
}

#[tokio::test]
async fn the_last_group_stops_first_and_the_first_group_starts_first() {
    for minimise in [true, false] {
        for (repeat, killed) in [(false, false), (true, false), (false, true)] {
            let mut bench = failed_over().await;
            let key = begin(&mut bench, minimise).await;
            let trial = Trial {
                repeat,
                fail_after: None,
            };
            let mut app = bench.app().await;
            let (mut stood_apart, mut waited) = (false, false);
            for _ in 0..MANY {
                if killed {
                    app = bench.app().await;
                }
                let step = step_with(&app, &key, trial).await.expect("step");
                let [first, last] = phases(&bench).await;
                let stops = |phase| matches!(phase, Phase::StoppingRecovered(_));
                assert!(
                    !(stops(first) || has_stopped(first)) || has_stopped(last),
                    "{first:?} before {last:?}"
                );
                stood_apart |= stops(last) && !stops(first) && !has_stopped(first);
                let runs = |phase| matches!(phase, Phase::FailedBack(_));
                assert!(!runs(last) || runs(first), "{last:?} before {first:?}");
                if runs(first) && matches!(last, Phase::StartingSource(_)) {
                    let wanted = desired::refresh(&app, ENGINE).await.expect("desired state");
                    let mut of_last = wanted.replications.iter();
                    let of_last = of_last.find(|one| one.item_id == "vm-a").expect("listed");
                    waited |= of_last.order.is_none();
                }
                if let Step::Ended = step {
                    break;
                }
                bench.report(&app).await;
                resume(&bench, &key).await;
            }
            let job = super::job(&bench, &key).await;
            assert_eq!(
                job.properties.state,
                JobState::Succeeded,
                "{:?}",
                job.failure
            );
            assert!(
                stood_apart,
                "the first group ran on while the last one stopped"
            );
            assert!(waited, "the last group was not told before its turn");
            let all = phases(&bench).await;
            assert!(
                all.iter()
                    .all(|phase| matches!(phase, Phase::FailedBack(_)))
            );
        }
    }
}

#[tokio::test]
async fn a_plans_failback_that_fails_leaves_each_vm_at_one_side() {
    for minimise in [true, false] {
        for node in 0..failback::STARTS + GROUPS.len() - 1 {
            for (repeat, killed) in [(false, false), (true, true)] {
                let mut bench = failed_over().await;
                let key = begin(&mut bench, minimise).await;
                let trial = Trial {
                    fail_after: Some(node),
                    repeat,
                };
                let state = run(&mut bench, &key, trial, killed).await;
                assert_eq!(state, JobState::Failed, "node {node}");
                let [first, last] = phases(&bench).await;
                let is_there = |phase| matches!(phase, Phase::Committed(_));
                let is_back = |phase| matches!(phase, Phase::FailedBack(_));
                assert!(
                    is_there(last)
                        && (is_there(first) || (is_back(first) && node >= failback::STARTS)),
                    "node {node}: {first:?}, {last:?}"
                );
                assert!(!records::any::<Lock>(&bench.store, "").await.expect("locks"));
            }
        }
    }
}
