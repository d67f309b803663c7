//! What VMs there are, what they are made of, and why one can't be protected.
//!
//! A VM that is damaged is listed with findings. Images are only read, and may be in use by a running VM.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use disk_image::{ImageError, LiveAllocation};
use tokio::process::Command;
use tracing::warn;
use uuid::Uuid;

use super::config::{DiskConfig, DiskFormat, FILE_NAME, VmConfig};
use super::folder::VmFolder;
use super::{FoundVm, QEMU, QemuDriver};
use crate::{
    DiskId, ErrorKind, Finding, Generation, HostFacts, HypervisorError, NetworkAdapter, PowerState,
    VirtualDisk, VirtualMachine, VmId, Volume,
};

impl QemuDriver {
    pub(super) async fn host_facts(&self) -> Result<HostFacts, HypervisorError> {
        let name = fs::read_to_string("/proc/sys/kernel/hostname")
            .unwrap_or_default()
            .trim()
            .to_owned();
        let operating_system = fs::read_to_string("/etc/os-release")
            .unwrap_or_default()
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME="))
            .map_or_else(
                || "Linux".to_owned(),
                |value| value.trim_matches('"').to_owned(),
            );
        let version = self.version.get_or_init(qemu_version).await.clone();
        Ok(HostFacts {
            name,
            operating_system,
            hypervisor: "qemu".to_owned(),
            hypervisor_version: version,
            free_bytes: free_bytes(&self.scratch)?,
            accelerated: self.kvm().await,
        })
    }

    pub(super) async fn inventory(&self) -> Result<Vec<VirtualMachine>, HypervisorError> {
        let folders = self.folders();
        let mut machines = tokio::task::spawn_blocking(move || survey(&folders))
            .await
            .map_err(|error| {
                HypervisorError::with_source(ErrorKind::Io, "list virtual machines", error)
            })?;
        let shut_down = self.shut_down_guests().await;
        for machine in &mut machines {
            if shut_down.contains(&machine.id) {
                machine.power_state = PowerState::Off;
            }
        }
        Ok(machines)
    }

    /// All folders that hold a `vm.toml`, sorted.
    fn folders(&self) -> Vec<PathBuf> {
        let mut folders = Vec::new();
        for parent in &self.vm_folders {
            // Canonical, as QEMU's command line carries the path and is compared with it.
            let Ok(parent) = parent.canonicalize() else {
                continue;
            };
            match fs::read_dir(&parent) {
                Ok(entries) => folders.extend(
                    entries
                        .filter_map(Result::ok)
                        .map(|entry| entry.path())
                        .filter(|path| path.join(FILE_NAME).is_file()),
                ),
                Err(error) => {
                    warn!(folder = %parent.display(), %error, "can't list a folder of virtual machines")
                }
            }
        }
        folders.sort();
        folders.dedup();
        folders
    }

    /// All VMs whose configuration can be read.
    pub(super) fn all_found(&self) -> Vec<FoundVm> {
        let folders = self.folders().into_iter();
        folders
            .filter_map(|path| {
                let config = VmConfig::load(&path).ok()?;
                let folder = VmFolder::new(path);
                Some(FoundVm { folder, config })
            })
            .collect()
    }

    /// Whether a VM that isn't found is really not there.
    ///
    /// # Errors
    /// When a folder of VMs, or the configuration of one, can't be read: it may be the one.
    pub(super) fn sees_all(&self) -> Result<(), HypervisorError> {
        let failed = |path: &std::path::Path, error| {
            let step = format!("look for virtual machines in {}", path.display());
            HypervisorError::with_source(ErrorKind::Configuration, step, error)
        };
        for parent in &self.vm_folders {
            match fs::read_dir(parent) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed(parent, error));
                }
                _ => {}
            }
        }
        for path in self.folders() {
            VmConfig::load(&path)?;
        }
        Ok(())
    }

    /// The VM of an id.
    pub(super) fn find(&self, vm: VmId) -> Result<FoundVm, HypervisorError> {
        let mut found: Option<FoundVm> = None;
        for path in self.folders() {
            match VmConfig::load(&path) {
                Ok(config) if config.id == vm.0 => {
                    if let Some(first) = &found {
                        return Err(HypervisorError::new(
                            ErrorKind::Configuration,
                            format!(
                                "find vm {vm}: {} and {} have the same id",
                                first.folder.path().display(),
                                path.display()
                            ),
                        ));
                    }
                    found = Some(FoundVm {
                        folder: VmFolder::new(path),
                        config,
                    });
                }
                Ok(_) => {}
                // Listed with a finding by the inventory; here it is just not the one.
                Err(error) => warn!(%error, "a virtual machine can't be read"),
            }
        }
        found.ok_or_else(|| {
            HypervisorError::new(
                ErrorKind::VmNotFound,
                format!("find vm {vm}: no folder has this id"),
            )
        })
    }

    /// Whether `folder` is a direct child of one of the VM folders; gives its canonical form, parent made if needed.
    pub(super) fn own_folder(&self, folder: &Path) -> Result<PathBuf, HypervisorError> {
        let refused = || {
            HypervisorError::new(
                ErrorKind::InvalidRequest,
                format!(
                    "use folder {}: not a direct child of a folder of virtual machines",
                    folder.display()
                ),
            )
        };
        let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else {
            return Err(refused());
        };
        if !self.vm_folders.iter().any(|known| known == parent) {
            let canonical = parent.canonicalize().map_err(|_| refused())?;
            if !self
                .vm_folders
                .iter()
                .filter_map(|known| known.canonicalize().ok())
                .any(|known| known == canonical)
            {
                return Err(refused());
            }
        }
        let failed = |error| {
            HypervisorError::with_source(
                ErrorKind::Io,
                format!("make folder {}", folder.display()),
                error,
            )
        };
        fs::create_dir_all(parent).map_err(failed)?;
        Ok(parent.canonicalize().map_err(failed)?.join(name))
    }
}

impl FoundVm {
    pub(super) fn disk_file(&self, index: usize) -> PathBuf {
        self.config
            .disks
            .get(index)
            .map(|disk| self.folder.resolve(&disk.file))
            .unwrap_or_default()
    }

    /// Place of a disk in `vm.toml`.
    pub(super) fn disk_index(&self, id: DiskId) -> Result<usize, HypervisorError> {
        let mut unreadable = None;
        for (index, disk) in self.config.disks.iter().enumerate() {
            match inspect(&self.folder, disk) {
                Ok(facts) if facts.0 == id => return Ok(index),
                Ok(_) => {}
                Err(error) => unreadable = Some((disk.file.clone(), error)),
            }
        }
        let name = &self.config.name;
        Err(match unreadable {
            Some((file, error)) => HypervisorError::with_source(
                ErrorKind::DiskNotFound,
                format!(
                    "find disk {id} of vm {name}: {} can't be read",
                    file.display()
                ),
                error,
            ),
            None => HypervisorError::new(
                ErrorKind::DiskNotFound,
                format!("find disk {id} of vm {name}: no such disk"),
            ),
        })
    }
}

/// Id and size of a disk.
fn inspect(folder: &VmFolder, disk: &DiskConfig) -> Result<(DiskId, u64), Arc<ImageError>> {
    if let (Some(id), Some(nbd)) = (disk.id, &disk.nbd) {
        return Ok((DiskId(id), nbd.size_bytes));
    }
    if let (Some(id), Some(size_bytes)) = (disk.id, disk.size_bytes) {
        return Ok((DiskId(id), size_bytes));
    }
    let LiveAllocation {
        id, virtual_size, ..
    } = disk_image::live_allocation(folder.resolve(&disk.file)).map_err(Arc::new)?;
    Ok((DiskId(id), virtual_size))
}

fn survey(folders: &[PathBuf]) -> Vec<VirtualMachine> {
    let mut machines: Vec<(VirtualMachine, Vec<PathBuf>)> = folders
        .iter()
        .map(|path| describe(&VmFolder::new(path.clone())))
        .collect();

    let mut by_id: HashMap<VmId, usize> = HashMap::new();
    let mut by_disk: HashMap<DiskId, usize> = HashMap::new();
    let mut by_file: HashMap<PathBuf, usize> = HashMap::new();
    for (machine, files) in &machines {
        *by_id.entry(machine.id).or_default() += 1;
        for disk in &machine.disks {
            *by_disk.entry(disk.id).or_default() += 1;
        }
        for file in files {
            *by_file.entry(file.clone()).or_default() += 1;
        }
    }
    for (machine, files) in &mut machines {
        if by_id.get(&machine.id).is_some_and(|count| *count > 1) {
            machine.findings.push(critical(
                "DuplicateVmId",
                format!("Another virtual machine has the id {} too.", machine.id),
                "The folder of a virtual machine was copied.",
                "Give the copy a new id in its vm.toml, or remove it.",
            ));
        }
        for file in files
            .iter()
            .filter(|file| by_file.get(*file).is_some_and(|count| *count > 1))
        {
            machine.findings.push(critical(
                "SharedDisk",
                format!("The disk {} is attached more than once.", file.display()),
                "Several virtual machines, or several places of one, use the same image file.",
                "Give each its own image: a shared disk can't be replicated.",
            ));
        }
        for disk in &machine.disks {
            let shared = files
                .iter()
                .any(|file| by_file.get(file).is_some_and(|count| *count > 1));
            if !shared && by_disk.get(&disk.id).is_some_and(|count| *count > 1) {
                machine.findings.push(critical(
                    "DuplicateDiskId",
                    format!(
                        "Another disk has the id {} of the disk {} too.",
                        disk.id, disk.name
                    ),
                    "The image file was copied, and the copy has the same id inside.",
                    "Convert the copy into a new image, which gets a new id.",
                ));
            }
        }
    }
    let mut machines: Vec<VirtualMachine> =
        machines.into_iter().map(|(machine, _)| machine).collect();
    machines.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    machines
}

fn describe(folder: &VmFolder) -> (VirtualMachine, Vec<PathBuf>) {
    let power_state = if folder.running_pid().is_some() {
        PowerState::Running
    } else {
        PowerState::Off
    };
    let config = match VmConfig::load(folder.path()) {
        Ok(config) => config,
        Err(error) => return (unreadable(folder, power_state, &error), Vec::new()),
    };
    let mut findings = Vec::new();
    if let Err(error) = folder.check_socket_paths() {
        findings.push(critical(
            "FolderPathTooLong",
            format!("The path of the folder is too long: {error}."),
            "The sockets of a virtual machine lie in its folder, and the system limits their paths to 107 bytes.",
            "Move the virtual machine to a shorter path.",
        ));
    }
    if config.disks.is_empty() {
        findings.push(critical(
            "NoDisks",
            "The virtual machine has no disk.".to_owned(),
            "vm.toml has no [[disk]].",
            "Attach a disk: there is nothing to replicate.",
        ));
    }
    let (mut disks, mut files) = (Vec::new(), Vec::new());
    for (index, disk) in config.disks.iter().enumerate() {
        let name = disk.file.file_name().map_or_else(
            || disk.file.display().to_string(),
            |name| name.to_string_lossy().into_owned(),
        );
        let path = folder.resolve(&disk.file);
        files.push(path.canonicalize().unwrap_or(path));
        match disk.format() {
            None => {
                findings.push(critical(
                    "DiskFormatUnsupported",
                    format!("The disk {name} has a format that is not supported."),
                    "Its name ends neither in .vhdx nor in .vhd; checkpoints (.avhdx) are not supported.",
                    "Convert it to VHDX, or merge the checkpoint.",
                ));
                continue;
            }
            Some(DiskFormat::Overlay) => findings.push(critical(
                "RunsFromRecoveryPoint",
                format!("The disk {name} is a layer above a recovery point."),
                "The virtual machine was made by a failover or a test failover.",
                "Protect the original, or wait until the recovered machine has its own disks.",
            )),
            Some(_) => {}
        }
        match inspect(folder, disk) {
            Ok((id, size_bytes)) => disks.push(VirtualDisk {
                id,
                name,
                size_bytes,
                operating_system: index == 0,
            }),
            Err(error) => findings.push(unreadable_disk(&name, &error)),
        }
    }
    let network_adapters = (0..config.networks.len())
        .map(|index| NetworkAdapter {
            id: format!("nic{index}"),
            network_name: config.networks[index].name.clone().unwrap_or_default(),
            mac_address: config.mac(index),
        })
        .collect();
    let machine = VirtualMachine {
        id: VmId(config.id),
        generation: config.machine_generation(),
        processors: config.processors,
        memory_bytes: config.memory_mib << 20,
        name: config.name,
        os_type: config.os_type,
        power_state,
        disks,
        network_adapters,
        findings,
    };
    (machine, files)
}

/// A VM whose `vm.toml` says nothing usable: an id that is stable at least as long as the folder stays.
fn unreadable(
    folder: &VmFolder,
    power_state: PowerState,
    error: &HypervisorError,
) -> VirtualMachine {
    let path = folder.path();
    VirtualMachine {
        id: VmId(Uuid::new_v5(
            &Uuid::NAMESPACE_URL,
            path.as_os_str().as_encoded_bytes(),
        )),
        name: path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        generation: Generation::One,
        processors: 0,
        memory_bytes: 0,
        os_type: String::new(),
        power_state,
        disks: Vec::new(),
        network_adapters: Vec::new(),
        findings: vec![critical(
            "InvalidConfiguration",
            format!("The configuration can't be used: {}.", chain(error)),
            "vm.toml is damaged or has a value out of range.",
            "Correct vm.toml.",
        )],
    }
}

fn unreadable_disk(name: &str, error: &Arc<ImageError>) -> Finding {
    let text = chain(error.as_ref());
    match error.kind() {
        disk_image::ErrorKind::Io if !ends_too_early(error.as_ref()) => critical(
            "DiskUnreadable",
            format!("The disk {name} can't be read: {text}."),
            "The file is missing, or the engine has no right to read it.",
            "Restore the file or its access rights.",
        ),
        disk_image::ErrorKind::Unsupported => critical(
            "DiskFormatUnsupported",
            format!("The disk {name} has a format that is not supported: {text}."),
            "It is a checkpoint (differencing disk) or uses a feature that is not supported.",
            "Merge the checkpoint, or convert the disk to a dynamic VHDX.",
        ),
        _ => critical(
            "DiskCorrupt",
            format!("The disk {name} is damaged: {text}."),
            "The image was cut off, overwritten, or its host crashed.",
            "Check it with qemu-img check, or restore it.",
        ),
    }
}

/// A file that was cut off can be read, and is damaged.
fn ends_too_early(error: &ImageError) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<std::io::Error>())
        .is_some_and(|source| source.kind() == std::io::ErrorKind::UnexpectedEof)
}

/// An error with all its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string().replace('\n', " "));
        cause = inner.source();
    }
    text.trim_end().to_owned()
}

fn critical(code: &'static str, summary: String, causes: &str, action: &str) -> Finding {
    Finding {
        code,
        summary,
        possible_causes: causes.to_owned(),
        recommended_action: action.to_owned(),
        critical: true,
    }
}

/// Free bytes for this user on the volume of `path`.
pub(super) fn free_bytes(path: &Path) -> Result<u64, HypervisorError> {
    let volume = Volume::of(path).map_err(|error| {
        HypervisorError::with_source(
            ErrorKind::Io,
            format!("ask for free room of {}", path.display()),
            error,
        )
    })?;
    Ok(volume.free_bytes)
}

/// Empty when QEMU is missing: a start will say so.
async fn qemu_version() -> String {
    let run = Command::new(QEMU)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let Ok(Ok(output)) = tokio::time::timeout(std::time::Duration::from_secs(10), run).await else {
        return String::new();
    };
    // "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"
    String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .skip_while(|word| *word != "version")
        .nth(1)
        .unwrap_or_default()
        .to_owned()
}
