//! Evidence of drills and failovers: pictures of displays and ends of consoles, as engines sent them, kept beside the job for
//! as long as the job.
//!
//! ```text
//!  ~evidence/<job key>/<vm id>        what was seen last
//!  ~evidence-mark/<engine id>/<vm id> which that is: the acknowledgement in the engine's desired state
//! ```
//!
//! A failover's VM lives on after its job. What is seen of it long after the job's end tells nothing of the failover: it is
//! acknowledged and not kept.

use std::collections::BTreeSet;

use arm_model::job::DRILL_DETAILS;
use arm_model::timestamp;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine_protocol::v1;
use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::failover;
use crate::store::records::{self, Item, JobRecord, Record, Recovered};
use crate::store::{Change, Expect, StoreError};

/// Largest picture that is kept.
pub const MAX_PNG_BYTES: usize = 256 << 10;
/// Longest console text that is kept.
pub const MAX_CONSOLE_BYTES: usize = 4 << 10;
/// Longest explanation that is kept.
const MAX_PROBLEM_BYTES: usize = 1 << 10;
/// After the end of a failover's job its VM may still be starting services that belong on the report.
const AFTER_JOB_MS: i64 = 60 * 60 * 1_000;
const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// What was seen of one VM of a drill or a failover.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// VM on the recovery host.
    pub vm_id: String,
    /// When it was seen.
    pub taken_unix_ms: i64,
    /// PNG in base64; empty = there is none.
    pub screenshot: String,
    /// End of the console.
    pub console: String,
    /// Why something is missing; empty = nothing is.
    pub problem: String,
}

impl Record for Kept {
    const KIND: &'static str = "evidence";
}

/// Which evidence of a VM is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Mark {
    id: String,
    job: String,
}

impl Record for Mark {
    const KIND: &'static str = "evidence-mark";
}

fn below(job: &str) -> String {
    format!("~evidence/{}/", job.to_ascii_lowercase())
}

fn mark_key(engine_id: &str, vm_id: &str) -> String {
    format!("~evidence-mark/{}/{vm_id}", engine_id.to_ascii_lowercase())
}

/// Keeps what an engine has seen of a VM of a drill or a failover. What is kept already, or belongs to neither any more, is
/// passed over.
///
/// # Errors
/// Failures of the store; the engine sends it again.
pub async fn take(app: &App, engine_id: &str, evidence: v1::Evidence) -> Result<(), StoreError> {
    let store = app.store.as_ref();
    let key = mark_key(engine_id, &evidence.vm_id);
    let known = records::get::<Mark>(store, &key).await?;
    if known
        .as_ref()
        .is_some_and(|mark| mark.record.id == evidence.id)
    {
        return Ok(());
    }
    let vm = records::recovered_key(engine_id, &evidence.vm_id);
    let job = match records::get::<Recovered>(store, &vm).await? {
        Some(vm) => Some(vm.record.job),
        None => job_of_failover(app, engine_id, &evidence.vm_id).await?,
    };
    let Some(job) = job.map(|job| job.to_ascii_lowercase()) else {
        return Ok(());
    };
    let mark = Mark {
        id: first_bytes(&evidence.id, 64),
        job: job.clone(),
    };
    if !still_tells(app, &job, evidence.taken_unix_ms).await? {
        // Acknowledged nevertheless: the engine tells of no other VM before that.
        let expect = known.map_or(Expect::Absent, |mark| Expect::Etag(mark.etag));
        return done(
            app.store
                .apply(vec![records::put(key, &mark, expect)?])
                .await,
        );
    }
    let kept = bounded(evidence);
    let changes = vec![
        records::put(format!("{}{}", below(&job), kept.vm_id), &kept, Expect::Any)?,
        records::put(
            key,
            &mark,
            known.map_or(Expect::Absent, |mark| Expect::Etag(mark.etag)),
        )?,
        // Evidence of a job that is gone would never be removed.
        Change::Check {
            key: job,
            expect: Expect::Present,
        },
    ];
    done(app.store.apply(changes).await)
}

/// Whoever was first decides; the engine sends again what is not acknowledged.
fn done<T>(applied: Result<T, StoreError>) -> Result<(), StoreError> {
    match applied {
        Ok(_) => Ok(()),
        Err(error) if error.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}

/// The job whose failover made a VM of this engine.
async fn job_of_failover(
    app: &App,
    engine_id: &str,
    vm_id: &str,
) -> Result<Option<String>, StoreError> {
    let items = records::list::<Item>(app.store.as_ref(), "").await?;
    Ok(items.into_iter().find_map(|item| {
        let item = item.record;
        let is_it = failover::vm_id(&item).is_some_and(|id| id.to_string() == vm_id);
        let side = item
            .recovery
            .filter(|side| is_it && side.engine_id == engine_id);
        side.map(|side| side.job)
    }))
}

/// Whether what was seen at an instant belongs on the report of a job.
async fn still_tells(app: &App, job: &str, taken_unix_ms: i64) -> Result<bool, StoreError> {
    let Some(job) = records::get::<JobRecord>(app.store.as_ref(), job).await? else {
        return Ok(false);
    };
    let properties = &job.record.properties;
    let is_drill = properties.custom_details.instance_type == DRILL_DETAILS;
    let end = properties.end_time.as_deref();
    let end = end.and_then(timestamp::to_unix_ms);
    // A drill's VM goes when the drill is over.
    Ok(is_drill || end.is_none_or(|end| taken_unix_ms <= end.saturating_add(AFTER_JOB_MS)))
}

/// An engine is trusted to tell the truth, not to keep to limits.
fn bounded(evidence: v1::Evidence) -> Kept {
    let png = &evidence.screenshot_png;
    let mut problem = first_bytes(&evidence.problem, MAX_PROBLEM_BYTES);
    let screenshot = if png.is_empty() {
        String::new()
    } else if png.len() <= MAX_PNG_BYTES && png.starts_with(PNG_SIGNATURE) {
        STANDARD.encode(png)
    } else {
        "the engine sent no picture that can be kept".clone_into(&mut problem);
        String::new()
    };
    Kept {
        vm_id: evidence.vm_id,
        taken_unix_ms: evidence.taken_unix_ms,
        screenshot,
        console: first_bytes(&evidence.console_tail, MAX_CONSOLE_BYTES),
        problem,
    }
}

fn first_bytes(text: &str, most: usize) -> String {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

/// Id of the evidence of a VM that is kept; empty = none is.
///
/// # Errors
/// Failures of the store.
pub async fn received(app: &App, engine_id: &str, vm_id: &str) -> Result<String, StoreError> {
    let mark = records::get::<Mark>(app.store.as_ref(), &mark_key(engine_id, vm_id)).await?;
    Ok(mark.map(|mark| mark.record.id).unwrap_or_default())
}

/// All evidence of a job.
///
/// # Errors
/// Failures of the store.
pub async fn of_job(app: &App, job: &str) -> Result<Vec<Kept>, StoreError> {
    let kept = records::list::<Kept>(app.store.as_ref(), &below(job)).await?;
    Ok(kept.into_iter().map(|kept| kept.record).collect())
}

/// Removes evidence of jobs that are gone; gives the number of documents.
///
/// # Errors
/// Failures of the store.
pub async fn sweep(app: &App) -> Result<usize, StoreError> {
    let store = app.store.as_ref();
    let marks = records::list::<Mark>(store, "~evidence-mark/").await?;
    let jobs: BTreeSet<String> = marks.iter().map(|mark| mark.record.job.clone()).collect();
    let mut changes = Vec::new();
    for job in jobs {
        if records::get::<JobRecord>(store, &job).await?.is_some() {
            continue;
        }
        let kept = records::list::<Kept>(store, &below(&job)).await?;
        changes.extend(kept.into_iter().map(|kept| records::delete(kept.key)));
        let marks = marks.iter().filter(|mark| mark.record.job == job);
        changes.extend(marks.map(|mark| records::delete(mark.key.clone())));
    }
    let count = changes.len();
    if count > 0 {
        app.store.apply(changes).await?;
    }
    Ok(count)
}
