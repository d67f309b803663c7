//! The figures that a release note names: RPO over some minutes, time of a drill, resident memory.
//!
//! `cargo run -p system-tests --bin figures [MINUTES]` (10 without an argument); the machine should have nothing else to do.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use system_tests::process::{matching, pid_in, resident_kib};
use system_tests::story::{FILL_MIB, GUESTS, show, start_guests, variables, wait_for_points};
use system_tests::{Cli, Lab, Orchestrator, Terraform};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const LOOK: Duration = Duration::from_millis(500);

fn main() -> Result<()> {
    let minutes = std::env::args()
        .nth(1)
        .map_or(Ok(10), |text| text.parse())
        .context("MINUTES is a number")?;
    let mut lab = Lab::new("figures")?;
    let outcome = measure(&lab, minutes);
    if outcome.is_err() {
        lab.failed();
    }
    outcome
}

fn measure(lab: &Lab, minutes: u64) -> Result<()> {
    let orchestrator = Orchestrator::start(lab)?;
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
    let provider = peak_while("terraform-provider-siterecovery", || terraform.apply())?;
    show(&format!(
        "provider, resident at most: {:.1} MiB",
        mib(provider)
    ));
    for name in names {
        wait_for_points(&cli, name, 2)?;
    }
    let rpo = sample_rpo(&cli, Duration::from_secs(minutes * 60))?;
    ensure!(!rpo.is_empty(), "no RPO was sampled");
    let at = |share: usize| {
        rpo.get((rpo.len() - 1) * share / 100)
            .copied()
            .unwrap_or_default()
    };
    show(&format!(
        "RPO over {minutes} min, {} samples of 2 VMs, policy 30 s: median {:.1} s, p99 {:.1} s, largest {:.1} s",
        rpo.len(),
        at(50),
        at(99),
        at(100)
    ));
    let engine = pid_in(&lab.folder().join("host/data/engine.pid"))?;
    show(&format!(
        "engine, resident after that: {:.1} MiB",
        mib(resident_kib(engine)?)
    ));
    show(&format!(
        "orchestrator, resident: {:.1} MiB",
        mib(resident_kib(orchestrator.pid())?)
    ));
    drill(&cli)?;
    terraform.destroy()?;
    Ok(())
}

/// Each VM alone, so that nobody waits for another one's boot.
fn drill(cli: &Cli) -> Result<()> {
    for (name, generation) in GUESTS {
        let asked = OffsetDateTime::now_utc();
        let job = cli.json(&["test-failover", "start", "--item", name])?;
        let started = find_time(&job, "started").context("the job names no start of the VM")?;
        let first =
            find_time(&job, "firstOutput").context("the job names no first line of the guest")?;
        show(&format!(
            "drill of {name} (generation {generation}), from request: VM started after {:.1} s, first line of the guest after {:.1} s",
            (started - asked).as_seconds_f64(),
            (first - asked).as_seconds_f64()
        ));
        cli.text(&["test-failover", "cleanup", "--item", name])?;
    }
    Ok(())
}

/// The first time below `body` whose name begins with `prefix`.
fn find_time(body: &Value, prefix: &str) -> Option<OffsetDateTime> {
    match body {
        Value::Object(members) => members.iter().find_map(|(name, value)| {
            let own = value
                .as_str()
                .filter(|_| name.starts_with(prefix))
                .and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
            own.or_else(|| find_time(value, prefix))
        }),
        Value::Array(elements) => elements
            .iter()
            .find_map(|element| find_time(element, prefix)),
        _ => None,
    }
}

/// Age of each VM's newest recovery point, looked at again and again; sorted, in seconds.
fn sample_rpo(cli: &Cli, length: Duration) -> Result<Vec<f64>> {
    let start = Instant::now();
    let mut samples = Vec::new();
    while start.elapsed() < length {
        let items = cli.json(&["item", "list"])?;
        for item in items.as_array().into_iter().flatten() {
            let newest = item
                .pointer("/properties/providerSpecificDetails/lastRecoveryPointReceived")
                .and_then(Value::as_str);
            let newest =
                OffsetDateTime::parse(newest.context("an item without a point")?, &Rfc3339)?;
            samples.push((OffsetDateTime::now_utc() - newest).as_seconds_f64());
        }
        std::thread::park_timeout(LOOK);
    }
    samples.sort_by(f64::total_cmp);
    Ok(samples)
}

/// Largest resident memory (KiB) of any process of this name while `act` runs.
fn peak_while<T>(name: &str, act: impl FnOnce() -> Result<T>) -> Result<u64> {
    let (done, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for (pid, _) in matching(name) {
                    // A process may end between the list and the look.
                    peak.fetch_max(resident_kib(pid).unwrap_or(0), Ordering::Relaxed);
                }
                std::thread::park_timeout(Duration::from_millis(20));
            }
        });
        let outcome = act();
        done.store(true, Ordering::Relaxed);
        outcome
    })?;
    Ok(peak.into_inner())
}

#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
