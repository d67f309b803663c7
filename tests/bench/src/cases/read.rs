//! `vhdx-read`: every byte of a VHDX in order, against `qemu-nbd` and `nbdcopy` to nowhere. Compared by hash.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::data;
use crate::outcome::{Bound, Measure, Outcome, median};
use crate::process::{Background, execute, run_json, wait_for};
use crate::setting::Setting;

use super::convert::{PERCENT, VIRTUAL};

/// Both in turn, page cache warm.
pub fn run(setting: &Setting) -> Result<Outcome> {
    setting.lab("peers.sh", &["nbdcopy"])?;
    let scratch = setting.scratch("vhdx-read")?;
    let input = scratch.file("disk.vhdx");
    let virtual_size = setting.size(VIRTUAL);
    data::vhdx(&input, virtual_size, PERCENT, 2)?;
    data::warm(&input)?;
    let socket = Socket::new();
    let socket = socket.0.as_path();
    let server = serve(&input, socket)?;
    let (mut ours, mut theirs, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    let rate = |seconds: f64| virtual_size as f64 / 1e6 / seconds;
    for _ in 0..setting.rounds {
        let mut command = setting.engine();
        let (_, cost) = execute(command.args(["read", "--json"]).arg(&input))?;
        ours.push(rate(cost.wall));
        let (_, cost) = execute(nbdcopy(socket).arg("null:"))?;
        theirs.push(rate(cost.wall));
        let begin = std::time::Instant::now();
        data::warm(&input)?;
        plain.push(rate(begin.elapsed().as_secs_f64()));
    }
    // The same bytes: the peer's, written out once.
    let copy = scratch.file("peer.raw");
    execute(nbdcopy(socket).arg(&copy))?;
    drop(server);
    let mut command = setting.engine();
    let (value, _) = run_json(command.args(["read", "--hash", "--json"]).arg(&input))?;
    let expected = crate::hash_file(&copy)?;
    ensure!(
        value["blake3"] == expected.as_str(),
        "ours and the peer read different bytes: {value}"
    );
    Ok(Outcome {
        name: "vhdx-read",
        what: format!(
            "sequential read of a VHDX of {} MiB, {PERCENT} % allocated; peer: `qemu-nbd` and `nbdcopy` to null",
            virtual_size >> 20
        ),
        measures: vec![
            Measure::new("rate", median(ours), median(theirs), "MB/s of virtual disk")
                .bound(Bound::AtLeast(3.0)),
        ],
        ceiling: Some((
            median(plain),
            "plain read of the VHDX file, in MB/s of virtual disk",
        )),
        notes: vec!["page cache warm; equal by BLAKE3 of the whole disk".to_owned()],
    })
}

/// A short path; removed with this.
struct Socket(PathBuf);

impl Socket {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("bench-{}.sock", std::process::id())))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Gone with the server already, when that ended by itself.
        std::fs::remove_file(&self.0).ok();
    }
}

fn serve(input: &Path, socket: &Path) -> Result<Background> {
    let mut command = Command::new("qemu-nbd");
    command
        .args([
            "--read-only",
            "--persistent",
            "--shared=8",
            "-f",
            "vhdx",
            "-k",
        ])
        .arg(socket)
        .arg(input);
    let mut server = Background::start(&mut command, None)?;
    wait_for("qemu-nbd's socket", Duration::from_secs(20), || {
        ensure!(server.is_running(), "qemu-nbd ended");
        Ok(socket.exists())
    })?;
    Ok(server)
}

fn nbdcopy(socket: &Path) -> Command {
    let mut command = Command::new("nbdcopy");
    command.arg(format!("nbd+unix:///?socket={}", socket.display()));
    command
}
