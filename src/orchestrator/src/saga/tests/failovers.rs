//! Failovers that fail, are cancelled, or meet a source that does not answer.

use std::time::Duration;

use arm_model::job::JobState;
use protection::life::{Kind, Phase, Standing};

use super::bench::{Bench, ENGINE, OTHER};
use super::case::Case;
use super::{job, run};
use crate::saga::runner::{Step, Trial, step_with};
use crate::store::ResourceStore as _;
use crate::store::records::{self, Item, JobRecord, Lock};

const MANY: usize = 200;

async fn item(bench: &Bench, name: &str) -> Item {
    let item = records::get::<Item>(&bench.store, &bench.item_id(name).key()).await;
    item.expect("get").expect("item").record
}

/// At the source as before, with nothing of the failover but higher numbers.
fn is_back(item: &Item) {
    assert_eq!(item.life.phase, Phase::AtSource);
    assert_eq!(item.life.standing, Standing::Permitted);
    assert_eq!(item.life.instance, None);
    assert_eq!(item.recovery, None);
    assert!(item.life.item.copied_once, "points are kept");
}

async fn has_no_locks(bench: &Bench) -> bool {
    !records::any::<Lock>(&bench.store, "").await.expect("locks")
}

fn names(case: Case) -> &'static [&'static str] {
    match case {
        Case::PlanFailover => &["vm-a", "vm-b"],
        _ => &["vm-a"],
    }
}

#[tokio::test]
async fn a_failover_that_fails_before_a_vm_runs_is_taken_back() {
    for case in [Case::Planned, Case::Unplanned, Case::PlanFailover] {
        for node in 0..3 {
            for (repeat, killed) in [(false, false), (true, false), (false, true)] {
                let mut bench = Bench::new().await;
                case.prepare(&mut bench).await;
                let key = case.begin(&mut bench).await;
                let trial = Trial {
                    fail_after: Some(node),
                    repeat,
                };
                let state = run(&mut bench, &key, trial, killed).await;
                assert_eq!(state, JobState::Failed, "{case:?} node {node}");
                for name in names(case) {
                    is_back(&item(&bench, name).await);
                }
                assert!(has_no_locks(&bench).await);
            }
        }
    }
}

#[tokio::test]
async fn a_vm_that_runs_at_the_recovery_side_stays_there_when_the_job_fails() {
    for (case, node) in [
        (Case::Planned, 3),
        (Case::Unplanned, 4),
        (Case::PlanFailover, 4),
    ] {
        let mut bench = Bench::new().await;
        case.prepare(&mut bench).await;
        let key = case.begin(&mut bench).await;
        let trial = Trial {
            fail_after: Some(node),
            repeat: true,
        };
        assert_eq!(run(&mut bench, &key, trial, true).await, JobState::Failed);
        for name in names(case) {
            let phase = item(&bench, name).await.life.phase;
            assert!(matches!(phase, Phase::FailedOver(_)), "{case:?}: {phase:?}");
        }
    }
}

/// The first group runs and the second one can't be started: what runs stays, the rest is taken back.
#[tokio::test]
async fn a_plan_that_fails_in_the_middle_keeps_what_runs_and_takes_the_rest_back() {
    let mut bench = Bench::new().await;
    Case::PlanFailover.prepare(&mut bench).await;
    let key = Case::PlanFailover.begin(&mut bench).await;
    let trial = Trial {
        fail_after: Some(3),
        repeat: false,
    };
    assert_eq!(run(&mut bench, &key, trial, false).await, JobState::Failed);
    let first = item(&bench, "vm-b").await;
    assert_eq!(first.life.phase, Phase::FailedOver(Kind::Planned));
    is_back(&item(&bench, "vm-a").await);
}

#[tokio::test]
async fn a_failover_can_be_cancelled_at_any_moment_without_harm() {
    for case in [Case::Planned, Case::Unplanned, Case::PlanFailover] {
        for after in 0.. {
            let mut bench = Bench::new().await;
            case.prepare(&mut bench).await;
            let key = case.begin(&mut bench).await;
            let app = bench.app().await;
            let mut has_ended = false;
            for _ in 0..after {
                has_ended =
                    step_with(&app, &key, Trial::default()).await.expect("step") == Step::Ended;
                bench.report(&app).await;
            }
            if has_ended {
                assert!(after > 5, "{case:?}");
                break;
            }
            records::update::<JobRecord>(&bench.store, &key, |job| {
                Some(JobRecord {
                    cancel: true,
                    ..job.clone()
                })
            })
            .await
            .expect("cancel");
            let state = run(&mut bench, &key, Trial::default(), true).await;
            assert_eq!(state, JobState::Cancelled, "{case:?} after {after} steps");
            for name in names(case) {
                is_back(&item(&bench, name).await);
            }
            assert!(has_no_locks(&bench).await);
        }
    }
}

/// Runs a job while the source is mute, with time going by.
async fn run_late(bench: &mut Bench, key: &str) -> JobState {
    let app = bench.app().await;
    for _ in 0..MANY {
        match step_with(&app, key, Trial::default()).await.expect("step") {
            Step::Ended => {
                return job(bench, key).await.properties.state;
            }
            Step::Waiting => app.advance(Duration::from_secs(60)),
            Step::Advanced => {}
        }
        bench.report(&app).await;
    }
    panic!("the job doesn't end");
}

#[tokio::test]
async fn a_planned_failover_whose_source_does_not_shut_down_ends_at_the_source() {
    let mut bench = Bench::new().await;
    Case::Planned.prepare(&mut bench).await;
    bench.mute_source = true;
    let key = Case::Planned.begin(&mut bench).await;
    assert_eq!(run_late(&mut bench, &key).await, JobState::Failed);
    is_back(&item(&bench, "vm-a").await);
    let error = job(&bench, &key).await.failure.expect("why");
    assert_eq!(error.code, "ShutdownTimeout");
    assert!(error.message.contains("vm-a"), "{}", error.message);
}

#[tokio::test]
async fn an_unplanned_failover_goes_on_when_the_source_does_not_shut_down() {
    let mut bench = Bench::new().await;
    Case::UnplannedAttempt.prepare(&mut bench).await;
    bench.mute_source = true;
    let key = Case::UnplannedAttempt.begin(&mut bench).await;
    assert_eq!(run_late(&mut bench, &key).await, JobState::Succeeded);
    let there = item(&bench, "vm-a").await;
    assert_eq!(there.life.phase, Phase::FailedOver(Kind::Unplanned));
    assert_eq!(
        there.life.standing,
        Standing::Unconfirmed,
        "it may still run"
    );
    let side = there.recovery.expect("recovery side");
    assert!(!side.point_id.is_empty(), "the newest point there is");
    // The first word of the returned source.
    bench.mute_source = false;
    let app = bench.app().await;
    bench.report(&app).await;
    let there = item(&bench, "vm-a").await;
    assert_eq!(there.life.standing, Standing::Held);
}

#[tokio::test]
async fn the_recovery_host_hears_of_a_vm_only_when_its_group_is_due() {
    let mut bench = Bench::new().await;
    Case::PlanFailover.prepare(&mut bench).await;
    let key = Case::PlanFailover.begin(&mut bench).await;
    let app = bench.app().await;
    let mut order = Vec::new();
    for _ in 0..MANY {
        let is_over = step_with(&app, &key, Trial::default()).await.expect("step") == Step::Ended;
        bench.report(&app).await;
        for name in ["vm-a", "vm-b"] {
            let is_due = item(&bench, name)
                .await
                .recovery
                .is_some_and(|side| side.due);
            if is_due && !order.contains(&name) {
                let others = bench
                    .store
                    .list(crate::store::Query::below("recovered", ""))
                    .await;
                assert!(others.expect("list").is_empty(), "a failover is no drill");
                order.push(name);
            }
        }
        if is_over {
            break;
        }
    }
    assert_eq!(order, ["vm-b", "vm-a"], "group 1 holds vm-b, group 2 vm-a");
}

#[tokio::test]
async fn a_failback_that_fails_leaves_the_vm_at_one_side_and_whole() {
    for case in [Case::Failback, Case::FullDownload, Case::OtherHost] {
        for node in 0..case.tasks() - 1 {
            for (repeat, killed) in [(false, false), (true, true)] {
                let mut bench = Bench::new().await;
                case.prepare(&mut bench).await;
                let key = case.begin(&mut bench).await;
                let trial = Trial {
                    fail_after: Some(node),
                    repeat,
                };
                let state = run(&mut bench, &key, trial, killed).await;
                assert_eq!(state, JobState::Failed, "{case:?} node {node}");
                let there = item(&bench, "vm-a").await;
                let phase = there.life.phase;
                // Hosts don't wait for a job: once the person has said go, the way to the source may end first.
                let is_back =
                    matches!(phase, Phase::FailedBack(_)) && there.life.item.generation.0 > 0;
                let has_gone = node > 1 || case == Case::FullDownload;
                assert!(
                    phase == Phase::Committed(Kind::Planned) || (is_back && has_gone && node > 0),
                    "{case:?} node {node}: {phase:?}"
                );
                assert!(there.recovery.is_some());
                assert!(has_no_locks(&bench).await);
            }
        }
    }
}

#[tokio::test]
async fn a_vm_stays_with_its_host_when_the_named_one_is_removed_before_it_becomes_the_source() {
    let mut bench = Bench::new().await;
    Case::OtherHost.prepare(&mut bench).await;
    let key = Case::OtherHost.begin(&mut bench).await;
    let app = bench.app().await;
    step_with(&app, &key, Trial::default()).await.expect("step");
    let removed = records::delete(records::engine_key(OTHER));
    bench.store.apply(vec![removed]).await.expect("removed");
    let state = run(&mut bench, &key, Trial::default(), false).await;
    assert_eq!(state, JobState::Failed);
    let error = job(&bench, &key).await.failure.expect("why");
    assert_eq!(error.code, "AlternateHostNotFound");
    let there = item(&bench, "vm-a").await;
    assert_eq!(there.engine_id, ENGINE);
    assert_eq!(there.life.phase, Phase::Committed(Kind::Planned));
    assert!(there.formers.is_empty() && has_no_locks(&bench).await);
}

#[tokio::test]
async fn a_failback_waits_for_a_person_before_the_recovered_vm_stops() {
    let mut bench = Bench::new().await;
    Case::Failback.prepare(&mut bench).await;
    let key = Case::Failback.begin(&mut bench).await;
    let app = bench.app().await;
    for _ in 0..20 {
        step_with(&app, &key, Trial::default()).await.expect("step");
        bench.report(&app).await;
    }
    let job = job(&bench, &key).await;
    assert_eq!(job.properties.state, JobState::Suspended);
    assert_eq!(job.properties.allowed_actions, ["Cancel", "Resume"]);
    let phase = item(&bench, "vm-a").await.life.phase;
    assert_eq!(phase, Phase::Synchronised(Kind::Planned));
    let state = run(&mut bench, &key, Trial::default(), true).await;
    assert_eq!(state, JobState::Succeeded);
    Case::Failback.check(&bench).await;
}

/// The source dies while it takes the VM back: the recovered VM that is kept goes on, at its host, with its disks.
#[tokio::test]
async fn an_unplanned_failover_in_a_failback_starts_the_kept_vm_again() {
    let mut bench = Bench::new().await;
    Case::CommitFailback.prepare(&mut bench).await;
    let before = item(&bench, "vm-a").await;
    assert_eq!(before.life.phase, Phase::FailedBack(Kind::Planned));
    let key = Case::Unplanned.begin(&mut bench).await;
    let state = run(&mut bench, &key, Trial::default(), true).await;
    assert_eq!(state, JobState::Succeeded);
    let after = item(&bench, "vm-a").await;
    assert_eq!(after.life.phase, Phase::Committed(Kind::Unplanned));
    assert_eq!(after.life.instance, before.life.instance);
    let (kept, side) = (
        before.recovery.expect("kept"),
        after.recovery.expect("side"),
    );
    assert!(side.due, "the recovery host is told");
    assert_eq!(
        (side.engine_id, side.point_id),
        (kept.engine_id, kept.point_id)
    );
}

#[tokio::test]
async fn one_vm_that_can_not_be_recovered_does_not_keep_the_others_of_a_plan_down() {
    let mut bench = Bench::new().await;
    Case::PlanFailover.prepare(&mut bench).await;
    bench.pointless = Some("vm-b".to_owned());
    let key = Case::UnplannedPlan.begin(&mut bench).await;
    let state = run(&mut bench, &key, Trial::default(), false).await;
    assert_eq!(state, JobState::Failed, "one is missing, and that is said");
    let error = job(&bench, &key).await.failure.expect("why");
    assert_eq!(error.code, "RecoveryPointNotFound");
    let there = item(&bench, "vm-a").await;
    assert_eq!(there.life.phase, Phase::FailedOver(Kind::Unplanned));
    is_back(&item(&bench, "vm-b").await);
    assert!(has_no_locks(&bench).await);
}
