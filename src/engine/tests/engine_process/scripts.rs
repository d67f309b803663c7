//! Scripts of recovery plans on a real engine: success, failure, limit, death of the engine, paths that leave the folder.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use engine_protocol::v1::script_status::Outcome;
use engine_protocol::v1::{ScriptOrder, ScriptStatus};

use crate::lab::Lab;

fn script(lab: &Lab, name: &str, text: &str) {
    let file = lab.folder.path().join("scripts").join(name);
    std::fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn order(id: &str, path: &str) -> ScriptOrder {
    ScriptOrder {
        id: id.to_owned(),
        path: path.to_owned(),
        context_json: "{\"RecoveryPlanName\":\"shop\"}".to_owned(),
        timeout_seconds: 100,
        repeatable: false,
    }
}

async fn end(lab: &Lab, id: &str) -> ScriptStatus {
    let is_over = |status: &ScriptStatus| status.id == id && status.outcome() != Outcome::Running;
    let report = lab
        .report(id, |report| report.scripts.iter().any(is_over))
        .await;
    report.scripts.into_iter().find(|one| one.id == id).unwrap()
}

async fn line(path: &Path) -> String {
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return text,
            _ => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}

async fn has_ended(process: &str) {
    let stat = format!("/proc/{}/stat", process.trim());
    while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_engine_runs_scripts_once_and_is_honest_about_those_that_it_did_not_see_end() {
    let lab = Lab::new().await;
    let path = |name: &str| lab.folder.path().join(name);
    std::fs::create_dir(path("scripts")).unwrap();
    script(&lab, "ok.sh", "cat");
    script(&lab, "bad.sh", "echo broken >&2; exit 7");
    let (child, slow) = (path("child"), path("slow"));
    let text = format!("sleep 1000 & echo $! > {}; wait", child.display());
    script(&lab, "long.sh", &text);
    let text = format!("echo $$ >> {}; exec sleep 1000", slow.display());
    script(&lab, "slow.sh", &text);

    // Nothing runs on a host whose administrator has named no folder.
    lab.with_config("start").await;
    lab.want(|state| state.scripts = vec![order("none", "ok.sh")]);
    let status = end(&lab, "none").await;
    assert_eq!(status.outcome(), Outcome::Refused);
    assert!(status.reason.contains("scripts_folder"), "{status:?}");

    lab.with_config("stop").await;
    let mut config = std::fs::read_to_string(&lab.config).unwrap();
    config.push_str(&format!("scripts_folder = {:?}\n", path("scripts")));
    std::fs::write(&lab.config, config).unwrap();
    lab.with_config("start").await;

    lab.want(|state| {
        state.scripts = vec![
            order("ok", "ok.sh"),
            order("bad", "bad.sh"),
            order("outside", "../scripts/ok.sh"),
            ScriptOrder {
                timeout_seconds: 2,
                ..order("long", "long.sh")
            },
        ];
    });
    let ok = end(&lab, "ok").await;
    assert_eq!((ok.outcome(), ok.exit_code), (Outcome::Exited, 0));
    assert!(ok.output.contains("\"RecoveryPlanName\":\"shop\""));
    let bad = end(&lab, "bad").await;
    assert_eq!((bad.outcome(), bad.exit_code), (Outcome::Exited, 7));
    assert_eq!(bad.output, "broken\n");
    assert_eq!(end(&lab, "outside").await.outcome(), Outcome::Refused);
    let sleeper = line(&child).await;
    assert_eq!(end(&lab, "long").await.outcome(), Outcome::TimedOut);
    has_ended(&sleeper).await;

    // The engine dies in the middle: the script is not left running, not run again, and told as what it is.
    lab.want(|state| state.scripts = vec![order("slow", "slow.sh")]);
    let process = line(&slow).await;
    lab.kill_engine().await;
    lab.with_config("start").await;
    assert_eq!(end(&lab, "slow").await.outcome(), Outcome::Unknown);
    has_ended(&process).await;
    assert_eq!(line(&slow).await, process);

    // One that may be repeated is.
    std::fs::remove_file(&slow).unwrap();
    lab.want(|state| {
        state.scripts = vec![ScriptOrder {
            repeatable: true,
            ..order("slow", "slow.sh")
        }];
    });
    let again = line(&slow).await;
    assert_ne!(again, process);
    // An order that is withdrawn ends.
    lab.want(|state| state.scripts.clear());
    has_ended(&again).await;
    lab.report("nothing is listed", |report| report.scripts.is_empty())
        .await;

    let log = std::fs::read_to_string(path("data/engine.log")).unwrap();
    assert!(!log.contains("broken") && !log.contains("RecoveryPlanName"));
}
