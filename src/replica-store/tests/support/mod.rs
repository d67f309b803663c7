//! A model VM, a store in memory-backed storage, and faults with a counter.
#![allow(dead_code)] // each test program uses its part

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use replica_store::fault::{Fault, Faults, StepKind};
use replica_store::{
    DiskSpec, Generation, PointKind, PointSelector, Position, RecoveryPoint, ReplicaKey,
    ReplicaReader, ReplicaView, ReplicaWriter, StoreError, StoreTarget,
};
use uuid::Uuid;

/// True sizes: neither is a whole MiB.
pub const SIZES: [u64; 2] = [1_500_160, 300_544];
pub const HOUR_MS: i64 = 3_600_000;
pub const START_MS: i64 = 1_767_323_045_000;

pub fn disk(n: usize) -> Uuid {
    Uuid::from_u128(0xd15c_0000 + n as u128)
}

pub fn specs() -> Vec<DiskSpec> {
    (0..SIZES.len())
        .map(|n| DiskSpec {
            id: disk(n),
            size_bytes: SIZES[n],
            name: format!("disk{n}.vhdx"),
        })
        .collect()
}

/// A small generator: the same seed, the same run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[derive(Clone, Debug)]
pub enum Change {
    Write(usize, u64, Vec<u8>),
    Zero(usize, u64, u64),
}

/// What a cycle changes: a function of seed and position.
pub fn changes(seed: u64, position: u64) -> Vec<Change> {
    let mut random = Random::new(seed * 1000 + position);
    (0..3 + random.below(6))
        .map(|_| {
            let n = random.below(2) as usize;
            let length = 1 + random.below(60_000);
            let offset = random.below(SIZES[n] - length);
            if random.below(4) == 0 {
                Change::Zero(n, offset, length)
            } else {
                let mut data = vec![random.next() as u8; length as usize];
                for byte in data.iter_mut().step_by(1 + random.below(9) as usize) {
                    *byte = random.next() as u8;
                }
                Change::Write(n, offset, data)
            }
        })
        .collect()
}

pub type Image = Vec<Vec<u8>>;

/// The disks at every position up to `last`.
pub fn history(seed: u64, last: u64) -> Vec<Image> {
    let mut image: Image = SIZES.iter().map(|size| vec![0; *size as usize]).collect();
    let mut all = Vec::new();
    for position in 0..=last {
        for change in changes(seed, position) {
            match change {
                Change::Write(n, at, data) => {
                    image[n][at as usize..][..data.len()].copy_from_slice(&data);
                }
                Change::Zero(n, at, length) => {
                    image[n][at as usize..][..length as usize].fill(0);
                }
            }
        }
        all.push(image.clone());
    }
    all
}

/// Recovery point of a position; one an hour.
pub fn point(position: u64) -> RecoveryPoint {
    RecoveryPoint {
        id: Uuid::from_u128(0x9017_0000 + u128::from(position)),
        time_unix_ms: START_MS + position as i64 * HOUR_MS,
        kind: if position.is_multiple_of(3) {
            PointKind::Application
        } else {
            PointKind::Crash
        },
        position: Position(position),
        vm_config: serde_json::json!({"name": "web", "memoryMib": 512, "at": position}),
        changed_bytes: position * 10,
        sent_bytes: position * 5,
        group_point_id: None,
    }
}

/// Sends base. Writes all of it, as an engine does that can't compare.
pub async fn replicate_base(writer: &ReplicaWriter, seed: u64) -> Result<(), StoreError> {
    for (n, image) in history(seed, 0)[0].iter().enumerate() {
        for (index, piece) in image.chunks(400_000).enumerate() {
            let data = Bytes::copy_from_slice(piece);
            writer
                .base_write(disk(n), index as u64 * 400_000, data)
                .await?;
        }
    }
    writer.base_flush().await?;
    writer.complete_base(point(0)).await
}

/// Sends one cycle and its point.
pub async fn send(writer: &ReplicaWriter, seed: u64, position: u64) -> Result<(), StoreError> {
    send_cycle(writer, seed, position).await?;
    writer.add_point(point(position)).await
}

pub async fn send_cycle(
    writer: &ReplicaWriter,
    seed: u64,
    position: u64,
) -> Result<(), StoreError> {
    let time = point(position).time_unix_ms;
    let mut cycle = writer.begin_cycle(Position(position), time).await?;
    for change in changes(seed, position) {
        match change {
            Change::Write(n, at, data) => cycle.write(disk(n), at, data.into()).await?,
            Change::Zero(n, at, length) => cycle.zero(disk(n), at, length).await?,
        }
    }
    let committed = cycle.commit().await?;
    assert_eq!(committed.position, Position(position));
    Ok(())
}

/// All disks of a view; what it says to be zero is.
pub async fn image_of(view: &ReplicaView) -> Result<Image, StoreError> {
    let mut image = Vec::new();
    for spec in view.disks().to_vec() {
        let mut data = view
            .read(spec.id, 0, spec.size_bytes as usize)
            .await?
            .to_vec();
        image.push(data.clone());
        for range in view.not_zero(spec.id, std::slice::from_ref(&(0..spec.size_bytes))) {
            data[range.start as usize..range.end as usize].fill(0);
        }
        assert!(data.iter().all(|byte| *byte == 0), "left out, and not zero");
    }
    Ok(image)
}

/// Every point that is kept reads as the model says; gives their positions.
pub async fn check_points(reader: &ReplicaReader, model: &[Image], context: &str) -> Vec<u64> {
    let mut positions = Vec::new();
    for kept in reader.points().await.unwrap() {
        assert_eq!(kept, point(kept.position.0), "{context}");
        let view = reader.view(PointSelector::Id(kept.id)).await.unwrap();
        assert_eq!(view.vm_config(), Some(&kept.vm_config));
        let seen = image_of(&view).await.unwrap();
        assert!(
            seen == model[kept.position.0 as usize],
            "{context}: point at {} differs from the model",
            kept.position.0
        );
        positions.push(kept.position.0);
    }
    positions
}

/// A folder that is gone at the end; in memory where the machine has such a place, since these
/// tests cut by fault, not by power, and sync thousands of times.
pub struct Store {
    folder: tempfile::TempDir,
}

impl Store {
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        };
        Store {
            folder: folder.unwrap(),
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn target(&self) -> StoreTarget {
        StoreTarget::Folder(self.folder.path().to_owned())
    }

    pub fn key(&self) -> ReplicaKey {
        ReplicaKey::new("vault-0a1b2c3d", "item-1").unwrap()
    }

    pub fn item(&self) -> PathBuf {
        self.path().join("vault-0a1b2c3d").join("item-1")
    }

    pub async fn writer(&self, generation: u64) -> Result<ReplicaWriter, StoreError> {
        ReplicaWriter::open(
            &self.target(),
            &self.key(),
            Generation(generation),
            &specs(),
        )
        .await
    }

    pub async fn reader(&self) -> Result<ReplicaReader, StoreError> {
        ReplicaReader::open(&self.target(), &self.key()).await
    }

    /// A complete replica with points 0 to `last`.
    pub async fn filled(&self, seed: u64, last: u64) -> ReplicaWriter {
        let writer = self.writer(1).await.unwrap();
        replicate_base(&writer, seed).await.unwrap();
        for position in 1..=last {
            send(&writer, seed, position).await.unwrap();
        }
        writer
    }

    /// Nothing is left of the replica but the fence that keeps stale engines out.
    pub fn is_removed(&self) -> bool {
        let item = self.item();
        let mut files = self.files();
        files.retain(|path| path.starts_with(&item));
        files == [item.join("generation"), item.join("lock")]
            && std::fs::read_dir(&item).unwrap().count() == 2
    }

    /// All files, relative to the store.
    pub fn files(&self) -> Vec<PathBuf> {
        fn walk(folder: &Path, out: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, out);
                } else {
                    out.push(path);
                }
            }
        }
        let mut out = Vec::new();
        walk(self.path(), &mut out);
        out.sort();
        out
    }
}

/// What happens at the chosen step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The process is killed before the step.
    Kill,
    /// It is killed in the middle of a write.
    Tear,
    /// It is killed after the step, before anyone heard of it.
    KillAfter,
    /// The step alone fails with this error; the process lives on.
    Error(io::ErrorKind),
}

/// Counts steps, strikes at one of them, remembers all.
#[derive(Debug)]
pub struct Striker {
    at: u64,
    mode: Mode,
    count: AtomicU64,
    dead: AtomicBool,
    pub trace: Mutex<Vec<(StepKind, PathBuf)>>,
}

impl Striker {
    pub fn new(at: u64, mode: Mode) -> Self {
        Striker {
            at,
            mode,
            count: AtomicU64::new(0),
            dead: AtomicBool::new(false),
            trace: Mutex::new(Vec::new()),
        }
    }

    /// Steps seen so far.
    pub fn steps(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    pub fn has_struck(&self) -> bool {
        self.steps() > self.at
    }
}

impl Faults for Striker {
    fn before(&self, kind: StepKind, path: &Path) -> Fault {
        if self.dead.load(Ordering::SeqCst) {
            return Fault::Fail(io::ErrorKind::Other);
        }
        self.trace.lock().unwrap().push((kind, path.to_owned()));
        if self.count.fetch_add(1, Ordering::SeqCst) != self.at {
            return Fault::None;
        }
        if !matches!(self.mode, Mode::Error(_)) {
            self.dead.store(true, Ordering::SeqCst);
        }
        match self.mode {
            Mode::Kill => Fault::Fail(io::ErrorKind::Other),
            Mode::Tear => Fault::Torn(io::ErrorKind::Other),
            Mode::KillAfter => Fault::DoneButFails(io::ErrorKind::Other),
            Mode::Error(error) => Fault::Fail(error),
        }
    }
}
