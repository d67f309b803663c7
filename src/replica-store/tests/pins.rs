//! What is in use stays, what is not held is never shown wrong.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use replica_store::{
    ErrorKind, Generation, PointSelector, Position, RetentionPolicy, delete_replica,
};
use support::*;

const SEED: u64 = 21;
const NOW_ONLY: RetentionPolicy = RetentionPolicy::hours(0);

#[tokio::test]
async fn the_applier_stops_at_a_pin_and_goes_on_when_it_is_gone() {
    let store = Store::new();
    let writer = store.filled(SEED, 6).await;
    let model = history(SEED, 6);
    let reader = store.reader().await.unwrap();
    let view = reader
        .pinned_view(PointSelector::Id(point(2).id), "drill of web")
        .await
        .unwrap();
    let now = point(6).time_unix_ms;
    let report = writer.maintain(now, NOW_ONLY).await.unwrap();
    assert_eq!(report.base_position_after, Position(2));
    assert!(image_of(&view).await.unwrap() == model[2]);
    assert_eq!(check_points(&reader, &model, "pinned").await, [2, 6]);

    // Pins live in the store, not in a process.
    let pins = store.reader().await.unwrap().pins().await.unwrap();
    assert_eq!(pins.len(), 1);
    assert_eq!(
        (pins[0].owner.as_str(), pins[0].position),
        ("drill of web", Position(2))
    );
    let error = delete_replica(&store.target(), &store.key(), Generation(1)).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Pinned);

    reader.unpin("drill of web").await.unwrap();
    reader.unpin("drill of web").await.unwrap();
    let report = writer.maintain(now, NOW_ONLY).await.unwrap();
    assert_eq!(report.base_position_after, Position(6));
    let error = image_of(&view).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Expired);
    let error = reader
        .pin(PointSelector::Id(point(2).id), "late")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    delete_replica(&store.target(), &store.key(), Generation(1))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_owner_holds_one_point() {
    let store = Store::new();
    drop(store.filled(SEED, 3).await);
    let reader = store.reader().await.unwrap();
    reader
        .pin(PointSelector::Id(point(1).id), "a")
        .await
        .unwrap();
    reader.pin(PointSelector::Newest, "a").await.unwrap();
    reader
        .pin(PointSelector::Id(point(2).id), "b/../c")
        .await
        .unwrap();
    let pins = reader.pins().await.unwrap();
    let held: Vec<_> = pins
        .iter()
        .map(|pin| (pin.owner.as_str(), pin.position.0))
        .collect();
    assert_eq!(held, [("a", 3), ("b/../c", 2)]);
    let error = reader.pin(PointSelector::Newest, "").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

/// Appending and maintenance run without pause while one view is held and another is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_held_view_stays_right_while_the_applier_runs_and_others_expire() {
    const LAST: u64 = 60;
    let store = Store::new();
    let writer = store.filled(SEED, 4).await;
    let model = Arc::new(history(SEED, LAST));
    let reader = store.reader().await.unwrap();
    let held = reader
        .pinned_view(PointSelector::Id(point(3).id), "drill")
        .await
        .unwrap();
    let loose = reader.view(PointSelector::Id(point(1).id)).await.unwrap();
    let done = Arc::new(AtomicBool::new(false));

    let reads = {
        let (done, model) = (done.clone(), model.clone());
        tokio::spawn(async move {
            let (mut reads, mut expired) = (0, false);
            while !done.load(Ordering::Acquire) || reads < 20 {
                assert!(image_of(&held).await.unwrap() == model[3], "read {reads}");
                match image_of(&loose).await {
                    Ok(seen) => assert!(!expired && seen == model[1], "read {reads}"),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Expired);
                        expired = true;
                    }
                }
                reads += 1;
            }
            expired
        })
    };
    // Drills come and go: each opens a pinned view of the newest point and reads it.
    let drills = {
        let (done, model, reader) = (done.clone(), model.clone(), reader.clone());
        tokio::spawn(async move {
            while !done.load(Ordering::Acquire) {
                let view = reader
                    .pinned_view(PointSelector::Newest, "other")
                    .await
                    .unwrap();
                let position = view.position().0 as usize;
                assert!(image_of(&view).await.unwrap() == model[position]);
                reader.unpin("other").await.unwrap();
            }
        })
    };
    for position in 5..=LAST {
        send(&writer, SEED, position).await.unwrap();
        let now = point(position).time_unix_ms;
        writer
            .maintain(now, RetentionPolicy::hours(1))
            .await
            .unwrap();
        if position == 30 {
            reader
                .pin(PointSelector::Id(point(3).id), "drill")
                .await
                .unwrap();
        }
    }
    done.store(true, Ordering::Release);
    assert!(reads.await.unwrap(), "the loose view expired at last");
    drills.await.unwrap();

    reader.unpin("drill").await.unwrap();
    writer
        .maintain(point(LAST).time_unix_ms, NOW_ONLY)
        .await
        .unwrap();
    assert_eq!(check_points(&reader, &model, "end").await, [LAST]);
}

/// A view that nobody holds, read while base is moved past it: its bytes or `Expired`, no third.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_view_that_is_not_held_expires_and_never_shows_other_bytes() {
    for round in 0..20 {
        let store = Store::new();
        let writer = store.filled(SEED + round, 8).await;
        let model = history(SEED + round, 8);
        let reader = store.reader().await.unwrap();
        let view = reader.view(PointSelector::Id(point(2).id)).await.unwrap();
        let maintenance = tokio::spawn(async move {
            let now = point(8).time_unix_ms;
            writer
                .maintain(now, RetentionPolicy::hours(0))
                .await
                .unwrap();
        });
        loop {
            match image_of(&view).await {
                Ok(seen) => assert!(seen == model[2], "round {round}"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Expired, "{error}");
                    break;
                }
            }
        }
        maintenance.await.unwrap();
    }
}
