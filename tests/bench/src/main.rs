//! Comparisons with a peer: the same input, in turn, in one run, output verified. `cargo xtask bench` builds what they need
//! and runs them; this program only measures.
//!
//! ```text
//!   bench NAME [--json] [--scale 0.05] [--rounds 1]      one comparison; exit code 3 when a bound is not met
//!   bench --list                                         the names
//! ```

#![allow(clippy::print_stdout, reason = "a command talks to its terminal")]

mod cases;
mod data;
mod double;
mod outcome;
mod process;
mod setting;
mod site;
mod world;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use disk_image::ImageFile as _;

use cases::CASES;
use setting::Setting;

#[derive(Parser)]
#[command(name = "bench", about = "Comparisons with a peer, measured")]
struct Arguments {
    /// Which comparison
    name: Option<String>,
    /// Say the names and nothing else
    #[arg(long)]
    list: bool,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    /// Factor on all sizes; below 1 for a smoke test, whose figures mean nothing
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// How often cheap measurements are repeated
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The engine to measure; our other programs lie beside it. Without it those of this program's own build
    #[arg(long, value_name = "FILE")]
    engine: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let Some(name) = arguments.name.filter(|_| !arguments.list) else {
        for (name, _) in CASES {
            println!("{name}");
        }
        return Ok(ExitCode::SUCCESS);
    };
    let Some((_, case)) = CASES.iter().find(|(known, _)| *known == name) else {
        let known: Vec<&str> = CASES.iter().map(|(known, _)| *known).collect();
        bail!("no comparison {name:?}; there are: {}", known.join(", "));
    };
    engine_protocol::tls::install_crypto();
    let root = root()?;
    let setting = Setting {
        engine: arguments
            .engine
            .unwrap_or(std::env::current_exe()?.with_file_name("siterecovery-engine")),
        root,
        scale: arguments.scale.clamp(0.001, 100.0),
        rounds: arguments.rounds.max(1),
    };
    let outcome = case(&setting).with_context(|| format!("comparison {name}"))?;
    if arguments.json {
        println!("{}", outcome.json());
    } else {
        print!("{}", outcome.text());
    }
    Ok(if outcome.is_met() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    })
}

/// The workspace's folder.
fn root() -> Result<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .map(PathBuf::from)
        .context("this crate lies two folders below the workspace")
}

/// BLAKE3 of a file's bytes.
fn hash_file(path: &Path) -> Result<String> {
    const PIECE: u64 = 4 << 20;
    let file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    let length = file.metadata()?.len();
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; PIECE as usize];
    let mut at = 0;
    while at < length {
        let part = (length - at).min(PIECE);
        let piece = &mut buffer[..part as usize];
        file.read_at(piece, at)?;
        hasher.update(piece);
        at += part;
    }
    Ok(hasher.finalize().to_hex().to_string())
}
