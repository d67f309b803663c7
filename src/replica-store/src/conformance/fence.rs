//! The fence that a recovered VM raises before it starts, without becoming a writer.

use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::Place;
use super::life::image_of;
use super::model::{Cut, point};
use super::single::{check, fenced, filled, head, open, send, story, time_of};
use crate::{
    DiskSpec, ErrorKind, Generation, JournalObject, PointSelector, Position, ReplicaReader,
    RetentionPolicy, WriterOptions, take_over, take_over_with,
};

/// A recovered VM raises the fence and writes nothing: the older writer is refused, in the middle of its work too, all
/// points stay, and a later writer goes on from what was acknowledged.
pub async fn raised_fence(place: &Place) {
    const LAST: u64 = 8;
    let story = story(23, LAST);
    let raise =
        async |generation| take_over(&place.target, &place.key, Generation(generation)).await;
    let none = raise(5).await.expect_err("there is no replica yet");
    assert_eq!(none.kind(), ErrorKind::NotFound, "{none}");
    let old = filled(place, &story, 2).await;
    let joining = DiskSpec {
        id: Uuid::from_u128(0xc),
        name: "joins".to_owned(),
        size_bytes: 4096,
    };
    old.begin_disk(joining.clone()).await.expect("it joins");
    let sender = {
        let (old, story) = (old.clone(), story.clone());
        tokio::spawn(async move {
            for position in 3..=LAST {
                let sent = send(&old, Position(position), &story[position as usize].0).await;
                if let Err(error) = sent {
                    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
                    return position - 1;
                }
            }
            LAST
        })
    };
    raise(5).await.expect("a higher generation");
    let acknowledged = sender.await.expect("the sender ends");
    let reader = ReplicaReader::open(&place.target, &place.key)
        .await
        .expect("it is there");
    let before = check(&reader, &story).await;
    assert!(
        before.last().expect("points") >= &acknowledged,
        "{before:?}"
    );
    let state = reader.state().await.expect("state");

    raise(5).await.expect("the same again");
    fenced(raise(4).await, "a lower one");
    let object = JournalObject::Bytes(Bytes::from_static(b"x"));
    fenced(old.append(object).await, "append");
    let bytes = Bytes::from_static(&[7; 512]);
    fenced(old.base_write(joining.id, 0, bytes).await, "base write");
    let none = RetentionPolicy::hours(0);
    fenced(
        old.maintain(time_of(Position(LAST)), none).await,
        "maintain",
    );
    fenced(old.add_point(point(Position(2), 7)).await, "point");
    fenced(open(place, 4, &story[0].1).await, "open");
    assert_eq!(reader.state().await.expect("state"), state);
    assert_eq!(check(&reader, &story).await, before);
    let view = reader.pinned_view(PointSelector::Newest, "recovered").await;
    image_of(&view.expect("a point can be held"))
        .await
        .expect("readable");

    let fresh = open(place, 6, &story[0].1).await.expect("a later writer");
    let from = head(&fresh).await;
    assert!(from.0 >= acknowledged, "an acknowledged cycle is missing");
    fenced(raise(5).await, "once a later writer is there");
    for position in from.0 + 1..=LAST {
        send(&fresh, Position(position), &story[position as usize].0)
            .await
            .expect("the owner sends");
    }
    let after = check(&reader, &story).await;
    assert!(before.iter().all(|kept| after.contains(kept)), "{after:?}");
    assert_eq!(after.last(), Some(&LAST));
}

/// Raising the fence is cut at every call of the medium, before it and after it, and repeated.
pub async fn raised_fence_cut(place: &Place) {
    const LAST: u64 = 3;
    let story = story(24, LAST);
    let old = filled(place, &story, LAST - 1).await;
    let mut generation = 2;
    for after in [false, true] {
        for at in 0.. {
            let cut = Arc::new(Cut::new(at, after));
            let options = WriterOptions {
                medium_faults: Some(cut.clone()),
                ..WriterOptions::default()
            };
            let (target, key) = (&place.target, &place.key);
            let raised = take_over_with(options, target, key, Generation(generation)).await;
            if !cut.has_struck() {
                raised.expect("nothing was in the way");
                assert!(at > 3, "only {at} calls");
                break;
            }
            take_over(target, key, Generation(generation))
                .await
                .expect("it can be repeated");
            fenced(
                send(&old, Position(LAST), &story[LAST as usize].0).await,
                "the older writer",
            );
            generation += 1;
        }
    }
    let reader = ReplicaReader::open(&place.target, &place.key)
        .await
        .expect("it is there");
    assert_eq!(check(&reader, &story).await, [0, 1, 2]);
    let fresh = open(place, generation + 1, &story[0].1)
        .await
        .expect("a later writer");
    assert_eq!(head(&fresh).await, Position(LAST - 1));
    send(&fresh, Position(LAST), &story[LAST as usize].0)
        .await
        .expect("the owner sends");
    assert_eq!(check(&reader, &story).await, [0, 1, 2, 3]);
}
