//! Cycles into a folder store, over links and processors that are what a test says they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use replica_store::{
    DiskSpec, Generation, PointKind, Position, RecoveryPoint, ReplicaKey, StoreTarget,
};
use replication_log::KeyRing;

use super::*;
use crate::replicator::throttle::{Limit, Throttle};
use crate::throttle::Limiter;

const MIB: u64 = 1 << 20;
const DISK: Uuid = Uuid::from_u128(1);

/// A replica that takes cycles.
struct Store {
    _folder: tempfile::TempDir,
    writer: ReplicaWriter,
    position: Position,
}

/// Carries so many bytes a second, on tokio's clock.
struct Link {
    bytes_per_second: AtomicU64,
    passed: AtomicU64,
}

/// A cycle's place at a limiter.
struct Limited(Arc<Limiter>);

impl Store {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let target = StoreTarget::Folder(folder.path().to_owned());
        let key = ReplicaKey::new("vault", "11111111-2222-3333-4444-555555555555").unwrap();
        let disks = [DiskSpec {
            id: DISK,
            size_bytes: 64 * MIB,
            name: "disk".to_owned(),
        }];
        let writer = ReplicaWriter::open(&target, &key, Generation(1), &disks)
            .await
            .unwrap();
        let first = RecoveryPoint {
            id: Uuid::from_u128(2),
            time_unix_ms: 1,
            kind: PointKind::Crash,
            position: Position::BASE,
            vm_config: serde_json::Value::Null,
            changed_bytes: 0,
            sent_bytes: 0,
            group_point_id: None,
        };
        writer.complete_base(first).await.unwrap();
        Self {
            _folder: folder,
            writer,
            position: Position::BASE,
        }
    }

    /// Ships a cycle of so much that shrinks to less than a half.
    async fn cycle(&mut self, gate: &impl Gate, effort: &Effort, bytes: u64) -> Committed {
        self.position = self.position.next();
        let plan = CyclePlan {
            position: self.position,
            time_unix_ms: 1 + self.position.0 as i64,
            disks: None,
            compression: CompressionLevel::default(),
        };
        let outgoing = Outgoing::begin(gate, effort, &self.writer, plan).await;
        let mut outgoing = outgoing.unwrap();
        for offset in (0..bytes).step_by(MIB as usize) {
            let length = MIB.min(bytes - offset);
            let data = vec![(offset, letters(offset, length))];
            outgoing.pack(DISK, data).await.unwrap();
            outgoing.send().await.unwrap();
        }
        outgoing.commit().await.unwrap()
    }
}

impl Link {
    fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: AtomicU64::new(bytes_per_second),
            passed: AtomicU64::new(0),
        }
    }
}

impl Gate for Link {
    async fn pass(&self, bytes: u64, _changed_bytes: u64) {
        self.passed.fetch_add(bytes, Ordering::Relaxed);
        let rate = self.bytes_per_second.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / rate as f64)).await;
    }
}

impl Gate for Limited {
    async fn pass(&self, bytes: u64, _changed_bytes: u64) {
        self.0.acquire("old", bytes, Class::Delta).await;
    }
}

/// Eight letters without an order.
fn letters(seed: u64, length: u64) -> Bytes {
    let mut state = seed;
    let letter = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        b'a' + (state >> 61) as u8
    };
    std::iter::repeat_with(letter)
        .take(length as usize)
        .collect()
}

/// A processor on which whatever lies between two looks at the clock takes [`STEP_NS`].
fn processor() -> Duration {
    Duration::from_nanos(NOW_NS.fetch_add(STEP_NS.load(Ordering::Relaxed), Ordering::Relaxed))
}

static NOW_NS: AtomicU64 = AtomicU64::new(0);
static STEP_NS: AtomicU64 = AtomicU64::new(0);

#[tokio::test(start_paused = true)]
async fn a_slow_link_raises_the_level_and_a_fast_one_beside_a_busy_processor_lowers_it() {
    let mut store = Store::new().await;
    let effort = Effort::timed_by(processor);
    let link = Link::new(2_000_000);
    // A frame of 256 KiB in half a millisecond.
    STEP_NS.store(500_000, Ordering::Relaxed);
    store.cycle(&link, &effort, 12 * MIB).await;
    let first = effort.level();
    for _ in 0..3 {
        store.cycle(&link, &effort, 12 * MIB).await;
    }
    let high = effort.level();
    assert!(high > first && high.number() >= 4, "{first:?} {high:?}");

    // Now in a tenth of a second: the guests need the processor.
    STEP_NS.store(100_000_000, Ordering::Relaxed);
    link.bytes_per_second
        .store(1_000_000_000, Ordering::Relaxed);
    for _ in 0..4 {
        store.cycle(&link, &effort, 12 * MIB).await;
    }
    assert_eq!(effort.level(), CompressionLevel::FASTEST);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_small_cycles_wait_for_is_no_slow_link() {
    let mut store = Store::new().await;
    let effort = Effort::default();
    let link = Link::new(1_000_000);
    for _ in 0..12 {
        let committed = store.cycle(&link, &effort, MIB / 2).await;
        assert!(committed.sent_bytes < LEAST_SAMPLE_BYTES);
    }
    assert_eq!(effort.level(), CompressionLevel::FASTEST);
}

#[tokio::test(start_paused = true)]
async fn the_throttle_is_asked_for_exactly_what_goes_over_the_wire() {
    let mut store = Store::new().await;
    let mut ring = KeyRing::new();
    ring.insert(Uuid::from_u128(3), &[7; 32]).unwrap();
    ring.activate(Some(Uuid::from_u128(3))).unwrap();
    for keys in [KeyRing::new(), ring] {
        store.writer.set_keys(keys);
        for mib in [0, 1, 9] {
            let link = Link::new(1_000_000);
            let committed = store.cycle(&link, &Effort::default(), mib * MIB).await;
            let passed = link.passed.load(Ordering::Relaxed);
            assert_eq!(passed, committed.sent_bytes, "{mib} MiB");
            assert!(mib == 0 || passed < mib * MIB / 2, "after compression");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn first_copies_yield_to_a_cycle_that_is_packed_between_its_parcels() {
    const PIECE: u64 = 4 * MIB;
    let limiter = Arc::new(Limiter::new(Arc::new(|| 0)));
    limiter.limit_host(&[Limit {
        bytes_per_second: MIB,
        windows: Vec::new(),
    }]);
    let copied = Arc::new(AtomicU64::new(0));
    for number in 0..4 {
        let (limiter, copied) = (limiter.clone(), copied.clone());
        tokio::spawn(async move {
            loop {
                limiter
                    .acquire(&format!("new{number}"), PIECE, Class::Initial)
                    .await;
                copied.fetch_add(PIECE, Ordering::Relaxed);
            }
        });
    }
    let mut store = Store::new().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before = copied.load(Ordering::Relaxed);
    assert!(before > 0, "they use what nobody else needs");
    let gate = Limited(limiter);
    let committed = store.cycle(&gate, &Effort::default(), 16 * MIB).await;
    assert!(committed.sent_bytes > 4 * PARCEL_BYTES, "several parcels");
    let meanwhile = copied.load(Ordering::Relaxed) - before;
    assert!(meanwhile <= PIECE, "{meanwhile} bytes went before it");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(copied.load(Ordering::Relaxed) > before + meanwhile);
}
