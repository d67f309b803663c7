//! The story of `make demo`, step by step; CI runs it as a test.
//!
//! ```text
//!  1 orchestrator ─► 2 two running guests ─► 3 terraform apply: protected
//!      ─► 4 recovery points ─► 5 drill: replicas boot, checkers speak ─► 6 everything gone again
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cli::Cli;
use crate::console::Console;
use crate::lab::{Guest, Lab};
use crate::orchestrator::Orchestrator;
use crate::process::wait_for;
use crate::terraform::Terraform;

/// Long enough for software emulation on a busy machine; nobody waits it out when things go well.
pub const BOOT: Duration = Duration::from_secs(300);
/// A policy of 30 s gives its first points within a few cycles.
const POINTS: Duration = Duration::from_secs(240);
/// Data that each guest writes once at first boot.
pub const FILL_MIB: u32 = 48;
/// How many points of each VM are waited for.
const WANTED_POINTS: usize = 3;

/// The two guests of the story: one of each generation.
pub const GUESTS: [(&str, u8); 2] = [("web01", 1), ("app01", 2)];

/// The story as it is told.
pub struct Story {
    start: Instant,
    step: Instant,
    title: String,
    times: Vec<(String, Duration)>,
}

// === impl Story ===

impl Story {
    /// Tells it from the beginning to the end; with `keep` everything is left running after the drill.
    pub fn tell(name: &str, keep: bool) -> Result<()> {
        let now = Instant::now();
        let mut story = Self {
            start: now,
            step: now,
            title: String::new(),
            times: Vec::new(),
        };
        let mut lab = Lab::new(name)?;
        let outcome = story.telling(&mut lab, keep);
        if outcome.is_err() {
            lab.failed();
        }
        outcome
    }

    fn telling(&mut self, lab: &mut Lab, keep: bool) -> Result<()> {
        let story = self;
        story.step("1/6  start the orchestrator: embedded SQLite, own CA, TLS");
        let orchestrator = Orchestrator::start(lab)?;
        show(&masked(&orchestrator.printed()?));
        let cli = Cli::new(lab, &orchestrator)?;

        story.step("2/6  build two guests from Debian packages and start them");
        start_guests(lab, &GUESTS, FILL_MIB)?;

        story.step("3/6  terraform init, terraform apply");
        let mut terraform = Terraform::new(
            lab,
            "first-light",
            &orchestrator.environment()?,
            &variables(lab, &GUESTS.map(|(name, _)| name), false),
        )?;
        terraform.show = true;
        terraform.run(&["init"])?;
        apply_with_progress(&terraform, &cli)?;
        show(&cli.text(&["item", "list"])?);

        story.step("4/6  wait for recovery points");
        for (name, _) in GUESTS {
            wait_for_points(&cli, name, WANTED_POINTS)?;
            show(&format!("recovery points of {name}"));
            show(&cli.text(&["point", "list", name])?);
        }
        show(&cli.text(&["item", "list"])?);

        story.step("5/6  drill: a siterecovery_test_failover of the plan");
        let before = sequences(lab)?;
        terraform.variables(&variables(lab, &GUESTS.map(|(name, _)| name), true))?;
        terraform.apply()?;
        let vms = drill_vms(&terraform)?;
        check_drill(&vms)?;
        for (name, sequence) in &before {
            let now = lab.console(name).wait_for_sequence(sequence + 1, BOOT)?;
            show(&format!(
                "{name} keeps running: it stamped from {sequence} to {now} during the drill"
            ));
        }
        if keep {
            lab.keep();
            story.end();
            show_what_to_try(lab, &orchestrator, &terraform);
            std::mem::forget(orchestrator);
            return Ok(());
        }

        story.step("6/6  destroy the drill, plan again, destroy everything");
        let points_before = newest_positions(&cli)?;
        terraform.variables(&variables(lab, &GUESTS.map(|(name, _)| name), false))?;
        terraform.apply()?;
        drill_is_gone(lab)?;
        replication_went_on(&cli, &points_before)?;
        terraform.plan_is_empty()?;
        show("a second plan is empty (exit code 0 with -detailed-exitcode)");
        terraform.destroy()?;
        nothing_is_left(lab)?;
        show("engine uninstalled, replicas removed, no process and no file of ours left");
        for (name, _) in GUESTS {
            lab.stop_vm(name)?;
        }
        story.end();
        Ok(())
    }

    fn step(&mut self, title: &str) {
        self.close_step();
        title.clone_into(&mut self.title);
        eprintln!("\n━━ {title}");
    }

    fn close_step(&mut self) {
        if !self.title.is_empty() {
            self.times
                .push((std::mem::take(&mut self.title), self.step.elapsed()));
        }
        self.step = Instant::now();
    }

    fn end(&mut self) {
        self.close_step();
        eprintln!("\n━━ times");
        for (title, time) in &self.times {
            eprintln!("    {:>7.1} s  {title}", time.as_secs_f64());
        }
        eprintln!("    {:>7.1} s  in all", self.start.elapsed().as_secs_f64());
    }
}

/// Builds the guests, starts them, and waits until each one stamps.
pub fn start_guests(lab: &Lab, guests: &[(&'static str, u8)], fill_mib: u32) -> Result<()> {
    for (name, generation) in guests {
        lab.build_guest(&Guest {
            name,
            generation: *generation,
            marker: None,
            fill_mib,
            app_mib: 0,
        })?;
        lab.start_vm(name)?;
    }
    for (name, generation) in guests {
        let sequence = lab.console(name).wait_for_sequence(1, BOOT)?;
        show(&format!(
            "{name} (generation {generation}) runs and stamps its disks; sequence {sequence}"
        ));
    }
    Ok(())
}

/// Variables of `examples/first-light`: each VM is a group of the plan, in this order.
pub fn variables(lab: &Lab, boot_order: &[&str], run_drill: bool) -> Value {
    json!({
        "vm_folder": lab.vm_folder(),
        "data_folder": lab.folder().join("host/data"),
        "install_folder": lab.folder().join("host/bin"),
        "replica_folder": lab.folder().join("storage"),
        "boot_order": boot_order.iter().map(|name| [name]).collect::<Vec<_>>(),
        "run_drill": run_drill,
    })
}

/// Applies while another thread tells how initial replication goes.
fn apply_with_progress(terraform: &Terraform, cli: &Cli) -> Result<()> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut told = String::new();
            while !done.load(Ordering::Relaxed) {
                // The vault does not exist at first; then there is simply nothing to tell.
                let line = cli
                    .json(&["item", "list"])
                    .map(|items| progress_line(&items))
                    .unwrap_or_default();
                if line != told {
                    eprintln!("    … {line}");
                    told = line;
                }
                std::thread::park_timeout(Duration::from_secs(1));
            }
        });
        let outcome = terraform.apply();
        done.store(true, Ordering::Relaxed);
        outcome.map(drop)
    })
}

fn progress_line(items: &Value) -> String {
    let item = |item: &Value| {
        let text = |pointer: &str| {
            item.pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or("?")
                .to_owned()
        };
        let percent = text(
            "/properties/providerSpecificDetails/initialReplicationDetails/initialReplicationProgressPercentage",
        );
        format!(
            "{}: {}, initial replication {percent} %",
            text("/properties/friendlyName"),
            text("/properties/protectionState")
        )
    };
    items
        .as_array()
        .map(|items| items.iter().map(item).collect::<Vec<_>>().join("; "))
        .unwrap_or_default()
}

/// Waits until an item has this many recovery points.
pub fn wait_for_points(cli: &Cli, vm: &str, wanted: usize) -> Result<Vec<Value>> {
    wait_for(&format!("{wanted} recovery points of {vm}"), POINTS, || {
        let points = cli.json(&["point", "list", vm])?;
        let points = points.as_array().cloned().unwrap_or_default();
        Ok((points.len() >= wanted).then_some(points))
    })
}

fn sequences(lab: &Lab) -> Result<Vec<(&'static str, u64)>> {
    GUESTS
        .iter()
        .map(|(name, _)| {
            Ok((
                *name,
                lab.console(name)
                    .sequence()
                    .with_context(|| format!("{name} does not stamp"))?,
            ))
        })
        .collect()
}

/// What Terraform's output says about the VMs of the drill.
pub fn drill_vms(terraform: &Terraform) -> Result<Vec<Value>> {
    let outputs = terraform.outputs()?;
    let vms = outputs
        .pointer("/drill_vms/value")
        .and_then(Value::as_array)
        .cloned()
        .context("no output drill_vms")?;
    ensure!(!vms.is_empty(), "the drill names no VM");
    Ok(vms)
}

/// Waits for the checker in each recovered guest.
pub fn check_drill(vms: &[Value]) -> Result<()> {
    for vm in vms {
        let text = |name: &str| vm.get(name).and_then(Value::as_str).unwrap_or_default();
        let console = Console::at(std::path::Path::new(text("console_path")));
        let check = console.wait_for_check(BOOT)?;
        show(&format!(
            "{}: point of {}, started {}, first line {}",
            text("name"),
            text("point_time"),
            text("started_at"),
            text("first_output_at")
        ));
        show(&format!("  checker: {}", check.line));
        show(&format!(
            "  every stamp up to {} is there; it was {:.1} s old",
            check.last_sequence,
            seconds(check.age_ms)
        ));
        ensure!(
            check.last_sequence > 0,
            "the recovered disk of {} holds no stamp",
            text("name")
        );
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
fn seconds(milliseconds: i64) -> f64 {
    milliseconds as f64 / 1000.0
}

fn drill_is_gone(lab: &Lab) -> Result<()> {
    let recovered = lab.folder().join("host/data/recovered");
    let left = std::fs::read_dir(&recovered).map(|entries| {
        entries
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.is_dir())
            .collect::<Vec<_>>()
    });
    let left = left.unwrap_or_default();
    ensure!(left.is_empty(), "the drill left {left:?}");
    let processes: Vec<_> = lab
        .processes()
        .into_iter()
        .filter(|(_, line)| line.contains("qemu") && line.contains("recovered"))
        .collect();
    ensure!(
        processes.is_empty(),
        "the drill left processes: {processes:?}"
    );
    show("the drill's VMs and files are gone");
    Ok(())
}

fn newest_positions(cli: &Cli) -> Result<Vec<(&'static str, u64)>> {
    GUESTS
        .iter()
        .map(|(name, _)| Ok((*name, newest_position(cli, name)?)))
        .collect()
}

/// Journal position of the newest point of a VM.
pub fn newest_position(cli: &Cli, vm: &str) -> Result<u64> {
    let points = cli.json(&["point", "list", vm])?;
    let newest = points
        .as_array()
        .and_then(|points| points.last())
        .with_context(|| format!("{vm} has no point"))?;
    newest
        .pointer("/properties/providerSpecificDetails/position")
        .and_then(Value::as_u64)
        .context("a point without position")
}

fn replication_went_on(cli: &Cli, before: &[(&'static str, u64)]) -> Result<()> {
    for (name, position) in before {
        let what = format!("{name} gets points beyond {position}");
        let now = wait_for(&what, POINTS, || {
            Ok(Some(newest_position(cli, name)?).filter(|now| now > position))
        })?;
        show(&format!(
            "{name}: replication never paused; newest position {now}"
        ));
    }
    Ok(())
}

/// After `terraform destroy`: no engine, no replica, no log beside a disk. A replica that was removed leaves its tombstone:
/// an engine that was away meanwhile must not make it anew.
pub fn nothing_is_left(lab: &Lab) -> Result<()> {
    let engines: Vec<_> = lab
        .processes()
        .into_iter()
        .filter(|(_, line)| line.contains("siterecovery-engine"))
        .collect();
    ensure!(engines.is_empty(), "processes are left: {engines:?}");
    for folder in ["host", "storage"] {
        let mut left = files_below(&lab.folder().join(folder));
        left.retain(|path| !is_of_tombstone(path));
        ensure!(left.is_empty(), "files are left in `{folder}`: {left:?}");
    }
    let logs: Vec<_> = files_below(&lab.vm_folder())
        .into_iter()
        .filter(|path| path.contains(".hrl"))
        .collect();
    if !logs.is_empty() {
        bail!("replication logs are left beside the disks: {logs:?}");
    }
    Ok(())
}

/// The record of a removed replica, or the empty lock beside it.
fn is_of_tombstone(path: &str) -> bool {
    let path = std::path::Path::new(path);
    let says_removed = |path: &std::path::Path| {
        std::fs::read_to_string(path).is_ok_and(|text| text.contains("\"removed\":true"))
    };
    match path.file_name().and_then(|name| name.to_str()) {
        Some("generation") => says_removed(path),
        Some("lock") => {
            let is_empty = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() == 0);
            is_empty && says_removed(&path.with_file_name("generation"))
        }
        _ => false,
    }
}

/// Every file below a folder that may not exist.
pub fn files_below(folder: &std::path::Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let paths = entries.flatten().map(|entry| entry.path());
    paths
        .flat_map(|path| {
            if path.is_dir() {
                files_below(&path)
            } else {
                vec![path.display().to_string()]
            }
        })
        .collect()
}

/// Prints what belongs to the running step, indented.
pub fn show(text: &str) {
    for line in text.lines() {
        eprintln!("    {line}");
    }
}

/// The demo's terminal may be recorded; a secret in it would be one too many.
fn masked(text: &str) -> String {
    let mask = |line: &str| match line.split_once("CLIENT_SECRET=") {
        Some((before, _)) => format!("{before}CLIENT_SECRET=… (printed once; not repeated here)"),
        None => line.to_owned(),
    };
    text.lines().map(mask).collect::<Vec<_>>().join("\n")
}

fn show_what_to_try(lab: &Lab, orchestrator: &Orchestrator, terraform: &Terraform) {
    let environment = lab.folder().join("orchestrator/admin.env");
    eprintln!("\n━━ everything is left running; what to try next");
    show(&format!("set -a; source {}; set +a", environment.display()));
    show(&format!(
        "{} item list",
        lab.program("siterecovery").display()
    ));
    show(&format!(
        "{} test-failover start --item web01",
        lab.program("siterecovery").display()
    ));
    show(&format!(
        "tail -f {}",
        lab.vm_folder().join("web01/run/console.log").display()
    ));
    show(&format!(
        "cd {}; TF_CLI_CONFIG_FILE={} terraform destroy",
        terraform.folder().display(),
        lab.folder().join("terraform.rc").display()
    ));
    show(&format!(
        "log of the orchestrator (process {}): {}",
        orchestrator.pid(),
        orchestrator.log().display()
    ));
    show("the next `make demo` ends all of it");
}
