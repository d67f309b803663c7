//! What `vm.toml` and the images tell for the checks before protection.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::config::{DiskConfig, DiskFormat};
use super::{FoundVm, QemuDriver};
use crate::particulars::Looks;
use crate::{
    DiskId, DiskParticulars, ErrorKind, Generation, HypervisorError, Particulars, Presence, VmId,
};

impl QemuDriver {
    pub(super) async fn all_particulars(&self) -> Result<Vec<Particulars>, HypervisorError> {
        let found = self.all_found();
        let looks = Arc::clone(&self.looks);
        tokio::task::spawn_blocking(move || survey(&found, &looks))
            .await
            .map_err(|error| {
                HypervisorError::with_source(ErrorKind::Io, "look at virtual machines", error)
            })
    }
}

fn survey(found: &[FoundVm], looks: &Looks) -> Vec<Particulars> {
    let files = |vm: &FoundVm| -> Vec<PathBuf> {
        let files = vm.config.disks.iter();
        files
            .map(|disk| vm.folder.resolve(&disk.file))
            .map(|path| path.canonicalize().unwrap_or(path))
            .collect()
    };
    let mut users: HashMap<PathBuf, usize> = HashMap::new();
    for file in found.iter().flat_map(files) {
        *users.entry(file).or_default() += 1;
    }
    let all: Vec<PathBuf> = users.keys().cloned().collect();
    looks.keep(&all);
    let of = |vm: &FoundVm| Particulars {
        // This driver gives VMs firmware without keys, and neither a TPM nor host bus adapters.
        secure_boot: Presence::NotPresent,
        virtual_tpm: Presence::NotPresent,
        fibre_channel: Presence::NotPresent,
        checkpoints: Presence::NotPresent,
        architecture: std::env::consts::ARCH.to_owned(),
        disks: vm
            .config
            .disks
            .iter()
            .zip(files(vm))
            .map(|(config, path)| {
                let shared = users.get(&path).is_some_and(|users| *users > 1);
                disk(vm, config, &path, shared, looks)
            })
            .collect(),
        ..Particulars::unknown(VmId(vm.config.id))
    };
    found.iter().map(of).collect()
}

fn disk(
    vm: &FoundVm,
    config: &DiskConfig,
    path: &Path,
    shared: bool,
    looks: &Looks,
) -> DiskParticulars {
    let name = config.file.file_name().map_or_else(
        || config.file.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    );
    let device = fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    let mut disk = DiskParticulars {
        id: config.id.map(DiskId),
        name,
        controller: match vm.config.machine_generation() {
            Generation::One => "IDE",
            Generation::Two => "SCSI",
        }
        .to_owned(),
        shared: shared.into(),
        pass_through: device.into(),
        ..DiskParticulars::default()
    };
    if device {
        return disk;
    }
    disk.place(path);
    let format = match config.format() {
        Some(DiskFormat::Vhdx) => "VHDX",
        Some(DiskFormat::Vhd) => "VHD",
        // A layer that QEMU alone can read.
        Some(DiskFormat::Overlay | DiskFormat::Own) | None => return disk,
    };
    format.clone_into(&mut disk.format);
    if let Ok(image) = disk_image::live_allocation(path) {
        let id = DiskId(image.id);
        disk.id = Some(id);
        disk.logical_sector_bytes = image.logical_sector_size;
        disk.look = looks.at(id, path);
    }
    disk
}
