//! Old data of a frozen cycle must not fill the host: a cycle that waits too long is given back, and shipped later.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use engine::recovered::RecoveredVms;
use engine::replicator::pauses::NoPauses;
use engine::replicator::throttle::{Class, Limit, Throttle};
use hypervisor::{
    Consistency, DiskId, Extent, FrozenPoint, HostFacts, Hypervisor, HypervisorError,
    NewVirtualMachine, QemuDriver, Stop, TrackingId, VirtualMachine, VmId,
};
use tokio::sync::watch;

use super::{Engine, World, run, started};

/// The driver, on a host with as much room as the test says.
struct Narrow {
    driver: Arc<QemuDriver>,
    free_bytes: Arc<AtomicU64>,
}

#[async_trait]
impl Hypervisor for Narrow {
    async fn host(&self) -> Result<HostFacts, HypervisorError> {
        let facts = self.driver.host().await?;
        Ok(HostFacts {
            free_bytes: self.free_bytes.load(Ordering::SeqCst),
            ..facts
        })
    }

    async fn virtual_machines(&self) -> Result<Vec<VirtualMachine>, HypervisorError> {
        self.driver.virtual_machines().await
    }

    async fn freeze(
        &self,
        vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
        consistency: Consistency,
    ) -> Result<FrozenPoint, HypervisorError> {
        let driver = &self.driver;
        driver.freeze(vm, disks, since, next, consistency).await
    }

    async fn release(&self, point: FrozenPoint) -> Result<(), HypervisorError> {
        self.driver.release(point).await
    }

    async fn tracking(&self, vm: VmId) -> Result<Vec<TrackingId>, HypervisorError> {
        self.driver.tracking(vm).await
    }

    async fn forget(&self, vm: VmId, older_than: TrackingId) -> Result<(), HypervisorError> {
        self.driver.forget(vm, older_than).await
    }

    async fn forget_all(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.driver.forget_all(vm).await
    }

    async fn clean_up(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.driver.clean_up(vm).await
    }

    async fn disk_path(&self, vm: VmId, disk: DiskId) -> Result<PathBuf, HypervisorError> {
        self.driver.disk_path(vm, disk).await
    }

    async fn start(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.driver.start(vm).await
    }

    async fn stop(&self, vm: VmId, how: Stop) -> Result<(), HypervisorError> {
        self.driver.stop(vm, how).await
    }

    async fn shut_down(&self, vm: VmId, patience: Duration) -> Result<(), HypervisorError> {
        self.driver.shut_down(vm, patience).await
    }

    async fn freeze_off(
        &self,
        vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
    ) -> Result<FrozenPoint, HypervisorError> {
        self.driver.freeze_off(vm, disks, since, next).await
    }

    async fn own_extents(
        &self,
        point: &FrozenPoint,
        disk: DiskId,
    ) -> Result<Option<Vec<Extent>>, HypervisorError> {
        self.driver.own_extents(point, disk).await
    }

    async fn create(&self, vm: NewVirtualMachine) -> Result<(), HypervisorError> {
        self.driver.create(vm).await
    }

    async fn remove(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.driver.remove(vm).await
    }

    async fn console(&self, vm: VmId) -> Result<PathBuf, HypervisorError> {
        self.driver.console(vm).await
    }
}

/// What a limit holds up until it is opened: data only, or also what asks before it freezes.
struct Gate {
    /// Fewer bytes than this pass.
    least_held: u64,
    waits: watch::Sender<bool>,
    open: watch::Sender<bool>,
}

#[async_trait]
impl Throttle for Gate {
    async fn acquire(&self, _item_id: &str, bytes: u64, class: Class) {
        if bytes >= self.least_held && class != Class::Downtime {
            self.waits.send_replace(true);
            let mut opened = self.open.subscribe();
            opened.wait_for(|open| *open).await.unwrap();
        }
    }

    fn limit_item(&self, _item_id: &str, _limits: &[Limit]) {}

    fn limit_host(&self, _limits: &[Limit]) {}
}

fn engine(world: &World, least_held: u64) -> (Engine, Arc<Gate>, Arc<AtomicU64>) {
    let free_bytes = Arc::new(AtomicU64::new(1 << 40));
    let gate = Arc::new(Gate {
        least_held,
        waits: watch::Sender::new(false),
        open: watch::Sender::new(false),
    });
    let mut host = world.host(Arc::new(NoPauses));
    host.hypervisor = Arc::new(Narrow {
        driver: world.driver.clone(),
        free_bytes: free_bytes.clone(),
    });
    host.throttle = gate.clone();
    let engine = Engine {
        board: host.board.clone(),
        vms: RecoveredVms::new(Arc::new(host)),
    };
    (engine, gate, free_bytes)
}

async fn until_it_waits(gate: &Gate) {
    let mut waits = gate.waits.subscribe();
    let waits = waits.wait_for(|waits| *waits);
    tokio::time::timeout(super::LIMIT, waits)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_cycle_that_waits_for_a_limit_is_given_back_before_the_host_is_full_and_goes_on() {
    let mut world = World::new(true).await;
    let (mut engine, gate, free_bytes) = engine(&world, 1);
    started(&world, &mut engine).await;
    world.churn().await;
    engine.tell(&world.listed(10, run(), true)).await;
    until_it_waits(&gate).await;
    free_bytes.store(5 << 20, Ordering::SeqCst);
    engine
        .until("too little room is told", |status| {
            let mut findings = status.findings.iter();
            findings.any(|finding| finding.summary.contains("only 5 MiB are free"))
        })
        .await;
    free_bytes.store(1 << 40, Ordering::SeqCst);
    gate.open.send_replace(true);
    engine.ships_beyond(0).await;
    world.newest_is_the_vm().await;
    engine
        .until("the finding is gone", |status| status.findings.is_empty())
        .await;
    engine.vms.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_limit_lets_nothing_through_nothing_is_frozen_and_the_rest_of_a_vm_that_is_off_goes_nevertheless()
 {
    use protection::life::{RecoveryOrder, RecoverySaid};

    let mut world = World::new(true).await;
    let (mut engine, gate, _) = engine(&world, 0);
    started(&world, &mut engine).await;
    world.churn().await;
    engine.tell(&world.listed(10, run(), true)).await;
    until_it_waits(&gate).await;
    let vm = VmId(super::VM);
    assert_eq!(world.driver.tracking(vm).await.unwrap(), []);
    assert_eq!(engine.status().shipped_unix_ms, 0);
    // Downtime is not prolonged until a window ends.
    engine
        .tell(&world.listed(11, RecoveryOrder::Stop, true))
        .await;
    engine.says(11, RecoverySaid::Stopped).await;
    world.ended();
    world.newest_is_the_vm().await;
    assert!(!*gate.open.borrow());
    engine.vms.stop().await;
}
