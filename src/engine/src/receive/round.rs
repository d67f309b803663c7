//! One round: from wherever the disks are to the newest point of the recovered VM.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use disk_image::{Access, DiskImage};
use futures::StreamExt as _;
use futures::stream;
use replica_store::{Changed, PointKind, PointSelector, RecoveryPoint, ReplicaReader, ReplicaView};
use uuid::Uuid;

use super::image::{self, Lock, Run};
use super::record::{Arrived, Record};
use super::room::{self, Growth};
use super::todo::{self, WINDOW};
use super::{
    ARRIVED, Came, FLUSHED, LocalDisk, MAPPED, PROVEN, ReceiveError, Receiver, SETTLED, UNDER_WAY,
    WRITING, off,
};
use crate::replicator::hashes::{BlockMap, is_zero};
use crate::replicator::kept::{self, Arrival, Brought, Kept, Known};

/// Windows that are read from the store at once.
const READS: usize = 4;

/// A disk that is being brought to the point.
struct Disk {
    brought: Brought,
    map: Option<Arc<BlockMap>>,
    /// Blocks that may differ.
    todo: Vec<Range<u64>>,
    /// What the image grows by at least; not known of one that is compared with the replica.
    grows_bytes: u64,
    written: Vec<Run>,
    _lock: Lock,
}

/// An image that threads take turns at.
type Shared = Arc<Mutex<DiskImage>>;

impl Receiver {
    /// Brings the disks to the newest point of the recovered VM, if they do not hold it already.
    pub async fn round(&self) -> Result<Came, ReceiveError> {
        let (reader, found) = self.unless_stopped(self.find()).await?;
        let Some((point, replica)) = found else {
            return Ok(Came::Waits);
        };
        let disks = match self.target.disks().await {
            Err(lost) if lost.is_lost() && self.target.may_make() => {
                self.make_lost(&reader, &point, replica, lost).await?
            }
            found => found?,
        };
        self.tell_left_out(&point, &disks);
        let (folder, item) = (self.state_folder.clone(), self.item_id.clone());
        let (kept, record) = off(move || {
            let kept = Kept::open(&folder, &item)
                .map_err(ReceiveError::io("read what is kept of the item"))?;
            let record = match Record::read(kept.folder()) {
                // Nobody knows what the disks are: everything is looked at.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
                other => other.map_err(ReceiveError::io("read what the disks were brought to"))?,
            };
            Ok((kept, record))
        })
        .await?;
        let record = record.filter(|known| known.vm == self.vm && known.replica == replica);
        if let Some(known) = record.as_ref().filter(|known| known.has_arrived())
            && (known.point, known.by) == (point.id, self.origin)
            && self.is_untouched(known, &disks).await?.iter().all(|is| *is)
        {
            return Ok(Came::Current(point));
        }
        let owner = self.owner();
        let open = async {
            let pinned = reader.pinned_view(PointSelector::Id(point.id), &owner);
            pinned.await.map_err(ReceiveError::store(
                "open the newest point of the recovered virtual machine",
            ))
        };
        let view = self.unless_stopped(open).await?;
        let points = self.unless_stopped(async {
            let points = reader.points().await;
            points.map_err(ReceiveError::store("list recovery points"))
        });
        let applications = points.await?.into_iter();
        let last_application = applications
            .filter(|point| point.kind == PointKind::Application)
            .map(|point| point.time_unix_ms)
            .max();
        let to = Known {
            position: point.position,
            by: self.origin,
        };
        let planned = self
            .plan(&kept, record.as_ref(), &view, &point, replica, disks)
            .await?;
        let growths: Vec<Growth> = planned
            .iter()
            .map(|disk| growth_of(&disk.brought, disk.grows_bytes))
            .collect();
        self.check_room(&growths)?;
        self.bring(kept, planned, &view, replica, to, last_application)
            .await?;
        // What stays held after an error is replaced by the next round's.
        reader
            .unpin(&owner)
            .await
            .map_err(ReceiveError::store("let go of a recovery point"))?;
        Ok(Came::Arrived(point))
    }

    async fn find(&self) -> Result<(ReplicaReader, Option<(RecoveryPoint, Uuid)>), ReceiveError> {
        let opened = ReplicaReader::open_with_keys(&self.store, &self.key, self.keys.clone()).await;
        let reader = opened.map_err(ReceiveError::store("open the replica"))?;
        let newest = reader.newest_of(self.origin).await;
        let newest = newest.map_err(ReceiveError::store(
            "find the newest point of the recovered virtual machine",
        ))?;
        let Some(point) = newest else {
            return Ok((reader, None));
        };
        let replica = reader.replica_id().await;
        let replica = replica.map_err(ReceiveError::store("open the replica"))?;
        Ok((reader, Some((point, replica))))
    }

    /// Of each disk, whether its image is as it was when it held the record's point.
    async fn is_untouched(
        &self,
        record: &Record,
        disks: &[LocalDisk],
    ) -> Result<Vec<bool>, ReceiveError> {
        let brought: Vec<Brought> = disks.iter().map(|disk| brought(disk, 0)).collect();
        let marks = kept::marks(&brought).await;
        let marks = marks.map_err(|error| ReceiveError::Io {
            doing: "look at the images of the virtual machine",
            source: io::Error::other(error),
        })?;
        let disks = disks.iter().zip(marks);
        Ok(disks
            .map(|(disk, mark)| mark.is_some_and(|mark| record.is_untouched(disk.id, &mark)))
            .collect())
    }

    /// Finds out which blocks may differ. Writes to no disk.
    async fn plan(
        &self,
        kept: &Kept,
        record: Option<&Record>,
        view: &ReplicaView,
        point: &RecoveryPoint,
        replica: Uuid,
        disks: Vec<LocalDisk>,
    ) -> Result<Vec<Disk>, ReceiveError> {
        let untouched = match record {
            Some(record) => self.is_untouched(record, &disks).await?,
            None => vec![false; disks.len()],
        };
        // Mostly all disks are at one position.
        let mut asked: Vec<(Known, Option<Changed>)> = Vec::new();
        let mut planned = Vec::new();
        for (local, is_untouched) in disks.into_iter().zip(untouched) {
            let spec = view.disks().iter().find(|disk| disk.id == local.id.0);
            let size = spec.map(|disk| disk.size_bytes);
            let size = size.ok_or(ReceiveError::NotInPoint {
                disk: local.id,
                point: point.id,
            })?;
            let (path, kept) = (local.path.clone(), kept.clone());
            let (lock, image, found) = off(move || {
                let lock = Lock::take(&path)?;
                // What an earlier round could not flush may still be in memory, and looks as if it had arrived.
                image::forget_pages(&path).map_err(ReceiveError::io(
                    "read the disk and not what memory holds of it",
                ))?;
                let image = image::open(&path, Access::ReadOnly)?;
                let map = kept
                    .map(local.id, replica, size)
                    .map_err(ReceiveError::io("open a map of block hashes"))?;
                Ok((lock, image, map))
            })
            .await?;
            let mut ranges = None;
            if let Some((_, known)) = &found {
                if asked.iter().all(|(at, _)| at != known) {
                    let changed = view.changed_since(known.position, known.by);
                    let changed = self.unless_stopped(async {
                        let what = "find out what changed in the journal";
                        changed.await.map_err(ReceiveError::store(what))
                    });
                    asked.push((*known, changed.await?));
                }
                let changed = asked.iter().find(|(at, _)| at == known);
                let changed = changed.and_then(|(_, changed)| changed.as_ref());
                ranges = changed
                    .and_then(|changed| changed.get(&local.id.0))
                    .cloned();
            }
            let is_told = found.is_some() && ranges.is_some();
            let (map, todo) = match (found, ranges) {
                (Some((map, known)), Some(ranges)) => {
                    let (map, ranges) = (Arc::new(map), todo::blocks(&ranges, size));
                    let holds = is_untouched
                        && record
                            .is_some_and(|at| (at.position, at.by) == (known.position, known.by));
                    let own = if holds {
                        Vec::new()
                    } else {
                        self.scan(&local, image, &map, size).await?
                    };
                    (Some(map), todo::united(ranges, own))
                }
                (found, _) => {
                    tracing::info!(
                        item = self.item_id,
                        disk = %local.id,
                        "nothing tells what may differ: the whole disk is compared with the replica"
                    );
                    let map = match found {
                        Some((map, _)) => Some(Arc::new(map)),
                        None => self.begin_map(&local, replica, size).await?,
                    };
                    (map, todo::blocks(std::slice::from_ref(&(0..size)), size))
                }
            };
            // What is zero by now is not written to an image that holds nothing there.
            let sure = is_told.then(|| view.not_zero(local.id.0, &todo));
            let path = local.path.clone();
            let grows_bytes = off(move || {
                let Some(ranges) = sure else {
                    return Ok(0);
                };
                let image = image::open(&path, Access::ReadOnly)?;
                Ok(room::growth(&image, &ranges))
            });
            planned.push(Disk {
                brought: brought(&local, size),
                map,
                todo,
                grows_bytes: grows_bytes.await?,
                written: Vec::new(),
                _lock: lock,
            });
        }
        Ok(planned)
    }

    /// A disk without a map gets one, if that can be; without it the next round compares everything again.
    async fn begin_map(
        &self,
        disk: &LocalDisk,
        replica: Uuid,
        size: u64,
    ) -> Result<Option<Arc<BlockMap>>, ReceiveError> {
        let (folder, item, id) = (self.state_folder.clone(), self.item_id.clone(), disk.id);
        off(move || {
            let begun =
                Kept::open(&folder, &item).and_then(|kept| kept.begin_map(id, replica, size));
            match begun {
                Ok(map) => Ok(Some(Arc::new(map))),
                Err(error) => {
                    tracing::warn!(disk = %id, %error, "no map of block hashes can be kept");
                    Ok(None)
                }
            }
        })
        .await
    }

    /// Reads the local disk and finds blocks that are not what the map tells.
    async fn scan(
        &self,
        disk: &LocalDisk,
        image: DiskImage,
        map: &Arc<BlockMap>,
        size: u64,
    ) -> Result<Vec<Range<u64>>, ReceiveError> {
        let image = Arc::new(image);
        let mut found = Vec::new();
        for at in (0..size).step_by(WINDOW as usize) {
            self.check_stop()?;
            let (image, map, path) = (image.clone(), map.clone(), disk.path.clone());
            let range = at..size.min(at + WINDOW);
            for range in off(move || image::differing(&image, &path, &map, range)).await? {
                image::push(&mut found, range);
            }
        }
        Ok(found)
    }

    async fn bring(
        &self,
        mut kept: Kept,
        mut disks: Vec<Disk>,
        view: &ReplicaView,
        replica: Uuid,
        to: Known,
        last_application: Option<i64>,
    ) -> Result<(), ReceiveError> {
        let point = view.point().map_or_else(Uuid::nil, |point| point.id);
        let differ = disks.iter().map(|disk| todo::total(&disk.todo)).sum();
        self.progress
            .send_modify(|progress| progress.to_receive_bytes = differ);
        let record = Record::under_way(self.vm, replica, point, to);
        let (folder, begun) = (kept.folder().to_owned(), record.clone());
        off(move || {
            begun.write(&folder).map_err(ReceiveError::io(
                "note that disks are on their way to a point",
            ))
        })
        .await?;
        self.pauses.pass(UNDER_WAY).await;
        for disk in &mut disks {
            self.write_disk(disk, view).await?;
        }
        self.pauses.pass(FLUSHED).await;
        for disk in &mut disks {
            let (path, runs) = (disk.brought.path.clone(), std::mem::take(&mut disk.written));
            off(move || {
                image::forget_pages(&path)
                    .map_err(ReceiveError::io("read a disk image from its volume"))?;
                let image = image::open(&path, Access::ReadOnly)?;
                image::read_back(&image, &path, &runs)
            })
            .await?;
        }
        self.pauses.pass(PROVEN).await;
        let arrival = Arrival {
            vm: self.vm,
            replica,
            at: to,
            disks: disks.iter().map(|disk| disk.brought.clone()).collect(),
            keys: self.keys.clone(),
            last_application_unix_ms: last_application.unwrap_or(0),
        };
        for disk in &disks {
            let (map, size) = (disk.map.clone(), disk.brought.size_bytes);
            off(move || {
                map.map_or(Ok(()), |map| kept::arrived(&map, to, size))
                    .map_err(ReceiveError::io("finish a map of block hashes"))
            })
            .await?;
        }
        self.pauses.pass(MAPPED).await;
        let settled = arrival.clone();
        let kept = off(move || {
            let done = kept.arrive(&settled);
            done.map_err(ReceiveError::io("keep the state of the item"))?;
            Ok(kept)
        })
        .await?;
        self.pauses.pass(SETTLED).await;
        let marks = kept::marks(&arrival.disks).await;
        let marks = marks.map_err(|error| ReceiveError::Io {
            doing: "look at the images of the virtual machine",
            source: io::Error::other(error),
        })?;
        let arrived = arrival.disks.iter().zip(marks);
        let arrived = arrived.filter_map(|(disk, mark)| {
            Some(Arrived {
                disk: disk.id,
                mark: mark?,
            })
        });
        let record = record.at(arrived.collect());
        off(move || {
            record
                .write(kept.folder())
                .map_err(ReceiveError::io("note that disks have arrived at a point"))
        })
        .await?;
        self.pauses.pass(ARRIVED).await;
        self.progress
            .send_modify(|progress| progress.to_receive_bytes = 0);
        Ok(())
    }

    /// Writes what differs, and makes it durable.
    async fn write_disk(&self, disk: &mut Disk, view: &ReplicaView) -> Result<(), ReceiveError> {
        let (path, size) = (disk.brought.path.clone(), disk.brought.size_bytes);
        let permit = self.target.may_write().await?;
        let opened = off(move || {
            let mut image = image::open(&path, Access::ReadWrite)?;
            image::resize(&mut image, &path, size)?;
            Ok(image)
        });
        let image: Shared = Arc::new(Mutex::new(opened.await?));
        drop(permit);
        let id = disk.brought.id.0;
        let windows = todo::windows(&disk.todo);
        let reads = stream::iter(windows).map(|window| self.read(view, id, window));
        let mut reads = reads.buffered(READS);
        loop {
            // A batch that has begun is written to its end: the right to write is kept as long.
            let Some(pieces) = self
                .unless_stopped(async { reads.next().await.transpose() })
                .await?
            else {
                break;
            };
            let looked: u64 = pieces.iter().map(|(_, data)| data.len() as u64).sum();
            self.check_batch(&disk.brought.path, added(&lock(&image), &pieces))?;
            let permit = self.target.may_write().await?;
            let (image, map, path) = (image.clone(), disk.map.clone(), disk.brought.path.clone());
            let written =
                off(move || image::write(&mut lock(&image), &path, map.as_deref(), &pieces))
                    .await?;
            drop(permit);
            let bytes: u64 = written.iter().map(|run| run.length).sum();
            disk.written.extend(written);
            self.progress.send_modify(|progress| {
                progress.received_bytes += bytes;
                progress.to_receive_bytes = progress.to_receive_bytes.saturating_sub(looked);
            });
            self.pauses.pass(WRITING).await;
        }
        let permit = self.target.may_write().await?;
        let path = disk.brought.path.clone();
        off(move || {
            let image = Arc::into_inner(image).map(Mutex::into_inner);
            let Some(image) = image else {
                // What is not flushed has not arrived.
                let error = io::Error::other("something still writes to it");
                return Err(ReceiveError::io("flush a disk image")(error));
            };
            let mut image = image.unwrap_or_else(PoisonError::into_inner);
            image.flush().map_err(ReceiveError::image("flush", &path))?;
            image.close().map_err(ReceiveError::image("close", &path))
        })
        .await?;
        drop(permit);
        Ok(())
    }

    async fn read(
        &self,
        view: &ReplicaView,
        disk: Uuid,
        window: Vec<Range<u64>>,
    ) -> Result<Vec<(u64, Bytes)>, ReceiveError> {
        let wanted = todo::total(&window);
        self.throttle
            .acquire(&self.item_id, wanted, self.class)
            .await;
        let mut pieces = Vec::new();
        for range in window {
            let length = (range.end - range.start) as usize;
            let data = view.read(disk, range.start, length).await;
            let data = data.map_err(ReceiveError::store("read the replica"))?;
            pieces.push((range.start, data));
        }
        Ok(pieces)
    }

    fn check_stop(&self) -> Result<(), ReceiveError> {
        match self.stop.is_cancelled() {
            true => Err(ReceiveError::Stopped),
            false => Ok(()),
        }
    }

    /// For work that may be dropped at any place: nothing that writes to disks.
    pub(super) async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, ReceiveError>>,
    ) -> Result<T, ReceiveError> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(ReceiveError::Stopped),
            done = work => done,
        }
    }
}

fn growth_of(disk: &Brought, bytes: u64) -> Growth {
    let folder = disk.path.parent().unwrap_or(&disk.path).to_owned();
    Growth { folder, bytes }
}

/// Bytes of a batch that the image does not hold yet. Zeroes are not written where there are none but zeroes.
fn added(image: &DiskImage, pieces: &[(u64, Bytes)]) -> u64 {
    let new = pieces.iter().filter(|(_, data)| !is_zero(data));
    let new: Vec<Range<u64>> = new.map(|(at, data)| *at..*at + data.len() as u64).collect();
    room::growth(image, &new)
}

fn brought(disk: &LocalDisk, size_bytes: u64) -> Brought {
    Brought {
        id: disk.id,
        path: disk.path.clone(),
        name: disk.name.clone(),
        size_bytes,
    }
}

fn lock(image: &Shared) -> MutexGuard<'_, DiskImage> {
    // An image that a panic left half written says so by itself.
    image.lock().unwrap_or_else(PoisonError::into_inner)
}
