//! `qualify`: tries every assumption of this host's driver on a throw-away VM of its own, and reports one line each.
//!
//! ```text
//!   record (durable) ─► steps on a VM that it makes ─► ledger (verdicts) ─► report ─► everything taken away, the record last
//! ```
//!
//! Promises: no VM but its own is touched; a broken assumption leaves untried only what depends on it; whatever ends the run,
//! what it made is taken away, by itself or by the next run.

pub mod assumptions;
pub mod guest;
mod hyperv;
mod ledger;
mod power;
mod protect;
mod record;
pub mod report;
mod steps;
mod witness;

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hypervisor::Volume;
use tokio_util::sync::CancellationToken;

use crate::engine::now_unix_ms;
use crate::platform;
use assumptions::{Kind, Step};
use guest::{BootSector, Guest};
use ledger::{INTERRUPTED, Ledger, Stop};
use record::{Place, Record};
use report::Report;
use steps::Run;

pub use ledger::{Outcome, Verdict};
pub use record::PREFIX;
pub use steps::Subject;

/// Exit code when an assumption is broken, or something could not be taken away.
pub const BROKEN: u8 = 5;
/// Two VMs one after the other, their replica, and room for what a hypervisor keeps beside.
const ROOM: u64 = 512 << 20;
/// A guest in software emulation on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(120);

const EXAMPLES: &str = "\
Examples:
  siterecovery-engine qualify
  siterecovery-engine qualify --yes --folder D:\\qualify --json report.json
  siterecovery-engine qualify --clean-up

It makes one small virtual machine (64 MiB of memory, disks of 16 and 8 MiB, no network, a guest of one boot sector), later a
second one out of the replica of the first, and takes everything away again. No other virtual machine is touched. The engine's
service may run meanwhile; no orchestrator is needed. Run it as the account of the service, or its rights are not what is tried.

The report may be sent to us: it has the operating system's and the hypervisor's names and versions, free room, how many
virtual machines there are, verdicts, figures and errors. It has no names of this host, of its folders, virtual machines,
networks or users, and nothing secret; --json writes what is sent, so look at it before.

Exit code 0: all that was tried holds. 5: something is broken or could not be taken away. 1: it could not run, or was
interrupted. 2: the command line is wrong.";

/// Options of `qualify`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Options {
    /// Folder for the virtual machine and its replica, on a volume as production has it; 512 MiB must be free.
    #[arg(long, value_name = "FOLDER", default_value_os_t = platform::default_data_folder())]
    folder: PathBuf,
    /// Don't ask before it begins.
    #[arg(long)]
    yes: bool,
    /// Also write the report as JSON into this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What is printed.
    #[arg(long, value_enum, default_value_t = Shape::Text)]
    format: Shape,
    /// Only take away what a run that was killed has left. Every run does that first.
    #[arg(long)]
    clean_up: bool,
}

/// How the report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Shape {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Makes what is qualified, for VMs below a run's folder.
pub type Opener<'a> = &'a (dyn Fn(&Path) -> anyhow::Result<Subject> + Send + Sync);

/// Runs the command; gives what is to be printed, and the exit code.
///
/// # Errors
/// When it can't begin.
pub async fn run(options: &Options) -> anyhow::Result<(String, u8)> {
    let opener: Opener<'_> = &open;
    if options.clean_up {
        let found = clean_up(&options.folder, opener).await?;
        let text = match found {
            Some(run) => format!("what run {run} had left is taken away"),
            None => "nothing was left".to_owned(),
        };
        return Ok((text, 0));
    }
    if !options.yes && !agreed(&options.folder)? {
        bail!("not begun");
    }
    let stop = CancellationToken::new();
    let wished = platform::stop_wished()?;
    let trigger = stop.clone();
    crate::task::spawn_named("signals", async move {
        wished.await;
        trigger.cancel();
    });
    let wish = Wish {
        kind: KIND,
        folder: options.folder.clone(),
        patience: PATIENCE,
        stop,
    };
    let report = conduct(&wish, opener, &BootSector, &|step| {
        // Nobody is left to tell when standard error is closed.
        writeln!(std::io::stderr(), "{step} ...").ok();
    })
    .await?;
    let json = serde_json::to_string_pretty(&report.json()).context("the report as JSON")?;
    if let Some(file) = &options.json {
        std::fs::write(file, format!("{json}\n"))
            .with_context(|| format!("write the report to {}", file.display()))?;
    }
    let code = match (report.holds(), report.interrupted) {
        (true, _) => 0,
        (false, true) if report.left.is_none() => 1,
        (false, _) => BROKEN,
    };
    let text = match options.format {
        Shape::Text => report.text(),
        Shape::Json => json,
    };
    Ok((text, code))
}

fn agreed(folder: &Path) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("nobody is there to agree; say --yes");
    }
    write!(
        std::io::stderr(),
        "Make a throw-away virtual machine in {} and delete it again? [y/N] ",
        folder.display()
    )
    .context("ask")?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .context("read the answer")?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

#[cfg(unix)]
const KIND: Kind = Kind::Qemu;
#[cfg(windows)]
const KIND: Kind = Kind::Hyperv;

#[cfg(unix)]
fn open(folder: &Path) -> anyhow::Result<Subject> {
    let folders = vec![folder.join("vms")];
    Ok(Subject {
        driver: platform::driver(None, folders, folder.join("scratch"))?,
        hyperv: None,
    })
}

#[cfg(windows)]
fn open(_folder: &Path) -> anyhow::Result<Subject> {
    let driver = hypervisor::HypervDriver::new().context("set up the hyperv driver")?;
    Ok(Subject {
        driver: std::sync::Arc::new(driver.clone()),
        hyperv: Some(driver),
    })
}

/// What a run is asked for.
pub struct Wish {
    /// The driver.
    pub kind: Kind,
    /// Where its folder is made.
    pub folder: PathBuf,
    /// How long changes of the guest, points and events are waited for.
    pub patience: Duration,
    /// Ends it early.
    pub stop: CancellationToken,
}

/// Takes away what a run that was killed has left below `folder`; gives its name.
///
/// # Errors
/// What could not be taken away, and why.
pub async fn clean_up(folder: &Path, open: Opener<'_>) -> anyhow::Result<Option<String>> {
    let place = Place::open(folder)?;
    let found = clear(&place, open).await;
    place.close();
    found
}

async fn clear(place: &Place, open: Opener<'_>) -> anyhow::Result<Option<String>> {
    let Some(record) = place.left()? else {
        return Ok(None);
    };
    let subject = open(&place.of(&record))?;
    place
        .clean_up(&record, subject.driver.as_ref())
        .await
        .context("take away what an earlier run has left")?;
    Ok(Some(record.run))
}

/// One run, with what an earlier one left taken away first.
///
/// # Errors
/// When it can't begin; nothing is made then.
pub async fn conduct(
    wish: &Wish,
    open: Opener<'_>,
    guest: &dyn Guest,
    told: &(dyn Fn(&str) + Send + Sync),
) -> anyhow::Result<Report> {
    let place = Place::open(&wish.folder)?;
    let report = on(&place, wish, open, guest, told).await;
    // Also of a run that could not begin.
    place.close();
    report
}

async fn on(
    place: &Place,
    wish: &Wish,
    open: Opener<'_>,
    guest: &dyn Guest,
    told: &(dyn Fn(&str) + Send + Sync),
) -> anyhow::Result<Report> {
    clear(place, open).await?;
    has_room(&wish.folder, ROOM)?;
    let began_unix_ms = now_unix_ms();
    let begin = Instant::now();
    let record = Record::new(wish.kind);
    // First, so that a host without the role is left without a record.
    let subject = open(&place.of(&record))?;
    let folder = place.begin(&record)?;
    let driver = subject.driver.clone();
    let mut ledger = Ledger::new(wish.kind, wish.stop.clone());
    ledger.hide(&folder.display().to_string(), "<folder>");
    ledger.hide(&wish.folder.display().to_string(), "<folder>");
    let mut run = Run::new(subject, ledger, guest, &record, folder, wish.patience);
    steps(&mut run, told).await;
    told("take everything away");
    let Run { ledger, host, .. } = run;
    let cleaned = place.clean_up(&record, driver.as_ref()).await;
    Ok(Report {
        kind: wish.kind,
        host,
        began_unix_ms,
        seconds: begin.elapsed().as_secs_f64(),
        lines: ledger.close(),
        interrupted: wish.stop.is_cancelled(),
        left: cleaned.err().map(|error| format!("{error:#}")),
    })
}

async fn steps(run: &mut Run<'_>, told: &(dyn Fn(&str) + Send + Sync)) {
    let mut failed: BTreeMap<Step, Stop> = BTreeMap::new();
    for step in Step::ALL {
        let needs = step.needs().iter();
        let cause = needs.into_iter().find_map(|need| failed.get(need).copied());
        let done = match cause {
            Some(cause) => Err(cause),
            None if run.ledger.is_stopped() => Err(Stop(INTERRUPTED)),
            None => {
                told(step.name());
                run.ledger.begin();
                let done = run.step(step).await;
                if done.is_err() && step > Step::Create {
                    run.let_go().await;
                }
                done
            }
        };
        if let Err(cause) = done {
            failed.insert(step, cause);
            if step != Step::Elsewhere {
                run.ledger.leave(step, cause);
            }
        }
    }
}

fn has_room(folder: &Path, wanted: u64) -> anyhow::Result<()> {
    let volume = Volume::of(folder)
        .with_context(|| format!("look for room on the volume of {}", folder.display()))?;
    if volume.free_bytes < wanted {
        bail!(
            "{} has {} MiB free, and {} MiB are needed; give another --folder",
            folder.display(),
            volume.free_bytes >> 20,
            wanted >> 20
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_without_room_is_refused_before_anything_is_made() {
        let folder = tempfile::tempdir().unwrap();
        has_room(folder.path(), 1).unwrap();
        let error = has_room(folder.path(), u64::MAX).unwrap_err().to_string();
        assert!(error.contains("--folder"), "{error}");
    }
}
