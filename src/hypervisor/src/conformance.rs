//! What every driver must do, as one function that any driver's tests call.
//!
//! The fixture brings a running VM with at least two disks of at least 8 MiB, which nobody else writes to, and a way
//! to write to them as the guest would. The function ends with the VM running, unfrozen and without tracking.

mod shut_down;

use async_trait::async_trait;

use crate::{
    Changes, Consistency, DiskId, ErrorKind, ExtentSet, FreezeRequest, FrozenDisk, FrozenPoint,
    GroupFreezeError, Hypervisor, HypervisorError, PowerState, Quiescence, TrackingId, VmId,
};

pub use shut_down::run_shut_down;

/// Granularity that all drivers promise.
const BLOCK: u64 = 64 << 10;

/// A running VM for the suite.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// Which VM.
    fn vm(&self) -> VmId;

    /// Another running VM of the same host, with a disk, that nobody else freezes; `None` = the driver freezes no groups.
    fn companion(&self) -> Option<VmId> {
        None
    }

    /// Writes `length` bytes of `byte` to a disk as the guest would, and returns when it is done.
    async fn write(
        &self,
        disk: DiskId,
        offset: u64,
        length: u64,
        byte: u8,
    ) -> Result<(), HypervisorError>;
}

/// A promise that a driver broke.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// A call failed that must work.
    #[error("{step} failed")]
    Failed {
        /// Which step of the suite.
        step: &'static str,
        /// The driver's error.
        source: HypervisorError,
    },
    /// An answer was wrong.
    #[error("{step}: {problem}")]
    Wrong {
        /// Which step of the suite.
        step: &'static str,
        /// What was wrong.
        problem: String,
    },
}

type Outcome = Result<(), Violation>;

/// Runs the suite.
///
/// # Errors
/// The first promise that does not hold.
pub async fn run(driver: &dyn Hypervisor, fixture: &dyn Fixture) -> Outcome {
    let disks = listing(driver, fixture.vm()).await?;
    let suite = Suite {
        driver,
        fixture,
        vm: fixture.vm(),
        disks,
    };
    ok(
        "forget_all before the suite",
        driver.forget_all(suite.vm).await,
    )?;
    suite.first_freeze_knows_no_changes().await?;
    suite.changes_are_exact_and_the_view_stands_still().await?;
    suite.a_cycle_that_came_to_nothing_loses_no_change().await?;
    suite.a_point_that_was_left_behind_is_cleaned_up().await?;
    suite.wrong_requests_are_refused_and_leave_nothing().await?;
    suite
        .an_application_point_says_whether_the_guest_confirmed()
        .await?;
    if let Some(companion) = fixture.companion() {
        suite
            .a_group_is_frozen_whole_or_not_at_all(companion)
            .await?;
    }
    ok("forget_all", driver.forget_all(suite.vm).await)?;
    check(
        "forget_all",
        ok("tracking", driver.tracking(suite.vm).await)?.is_empty(),
        || "tracking is left".to_owned(),
    )
}

async fn listing(driver: &dyn Hypervisor, vm: VmId) -> Result<Vec<DiskId>, Violation> {
    let step = "virtual_machines";
    let machines = ok(step, driver.virtual_machines().await)?;
    let machine = machines.into_iter().find(|machine| machine.id == vm);
    let Some(machine) = machine else {
        return Err(Violation::Wrong {
            step,
            problem: "the vm is not listed".to_owned(),
        });
    };
    check(step, machine.findings.is_empty(), || {
        format!("findings {:?}", machine.findings)
    })?;
    check(step, machine.power_state == PowerState::Running, || {
        "the vm is listed as off".to_owned()
    })?;
    check(step, machine.disks.len() >= 2, || {
        "fewer than two disks are listed".to_owned()
    })?;
    check(
        step,
        machine.disks.iter().all(|disk| disk.size_bytes >= 8 << 20),
        || "a disk is too small".to_owned(),
    )?;
    for disk in &machine.disks {
        let path = ok("disk_path", driver.disk_path(vm, disk.id).await)?;
        check("disk_path", path.is_file(), || {
            format!("{} is no file", path.display())
        })?;
    }
    ok("host", driver.host().await)?;
    Ok(machine.disks.into_iter().map(|disk| disk.id).collect())
}

struct Suite<'a> {
    driver: &'a dyn Hypervisor,
    fixture: &'a dyn Fixture,
    vm: VmId,
    disks: Vec<DiskId>,
}

fn id(number: u64) -> TrackingId {
    TrackingId {
        generation: 7,
        number,
    }
}

impl Suite<'_> {
    async fn freeze(
        &self,
        step: &'static str,
        since: Option<u64>,
        next: u64,
    ) -> Result<FrozenPoint, Violation> {
        let point = ok(
            step,
            self.driver
                .freeze(
                    self.vm,
                    &self.disks,
                    since.map(id),
                    id(next),
                    Consistency::Crash,
                )
                .await,
        )?;
        let order: Vec<DiskId> = point.disks.iter().map(|disk| disk.disk).collect();
        check(step, order == self.disks, || {
            "disks in another order than asked".to_owned()
        })?;
        check(
            step,
            point.vm == self.vm && point.tracking == id(next),
            || "another vm or tracking id".to_owned(),
        )?;
        Ok(point)
    }

    async fn write(
        &self,
        step: &'static str,
        disk: usize,
        offset: u64,
        length: u64,
        byte: u8,
    ) -> Outcome {
        ok(
            step,
            self.fixture
                .write(self.disks[disk], offset, length, byte)
                .await,
        )
    }

    async fn release(&self, step: &'static str, point: FrozenPoint) -> Outcome {
        ok(step, self.driver.release(point).await)
    }

    async fn first_freeze_knows_no_changes(&self) -> Outcome {
        let step = "first freeze";
        let point = self.freeze(step, None, 1).await?;
        for disk in &point.disks {
            check(step, disk.changes == Changes::Unknown, || {
                format!("changes {:?}", disk.changes)
            })?;
        }
        self.release(step, point).await?;
        let ids = ok(step, self.driver.tracking(self.vm).await)?;
        check(step, ids == [id(1)], || format!("tracking {ids:?}"))
    }

    async fn changes_are_exact_and_the_view_stands_still(&self) -> Outcome {
        let step = "second freeze";
        self.write(step, 0, 3 * BLOCK + 512, 512, 0x11).await?;
        self.write(step, 0, 10 * BLOCK - 512, 1024, 0x12).await?;
        let point = self.freeze(step, Some(1), 2).await?;
        expect_blocks(step, &point.disks[0], &[3, 9, 10])?;
        expect_blocks(step, &point.disks[1], &[])?;
        self.write(step, 0, 3 * BLOCK, BLOCK, 0x99).await?;
        self.write(step, 1, 0, BLOCK, 0x99).await?;
        expect_bytes(step, &point.disks[0], 3 * BLOCK + 512, 512, 0x11).await?;
        expect_bytes(step, &point.disks[0], 10 * BLOCK - 512, 1024, 0x12).await?;
        self.release(step, point).await?;

        let step = "third freeze";
        ok(step, self.driver.forget(self.vm, id(2)).await)?;
        let ids = ok(step, self.driver.tracking(self.vm).await)?;
        check(step, ids == [id(2)], || format!("tracking {ids:?}"))?;
        let point = self.freeze(step, Some(2), 3).await?;
        expect_blocks(step, &point.disks[0], &[3])?;
        expect_blocks(step, &point.disks[1], &[0])?;
        expect_bytes(step, &point.disks[1], 0, 512, 0x99).await?;
        self.release(step, point).await?;
        ok(step, self.driver.forget(self.vm, id(3)).await)
    }

    async fn a_cycle_that_came_to_nothing_loses_no_change(&self) -> Outcome {
        let step = "freeze after a cycle that came to nothing";
        self.write(step, 0, 5 * BLOCK, 512, 0x21).await?;
        let point = self.freeze(step, Some(3), 4).await?;
        self.release(step, point).await?;
        self.write(step, 0, 6 * BLOCK, 512, 0x22).await?;
        let point = self.freeze(step, Some(3), 5).await?;
        expect_blocks(step, &point.disks[0], &[5, 6])?;
        expect_blocks(step, &point.disks[1], &[])?;
        self.release(step, point).await?;
        ok(step, self.driver.forget(self.vm, id(5)).await)
    }

    async fn a_point_that_was_left_behind_is_cleaned_up(&self) -> Outcome {
        let step = "clean_up";
        self.write(step, 1, 7 * BLOCK, 512, 0x31).await?;
        drop(self.freeze(step, Some(5), 6).await?);
        match self
            .driver
            .freeze(self.vm, &self.disks, Some(id(5)), id(7), Consistency::Crash)
            .await
        {
            Err(error) if error.kind() == ErrorKind::Busy => {}
            other => {
                return Err(Violation::Wrong {
                    step,
                    problem: format!("no Busy for a second point but {other:?}"),
                });
            }
        }
        ok(step, self.driver.clean_up(self.vm).await)?;
        ok(step, self.driver.clean_up(self.vm).await)?;
        self.write(step, 1, 8 * BLOCK, 512, 0x32).await?;
        let point = self.freeze(step, Some(5), 7).await?;
        expect_blocks(step, &point.disks[0], &[])?;
        expect_blocks(step, &point.disks[1], &[7, 8])?;
        self.release(step, point).await
    }

    async fn wrong_requests_are_refused_and_leave_nothing(&self) -> Outcome {
        let step = "wrong request";
        let before = ok(step, self.driver.tracking(self.vm).await)?;
        let nobody = VmId(uuid::Uuid::new_v4());
        let no_disk = [self.disks[0], DiskId(uuid::Uuid::new_v4())];
        let twice = [self.disks[0], self.disks[0]];
        let cases: [(VmId, &[DiskId], u64, ErrorKind); 5] = [
            (nobody, &self.disks, 8, ErrorKind::VmNotFound),
            (self.vm, &no_disk, 8, ErrorKind::DiskNotFound),
            (self.vm, &twice, 8, ErrorKind::InvalidRequest),
            (self.vm, &[], 8, ErrorKind::InvalidRequest),
            (self.vm, &self.disks, 7, ErrorKind::InvalidRequest),
        ];
        for (vm, disks, next, expected) in cases {
            let answer = self
                .driver
                .freeze(vm, disks, None, id(next), Consistency::Crash)
                .await;
            let kind = answer.as_ref().err().map(HypervisorError::kind);
            check(step, kind == Some(expected), || {
                format!("{expected:?} expected, not {answer:?}")
            })?;
        }
        let after = ok(step, self.driver.tracking(self.vm).await)?;
        check(step, before == after, || {
            format!("tracking {before:?} became {after:?}")
        })?;
        ok(step, self.driver.forget_all(nobody).await)?;
        ok(step, self.driver.remove(nobody).await)
    }
}

impl Suite<'_> {
    async fn an_application_point_says_whether_the_guest_confirmed(&self) -> Outcome {
        let step = "application-consistent freeze";
        ok(step, self.driver.forget_all(self.vm).await)?;
        self.write(step, 0, 2 * BLOCK, 512, 0x41).await?;
        let request = self
            .driver
            .freeze(self.vm, &self.disks, None, id(20), Consistency::Application)
            .await;
        let point = ok(step, request)?;
        check(step, point.quiescence != Quiescence::NotAsked, || {
            "nobody asked the guest".to_owned()
        })?;
        expect_bytes(step, &point.disks[0], 2 * BLOCK, 512, 0x41).await?;
        self.release(step, point).await?;
        // The guest goes on, whatever came of it.
        self.write(step, 0, 3 * BLOCK, 512, 0x42).await
    }

    async fn a_group_is_frozen_whole_or_not_at_all(&self, companion: VmId) -> Outcome {
        let step = "group freeze";
        ok(step, self.driver.forget_all(self.vm).await)?;
        ok(step, self.driver.forget_all(companion).await)?;
        let machines = ok(step, self.driver.virtual_machines().await)?;
        let other: Vec<DiskId> = machines
            .iter()
            .filter(|machine| machine.id == companion)
            .flat_map(|machine| machine.disks.iter().map(|disk| disk.id))
            .collect();
        let request = |vm, disks: &[DiskId], since: Option<u64>, next| FreezeRequest {
            vm,
            disks: disks.to_vec(),
            since: since.map(id),
            next: id(next),
        };
        let both = |since, next| {
            [
                request(self.vm, &self.disks, since, next),
                request(companion, &other, since, next),
            ]
        };
        let points = self
            .driver
            .freeze_group(&both(None, 30), Consistency::Crash)
            .await;
        let points = group(step, points)?;
        let order: Vec<VmId> = points.iter().map(|point| point.vm).collect();
        check(step, order == [self.vm, companion], || {
            format!("points of {order:?}")
        })?;
        check(
            step,
            points[0].taken_unix_ms == points[1].taken_unix_ms,
            || "two instants".to_owned(),
        )?;
        for point in points {
            self.release(step, point).await?;
        }
        self.write(step, 0, 5 * BLOCK, 512, 0x51).await?;

        let step = "group freeze with a member that can't";
        let nobody = VmId(uuid::Uuid::new_v4());
        let mut three = both(Some(30), 31).to_vec();
        three.push(request(nobody, &other, None, 31));
        let answer = self.driver.freeze_group(&three, Consistency::Crash).await;
        match answer {
            Err(error) if error.vm == Some(nobody) => {}
            other => {
                return Err(Violation::Wrong {
                    step,
                    problem: format!("no error that names the member but {other:?}"),
                });
            }
        }
        for vm in [self.vm, companion] {
            let ids = ok(step, self.driver.tracking(vm).await)?;
            check(step, ids == [id(30)], || format!("tracking {ids:?}"))?;
        }
        let twice = [
            request(companion, &other, None, 32),
            request(companion, &other, None, 33),
        ];
        let refused = self.driver.freeze_group(&twice, Consistency::Crash).await;
        check(
            step,
            refused.is_err_and(|error| error.source.kind() == ErrorKind::InvalidRequest),
            || "one vm twice is no group".to_owned(),
        )?;

        let step = "group freeze after it";
        let points = self
            .driver
            .freeze_group(&both(Some(30), 31), Consistency::Application)
            .await;
        let points = group(step, points)?;
        expect_blocks(step, &points[0].disks[0], &[5])?;
        for point in points {
            self.release(step, point).await?;
        }
        ok(step, self.driver.forget_all(companion).await)
    }
}

fn group<T>(step: &'static str, result: Result<T, GroupFreezeError>) -> Result<T, Violation> {
    ok(step, result.map_err(|error| error.source))
}

fn ok<T>(step: &'static str, result: Result<T, HypervisorError>) -> Result<T, Violation> {
    result.map_err(|source| Violation::Failed { step, source })
}

fn check(step: &'static str, holds: bool, problem: impl FnOnce() -> String) -> Outcome {
    if holds {
        Ok(())
    } else {
        Err(Violation::Wrong {
            step,
            problem: problem(),
        })
    }
}

/// The changes are exactly these 64 KiB blocks, and all of them are listed as allocated.
fn expect_blocks(step: &'static str, disk: &FrozenDisk, blocks: &[u64]) -> Outcome {
    let Changes::Since(changes) = &disk.changes else {
        return Err(Violation::Wrong {
            step,
            problem: format!("changes of disk {} are unknown", disk.disk),
        });
    };
    let expected = ExtentSet::from_unsorted(
        blocks
            .iter()
            .map(|block| crate::Extent {
                offset: block * BLOCK,
                length: BLOCK,
            })
            .collect(),
    );
    check(step, changes == expected.as_slice(), || {
        format!(
            "changes of disk {} are {changes:?}, not {:?}",
            disk.disk,
            expected.as_slice()
        )
    })?;
    let allocated = ExtentSet::from_unsorted(disk.allocated.clone());
    check(step, expected.subtract(&allocated).is_empty(), || {
        format!(
            "changes of disk {} are missing in its allocated ranges {allocated:?}",
            disk.disk
        )
    })
}

async fn expect_bytes(
    step: &'static str,
    disk: &FrozenDisk,
    offset: u64,
    length: usize,
    byte: u8,
) -> Outcome {
    let data = ok(step, disk.reader.read(offset, length).await)?;
    check(
        step,
        data.len() == length && data.iter().all(|found| *found == byte),
        || {
            format!(
                "disk {} at {offset} does not hold {byte:#x} but {:?}",
                disk.disk,
                data.get(..8)
            )
        },
    )
}
