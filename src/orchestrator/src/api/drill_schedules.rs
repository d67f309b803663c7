//! `V/drillSchedules/{name}`: drills that start by themselves. An extension of ours.

use arm_model::drill_schedule::{
    ALWAYS, DAYS, DrillScheduleProperties, MAX_HOURS, MAX_KEEP_MINUTES, MAX_URL, MAX_WEBHOOKS,
    ON_FAILURE, is_webhook, minute_of_day, shortened,
};
use arm_model::{ArmId, Page, PlanId, ProtectedItemId, VaultId, timestamp, validate};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::entry::{Call, unknown_path};
use super::load;
use super::reply::Reply;
use crate::app::App;
use crate::fault::Fault;
use crate::schedule::due::Rule;
use crate::schedule::{Run, Schedule, run};
use crate::store::records::{self, Stored};
use crate::store::{Change, Expect};

/// GET, PUT, DELETE of a schedule.
///
/// # Errors
/// What is refused.
pub async fn handle(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    let id = vault.child("drillSchedules", &load::name(call, "drillSchedules")?);
    match call.method {
        "GET" => {
            let stored = load::require::<Schedule>(call.app, id.as_str()).await?;
            Reply::versioned(&answer(&stored), stored.etag)
        }
        "PUT" => put(call, &vault, &id).await,
        "DELETE" => {
            let store = call.app.store.as_ref();
            let Some(stored) = records::get::<Schedule>(store, &id.key()).await? else {
                return Ok(Reply::Empty(StatusCode::NO_CONTENT));
            };
            call.precondition(Some(stored.etag))?;
            if let Some(open) = stored.record.runs.last().filter(|run| run.is_open()) {
                return Err(Fault::conflict(
                    "OperationNotAllowed",
                    id.as_str(),
                    format!(
                        "The last drill of the schedule is not cleaned up yet; its target is `{}`.",
                        open.target(&stored.record)
                    ),
                    "Wait until the schedule has removed the test VMs, or clean the test failover of the target up, then delete the schedule.",
                ));
            }
            // A drill that is noted in between must not be forgotten.
            let change = Change::Delete {
                key: id.key(),
                expect: Expect::Etag(stored.etag),
            };
            store.apply(vec![change]).await?;
            Ok(Reply::Empty(StatusCode::OK))
        }
        _ => Err(unknown_path(&call.path)),
    }
}

/// `V/drillSchedules`.
///
/// # Errors
/// 404 without a vault.
pub async fn list(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    let below = format!("{}/", vault.key());
    let schedules = records::list::<Schedule>(call.app.store.as_ref(), &below).await?;
    Reply::ok(&Page {
        value: schedules.iter().map(answer).collect::<Vec<_>>(),
        next_link: None,
    })
}

async fn put(call: &Call<'_>, vault: &VaultId, id: &ArmId) -> Result<Reply, Fault> {
    let wish: DrillScheduleProperties = call.properties()?;
    let target = target(call, vault, &wish.target_id).await?;
    let rule = rule(&wish)?;
    if !(1..=MAX_KEEP_MINUTES).contains(&wish.keep_for_minutes) {
        return Err(Fault::invalid(
            "properties.keepForMinutes",
            format!("Test VMs are kept for 1 to {MAX_KEEP_MINUTES} minutes."),
        ));
    }
    let always = match wish.notify.as_str() {
        ON_FAILURE => false,
        ALWAYS => true,
        other => {
            return Err(Fault::invalid(
                "properties.notify",
                format!("`{other}` is not possible; use `{ON_FAILURE}` or `{ALWAYS}`."),
            ));
        }
    };
    let store = call.app.store.as_ref();
    let known = records::get::<Schedule>(store, &id.key()).await?;
    if known.is_none() {
        validate::resource_name(id.name())
            .map_err(|violation| Fault::refuse(400, violation.into_error("name")))?;
    }
    let etag = known.as_ref().map(|known| known.etag);
    call.precondition(etag)?;
    let now = call.app.now_ms();
    let before = known.map(|known| known.record);
    let stored_hooks = before
        .as_ref()
        .map(|known| known.webhooks.as_slice())
        .unwrap_or_default();
    let webhooks = webhooks(&wish.webhooks, stored_hooks)?;
    let mut runs = before
        .as_ref()
        .map(|known| known.runs.clone())
        .unwrap_or_default();
    if let Some(known) = &before {
        // Runs of earlier releases don't know what they have drilled.
        for run in runs.iter_mut().filter(|run| run.target.is_empty()) {
            run.target.clone_from(&known.target);
        }
    }
    // Switched off and on again it does not make up for what was due in between.
    let same = |known: &&Schedule| known.rule == rule && (known.enabled || !wish.enabled);
    let (since, until) = before.as_ref().filter(same).map_or((now, now), |known| {
        (known.since_unix_ms, known.done_until_unix_ms)
    });
    let record = Schedule {
        id: before
            .as_ref()
            .map_or_else(|| id.as_str().to_owned(), |known| known.id.clone()),
        target,
        rule,
        keep_minutes: wish.keep_for_minutes,
        webhooks,
        always,
        enabled: wish.enabled,
        since_unix_ms: since,
        done_until_unix_ms: until,
        runs,
    };
    store
        .apply(vec![records::put(id.key(), &record, Call::expect(etag))?])
        .await?;
    call.app.ring();
    let stored = load::require::<Schedule>(call.app, id.as_str()).await?;
    let status = if etag.is_some() {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    Reply::json(status, &answer(&stored), Some(stored.etag))
}

async fn target(call: &Call<'_>, vault: &VaultId, wanted: &str) -> Result<String, Fault> {
    let at = "properties.targetId";
    let id = ArmId::parse(wanted).map_err(|error| Fault::invalid(at, format!("{error}.")))?;
    let fits = PlanId::parse(wanted).is_ok() || ProtectedItemId::parse(wanted).is_ok();
    if !fits || VaultId::of(&id).is_none_or(|of| of.key() != vault.key()) {
        return Err(Fault::invalid(
            at,
            "The target is a recovery plan or a protected item of this vault.",
        ));
    }
    call.may_use(&id, at)?;
    if !exists(call.app, wanted).await? {
        return Err(Fault::invalid(at, format!("There is no `{wanted}`.")));
    }
    Ok(id.as_str().to_owned())
}

async fn exists(app: &App, target: &str) -> Result<bool, Fault> {
    Ok(run::exists(app, target).await?)
}

fn rule(wish: &DrillScheduleProperties) -> Result<Rule, Fault> {
    match (wish.every_hours, wish.time.as_deref()) {
        (Some(hours), None) if wish.days.is_empty() => {
            if !(1..=MAX_HOURS).contains(&hours) {
                return Err(Fault::invalid(
                    "properties.everyHours",
                    format!("A drill is possible every 1 to {MAX_HOURS} hours."),
                ));
            }
            Ok(Rule::Every { hours })
        }
        (None, Some(time)) => {
            let minute = minute_of_day(time).ok_or_else(|| {
                Fault::invalid(
                    "properties.time",
                    format!("`{time}` is no time of day such as `02:30`; it is in UTC."),
                )
            })?;
            let mut days = Vec::new();
            for day in &wish.days {
                let number = DAYS
                    .iter()
                    .position(|known| known == day)
                    .and_then(|number| u8::try_from(number).ok());
                days.push(number.ok_or_else(|| {
                    Fault::invalid(
                        "properties.days",
                        format!("`{day}` is no day such as `Monday`."),
                    )
                })?);
            }
            days.sort_unstable();
            days.dedup();
            if days.is_empty() {
                return Err(Fault::invalid(
                    "properties.days",
                    "At least one day of the week is needed.",
                ));
            }
            Ok(Rule::Weekly { days, minute })
        }
        _ => Err(Fault::invalid(
            "properties",
            "Give `days` and `time`, or `everyHours`, and not both.",
        )),
    }
}

/// The addresses that a client means. One that is shortened as answers show it stands for the stored one.
fn webhooks(wanted: &[String], stored: &[String]) -> Result<Vec<String>, Fault> {
    let at = "properties.webhooks";
    let hidden = |short: &str| -> Vec<&String> {
        let kept = stored.iter().filter(|url| !wanted.contains(url));
        kept.filter(|url| shortened(url) == short).collect()
    };
    let mut urls = Vec::new();
    for (number, url) in wanted.iter().enumerate() {
        let meant = hidden(url);
        let same = |others: &[String]| others.iter().filter(|other| *other == url).count();
        if meant.is_empty() {
            urls.push(url.clone());
        } else if same(wanted) == meant.len() {
            let nth = same(wanted.get(..number).unwrap_or_default());
            urls.extend(meant.get(nth).copied().cloned());
        } else {
            return Err(Fault::invalid(
                at,
                format!("`{url}` may be one of several stored addresses; give them in full."),
            ));
        }
    }
    if urls.len() > MAX_WEBHOOKS || !urls.iter().all(|url| is_webhook(url)) {
        return Err(Fault::invalid(
            at,
            format!(
                "At most {MAX_WEBHOOKS} https:// addresses of up to {MAX_URL} characters, without user and password; http:// only on this machine itself."
            ),
        ));
    }
    Ok(urls)
}

fn answer(stored: &Stored<Schedule>) -> Value {
    let schedule = &stored.record;
    let mut properties = json!({
        "targetId": schedule.target,
        "keepForMinutes": schedule.keep_minutes,
        "webhooks": schedule.webhooks.iter().map(|url| shortened(url)).collect::<Vec<_>>(),
        "notify": if schedule.always { ALWAYS } else { ON_FAILURE },
        "enabled": schedule.enabled,
        "nextDrillTime": schedule
            .enabled
            .then(|| schedule.rule.next(schedule.since_unix_ms, schedule.done_until_unix_ms))
            .flatten()
            .and_then(timestamp::from_unix_ms),
        "runs": schedule.runs.iter().rev().map(told).collect::<Vec<_>>(),
    });
    match &schedule.rule {
        Rule::Every { hours } => properties["everyHours"] = json!(hours),
        Rule::Weekly { days, minute } => {
            properties["time"] = json!(format!("{:02}:{:02}", minute / 60, minute % 60));
            let names = days.iter().filter_map(|day| DAYS.get(usize::from(*day)));
            properties["days"] = json!(names.collect::<Vec<_>>());
        }
    }
    json!({
        "id": schedule.id,
        "name": schedule.id.rsplit('/').next(),
        "type": "Microsoft.RecoveryServices/vaults/drillSchedules",
        "properties": properties,
    })
}

fn told(run: &Run) -> Value {
    let notice = &run.notice;
    json!({
        "dueTime": timestamp::from_unix_ms(run.due_unix_ms),
        "missedDrills": run.missed,
        "jobId": run.job,
        "skippedReason": run.skipped,
        "verdict": run.verdict,
        "cleanup": { "jobId": run.cleanup.job, "done": run.cleanup.done, "problem": run.cleanup.problem },
        "notification": {
            "wanted": notice.wanted, "delivered": notice.delivered, "tries": notice.tries, "problem": notice.problem,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(urls: &[&str]) -> Vec<String> {
        urls.iter().map(|url| (*url).to_owned()).collect()
    }

    #[test]
    fn a_shortened_address_stands_for_the_stored_one_and_for_no_other() {
        let (one, two) = ("https://a.example/one", "https://a.example/two?key=1");
        let stored = list(&[one, two]);
        let short = shortened(two);
        assert_eq!(short, "https://a.example/…");
        let means = |wanted: &[&str]| webhooks(&list(wanted), &stored).ok();
        assert_eq!(means(&[&short, &short]), Some(stored.clone()));
        assert_eq!(means(&[one, &short]), Some(stored.clone()));
        // One of two: which one is not known.
        assert_eq!(means(&[&short]), None);
        assert_eq!(means(&["https://b.example/…"]), None);
        assert_eq!(means(&[]), Some(Vec::new()));
    }
}
