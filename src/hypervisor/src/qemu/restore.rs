//! A VM that was deleted, or whose images were lost, is made again: its folder, its `vm.toml`, empty images.
//!
//! ```text
//!   is it there? ─ no ──► <vm folder>/<name>/: images of its ids that lie there are kept, others made ─► vm.toml
//!                └ yes ─► off? ─► images that are gone are made where vm.toml names them, or beside ─► vm.toml
//! ```
//!
//! Promise: no file that is there is ever written over or removed but `vm.toml` itself, which changes as a whole; whatever is
//! cut in between, the next try ends at the same. A VM whose QEMU still runs out of a deleted folder is not made again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use disk_image::{CreateOptions, DiskImage, Format};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use tracing::info;

use super::config::{DiskConfig, FILE_NAME, NetworkConfig, VmConfig};
use super::folder::VmFolder;
use super::power::write_whole;
use super::shutdown::{self, Power};
use super::{FoundVm, QemuDriver};
use crate::lost::{LostDisk, LostVirtualMachine};
use crate::{DiskId, ErrorKind, HypervisorError, VmId};

impl QemuDriver {
    /// See [`crate::Hypervisor::restore`]. Its lock is held.
    pub(super) async fn make_again(&self, vm: &LostVirtualMachine) -> Result<(), HypervisorError> {
        let step = format!("make vm {} again", vm.name);
        let context = |error: HypervisorError| error.context(step.clone());
        let found = match self.find(vm.id) {
            Ok(found) => {
                if shutdown::power_of(&found).await? == Some(Power::On) {
                    return Err(HypervisorError::new(
                        ErrorKind::VmRunning,
                        format!("{step}: it runs"),
                    ));
                }
                Some(found)
            }
            Err(error) if error.kind() == ErrorKind::VmNotFound => None,
            Err(error) => return Err(context(error)),
        };
        if found.is_none() {
            self.sees_all().map_err(context)?;
        }
        if found.is_none()
            && let Some(pid) = process_of(vm.id)
        {
            return Err(HypervisorError::new(
                ErrorKind::VmRunning,
                format!("{step}: its folder is gone, but its process {pid} still runs"),
            ));
        }
        let folder = match &found {
            Some(found) => found.folder.clone(),
            None => self.folder_for(vm).map_err(context)?,
        };
        let (vm, work) = (vm.clone(), step.clone());
        let made = tokio::task::spawn_blocking(move || make(&vm, &folder, found, &work)).await;
        made.map_err(|error| HypervisorError::with_source(ErrorKind::Io, step, error))?
    }

    /// See [`crate::Hypervisor::is_gone`].
    pub(super) fn nothing_is_left_of(&self, vm: VmId) -> Result<bool, HypervisorError> {
        match self.find(vm) {
            Ok(_) => Ok(false),
            Err(error) if error.kind() == ErrorKind::VmNotFound => {
                self.sees_all()?;
                Ok(process_of(vm).is_none())
            }
            Err(error) => Err(error),
        }
    }

    /// Where a VM that is gone belongs: where its old images lie, else in the first folder of VMs. A place that another VM has
    /// is left to it.
    fn folder_for(&self, vm: &LostVirtualMachine) -> Result<VmFolder, HypervisorError> {
        let parents: Vec<&PathBuf> = self.vm_folders.iter().filter(|one| one.is_dir()).collect();
        let first = parents.first().ok_or_else(|| {
            HypervisorError::new(
                ErrorKind::Configuration,
                "no folder for virtual machines is there",
            )
        })?;
        let mut taken = PathBuf::new();
        for name in [vm.folder_name(), vm.other_folder_name()] {
            let mut places = parents.iter().map(|parent| parent.join(&name));
            let place = places.find(|place| place.is_dir());
            let path = self.own_folder(&place.unwrap_or_else(|| first.join(&name)))?;
            if !path.join(FILE_NAME).exists() {
                let folder = VmFolder::new(path);
                folder.check_socket_paths()?;
                return Ok(folder);
            }
            // Perhaps it is this very VM's.
            VmConfig::load(&path)
                .map_err(|error| error.context("repair this file, or move its folder away"))?;
            taken = path;
        }
        Err(HypervisorError::new(
            ErrorKind::InvalidRequest,
            format!("{} is another vm's: move it away", taken.display()),
        ))
    }
}

fn make(
    vm: &LostVirtualMachine,
    folder: &VmFolder,
    found: Option<FoundVm>,
    step: &str,
) -> Result<(), HypervisorError> {
    let failed =
        |error: io::Error| HypervisorError::with_source(ErrorKind::Io, step.to_owned(), error);
    fs::create_dir_all(folder.path()).map_err(failed)?;
    let is_new = found.is_none();
    let mut config = match &found {
        Some(found) => found.config.clone(),
        None => VmConfig {
            id: vm.id.0,
            name: vm.name.clone(),
            generation: vm.generation.number(),
            memory_mib: vm.memory_bytes.div_ceil(1 << 20),
            processors: vm.processors,
            os_type: vm.os_type.clone(),
            disks: Vec::new(),
            networks: vm
                .networks
                .iter()
                .map(|network| NetworkConfig {
                    name: network.network_name.clone(),
                    segment: network.segment,
                    mac: network.mac_address.clone(),
                })
                .collect(),
        },
    };
    for (index, disk) in vm.disks.iter().enumerate() {
        if let Some(found) = &found
            && found.disk_index(disk.id).is_ok()
        {
            continue;
        }
        let file = place(folder, &config, disk);
        let path = folder.resolve(&file);
        if id_of(&path) != Some(disk.id) {
            make_image(&path, disk)
                .map_err(|error| error.context(format!("{step}: disk {}", disk.id)))?;
        }
        let entry = DiskConfig {
            file: file.clone(),
            id: None,
            nbd: None,
            size_bytes: None,
        };
        // An entry whose image is gone or of no use is this disk's; the order of the others stays.
        let old = config.disks.iter_mut().find(|known| {
            known.file == file
                || is_of_name(known, disk) && id_of(&folder.resolve(&known.file)).is_none()
        });
        match old {
            Some(old) => *old = entry,
            None => config.disks.insert(index.min(config.disks.len()), entry),
        }
    }
    config.check().map_err(|problem| {
        HypervisorError::new(ErrorKind::InvalidRequest, format!("{step}: {problem}"))
    })?;
    let unchanged = found.is_some_and(|found| found.config == config);
    if !unchanged {
        let text = toml::to_string(&config).map_err(|error| {
            HypervisorError::with_source(ErrorKind::InvalidRequest, step.to_owned(), error)
        })?;
        write_whole(&folder.path().join(FILE_NAME), text.as_bytes()).map_err(failed)?;
    }
    sync_folder(folder.path()).map_err(failed)?;
    if let Some(parent) = folder.path().parent().filter(|_| is_new) {
        sync_folder(parent).map_err(failed)?;
    }
    info!(vm = %vm.name, folder = %folder.path().display(), "made again what was missing of it");
    Ok(())
}

/// The file of a disk whose image is missing, relative to the folder: where the VM's configuration or the name that it had
/// says, unless something else is there.
fn place(folder: &VmFolder, config: &VmConfig, disk: &LostDisk) -> PathBuf {
    let named = config.disks.iter().find(|known| is_of_name(known, disk));
    let own = named.map(|known| known.file.clone());
    let candidates = own
        .into_iter()
        .chain([PathBuf::from(disk.file_name())])
        .filter(|file| has_format(file));
    for file in candidates {
        let path = folder.resolve(&file);
        // Elsewhere a folder that is empty may be a volume that is not mounted yet: what lies there would come back later
        // in place of what was made.
        let is_here = path.parent() == Some(folder.path());
        if is_here && is_free(&path) || id_of(&path) == Some(disk.id) {
            return file;
        }
    }
    PathBuf::from(disk.other_file_name())
}

/// Nothing is there, not even a link to what is away.
fn is_free(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn is_of_name(known: &DiskConfig, disk: &LostDisk) -> bool {
    let is_image = known.nbd.is_none() && known.size_bytes.is_none();
    is_image
        && known
            .file
            .file_name()
            .is_some_and(|name| *name == *disk.name)
}

fn has_format(file: &Path) -> bool {
    let extension = file.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| {
        extension.eq_ignore_ascii_case("vhdx") || extension.eq_ignore_ascii_case("vhd")
    })
}

fn id_of(path: &Path) -> Option<DiskId> {
    let read = disk_image::live_allocation(path).ok()?;
    Some(DiskId(read.id))
}

/// The image is there whole or not at all.
fn make_image(path: &Path, disk: &LostDisk) -> Result<(), HypervisorError> {
    let failed = |error: io::Error| {
        HypervisorError::with_source(ErrorKind::Io, format!("make {}", path.display()), error)
    };
    if !is_free(path) {
        return Err(HypervisorError::new(
            ErrorKind::InvalidRequest,
            format!("{} is in the way: move it away", path.display()),
        ));
    }
    let is_vhd = path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("vhd"));
    let format = if is_vhd {
        Format::VhdDynamic
    } else {
        Format::VhdxDynamic
    };
    let options = CreateOptions {
        id: Some(disk.id.0),
        ..CreateOptions::new(format, disk.size_bytes)
    };
    let unfinished = path.with_file_name(format!(".{}.unfinished", disk.id));
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    DiskImage::create(&unfinished, &options)
        .and_then(DiskImage::close)
        .map_err(|error| {
            HypervisorError::with_source(ErrorKind::Io, format!("make {}", path.display()), error)
        })?;
    fs::File::open(&unfinished)
        .and_then(|file| file.sync_all())
        .map_err(failed)?;
    // Whatever came there meanwhile stays.
    renameat2(
        AT_FDCWD,
        &unfinished,
        AT_FDCWD,
        path,
        RenameFlags::RENAME_NOREPLACE,
    )
    .map_err(|error| failed(error.into()))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// A QEMU of this VM that runs on without its folder.
fn process_of(vm: VmId) -> Option<u32> {
    let id = vm.to_string();
    let processes = fs::read_dir("/proc").ok()?;
    processes.filter_map(Result::ok).find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let is_it = words
            .windows(2)
            .any(|pair| matches!(pair, [b"-uuid", uuid] if *uuid == id.as_bytes()));
        is_it.then_some(pid)
    })
}
