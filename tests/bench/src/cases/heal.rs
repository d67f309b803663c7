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
    let (mut our_warm, mut their_warm) = (Vec::new(), Vec::new());
    let mut last = None;
    for round in 0..setting.rounds * 2 {
        let is_cold = round % 2 == 0;
        let file = std::fs::File::options().write(true).open(&image)?;
        for write in data::scattered(&mut random, size, size / 100) {
            file.write_at(&write.data, write.offset)?;
        }
        drop(file);
        let prepare = || -> Result<()> {
            settle()?;
            for path in [&image, &copy] {
                if is_cold {
                    data::forget(path)?;
                } else {
                    data::warm(path)?;
                }
            }
            Ok(())
        };
        prepare()?;
        // A new process: it knows nothing of what changed.
        let (value, our_cost) = run_json(&mut replicate(setting, &vms, &store, &state))?;
        last = Some(value);
        prepare()?;
        let mut command = Command::new("rsync");
        command.args(["--inplace", "--no-whole-file", "--ignore-times", "--fsync"]);
        let (_, their_cost) = execute(command.arg(&image).arg(&copy))?;
        if !is_cold {
            our_warm.push(our_cost.wall);
            their_warm.push(their_cost.wall);
            continue;
        }
        ours.push(our_cost.wall);
        theirs.push(their_cost.wall);
        prepare()?;
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
            Measure::new("wall time, from the disk", median(ours), median(theirs), "s")
                .speed_up()
                .bound(Bound::AtLeast(3.0)),
            Measure::new("wall time, all in memory", median(our_warm), median(their_warm), "s")
                .speed_up(),
        ],
        ceiling: Some((median(reads), "plain read of the source from the disk, s")),
        notes: vec![
            "ratio = how many times faster; from the disk: page cache dropped before each of the two, as with disks larger than memory; both results equal by BLAKE3"
                .to_owned(),
        ],
    })
}
