//! A soak: real VMs write, real Terraform has protected them, and for some minutes processes are killed at random.
//!
//! `cargo xtask soak --minutes 20` runs it. After each fault every VM must get a newer recovery point by itself. At the end
//! every point is read out of the store and judged by the guest's checker, against what the consoles showed at that time.

#![allow(clippy::print_stdout, reason = "a command talks to its terminal")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use system_tests::points::{Proof, Replica};
use system_tests::process::{is_alive, kill_9, pid_in, run, wait_for};
use system_tests::story::{BOOT, newest_position, show, start_guests, variables, wait_for_points};
use system_tests::{Cli, Lab, Orchestrator, Terraform};

const GUESTS: [(&str, u8); 2] = [("soak01", 2), ("soak02", 1)];
const FILL_MIB: u32 = 48;
/// How long replication may take to go on after a fault, boot under software emulation included.
const RECOVERS_WITHIN: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(150);
/// The console is written once a second and looked at a little later; a stamp that it shows this long after a freeze is newer.
const CONSOLE_LAG_MS: i64 = 5_000;

/// What is done to the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    EngineKilled,
    OrchestratorKilled,
    VmKilled(&'static str),
    StoreAway,
    EngineStalled,
    BothKilled,
}

/// Which stamp each console showed when: (milliseconds since the epoch, sequence).
type Seen = Mutex<BTreeMap<&'static str, Vec<(i64, u64)>>>;

struct Random(u64);

fn main() -> Result<()> {
    let number = |index: usize, default: u64| {
        std::env::args()
            .nth(index)
            .map_or(Ok(default), |text| text.parse())
            .context("usage: soak [MINUTES] [SEED]")
    };
    let minutes = number(1, 20)?;
    let seed = number(2, u64::from(std::process::id()))?;
    let mut lab = Lab::new("soak")?;
    let outcome = soak(&lab, minutes, seed);
    if outcome.is_err() {
        lab.failed();
    }
    outcome
}

fn soak(lab: &Lab, minutes: u64, seed: u64) -> Result<()> {
    show(&format!("{minutes} minutes, seed {seed}"));
    let mut orchestrator = Orchestrator::start(lab)?;
    let cli = Cli::new(lab, &orchestrator)?;
    start_guests(lab, &GUESTS, FILL_MIB)?;
    let names = GUESTS.map(|(name, _)| name);
    let terraform = Terraform::new(
        lab,
        "first-light",
        &orchestrator.environment()?,
        &variables(lab, &names, false),
    )?;
    terraform.run(&["init"])?;
    terraform.apply()?;
    for name in names {
        wait_for_points(&cli, name, 1)?;
    }
    let seen = Seen::default();
    let stop = AtomicBool::new(false);
    let (faults, listed) = std::thread::scope(|scope| {
        scope.spawn(|| watch_consoles(lab, &seen, &stop));
        let outcome = torment(lab, &cli, &mut orchestrator, minutes, seed);
        stop.store(true, Ordering::Relaxed);
        outcome
    })?;
    let mut points = 0;
    let replicas = Replica::all(&lab.folder().join("storage"))?;
    ensure!(replicas.len() == names.len(), "not every VM has a replica");
    let mut left = listed;
    for replica in &replicas {
        let proofs = replica.prove_all(lab)?;
        points += proofs.len();
        for proof in &proofs {
            left.remove(&proof.point.id.to_string());
        }
        judge(&proofs, &seen)?;
    }
    ensure!(left.is_empty(), "points vanished from the store: {left:?}");
    terraform.destroy()?;
    let total: usize = faults.values().sum();
    println!(
        "soak: {minutes} min, seed {seed}: {points} points proven, {total} faults, 0 violations"
    );
    for (fault, count) in faults {
        println!("  {count:>4} {fault:?}");
    }
    Ok(())
}

type Count = BTreeMap<Fault, usize>;

/// Fault after fault; returns how many of each, and every point that was ever listed.
fn torment(
    lab: &Lab,
    cli: &Cli,
    orchestrator: &mut Orchestrator,
    minutes: u64,
    seed: u64,
) -> Result<(Count, BTreeSet<String>)> {
    let mut random = Random(seed);
    let mut count = Count::new();
    let mut listed = BTreeSet::new();
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    while Instant::now() < end {
        // Where in a cycle it hits is left to chance.
        std::thread::park_timeout(Duration::from_millis(random.below(12_000)));
        let before = positions(cli)?;
        let fault = random.fault();
        show(&format!("{fault:?}"));
        strike(lab, orchestrator, fault, &mut random)?;
        *count.entry(fault).or_default() += 1;
        for (name, position) in before {
            let what = format!("{name} gets a point beyond {position} after {fault:?}");
            wait_for(&what, RECOVERS_WITHIN, || {
                // The orchestrator may have forgotten nothing, but it may be just starting.
                let now = newest_position(cli, name).unwrap_or_default();
                Ok((now > position).then_some(()))
            })?;
            listed.extend(point_ids(cli, name)?);
        }
    }
    Ok((count, listed))
}

fn positions(cli: &Cli) -> Result<Vec<(&'static str, u64)>> {
    GUESTS
        .iter()
        .map(|(name, _)| Ok((*name, newest_position(cli, name)?)))
        .collect()
}

fn point_ids(cli: &Cli, vm: &str) -> Result<Vec<String>> {
    let points = cli.json(&["point", "list", vm])?;
    points
        .as_array()
        .into_iter()
        .flatten()
        .map(|point| {
            point
                .get("name")
                .and_then(Value::as_str)
                .map(str::to_owned)
                .context("a point without a name")
        })
        .collect()
}

fn strike(
    lab: &Lab,
    orchestrator: &mut Orchestrator,
    fault: Fault,
    random: &mut Random,
) -> Result<()> {
    match fault {
        Fault::EngineKilled => kill_engine(lab),
        Fault::OrchestratorKilled => {
            orchestrator.kill()?;
            orchestrator.restart()
        }
        Fault::BothKilled => {
            orchestrator.kill()?;
            kill_engine(lab)?;
            orchestrator.restart()
        }
        Fault::VmKilled(name) => {
            let pid = pid_in(&lab.vm_folder().join(name).join("run/pid"))?;
            kill_9(pid)?;
            wait_for("QEMU is gone", RECOVERS_WITHIN, || {
                Ok((!is_alive(pid)).then_some(()))
            })?;
            lab.start_vm(name)?;
            lab.console(name).wait_for_sequence(1, BOOT).map(drop)
        }
        Fault::StoreAway => {
            let (here, away) = (lab.folder().join("storage"), lab.folder().join("away"));
            std::fs::rename(&here, &away)?;
            std::thread::park_timeout(Duration::from_millis(500 + random.below(20_000)));
            // Whatever was made in its place is not the store.
            if here.exists() {
                std::fs::remove_dir_all(&here)?;
            }
            std::fs::rename(&away, &here).context("bring the store back")
        }
        Fault::EngineStalled => {
            let pid = pid_in(&lab.folder().join("host/data/engine.pid"))?.to_string();
            run(std::process::Command::new("kill").args(["-STOP", &pid]))?;
            std::thread::park_timeout(Duration::from_millis(500 + random.below(20_000)));
            run(std::process::Command::new("kill").args(["-CONT", &pid])).map(drop)
        }
    }
}

fn kill_engine(lab: &Lab) -> Result<()> {
    let file = lab.folder().join("host/data/engine.pid");
    let pid = pid_in(&file)?;
    kill_9(pid)?;
    wait_for("the engine is started again", RECOVERS_WITHIN, || {
        Ok(pid_in(&file)
            .ok()
            .filter(|new| *new != pid && is_alive(*new))
            .map(drop))
    })
}

fn watch_consoles(lab: &Lab, seen: &Seen, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for (name, _) in GUESTS {
            let Some(sequence) = lab.console(name).sequence() else {
                continue;
            };
            let now = now_ms();
            if let Ok(mut seen) = seen.lock() {
                let list = seen.entry(name).or_default();
                if list.last().is_none_or(|(_, last)| *last != sequence) {
                    list.push((now, sequence));
                }
            }
        }
        std::thread::park_timeout(LOOK);
    }
}

/// Each point holds what the guest had been told is durable before its freeze, and nothing from after it.
fn judge(proofs: &[Proof], seen: &Seen) -> Result<()> {
    let seen = seen.lock().map_err(|_| anyhow::anyhow!("a thread died"))?;
    let name = proofs
        .first()
        .and_then(|proof| proof.point.vm_config.get("name")?.as_str())
        .context("no point names its VM")?;
    let console = seen
        .get(name)
        .with_context(|| format!("nothing seen of {name}"))?;
    let mut last = 0;
    for proof in proofs {
        let at = proof.point.time_unix_ms;
        let holds = proof.last_sequence.unwrap_or(0);
        ensure!(
            holds >= last,
            "{name}: point {} holds stamp {holds}, an older point {last}",
            proof.point.id
        );
        let before = console.iter().rev().find(|(ms, _)| *ms <= at);
        let after = console.iter().find(|(ms, _)| *ms >= at + CONSOLE_LAG_MS);
        if let Some((_, acknowledged)) = before {
            ensure!(
                holds >= *acknowledged,
                "{name}: point {} of {at} lacks stamp {acknowledged}, which was acknowledged before: it ends at {holds}",
                proof.point.id
            );
        }
        if let Some((_, later)) = after {
            ensure!(
                holds <= *later,
                "{name}: point {} of {at} holds stamp {holds} from after its freeze",
                proof.point.id
            );
        }
        last = holds;
    }
    Ok(())
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

impl Random {
    /// xorshift64*: good enough to choose, and the same everywhere for the same seed.
    fn next(&mut self) -> u64 {
        self.0 = self.0.max(1);
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    fn fault(&mut self) -> Fault {
        match self.below(10) {
            0..=2 => Fault::EngineKilled,
            3 | 4 => Fault::OrchestratorKilled,
            5 => Fault::VmKilled(GUESTS[0].0),
            6 => Fault::VmKilled(GUESTS[1].0),
            7 => Fault::StoreAway,
            8 => Fault::EngineStalled,
            _ => Fault::BothKilled,
        }
    }
}
