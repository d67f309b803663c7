//! Makes what runs here equal to the desired state, which comes whole.
//!
//! ```text
//!  desired state ─► recovered VMs ─► items, each by its own task ─► kept on disk ─► all have taken theirs: "observed"
//! ```
//!
//! Promise: taking the same state twice changes nothing; a task that fits its wish is left alone; what the
//! state no longer lists is stopped, not destroyed (recovered VMs excepted, which the state owns whole). An item that takes
//! its time holds neither other items nor the next state: only `observed` waits for it.

mod item;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use engine_protocol::v1::{self, DesiredState};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::desired::DesiredFile;
use crate::finding;
use crate::recovered::RecoveredVms;
use crate::replicator::Context;
use crate::replicator::policy;
use crate::scripts::PlanScripts;
use crate::source::Told;
use crate::stores;
use crate::task::blocking;
use item::{ItemTask, Shared, TURNS};

/// The tasks of this engine.
pub struct Reconciler {
    shared: Arc<Shared>,
    file: DesiredFile,
    items: BTreeMap<String, ItemTask>,
    recovered: Option<RecoveredVms>,
    scripts: Option<Arc<PlanScripts>>,
    /// Number of the newest state here.
    number: u64,
    /// Generations of states that are kept and not yet taken by all items, by number.
    pending: BTreeMap<u64, u64>,
}

impl Reconciler {
    /// Without any task yet. `recovered` is there on a host with the recovery role.
    pub fn new(
        context: Arc<Context>,
        file: DesiredFile,
        source_role: bool,
        recovered: Option<RecoveredVms>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                context,
                source_role,
                turns: Semaphore::new(TURNS),
                taken: watch::Sender::new(0),
            }),
            file,
            items: BTreeMap::new(),
            recovered,
            scripts: None,
            number: 0,
            pending: BTreeMap::new(),
        }
    }

    /// Runs the scripts of recovery plans, too.
    #[must_use]
    pub fn with_scripts(mut self, scripts: Arc<PlanScripts>) -> Self {
        self.scripts = Some(scripts);
        self
    }

    /// Takes up the kept state, then each new one, until `stop`; then ends all tasks at their next safe place.
    pub async fn run(
        mut self,
        mut desired: watch::Receiver<Option<DesiredState>>,
        stop: CancellationToken,
    ) {
        let mut taken = self.shared.taken.subscribe();
        match self.file.read() {
            Ok(Some(state)) => {
                tracing::info!(
                    generation = state.generation,
                    "taking up the kept desired state"
                );
                self.apply(&state, Told::Before).await;
                self.pending.insert(self.number, state.generation);
            }
            Ok(None) => {}
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                "the kept desired state can't be used; waiting for the orchestrator"
            ),
        }
        loop {
            self.observe();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = desired.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let state = desired.borrow_and_update().clone();
                    if let Some(state) = state {
                        self.take(state).await;
                    }
                }
                // The sender is ours.
                _ = taken.changed() => {}
            }
        }
        let items = self.items.into_values().map(ItemTask::stop);
        futures::future::join_all(items).await;
        if let Some(recovered) = self.recovered {
            recovered.stop().await;
        }
    }

    async fn take(&mut self, state: DesiredState) {
        self.apply(&state, Told::Now).await;
        let (file, generation) = (self.file.clone(), state.generation);
        let written = blocking(move || file.write(&state).map_err(std::io::Error::other)).await;
        match written {
            // Only what survives a restart counts as taken.
            Ok(()) => {
                self.pending.insert(self.number, generation);
            }
            Err(error) => tracing::error!(%error, "the desired state could not be kept"),
        }
    }

    /// Says which state is the newest that all items have taken.
    fn observe(&mut self) {
        let taken = self.items.values().map(ItemTask::taken).min();
        let later = match taken {
            Some(taken) => self.pending.split_off(&(taken + 1)),
            None => BTreeMap::new(),
        };
        let all_taken = std::mem::replace(&mut self.pending, later);
        if let Some((_, generation)) = all_taken.last_key_value() {
            self.shared.context.board.observe_generation(*generation);
        }
    }

    async fn apply(&mut self, state: &DesiredState, told: Told) {
        if let Some(scripts) = &self.scripts {
            scripts.apply(&state.scripts, told).await;
        }
        self.number += 1;
        let context = self.shared.context.clone();
        match policy::limits(&state.throttles) {
            Ok(limits) => context.throttle.limit_host(&limits),
            // Those before it stay in force: no limit at all could be the worse surprise.
            Err(problem) => tracing::error!(problem, "the host's rate limits can't be used"),
        }
        for store in &state.stores {
            if let Err(problem) = stores::target(Some(store)) {
                tracing::warn!(problem, "a store of the desired state can't be used");
            }
        }
        // First: somebody waits for these.
        self.apply_recovered(&state.recovered_vms).await;
        self.items.retain(|_, item| !item.is_idle());
        let mut listed = BTreeSet::new();
        for message in &state.replications {
            // The orchestrator lists an item once; were it twice, the first message would count.
            if listed.insert(message.item_id.clone()) {
                self.tell(&message.item_id, Some((message.clone(), told)));
            }
        }
        let gone: Vec<String> = self.items.keys().cloned().collect();
        for item_id in gone.iter().filter(|id| !listed.contains(*id)) {
            self.tell(item_id, None);
        }
        for status in context.board.snapshot().replications {
            // An item that is gone leaves the board by its own task, when all of it has ended.
            if !listed.contains(&status.item_id) && !self.items.contains_key(&status.item_id) {
                context.board.drop_replication(&status.item_id);
            }
        }
    }

    fn tell(&mut self, item_id: &str, wish: Option<(v1::Replication, Told)>) {
        if self.items.get(item_id).is_some_and(ItemTask::has_died) {
            self.items.remove(item_id);
        }
        let shared = &self.shared;
        let item = self.items.entry(item_id.to_owned());
        let item = item.or_insert_with(|| ItemTask::start(item_id, shared.clone()));
        item.tell(self.number, wish);
    }

    async fn apply_recovered(&mut self, desired: &[v1::RecoveredVm]) {
        if let Some(recovered) = &mut self.recovered {
            recovered.apply(desired).await;
            return;
        }
        for vm in desired {
            self.shared
                .context
                .board
                .update_recovered(&vm.id, |status| {
                    status.set_state(v1::recovered_vm_status::State::Failed);
                    status.findings = vec![finding::recovery_failed(
                        &vm.name,
                        "this host does not have the recovery role",
                        true,
                    )];
                });
        }
    }
}
