//! Recovered VMs: a point of a replica, running as a VM on this host.
//!
//! ```text
//!  replica ─► pinned view ─► NBD on <id>/nbd.sock ─► copy-on-write ─► QEMU
//!              (engine)         (engine)             (<id>/*.qcow2)   (outlives the engine)
//! ```
//!
//! Promise: the replica is only read; what the recovered VM writes stays in its folder, until a failback ships it
//! ([`reverse`]). What the guest needs to start in another generation is laid over what is read ([`Conversion`]). An engine
//! that was killed serves the same point on the same socket again, and the VM, which waits for it, goes on. What is no
//! longer desired leaves nothing: no VM, no folder, no pin.
//!
//! A VM of a failover is production: it is made, stopped and removed by orders only ([`failover`]), never because nobody
//! lists it any more.

mod adapters;
mod conversion;
mod evidence;
mod failover;
mod guard;
mod hydration;
mod local_copy;
mod machine;
mod making;
pub mod places;
mod read_ahead;
mod readiness;
mod record;
pub mod reverse;
mod shipping;
mod steps;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine_protocol::v1;
use hypervisor::{Generation, Hypervisor};
use replica_store::ReplicaKey;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use v1::recovered_vm_status::State;

use crate::board::Board;
use crate::finding;
use crate::replicator::pauses::{NoPauses, Pauses};
use crate::replicator::throttle::{Throttle, Unthrottled};
use crate::stores;
use crate::task::{blocking, spawn_named};
pub use conversion::Conversion;
use failover::Failover;
use guard::Place;
pub use hydration::Room;
pub use readiness::Questions;
use record::Record;

/// How often the console file is looked at for the first byte: short, since this is the figure people compare.
const CONSOLE_POLL: Duration = Duration::from_millis(50);
/// How often a running VM is looked at.
const POWER_POLL: Duration = Duration::from_secs(2);
/// For a guest to shut down in order. It must end, since the other side waits for it.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(120);

/// What all recovered VMs of a host share.
pub struct RecoveryHost {
    /// The host.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Where status goes.
    pub board: Arc<Board>,
    /// One folder a VM.
    pub folder: PathBuf,
    /// How long a guest may take to shut down before its VM is turned off.
    pub shutdown_patience: Duration,
    /// Names the time since the host was started; empty when that can't be found out.
    pub boot: String,
    /// Of VMs that it may run; another one is converted, or refused. Both, unless told otherwise.
    pub generations: Vec<Generation>,
    /// What a folder has room for beside what guests write; asked before a VM's disks are brought there.
    pub room: fn(&Path) -> Room,
    /// Shares the way to the stores.
    pub throttle: Arc<dyn Throttle>,
    /// Where a test may stop the world; see [`places`].
    pub pauses: Arc<dyn Pauses>,
}

/// The tasks of the recovered VMs.
pub struct RecoveredVms {
    host: Arc<RecoveryHost>,
    /// Of drills.
    tasks: BTreeMap<Uuid, Task>,
    /// Of failovers, by item.
    failovers: BTreeMap<ReplicaKey, Failover>,
}

struct Task {
    /// `None` = it is being removed.
    wish: Option<v1::RecoveredVm>,
    stop: CancellationToken,
    task: JoinHandle<Option<()>>,
}

// === impl RecoveryHost ===

impl RecoveryHost {
    /// This host.
    pub fn new(hypervisor: Arc<dyn Hypervisor>, board: Arc<Board>, folder: PathBuf) -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            hypervisor,
            board,
            folder,
            shutdown_patience: SHUTDOWN_PATIENCE,
            boot: boot.trim().to_owned(),
            generations: vec![Generation::One, Generation::Two],
            room: hydration::room,
            throttle: Arc::new(Unthrottled),
            pauses: Arc::new(NoPauses),
        }
    }
}

// === impl RecoveredVms ===

impl RecoveredVms {
    /// Without any task yet.
    pub fn new(host: Arc<RecoveryHost>) -> Self {
        Self {
            host,
            tasks: BTreeMap::new(),
            failovers: BTreeMap::new(),
        }
    }

    /// Takes the whole list: missing VMs of drills are made, others of drills are removed; orders of failovers are handed
    /// to the tasks of their items.
    pub async fn apply(&mut self, desired: &[v1::RecoveredVm]) {
        self.host.board.set_questions(readiness::questions(desired));
        self.apply_orders(desired).await;
        self.tasks
            .retain(|_, task| task.wish.is_some() || !task.task.is_finished());
        let mut listed = BTreeSet::new();
        for vm in desired.iter().filter(|vm| vm.order.is_none()) {
            match vm.id.parse::<Uuid>() {
                Ok(id) if self.is_of_failover(vm, id).await => {}
                Ok(id) => {
                    listed.insert(id);
                    let board = &self.host.board;
                    board.evidence_received(&vm.id, &vm.evidence_received);
                    self.start(id, Some(vm.clone())).await;
                }
                Err(_) => self.host.board.update_recovered(&vm.id, |status| {
                    status.set_state(State::Failed);
                    status.findings = vec![finding::recovery_failed(
                        &vm.name,
                        "its id is not a GUID",
                        true,
                    )];
                }),
            }
        }
        let mut gone: BTreeSet<Uuid> = self.tasks.keys().copied().collect();
        match Record::all(&self.host.folder) {
            Ok(ids) => gone.extend(ids),
            Err(error) => {
                tracing::error!(folder = %self.host.folder.display(), %error, "can't look for recovered VMs that are no longer wanted");
            }
        }
        for id in gone {
            if !listed.contains(&id) {
                self.start(id, None).await;
            }
        }
        let ours: BTreeSet<String> = self
            .tasks
            .keys()
            .map(Uuid::to_string)
            .chain(desired.iter().map(|vm| vm.id.clone()))
            .chain(self.failovers.values().map(Failover::shown))
            .collect();
        for status in self.host.board.snapshot().recovered {
            if !ours.contains(&status.id) {
                self.host.board.drop_recovered(&status.id);
            }
        }
    }

    /// Hands each item its message; items that have a VM here go on without one.
    async fn apply_orders(&mut self, desired: &[v1::RecoveredVm]) {
        let mut listed = BTreeSet::new();
        for vm in desired.iter().filter(|vm| vm.order.is_some()) {
            // Renews the credential behind a target that is in use; one that can't be read is found again by the task.
            if let Err(problem) = stores::target(vm.store.as_ref()) {
                tracing::warn!(vm = vm.id, problem, "the store of a recovered VM");
            }
            let problem = match ReplicaKey::new(&vm.vault_key, &vm.item_id) {
                Ok(key) if listed.insert(key.clone()) => {
                    let board = &self.host.board;
                    board.evidence_received(&vm.id, &vm.evidence_received);
                    self.tell(Place::new(&self.host.folder, key), Some(vm.clone()));
                    continue;
                }
                Ok(_) => "its item is listed twice".to_owned(),
                Err(error) => error.to_string(),
            };
            tracing::error!(vm = vm.id, problem, "an order of a failover can't be taken");
            self.host.board.update_recovered(&vm.id, |status| {
                status.set_state(State::Failed);
                status.findings = vec![finding::order_not_taken(&vm.name, &problem)];
            });
        }
        for (key, failover) in &self.failovers {
            if !listed.contains(key) {
                failover.tell(None);
            }
        }
        let folder = self.host.folder.clone();
        match blocking(move || Place::all(&folder)).await {
            Ok(places) => {
                for place in places {
                    if !self.failovers.contains_key(place.key()) {
                        self.tell(place, None);
                    }
                }
            }
            Err(error) => {
                tracing::error!(folder = %self.host.folder.display(), %error, "can't look for the VMs of failovers");
            }
        }
    }

    fn tell(&mut self, place: Place, message: Option<v1::RecoveredVm>) {
        match self.failovers.get(place.key()) {
            Some(failover) => failover.tell(message),
            None => {
                let key = place.key().clone();
                let failover = Failover::start(self.host.clone(), place, message);
                self.failovers.insert(key, failover);
            }
        }
    }

    /// Whether what is listed as a drill's is a failover's VM: then it is left alone.
    async fn is_of_failover(&self, vm: &v1::RecoveredVm, id: Uuid) -> bool {
        let folder = self.host.folder.clone();
        let problem = match blocking(move || Place::of_vm(&folder, id)).await {
            Ok(None) => return false,
            Ok(Some(item)) => {
                format!("it is the recovered virtual machine of a failover of {item}")
            }
            Err(error) => format!("the virtual machines of failovers can't be read: {error}"),
        };
        tracing::error!(vm = vm.id, problem, "a drill can't be carried out");
        self.host.board.update_recovered(&vm.id, |status| {
            status.findings = vec![finding::order_not_taken(&vm.name, &problem)];
        });
        true
    }

    /// Ends the tasks; VMs go on running and wait for their disks.
    pub async fn stop(self) {
        let failovers = self.failovers.into_values().map(Failover::stop);
        futures::future::join_all(failovers).await;
        for task in self.tasks.values() {
            task.stop.cancel();
        }
        for (_, task) in self.tasks {
            // A panic was logged by the task itself.
            task.task.await.ok();
        }
    }

    async fn start(&mut self, id: Uuid, wish: Option<v1::RecoveredVm>) {
        // Renews the credential behind a target that is in use; one that can't be read is found again by the task.
        if let Some(vm) = &wish
            && let Err(problem) = stores::target(vm.store.as_ref())
        {
            tracing::warn!(vm = %id, problem, "the store of a recovered VM");
        }
        if let Some(running) = self.tasks.get(&id)
            && running.wish.as_ref().map(without_secrets) == wish.as_ref().map(without_secrets)
        {
            // Also one that was given up: trying again at every message would never end.
            return;
        }
        if let Some(old) = self.tasks.remove(&id) {
            old.stop.cancel();
            old.task.await.ok();
        }
        let stop = CancellationToken::new();
        let (host, token, wanted) = (self.host.clone(), stop.clone(), wish.clone());
        let name = if wish.is_some() {
            "recover"
        } else {
            "remove recovered"
        };
        let task = spawn_named(format!("{name} {id}"), async move {
            match wanted {
                Some(vm) => machine::run(&host, id, &vm, &token).await,
                None => machine::remove(&host, id, &token).await,
            }
        });
        self.tasks.insert(id, Task { wish, stop, task });
    }
}

/// A wish as it was when it was first taken: credentials and keys are renewed all the time and restart nothing, and neither
/// does the word that evidence has arrived, nor what is asked of the guest, nor what counts when the VM is made only.
fn without_secrets(vm: &v1::RecoveredVm) -> v1::RecoveredVm {
    let mut plain = v1::RecoveredVm {
        encryption: None,
        evidence_received: String::new(),
        ports: Vec::new(),
        ask_agent: false,
        private_network: String::new(),
        left_out_adapters: Vec::new(),
        ..vm.clone()
    };
    let mut store = plain.store.as_mut();
    while let Some(one) = store {
        if let Some(v1::store_target::Kind::Azure(azure)) = one.kind.as_mut() {
            azure.credential = None;
        }
        store = one.log.as_deref_mut();
    }
    plain
}
