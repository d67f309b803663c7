//! Checks before protection: what is known of a VM, and where it is to be recovered, give all findings at once.
//!
//! ```text
//!  Facts (host, inventory, first sectors of the disks) ─┐
//!  Request (target, chosen disks, quota of the log) ────┼─► judge ─► findings: blocks | warns | lifted, each with what to do
//!  RULES (one table, by theme) ─────────────────────────┘
//! ```
//!
//! Rules are those of Azure Site Recovery's support matrix for Hyper-V (`Rule::source`), and what this product makes of each:
//! it keeps one, softens it to a warning, or lifts it and says so. The table is all there is: the guide for users is made of it.
//!
//! Promise: what is not known never blocks, and to know more of a VM never hides what blocks it.

mod disks;
mod facts;
mod guest;
mod guide;
mod network;
mod space;
mod system_disk;

pub use facts::{DiskFacts, Facts, Guest, Look, Presence, Request, Table, Target};
pub use guide::guide;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The original refuses or doesn't do it; this product does.
    Lifted,
    /// Works, but somebody should know.
    Warns,
    /// Protection is refused.
    Blocks,
}

impl Severity {
    /// Text in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lifted => "Lifted",
            Self::Warns => "Warning",
            Self::Blocks => "Error",
        }
    }
}

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Theme {
    /// Operating system and machine.
    Guest,
    /// Virtual disks.
    Disks,
    /// What the first sectors of the disks say.
    SystemDisk,
    /// Adapters.
    Network,
    /// Room on the host.
    Space,
}

/// A rule.
#[derive(Debug)]
pub struct Rule {
    /// For programs. Never reused.
    pub code: &'static str,
    /// What it is about.
    pub theme: Theme,
    /// What is found, in a few words.
    pub title: &'static str,
    /// Why that matters.
    pub why: &'static str,
    /// What to do.
    pub advice: &'static str,
    /// What the original does.
    pub original: &'static str,
    /// The original's code, where its documentation has one.
    pub original_code: Option<&'static str>,
    /// Where the rule stands.
    pub source: &'static str,
    /// What it means for a VM that is to be recovered in Azure.
    pub azure: Severity,
    /// What it means for one that is to be recovered on a recovery host.
    pub recovery_host: Severity,
    /// Looks for it; none for rules of the original that never apply here.
    find: Option<fn(&Facts, &Request) -> Vec<Hit>>,
}

/// Where a rule applies.
#[derive(Debug)]
struct Hit {
    subject: Subject,
    what: String,
    /// A disk that was left out of replication: the rule can't harm what is protected.
    left_out: bool,
}

impl Hit {
    fn vm(what: String) -> Self {
        Self {
            subject: Subject::VirtualMachine,
            what,
            left_out: false,
        }
    }

    fn disk(disk: &DiskFacts, request: &Request, what: String) -> Self {
        Self {
            subject: Subject::Disk {
                id: disk.id.clone(),
                name: disk.name.clone(),
            },
            what,
            left_out: !request.includes(disk),
        }
    }
}

/// What a finding is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// The VM as a whole.
    VirtualMachine,
    /// A disk; its id is empty when it has none.
    Disk {
        /// Id.
        id: String,
        /// File name.
        name: String,
    },
}

/// What a rule says of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The rule's code.
    pub code: &'static str,
    /// The original's code, where it has one.
    pub original_code: Option<&'static str>,
    /// How much it matters.
    pub severity: Severity,
    /// It would refuse protection, but for its disk that is left out.
    pub softened: bool,
    /// What it is about.
    pub subject: Subject,
    /// What was found: one sentence.
    pub what: String,
    /// Why it matters.
    pub why: &'static str,
    /// What to do.
    pub advice: &'static str,
}

/// All rules, by theme.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    [
        guest::RULES,
        disks::RULES,
        system_disk::RULES,
        network::RULES,
        space::RULES,
    ]
    .into_iter()
    .flatten()
}

/// Everything that the rules say of a VM, the worst first, within that by theme.
#[must_use]
pub fn judge(facts: &Facts, request: &Request) -> Vec<Finding> {
    let mut findings: Vec<Finding> = rules()
        .flat_map(|rule| {
            let hits = rule.find.map(|find| find(facts, request));
            hits.unwrap_or_default()
                .into_iter()
                .map(move |hit| finding(rule, request.target, hit))
        })
        .collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

fn finding(rule: &'static Rule, target: Target, hit: Hit) -> Finding {
    let severity = match target {
        Target::Azure => rule.azure,
        Target::RecoveryHost => rule.recovery_host,
    };
    Finding {
        code: rule.code,
        original_code: rule.original_code,
        severity: if hit.left_out {
            severity.min(Severity::Warns)
        } else {
            severity
        },
        softened: hit.left_out && severity == Severity::Blocks,
        subject: hit.subject,
        what: hit.what,
        why: rule.why,
        advice: rule.advice,
    }
}

#[cfg(test)]
mod tests;
