//! Explores the life of a protected VM in every adverse world, and prints what was found.

#![allow(clippy::print_stdout, reason = "a command talks to its terminal")]

use anyhow::{bail, ensure};
use clap::Parser;
use model_check::explore::{WAY_OUT, explore, promises};
use model_check::rules::Production;
use model_check::steps::{LONG_WORLDS, Model, PROMISES, WORLDS};

#[derive(Parser)]
#[command(about = "Model checker of a protected VM's life")]
struct Arguments {
    /// Give up beyond so many states of one world
    #[arg(long, default_value_t = 8_000_000)]
    limit: usize,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Only the world whose name has this in it
    world: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    println!("promises, checked in every state and on every step:");
    for promise in PROMISES.iter().chain([&WAY_OUT]) {
        println!("  - {promise}");
    }
    println!(
        "{:<46} {:>10} {:>12} {:>6} {:>8}",
        "world", "states", "steps", "depth", "seconds"
    );
    let (mut states, mut worlds) = (0, 0);
    let long = LONG_WORLDS.iter().filter(|_| arguments.world.is_some());
    for (name, settings) in WORLDS.iter().chain(long) {
        if arguments
            .world
            .as_deref()
            .is_some_and(|part| !name.contains(part))
        {
            continue;
        }
        let model = Model {
            rules: &Production,
            settings: *settings,
        };
        let outcome = match explore(&model, arguments.limit, arguments.threads) {
            Ok(outcome) => outcome,
            Err(large) => bail!(
                "world `{name}`: more than {} states; a state has grown: look for numbers that are not ranked",
                large.states
            ),
        };
        println!(
            "{name:<46} {:>10} {:>12} {:>6} {:>8.1}",
            outcome.states,
            outcome.steps,
            outcome.depth,
            outcome.time.as_secs_f64()
        );
        if let Some(broken) = outcome.broken {
            bail!(
                "world `{name}` breaks the promise \"{}\":\n{}",
                broken.promise,
                broken.story
            );
        }
        states += outcome.states;
        worlds += 1;
    }
    ensure!(worlds > 0, "no world has that in its name");
    println!(
        "{states} states of {worlds} worlds, explored to the end; {} promises hold",
        promises()
    );
    Ok(())
}
