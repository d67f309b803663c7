//! Brings the disks of a recovered VM to its host while it runs, so that its guest reads the store no more.
//!
//! Only VMs of failovers are hydrated: a drill ends soon, and what it reads need not travel twice. A restart of the engine,
//! and a start of the VM, need the store as before.
//!
//! Guests come first: nothing is kept unless the volume has room for what they write, and when it gets tight the copies are
//! given up, for the store has it all.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use replica_store::ReplicaView;
use tokio::task::JoinHandle;
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
/// How often room is looked for when nothing is fetched.
const ROOM_POLL: Duration = Duration::from_secs(10);

/// The copies of a VM's disks, in the order of the point.
pub(super) type Copies = Vec<Arc<LocalCopy>>;

/// What a volume has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// More than guests need for now.
    Ample,
    /// Nothing is added any more.
    Scarce,
    /// Guests need what the copies take.
    Tight,
}

/// Disks are fetched until it is ended, or dropped.
pub(super) struct Hydration {
    stop: DropGuard,
    task: JoinHandle<Option<()>>,
}

impl Hydration {
    /// Ends it. Afterwards nobody writes to the copies, so that they may be opened again or removed.
    pub(super) async fn end(self) {
        drop(self.stop);
        // A panic was logged by the task itself.
        self.task.await.ok();
    }
}

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

/// Fetches what is missing, disk by disk, and then looks after the room.
pub(super) fn start(
    host: &Arc<RecoveryHost>,
    id: Uuid,
    view: ReplicaView,
    copies: Copies,
) -> Hydration {
    let stop = CancellationToken::new();
    let guard = stop.clone().drop_guard();
    let run = run(host.clone(), id, view, copies, stop);
    Hydration {
        stop: guard,
        task: spawn_named(format!("hydrate {id}"), run),
    }
}

async fn run(
    host: Arc<RecoveryHost>,
    id: Uuid,
    view: ReplicaView,
    copies: Copies,
    stop: CancellationToken,
) {
    let mut failures = 0;
    let mut was_complete = false;
    loop {
        let room = (host.room)(&host.folder);
        if room == Room::Tight {
            give_up(id, &copies).await;
            tell(&host, id, &copies);
            return;
        }
        let mut wait = ROOM_POLL;
        copies
            .iter()
            .for_each(|copy| copy.keep_more(room == Room::Ample));
        if room == Room::Ample {
            for copy in &copies {
                match step(&host, id, &view, copy, &copies, &stop).await {
                    Ok(Filled::Complete | Filled::Broken) => {}
                    Ok(Filled::Stopped) => return,
                    Ok(Filled::NoRoom) => break,
                    Err(error) => {
                        failures += 1;
                        wait = ship_delay(failures);
                        tracing::warn!(vm = %id, disk = %copy.disk(), error = format!("{error:#}"), "fetching the disk of a recovered VM is tried again");
                        break;
                    }
                }
            }
        }
        tell(&host, id, &copies);
        let is_complete = copies.iter().all(|copy| copy.is_complete());
        if is_complete && !was_complete {
            tracing::info!(vm = %id, "all disks of the recovered VM are on this host");
        }
        was_complete = is_complete;
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// One run over a disk, with its progress told at every checkpoint.
async fn step(
    host: &Arc<RecoveryHost>,
    id: Uuid,
    view: &ReplicaView,
    copy: &Arc<LocalCopy>,
    all: &Copies,
    stop: &CancellationToken,
) -> anyhow::Result<Filled> {
    let (disk, view) = (copy.disk(), view.clone());
    let read = move |offset, length| {
        let view = view.clone();
        async move { anyhow::Ok(view.read(disk, offset, length).await?) }
    };
    let has_room = || {
        tell(host, id, all);
        (host.room)(&host.folder) == Room::Ample
    };
    fill(copy, read, has_room, stop).await
}

/// Gives the room of all copies back to the guests.
pub(super) async fn give_up(id: Uuid, copies: &Copies) {
    tracing::warn!(vm = %id, "the local copies of a recovered VM's disks are given up: its host has no room for them");
    for copy in copies {
        if let Err(error) = copy.discard().await {
            tracing::warn!(vm = %id, disk = %copy.disk(), %error, "a local copy can't be removed");
        }
    }
}

/// What the volume of `folder` has room for.
pub fn room(folder: &Path) -> Room {
    let Some((free, size)) = free_bytes(folder).zip(making::volume_bytes(folder)) else {
        return Room::Scarce;
    };
    room_of(free, size)
}

fn room_of(free: u64, size: u64) -> Room {
    let reserve = ROOM_BYTES.max(size / ROOM_SHARE);
    if free > reserve {
        Room::Ample
    } else if free > reserve / 2 {
        // Between the two nothing changes, so that copies are not given up and fetched again by turns.
        Room::Scarce
    } else {
        Room::Tight
    }
}

fn tell(host: &RecoveryHost, id: Uuid, copies: &Copies) {
    let sums = copies.iter().map(|copy| copy.progress());
    let (here, all) = sums.fold((0, 0), |(here, all), one| (here + one.0, all + one.1));
    host.board.update_recovered(&id.to_string(), |status| {
        status.local_bytes = here;
        status.disk_bytes = all;
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_keep_a_tenth_of_the_volume_and_never_less_than_a_gibibyte() {
        const GIB: u64 = 1 << 30;
        assert_eq!(room_of(101 * GIB, 1000 * GIB), Room::Ample);
        assert_eq!(room_of(100 * GIB, 1000 * GIB), Room::Scarce);
        assert_eq!(room_of(50 * GIB, 1000 * GIB), Room::Tight);
        assert_eq!(room_of(2 * GIB, 4 * GIB), Room::Ample);
        assert_eq!(room_of(GIB, 4 * GIB), Room::Scarce);
        assert_eq!(room_of(0, 0), Room::Tight);
    }
}
