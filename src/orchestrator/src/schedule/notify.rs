//! Tells webhooks how a scheduled drill went. Tries with growing pauses; what came out is kept with the run.

use std::time::Duration;

use arm_model::timestamp;
use futures::future::join_all;
use serde_json::{Value, json};

use super::{Notice, Run, Schedule};

/// For one webhook to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Rounds before it is given up: with the pauses a little over a day.
pub const TRIES: u32 = 12;

/// Until the next round: 10 s, doubled each time, at most 6 h.
#[must_use]
pub fn pause_ms(tries: u32) -> i64 {
    (10_000_i64 << tries.saturating_sub(1).min(20)).min(6 * 3_600_000)
}

/// What is told. No secrets: ids, the verdict and where the report is.
#[must_use]
pub fn message(schedule: &Schedule, run: &Run, public_url: &str) -> Value {
    let report =
        (!run.job.is_empty()).then(|| format!("{public_url}{}/drillReport?format=html", run.job));
    let verdict = if run.skipped.is_empty() {
        run.verdict.as_str()
    } else {
        "Skipped"
    };
    json!({
        "event": "ScheduledDrill",
        "schedule": schedule.id,
        "target": run.target(schedule),
        "dueTime": timestamp::from_unix_ms(run.due_unix_ms),
        "missedDrills": run.missed,
        "verdict": verdict,
        "reason": run.skipped,
        "jobId": run.job,
        "reportUrl": report,
        "cleanupProblem": run.cleanup.problem,
    })
}

/// One round to all who have not taken it yet, at the same time: a slow one holds up no other.
pub async fn tell(schedule: &Schedule, run: &Run, public_url: &str, now_ms: i64) -> Notice {
    let mut notice = run.notice.clone();
    notice.problem.clear();
    let body = message(schedule, run, public_url).to_string();
    let open = schedule.webhooks.iter().enumerate();
    let open: Vec<_> = open
        .filter(|(_, url)| !notice.taken_by.contains(url))
        .collect();
    let answers = join_all(open.iter().map(|(_, url)| post(url, body.clone()))).await;
    for ((number, url), answer) in open.into_iter().zip(answers) {
        match answer {
            Ok(()) => notice.taken_by.push(url.clone()),
            Err(problem) => notice.problem = format!("webhook {}: {problem}", number + 1),
        }
    }
    notice.tries += 1;
    notice.delivered = notice.problem.is_empty();
    notice.next_try_unix_ms = now_ms + pause_ms(notice.tries);
    notice
}

async fn post(url: &str, body: String) -> Result<(), String> {
    let client = reqwest::Client::builder()
        .timeout(PATIENCE)
        // A webhook that sends us elsewhere may send us to where we must not go.
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| error.without_url().to_string())?;
    let request = client.post(url).header("content-type", "application/json");
    let answer = request.body(body).send().await;
    let status = answer
        .map_err(|error| error.without_url().to_string())?
        .status();
    if status.is_success() {
        Ok(())
    } else {
        Err(format!("it answered {}", status.as_u16()))
    }
}
