//! Disk data never passes through the orchestrator: a marker that the guest writes is found in the store, and neither in the
//! orchestrator's files, nor in its memory, nor in anything that it was sent or that it answered.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use engine_protocol::Authority;
use serde_json::{Value, json};
use system_tests::lab::Guest;
use system_tests::process::{kill_9, pid_in, run};
use system_tests::recorder::{Recorder, Sides};
use system_tests::story::{
    BOOT, check_drill, drill_vms, files_below, newest_position, variables, wait_for_points,
};
use system_tests::{Cli, Lab, Orchestrator, Terraform};

const VM: &str = "mark01";
const MARKER: &str = "ORANGE-WALRUS-4711-IN-THE-GUEST";

#[test]
fn what_a_guest_writes_is_in_the_store_and_nowhere_in_the_control_plane() -> Result<()> {
    let mut lab = Lab::new("marker")?;
    let outcome = follow_the_marker(&lab);
    if outcome.is_err() {
        lab.failed();
    }
    outcome
}

fn follow_the_marker(lab: &Lab) -> Result<()> {
    let orchestrator = Orchestrator::start(lab)?;
    lab.build_guest(&Guest {
        name: VM,
        generation: 2,
        marker: Some(MARKER.to_owned()),
        fill_mib: 0,
        app_mib: 0,
    })?;
    lab.start_vm(VM)?;
    lab.console(VM).wait_for_sequence(1, BOOT)?;

    // Terraform and the command line speak through one recorder, the engine through another.
    let environment = orchestrator.environment()?;
    let endpoint = environment
        .get("SITERECOVERY_ENDPOINT")
        .context("no endpoint")?
        .trim_start_matches("https://")
        .to_owned();
    let rest = Recorder::start(Sides {
        upstream: endpoint,
        authority: authority(&orchestrator)?,
        client_identity: None,
        alpn: b"http/1.1",
    })?;
    let mut recorded = environment.clone();
    recorded.insert(
        "SITERECOVERY_ENDPOINT".to_owned(),
        format!("https://{}", rest.address()),
    );
    let mut of_vm = variables(lab, &[VM], false);
    let terraform = Terraform::new(lab, "first-light", &recorded, &of_vm)?;
    terraform.run(&["init"])?;
    terraform.apply()?;
    let gateway = record_engine(lab, &orchestrator)?;

    let cli = Cli::new(lab, &orchestrator)?;
    let before = newest_position(&cli, VM)?;
    wait_for_points(&cli, VM, usize::try_from(before)? + 3)?;
    of_vm["run_drill"] = json!(true);
    terraform.variables(&of_vm)?;
    terraform.apply()?;
    check_drill(&drill_vms(&terraform)?)?;

    // The recorders do see what passes: both sides name the VM.
    ensure!(
        rest.holds(VM.as_bytes()),
        "the recorder of the REST API saw no VM in {} bytes",
        rest.recorded()
    );
    ensure!(
        gateway.holds(VM.as_bytes()),
        "the recorder of the gateway saw no VM in {} bytes",
        gateway.recorded()
    );

    let in_store = files_below(&lab.folder().join("storage"))
        .iter()
        .any(|file| file.ends_with("base.vhd") && file_holds(Path::new(file)));
    ensure!(in_store, "the marker is not in the store");
    ensure!(
        !rest.holds(MARKER.as_bytes()),
        "the marker passed through the REST API"
    );
    ensure!(
        !gateway.holds(MARKER.as_bytes()),
        "the marker passed through the engine gateway"
    );
    for file in files_below(&lab.folder().join("orchestrator")) {
        ensure!(
            !file_holds(Path::new(&file)),
            "the marker is in the orchestrator's file {file}"
        );
    }
    ensure!(
        !memory_holds(orchestrator.pid())?,
        "the marker is in the orchestrator's memory"
    );
    let qemu = pid_in(&lab.vm_folder().join(VM).join("run/pid"))?;
    ensure!(
        memory_holds(qemu)?,
        "the search of a process's memory does not find what is certainly there"
    );
    terraform.destroy()?;
    Ok(())
}

fn authority(orchestrator: &Orchestrator) -> Result<Authority> {
    let read = |name: &str| {
        let found = files_below(&orchestrator.data())
            .into_iter()
            .find(|file| file.ends_with(name));
        fs::read_to_string(found.with_context(|| format!("the orchestrator has no {name}"))?)
            .context("read")
    };
    Ok(Authority::from_pem(read("ca.pem")?, read("ca.key")?)?)
}

/// Lets the engine connect through a recorder from now on: kills it, changes the address it keeps, starts it.
fn record_engine(lab: &Lab, orchestrator: &Orchestrator) -> Result<Recorder> {
    let identity = lab.folder().join("host/data/identity");
    let file = identity.join("enrolment.json");
    let mut enrolment: Value = serde_json::from_slice(&fs::read(&file)?)?;
    let certificate = lab.folder().join("engine-certificate.pem");
    fs::write(
        &certificate,
        enrolment["certificate_pem"]
            .as_str()
            .context("no certificate")?,
    )?;
    let recorder = Recorder::start(Sides {
        upstream: enrolment["gateway"]
            .as_str()
            .context("no gateway")?
            .to_owned(),
        authority: authority(orchestrator)?,
        client_identity: Some((certificate, identity.join("key.pem"))),
        alpn: b"h2",
    })?;
    enrolment["gateway"] = json!(recorder.address());
    // The engine reads the file at its start only; whoever starts it next reads the new address.
    fs::write(&file, serde_json::to_vec(&enrolment)?)?;
    kill_9(pid_in(&lab.folder().join("host/data/engine.pid"))?)?;
    let mut start = Command::new(lab.program("siterecovery-engine"));
    run(start.arg("start").arg("--config").arg(config(lab)?))?;
    Ok(recorder)
}

fn config(lab: &Lab) -> Result<PathBuf> {
    let files = files_below(&lab.folder().join("host"));
    files
        .into_iter()
        .find(|file| file.ends_with("engine.toml"))
        .map(PathBuf::from)
        .context("no engine.toml")
}

fn file_holds(path: &Path) -> bool {
    let Ok(mut file) = fs::File::open(path) else {
        return false;
    };
    stream_holds(|chunk| file.read(chunk))
}

/// Looks through every readable page of a process.
fn memory_holds(pid: i32) -> Result<bool> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut memory = fs::File::open(format!("/proc/{pid}/mem"))?;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range = line
            .split_whitespace()
            .next()
            .and_then(|range| range.split_once('-'));
        let Some((start, end)) = range.and_then(|(start, end)| {
            Some((
                u64::from_str_radix(start, 16).ok()?,
                u64::from_str_radix(end, 16).ok()?,
            ))
        }) else {
            continue;
        };
        let mut at = start;
        // A page may vanish between the list and the read; then the range ends there.
        let found = stream_holds(|chunk| {
            let length = chunk
                .len()
                .min(usize::try_from(end - at).unwrap_or(usize::MAX));
            memory.seek(SeekFrom::Start(at))?;
            let read = memory
                .read(chunk.get_mut(..length).unwrap_or_default())
                .unwrap_or(0);
            at += read as u64;
            Ok(read)
        });
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Searches chunk by chunk, with enough overlap that a marker across two chunks is found.
fn stream_holds(mut read: impl FnMut(&mut [u8]) -> std::io::Result<usize>) -> bool {
    let needle = MARKER.as_bytes();
    let mut window = Vec::new();
    let mut chunk = vec![0; 1 << 20];
    while let Ok(length @ 1..) = read(&mut chunk) {
        window.extend_from_slice(chunk.get(..length).unwrap_or_default());
        if window.windows(needle.len()).any(|part| part == needle) {
            return true;
        }
        let keep = window.len().min(needle.len() - 1);
        window.drain(..window.len() - keep);
    }
    false
}
