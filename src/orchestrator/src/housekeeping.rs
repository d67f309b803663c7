//! What is done from time to time: expired registration keys go, jobs that ended long ago go and with them
//! what was seen of their VMs, encryption keys that nothing needs go, and keys lent by Entra ID are renewed well before they expire.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arm_model::timestamp;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::app::App;
use crate::saga::state::Phase;
use crate::store::StoreError;
use crate::store::records::{self, EnrolmentKey, Item, JobRecord, Plan};
use crate::{access, evidence, vault_keys};

/// How often jobs, registration and encryption keys are looked through.
const SWEEP_MS: i64 = 3_600_000;
/// Jobs are kept for so long after their end: 30 days.
pub const KEEP_JOBS_MS: i64 = 30 * 24 * 3_600_000;
/// How often loans are looked at.
const LOANS: Duration = Duration::from_secs(20);

/// Runs until `stop`.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    let mut swept = None;
    loop {
        let now = app.now_ms();
        if swept.is_none_or(|at| now.saturating_sub(at) >= SWEEP_MS) {
            swept = Some(now);
            if let Err(error) = sweep(&app).await {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "housekeeping failed; it is repeated"
                );
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            result = access::loans::renew(&app) => if let Err(error) = result {
                warn!(error = &error as &dyn std::error::Error, "storage accounts can't be read");
            },
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOANS) => {},
        }
    }
}

async fn sweep(app: &App) -> Result<(), StoreError> {
    sweep_registration_keys(app).await?;
    sweep_ended_jobs(app).await?;
    evidence::sweep(app).await?;
    vault_keys::prune_all(app).await
}

/// Removes jobs that ended more than [`KEEP_JOBS_MS`] ago; gives their number. The job of a drill stays for as long as the
/// drill: whoever cleans it up asks for it.
///
/// # Errors
/// Failures of the store.
pub async fn sweep_ended_jobs(app: &App) -> Result<usize, StoreError> {
    let store = app.store.as_ref();
    let before = app.now_ms().saturating_sub(KEEP_JOBS_MS);
    let items = records::list::<Item>(store, "").await?;
    let plans = records::list::<Plan>(store, "").await?;
    let drills: BTreeSet<String> = items
        .into_iter()
        .filter_map(|item| item.record.drill_job)
        .chain(plans.into_iter().filter_map(|plan| plan.record.drill_job))
        .map(|job| job.to_ascii_lowercase())
        .collect();
    let ended_ms = |job: &JobRecord| {
        let end = job.properties.end_time.as_deref();
        end.and_then(timestamp::to_unix_ms)
            .unwrap_or(job.created_unix_ms)
    };
    let changes: Vec<_> = records::list::<JobRecord>(store, "")
        .await?
        .into_iter()
        .filter(|job| job.record.phase == Phase::Ended && ended_ms(&job.record) < before)
        .filter(|job| !drills.contains(&job.key))
        .map(|job| records::delete(job.key))
        .collect();
    let count = changes.len();
    if count > 0 {
        store.apply(changes).await?;
    }
    Ok(count)
}

/// Removes registration keys that nobody can use any more; gives their number.
///
/// # Errors
/// Failures of the store.
pub async fn sweep_registration_keys(app: &App) -> Result<usize, StoreError> {
    let now = app.now().unix_timestamp();
    let keys = records::list::<EnrolmentKey>(app.store.as_ref(), "~key/").await?;
    let changes: Vec<_> = keys
        .into_iter()
        .filter(|key| key.record.expires_unix <= now)
        .map(|key| records::delete(key.key))
        .collect();
    let count = changes.len();
    if count > 0 {
        app.store.apply(changes).await?;
    }
    Ok(count)
}
