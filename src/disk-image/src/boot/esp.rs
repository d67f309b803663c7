//! What lies on an EFI system partition: whose boot loaders, menus, kernels.

use super::fat::{Entry, Fat};
use crate::partitions::Partition;
use crate::{BlockRead, ErrorKind, ImageError};

/// Most folders of makers below `\EFI` that are looked into.
const MAX_MAKERS: usize = 64;

/// What the files of an EFI system partition say about the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemPartition {
    /// Number of the partition.
    pub number: u32,
    /// GRUB or the shim in front of it is installed.
    pub grub: bool,
    /// systemd-boot is installed.
    pub systemd_boot: bool,
    /// Windows' boot manager is installed.
    pub windows: bool,
    /// A menu of GRUB lies here.
    pub menu: bool,
    /// Entry files of the Boot Loader Specification lie here.
    pub entry_files: bool,
    /// Unified kernel images: programs of the firmware with kernel and initramfs inside.
    pub unified_kernels: Vec<String>,
    /// Why the file system could not be read, where it could not.
    pub unreadable: Option<String>,
}

impl SystemPartition {
    /// Whether anything says that Linux starts from here.
    pub(super) fn is_linux(&self) -> bool {
        self.grub
            || self.systemd_boot
            || self.menu
            || self.entry_files
            || !self.unified_kernels.is_empty()
    }
}

/// Reads the partition's folders. A broken file system is told in the answer, not as an error.
pub(super) fn read(
    disk: &(impl BlockRead + ?Sized),
    partition: &Partition,
) -> Result<SystemPartition, ImageError> {
    match listed(disk, partition) {
        Err(error) if error.kind() == ErrorKind::Io => Err(error),
        Err(error) => Ok(SystemPartition {
            number: partition.number,
            unreadable: Some(error.to_string()),
            ..SystemPartition::default()
        }),
        found => found,
    }
}

fn listed(
    disk: &(impl BlockRead + ?Sized),
    partition: &Partition,
) -> Result<SystemPartition, ImageError> {
    let fat = Fat::open(disk, partition)?;
    let mut found = SystemPartition {
        number: partition.number,
        ..SystemPartition::default()
    };
    for maker in fat
        .list(&["EFI"])?
        .iter()
        .filter(|entry| entry.is_folder)
        .take(MAX_MAKERS)
    {
        let files = fat.list(&["EFI", &maker.name])?;
        if maker.is_named("Microsoft") {
            let loaders = fat.list(&["EFI", &maker.name, "Boot"])?;
            found.windows |= has(&loaders, |name| name == "bootmgfw.efi");
        } else if maker.is_named("Linux") {
            found.unified_kernels.extend(
                files
                    .iter()
                    .filter(|file| !file.is_folder && lower(file).ends_with(".efi"))
                    .map(|file| file.name.clone()),
            );
        }
        found.grub |= has(&files, |name| {
            (name.starts_with("grub") || name.starts_with("shim")) && name.ends_with(".efi")
        });
        found.systemd_boot |= has(&files, |name| name.starts_with("systemd-boot"));
        found.menu |= has(&files, is_menu);
    }
    for folder in [
        &["grub"][..],
        &["grub2"],
        &["boot", "grub"],
        &["boot", "grub2"],
    ] {
        found.menu |= has(&fat.list(folder)?, is_menu);
    }
    for folder in [&["loader", "entries"][..], &["boot", "loader", "entries"]] {
        found.entry_files |= has(&fat.list(folder)?, |name| name.ends_with(".conf"));
    }
    Ok(found)
}

fn lower(entry: &Entry) -> String {
    entry.name.to_ascii_lowercase()
}

fn is_menu(name: &str) -> bool {
    name == "grub.cfg"
}

fn has(entries: &[Entry], wanted: impl Fn(&str) -> bool) -> bool {
    entries
        .iter()
        .any(|entry| !entry.is_folder && wanted(&lower(entry)))
}
