//! Brings the disks of a recovered VM to its host while it runs, so that it needs the store no more.
//!
//! Only VMs of failovers are hydrated: a drill ends soon, and what it reads need not travel twice.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use replica_store::ReplicaView;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::local_copy::LocalCopy;
use super::local_copy::fill::{Filled, fill};
use super::{RecoveryHost, making};
use crate::backoff::ship_delay;
use crate::report::free_bytes;
use crate::task::{blocking, spawn_named};

/// Left free on the volume for what guests write: the larger of these.
const ROOM_BYTES: u64 = 1 << 30;
const ROOM_SHARE: u64 = 10;
/// How often a host without room is looked at again.
const NO_ROOM_POLL: Duration = Duration::from_secs(60);

/// The copies of a VM's disks, in the order of the point.
pub(super) type Copies = Vec<Arc<LocalCopy>>;

/// As long as it lives, disks are fetched.
pub(super) struct Hydration(#[expect(dead_code, reason = "ends the task when it goes")] DropGuard);

/// Opens the copies of a VM's disks. Without them the VM reads from the store, as every drill does.
pub(super) async fn open(view: &ReplicaView, folder: PathBuf) -> Copies {
    let point = view.point().map(|point| point.id).unwrap_or_default();
    let disks: Vec<(Uuid, u64)> = view
        .disks()
        .iter()
        .map(|disk| (disk.id, disk.size_bytes))
        .collect();
    let opened = blocking(move || {
        let open = |(disk, size)| LocalCopy::open(&folder, point, disk, size).map(Arc::new);
        disks.into_iter().map(open).collect()
    })
    .await;
    opened.unwrap_or_else(|error: std::io::Error| {
        tracing::warn!(%error, "the disks of a recovered VM are read from the store only");
        Vec::new()
    })
}

/// Fetches what is missing, disk by disk, until nothing is or the result is dropped.
pub(super) fn start(
    host: &Arc<RecoveryHost>,
    id: Uuid,
    view: ReplicaView,
    copies: Copies,
) -> Hydration {
    let stop = CancellationToken::new();
    let guard = stop.clone().drop_guard();
    let host = host.clone();
    spawn_named(format!("hydrate {id}"), run(host, id, view, copies, stop));
    Hydration(guard)
}

async fn run(
    host: Arc<RecoveryHost>,
    id: Uuid,
    view: ReplicaView,
    copies: Copies,
    stop: CancellationToken,
) {
    let mut failures = 0;
    let mut next = 0;
    while let Some(copy) = copies.get(next).cloned() {
        let disk = copy.disk();
        let view = view.clone();
        let read = move |offset, length| {
            let view = view.clone();
            async move { anyhow::Ok(view.read(disk, offset, length).await?) }
        };
        let has_room = || {
            tell(&host, id, &copies);
            (host.has_room)(&host.folder)
        };
        let wait = match fill(&copy, read, has_room, &stop).await {
            Ok(Filled::Complete | Filled::Broken) => {
                next += 1;
                continue;
            }
            Ok(Filled::Stopped) => return,
            Ok(Filled::NoRoom) => {
                tracing::warn!(vm = %id, folder = %host.folder.display(), "no room to bring a recovered VM's disks to this host; it goes on reading from the store");
                NO_ROOM_POLL
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(vm = %id, %disk, error = format!("{error:#}"), "fetching the disk of a recovered VM is tried again");
                ship_delay(failures)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
    tell(&host, id, &copies);
    if copies.iter().all(|copy| copy.is_complete()) {
        tracing::info!(vm = %id, "all disks of the recovered VM are on this host");
    }
}

/// Whether guests keep enough room beside what is fetched.
pub(super) fn has_room(folder: &Path) -> bool {
    let Some((free, size)) = free_bytes(folder).zip(making::volume_bytes(folder)) else {
        return false;
    };
    free > ROOM_BYTES.max(size / ROOM_SHARE)
}

fn tell(host: &RecoveryHost, id: Uuid, copies: &Copies) {
    let sums = copies.iter().map(|copy| copy.progress());
    let (here, all) = sums.fold((0, 0), |(here, all), one| (here + one.0, all + one.1));
    host.board.update_recovered(&id.to_string(), |status| {
        status.local_bytes = here;
        status.disk_bytes = all;
    });
}
