//! The program inside the lab's guests: checks what an earlier run left, then stamps on.
//!
//! ```text
//!   lab-guest run      what /init starts: find disks, check, stamp until the power button
//!   lab-guest check    check the rings of two disks or raw images, read-only
//!   lab-guest stamp    check, then write a number of epochs (on raw images too)
//! ```
//!
//! Each line it prints starts with `LAB`; tests wait for these lines on the console. `run` never
//! stamps on after a failed check, so that the evidence stays.

// This program's whole purpose is its lines on the console.
#![allow(clippy::print_stdout)]

mod app;
mod bench;
mod copy;
mod disks;
mod options;
mod power;
mod record;
mod ring;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::bench::Bench;
use crate::copy::{Checked, Place, Stamper};
use crate::options::Options;
use crate::power::PowerRequest;
use crate::record::GuestId;
use crate::ring::{DATA_RECORDS_PER_EPOCH, Verdict};

const USAGE: &str = "usage: lab-guest run
       lab-guest check --data FILE --os FILE [--os-offset BYTES] [--id GUID]
       lab-guest stamp --data FILE --os FILE [--os-offset BYTES] [--id GUID] [--epochs N] [--marker TEXT]";

/// How long disks may take to appear.
const DISKS_WITHIN: Duration = Duration::from_secs(60);
const REPORT_EVERY: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.split_first() {
        Some((word, [])) if word == "run" => run(),
        Some((word, rest)) if word == "check" => {
            Places::parse(rest).and_then(|places| places.check())
        }
        Some((word, rest)) if word == "stamp" => {
            Places::parse(rest).and_then(|places| places.stamp())
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("LAB check FAILED reason={error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The guest's whole life. An error means that the disks can't be trusted, found or written.
fn run() -> anyhow::Result<()> {
    let options = Options::parse(
        &fs::read_to_string("/proc/cmdline").context("can't read the kernel command line")?,
    )?;
    // With an agent behind it the port is the agent's alone.
    let channel = (!options.agent).then_some(Path::new("/dev/ttyS1"));
    let power = PowerRequest::listen(Path::new("/dev/input"), channel);
    let disks = wait_for_disks(options.agent)?;
    let data = Place::data(&disks.data, true)?;
    let os = Place::os(&disks.os_stamps, 0, true)?;
    let checked = copy::check(options.guest, &data, &os)?;
    println!("{}", result_line(&checked));
    let mut stamper = Stamper::resume(data, os, options.guest, &options.marker, &checked);
    let mut fill_mib = checked.fill_mib;
    if checked.verdict == Verdict::Empty && options.fill_mib > 0 {
        println!("LAB filling mib={}", options.fill_mib);
        fill_mib = stamper.fill(options.fill_mib)?;
        println!("LAB filled mib={fill_mib}");
    }
    if let Some(disk) = disks.app.as_deref().filter(|_| options.agent) {
        app::run(disk).context("the application's disk")?;
    }
    if options.bench_seconds > 0 {
        let mut bench = Bench::open(&disks.data, fill_mib, options.bench_mib)?;
        return run_bench(&mut bench, options.bench_seconds, &power);
    }
    stamp_on(&mut stamper, options.rate_per_second, &power).context("can't stamp on")
}

/// Rounds until the power button.
fn run_bench(bench: &mut Bench, seconds: u32, power: &PowerRequest) -> anyhow::Result<()> {
    bench.prepare()?;
    println!("LAB bench ready");
    for number in 1.. {
        let round = bench.round(Duration::from_secs(seconds.into()), || power.is_set())?;
        if power.is_set() {
            break;
        }
        println!("LAB {}", round.line(number));
    }
    println!("LAB poweroff bench");
    Ok(())
}

fn wait_for_disks(with_app: bool) -> anyhow::Result<disks::Disks> {
    let started = Instant::now();
    loop {
        match disks::find(Path::new("/sys"), Path::new("/dev")) {
            // The node in /dev may come a moment after the entry in /sys.
            Ok(disks)
                if disks.data.exists()
                    && disks.os_stamps.exists()
                    && (!with_app || disks.app.as_ref().is_some_and(|app| app.exists())) =>
            {
                return Ok(disks);
            }
            Err(error) if started.elapsed() > DISKS_WITHIN => return Err(error),
            Ok(_) if started.elapsed() > DISKS_WITHIN => bail!("the disks have no nodes in /dev"),
            // There is no event to wait for without udev.
            _ => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn stamp_on(
    stamper: &mut Stamper,
    rate_per_second: u64,
    power: &PowerRequest,
) -> anyhow::Result<()> {
    let pause = match rate_per_second {
        0 => Duration::ZERO,
        rate => Duration::from_micros(DATA_RECORDS_PER_EPOCH * 1_000_000 / rate),
    };
    let mut next = Instant::now();
    let mut reported: Option<Instant> = None;
    loop {
        let stamped = stamper.epoch()?;
        if power.is_set() {
            println!(
                "LAB poweroff sequence={} epoch={}",
                stamped.sequence, stamped.epoch
            );
            return Ok(());
        }
        if reported.is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
            println!("LAB sequence={} epoch={}", stamped.sequence, stamped.epoch);
            reported = Some(Instant::now());
        }
        // A slow disk makes the rate lower; it is not caught up later.
        next = (next + pause).max(Instant::now());
        thread::sleep(next - Instant::now());
    }
}

fn result_line(checked: &Checked) -> String {
    match &checked.verdict {
        Verdict::Empty => "LAB check empty".to_owned(),
        Verdict::Consistent(state) => format!(
            "LAB check ok disk=data last_sequence={} epoch={} stamped_unix_ms={} age_ms={} records={} os_epoch={} fill_mib={}",
            state.last_sequence,
            state.data_epoch,
            state.stamped_unix_ms,
            copy::unix_ms().saturating_sub(state.stamped_unix_ms),
            state.records,
            state.os_epoch,
            checked.fill_mib,
        ),
    }
}

/// Arguments of `check` and `stamp`.
struct Places {
    data: PathBuf,
    os: PathBuf,
    os_offset: u64,
    guest: GuestId,
    epochs: u64,
    marker: String,
}

impl Places {
    fn parse(arguments: &[String]) -> anyhow::Result<Self> {
        let (mut data, mut os) = (None, None);
        let (mut os_offset, mut epochs) = (0, 1);
        let (mut guest, mut marker) = (GuestId::default(), String::new());
        for pair in arguments.chunks(2) {
            let [name, value] = pair else {
                bail!("{} has no value\n{USAGE}", pair.concat());
            };
            match name.as_str() {
                "--data" => data = Some(PathBuf::from(value)),
                "--os" => os = Some(PathBuf::from(value)),
                "--os-offset" => os_offset = value.parse().context("--os-offset is no number")?,
                "--id" => guest = GuestId::parse(value).context("--id is no GUID")?,
                "--epochs" => epochs = value.parse().context("--epochs is no number")?,
                "--marker" => value.clone_into(&mut marker),
                _ => bail!("unknown argument {name}\n{USAGE}"),
            }
        }
        Ok(Self {
            data: data.context("--data is missing")?,
            os: os.context("--os is missing")?,
            os_offset,
            guest,
            epochs,
            marker,
        })
    }

    fn check(&self) -> anyhow::Result<()> {
        let data = Place::data(&self.data, false)?;
        let os = Place::os(&self.os, self.os_offset, false)?;
        println!("{}", result_line(&copy::check(self.guest, &data, &os)?));
        Ok(())
    }

    fn stamp(&self) -> anyhow::Result<()> {
        let data = Place::data(&self.data, true)?;
        let os = Place::os(&self.os, self.os_offset, true)?;
        let checked = copy::check(self.guest, &data, &os)?;
        let mut stamper = Stamper::resume(data, os, self.guest, &self.marker, &checked);
        for _ in 0..self.epochs {
            let stamped = stamper.epoch()?;
            println!("LAB sequence={} epoch={}", stamped.sequence, stamped.epoch);
        }
        Ok(())
    }
}
