//! Gatherings of members on a paused clock, over a host that only counts.

use std::collections::BTreeSet;
use std::path::PathBuf;

use async_trait::async_trait;
use hypervisor::{
    DiskId, ErrorKind, GroupFreezeError, HostFacts, NewVirtualMachine, Quiescence, Stop,
    TrackingId, VirtualMachine, VmId,
};

use super::*;

/// Freezes whatever it is asked, but for VMs that are off.
#[derive(Default)]
struct Host {
    off: Mutex<BTreeSet<VmId>>,
    together: Mutex<Vec<usize>>,
    alone: Mutex<usize>,
    released: Mutex<usize>,
}

fn point(request: &FreezeRequest, consistency: Consistency) -> FrozenPoint {
    FrozenPoint {
        vm: request.vm,
        taken_unix_ms: 1,
        tracking: request.next,
        quiescence: match consistency {
            Consistency::Crash => Quiescence::NotAsked,
            Consistency::Application => Quiescence::Confirmed { file_systems: 1 },
        },
        pause: Duration::ZERO,
        disks: Vec::new(),
    }
}

fn unused<T>() -> Result<T, HypervisorError> {
    Err(HypervisorError::new(ErrorKind::InvalidRequest, "not here"))
}

impl Host {
    fn check(&self, vm: VmId) -> Result<(), HypervisorError> {
        if self.off.lock().unwrap().contains(&vm) {
            return Err(HypervisorError::new(ErrorKind::VmNotRunning, "vm is off"));
        }
        Ok(())
    }
}

#[async_trait]
impl Hypervisor for Host {
    async fn host(&self) -> Result<HostFacts, HypervisorError> {
        unused()
    }

    async fn virtual_machines(&self) -> Result<Vec<VirtualMachine>, HypervisorError> {
        unused()
    }

    async fn freeze(
        &self,
        vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
        consistency: Consistency,
    ) -> Result<FrozenPoint, HypervisorError> {
        self.check(vm)?;
        *self.alone.lock().unwrap() += 1;
        let request = FreezeRequest {
            vm,
            disks: disks.to_vec(),
            since,
            next,
        };
        Ok(point(&request, consistency))
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
        self.together.lock().unwrap().push(members.len());
        Ok(members
            .iter()
            .map(|member| point(member, consistency))
            .collect())
    }

    async fn release(&self, _point: FrozenPoint) -> Result<(), HypervisorError> {
        *self.released.lock().unwrap() += 1;
        Ok(())
    }

    async fn tracking(&self, _vm: VmId) -> Result<Vec<TrackingId>, HypervisorError> {
        unused()
    }

    async fn forget(&self, _vm: VmId, _older_than: TrackingId) -> Result<(), HypervisorError> {
        unused()
    }

    async fn forget_all(&self, _vm: VmId) -> Result<(), HypervisorError> {
        unused()
    }

    async fn clean_up(&self, _vm: VmId) -> Result<(), HypervisorError> {
        unused()
    }

    async fn disk_path(&self, _vm: VmId, _disk: DiskId) -> Result<PathBuf, HypervisorError> {
        unused()
    }

    async fn start(&self, _vm: VmId) -> Result<(), HypervisorError> {
        unused()
    }

    async fn stop(&self, _vm: VmId, _how: Stop) -> Result<(), HypervisorError> {
        unused()
    }

    async fn create(&self, _vm: NewVirtualMachine) -> Result<(), HypervisorError> {
        unused()
    }

    async fn remove(&self, _vm: VmId) -> Result<(), HypervisorError> {
        unused()
    }

    async fn console(&self, _vm: VmId) -> Result<PathBuf, HypervisorError> {
        unused()
    }
}

const PATIENCE: Duration = Duration::from_secs(10);

fn vm(number: u128) -> VmId {
    VmId(Uuid::from_u128(number))
}

fn request(number: u128) -> FreezeRequest {
    FreezeRequest {
        vm: vm(number),
        disks: Vec::new(),
        since: None,
        next: TrackingId {
            generation: 1,
            number: 1,
        },
    }
}

async fn freeze(host: &Host, seat: &mut Seat, number: u128) -> GroupPoint {
    seat.freeze(host, request(number), Consistency::Crash, true, PATIENCE)
        .await
        .unwrap()
}

/// `count` members that have shown that they can freeze.
async fn group(host: &Host, groups: &Arc<Groups>, count: u128) -> Vec<Seat> {
    let mut seats: Vec<Seat> = (1..=count)
        .map(|number| groups.join("g", &format!("item{number}"), &format!("web0{number}")))
        .collect();
    for (seat, number) in seats.iter_mut().zip(1..) {
        freeze(host, seat, number).await;
    }
    *host.alone.lock().unwrap() = 0;
    seats
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_due_calls_the_others_and_all_share_one_point() {
    let (host, groups) = (Host::default(), Arc::new(Groups::default()));
    let mut seats = group(&host, &groups, 3).await;
    let [first, second, third] = &mut seats[..] else {
        panic!("three seats");
    };
    let (a, b, c) = tokio::join!(
        first.freeze(&host, request(1), Consistency::Application, true, PATIENCE),
        async {
            second.called().await;
            freeze(&host, second, 2).await
        },
        async {
            third.called().await;
            freeze(&host, third, 3).await
        },
    );
    let points = [a.unwrap(), b, c];
    assert_eq!(*host.together.lock().unwrap(), [3]);
    assert_eq!(*host.alone.lock().unwrap(), 0);
    let shared = points[0].shared.unwrap();
    for (point, number) in points.iter().zip(1..) {
        assert_eq!(point.shared, Some(shared));
        assert_eq!(point.point.vm, vm(number));
        assert!(point.point.quiescence.is_confirmed(), "one asks for all");
        assert_eq!(point.alone_because, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_does_not_come_is_named_and_waited_for_once() {
    let (host, groups) = (Host::default(), Arc::new(Groups::default()));
    let mut seats = group(&host, &groups, 2).await;
    let begin = tokio::time::Instant::now();
    let point = freeze(&host, &mut seats[0], 1).await;
    assert_eq!(begin.elapsed(), PATIENCE);
    assert_eq!(point.shared, None);
    assert!(point.alone_because.unwrap().contains("web02"));
    let begin = tokio::time::Instant::now();
    let point = freeze(&host, &mut seats[0], 1).await;
    assert_eq!(begin.elapsed(), Duration::ZERO, "it is known to be absent");
    assert!(point.alone_because.unwrap().contains("web02"));
    // It comes back, and the group is whole again.
    let point = freeze(&host, &mut seats[1], 2).await;
    assert_eq!(point.shared, None);
    let [first, second] = &mut seats[..] else {
        panic!("two seats");
    };
    let (a, b) = tokio::join!(freeze(&host, first, 1), async {
        second.called().await;
        freeze(&host, second, 2).await
    });
    assert!(a.shared.is_some() && a.shared == b.shared);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_off_breaks_the_shared_point_and_not_the_others() {
    let (host, groups) = (Host::default(), Arc::new(Groups::default()));
    let mut seats = group(&host, &groups, 2).await;
    host.off.lock().unwrap().insert(vm(2));
    let [first, second] = &mut seats[..] else {
        panic!("two seats");
    };
    let (a, b) = tokio::join!(freeze(&host, first, 1), async {
        second.called().await;
        second
            .freeze(&host, request(2), Consistency::Crash, true, PATIENCE)
            .await
    });
    assert!(a.alone_because.unwrap().contains("vm is off"));
    assert_eq!(b.unwrap_err().kind(), ErrorKind::VmNotRunning);
    assert!(host.together.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_member_that_leaves_is_waited_for_no_more() {
    let (host, groups) = (Host::default(), Arc::new(Groups::default()));
    let mut seats = group(&host, &groups, 3).await;
    let leaving = seats.pop().unwrap();
    let [first, second] = &mut seats[..] else {
        panic!("two seats");
    };
    let begin = tokio::time::Instant::now();
    let (a, b, ()) = tokio::join!(
        freeze(&host, first, 1),
        async {
            second.called().await;
            freeze(&host, second, 2).await
        },
        async {
            tokio::time::sleep(PATIENCE / 2).await;
            drop(leaving);
        }
    );
    assert_eq!(begin.elapsed(), PATIENCE / 2);
    assert!(a.shared.is_some() && a.shared == b.shared);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_ends_leaves_the_others_free() {
    let (host, groups) = (Host::default(), Arc::new(Groups::default()));
    let mut seats = group(&host, &groups, 3).await;
    let mut leader = seats.remove(0);
    let led = freeze(&host, &mut leader, 1);
    let begin = tokio::time::Instant::now();
    let (led, b) = tokio::join!(tokio::time::timeout(PATIENCE / 4, led), async {
        seats[0].called().await;
        freeze(&host, &mut seats[0], 2).await
    });
    assert!(led.is_err());
    assert_eq!(begin.elapsed(), PATIENCE / 4);
    assert_eq!(b.shared, None);
}

#[tokio::test(start_paused = true)]
async fn a_vm_alone_in_its_group_or_being_compared_freezes_alone() {
    let (host, groups) = (Host::default(), Arc::new(Groups::default()));
    let mut seats = group(&host, &groups, 1).await;
    let point = freeze(&host, &mut seats[0], 1).await;
    assert_eq!((point.shared, point.alone_because), (None, None));
    let mut second = groups.join("g", "item2", "web02");
    let comparing = second
        .freeze(&host, request(2), Consistency::Crash, false, PATIENCE)
        .await
        .unwrap();
    assert!(comparing.alone_because.unwrap().contains("compared"));
    let point = freeze(&host, &mut seats[0], 1).await;
    assert!(point.alone_because.unwrap().contains("web02"));
    assert_eq!(*host.released.lock().unwrap(), 0);
}
