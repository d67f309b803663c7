//! `guest-impact`: a write benchmark inside a guest, with and without replication at 30 s.
//!
//! A real VM under QEMU writes 4 KiB at random, synchronously, in rounds; phases with and without replication take turns.
//! The guest's clock stands still while its machine is paused, so operations are counted against the host's clock.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hypervisor::{Hypervisor, QemuDriver, Stop, VmId};

use crate::outcome::{Bound, Measure, Outcome, median};
use crate::process::{execute, wait_for};
use crate::setting::Setting;
use crate::world::World;

const ROUND_SECONDS: u64 = 5;
const INTERVAL_SECONDS: u32 = 30;
const BOOT: Duration = Duration::from_secs(300);
const GUEST: &str = "0be0cafe-0000-4000-8000-00000000f00d";

/// Phases of a little more than one interval.
pub fn run(setting: &Setting) -> Result<Outcome> {
    setting.lab("prerequisites.sh", &[])?;
    let scratch = setting.scratch("guest-impact")?;
    // Sockets of a VM need a short path.
    let short = std::env::temp_dir().join(format!("bench-vm-{}", std::process::id()));
    let guest = Guest::start(setting, &short)?;
    let outcome = measure(setting, &guest, scratch.path());
    let stopped = guest.end();
    let outcome = outcome?;
    stopped?;
    Ok(outcome)
}

fn measure(setting: &Setting, guest: &Guest, folder: &Path) -> Result<Outcome> {
    let rounds = ((f64::from(INTERVAL_SECONDS) * 1.2 * setting.scale.min(1.0)
        / ROUND_SECONDS as f64) as usize)
        .max(2);
    let disks = guest
        .runtime
        .block_on(guest.host.virtual_machines())?
        .into_iter()
        .find(|vm| vm.id == guest.vm)
        .context("the guest is not listed")?
        .disks
        .iter()
        .map(|disk| disk.id)
        .collect();
    let world = World::new(guest.host.clone(), guest.vm, disks, folder)?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    // Initial replication is not what is measured.
    world.replicating(INTERVAL_SECONDS, || Ok(()))?;
    for _ in 0..2 {
        without.extend(guest.rounds(rounds)?);
        with.extend(world.replicating(INTERVAL_SECONDS, || guest.rounds(rounds))?);
    }
    let points = guest.runtime.block_on(world.points())?.len();
    if points < 2 {
        bail!("nothing was replicated while the guest wrote");
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (with_mean, without_mean) = (mean(&with), mean(&without));
    Ok(Outcome {
        name: "guest-impact",
        what: format!(
            "random synchronous 4 KiB writes in a guest, with (ours) and without (peer) replication every {INTERVAL_SECONDS} s"
        ),
        measures: vec![
            Measure::new("mean rate", with_mean, without_mean, "writes/s")
                .ratio(without_mean / with_mean)
                .bound(Bound::Aim(1.05)),
            Measure::new("median rate", median(with), median(without), "writes/s"),
        ],
        ceiling: None,
        notes: vec![format!(
            "ratio = slow-down of the guest; {} rounds of {ROUND_SECONDS} s each way, {points} recovery points; {}",
            rounds * 2,
            if guest.accelerated {
                "hardware virtualisation"
            } else {
                "software emulation"
            }
        )],
    })
}

struct Guest {
    host: Arc<dyn Hypervisor>,
    vm: VmId,
    folder: PathBuf,
    accelerated: bool,
    runtime: tokio::runtime::Runtime,
}

impl Guest {
    fn start(setting: &Setting, folder: &Path) -> Result<Self> {
        let vms = folder.join("vms");
        std::fs::create_dir_all(&vms)?;
        let mut command = Command::new(setting.root.join("tests/lab/build-guest.sh"));
        command
            .args(["--generation", "2", "--name", "bench", "--id", GUEST])
            .args([
                "--append",
                &format!("lab.bench={ROUND_SECONDS} lab.bench_mib=64"),
            ])
            .arg("--out")
            .arg(&vms)
            .arg("--work")
            .arg(setting.root.join("target/guest-cache"));
        execute(&mut command)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let host: Arc<dyn Hypervisor> =
            Arc::new(QemuDriver::new(vec![vms], folder.join("scratch"))?);
        let vm = VmId(GUEST.parse()?);
        let accelerated = runtime.block_on(host.host())?.accelerated;
        let guest = Self {
            host,
            vm,
            folder: folder.to_owned(),
            accelerated,
            runtime,
        };
        let started = guest
            .runtime
            .block_on(guest.host.start(vm))
            .context("start the guest")
            .and_then(|()| {
                wait_for("the guest's benchmark", BOOT, || {
                    Ok(guest.console()?.contains("LAB bench ready"))
                })
            });
        match started {
            Ok(()) => Ok(guest),
            Err(error) => {
                guest.end().ok();
                Err(error)
            }
        }
    }

    fn console(&self) -> Result<String> {
        let path = self.runtime.block_on(self.host.console(self.vm))?;
        Ok(String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned())
    }

    /// Operations of each finished round so far.
    fn finished(&self) -> Result<Vec<f64>> {
        Ok(self
            .console()?
            .lines()
            .filter(|line| line.contains("LAB bench round="))
            .filter_map(|line| {
                line.split_whitespace()
                    .find_map(|word| word.strip_prefix("operations="))?
                    .parse()
                    .ok()
            })
            .collect())
    }

    /// Rates of the next `count` whole rounds, by the clock of the host.
    fn rounds(&self, count: usize) -> Result<Vec<f64>> {
        let limit = Duration::from_secs(ROUND_SECONDS * 20);
        let wait_beyond = |seen: usize| -> Result<(usize, Instant)> {
            let mut now = seen;
            wait_for("a round of the benchmark", limit, || {
                now = self.finished()?.len();
                Ok(now > seen)
            })?;
            Ok((now, Instant::now()))
        };
        // The one under way began before.
        let (mut seen, mut begin) = wait_beyond(self.finished()?.len())?;
        let mut rates = Vec::new();
        while rates.len() < count {
            let (now, end) = wait_beyond(seen)?;
            let operations: f64 = self.finished()?.iter().take(now).skip(seen).sum();
            rates.push(operations / end.duration_since(begin).as_secs_f64());
            (seen, begin) = (now, end);
        }
        Ok(rates)
    }

    fn end(&self) -> Result<()> {
        let off = self
            .runtime
            .block_on(self.host.stop(self.vm, Stop::TurnOff))
            .context("turn the guest off");
        std::fs::remove_dir_all(&self.folder).ok();
        off
    }
}
