//! Deterministic simulation of engine, store and orchestrator: two engines on one host and one store live through
//! crashes at named places and in the middle of nothing, a store that fails in all three ways or is away, clocks that
//! jump, desired states that are lost, repeated and late, take-overs with the old engine still there, key rotations,
//! disks that come, grow and go, guests that do not answer. Afterwards the oracle looks at every recovery point.
//!
//! `cargo xtask sim --seeds 500` runs many seeds, `cargo xtask sim --seed 7` replays one and tells what happens.

#![allow(clippy::print_stdout, reason = "a replay tells what happens")]

mod clock;
#[path = "../support/faults.rs"]
#[allow(dead_code, reason = "the other test programs use the rest")]
mod faults;
mod host;
mod life;
mod oracle;
mod orchestrator;
mod store;
mod trace;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use life::simulate;
use trace::Injected;

/// Seeds of an ordinary test run.
const SEEDS: u64 = 24;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[derive(Default)]
struct Total {
    seeds: u64,
    points: usize,
    acknowledged: usize,
    events: u64,
    injected: Injected,
    failed: BTreeMap<u64, String>,
}

#[test]
fn every_point_equals_its_freeze_whatever_happened() {
    let (begin, end) = match number("SIMULATION_SEED") {
        Some(seed) => (seed, seed + 1),
        None => (0, number("SIMULATION_SEEDS").unwrap_or(SEEDS)),
    };
    let told = begin > 0 || end == 1;
    let next = AtomicU64::new(begin);
    let total = Mutex::new(Total::default());
    std::thread::scope(|scope| {
        for _ in 0..number("SIMULATION_THREADS").unwrap_or(2) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= end {
                        return;
                    }
                    run(seed, told, &total);
                }
            });
        }
    });
    let total = total.into_inner().unwrap();
    println!(
        "{} seeds, {} events, {} points reported, {} points checked in the end",
        total.seeds, total.events, total.acknowledged, total.points
    );
    for (what, count) in &total.injected {
        println!("{count:>9}  {what}");
    }
    let failures: Vec<String> = total
        .failed
        .iter()
        .map(|(seed, text)| format!("seed {seed} (replay: cargo xtask sim --seed {seed}): {text}"))
        .collect();
    assert!(
        failures.is_empty(),
        "{} seeds failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

fn run(seed: u64, told: bool, total: &Mutex<Total>) {
    let outcome = std::panic::catch_unwind(|| simulate(seed, told));
    let mut total = total.lock().unwrap();
    total.seeds += 1;
    match outcome {
        Ok(outcome) => {
            total.points += outcome.points;
            total.acknowledged += outcome.acknowledged;
            total.events += outcome.events;
            for (what, count) in outcome.injected {
                *total.injected.entry(what).or_default() += count;
            }
        }
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default();
            total.failed.insert(seed, text);
        }
    }
}

#[test]
fn the_same_seed_does_the_same_things_in_the_same_order() {
    for seed in [3, 11, 42] {
        let (first, second) = (simulate(seed, false), simulate(seed, false));
        assert!(first.events > 100, "seed {seed} did nothing");
        assert_eq!(
            (first.hash, first.events),
            (second.hash, second.events),
            "seed {seed} differs from itself"
        );
    }
}
