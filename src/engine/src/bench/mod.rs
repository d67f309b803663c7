//! `bench`: this machine's ceilings, so that a slow replication can be told from a slow machine.
//!
//! Each case does one thing for a while and says how much of it went through in a second. Nothing of it is compared
//! with anything; what the engine reaches of these ceilings is another question. Files are made in the given folder and
//! taken away again, also after an error.

mod compute;
mod disk;
mod network;
mod store;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::ValueEnum as _;
use serde_json::{Value, json};

use crate::progress;

const EXAMPLES: &str = "\
Examples:
  siterecovery-engine bench
  siterecovery-engine bench --folder /var/lib/siterecovery --case disk-write --case disk-read-random
  siterecovery-engine bench --case store --store /mnt/replicas --json
  AZURE_STORAGE_SAS_TOKEN='sv=...' siterecovery-engine bench --case store \\
      --store https://account.blob.core.windows.net/replicas

Exit code 0: all cases were measured. 1: one was not; standard error says why. 2: the command line is wrong.";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Case {
    /// Writes 1 MiB after 1 MiB, then syncs.
    DiskWrite,
    /// Reads the same file back, not out of the cache.
    DiskRead,
    /// Writes 4 KiB at random places, then syncs.
    DiskWriteRandom,
    /// Reads 4 KiB at random places, not out of the cache.
    DiskReadRandom,
    /// BLAKE3 of 4 KiB blocks, as for block hashes.
    Hash,
    /// CRC-32C.
    Checksum,
    /// Zstandard of half compressible data, level by level.
    Compress,
    /// AES-256-GCM.
    Encrypt,
    /// One TLS 1.3 stream over the loopback device.
    Tls,
    /// Cycles into a store (see --store).
    Store,
}

/// Options of `bench`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Options {
    /// Folder for files of the disk cases.
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    folder: PathBuf,
    /// Only this case; may be repeated.
    #[arg(long, value_enum)]
    case: Vec<Case>,
    /// Store for the case `store`: a folder, or the URL of a container. Without it the case is left out.
    #[arg(long, value_name = "FOLDER|URL")]
    store: Option<String>,
    /// Seconds for each case.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    seconds: f64,
    /// Size of the file of the disk cases.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = progress::parse_bytes)]
    file_size: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Case, with its variant.
    pub name: String,
    /// Work done in a second.
    pub per_second: f64,
    /// What is counted: bytes, or operations.
    pub unit: Unit,
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Operations.
    Operations,
}

/// Runs the cases in order.
pub async fn run(options: &Options) -> anyhow::Result<Value> {
    let time = Duration::from_secs_f64(options.seconds.clamp(0.01, 3600.0));
    let mut cases: Vec<Case> = if options.case.is_empty() {
        Case::value_variants().to_vec()
    } else {
        options.case.clone()
    };
    cases.dedup();
    let bar = progress::spinner("measuring");
    let mut figures = Vec::new();
    let file = disk::Scratch::new(&options.folder, options.file_size.max(8 << 20));
    for case in cases {
        let name = case
            .to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default();
        bar.set_message(name.clone());
        let measured = match case {
            Case::DiskWrite => file.write(),
            Case::DiskRead => file.read(),
            Case::DiskWriteRandom => file.write_random(time),
            Case::DiskReadRandom => file.read_random(time),
            Case::Hash => Ok(compute::hash(time)),
            Case::Checksum => Ok(compute::checksum(time)),
            Case::Compress => compute::compress(time),
            Case::Encrypt => compute::encrypt(time),
            Case::Tls => network::tls(time).await,
            Case::Store => match &options.store {
                Some(store) => store::cycles(store, time).await,
                None => Ok(Vec::new()),
            },
        };
        figures.extend(measured.with_context(|| format!("case {name}"))?);
    }
    bar.finish_and_clear();
    Ok(json!({
        "kind": "ceilings of this machine",
        "processors": std::thread::available_parallelism().map_or(1, usize::from),
        "secondsPerCase": time.as_secs_f64(),
        "cases": figures.iter().map(show).collect::<Vec<_>>(),
    }))
}

fn show(figure: &Figure) -> Value {
    match figure.unit {
        Unit::Bytes => json!({
            "name": figure.name,
            "bytesPerSecond": figure.per_second.round() as u64,
            "text": format!("{}/s", progress::human_bytes(figure.per_second as u64)),
        }),
        Unit::Operations => json!({
            "name": figure.name,
            "operationsPerSecond": figure.per_second.round() as u64,
            "text": format!("{:.0} operations/s", figure.per_second),
        }),
    }
}

/// Repeats `work`, which says how much it did, until `time` is over.
fn repeat(time: Duration, mut work: impl FnMut() -> u64) -> f64 {
    let begin = Instant::now();
    let mut done = 0u64;
    loop {
        done += work();
        let took = begin.elapsed();
        if took >= time {
            return done as f64 / took.as_secs_f64();
        }
    }
}

/// Bytes that no compressor makes smaller; the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut word = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(folder: &std::path::Path, case: Vec<Case>) -> Options {
        Options {
            folder: folder.to_owned(),
            case,
            store: None,
            seconds: 0.02,
            file_size: 8 << 20,
            json: true,
        }
    }

    #[tokio::test]
    async fn every_case_measures_something_and_leaves_nothing() {
        engine_protocol::tls::install_crypto();
        let folder = tempfile::tempdir().unwrap();
        let store = tempfile::tempdir().unwrap();
        let mut options = options(folder.path(), Vec::new());
        options.store = Some(store.path().display().to_string());
        let value = run(&options).await.unwrap();
        let cases = value["cases"].as_array().unwrap();
        assert!(cases.len() >= Case::value_variants().len(), "{value}");
        for case in cases {
            let rate = case["bytesPerSecond"]
                .as_u64()
                .or(case["operationsPerSecond"].as_u64());
            assert!(rate.is_some_and(|rate| rate > 0), "{case}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let left: Vec<_> = std::fs::read_dir(store.path().join("bench"))
            .map(|entries| entries.flatten().map(|entry| entry.file_name()).collect())
            .unwrap_or_default();
        assert!(left.is_empty(), "{left:?}");
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_an_error() {
        let missing = options(
            std::path::Path::new("/nowhere/at/all"),
            vec![Case::DiskWrite],
        );
        assert!(run(&missing).await.is_err());
    }
}
