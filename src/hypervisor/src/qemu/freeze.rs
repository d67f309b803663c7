//! One instant over several disks: fleecing.
//!
//! ```text
//!   guest ─► device ─► [copy-before-write] ─► diskN (VHDX, bitmaps)
//!                             │ old data             ▲ backing
//!                             ▼                      │
//!                       scratch qcow2 = sr-fl-N ─────┘ ─► NBD export (read only, with bitmaps) ─► NbdReader
//! ```
//!
//! One transaction adds the next bitmap, ends the recording one and starts the copy jobs of all disks: nothing
//! can be written between them. What goes wrong afterwards is undone, so that a failed freeze leaves the tracking
//! as it was.
//!
//! Limit of QEMU 7.2: when the scratch folder runs full while a point is frozen, the guest's write that needs room
//! there fails. So a freeze is refused when there is little room.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::config::DiskFormat;
use super::inventory::free_bytes;
use super::reader::{NbdReader, from_nbd};
use super::tracking::{DiskNode, GRANULARITY, bitmap_name, disk_nodes};
use super::{FoundVm, QemuDriver, connect, create_qcow2, from_qmp, is_ours, machine};
use crate::nbd::NbdClient;
use crate::qmp::{Qmp, QmpError};
use crate::{
    Changes, DiskId, ErrorKind, Extent, ExtentSet, FrozenDisk, FrozenPoint, HypervisorError,
    TrackingId, VmId,
};

/// Least free room in the scratch folder.
const MIN_SCRATCH: u64 = 256 << 20;
/// For exports and jobs to go away: a job has to finish the copies it is at.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(60);
/// QEMU has no event for all of what a sweep waits for.
const POLL: Duration = Duration::from_millis(10);
/// Bit of a dirty bitmap's flags on the wire.
const DIRTY: u32 = 1;

/// A disk of the request.
struct Target {
    id: DiskId,
    index: usize,
    node: DiskNode,
    /// Bitmaps to read, when `since` can be answered.
    chain: Option<Vec<TrackingId>>,
    scratch: PathBuf,
}

impl Target {
    fn fleece(&self) -> String {
        format!("sr-fl-{}", self.index)
    }

    fn job(&self) -> String {
        format!("sr-job-{}", self.index)
    }

    fn export(&self) -> String {
        format!("sr-export-{}", self.index)
    }

    fn recording(&self) -> impl Iterator<Item = String> {
        self.node
            .bitmaps
            .iter()
            .filter(|bitmap| bitmap.recording)
            .map(|bitmap| bitmap_name(bitmap.id))
    }
}

impl QemuDriver {
    pub(super) async fn freeze_point(
        &self,
        vm: VmId,
        disks: &[DiskId],
        since: Option<TrackingId>,
        next: TrackingId,
    ) -> Result<FrozenPoint, HypervisorError> {
        let found = self.find(vm)?;
        let name = found.config.name.clone();
        let refused =
            |kind, text: String| HypervisorError::new(kind, format!("freeze vm {name}: {text}"));
        let mut qmp = connect(&found).await?;
        let left = ours(&mut qmp)
            .await
            .map_err(|error| from_qmp(format!("freeze vm {name}"), error))?;
        if !left.is_empty() {
            return Err(refused(
                ErrorKind::Busy,
                "a point is frozen already".to_owned(),
            ));
        }
        let free = free_bytes(&self.scratch)?;
        if free < MIN_SCRATCH {
            let text = format!("only {} MiB free in {}", free >> 20, self.scratch.display());
            return Err(refused(ErrorKind::NoSpace, text));
        }
        let nodes = disk_nodes(&mut qmp, &found).await?;
        if let Some(newest) = nodes
            .iter()
            .flat_map(|node| &node.bitmaps)
            .map(|bitmap| bitmap.id)
            .max()
            && newest >= next
        {
            return Err(refused(
                ErrorKind::InvalidRequest,
                format!("tracking {newest} is not older than {next}"),
            ));
        }
        let targets = self.targets(&found, disks, since, &nodes)?;

        let result = self.freeze_targets(&found, &mut qmp, &targets, next).await;
        if let Err(error) = &result {
            debug!(vm = %name, %error, "freeze is undone");
        }
        result
    }

    fn targets(
        &self,
        found: &FoundVm,
        disks: &[DiskId],
        since: Option<TrackingId>,
        nodes: &[DiskNode],
    ) -> Result<Vec<Target>, HypervisorError> {
        let name = &found.config.name;
        let mut targets: Vec<Target> = Vec::new();
        for id in disks {
            let index = found.disk_index(*id)?;
            if targets.iter().any(|target| target.index == index) {
                return Err(HypervisorError::new(
                    ErrorKind::InvalidRequest,
                    format!("freeze vm {name}: disk {id} is named twice"),
                ));
            }
            let node_name = machine::node_name(index);
            let node = nodes
                .iter()
                .find(|node| node.name == node_name && node.size_bytes > 0)
                .ok_or_else(|| {
                    HypervisorError::new(
                        ErrorKind::DiskNotFound,
                        format!(
                            "freeze vm {name}: disk {id} was attached after the start of the vm"
                        ),
                    )
                })?;
            if !node.shows(&found.disk_file(index)) {
                return Err(HypervisorError::new(
                    ErrorKind::DiskNotFound,
                    format!(
                        "freeze vm {name}: disk {id} has another place than at the start of the vm: restart the vm"
                    ),
                ));
            }
            targets.push(Target {
                id: *id,
                index,
                node: node.clone(),
                chain: since.and_then(|since| node.chain(since)),
                scratch: self
                    .scratch_of(found.id())
                    .join(format!("{node_name}.qcow2")),
            });
        }
        if targets.is_empty() {
            return Err(HypervisorError::new(
                ErrorKind::InvalidRequest,
                format!("freeze vm {name}: no disk is named"),
            ));
        }
        Ok(targets)
    }

    async fn freeze_targets(
        &self,
        found: &FoundVm,
        qmp: &mut Qmp,
        targets: &[Target],
        next: TrackingId,
    ) -> Result<FrozenPoint, HypervisorError> {
        let vm = &found.config.name;
        if let Err(error) = self.prepare(found, qmp, targets).await {
            self.undo(found, qmp).await;
            return Err(error);
        }
        let taken_unix_ms = now_unix_ms();
        if let Err(error) = qmp
            .execute("transaction", json!({ "actions": actions(targets, next) }))
            .await
        {
            // A transaction fails as a whole; only after a lost answer the outcome is unknown, and then QEMU is lost too.
            self.undo(found, qmp).await;
            return Err(from_qmp(
                format!("freeze vm {vm}: transaction over {} disks", targets.len()),
                error,
            ));
        }
        match self.open(found, qmp, targets, next).await {
            Ok(disks) => Ok(FrozenPoint {
                vm: found.id(),
                taken_unix_ms,
                tracking: next,
                quiescence: crate::Quiescence::NotAsked,
                pause: Duration::ZERO,
                disks,
            }),
            Err(error) => {
                self.undo(found, qmp).await;
                if let Err(problem) = take_back(qmp, targets, next).await {
                    // Harmless for the data: `next` goes on recording, and older intervals are still there.
                    warn!(%vm, %problem, "tracking of a failed freeze stays");
                }
                Err(error)
            }
        }
    }

    /// Scratch images, their nodes and the NBD server.
    async fn prepare(
        &self,
        found: &FoundVm,
        qmp: &mut Qmp,
        targets: &[Target],
    ) -> Result<(), HypervisorError> {
        let vm = &found.config.name;
        let folder = self.scratch_of(found.id());
        std::fs::create_dir_all(&folder).map_err(|error| {
            HypervisorError::with_source(
                ErrorKind::Io,
                format!("freeze vm {vm}: make {}", folder.display()),
                error,
            )
        })?;
        for target in targets {
            create_qcow2(&target.scratch, target.node.size_bytes).await?;
            let node = json!({
                "driver": "qcow2",
                "node-name": target.fleece(),
                // Worth nothing after a crash, so nothing has to reach the medium.
                "cache": { "no-flush": true },
                "file": {
                    "driver": "file", "filename": target.scratch.to_string_lossy(), "cache": { "no-flush": true },
                },
                "backing": target.node.name,
            });
            qmp.execute("blockdev-add", node).await.map_err(|error| {
                from_qmp(
                    format!("freeze vm {vm}: add scratch image of disk {}", target.id),
                    error,
                )
            })?;
        }
        let address = json!({ "type": "unix", "data": { "path": found.folder.nbd_socket().to_string_lossy() } });
        qmp.execute("nbd-server-start", json!({ "addr": address }))
            .await
            .map_err(|error| from_qmp(format!("freeze vm {vm}: start its nbd server"), error))?;
        Ok(())
    }

    /// Exports, connections, and what changed.
    async fn open(
        &self,
        found: &FoundVm,
        qmp: &mut Qmp,
        targets: &[Target],
        next: TrackingId,
    ) -> Result<Vec<FrozenDisk>, HypervisorError> {
        let vm = &found.config.name;
        let mut disks = Vec::new();
        for target in targets {
            let chain = target.chain.as_deref().unwrap_or_default();
            let bitmaps: Vec<String> = chain.iter().map(|id| bitmap_name(*id)).collect();
            // Named after this point: a reader that lost its connection must not find another point under the name.
            let export = format!("{}-{next}", target.export());
            let arguments = json!({
                "type": "nbd", "id": target.export(), "name": export, "node-name": target.fleece(),
                "writable": false, "bitmaps": bitmaps,
            });
            qmp.execute("block-export-add", arguments)
                .await
                .map_err(|error| {
                    from_qmp(format!("freeze vm {vm}: export disk {}", target.id), error)
                })?;
            let step = format!("read frozen disk {} of vm {vm}", target.id);
            let reader = NbdReader::new(step, found.folder.nbd_socket(), export.clone());
            let contexts: Vec<String> = bitmaps
                .iter()
                .map(|name| format!("qemu:dirty-bitmap:{name}"))
                .collect();
            let failed = |error| {
                from_nbd(
                    format!("freeze vm {vm}: read changes of disk {}", target.id),
                    error,
                )
            };
            let mut client = NbdClient::connect(&found.folder.nbd_socket(), &export, &contexts)
                .await
                .map_err(failed)?;
            let size_bytes = client.size_bytes();
            if size_bytes != target.node.size_bytes {
                let text = format!(
                    "freeze vm {vm}: disk {} is exported with another size",
                    target.id
                );
                return Err(HypervisorError::new(ErrorKind::Protocol, text));
            }
            let dirty = if target.chain.is_some() {
                let sets = client
                    .extents(|flags| flags & DIRTY != 0)
                    .await
                    .map_err(failed)?;
                Some(
                    sets.iter()
                        .fold(ExtentSet::new(), |all, set| all.union(set)),
                )
            } else {
                None
            };
            reader.keep(client).await;
            let mut allocated = allocation(found, target.index, size_bytes).await;
            if let Some(dirty) = &dirty {
                allocated = allocated.union(dirty);
            }
            disks.push(FrozenDisk {
                disk: target.id,
                size_bytes,
                changes: dirty.map_or(Changes::Unknown, |dirty| Changes::Since(dirty.into_vec())),
                allocated: allocated.into_vec(),
                reader: Box::new(reader),
            });
        }
        Ok(disks)
    }

    /// Undoes what is there; a failure is logged, as the first error is the one to report.
    async fn undo(&self, found: &FoundVm, qmp: &mut Qmp) {
        if let Err(error) = self.sweep(found, qmp).await {
            warn!(vm = %found.config.name, %error, "a failed freeze could not be undone; clean up is needed");
        }
    }

    /// Releases whatever point of a VM is frozen. A VM that is off or gone has only files left.
    pub(super) async fn sweep_vm(&self, vm: VmId) -> Result<(), HypervisorError> {
        let swept = match self.find(vm) {
            Ok(found) => match connect(&found).await {
                Ok(mut qmp) => self.sweep(&found, &mut qmp).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        match swept {
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::VmNotRunning | ErrorKind::VmNotFound
                ) =>
            {
                self.remove_scratch(vm)
            }
            other => other,
        }
    }

    /// Exports, server, jobs, nodes and files of ours, in this order; each step only when the one before is done.
    async fn sweep(&self, found: &FoundVm, qmp: &mut Qmp) -> Result<(), HypervisorError> {
        let failed = |error| {
            from_qmp(
                format!("release the frozen point of vm {}", found.config.name),
                error,
            )
        };
        let deadline = Instant::now() + SWEEP_TIMEOUT;
        loop {
            let left = ours(qmp).await.map_err(failed)?;
            if left.is_empty() {
                break;
            }
            if Instant::now() >= deadline {
                return Err(failed(QmpError::Timeout {
                    step: left.describe(),
                }));
            }
            left.push_on(qmp).await.map_err(failed)?;
            sleep(POLL).await;
        }
        // "not running" is the only refusal.
        match qmp.execute("nbd-server-stop", Value::Null).await {
            Ok(_) | Err(QmpError::Refused { .. }) => {}
            Err(error) => return Err(failed(error)),
        }
        // QEMU removes it; after a crash of QEMU in the middle it may be left.
        let _ = std::fs::remove_file(found.folder.nbd_socket());
        self.remove_scratch(found.id())
    }

    fn remove_scratch(&self, vm: VmId) -> Result<(), HypervisorError> {
        let folder = self.scratch_of(vm);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(HypervisorError::with_source(
                    ErrorKind::Io,
                    format!("delete scratch folder {}", folder.display()),
                    error,
                ))
            }
            _ => Ok(()),
        }
    }
}

/// The transaction of a freeze.
fn actions(targets: &[Target], next: TrackingId) -> Vec<Value> {
    let mut actions = Vec::new();
    for target in targets {
        let node = &target.node.name;
        actions.push(json!({
            "type": "block-dirty-bitmap-add",
            "data": { "node": node, "name": bitmap_name(next), "granularity": GRANULARITY, "persistent": false },
        }));
        for name in target.recording() {
            actions.push(json!({ "type": "block-dirty-bitmap-disable", "data": { "node": node, "name": name } }));
        }
        actions.push(json!({
            "type": "blockdev-backup",
            "data": { "job-id": target.job(), "device": node, "target": target.fleece(), "sync": "none" },
        }));
    }
    actions
}

/// After a freeze that failed behind its transaction: the older bitmap records again, with what `next` has seen.
async fn take_back(qmp: &mut Qmp, targets: &[Target], next: TrackingId) -> Result<(), QmpError> {
    let mut actions = Vec::new();
    for target in targets {
        let node = &target.node.name;
        for name in target.recording() {
            actions.push(json!({ "type": "block-dirty-bitmap-enable", "data": { "node": node, "name": name } }));
            actions.push(json!({
                "type": "block-dirty-bitmap-merge",
                "data": { "node": node, "target": name, "bitmaps": [bitmap_name(next)] },
            }));
        }
        actions.push(json!({
            "type": "block-dirty-bitmap-remove", "data": { "node": node, "name": bitmap_name(next) },
        }));
    }
    qmp.execute("transaction", json!({ "actions": actions }))
        .await
        .map(drop)
}

/// What of a frozen point is in a QEMU.
#[derive(Debug, Default)]
struct Leftovers {
    exports: Vec<String>,
    jobs: Vec<String>,
    nodes: Vec<String>,
}

async fn ours(qmp: &mut Qmp) -> Result<Leftovers, QmpError> {
    let list = |value: Value, field: &str| -> Vec<String> {
        value
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default()
            .iter()
            .filter_map(|item| is_ours(item, field))
            .collect()
    };
    Ok(Leftovers {
        exports: list(qmp.execute("query-block-exports", Value::Null).await?, "id"),
        jobs: list(
            qmp.execute("query-block-jobs", Value::Null).await?,
            "device",
        ),
        nodes: list(
            qmp.execute("query-named-block-nodes", json!({ "flat": true }))
                .await?,
            "node-name",
        ),
    })
}

impl Leftovers {
    fn is_empty(&self) -> bool {
        self.exports.is_empty() && self.jobs.is_empty() && self.nodes.is_empty()
    }

    fn describe(&self) -> String {
        format!(
            "the end of {}",
            [&self.exports[..], &self.jobs[..], &self.nodes[..]]
                .concat()
                .join(", ")
        )
    }

    /// Asks the outermost layer that is left to go. Repeating it while it goes is refused, which is no failure.
    async fn push_on(&self, qmp: &mut Qmp) -> Result<(), QmpError> {
        let (command, field, names, extra) = if !self.exports.is_empty() {
            (
                "block-export-del",
                "id",
                &self.exports,
                json!({ "mode": "hard" }),
            )
        } else if !self.jobs.is_empty() {
            (
                "block-job-cancel",
                "device",
                &self.jobs,
                json!({ "force": true }),
            )
        } else {
            ("blockdev-del", "node-name", &self.nodes, json!({}))
        };
        for name in names {
            let mut arguments = extra.clone();
            arguments[field] = json!(name);
            match qmp.execute(command, arguments).await {
                Ok(_) => {}
                Err(error @ QmpError::Refused { .. }) => debug!(%error, "will be asked again"),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Ranges that may hold data, or the whole disk when that can't be found out.
async fn allocation(found: &FoundVm, index: usize, size_bytes: u64) -> ExtentSet {
    let whole = ExtentSet::from_unsorted(vec![Extent {
        offset: 0,
        length: size_bytes,
    }]);
    if found.config.disks.get(index).and_then(|disk| disk.format()) == Some(DiskFormat::Overlay) {
        return whole;
    }
    let path = found.disk_file(index);
    match tokio::task::spawn_blocking(move || disk_image::live_allocation(path)).await {
        Ok(Ok(facts)) if facts.virtual_size == size_bytes => {
            let ranges = facts.allocated.iter().map(|range| Extent {
                offset: range.offset,
                length: range.length,
            });
            ExtentSet::from_unsorted(ranges.collect()).clip(size_bytes)
        }
        Ok(Ok(facts)) => {
            warn!(
                file = facts.virtual_size,
                qemu = size_bytes,
                "sizes of a disk differ; all of it is read"
            );
            whole
        }
        Ok(Err(error)) => {
            warn!(%error, "allocation of a disk is unknown; all of it is read");
            whole
        }
        Err(_) => whole,
    }
}

fn now_unix_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
