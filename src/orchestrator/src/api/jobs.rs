//! Jobs: list, get, cancel, resume.

use std::sync::atomic::{AtomicBool, Ordering};

use arm_model::job::{JobProperties, JobState};
use arm_model::{ArmError, JobId, Page, Resource, timestamp};

use super::drill_report;
use super::entry::{Call, unknown_path};
use super::filter::Filter;
use super::load;
use super::reply::Reply;
use crate::auth::{clients, oauth};
use crate::fault::Fault;
use crate::saga::person;
use crate::saga::state::Phase;
use crate::store::records::{self, JobRecord};

/// Body of `resume`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ResumeJob {
    comments: Option<String>,
}

/// Entries of a page.
const PAGE: usize = 100;

/// GET, POST cancel and resume.
///
/// # Errors
/// What is refused.
pub async fn handle(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    let id = vault.job(&load::name(call, "replicationJobs")?);
    match (call.method, call.route.tail.as_deref()) {
        ("GET", None) => {
            let stored = load::require::<JobRecord>(call.app, id.as_str()).await?;
            Reply::versioned(&answer(&stored.record, true)?, stored.etag)
        }
        ("GET", Some("drillreport")) => drill_report::get(call, &id).await,
        ("POST", Some("cancel")) => cancel(call, &id).await,
        ("POST", Some("resume")) => resume(call, &id).await,
        ("POST", Some("restart")) => Err(Fault::conflict(
            "OperationNotAllowed",
            id.as_str(),
            "This job can't be started again.",
            "Repeat the request that made the job.",
        )),
        _ => Err(unknown_path(&call.path)),
    }
}

/// `V/replicationJobs`, newest first, without their tasks.
///
/// # Errors
/// 404 without a vault; 400 for a filter that can't be read.
pub async fn list(call: &Call<'_>) -> Result<Reply, Fault> {
    let (vault, _) = load::vault(call).await?;
    let filter = Filter::parse(call.query.get("$filter").map_or("", String::as_str))?;
    let instant = |name: &str| match filter.first(name) {
        None => Ok(None),
        Some(text) => timestamp::to_unix_ms(text).map(Some).ok_or_else(|| {
            Fault::invalid(
                "$filter",
                format!("`{text}` is no instant such as 2031-03-04T05:06:07Z."),
            )
        }),
    };
    let (from, to) = (instant("startTime")?, instant("endTime")?);
    let fabric = filter
        .first("fabricId")
        .map(|id| id.trim_end_matches('/').to_ascii_lowercase());
    let mut jobs: Vec<JobRecord> =
        records::list::<JobRecord>(call.app.store.as_ref(), &format!("{}/", vault.key()))
            .await?
            .into_iter()
            .map(|stored| stored.record)
            .filter(|job| filter.allows("jobStatus", job.properties.state.as_str()))
            .filter(|job| filter.allows("jobName", &job.properties.scenario_name))
            .filter(|job| {
                filter.allows("affectedObjectTypes", &job.properties.target_instance_type)
            })
            .filter(|job| {
                fabric
                    .as_ref()
                    .is_none_or(|fabric| clients::covers(fabric, &job.resource))
            })
            .filter(|job| {
                from.is_none_or(|from| job.created_unix_ms >= from)
                    && to.is_none_or(|to| job.created_unix_ms <= to)
            })
            .collect();
    jobs.sort_by(|left, right| {
        right
            .created_unix_ms
            .cmp(&left.created_unix_ms)
            .then_with(|| left.id.cmp(&right.id))
    });
    let skip = call
        .query
        .get("$skipToken")
        .and_then(|text| text.parse::<usize>().ok())
        .unwrap_or_default();
    let more = jobs.len() > skip.saturating_add(PAGE);
    let value = jobs
        .iter()
        .skip(skip)
        .take(PAGE)
        .map(|job| answer(job, false))
        .collect::<Result<Vec<_>, _>>()?;
    let next_link = more.then(|| {
        let mut link = format!(
            "{}{vault}/replicationJobs?api-version={}&%24skipToken={}",
            call.app.public_url,
            call.api_version,
            skip + PAGE
        );
        if let Some(filter) = call.query.get("$filter") {
            link.push_str("&%24filter=");
            link.push_str(&oauth::escaped(filter));
        }
        link
    });
    Reply::ok(&Page { value, next_link })
}

/// A person goes on with a job that waits for that.
async fn resume(call: &Call<'_>, id: &JobId) -> Result<Reply, Fault> {
    load::require::<JobRecord>(call.app, id.as_str()).await?;
    let body: ResumeJob = call.properties()?;
    let comments = body.comments.as_deref();
    let waited = AtomicBool::new(false);
    let job = records::update::<JobRecord>(call.app.store.as_ref(), &id.key(), |job| {
        let mut job = job.clone();
        let goes_on = person::resume(&mut job, comments);
        waited.store(goes_on, Ordering::Relaxed);
        goes_on.then_some(job)
    })
    .await?
    .ok_or_else(|| Fault::not_found(id.as_str()))?;
    if !waited.into_inner() {
        return Err(Fault::conflict(
            "OperationNotAllowed",
            id.as_str(),
            format!(
                "The job is in state `{}` and doesn't wait for anybody.",
                job.properties.state.as_str()
            ),
            "Only a suspended job can be resumed.",
        ));
    }
    call.app.ring();
    Reply::ok(&answer(&job, true)?)
}

async fn cancel(call: &Call<'_>, id: &JobId) -> Result<Reply, Fault> {
    load::require::<JobRecord>(call.app, id.as_str()).await?;
    let job = records::update::<JobRecord>(call.app.store.as_ref(), &id.key(), |job| {
        (job.phase == Phase::Forward && !job.cancel).then(|| {
            let mut job = job.clone();
            job.cancel = true;
            job.properties.allowed_actions.clear();
            if job.properties.state == JobState::Suspended {
                job.properties.state = JobState::InProgress;
                "InProgress".clone_into(&mut job.properties.state_description);
            }
            job
        })
    })
    .await?
    .ok_or_else(|| Fault::not_found(id.as_str()))?;
    if !job.cancel {
        return Err(Fault::refuse(
            409,
            ArmError::new(
                "OperationNotAllowed",
                "The job has ended already and can't be cancelled.",
            )
            .at(id.as_str()),
        ));
    }
    call.app.ring();
    // The answer is the job itself; whoever waits for its end polls the job's own operation.
    Reply::ok(&answer(&job, true)?)
}

fn answer(job: &JobRecord, whole: bool) -> Result<Resource<JobProperties>, Fault> {
    let id = JobId::parse(&job.id).map_err(|error| Fault::invalid("id", error.to_string()))?;
    let mut properties = job.properties.clone();
    if !whole {
        properties.tasks.clear();
    }
    let mut answer = Resource::answer(&id, properties);
    // Clients of before 2021 polled the job itself by these.
    answer.extra.insert(
        "status".to_owned(),
        serde_json::json!(job.properties.state.as_str()),
    );
    answer.extra.insert(
        "startTime".to_owned(),
        serde_json::json!(job.properties.start_time),
    );
    if let Some(end) = &job.properties.end_time {
        answer
            .extra
            .insert("endTime".to_owned(), serde_json::json!(end));
    }
    Ok(answer)
}
