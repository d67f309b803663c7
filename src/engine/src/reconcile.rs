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
use crate::replicator::spec::{Spec, Wish};
use crate::replicator::{Context, Replicator};
use crate::source::{self, Received, Source, Told};
use crate::stores;
use crate::task::blocking;

/// The tasks of this engine.
pub struct Reconciler {
    context: Arc<Context>,
    file: DesiredFile,
    source_role: bool,
    replicators: BTreeMap<String, Replicator>,
    /// Items under orders.
    sources: BTreeMap<String, Source>,
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
            sources: BTreeMap::new(),
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
                self.apply(&state, Told::Before).await;
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
        let sources = self.sources.into_values().map(Source::stop);
        tokio::join!(
            futures::future::join_all(stops),
            futures::future::join_all(sources)
        );
        if let Some(recovered) = self.recovered {
            recovered.stop().await;
        }
    }

    async fn take(&mut self, state: DesiredState) {
        self.apply(&state, Told::Now).await;
        let (file, kept) = (self.file.clone(), state.clone());
        let written = blocking(move || file.write(&kept).map_err(std::io::Error::other)).await;
        match written {
            // Only what survives a restart counts as taken.
            Ok(()) => self.context.board.observe_generation(state.generation),
            Err(error) => tracing::error!(%error, "the desired state could not be kept"),
        }
    }

    async fn apply(&mut self, state: &DesiredState, told: Told) {
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
            if !self.apply_order(message, told).await {
                self.apply_replication(message).await;
            }
        }
        let gone: Vec<String> = self
            .replicators
            .keys()
            .chain(self.sources.keys())
            .filter(|id| !listed.contains(*id))
            .cloned()
            .collect();
        for item_id in gone {
            if let Some(replicator) = self.replicators.remove(&item_id) {
                replicator.stop().await;
            }
            if let Some(source) = self.sources.remove(&item_id) {
                source.stop().await;
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

    /// Takes the order of an item, if it is under orders; `false` = it never was, or the message can't be read.
    async fn apply_order(&mut self, message: &v1::Replication, told: Told) -> bool {
        let known = self.sources.get(&message.item_id).map(Source::keeper);
        let spec = match Spec::place(message) {
            Ok(spec) if self.source_role => spec,
            // What is in force stays in force.
            Err(problem) if known.is_some() => {
                tracing::error!(item = message.item_id, problem, "an item can't be read");
                return true;
            }
            _ => return false,
        };
        let (keeper, found) = match source::receive(&self.context, known, &spec, message).await {
            Received::Unordered => return false,
            Received::InForce(keeper, found) => (keeper, found),
            Received::Unusable(found) => {
                self.block(message, found).await;
                return true;
            }
        };
        if let Some(unordered) = self.replicators.remove(&message.item_id) {
            unordered.stop().await;
        }
        let wish = Wish::read(message);
        let serves = match self.sources.get(&message.item_id) {
            Some(running) => running.adopt(&spec, &wish, message, told).await,
            None => false,
        };
        if !serves {
            if let Some(old) = self.sources.remove(&message.item_id) {
                old.stop().await;
            }
            let context = self.context.clone();
            let source = Source::start(context, keeper, spec, wish, message, told).await;
            self.sources.insert(message.item_id.clone(), source);
        }
        if let Some(source) = self.sources.get(&message.item_id) {
            source.tell(found);
        }
        true
    }

    /// Nothing of a message may be obeyed. What runs under an order that is in force goes on.
    async fn block(&mut self, message: &v1::Replication, found: v1::Finding) {
        if let Some(source) = self.sources.get(&message.item_id) {
            source.tell(Some(found));
            return;
        }
        if let Some(old) = self.replicators.remove(&message.item_id) {
            old.stop().await;
        }
        self.context
            .board
            .update_replication(&message.item_id, |status| {
                status.generation = message.generation;
                status.set_state(State::Blocked);
                status.findings = vec![found];
            });
    }

    async fn apply_replication(&mut self, message: &v1::Replication) {
        let read = Spec::read(message).and_then(|read| {
            if self.source_role || matches!(read.1, Wish::Retired { .. }) {
                Ok(read)
            } else {
                Err("this host does not have the source role".to_owned())
            }
        });
        let (spec, wish) = match read {
            Ok(read) => read,
            Err(problem) => {
                tracing::error!(
                    item = message.item_id,
                    problem,
                    "replication can't be carried out"
                );
                let found = finding::finding(
                    "INVALID_REQUEST",
                    format!(
                        "replication of {:?} can't be carried out: {problem}",
                        message.vm_name
                    ),
                    "Orchestrator and engine are of different versions, or the protected item is damaged.",
                    "Disable and enable replication; bring orchestrator and engine to the same version.",
                    true,
                );
                return self.block(message, found).await;
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
