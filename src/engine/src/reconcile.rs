//! Makes what runs here equal to the desired state, which comes whole.
//!
//! Promise: taking the same state twice changes nothing; a task that fits its wish is left alone; what the
//! state no longer lists is stopped, not destroyed (recovered VMs excepted, which the state owns whole).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use engine_protocol::v1::{self, DesiredState};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use v1::replication_status::State;

use crate::desired::DesiredFile;
use crate::finding;
use crate::recovered::RecoveredVms;
use crate::replicator::policy;
use crate::replicator::spec::Spec;
use crate::replicator::{Context, Replicator};
use crate::stores;
use crate::task::blocking;

/// The tasks of this engine.
pub struct Reconciler {
    context: Arc<Context>,
    file: DesiredFile,
    source_role: bool,
    replicators: BTreeMap<String, Replicator>,
    recovered: Option<RecoveredVms>,
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
            context,
            file,
            source_role,
            replicators: BTreeMap::new(),
            recovered,
        }
    }

    /// Takes up the kept state, then each new one, until `stop`; then ends all tasks at their next safe place.
    pub async fn run(
        mut self,
        mut desired: watch::Receiver<Option<DesiredState>>,
        stop: CancellationToken,
    ) {
        match self.file.read() {
            Ok(Some(state)) => {
                tracing::info!(
                    generation = state.generation,
                    "taking up the kept desired state"
                );
                self.apply(&state).await;
                self.context.board.observe_generation(state.generation);
            }
            Ok(None) => {}
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                "the kept desired state can't be used; waiting for the orchestrator"
            ),
        }
        loop {
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
            }
        }
        let stops = self.replicators.into_values().map(Replicator::stop);
        futures::future::join_all(stops).await;
        if let Some(recovered) = self.recovered {
            recovered.stop().await;
        }
    }

    async fn take(&mut self, state: DesiredState) {
        self.apply(&state).await;
        let (file, kept) = (self.file.clone(), state.clone());
        let written = blocking(move || file.write(&kept).map_err(std::io::Error::other)).await;
        match written {
            // Only what survives a restart counts as taken.
            Ok(()) => self.context.board.observe_generation(state.generation),
            Err(error) => tracing::error!(%error, "the desired state could not be kept"),
        }
    }

    async fn apply(&mut self, state: &DesiredState) {
        match policy::limits(&state.throttles) {
            Ok(limits) => self.context.throttle.limit_host(&limits),
            // Those before it stay in force: no limit at all could be the worse surprise.
            Err(problem) => tracing::error!(problem, "the host's rate limits can't be used"),
        }
        for store in &state.stores {
            if let Err(problem) = stores::target(Some(store)) {
                tracing::warn!(problem, "a store of the desired state can't be used");
            }
        }
        let mut listed = BTreeSet::new();
        for message in &state.replications {
            listed.insert(message.item_id.clone());
            self.apply_replication(message).await;
        }
        let gone: Vec<String> = self
            .replicators
            .keys()
            .filter(|id| !listed.contains(*id))
            .cloned()
            .collect();
        for item_id in gone {
            if let Some(replicator) = self.replicators.remove(&item_id) {
                replicator.stop().await;
            }
        }
        for status in self.context.board.snapshot().replications {
            if !listed.contains(&status.item_id) {
                self.context.board.drop_replication(&status.item_id);
            }
        }
        match &mut self.recovered {
            Some(recovered) => recovered.apply(&state.recovered_vms).await,
            None => {
                for vm in &state.recovered_vms {
                    self.context.board.update_recovered(&vm.id, |status| {
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
    }

    async fn apply_replication(&mut self, message: &v1::Replication) {
        let read = Spec::read(message).and_then(|read| {
            if self.source_role || matches!(read.1, crate::replicator::spec::Wish::Retired { .. }) {
                Ok(read)
            } else {
                Err("this host does not have the source role".to_owned())
            }
        });
        let (spec, wish) = match read {
            Ok(read) => read,
            Err(problem) => {
                if let Some(old) = self.replicators.remove(&message.item_id) {
                    old.stop().await;
                }
                tracing::error!(
                    item = message.item_id,
                    problem,
                    "replication can't be carried out"
                );
                self.context.board.update_replication(&message.item_id, |status| {
                    status.generation = message.generation;
                    status.set_state(State::Blocked);
                    status.findings = vec![finding::finding(
                        "INVALID_REQUEST",
                        format!("replication of {:?} can't be carried out: {problem}", message.vm_name),
                        "Orchestrator and engine are of different versions, or the protected item is damaged.",
                        "Disable and enable replication; bring orchestrator and engine to the same version.",
                        true,
                    )];
                });
                return;
            }
        };
        if let Some(running) = self.replicators.get(&message.item_id)
            && running.adopt(&spec, wish.clone())
        {
            return;
        }
        if let Some(old) = self.replicators.remove(&message.item_id) {
            old.stop().await;
        }
        tracing::info!(
            item = message.item_id,
            vm = message.vm_name,
            generation = message.generation,
            phase = message.phase().as_str_name(),
            "item"
        );
        self.replicators.insert(
            message.item_id.clone(),
            Replicator::start(self.context.clone(), spec, wish),
        );
    }
}
