//! Guests that shut down while their QEMU stays: it does not run, and its bitmaps still tell what changed.
//!
//! ```text
//!   mark ─► set-action: shutdown and reboot pause ─► power button ─► run state "shutdown" ─► freeze_off ─► end
//!              └── the guest goes on: set back, unmark
//! ```
//!
//! The mark says only that the run state must be asked for: that alone tells whether the guest can run. So a process that
//! dies at any step leaves nothing that lies. QEMU leaves the state "shutdown" only by a reset that somebody asks it for.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{info, warn};

use super::config::DiskFormat;
use super::{FoundVm, QemuDriver, connect, from_qmp, layer};
use crate::qmp::{Qmp, QmpError};
use crate::{
    Consistency, DiskId, ErrorKind, FreezeRequest, FrozenPoint, HypervisorError, TrackingId, VmId,
};

/// How long a wait for the guest keeps the VM from others. The end is told by an event; a missed one is found after this.
const WAIT: Duration = Duration::from_millis(500);
/// For the list of VMs: who holds the connection for longer is at work on a frozen point.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);

/// What a guest's process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Power {
    /// Its guest runs, or may go on.
    On,
    /// Its guest has shut down; it waits to be ended.
    Off,
}

/// Whether the run state of the process must be asked for.
pub(super) fn is_marked(found: &FoundVm) -> bool {
    found.folder.shutdown_mark().exists()
}

/// As [`power`]; `None` = there is no process.
pub(super) async fn power_of(found: &FoundVm) -> Result<Option<Power>, HypervisorError> {
    if found.folder.running_pid().is_none() {
        return Ok(None);
    }
    if !is_marked(found) {
        return Ok(Some(Power::On));
    }
    match connect(found).await {
        Ok(mut qmp) => power(found, &mut qmp).await.map(Some),
        Err(_) if found.folder.running_pid().is_none() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the guest of a process can run.
pub(super) async fn power(found: &FoundVm, qmp: &mut Qmp) -> Result<Power, HypervisorError> {
    if !is_marked(found) {
        return Ok(Power::On);
    }
    run_state(qmp)
        .await
        .map_err(|error| from_qmp(format!("ask vm {} for its state", found.config.name), error))
}

async fn run_state(qmp: &mut Qmp) -> Result<Power, QmpError> {
    let status = qmp.execute("query-status", Value::Null).await?;
    Ok(match status["status"].as_str() {
        Some("shutdown") => Power::Off,
        _ => Power::On,
    })
}

async fn set_actions(qmp: &mut Qmp, shutdown: &str, reboot: &str) -> Result<(), QmpError> {
    let actions = json!({ "shutdown": shutdown, "reboot": reboot });
    qmp.execute("set-action", actions).await.map(drop)
}

/// Whether the guest of a VM whose process is there has shut down.
pub(super) async fn has_shut_down(found: &FoundVm) -> bool {
    if !is_marked(found) {
        return false;
    }
    let look = async {
        let mut qmp = Qmp::connect(&found.folder.qmp_socket(), LOOK_PATIENCE).await?;
        run_state(&mut qmp).await
    };
    match look.await {
        Ok(power) => matches!(power, Power::Off),
        // Whoever relies on a VM being off must not be told so on a guess.
        Err(error) => {
            warn!(vm = %found.config.name, %error, "its state is not known; it counts as running");
            false
        }
    }
}

impl QemuDriver {
    /// See [`crate::Hypervisor::shut_down`]. The VM's lock is held by turns, so that its points can be given back.
    pub(super) async fn shut_down_guest(
        &self,
        vm: VmId,
        patience: Duration,
    ) -> Result<(), HypervisorError> {
        let found = self.find(vm)?;
        let name = &found.config.name;
        let step = || format!("shut down vm {name}");
        let deadline = Instant::now() + patience;
        let mut asked = false;
        loop {
            {
                let _lock = self.lock(vm).await;
                if found.folder.running_pid().is_none() {
                    return Ok(());
                }
                let waited = self.wait_for_end(&found, &mut asked, deadline).await;
                match waited {
                    Ok(Power::Off) => {
                        info!(vm = %name, "has shut down, its tracking is kept");
                        return Ok(());
                    }
                    Ok(Power::On) => {}
                    Err(_) if found.folder.running_pid().is_none() => return Ok(()),
                    Err(error) => return Err(error.context(step())),
                }
            }
            if Instant::now() >= deadline {
                return Err(HypervisorError::new(
                    ErrorKind::Timeout,
                    format!(
                        "{}: its guest still runs after {} s",
                        step(),
                        patience.as_secs()
                    ),
                ));
            }
            tokio::task::yield_now().await;
        }
    }

    /// Presses the power button once, then waits a while.
    async fn wait_for_end(
        &self,
        found: &FoundVm,
        asked: &mut bool,
        deadline: Instant,
    ) -> Result<Power, HypervisorError> {
        let failed = |error| from_qmp("ask its guest", error);
        if !*asked {
            // Before the actions: from then on a process that stays may be a VM that is off.
            std::fs::write(found.folder.shutdown_mark(), b"")
                .map_err(|error| HypervisorError::with_source(ErrorKind::Io, "mark it", error))?;
        }
        let mut qmp = connect(found).await?;
        let mut power = run_state(&mut qmp).await.map_err(failed)?;
        if power == Power::On && !*asked {
            set_actions(&mut qmp, "pause", "shutdown")
                .await
                .map_err(failed)?;
            qmp.execute("system_powerdown", Value::Null)
                .await
                .map_err(failed)?;
            *asked = true;
        }
        if power == Power::On {
            let wait = WAIT.min(deadline.saturating_duration_since(Instant::now()));
            match qmp.wait_event(|event| event.name == "SHUTDOWN", wait).await {
                Ok(event) if event.data["reason"] == "guest-reset" => {
                    info!(vm = %found.config.name, "its guest restarts in place of shutting down; it is held");
                }
                Ok(_) | Err(QmpError::Timeout { .. }) => {}
                Err(error) => return Err(failed(error)),
            }
            power = run_state(&mut qmp).await.map_err(failed)?;
        }
        Ok(power)
    }

    /// A guest that runs may shut down and restart as ever again. One that has shut down is left as it is.
    pub(super) async fn let_guest_end(&self, vm: VmId) -> Result<(), HypervisorError> {
        let found = match self.find(vm) {
            Ok(found) if is_marked(&found) && found.folder.running_pid().is_some() => found,
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::VmNotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let step = || format!("let vm {} shut down as ever", found.config.name);
        let work = async {
            let mut qmp = connect(&found).await?;
            // First the actions: what shuts down between them and the look ends its process.
            set_actions(&mut qmp, "poweroff", "reset")
                .await
                .map_err(|error| from_qmp(step(), error))?;
            if power(&found, &mut qmp).await? == Power::Off {
                return Ok(());
            }
            match std::fs::remove_file(found.folder.shutdown_mark()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(HypervisorError::with_source(ErrorKind::Io, step(), error))
                }
                _ => Ok(()),
            }
        };
        match work.await {
            Err(_) if found.folder.running_pid().is_none() => Ok(()),
            other => other,
        }
    }

    /// The VMs whose process is there and whose guest has shut down.
    pub(super) async fn shut_down_guests(&self) -> BTreeSet<VmId> {
        let mut off = BTreeSet::new();
        for found in self.all_found() {
            if found.folder.running_pid().is_some() && has_shut_down(&found).await {
                off.insert(found.id());
            }
        }
        off
    }

    /// See [`crate::Hypervisor::freeze_off`]; the caller holds the lock.
    pub(super) async fn freeze_without_guest(
        &self,
        vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
    ) -> Result<FrozenPoint, HypervisorError> {
        let found = self.find(vm)?;
        if found.folder.running_pid().is_some() {
            let request = FreezeRequest {
                vm,
                disks: disks.to_vec(),
                since,
                next,
            };
            let points = self
                .freeze_all(&[request], Consistency::Crash, Power::Off)
                .await;
            let point = points.map_err(|error| error.source)?.pop();
            return point.ok_or_else(|| {
                HypervisorError::new(ErrorKind::Protocol, format!("freeze vm {vm}: no point"))
            });
        }
        let step = format!("freeze vm {} while it is off", found.config.name);
        each_once(disks, &step)?;
        if layer::has_layers(&found) {
            return self.freeze_layers(&found, disks, next).await;
        }
        let files = image_files(&found, disks, &step)?;
        self.still
            .freeze(&step, vm, &files, since, next, Consistency::Crash)
            .await
    }
}

/// Some disks, and each of them once.
fn each_once(disks: &[DiskId], step: &str) -> Result<(), HypervisorError> {
    let mut seen = BTreeSet::new();
    let problem = match disks.iter().find(|disk| !seen.insert(**disk)) {
        Some(disk) => format!("{step}: disk {disk} is named twice"),
        None if disks.is_empty() => format!("{step}: no disk is named"),
        None => return Ok(()),
    };
    Err(HypervisorError::new(ErrorKind::InvalidRequest, problem))
}

/// The image of each disk, for reading without QEMU.
fn image_files(
    found: &FoundVm,
    disks: &[DiskId],
    step: &str,
) -> Result<Vec<(DiskId, Vec<PathBuf>)>, HypervisorError> {
    let mut files: Vec<(DiskId, Vec<PathBuf>)> = Vec::with_capacity(disks.len());
    for disk in disks {
        let index = found.disk_index(*disk)?;
        let format = found.config.disks.get(index).and_then(|disk| disk.format());
        if !matches!(format, Some(DiskFormat::Vhd | DiskFormat::Vhdx)) {
            return Err(HypervisorError::new(
                ErrorKind::InvalidRequest,
                format!("{step}: disk {disk} is neither a VHDX nor a VHD"),
            ));
        }
        files.push((*disk, vec![found.disk_file(index)]));
    }
    Ok(files)
}
