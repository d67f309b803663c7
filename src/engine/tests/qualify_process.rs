//! `siterecovery-engine qualify` as a person runs it, on real QEMU: its report line by line, its exit codes, and what a kill or
//! Ctrl-C leaves.

#![cfg(unix)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use engine::qualify::assumptions::{self, Kind, Step};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn engine(folder: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_siterecovery-engine"));
    command
        .args(["qualify", "--folder"])
        .arg(folder)
        .args(more)
        .stdin(Stdio::null());
    command
}

fn run(folder: &Path, more: &[&str]) -> Output {
    engine(folder, more).output().unwrap()
}

/// Started, and read until it begins `step`.
fn at(folder: &Path, step: Step) -> Child {
    let mut child = engine(folder, &["--yes", "--format", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let wanted = format!("{} ...", step.name());
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == wanted), "{wanted}");
    // Somebody reads on, or it would stand still.
    std::thread::spawn(move || lines.count());
    child
}

/// Processes whose command line names the folder.
fn processes(folder: &Path) -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|one| std::fs::read(one.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains("qemu-system") && line.contains(folder.to_str().unwrap()))
        .collect()
}

fn nothing_is_left(folder: &Path, when: &str) {
    let left: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().collect();
    assert!(left.is_empty(), "{when}: {left:?}");
    // A process that was told to end may take a moment to be gone from the list.
    let begin = Instant::now();
    while !processes(folder).is_empty() {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "{when}: {:?}",
            processes(folder)
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn on_a_sound_host_the_report_has_every_assumption_of_qemu_and_all_that_were_tried_hold() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().with_extension("report.json");
    let output = run(folder.path(), &["--yes", "--json", file.to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    std::fs::remove_file(&file).unwrap();
    let lines = report["assumptions"].as_array().unwrap();
    let expected: Vec<_> = assumptions::of(Kind::Qemu).collect();
    assert_eq!(lines.len(), expected.len());
    for (line, expected) in lines.iter().zip(expected) {
        assert_eq!(line["id"], expected.id);
        assert!(text.contains(expected.id) && text.contains(expected.text));
        assert_eq!(line["assumption"], expected.text);
        assert_eq!(line["source"], expected.source);
        if let Some(why) = expected.untried {
            assert_eq!(line["verdict"], "not tried");
            assert_eq!(line["reason"], why);
        } else {
            assert_eq!(line["verdict"], "holds", "{line}");
            assert!(line["figures"]["milliseconds"].is_u64(), "{line}");
        }
    }
    let of = |id: &str| lines.iter().find(|line| line["id"] == id).unwrap();
    assert_eq!(of("frozen-read")["figures"]["bytes"], 24 << 20);
    assert!(
        of("frozen-read")["figures"]["bytesPerSecond"]
            .as_u64()
            .unwrap()
            > 0
    );
    let changed = of("track")["figures"]["changedBytes"].as_u64().unwrap();
    assert!((64 << 10..=1 << 20).contains(&changed), "{changed}");
    let sent = of("protect-delta")["figures"]["sentBytes"]
        .as_u64()
        .unwrap();
    assert!(sent > 0 && sent < 1 << 20, "{sent}");
    assert!(of("protect-equal")["figures"]["points"].as_u64().unwrap() >= 2);
    assert_eq!(report["driver"], "qemu");
    assert_eq!(report["broken"], 0);
    let all = format!("{text}{report}");
    assert!(!all.contains(folder.path().to_str().unwrap()), "{all}");
    nothing_is_left(folder.path(), "after a sound run");
}

#[test]
fn nobody_who_was_not_asked_gets_a_virtual_machine() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("--yes"), "{error}");
    nothing_is_left(folder.path(), "unasked");
}

#[test]
fn a_run_that_is_killed_at_any_step_is_cleaned_up_by_the_next_command() {
    for step in [
        Step::Host,
        Step::Create,
        Step::Start,
        Step::Freeze,
        Step::Track,
        Step::Application,
        Step::Protect,
        Step::FreezeOff,
        Step::FailBack,
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut child = at(folder.path(), step);
        child.kill().unwrap();
        child.wait().unwrap();
        let record = folder.path().join("siterecovery-qualify/record.json");
        assert!(record.is_file(), "{step:?}: the record was durable before");
        let output = run(folder.path(), &["--clean-up"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{step:?}: {output:?}");
        assert!(said.contains("taken away"), "{step:?}: {said}");
        nothing_is_left(folder.path(), &format!("{step:?}"));
    }
}

#[test]
fn an_interrupted_run_cleans_up_by_itself_and_says_what_it_did_not_try() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = at(folder.path(), Step::Freeze);
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let mut json = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut json)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["interrupted"], true);
    let lines = report["assumptions"].as_array().unwrap();
    let last = lines
        .iter()
        .find(|line| line["id"] == "fail-back-equal")
        .unwrap();
    assert_eq!(last["reason"], "because of interrupt");
    nothing_is_left(folder.path(), "interrupted");
}

#[test]
fn a_host_without_its_emulator_says_which_line_is_broken_and_what_was_not_tried_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let output = engine(folder.path(), &["--yes", "--format", "json"])
        .env("PATH", "")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let lines = report["assumptions"].as_array().unwrap();
    let broken: Vec<_> = lines
        .iter()
        .filter(|line| line["verdict"] == "broken")
        .collect();
    assert_eq!(broken.len(), 1, "{report:#}");
    let error = broken[0]["error"].as_str().unwrap();
    assert!(error.contains("qemu-system-x86_64"), "{error}");
    nothing_is_left(folder.path(), "without an emulator");
}
