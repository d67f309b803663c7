//! Checks before protection: what the engine tells of a VM goes into the rules of `protection::checks`, what they say comes out
//! as the API wants it.
//!
//! ```text
//!  report of the host ─► facts ─► rules ─┬─► protectable item: protectionReadinessErrors, readinessFindings
//!                                        ├─► enable: refused with all that blocks, noted what was left out on purpose
//!                                        └─► protected item: health errors of what blocks now and was not known then
//! ```

use arm_model::ArmError;
use arm_model::health::HealthError;
use arm_model::protectable_item::ReadinessFinding;
use arm_model::protected_item::EnableDetails;
use engine_protocol::v1;
use protection::checks::{
    self, DiskFacts, Facts, Finding, Guest, Look, Presence, Request, Severity, Subject, Table,
    Target,
};
use serde_json::Value;

use crate::azure_target;
use crate::fault::Fault;
use crate::store::records::Item;

/// What an item keeps of the findings that it was protected with.
const ACCEPTED: &str = "acceptedFindings";
/// The engine says these itself, when it is so far.
const OF_ENGINE: &str = "HostSpaceLow";

/// What is asked for, as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Where the VM is to be recovered; none for either.
    pub target: Option<Target>,
    /// Ids of the disks to replicate; none for all.
    pub disks: Option<Vec<String>>,
    /// The disk with the operating system, when it is not what the host says.
    pub os_disk: Option<String>,
    /// The operating system, when it is not what the host says.
    pub os_type: Option<String>,
    /// Of the policy; 0 for the usual one.
    pub log_quota_percent: u32,
}

// === impl Asked ===

impl Asked {
    /// What an enable asks for.
    #[must_use]
    pub fn of(details: &EnableDetails, log_quota_percent: u32) -> Self {
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let target = details
            .extra
            .get("recoveryTarget")
            .and_then(Value::as_str)
            .unwrap_or_default();
        Self {
            target: Some(target_of(target)),
            disks: details.disks_to_include.clone(),
            os_disk: text(&details.vhd_id),
            os_type: text(&details.os_type),
            log_quota_percent,
        }
    }

    /// What an item has asked for, with the disks that it has now.
    #[must_use]
    pub fn of_item(item: &Item, log_quota_percent: u32) -> Self {
        Self {
            disks: Some(item.disk_ids.clone()),
            target: Some(target_of_item(item)),
            ..Self::of(&item.request, log_quota_percent)
        }
    }
}

fn target_of_item(item: &Item) -> Target {
    if azure_target::is_wanted(item) {
        Target::Azure
    } else {
        Target::RecoveryHost
    }
}

/// A recovery target by its word; a recovery host unless it says Azure.
#[must_use]
pub fn target_of(word: &str) -> Target {
    if word.eq_ignore_ascii_case(Target::Azure.as_str()) {
        Target::Azure
    } else {
        Target::RecoveryHost
    }
}

/// All findings, those of the host first, then the worst.
#[must_use]
pub fn findings(machine: &v1::VirtualMachine, asked: &Asked) -> Vec<ReadinessFinding> {
    let targets = asked.target.map_or(Target::ALL.to_vec(), |one| vec![one]);
    let mut all: Vec<ReadinessFinding> = machine
        .findings
        .iter()
        .map(|finding| of_host(finding, &targets))
        .collect();
    let mut ours: Vec<(Severity, ReadinessFinding)> = Vec::new();
    for target in &targets {
        for finding in judge(machine, asked, *target) {
            let told = of_rule(&finding, *target);
            let same = ours.iter_mut().find(|(severity, known)| {
                *severity == finding.severity
                    && known.code == told.code
                    && known.summary_message == told.summary_message
            });
            match same {
                Some((_, known)) => known.recovery_targets.extend(told.recovery_targets),
                None => ours.push((finding.severity, told)),
            }
        }
    }
    ours.sort_by_key(|(severity, _)| std::cmp::Reverse(*severity));
    all.extend(ours.into_iter().map(|(_, finding)| finding));
    all
}

/// Texts of what refuses protection wherever the VM is recovered.
#[must_use]
pub fn errors(findings: &[ReadinessFinding], targets: usize) -> Vec<String> {
    findings
        .iter()
        .filter(|finding| finding.severity == ReadinessFinding::ERROR)
        .filter(|finding| finding.recovery_targets.len() >= targets)
        .map(|finding| {
            format!(
                "{}: {} {}",
                finding.code, finding.summary_message, finding.recommended_action
            )
            .trim()
            .to_owned()
        })
        .collect()
}

/// Refuses what can't be protected, with everything that stands in the way.
///
/// # Errors
/// 400 at `target`, with one detail for each finding.
pub fn allow(machine: &v1::VirtualMachine, asked: &Asked, target: &str) -> Result<(), Fault> {
    let blocking: Vec<ReadinessFinding> = findings(machine, asked)
        .into_iter()
        .filter(|finding| finding.severity == ReadinessFinding::ERROR)
        .collect();
    let Some(first) = blocking.first() else {
        return Ok(());
    };
    let message = match blocking.len() {
        1 => first.summary_message.clone(),
        count => format!(
            "{count} things stand in the way of protecting the VM `{}`: {}",
            machine.name,
            blocking
                .iter()
                .map(|finding| finding.summary_message.as_str())
                .collect::<Vec<_>>()
                .join(" ")
        ),
    };
    let mut error = ArmError::new(&first.code, message).at(target);
    for finding in &blocking {
        let detail = ArmError::new(&finding.code, finding.summary_message.clone())
            .at(finding.vhd_id.as_deref().unwrap_or(target))
            .advise(&finding.possible_causes, &finding.recommended_action);
        error.details.extend(detail.details);
    }
    Err(Fault::refuse(400, error))
}

/// Whether an enable names nothing that is not protected by now, and for the same target. Such a one is never refused: what stands in its
/// way is told as health, and a rule that is newer than the protection takes nothing away.
#[must_use]
pub fn is_repeated(present: &Item, asked: &Asked, vm_id: &str, disk_ids: &[String]) -> bool {
    let is_there = |id: &String| {
        let mut known = present.disk_ids.iter();
        known.any(|known| known.eq_ignore_ascii_case(id))
    };
    present.life.item.copied_once
        && asked.target == Some(target_of_item(present))
        && present.vm_id.eq_ignore_ascii_case(vm_id)
        && disk_ids.iter().all(is_there)
}

/// What is known at an enable of disks that are left out, so that it is no news later.
pub fn note_accepted(machine: &v1::VirtualMachine, asked: &Asked, details: &mut EnableDetails) {
    let target = asked.target.unwrap_or(Target::RecoveryHost);
    let accepted: Vec<Value> = judge(machine, asked, target)
        .iter()
        .filter(|finding| finding.softened)
        .map(|finding| Value::from(key(finding)))
        .collect();
    details.extra.remove(ACCEPTED);
    if !accepted.is_empty() {
        details.extra.insert(ACCEPTED.to_owned(), accepted.into());
    }
}

/// What has come up at a protected VM since: it would refuse protection now, or would but for a disk that is left out and was
/// not there then.
#[must_use]
pub fn health(
    item: &Item,
    machine: &v1::VirtualMachine,
    log_quota_percent: u32,
    entity: &str,
) -> Vec<HealthError> {
    let asked = Asked::of_item(item, log_quota_percent);
    let accepted: Vec<&str> = item
        .request
        .extra
        .get(ACCEPTED)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let target = asked.target.unwrap_or(Target::RecoveryHost);
    judge(machine, &asked, target)
        .iter()
        .filter(|finding| finding.severity == Severity::Blocks || finding.softened)
        .filter(|finding| finding.code != OF_ENGINE)
        .filter(|finding| !accepted.contains(&key(finding).as_str()))
        .map(|finding| health_error(finding, entity))
        .collect()
}

fn health_error(finding: &Finding, entity: &str) -> HealthError {
    let message = match finding.original_code {
        Some(code) => format!("{} (Azure Site Recovery: {code})", finding.what),
        None => finding.what.clone(),
    };
    HealthError {
        error_source: Some("Orchestrator".to_owned()),
        error_level: Some("Warning".to_owned()),
        error_category: Some("Configuration".to_owned()),
        error_code: Some(finding.code.to_owned()),
        summary_message: Some(finding.what.clone()),
        error_message: Some(message),
        possible_causes: Some(finding.why.to_owned()),
        recommended_action: Some(finding.advice.to_owned()),
        creation_time_utc: None,
        entity_id: Some(entity.to_owned()),
    }
}

/// Names a finding over time.
fn key(finding: &Finding) -> String {
    match &finding.subject {
        Subject::VirtualMachine => finding.code.to_owned(),
        Subject::Disk { id, name } if id.is_empty() => format!("{} {name}", finding.code),
        Subject::Disk { id, .. } => format!("{} {}", finding.code, id.to_ascii_lowercase()),
    }
}

fn judge(machine: &v1::VirtualMachine, asked: &Asked, target: Target) -> Vec<Finding> {
    let request = Request {
        target,
        disks: asked.disks.clone(),
        log_quota_percent: asked.log_quota_percent,
    };
    let mut findings = checks::judge(&facts(machine, asked), &request);
    // The host's word for the same is enough.
    findings.retain(|finding| machine.findings.iter().all(|of| of.code != finding.code));
    findings
}

fn of_host(finding: &v1::Finding, targets: &[Target]) -> ReadinessFinding {
    ReadinessFinding {
        code: finding.code.clone(),
        severity: if finding.critical {
            ReadinessFinding::ERROR
        } else {
            ReadinessFinding::WARNING
        }
        .to_owned(),
        recovery_targets: targets.iter().map(|one| one.as_str().to_owned()).collect(),
        summary_message: finding.summary.clone(),
        possible_causes: finding.possible_causes.clone(),
        recommended_action: finding.recommended_action.clone(),
        ..ReadinessFinding::default()
    }
}

fn of_rule(finding: &Finding, target: Target) -> ReadinessFinding {
    ReadinessFinding {
        code: finding.code.to_owned(),
        original_code: finding.original_code.map(str::to_owned),
        severity: finding.severity.as_str().to_owned(),
        recovery_targets: vec![target.as_str().to_owned()],
        vhd_id: match &finding.subject {
            Subject::Disk { id, .. } if !id.is_empty() => Some(id.clone()),
            _ => None,
        },
        summary_message: finding.what.clone(),
        possible_causes: finding.why.to_owned(),
        recommended_action: finding.advice.to_owned(),
    }
}

/// What the rules go by.
fn facts(machine: &v1::VirtualMachine, asked: &Asked) -> Facts {
    let told = machine.facts.clone().unwrap_or_default();
    let of = |id: &str| {
        let mut disks = told.disks.iter();
        disks.find(|disk| !id.is_empty() && disk.id.eq_ignore_ascii_case(id))
    };
    let is_system = |disk: &v1::Disk| match &asked.os_disk {
        Some(wanted) => wanted.eq_ignore_ascii_case(&disk.id),
        None => disk.operating_system,
    };
    let listed = machine.disks.iter().map(|disk| DiskFacts {
        id: disk.id.clone(),
        name: disk.name.clone(),
        size_bytes: disk.size_bytes,
        operating_system: is_system(disk),
        ..of(&disk.id).map(disk_facts).unwrap_or_default()
    });
    let is_listed = |disk: &&v1::DiskFacts| {
        let mut disks = machine.disks.iter();
        disks.any(|listed| listed.id.eq_ignore_ascii_case(&disk.id))
    };
    let others = told.disks.iter().filter(|disk| !is_listed(disk));
    Facts {
        name: machine.name.clone(),
        generation: machine.generation,
        os_type: asked
            .os_type
            .clone()
            .unwrap_or_else(|| machine.os_type.clone()),
        os_name: told.os_name.clone(),
        architecture: told.architecture.clone(),
        secure_boot: presence(told.secure_boot()),
        virtual_tpm: presence(told.virtual_tpm()),
        fibre_channel: presence(told.fibre_channel()),
        checkpoints: presence(told.checkpoints()),
        // A host that tells nothing of its VMs but their disks does not know.
        adapters: (!machine.network_adapters.is_empty() || told.fibre_channel != 0)
            .then_some(machine.network_adapters.len()),
        disks: listed.chain(others.map(disk_facts)).collect(),
    }
}

fn disk_facts(told: &v1::DiskFacts) -> DiskFacts {
    DiskFacts {
        id: told.id.clone(),
        name: told.name.clone(),
        size_bytes: 0,
        operating_system: false,
        logical_sector_bytes: told.logical_sector_bytes,
        shared: presence(told.shared()),
        pass_through: presence(told.pass_through()),
        volume: told.volume.clone(),
        volume_free_bytes: (!told.volume.is_empty()).then_some(told.volume_free_bytes),
        look: told.look.as_ref().map(|look| Look {
            table: match look.table() {
                v1::disk_look::Table::None => Table::None,
                v1::disk_look::Table::Mbr => Table::Mbr,
                v1::disk_look::Table::Gpt => Table::Gpt,
                v1::disk_look::Table::Damaged => Table::Damaged,
            },
            partitions: look.partitions,
            dynamic_disk: look.dynamic_disk,
            bitlocker: look.bitlocker,
            luks: look.luks,
            lvm: look.lvm,
            efi_system_partition: look.efi_system_partition,
            guest: match look.guest.as_str() {
                "Linux" => Guest::Linux,
                "Windows" => Guest::Windows,
                _ => Guest::Unknown,
            },
        }),
    }
}

fn presence(told: v1::Presence) -> Presence {
    match told {
        v1::Presence::Unknown => Presence::Unknown,
        v1::Presence::NotPresent => Presence::NotPresent,
        v1::Presence::Present => Presence::Present,
    }
}

/// `hasPhysicalDisk`, `hasFibreChannelAdapter`, `hasSharedVhd` of a protectable item.
#[must_use]
pub fn presences(machine: &v1::VirtualMachine) -> [&'static str; 3] {
    let Some(told) = &machine.facts else {
        return [Presence::Unknown.as_str(); 3];
    };
    // Of several disks: one has it, or none of them, or it is not known of all.
    let any = |of: fn(&v1::DiskFacts) -> v1::Presence| {
        let mut known = told.disks.iter().map(of);
        let worst = known.clone().any(|one| one == v1::Presence::Present);
        match (worst, known.any(|one| one == v1::Presence::Unknown)) {
            (true, _) => Presence::Present,
            (false, true) => Presence::Unknown,
            (false, false) => Presence::NotPresent,
        }
        .as_str()
    };
    [
        any(v1::DiskFacts::pass_through),
        presence(told.fibre_channel()).as_str(),
        any(v1::DiskFacts::shared),
    ]
}
