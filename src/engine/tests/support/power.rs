//! The power button of the VM in memory, and what its disks hold.

use hypervisor::{ErrorKind, HypervisorError, Stop};

use super::{FakeHost, error};

/// How often what happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub started: u32,
    pub shut_down: u32,
    pub turned_off: u32,
}

impl FakeHost {
    pub fn is_running(&self) -> bool {
        self.inner.lock().unwrap().running
    }

    pub fn powered(&self) -> Counts {
        self.inner.lock().unwrap().powered
    }

    /// From now on the guest ignores the power button, or not any more.
    pub fn ignore_power_button(&self, stubborn: bool) {
        self.inner.lock().unwrap().stubborn = stubborn;
    }

    /// From now on the host refuses to press the power button.
    pub fn refuse_power_button(&self) {
        self.inner.lock().unwrap().refuses_button = true;
    }

    /// From now on a start takes until this is called with `false`.
    pub fn hold_starts(&self, held: bool) {
        self.holds_starts.send_replace(held);
    }

    /// Whether a start is under way.
    pub fn is_starting(&self) -> bool {
        self.holds_starts.receiver_count() > 0
    }

    /// Starts that are under way.
    pub fn starting(&self) -> usize {
        self.holds_starts.receiver_count()
    }

    pub(super) async fn starts_go_on(&self) {
        let mut held = self.holds_starts.subscribe();
        held.wait_for(|held| !*held).await.unwrap();
    }

    /// How often all VMs of the host were listed.
    pub fn inventories(&self) -> u64 {
        self.inner.lock().unwrap().inventories
    }

    /// What each disk holds now.
    pub fn contents(&self) -> Vec<Vec<u8>> {
        let inner = self.inner.lock().unwrap();
        inner.disks.iter().map(|disk| disk.data.clone()).collect()
    }

    pub(super) fn power_on(&self) {
        let mut inner = self.inner.lock().unwrap();
        if !inner.running {
            inner.running = true;
            inner.powered.started += 1;
        }
    }

    /// A guest that shuts down writes until its end.
    pub(super) async fn power_off(&self, how: Stop) -> Result<(), HypervisorError> {
        if !self.is_running() {
            return Ok(());
        }
        match how {
            Stop::TurnOff => self.inner.lock().unwrap().powered.turned_off += 1,
            Stop::Shutdown { timeout } => {
                if self.inner.lock().unwrap().refuses_button {
                    return Err(error(ErrorKind::Refused));
                }
                if self.inner.lock().unwrap().stubborn {
                    tokio::time::sleep(timeout).await;
                    return Err(error(ErrorKind::Timeout));
                }
                for _ in 0..5 {
                    self.guest_writes();
                }
                self.inner.lock().unwrap().powered.shut_down += 1;
            }
        }
        self.set_running(false);
        Ok(())
    }
}
