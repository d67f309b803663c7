//! `vhdx-to-vhd`: a dynamic VHDX into a fixed VHD, against `qemu-img convert`. Compared by `qemu-img compare`.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::data;
use crate::outcome::{Bound, Measure, Outcome, median};
use crate::process::{execute, settle};
use crate::setting::Setting;

/// 8 GiB virtual, 35 % allocated.
pub const VIRTUAL: u64 = 8 << 30;
/// See above.
pub const PERCENT: u64 = 35;

/// Both in turn, input in the page cache, nothing waiting to be written before each start.
pub fn run(setting: &Setting) -> Result<Outcome> {
    let scratch = setting.scratch("vhdx-to-vhd")?;
    let (input, ours, theirs) = (
        scratch.file("disk.vhdx"),
        scratch.file("ours.vhd"),
        scratch.file("peer.vhd"),
    );
    let virtual_size = setting.size(VIRTUAL);
    data::vhdx(&input, virtual_size, PERCENT, 1)?;
    data::warm(&input)?;
    let (mut our_times, mut their_times, mut copies) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..setting.rounds {
        for path in [&ours, &theirs] {
            if path.exists() {
                std::fs::remove_file(path).context("remove the last round's output")?;
            }
        }
        settle()?;
        let mut command = setting.engine();
        let (_, cost) = execute(command.arg("convert").arg(&input).arg(&ours))?;
        our_times.push(cost.wall);
        settle()?;
        let mut command = Command::new("qemu-img");
        command.args([
            "convert",
            "-f",
            "vhdx",
            "-O",
            "vpc",
            "-o",
            "subformat=fixed,force_size=on",
        ]);
        let (_, cost) = execute(command.arg(&input).arg(&theirs))?;
        their_times.push(cost.wall);
        if copies.is_empty() {
            std::fs::remove_file(&theirs).context("make room for the plain copy")?;
            settle()?;
            let mut command = Command::new("cp");
            let (_, cost) = execute(command.arg("--reflink=never").arg(&input).arg(&theirs))?;
            copies.push(cost.wall);
        }
    }
    let mut command = Command::new("qemu-img");
    command.args(["compare", "-f", "vhdx", "-F", "vpc"]);
    execute(command.arg(&input).arg(&ours)).context("compare what ours wrote with the input")?;
    Ok(Outcome {
        name: "vhdx-to-vhd",
        what: format!(
            "dynamic VHDX of {} MiB, {PERCENT} % allocated, into a fixed VHD; peer: `qemu-img convert`",
            virtual_size >> 20
        ),
        measures: vec![
            Measure::new("wall time", median(our_times), median(their_times), "s")
                .bound(Bound::AtMost(0.4)),
        ],
        ceiling: Some((median(copies), "`cp` of the VHDX file")),
        notes: vec![
            "page cache warm, neither side syncs; output equal by `qemu-img compare`".to_owned(),
        ],
    })
}
