//! One item of the desired state: a task of its own takes what the state says of it, one message after another.
//!
//! ```text
//!  reconciler ── newest message, numbered ──► task ── turn to open files ──► order or replication ──► number is taken
//! ```
//!
//! Promise: an item whose order takes long (a guest that does not react, a store that is away) holds no other item; the newest
//! message wins over those that came while it was busy; what one message began is ended before the next is taken. A turn is
//! kept for opening files only, never while something ends or somebody else's guard is waited for, so however many items are
//! stuck, the others go on. A task that panics ends what it runs before it is replaced.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine_protocol::v1;
use futures::FutureExt as _;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use v1::replication_status::State;

use crate::finding;
use crate::replicator::spec::{Spec, Wish};
use crate::replicator::{Context, Replicator};
use crate::source::{self, Received, Source, Told};
use crate::task::spawn_named;

/// Items that open their files at the same time: a host of hundreds of VMs does so by and by.
pub(super) const TURNS: usize = 32;

/// What all items share.
pub(super) struct Shared {
    pub(super) context: Arc<Context>,
    pub(super) source_role: bool,
    /// Files are opened in a turn.
    pub(super) turns: Semaphore,
    /// Rings when an item has taken a message.
    pub(super) taken: watch::Sender<u64>,
}

/// A message for an item.
#[derive(Clone)]
struct Message {
    /// Of the state that it comes from.
    number: u64,
    /// `None` = the state does not list the item.
    wish: Option<(v1::Replication, Told)>,
}

/// The task of an item.
pub(super) struct ItemTask {
    messages: watch::Sender<Message>,
    taken: Arc<AtomicU64>,
    stop: CancellationToken,
    task: JoinHandle<Option<()>>,
}

struct Item {
    id: String,
    shared: Arc<Shared>,
    /// What runs while there never was an order.
    replicator: Option<Replicator>,
    /// What runs under orders.
    source: Option<Source>,
}

// === impl ItemTask ===

impl ItemTask {
    /// Starts it without a message.
    pub(super) fn start(id: &str, shared: Arc<Shared>) -> Self {
        let (messages, heard) = watch::channel(Message {
            number: 0,
            wish: None,
        });
        let taken = Arc::new(AtomicU64::new(0));
        let stop = CancellationToken::new();
        let item = Item {
            id: id.to_owned(),
            shared,
            replicator: None,
            source: None,
        };
        let name = format!("item {id}");
        let task = spawn_named(name, item.whole(heard, taken.clone(), stop.clone()));
        Self {
            messages,
            taken,
            stop,
            task,
        }
    }

    /// Hands over what state `number` says of the item; `None` = nothing.
    pub(super) fn tell(&self, number: u64, wish: Option<(v1::Replication, Told)>) {
        self.messages.send_replace(Message { number, wish });
    }

    /// The newest state of which the item has taken its part.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Acquire)
    }

    /// Nothing is listed and nothing runs.
    pub(super) fn is_idle(&self) -> bool {
        let newest = self.messages.borrow();
        newest.wish.is_none() && newest.number == self.taken()
    }

    /// It ended without being asked to: a panic, which the task itself has logged.
    pub(super) fn has_died(&self) -> bool {
        self.task.is_finished()
    }

    /// Ends it, and what it runs at its next safe place.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        // A panic was logged by the task itself.
        self.task.await.ok();
    }
}

// === impl Item ===

impl Item {
    /// Its life, and the end of what it runs, however the life ended: nothing may run on that nobody knows of, least of all
    /// beside what the item's next task starts.
    async fn whole(
        mut self,
        messages: watch::Receiver<Message>,
        taken: Arc<AtomicU64>,
        stop: CancellationToken,
    ) {
        let lived = AssertUnwindSafe(self.live(messages, taken, stop))
            .catch_unwind()
            .await;
        self.end().await;
        if let Err(panic) = lived {
            std::panic::resume_unwind(panic);
        }
    }

    async fn live(
        &mut self,
        mut messages: watch::Receiver<Message>,
        taken: Arc<AtomicU64>,
        stop: CancellationToken,
    ) {
        let shared = self.shared.clone();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = messages.changed() => if changed.is_err() {
                    break;
                },
            }
            let message = messages.borrow_and_update().clone();
            match &message.wish {
                Some((wish, told)) => {
                    if !self.apply_order(wish, *told).await {
                        self.apply_replication(wish).await;
                    }
                }
                None => {
                    self.end().await;
                    shared.context.board.drop_replication(&self.id);
                }
            }
            taken.store(message.number, Ordering::Release);
            shared.taken.send_modify(|count| *count += 1);
        }
    }

    async fn end(&mut self) {
        if let Some(replicator) = self.replicator.take() {
            replicator.stop().await;
        }
        if let Some(source) = self.source.take() {
            source.stop().await;
        }
    }

    /// Takes the order of the item, if it is under orders; `false` = it never was, or the message can't be read.
    async fn apply_order(&mut self, message: &v1::Replication, told: Told) -> bool {
        let known = self.source.as_ref().map(Source::keeper);
        let spec = match Spec::place(message) {
            Ok(spec) if self.shared.source_role => spec,
            // What is in force stays in force.
            Err(problem) if known.is_some() => {
                tracing::error!(item = message.item_id, problem, "an item can't be read");
                return true;
            }
            _ => return false,
        };
        let shared = self.shared.clone();
        // A guard that is open already may be held by whoever starts the VM just now.
        let turn = match known {
            None => shared.turns.acquire().await.ok(),
            Some(_) => None,
        };
        let received = source::receive(&shared.context, known, &spec, message).await;
        drop(turn);
        let (keeper, found) = match received {
            Received::Unordered => return false,
            Received::InForce(keeper, found) => (keeper, found),
            Received::Unusable(found) => {
                self.block(message, found).await;
                return true;
            }
        };
        if let Some(unordered) = self.replicator.take() {
            unordered.stop().await;
        }
        let wish = Wish::read(message);
        let serves = match &self.source {
            Some(running) => running.adopt(&spec, &wish, message, told).await,
            None => false,
        };
        if !serves {
            if let Some(old) = self.source.take() {
                old.stop().await;
            }
            let _turn = shared.turns.acquire().await;
            let context = shared.context.clone();
            let source = Source::start(context, keeper, spec, wish, message, told).await;
            self.source = Some(source);
        }
        if let Some(source) = &self.source {
            source.tell(found);
        }
        true
    }

    /// Nothing of a message may be obeyed. What runs under an order that is in force goes on.
    async fn block(&mut self, message: &v1::Replication, found: v1::Finding) {
        if let Some(source) = &self.source {
            source.tell(Some(found));
            return;
        }
        if let Some(old) = self.replicator.take() {
            old.stop().await;
        }
        let board = &self.shared.context.board;
        board.update_replication(&message.item_id, |status| {
            status.generation = message.generation;
            status.set_state(State::Blocked);
            status.findings = vec![found];
        });
    }

    async fn apply_replication(&mut self, message: &v1::Replication) {
        let read = Spec::read(message).and_then(|read| {
            if self.shared.source_role || matches!(read.1, Wish::Retired { .. }) {
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
        if let Some(running) = &self.replicator
            && running.adopt(&spec, wish.clone())
        {
            return;
        }
        if let Some(old) = self.replicator.take() {
            old.stop().await;
        }
        tracing::info!(
            item = message.item_id,
            vm = message.vm_name,
            generation = message.generation,
            phase = message.phase().as_str_name(),
            "item"
        );
        let replicator = Replicator::start(self.shared.context.clone(), spec, wish);
        self.replicator = Some(replicator);
    }
}
