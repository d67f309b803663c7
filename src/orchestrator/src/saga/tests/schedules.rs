//! Steps of drill schedules that were made and could not be noted, and receivers that hold nobody up.

use std::sync::Arc;
use std::time::Duration;

use arm_model::job::JobState;
use tokio_util::sync::CancellationToken;

use super::bench::Bench;
use crate::app::App;
use crate::saga::runner::{Step, Trial, step_with};
use crate::schedule::due::Rule;
use crate::schedule::{Notice, Run, Schedule, run};
use crate::store::records::{self, JobRecord};
use crate::store::{Expect, ResourceStore as _};

fn schedule(bench: &Bench, name: &str, since_unix_ms: i64) -> Schedule {
    Schedule {
        id: format!("{}/drillSchedules/{name}", bench.vault),
        target: bench.item_id("vm-a").to_string(),
        rule: Rule::Every { hours: 1 },
        keep_minutes: 10,
        webhooks: Vec::new(),
        always: false,
        enabled: true,
        since_unix_ms,
        done_until_unix_ms: since_unix_ms,
        runs: Vec::new(),
    }
}

fn key(schedule: &Schedule) -> String {
    schedule.id.to_ascii_lowercase()
}

async fn keep(bench: &Bench, schedule: &Schedule) {
    let put = records::put(key(schedule), schedule, Expect::Any).expect("record");
    bench.store.apply(vec![put]).await.expect("stored");
}

async fn stored(bench: &Bench, schedule: &Schedule) -> Schedule {
    let stored = records::get::<Schedule>(&bench.store, &key(schedule)).await;
    stored.expect("get").expect("schedule").record
}

async fn jobs(bench: &Bench, workflow: &str) -> Vec<JobRecord> {
    let jobs = records::list::<JobRecord>(&bench.store, "")
        .await
        .expect("jobs");
    let jobs = jobs.into_iter().map(|job| job.record);
    jobs.filter(|job| job.workflow == workflow).collect()
}

/// Looks at the schedules until one is as wanted.
async fn until(
    bench: &mut Bench,
    app: &App,
    of: &Schedule,
    wanted: impl Fn(&Schedule) -> bool,
) -> Schedule {
    for _ in 0..20 {
        bench.report(app).await;
        run::look(app).await.expect("look");
        let now = stored(bench, of).await;
        if wanted(&now) {
            return now;
        }
    }
    panic!("never came true: {:?}", stored(bench, of).await);
}

#[tokio::test]
async fn a_clean_up_that_was_asked_for_and_could_not_be_noted_is_found_again() {
    let mut bench = Bench::new().await;
    bench.protected("vm-a").await;
    let app = bench.app().await;
    let plain = schedule(&bench, "hourly", app.now_ms());
    keep(&bench, &plain).await;
    app.advance(Duration::from_secs(3_700));
    until(&mut bench, &app, &plain, |now| {
        now.runs.first().is_some_and(|run| !run.job.is_empty())
    })
    .await;
    let drill = jobs(&bench, "testFailover").await.remove(0);
    let drill = drill.id.to_ascii_lowercase();
    loop {
        bench.report(&app).await;
        if step_with(&app, &drill, Trial::default())
            .await
            .expect("step")
            == Step::Ended
        {
            break;
        }
    }
    let over = until(&mut bench, &app, &plain, |now| {
        !now.runs[0].verdict.is_empty()
    })
    .await;
    app.advance(Duration::from_secs(11 * 60));
    let asked = until(&mut bench, &app, &plain, |now| {
        !now.runs[0].cleanup.job.is_empty()
    })
    .await;
    // Somebody changed the schedule between: what it says is what it said before.
    keep(&bench, &over).await;
    let again = until(&mut bench, &app, &plain, |now| {
        now.runs[0].cleanup != over.runs[0].cleanup
    })
    .await;
    assert_eq!(again.runs[0].cleanup, asked.runs[0].cleanup);
    let jobs = jobs(&bench, "testFailoverCleanup").await;
    assert_eq!(jobs.len(), 1);
    assert_ne!(jobs[0].properties.state, JobState::Failed);
}

#[tokio::test]
async fn a_webhook_that_does_not_answer_holds_up_no_other_schedule() {
    engine_protocol::tls::install_crypto();
    let mut bench = Bench::new().await;
    bench.protected("vm-a").await;
    let app: Arc<App> = bench.app().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("port");
    let mut told = schedule(&bench, "a", app.now_ms());
    told.webhooks = vec![format!(
        "http://{}/",
        listener.local_addr().expect("address")
    )];
    told.runs = vec![Run {
        due_unix_ms: 1,
        skipped: "for a test".to_owned(),
        notice: Notice {
            wanted: true,
            ..Notice::default()
        },
        ..Run::default()
    }];
    keep(&bench, &told).await;
    let stop = CancellationToken::new();
    let loops = tokio::spawn(run::run(Arc::clone(&app), stop.clone()));
    let (_held, _) = listener.accept().await.expect("the webhook is called");
    let due = schedule(&bench, "b", app.now_ms() - 3_700_000);
    keep(&bench, &due).await;
    app.ring();
    while stored(&bench, &due).await.runs.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        stored(&bench, &told).await.runs[0].notice.tries,
        0,
        "the webhook has not answered"
    );
    stop.cancel();
    loops.await.expect("ends");
}
