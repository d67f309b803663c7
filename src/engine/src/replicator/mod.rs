//! Replication of one protected item: one task, two halves.
//!
//! ```text
//!            ┌────────────── capture ──────────────┐        ┌──────────── ship ───────────┐
//!  guest ──► freeze ─► logs beside the disks ─► record ──► journal object ─► point ─► maintain
//!            └── every interval, never waits ──────┘ spool  └── in order, waits out outages ┘
//! ```
//!
//! Promise: after `kill -9` at any instant, replication goes on from the last durable step, without a full
//! copy; every recovery point equals the disks at its freeze. The durable steps and their order: [`state`].
//! What may go wrong ends as a finding on the board and is retried, except fencing, which is final.

mod buffers;
mod cadence;
mod capture;
mod copy;
mod cycle;
mod cycle_log;
mod disks;
mod doubts;
mod flush_behind;
pub mod hashes;
mod joining;
mod judge;
pub mod kept;
mod log_file;
mod maps;
mod notices;
pub(crate) mod outgoing;
pub mod pauses;
pub mod policy;
pub mod ranges;
mod rate;
pub mod refine;
pub mod rest;
mod retire;
mod seeding;
mod shared;
mod ship;
pub mod spec;
pub mod state;
pub mod status;
pub mod suspicion;
pub mod throttle;
pub mod touched;
pub mod trouble;
mod verify;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use engine_protocol::v1::replication_status::State;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::backoff;
use crate::schedule::meter::Meter;
use crate::task::{blocking, spawn_named};
use maps::Maps;
use outgoing::Effort;
use rest::Rest;
pub use shared::Context;
use shared::{Item, Shared, Waiting};
use spec::{Policy, Spec, Wish};
use state::{ItemDisk, ItemFiles, ItemState};
use status::{Origin, StatusLine};
use throttle::Throttle;
use trouble::Trouble;

/// An item's task.
pub struct Replicator {
    spec: Spec,
    retired: Option<bool>,
    policy: watch::Sender<Policy>,
    stop: CancellationToken,
    throttle: Arc<dyn Throttle>,
    task: JoinHandle<Option<()>>,
}

impl Replicator {
    /// Starts the task for an item.
    pub fn start(context: Arc<Context>, spec: Spec, wish: Wish) -> Self {
        let status = StatusLine::new(context.board.clone(), &spec);
        Self::begin(context, spec, wish, status, None, false)
    }

    /// As [`Replicator::start`], for an item whose VM runs by orders: it shares the item's line with who obeys them.
    pub fn ordered(
        context: Arc<Context>,
        spec: Spec,
        wish: Wish,
        status: StatusLine,
        rest: Option<Rest>,
    ) -> Self {
        Self::begin(context, spec, wish, status, rest, true)
    }

    fn begin(
        context: Arc<Context>,
        spec: Spec,
        wish: Wish,
        status: StatusLine,
        rest: Option<Rest>,
        keeps_files: bool,
    ) -> Self {
        let stop = CancellationToken::new();
        let (retired, first) = match wish {
            Wish::Active(policy) => (None, *policy),
            Wish::Retired { delete_replica } => {
                let unused = replica_store::RetentionPolicy::hours(0);
                (Some(delete_replica), Policy::new(Duration::MAX, unused))
            }
        };
        context.throttle.limit_item(&spec.item_id, &first.throttles);
        let (policy, receiver) = watch::channel(first);
        let item = Item {
            files: ItemFiles::new(&context.state_folder, &spec.item_id),
            status,
            rest,
            keeps_files,
            stop: stop.clone(),
            policy: receiver,
            meter: Meter::default(),
            base_writes: replica_store::BaseWrites::default(),
            effort: Effort::default(),
            spec: spec.clone(),
            context,
        };
        let throttle = item.context.throttle.clone();
        let task = spawn_named(format!("replicate {}", spec.item_id), async move {
            match retired {
                None => replicate(&item).await,
                Some(delete_replica) => retire::run(&item, delete_replica).await,
            }
        });
        Self {
            spec,
            retired,
            policy,
            stop,
            throttle,
            task,
        }
    }

    /// Takes a new wish over, when the running task can serve it; `false` = start a new one.
    pub fn adopt(&self, spec: &Spec, wish: Wish) -> bool {
        if *spec != self.spec || self.task.is_finished() {
            return false;
        }
        match (wish, self.retired) {
            (Wish::Active(policy), None) => {
                self.policy.send_if_modified(|current| {
                    let differs = *current != *policy;
                    if current.throttles != policy.throttles {
                        self.throttle
                            .limit_item(&self.spec.item_id, &policy.throttles);
                    }
                    *current = *policy;
                    differs
                });
                true
            }
            (Wish::Retired { delete_replica }, Some(doing)) => delete_replica == doing,
            _ => false,
        }
    }

    /// Ends the task at its next safe place.
    pub async fn stop(self) {
        self.stop.cancel();
        // A panic was logged by the task itself.
        self.task.await.ok();
    }
}

/// Runs until the item stops. Each round starts from what is durable, as after a crash.
async fn replicate(item: &Item) {
    let mut failures = 0;
    loop {
        let result = round(item).await;
        match result {
            Ok(never) => match never {},
            Err(Trouble::Stopped) => return,
            Err(trouble) if trouble.is_fenced() => {
                item.status.phase(State::Fenced);
                item.status.problem(Origin::Ship, &trouble, &item.spec);
                if item.keeps_files {
                    return item.stop.cancelled().await;
                }
                // What was captured belongs to nobody any more; a newer activation has its own tracking.
                let files = item.files.clone();
                if let Err(error) = blocking(move || files.remove_all(&[])).await {
                    tracing::warn!(item = item.spec.item_id, %error, "leftovers of a fenced item stay");
                }
                return item.stop.cancelled().await;
            }
            Err(trouble) => {
                failures += 1;
                item.status.problem(Origin::Capture, &trouble, &item.spec);
                tokio::select! {
                    biased;
                    () = item.stop.cancelled() => return,
                    () = tokio::time::sleep(backoff::ship_delay(failures)) => {}
                }
            }
        }
    }
}

async fn round(item: &Item) -> Result<Infallible, Trouble> {
    let (state, spool, maps) = load(item).await?;
    item.status.figures(&state);
    if state.complete {
        item.status.phase(State::Protected);
    }
    item.status.tracking(&state.disks, &state.knowledge, false);
    let shared = Shared::new(state, spool, maps, item.stop.child_token());
    shared.count_backlog(item);
    // Both are awaited to their end: a half that is dropped could leave a point frozen.
    let (captured, shipped) = tokio::join!(
        async {
            let result = capture::run(item, &shared).await;
            shared.halt.cancel();
            result
        },
        async {
            let result = ship::run(item, &shared).await;
            shared.halt.cancel();
            result
        }
    );
    match shipped {
        Err(Trouble::Stopped) => captured,
        other => other,
    }
}

/// What is durable of this generation. Anything of another generation or VM is removed, but for disks that were brought to
/// a point of the replica: their maps stay.
async fn load(item: &Item) -> Result<(ItemState, Vec<Waiting>, Maps), Trouble> {
    let (files, spec) = (item.files.clone(), item.spec.clone());
    blocking(move || {
        if let Some(state) = files.load()? {
            if state.generation == spec.generation.0 && state.vm == spec.vm {
                let mut state = state;
                if state.complete && state.knowledge.members.is_empty() {
                    // Kept by a version in which the disks never changed.
                    let members = state.disks.iter().map(|disk| disk.id).collect();
                    state.knowledge.members = members;
                }
                // Before the logs that they may need are removed.
                let maps = Maps::new(files.hashes().to_owned());
                maps.open_all(&state, files.left_behind(&state)?.as_ref());
                let spool = files.load_spool(&state)?;
                let spool = spool.into_iter().map(Waiting::found).collect();
                return Ok((state, spool, maps));
            }
            let maps = Maps::new(files.hashes().to_owned());
            if let Some(state) = kept::carry_over(&files, &spec, state, &maps)? {
                maps.open_all(&state, None);
                files.load_spool(&state)?;
                return Ok((state, Vec::new(), maps));
            }
            files.remove_all(&[])?;
        }
        let state = ItemState::new(spec.generation.0, spec.vm, Vec::<ItemDisk>::new());
        files.load_spool(&state)?;
        Ok((state, Vec::new(), Maps::new(files.hashes().to_owned())))
    })
    .await
    .map_err(Trouble::io("read what is kept of the item"))
}
