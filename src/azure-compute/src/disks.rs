//! Layout of disks: names, unit numbers, types, and what Azure refuses.
//!
//! | disk | most |
//! |---|---|
//! | OS disk, generation 1 | 2,048 GiB: firmware reads the partition table of the first 2 TiB only |
//! | OS disk, generation 2 | 4,095 GiB |
//! | data disk, managed | 32,767 GiB |
//! | data disk, page blob | 4,095 GiB |
//!
//! A VHD that Azure takes is a fixed one of whole mebibytes, with a footer of 512 bytes behind it. Disks of 4,096 GiB and more can't be cached
//! by the host. Site Recovery's limit of 300 GB for OS disks of generation 2 came from its conversion, which we don't need.

use std::collections::BTreeSet;

use crate::finding::Findings;
use crate::naming;
use crate::spec::{DiskSpec, DiskType, Generation, Placement};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const MOST_OS_V1_GIB: u64 = 2048;
const MOST_OS_V2_GIB: u64 = 4095;
const MOST_MANAGED_GIB: u64 = 32_767;
const MOST_BLOB_GIB: u64 = 4095;
/// From this size on the host caches nothing.
const UNCACHED_GIB: u64 = 4096;

/// How the host caches a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caching {
    /// Nothing.
    None,
    /// Reads.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

impl Caching {
    /// ARM's word.
    pub fn word(self) -> &'static str {
        match self {
            Caching::None => "None",
            Caching::ReadOnly => "ReadOnly",
            Caching::ReadWrite => "ReadWrite",
        }
    }
}

/// A disk of the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenDisk {
    /// The source's id of the disk.
    pub source_id: String,
    /// Name.
    pub name: String,
    /// Unit number; none for the OS disk.
    pub lun: Option<u32>,
    /// Size in GiB, when it shall be larger than the VHD.
    pub size_gib: Option<u32>,
    /// Caching.
    pub caching: Caching,
}

/// Checks the disks and lays them out: the OS disk first, then data disks by unit number.
pub(crate) fn lay_out(
    vm_name: &str,
    drill: bool,
    disks: &[DiskSpec],
    generation: Generation,
    managed: bool,
    placement: &Placement,
    findings: &mut Findings,
) -> Vec<ChosenDisk> {
    let vm = format!("VM {vm_name}");
    let systems = disks.iter().filter(|d| d.is_os).count();
    if systems != 1 {
        findings.error(
            &vm,
            format!("{systems} of its disks hold the operating system"),
            "name exactly one as the operating system's disk",
        );
    }
    if !managed && generation == Generation::V2 {
        findings.error(
            &vm,
            "a VM of generation 2 can't start from page blobs",
            "use managed disks",
        );
    }
    if !managed && matches!(placement, Placement::Zone(_)) {
        findings.error(
            &vm,
            "a VM in a zone can't have page blobs as disks",
            "use managed disks or no zone",
        );
    }
    let mut ordered: Vec<&DiskSpec> = disks.iter().filter(|d| d.is_os).collect();
    ordered.extend(disks.iter().filter(|d| !d.is_os));
    let mut units = Units::of(disks, findings);
    let mut names = BTreeSet::new();
    let mut chosen: Vec<ChosenDisk> = ordered
        .into_iter()
        .map(|disk| {
            check(disk, generation, managed, findings);
            let name = name_of(vm_name, drill, disk, findings);
            if !names.insert(name.to_lowercase()) {
                findings.error(
                    &format!("disk {}", disk.name),
                    format!("the name `{name}` is given to two disks"),
                    "give each disk another target name",
                );
            }
            let large = wanted_gib(disk) >= UNCACHED_GIB;
            let caching = match disk.disk_type {
                _ if large => Caching::None,
                DiskType::PremiumV2_LRS | DiskType::UltraSSD_LRS => Caching::None,
                _ if disk.is_os => Caching::ReadWrite,
                // A log written through a cache of the host would not survive the host.
                _ => Caching::ReadOnly,
            };
            ChosenDisk {
                source_id: disk.id.clone(),
                name,
                lun: (!disk.is_os).then(|| units.take(disk)),
                size_gib: disk.size_gib.filter(|_| managed),
                caching,
            }
        })
        .collect();
    chosen.sort_by_key(|d| d.lun.map_or(-1, i64::from));
    chosen
}

/// Unit numbers: wished ones stay, the others fill the gaps from below.
struct Units {
    taken: BTreeSet<u32>,
}

impl Units {
    fn of(disks: &[DiskSpec], findings: &mut Findings) -> Units {
        let mut taken = BTreeSet::new();
        for disk in disks.iter().filter(|d| !d.is_os) {
            let Some(lun) = disk.lun else { continue };
            let about = format!("disk {}", disk.name);
            if lun > 63 {
                findings.error(&about, format!("{lun} is no unit number"), "use 0 to 63");
            }
            if !taken.insert(lun) {
                findings.error(
                    &about,
                    format!("the unit number {lun} is wished by two disks"),
                    "give each disk another one, or none",
                );
            }
        }
        Units { taken }
    }

    fn take(&mut self, disk: &DiskSpec) -> u32 {
        if let Some(lun) = disk.lun {
            return lun;
        }
        let free = (0..=u32::MAX)
            .find(|n| !self.taken.contains(n))
            .unwrap_or(0);
        self.taken.insert(free);
        free
    }
}

fn name_of(vm_name: &str, drill: bool, disk: &DiskSpec, findings: &mut Findings) -> String {
    let Some(wished) = &disk.target_name else {
        return naming::join(&[vm_name, &disk.name]);
    };
    if let Some(fault) = naming::resource_name_fault(wished) {
        findings.error(
            &format!("disk {}", disk.name),
            format!("`{wished}` is no name of a disk: {fault}"),
            "change the target name",
        );
    }
    if drill {
        naming::with_suffix(wished, naming::DRILL_SUFFIX)
    } else {
        wished.clone()
    }
}

fn wanted_gib(disk: &DiskSpec) -> u64 {
    let own = disk.bytes.div_ceil(GIB);
    own.max(disk.size_gib.map_or(0, u64::from))
}

fn check(disk: &DiskSpec, generation: Generation, managed: bool, findings: &mut Findings) {
    let about = format!("disk {}", disk.name);
    let gib = wanted_gib(disk);
    let (most, why) = match (disk.is_os, generation, managed) {
        (true, Generation::V1, _) => (MOST_OS_V1_GIB, "an OS disk of generation 1"),
        (true, Generation::V2, _) => (MOST_OS_V2_GIB, "an OS disk of generation 2"),
        (false, _, true) => (MOST_MANAGED_GIB, "a managed disk"),
        (false, _, false) => (MOST_BLOB_GIB, "a page blob disk"),
    };
    if gib > most {
        findings.error(
            &about,
            format!("{gib} GiB are too much for {why}, which has at most {most} GiB"),
            if disk.is_os {
                "move data to another disk and shrink this one"
            } else if managed {
                "exclude the disk or split it"
            } else {
                "use managed disks"
            },
        );
    }
    if disk.bytes == 0 || !disk.bytes.is_multiple_of(MIB) {
        findings.error(
            &about,
            format!(
                "its VHD has {} bytes, which are not whole mebibytes",
                disk.bytes
            ),
            "pad the VHD to the next mebibyte when it is materialised",
        );
    }
    if let Some(wished) = disk.size_gib {
        if u64::from(wished) * GIB < disk.bytes {
            findings.error(
                &about,
                format!("{wished} GiB are less than the disk has"),
                "choose at least the source's size",
            );
        } else if !managed {
            findings.warning(
                &about,
                "a page blob keeps its size",
                "use managed disks to have a larger one",
            );
        }
    }
    if managed && !disk.disk_type.is_made_by_import() {
        findings.error(
            &about,
            format!(
                "a disk of type {} can't be made from a VHD",
                disk.disk_type.word()
            ),
            "choose Premium_LRS or a standard type, and change the type afterwards",
        );
    }
    if !managed && disk.encryption_set_id.is_some() {
        findings.error(
            &about,
            "a disk encryption set works with managed disks only",
            "use managed disks or leave it out",
        );
    }
    let secure = disk.blob_uri.starts_with("https://") || is_local(&disk.blob_uri);
    if !secure || disk.blob_uri.contains(['?', '#']) {
        // Not shown: what stands behind the question mark may be a signature.
        findings.error(
            &about,
            "the address of its blob is not a plain https:// address",
            "give the address without a signature; Azure reads it by the account's id",
        );
    }
}

/// Emulators and doubles on this machine.
fn is_local(uri: &str) -> bool {
    uri.starts_with("http://127.0.0.1:") || uri.starts_with("http://localhost:")
}

#[cfg(test)]
#[path = "disks_tests.rs"]
mod tests;
