//! Carries schedules out: one step at a time, each stored on the version of the schedule that it was decided on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arm_model::job::JobState;
use arm_model::{ArmId, VaultId, timestamp};
use axum::http::HeaderMap;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::{KEEP_RUNS, Run, Schedule, tell};
use crate::api::entry::{Call, unknown_path};
use crate::api::reply::Reply;
use crate::api::{route, test_failover};
use crate::app::App;
use crate::fault::Fault;
use crate::report::{self, Verdict};
use crate::store::records::{self, EngineRecord, Item, JobRecord, Plan, Stored};
use crate::store::{Expect, StoreError};

/// How often schedules are looked at, when nothing happens.
pub(super) const LOOK: Duration = Duration::from_secs(5);
/// Reports ring several times a second.
pub(super) const CALM: Duration = Duration::from_millis(250);
/// Between tries to clean up.
const CLEAN_AGAIN_MS: i64 = 10 * 60_000;
/// For hosts to report, after a drill became due.
const HOSTS_MS: i64 = 2 * 60_000;
const API_VERSION: &str = "2025-08-01";

/// Runs until `stop`: the steps, and beside them what is told of them.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    tokio::join!(steps(&app, &stop), tell::run(&app, &stop));
}

async fn steps(app: &App, stop: &CancellationToken) {
    let mut bell = app.listen();
    loop {
        if let Err(error) = look(app).await {
            warn!(
                error = &error as &dyn std::error::Error,
                "schedules can't be carried out; it is tried again"
            );
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
            _ = bell.changed() => {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(CALM) => {}
                }
            }
        }
    }
}

/// One step of every schedule.
///
/// # Errors
/// Failures of the store.
pub async fn look(app: &App) -> Result<(), StoreError> {
    for schedule in records::list::<Schedule>(app.store.as_ref(), "").await? {
        match step(app, schedule).await {
            Err(error) if error.is_conflict() => {}
            other => other?,
        }
    }
    Ok(())
}

async fn step(app: &App, mut stored: Stored<Schedule>) -> Result<(), StoreError> {
    let before = stored.record.clone();
    for run in &mut stored.record.runs {
        follow(app, &before, run).await?;
    }
    if stored.record != before {
        return keep(app, &stored).await;
    }
    let schedule = &mut stored.record;
    let (since, until, now) = (
        schedule.since_unix_ms,
        schedule.done_until_unix_ms,
        app.now_ms(),
    );
    let Some(due) = schedule
        .rule
        .due(since, until, now)
        .filter(|_| schedule.enabled)
    else {
        return Ok(());
    };
    let busy = schedule.runs.last().is_some_and(Run::is_open);
    let mut next = Run {
        due_unix_ms: due.at_ms,
        target: schedule.target.clone(),
        noted_unix_ms: now,
        missed: due.missed,
        ..Run::default()
    };
    schedule.done_until_unix_ms = due.at_ms;
    if busy {
        // It goes behind the one that is open, which must stay the last one.
        skip(&mut next, "The drill before it is not cleaned up yet.");
        let open = schedule.runs.pop();
        schedule.runs.push(next);
        schedule.runs.extend(open);
    } else {
        schedule.runs.push(next);
    }
    let over = schedule.runs.len().saturating_sub(KEEP_RUNS);
    schedule.runs.drain(..over);
    info!(schedule = %schedule.id, due = ?timestamp::from_unix_ms(due.at_ms), missed = due.missed, busy, "a scheduled drill is due");
    keep(app, &stored).await
}

async fn keep(app: &App, stored: &Stored<Schedule>) -> Result<(), StoreError> {
    let put = records::put(&stored.key, &stored.record, Expect::Etag(stored.etag))?;
    app.store.apply(vec![put]).await.map(|_| ())
}

fn skip(run: &mut Run, reason: impl Into<String>) {
    run.skipped = reason.into();
    run.notice.wanted = true;
}

/// The next step of a run, if there is one.
async fn follow(app: &App, schedule: &Schedule, run: &mut Run) -> Result<(), StoreError> {
    let now = app.now_ms();
    if !run.is_open() {
        return Ok(());
    }
    if run.job.is_empty() {
        return start(app, schedule, run).await;
    }
    let job = records::get::<JobRecord>(app.store.as_ref(), &run.job.to_ascii_lowercase()).await?;
    let Some(job) = job.map(|job| job.record) else {
        // A drill's job stays for as long as the drill: without it nothing is left to be removed.
        if run.verdict.is_empty() {
            "Unknown".clone_into(&mut run.verdict);
            run.notice.wanted = true;
        }
        run.cleanup.done = true;
        return Ok(());
    };
    if !job.properties.state.is_final() {
        return Ok(());
    }
    if run.verdict.is_empty() {
        let verdict = report::build(&job, &[]).verdict;
        run.verdict = format!("{verdict:?}");
        let well = matches!(verdict, Verdict::Passed | Verdict::PassedWithRemarks);
        run.notice.wanted = schedule.always || !well;
        // One that failed has taken its VMs back itself.
        run.cleanup.done = job.properties.state != JobState::Succeeded;
        let end = job
            .properties
            .end_time
            .as_deref()
            .and_then(timestamp::to_unix_ms);
        run.cleanup.not_before_unix_ms =
            end.unwrap_or(now) + i64::from(schedule.keep_minutes) * 60_000;
        return Ok(());
    }
    if job
        .properties
        .custom_details
        .test_failover_status
        .as_deref()
        == Some("Completed")
    {
        // By us or by somebody else.
        run.cleanup.done = true;
        return Ok(());
    }
    clean(app, schedule, run).await
}

async fn clean(app: &App, schedule: &Schedule, run: &mut Run) -> Result<(), StoreError> {
    let now = app.now_ms();
    let problem = if run.cleanup.job.is_empty() {
        if now < run.cleanup.not_before_unix_ms {
            return Ok(());
        }
        if let Some(job) = asked_before(app, schedule, run).await? {
            run.cleanup.job = job;
            return Ok(());
        }
        if !is_drilled(app, schedule, run).await? {
            run.cleanup.done = true;
            return Ok(());
        }
        let comments = format!("Removed by schedule {}.", name(schedule));
        let body = json!({ "properties": { "comments": comments } });
        let job_name = cleanup_name(schedule, run);
        let answer = ask(
            app,
            schedule,
            run,
            "testFailoverCleanup",
            body,
            Some(job_name),
        );
        match answer.await {
            Ok(job) => {
                run.cleanup.job = job;
                return Ok(());
            }
            Err(fault) => words(fault)?,
        }
    } else {
        let key = run.cleanup.job.to_ascii_lowercase();
        let job = records::get::<JobRecord>(app.store.as_ref(), &key).await?;
        match job.map(|job| job.record) {
            Some(job) if !job.properties.state.is_final() => return Ok(()),
            job => job.and_then(|job| job.failure).map_or_else(
                || "The clean-up did not remove the test VMs.".to_owned(),
                |error| error.message,
            ),
        }
    };
    warn!(schedule = %schedule.id, %problem, "the test VMs of a scheduled drill can't be removed yet");
    let clean = &mut run.cleanup;
    clean.job.clear();
    clean.failures += 1;
    clean.problem = problem;
    clean.not_before_unix_ms = now + CLEAN_AGAIN_MS;
    if clean.failures == 1 {
        // Told once more: somebody has to look.
        run.notice = super::Notice {
            wanted: true,
            ..super::Notice::default()
        };
    }
    Ok(())
}

/// Name of the clean-up's job: the same for as long as it is the same try.
fn cleanup_name(schedule: &Schedule, run: &Run) -> String {
    let asked = request_id(schedule, run, "testFailoverCleanup");
    let text = format!(
        "{}|{asked}|{}",
        schedule.id.to_ascii_lowercase(),
        run.cleanup.failures
    );
    Uuid::new_v5(&Uuid::NAMESPACE_URL, text.as_bytes()).to_string()
}

/// The clean-up that was asked for and could not be noted: somebody had changed the schedule, or we were cut off.
async fn asked_before(
    app: &App,
    schedule: &Schedule,
    run: &Run,
) -> Result<Option<String>, StoreError> {
    let vault = ArmId::parse(run.target(schedule)).ok();
    let Some(vault) = vault.and_then(|id| VaultId::of(&id)) else {
        return Ok(None);
    };
    let key = vault.job(&cleanup_name(schedule, run)).key();
    let job = records::get::<JobRecord>(app.store.as_ref(), &key).await?;
    Ok(job.map(|job| job.record.id))
}

/// Whether an item or a plan still belongs to the drill of a run.
async fn is_drilled(app: &App, schedule: &Schedule, run: &Run) -> Result<bool, StoreError> {
    let (store, below) = (app.store.as_ref(), vault(run.target(schedule)));
    let is_ours = |job: Option<&str>| job.is_some_and(|job| job.eq_ignore_ascii_case(&run.job));
    let items = records::list::<Item>(store, &below).await?;
    if items
        .iter()
        .any(|item| is_ours(item.record.drill_job.as_deref()))
    {
        return Ok(true);
    }
    let plans = records::list::<Plan>(store, &below).await?;
    Ok(plans
        .iter()
        .any(|plan| is_ours(plan.record.drill_job.as_deref())))
}

/// The key below which everything of a target's vault is.
fn vault(target: &str) -> String {
    let vault = ArmId::parse(target).ok().and_then(|id| VaultId::of(&id));
    vault
        .map(|vault| format!("{}/", vault.key()))
        .unwrap_or_default()
}

/// Asks for the drill, or finds the one that was asked for before we were cut off.
async fn start(app: &App, schedule: &Schedule, run: &mut Run) -> Result<(), StoreError> {
    let asked = format!("{} ActivityId: ", request_id(schedule, run, "testFailover"));
    let target = run.target(schedule);
    let below = vault(target);
    let jobs = records::list::<JobRecord>(app.store.as_ref(), &below).await?;
    // Clients choose their request ids, but not who they are.
    let client = client_id(schedule);
    let is_ours = |job: &JobRecord| {
        let asked_by = job.properties.custom_details.extra.get("requestedBy");
        job.properties.activity_id.starts_with(&asked)
            && job.workflow == "testFailover"
            && job.resource.eq_ignore_ascii_case(target)
            && asked_by.and_then(Value::as_str) == Some(client.as_str())
    };
    if let Some(job) = jobs.into_iter().find(|job| is_ours(&job.record)) {
        run.job = job.record.id;
        return Ok(());
    }
    if app.now_ms() - run.noted_unix_ms < HOSTS_MS && !hosts_are_there(app, &below).await? {
        return Ok(());
    }
    match ask(
        app,
        schedule,
        run,
        "testFailover",
        json!({ "properties": {} }),
        None,
    )
    .await
    {
        Ok(job) => run.job = job,
        Err(fault) => skip(run, words(fault)?),
    }
    Ok(())
}

/// Whether all hosts of a vault report. After a restart of ours they need a moment, and a drill without them would fail.
async fn hosts_are_there(app: &App, vault: &str) -> Result<bool, StoreError> {
    let now = app.now_ms();
    let engines = records::list::<EngineRecord>(app.store.as_ref(), "~engine/").await?;
    let mut ours = engines.iter().filter(|engine| {
        engine
            .record
            .fabric_id
            .to_ascii_lowercase()
            .starts_with(vault)
    });
    Ok(ours.all(|engine| app.fleet.connected(&engine.record.engine_id, now)))
}

/// Why a request was refused; failures of the store are none.
fn words(fault: Fault) -> Result<String, StoreError> {
    match fault {
        Fault::Refused { error, .. } => Ok(error.message),
        Fault::Store(error) => Err(error),
    }
}

fn name(schedule: &Schedule) -> &str {
    schedule.id.rsplit('/').next().unwrap_or_default()
}

/// Who asks for drills of a schedule, as jobs note it.
fn client_id(schedule: &Schedule) -> String {
    format!("schedule {}", name(schedule))
}

fn request_id(schedule: &Schedule, run: &Run, action: &str) -> String {
    format!(
        "drill-schedule {} {} {action}",
        name(schedule),
        run.due_unix_ms
    )
}

/// Sends a request as a client would: the same checks, the same job. Gives the job.
async fn ask(
    app: &App,
    schedule: &Schedule,
    run: &Run,
    action: &str,
    body: Value,
    job_name: Option<String>,
) -> Result<String, Fault> {
    let path = format!("{}/{action}", run.target(schedule));
    let call = Call {
        app,
        method: "POST",
        route: route::parse(&path.replace('%', "%25")).ok_or_else(|| unknown_path(&path))?,
        query: HashMap::new(),
        headers: HeaderMap::new(),
        body,
        request_id: request_id(schedule, run, action),
        api_version: API_VERSION.to_owned(),
        path: path.clone(),
        scope: "/".to_owned(),
        client_id: client_id(schedule),
        job_name,
    };
    let is_plan = call.route.kinds == "vaults/replicationrecoveryplans";
    let reply = match (is_plan, action) {
        (true, "testFailover") => test_failover::start_plan(&call).await,
        (true, _) => test_failover::clean_plan(&call).await,
        (false, "testFailover") => test_failover::start_item(&call).await,
        (false, _) => test_failover::clean_item(&call).await,
    }?;
    match reply {
        Reply::Accepted { job, .. } => Ok(job.as_str().to_owned()),
        _ => Err(unknown_path(&path)),
    }
}

/// Whether the target of a schedule is there.
///
/// # Errors
/// Failures of the store.
pub async fn exists(app: &App, target: &str) -> Result<bool, StoreError> {
    let (store, key) = (app.store.as_ref(), target.to_ascii_lowercase());
    Ok(records::get::<Plan>(store, &key).await?.is_some()
        || records::get::<Item>(store, &key).await?.is_some())
}
