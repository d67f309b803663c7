//! `initial-folder`: initial replication into a folder, against a plain copy of the same allocated bytes, both durable.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::data;
use crate::outcome::{Bound, Measure, Outcome, median};
use crate::process::{execute, run_json, settle};
use crate::setting::Setting;

const VIRTUAL: u64 = 4 << 30;
const PERCENT: u64 = 35;
/// Disks that are shared with others give one run twice the rate of the next.
const LEAST_ROUNDS: usize = 9;

/// The engine's own `replicate`, process start to process end.
pub fn run(setting: &Setting) -> Result<Outcome> {
    let scratch = setting.scratch("initial-folder")?;
    let vms = scratch.folder("vms")?;
    let input = vms.join("disk.vhdx");
    let virtual_size = setting.size(VIRTUAL);
    data::vhdx(&input, virtual_size, PERCENT, 3)?;
    let bytes = data::data_bytes(virtual_size, PERCENT);
    let rate = |seconds: f64| bytes as f64 / 1e6 / seconds;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut proof = None;
    for _ in 0..setting.rounds.max(LEAST_ROUNDS) {
        let store = scratch.folder("store")?;
        let state = scratch.folder("state")?;
        settle()?;
        data::forget(&input)?;
        let (value, cost) = run_json(&mut replicate(setting, &vms, &store, &state))?;
        ours.push(rate(cost.wall));
        proof = Some((store, value));
        let copy = scratch.file("copy");
        settle()?;
        data::forget(&input)?;
        theirs.push(rate(plain_copy(&input, &copy)?));
        std::fs::remove_file(&copy).context("remove the copy")?;
    }
    let (store, value) = proof.context("nothing was measured")?;
    equal(setting, &input, &store, &value)?;
    Ok(Outcome {
        name: "initial-folder",
        what: format!(
            "initial replication of {} MiB (VHDX of {} MiB) into a folder; peer: plain copy of the image, synced",
            bytes >> 20,
            virtual_size >> 20
        ),
        measures: vec![
            Measure::new(
                "rate",
                median(ours),
                median(theirs),
                "MB/s of allocated bytes",
            )
            .bound(Bound::AtLeast(0.8)),
        ],
        ceiling: None,
        notes: vec![
            "read from the disk (page cache dropped before each), both durable at the end; recovery point equal by BLAKE3".to_owned(),
        ],
    })
}

/// Command line of a one-shot replication.
pub fn replicate(setting: &Setting, vms: &Path, store: &Path, state: &Path) -> Command {
    let mut command = setting.engine();
    command
        .args(["replicate", "--json"])
        .arg(vms)
        .arg("--store")
        .arg(store)
        .arg("--state")
        .arg(state);
    command
}

/// `cp` and `sync` of that file, seconds.
fn plain_copy(from: &Path, to: &Path) -> Result<f64> {
    let (_, copied) = execute(Command::new("cp").arg("--reflink=never").arg(from).arg(to))?;
    let (_, synced) = execute(Command::new("sync").arg(to))?;
    Ok(copied.wall + synced.wall)
}

/// The newest point of the first VM is the image, by hash.
pub fn equal(
    setting: &Setting,
    image: &Path,
    store: &Path,
    value: &serde_json::Value,
) -> Result<()> {
    let item = value["virtualMachines"][0]["item"]
        .as_str()
        .context("no item")?;
    let mut command = setting.engine();
    command
        .args(["verify", "--json", "--points", "newest"])
        .arg(store.join("files").join(item));
    let (replica, _) = run_json(&mut command)?;
    let mut command = setting.engine();
    let (source, _) = run_json(command.args(["read", "--hash", "--json"]).arg(image))?;
    let found = &replica["points"][0]["disks"][0]["blake3"];
    ensure!(
        found.is_string() && *found == source["blake3"],
        "the recovery point is not the image: {replica} {source}"
    );
    Ok(())
}
