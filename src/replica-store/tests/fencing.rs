//! A stale writer is refused by the store, at each of its operations, however it races.

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use replica_store::{
    ErrorKind, Generation, JournalObject, PointSelector, Position, ReplicaState, RetentionPolicy,
    StoreError, delete_replica, take_over,
};
use support::*;

const SEED: u64 = 3;

fn fenced<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    assert!(error.to_string().contains("generation"), "{error}");
}

#[tokio::test]
async fn a_stale_writer_is_refused_at_every_operation() {
    let store = Store::new();
    let stale = store.filled(SEED, 2).await;
    let streaming = stale.begin_cycle(Position(3), 1).await.unwrap();
    drop(store.writer(2).await.unwrap());
    let before = store.files();

    fenced(streaming.commit().await);
    fenced(stale.state().await);
    fenced(stale.base_write(disk(0), 0, Bytes::from_static(b"x")).await);
    fenced(stale.base_flush().await);
    fenced(stale.complete_base(point(0)).await);
    fenced(stale.begin_cycle(Position(3), 1).await);
    let object = JournalObject::Bytes(Bytes::from_static(b"x"));
    fenced(stale.append(object).await);
    fenced(stale.add_point(point(2)).await);
    fenced(
        stale
            .maintain(point(90).time_unix_ms, RetentionPolicy::hours(0))
            .await,
    );
    fenced(store.writer(1).await);
    fenced(delete_replica(&store.target(), &store.key(), Generation(1)).await);

    let mut after = store.files();
    after.retain(|path| !path.to_string_lossy().contains(".tmp-"));
    let mut expected = before;
    expected.retain(|path| !path.to_string_lossy().contains(".tmp-"));
    assert_eq!(after, expected);
    let reader = store.reader().await.unwrap();
    let kept = check_points(&reader, &history(SEED, 2), "fenced").await;
    assert_eq!(kept, [0, 1, 2]);
}

#[tokio::test]
async fn raising_the_fence_changes_no_file_but_generation_and_manifest() {
    let store = Store::new();
    let stale = store.filled(SEED, 2).await;
    let before = contents(&store);
    let (target, key) = (store.target(), store.key());
    take_over(&target, &key, Generation(2)).await.unwrap();
    fenced(send(&stale, SEED, 3).await);
    let after = contents(&store);
    let changed: Vec<_> = after
        .iter()
        .filter(|(path, content)| before.get(*path) != Some(content))
        .map(|(path, _)| path.file_name().unwrap().to_string_lossy())
        .collect();
    assert_eq!(changed, ["generation", "manifest"]);
    take_over(&target, &key, Generation(2)).await.unwrap();
    assert_eq!(contents(&store), after, "the same again changes nothing");
}

#[tokio::test]
async fn raising_the_fence_of_a_removed_replica_leaves_the_tombstone() {
    let store = Store::new();
    drop(store.filled(SEED, 1).await);
    let (target, key) = (store.target(), store.key());
    delete_replica(&target, &key, Generation(1)).await.unwrap();
    let error = take_over(&target, &key, Generation(9)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(store.is_removed());
}

#[tokio::test]
async fn raising_the_fence_stops_an_initial_replication_too() {
    let store = Store::new();
    let stale = store.writer(4).await.unwrap();
    let (target, key) = (store.target(), store.key());
    take_over(&target, &key, Generation(5)).await.unwrap();
    let bytes = Bytes::from_static(b"stale");
    fenced(stale.base_write(disk(0), 0, bytes).await);
    let fresh = store.writer(6).await.unwrap();
    replicate_base(&fresh, SEED).await.unwrap();
}

/// Files of the replica with their bytes, without temporaries.
fn contents(store: &Store) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = store.files();
    files.retain(|path| !path.to_string_lossy().contains(".tmp-"));
    files
        .into_iter()
        .map(|path| {
            let content = std::fs::read(&path).unwrap();
            (path, content)
        })
        .collect()
}

#[tokio::test]
async fn a_stale_initial_replication_is_refused() {
    let store = Store::new();
    let stale = store.writer(4).await.unwrap();
    let fresh = store.writer(5).await.unwrap();
    fenced(
        stale
            .base_write(disk(0), 0, Bytes::from_static(b"stale"))
            .await,
    );
    assert_eq!(fresh.state().await.unwrap(), ReplicaState::Empty);
    replicate_base(&fresh, SEED).await.unwrap();
    fenced(stale.complete_base(point(0)).await);
}

#[tokio::test]
async fn a_writer_of_a_removed_replica_does_not_bring_it_back() {
    let store = Store::new();
    let writer = store.filled(SEED, 1).await;
    delete_replica(&store.target(), &store.key(), Generation(1))
        .await
        .unwrap();
    let error = send(&writer, SEED, 2).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(store.is_removed());
    // Nor does a stale engine that starts anew, whether it made the replica or came before.
    fenced(store.writer(1).await);
    fenced(store.writer(0).await);
    assert!(store.is_removed());
    // Made anew by another generation: the old writer stays out.
    drop(store.writer(2).await.unwrap());
    fenced(send(&writer, SEED, 2).await);
}

/// Take-overs race with a writer that sends as fast as it can; whatever the order, the journal
/// is one line of positions, each with the content of the model.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_racing_writers_never_mix() {
    const LAST: u64 = 12;
    let model = history(SEED, LAST);
    for round in 0..10 {
        let store = Store::new();
        drop(store.filled(SEED, 1).await);
        let first = store.writer(2).await.unwrap();
        let sender = tokio::spawn(async move {
            for position in 2..=LAST {
                if let Err(error) = send(&first, SEED, position).await {
                    return Some((position, error));
                }
            }
            None
        });
        // The take-over comes after a different part of the sender's work in each round.
        let second = loop {
            let head = std::fs::read_dir(store.item().join("journal"))
                .unwrap()
                .count();
            if head as u64 >= round {
                break store.writer(3).await.unwrap();
            }
            tokio::task::yield_now().await;
        };
        let ReplicaState::Complete { head_position, .. } = second.state().await.unwrap() else {
            panic!("the replica is complete");
        };
        if let Some((position, error)) = sender.await.unwrap() {
            assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
            assert!(position >= head_position.0);
        }
        // Nothing came in after the take-over.
        let ReplicaState::Complete {
            head_position: later,
            ..
        } = second.state().await.unwrap()
        else {
            panic!("the replica is complete");
        };
        assert_eq!(later, head_position, "round {round}");
        for position in head_position.0 + 1..=LAST {
            send(&second, SEED, position).await.unwrap();
        }
        let reader = store.reader().await.unwrap();
        check_points(&reader, &model, &format!("round {round}")).await;
        let seen = image_of(&reader.view(PointSelector::Newest).await.unwrap())
            .await
            .unwrap();
        assert!(seen == model[reader.points().await.unwrap().last().unwrap().position.0 as usize]);
    }
}

/// Two processes with the same generation (a restarted engine beside a hung one) can't make two
/// contents of one position either.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_position_has_one_content() {
    let store = Store::new();
    drop(store.filled(SEED, 1).await);
    let (a, b) = (
        store.writer(2).await.unwrap(),
        store.writer(2).await.unwrap(),
    );
    let send = async |writer, byte: u8| {
        let writer: replica_store::ReplicaWriter = writer;
        let mut cycle = writer.begin_cycle(Position(2), 1).await?;
        cycle.write(disk(0), 0, vec![byte; 4096].into()).await?;
        cycle.commit().await
    };
    let (first, second) = tokio::join!(send(a.clone(), 1), send(b.clone(), 2));
    let (byte, refused) = match (first, second) {
        (Ok(_), Err(error)) => (1, error),
        (Err(error), Ok(_)) => (2, error),
        other => panic!("one of the two must win: {other:?}"),
    };
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    let view = a.head_view().await.unwrap();
    assert_eq!(view.read(disk(0), 0, 4096).await.unwrap(), vec![byte; 4096]);
}
