//! `rto`: from the operator's request to the first instruction of the recovered VM, for a large disk and a small one, and for
//! a group. The request is the one that a portal or the command line sends; everything behind it is the real thing.
//!
//! First instruction = QEMU runs the VM, as its engine notes when QEMU's start has returned. The first byte on the serial port,
//! which the firmware writes, is reported beside it: it can't come before.
//!
//! The peer restores: `qemu-img convert` of the replica's base into a disk of its own, then the same QEMU. The machine's ceiling
//! is that QEMU alone, started by hand over the same disks through `qemu-storage-daemon`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use arm_model::failover::{LATEST, PlanUnplannedFailover, SOURCE_NOT_REQUIRED, UnplannedFailover};
use serde::Serialize;
use serde_json::{Value, json};
use system_tests::process::{kill_9, pid_in};

use crate::outcome::{Bound, Measure, Outcome, median};
use crate::process::{Background, execute, settle, wait_for};
use crate::setting::Setting;
use crate::site::{Plan, Recovered, Site, size};

const LARGE: &str = "large";
const SMALL: &str = "small";
const GROUP: [&str; 4] = [LARGE, SMALL, "third", "fourth"];
/// A VM may take so long, s.
const ONE: f64 = 3.0;
/// Medians of the same fifth of a second differ by as much. What grew with the disk, a hundred times as large, would show.
const NOISE: f64 = 1.25;
/// VMs of one way to recover, alone, are started so many times as often as a group.
const SINGLES: usize = 2;

/// Seconds from request to first instruction, by one way to recover.
#[derive(Default)]
struct Series {
    large: Vec<f64>,
    small: Vec<f64>,
    /// Of the last VM of the group.
    group: Vec<f64>,
}

/// QEMU by hand: seconds until it runs the VM, and until the first byte on the serial port.
struct ByHand {
    running: Vec<f64>,
    output: f64,
}

/// One item or the plan.
struct Subject<'a> {
    id: String,
    guests: &'a [&'a str],
}

/// Drills and unplanned failovers in turn; sources are off, as after a disaster.
pub fn run(setting: &Setting) -> Result<Outcome> {
    let data = setting.size(1 << 30);
    let plan = |name, disk_bytes, data_bytes| Plan {
        name,
        disk_bytes,
        data_bytes,
    };
    let plans = [
        plan(LARGE, 1 << 40, data),
        plan(SMALL, 10 << 30, data),
        plan(GROUP[2], 10 << 30, data / 16),
        plan(GROUP[3], 10 << 30, data / 16),
    ];
    let site = Site::new(setting, "rto", &plans, &[GROUP.to_vec()])?;
    let outcome = measure(setting, &site, &plans);
    site.end(outcome)
}

fn measure(setting: &Setting, site: &Site, plans: &[Plan; 4]) -> Result<Outcome> {
    for plan in plans {
        site.lab.stop_vm(plan.name)?;
    }
    settle()?;
    let (large, small, all) = subjects(site)?;
    let (mut drill, mut failover) = (Series::default(), Series::default());
    // Drills first: a failover that is taken back leaves a VM to be compared when it runs again, and here none does.
    for (way, series) in [(Way::Drill, &mut drill), (Way::Failover, &mut failover)] {
        for round in 0..setting.rounds * SINGLES {
            // By turns, because what comes first follows the end of the group.
            if round % 2 == 0 {
                series.large.push(way.once(site, &large)?);
            }
            series.small.push(way.once(site, &small)?);
            if round % 2 == 1 {
                series.large.push(way.once(site, &large)?);
            }
            if round % SINGLES == 0 {
                series.group.push(way.once(site, &all)?);
            }
        }
    }
    // Once to the end, with all that follows the first instruction.
    let body = Way::Failover.body(&large)?;
    let (asked, job) = site.act(&large.id, Way::Failover.action(), Some(&body))?;
    let recovered = site.wait_for_output(LARGE)?;
    let output = (recovered.first_output_unix_ms - asked) as f64 / 1000.0;
    ensure!(
        recovered.started_unix_ms <= recovered.first_output_unix_ms,
        "a VM wrote before it ran: {recovered:?}"
    );
    site.follow(&job, |_| {})?;
    let by_hand = by_hand(setting, site, &recovered, &plans[0])?;
    site.complete(&large.id, "failoverCancel", None)?;
    site.wait_until_gone(LARGE)?;
    let restored = restore(setting, site, &plans[0])?;
    Ok(outcome(
        plans, &drill, &failover, output, &by_hand, restored,
    ))
}

fn subjects(site: &Site) -> Result<(Subject<'static>, Subject<'static>, Subject<'static>)> {
    let item = |name: &'static str, guests: &'static [&'static str]| -> Result<Subject<'static>> {
        let id = site.id("replicationProtectedItems", name)?;
        Ok(Subject { id, guests })
    };
    let plan = Subject {
        id: site.id("replicationRecoveryPlans", "failover-plan")?,
        guests: &GROUP,
    };
    Ok((item(LARGE, &[LARGE])?, item(SMALL, &[SMALL])?, plan))
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Drill,
    Failover,
}

// === impl Way ===

impl Way {
    fn action(self) -> &'static str {
        match self {
            Self::Drill => "testFailover",
            Self::Failover => "unplannedFailover",
        }
    }

    fn body(self, subject: &Subject<'_>) -> Result<Value> {
        fn properties(body: &impl Serialize) -> Result<Value> {
            Ok(json!({ "properties": serde_json::to_value(body)? }))
        }
        let is_plan = subject.guests.len() > 1;
        let details = json!({ "instanceType": "HyperVReplicaAzure" });
        match self {
            Self::Drill => Ok(json!({ "properties": {
                "failoverDirection": "PrimaryToRecovery",
                "networkType": "NoNetworkAttachAsInput",
                "providerSpecificDetails": if is_plan { json!([details]) } else { details },
            }})),
            Self::Failover if is_plan => {
                properties(&PlanUnplannedFailover::away(SOURCE_NOT_REQUIRED, LATEST))
            }
            Self::Failover => properties(&UnplannedFailover::away(SOURCE_NOT_REQUIRED, None)),
        }
    }

    /// Asks, waits until all VMs run, and takes all of it back; seconds until the last one ran.
    fn once(self, site: &Site, subject: &Subject<'_>) -> Result<f64> {
        let (asked, job) = site.act(&subject.id, self.action(), Some(&self.body(subject)?))?;
        let mut last = 0.0_f64;
        for guest in subject.guests {
            let vm = site.wait_for_recovered(guest)?;
            ensure!(
                asked <= vm.started_unix_ms,
                "{guest} ran before it was asked for, at {asked}: {vm:?}"
            );
            last = last.max((vm.started_unix_ms - asked) as f64 / 1000.0);
        }
        site.take_back(&job)?;
        for guest in subject.guests {
            site.wait_until_gone(guest)?;
        }
        Ok(last)
    }
}

/// The command line of a recovered VM, in a folder of its own, over the replica's base.
fn by_hand(setting: &Setting, site: &Site, recovered: &Recovered, plan: &Plan) -> Result<ByHand> {
    let folder = site.lab.folder().join("by-hand");
    let pid = pid_in(&recovered.folder.join("run/pid"))?;
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).context("QEMU's command line")?;
    let line = String::from_utf8_lossy(&line).replace(
        &recovered.folder.display().to_string(),
        &folder.display().to_string(),
    );
    let mut words = line.split_terminator('\0');
    let program = words.next().context("an empty command line")?.to_owned();
    let arguments: Vec<&str> = words.collect();
    std::fs::create_dir_all(folder.join("run"))?;
    // The daemon reads from the replica what the engine serves; the second disk of this guest is read from a hole.
    let _server = serve(&folder, &arguments, &site.base(plan.disk_bytes)?, plan)?;
    let (mut running, mut output) = (Vec::new(), 0.0);
    for round in 0..setting.rounds {
        for file in ["disk0.qcow2", "disk1.qcow2", "nvram.fd"] {
            std::fs::copy(recovered.folder.join(file), folder.join(file))
                .with_context(|| format!("copy {file} of a recovered VM"))?;
        }
        let begin = Instant::now();
        let (_, cost) = execute(Command::new(&program).args(&arguments))?;
        running.push(cost.wall);
        if round == 0 {
            let console = folder.join("run/console.log");
            wait_for("the first byte by hand", Duration::from_secs(60), || {
                Ok(console.metadata()?.len() > 0)
            })?;
            output = begin.elapsed().as_secs_f64();
        }
        end_qemu(&folder)?;
    }
    Ok(ByHand { running, output })
}

fn serve(folder: &Path, arguments: &[&str], base: &Path, plan: &Plan) -> Result<Background> {
    let exports = arguments.iter().filter_map(|argument| {
        let node: Value = serde_json::from_str(argument).ok()?;
        let export = node.pointer("/backing/export")?.as_str()?.to_owned();
        Some(export)
    });
    let socket = folder.join("nbd.sock");
    let mut command = Command::new("qemu-storage-daemon");
    command.args([
        "--nbd-server",
        &format!("addr.type=unix,addr.path={}", socket.display()),
    ]);
    for (number, export) in exports.enumerate() {
        let node = if number == 0 {
            format!(
                "driver=raw,size={},read-only=on,node-name=n0,file.driver=file,file.filename={}",
                plan.disk_bytes,
                base.display()
            )
        } else {
            format!("driver=null-co,size=134217728,read-zeroes=on,read-only=on,node-name=n{number}")
        };
        command.args(["--blockdev", &node, "--export"]);
        command.arg(format!(
            "type=nbd,id=e{number},node-name=n{number},name={export}"
        ));
    }
    let mut server = Background::start(&mut command, Some(&folder.join("daemon.log")))?;
    wait_for("qemu-storage-daemon", Duration::from_secs(20), || {
        ensure!(server.is_running(), "qemu-storage-daemon ended");
        Ok(socket.exists())
    })?;
    Ok(server)
}

/// Ends a QEMU that this program started.
fn end_qemu(folder: &Path) -> Result<()> {
    let file = folder.join("run/pid");
    kill_9(pid_in(&file)?)?;
    std::fs::remove_file(&file).context("remove QEMU's pid file")
}

/// Seconds of a restore of the large disk.
fn restore(setting: &Setting, site: &Site, plan: &Plan) -> Result<f64> {
    let scratch = setting.scratch("rto")?;
    let target: PathBuf = scratch.file("restored.qcow2");
    let base = site.base(plan.disk_bytes)?;
    let begin = Instant::now();
    execute(
        Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .arg(&base)
            .arg(&target),
    )?;
    Ok(begin.elapsed().as_secs_f64())
}

fn outcome(
    plans: &[Plan; 4],
    drill: &Series,
    failover: &Series,
    output: f64,
    by_hand: &ByHand,
    restored: f64,
) -> Outcome {
    let middle = |seconds: &[f64]| median(seconds.to_vec());
    let bare = middle(&by_hand.running);
    let peer = restored + bare;
    let (large, small) = (size(plans[0].disk_bytes), size(plans[1].disk_bytes));
    let further = (GROUP.len() - 1) as f64;
    let mut measures = Vec::new();
    for (way, series) in [("failover", failover), ("drill", drill)] {
        let (ours_large, ours_small) = (middle(&series.large), middle(&series.small));
        measures.push(
            Measure::new(
                format!("{way}, {large}; ratio by {ONE} s"),
                ours_large,
                peer,
                "s",
            )
            .ratio(ours_large / ONE)
            .bound(Bound::AtMost(1.0)),
        );
        measures.push(
            Measure::new(
                format!("{way}, {large} (ours) and {small} (peer)"),
                ours_large,
                ours_small,
                "s",
            )
            .bound(Bound::AtMost(NOISE)),
        );
        let group = middle(&series.group);
        // By the faster of the two, so that nothing hides behind a slow single start.
        let extra = (group - ours_large.min(ours_small)) / further;
        measures.push(
            Measure::new(
                format!(
                    "{way}, last of {} VMs at once; ratio: each further one by 1 s",
                    GROUP.len()
                ),
                group,
                peer,
                "s",
            )
            .ratio(extra)
            .bound(Bound::AtMost(1.0)),
        );
    }
    measures.push(Measure::new(
        format!("failover, {large}, first byte on the serial port; peer: QEMU by hand"),
        output,
        by_hand.output,
        "s",
    ));
    Outcome {
        name: "rto",
        what: format!(
            "REST request to first instruction of the recovered VM, disks of {large} and {small} with {} MiB of data each, one VM and {} at once; peer: `qemu-img convert` of the replica into a disk, then the same QEMU",
            plans[0].data_bytes >> 20,
            GROUP.len()
        ),
        measures,
        ceiling: Some((bare, "the same QEMU by hand over the same disks, s")),
        notes: vec![
            format!(
                "first instruction: QEMU runs the VM, as its engine notes; \"no slower\" allows {:.0} % for what medians of such short times differ; the peer's time grows with the data, ours does not",
                (NOISE - 1.0) * 100.0
            ),
            "sources are off; orchestrator, both engines and all VMs share this machine".to_owned(),
        ],
    }
}
