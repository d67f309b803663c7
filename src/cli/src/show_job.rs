//! A job for a person: its tasks as a tree, what went wrong with cause and next step, and the VMs that it was about.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::Value;

use crate::lookup::text;
use crate::show::{number_or_text, property, time, whole};

/// Prints the job, or its body as JSON.
pub fn job(body: &Value, json: bool) -> Result<()> {
    if json {
        return whole(body);
    }
    for line in describe(body) {
        println!("{line}");
    }
    Ok(())
}

/// The whole of an ended job.
pub fn describe(job: &Value) -> Vec<String> {
    let mut lines = vec![headline(job)];
    lines.extend(tree(job, usize::MAX));
    lines.extend(machines(job));
    lines.extend(problems(job));
    lines
}

/// `Planned failover of web01: InProgress, 43 %`
pub fn headline(job: &Value) -> String {
    let title = match property(job, "friendlyName") {
        none if none.is_empty() => property(job, "scenarioName"),
        title => title,
    };
    let percent = match percent(job) {
        Some(percent) => format!(", {percent} %"),
        None => String::new(),
    };
    format!(
        "{title} of {}: {}{percent}",
        property(job, "targetObjectName"),
        property(job, "state")
    )
}

/// How far a copy is, in whole percent.
pub fn percent(job: &Value) -> Option<u64> {
    let percent = job.pointer("/properties/percentComplete")?.as_f64()?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 100 after the clamp"
    )]
    Some(percent.clamp(0.0, 100.0) as u64)
}

/// Tasks and, below a plan's group, one line for each VM. Where a group has more than `most` VMs, those that nothing
/// happens to are counted only, so that a live view stays on the screen.
pub fn tree(job: &Value, most: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for task in tasks(job) {
        lines.push(line(task, "  "));
        let children: Vec<&Value> = children(task).collect();
        let all = children.len() <= most;
        let interesting =
            |child: &&Value| all || !matches!(text(child, "/state"), "Succeeded" | "NotStarted");
        let shown: Vec<&Value> = children
            .iter()
            .copied()
            .filter(interesting)
            .take(most)
            .collect();
        lines.extend(shown.iter().map(|child| line(child, "    ")));
        let left = children.len() - shown.len();
        if left > 0 {
            let done = children
                .iter()
                .filter(|child| text(child, "/state") == "Succeeded")
                .count();
            lines.push(format!(
                "      {left} more; {done} of {} done",
                children.len()
            ));
        }
    }
    lines
}

/// Tasks of the job in order.
pub fn tasks(job: &Value) -> impl Iterator<Item = &Value> {
    list(job.pointer("/properties/tasks"))
}

/// Tasks below a task of a plan.
pub fn children(task: &Value) -> impl Iterator<Item = &Value> {
    list(task.pointer("/groupTaskCustomDetails/childTasks"))
}

/// What a task is called for people.
pub fn title(task: &Value) -> &str {
    match text(task, "/friendlyName") {
        "" => text(task, "/name"),
        title => title,
    }
}

fn line(task: &Value, indent: &str) -> String {
    let (state, description) = (text(task, "/state"), text(task, "/stateDescription"));
    // Most descriptions only repeat the state.
    let note = if description.is_empty() || description == state || description == "Completed" {
        String::new()
    } else {
        format!(" ({description})")
    };
    format!(
        "{indent}{mark} {state:<12} {title}{note}",
        mark = mark(state),
        title = title(task)
    )
}

fn mark(state: &str) -> char {
    match state {
        "Succeeded" => '✓',
        "Failed" | "Cancelled" => '✗',
        "InProgress" => '▸',
        "Suspended" => '‖',
        _ => '·',
    }
}

/// Errors of the job and of its tasks, each told once: message, possible cause, next step.
pub fn problems(job: &Value) -> Vec<String> {
    let of_job = list(job.pointer("/properties/errors"));
    let of_tasks = tasks(job).flat_map(|task| {
        let own = list(task.get("errors"));
        own.chain(children(task).flat_map(|child| list(child.get("errors"))))
    });
    let mut told = BTreeSet::new();
    let mut lines = Vec::new();
    for error in of_job.chain(of_tasks) {
        let part = |service: &str, provider: &str| {
            let service = text(error, &format!("/serviceErrorDetails/{service}"));
            let provider = text(error, &format!("/providerErrorDetails/{provider}"));
            if service.is_empty() {
                provider
            } else {
                service
            }
        };
        let message = part("message", "errorMessage");
        let code = part("code", "errorId");
        if !told.insert((code.to_owned(), message.to_owned())) {
            continue;
        }
        let level = if text(error, "/errorLevel").eq_ignore_ascii_case("warning") {
            "warning"
        } else {
            "error"
        };
        let code = if code.is_empty() {
            String::new()
        } else {
            format!(" ({code})")
        };
        lines.push(format!("  {level}: {message}{code}"));
        for (word, value) in [
            ("possible cause", part("possibleCauses", "possibleCauses")),
            ("next step", part("recommendedAction", "recommendedAction")),
        ] {
            if !value.is_empty() {
                lines.push(format!("    {word}: {value}"));
            }
        }
    }
    lines
}

/// The recovered VMs, where the job names any.
fn machines(job: &Value) -> Vec<String> {
    let machines = list(job.pointer("/properties/customDetails/protectedItemDetails"));
    let line = |machine: &Value| {
        let at = |name: &str| number_or_text(machine.get(name));
        let name = match at("testVmFriendlyName") {
            none if none.is_empty() => at("friendlyName"),
            name => name,
        };
        let mut words = vec![name];
        for (word, value) in [
            ("", at("state")),
            ("host ", at("recoveryHost")),
            ("point of ", time(&at("recoveryPointTime"))),
            ("console ", at("consolePath")),
        ] {
            if !value.is_empty() {
                words.push(format!("{word}{value}"));
            }
        }
        words.push(at("note"));
        words.retain(|word| !word.is_empty());
        format!("  VM {}", words.join(", "))
    };
    machines.map(line).collect()
}

fn list(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan(vms: usize) -> Value {
        let child = |number: usize| json!({ "friendlyName": format!("vm{number}"), "state": if number == 3 { "InProgress" } else { "Succeeded" } });
        json!({ "properties": {
            "friendlyName": "Failover", "targetObjectName": "shop", "state": "InProgress", "percentComplete": 43.9,
            "tasks": [
                { "friendlyName": "Checking prerequisites", "state": "Succeeded", "stateDescription": "Completed" },
                { "friendlyName": "Group 1", "state": "InProgress", "stateDescription": "InProgress",
                  "groupTaskCustomDetails": { "childTasks": (0..vms).map(child).collect::<Vec<_>>() } },
                { "friendlyName": "Group 2", "state": "NotStarted", "stateDescription": "Waits for group 1" },
            ] } })
    }

    #[test]
    fn groups_have_their_vms_below_them() {
        let lines = tree(&plan(4), 10);
        assert_eq!(lines.len(), 7);
        assert_eq!(lines[0], "  ✓ Succeeded    Checking prerequisites");
        assert_eq!(lines[5], "    ▸ InProgress   vm3");
        assert_eq!(lines[6], "  · NotStarted   Group 2 (Waits for group 1)");
        assert_eq!(headline(&plan(4)), "Failover of shop: InProgress, 43 %");
    }

    #[test]
    fn a_live_view_of_a_large_group_shows_what_happens_and_counts_the_rest() {
        let lines = tree(&plan(100), 10);
        assert_eq!(
            lines[2..4],
            ["    ▸ InProgress   vm3", "      99 more; 99 of 100 done"]
        );
        assert_eq!(lines.len(), 5);
    }

    #[test]
    fn a_failure_is_told_once_with_cause_and_next_step() {
        let error = json!({
            "serviceErrorDetails": { "code": "HostUnreachable", "message": "hv1 did not answer.",
                "possibleCauses": "It is off.", "recommendedAction": "Fail over without it." },
            "providerErrorDetails": { "errorId": "HostUnreachable", "errorMessage": "hv1 did not answer." },
            "errorLevel": "Error",
        });
        let engine = json!({ "providerErrorDetails": { "errorId": "DiskFull", "errorMessage": "No room." }, "errorLevel": "Warning" });
        let job = json!({ "properties": {
            "friendlyName": "Planned failover", "targetObjectName": "web01", "state": "Failed", "errors": [error.clone()],
            "tasks": [{ "friendlyName": "Shutting down", "state": "Failed", "errors": [error, engine] }],
        } });
        assert_eq!(
            problems(&job),
            [
                "  error: hv1 did not answer. (HostUnreachable)",
                "    possible cause: It is off.",
                "    next step: Fail over without it.",
                "  warning: No room. (DiskFull)",
            ]
        );
    }

    #[test]
    fn a_finished_failover_says_where_the_vm_runs_and_how_old_it_is() {
        let job = json!({ "properties": { "customDetails": { "protectedItemDetails": [{
            "friendlyName": "web01", "testVmFriendlyName": "web01-dr", "recoveryHost": "hv2", "state": "Booted",
            "recoveryPointTime": "2031-03-04T05:06:07.5Z", "consolePath": "/var/log/web01-dr.log",
        }] } } });
        assert_eq!(
            machines(&job),
            [
                "  VM web01-dr, Booted, host hv2, point of 2031-03-04T05:06:07Z, console /var/log/web01-dr.log"
            ]
        );
    }
}
