//! Rules of virtual disks: number, size, sectors, sharing.

use super::{DiskFacts, Facts, Hit, Request, Rule, Severity, Theme};

const GIB: u64 = 1 << 30;
/// Largest disk that a VM of generation 1 starts from in Azure.
const OS_DISK_1: u64 = 2_048 * GIB;
/// Largest disk that the original takes for a VM of generation 2.
const OS_DISK_2_ORIGINAL: u64 = 300 * GIB;
/// Largest disk that a VM of generation 2 starts from in Azure.
const OS_DISK_2: u64 = 4_095 * GIB;
/// Largest data disk of the original.
const DATA_DISK_ORIGINAL: u64 = 4_095 * GIB;
/// Largest managed disk.
const DATA_DISK: u64 = 32_767 * GIB;
/// Most data disks of the original.
const DATA_DISKS_ORIGINAL: usize = 16;
/// Most data disks that any size of a VM takes in Azure.
const DATA_DISKS: usize = 64;
const PREREQUISITES: Option<&str> = Some("70094");
const MATRIX_FORM: &str = "support matrix, guest OS and VM form";
const MATRIX_STORAGE: &str = "support matrix, guest storage";

pub(super) const RULES: &[Rule] = &[
    Rule {
        code: "OsDiskCount",
        theme: Theme::Disks,
        title: "More than one disk holds the operating system",
        why: "A recovered VM starts from exactly one disk.",
        advice: "Name the one that the VM boots from (`os_disk_id`).",
        original: "refuses it",
        original_code: PREREQUISITES,
        source: MATRIX_FORM,
        azure: Severity::Blocks,
        recovery_host: Severity::Blocks,
        find: Some(|facts, _| {
            let systems = facts.disks.iter().filter(|disk| disk.operating_system);
            let systems = systems.count();
            // A host that names none does not know.
            if systems <= 1 {
                return Vec::new();
            }
            vec![Hit::vm(format!(
                "{systems} of its {} disks hold the operating system.",
                facts.disks.len()
            ))]
        }),
    },
    Rule {
        code: "OsDiskTooLargeGeneration1",
        theme: Theme::Disks,
        title: "The disk with the operating system of a generation 1 VM has more than 2,048 GiB",
        why: "Azure starts VMs of generation 1 from disks of up to 2,048 GiB.",
        advice: "Make the disk smaller and keep data on disks of their own, or recover it on a recovery host.",
        original: "refuses it",
        original_code: PREREQUISITES,
        source: MATRIX_FORM,
        azure: Severity::Blocks,
        recovery_host: Severity::Lifted,
        find: Some(|facts, request| {
            let meant = |disk: &DiskFacts| facts.generation == 1 && disk.size_bytes > OS_DISK_1;
            sized(facts, request, true, meant)
        }),
    },
    Rule {
        code: "OsDiskTooLargeGeneration2",
        theme: Theme::Disks,
        title: "The disk with the operating system of a generation 2 VM has more than 4,095 GiB",
        why: "Azure starts VMs of generation 2 from disks of up to 4,095 GiB.",
        advice: "Make the disk smaller and keep data on disks of their own, or recover it on a recovery host.",
        original: "refuses it",
        original_code: PREREQUISITES,
        source: MATRIX_FORM,
        azure: Severity::Blocks,
        recovery_host: Severity::Lifted,
        find: Some(|facts, request| {
            let meant = |disk: &DiskFacts| facts.generation == 2 && disk.size_bytes > OS_DISK_2;
            sized(facts, request, true, meant)
        }),
    },
    Rule {
        code: "OsDiskOver300GiB",
        theme: Theme::Disks,
        title: "The disk with the operating system of a generation 2 VM has more than 300 GiB",
        why: "The VM keeps its generation, so the limit of the original's conversion does not apply.",
        advice: "Nothing.",
        original: "refuses it",
        original_code: PREREQUISITES,
        source: MATRIX_FORM,
        azure: Severity::Lifted,
        recovery_host: Severity::Lifted,
        find: Some(|facts, request| {
            let meant = |disk: &DiskFacts| {
                let between = disk.size_bytes > OS_DISK_2_ORIGINAL && disk.size_bytes <= OS_DISK_2;
                facts.generation == 2 && between
            };
            sized(facts, request, true, meant)
        }),
    },
    Rule {
        code: "DataDiskTooLarge",
        theme: Theme::Disks,
        title: "A data disk has more than 32,767 GiB",
        why: "No disk of Azure is larger.",
        advice: "Leave the disk out (`disks_to_include`), spread its data over several disks, or recover the VM on a recovery host.",
        original: "refuses it",
        original_code: PREREQUISITES,
        source: MATRIX_FORM,
        azure: Severity::Blocks,
        recovery_host: Severity::Lifted,
        find: Some(|facts, request| {
            sized(facts, request, false, |disk| disk.size_bytes > DATA_DISK)
        }),
    },
    Rule {
        code: "DataDiskOver4095GiB",
        theme: Theme::Disks,
        title: "A data disk has more than 4,095 GiB",
        why: "Disks of this size are replicated and become managed disks.",
        advice: "Nothing.",
        original: "refuses it (without managed disks of 2023)",
        original_code: PREREQUISITES,
        source: MATRIX_FORM,
        azure: Severity::Lifted,
        recovery_host: Severity::Lifted,
        find: Some(|facts, request| {
            sized(facts, request, false, |disk| {
                disk.size_bytes > DATA_DISK_ORIGINAL && disk.size_bytes <= DATA_DISK
            })
        }),
    },
    Rule {
        code: "TooManyDataDisks",
        theme: Theme::Disks,
        title: "More than 64 data disks",
        why: "No size of a VM in Azure takes more.",
        advice: "Leave disks out (`disks_to_include`), or recover the VM on a recovery host.",
        original: "refuses it",
        original_code: PREREQUISITES,
        source: MATRIX_FORM,
        azure: Severity::Blocks,
        recovery_host: Severity::Lifted,
        find: Some(|facts, request| counted(facts, request, |count| count > DATA_DISKS)),
    },
    Rule {
        code: "Over16DataDisks",
        theme: Theme::Disks,
        title: "More than 16 data disks",
        why: "The size of the VM in Azure is chosen so that it takes them.",
        advice: "Nothing.",
        original: "refuses it",
        original_code: PREREQUISITES,
        source: MATRIX_FORM,
        azure: Severity::Lifted,
        recovery_host: Severity::Lifted,
        find: Some(|facts, request| {
            counted(facts, request, |count| {
                (DATA_DISKS_ORIGINAL + 1..=DATA_DISKS).contains(&count)
            })
        }),
    },
    Rule {
        code: "SharedDisk",
        theme: Theme::Disks,
        title: "A disk is shared with another VM",
        why: "Points of a shared disk are no points of the other VM, and a copy of it must not be started beside it.",
        advice: "Give each VM a disk of its own, or leave the shared one out (`disks_to_include`).",
        original: "refuses it",
        original_code: PREREQUISITES,
        source: MATRIX_FORM,
        azure: Severity::Blocks,
        recovery_host: Severity::Blocks,
        find: Some(|facts, request| {
            each(facts, request, |disk| {
                let shared = disk.shared.is_present();
                shared.then(|| "is attached to another VM, too".to_owned())
            })
        }),
    },
    Rule {
        code: "PassThroughDisk",
        theme: Theme::Disks,
        title: "A disk of the host is passed through to the VM",
        why: "Its changes can't be tracked, so it would be missing after a failover.",
        advice: "Move its data to a VHDX, or leave the disk out by naming the others in `disks_to_include`.",
        original: "does not support it, and can't detect it",
        original_code: PREREQUISITES,
        source: "deployment planner; support matrix, guest storage",
        azure: Severity::Blocks,
        recovery_host: Severity::Blocks,
        find: Some(|facts, request| {
            each(facts, request, |disk| {
                let passed = disk.pass_through.is_present();
                passed.then(|| "is a disk of the host, passed through".to_owned())
            })
        }),
    },
    Rule {
        code: "FibreChannel",
        theme: Theme::Disks,
        title: "The VM has a virtual Fibre Channel adapter",
        why: "Disks behind it are not seen by the host, so they would be missing after a failover.",
        advice: "Move their data to a VHDX and remove the adapter.",
        original: "refuses it",
        original_code: PREREQUISITES,
        source: MATRIX_FORM,
        azure: Severity::Blocks,
        recovery_host: Severity::Blocks,
        find: Some(|facts, _| {
            super::guest::present(
                facts.fibre_channel.is_present(),
                "The VM has a virtual Fibre Channel adapter.",
            )
        }),
    },
    Rule {
        code: "FourKNative",
        theme: Theme::Disks,
        title: "A disk has logical sectors of 4,096 bytes",
        why: "Recovered disks have sectors of 512 bytes: neither partition table nor file systems would be found.",
        advice: "Copy its data to a VHDX with logical sectors of 512 bytes, or leave the disk out (`disks_to_include`).",
        original: "refuses 4K logical with 4K physical sectors",
        original_code: None,
        source: MATRIX_STORAGE,
        azure: Severity::Blocks,
        recovery_host: Severity::Blocks,
        find: Some(|facts, request| {
            each(facts, request, |disk| {
                let large = disk.logical_sector_bytes > 512;
                large.then(|| format!("has logical sectors of {} bytes", disk.logical_sector_bytes))
            })
        }),
    },
    Rule {
        code: "DiskResize",
        theme: Theme::Disks,
        title: "A disk is made larger while it is replicated",
        why: "The replica grows with it, and points from before stay as they were.",
        advice: "Nothing.",
        original: "wants protection switched off, and copies everything again",
        original_code: None,
        source: MATRIX_STORAGE,
        azure: Severity::Lifted,
        recovery_host: Severity::Lifted,
        find: None,
    },
    Rule {
        code: "DiskAdded",
        theme: Theme::Disks,
        title: "A disk is added, removed or left out while the VM is replicated",
        why: "Only the new disk is copied (`disks_to_include`).",
        advice: "Nothing.",
        original: "wants protection switched off, and copies everything again",
        original_code: None,
        source: MATRIX_STORAGE,
        azure: Severity::Lifted,
        recovery_host: Severity::Lifted,
        find: None,
    },
];

fn each(facts: &Facts, request: &Request, look: impl Fn(&DiskFacts) -> Option<String>) -> Vec<Hit> {
    facts
        .disks
        .iter()
        .filter_map(|disk| {
            let what = look(disk)?;
            let what = format!("The disk {} {what}.", disk.name);
            Some(Hit::disk(disk, request, what))
        })
        .collect()
}

fn sized(
    facts: &Facts,
    request: &Request,
    operating_system: bool,
    is_meant: impl Fn(&DiskFacts) -> bool,
) -> Vec<Hit> {
    each(facts, request, |disk| {
        let hit = disk.operating_system == operating_system && is_meant(disk);
        hit.then(|| format!("has {} GiB", disk.size_bytes.div_ceil(GIB)))
    })
}

fn counted(facts: &Facts, request: &Request, is_meant: impl Fn(usize) -> bool) -> Vec<Hit> {
    let data = |disk: &&DiskFacts| !disk.operating_system && request.includes(disk);
    let count = facts.disks.iter().filter(data).count();
    let hit = is_meant(count).then(|| Hit::vm(format!("The VM has {count} data disks.")));
    hit.into_iter().collect()
}
