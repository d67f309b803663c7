//! Reports are pure, whole, and proof against what guests and people write.

use arm_model::ArmError;
use arm_model::job::{DRILL_DETAILS, JobDetails, JobError, JobProperties, JobState};
use arm_model::test_failover::{DrillPort, DrillVm};
use base64::Engine as _;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::evidence::Kept;
use crate::saga::state::{Phase, fresh_task};
use crate::store::records::JobRecord;

const JOB: &str = "/subscriptions/s/resourceGroups/rg-dr/providers/Microsoft.RecoveryServices/vaults/vault-dr/replicationJobs/7f1c";

/// The beginning of a PNG file of 720 × 400 pixels.
fn picture() -> String {
    let mut png = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR".to_vec();
    png.extend(720_u32.to_be_bytes());
    png.extend(400_u32.to_be_bytes());
    base64::engine::general_purpose::STANDARD.encode(png)
}

fn vm(name: &str) -> DrillVm {
    let time = |text: &str| Some(format!("2031-03-04T05:06:{text}Z"));
    DrillVm {
        name: "c0ffee".to_owned(),
        friendly_name: name.to_owned(),
        test_vm_name: format!("id-of-{name}"),
        test_vm_friendly_name: format!("{name}-test"),
        network_connection_status: "NotConnected".to_owned(),
        recovery_point_id: "/items/c0ffee/recoveryPoints/p1".to_owned(),
        recovery_point_time: time("00"),
        group: 1,
        requested_time: time("07.5"),
        started_time: time("09.2"),
        first_output_time: time("10"),
        recovery_host: "hv2".to_owned(),
        state: "Booted".to_owned(),
        recovery_point_type: "CrashConsistent".to_owned(),
        policy_id: "/policies/pol-30s".to_owned(),
        replication_frequency_in_seconds: 30,
        engine_version: "0.1.0".to_owned(),
        ..DrillVm::default()
    }
}

fn job(vms: Vec<DrillVm>) -> JobRecord {
    let mut task = fresh_task("BootTestProtectedEntitiesTask", "Start the virtual machine");
    task.state = JobState::Succeeded;
    task.start_time = "2031-03-04T05:06:08Z".to_owned();
    task.end_time = "2031-03-04T05:06:10.25Z".to_owned();
    let details = JobDetails {
        instance_type: DRILL_DETAILS.to_owned(),
        test_failover_status: Some("Active".to_owned()),
        protected_item_details: Some(vms),
        ..JobDetails::default()
    };
    JobRecord {
        id: JOB.to_owned(),
        resource: "/plans/shop".to_owned(),
        removes: false,
        properties: JobProperties {
            friendly_name: "Test failover".to_owned(),
            target_object_name: "shop".to_owned(),
            target_instance_type: "RecoveryPlan".to_owned(),
            state: JobState::Succeeded,
            start_time: "2031-03-04T05:06:07.5Z".to_owned(),
            end_time: Some("2031-03-04T05:06:11.5Z".to_owned()),
            tasks: vec![task],
            custom_details: asked_by("auditor", details),
            ..JobProperties::default()
        },
        workflow: "testFailover".to_owned(),
        input: json!({ "point": null, "application_consistent": false }),
        memo: std::collections::BTreeMap::new(),
        node: 0,
        phase: Phase::Ended,
        failure: None,
        cancel: false,
        locks: Vec::new(),
        node_since_unix_ms: 0,
        created_unix_ms: 0,
    }
}

fn evidence(name: &str, console: &str) -> Kept {
    Kept {
        vm_id: format!("id-of-{name}"),
        taken_unix_ms: 1_930_367_175_000,
        screenshot: picture(),
        console: console.to_owned(),
        problem: String::new(),
    }
}

fn verdict_of(report: &Report, check: &str) -> Verdict {
    let checks = &report.virtual_machines[0].checks;
    let found = checks.iter().find(|known| known.name.starts_with(check));
    found.expect("check").verdict
}

#[test]
fn figures_are_those_of_the_job_and_the_parts_add_up() {
    let report = build(&job(vec![vm("web01")]), &[evidence("web01", "login:")]);
    let machine = &report.virtual_machines[0];
    assert_eq!(report.verdict, Verdict::Passed, "{report:#?}");
    assert_eq!(
        (machine.rto.started_ms, machine.rto.booted_ms),
        (Some(1_700), Some(2_500))
    );
    assert_eq!(machine.point.age_ms, Some(7_500));
    assert_eq!(
        (report.figures.worst_rto_ms, report.figures.worst_rpo_ms),
        (Some(2_500), Some(7_500))
    );
    assert_eq!(report.run.took_ms, Some(4_000));
    assert_eq!(report.steps[0].took_ms, Some(2_250));
    assert_eq!(report.run.requested_by, "auditor");
    assert_eq!(report.run.orchestrator_version, env!("CARGO_PKG_VERSION"));
    assert!(report.network.isolated);
    let seen = machine.evidence.as_ref().expect("evidence");
    assert_eq!((seen.width, seen.height), (720, 400));
    assert_eq!(report.cleanup.expect("a drill").state, "Pending");
}

#[test]
fn answers_of_guests_that_a_plan_asked_for_are_checks_and_silence_fails_the_drill() {
    let port = |port, problem: &str| DrillPort {
        port,
        answered_time: problem
            .is_empty()
            .then(|| "2031-03-04T05:06:11Z".to_owned()),
        problem: problem.to_owned(),
    };
    let mut asked = DrillVm {
        private_network: true,
        guest_agent_time: Some("2031-03-04T05:06:11Z".to_owned()),
        ports: vec![port(22, ""), port(443, "")],
        ..vm("web01")
    };
    let report = build(&job(vec![asked.clone()]), &[]);
    assert_eq!(report.verdict, Verdict::Passed, "{report:#?}");
    for check in ["Guest agent", "TCP port 22 ", "TCP port 443 ", "Isolated"] {
        assert_eq!(verdict_of(&report, check), Verdict::Passed, "{check}");
    }
    assert!(report.network.isolated && report.network.statement.contains("only one another"));
    asked.ports[1] = port(443, "the guest refuses connections");
    (asked.guest_agent_time, asked.guest_agent_silent) = (None, true);
    let report = build(&job(vec![asked]), &[]);
    assert_eq!(report.verdict, Verdict::Failed);
    assert_eq!(verdict_of(&report, "Guest agent"), Verdict::Failed);
    assert_eq!(verdict_of(&report, "TCP port 22 "), Verdict::Passed);
    assert_eq!(verdict_of(&report, "TCP port 443 "), Verdict::Failed);
    let unasked = build(&job(vec![vm("web01")]), &[]);
    let checks = &unasked.virtual_machines[0].checks;
    assert!(checks.iter().all(|check| !check.name.contains("port")));
}

#[test]
fn a_vm_that_never_booted_fails_the_drill_and_one_that_still_may_does_not() {
    let silent = DrillVm {
        first_output_time: None,
        ..vm("web01")
    };
    let mut job = job(vec![silent, vm("db01")]);
    let report = build(&job, &[]);
    assert_eq!(
        (report.verdict, report.figures.booted),
        (Verdict::Failed, 1)
    );
    job.properties.state = JobState::InProgress;
    assert_eq!(build(&job, &[]).verdict, Verdict::InProgress);
    job.properties.state = JobState::Cancelled;
    assert_eq!(build(&job, &[]).verdict, Verdict::Cancelled);
}

#[test]
fn the_age_of_the_newest_point_is_held_against_the_policy_and_that_of_a_chosen_one_is_not() {
    let aged = |seconds: i64| {
        let time = time::OffsetDateTime::from_unix_timestamp(1_930_367_167 - seconds);
        DrillVm {
            requested_time: Some("2031-03-04T05:06:07Z".to_owned()),
            recovery_point_time: time.ok().map(arm_model::timestamp::format),
            ..vm("web01")
        }
    };
    for (seconds, expected) in [
        (90, Verdict::Passed),
        (91, Verdict::PassedWithRemarks),
        (300, Verdict::PassedWithRemarks),
        (301, Verdict::Failed),
    ] {
        let report = build(&job(vec![aged(seconds)]), &[]);
        assert_eq!(
            verdict_of(&report, "Recovery point"),
            expected,
            "{seconds} s"
        );
    }
    let mut chosen = job(vec![aged(9_000)]);
    chosen.input["point"] = json!("p1");
    let report = build(&chosen, &[]);
    assert_eq!(verdict_of(&report, "Recovery point"), Verdict::NotChecked);
    assert_eq!(report.verdict, Verdict::Passed);
}

#[test]
fn a_problem_is_told_once_with_cause_and_next_step() {
    let mut job = job(vec![vm("web01")]);
    let error = ArmError::new("NoHost", "No host is there.").advise("It is off.", "Start it.");
    let error = JobError::from_arm(&error, "t", "2031-03-04T05:06:07Z", "a");
    job.properties.errors = vec![error.clone()];
    job.properties.tasks[0].errors = vec![error];
    job.properties.state = JobState::Failed;
    let report = build(&job, &[]);
    assert_eq!(report.verdict, Verdict::Failed);
    assert_eq!(report.problems.len(), 1);
    assert_eq!(report.problems[0].action, "Start it.");
    assert_eq!(report.cleanup.expect("a drill").state, "TakenBack");
}

#[test]
fn the_same_job_gives_the_same_bytes_and_any_change_another_digest() {
    let (one, kept) = (job(vec![vm("web01")]), [evidence("web01", "login:")]);
    assert_eq!(document(&build(&one, &kept)), document(&build(&one, &kept)));
    let other = job(vec![DrillVm {
        first_output_time: Some("2031-03-04T05:06:10.001Z".to_owned()),
        ..vm("web01")
    }]);
    assert_ne!(digest(&build(&one, &kept)), digest(&build(&other, &kept)));
    // An archived document is proven by its member alone.
    let document = document(&build(&one, &kept));
    let bytes = serde_json::to_vec(&document["report"]).expect("JSON");
    assert_eq!(document["sha256"], hex(&Sha256::digest(bytes)));
}

#[test]
fn hostile_names_and_consoles_stay_text() {
    let attack = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>\u{202e}\u{7}&amp;";
    let mut job = job(vec![DrillVm {
        test_vm_friendly_name: attack.to_owned(),
        test_vm_name: "id-of-web01".to_owned(),
        recovery_host: attack.to_owned(),
        policy_id: attack.to_owned(),
        note: Some(attack.to_owned()),
        ..vm(attack)
    }]);
    job.properties.target_object_name = attack.to_owned();
    job.properties.custom_details.comments = Some(attack.to_owned());
    let kept = Kept {
        problem: attack.to_owned(),
        ..evidence("web01", &format!("</pre>{attack}"))
    };
    let page = html::render(&build(&job, &[kept]));
    assert!(
        !page.contains("<script") && !page.contains("<img src=x") && !page.contains("</pre>\"")
    );
    assert!(!page.contains('\u{202e}') && !page.contains('\u{7}'));
    assert!(page.contains("&quot;&#39;&gt;&lt;script&gt;"));
    assert!(
        page.contains("&amp;amp;"),
        "what was escaped before is shown as it was"
    );
}

#[test]
fn the_page_runs_nothing_and_loads_nothing() {
    let page = html::render(&build(
        &job(vec![vm("web01")]),
        &[evidence("web01", "login:")],
    ));
    for needless in [
        "<script",
        "http:",
        "https:",
        "javascript:",
        "@import",
        "url(",
        "<link",
        "<iframe",
    ] {
        assert_eq!(page.find(needless), None, "{needless}");
    }
    assert!(page.contains(html::POLICY) && page.contains("data:image/png;base64,"));
    assert!(
        page.contains("<html lang=\"en\">") && page.contains("alt=\"Screenshot of web01-test\"")
    );
}

proptest! {
    #[test]
    fn whatever_a_console_holds_the_page_has_the_same_markup(console in ".{0,400}", name in ".{1,40}") {
        let tags = |page: &str| page.matches('<').count();
        let plain = build(&job(vec![vm("web01")]), &[evidence("web01", "x")]);
        let odd_job = job(vec![DrillVm { test_vm_name: "id-of-web01".to_owned(), ..vm(&name) }]);
        let odd = build(&odd_job, &[evidence("web01", &format!("x{console}"))]);
        prop_assert_eq!(tags(&html::render(&odd)), tags(&html::render(&plain)));
        let delete = serde_json::to_string(&odd).expect("JSON").contains('\u{7f}');
        prop_assert!(!delete);
    }
}
