//! A host whose VM was failed over: real images, maps as replication leaves them, a store that both sides use.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use disk_image::{Access, CreateOptions, DiskImage, Format};
use engine::receive::record::{Arrived, Record};
use engine::receive::{Came, LocalDisk, Progress, ReceiveError, Receiver, Target};
use engine::replicator::hashes::{self, BLOCK, BlockHash, BlockMap, Header};
use engine::replicator::kept::{Brought, Known, marks};
use engine::replicator::pauses::{NoPauses, Pauses};
use engine::replicator::state::{ItemDisk, ItemFiles, ItemState};
use engine::replicator::throttle::{Class, Unthrottled};
use hypervisor::{DiskId, VmId};
use replica_store::{
    DiskSpec, Generation, PointKind, Position, RecoveryPoint, ReplicaKey, ReplicaReader,
    ReplicaWriter, StoreTarget, WriterOptions,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub const ITEM: &str = "11111111-2222-3333-4444-555555555555";
pub const VM: VmId = VmId(Uuid::from_u128(7));
pub const OURS: u64 = 1;
pub const ORIGIN: u64 = 2;
pub const MIB: u64 = 1 << 20;
/// The second is no whole number of blocks.
pub const SIZES: [u64; 2] = [24 * MIB, 10 * MIB + 512];
pub const SHIPPED: u64 = 2;

pub type Disks = Vec<Vec<u8>>;
pub type Written = Vec<(usize, Range<u64>)>;

pub fn id(n: usize) -> Uuid {
    Uuid::from_u128(0xd15c + n as u128)
}

pub fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Writes `count` blocks of 4 KiB in places that follow from the seed.
pub fn scribble(disks: &mut Disks, seed: u64, count: usize) -> Written {
    let mut seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            let n = (random(&mut seed) % 2) as usize;
            let at = random(&mut seed) % (disks[n].len() as u64 / BLOCK) * BLOCK;
            let range = at..at + BLOCK;
            let value = random(&mut seed) as u8;
            let place = &mut disks[n][at as usize..(at + BLOCK) as usize];
            if value < 40 {
                place.fill(0);
            } else {
                place.fill(value);
                place[9] = random(&mut seed) as u8;
            }
            (n, range)
        })
        .collect()
}

pub fn differing(a: &Disks, b: &Disks) -> u64 {
    let block = BLOCK as usize;
    let disks = a.iter().zip(b);
    disks
        .map(|(a, b)| {
            let pairs = a.chunks(block).zip(b.chunks(block));
            let differ = pairs.filter(|(a, b)| a != b);
            differ.map(|(a, _)| a.len() as u64).sum::<u64>()
        })
        .sum()
}

pub fn specs(disks: &Disks) -> Vec<DiskSpec> {
    (0..disks.len())
        .map(|n| DiskSpec {
            id: id(n),
            size_bytes: disks[n].len() as u64,
            name: format!("disk{n}"),
        })
        .collect()
}

pub fn point(position: u64) -> RecoveryPoint {
    RecoveryPoint {
        id: Uuid::from_u128(0x9000 + u128::from(position)),
        time_unix_ms: 1_700_000_000_000 + position as i64 * 60_000,
        kind: PointKind::Crash,
        position: Position(position),
        ..RecoveryPoint::default()
    }
}

/// A host whose VM was failed over, and the store that both sides use.
pub struct Site {
    pub folder: tempfile::TempDir,
    pub format: Format,
}

impl Site {
    /// The local disks as of the newest shipped position, with maps; returns what they hold.
    pub async fn new(format: Format) -> (Self, Disks) {
        let folder = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let site = Self { folder, format };
        for name in ["vm", "state", "store"] {
            std::fs::create_dir(site.folder.path().join(name)).unwrap();
        }
        let mut disks: Disks = SIZES.iter().map(|size| vec![0; *size as usize]).collect();
        scribble(&mut disks, 1, 2500);
        let writer = site.writer(OURS, &disks).await;
        for (n, disk) in disks.iter().enumerate() {
            for (index, piece) in disk.chunks(MIB as usize).enumerate() {
                let data = Bytes::copy_from_slice(piece);
                let written = writer.base_write(id(n), index as u64 * MIB, data);
                written.await.unwrap();
            }
        }
        writer.base_flush().await.unwrap();
        writer.complete_base(point(0)).await.unwrap();
        for position in 1..=SHIPPED {
            let written = scribble(&mut disks, 100 + position, 50);
            send(&writer, position, &disks, &written).await;
        }
        for (n, size) in SIZES.into_iter().enumerate() {
            let options = CreateOptions {
                block_size: (format == Format::VhdxDynamic).then_some(1 << 20),
                id: Some(id(n)),
                ..CreateOptions::new(format, size)
            };
            DiskImage::create(site.path(n), &options)
                .unwrap()
                .close()
                .unwrap();
        }
        site.write_local(&disks);
        site.keep_maps(&disks).await;
        (site, disks)
    }

    pub fn path(&self, n: usize) -> PathBuf {
        let extension = match self.format {
            Format::VhdxDynamic => "vhdx",
            _ => "vhd",
        };
        self.folder.path().join(format!("vm/disk{n}.{extension}"))
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub fn maps(&self) -> PathBuf {
        ItemFiles::new(&self.state(), ITEM).hashes().to_owned()
    }

    pub fn store(&self) -> StoreTarget {
        StoreTarget::Folder(self.folder.path().join("store"))
    }

    pub fn key(&self) -> ReplicaKey {
        ReplicaKey::new("vault-0a1b2c3d", ITEM).unwrap()
    }

    pub async fn writer(&self, generation: u64, disks: &Disks) -> ReplicaWriter {
        let options = WriterOptions {
            any_disks: true,
            ..WriterOptions::default()
        };
        let (store, key) = (self.store(), self.key());
        ReplicaWriter::open_with(options, &store, &key, Generation(generation), &specs(disks))
            .await
            .unwrap()
    }

    pub async fn reader(&self) -> ReplicaReader {
        ReplicaReader::open(&self.store(), &self.key())
            .await
            .unwrap()
    }

    /// What the guest leaves in the images.
    pub fn write_local(&self, disks: &Disks) {
        for (n, disk) in disks.iter().enumerate() {
            let mut image = DiskImage::open(self.path(n), Access::ReadWrite).unwrap();
            let mut there = vec![0; image.virtual_size() as usize];
            image.read_at(&mut there, 0).unwrap();
            for at in (0..disk.len()).step_by(BLOCK as usize) {
                let end = disk.len().min(at + BLOCK as usize);
                if disk[at..end] != there[at..end] {
                    image.write_at(&disk[at..end], at as u64).unwrap();
                }
            }
            image.close().unwrap();
        }
    }

    pub fn local(&self) -> Disks {
        (0..SIZES.len())
            .map(|n| {
                let image = DiskImage::open(self.path(n), Access::ReadOnly).unwrap();
                let mut data = vec![0; image.virtual_size() as usize];
                image.read_at(&mut data, 0).unwrap();
                data
            })
            .collect()
    }

    /// As replication leaves them: state and maps of the newest shipped position.
    pub async fn keep_maps(&self, disks: &Disks) {
        let replica = self.reader().await.replica_id().await.unwrap();
        let mut items = Vec::new();
        for (n, disk) in disks.iter().enumerate() {
            let header = Header {
                disk: id(n),
                replica,
                generation: OURS,
                position: SHIPPED,
                size_bytes: disk.len() as u64,
                unwritten_is_unknown: false,
                filled_to: None,
            };
            let path = self.maps().join(format!("{}.map", DiskId(id(n))));
            let file = hashes::create(&path).unwrap();
            let map = BlockMap::create(Box::new(file), header).unwrap();
            let blocks = disk.chunks(BLOCK as usize);
            let hashes: Vec<_> = blocks.map(|data| BlockHash::of(map.key(), data)).collect();
            map.set(0, &hashes).unwrap();
            map.commit(|_| {}).unwrap();
            items.push(ItemDisk {
                id: DiskId(id(n)),
                name: format!("disk{n}"),
                size_bytes: disk.len() as u64,
                path: self.path(n),
                changed_at: SHIPPED,
                changed_before: 0,
                last_log: Uuid::nil(),
                left: None,
            });
        }
        let mut state = ItemState::new(OURS, VM, items);
        state.complete = true;
        state.shipped = SHIPPED;
        state.replica = replica;
        ItemFiles::new(&self.state(), ITEM).store(&state).unwrap();
    }

    /// As the end of a planned failover leaves it.
    pub async fn note_shipped(&self) {
        let replica = self.reader().await.replica_id().await.unwrap();
        let disks: Vec<Brought> = (0..SIZES.len())
            .map(|n| Brought {
                id: DiskId(id(n)),
                path: self.path(n),
                name: format!("disk{n}"),
                size_bytes: SIZES[n],
            })
            .collect();
        let marks = marks(&disks).await.unwrap();
        let images = disks.iter().zip(marks).map(|(disk, mark)| Arrived {
            disk: disk.id,
            mark: mark.unwrap(),
        });
        let at = Known {
            position: Position(SHIPPED),
            by: Generation(OURS),
        };
        Record::under_way(VM, replica, point(SHIPPED).id, at)
            .at(images.collect())
            .write(&self.maps())
            .unwrap();
    }

    /// The map does not know a block any more.
    pub fn forget_block(&self, n: usize, block: u64) {
        let path = self.maps().join(format!("{}.map", DiskId(id(n))));
        let file = hashes::open(&path).unwrap().unwrap();
        let map = BlockMap::open(Box::new(file)).unwrap().unwrap();
        map.set(block, &[BlockHash::UNKNOWN]).unwrap();
        map.commit(|_| {}).unwrap();
    }

    /// Each kept map tells of `disks` at a position of a generation, block by block.
    pub fn check_maps(&self, disks: &Disks, generation: u64, position: u64) {
        for (n, disk) in disks.iter().enumerate() {
            let path = self.maps().join(format!("{}.map", DiskId(id(n))));
            let file = hashes::open(&path).unwrap().unwrap();
            let map = BlockMap::open(Box::new(file)).unwrap().unwrap();
            let header = map.header();
            assert_eq!((header.generation, header.position), (generation, position));
            assert_eq!(
                (header.size_bytes, header.filled_to),
                (disk.len() as u64, None)
            );
            let known = map.get(0, disk.len().div_ceil(BLOCK as usize)).unwrap();
            for (block, (data, known)) in disk.chunks(BLOCK as usize).zip(known).enumerate() {
                let is = BlockHash::of(map.key(), data);
                assert!(known.surely_is(is), "block {block} of disk {n}");
            }
        }
    }

    pub fn receiver(&self, pauses: Arc<dyn Pauses>) -> (Receiver, Arc<Vm>) {
        let vm = Arc::new(Vm {
            left_out: Mutex::default(),
            disks: (0..SIZES.len())
                .map(|n| LocalDisk {
                    id: DiskId(id(n)),
                    name: format!("disk{n}"),
                    path: self.path(n),
                })
                .collect(),
            allowed: AtomicU64::new(u64::MAX),
            is_received: AtomicBool::new(false),
        });
        let receiver = Receiver {
            item_id: ITEM.to_owned(),
            vm: VM,
            store: self.store(),
            key: self.key(),
            keys: replication_log::KeyRing::new(),
            origin: Generation(ORIGIN),
            state_folder: self.state(),
            target: vm.clone(),
            throttle: Arc::new(Unthrottled),
            class: Class::Delta,
            free_bytes: Arc::new(|_| None),
            pauses,
            progress: watch::Sender::new(Progress::default()),
            stop: CancellationToken::new(),
        };
        (receiver, vm)
    }

    pub async fn round(&self) -> (Came, Progress) {
        let (receiver, _) = self.receiver(Arc::new(NoPauses));
        let came = receiver.round().await.unwrap();
        let progress = *receiver.progress.borrow();
        assert_eq!(progress.to_receive_bytes, 0);
        (came, progress)
    }

    /// By hash, block by block, and by the model.
    pub async fn check_equal(&self, theirs: &Disks) {
        let (receiver, _) = self.receiver(Arc::new(NoPauses));
        let proof = receiver.prove().await.unwrap();
        assert!(proof.is_equal(), "{proof:?}");
        assert!(
            self.local() == *theirs,
            "the local disks differ from the model"
        );
    }

    pub fn record(&self) -> Option<Record> {
        Record::read(&self.maps()).unwrap()
    }
}

pub async fn send(writer: &ReplicaWriter, position: u64, disks: &Disks, written: &Written) {
    send_as(writer, point(position), disks, written).await;
}

pub async fn send_as(
    writer: &ReplicaWriter,
    point: RecoveryPoint,
    disks: &Disks,
    written: &Written,
) {
    let position = point.position.0;
    let plan = replica_store::CyclePlan {
        position: Position(position),
        time_unix_ms: point.time_unix_ms,
        disks: Some(specs(disks)),
        compression: replication_log::journal::CompressionLevel::default(),
    };
    let mut cycle = writer.begin_cycle_with(plan).await.unwrap();
    let mut blocks: BTreeMap<(usize, u64), u64> = BTreeMap::new();
    for (n, range) in written {
        blocks.insert((*n, range.start), range.end);
    }
    for ((n, start), end) in blocks {
        let data = Bytes::copy_from_slice(&disks[n][start as usize..end as usize]);
        cycle.write(id(n), start, data).await.unwrap();
    }
    cycle.commit().await.unwrap();
    writer.add_point(point).await.unwrap();
}

/// A VM that is off, and may be written to so many times.
pub struct Vm {
    pub left_out: Mutex<Vec<String>>,
    disks: Vec<LocalDisk>,
    pub allowed: AtomicU64,
    pub is_received: AtomicBool,
}

#[async_trait]
impl Target for Vm {
    async fn disks(&self) -> Result<Vec<LocalDisk>, ReceiveError> {
        Ok(self.disks.clone())
    }

    async fn may_write(&self) -> Result<Box<dyn Send + '_>, ReceiveError> {
        let left = self
            .allowed
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        match left {
            Ok(_) => Ok(Box::new(())),
            Err(_) => Err(ReceiveError::Withdrawn),
        }
    }

    fn leaves_out(&self, names: Vec<String>) {
        *self.left_out.lock().unwrap() = names;
    }

    async fn received(&self) -> Result<(), ReceiveError> {
        self.is_received.store(true, Ordering::SeqCst);
        Ok(())
    }
}

/// Stops the engine for good at the n-th place.
pub struct KillAt {
    left: AtomicU64,
    pub place: Mutex<Option<&'static str>>,
    pub dead: Notify,
}

#[async_trait]
impl Pauses for KillAt {
    async fn pass(&self, place: &'static str) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            *self.place.lock().unwrap() = Some(place);
            self.dead.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

impl KillAt {
    pub fn new(n: u64) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicU64::new(n),
            place: Mutex::new(None),
            dead: Notify::new(),
        })
    }
}
