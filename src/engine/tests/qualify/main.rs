//! `qualify` of the hyperv driver on its double: every assumption that the double can break is broken on purpose, and exactly
//! that line says so.

#[allow(dead_code, reason = "of the double's tests some things are used")]
#[path = "../../../hypervisor/tests/hyperv_double/mod.rs"]
mod hyperv_double;

mod host;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use engine::qualify::assumptions::{self, Kind, Step};
use engine::qualify::report::Report;
use engine::qualify::{Verdict, Wish, clean_up, conduct};
use host::{Broken, DoubleGuest, Host1};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

struct Qualified {
    host: Arc<Host1>,
    folder: tempfile::TempDir,
    report: Report,
}

async fn qualify(broken: Broken) -> Qualified {
    let host = Host1::new(broken);
    host.double.running_vm("web", 1, "vhdx", "9.0");
    let folder = tempfile::tempdir().unwrap();
    let guest = DoubleGuest {
        host: host.clone(),
        count: AtomicU32::new(0),
    };
    // Long where an answer comes, short where none does.
    let silent = [Broken::ChangesMissed, Broken::GuestAsleepAfterFailback];
    let patience = if silent.contains(&broken) { 1 } else { 60 };
    let wish = Wish {
        kind: Kind::Hyperv,
        folder: folder.path().to_owned(),
        patience: Duration::from_secs(patience),
        stop: CancellationToken::new(),
    };
    let opened = host.clone();
    let told = |step: &str| step.clone_into(&mut host.step.lock().unwrap());
    let report = conduct(&wish, &|_| opened.open(), &guest, &told)
        .await
        .unwrap();
    Qualified {
        host: host.clone(),
        folder,
        report,
    }
}

impl Qualified {
    fn broken(&self) -> Vec<&'static str> {
        let all = self.report.lines.iter();
        all.filter(|(_, outcome)| matches!(outcome.verdict, Verdict::Broken(_)))
            .map(|(line, _)| line.id)
            .collect()
    }

    fn verdict(&self, id: &str) -> &Verdict {
        let found = self.report.lines.iter().find(|(line, _)| line.id == id);
        &found.unwrap().1.verdict
    }

    /// Of all that was made nothing is left, and the host's own VM is as it was.
    fn left_nothing(&self) {
        assert_eq!(self.report.left, None);
        assert_eq!(self.host.machines(), ["web"]);
        assert_eq!(std::fs::read_dir(self.folder.path()).unwrap().count(), 0);
        let points = self.host.double.count("Msvm_VirtualSystemReferencePoint");
        assert_eq!(points, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_sound_host_every_line_that_can_be_tried_holds_and_nothing_is_left() {
    let all = qualify(Broken::Nothing).await;
    assert_eq!(all.broken(), [""; 0], "{}", all.report.text());
    for (line, outcome) in &all.report.lines {
        let expected = line.untried.is_none();
        assert_eq!(outcome.verdict == Verdict::Holds, expected, "{}", line.id);
        assert!(expected || matches!(outcome.verdict, Verdict::NotTried(_)));
    }
    assert_eq!(
        all.report.lines.len(),
        assumptions::of(Kind::Hyperv).count()
    );
    assert!(all.report.holds());
    all.left_nothing();
    // Nothing of the host's own is in what may be sent.
    for text in [all.report.text(), all.report.json().to_string()] {
        for private in [
            "hv1",
            "corp.example",
            "web",
            all.folder.path().to_str().unwrap(),
        ] {
            assert!(!text.contains(private), "{private} in {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_assumption_that_is_broken_is_the_line_that_says_so_and_nothing_is_left() {
    let cases = [
        (Broken::Listing, "host-answers"),
        (Broken::Denied, "hyperv-rights"),
        (Broken::Cluster, "hyperv-cluster"),
        (Broken::Events, "hyperv-events"),
        (Broken::Method("DefineSystem", 0, 1), "hyperv-define"),
        (
            Broken::Method("AddResourceSettings", 0, 1),
            "hyperv-resources",
        ),
        (
            Broken::Method("AddResourceSettings", 2, 1),
            "hyperv-resources",
        ),
        (
            Broken::Method("ModifyResourceSettings", 0, 1),
            "hyperv-quantities",
        ),
        (Broken::Method("ModifySystemSettings", 0, 1), "hyperv-notes"),
        (Broken::State(2), "hyperv-start"),
        (Broken::Method("CreateSnapshot", 0, 1), "hyperv-checkpoint"),
        (
            Broken::Method("ModifySystemSettings", 1, 1),
            "hyperv-checkpoint-name",
        ),
        (Broken::Open, "hyperv-open-parent"),
        (Broken::Attach, "hyperv-attach-parent"),
        (Broken::ReadsMovingBytes, "frozen-still"),
        (
            Broken::Method("ConvertToReferencePoint", 0, 1),
            "hyperv-convert",
        ),
        (Broken::Changes, "hyperv-changes"),
        (Broken::RctIds, "hyperv-rct-ids"),
        (Broken::ChangesMissed, "track"),
        (Broken::ChangesLost, "track-complete"),
        (Broken::ChangesElsewhere, "track-complete"),
        (
            Broken::Method("DestroyReferencePoint", 0, 1),
            "hyperv-destroy-reference-point",
        ),
        (Broken::AnswersForAGuestThatCanNot, "application-honest"),
        (Broken::ShutsDownWhatCanNot, "shut-down-honest"),
        (Broken::State(3), "hyperv-turn-off"),
        (
            Broken::Method("CreateReferencePoint", 0, 1),
            "hyperv-reference-point-off",
        ),
        (Broken::ReadsOtherBytes, "freeze-off-equal"),
        (Broken::Method("DestroySystem", 0, 1), "hyperv-destroy"),
        (Broken::GuestAsleepAfterFailback, "fail-back-runs"),
    ];
    let mut wrong = Vec::new();
    for (broken, line) in cases {
        let all = qualify(broken).await;
        if all.broken() != [line] {
            wrong.push(format!(
                "{broken:?}: {:?}, not {line}\n{}",
                all.broken(),
                all.report.text()
            ));
            continue;
        }
        assert!(!all.report.holds());
        all.left_nothing();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_broken_for_good_is_one_line_and_keeps_neither_the_vm_nor_the_next_run() {
    for (method, line) in [
        ("DestroyReferencePoint", "hyperv-destroy-reference-point"),
        ("CreateSnapshot", "hyperv-checkpoint"),
    ] {
        let all = qualify(Broken::Method(method, 0, u32::MAX)).await;
        assert_eq!(all.broken(), [line], "{}", all.report.text());
        assert_eq!(all.report.left, None, "{method}");
        assert_eq!(all.host.machines(), ["web"], "{method}");
        let left = std::fs::read_dir(all.folder.path()).unwrap().count();
        assert_eq!(left, 0, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_names_a_path_in_place_of_a_run_deletes_nothing() {
    let host = Host1::new(Broken::Nothing);
    let folder = tempfile::tempdir().unwrap();
    let (place, kept) = (
        folder.path().join("siterecovery-qualify"),
        folder.path().join("kept"),
    );
    std::fs::create_dir(&place).unwrap();
    std::fs::create_dir(&kept).unwrap();
    for run in [
        "../kept",
        kept.to_str().unwrap(),
        "",
        "0A1B2C3D",
        "0a1b2c3d/",
    ] {
        let record = serde_json::json!({
            "version": 1, "run": run, "driver": "hyperv", "source": Uuid::new_v4(), "back": Uuid::new_v4(),
        });
        std::fs::write(place.join("record.json"), record.to_string()).unwrap();
        let error = clean_up(folder.path(), &|_| host.open()).await.unwrap_err();
        assert!(
            format!("{error:#}").contains("no name of a run"),
            "{error:#}"
        );
        assert!(kept.exists() && place.join("record.json").exists(), "{run}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_there_under_another_id_keeps_its_disks() {
    let host = Host1::new(Broken::Nothing);
    host.double
        .running_vm("siterecovery-qualify-0a1b2c3d-source", 1, "vhdx", "9.0");
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("siterecovery-qualify");
    let disks = place.join("0a1b2c3d/vms/source");
    std::fs::create_dir_all(&disks).unwrap();
    let record = serde_json::json!({
        "version": 1, "run": "0a1b2c3d", "driver": "hyperv", "source": Uuid::new_v4(), "back": Uuid::new_v4(),
    });
    std::fs::write(place.join("record.json"), record.to_string()).unwrap();
    let error = clean_up(folder.path(), &|_| host.open()).await.unwrap_err();
    assert!(
        format!("{error:#}").contains("under another id"),
        "{error:#}"
    );
    assert!(disks.exists() && place.join("record.json").exists());
    // Nor does one that this account isn't shown.
    let other = Host1::new(Broken::Nothing);
    std::fs::write(disks.join("7.VMCX"), "").unwrap();
    let error = clean_up(folder.path(), &|_| other.open())
        .await
        .unwrap_err();
    assert!(format!("{error:#}").contains("not listed"), "{error:#}");
    assert!(disks.exists() && place.join("record.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_depends_on_a_broken_line_says_so_and_the_rest_is_tried() {
    let all = qualify(Broken::Changes).await;
    let because = Verdict::NotTried("because of hyperv-changes".to_owned());
    for id in ["track", "hyperv-rct-ids", "track-complete", "forget"] {
        assert_eq!(*all.verdict(id), because, "{id}");
    }
    for id in [
        "abandon-clean-up",
        "protect-equal",
        "fail-back-runs",
        "remove",
    ] {
        assert_eq!(*all.verdict(id), Verdict::Holds, "{id}");
    }
    let text = all.report.text();
    assert!(
        text.contains("ask for changes since x: device error"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_dies_at_any_step_is_cleaned_up_by_the_next_and_others_are_not_touched() {
    let steps: BTreeSet<Step> = Step::ALL
        .into_iter()
        .filter(|one| *one != Step::Elsewhere)
        .collect();
    for death in steps {
        let host = Host1::new(Broken::Nothing);
        host.double.running_vm("web", 1, "vhdx", "9.0");
        let folder = tempfile::tempdir().unwrap();
        let guest = DoubleGuest {
            host: host.clone(),
            count: AtomicU32::new(0),
        };
        let wish = Wish {
            kind: Kind::Hyperv,
            folder: folder.path().to_owned(),
            patience: Duration::from_secs(60),
            stop: CancellationToken::new(),
        };
        let opened = host.clone();
        let told = |step: &str| {
            if step == death.name() {
                // From the fifth call of this step on nothing of the dead process reaches the host.
                host.double.state().faults.dies_at = Some(5);
            }
        };
        let report = conduct(&wish, &|_| opened.open(), &guest, &told)
            .await
            .unwrap();
        assert!(
            report.left.is_some(),
            "{death:?}: it died before it could clean up"
        );
        host.double.state().faults.dies_at = None;
        let found = clean_up(folder.path(), &|_| host.open()).await.unwrap();
        assert!(found.is_some(), "{death:?}");
        assert_eq!(host.machines(), ["web"], "{death:?}");
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "{death:?}"
        );
        assert_eq!(
            host.double.count("Msvm_VirtualSystemReferencePoint"),
            0,
            "{death:?}"
        );
        assert_eq!(
            clean_up(folder.path(), &|_| host.open()).await.unwrap(),
            None
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_virtual_machine_of_another_name_is_not_touched_although_the_record_names_its_id() {
    let host = Host1::new(Broken::Nothing);
    let web = host.double.running_vm("web", 1, "vhdx", "9.0");
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("siterecovery-qualify");
    std::fs::create_dir(&place).unwrap();
    let record = serde_json::json!({
        "version": 1, "run": "0a1b2c3d", "driver": "hyperv", "source": web.0, "back": Uuid::new_v4(),
    });
    std::fs::write(place.join("record.json"), record.to_string()).unwrap();
    let error = clean_up(folder.path(), &|_| host.open()).await.unwrap_err();
    assert!(format!("{error:#}").contains("is not touched"), "{error:#}");
    assert_eq!(host.machines(), ["web"]);
}
