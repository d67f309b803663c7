//! From a job and its evidence to a report.

use arm_model::job::{DRILL_DETAILS, JobDetails, JobError, JobState, Task};
use arm_model::test_failover::DrillVm;
use arm_model::{ArmId, VaultId, timestamp};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::check::{self, Choice, seconds};
use super::{
    Cleanup, Course, FORM, Figures, Machine, Network, Point, Problem, Report, Rto, Seen, Step,
    Subject, Verdict,
};
use crate::evidence::Kept;
use crate::store::records::JobRecord;

/// Makes the report.
#[must_use]
pub fn build(job: &JobRecord, evidence: &[Kept]) -> Report {
    let properties = &job.properties;
    let details = &properties.custom_details;
    let vms = details
        .protected_item_details
        .as_deref()
        .unwrap_or_default();
    let over = properties.state.is_final();
    let choice = choice(job);
    let machines: Vec<Machine> = vms
        .iter()
        .map(|vm| machine(vm, evidence, over, choice))
        .collect();
    let verdict = match properties.state {
        JobState::Succeeded if machines.is_empty() => Verdict::NotChecked,
        JobState::Succeeded => check::worst(machines.iter().map(|machine| machine.verdict)),
        JobState::Failed => Verdict::Failed,
        JobState::Cancelled => Verdict::Cancelled,
        _ => Verdict::InProgress,
    };
    let figures = figures(&machines);
    let is_drill = details.instance_type == DRILL_DETAILS;
    let report = Report {
        form: FORM,
        title: format!(
            "{} of {}",
            properties.friendly_name, properties.target_object_name
        ),
        verdict,
        summary: summary(verdict, &figures, is_drill),
        subject: Subject {
            kind: if properties.target_instance_type == "RecoveryPlan" {
                "Recovery plan".to_owned()
            } else {
                "Virtual machine".to_owned()
            },
            name: properties.target_object_name.clone(),
            id: job.resource.clone(),
            vault: ArmId::parse(&job.id)
                .ok()
                .and_then(|id| VaultId::of(&id))
                .map(|vault| vault.name().to_owned())
                .unwrap_or_default(),
        },
        run: course(job),
        figures,
        network: network(job, vms),
        virtual_machines: machines,
        steps: properties.tasks.iter().map(step).collect(),
        problems: problems(job),
        cleanup: is_drill.then(|| cleanup(job)),
    };
    cleaned(&report)
}

/// Notes who asks for a job, and which release of the orchestrator begins it.
#[must_use]
pub fn asked_by(client: &str, mut details: JobDetails) -> JobDetails {
    let version = env!("CARGO_PKG_VERSION");
    for (name, value) in [("requestedBy", client), ("orchestratorVersion", version)] {
        details.extra.insert(name.to_owned(), value.into());
    }
    details
}

fn extra(job: &JobRecord, pointer: &str) -> String {
    let mut parts = pointer.split('/');
    let first = parts.next().unwrap_or_default();
    let mut value = job.properties.custom_details.extra.get(first);
    for part in parts {
        value = value.and_then(|value| value.get(part));
    }
    value.and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Only a drill of the newest points measures what would be lost.
fn choice(job: &JobRecord) -> Choice {
    let asked = |name: &str| job.input.get(name).is_some_and(|value| !value.is_null());
    let consistent = job.input.get("application_consistent") == Some(&Value::Bool(true));
    let is_drill = job.properties.custom_details.instance_type == DRILL_DETAILS;
    if is_drill && !asked("point") && !consistent {
        Choice::Newest
    } else {
        Choice::Chosen
    }
}

fn course(job: &JobRecord) -> Course {
    let properties = &job.properties;
    let requested = instant(&properties.start_time);
    let ended = properties.end_time.as_deref().and_then(instant);
    Course {
        job: job.id.clone(),
        operation: properties.friendly_name.clone(),
        state: properties.state.as_str().to_owned(),
        requested_by: extra(job, "requestedBy"),
        activity: properties.activity_id.clone(),
        took_ms: between(requested.as_deref(), ended.as_deref()),
        requested,
        ended,
        orchestrator_version: extra(job, "orchestratorVersion"),
    }
}

/// A time as the API writes it, if it is one.
fn instant(text: &str) -> Option<String> {
    timestamp::parse(text).map(timestamp::format)
}

fn between(from: Option<&str>, to: Option<&str>) -> Option<i64> {
    let at = |text: Option<&str>| text.and_then(timestamp::to_unix_ms);
    Some(at(to)?.saturating_sub(at(from)?).max(0))
}

fn machine(vm: &DrillVm, evidence: &[Kept], over: bool, choice: Choice) -> Machine {
    let requested = vm.requested_time.as_deref();
    let item = vm.recovery_point_id.split("/recoveryPoints/").next();
    let mut machine = Machine {
        name: vm.friendly_name.clone(),
        item: item.unwrap_or_default().to_owned(),
        recovered_name: vm.test_vm_friendly_name.clone(),
        recovered_id: vm.test_vm_name.clone(),
        group: vm.group,
        host: vm.recovery_host.clone(),
        engine_version: vm.engine_version.clone(),
        policy: vm
            .policy_id
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned(),
        policy_frequency_seconds: Some(vm.replication_frequency_in_seconds)
            .filter(|every| *every > 0),
        point: Point {
            id: vm.recovery_point_id.clone(),
            kind: vm.recovery_point_type.clone(),
            time: vm.recovery_point_time.clone(),
            age_ms: between(vm.recovery_point_time.as_deref(), requested),
        },
        rto: Rto {
            started_ms: between(requested, vm.started_time.as_deref()),
            booted_ms: between(requested, vm.first_output_time.as_deref()),
        },
        evidence: evidence
            .iter()
            .find(|kept| kept.vm_id.eq_ignore_ascii_case(&vm.test_vm_name))
            .map(seen),
        ..Machine::default()
    };
    machine.checks = check::checks(vm, &machine, over, choice);
    machine.verdict = check::worst(machine.checks.iter().map(|check| check.verdict));
    machine
}

fn seen(kept: &Kept) -> Seen {
    let (width, height) = pixels(&kept.screenshot).unwrap_or_default();
    Seen {
        time: timestamp::from_unix_ms(kept.taken_unix_ms),
        // Without a size it is no picture that anybody could look at.
        screenshot_png: if width > 0 && height > 0 {
            kept.screenshot.clone()
        } else {
            String::new()
        },
        width,
        height,
        console: kept.console.clone(),
        problem: kept.problem.clone(),
    }
}

/// Width and height out of a PNG file's first chunk.
fn pixels(base64: &str) -> Option<(u32, u32)> {
    let png = STANDARD.decode(base64).ok()?;
    let number = |at: usize| {
        let bytes = png.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    Some((number(16)?, number(20)?))
}

fn figures(machines: &[Machine]) -> Figures {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let booted = machines.iter().filter(|vm| vm.rto.booted_ms.is_some());
    Figures {
        machines: count(machines.len()),
        booted: count(booted.count()),
        worst_rto_ms: machines.iter().filter_map(|vm| vm.rto.booted_ms).max(),
        worst_rpo_ms: machines.iter().filter_map(|vm| vm.point.age_ms).max(),
    }
}

fn summary(verdict: Verdict, figures: &Figures, is_drill: bool) -> String {
    let what = if is_drill { "drill" } else { "failover" };
    let vms = match figures.machines {
        1 => "the virtual machine".to_owned(),
        count => format!("all {count} virtual machines"),
    };
    match verdict {
        Verdict::Passed | Verdict::PassedWithRemarks => {
            let rest = if verdict == Verdict::Passed {
                "every check passed"
            } else {
                "some checks passed with a remark"
            };
            let time = figures.worst_rto_ms.map_or_else(String::new, |ms| {
                format!(" {} after the request", seconds(ms))
            });
            format!("The {what} recovered {vms}{time}; {rest}.")
        }
        Verdict::Failed => format!(
            "The {what} did not prove recovery: {} of {} virtual machines have booted, and what went wrong is named below.",
            figures.booted, figures.machines
        ),
        Verdict::Cancelled => {
            format!("The {what} was cancelled before it was over; it proves nothing.")
        }
        Verdict::InProgress => {
            format!("The {what} is not over yet; this report is not final.")
        }
        Verdict::NotChecked => format!("The {what} tells of no virtual machine."),
    }
}

fn network(job: &JobRecord, vms: &[DrillVm]) -> Network {
    let details = &job.properties.custom_details;
    let isolated = vms
        .iter()
        .all(|vm| vm.network_connection_status == "NotConnected");
    let asked_for = details.network_name.clone().unwrap_or_default();
    let among_themselves = vms.iter().any(|vm| vm.private_network);
    let statement = match (isolated, asked_for.is_empty()) {
        (true, true) if among_themselves => "The recovered virtual machines reached only one another, through private networks of their recovery host: none of \
                         them could reach production, and nobody could reach them."
            .to_owned(),
        (true, true) => "No network adapter of any recovered virtual machine was connected: none of them could reach \
                         production, and nobody could reach them."
            .to_owned(),
        (true, false) => format!(
            "The network {asked_for} was asked for, but no network adapter was connected: the recovered virtual machines were isolated from every network."
        ),
        (false, _) => {
            "At least one recovered virtual machine was connected to a network; see the checks of each.".to_owned()
        }
    };
    Network {
        isolated,
        asked_for,
        statement,
    }
}

fn step(task: &Task) -> Step {
    let (started, ended) = (instant(&task.start_time), instant(&task.end_time));
    let children = task.group_task_custom_details.as_ref();
    Step {
        name: task.friendly_name.clone(),
        state: task.state.as_str().to_owned(),
        took_ms: between(started.as_deref(), ended.as_deref()),
        started,
        ended,
        steps: children
            .map(|group| group.child_tasks.iter().map(step).collect())
            .unwrap_or_default(),
    }
}

fn problems(job: &JobRecord) -> Vec<Problem> {
    fn of_tasks<'a>(tasks: &'a [Task], found: &mut Vec<&'a JobError>) {
        for task in tasks {
            found.extend(&task.errors);
            if let Some(group) = &task.group_task_custom_details {
                of_tasks(&group.child_tasks, found);
            }
        }
    }
    let mut errors: Vec<&JobError> = job.properties.errors.iter().collect();
    of_tasks(&job.properties.tasks, &mut errors);
    let mut problems = Vec::new();
    for error in errors {
        let service = &error.service_error_details;
        let problem = Problem {
            code: service.code.clone(),
            message: service.message.clone(),
            causes: service.possible_causes.clone(),
            action: service.recommended_action.clone(),
        };
        // A task's error is told by its job again.
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }
    problems
}

fn cleanup(job: &JobRecord) -> Cleanup {
    let details = &job.properties.custom_details;
    let state = match details.test_failover_status.as_deref() {
        Some("Completed") => "Done",
        Some("Failed" | "Cancelled") => "TakenBack",
        _ if matches!(job.properties.state, JobState::Failed | JobState::Cancelled) => "TakenBack",
        _ => "Pending",
    };
    let time = extra(job, "cleanup/time");
    Cleanup {
        state: state.to_owned(),
        time: instant(&time).or_else(|| {
            let end = job.properties.end_time.as_deref();
            end.filter(|_| state == "TakenBack").and_then(instant)
        }),
        requested_by: extra(job, "cleanup/requestedBy"),
        job: extra(job, "cleanup/job"),
        notes: details.comments.clone().unwrap_or_default(),
    }
}

/// Without control characters, and without marks that turn the direction of text: names come from guests, hosts and people.
fn cleaned(report: &Report) -> Report {
    let mut value = serde_json::to_value(report).unwrap_or_default();
    clean(&mut value);
    serde_json::from_value(value).unwrap_or_default()
}

fn clean(value: &mut Value) {
    match value {
        Value::String(text) => {
            let odd = |character: char| {
                (character.is_control() && character != '\n')
                    || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            };
            if text.contains(odd) {
                *text = text.replace(odd, "");
            }
        }
        Value::Array(list) => list.iter_mut().for_each(clean),
        Value::Object(map) => map.values_mut().for_each(clean),
        _ => {}
    }
}
