//! Making a recovered VM independent: its layers get all that still lies in the recovery point below them.
//!
//! ```text
//!   NBD ◄── qcow2 ◄── guest        block-stream copies what the layer has not, while the guest runs
//!           qcow2 ◄── guest        QEMU lets go of NBD; flushed ─► vm.toml names NBD no more
//! ```
//!
//! A job for each disk runs inside QEMU, so it goes on while this process is away, and a step only looks at it. Cut
//! anywhere, the next step goes on: what is in a layer is not copied again, and `vm.toml` names the point until every
//! layer is whole and flushed. For a VM that is off `qemu-img` does the same in one step.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;
use tracing::info;

use super::config::{FILE_NAME, NbdConfig};
use super::power::write_whole;
use super::{FoundVm, QEMU_IMG, QemuDriver, connect, from_qmp, machine, missing_or_io};
use crate::qmp::Qmp;
use crate::{ErrorKind, HypervisorError, Independence, QmpError, VmId};

/// How the names of the jobs begin. Not as those of a frozen point do, whose sweep ends them.
const JOB: &str = "independent-";

/// What a job says of itself.
#[derive(Debug)]
struct Job {
    id: String,
    concluded: bool,
    error: Option<String>,
    copied: u64,
    total: u64,
}

impl QemuDriver {
    pub(super) async fn become_independent(
        &self,
        vm: VmId,
    ) -> Result<Independence, HypervisorError> {
        let found = self.find(vm)?;
        let on_point = || {
            found
                .config
                .disks
                .iter()
                .filter_map(|disk| disk.nbd.as_ref())
        };
        if on_point().next().is_none() {
            return Ok(Independence::Complete);
        }
        let copied_bytes = if found.folder.running_pid().is_some() {
            stream(&found).await?
        } else {
            rebase(&found).await?;
            None
        };
        if let Some(copied_bytes) = copied_bytes {
            return Ok(Independence::UnderWay {
                copied_bytes,
                total_bytes: on_point().map(|nbd| nbd.size_bytes).sum(),
            });
        }
        note(&found)?;
        Ok(Independence::Complete)
    }
}

fn step_of(found: &FoundVm, index: usize) -> String {
    format!(
        "make disk {index} of vm {} independent of its recovery point",
        found.config.name
    )
}

/// Disks above the point, with their places.
fn disks(found: &FoundVm) -> impl Iterator<Item = (usize, &NbdConfig)> {
    let disks = found.config.disks.iter().enumerate();
    disks.filter_map(|(index, disk)| Some((index, disk.nbd.as_ref()?)))
}

/// One look at the jobs of a VM that runs; begins those that are missing. How much is copied, or `None` when all of it
/// is, and durable.
async fn stream(found: &FoundVm) -> Result<Option<u64>, HypervisorError> {
    let mut qmp = connect(found).await?;
    let step = format!(
        "make vm {} independent of its recovery point",
        found.config.name
    );
    let refused = |error| from_qmp(step.clone(), error);
    let jobs = jobs(&mut qmp).await.map_err(refused)?;
    if jobs.iter().any(|job| !job.concluded) {
        // Nothing else is asked of QEMU meanwhile: 7.2 ends when its nodes are listed while a job takes one away.
        let copied = disks(found).map(|(index, nbd)| {
            let job = jobs.iter().find(|job| job.id == job_of(index));
            // In QEMU's own measure, which is not always one of bytes of the disk. No job: it was whole before.
            let part = job.map_or(1.0, |job| {
                job.copied.min(job.total) as f64 / job.total.max(1) as f64
            });
            (nbd.size_bytes as f64 * part) as u64
        });
        return Ok(Some(copied.sum()));
    }
    let mut error = None;
    for job in jobs {
        let dismissed = qmp.execute("job-dismiss", json!({ "id": job.id })).await;
        dismissed.map_err(refused)?;
        error = error.or(job.error.map(|words| (job.id, words)));
    }
    if let Some((job, words)) = error {
        return Err(failed(format!("{step}: {job}"), words));
    }
    let layered = layered(&mut qmp).await.map_err(refused)?;
    let rest: Vec<usize> = disks(found)
        .map(|(index, _)| index)
        .filter(|index| layered.contains(&machine::node_name(*index)))
        .collect();
    for index in &rest {
        let arguments = json!({
            "job-id": job_of(*index), "device": machine::node_name(*index),
            "auto-finalize": true, "auto-dismiss": false,
        });
        let begun = qmp.execute("block-stream", arguments).await;
        begun.map_err(|error| from_qmp(step_of(found, *index), error))?;
        info!(vm = %found.config.name, index, "a disk is being made independent of its recovery point");
    }
    if !rest.is_empty() {
        let whole = disks(found).filter(|(index, _)| !rest.contains(index));
        return Ok(Some(whole.map(|(_, nbd)| nbd.size_bytes).sum()));
    }
    for (index, _) in disks(found) {
        flush(&mut qmp, index, &step_of(found, index)).await?;
    }
    Ok(None)
}

/// Copies into the layers of a VM that is off what they have not.
async fn rebase(found: &FoundVm) -> Result<(), HypervisorError> {
    for (index, nbd) in disks(found) {
        let step = step_of(found, index);
        let layer = found.disk_file(index);
        let below = json!({ "driver": "raw", "file": {
            "driver": "nbd", "export": nbd.export,
            "server": { "type": "unix", "path": nbd.socket.to_string_lossy() },
        } });
        // A layer's header names what is below it only from here to the end; a start names that by itself.
        let below = format!("json:{below}");
        qemu_img(
            &step,
            &["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", &below],
            &layer,
        )
        .await?;
        qemu_img(&step, &["rebase", "-f", "qcow2", "-b", ""], &layer).await?;
        let layer = std::fs::File::open(&layer).and_then(|file| file.sync_all());
        layer.map_err(|error| HypervisorError::with_source(ErrorKind::Io, step, error))?;
    }
    Ok(())
}

async fn qemu_img(step: &str, arguments: &[&str], image: &Path) -> Result<(), HypervisorError> {
    let output = Command::new(QEMU_IMG)
        .args(arguments)
        .arg(image)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| missing_or_io(error, step, QEMU_IMG, "qemu-utils"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(failed(step.to_owned(), words))
}

/// Says durably that the layers need nothing below them.
fn note(found: &FoundVm) -> Result<(), HypervisorError> {
    let mut config = found.config.clone();
    for disk in &mut config.disks {
        if let Some(nbd) = disk.nbd.take() {
            disk.size_bytes = Some(nbd.size_bytes);
        }
    }
    let step = format!("note that vm {} is independent", config.name);
    let text = toml::to_string(&config).map_err(|error| {
        HypervisorError::with_source(ErrorKind::Configuration, step.clone(), error)
    })?;
    let folder = found.folder.path();
    write_whole(&folder.join(FILE_NAME), text.as_bytes())
        .and_then(|()| std::fs::File::open(folder)?.sync_all())
        .map_err(|error| HypervisorError::with_source(ErrorKind::Io, step, error))?;
    info!(vm = %config.name, "is independent of its recovery point");
    Ok(())
}

fn failed(step: String, words: String) -> HypervisorError {
    let kind = if words.contains("No space left") {
        ErrorKind::NoSpace
    } else {
        ErrorKind::Refused
    };
    HypervisorError::with_source(kind, step, words)
}

/// Our jobs in a QEMU.
async fn jobs(qmp: &mut Qmp) -> Result<Vec<Job>, QmpError> {
    let jobs = qmp.execute("query-jobs", Value::Null).await?;
    let text = |job: &Value, field: &str| {
        let text = job.get(field).and_then(Value::as_str);
        text.map(str::to_owned)
    };
    let number = |job: &Value, field: &str| job.get(field).and_then(Value::as_u64).unwrap_or(0);
    let ours = |job: &Value| {
        Some(Job {
            id: text(job, "id").filter(|id| id.starts_with(JOB))?,
            concluded: text(job, "status").as_deref() == Some("concluded"),
            error: text(job, "error"),
            copied: number(job, "current-progress"),
            total: number(job, "total-progress"),
        })
    };
    Ok(jobs
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(ours)
        .collect())
}

fn job_of(index: usize) -> String {
    format!("{JOB}{}", machine::node_name(index))
}

/// Nodes that have something below them.
async fn layered(qmp: &mut Qmp) -> Result<Vec<String>, QmpError> {
    let nodes = qmp
        .execute("query-named-block-nodes", json!({ "flat": true }))
        .await?;
    let nodes = nodes.as_array().into_iter().flatten();
    Ok(nodes
        .filter(|node| node.get("backing_file").is_some())
        .filter_map(|node| node.get("node-name").and_then(Value::as_str))
        .map(str::to_owned)
        .collect())
}

/// Makes durable what QEMU holds of a disk, its tables included.
async fn flush(qmp: &mut Qmp, index: usize, step: &str) -> Result<(), HypervisorError> {
    let line = format!("qemu-io -d {} flush", machine::device_name(index));
    let answer = qmp
        .execute("human-monitor-command", json!({ "command-line": line }))
        .await
        .map_err(|error| from_qmp(step, error))?;
    match answer.as_str().map(str::trim) {
        None | Some("") => Ok(()),
        Some(text) => Err(HypervisorError::with_source(
            ErrorKind::Io,
            format!("{step}: flush"),
            text.to_owned(),
        )),
    }
}
