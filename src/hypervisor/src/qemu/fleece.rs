//! The disks of one VM at a frozen instant: filters, scratch images, exports.
//!
//! ```text
//!   guest ─► device ─► [sr-cbw-N: copy-before-write] ─► diskN (VHDX, bitmaps)
//!                             │ old data        ▲
//!                             ▼                 │ what was not overwritten
//!                        sr-fl-N (scratch) ◄── sr-access-N ─► NBD export (read only, with bitmaps) ─► NbdReader
//! ```
//!
//! Everything is made beforehand, without effect; the instant itself is to put the devices onto the filters and to
//! change the bitmaps over, while the VM stands still. What goes wrong afterwards is undone, so that a failed freeze
//! leaves the tracking as it was.
//!
//! When the scratch folder runs full, or is too slow, the point breaks and reads of it fail; the guest's writes do not.
//! (A backup job, which needs no pause, would have it the other way round.)

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tracing::warn;

use super::config::DiskFormat;
use super::reader::{NbdReader, from_nbd};
use super::sweep::{ACCESS, attach, top};
use super::tracking::{DiskNode, GRANULARITY, bitmap_name};
use super::{FoundVm, QemuDriver, create_qcow2, from_qmp, machine};
use crate::nbd::NbdClient;
use crate::qmp::{Qmp, QmpError};
use crate::{
    Changes, DiskId, ErrorKind, Extent, ExtentSet, FrozenDisk, HypervisorError, TrackingId,
};

/// A guest's write waits no longer for old data to be put aside; then the point breaks. Below what guests wait for a disk.
const COPY_TIMEOUT_SECONDS: u32 = 15;
/// Writing an image's cached data out before the VM stands still makes the pause short; it need not be complete.
const FLUSH_PATIENCE: Duration = Duration::from_secs(10);
/// Bit of a dirty bitmap's flags on the wire.
const DIRTY: u32 = 1;

/// A disk of a request.
pub(super) struct Target {
    id: DiskId,
    index: usize,
    node: DiskNode,
    /// Bitmaps to read, when `since` can be answered.
    chain: Option<Vec<TrackingId>>,
    scratch: PathBuf,
}

impl Target {
    // In the order of their names each stands on the next: see `sweep`.
    fn access(&self) -> String {
        format!("{ACCESS}{}", self.index)
    }

    fn filter(&self) -> String {
        format!("sr-cbw-{}", self.index)
    }

    fn fleece(&self) -> String {
        format!("sr-fl-{}", self.index)
    }

    fn export(&self) -> String {
        export_id(self.index)
    }

    fn recording(&self) -> impl Iterator<Item = String> {
        self.node
            .bitmaps
            .iter()
            .filter(|bitmap| bitmap.recording)
            .map(|bitmap| bitmap_name(bitmap.id))
    }
}

fn export_id(index: usize) -> String {
    format!("sr-export-{index}")
}

/// The export of a disk of a point, on the VM's NBD server.
pub(super) fn export_name(index: usize, tracking: TrackingId) -> String {
    format!("{}-{tracking}", export_id(index))
}

impl QemuDriver {
    pub(super) fn targets(
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
                    .join(format!("{node_name}.scratch")),
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

    /// Scratch images, filters and the NBD server; and what the host caches of the images is written out.
    pub(super) async fn prepare(
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
            let failed = |error| {
                from_qmp(
                    format!(
                        "freeze vm {vm}: put a filter in front of disk {}",
                        target.id
                    ),
                    error,
                )
            };
            let format = make_scratch(target).await?;
            // Above the filters of other people's block jobs, which are none of our business.
            let below = top(qmp, target.index).await.map_err(failed)?;
            let below = below.unwrap_or_else(|| target.node.name.clone());
            // Worth nothing after a crash, so nothing has to reach the medium.
            let cache = json!({ "no-flush": true });
            let scratch = json!({
                "driver": format, "node-name": target.fleece(), "cache": cache,
                "file": { "driver": "file", "filename": target.scratch.to_string_lossy(), "cache": cache },
            });
            qmp.execute("blockdev-add", scratch).await.map_err(failed)?;
            let filter = json!({
                "driver": "copy-before-write", "node-name": target.filter(),
                "file": below, "target": target.fleece(),
                "on-cbw-error": "break-snapshot", "cbw-timeout": COPY_TIMEOUT_SECONDS,
            });
            qmp.execute("blockdev-add", filter).await.map_err(failed)?;
        }
        let address = json!({ "type": "unix", "data": { "path": found.folder.nbd_socket().to_string_lossy() } });
        qmp.execute("nbd-server-start", json!({ "addr": address }))
            .await
            .map_err(|error| from_qmp(format!("freeze vm {vm}: start its nbd server"), error))?;
        let files: Vec<PathBuf> = targets
            .iter()
            .map(|target| found.disk_file(target.index))
            .collect();
        let flush = tokio::task::spawn_blocking(move || {
            for file in files {
                // To pause a VM means to flush its images; whatever fails here fails there, with a better message.
                std::fs::File::open(file)
                    .and_then(|file| file.sync_data())
                    .ok();
            }
        });
        tokio::time::timeout(FLUSH_PATIENCE, flush).await.ok();
        Ok(())
    }

    /// Exports, connections, and what changed.
    pub(super) async fn open(
        &self,
        found: &FoundVm,
        qmp: &mut Qmp,
        targets: &[Target],
        next: TrackingId,
    ) -> Result<Vec<FrozenDisk>, HypervisorError> {
        let vm = &found.config.name;
        let mut disks = Vec::new();
        for target in targets {
            let refused =
                |error| from_qmp(format!("freeze vm {vm}: export disk {}", target.id), error);
            let access = json!({
                "driver": "snapshot-access", "node-name": target.access(), "file": target.filter(),
            });
            qmp.execute("blockdev-add", access).await.map_err(refused)?;
            let chain = target.chain.as_deref().unwrap_or_default();
            let bitmaps: Vec<Value> = chain
                .iter()
                .map(|id| json!({ "node": target.node.name, "name": bitmap_name(*id) }))
                .collect();
            // Named after this point: a reader that lost its connection must not find another point under the name.
            let export = export_name(target.index, next);
            let arguments = json!({
                "type": "nbd", "id": target.export(), "name": export, "node-name": target.access(),
                "writable": false, "bitmaps": bitmaps,
                "allocation-depth": true,
            });
            qmp.execute("block-export-add", arguments)
                .await
                .map_err(refused)?;
            let step = format!("read frozen disk {} of vm {vm}", target.id);
            let reader = NbdReader::new(step, found.folder.nbd_socket(), export.clone());
            let contexts: Vec<String> = chain
                .iter()
                .map(|id| format!("qemu:dirty-bitmap:{}", bitmap_name(*id)))
                .collect();
            let failed = |error| {
                from_nbd(
                    format!("freeze vm {vm}: read changes of disk {}", target.id),
                    error,
                )
            };
            let client = NbdClient::connect(&found.folder.nbd_socket(), &export, &contexts)
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
}

/// The instant, of a VM that stands still: `next` records in place of the older bitmap, and old data is put aside.
/// Fails as a whole as far as tracking is concerned.
pub(super) async fn change_over(
    qmp: &mut Qmp,
    targets: &[Target],
    next: TrackingId,
) -> Result<(), QmpError> {
    for target in targets {
        attach(qmp, target.index, &target.filter()).await?;
    }
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
    }
    qmp.execute("transaction", json!({ "actions": actions }))
        .await
        .map(drop)
}

/// After a freeze that failed behind its instant: the older bitmap records again, with what `next` has seen.
pub(super) async fn take_back(
    qmp: &mut Qmp,
    targets: &[Target],
    next: TrackingId,
) -> Result<(), QmpError> {
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

/// A sparse file of the disk's size; qcow2 where the volume takes no file so large. Gives QEMU's name of the format.
async fn make_scratch(target: &Target) -> Result<&'static str, HypervisorError> {
    let made = std::fs::File::create(&target.scratch)
        .and_then(|file| file.set_len(target.node.size_bytes));
    match made {
        Ok(()) => Ok("raw"),
        Err(_) => create_qcow2(&target.scratch, target.node.size_bytes)
            .await
            .map(|()| "qcow2"),
    }
}

/// Ranges that may hold data, or the whole disk when that can't be found out.
async fn allocation(found: &FoundVm, index: usize, size_bytes: u64) -> ExtentSet {
    let whole = ExtentSet::from_unsorted(vec![Extent {
        offset: 0,
        length: size_bytes,
    }]);
    let format = found.config.disks.get(index).and_then(|disk| disk.format());
    if matches!(format, Some(DiskFormat::Overlay | DiskFormat::Own)) {
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
