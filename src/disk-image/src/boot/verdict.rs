//! Can this disk be started by a BIOS, and what must be known before: reasons that a person can act on.

use std::fmt;

use super::inspect::{BiosStart, Guest, Inspection};
use super::signature::Content;
use super::space::{self, CorePlace};
use crate::partitions::Style;

/// Bytes that a core image takes at most, for a verdict where no boot loader is at hand: the recipe's core has 270 KiB.
pub const USUAL_CORE_BYTES: u64 = 384 << 10;
/// What MBR can address, and the largest disk that generation 1 machines of Azure start from.
const TWO_TIB: u64 = 2 << 40;
/// Partitions of an MBR without logical ones.
const PRIMARIES: usize = 4;
/// The sector size of BIOS.
const SECTOR: u32 = 512;

/// Whether a disk of generation 2 starts in a machine of generation 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A conversion will make it start.
    Convertible {
        /// Where the core image goes.
        place: CorePlace,
        /// What to know before.
        cautions: Vec<Caution>,
    },
    /// It has what a BIOS needs already.
    NotNeeded,
    /// It can't be converted, for each of these reasons.
    Impossible(Vec<Obstacle>),
}

/// Why a disk can't be converted. The text says what it is; [`Obstacle::advice`] what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Obstacle {
    /// The partition table contradicts itself or the disk.
    Table(String),
    /// The primary GPT is broken; only the spare one was read.
    SpareTable,
    /// Neither a system partition for UEFI nor boot code for a BIOS.
    NotASystemDisk,
    /// Logical sectors of this many bytes.
    Sectors(u32),
    /// Windows, with what else stands in the way.
    Windows(Vec<WindowsFinding>),
    /// Neither Linux nor Windows.
    UnknownSystem,
    /// No free range of so many bytes.
    NoRoom {
        /// What the core image needs.
        needed_bytes: u64,
        /// The largest free range.
        largest_bytes: u64,
    },
    /// The EFI system partition can't be read, and nothing else holds a menu.
    SystemPartition(String),
    /// The guest starts unified kernel images, which only UEFI firmware runs.
    UnifiedKernel(Vec<String>),
    /// Menu and kernels lie in encrypted partitions.
    Encrypted,
    /// No partition holds anything that GRUB could find a menu on.
    NoMenu,
}

/// Something of a Windows disk that would stand in the way of any conversion to MBR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WindowsFinding {
    /// More than four partitions, the reserved one left out.
    Partitions(usize),
    /// Larger than MBR can address.
    Size(u64),
    /// This partition is a BitLocker volume.
    BitLocker(u32),
    /// A dynamic disk.
    DynamicDisk,
}

/// What to know before a converted machine is started.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Caution {
    /// There are LUKS containers.
    Encryption,
    /// Among entry files without a saved choice, GRUB takes the first by name order of the folder.
    EntryFiles,
    /// There are unified kernels beside a menu.
    UnifiedKernels,
    /// The core lies behind the last partition, which must not grow meanwhile.
    BehindLast,
    /// Larger than some targets start from in generation 1.
    Size(u64),
    /// Windows lies beside Linux, and will not start.
    WindowsBeside,
}

/// Judges a disk; the core image of the conversion has `core_bytes` (else [`USUAL_CORE_BYTES`]).
pub fn judge(found: &Inspection, core_bytes: u64) -> Verdict {
    let table = match &found.table {
        Ok(table) => table,
        Err(why) => return Verdict::Impossible(vec![Obstacle::Table(why.clone())]),
    };
    let is_gpt = matches!(table.style, Style::Gpt { .. });
    let starts = match found.bios {
        BiosStart::Grub => true,
        BiosStart::Other => !is_gpt && found.system_partition.is_none(),
        BiosStart::Nothing => false,
    };
    if starts {
        return Verdict::NotNeeded;
    }
    let mut obstacles = Vec::new();
    if found.sector_bytes != SECTOR {
        obstacles.push(Obstacle::Sectors(found.sector_bytes));
    }
    if matches!(
        table.style,
        Style::Gpt {
            from_backup: true,
            ..
        }
    ) {
        obstacles.push(Obstacle::SpareTable);
    }
    if found.system_partition.is_none() {
        obstacles.push(Obstacle::NotASystemDisk);
        return Verdict::Impossible(obstacles);
    }
    match found.guest {
        Guest::Windows => {
            obstacles.push(Obstacle::Windows(windows_findings(found)));
            return Verdict::Impossible(obstacles);
        }
        Guest::Unknown => obstacles.push(Obstacle::UnknownSystem),
        Guest::Linux | Guest::Both => obstacles.extend(start_obstacle(found)),
    }
    let place = space::choose(table, &found.free, core_bytes);
    match place {
        Some((place, _)) if obstacles.is_empty() => Verdict::Convertible {
            place,
            cautions: cautions(found, place),
        },
        Some(_) => Verdict::Impossible(obstacles),
        None => {
            obstacles.push(Obstacle::NoRoom {
                needed_bytes: core_bytes,
                largest_bytes: found.free.iter().map(|e| e.length).max().unwrap_or(0),
            });
            Verdict::Impossible(obstacles)
        }
    }
}

/// Whether GRUB could find a menu at all. File systems other than FAT are not read, only known.
fn start_obstacle(found: &Inspection) -> Option<Obstacle> {
    let system = found.system_partition.as_ref()?;
    let on_system_partition = system.menu || system.entry_files;
    if on_system_partition {
        return None;
    }
    if !system.unified_kernels.is_empty() && !system.grub {
        return Some(Obstacle::UnifiedKernel(system.unified_kernels.clone()));
    }
    let elsewhere = found
        .partitions
        .iter()
        .any(|p| p.content != Content::Fat && p.content.is_readable_by_grub());
    if elsewhere {
        return None;
    }
    Some(match &system.unreadable {
        Some(why) => Obstacle::SystemPartition(why.clone()),
        None if holds(found, Content::Luks) => Obstacle::Encrypted,
        None => Obstacle::NoMenu,
    })
}

fn holds(found: &Inspection, content: Content) -> bool {
    found.partitions.iter().any(|p| p.content == content)
}

fn windows_findings(found: &Inspection) -> Vec<WindowsFinding> {
    let mut findings = Vec::new();
    let kept = found
        .partitions
        .iter()
        .filter(|p| !p.is_microsoft_reserved())
        .count();
    if kept > PRIMARIES {
        findings.push(WindowsFinding::Partitions(kept));
    }
    if found.size_bytes > TWO_TIB {
        findings.push(WindowsFinding::Size(found.size_bytes));
    }
    findings.extend(
        found
            .partitions
            .iter()
            .filter(|p| p.content == Content::BitLocker)
            .map(|p| WindowsFinding::BitLocker(p.partition.number)),
    );
    if found.partitions.iter().any(|p| p.is_dynamic_disk()) {
        findings.push(WindowsFinding::DynamicDisk);
    }
    findings
}

fn cautions(found: &Inspection, place: CorePlace) -> Vec<Caution> {
    let system = found.system_partition.as_ref();
    let mut cautions = Vec::new();
    let mut when = |holds: bool, caution| {
        if holds {
            cautions.push(caution);
        }
    };
    when(holds(found, Content::Luks), Caution::Encryption);
    when(system.is_some_and(|s| s.entry_files), Caution::EntryFiles);
    when(
        system.is_some_and(|s| !s.unified_kernels.is_empty()),
        Caution::UnifiedKernels,
    );
    when(place == CorePlace::BehindLast, Caution::BehindLast);
    when(found.size_bytes > TWO_TIB, Caution::Size(found.size_bytes));
    when(found.guest == Guest::Both, Caution::WindowsBeside);
    cautions
}

impl Obstacle {
    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Table(_) | Self::SpareTable => {
                "repair the partition table in the guest (gdisk, command w, or sgdisk --move-second-header), or \
                 recover to a target with generation 2"
            }
            Self::NotASystemDisk => {
                "name the disk that the machine starts from; data disks need no conversion"
            }
            Self::Sectors(_) | Self::Windows(_) | Self::UnknownSystem | Self::Encrypted => {
                "recover to a target with generation 2"
            }
            Self::NoRoom { .. } => {
                "extend the source's disk by 1 MiB without growing a partition into it, or recover to a target with generation 2"
            }
            Self::SystemPartition(_) => {
                "check the EFI system partition in the guest (fsck.fat), or recover to a target with generation 2"
            }
            Self::UnifiedKernel(_) => {
                "install kernel and initramfs as separate files with boot loader entries (kernel-install, layout=bls), or \
                 recover to a target with generation 2"
            }
            Self::NoMenu => {
                "install GRUB's menu or boot loader entries in the guest, or recover to a target with generation 2"
            }
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(why) => write!(f, "the partition table can't be used: {why}"),
            Self::SpareTable => write!(
                f,
                "the primary partition table is broken, only the spare one was read"
            ),
            Self::NotASystemDisk => write!(
                f,
                "the disk has neither an EFI system partition nor boot code for a BIOS"
            ),
            Self::Sectors(bytes) => write!(
                f,
                "its logical sectors have {bytes} bytes, a BIOS starts from 512 only"
            ),
            Self::Windows(findings) => {
                write!(
                    f,
                    "it is a Windows disk, which needs firmware of generation 2 here"
                )?;
                for finding in findings {
                    write!(f, "; {finding}")?;
                }
                Ok(())
            }
            Self::UnknownSystem => write!(f, "no trace of Linux was found on it"),
            Self::NoRoom {
                needed_bytes,
                largest_bytes,
            } => write!(
                f,
                "the boot loader needs {needed_bytes} bytes outside the partitions, the largest free range has {largest_bytes}"
            ),
            Self::SystemPartition(why) => {
                write!(f, "the EFI system partition can't be read: {why}")
            }
            Self::UnifiedKernel(names) => write!(
                f,
                "it starts unified kernel images, which only UEFI firmware runs: {}",
                names.join(", ")
            ),
            Self::Encrypted => write!(f, "its menu and kernels lie in encrypted partitions"),
            Self::NoMenu => write!(f, "no partition holds a boot menu that GRUB can read"),
        }
    }
}

impl fmt::Display for WindowsFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Partitions(count) => write!(f, "{count} partitions, an MBR takes {PRIMARIES}"),
            Self::Size(bytes) => write!(f, "{bytes} bytes, an MBR takes {TWO_TIB}"),
            Self::BitLocker(number) => write!(f, "partition {number} is a BitLocker volume"),
            Self::DynamicDisk => write!(f, "it is a dynamic disk"),
        }
    }
}

impl fmt::Display for Caution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Encryption => write!(
                f,
                "encrypted partitions: keys sealed to a TPM do not unlock, have the passphrase at hand"
            ),
            Self::EntryFiles => write!(
                f,
                "boot loader entries: without a saved choice the first entry file starts, which need not be the newest kernel"
            ),
            Self::UnifiedKernels => write!(f, "unified kernel images are left out of the menu"),
            Self::BehindLast => write!(
                f,
                "the boot loader lies behind the last partition: don't grow that one while the machine runs as generation 1"
            ),
            Self::Size(bytes) => write!(
                f,
                "the disk has {bytes} bytes: some targets start generation 1 machines from disks up to {TWO_TIB} only"
            ),
            Self::WindowsBeside => write!(f, "Windows beside it will not start"),
        }
    }
}
