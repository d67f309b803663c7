//! `delta-amplification` and `delta-scaling`: what a cycle sends, and what it costs on disks of other sizes.
//!
//! The guest makes 37 MiB of scattered writes of 4 to 64 KiB; change tracking counts 64 KiB; what is sent is read out of
//! the journal object itself.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use replication_log::journal::JournalReader;

use crate::data::{self, Random};
use crate::double::TrackedFiles;
use crate::outcome::{Bound, Measure, Outcome, median};
use crate::process::{Cost, settle};
use crate::setting::Setting;
use crate::world::World;

const CHURN: u64 = 37 << 20;
/// Cycles of a fraction of a second each: it takes some for a middle one that can be relied on.
const SCALING_ROUNDS: usize = 9;

/// A VM with one disk, initially replicated.
struct Lab {
    host: Arc<TrackedFiles>,
    world: World,
    size: u64,
}

impl Lab {
    /// `filled` MiB-runs of data in a disk of `size`.
    fn new(folder: &Path, size: u64, percent: u64) -> Result<Self> {
        let image = folder.join("disk.raw");
        data::raw(&image, size, percent, 4)?;
        let host = Arc::new(TrackedFiles::new(&[image])?);
        let world = World::new(host.clone(), host.vm(), host.disk_ids(), folder)?;
        world.cycle().context("initial replication")?;
        Ok(Self { host, world, size })
    }

    /// Writes and ships one cycle: bytes changed, bytes in the journal, cost.
    fn cycle(&self, random: &mut Random, churn: u64) -> Result<(u64, u64, Cost)> {
        let writes = data::scattered(random, self.size, churn);
        let changed: u64 = writes.iter().map(|write| write.data.len() as u64).sum();
        self.host.write(0, &writes)?;
        settle()?;
        let (point, cost) = self.world.cycle()?;
        let sent = journal_bytes(&self.world.replica(), point.position.0)?;
        Ok((changed, sent, cost))
    }

    fn verify(&self) -> Result<()> {
        let expected = crate::hash_file(self.host.path(0))?;
        let found = self.world.newest_hash(0)?;
        ensure!(found == expected, "the recovery point is not the disk");
        Ok(())
    }
}

/// Bytes before compression in the object at a position.
fn journal_bytes(replica: &Path, position: u64) -> Result<u64> {
    let folder = replica.join("journal");
    let suffix = format!("-{position:020}.hrl");
    for entry in std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if !path.to_string_lossy().ends_with(&suffix) {
            continue;
        }
        let reader = JournalReader::open(File::open(&path)?)?;
        return Ok((0..reader.header().disks.len())
            .flat_map(|disk| reader.entries(disk).iter())
            .map(|entry| entry.length)
            .sum());
    }
    anyhow::bail!("there is no journal object at position {position}")
}

/// Bytes sent before compression, by bytes truly changed.
pub fn amplification(setting: &Setting) -> Result<Outcome> {
    let scratch = setting.scratch("delta-amplification")?;
    let size = setting.size(2 << 30).max(64 << 20);
    let churn = setting.size(CHURN).min(size / 4);
    let lab = Lab::new(scratch.path(), size, 35)?;
    let mut random = Random::new(5);
    let (mut changed, mut sent) = (0, 0);
    for _ in 0..setting.rounds {
        let (one, other, _) = lab.cycle(&mut random, churn)?;
        changed += one;
        sent += other;
    }
    lab.verify()?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok(Outcome {
        name: "delta-amplification",
        what: format!(
            "{} cycles with {} MiB of scattered writes of 4 to 64 KiB each, tracked at 64 KiB; peer: what truly changed",
            setting.rounds,
            churn >> 20
        ),
        measures: vec![
            Measure::new(
                "bytes sent before compression",
                mib(sent),
                mib(changed),
                "MiB",
            )
            .bound(Bound::AtMost(1.1)),
        ],
        ceiling: None,
        notes: vec![
            "bytes counted in the journal objects; newest recovery point equal by BLAKE3"
                .to_owned(),
        ],
    })
}

/// The same churn on disks of 1, 8 and 64 GiB. They take turns, so that the machine's moods meet all of them.
pub fn scaling(setting: &Setting) -> Result<Outcome> {
    let sizes = [1u64 << 30, 8 << 30, 64 << 30];
    let churn = setting.size(CHURN).min(setting.size(sizes[0]) / 8);
    let scratch = setting.scratch("delta-scaling")?;
    let mut labs = Vec::new();
    for size in sizes {
        let size = setting.size(size).max(64 << 20);
        // Empty at first: what differs is the size alone.
        let lab = Lab::new(&scratch.folder(&(size >> 20).to_string())?, size, 0)?;
        labs.push((lab, Random::new(6), Vec::new()));
    }
    // The first cycle makes the files that later ones only write to.
    for round in 0..=setting.rounds.max(SCALING_ROUNDS) {
        for (lab, random, costs) in &mut labs {
            let (_, _, cost) = lab.cycle(random, churn)?;
            if round > 0 {
                costs.push(cost);
            }
        }
    }
    for (lab, ..) in &labs {
        if lab.size <= 8 << 30 {
            lab.verify()?;
        }
    }
    let costs: Vec<(u64, f64, f64)> = labs
        .iter()
        .map(|(lab, _, costs)| {
            let middle = |of: fn(&Cost) -> f64| median(costs.iter().map(of).collect());
            (lab.size, middle(|cost| cost.cpu), middle(|cost| cost.wall))
        })
        .collect();
    let spread = |of: fn(&(u64, f64, f64)) -> f64| {
        let values: Vec<f64> = costs.iter().map(of).collect();
        let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = values.iter().copied().fold(0.0, f64::max);
        (largest, smallest)
    };
    let measure = |what: &str, (largest, smallest): (f64, f64)| {
        Measure::new(what, largest * 1e3, smallest * 1e3, "ms").bound(Bound::AtMost(1.3))
    };
    Ok(Outcome {
        name: "delta-scaling",
        what: format!(
            "cycles with {} MiB of scattered writes on disks of {}; ours: the costliest size, peer: the cheapest",
            churn >> 20,
            costs
                .iter()
                .map(|(size, _, _)| format!("{} MiB", size >> 20))
                .collect::<Vec<_>>()
                .join(", ")
        ),
        measures: vec![
            measure("wall time of a cycle", spread(|(_, _, wall)| *wall)),
            measure("processor time of a cycle", spread(|(_, cpu, _)| *cpu)),
        ],
        ceiling: None,
        notes: costs
            .iter()
            .map(|(size, cpu, wall)| {
                format!(
                    "{} MiB: {:.0} ms, {:.0} ms of processor time",
                    size >> 20,
                    wall * 1e3,
                    cpu * 1e3
                )
            })
            .collect(),
    })
}
