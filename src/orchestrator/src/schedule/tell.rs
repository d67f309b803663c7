//! Tells webhooks of runs, beside the steps of schedules: a receiver that is slow holds up neither steps nor other receivers.
//!
//! Promise: what is to be told is told at least once, or given up after [`notify::TRIES`] rounds. A round that could not be
//! noted is told again.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::run::{CALM, LOOK};
use super::{Notice, Run, Schedule, notify};
use crate::app::App;
use crate::store::StoreError;
use crate::store::records;

/// A run: key of its schedule and its due time.
type Key = (String, i64);

/// Rounds that are under way.
#[derive(Default)]
struct Rounds {
    tasks: JoinSet<Key>,
    busy: BTreeSet<Key>,
}

/// Runs until `stop`.
pub(super) async fn run(app: &Arc<App>, stop: &CancellationToken) {
    let mut bell = app.listen();
    let mut rounds = Rounds::default();
    loop {
        if let Err(error) = rounds.begin(app).await {
            warn!(
                error = &error as &dyn std::error::Error,
                "nobody can be told of scheduled drills; it is tried again"
            );
        }
        tokio::select! {
            () = stop.cancelled() => return,
            Some(ended) = rounds.tasks.join_next() => match ended {
                Ok(key) => {
                    rounds.busy.remove(&key);
                }
                // Which one panicked is not known; those that go on may be told twice.
                Err(error) => {
                    warn!(%error, "a round of webhooks died");
                    rounds.busy.clear();
                }
            },
            () = tokio::time::sleep(LOOK) => {}
            _ = bell.changed() => tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(CALM) => {}
            },
        }
    }
}

impl Rounds {
    /// Begins the rounds that are due.
    async fn begin(&mut self, app: &Arc<App>) -> Result<(), StoreError> {
        let now = app.now_ms();
        for stored in records::list::<Schedule>(app.store.as_ref(), "").await? {
            for run in stored
                .record
                .runs
                .iter()
                .filter(|run| is_due(&run.notice, now))
            {
                let key = (stored.key.clone(), run.due_unix_ms);
                if self.busy.insert(key.clone()) {
                    let (app, schedule, run) = (app.clone(), stored.record.clone(), run.clone());
                    self.tasks.spawn(async move {
                        if let Err(error) = round(&app, &key, &schedule, &run).await {
                            warn!(schedule = %schedule.id, error = &error as &dyn std::error::Error, "what webhooks were told can't be noted; they are told again");
                            tokio::time::sleep(LOOK).await;
                        }
                        key
                    });
                }
            }
        }
        Ok(())
    }
}

fn is_due(notice: &Notice, now_ms: i64) -> bool {
    notice.wanted
        && !notice.delivered
        && notice.tries < notify::TRIES
        && now_ms >= notice.next_try_unix_ms
}

async fn round(app: &App, key: &Key, schedule: &Schedule, run: &Run) -> Result<(), StoreError> {
    let told = notify::tell(schedule, run, &app.public_url, app.now_ms()).await;
    records::update::<Schedule>(app.store.as_ref(), &key.0, |schedule| {
        let mut schedule = schedule.clone();
        let known = schedule.runs.iter_mut();
        // Something new to be told is told by a round of its own.
        let known = known
            .into_iter()
            .find(|known| known.due_unix_ms == key.1 && known.notice == run.notice)?;
        known.notice.clone_from(&told);
        Some(schedule)
    })
    .await?;
    Ok(())
}
