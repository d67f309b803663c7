//! `heal`: tracking was lost, 1 % of the disk differs; compare and mend the replica, against `rsync` of the same pair.
//!
//! Ours reads the source alone and compares with the hashes that it keeps; rsync reads both sides.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use disk_image::ImageFile as _;

use crate::data::{self, Random};
use crate::outcome::{Bound, Measure, Outcome, median};
use crate::process::{execute, run_json, settle};
use crate::setting::Setting;

use super::initial_folder::{equal, replicate};

const VIRTUAL: u64 = 2 << 30;

/// Each round changes 1 % of the source, then both mend their copy of it.
pub fn run(setting: &Setting) -> Result<Outcome> {
    setting.lab("peers.sh", &["rsync"])?;
    let scratch = setting.scratch("heal")?;
    let vms = scratch.folder("vms")?;
    let (store, state) = (scratch.folder("store")?, scratch.folder("state")?);
    let (image, copy) = (vms.join("disk.raw"), scratch.file("copy.raw"));
    let size = setting.size(VIRTUAL);
    data::raw(&image, size, 100, 7)?;
    run_json(&mut replicate(setting, &vms, &store, &state)).context("initial replication")?;
    execute(Command::new("cp").arg(&image).arg(&copy))?;
    let mut random = Random::new(8);
    let (mut ours, mut theirs, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = None;
    for _ in 0..setting.rounds {
        let file = std::fs::File::options().write(true).open(&image)?;
        for write in data::scattered(&mut random, size, size / 100) {
            file.write_at(&write.data, write.offset)?;
        }
        drop(file);
        data::warm(&image)?;
        data::warm(&copy)?;
        settle()?;
        // A new process: it knows nothing of what changed.
        let (value, cost) = run_json(&mut replicate(setting, &vms, &store, &state))?;
        ours.push(cost.wall);
        last = Some(value);
        settle()?;
        let mut command = Command::new("rsync");
        command.args(["--inplace", "--no-whole-file", "--ignore-times", "--fsync"]);
        let (_, cost) = execute(command.arg(&image).arg(&copy))?;
        theirs.push(cost.wall);
        let begin = std::time::Instant::now();
        data::warm(&image)?;
        reads.push(begin.elapsed().as_secs_f64());
    }
    equal(setting, &image, &store, &last.context("no round")?)?;
    ensure!(
        crate::hash_file(&image)? == crate::hash_file(&copy)?,
        "rsync did not mend its copy"
    );
    Ok(Outcome {
        name: "heal",
        what: format!(
            "compare a disk of {} MiB, 1 % of it changed in writes of 4 to 64 KiB, and mend the replica; peer: `rsync --inplace --no-whole-file --fsync` of the same pair",
            size >> 20
        ),
        measures: vec![
            Measure::new("wall time", median(ours), median(theirs), "s")
                .speed_up()
                .bound(Bound::AtLeast(3.0)),
        ],
        ceiling: Some((median(reads), "plain read of the source")),
        notes: vec![
            "page cache warm on both sides; ratio = how many times faster; both results equal by BLAKE3"
                .to_owned(),
        ],
    })
}
