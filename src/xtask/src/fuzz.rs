//! Fuzz targets: built with coverage on stable Rust, run for a bounded time from kept seeds.
//!
//! libFuzzer comes as source in `libfuzzer-sys`; the coverage is LLVM's own pass, which stable Rust can be told to run.
//! There is no sanitizer: the code is safe Rust, and the targets carry oracles.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1";

/// Every run begins with all seeds.
const MAX_SEEDS: usize = 48;

/// What to do with the targets.
pub struct Wish<'a> {
    /// Only this one.
    pub target: Option<&'a str>,
    /// Seconds for all of them together.
    pub seconds: u64,
    /// Run one input again.
    pub reproduce: Option<&'a Path>,
    /// Replace the seeds by the smallest set that covers what the corpus covers.
    pub keep: bool,
}

/// Builds the targets and does what is wished with them.
pub fn run(root: &Path, wish: &Wish<'_>) -> Result<()> {
    let folder = root.join("tests/fuzz");
    let targets = targets(&folder, wish.target)?;
    build(root, &folder)?;
    let place = Place {
        programs: root.join("target/fuzz").join(triple()).join("release"),
        work: root.join("target/fuzz"),
        seeds: folder.join("seeds"),
    };
    if let Some(input) = wish.reproduce {
        let [target] = targets.as_slice() else {
            bail!("--reproduce needs the name of a target");
        };
        let ended = Command::new(place.programs.join(target))
            .arg(input)
            .status()?;
        ensure!(
            ended.success(),
            "{target} still fails on {}",
            input.display()
        );
        println!("{target}: {} passes", input.display());
        return Ok(());
    }
    let each = (wish.seconds / targets.len().max(1) as u64).max(1);
    for target in &targets {
        if wish.keep {
            place.keep(target)?;
        } else {
            place.fuzz(target, each)?;
        }
    }
    Ok(())
}

/// Names of the targets: one file each.
fn targets(folder: &Path, only: Option<&str>) -> Result<Vec<String>> {
    let list = folder.join("src/bin");
    let mut names: Vec<String> = fs::read_dir(&list)
        .with_context(|| format!("list {}", list.display()))?
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    if let Some(only) = only {
        let known = names.join(", ");
        names.retain(|name| name == only);
        ensure!(
            !names.is_empty(),
            "there is no target `{only}`; there are: {known}"
        );
    }
    Ok(names)
}

fn build(root: &Path, folder: &Path) -> Result<()> {
    let ended = crate::cargo_command()
        .args(["build", "--release", "--quiet", "--locked", "--bins"])
        .args(["--target", &triple()])
        .arg("--manifest-path")
        .arg(folder.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(root.join("target/fuzz"))
        .env("RUSTFLAGS", COVERAGE)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .context("cargo can't be started")?;
    ensure!(
        ended.success(),
        "the fuzz targets don't build; libFuzzer needs a C++ compiler (package g++)"
    );
    Ok(())
}

/// With a target of its own, flags stay away from build scripts and macros.
fn triple() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

struct Place {
    programs: PathBuf,
    work: PathBuf,
    seeds: PathBuf,
}

impl Place {
    fn fuzz(&self, target: &str, seconds: u64) -> Result<()> {
        let corpus = self.work.join("corpus").join(target);
        let failures = self.work.join("failures").join(target);
        for folder in [&corpus, &failures] {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let before = list(&failures)?;
        let output = Command::new(self.programs.join(target))
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-artifact_prefix={}/", failures.display()))
            .args([
                "-timeout=30",
                "-rss_limit_mb=2048",
                "-max_len=4096",
                "-seed=1",
                "-len_control=0",
                "-verbosity=1",
            ])
            .arg(&corpus)
            .args(Some(self.seeds.join(target)).filter(|seeds| seeds.is_dir()))
            .output()
            .with_context(|| format!("start {target}"))?;
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text
            .lines()
            .rfind(|line| line.starts_with('#') && line.contains("cov:"))
            .unwrap_or("");
        if output.status.success() {
            println!(
                "fuzz {target}: {seconds} s, nothing found ({})",
                last.trim()
            );
            return Ok(());
        }
        let tail: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.starts_with("INFO:"))
            .take(25)
            .collect();
        let new = list(&failures)?
            .into_iter()
            .find(|path| !before.contains(path))
            .or_else(|| before.last().cloned());
        match new {
            Some(input) => bail!(
                "fuzz {target} broke a promise:\n{}\ninput: {}\nrun it again: cargo xtask fuzz {target} --reproduce {}",
                tail.join("\n"),
                input.display(),
                input.display()
            ),
            None => bail!(
                "fuzz {target} ended with {}:\n{}",
                output.status,
                tail.join("\n")
            ),
        }
    }

    /// The smallest set of inputs that covers what corpus and seeds cover becomes the seeds.
    fn keep(&self, target: &str) -> Result<()> {
        let (corpus, seeds) = (
            self.work.join("corpus").join(target),
            self.seeds.join(target),
        );
        let merged = self.work.join("merged").join(target);
        if merged.exists() {
            fs::remove_dir_all(&merged)?;
        }
        for folder in [&merged, &seeds, &corpus] {
            fs::create_dir_all(folder)?;
        }
        let ended = Command::new(self.programs.join(target))
            .args(["-merge=1", "-verbosity=0", "-max_len=4096"])
            .args([&merged, &seeds, &corpus])
            .status()?;
        ensure!(ended.success(), "the corpus of {target} can't be merged");
        let mut files: Vec<(u64, PathBuf)> = list(&merged)?
            .into_iter()
            .map(|path| Ok((fs::metadata(&path)?.len(), path)))
            .collect::<Result<_>>()?;
        files.sort();
        for old in list(&seeds)? {
            fs::remove_file(old)?;
        }
        // Small in version control and quick to run: at most 48 inputs of all lengths, 48 KiB in all.
        let count = files.len();
        let mut index = 0;
        files.retain(|_| {
            index += 1;
            count <= MAX_SEEDS || index * MAX_SEEDS / count != (index - 1) * MAX_SEEDS / count
        });
        let mut room = 48_u64 << 10;
        let mut kept = 0;
        for (length, path) in files {
            let Some(left) = room.checked_sub(length) else {
                break;
            };
            room = left;
            kept += 1;
            fs::copy(
                &path,
                seeds.join(path.file_name().context("a file has a name")?),
            )?;
        }
        println!("fuzz {target}: {kept} seeds kept");
        Ok(())
    }
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| format!("list {}", folder.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.sort();
    Ok(paths)
}
