//! Scripts that really run: success, failure, limit, withdrawal, death of whoever watched.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use plan_script::{MOST_OUTPUT, Order, Outcome, Scripts, Status};

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("scripts")).unwrap();
        Self { folder }
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.folder.path().join("scripts").join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn open(&self) -> Arc<Scripts> {
        let path = self.folder.path();
        Scripts::open(Some(path.join("scripts")), path.join("notes")).unwrap()
    }
}

fn order(id: &str, path: &str) -> Order {
    Order {
        id: id.to_owned(),
        path: path.to_owned(),
        context: "{\"RecoveryPlanName\":\"p\"}".to_owned(),
        limit: Duration::from_secs(60),
        repeatable: false,
    }
}

async fn end(scripts: &Scripts, id: &str) -> Status {
    let mut changes = scripts.watch();
    loop {
        changes.mark_unchanged();
        match scripts.status(id) {
            Some(status) if status.outcome != Outcome::Running => return status,
            _ => changes.changed().await.unwrap(),
        }
    }
}

async fn file(path: &Path) -> String {
    let written = async {
        loop {
            match std::fs::read_to_string(path) {
                Ok(text) if text.ends_with('\n') => return text,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let written = tokio::time::timeout(Duration::from_secs(60), written).await;
    written.unwrap_or_else(|_| panic!("no script wrote a whole line to {}", path.display()))
}

fn runs(process: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.trim()));
    // One that nobody has waited for yet is dead all the same.
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn a_script_gets_its_context_and_nothing_of_our_environment() {
    let place = Place::new();
    place.script(
        "ok.sh",
        "cat; cat \"$SITERECOVERY_PLAN_CONTEXT\"; echo; echo \"[$CARGO_MANIFEST_DIR]\"",
    );
    let scripts = place.open();
    scripts.take(&order("a", "ok.sh")).await;
    let status = end(&scripts, "a").await;
    assert_eq!(status.outcome, Outcome::Exited(0), "{status:?}");
    let context = "{\"RecoveryPlanName\":\"p\"}";
    assert_eq!(status.output, format!("{context}\n{context}\n[]\n"));
}

#[tokio::test]
async fn the_exit_code_and_the_end_of_a_long_output_are_kept() {
    let place = Place::new();
    place.script("bad.sh", "seq 1 100000; echo why >&2; exit 3");
    let scripts = place.open();
    scripts.take(&order("a", "bad.sh")).await;
    let status = end(&scripts, "a").await;
    assert_eq!(status.outcome, Outcome::Exited(3));
    assert_eq!(status.output.len(), MOST_OUTPUT);
    assert!(status.output.contains("100000") && status.output.contains("why"));
}

#[tokio::test]
async fn an_order_runs_once_however_often_it_comes_and_over_restarts() {
    let place = Place::new();
    let count = place.folder.path().join("count");
    place.script("count.sh", &format!("echo x >> {}", count.display()));
    let scripts = place.open();
    for _ in 0..3 {
        scripts.take(&order("a", "count.sh")).await;
    }
    end(&scripts, "a").await;
    let again = place.open();
    again.take(&order("a", "count.sh")).await;
    assert_eq!(end(&again, "a").await.outcome, Outcome::Exited(0));
    assert_eq!(std::fs::read_to_string(&count).unwrap(), "x\n");
}

#[tokio::test]
async fn a_script_over_its_limit_dies_with_its_children() {
    let place = Place::new();
    let child = place.folder.path().join("child");
    place.script(
        "slow.sh",
        &format!("sleep 1000 & echo $! > {}; wait", child.display()),
    );
    let scripts = place.open();
    let limit = Duration::from_secs(20);
    scripts
        .take(&Order {
            limit,
            ..order("a", "slow.sh")
        })
        .await;
    let number = file(&child).await;
    assert_eq!(end(&scripts, "a").await.outcome, Outcome::TimedOut);
    while runs(&number) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_withdrawn_order_is_killed() {
    let place = Place::new();
    place.script("slow.sh", "exec sleep 1000");
    let scripts = place.open();
    scripts.take(&order("a", "slow.sh")).await;
    scripts.withdraw_others(&BTreeSet::from(["a".to_owned()]));
    assert_eq!(scripts.status("a").unwrap().outcome, Outcome::Running);
    scripts.withdraw_others(&BTreeSet::new());
    assert_eq!(end(&scripts, "a").await.outcome, Outcome::Withdrawn);
}

#[test]
fn the_end_of_a_script_whose_watcher_died_is_unknown_and_only_a_repeatable_one_runs_again() {
    let place = Place::new();
    let started = place.folder.path().join("started");
    place.script(
        "slow.sh",
        &format!("echo $$ >> {}; exec sleep 1000", started.display()),
    );
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let first = runtime();
    let number = first.block_on(async {
        let scripts = place.open();
        scripts.take(&order("a", "slow.sh")).await;
        file(&started).await
    });
    // The runtime goes, and with it everything that would have noted the end, as when the process is killed.
    drop(first);
    assert!(runs(&number), "a script does not die with its watcher");
    runtime().block_on(async {
        let scripts = place.open();
        assert_eq!(scripts.status("a").unwrap().outcome, Outcome::Unknown);
        while runs(&number) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        scripts.take(&order("a", "slow.sh")).await;
        assert_eq!(scripts.status("a").unwrap().outcome, Outcome::Unknown);
        assert_eq!(std::fs::read_to_string(&started).unwrap(), number);
        let again = Order {
            repeatable: true,
            ..order("a", "slow.sh")
        };
        scripts.take(&again).await;
        assert_eq!(scripts.status("a").unwrap().attempts, 2);
        scripts.withdraw("a");
        end(&scripts, "a").await;
    });
}

#[tokio::test]
async fn an_order_whose_id_is_a_path_is_refused_and_nothing_is_written() {
    let place = Place::new();
    place.script("ok.sh", "true");
    let scripts = place.open();
    scripts.take(&order("../a", "ok.sh")).await;
    let outcome = scripts.status("../a").unwrap().outcome;
    assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    let notes = std::fs::read_dir(place.folder.path().join("notes")).unwrap();
    assert_eq!(notes.count(), 0);
    let names = std::fs::read_dir(place.folder.path()).unwrap();
    assert_eq!(names.count(), 2, "only the scripts and the notes");
}

#[tokio::test]
async fn a_path_that_leaves_the_folder_and_a_machine_without_one_run_nothing() {
    let place = Place::new();
    place.script("ok.sh", "true");
    let scripts = place.open();
    scripts.take(&order("a", "../scripts/ok.sh")).await;
    let Outcome::Refused(reason) = scripts.status("a").unwrap().outcome else {
        panic!("it ran");
    };
    assert!(reason.contains("leaves the scripts folder"), "{reason}");
    let none = Scripts::open(None, place.folder.path().join("other")).unwrap();
    none.take(&order("a", "ok.sh")).await;
    let Outcome::Refused(reason) = none.status("a").unwrap().outcome else {
        panic!("it ran");
    };
    assert!(reason.contains("scripts_folder"), "{reason}");
}
