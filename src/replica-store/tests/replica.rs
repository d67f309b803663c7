//! The life of a replica without faults, and its agreement with an independent reader of VHDs.

mod support;

use std::process::Command;

use bytes::Bytes;
use replica_store::{
    DiskSpec, ErrorKind, Generation, JournalObject, Outcome, PointSelector, Position, ReplicaKey,
    ReplicaState, ReplicaWriter, RetentionPolicy, StoreTarget, delete_replica,
};
use replication_log::journal::{JournalBuilder, JournalDisk, JournalHeader};
use support::*;

const SEED: u64 = 11;

/// Cycle of a position as a finished object, as an engine with its own spool builds it.
fn object(item: &str, generation: u64, position: u64, seed: u64) -> Vec<u8> {
    let header = JournalHeader {
        item: item.to_owned(),
        generation,
        position,
        time_unix_ms: point(position).time_unix_ms,
        disks: specs()
            .iter()
            .map(|spec| JournalDisk {
                id: spec.id,
                size_bytes: spec.size_bytes,
            })
            .collect(),
    };
    let mut builder = JournalBuilder::new(Vec::new(), header).unwrap();
    for change in changes(seed, position) {
        match change {
            Change::Write(n, at, data) => builder.write(disk(n), at, &data).unwrap(),
            Change::Zero(n, at, length) => builder.zero(disk(n), at, length).unwrap(),
        }
    }
    builder.finish().unwrap().0
}

#[tokio::test]
async fn every_point_reads_as_the_disks_were_before_and_after_base_moves() {
    for seed in 0..8 {
        let store = Store::new();
        let writer = store.filled(seed, 9).await;
        let model = history(seed, 9);
        let reader = store.reader().await.unwrap();
        let all: Vec<u64> = (0..=9).collect();
        assert_eq!(check_points(&reader, &model, "filled").await, all);
        for hours in [6, 3, 1, 0] {
            let now = point(9).time_unix_ms;
            let report = writer
                .maintain(now, RetentionPolicy::hours(hours))
                .await
                .unwrap();
            let oldest = 9 - u64::from(hours);
            assert_eq!(report.base_position_after, Position(oldest), "seed {seed}");
            let kept: Vec<u64> = (oldest..=9).collect();
            assert_eq!(check_points(&reader, &model, "maintained").await, kept);
            assert_eq!(
                report.removed_journal_objects,
                oldest - report.base_position_before.0
            );
            let again = writer
                .maintain(now, RetentionPolicy::hours(hours))
                .await
                .unwrap();
            assert_eq!((again.applied_bytes, again.expired_points), (0, vec![]));
        }
    }
}

#[tokio::test]
async fn a_view_reads_any_range() {
    let store = Store::new();
    drop(store.filled(SEED, 5).await);
    let model = history(SEED, 5);
    let reader = store.reader().await.unwrap();
    let view = reader.view(PointSelector::Newest).await.unwrap();
    assert_eq!(view.position(), Position(5));
    let mut random = Random::new(SEED);
    for _ in 0..300 {
        let n = random.below(2) as usize;
        let offset = random.below(SIZES[n]);
        let length = random.below(SIZES[n] - offset + 1).min(100_000) as usize;
        let seen = view.read(disk(n), offset, length).await.unwrap();
        assert!(seen[..] == model[5][n][offset as usize..][..length]);
    }
    for (n, offset, length) in [(0, SIZES[0], 1), (1, u64::MAX, 1), (0, 0, usize::MAX)] {
        let error = view.read(disk(n), offset, length).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    let error = view.read(disk(7), 0, 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn what_the_journal_zeroed_is_known_to_be_zero_until_it_is_written_again() {
    let store = Store::new();
    let writer = store.filled(SEED, 5).await;
    let mut cycle = writer.begin_cycle(Position(6), 0).await.unwrap();
    cycle.zero(disk(0), 4096, 40_960).await.unwrap();
    cycle.commit().await.unwrap();
    let mut cycle = writer.begin_cycle(Position(7), 0).await.unwrap();
    let data = Bytes::from(vec![7; 512]);
    cycle.write(disk(0), 8192, data).await.unwrap();
    cycle.commit().await.unwrap();
    let view = writer.last_view().await.unwrap();
    let asked = [4096..16_384, 20_480..45_056];
    let written = 8192..8704;
    assert_eq!(
        view.not_zero(disk(0), &asked),
        std::slice::from_ref(&written)
    );
}

#[tokio::test]
async fn the_state_tells_how_far_initial_replication_is() {
    let store = Store::new();
    let writer = store.writer(1).await.unwrap();
    assert_eq!(writer.state().await.unwrap(), ReplicaState::Empty);
    let data = Bytes::from_static(b"half of it");
    writer
        .base_write(disk(0), 4096, data.clone())
        .await
        .unwrap();
    assert_eq!(writer.state().await.unwrap(), ReplicaState::Partial);

    // Nothing to recover from yet, and cycles must wait.
    let reader = store.reader().await.unwrap();
    assert!(reader.points().await.unwrap().is_empty());
    let error = reader.view(PointSelector::Newest).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = writer.begin_cycle(Position(1), 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);

    let writer = store.writer(2).await.unwrap();
    assert_eq!(writer.state().await.unwrap(), ReplicaState::Partial);
    assert_eq!(writer.base_read(disk(0), 4096, 10).await.unwrap(), data);
    replicate_base(&writer, SEED).await.unwrap();
    let complete = ReplicaState::Complete {
        base_position: Position::BASE,
        head_position: Position::BASE,
    };
    assert_eq!(writer.state().await.unwrap(), complete);
    writer.complete_base(point(0)).await.unwrap();
    let error = writer.base_write(disk(0), 0, data).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn a_finished_object_is_appended_once_however_often_it_is_sent() {
    let store = Store::new();
    let writer = store.filled(SEED, 0).await;
    let first = object("item-1", 1, 1, SEED);
    for _ in 0..2 {
        let sent = writer
            .append(JournalObject::Bytes(first.clone().into()))
            .await;
        assert_eq!(sent.unwrap(), Position(1));
    }
    let spool = store.path().join("spool");
    std::fs::write(&spool, object("item-1", 1, 2, SEED)).unwrap();
    let sent = writer.append(JournalObject::File(spool)).await;
    assert_eq!(sent.unwrap(), Position(2));
    // The streamed form of the same cycle has the same content.
    send_cycle(&writer, SEED, 2).await.unwrap();
    let seen = image_of(&writer.head_view().await.unwrap()).await.unwrap();
    assert!(seen == history(SEED, 2)[2]);

    let refused = [
        (object("item-1", 1, 2, SEED + 1), ErrorKind::Conflict), // other content
        (object("item-1", 1, 4, SEED), ErrorKind::Conflict),     // a gap
        (object("item-2", 1, 3, SEED), ErrorKind::Invalid),      // another item
        (object("item-1", 9, 3, SEED), ErrorKind::Invalid),      // another generation
        (first[..first.len() - 1].to_vec(), ErrorKind::Invalid), // cut
    ];
    for (object, kind) in refused {
        let sent = writer.append(JournalObject::Bytes(object.into())).await;
        let error = sent.unwrap_err();
        assert_eq!(
            (error.kind(), error.outcome()),
            (kind, Outcome::NotDone),
            "{error}"
        );
    }
    assert_eq!(
        store
            .files()
            .iter()
            .filter(|path| path.to_string_lossy().contains(".tmp-"))
            .count(),
        0
    );
}

#[tokio::test]
async fn a_cycle_that_is_dropped_never_was() {
    let store = Store::new();
    let writer = store.filled(SEED, 1).await;
    let before = store.files();
    let mut cycle = writer.begin_cycle(Position(2), 5).await.unwrap();
    cycle
        .write(disk(0), 0, Bytes::from_static(b"lost"))
        .await
        .unwrap();
    drop(cycle);
    assert_eq!(store.files(), before);
    let mut cycle = writer.begin_cycle(Position(2), 5).await.unwrap();
    let outside = cycle
        .write(disk(0), SIZES[0], Bytes::from_static(b"x"))
        .await;
    assert_eq!(outside.unwrap_err().kind(), ErrorKind::Invalid);
    let error = cycle.commit().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    for position in [0, 3] {
        let error = writer.begin_cycle(Position(position), 5).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }
}

#[tokio::test]
async fn a_point_names_a_position_that_can_be_shown_and_is_written_once() {
    let store = Store::new();
    let writer = store.filled(SEED, 4).await;
    writer.add_point(point(4)).await.unwrap();
    let mut other = point(4);
    other.position = Position(3);
    let error = writer.add_point(other).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let error = writer.add_point(point(5)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let policy = RetentionPolicy::hours(0);
    writer
        .maintain(point(4).time_unix_ms, policy)
        .await
        .unwrap();
    let error = writer.add_point(point(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Expired);
}

#[tokio::test]
async fn other_disks_are_refused() {
    let store = Store::new();
    drop(store.filled(SEED, 0).await);
    let mut resized = specs();
    resized[0].size_bytes += 512;
    let mut renamed = specs();
    renamed[0].name = "moved.vhdx".to_owned();
    renamed.reverse();
    let open = async |disks: Vec<DiskSpec>| {
        ReplicaWriter::open(&store.target(), &store.key(), Generation(2), &disks)
            .await
            .map(drop)
            .map_err(|error| error.kind())
    };
    assert_eq!(open(resized).await, Err(ErrorKind::Conflict));
    assert_eq!(open(specs()[..1].to_vec()).await, Err(ErrorKind::Conflict));
    assert_eq!(open(vec![]).await, Err(ErrorKind::Invalid));
    assert_eq!(open(renamed).await, Ok(()));
}

#[test]
fn names_that_are_no_folder_names_are_refused() {
    for bad in [
        "",
        ".",
        "..",
        ".hidden",
        "a/b",
        "a\\b",
        "a\0b",
        "ü",
        &"x".repeat(129),
    ] {
        assert!(ReplicaKey::new(bad, "item").is_err(), "{bad:?}");
        assert!(ReplicaKey::new("vault", bad).is_err(), "{bad:?}");
    }
    assert!(ReplicaKey::new("vault-1_a.b", "0c5f").is_ok());
}

#[tokio::test]
async fn base_is_a_fixed_vhd_that_qemu_reads_with_the_same_bytes() {
    let store = Store::new();
    let writer = store.filled(SEED, 6).await;
    let policy = RetentionPolicy::hours(0);
    writer
        .maintain(point(6).time_unix_ms, policy)
        .await
        .unwrap();
    let model = history(SEED, 6);
    for n in 0..2 {
        let base = store.item().join(disk(n).to_string()).join("base.vhd");
        let raw = store.path().join("out.raw");
        let done = Command::new("qemu-img")
            .args(["convert", "-f", "vpc", "-O", "raw"])
            .args([&base, &raw])
            .output()
            .expect("qemu-img is installed, as the README asks");
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        let seen = std::fs::read(&raw).unwrap();
        let padded = (SIZES[n] as usize).next_multiple_of(1 << 20);
        assert_eq!(seen.len(), padded);
        assert!(seen[..SIZES[n] as usize] == model[6][n]);
        assert!(seen[SIZES[n] as usize..].iter().all(|byte| *byte == 0));
    }
}

#[tokio::test]
async fn base_is_sparse() {
    let store = Store::new();
    let huge = DiskSpec {
        id: disk(0),
        size_bytes: 1 << 40,
        name: "huge".to_owned(),
    };
    let key = store.key();
    let writer = ReplicaWriter::open(&store.target(), &key, Generation(1), &[huge])
        .await
        .unwrap();
    let end = (1 << 40) - 4096;
    writer
        .base_write(disk(0), end, vec![7; 4096].into())
        .await
        .unwrap();
    writer
        .base_write(disk(0), 0, vec![0; 1 << 20].into())
        .await
        .unwrap();
    writer.complete_base(point(0)).await.unwrap();
    let mut cycle = writer.begin_cycle(Position(1), 1).await.unwrap();
    cycle.zero(disk(0), 0, 1 << 40).await.unwrap();
    cycle.commit().await.unwrap();
    writer.add_point(point(1)).await.unwrap();
    let policy = RetentionPolicy::hours(0);
    writer
        .maintain(point(1).time_unix_ms, policy)
        .await
        .unwrap();
    let view = writer.head_view().await.unwrap();
    assert!(
        view.read(disk(0), end, 4096)
            .await
            .unwrap()
            .iter()
            .all(|b| *b == 0)
    );
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let base = store.item().join(disk(0).to_string()).join("base.vhd");
        let blocks = std::fs::metadata(base).unwrap().blocks();
        assert!(blocks * 512 < 1 << 20, "{blocks} blocks");
    }
}

#[tokio::test]
async fn a_removed_replica_leaves_only_its_fence_and_its_neighbours_stay() {
    let store = Store::new();
    drop(store.filled(SEED, 2).await);
    let neighbour = ReplicaKey::new("vault-0a1b2c3d", "item-2").unwrap();
    let target = store.target();
    ReplicaWriter::open(&target, &neighbour, Generation(1), &specs())
        .await
        .unwrap();
    delete_replica(&target, &store.key(), Generation(1))
        .await
        .unwrap();
    assert!(store.is_removed());
    let error = store.reader().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    // Once more, and of a replica in a store that never was.
    delete_replica(&target, &store.key(), Generation(1))
        .await
        .unwrap();
    let nowhere = StoreTarget::Folder(store.path().join("nowhere"));
    delete_replica(&nowhere, &store.key(), Generation(1))
        .await
        .unwrap();
    assert!(!store.path().join("nowhere").exists());
    delete_replica(&target, &neighbour, Generation(1))
        .await
        .unwrap();
    assert_eq!(store.files().len(), 4, "two tombstones");
}
