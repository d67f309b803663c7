//! An order to receive, as it is carried out: the task that brings the disks to the recovered VM's, and how far it is.

use std::sync::Arc;

use hypervisor::VmId;
use protection::Generation;
use replication_log::KeyRing;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::keeper::Keeper;
use crate::receive::record::Record;
use crate::receive::{HeldVm, Progress, ReceiveError, Receiver, Until};
use crate::replicator::Context;
use crate::replicator::spec::Spec;
use crate::replicator::state::ItemFiles;
use crate::replicator::status::{Origin, StatusLine};
use crate::replicator::throttle::Class;
use crate::task::{blocking, spawn_named};

/// What is received, and for which order.
pub(super) struct Job {
    pub context: Arc<Context>,
    pub spec: Spec,
    pub keeper: Arc<Keeper>,
    /// The order.
    pub epoch: Generation,
    /// The generation under which the recovered VM ships.
    pub origin: u64,
    pub until: Until,
    /// What is gone of the VM may be made again.
    pub creates: bool,
    pub keys: KeyRing,
    pub line: StatusLine,
}

/// A task that receives.
pub(super) struct Receiving {
    keys: KeyRing,
    stop: CancellationToken,
    task: JoinHandle<Option<()>>,
}

impl Receiving {
    /// Starts it; tells how far it is.
    pub fn start(job: Job) -> (Self, watch::Receiver<Progress>) {
        let Job {
            context,
            spec,
            keeper,
            epoch,
            origin,
            until,
            creates,
            keys,
            line,
        } = job;
        let stop = CancellationToken::new();
        let progress = watch::Sender::new(Progress::default());
        let seen = progress.subscribe();
        let receiver = Receiver {
            item_id: spec.item_id.clone(),
            vm: spec.vm,
            store: spec.store.clone(),
            key: spec.key.clone(),
            keys: keys.clone(),
            origin: replica_store::Generation(origin),
            state_folder: context.state_folder.clone(),
            throttle: context.throttle.clone(),
            class: match until {
                Until::Stopped => Class::Delta,
                Until::Equal => Class::Downtime,
            },
            free_bytes: context.free_bytes.clone(),
            pauses: context.pauses.clone(),
            target: Arc::new(HeldVm {
                context,
                spec: spec.clone(),
                keeper,
                epoch,
                creates,
                line: line.clone(),
            }),
            progress,
            stop: stop.clone(),
        };
        let task = spawn_named(format!("receive {}", spec.item_id), async move {
            let tell = |error: Option<&ReceiveError>| {
                let found = error.map(|error| error.finding(&spec.vm_name, &spec.store_folder));
                line.notice(Origin::Ship, found);
            };
            receiver.run(until, &tell).await;
        });
        (Self { keys, stop, task }, seen)
    }

    /// Whether it serves with these keys, too.
    pub fn has(&self, keys: &KeyRing) -> bool {
        self.keys == *keys && !self.stop.is_cancelled()
    }

    /// Ends it at its next safe place.
    pub async fn stop(self) {
        self.stop.cancel();
        // A panic was logged by the task itself.
        self.task.await.ok();
    }
}

/// Whether the disks of a VM are on their way from one point to another, so that they are of neither.
pub(super) async fn is_half_received(context: &Context, item_id: &str, vm: VmId) -> bool {
    let files = ItemFiles::new(&context.state_folder, item_id);
    let read = blocking(move || Record::read(files.hashes())).await;
    match read {
        Ok(record) => record.is_some_and(|record| record.vm == vm && !record.has_arrived()),
        Err(error) => {
            tracing::error!(item = item_id, %error, "what the disks were brought to can't be read");
            true
        }
    }
}
