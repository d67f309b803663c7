//! A person stops a plan at one of its actions: the VMs that are up are not taken back.

use arm_model::job::JobState;
use protection::life::{Kind, Phase};

use super::plan_actions::{begin, cancel, group, is_tidy, manual, phase, task, until, world};
use super::{job, resume, run};
use crate::saga::runner::Trial;
use crate::saga::steps::Scenario;
use crate::store::records::JobRecord;

#[tokio::test]
async fn a_plan_that_is_stopped_at_an_action_keeps_the_vms_that_are_up() {
    for (scenario, kind) in [
        (Scenario::Planned, Kind::Planned),
        (Scenario::Unplanned, Kind::Unplanned),
    ] {
        for killed in [false, true] {
            let mut bench = world(scenario).await;
            let groups = [
                group(&bench, "vm-b", vec![], vec![manual("look at it")]),
                group(&bench, "vm-a", vec![], vec![]),
            ];
            let key = begin(&mut bench, scenario, &groups).await;
            let waits = |job: &JobRecord, _: &_| job.properties.state == JobState::Suspended;
            until(&mut bench, &key, waits).await;
            cancel(&bench, &key).await;
            let state = run(&mut bench, &key, Trial::default(), killed).await;
            assert_eq!(state, JobState::Cancelled);
            assert_eq!(phase(&bench, "vm-b").await, Phase::FailedOver(kind));
            assert_eq!(phase(&bench, "vm-a").await, Phase::AtSource);
            let job = job(&bench, &key).await;
            let told = job.failure.clone().expect("told");
            for part in ["`look at it`", "after Group 1", "stay as they are"] {
                assert!(told.message.contains(part), "{part}: {}", told.message);
            }
            assert!(told.recommended_action().is_some());
            assert_eq!(task(&job, "look at it").errors.len(), 1);
            is_tidy(&bench).await;
        }
    }
}

#[tokio::test]
async fn a_failback_that_is_stopped_at_an_action_keeps_the_sources_that_run() {
    let mut bench = world(Scenario::Back).await;
    let groups = [group(&bench, "vm-a", vec![], vec![manual("look at it")])];
    let key = begin(&mut bench, Scenario::Back, &groups).await;
    let waits = |job: &JobRecord, _: &_| job.properties.state == JobState::Suspended;
    until(&mut bench, &key, waits).await;
    // The first to wait is the failback itself, with the recovered VM still running.
    resume(&bench, &key).await;
    until(&mut bench, &key, waits).await;
    assert_eq!(
        task(&job(&bench, &key).await, "look at it").state,
        JobState::Suspended
    );
    cancel(&bench, &key).await;
    let state = run(&mut bench, &key, Trial::default(), true).await;
    assert_eq!(state, JobState::Cancelled);
    let kept = phase(&bench, "vm-a").await;
    assert_eq!(kept, Phase::FailedBack(Kind::Planned));
    is_tidy(&bench).await;
}
