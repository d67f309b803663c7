//! Rules of operating system and machine.

use super::{Facts, Guest, Hit, Rule, Severity, Theme};

/// Planner: names with these are incompatible.
const BAD_IN_NAMES: [char; 5] = ['\u{201c}', '\u{201d}', '[', ']', '`'];
const PREREQUISITES: Option<&str> = Some("70094");
const MATRIX_FORM: &str = "support matrix, guest OS and VM form";

pub(super) const RULES: &[Rule] = &[
    Rule {
        code: "Guest32Bit",
        theme: Theme::Guest,
        title: "The guest's operating system is a 32-bit one",
        why: "Azure takes 64-bit guests only.",
        advice: "Recover it on a recovery host (`recovery_target = \"RecoveryHost\"`), or move its work to a 64-bit system.",
        original: "refuses it",
        original_code: PREREQUISITES,
        source: MATRIX_FORM,
        azure: Severity::Blocks,
        recovery_host: Severity::Lifted,
        find: Some(|facts, _| architecture(facts, |name| matches!(name, "x86" | "i386" | "i686"))),
    },
    Rule {
        code: "GuestArchitecture",
        theme: Theme::Guest,
        title: "The guest's processor is not an x86-64",
        why: "Sizes for other processors are never chosen in Azure, and a recovery host must have the same processor.",
        advice: "Recover it on a recovery host with that processor.",
        original: "refuses it",
        original_code: PREREQUISITES,
        source: MATRIX_FORM,
        azure: Severity::Blocks,
        recovery_host: Severity::Warns,
        find: Some(|facts, _| {
            architecture(facts, |name| {
                !matches!(name, "x86_64" | "amd64" | "x64" | "x86" | "i386" | "i686")
            })
        }),
    },
    Rule {
        code: "GuestUnknown",
        theme: Theme::Guest,
        title: "Nobody knows what operating system the VM has",
        why: "Licence, agent and network settings after a failover depend on it.",
        advice: "Set `os_type` of the protected VM, or start the VM once with its integration services running.",
        original: "refuses a guest that Azure doesn't support",
        original_code: None,
        source: MATRIX_FORM,
        azure: Severity::Warns,
        recovery_host: Severity::Warns,
        find: Some(|facts, _| {
            let traces = guest_on_disk(facts);
            if facts.os_type.is_empty() && traces == Guest::Unknown {
                vec![Hit::vm(
                    "Neither the host nor the disk with the operating system tells what system it is.".to_owned(),
                )]
            } else {
                Vec::new()
            }
        }),
    },
    Rule {
        code: "GuestMismatch",
        theme: Theme::Guest,
        title: "The disk holds another system than the host says",
        why: "The VM was installed anew, or boots from another disk than its first one.",
        advice: "Set `os_type` and `os_disk_id` of the protected VM, and make a test failover.",
        original: "does not look",
        original_code: None,
        source: "this product",
        azure: Severity::Warns,
        recovery_host: Severity::Warns,
        find: Some(|facts, _| {
            let traces = guest_on_disk(facts).as_str();
            let differs = !facts.os_type.is_empty()
                && !traces.is_empty()
                && !facts.os_type.eq_ignore_ascii_case(traces);
            if differs {
                vec![Hit::vm(format!(
                    "The host says {}, the disk with the operating system holds {traces}.",
                    facts.os_type
                ))]
            } else {
                Vec::new()
            }
        }),
    },
    Rule {
        code: "GuestTooOld",
        theme: Theme::Guest,
        title: "The guest is older than what Azure supports",
        why: "Azure supports Windows Server 2008 and later; older ones may not find their disks and network there.",
        advice: "Make a test failover before you rely on it, or recover it on a recovery host.",
        original: "refuses a guest that Azure doesn't support",
        original_code: PREREQUISITES,
        source: MATRIX_FORM,
        azure: Severity::Warns,
        recovery_host: Severity::Lifted,
        find: Some(|facts, _| named(facts, &["2003", "Windows 2000", "Windows NT", "Windows XP"])),
    },
    Rule {
        code: "NanoServer",
        theme: Theme::Guest,
        title: "The guest is a Nano Server",
        why: "Azure has no support for a Nano Server of 2016 on a VM.",
        advice: "Make a test failover before you rely on it.",
        original: "does not support it",
        original_code: None,
        source: MATRIX_FORM,
        azure: Severity::Warns,
        recovery_host: Severity::Lifted,
        find: Some(|facts, _| named(facts, &["Nano"])),
    },
    Rule {
        code: "LinuxGeneration2",
        theme: Theme::Guest,
        title: "A Linux guest of generation 2",
        why: "It keeps its firmware in Azure, and on a recovery host that runs generation 2; else its disk is converted on the way.",
        advice: "Nothing.",
        original: "refuses it",
        original_code: PREREQUISITES,
        source: MATRIX_FORM,
        azure: Severity::Lifted,
        recovery_host: Severity::Lifted,
        find: Some(|facts, _| {
            if facts.generation == 2 && facts.os_type.eq_ignore_ascii_case("Linux") {
                vec![Hit::vm(
                    "The VM is of generation 2 and runs Linux.".to_owned(),
                )]
            } else {
                Vec::new()
            }
        }),
    },
    Rule {
        code: "SecureBoot",
        theme: Theme::Guest,
        title: "Secure boot is on",
        why: "The recovered VM starts without secure boot: what relies on measured or signed starts notices.",
        advice: "Know the BitLocker recovery key, if there is one, and make a test failover.",
        original: "boots as BIOS in Azure, without secure boot",
        original_code: None,
        source: MATRIX_FORM,
        azure: Severity::Warns,
        recovery_host: Severity::Warns,
        find: Some(|facts, _| present(facts.secure_boot.is_present(), "Secure boot is on.")),
    },
    Rule {
        code: "VirtualTpm",
        theme: Theme::Guest,
        title: "The VM has a virtual TPM",
        why: "Its content is not part of the disks: keys that it holds are not there after a failover.",
        advice: "Keep recovery keys of everything that is sealed to it, and make a test failover.",
        original: "does not support it",
        original_code: None,
        source: MATRIX_FORM,
        azure: Severity::Warns,
        recovery_host: Severity::Warns,
        find: Some(|facts, _| present(facts.virtual_tpm.is_present(), "The VM has a virtual TPM.")),
    },
    Rule {
        code: "Checkpoints",
        theme: Theme::Guest,
        title: "The VM has checkpoints",
        why: "They are not replicated, and after a failback the VM has none.",
        advice: "Delete the checkpoints that nobody needs before a failover.",
        original: "wants none before a failover",
        original_code: None,
        source: MATRIX_FORM,
        azure: Severity::Warns,
        recovery_host: Severity::Warns,
        find: Some(|facts, _| present(facts.checkpoints.is_present(), "The VM has checkpoints.")),
    },
    Rule {
        code: "SourceName",
        theme: Theme::Guest,
        title: "The name of the VM has quotes, brackets or backticks",
        why: "Nothing depends on it here; the recovered VM has a name of its own.",
        advice: "Nothing.",
        original: "its planner calls the VM incompatible",
        original_code: None,
        source: "deployment planner report, incompatible VMs",
        azure: Severity::Lifted,
        recovery_host: Severity::Lifted,
        find: Some(|facts, _| {
            present(
                facts.name.contains(BAD_IN_NAMES),
                "The VM's name has characters that the original's planner refuses.",
            )
        }),
    },
];

/// What the disk with the operating system holds.
fn guest_on_disk(facts: &Facts) -> Guest {
    facts
        .disks
        .iter()
        .find(|disk| disk.operating_system)
        .and_then(|disk| disk.look.as_ref())
        .map_or(Guest::Unknown, |look| look.guest)
}

fn architecture(facts: &Facts, is_meant: impl Fn(&str) -> bool) -> Vec<Hit> {
    let name = facts.architecture.to_ascii_lowercase();
    let hit = !name.is_empty() && is_meant(&name);
    let text = format!("The guest's architecture is {}.", facts.architecture);
    hit.then(|| Hit::vm(text)).into_iter().collect()
}

fn named(facts: &Facts, words: &[&str]) -> Vec<Hit> {
    let hit = words.iter().any(|word| facts.os_name.contains(word));
    let text = format!("The guest's operating system is {}.", facts.os_name);
    hit.then(|| Hit::vm(text)).into_iter().collect()
}

pub(super) fn present(is: bool, text: &str) -> Vec<Hit> {
    is.then(|| Hit::vm(text.to_owned())).into_iter().collect()
}
