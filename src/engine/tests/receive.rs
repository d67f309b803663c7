//! Failback at the source: real images in a folder, a store in a folder, a recovered VM that wrote on.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use disk_image::{Access, CreateOptions, DiskImage, Format};
use engine::receive::record::Record;
use engine::receive::{Came, LocalDisk, PLACES, Progress, ReceiveError, Receiver, Target, Until};
use engine::replicator::hashes::{self, BLOCK, BlockHash, BlockMap, Header};
use engine::replicator::pauses::{NoPauses, Pauses};
use engine::replicator::state::{ItemDisk, ItemFiles, ItemState};
use engine::replicator::throttle::Unthrottled;
use hypervisor::{DiskId, VmId};
use replica_store::{
    DiskSpec, ErrorKind, Generation, PointKind, PointSelector, Position, RecoveryPoint, ReplicaKey,
    ReplicaReader, ReplicaWriter, RetentionPolicy, StoreTarget, WriterOptions,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const ITEM: &str = "11111111-2222-3333-4444-555555555555";
const VM: VmId = VmId(Uuid::from_u128(7));
const OURS: u64 = 1;
const ORIGIN: u64 = 2;
const MIB: u64 = 1 << 20;
/// The second is no whole number of blocks.
const SIZES: [u64; 2] = [24 * MIB, 10 * MIB + 512];
const SHIPPED: u64 = 2;

type Disks = Vec<Vec<u8>>;
type Written = Vec<(usize, Range<u64>)>;

fn id(n: usize) -> Uuid {
    Uuid::from_u128(0xd15c + n as u128)
}

fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Writes `count` blocks of 4 KiB in places that follow from the seed.
fn scribble(disks: &mut Disks, seed: u64, count: usize) -> Written {
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

fn differing(a: &Disks, b: &Disks) -> u64 {
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

fn specs(disks: &Disks) -> Vec<DiskSpec> {
    (0..disks.len())
        .map(|n| DiskSpec {
            id: id(n),
            size_bytes: disks[n].len() as u64,
            name: format!("disk{n}"),
        })
        .collect()
}

fn point(position: u64) -> RecoveryPoint {
    RecoveryPoint {
        id: Uuid::from_u128(0x9000 + u128::from(position)),
        time_unix_ms: 1_700_000_000_000 + position as i64 * 60_000,
        kind: PointKind::Crash,
        position: Position(position),
        ..RecoveryPoint::default()
    }
}

/// A host whose VM was failed over, and the store that both sides use.
struct Site {
    folder: tempfile::TempDir,
    format: Format,
}

impl Site {
    /// The local disks as of the newest shipped position, with maps; returns what they hold.
    async fn new(format: Format) -> (Self, Disks) {
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
        for n in 0..SIZES.len() {
            let options = CreateOptions {
                block_size: (format == Format::VhdxDynamic).then_some(1 << 20),
                id: Some(id(n)),
                ..CreateOptions::new(format, SIZES[n])
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

    fn path(&self, n: usize) -> PathBuf {
        let extension = match self.format {
            Format::VhdxDynamic => "vhdx",
            _ => "vhd",
        };
        self.folder.path().join(format!("vm/disk{n}.{extension}"))
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn maps(&self) -> PathBuf {
        ItemFiles::new(&self.state(), ITEM).hashes().to_owned()
    }

    fn store(&self) -> StoreTarget {
        StoreTarget::Folder(self.folder.path().join("store"))
    }

    fn key(&self) -> ReplicaKey {
        ReplicaKey::new("vault-0a1b2c3d", ITEM).unwrap()
    }

    async fn writer(&self, generation: u64, disks: &Disks) -> ReplicaWriter {
        let options = WriterOptions {
            any_disks: true,
            ..WriterOptions::default()
        };
        let (store, key) = (self.store(), self.key());
        ReplicaWriter::open_with(options, &store, &key, Generation(generation), &specs(disks))
            .await
            .unwrap()
    }

    async fn reader(&self) -> ReplicaReader {
        ReplicaReader::open(&self.store(), &self.key())
            .await
            .unwrap()
    }

    /// What the guest leaves in the images.
    fn write_local(&self, disks: &Disks) {
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

    fn local(&self) -> Disks {
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
    async fn keep_maps(&self, disks: &Disks) {
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

    /// Each kept map tells of `disks` at a position of a generation, block by block.
    fn check_maps(&self, disks: &Disks, generation: u64, position: u64) {
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

    fn receiver(&self, pauses: Arc<dyn Pauses>) -> (Receiver, Arc<Vm>) {
        let vm = Arc::new(Vm {
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
            pauses,
            progress: watch::Sender::new(Progress::default()),
            stop: CancellationToken::new(),
        };
        (receiver, vm)
    }

    async fn round(&self) -> (Came, Progress) {
        let (receiver, _) = self.receiver(Arc::new(NoPauses));
        let came = receiver.round().await.unwrap();
        let progress = *receiver.progress.borrow();
        assert_eq!(progress.to_receive_bytes, 0);
        (came, progress)
    }

    /// By hash, block by block, and by the model.
    async fn check_equal(&self, theirs: &Disks) {
        let (receiver, _) = self.receiver(Arc::new(NoPauses));
        let proof = receiver.prove().await.unwrap();
        assert!(proof.is_equal(), "{proof:?}");
        assert!(
            self.local() == *theirs,
            "the local disks differ from the model"
        );
    }

    fn record(&self) -> Option<Record> {
        Record::read(&self.maps()).unwrap()
    }
}

async fn send(writer: &ReplicaWriter, position: u64, disks: &Disks, written: &Written) {
    let plan = replica_store::CyclePlan {
        position: Position(position),
        time_unix_ms: point(position).time_unix_ms,
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
    writer.add_point(point(position)).await.unwrap();
}

/// A VM that is off, and may be written to so many times.
struct Vm {
    disks: Vec<LocalDisk>,
    allowed: AtomicU64,
    is_received: AtomicBool,
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

    async fn received(&self) -> Result<(), ReceiveError> {
        self.is_received.store(true, Ordering::SeqCst);
        Ok(())
    }
}

/// Stops the engine for good at the n-th place.
struct KillAt {
    left: AtomicU64,
    place: Mutex<Option<&'static str>>,
    dead: Notify,
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
    fn new(n: u64) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicU64::new(n),
            place: Mutex::new(None),
            dead: Notify::new(),
        })
    }
}

async fn planned_failback(format: Format) {
    let (site, shipped) = Site::new(format).await;
    let mut theirs = shipped.clone();
    // Nothing belongs to the recovered VM yet.
    assert_eq!(site.round().await.0, Came::Waits);
    assert_eq!(site.record(), None);
    let writer = site.writer(ORIGIN, &theirs).await;
    assert_eq!(site.round().await.0, Came::Waits);
    let written = scribble(&mut theirs, 7, 90);
    send(&writer, 3, &theirs, &written).await;

    let changed = differing(&shipped, &theirs);
    let (came, progress) = site.round().await;
    assert_eq!(came, Came::Arrived(point(3)));
    assert!(changed > 0 && progress.received_bytes <= changed + changed / 10);
    site.check_equal(&theirs).await;
    site.check_maps(&theirs, ORIGIN, 3);
    assert!(site.record().unwrap().has_arrived());

    // Again: nothing is written, and the image is not touched.
    let before = std::fs::metadata(site.path(0)).unwrap().modified().unwrap();
    assert_eq!(site.round().await.0, Came::Current(point(3)));
    let after = std::fs::metadata(site.path(0)).unwrap().modified().unwrap();
    assert_eq!(before, after);

    // The recovered VM writes on: the next round takes that and nothing else.
    let between = theirs.clone();
    let written = scribble(&mut theirs, 8, 40);
    send(&writer, 4, &theirs, &written).await;
    let (came, progress) = site.round().await;
    assert_eq!(came, Came::Arrived(point(4)));
    assert_eq!(progress.received_bytes, differing(&between, &theirs));
    site.check_equal(&theirs).await;
    site.check_maps(&theirs, ORIGIN, 4);
    assert_eq!(site.reader().await.pins().await.unwrap(), []);
}

#[tokio::test]
async fn only_what_the_recovered_vm_changed_is_written_into_a_vhdx() {
    planned_failback(Format::VhdxDynamic).await;
}

#[tokio::test]
async fn only_what_the_recovered_vm_changed_is_written_into_a_vhd() {
    planned_failback(Format::VhdDynamic).await;
}

/// The source had written on, the recovered VM began at an older point: both sides differ from what was shipped.
async fn diverged() -> (Site, Disks) {
    let (site, shipped) = Site::new(Format::VhdxDynamic).await;
    let mut ours = shipped.clone();
    scribble(&mut ours, 20, 60);
    site.write_local(&ours);
    let mut theirs = shipped;
    let writer = site.writer(ORIGIN, &theirs).await;
    // Back to what an older point had, and on from there.
    let mut written = scribble(&mut theirs, 102, 50);
    written.extend(scribble(&mut theirs, 21, 70));
    send(&writer, 3, &theirs, &written).await;
    (site, theirs)
}

#[tokio::test]
async fn what_the_source_had_not_shipped_is_undone_and_nothing_equal_is_written() {
    let (site, theirs) = diverged().await;
    let differ = differing(&site.local(), &theirs);
    let (came, progress) = site.round().await;
    assert_eq!(came, Came::Arrived(point(3)));
    assert_eq!(progress.received_bytes, differ);
    site.check_equal(&theirs).await;
    site.check_maps(&theirs, ORIGIN, 3);
}

#[tokio::test]
async fn a_kill_at_any_step_is_made_good_by_the_next_round() {
    for n in 0.. {
        let (site, mut theirs) = diverged().await;
        let kill = KillAt::new(n);
        let (receiver, _) = site.receiver(kill.clone());
        let ended = tokio::select! {
            came = receiver.round() => Some(came.unwrap()),
            () = kill.dead.notified() => None,
        };
        drop(receiver);
        let place = *kill.place.lock().unwrap();
        let context = format!("killed at step {n}, {place:?}");
        let record = site.record().unwrap();
        assert_eq!(
            record.has_arrived(),
            place.is_none_or(|place| place == PLACES[6]),
            "{context}"
        );
        // The recovered VM goes on meanwhile.
        if n % 2 == 1 {
            let writer = site.writer(ORIGIN, &theirs).await;
            let written = scribble(&mut theirs, 50 + n, 30);
            send(&writer, 4, &theirs, &written).await;
        }
        let newest = if n % 2 == 1 { 4 } else { 3 };
        let (receiver, vm) = site.receiver(Arc::new(NoPauses));
        let tell = |error: Option<&ReceiveError>| assert!(error.is_none(), "{context}: {error:?}");
        receiver.run(Until::Equal, &tell).await;
        assert!(vm.is_received.load(Ordering::SeqCst), "{context}");
        site.check_equal(&theirs).await;
        site.check_maps(&theirs, ORIGIN, newest);
        assert_eq!(site.reader().await.pins().await.unwrap(), [], "{context}");
        if ended.is_some() {
            assert!(n > 8, "only {n} steps");
            return;
        }
    }
}

#[tokio::test]
async fn without_maps_everything_is_compared_and_only_what_differs_is_written() {
    let (site, theirs) = diverged().await;
    std::fs::remove_dir_all(site.maps()).unwrap();
    let differ = differing(&site.local(), &theirs);
    let (came, progress) = site.round().await;
    assert_eq!(came, Came::Arrived(point(3)));
    assert_eq!(progress.received_bytes, differ);
    site.check_equal(&theirs).await;
    // From now on there are maps.
    site.check_maps(&theirs, ORIGIN, 3);
}

#[tokio::test]
async fn a_journal_that_went_into_base_is_no_reason_to_miss_a_block() {
    let (site, mut theirs) = diverged().await;
    let writer = site.writer(ORIGIN, &theirs).await;
    let written = scribble(&mut theirs, 30, 30);
    send(&writer, 4, &theirs, &written).await;
    let now = point(4).time_unix_ms;
    let report = writer.maintain(now, RetentionPolicy::hours(0)).await;
    assert_eq!(report.unwrap().base_position_after, Position(4));
    let differ = differing(&site.local(), &theirs);
    let (came, progress) = site.round().await;
    assert_eq!(came, Came::Arrived(point(4)));
    assert_eq!(progress.received_bytes, differ);
    site.check_equal(&theirs).await;
    site.check_maps(&theirs, ORIGIN, 4);
}

#[tokio::test]
async fn a_map_of_a_cycle_that_the_store_never_counted_is_not_relied_upon() {
    let (site, mut theirs) = diverged().await;
    // The source believes that it had shipped a third cycle; in the store the third is the recovered VM's.
    let files = ItemFiles::new(&site.state(), ITEM);
    let mut state = files.load().unwrap().unwrap();
    state.shipped = 3;
    files.store(&state).unwrap();
    let writer = site.writer(ORIGIN, &theirs).await;
    let written = scribble(&mut theirs, 31, 30);
    send(&writer, 4, &theirs, &written).await;
    site.round().await;
    site.check_equal(&theirs).await;
}

#[tokio::test]
async fn a_disk_that_grew_at_the_recovery_side_grows_and_one_that_grew_here_shrinks() {
    for format in [Format::VhdxDynamic, Format::VhdDynamic] {
        let (site, shipped) = Site::new(format).await;
        // Here the second one grew, unshipped, and was written behind its old end.
        let mut image = DiskImage::open(site.path(1), Access::ReadWrite).unwrap();
        image.resize(SIZES[1] + 3 * MIB).unwrap();
        image.write_at(&[9; 5000], SIZES[1] + MIB).unwrap();
        image.close().unwrap();
        // There the first one.
        let mut theirs = shipped;
        theirs[0].resize((SIZES[0] + 4 * MIB) as usize, 0);
        let writer = site.writer(ORIGIN, &theirs).await;
        let mut written = scribble(&mut theirs, 40, 60);
        let end = SIZES[0] + 2 * MIB;
        theirs[0][end as usize..][..4096].fill(3);
        written.push((0, end..end + BLOCK));
        send(&writer, 3, &theirs, &written).await;
        let (came, _) = site.round().await;
        assert_eq!(came, Came::Arrived(point(3)));
        site.check_equal(&theirs).await;
        site.check_maps(&theirs, ORIGIN, 3);
    }
}

#[tokio::test]
async fn a_store_that_goes_away_in_the_middle_is_an_error_and_nothing_half_counts_as_arrived() {
    let (site, theirs) = diverged().await;
    let journal = site.folder.path().join("store/vault-0a1b2c3d").join(ITEM);
    let away = site.folder.path().join("away");
    struct Unplug(PathBuf, PathBuf);
    #[async_trait]
    impl Pauses for Unplug {
        async fn pass(&self, place: &'static str) {
            if place == engine::receive::UNDER_WAY {
                std::fs::rename(&self.0, &self.1).unwrap();
            }
        }
    }
    let unplug = Arc::new(Unplug(journal.clone(), away.clone()));
    let (receiver, vm) = site.receiver(unplug);
    let told = Arc::new(Notify::new());
    let (heard, stop) = (told.clone(), receiver.stop.clone());
    let run = tokio::spawn(async move {
        let tell = move |error: Option<&ReceiveError>| {
            if error.is_some() {
                heard.notify_one();
            }
        };
        receiver.run(Until::Equal, &tell).await;
    });
    told.notified().await;
    assert!(!vm.is_received.load(Ordering::SeqCst));
    assert!(!site.record().unwrap().has_arrived());
    stop.cancel();
    run.await.unwrap();
    std::fs::rename(&away, &journal).unwrap();

    let (receiver, vm) = site.receiver(Arc::new(NoPauses));
    receiver
        .run(Until::Equal, &|error| assert!(error.is_none(), "{error:?}"))
        .await;
    assert!(vm.is_received.load(Ordering::SeqCst));
    site.check_equal(&theirs).await;
}

#[tokio::test]
async fn the_right_to_write_is_asked_for_before_each_batch_and_its_loss_ends_the_work() {
    for allowed in 0.. {
        let (site, theirs) = diverged().await;
        let (receiver, vm) = site.receiver(Arc::new(NoPauses));
        vm.allowed.store(allowed, Ordering::SeqCst);
        let before = site.local();
        match receiver.round().await {
            Err(ReceiveError::Withdrawn) => {
                assert!(!site.record().unwrap().has_arrived());
                assert!(allowed > 0 || site.local() == before);
            }
            Ok(came) => {
                assert_eq!(came, Came::Arrived(point(3)));
                assert!(allowed > 5, "asked {allowed} times");
                site.check_equal(&theirs).await;
                return;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test]
async fn an_image_that_is_open_elsewhere_is_not_written() {
    let (site, _) = diverged().await;
    let kill = KillAt::new(0);
    let (first, _) = site.receiver(kill.clone());
    let before = site.local();
    // A round that stands still holds the images, as a running VM would.
    let first = tokio::spawn(async move { first.round().await.map(drop) });
    kill.dead.notified().await;
    let (second, _) = site.receiver(Arc::new(NoPauses));
    match second.round().await {
        Err(ReceiveError::InUse(path)) => assert_eq!(path, site.path(0)),
        other => panic!("{other:?}"),
    }
    first.abort();
    assert!(site.local() == before);
}

#[tokio::test]
async fn a_replica_that_went_to_another_activation_is_not_received_any_more() {
    let (site, theirs) = diverged().await;
    drop(site.writer(3, &theirs).await);
    let (receiver, _) = site.receiver(Arc::new(NoPauses));
    match receiver.round().await {
        Err(ReceiveError::Store { source, .. }) => assert_eq!(source.kind(), ErrorKind::Fenced),
        other => panic!("{other:?}"),
    }
    assert_eq!(site.record(), None);
}

#[tokio::test]
async fn the_view_of_a_round_is_held_and_let_go_of() {
    let (site, _) = diverged().await;
    let kill = KillAt::new(0);
    let (receiver, _) = site.receiver(kill.clone());
    tokio::select! {
        _ = receiver.round() => panic!("it did not stand still"),
        () = kill.dead.notified() => {}
    }
    let pins = site.reader().await.pins().await.unwrap();
    assert_eq!(pins.len(), 1);
    assert_eq!(pins[0].point_id, point(3).id);
    let (receiver, _) = site.receiver(Arc::new(NoPauses));
    receiver.run(Until::Equal, &|_| {}).await;
    assert_eq!(site.reader().await.pins().await.unwrap(), []);
    let view = site.reader().await.view(PointSelector::Newest).await;
    assert_eq!(view.unwrap().position(), Position(3));
}

#[test]
fn places_are_all_different() {
    let mut places = PLACES.to_vec();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), PLACES.len());
}
