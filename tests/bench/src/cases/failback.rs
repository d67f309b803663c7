//! `failback`: a recovered VM wrote 1 % of its disk; how much moves until the source has it, and how long nobody runs.
//!
//! The writes go through QEMU's device of the recovered VM, as a guest's would: 4 to 64 KiB, scattered, hard to compress.
//! Downtime = from the instant that the recovered VM's guest is off (its engine's log) to the instant that the source's QEMU
//! is there (seen from outside). The peer downloads the whole disk while the VM is off: `qemu-img convert`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use disk_image::{Access, DiskImage};
use hypervisor::{QemuDriver, VmId};
use serde_json::{Value, json};
use system_tests::process::catch;
use system_tests::story::BOOT;

use crate::data::{self, Random};
use crate::outcome::{Bound, Measure, Outcome};
use crate::process::{execute, settle};
use crate::setting::{Scratch, Setting};
use crate::site::{OURS_AT, Plan, Recovered, Site, noise_at, noise_of, size, unix_ms};

const GUEST: &str = "back";
const DISK: u64 = 64 << 30;
const MIB: u64 = 1 << 20;
/// Pieces of noise that the writes are made of; together larger than any compressor's memory.
const PIECES: usize = 512;
const PIECE: usize = 64 << 10;
/// Writes between which the VM's engine may reach QEMU.
const BATCH: usize = 64;
/// Besides the last delta.
const DOWNTIME: f64 = 5.0;

/// Noise in files, as QEMU reads it.
struct Noise {
    folder: PathBuf,
    pieces: Vec<Vec<u8>>,
}

/// What the recovered VM wrote: offset, length, piece.
#[derive(Default)]
struct Written(Vec<(u64, usize, usize)>);

/// What the failback took.
struct Took {
    /// Into the replica.
    shipped: u64,
    /// Onto the source's disk.
    received: u64,
    synchronised: f64,
    downtime: f64,
    /// Of the downtime, until the last delta was in the replica.
    delta: f64,
}

/// One VM, to the recovery side and back.
pub fn run(setting: &Setting) -> Result<Outcome> {
    let plan = Plan {
        name: GUEST,
        disk_bytes: setting.size(DISK).max(2 * OURS_AT),
        data_bytes: setting.size(2 << 30),
    };
    let scratch = setting.scratch("failback")?;
    let site = Site::new(setting, "failback", &[plan], &[vec![GUEST]])?;
    let outcome = measure(&site, &plan, &scratch);
    site.end(outcome)
}

fn measure(site: &Site, plan: &Plan, scratch: &Scratch) -> Result<Outcome> {
    let id = site.id("replicationProtectedItems", GUEST)?;
    site.cli.text(&["failover", "planned", GUEST])?;
    let recovered = site.recovered(GUEST)?.context("there is no recovered VM")?;
    site.console(&recovered).wait_for_check(BOOT)?;
    site.cli.text(&["failover", "commit", GUEST, "--yes"])?;
    catch("the failback is allowed", Duration::from_secs(120), || {
        let item = site.get(&id)?;
        let allowed = item.pointer("/properties/allowedOperations");
        let allowed = allowed.and_then(Value::as_array);
        Ok(allowed
            .is_some_and(|all| all.iter().any(|one| one == "Failback"))
            .then_some(()))
    })?;
    let noise = Noise::new(&scratch.folder("noise")?)?;
    let mut written = Written::default();
    let mut random = Random::new(11);
    let changed = plan.disk_bytes / 100;
    written.write(site, &recovered, &noise, &mut random, plan, changed)?;
    // What is written while the failback waits for its completion: the last delta.
    let last = changed / 64;
    let took = go_back(site, &id, &recovered, || {
        written.write(site, &recovered, &noise, &mut random, plan, last)
    })?;
    let check = site.lab.console(GUEST).wait_for_check(BOOT)?;
    ensure!(check.last_sequence > 0, "the source holds no stamp");
    site.lab.stop_vm(GUEST)?;
    let hash = verify(site, plan, &noise, &written)?;
    settle()?;
    let whole = scratch.file("whole.vhdx");
    let begin = Instant::now();
    execute(
        Command::new("qemu-img")
            .args(["convert", "-O", "vhdx", "-o", "subformat=dynamic"])
            .arg(site.disk(GUEST))
            .arg(&whole),
    )?;
    let peer_seconds = begin.elapsed().as_secs_f64();
    let peer_bytes = data::stored_bytes(&whole)?;
    Ok(outcome(
        plan,
        &took,
        written.bytes(),
        last,
        (peer_seconds, peer_bytes),
        &hash,
    ))
}

/// Synchronises while the VM runs; then `last` is written, and the failback is completed.
fn go_back(
    site: &Site,
    id: &str,
    recovered: &Recovered,
    last: impl FnOnce() -> Result<()>,
) -> Result<Took> {
    let body = json!({ "properties": {
        "failoverDirection": "RecoveryToPrimary",
        "providerSpecificDetails": {
            "instanceType": "HyperVReplicaAzureFailback",
            "dataSyncOption": "ForDownTime",
            "recoveryVmCreationOption": "NoAction",
        },
    }});
    let mut received = 0;
    let (asked, job) = site.act(id, "plannedFailover", Some(&body))?;
    site.follow(&job, |job| received = received.max(received_bytes(job)))?;
    let synchronised = (unix_ms() - asked) as f64 / 1000.0;
    last()?;
    let resume = json!({ "properties": { "comments": "" } });
    let resumed = unix_ms();
    site.post(&format!("{job}/resume"), &resume)?;
    let mut looked = Instant::now();
    // The recovery host's record goes when nothing is shipped any more.
    let record = recovered.record.with_extension("shipped.json");
    let mut shipped = 0;
    let started = catch("the source runs", Duration::from_secs(240), || {
        shipped = shipped.max(shipped_bytes(&record));
        if looked.elapsed() > Duration::from_millis(250) {
            looked = Instant::now();
            received = received.max(received_bytes(&site.get(&job)?));
        }
        Ok(site.runs_at_source(GUEST).then(unix_ms))
    })?;
    site.follow(&job, |job| received = received.max(received_bytes(job)))?;
    ensure!(
        shipped > 0 && received > 0,
        "what moved was not seen: {shipped} bytes shipped, {received} received"
    );
    let off = site.logged(
        "recovery",
        resumed,
        &["has shut down, its tracking is kept"],
    )?;
    let rest = site.logged(
        "recovery",
        off,
        &["all that a recovered VM wrote is in the replica"],
    )?;
    Ok(Took {
        shipped,
        received,
        synchronised,
        downtime: (started - off) as f64 / 1000.0,
        delta: (rest - off) as f64 / 1000.0,
    })
}

/// Sent since the failback was asked for, as the recovery host notes it; 0 while or when there is no such record.
fn shipped_bytes(record: &Path) -> u64 {
    let text = std::fs::read_to_string(record).unwrap_or_default();
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    value["sentBytes"].as_u64().unwrap_or(0)
}

/// `web01: 5 bytes shipped, 4 received, 0 to go`, as a job says it.
fn received_bytes(job: &Value) -> u64 {
    let tasks = job.pointer("/properties/tasks").and_then(Value::as_array);
    let texts = tasks.into_iter().flatten().filter_map(|task| {
        let text = task["stateDescription"].as_str()?;
        let (before, _) = text.split_once(" received")?;
        before.rsplit(' ').next()?.parse().ok()
    });
    texts.max().unwrap_or(0)
}

// === impl Noise ===

impl Noise {
    fn new(folder: &Path) -> Result<Self> {
        let mut random = Random::new(12);
        let pieces: Vec<Vec<u8>> = (0..PIECES).map(|_| random.noise(PIECE)).collect();
        for (number, piece) in pieces.iter().enumerate() {
            std::fs::write(folder.join(number.to_string()), piece)?;
        }
        Ok(Self {
            folder: folder.to_owned(),
            pieces,
        })
    }
}

// === impl Written ===

impl Written {
    fn bytes(&self) -> u64 {
        self.0.iter().map(|(_, length, _)| *length as u64).sum()
    }

    /// So many bytes, none over another, through the device of the guest's first disk.
    fn write(
        &mut self,
        site: &Site,
        recovered: &Recovered,
        noise: &Noise,
        random: &mut Random,
        plan: &Plan,
        bytes: u64,
    ) -> Result<()> {
        let mut taken: std::collections::BTreeSet<u64> = self
            .0
            .iter()
            .map(|(offset, ..)| offset / PIECE as u64)
            .collect();
        let slots = plan.disk_bytes / PIECE as u64;
        let first = OURS_AT / PIECE as u64;
        let (mut left, mut new) = (bytes / 4096 * 4096, Vec::new());
        while left > 0 {
            let slot = first + random.below(slots - first);
            if !taken.insert(slot) {
                continue;
            }
            let length = ((1 + random.below(16)) * 4096).min(left);
            let within = random.below((PIECE as u64 - length) / 4096 + 1) * 4096;
            let piece = random.below(PIECES as u64) as usize;
            new.push((slot * PIECE as u64 + within, length as usize, piece));
            left -= length;
        }
        let scratch = noise.folder.with_file_name("driver");
        let driver = QemuDriver::new(vec![site.recovery()], scratch)?;
        let id = recovered.folder.file_name().context("a VM's folder")?;
        let vm = VmId(id.to_string_lossy().parse()?);
        for batch in new.chunks(BATCH) {
            site.runtime.block_on(async {
                let mut qmp = driver.qmp(vm).await?;
                for (offset, length, piece) in batch {
                    let file = noise.folder.join(piece.to_string());
                    let line = format!(
                        "qemu-io -d device0 \"write -q -s {} {offset} {length}\"",
                        file.display()
                    );
                    let answer = qmp
                        .execute("human-monitor-command", json!({ "command-line": line }))
                        .await?;
                    let answer = answer.as_str().map_or("", str::trim);
                    ensure!(answer.is_empty(), "QEMU did not write: {answer}");
                }
                Ok(())
            })?;
        }
        self.0.extend(new);
        Ok(())
    }
}

/// The source's disk is, behind what belongs to its guest, what it was before with what the recovered VM wrote; by hash.
fn verify(site: &Site, plan: &Plan, noise: &Noise, written: &Written) -> Result<String> {
    let mut changes: BTreeMap<u64, Vec<(usize, &[u8])>> = BTreeMap::new();
    for (offset, length, piece) in &written.0 {
        let within = (offset % MIB) as usize;
        let bytes = &noise.pieces[*piece][..*length];
        changes
            .entry(offset / MIB)
            .or_default()
            .push((within, bytes));
    }
    let before: std::collections::BTreeSet<u64> = noise_at(plan).into_iter().collect();
    let image = DiskImage::open(site.disk(GUEST), Access::ReadOnly)?;
    ensure!(image.virtual_size() == plan.disk_bytes, "another size");
    let mut mibs: std::collections::BTreeSet<u64> = before.iter().copied().collect();
    mibs.extend(changes.keys());
    // What is allocated beside must be zero.
    for extent in image.allocated(OURS_AT..plan.disk_bytes) {
        mibs.extend(extent.offset / MIB..extent.end().div_ceil(MIB));
    }
    let (mut ours, mut expected) = (blake3::Hasher::new(), blake3::Hasher::new());
    let mut buffer = vec![0; MIB as usize];
    for mib in mibs {
        image.read_at(&mut buffer, mib * MIB)?;
        ours.update(&mib.to_le_bytes()).update(&buffer);
        let mut wanted = if before.contains(&mib) {
            noise_of(mib)
        } else {
            vec![0; MIB as usize]
        };
        for (within, bytes) in changes.get(&mib).into_iter().flatten() {
            wanted[*within..*within + bytes.len()].copy_from_slice(bytes);
        }
        expected.update(&mib.to_le_bytes()).update(&wanted);
    }
    let (ours, expected) = (ours.finalize(), expected.finalize());
    ensure!(
        ours == expected,
        "the source's disk is not what the recovered VM left: {ours} in place of {expected}"
    );
    Ok(ours.to_hex().to_string())
}

fn outcome(
    plan: &Plan,
    took: &Took,
    changed: u64,
    last: u64,
    (peer_seconds, peer_bytes): (f64, u64),
    hash: &str,
) -> Outcome {
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    let moved = |what: &str, bytes: u64| {
        Measure::new(what, mib(bytes), mib(peer_bytes), "MiB")
            .ratio(bytes as f64 / changed as f64)
            .bound(Bound::AtMost(1.1))
    };
    Outcome {
        name: "failback",
        what: format!(
            "failback of a VM with a disk of {}, {} MiB of data, after {:.0} MiB were changed in the recovered VM in writes of 4 to 64 KiB; peer: `qemu-img convert` of the whole disk while the VM is off",
            size(plan.disk_bytes),
            plan.data_bytes >> 20,
            mib(changed)
        ),
        measures: vec![
            moved("bytes into the replica, by those changed", took.shipped),
            moved(
                "bytes onto the source's disk, by those changed",
                took.received,
            ),
            Measure::new(
                format!("downtime, by {DOWNTIME} s and the last delta"),
                took.downtime,
                peer_seconds,
                "s",
            )
            .ratio(took.downtime / (DOWNTIME + took.delta))
            .bound(Bound::AtMost(1.0)),
        ],
        ceiling: Some((
            mib(changed),
            "MiB that were changed: nothing less tells them",
        )),
        notes: vec![
            format!(
                "synchronised within {:.1} s while the VM ran; the last delta, {:.1} MiB, was in the replica {:.1} s after the guest was off, and the source ran {:.1} s later",
                took.synchronised,
                mib(last),
                took.delta,
                took.downtime - took.delta
            ),
            format!(
                "the source's disk behind its guest's own part equals what it held before with what was changed, by BLAKE3 ({}...); the guest's part by the checker inside; the guest stamps all the time, which is not counted as changed",
                &hash[..12]
            ),
        ],
    }
}
