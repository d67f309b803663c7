//! The part of the suite for a guest that shuts down, and for freezes of a VM that is off.

use std::time::Duration;

use super::{
    BLOCK, Fixture, Outcome, Suite, Violation, check, expect_blocks, expect_bytes, id, listing, ok,
};
use crate::{
    Changes, Consistency, DiskId, ErrorKind, FrozenPoint, Hypervisor, HypervisorError, PowerState,
    Stop,
};

/// For the guest's shutdown.
const SHUT_DOWN_PATIENCE: Duration = Duration::from_secs(120);

/// The suite for shutting down. Beyond what [`run`] asks for, the fixture's guest obeys the shutdown, and may write while
/// it does. Ends with the VM running.
///
/// # Errors
/// The first promise that does not hold.
pub async fn run_shut_down(driver: &dyn Hypervisor, fixture: &dyn Fixture) -> Outcome {
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
    suite.a_guest_that_shut_down_is_still_tracked().await?;
    suite.a_vm_without_tracking_is_read_as_it_was_left().await?;
    ok("start", driver.start(suite.vm).await)?;
    ok("forget_all", driver.forget_all(suite.vm).await)
}

impl Suite<'_> {
    async fn off(
        &self,
        step: &'static str,
        since: Option<u64>,
        next: u64,
    ) -> Result<FrozenPoint, Violation> {
        let since = since.map(id);
        let frozen = self
            .driver
            .freeze_off(self.vm, &self.disks, since, id(next))
            .await;
        let point = ok(step, frozen)?;
        let order: Vec<DiskId> = point.disks.iter().map(|disk| disk.disk).collect();
        check(
            step,
            order == self.disks && point.vm == self.vm && point.tracking == id(next),
            || "another vm, other disks or another tracking id".to_owned(),
        )?;
        Ok(point)
    }

    async fn is(&self, step: &'static str, expected: PowerState) -> Outcome {
        let machines = ok(step, self.driver.virtual_machines().await)?;
        let found = machines.iter().find(|machine| machine.id == self.vm);
        check(
            step,
            found.is_some_and(|machine| machine.power_state == expected),
            || format!("the vm is not listed as {expected:?}"),
        )
    }

    async fn a_guest_that_shut_down_is_still_tracked(&self) -> Outcome {
        let step = "freeze_off of a vm that runs";
        let point = self.freeze(step, None, 1).await?;
        self.release(step, point).await?;
        self.write(step, 0, 3 * BLOCK, 512, 0x61).await?;
        self.write(step, 1, 5 * BLOCK, 512, 0x62).await?;
        let refused = self
            .driver
            .freeze_off(self.vm, &self.disks, Some(id(1)), id(2))
            .await;
        let kind = refused.as_ref().err().map(HypervisorError::kind);
        check(step, kind == Some(ErrorKind::VmRunning), || {
            format!("VmRunning expected, not {refused:?}")
        })?;

        let step = "shut_down";
        for _ in 0..2 {
            ok(
                step,
                self.driver.shut_down(self.vm, SHUT_DOWN_PATIENCE).await,
            )?;
            self.is(step, PowerState::Off).await?;
        }
        let refused = self
            .driver
            .freeze(self.vm, &self.disks, None, id(2), Consistency::Crash)
            .await;
        let kind = refused.as_ref().err().map(HypervisorError::kind);
        check(step, kind == Some(ErrorKind::VmNotRunning), || {
            format!("VmNotRunning expected for an ordinary freeze, not {refused:?}")
        })?;

        let step = "freeze_off behind a shutdown";
        let point = self.off(step, Some(1), 2).await?;
        for (disk, block) in [(0, 3), (1, 5)] {
            let Changes::Since(changes) = &point.disks[disk].changes else {
                return Err(Violation::Wrong {
                    step,
                    problem: "changes before the shutdown are unknown".to_owned(),
                });
            };
            let holds = |offset| {
                let mut changes = changes.iter();
                changes.any(|extent| extent.offset <= offset && offset < extent.end())
            };
            check(step, holds(block * BLOCK), || {
                format!("block {block} is missing in {changes:?}")
            })?;
        }
        expect_bytes(step, &point.disks[0], 3 * BLOCK, 512, 0x61).await?;
        expect_bytes(step, &point.disks[1], 5 * BLOCK, 512, 0x62).await?;
        self.release(step, point).await?;

        let step = "second freeze_off";
        let point = self.off(step, Some(2), 3).await?;
        for disk in &point.disks {
            expect_blocks(step, disk, &[])?;
        }
        drop(point);
        ok(step, self.driver.clean_up(self.vm).await)?;
        self.is(step, PowerState::Off).await?;
        let ids = ok(step, self.driver.tracking(self.vm).await)?;
        check(step, ids == [id(1), id(2), id(3)], || {
            format!("tracking {ids:?}")
        })?;
        ok(step, self.driver.start(self.vm).await)?;
        self.is(step, PowerState::Running).await
    }

    async fn a_vm_without_tracking_is_read_as_it_was_left(&self) -> Outcome {
        let step = "freeze_off of a vm that was turned off";
        self.write(step, 0, 4 * BLOCK, 512, 0x71).await?;
        ok(step, self.driver.stop(self.vm, Stop::TurnOff).await)?;
        let point = self.off(step, None, 10).await?;
        expect_bytes(step, &point.disks[0], 4 * BLOCK, 512, 0x71).await?;
        expect_bytes(step, &point.disks[1], 5 * BLOCK, 512, 0x62).await?;
        self.release(step, point).await?;
        let point = self.off(step, Some(10), 11).await?;
        for disk in &point.disks {
            expect_blocks(step, disk, &[])?;
        }
        self.release(step, point).await
    }
}
