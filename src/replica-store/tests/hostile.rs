//! Stored bytes that somebody changed are refused with the path, never believed, never a panic.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use replica_store::{ErrorKind, PointSelector, Position, RetentionPolicy};
use support::*;

const SEED: u64 = 5;

async fn read_all(store: &Store) -> Result<Vec<Image>, replica_store::StoreError> {
    let reader = store.reader().await?;
    let mut images = Vec::new();
    for point in reader.points().await? {
        let view = reader.view(PointSelector::Id(point.id)).await?;
        images.push(image_of(&view).await?);
    }
    reader.pins().await?;
    Ok(images)
}

fn small_files(store: &Store) -> Vec<PathBuf> {
    let mut files = store.files();
    files.retain(|path| !path.ends_with("base.vhd") && !path.ends_with("lock"));
    files
}

fn is_point(path: &Path) -> bool {
    path.parent().unwrap().ends_with("points")
}

#[tokio::test]
async fn a_flipped_bit_anywhere_is_refused_or_harmless() {
    let store = Store::new();
    drop(store.filled(SEED, 2).await);
    let reader = store.reader().await.unwrap();
    reader.pin(PointSelector::Newest, "x").await.unwrap();
    let good = history(SEED, 2);
    let mut random = Random::new(SEED);
    let mut refused = 0;
    for path in small_files(&store) {
        let content = fs::read(&path).unwrap();
        for _ in 0..40 {
            let mut bad = content.clone();
            bad[random.below(content.len() as u64) as usize] ^= 1 << random.below(8);
            fs::write(&path, &bad).unwrap();
            match read_all(&store).await {
                Ok(seen) if is_point(&path) && seen.len() + 1 == good.len() => {
                    assert!(seen.iter().all(|image| good.contains(image)));
                    refused += 1;
                }
                Ok(seen) => assert!(seen == good, "{}", path.display()),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                    assert!(error.to_string().contains("does not verify"), "{error}");
                    refused += 1;
                }
            }
        }
        fs::write(&path, &content).unwrap();
    }
    assert!(refused > 200, "only {refused} were refused");
    assert!(read_all(&store).await.unwrap() == good);
}

#[tokio::test]
async fn a_file_that_was_cut_or_removed_is_refused() {
    let store = Store::new();
    drop(store.filled(SEED, 3).await);
    for path in small_files(&store) {
        let content = fs::read(&path).unwrap();
        for length in [0, 1, content.len() / 2, content.len() - 1] {
            fs::write(&path, &content[..length]).unwrap();
            if path.ends_with("generation") {
                // Readers need none; a writer does.
                let error = store.writer(1).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            } else if is_point(&path) {
                assert_eq!(read_all(&store).await.unwrap().len(), 3);
            } else {
                let error = read_all(&store).await.unwrap_err();
                assert_eq!(
                    error.kind(),
                    ErrorKind::Corrupt,
                    "{} {error}",
                    path.display()
                );
            }
        }
        fs::remove_file(&path).unwrap();
        if !path.ends_with("generation") {
            let seen = read_all(&store).await;
            assert!(is_point(&path) || seen.is_err(), "{}", path.display());
        }
        fs::write(&path, &content).unwrap();
    }
}

#[tokio::test]
async fn a_damaged_point_is_told_and_takes_nothing_from_the_others() {
    let store = Store::new();
    drop(store.filled(SEED, 3).await);
    let mut points: Vec<PathBuf> = small_files(&store);
    points.retain(|path| is_point(path));
    points.sort();
    fs::write(&points[1], b"rot").unwrap();
    let writer = store.writer(1).await.unwrap();
    let reader = store.reader().await.unwrap();
    let seen = check_points(&reader, &history(SEED, 3), "one is damaged").await;
    assert_eq!(seen, [0, 2, 3]);
    send(&writer, SEED, 4).await.unwrap();
    let report = writer
        .maintain(point(4).time_unix_ms, RetentionPolicy::hours(1000))
        .await
        .unwrap();
    let name = points[1].file_name().unwrap().to_str().unwrap();
    assert_eq!(report.unreadable_points, [name]);
    // Sent once more, as after a kill before the engine had noted it, it is whole again.
    writer.add_point(point(1)).await.unwrap();
    let seen = check_points(&reader, &history(SEED, 4), "healed").await;
    assert_eq!(seen, [0, 1, 2, 3, 4]);
    let report = writer
        .maintain(point(4).time_unix_ms, RetentionPolicy::hours(1000))
        .await
        .unwrap();
    assert_eq!(report.unreadable_points, Vec::<String>::new());
}

#[tokio::test]
async fn a_point_that_is_sent_again_may_have_been_packed_otherwise() {
    let store = Store::new();
    let writer = store.filled(SEED, 2).await;
    let mut again = point(2);
    again.sent_bytes += 100;
    writer.add_point(again).await.unwrap();
    let mut other = point(2);
    other.position = Position(1);
    let error = writer.add_point(other).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn a_base_that_was_cut_is_refused_by_reader_and_applier() {
    let store = Store::new();
    let writer = store.filled(SEED, 3).await;
    let base = store.item().join(disk(0).to_string()).join("base.vhd");
    fs::OpenOptions::new()
        .write(true)
        .open(&base)
        .unwrap()
        .set_len(4096)
        .unwrap();
    let error = read_all(&store).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let policy = RetentionPolicy::hours(0);
    let error = writer
        .maintain(point(3).time_unix_ms, policy)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[tokio::test]
async fn a_journal_object_at_another_position_is_refused() {
    let store = Store::new();
    drop(store.filled(SEED, 3).await);
    let journal = store.item().join("journal");
    let name = |position: u64| journal.join(format!("{:020}-{position:020}.hrl", 1));
    fs::rename(name(2), journal.join("aside")).unwrap();
    let gap = read_all(&store).await.unwrap_err();
    assert_eq!(gap.kind(), ErrorKind::Corrupt);
    assert!(gap.to_string().contains("position 2 is missing"), "{gap}");
    fs::copy(name(3), name(2)).unwrap();
    let moved = read_all(&store).await.unwrap_err();
    assert_eq!(moved.kind(), ErrorKind::Corrupt, "{moved}");
}

#[tokio::test]
async fn foreign_files_in_the_store_are_left_alone() {
    let store = Store::new();
    let writer = store.filled(SEED, 3).await;
    for name in [
        "README",
        "x.hrl",
        "1-2.hrl",
        "00000000000000000001--0000000000000000002.hrl",
    ] {
        fs::write(store.item().join("journal").join(name), b"not ours").unwrap();
    }
    let policy = RetentionPolicy::hours(0);
    writer
        .maintain(point(3).time_unix_ms, policy)
        .await
        .unwrap();
    send(&writer, SEED, 4).await.unwrap();
    assert_eq!(read_all(&store).await.unwrap().len(), 2);
    assert!(store.item().join("journal").join("README").exists());
}

#[cfg(unix)]
#[tokio::test]
async fn removing_a_replica_follows_no_link_out_of_the_store() {
    let store = Store::new();
    drop(store.filled(SEED, 0).await);
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("precious"), b"x").unwrap();
    std::os::unix::fs::symlink(outside.path(), store.item().join("link")).unwrap();
    let generation = replica_store::Generation(1);
    replica_store::delete_replica(&store.target(), &store.key(), generation)
        .await
        .unwrap();
    assert!(outside.path().join("precious").exists());
    assert!(store.is_removed());
}
