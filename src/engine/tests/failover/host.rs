//! A recovery host in memory that remembers what was done to its VMs, and checks what must never be.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use engine::replicator::pauses::Pauses;
use hypervisor::{
    Consistency, DiskId, DiskSource, ErrorKind, FrozenPoint, HostFacts, Hypervisor,
    HypervisorError, Independence, NewVirtualMachine, PortAnswer, PowerState, Stop, TrackingId,
    VirtualMachine, VmId,
};
use replica_store::{ReplicaKey, StoreTarget, take_over};
use tokio::sync::Notify;
use uuid::Uuid;

/// A VM of the host.
#[derive(Clone, Debug)]
pub struct Machine {
    pub new: NewVirtualMachine,
    pub running: bool,
    /// What its guest has written: kept as long as the VM is.
    pub written: Vec<u8>,
    /// Steps that are left until it needs its point no more.
    pub layers: u32,
}

/// The host; lives of the engine end, it stays.
#[derive(Debug)]
pub struct Host {
    pub machines: Mutex<BTreeMap<Uuid, Machine>>,
    /// Starts, stops and removals, in order.
    pub log: Mutex<Vec<String>>,
    /// Guests that do not shut down.
    pub stubborn: Mutex<bool>,
    /// Guests whose agents do not answer.
    pub deaf: AtomicBool,
    /// VMs that may run beside others.
    pub drills: Mutex<Vec<Uuid>>,
    store: StoreTarget,
    key: ReplicaKey,
}

impl Host {
    pub fn new(store: StoreTarget, key: ReplicaKey) -> Self {
        Self {
            machines: Mutex::default(),
            log: Mutex::default(),
            stubborn: Mutex::default(),
            deaf: AtomicBool::default(),
            drills: Mutex::default(),
            store,
            key,
        }
    }

    pub fn machine(&self, id: Uuid) -> Option<Machine> {
        self.machines.lock().unwrap().get(&id).cloned()
    }

    pub fn is_running(&self, id: Uuid) -> bool {
        self.machine(id).is_some_and(|machine| machine.running)
    }

    /// The guest writes, or shuts its VM down from inside.
    pub fn change(&self, id: Uuid, change: impl FnOnce(&mut Machine)) {
        change(self.machines.lock().unwrap().get_mut(&id).unwrap());
    }

    /// The host loses power.
    pub fn lose_power(&self) {
        let mut machines = self.machines.lock().unwrap();
        machines
            .values_mut()
            .for_each(|machine| machine.running = false);
    }

    pub fn events(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    fn note(&self, what: &str, vm: VmId) {
        self.log
            .lock()
            .unwrap()
            .push(format!("{what} {}", vm.0.as_u128()));
    }
}

fn error(kind: ErrorKind) -> HypervisorError {
    HypervisorError::new(kind, format!("{kind:?}"))
}

fn not_here<T>() -> Result<T, HypervisorError> {
    Err(error(ErrorKind::InvalidRequest))
}

#[async_trait]
impl Hypervisor for Host {
    async fn host(&self) -> Result<HostFacts, HypervisorError> {
        not_here()
    }

    async fn virtual_machines(&self) -> Result<Vec<VirtualMachine>, HypervisorError> {
        let machines = self.machines.lock().unwrap();
        let shown = machines.values().map(|machine| VirtualMachine {
            id: machine.new.id,
            name: machine.new.name.clone(),
            generation: machine.new.generation,
            processors: machine.new.processors,
            memory_bytes: machine.new.memory_bytes,
            os_type: String::new(),
            power_state: if machine.running {
                PowerState::Running
            } else {
                PowerState::Off
            },
            disks: Vec::new(),
            network_adapters: Vec::new(),
            findings: Vec::new(),
        });
        Ok(shown.collect())
    }

    async fn freeze(
        &self,
        _: VmId,
        _: &[DiskId],
        _: Option<TrackingId>,
        _: TrackingId,
        _: Consistency,
    ) -> Result<FrozenPoint, HypervisorError> {
        not_here()
    }

    async fn release(&self, _: FrozenPoint) -> Result<(), HypervisorError> {
        not_here()
    }

    async fn tracking(&self, _: VmId) -> Result<Vec<TrackingId>, HypervisorError> {
        not_here()
    }

    async fn forget(&self, _: VmId, _: TrackingId) -> Result<(), HypervisorError> {
        not_here()
    }

    async fn forget_all(&self, _: VmId) -> Result<(), HypervisorError> {
        not_here()
    }

    async fn clean_up(&self, _: VmId) -> Result<(), HypervisorError> {
        not_here()
    }

    async fn disk_path(&self, _: VmId, _: DiskId) -> Result<PathBuf, HypervisorError> {
        not_here()
    }

    async fn start(&self, vm: VmId) -> Result<(), HypervisorError> {
        let drill = self.drills.lock().unwrap().contains(&vm.0);
        if !drill {
            // The source's licence is 1: nobody who has it may write any more.
            let refused = take_over(&self.store, &self.key, replica_store::Generation(1)).await;
            let kind = refused.expect_err("the fence was not raised").kind();
            assert_eq!(kind, replica_store::ErrorKind::Fenced);
        }
        let mut machines = self.machines.lock().unwrap();
        let drills = self.drills.lock().unwrap();
        let other = machines.values().find(|other| {
            other.running && other.new.id != vm && !drill && !drills.contains(&other.new.id.0)
        });
        assert!(other.is_none(), "{vm} is started beside {other:?}");
        let machine = machines
            .get_mut(&vm.0)
            .ok_or(error(ErrorKind::VmNotFound))?;
        for disk in &machine.new.disks {
            let DiskSource::Nbd { socket, .. } = &disk.source else {
                panic!("{disk:?}");
            };
            assert!(machine.layers == 0 || socket.exists(), "not served");
        }
        if !machine.running {
            machine.running = true;
            self.note("start", vm);
        }
        Ok(())
    }

    async fn stop(&self, vm: VmId, how: Stop) -> Result<(), HypervisorError> {
        if !self.is_running(vm.0) {
            return Ok(());
        }
        if let Stop::Shutdown { timeout } = how
            && *self.stubborn.lock().unwrap()
        {
            tokio::time::sleep(timeout).await;
            return Err(error(ErrorKind::Timeout));
        }
        self.change(vm.0, |machine| machine.running = false);
        self.note(
            if how == Stop::TurnOff {
                "turn off"
            } else {
                "shut down"
            },
            vm,
        );
        Ok(())
    }

    async fn create(&self, new: NewVirtualMachine) -> Result<(), HypervisorError> {
        // As a real one: a layer that is missing is made, empty.
        for disk in &new.disks {
            if let DiskSource::Nbd { overlay, .. } = &disk.source {
                let made = std::fs::OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(new.folder.join(overlay));
                made.map_err(|_| error(ErrorKind::Io))?;
            }
        }
        let mut machines = self.machines.lock().unwrap();
        machines.entry(new.id.0).or_insert_with(|| Machine {
            new,
            running: false,
            written: Vec::new(),
            layers: 3,
        });
        Ok(())
    }

    async fn make_independent(&self, vm: VmId) -> Result<Independence, HypervisorError> {
        let mut machines = self.machines.lock().unwrap();
        let machine = machines
            .get_mut(&vm.0)
            .ok_or(error(ErrorKind::VmNotFound))?;
        machine.layers = machine.layers.saturating_sub(1);
        Ok(match machine.layers {
            0 => Independence::Complete,
            left => Independence::UnderWay {
                copied_bytes: u64::from(3 - left),
                total_bytes: 3,
            },
        })
    }

    async fn remove(&self, vm: VmId) -> Result<(), HypervisorError> {
        if self.machines.lock().unwrap().remove(&vm.0).is_some() {
            self.note("remove", vm);
        }
        Ok(())
    }

    async fn console(&self, vm: VmId) -> Result<PathBuf, HypervisorError> {
        match self.machine(vm.0) {
            Some(machine) => Ok(machine.new.folder.join("console.log")),
            None => Err(error(ErrorKind::VmNotFound)),
        }
    }

    async fn agent_answers(&self, vm: VmId) -> Result<bool, HypervisorError> {
        Ok(self.is_running(vm.0) && !self.deaf.load(Ordering::SeqCst))
    }

    async fn ask_port(&self, _vm: VmId, port: u16) -> Result<PortAnswer, HypervisorError> {
        Ok(if port == 80 {
            PortAnswer::Open
        } else {
            PortAnswer::Refused
        })
    }
}

/// Ends a life at the n-th visit of a place, as `kill -9` does.
#[derive(Debug)]
pub struct StopAt {
    place: &'static str,
    left: Mutex<u32>,
    pub reached: Notify,
}

impl StopAt {
    pub fn new(place: &'static str, after: u32) -> Arc<Self> {
        Arc::new(Self {
            place,
            left: Mutex::new(after),
            reached: Notify::new(),
        })
    }
}

#[async_trait]
impl Pauses for StopAt {
    async fn pass(&self, place: &'static str) {
        if place != self.place {
            return;
        }
        let stops = {
            let mut left = self.left.lock().unwrap();
            let stops = *left == 0;
            *left = left.saturating_sub(1);
            stops
        };
        if stops {
            self.reached.notify_one();
            std::future::pending::<()>().await;
        }
    }
}
