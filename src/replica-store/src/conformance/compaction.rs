//! Compaction: thinned points cost no journal any more, and nothing that is shown changes.

use super::Place;
use super::life::image_of;
use super::model::{Change, Image, point, specs};
use super::single::{check, filled, send, story, time_of};
use crate::{
    ErrorKind, Generation, PointSelector, Position, ReplicaReader, ReplicaView, ReplicaWriter,
    RetentionPolicy, RetentionTier, WriterOptions, layout, options,
};

const LAST: u64 = 14;

/// One point of every so many hours, and the newest.
fn thinned(hours: u64) -> RetentionPolicy {
    let tier = RetentionTier {
        every_seconds: hours * 3600,
        for_seconds: 3_600_000,
    };
    RetentionPolicy::hours(0)
        .with_tiers(&[tier])
        .expect("one tier")
}

async fn open(
    place: &Place,
    generation: u64,
    bytes: u64,
    story: &[(Vec<Change>, Image)],
) -> ReplicaWriter {
    ReplicaWriter::open_with(
        WriterOptions {
            merge_bytes_per_round: Some(bytes),
            ..WriterOptions::default()
        },
        &place.target,
        &place.key,
        Generation(generation),
        &specs(&story[0].1),
    )
    .await
    .expect("the owner opens")
}

/// Names behind the prefix, as they lie in the store.
async fn objects(place: &Place) -> Vec<String> {
    let options = WriterOptions::default();
    let replica = options::replica(&place.target, &place.key, options).expect("a medium");
    crate::blocking::blocking(move || replica.medium.list(layout::JOURNAL))
        .await
        .expect("a listing")
        .into_iter()
        .map(|listed| listed.name)
        .collect()
}

async fn view(reader: &ReplicaReader, position: u64) -> ReplicaView {
    let id = point(Position(position), 0).id;
    let view = reader.view(PointSelector::Id(id)).await;
    view.expect("the point is there")
}

/// Merges of many rounds, a take-over in the middle of one, views that were opened before, thinner and
/// thinner points, and in the end none.
pub async fn compaction(place: &Place) {
    let story = story(25, LAST + 1);
    drop(filled(place, &story, LAST).await);
    let now = time_of(Position(LAST));
    let reader = ReplicaReader::open(&place.target, &place.key)
        .await
        .expect("it is there");
    let (early, late) = (view(&reader, 6).await, view(&reader, 12).await);
    let pinned = point(Position(9), 0).id;
    let pinned = reader
        .pinned_view(PointSelector::Id(pinned), "drill")
        .await
        .expect("pinned");

    // Of 5 hours each the oldest application-consistent point: 0, 6, 12; then the pin, and the newest.
    let first = open(place, 1, 20_000, &story).await;
    for _ in 0..4 {
        let report = first.maintain(now, thinned(5)).await.expect("a step");
        assert_eq!(
            report.merged_journal_objects, 0,
            "20,000 bytes do not reach"
        );
    }
    assert_eq!(check(&reader, &story).await, [0, 6, 9, 12, LAST]);
    let second = open(place, 2, 60_000, &story).await;
    let refused = first.maintain(now, thinned(5)).await.expect_err("fenced");
    assert_eq!(refused.kind(), ErrorKind::Fenced, "{refused}");
    let (mut rounds, mut merged) = (0, 0);
    while merged < 12 {
        let report = second.maintain(now, thinned(5)).await.expect("a step");
        assert_eq!(report.not_merged, None);
        merged += report.merged_journal_objects;
        rounds += 1;
        assert!(rounds < 200, "no end after {merged} objects");
        assert_eq!(check(&reader, &story).await, [0, 6, 9, 12, LAST]);
        assert!(image_of(&pinned).await.expect("held") == story[9].1);
    }
    assert!(rounds > 3, "{rounds} rounds for some hundred KiB");
    let left = objects(place).await;
    assert_eq!(left.len(), 5, "three merged, two cycles: {left:?}");
    assert!(image_of(&early).await.expect("kept") == story[6].1);

    // A point inside of what was merged comes too late; replication goes on.
    let late_point = second.add_point(point(Position(5), now)).await;
    let refused = late_point.expect_err("merged over");
    assert_eq!(refused.kind(), ErrorKind::Expired, "{refused}");
    send(&second, Position(LAST + 1), &story[LAST as usize + 1].0)
        .await
        .expect("the next cycle");

    // Thinner: what was merged is merged again. Whoever still shows 6 is told.
    reader.unpin("drill").await.expect("unpinned");
    let third = open(place, 3, 32 << 20, &story).await;
    let report = third.maintain(now, thinned(12)).await.expect("a round");
    assert_eq!(report.merged_journal_objects, 3);
    assert_eq!(check(&reader, &story).await, [0, 12, LAST + 1]);
    let expired = image_of(&early).await.expect_err("nobody kept it");
    assert_eq!(expired.kind(), ErrorKind::Expired, "{expired}");
    assert!(image_of(&late).await.expect("kept") == story[12].1);
    let report = third.maintain(now, thinned(12)).await.expect("a round");
    assert_eq!(report.merged_journal_objects, 0, "nothing is done twice");
    assert_eq!(objects(place).await.len(), 4);

    // Base takes in a merged object like any other.
    let none = RetentionPolicy::hours(0);
    let report = third.maintain(now, none).await.expect("a round");
    assert_eq!(report.base_position_after, Position(LAST + 1));
    assert_eq!(check(&reader, &story).await, [LAST + 1]);
    assert!(objects(place).await.is_empty());
}
