//! The report of a drill or a failover: a pure function of the job and what was seen of its VMs.
//!
//! ```text
//!  job (document) + evidence ─► build: Report ─► document: {"report": …, "sha256": …}   for programs and archives
//!                                            └─► html: one file without scripts         for people and printers
//! ```
//!
//! Promise: the same job gives the same bytes, whoever asks and when, so two copies can be compared by their digest. All
//! numbers are whole, times in milliseconds, and no text has control characters: `jq -cSj .report` gives back the very
//! bytes that the digest is made over.

mod build;
mod check;
pub mod html;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use build::{asked_by, build};

use crate::gateway::desired::hex;

/// Form of the document. It grows when a member changes its meaning, not when one is added.
pub const FORM: u32 = 1;

/// A report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// [`FORM`].
    pub form: u32,
    /// Such as `Test failover of shop`.
    pub title: String,
    /// Whether recovery is proven.
    pub verdict: Verdict,
    /// In one sentence.
    pub summary: String,
    /// What it is about.
    pub subject: Subject,
    /// How it ran.
    pub run: Course,
    /// Figures of all VMs together.
    pub figures: Figures,
    /// Network.
    pub network: Network,
    /// VMs, in the order in which they were started.
    pub virtual_machines: Vec<Machine>,
    /// Task tree.
    pub steps: Vec<Step>,
    /// What went wrong.
    pub problems: Vec<Problem>,
    /// What became of the test VMs; absent for a failover.
    pub cleanup: Option<Cleanup>,
}

/// What a report or a check says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Verdict {
    /// Nothing to say.
    #[default]
    NotChecked,
    /// As it shall be.
    Passed,
    /// As it shall be, with a remark.
    PassedWithRemarks,
    /// Not over yet.
    InProgress,
    /// Somebody stopped it.
    Cancelled,
    /// Not as it shall be.
    Failed,
}

/// What a report is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subject {
    /// `Recovery plan` or `Virtual machine`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// ARM id.
    pub id: String,
    /// Vault.
    pub vault: String,
}

/// How the job ran.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Course {
    /// ARM id of the job.
    pub job: String,
    /// Such as `Test failover`.
    pub operation: String,
    /// State of the job.
    pub state: String,
    /// Who asked for it; empty = not recorded.
    pub requested_by: String,
    /// The request that asked for it.
    pub activity: String,
    /// When.
    pub requested: Option<String>,
    /// When it was over.
    pub ended: Option<String>,
    /// From one to the other.
    pub took_ms: Option<i64>,
    /// Release of the orchestrator that ran it; empty = not recorded.
    pub orchestrator_version: String,
}

/// Figures of all VMs together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Figures {
    /// VMs.
    pub machines: u32,
    /// VMs that have booted.
    pub booted: u32,
    /// Longest time from the request to a booted VM.
    pub worst_rto_ms: Option<i64>,
    /// Greatest age of a point at the request.
    pub worst_rpo_ms: Option<i64>,
}

/// Network of the VMs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Network {
    /// Whether no VM was connected to anything.
    pub isolated: bool,
    /// Network that was asked for; empty = none.
    pub asked_for: String,
    /// In a sentence.
    pub statement: String,
}

/// One VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Machine {
    /// Name of the protected VM.
    pub name: String,
    /// ARM id of the protected item.
    pub item: String,
    /// Name of the recovered VM.
    pub recovered_name: String,
    /// Its id on the recovery host.
    pub recovered_id: String,
    /// Group of the plan, from 1.
    pub group: u32,
    /// Recovery host.
    pub host: String,
    /// Release of its engine; empty = not recorded.
    pub engine_version: String,
    /// Name of the policy; empty = not recorded.
    pub policy: String,
    /// How often the policy makes points.
    pub policy_frequency_seconds: Option<u32>,
    /// Recovery point.
    pub point: Point,
    /// Times since the request.
    pub rto: Rto,
    /// What was looked at, and what came out.
    pub checks: Vec<Check>,
    /// Worst of the checks.
    pub verdict: Verdict,
    /// What was seen.
    pub evidence: Option<Seen>,
}

/// A recovery point.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Point {
    /// ARM id.
    pub id: String,
    /// `CrashConsistent` or `ApplicationConsistent`; empty = not recorded.
    pub kind: String,
    /// Instant.
    pub time: Option<String>,
    /// Age when the drill was asked for: the RPO that was reached.
    pub age_ms: Option<i64>,
}

/// Times from the request of a drill.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rto {
    /// To the first instruction.
    pub started_ms: Option<i64>,
    /// To the first output of the guest.
    pub booted_ms: Option<i64>,
}

/// One check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// What came out.
    pub verdict: Verdict,
    /// In words.
    pub finding: String,
}

/// What was seen of a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Seen {
    /// When.
    pub time: Option<String>,
    /// Picture of the display: PNG in base64; empty = there is none.
    pub screenshot_png: String,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// End of what the guest wrote to its console.
    pub console: String,
    /// Why something is missing; empty = nothing is.
    pub problem: String,
}

/// One task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Step {
    /// What was done.
    pub name: String,
    /// State.
    pub state: String,
    /// When it began.
    pub started: Option<String>,
    /// When it ended.
    pub ended: Option<String>,
    /// From one to the other.
    pub took_ms: Option<i64>,
    /// Tasks below it.
    pub steps: Vec<Step>,
}

/// What went wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Problem {
    /// Code.
    pub code: String,
    /// Message.
    pub message: String,
    /// What may have led to it.
    pub causes: String,
    /// What to do.
    pub action: String,
}

/// What became of the test VMs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cleanup {
    /// `Pending`, `Done`, or `TakenBack` of a drill that failed or was cancelled.
    pub state: String,
    /// When.
    pub time: Option<String>,
    /// Who asked for it; empty = not recorded.
    pub requested_by: String,
    /// ARM id of its job; empty = not recorded.
    pub job: String,
    /// What was said.
    pub notes: String,
}

/// The report as a document, with the digest that an auditor compares.
#[must_use]
pub fn document(report: &Report) -> Value {
    json!({ "report": report, "sha256": digest(report), "sha256Over": "the member report as compact JSON with sorted keys" })
}

/// SHA-256 of the report as compact JSON with sorted keys, in lower-case hexadecimal.
#[must_use]
pub fn digest(report: &Report) -> String {
    // A `Value` keeps its keys sorted; structures of texts and whole numbers always serialise.
    let value = serde_json::to_value(report).unwrap_or_default();
    let bytes = serde_json::to_vec(&value).unwrap_or_default();
    hex(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests;
