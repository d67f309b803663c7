//! Rules of what the first sectors of the disks say.

use super::{DiskFacts, Facts, Hit, Look, Request, Rule, Severity, Table, Theme};

/// Most partitions of a disk that the original converts.
const PARTITIONS_ORIGINAL: u32 = 5;
const MATRIX_FORM: &str = "support matrix, guest OS and VM form";
const MATRIX_STORAGE: &str = "support matrix, guest storage";

pub(super) const RULES: &[Rule] = &[
    Rule {
        code: "DynamicOsDisk",
        theme: Theme::SystemDisk,
        title: "The disk with the operating system is a dynamic disk",
        why: "Windows in Azure starts from basic disks only.",
        advice: "Convert the disk to a basic one, or recover the VM on a recovery host.",
        original: "wants a basic disk",
        original_code: None,
        source: MATRIX_STORAGE,
        azure: Severity::Blocks,
        recovery_host: Severity::Warns,
        find: Some(|facts, request| {
            each(facts, request, |disk, look| {
                let hit = disk.operating_system && look.dynamic_disk;
                hit.then(|| "is a dynamic disk".to_owned())
            })
        }),
    },
    Rule {
        code: "DynamicDataDisk",
        theme: Theme::SystemDisk,
        title: "A data disk is a dynamic disk",
        why: "A volume may lie on several disks: when one of them is left out, it comes up as failed; application-consistent points \
              of dynamic disks fail in the guest with 0x800700EA.",
        advice: "Replicate all dynamic disks of the VM, or none.",
        original: "replicates it; no application-consistent points",
        original_code: Some("0x800700EA"),
        source: MATRIX_STORAGE,
        azure: Severity::Warns,
        recovery_host: Severity::Warns,
        find: Some(|facts, request| {
            each(facts, request, |disk, look| {
                let hit = !disk.operating_system && look.dynamic_disk;
                hit.then(|| "is a dynamic disk".to_owned())
            })
        }),
    },
    Rule {
        code: "BitLockerOsDisk",
        theme: Theme::SystemDisk,
        title: "The disk with the operating system has a BitLocker volume",
        why: "The key of its TPM does not come along, and in Azure nobody can type the recovery key at the start.",
        advice: "Switch BitLocker off and wait until the disk is decrypted, or recover the VM on a recovery host and keep the recovery key at hand.",
        original: "does not support it",
        original_code: None,
        source: MATRIX_FORM,
        azure: Severity::Blocks,
        recovery_host: Severity::Warns,
        find: Some(|facts, request| {
            each(facts, request, |disk, look| {
                let hit = disk.operating_system && look.bitlocker;
                hit.then(|| "has a BitLocker volume".to_owned())
            })
        }),
    },
    Rule {
        code: "BitLockerDataDisk",
        theme: Theme::SystemDisk,
        title: "A data disk has a BitLocker volume",
        why: "It is copied as it is; keys that the guest doesn't keep on its own disks are asked for after a failover.",
        advice: "Keep the recovery key.",
        original: "does not support it",
        original_code: None,
        source: MATRIX_FORM,
        azure: Severity::Warns,
        recovery_host: Severity::Warns,
        find: Some(|facts, request| {
            each(facts, request, |disk, look| {
                let hit = !disk.operating_system && look.bitlocker;
                hit.then(|| "has a BitLocker volume".to_owned())
            })
        }),
    },
    Rule {
        code: "LuksVolume",
        theme: Theme::SystemDisk,
        title: "A disk has a LUKS container",
        why: "It is copied as it is; a passphrase that is typed at the start is asked for at the serial console.",
        advice: "Make a test failover, and know how the container is opened there.",
        original: "does not support encrypted disks",
        original_code: None,
        source: MATRIX_FORM,
        azure: Severity::Warns,
        recovery_host: Severity::Warns,
        find: Some(|facts, request| {
            each(facts, request, |_, look| {
                look.luks.then(|| "has a LUKS container".to_owned())
            })
        }),
    },
    Rule {
        code: "LvmOsDisk",
        theme: Theme::SystemDisk,
        title: "The operating system lies in LVM",
        why: "Disks are copied block by block, and the guest finds its volumes by their ids.",
        advice: "Nothing.",
        original: "takes LVM on data disks only",
        original_code: None,
        source: MATRIX_STORAGE,
        azure: Severity::Lifted,
        recovery_host: Severity::Lifted,
        find: Some(|facts, request| {
            each(facts, request, |disk, look| {
                let hit = disk.operating_system && look.lvm;
                hit.then(|| "has a physical volume of LVM".to_owned())
            })
        }),
    },
    Rule {
        code: "ManyPartitions",
        theme: Theme::SystemDisk,
        title: "The disk with the operating system of a UEFI guest has more than 5 partitions",
        why: "The VM keeps its firmware, so its disk is not converted.",
        advice: "Nothing.",
        original: "refuses it",
        original_code: Some("70094"),
        source: MATRIX_FORM,
        azure: Severity::Lifted,
        recovery_host: Severity::Lifted,
        find: Some(|facts, request| {
            each(facts, request, |disk, look| {
                let many = look.partitions > PARTITIONS_ORIGINAL;
                let hit = disk.operating_system && look.efi_system_partition && many;
                hit.then(|| format!("has {} partitions", look.partitions))
            })
        }),
    },
    Rule {
        code: "PartitionTable",
        theme: Theme::SystemDisk,
        title: "The partition table of a disk contradicts itself or the disk",
        why: "It is copied as it is: what does not start here will not start there.",
        advice: "Check the disk in the guest, and make a test failover.",
        original: "does not look",
        original_code: None,
        source: "this product",
        azure: Severity::Warns,
        recovery_host: Severity::Warns,
        find: Some(|facts, request| {
            each(facts, request, |_, look| {
                let damaged = look.table == Table::Damaged;
                damaged.then(|| "has a partition table that contradicts itself".to_owned())
            })
        }),
    },
];

fn each(
    facts: &Facts,
    request: &Request,
    judge: impl Fn(&DiskFacts, &Look) -> Option<String>,
) -> Vec<Hit> {
    let hit = |disk: &DiskFacts| {
        let what = judge(disk, disk.look.as_ref()?)?;
        let what = format!("The disk {} {what}.", disk.name);
        Some(Hit::disk(disk, request, what))
    };
    facts.disks.iter().filter_map(hit).collect()
}
