//! Actions of recovery plans: ASR's shapes, what is added to them, and the rules that both ends check.
//!
//! | `instanceType` | what happens |
//! |---|---|
//! | `ManualActionDetails` | the job waits for a person |
//! | `ScriptActionDetails` | a script runs, on a host or on the orchestrator |
//! | `WebhookActionDetails` (extension) | the plan's context is posted to a URL |
//! | `ReadinessCheckActionDetails` (extension) | the next group waits until this one is ready |
//!
//! `AutomationRunbookActionDetails` is known and refused: there is no Automation account to run it in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::envelope::Extra;
use crate::failover::{PRIMARY_TO_RECOVERY, RECOVERY_TO_PRIMARY};

/// `instanceType` of an action that waits for a person.
pub const MANUAL: &str = "ManualActionDetails";
/// `instanceType` of a script.
pub const SCRIPT: &str = "ScriptActionDetails";
/// `instanceType` of a runbook.
pub const RUNBOOK: &str = "AutomationRunbookActionDetails";
/// Extension: `instanceType` of a webhook.
pub const WEBHOOK: &str = "WebhookActionDetails";
/// Extension: `instanceType` of a readiness check.
pub const READINESS: &str = "ReadinessCheckActionDetails";

/// `failoverTypes` on which actions run.
pub const RUNS_ON: [&str; 3] = ["TestFailover", "PlannedFailover", "UnplannedFailover"];
/// Further operation names that the service has; no action runs on them.
const OTHER_OPERATIONS: [&str; 10] = [
    "ReverseReplicate",
    "Commit",
    "DisableProtection",
    "TestFailoverCleanup",
    "Failback",
    "FinalizeFailback",
    "ChangePit",
    "RepairReplication",
    "SwitchProtection",
    "CompleteMigration",
];
/// `fabricLocation` of the source.
pub const PRIMARY: &str = "Primary";
/// `fabricLocation` of the target.
pub const RECOVERY: &str = "Recovery";

/// Readiness: every VM of the group has written to its console.
pub const CONSOLE: &str = "Console";
/// Readiness: the guest agent of every VM of the group answers.
pub const GUEST_AGENT: &str = "GuestAgent";
/// Readiness: a TCP port of every VM of the group takes connections.
pub const PORT: &str = "Port";
/// Readiness: a time goes by.
pub const DELAY: &str = "Delay";

/// Time limit of an action that names none, in seconds.
pub const DEFAULT_TIMEOUT_SECONDS: u32 = 600;
/// Longest time limit, in seconds.
pub const MAX_TIMEOUT_SECONDS: u32 = 24 * 3_600;
/// Longest name.
const MAX_NAME: usize = 100;
/// Longest instruction.
const MAX_DESCRIPTION: usize = 4_096;

/// An action of a group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlanAction {
    /// Name, unlike all others of the plan.
    pub action_name: String,
    /// Operations on which it runs: some of [`RUNS_ON`].
    pub failover_types: Vec<String>,
    /// `PrimaryToRecovery`, `RecoveryToPrimary` or both.
    pub failover_directions: Vec<String>,
    /// What it does.
    pub custom_details: ActionDetails,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What an action does. Which fields count depends on the type.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ActionDetails {
    /// One of the types of the module's table.
    pub instance_type: String,
    /// Manual: what the person is to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Script: file inside the scripts folder of the machine that runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Script, webhook, readiness: time limit, `hh:mm:ss`, ISO 8601 (`PT10M`) or seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Script: `Primary` or `Recovery`; told to the script.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fabric_location: Option<String>,
    /// Runbook.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runbook_id: Option<String>,
    /// Extension, script: ARM id of the host (recovery services provider) that runs it; the orchestrator when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_id: Option<String>,
    /// Extension, script: it may run again when it is not known how it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotent: Option<bool>,
    /// Extension, webhook: where to post to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Extension, readiness: [`CONSOLE`], [`GUEST_AGENT`], [`PORT`] or [`DELAY`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
    /// Extension, readiness: TCP port of [`PORT`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    /// Further fields.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What an action does, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Waits for a person.
    Manual {
        /// What the person is to do.
        instructions: String,
    },
    /// Runs a script.
    Script {
        /// File inside the scripts folder.
        path: String,
        /// Time limit, seconds.
        limit_seconds: u32,
        /// ARM id of the host; the orchestrator when absent.
        host_id: Option<String>,
        /// Runs for the source's side.
        is_primary_side: bool,
        /// It may run again when it is not known how it ended.
        idempotent: bool,
    },
    /// Posts the context.
    Webhook {
        /// Where to.
        url: String,
        /// Time limit over all tries, seconds.
        limit_seconds: u32,
    },
    /// Waits for every VM of the group to write to its console.
    Console {
        /// Time limit, seconds.
        limit_seconds: u32,
    },
    /// Waits for the guest agent of every VM of the group.
    GuestAgent {
        /// Time limit, seconds.
        limit_seconds: u32,
    },
    /// Waits for a TCP port of every VM of the group.
    Port {
        /// Which one.
        port: u16,
        /// Time limit, seconds.
        limit_seconds: u32,
    },
    /// Waits.
    Delay {
        /// For so many seconds.
        seconds: u32,
    },
}

/// A rule that an action breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ActionProblem {
    /// Property below the action, such as `customDetails.path`.
    pub field: &'static str,
    /// What is wrong, a sentence.
    pub message: String,
    /// What to do, a sentence.
    pub advice: String,
}

fn problem(
    field: &'static str,
    message: impl Into<String>,
    advice: impl Into<String>,
) -> ActionProblem {
    ActionProblem {
        field,
        message: message.into(),
        advice: advice.into(),
    }
}

// === impl PlanAction ===

impl PlanAction {
    /// Whether it runs on an operation in a direction.
    #[must_use]
    pub fn runs_on(&self, failover_type: &str, direction: &str) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|one| one == wanted);
        has(&self.failover_types, failover_type) && has(&self.failover_directions, direction)
    }

    /// All rules that hold for the action alone.
    #[must_use]
    pub fn problems(&self) -> Vec<ActionProblem> {
        let mut found = Vec::new();
        let name = self.action_name.trim();
        if name.is_empty() || self.action_name.chars().count() > MAX_NAME {
            found.push(problem(
                "actionName",
                format!("An action's name has 1 to {MAX_NAME} characters."),
                "Give the action a name that is the only one of its kind in the plan.",
            ));
        }
        let known = |kind: &&String| {
            RUNS_ON.contains(&kind.as_str()) || OTHER_OPERATIONS.contains(&kind.as_str())
        };
        if let Some(other) = self.failover_types.iter().find(|kind| !known(kind)) {
            found.push(problem(
                "failoverTypes",
                format!("`{other}` is no operation on which an action runs."),
                format!("Use some of {}.", RUNS_ON.join(", ")),
            ));
        } else if !self
            .failover_types
            .iter()
            .any(|kind| RUNS_ON.contains(&kind.as_str()))
        {
            found.push(problem(
                "failoverTypes",
                format!("The action `{name}` would never run."),
                format!("Name at least one of {}.", RUNS_ON.join(", ")),
            ));
        }
        let known = [PRIMARY_TO_RECOVERY, RECOVERY_TO_PRIMARY];
        if let Some(other) = self
            .failover_directions
            .iter()
            .find(|direction| !known.contains(&direction.as_str()))
        {
            found.push(problem(
                "failoverDirections",
                format!("`{other}` is no direction."),
                format!("Use {} or both.", known.join(", ")),
            ));
        } else if self.failover_directions.is_empty() {
            found.push(problem(
                "failoverDirections",
                format!("The action `{name}` would never run."),
                format!("Name {} or both.", known.join(", ")),
            ));
        }
        found.extend(self.work().err());
        found
    }

    /// What the action does.
    ///
    /// # Errors
    /// The first rule that its details break.
    pub fn work(&self) -> Result<Work, ActionProblem> {
        let details = &self.custom_details;
        match details.instance_type.as_str() {
            MANUAL => details.manual(),
            SCRIPT => details.script(),
            WEBHOOK => details.webhook(),
            READINESS => details.readiness(),
            RUNBOOK => Err(problem(
                "customDetails.instanceType",
                "There is no Automation account that a runbook could run in.",
                format!("Use a script ({SCRIPT}) or a webhook ({WEBHOOK})."),
            )),
            other => Err(problem(
                "customDetails.instanceType",
                format!("`{other}` is no type of action."),
                format!("Use {MANUAL}, {SCRIPT}, {WEBHOOK} or {READINESS}."),
            )),
        }
    }
}

// === impl ActionDetails ===

impl ActionDetails {
    fn manual(&self) -> Result<Work, ActionProblem> {
        let text = self.description.as_deref().unwrap_or_default().trim();
        if text.is_empty() || text.chars().count() > MAX_DESCRIPTION {
            return Err(problem(
                "customDetails.description",
                format!("A manual action has an instruction of 1 to {MAX_DESCRIPTION} characters."),
                "Say what the person is to do before the plan goes on.",
            ));
        }
        Ok(Work::Manual {
            instructions: text.to_owned(),
        })
    }

    fn script(&self) -> Result<Work, ActionProblem> {
        let path = self.path.as_deref().unwrap_or_default();
        if !is_inside(path) {
            return Err(problem(
                "customDetails.path",
                format!("`{path}` is no path inside of a scripts folder."),
                "Name a file relative to the folder, such as web/check.sh, without `..` and not absolute.",
            ));
        }
        let location = self.fabric_location.as_deref().unwrap_or_default();
        if ![PRIMARY, RECOVERY].contains(&location) {
            return Err(problem(
                "customDetails.fabricLocation",
                format!("`{location}` is no side."),
                format!("Use {PRIMARY} or {RECOVERY}."),
            ));
        }
        Ok(Work::Script {
            path: path.to_owned(),
            limit_seconds: self.limit()?,
            host_id: self.host_id.clone().filter(|id| !id.is_empty()),
            is_primary_side: location == PRIMARY,
            idempotent: self.idempotent.unwrap_or_default(),
        })
    }

    fn webhook(&self) -> Result<Work, ActionProblem> {
        let url = self.url.as_deref().unwrap_or_default();
        if !is_postable(url) {
            return Err(problem(
                "customDetails.url",
                "A webhook needs an https:// URL without user and password; http:// only on this machine itself.",
                "Name the URL that takes the POST, such as https://hooks.example.com/failover.",
            ));
        }
        Ok(Work::Webhook {
            url: url.to_owned(),
            limit_seconds: self.limit()?,
        })
    }

    fn readiness(&self) -> Result<Work, ActionProblem> {
        let limit = self.limit()?;
        match self.check.as_deref().unwrap_or_default() {
            CONSOLE => Ok(Work::Console {
                limit_seconds: limit,
            }),
            GUEST_AGENT => Ok(Work::GuestAgent {
                limit_seconds: limit,
            }),
            PORT => match self.port.map(u16::try_from) {
                Some(Ok(port)) if port > 0 => Ok(Work::Port {
                    port,
                    limit_seconds: limit,
                }),
                _ => Err(problem(
                    "customDetails.port",
                    "A port check needs the number of a TCP port, 1 to 65535.",
                    "Give `port`, such as 443.",
                )),
            },
            DELAY if self.timeout.is_some() => Ok(Work::Delay { seconds: limit }),
            DELAY => Err(problem(
                "customDetails.timeout",
                "A delay needs its length.",
                "Give `timeout`, such as 00:01:00.",
            )),
            other => Err(problem(
                "customDetails.check",
                format!("`{other}` is no readiness check."),
                format!(
                    "Use {CONSOLE} (every VM has written to its console), {GUEST_AGENT} (its guest agent answers), {PORT} (a TCP port takes connections) or {DELAY}."
                ),
            )),
        }
    }

    fn limit(&self) -> Result<u32, ActionProblem> {
        let Some(text) = &self.timeout else {
            return Ok(DEFAULT_TIMEOUT_SECONDS);
        };
        seconds(text)
            .filter(|seconds| (1..=MAX_TIMEOUT_SECONDS).contains(seconds))
            .ok_or_else(|| {
                problem(
                    "customDetails.timeout",
                    format!("`{text}` is no time between one second and 24 hours."),
                    "Write hh:mm:ss (00:10:00), ISO 8601 (PT10M) or seconds (600).",
                )
            })
    }
}

/// Seconds of `hh:mm:ss`, `PT1H2M3S` or plain seconds.
#[must_use]
pub fn seconds(text: &str) -> Option<u32> {
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse::<u32>().ok()).flatten()
    };
    if let Some(all) = number(text) {
        return Some(all);
    }
    if let Some(mut rest) = text.strip_prefix("PT") {
        let mut sum = 0_u32;
        let mut any = false;
        for (unit, factor) in [('H', 3_600), ('M', 60), ('S', 1)] {
            if let Some((count, after)) = rest.split_once(unit) {
                sum = sum.checked_add(number(count)?.checked_mul(factor)?)?;
                rest = after;
                any = true;
            }
        }
        return (any && rest.is_empty()).then_some(sum);
    }
    let parts: Vec<u32> = text.split(':').map(number).collect::<Option<_>>()?;
    match parts.as_slice() {
        [hours, minutes @ 0..60, seconds @ 0..60] => hours
            .checked_mul(3_600)?
            .checked_add(minutes * 60 + seconds),
        _ => None,
    }
}

fn is_inside(path: &str) -> bool {
    let is_drive = path.as_bytes().get(1) == Some(&b':');
    let mut parts = path.split(['/', '\\']);
    !is_drive && !path.contains('\0') && parts.all(|part| !matches!(part, "" | "." | ".."))
}

/// Whether a webhook's URL can be posted to: `https://` without user and password; `http://` only on this machine itself.
#[must_use]
pub fn is_postable(url: &str) -> bool {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let is_plain = url
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    let is_here = matches!(host, "localhost" | "127.0.0.1" | "[::1]");
    let is_scheme = scheme == "https" || (scheme == "http" && is_here);
    is_scheme && is_plain && is_port && !host.is_empty() && !authority.contains('@')
}

/// Names that more than one action of a plan has: (first, later) by their numbers in the order they come.
#[must_use]
pub fn repeated_names<'a>(names: impl Iterator<Item = &'a str>) -> Vec<(usize, usize)> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut repeated = Vec::new();
    for (number, name) in names.enumerate() {
        let key = name.trim().to_lowercase();
        match seen.get(&key) {
            Some(first) => repeated.push((*first, number)),
            None => {
                seen.insert(key, number);
            }
        }
    }
    repeated
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[allow(
        clippy::needless_pass_by_value,
        reason = "bodies are written as literals"
    )]
    fn action(details: serde_json::Value) -> PlanAction {
        serde_json::from_value(json!({
            "actionName": "a", "failoverTypes": ["PlannedFailover", "Commit"],
            "failoverDirections": ["PrimaryToRecovery"], "customDetails": details,
        }))
        .unwrap()
    }

    fn broken(details: serde_json::Value) -> Vec<&'static str> {
        let problems = action(details).problems();
        problems.into_iter().map(|problem| problem.field).collect()
    }

    #[test]
    fn each_mistake_names_its_property() {
        assert_eq!(
            broken(json!({ "instanceType": "Nope" })),
            ["customDetails.instanceType"]
        );
        let runbook = json!({ "instanceType": RUNBOOK, "fabricLocation": "Recovery" });
        assert_eq!(broken(runbook), ["customDetails.instanceType"]);
        assert_eq!(
            broken(json!({ "instanceType": MANUAL })),
            ["customDetails.description"]
        );
        for path in ["", "/x", "a/../b", "\\x", "C:x", "a//b"] {
            let script =
                json!({ "instanceType": SCRIPT, "path": path, "fabricLocation": "Primary" });
            assert_eq!(broken(script), ["customDetails.path"], "{path:?}");
        }
        let side = json!({ "instanceType": SCRIPT, "path": "x" });
        assert_eq!(broken(side), ["customDetails.fabricLocation"]);
        for timeout in ["", "0", "PT", "1:2", "25:00:00", "-1", "PT1S1M"] {
            let hook = json!({ "instanceType": WEBHOOK, "url": "https://x/", "timeout": timeout });
            assert_eq!(broken(hook), ["customDetails.timeout"], "{timeout:?}");
        }
        for url in [
            "",
            "x",
            "ftp://x",
            "http://x/",
            "https://",
            "https://u:p@x",
            "https://x:0",
            "https://x y",
        ] {
            let hook = json!({ "instanceType": WEBHOOK, "url": url });
            assert_eq!(broken(hook), ["customDetails.url"], "{url:?}");
        }
        let unknown = json!({ "instanceType": READINESS, "check": "TcpPort" });
        assert_eq!(broken(unknown), ["customDetails.check"]);
        for port in [json!(null), json!(0), json!(65_536)] {
            let check = json!({ "instanceType": READINESS, "check": "Port", "port": port });
            assert_eq!(broken(check), ["customDetails.port"], "{port}");
        }
        let delay = json!({ "instanceType": READINESS, "check": "Delay" });
        assert_eq!(broken(delay), ["customDetails.timeout"]);
    }

    #[test]
    fn guests_are_asked_for_their_agent_and_their_ports() {
        let check = |details| action(details).work().unwrap();
        let agent = json!({ "instanceType": READINESS, "check": "GuestAgent", "timeout": "PT5M" });
        assert_eq!(check(agent), Work::GuestAgent { limit_seconds: 300 });
        let port = json!({ "instanceType": READINESS, "check": "Port", "port": 443 });
        let limit_seconds = DEFAULT_TIMEOUT_SECONDS;
        assert_eq!(
            check(port),
            Work::Port {
                port: 443,
                limit_seconds
            }
        );
    }

    #[test]
    fn an_action_that_would_never_run_is_refused() {
        let mut never = action(json!({ "instanceType": MANUAL, "description": "look" }));
        assert!(never.problems().is_empty());
        never.failover_types = vec!["Commit".to_owned()];
        never.failover_directions.clear();
        let fields: Vec<_> = never.problems().into_iter().map(|p| p.field).collect();
        assert_eq!(fields, ["failoverTypes", "failoverDirections"]);
    }

    #[test]
    fn times_are_read_in_three_spellings() {
        for text in ["90", "00:01:30", "PT1M30S"] {
            assert_eq!(seconds(text), Some(90), "{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_kept() {
        let text = json!({ "actionName": "a", "failoverTypes": [], "failoverDirections": [], "later": 1,
            "customDetails": { "instanceType": SCRIPT, "path": "x", "newer": true } });
        let read: PlanAction = serde_json::from_value(text.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), text);
    }

    #[test]
    fn names_count_once_whatever_their_case() {
        assert_eq!(repeated_names(["a", "b", "A "].into_iter()), [(0, 2)]);
    }
}
