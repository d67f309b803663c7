//! Every workflow: each node repeated, each node failed in turn, the process killed after each stored step.

mod bench;
mod case;
mod drill_members;
mod failovers;
mod guards;
mod plan_actions;
mod plan_cancel;
mod plan_failback;
mod plan_limits;
mod plan_readiness;
mod plan_webhooks;
mod schedules;

use std::collections::BTreeMap;

use arm_model::job::{JobDetails, JobState};
use serde_json::{Value, json};

use super::disable_protection;
use super::runner::{Step, Trial, step_with};
use super::start::{NewJob, start};
use crate::store::records::{self, JobRecord};
use bench::Bench;
use case::{ALL, Case};

/// A job that takes more steps than this doesn't end.
const MANY: usize = 200;

/// Runs a job to its end. With `killed`, each step is made by a fresh process.
async fn run(bench: &mut Bench, key: &str, trial: Trial, killed: bool) -> JobState {
    let mut app = bench.app().await;
    for _ in 0..MANY {
        if killed {
            app = bench.app().await;
        }
        match step_with(&app, key, trial).await {
            Ok(Step::Ended) => {
                return job(bench, key).await.properties.state;
            }
            Ok(_) => {
                bench.report(&app).await;
                resume(bench, key).await;
            }
            Err(error) if error.is_conflict() => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the job doesn't end");
}

async fn job(bench: &Bench, key: &str) -> JobRecord {
    let job = records::get::<JobRecord>(&bench.store, key).await;
    job.expect("get").expect("job").record
}

/// A person who goes on with whatever waits.
async fn resume(bench: &Bench, key: &str) {
    let goes_on = |job: &JobRecord| {
        let mut job = job.clone();
        super::person::resume(&mut job, None).then_some(job)
    };
    records::update::<JobRecord>(&bench.store, key, goes_on)
        .await
        .expect("resumed");
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
