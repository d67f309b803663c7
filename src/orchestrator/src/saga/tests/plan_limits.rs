//! Limits of actions count from the action's start, whatever restarted meanwhile.

use std::sync::Arc;
use std::time::Duration;

use arm_model::job::JobState;
use engine_protocol::v1;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::bench::{Bench, ENGINE};
use super::job;
use super::plan_actions::{action, begin, console, group, phase, task, world};
use crate::app::App;
use crate::saga::runner::{self, Step, Trial, step_with};
use crate::saga::steps::Scenario;
use protection::life::Phase;

/// A fresh process as the runner begins it, so much later than the real time, that nobody has reported to yet.
async fn restarted(bench: &mut Bench, later: Duration) -> Arc<App> {
    let app = bench.silent_app();
    app.advance(later);
    let (_sender, jobs) = tokio::sync::mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    stop.cancel();
    let run = runner::run(Arc::clone(&app), jobs, stop);
    run.await.expect("jobs are taken up");
    app
}

/// Makes steps until the job's action is asked whether it is over, and says no.
async fn until_it_waits(bench: &mut Bench, app: &App, key: &str, name: &str) {
    for _ in 0..200 {
        let step = step_with(app, key, Trial::default()).await.expect("step");
        let job = job(bench, key).await;
        if step == Step::Waiting && task(&job, name).state == JobState::InProgress {
            return;
        }
        bench.report(app).await;
    }
    panic!("the action never waits");
}

#[tokio::test]
async fn a_delay_is_over_when_its_time_is_although_the_orchestrator_was_restarted() {
    let mut bench = world(Scenario::Planned).await;
    let delay = action(
        "pause",
        json!({ "instanceType": "ReadinessCheckActionDetails", "check": "Delay", "timeout": "600" }),
    );
    let groups = [group(&bench, "vm-a", vec![], vec![delay])];
    let key = begin(&mut bench, Scenario::Planned, &groups).await;
    let app = bench.app().await;
    until_it_waits(&mut bench, &app, &key, "pause").await;
    // Two thirds of the time, twice, each with a process of its own.
    let app = restarted(&mut bench, Duration::from_secs(400)).await;
    bench.report(&app).await;
    until_it_waits(&mut bench, &app, &key, "pause").await;
    let app = restarted(&mut bench, Duration::from_secs(800)).await;
    bench.report(&app).await;
    let step = step_with(&app, &key, Trial::default()).await.expect("step");
    assert_ne!(step, Step::Waiting, "the delay goes on");
    assert_eq!(
        task(&job(&bench, &key).await, "pause").state,
        JobState::Succeeded
    );
}

#[tokio::test]
async fn a_console_that_stays_silent_fails_in_time_over_restarts_but_never_before_its_host_was_heard()
 {
    let mut bench = world(Scenario::Planned).await;
    let groups = [group(&bench, "vm-a", vec![], vec![console("ready")])];
    let key = begin(&mut bench, Scenario::Planned, &groups).await;
    let app = bench.app().await;
    bench.silent_console = true;
    // As if it had taken the VM for up: the check decides.
    app.advance(Duration::from_secs(1));
    for _ in 0..200 {
        step_with(&app, &key, Trial::default()).await.expect("step");
        bench.report(&app).await;
        let reached = task(&job(&bench, &key).await, "ready").state;
        if reached == JobState::InProgress {
            break;
        }
        let present = phase(&bench, "vm-a").await;
        if matches!(present, Phase::FailedOver(_)) {
            app.advance(Duration::from_secs(100));
            bench.report(&app).await;
        }
    }
    let waits = task(&job(&bench, &key).await, "ready").state;
    assert_eq!(waits, JobState::InProgress);
    let far = Duration::from_secs(40_000);
    let app = restarted(&mut bench, far).await;
    let live = app.fleet.get(ENGINE).unwrap_or_default();
    assert!(!live.connected(app.now_ms()));
    let step = step_with(&app, &key, Trial::default()).await.expect("step");
    assert_eq!(step, Step::Waiting, "nobody has heard the host yet");
    bench.report(&app).await;
    let said = app.fleet.get(ENGINE).expect("host").report;
    let states: Vec<_> = said
        .recovered_vms
        .iter()
        .map(v1::RecoveredVmStatus::state)
        .collect();
    assert_eq!(states, [v1::recovered_vm_status::State::Running]);
    step_with(&app, &key, Trial::default()).await.expect("step");
    let failure = job(&bench, &key).await.failure.expect("failure");
    assert_eq!(
        failure.code, "VirtualMachineNotReady",
        "{}",
        failure.message
    );
}
