//! `profile`: how much the disks of VMs change, and what that means for policy, bandwidth and journal.
//!
//! ```text
//!   every few seconds: sample ─► row of the CSV file (flushed) ─┐
//!                               ─► windows of 5/30/300/900 s ───┴─► summary at the end, or at Ctrl-C
//! ```
//!
//! Promise: stopping it at any time gives the summary of what was seen, and every row that was written stays. Change
//! tracking counts whole granules of 64 KiB, so its figures are the most that can be sent; reading image files counts
//! blocks of 4 KiB.

mod source;
mod statistics;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hypervisor::ExtentSet;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::engine::now_unix_ms;
use crate::{platform, progress, vm_command};
use source::{DiskName, Images, Sample, Source, Vms};
use statistics::{DiskChurn, Series};

const EXAMPLES: &str = "\
Examples:
  siterecovery-engine profile --vm-folder /vms --minutes 60 --csv churn.csv
  siterecovery-engine profile --vm-folder /vms --vm web01 --json > plan.json
  siterecovery-engine profile --images /backups/web01 --interval-seconds 300

Ctrl-C ends it early, with the summary of what was seen. More than a week gives figures to plan with.
Exit code 0: there is a summary. 1: nothing could be profiled; standard error says why. 2: the command line is wrong.";

/// What is profiled: exactly one of these.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "what", required = true, multiple = false)]
pub struct What {
    /// Folder with one folder a virtual machine: the running ones are profiled by change tracking.
    #[arg(long, value_name = "FOLDER")]
    vm_folder: Option<PathBuf>,
    /// Folder with image files, or one image: they are read again and again.
    #[arg(long, value_name = "PATH")]
    images: Option<PathBuf>,
}

/// Options of `profile`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Options {
    #[command(flatten)]
    what: What,
    /// Only the VM of this name; may be repeated.
    #[arg(long, value_name = "NAME")]
    vm: Vec<String>,
    /// Seconds from sample to sample.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    interval_seconds: f64,
    /// Ends by itself after so many minutes; without it at Ctrl-C.
    #[arg(long, value_name = "MINUTES")]
    minutes: Option<f64>,
    /// By how much the churn is expected to grow, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 30.0)]
    growth_percent: f64,
    /// File that gets one line a sample and disk.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Profiles until the time is over or somebody stops it.
pub async fn run(options: &Options) -> anyhow::Result<Value> {
    let interval = Duration::from_secs_f64(options.interval_seconds.clamp(0.1, 86_400.0));
    let length = options
        .minutes
        .map(|minutes| Duration::from_secs_f64((minutes * 60.0).clamp(0.0, 1e9)));
    let mut source = match (&options.what.vm_folder, &options.what.images) {
        (Some(folder), _) => Source::Vms(Vms::new(vm_command::driver(folder)?, &options.vm).await?),
        (None, Some(images)) => Source::Images(Images::new(images)?),
        (None, None) => anyhow::bail!("give --vm-folder or --images"),
    };
    let result = follow(options, &mut source, interval, length).await;
    // Also after an error: change tracking costs the host memory.
    source.end().await;
    result
}

/// Everything seen so far.
struct Seen {
    interval: Duration,
    disks: BTreeMap<DiskName, DiskChurn>,
    vms: BTreeMap<String, Series>,
    /// All VMs together: what the link sees.
    host: Series,
}

async fn follow(
    options: &Options,
    source: &mut Source,
    interval: Duration,
    length: Option<Duration>,
) -> anyhow::Result<Value> {
    let mut csv = options
        .csv
        .as_ref()
        .map(|path| {
            let mut file =
                File::create(path).with_context(|| format!("create {}", path.display()))?;
            writeln!(file, "time_unix_ms,vm,disk,seconds,changed_bytes")?;
            Ok::<_, anyhow::Error>(file)
        })
        .transpose()?;
    let mut seen = Seen {
        interval,
        disks: BTreeMap::new(),
        vms: BTreeMap::new(),
        host: Series::default(),
    };
    let bar = progress::spinner("profiling");
    let begin = Instant::now();
    source.sample().await?;
    let mut last = Instant::now();
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut stop = std::pin::pin!(platform::stop_wished()?);
    while length.is_none_or(|length| begin.elapsed() < length) {
        tokio::select! {
            () = &mut stop => break,
            _ = ticks.tick() => {}
        }
        let sample = source.sample().await?;
        let now = Instant::now();
        let seconds = now.duration_since(last).as_secs_f64();
        last = now;
        if let Some(file) = &mut csv {
            write_rows(file, &sample, seconds).context("write the CSV file")?;
        }
        seen.add(&sample, seconds);
        show(&bar, &sample, seconds);
    }
    bar.finish_and_clear();
    Ok(seen.summary(options.growth_percent))
}

fn write_rows(file: &mut File, sample: &Sample, seconds: f64) -> std::io::Result<()> {
    let time = now_unix_ms();
    let mut rows = String::new();
    for (name, changed) in sample {
        let bytes = changed
            .as_ref()
            .map_or_else(String::new, |changed| changed.bytes().to_string());
        let (vm, disk) = (quoted(&name.vm), quoted(&name.disk));
        rows.push_str(&format!("{time},{vm},{disk},{seconds:.3},{bytes}\n"));
    }
    file.write_all(rows.as_bytes())?;
    file.flush()
}

/// A field of a CSV file.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

fn show(bar: &ProgressBar, sample: &Sample, seconds: f64) {
    let bytes: u64 = sample.values().flatten().map(ExtentSet::bytes).sum();
    bar.set_message(format!(
        "{}/s changed",
        progress::human_bytes((bytes as f64 / seconds.max(0.001)) as u64)
    ));
}

impl Seen {
    fn add(&mut self, sample: &Sample, seconds: f64) {
        let mut of_vm: BTreeMap<&str, u64> = BTreeMap::new();
        for (name, changed) in sample {
            let interval = self.interval;
            let churn = self
                .disks
                .entry(name.clone())
                .or_insert_with(|| DiskChurn::new(interval));
            match changed {
                Some(changed) => {
                    churn.add(changed, seconds);
                    *of_vm.entry(&name.vm).or_default() += changed.bytes();
                }
                None => churn.gap(),
            }
        }
        if of_vm.is_empty() {
            return;
        }
        self.host.add(of_vm.values().sum(), seconds);
        for (vm, bytes) in of_vm {
            self.vms
                .entry(vm.to_owned())
                .or_default()
                .add(bytes, seconds);
        }
    }

    fn summary(&self, growth_percent: f64) -> Value {
        let growth = 1.0 + growth_percent / 100.0;
        let mut policies: BTreeMap<u64, f64> = BTreeMap::new();
        for (interval, rate) in self.disks.values().flat_map(DiskChurn::rates) {
            *policies.entry(interval).or_default() += rate * growth;
        }
        let mut host = self.host.summary();
        host["growthPercent"] = json!(growth_percent);
        host["objectives"] = json!(self.host.bandwidths(growth));
        host["policies"] = policies
            .iter()
            .map(|(interval, rate)| {
                json!({ "intervalSeconds": interval, "bandwidthBytesPerSecond": rate.round() as u64 })
            })
            .collect();
        let vms: Vec<Value> = self
            .vms
            .iter()
            .map(|(vm, series)| {
                let mut value = series.summary();
                value["name"] = json!(vm);
                value["disks"] = self
                    .disks
                    .iter()
                    .filter(|(name, _)| name.vm == *vm)
                    .map(|(name, churn)| {
                        let mut value = churn.summary();
                        value["name"] = json!(name.disk);
                        value
                    })
                    .collect();
                value
            })
            .collect();
        json!({ "kind": "churn profile", "host": host, "virtualMachines": vms })
    }
}

#[cfg(test)]
mod tests {
    use hypervisor::Extent;

    use super::*;

    fn sample(bytes: [Option<u64>; 2]) -> Sample {
        let set = |bytes| {
            ExtentSet::from_unsorted(vec![Extent {
                offset: 0,
                length: bytes,
            }])
        };
        ["a", "b"]
            .iter()
            .zip(bytes)
            .map(|(disk, bytes)| {
                let name = DiskName {
                    vm: "web01".to_owned(),
                    disk: (*disk).to_owned(),
                };
                (name, bytes.map(set))
            })
            .collect()
    }

    #[test]
    fn a_vm_peaks_with_its_disks_together_not_with_each_ones_peak() {
        let mut seen = Seen {
            interval: Duration::from_secs(1),
            disks: BTreeMap::new(),
            vms: BTreeMap::new(),
            host: Series::default(),
        };
        seen.add(&sample([Some(1000), Some(0)]), 1.0);
        seen.add(&sample([Some(0), Some(1000)]), 1.0);
        seen.add(&sample([None, None]), 1.0);
        let value = seen.summary(0.0);
        assert_eq!(value["virtualMachines"][0]["churnBytesPerSecondPeak"], 1000);
        assert_eq!(value["host"]["samples"], 2);
        assert_eq!(value["host"]["changedBytes"], 2000);
    }

    #[test]
    fn names_can_hold_what_separates_fields() {
        assert_eq!(quoted("web01"), "web01");
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.csv");
        let mut file = File::create(&path).unwrap();
        write_rows(&mut file, &sample([Some(7), None]), 1.5).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let rows: Vec<&str> = text.lines().collect();
        assert!(rows[0].ends_with(",web01,a,1.500,7"), "{text}");
        assert!(rows[1].ends_with(",web01,b,1.500,"), "{text}");
    }

    #[tokio::test]
    async fn image_files_are_profiled_until_the_time_is_over() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("disk.raw"), vec![1; 1 << 20]).unwrap();
        let options = Options {
            what: What {
                vm_folder: None,
                images: Some(folder.path().to_owned()),
            },
            vm: Vec::new(),
            interval_seconds: 0.1,
            minutes: Some(0.005),
            growth_percent: 30.0,
            csv: Some(folder.path().join("rows.csv")),
            json: true,
        };
        let value = run(&options).await.unwrap();
        assert!(value["host"]["samples"].as_u64().unwrap() >= 1, "{value}");
        assert_eq!(value["host"]["changedBytes"], 0);
        let rows = std::fs::read_to_string(folder.path().join("rows.csv")).unwrap();
        assert!(rows.lines().count() >= 2, "{rows}");
    }
}
