//! Cuts the power at every write and flush of every component, and prints what was found.

#![allow(clippy::print_stdout, reason = "a command talks to its terminal")]

use clap::Parser;
use crash_tests::tally::{Tally, table};
use crash_tests::{compaction, hash_map, hrl, image, journal, store};

#[derive(Parser)]
#[command(
    about = "Crash enumeration of journal and its compaction, block hashes, manifest and points, disk images"
)]
struct Arguments {
    /// Draws the workloads and the samples
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only the component whose name has this in it
    component: Option<String>,
}

/// The components, the longest first so that both threads end together.
/// Enumerates the cuts of one component from a seed.
type Enumerate = fn(u64) -> Tally;

const COMPONENTS: [(&str, Enumerate); 6] = [
    ("manifest, points, journal, base", store::enumerate),
    ("compaction of the journal", compaction::enumerate),
    ("VHDX and VHD writers", image::enumerate),
    ("block hashes", hash_map::enumerate),
    ("journal object", journal::enumerate),
    ("replica log (.hrl)", hrl::enumerate),
];

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let wanted = |name: &str| {
        arguments
            .component
            .as_deref()
            .is_none_or(|part| name.contains(part))
    };
    let seed = arguments.seed;
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let running: Vec<_> = COMPONENTS
            .iter()
            .filter(|(name, _)| wanted(name))
            .map(|(_, enumerate)| scope.spawn(move || enumerate(seed)))
            .collect();
        running
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    anyhow::ensure!(!tallies.is_empty(), "no component has that in its name");
    println!("{}", table(&tallies));
    let broken: usize = tallies.iter().map(|tally| tally.violations.len()).sum();
    anyhow::ensure!(
        broken == 0,
        "{broken} promises were broken; run again with `cargo xtask crash --seed {seed}`"
    );
    Ok(())
}
