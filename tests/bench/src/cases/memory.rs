//! `memory`: the most memory that the engine has resident with 16 disks in flight, on small and on large disks.
//!
//! Two phases in two processes, initial replication and comparison, as they are the ones that move most at once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::data::{self, Random};
use crate::outcome::{Bound, Measure, Outcome};
use crate::process::{Background, run_json, wait_for};
use crate::setting::Setting;

const VMS: usize = 4;
const DISKS: usize = 4;
const SMALL: u64 = 256 << 20;
/// 32 times as large, and not larger: the proof reads every byte of some of them twice.
const LARGE: u64 = 8 << 30;
const LIMIT: Duration = Duration::from_secs(300);
const BOUND_MIB: f64 = 150.0;

/// Small first.
pub fn run(setting: &Setting) -> Result<Outcome> {
    let small = measure(setting, SMALL, 48 << 20)?;
    let large = measure(setting, LARGE, 192 << 20)?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok(Outcome {
        name: "memory",
        what: format!(
            "resident memory of the engine with {} disks in flight; ours: disks of {} MiB, peer: the bound",
            VMS * DISKS,
            setting.size(LARGE) >> 20
        ),
        measures: vec![
            Measure::new("peak", mib(large), BOUND_MIB, "MiB").bound(Bound::AtMost(1.0)),
            Measure::new(
                format!(
                    "peak, disks of {} MiB (peer: of {} MiB)",
                    setting.size(LARGE) >> 20,
                    setting.size(SMALL) >> 20
                ),
                mib(large),
                mib(small),
                "MiB",
            )
            .bound(Bound::AtMost(1.3)),
        ],
        ceiling: None,
        notes: vec![
            "peak resident size of the process (VmHWM) over initial replication and a comparison of all disks"
                .to_owned(),
        ],
    })
}

fn measure(setting: &Setting, virtual_size: u64, data_size: u64) -> Result<u64> {
    let scratch = setting.scratch("memory")?;
    let vms = scratch.folder("vms")?;
    let (store, state) = (scratch.folder("store")?, scratch.folder("state")?);
    let size = setting.size(virtual_size);
    let wanted = setting.size(data_size).min(size);
    let mut images = Vec::new();
    for vm in 0..VMS {
        let folder = vms.join(format!("vm{vm}"));
        std::fs::create_dir_all(&folder)?;
        for disk in 0..DISKS {
            let image = folder.join(format!("disk{disk}.raw"));
            sparse(&image, size, wanted, (vm * DISKS + disk) as u64)?;
            images.push(image);
        }
    }
    let initial = phase(setting, &vms, &store, &state, &scratch.file("initial.log"))?;
    let mut random = Random::new(11);
    for image in &images {
        write(image, size, wanted / 20, &mut random)?;
    }
    let compared = phase(setting, &vms, &store, &state, &scratch.file("compared.log"))?;
    verify(setting, &images, &store, &vms, &state)?;
    Ok(initial.max(compared))
}

/// Data in pieces of 1 MiB all over the disk.
fn sparse(path: &Path, size: u64, wanted: u64, seed: u64) -> Result<()> {
    data::raw(path, size, 0, seed)?;
    let file = std::fs::File::options().write(true).open(path)?;
    let pieces = (wanted >> 20).max(1);
    let mut random = Random::new(seed + 100);
    for piece in 0..pieces {
        let at = (size / pieces * piece) >> 20 << 20;
        disk_image::ImageFile::write_at(&file, &random.noise(1 << 20), at)?;
    }
    Ok(())
}

fn write(image: &Path, size: u64, bytes: u64, random: &mut Random) -> Result<()> {
    let file = std::fs::File::options().write(true).open(image)?;
    for write in data::scattered(random, size, bytes) {
        disk_image::ImageFile::write_at(&file, &write.data, write.offset)?;
    }
    Ok(())
}

/// All VMs to a new point; the process's peak.
fn phase(setting: &Setting, vms: &Path, store: &Path, state: &Path, log: &Path) -> Result<u64> {
    let mut command = setting.engine();
    command
        .args([
            "replicate",
            "--json",
            "--watch",
            "--interval-seconds",
            "3600",
        ])
        .arg(vms)
        .arg("--store")
        .arg(store)
        .arg("--state")
        .arg(state);
    let mut engine = Background::start(&mut command, Some(log))?;
    let points = || -> Result<usize> {
        let text = std::fs::read_to_string(log).context("read the engine's output")?;
        Ok(text.lines().filter(|line| line.starts_with('{')).count())
    };
    wait_for("a new point of every VM", LIMIT, || {
        ensure!(
            engine.is_running(),
            "the engine ended: {}",
            std::fs::read_to_string(log).unwrap_or_default()
        );
        Ok(points()? >= VMS)
    })?;
    let peak = engine.peak_resident_bytes()?;
    engine.interrupt()?;
    Ok(peak)
}

/// The newest point of one VM is its disks, by hash; a run that finds nothing to do names the items.
fn verify(
    setting: &Setting,
    images: &[PathBuf],
    store: &Path,
    vms: &Path,
    state: &Path,
) -> Result<()> {
    let mut command = super::initial_folder::replicate(setting, vms, store, state);
    let (value, _) = run_json(command.args(["--vm", "vm0"]))?;
    let item = value["virtualMachines"][0]["item"]
        .as_str()
        .context("no item")?;
    let mut command = setting.engine();
    command
        .args(["verify", "--json", "--points", "newest"])
        .arg(store.join("files").join(item));
    let (proof, _) = run_json(&mut command)?;
    let disks = proof["points"][0]["disks"].as_array().context("no disks")?;
    let mut found: Vec<&str> = disks
        .iter()
        .filter_map(|disk| disk["blake3"].as_str())
        .collect();
    let mut expected = images
        .iter()
        .take(DISKS)
        .map(|image| crate::hash_file(image))
        .collect::<Result<Vec<_>>>()?;
    found.sort_unstable();
    expected.sort_unstable();
    ensure!(found == expected, "the recovery point is not the disks");
    Ok(())
}
