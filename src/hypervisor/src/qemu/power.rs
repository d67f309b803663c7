//! Start, stop, make and delete VMs.

use std::fs;
use std::io;
use std::path::{Component, Path};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;
use tracing::{info, warn};

use super::config::{DiskConfig, FILE_NAME, NbdConfig, NetworkConfig, VmConfig};
use super::folder::VmFolder;
use super::shutdown::{self, Power};
use super::{FoundVm, QEMU, QemuDriver, connect, create_qcow2, from_qmp, machine, missing_or_io};
use crate::{DiskSource, ErrorKind, Generation, HypervisorError, NewVirtualMachine, Stop, VmId};

/// Until QEMU has opened all its files: it may wait 5 s a disk for the server of a recovery point.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// For writing out what it holds after `quit`.
const QUIT_TIMEOUT: Duration = Duration::from_secs(15);
/// A pid file appears before the parent of a daemonised QEMU ends.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

impl QemuDriver {
    pub(super) async fn power_on(&self, vm: VmId) -> Result<(), HypervisorError> {
        let found = self.find(vm)?;
        let FoundVm { folder, config } = &found;
        match shutdown::power_of(&found).await? {
            Some(Power::On) => {
                self.segments.attach(&found)?;
                return self.let_guest_end(vm).await;
            }
            // Kept for its bitmaps, which can't be taken over.
            Some(Power::Off) => self.power_off(&found, Stop::TurnOff).await?,
            None => {}
        }
        folder.settle().await;
        self.still.forget_all(vm);
        let step = format!("start vm {}", config.name);
        let io_failed =
            |error: io::Error| HypervisorError::with_source(ErrorKind::Io, step.clone(), error);
        folder.check_socket_paths()?;
        fs::create_dir_all(folder.run()).map_err(io_failed)?;
        folder.remove_stale_files().map_err(io_failed)?;
        // Old data of a frozen point of a QEMU that is gone.
        remove_folder(&self.scratch_of(vm)).map_err(io_failed)?;
        if config.machine_generation() == Generation::Two && !folder.firmware_variables().exists() {
            let (_, variables) = machine::firmware()?;
            copy_whole(&variables, &folder.firmware_variables()).map_err(io_failed)?;
        }
        // Before its first frame.
        self.segments.attach(&found)?;
        let arguments = machine::arguments(folder, config, self.kvm().await)?;
        let run = Command::new(QEMU)
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| missing_or_io(error, &step, QEMU, "qemu-system-x86"))?
            .wait_with_output();
        let output = timeout(START_TIMEOUT, run)
            .await
            .map_err(|_| HypervisorError::new(ErrorKind::Timeout, step.clone()))?
            .map_err(io_failed)?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            // Warnings come first; the last line says why it ended.
            let reason = words
                .lines()
                .filter(|line| !line.contains("warning:"))
                .collect::<Vec<_>>()
                .join("; ");
            return Err(HypervisorError::with_source(
                ErrorKind::Refused,
                step,
                reason,
            ));
        }
        if folder.running_pid().is_none() {
            return Err(HypervisorError::new(
                ErrorKind::Refused,
                format!("{step}: it ended at once"),
            ));
        }
        info!(vm = %config.name, "started");
        Ok(())
    }

    pub(super) async fn power_off(
        &self,
        found: &FoundVm,
        how: Stop,
    ) -> Result<(), HypervisorError> {
        let FoundVm { folder, config } = found;
        let Some(pid) = folder.running_pid() else {
            self.segments.detach(found.id());
            return Ok(());
        };
        let how = match how {
            // Else it would wait for an end that does not come.
            Stop::Shutdown { .. } if shutdown::is_marked(found) => {
                self.let_guest_end(found.id()).await?;
                match shutdown::power_of(found).await? {
                    Some(Power::Off) => Stop::TurnOff,
                    Some(Power::On) | None => how,
                }
            }
            _ => how,
        };
        match how {
            Stop::Shutdown { timeout: patience } => {
                let step = format!("shut down vm {}", config.name);
                match connect(found).await {
                    Ok(mut qmp) => match qmp.execute("system_powerdown", Value::Null).await {
                        Ok(_) => {}
                        Err(_) if folder.running_pid().is_none() => {}
                        Err(error) => return Err(from_qmp(step, error)),
                    },
                    Err(_) if folder.running_pid().is_none() => {}
                    Err(error) => return Err(error),
                }
                if !folder.wait_gone(pid, patience).await {
                    return Err(HypervisorError::new(
                        ErrorKind::Timeout,
                        format!(
                            "{step}: its guest still runs after {} s",
                            patience.as_secs()
                        ),
                    ));
                }
            }
            Stop::TurnOff => {
                let asked = timeout(ANSWER_TIMEOUT, async {
                    let mut qmp = connect(found).await.ok()?;
                    qmp.execute("quit", Value::Null).await.ok()
                });
                if !matches!(asked.await, Ok(Some(_))) || !folder.wait_gone(pid, QUIT_TIMEOUT).await
                {
                    // It may wait for a server that is gone, or hang.
                    folder
                        .kill(pid)
                        .await
                        .map_err(|error| error.context(format!("turn off vm {}", config.name)))?;
                }
            }
        }
        self.segments.detach(found.id());
        if let Err(error) = folder
            .remove_stale_files()
            .and_then(|()| remove_folder(&self.scratch_of(found.id())))
        {
            // They are removed at the next start as well.
            warn!(vm = %config.name, %error, "files of a machine that is off can't be removed");
        }
        info!(vm = %config.name, "is off");
        Ok(())
    }

    pub(super) async fn make(&self, vm: &NewVirtualMachine) -> Result<(), HypervisorError> {
        let step = format!("create vm {}", vm.name);
        let path = self
            .own_folder(&vm.folder)
            .map_err(|error| error.context(step.clone()))?;
        let folder = VmFolder::new(path);
        folder.check_socket_paths()?;
        let config = configuration(vm).map_err(|problem| {
            HypervisorError::new(ErrorKind::InvalidRequest, format!("{step}: {problem}"))
        })?;
        match self.find(vm.id) {
            Ok(found) if found.folder != folder => {
                return Err(HypervisorError::new(
                    ErrorKind::InvalidRequest,
                    format!(
                        "{step}: its id belongs to {} already",
                        found.folder.path().display()
                    ),
                ));
            }
            Err(error) if error.kind() != ErrorKind::VmNotFound => return Err(error.context(step)),
            // Finished, or begun: what is missing is made below.
            Ok(_) => {}
            Err(_) if folder.path().join(FILE_NAME).exists() => {
                return Err(HypervisorError::new(
                    ErrorKind::InvalidRequest,
                    format!(
                        "{step}: the folder {} holds another vm",
                        folder.path().display()
                    ),
                ));
            }
            Err(_) => {
                let text = toml::to_string(&config).map_err(|error| {
                    HypervisorError::with_source(ErrorKind::InvalidRequest, step.clone(), error)
                })?;
                fs::create_dir_all(folder.path())
                    .and_then(|()| write_whole(&folder.path().join(FILE_NAME), text.as_bytes()))
                    .map_err(|error| {
                        HypervisorError::with_source(ErrorKind::Io, step.clone(), error)
                    })?;
            }
        }
        // First the configuration, then the layers: so whatever is half made can be found and removed.
        for disk in &config.disks {
            let file = folder.resolve(&disk.file);
            if let Some(nbd) = &disk.nbd
                && !file.exists()
            {
                let unfinished = file.with_extension("unfinished");
                create_qcow2(&unfinished, nbd.size_bytes)
                    .await
                    .map_err(|error| error.context(step.clone()))?;
                fs::rename(&unfinished, &file).map_err(|error| {
                    HypervisorError::with_source(ErrorKind::Io, step.clone(), error)
                })?;
            }
        }
        info!(vm = %config.name, "created");
        Ok(())
    }

    pub(super) async fn delete(&self, vm: VmId) -> Result<(), HypervisorError> {
        let found = match self.find(vm) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::VmNotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        self.power_off(&found, Stop::TurnOff).await?;
        remove_folder(found.folder.path()).map_err(|error| {
            HypervisorError::with_source(
                ErrorKind::Io,
                format!("delete the folder of vm {}", found.config.name),
                error,
            )
        })?;
        info!(vm = %found.config.name, "deleted");
        Ok(())
    }
}

fn configuration(vm: &NewVirtualMachine) -> Result<VmConfig, String> {
    let mut disks = Vec::new();
    for disk in &vm.disks {
        disks.push(match &disk.source {
            DiskSource::Image(path) => DiskConfig {
                file: path.clone(),
                id: None,
                nbd: None,
                size_bytes: None,
            },
            DiskSource::Nbd {
                socket,
                export,
                size_bytes,
                overlay,
            } => {
                // The layer is deleted with the folder, so it must lie in it.
                let escapes = overlay
                    .components()
                    .any(|part| part == Component::ParentDir);
                if escapes || (overlay.is_absolute() && !overlay.starts_with(&vm.folder)) {
                    return Err(format!(
                        "overlay {} must lie in the folder of the vm",
                        overlay.display()
                    ));
                }
                if !socket.is_absolute() || size_bytes % 512 != 0 {
                    return Err(format!(
                        "export {export} needs an absolute socket path and whole sectors"
                    ));
                }
                DiskConfig {
                    file: overlay.clone(),
                    id: Some(disk.id.0),
                    size_bytes: None,
                    nbd: Some(NbdConfig {
                        socket: socket.clone(),
                        export: export.clone(),
                        size_bytes: *size_bytes,
                    }),
                }
            }
        });
    }
    let config = VmConfig {
        id: vm.id.0,
        name: vm.name.clone(),
        generation: vm.generation.number(),
        memory_mib: vm.memory_bytes.div_ceil(1 << 20),
        processors: vm.processors,
        os_type: vm.os_type.clone(),
        disks,
        networks: vm
            .networks
            .iter()
            .map(|network| NetworkConfig {
                name: network.network_name.clone(),
                segment: network.segment,
                mac: network.mac_address.clone(),
            })
            .collect(),
    };
    config.check()?;
    if config.disks.iter().any(|disk| disk.format().is_none()) {
        return Err("an image must be a .vhdx or .vhd".to_owned());
    }
    Ok(config)
}

/// The file is there whole or not at all.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, content)?;
    fs::File::open(&unfinished)?.sync_all()?;
    fs::rename(&unfinished, path)
}

fn copy_whole(from: &Path, to: &Path) -> io::Result<()> {
    write_whole(to, &fs::read(from)?)
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
