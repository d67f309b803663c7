//! Application-consistent and shared points, from policy to store, on hosts in memory whose guests confirm or don't.

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use engine::group::Groups;
use engine::replicator::pauses::NoPauses;
use engine::replicator::policy::Policy;
use engine::replicator::spec::{Spec, Wish};
use engine::replicator::throttle::Limit;
use engine::replicator::{Context, Replicator};
use engine::throttle::Limiter;
use engine_protocol::v1::recovery_point::Kind;
use engine_protocol::v1::{RecoveryPoint, ReplicationStatus};
use hypervisor::{
    Consistency, DiskId, ErrorKind, FreezeRequest, FrozenPoint, GroupFreezeError, HostFacts,
    Hypervisor, HypervisorError, NewVirtualMachine, QuiesceReason, Quiescence, Stop, TrackingId,
    VirtualMachine, VmId,
};
use replica_store::{ReplicaKey, RetentionPolicy};
use support::{FakeHost, VAULT, World, life};
use uuid::Uuid;

/// One host with the VMs of several hosts in memory, known under ids of their own.
struct Host {
    vms: Vec<(VmId, Arc<FakeHost>)>,
    agent: AtomicBool,
    off: AtomicBool,
}

impl Host {
    fn new(worlds: &[&World]) -> Arc<Self> {
        let ids = (100..).map(|number| VmId(Uuid::from_u128(number)));
        Arc::new(Self {
            vms: ids
                .zip(worlds.iter().map(|world| world.host.clone()))
                .collect(),
            agent: AtomicBool::new(true),
            off: AtomicBool::new(false),
        })
    }

    fn vm(&self, vm: VmId) -> Result<&Arc<FakeHost>, HypervisorError> {
        let found = self.vms.iter().find(|(id, _)| *id == vm);
        found
            .map(|(_, host)| host)
            .ok_or_else(|| HypervisorError::new(ErrorKind::VmNotFound, "no such vm"))
    }

    /// The last VM of the host can be off.
    fn check(&self, vm: VmId) -> Result<(), HypervisorError> {
        if self.off.load(Ordering::SeqCst) && self.vms.last().is_some_and(|(id, _)| *id == vm) {
            return Err(HypervisorError::new(ErrorKind::VmNotRunning, "vm is off"));
        }
        Ok(())
    }

    async fn freeze_one(
        &self,
        request: &FreezeRequest,
        consistency: Consistency,
    ) -> Result<FrozenPoint, HypervisorError> {
        self.check(request.vm)?;
        let host = self.vm(request.vm)?;
        let (disks, since, next) = (&request.disks, request.since, request.next);
        let mut point = host
            .freeze(host.vm, disks, since, next, consistency)
            .await?;
        point.vm = request.vm;
        point.quiescence = match consistency {
            Consistency::Crash => Quiescence::NotAsked,
            Consistency::Application if self.agent.load(Ordering::SeqCst) => {
                Quiescence::Confirmed { file_systems: 1 }
            }
            Consistency::Application => Quiescence::NotConfirmed {
                reason: QuiesceReason::NoAgent,
                text: "nobody answers".to_owned(),
            },
        };
        Ok(point)
    }
}

#[async_trait]
impl Hypervisor for Host {
    async fn host(&self) -> Result<HostFacts, HypervisorError> {
        self.vms[0].1.host().await
    }

    async fn virtual_machines(&self) -> Result<Vec<VirtualMachine>, HypervisorError> {
        let mut all = Vec::new();
        for (id, host) in &self.vms {
            for mut machine in host.virtual_machines().await? {
                machine.id = *id;
                all.push(machine);
            }
        }
        Ok(all)
    }

    async fn freeze(
        &self,
        vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
        consistency: Consistency,
    ) -> Result<FrozenPoint, HypervisorError> {
        let request = FreezeRequest {
            vm,
            disks: disks.to_vec(),
            since,
            next,
        };
        self.freeze_one(&request, consistency).await
    }

    async fn freeze_group(
        &self,
        members: &[FreezeRequest],
        consistency: Consistency,
    ) -> Result<Vec<FrozenPoint>, GroupFreezeError> {
        for member in members {
            self.check(member.vm).map_err(|source| GroupFreezeError {
                vm: Some(member.vm),
                source,
            })?;
        }
        let mut points = Vec::new();
        for member in members {
            let point = self.freeze_one(member, consistency).await;
            points.push(point.map_err(|source| GroupFreezeError {
                vm: Some(member.vm),
                source,
            })?);
        }
        Ok(points)
    }

    async fn release(&self, mut point: FrozenPoint) -> Result<(), HypervisorError> {
        let host = self.vm(point.vm)?;
        point.vm = host.vm;
        host.release(point).await
    }

    async fn tracking(&self, vm: VmId) -> Result<Vec<TrackingId>, HypervisorError> {
        let host = self.vm(vm)?;
        host.tracking(host.vm).await
    }

    async fn forget(&self, vm: VmId, older_than: TrackingId) -> Result<(), HypervisorError> {
        let host = self.vm(vm)?;
        host.forget(host.vm, older_than).await
    }

    async fn forget_all(&self, vm: VmId) -> Result<(), HypervisorError> {
        let host = self.vm(vm)?;
        host.forget_all(host.vm).await
    }

    async fn clean_up(&self, vm: VmId) -> Result<(), HypervisorError> {
        let host = self.vm(vm)?;
        host.clean_up(host.vm).await
    }

    async fn disk_path(&self, vm: VmId, disk: DiskId) -> Result<PathBuf, HypervisorError> {
        let host = self.vm(vm)?;
        host.disk_path(host.vm, disk).await
    }

    async fn start(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.vm(vm)?.start(vm).await
    }

    async fn stop(&self, vm: VmId, how: Stop) -> Result<(), HypervisorError> {
        self.vm(vm)?.stop(vm, how).await
    }

    async fn create(&self, vm: NewVirtualMachine) -> Result<(), HypervisorError> {
        self.vms[0].1.create(vm).await
    }

    async fn remove(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.vm(vm)?.remove(vm).await
    }

    async fn console(&self, vm: VmId) -> Result<PathBuf, HypervisorError> {
        self.vm(vm)?.console(vm).await
    }
}

/// A world's item on the common host.
fn item(
    world: &World,
    host: &Arc<Host>,
    groups: &Arc<Groups>,
    index: usize,
) -> (Arc<Context>, Spec) {
    let context = Context {
        hypervisor: host.clone(),
        groups: groups.clone(),
        ..Arc::into_inner(world.context(Arc::new(NoPauses), None)).unwrap()
    };
    let item_id = Uuid::from_u128(1000 + index as u128).to_string();
    let spec = Spec {
        key: ReplicaKey::new(VAULT, &item_id).unwrap(),
        item_id,
        vm: host.vms[index].0,
        vm_name: format!("web0{index}"),
        ..world.spec(1)
    };
    (Arc::new(context), spec)
}

fn policy() -> Policy {
    Policy::new(Duration::from_secs(10), RetentionPolicy::hours(100))
}

async fn wait_until(
    items: &[(&World, &Arc<Context>, &Spec)],
    what: &str,
    wanted: impl Fn(&[ReplicationStatus]) -> bool,
) -> Vec<ReplicationStatus> {
    let statuses = || -> Vec<ReplicationStatus> {
        items
            .iter()
            .filter_map(|(_, context, spec)| context.board.replication(&spec.item_id))
            .collect()
    };
    for _ in 0..3_000 {
        let now = statuses();
        if now.len() == items.len() && wanted(&now) {
            return now;
        }
        for (world, ..) in items {
            world.host.guest_writes();
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("never came true: {what}; {:#?}", statuses());
}

fn has(status: &ReplicationStatus, code: &str) -> bool {
    status.findings.iter().any(|finding| finding.code == code)
}

fn application(status: &ReplicationStatus) -> usize {
    let kind = |point: &&RecoveryPoint| point.kind() == Kind::ApplicationConsistent;
    status.recovery_points.iter().filter(kind).count()
}

#[test]
fn only_what_the_guest_confirmed_is_called_application_consistent() {
    let world = World::new(31);
    life(async {
        let host = Host::new(&[&world]);
        let (context, spec) = item(&world, &host, &Arc::default(), 0);
        let wish = Policy {
            app_consistent: Some(Duration::from_secs(60)),
            ..policy()
        };
        let replicator =
            Replicator::start(context.clone(), spec.clone(), Wish::Active(Box::new(wish)));
        let items = [(&world, &context, &spec)];
        let status = wait_until(&items, "three of them", |all| application(&all[0]) >= 3).await;
        let all = status[0].recovery_points.len();
        assert!(all > 2 * 6, "every minute, not always: 3 of {all}");
        assert!(status[0].last_app_consistent_unix_ms > 0);
        assert_eq!(status[0].effective_interval_seconds, 10);

        host.agent.store(false, Ordering::SeqCst);
        let status = wait_until(&items, "finding", |all| has(&all[0], "GUEST_AGENT_MISSING")).await;
        let before = (application(&status[0]), status[0].recovery_points.len());
        let status = wait_until(&items, "crash-consistent points go on", |all| {
            all[0].recovery_points.len() >= before.1 + 5
        })
        .await;
        assert!(application(&status[0]) <= before.0 + 1);

        host.agent.store(true, Ordering::SeqCst);
        wait_until(&items, "it confirms again", |all| {
            application(&all[0]) > before.0 + 1 && all[0].findings.is_empty()
        })
        .await;
        replicator.stop().await;
    });
}

#[test]
fn a_restarted_engine_brings_guests_to_rest_neither_early_nor_late() {
    const HOUR: Duration = Duration::from_secs(3600);
    let world = World::new(61);
    // One life of the engine, until there are so many points; gives how many are application-consistent.
    let live_until = |points: usize| {
        life(async {
            let host = Host::new(&[&world]);
            let (context, spec) = item(&world, &host, &Arc::default(), 0);
            let wish = Policy {
                app_consistent: Some(HOUR),
                ..policy()
            };
            let replicator =
                Replicator::start(context.clone(), spec.clone(), Wish::Active(Box::new(wish)));
            let items = [(&world, &context, &spec)];
            let status = wait_until(&items, "points", |all| {
                all[0].recovery_points.len() >= points
            })
            .await;
            replicator.stop().await;
            assert!(status[0].last_app_consistent_unix_ms > 0);
            application(&status[0])
        })
    };
    assert_eq!(live_until(5), 1, "the first cycle's");
    assert_eq!(live_until(10), 1, "the one there is counts");
    for path in world.leftovers() {
        if path.ends_with(".json") {
            std::fs::remove_file(path).unwrap();
        }
    }
    assert_eq!(live_until(15), 1, "the store knows of it, too");
    world.host.let_pass(HOUR);
    assert_eq!(live_until(20), 2, "it is old enough");
}

#[test]
fn a_limit_of_nothing_holds_points_back_says_why_and_ends_at_once() {
    let world = World::new(51);
    life(async {
        let host = Host::new(&[&world]);
        let (context, spec) = item(&world, &host, &Arc::default(), 0);
        let clock = world.host.clone();
        let limiter = Limiter::new(Arc::new(move || clock.now()));
        let mut context = Arc::into_inner(context).unwrap();
        context.throttle = Arc::new(limiter);
        let context = Arc::new(context);
        let wish = |bytes_per_second: Option<u64>| {
            let limit = bytes_per_second.map(|bytes_per_second| Limit {
                bytes_per_second,
                windows: Vec::new(),
            });
            Wish::Active(Box::new(Policy {
                throttles: limit.into_iter().collect(),
                ..policy()
            }))
        };
        let replicator = Replicator::start(context.clone(), spec.clone(), wish(None));
        let items = [(&world, &context, &spec)];
        wait_until(&items, "points", |all| all[0].recovery_points.len() >= 3).await;

        assert!(replicator.adopt(&spec, wish(Some(0))));
        let status = wait_until(&items, "degraded", |all| {
            all[0].degraded_reason.contains("bandwidth limit")
        })
        .await;
        assert!(status[0].effective_interval_seconds > 10);
        assert!(status[0].backlog_cycles > 1 && has(&status[0], "REPLICATION_DEGRADED"));
        let before = status[0].recovery_points.len();

        assert!(replicator.adopt(&spec, wish(None)));
        wait_until(&items, "all is well again", |all| {
            all[0].recovery_points.len() > before + 3
                && all[0].backlog_cycles == 0
                && all[0].degraded_reason.is_empty()
                && all[0].effective_interval_seconds == 10
                && all[0].findings.is_empty()
        })
        .await;
        replicator.stop().await;
    });
}

#[test]
fn vms_of_a_group_share_their_points_and_go_on_alone_while_one_is_off() {
    let worlds = [World::new(41), World::new(42)];
    life(async {
        let host = Host::new(&[&worlds[0], &worlds[1]]);
        let groups = Arc::new(Groups::default());
        let started: Vec<_> = worlds
            .iter()
            .enumerate()
            .map(|(index, world)| {
                let (context, spec) = item(world, &host, &groups, index);
                let wish = Policy {
                    group_name: "shop".to_owned(),
                    ..policy()
                };
                let replicator =
                    Replicator::start(context.clone(), spec.clone(), Wish::Active(Box::new(wish)));
                (context, spec, replicator)
            })
            .collect();
        let items: Vec<_> = worlds
            .iter()
            .zip(&started)
            .map(|(world, (context, spec, _))| (world, context, spec))
            .collect();
        let shared = |all: &[ReplicationStatus]| -> usize {
            let ids = |status: &ReplicationStatus| -> Vec<String> {
                let ids = status.recovery_points.iter();
                ids.map(|point| point.group_point_id.clone())
                    .filter(|id| !id.is_empty())
                    .collect()
            };
            let other = ids(&all[1]);
            ids(&all[0]).iter().filter(|id| other.contains(id)).count()
        };
        wait_until(&items, "five shared points", |all| shared(all) >= 5).await;

        host.off.store(true, Ordering::SeqCst);
        let status = wait_until(&items, "finding", |all| has(&all[0], "GROUP_POINT_MISSED")).await;
        let before = status[0].recovery_points.len();
        wait_until(&items, "the other goes on alone", |all| {
            all[0].recovery_points.len() >= before + 5 && has(&all[1], "VM_NOT_RUNNING")
        })
        .await;

        host.off.store(false, Ordering::SeqCst);
        let now = wait_until(&items, "both run", |all| !has(&all[1], "VM_NOT_RUNNING")).await;
        let before = shared(&now);
        wait_until(&items, "points are shared again", |all| {
            shared(all) >= before + 5 && !has(&all[0], "GROUP_POINT_MISSED")
        })
        .await;
        for (_, _, replicator) in started {
            replicator.stop().await;
        }
    });
}
