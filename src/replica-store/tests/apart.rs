//! A replica whose base is in one account and whose journal is in another: the conformance suite, then what only two
//! accounts promise.

use std::sync::Arc;

use azure_storage::ContainerOptions;
use azure_storage::double::{Double, DoubleOptions, ManualClock};
use azure_storage::emulator::{Azurite, AzuriteOptions};
use bytes::Bytes;
use replica_store::conformance::{self, Effort, Place};
use replica_store::{
    AzureTarget, DiskSpec, ErrorKind, Generation, PointKind, PointSelector, Position,
    RecoveryPoint, ReplicaKey, ReplicaReader, ReplicaWriter, StoreError, StoreTarget,
    delete_replica,
};
use uuid::Uuid;

const CONTAINER: &str = "replicas";
const DISK: Uuid = Uuid::from_u128(7);
const SIZE: u64 = (2 << 20) + 4096;

fn key(number: u64) -> ReplicaKey {
    ReplicaKey::new("vault", format!("item-{number}")).expect("a proper key")
}

/// An account of the double, which enforces what a premium one takes.
async fn account(premium: bool) -> (Double, AzureTarget) {
    let clock = Arc::new(ManualClock::default());
    let double = Double::start(DoubleOptions {
        clock: Arc::clone(&clock) as _,
        limits: false,
        premium,
        ..DoubleOptions::default()
    })
    .await
    .expect("the double starts");
    double.make_container(CONTAINER);
    let credential = double.credential(CONTAINER);
    let mut options = ContainerOptions::new(double.endpoint(), CONTAINER, credential);
    options.clock = clock;
    let target = AzureTarget::with_options(options).premium(premium);
    (double, target)
}

/// A premium account for base and a standard one for the log.
struct Pair {
    premium: AzureTarget,
    log: AzureTarget,
    doubles: [Double; 2],
}

impl Pair {
    async fn start() -> Pair {
        let (one, premium) = account(true).await;
        let (two, log) = account(false).await;
        Pair {
            premium,
            log,
            doubles: [one, two],
        }
    }

    fn target(&self) -> StoreTarget {
        StoreTarget::Azure(self.premium.clone()).with_log(StoreTarget::Azure(self.log.clone()))
    }

    /// Names of the blobs of each account.
    async fn blobs(&self) -> [Vec<String>; 2] {
        [names(&self.doubles[0]).await, names(&self.doubles[1]).await]
    }
}

async fn names(double: &Double) -> Vec<String> {
    let options = ContainerOptions::new(double.endpoint(), CONTAINER, double.credential(CONTAINER));
    let container = azure_storage::Container::open(&options).expect("right");
    let listed = container.list("", false).await.expect("listed");
    listed.into_iter().map(|blob| blob.name).collect()
}

fn effort(stride: u64) -> Effort {
    Effort {
        seeds: 1,
        steps: 12,
        stride,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_whole_suite_passes_with_base_on_premium_and_the_log_on_standard_storage() {
    let pair = Pair::start().await;
    let target = pair.target();
    conformance::run(effort(41), |number| Place::new(target.clone(), key(number))).await;
    let [premium, log] = pair.blobs().await;
    assert!(
        premium
            .iter()
            .all(|name| name.contains("base.vhd") || name.ends_with(".journal")),
        "{premium:#?}"
    );
    assert!(
        !log.iter().any(|name| name.contains("base.vhd")),
        "{log:#?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_whole_suite_passes_on_two_containers_of_azurite() {
    let azurite = Azurite::start(AzuriteOptions::default())
        .await
        .expect("azurite starts");
    let Some(azurite) = azurite else {
        eprintln!("skipped: azurite is not installed (tests/lab/azurite.sh install)");
        return;
    };
    let mut targets = Vec::new();
    for name in ["base", "log"] {
        let credential = azurite.make_container(name, &[]).await.expect("made");
        let target = AzureTarget::new(azurite.endpoint(), name, credential);
        targets.push(StoreTarget::Azure(target));
    }
    let target = targets[0].clone().with_log(targets[1].clone());
    conformance::run(effort(131), |number| {
        Place::new(target.clone(), key(number))
    })
    .await;
}

/// Folder and account in every combination: a log account is accepted whatever the target is.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn lives_keep_every_point_whatever_the_two_accounts_are() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let folder = |n: usize| StoreTarget::Folder(folders[n].path().to_owned());
    let (_double, account) = account(false).await;
    let account = StoreTarget::Azure(account);
    let pairs = [
        folder(0).with_log(folder(1)),
        folder(0).with_log(account.clone()),
        account.with_log(folder(1)),
    ];
    for (number, target) in pairs.into_iter().enumerate() {
        let place = |more: u64| Place::new(target.clone(), key(10 * number as u64 + more));
        conformance::life(&place(0), 1, 15).await;
        conformance::hard_life(&place(1), 2, 12, 8).await;
        conformance::two_writers(&place(2)).await;
        conformance::removal(&place(3)).await;
        conformance::raised_fence(&place(4)).await;
        conformance::raised_fence_cut(&place(5)).await;
    }
}

fn disks() -> Vec<DiskSpec> {
    vec![DiskSpec {
        id: DISK,
        size_bytes: SIZE,
        name: "disk.vhdx".to_owned(),
    }]
}

fn point() -> RecoveryPoint {
    RecoveryPoint {
        id: Uuid::from_u128(1),
        time_unix_ms: 1_767_323_045_000,
        kind: PointKind::Crash,
        position: Position(0),
        ..RecoveryPoint::default()
    }
}

async fn open(target: &StoreTarget, generation: u64) -> Result<ReplicaWriter, StoreError> {
    ReplicaWriter::open(target, &key(1), Generation(generation), &disks()).await
}

async fn write(writer: &ReplicaWriter, byte: u8) -> Result<(), StoreError> {
    writer
        .base_write(DISK, 0, Bytes::from(vec![byte; 4096]))
        .await
}

/// A replica with one point whose first bytes are `byte`.
async fn complete(target: &StoreTarget, generation: u64, byte: u8) -> ReplicaWriter {
    let writer = open(target, generation).await.expect("opened");
    write(&writer, byte).await.expect("written");
    writer.base_flush().await.expect("durable");
    writer.complete_base(point()).await.expect("complete");
    writer
}

async fn first_byte(target: &StoreTarget) -> u8 {
    let reader = ReplicaReader::open(target, &key(1)).await.expect("opened");
    let view = reader.view(PointSelector::Newest).await.expect("a view");
    view.read(DISK, 0, 4096).await.expect("read")[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn base_is_not_taken_from_a_replica_with_another_log_account() {
    let pair = Pair::start().await;
    let target = pair.target();
    complete(&target, 1, 1).await;
    let (other_double, other) = account(false).await;
    let moved = StoreTarget::Azure(pair.premium.clone()).with_log(StoreTarget::Azure(other));
    let error = open(&moved, 2).await.expect_err("base is in use");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(
        error.to_string().contains(&pair.doubles[1].endpoint()),
        "it says where the journal is: {error}"
    );
    // Nor does the removal of what was begun there touch base of the other.
    delete_replica(&moved, &key(1), Generation(2))
        .await
        .expect("there is nothing but a generation");
    assert_eq!(first_byte(&target).await, 1);
    // When the replica is removed, both accounts are empty but for the tombstone, and base is free.
    delete_replica(&target, &key(1), Generation(1))
        .await
        .expect("removed");
    let [premium, log] = pair.blobs().await;
    assert!(premium.is_empty(), "{premium:#?}");
    assert_eq!(log, ["vault/item-1/generation"]);
    complete(&moved, 3, 3).await;
    assert_eq!(first_byte(&moved).await, 3);
    // The old owner's removal, repeated, finds nothing that is its own.
    delete_replica(&target, &key(1), Generation(1))
        .await
        .expect("removed already");
    assert_eq!(first_byte(&moved).await, 3);
    assert!(!names(&other_double).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_of_before_is_refused_by_base_itself_also_after_a_removal() {
    let pair = Pair::start().await;
    let target = pair.target();
    let old = open(&target, 1).await.expect("opened");
    write(&old, 1).await.expect("it is the owner");
    delete_replica(&target, &key(1), Generation(2))
        .await
        .expect("removed");
    let (_other_double, other) = account(false).await;
    let moved = StoreTarget::Azure(pair.premium.clone()).with_log(StoreTarget::Azure(other));
    let new = open(&moved, 3).await.expect("opened");
    write(&new, 3).await.expect("it is the owner");
    let error = write(&old, 1).await.expect_err("base has another owner");
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    let read = new.base_read(DISK, 0, 4096).await.expect("read");
    assert_eq!(read[0], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_not_opened_with_fewer_or_other_accounts_than_it_was_made_with() {
    let (_one, base) = account(false).await;
    let (_two, log) = account(false).await;
    let (base, log) = (StoreTarget::Azure(base), StoreTarget::Azure(log));
    let both = base.clone().with_log(log.clone());
    complete(&both, 1, 1).await;
    let (_three, other) = account(false).await;
    for wrong in [
        base.clone(),
        log.clone(),
        StoreTarget::Azure(other).with_log(log.clone()),
    ] {
        let error = open(&wrong, 2).await.expect_err("another replica");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    let error = ReplicaReader::open(&log, &key(1))
        .await
        .expect_err("its base is elsewhere");
    assert!(error.to_string().contains("log storage account"), "{error}");
    // The same way round: a whole replica is not torn in two.
    let plain = key(2);
    let writer = ReplicaWriter::open(&base, &plain, Generation(1), &disks()).await;
    drop(writer.expect("opened"));
    let torn = ReplicaWriter::open(&both, &plain, Generation(2), &disks()).await;
    assert_eq!(torn.expect_err("whole").kind(), ErrorKind::Invalid);
    assert_eq!(first_byte(&both).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_premium_account_is_refused_as_log_and_without_one() {
    let pair = Pair::start().await;
    let premium = StoreTarget::Azure(pair.premium.clone());
    let (_another, log) = account(true).await;
    for (target, hint) in [
        (premium.clone(), "give the VM a log storage account"),
        (premium.with_log(StoreTarget::Azure(log)), "a standard one"),
    ] {
        let error = open(&target, 1).await.expect_err("no journal there");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(hint), "{error}");
    }
}
