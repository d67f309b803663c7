//! What compaction promises beyond the conformance suite: cuts at every step, disks that leave and come
//! back, keys, damage, immutable points.

mod support;

use std::sync::Arc;

use bytes::Bytes;
use replica_store::{
    CyclePlan, DiskSpec, DiskStart, Generation, PointSelector, Position, ReplicaReader,
    ReplicaWriter, RetentionPolicy, RetentionTier, StoreError, WriterOptions,
};
use replication_log::KeyRing;
use replication_log::journal::{CompressionLevel, JournalReader, read_outline};
use support::*;
use uuid::Uuid;

const SEED: u64 = 31;
const LAST: u64 = 10;

fn thinned(hours: u64) -> RetentionPolicy {
    let tier = RetentionTier {
        every_seconds: hours * 3600,
        for_seconds: 3_600_000,
    };
    RetentionPolicy::hours(0).with_tiers(&[tier]).unwrap()
}

fn objects(store: &Store) -> Vec<std::path::PathBuf> {
    let mut files = store.files();
    files.retain(|path| path.extension().is_some_and(|e| e == "hrl"));
    files
}

fn merged(store: &Store) -> Vec<std::path::PathBuf> {
    let mut files = objects(store);
    files.retain(|path| {
        let object = std::fs::File::open(path).unwrap();
        read_outline(&object).is_ok_and(|front| front.merged.is_some())
    });
    files
}

async fn open(store: &Store, generation: u64, options: WriterOptions) -> ReplicaWriter {
    let (target, key) = (store.target(), store.key());
    ReplicaWriter::open_with(options, &target, &key, Generation(generation), &specs())
        .await
        .unwrap()
}

/// Points at multiples of three are application-consistent, so of 5 hours each 0 and 6 stay, and 10.
async fn compact(writer: &ReplicaWriter) -> Result<u64, StoreError> {
    let now = point(LAST).time_unix_ms;
    let mut merged = 0;
    for _ in 0..60 {
        let report = writer.maintain(now, thinned(5)).await?;
        assert_eq!(report.not_merged, None);
        merged += report.merged_journal_objects;
    }
    Ok(merged)
}

async fn cut_everywhere(mode: Mode, bytes: Option<u64>) {
    let model = history(SEED, LAST);
    let filled = Store::new();
    drop(filled.filled(SEED, LAST).await);
    for at in 0.. {
        let store = Store::new();
        copy(filled.path(), store.path());
        let faults = Arc::new(Striker::new(at, mode));
        let options = || WriterOptions {
            merge_bytes_per_round: bytes,
            faults: Some(faults.clone()),
            ..WriterOptions::default()
        };
        let (target, key) = (store.target(), store.key());
        let opened =
            ReplicaWriter::open_with(options(), &target, &key, Generation(2), &specs()).await;
        let done = match opened {
            Ok(writer) => compact(&writer).await.map(drop),
            Err(error) => Err(error),
        };
        let context = format!("{mode:?} at step {at}");
        let reader = store.reader().await.unwrap();
        let kept = check_points(&reader, &model, &context).await;
        for must in [0, 6, LAST] {
            assert!(kept.contains(&must), "{context}: lost {must}");
        }
        if !faults.has_struck() {
            done.unwrap();
            assert!(at > 20, "only {at} steps");
            return;
        }
        // The engine that comes next ends the work and leaves nothing behind.
        let writer = open(&store, 3, WriterOptions::default()).await;
        compact(&writer).await.unwrap();
        assert_eq!(check_points(&reader, &model, &context).await, [0, 6, LAST]);
        assert_eq!(objects(&store).len(), 5, "{context}");
        assert_eq!(merged(&store).len(), 1, "{context}");
        let left = store.files();
        let is_temporary = |path: &&std::path::PathBuf| path.to_string_lossy().contains(".tmp-");
        assert_eq!(left.iter().find(is_temporary), None, "{context}");
    }
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_kill_before_any_step_of_a_merge_changes_no_point() {
    cut_everywhere(Mode::Kill, None).await;
}

#[tokio::test]
async fn a_kill_after_any_step_of_a_merge_changes_no_point() {
    cut_everywhere(Mode::KillAfter, None).await;
}

#[tokio::test]
async fn a_torn_write_or_an_error_in_a_merge_of_many_rounds_changes_no_point() {
    cut_everywhere(Mode::Tear, Some(100_000)).await;
    cut_everywhere(Mode::Error(std::io::ErrorKind::TimedOut), Some(100_000)).await;
}

/// The store is full: compaction waits, everything else goes on.
#[tokio::test]
async fn no_room_for_a_merge_is_reported_and_fails_nothing() {
    let store = Store::new();
    drop(store.filled(SEED, LAST).await);
    let model = history(SEED, LAST);
    let mut reported = 0;
    for at in 0..40 {
        let full = Mode::Error(std::io::ErrorKind::StorageFull);
        let faults = Arc::new(Striker::new(at, full));
        let options = WriterOptions {
            faults: Some(faults),
            ..WriterOptions::default()
        };
        let (target, key) = (store.target(), store.key());
        let opened =
            ReplicaWriter::open_with(options, &target, &key, Generation(2), &specs()).await;
        let Ok(writer) = opened else { continue };
        let now = point(LAST).time_unix_ms;
        if let Ok(report) = writer.maintain(now, thinned(5)).await {
            reported += u32::from(report.not_merged.is_some());
        }
        let reader = store.reader().await.unwrap();
        check_points(&reader, &model, &format!("full at {at}")).await;
    }
    assert!(reported > 0, "a merge found no room, and the round went on");
}

fn keys(count: u8) -> KeyRing {
    let mut ring = KeyRing::new();
    for n in 1..=count {
        let id = Uuid::from_u128(u128::from(n));
        ring.insert(id, &[n; 32]).unwrap();
        ring.activate(Some(id)).unwrap();
    }
    ring
}

#[tokio::test]
async fn a_merged_object_is_encrypted_with_the_key_of_now_and_needs_the_old_ones_no_more() {
    let store = Store::new();
    let options = |count| WriterOptions {
        keys: keys(count),
        ..WriterOptions::default()
    };
    let writer = open(&store, 1, options(1)).await;
    replicate_base(&writer, SEED).await.unwrap();
    for position in 1..=LAST {
        send(&writer, SEED, position).await.unwrap();
    }
    // Without the key nothing is merged, and that is said.
    let plain = open(&store, 2, WriterOptions::default()).await;
    let now = point(LAST).time_unix_ms;
    let report = plain.maintain(now, thinned(5)).await.unwrap();
    assert!(report.not_merged.unwrap().contains("encrypted with key"));

    let writer = open(&store, 3, options(2)).await;
    assert_eq!(compact(&writer).await.unwrap(), 6);
    let object = std::fs::File::open(&merged(&store)[0]).unwrap();
    let reader = JournalReader::open_with_keys(object, &keys(2)).unwrap();
    assert_eq!(reader.key_id(), Some(Uuid::from_u128(2)));
    assert_eq!(reader.merged().unwrap().first_position, 1);
    let mut only_new = KeyRing::new();
    only_new.insert(Uuid::from_u128(2), &[2; 32]).unwrap();
    let reader = ReplicaReader::open_with_keys(&store.target(), &store.key(), only_new)
        .await
        .unwrap();
    let view = reader.view(PointSelector::Id(point(6).id)).await.unwrap();
    assert!(image_of(&view).await.unwrap() == history(SEED, LAST)[6]);
}

#[tokio::test]
async fn what_leads_to_an_immutable_point_keeps_its_objects_as_they_were_captured() {
    let store = Store::new();
    let writer = store.filled(SEED, LAST).await;
    let now = point(LAST).time_unix_ms;
    // 6 is 4 hours old; 0 to 5 are not promised any more.
    let mut policy = thinned(5);
    policy.immutability_hours = 5;
    let report = writer.maintain(now, policy).await.unwrap();
    assert_eq!(report.merged_journal_objects, 0);
    let report = writer.maintain(now, thinned(5)).await.unwrap();
    assert_eq!(report.merged_journal_objects, 6);
    let reader = store.reader().await.unwrap();
    let model = history(SEED, LAST);
    assert_eq!(check_points(&reader, &model, "merged").await, [0, 6, LAST]);
}

#[tokio::test]
async fn a_damaged_object_is_left_to_those_who_heal_it() {
    let store = Store::new();
    let writer = store.filled(SEED, LAST).await;
    let damaged = &objects(&store)[2];
    let mut bytes = std::fs::read(damaged).unwrap();
    let last = bytes.len() - 60;
    bytes[last] ^= 1;
    std::fs::write(damaged, bytes).unwrap();
    let now = point(LAST).time_unix_ms;
    for _ in 0..2 {
        let report = writer.maintain(now, thinned(5)).await.unwrap();
        assert_eq!(report.merged_journal_objects, 0);
        assert_eq!(report.damage, [], "base does not need it yet");
    }
    assert_eq!(objects(&store).len(), LAST as usize, "nothing goes");
    let reader = store.reader().await.unwrap();
    let view = reader.view(PointSelector::Newest).await.unwrap();
    assert_eq!(view.position(), Position(LAST));
}

/// A disk is excluded inside of a stretch that is merged; a later cycle takes it in with its differences
/// from what the store showed before the merge, another one from what it shows after.
#[tokio::test]
async fn a_disk_that_left_in_a_merged_stretch_comes_back_with_what_it_had() {
    let store = Store::new();
    let writer = store.filled(SEED, 3).await;
    let model = history(SEED, 3);
    let only = |n: usize| vec![specs()[n].clone()];
    let both = specs();
    let cycle = async |position: u64, disks: Vec<DiskSpec>, write: Option<(usize, u64, u8)>| {
        let plan = CyclePlan {
            position: Position(position),
            time_unix_ms: point(position).time_unix_ms,
            disks: Some(disks),
            compression: CompressionLevel::default(),
        };
        let mut cycle = writer.begin_cycle_with(plan).await.unwrap();
        if let Some((n, at, byte)) = write {
            let data = Bytes::from(vec![byte; 5000]);
            cycle.write(disk(n), at, data).await.unwrap();
        }
        cycle.commit().await.unwrap();
        writer.add_point(point(position)).await.unwrap();
    };
    for position in 4..=6 {
        cycle(position, only(0), Some((0, position * 1000, 4))).await;
    }
    let maintain = async || {
        let now = point(12).time_unix_ms;
        writer.maintain(now, thinned(5)).await.unwrap()
    };
    cycle(7, only(0), None).await;
    assert_eq!(maintain().await.merged_journal_objects, 6);
    let object = std::fs::File::open(&merged(&store)[0]).unwrap();
    let front = read_outline(&object).unwrap();
    assert_eq!(front.present_disks().len(), 1);
    assert_eq!(front.header.disks.len(), 2, "what it changed is kept");

    let known = writer.begin_disk(both[1].clone()).await.unwrap();
    assert_eq!(known, DiskStart::Known);
    let last = writer.last_view().await.unwrap();
    let stored = last.read(disk(1), 0, SIZES[1] as usize).await.unwrap();
    assert!(stored[..] == model[3][1], "as it was in its last cycle");
    cycle(8, both.clone(), Some((1, 700, 8))).await;
    let mut expected = model[3][1].clone();
    expected[700..5700].fill(8);
    let reader = store.reader().await.unwrap();
    let view = reader.view(PointSelector::Newest).await.unwrap();
    let seen = view.read(disk(1), 0, SIZES[1] as usize).await.unwrap();
    assert!(seen[..] == expected);
    // And once base has taken all of it in.
    let now = point(8).time_unix_ms;
    let none = RetentionPolicy::hours(0);
    let report = writer.maintain(now, none).await.unwrap();
    assert_eq!(report.base_position_after, Position(8));
    let view = reader.view(PointSelector::Newest).await.unwrap();
    let seen = view.read(disk(1), 0, SIZES[1] as usize).await.unwrap();
    assert!(seen[..] == expected);
}
