//! Recovered VMs: a point of a replica, running as a VM on this host.
//!
//! ```text
//!  replica ─► pinned view ─► NBD on <id>/nbd.sock ─► copy-on-write ─► QEMU
//!              (engine)         (engine)             (<id>/*.qcow2)   (outlives the engine)
//! ```
//!
//! Promise: the replica is only read; what the recovered VM writes stays in its folder. An engine that was
//! killed serves the same point on the same socket again, and the VM, which waits for it, goes on. What is no
//! longer desired leaves nothing: no VM, no folder, no pin.

mod machine;
mod read_ahead;
mod record;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use engine_protocol::v1;
use hypervisor::Hypervisor;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use v1::recovered_vm_status::State;

use crate::board::Board;
use crate::finding;
use crate::stores;
use crate::task::spawn_named;
use record::Record;

/// What all recovered VMs of a host share.
pub struct RecoveryHost {
    /// The host.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Where status goes.
    pub board: Arc<Board>,
    /// One folder a VM.
    pub folder: PathBuf,
}

/// The tasks of the recovered VMs.
pub struct RecoveredVms {
    host: Arc<RecoveryHost>,
    tasks: BTreeMap<Uuid, Task>,
}

struct Task {
    /// `None` = it is being removed.
    wish: Option<v1::RecoveredVm>,
    stop: CancellationToken,
    task: JoinHandle<Option<()>>,
}

impl RecoveredVms {
    /// Without any task yet.
    pub fn new(host: Arc<RecoveryHost>) -> Self {
        Self {
            host,
            tasks: BTreeMap::new(),
        }
    }

    /// Takes the whole list: missing VMs are made, others of ours are removed.
    pub async fn apply(&mut self, desired: &[v1::RecoveredVm]) {
        self.tasks
            .retain(|_, task| task.wish.is_some() || !task.task.is_finished());
        let mut listed = BTreeSet::new();
        for vm in desired {
            match vm.id.parse::<Uuid>() {
                Ok(id) => {
                    listed.insert(id);
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
            .collect();
        for status in self.host.board.snapshot().recovered {
            if !ours.contains(&status.id) {
                self.host.board.drop_recovered(&status.id);
            }
        }
    }

    /// Ends the tasks; VMs go on running and wait for their disks.
    pub async fn stop(self) {
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

/// A wish as it was when it was first taken: credentials and keys are renewed all the time and restart nothing.
fn without_secrets(vm: &v1::RecoveredVm) -> v1::RecoveredVm {
    let mut plain = v1::RecoveredVm {
        encryption: None,
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
