//! `points`: 24 recovery points of a disk that changes, against 24 snapshots of `restic` of the same disk.
//!
//! Counted is what the 24 add to the first full copy, in bytes on the disk and in processor time. Ours is told by change
//! tracking where to look, as in the product; restic has no such thing and reads the disk each time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Result, ensure};

use crate::data::{self, Random};
use crate::double::TrackedFiles;
use crate::outcome::{Bound, Measure, Outcome};
use crate::process::{Cost, execute};
use crate::setting::Setting;
use crate::world::World;

const POINTS: usize = 24;
const VIRTUAL: u64 = 1 << 30;
const CHURN: u64 = 20 << 20;

/// Both in turn after each portion of writes.
pub fn run(setting: &Setting) -> Result<Outcome> {
    setting.lab("peers.sh", &["restic"])?;
    let scratch = setting.scratch("points")?;
    let size = setting.size(VIRTUAL).max(32 << 20);
    let churn = setting.size(CHURN).min(size / 8);
    let image = scratch.file("disk.raw");
    data::raw(&image, size, 35, 9)?;
    let host = Arc::new(TrackedFiles::new(std::slice::from_ref(&image))?);
    let world = World::new(host.clone(), host.vm(), host.disk_ids(), scratch.path())?;
    let restic = Restic {
        repository: scratch.folder("restic")?,
        cache: scratch.folder("restic-cache")?,
    };
    world.cycle()?;
    restic.run(&["init", "--quiet"])?;
    restic.backup(&image)?;
    let (our_start, their_start) = (
        data::stored_bytes(&world.store())?,
        data::stored_bytes(&restic.repository)?,
    );
    let mut random = Random::new(10);
    let (mut ours, mut theirs) = (Cost::default(), Cost::default());
    for _ in 0..POINTS {
        host.write(0, &data::scattered(&mut random, size, churn))?;
        ours = ours + world.cycle()?.1;
        theirs = theirs + restic.backup(&image)?;
    }
    let (our_bytes, their_bytes) = (
        data::stored_bytes(&world.store())? - our_start,
        data::stored_bytes(&restic.repository)? - their_start,
    );
    let expected = crate::hash_file(&image)?;
    ensure!(
        world.newest_hash(0)? == expected,
        "our newest recovery point is not the disk"
    );
    let restored = scratch.file("restored.raw");
    restic.restore(&image, &restored)?;
    ensure!(
        crate::hash_file(&restored)? == expected,
        "restic's newest snapshot is not the disk"
    );
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok(Outcome {
        name: "points",
        what: format!(
            "{POINTS} recovery points of a disk of {} MiB with {} MiB of scattered writes before each; peer: `restic backup`",
            size >> 20,
            churn >> 20
        ),
        measures: vec![
            Measure::new("stored bytes", mib(our_bytes), mib(their_bytes), "MiB")
                .bound(Bound::AtMost(1.0)),
            Measure::new("processor time", ours.cpu, theirs.cpu, "s").bound(Bound::AtMost(0.5)),
            Measure::new("wall time", ours.wall, theirs.wall, "s"),
        ],
        ceiling: None,
        notes: vec![
            "bytes and time that the points add to the first copy; about half of what is written can be compressed away; newest point and snapshot equal by BLAKE3"
                .to_owned(),
        ],
    })
}

struct Restic {
    repository: PathBuf,
    cache: PathBuf,
}

impl Restic {
    fn command(&self) -> Command {
        let mut command = Command::new("restic");
        command
            .arg("--repo")
            .arg(&self.repository)
            .arg("--cache-dir")
            .arg(&self.cache)
            .env("RESTIC_PASSWORD", "bench");
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<Cost> {
        Ok(execute(self.command().args(arguments))?.1)
    }

    fn backup(&self, image: &Path) -> Result<Cost> {
        Ok(execute(self.command().args(["backup", "--quiet"]).arg(image))?.1)
    }

    fn restore(&self, image: &Path, to: &Path) -> Result<()> {
        let target = to.with_extension("folder");
        execute(
            self.command()
                .args(["restore", "latest", "--quiet", "--target"])
                .arg(&target),
        )?;
        let inside = target.join(image.strip_prefix("/").unwrap_or(image));
        std::fs::rename(inside, to)?;
        Ok(())
    }
}
