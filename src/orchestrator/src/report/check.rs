//! What is checked of a VM, and when it passes.

use arm_model::test_failover::{DrillPort, DrillVm};

use super::{Check, Machine, Verdict};

/// How the points were chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The newest one: its age is what would be lost in a disaster.
    Newest,
    /// Somebody chose, or asked for application-consistent ones: the age says nothing of replication.
    Chosen,
}

/// All checks of a VM. `over`: the job has ended.
pub fn checks(vm: &DrillVm, machine: &Machine, over: bool, choice: Choice) -> Vec<Check> {
    [started(vm, machine, over), booted(vm, machine, over)]
        .into_iter()
        .chain(agent(vm))
        .chain(vm.ports.iter().map(port))
        .chain([rpo(machine, choice), isolated(vm), seen(machine)])
        .collect()
}

/// The worst of several; checks that were not made count for nothing.
pub fn worst(verdicts: impl Iterator<Item = Verdict>) -> Verdict {
    verdicts.max().unwrap_or_default()
}

fn check(name: &str, verdict: Verdict, finding: impl Into<String>) -> Check {
    Check {
        name: name.to_owned(),
        verdict,
        finding: finding.into(),
    }
}

fn not_yet(over: bool) -> Verdict {
    if over {
        Verdict::Failed
    } else {
        Verdict::InProgress
    }
}

fn started(vm: &DrillVm, machine: &Machine, over: bool) -> Check {
    let name = "Started on the recovery host";
    match machine.rto.started_ms {
        Some(ms) => check(
            name,
            Verdict::Passed,
            format!("First instruction {} after the request.", seconds(ms)),
        ),
        None => check(
            name,
            not_yet(over),
            if vm.state == "Failed" {
                "The recovery host could not start it."
            } else {
                "No start was reported."
            },
        ),
    }
}

fn booted(vm: &DrillVm, machine: &Machine, over: bool) -> Check {
    let name = "Guest booted (console)";
    match machine.rto.booted_ms {
        Some(ms) => check(
            name,
            Verdict::Passed,
            format!(
                "First output on the console {} after the request.",
                seconds(ms)
            ),
        ),
        None => check(
            name,
            not_yet(over),
            vm.note
                .as_deref()
                .unwrap_or("The guest has written nothing to its console."),
        ),
    }
}

/// Only when a plan asked for it.
fn agent(vm: &DrillVm) -> Option<Check> {
    let name = "Guest agent answers";
    if let Some(time) = &vm.guest_agent_time {
        let finding = format!("First answer at {time}.");
        return Some(check(name, Verdict::Passed, finding));
    }
    let silent = "The guest agent did not answer within the time that the plan gives it.";
    vm.guest_agent_silent
        .then(|| check(name, Verdict::Failed, silent))
}

fn port(port: &DrillPort) -> Check {
    let name = format!("TCP port {} answers", port.port);
    match &port.answered_time {
        Some(time) => check(
            &name,
            Verdict::Passed,
            format!("It took a connection at {time}."),
        ),
        None => check(
            &name,
            Verdict::Failed,
            format!(
                "It took no connection within the time that the plan gives it: {}.",
                port.problem
            ),
        ),
    }
}

/// The bounds are those of an item's replication health: three intervals or a minute, ten intervals or five minutes.
fn rpo(machine: &Machine, choice: Choice) -> Check {
    let name = "Recovery point within the policy";
    let Some(age) = machine.point.age_ms else {
        return check(
            name,
            Verdict::NotChecked,
            "The age of the point is not recorded.",
        );
    };
    let aged = format!("The point was {} old at the request", seconds(age));
    if choice == Choice::Chosen {
        return check(
            name,
            Verdict::NotChecked,
            format!(
                "{aged}; it was chosen by the request, so its age says nothing of replication."
            ),
        );
    }
    let Some(every) = machine.policy_frequency_seconds else {
        return check(
            name,
            Verdict::NotChecked,
            format!("{aged}; the policy is not recorded."),
        );
    };
    let intervals = |count: i64, least: i64| (i64::from(every) * count).max(least) * 1_000;
    let (verdict, bound) = if age <= intervals(3, 60) {
        (Verdict::Passed, intervals(3, 60))
    } else if age <= intervals(10, 300) {
        (Verdict::PassedWithRemarks, intervals(3, 60))
    } else {
        (Verdict::Failed, intervals(10, 300))
    };
    let than = if verdict == Verdict::Passed {
        "at most"
    } else {
        "more than"
    };
    check(
        name,
        verdict,
        format!(
            "{aged}, {than} {} (policy: a point every {every} s).",
            seconds(bound)
        ),
    )
}

fn isolated(vm: &DrillVm) -> Check {
    let name = "Isolated from every network";
    if vm.network_connection_status == "NotConnected" {
        check(
            name,
            Verdict::Passed,
            if vm.private_network {
                "Its network adapters are in a private network of the recovery host, and reach nothing else."
            } else {
                "No network adapter of the VM is connected."
            },
        )
    } else {
        let network = if vm.network_friendly_name.is_empty() {
            "a network"
        } else {
            &vm.network_friendly_name
        };
        check(
            name,
            Verdict::PassedWithRemarks,
            format!("The VM is connected to {network}."),
        )
    }
}

fn seen(machine: &Machine) -> Check {
    let name = "Display looked at";
    match &machine.evidence {
        Some(seen) if !seen.screenshot_png.is_empty() => check(
            name,
            Verdict::Passed,
            format!(
                "Screenshot of {} × {} pixels below.",
                seen.width, seen.height
            ),
        ),
        Some(seen) if !seen.problem.is_empty() => check(
            name,
            Verdict::NotChecked,
            format!("No screenshot: {}.", seen.problem),
        ),
        _ => check(
            name,
            Verdict::NotChecked,
            "The recovery host has sent no screenshot.",
        ),
    }
}

/// A duration for people: `42 ms`, `4.2 s`, `3 min 5 s`, `2 h 10 min`.
pub fn seconds(ms: i64) -> String {
    let ms = ms.max(0);
    let whole = ms / 1_000;
    match whole {
        0 => format!("{ms} ms"),
        1..60 => format!("{}.{} s", whole, ms % 1_000 / 100),
        60..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        3_600..86_400 => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3_600),
    }
}
