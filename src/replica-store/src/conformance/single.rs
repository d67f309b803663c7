//! Single promises: two writers, readers beside the applier, removal, damage.

use std::collections::BTreeMap;

use bytes::Bytes;
use uuid::Uuid;

use super::Place;
use super::life::image_of;
use super::model::{Change, Image, MINUTE_MS, Random, START_MS, point, specs};
use crate::layout;
use crate::options;
use crate::{
    ErrorKind, Generation, PointSelector, Position, ReplicaReader, ReplicaState, ReplicaWriter,
    RetentionPolicy, StoreError, WriterOptions, delete_replica, delete_replica_at,
};

const HOUR_MS: i64 = 60 * MINUTE_MS;

pub(super) fn time_of(position: Position) -> i64 {
    START_MS + position.0 as i64 * HOUR_MS
}

/// A VM of two disks: its content at every position.
pub(super) fn story(seed: u64, last: u64) -> Vec<(Vec<Change>, Image)> {
    let mut random = Random::new(seed);
    let mut image: Image = [(0xa, 700_416usize), (0xb, 200_704)]
        .map(|(id, size)| (Uuid::from_u128(id), vec![0; size]))
        .into();
    (0..=last)
        .map(|_| {
            let changes: Vec<Change> = (0..4)
                .map(|n| {
                    let id = Uuid::from_u128(0xa + n % 2);
                    Change::random(&mut random, id, image[&id].len() as u64)
                })
                .collect();
            for change in &changes {
                change.apply(&mut image);
            }
            (changes, image.clone())
        })
        .collect()
}

pub(super) async fn open(
    place: &Place,
    generation: u64,
    image: &Image,
) -> Result<ReplicaWriter, StoreError> {
    ReplicaWriter::open(
        &place.target,
        &place.key,
        Generation(generation),
        &specs(image),
    )
    .await
}

pub(super) async fn send(
    writer: &ReplicaWriter,
    position: Position,
    changes: &[Change],
) -> Result<(), StoreError> {
    let mut cycle = writer.begin_cycle(position, time_of(position)).await?;
    for change in changes {
        match change {
            Change::Write(id, at, data) => {
                cycle.write(*id, *at, Bytes::from(data.clone())).await?;
            }
            Change::Zero(id, at, length) => cycle.zero(*id, *at, *length).await?,
        }
    }
    cycle.commit().await?;
    writer.add_point(point(position, time_of(position))).await
}

/// A complete replica up to a position.
pub(super) async fn filled(
    place: &Place,
    story: &[(Vec<Change>, Image)],
    last: u64,
) -> ReplicaWriter {
    let writer = open(place, 1, &story[0].1).await.expect("it is new");
    for (id, data) in &story[0].1 {
        let data = Bytes::copy_from_slice(data);
        writer.base_write(*id, 0, data).await.expect("base");
    }
    writer
        .complete_base(point(Position::BASE, time_of(Position::BASE)))
        .await
        .expect("base is complete");
    for position in 1..=last {
        send(&writer, Position(position), &story[position as usize].0)
            .await
            .expect("a cycle");
    }
    writer
}

pub(super) async fn head(writer: &ReplicaWriter) -> Position {
    match writer.state().await.expect("the owner may look") {
        ReplicaState::Complete { head_position, .. } => head_position,
        other => panic!("the replica is complete, not {other:?}"),
    }
}

pub(super) fn fenced<T: std::fmt::Debug>(result: Result<T, StoreError>, what: &str) {
    let error = result.expect_err(what);
    assert_eq!(error.kind(), ErrorKind::Fenced, "{what}: {error}");
}

/// A take-over in the middle of another's work: what was acknowledged to the old owner is there, what
/// it does later is refused and never counts.
pub async fn two_writers(place: &Place) {
    const LAST: u64 = 10;
    let story = story(21, LAST);
    let old = filled(place, &story, 1).await;
    let sender = {
        let (old, story) = (old.clone(), story.clone());
        tokio::spawn(async move {
            for position in 2..=LAST {
                let sent = send(&old, Position(position), &story[position as usize].0).await;
                if let Err(error) = sent {
                    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
                    return position - 1;
                }
            }
            LAST
        })
    };
    let reader = ReplicaReader::open(&place.target, &place.key)
        .await
        .expect("it is there");
    while reader.points().await.expect("points").len() < 4 {
        tokio::task::yield_now().await;
    }
    let fresh = open(place, 2, &story[0].1)
        .await
        .expect("a higher generation");
    let from = head(&fresh).await;
    let acknowledged = sender.await.expect("the sender ends");
    assert!(from.0 >= acknowledged, "an acknowledged cycle is missing");
    assert_eq!(head(&fresh).await, from, "nothing came in later");

    fenced(old.begin_cycle(from.next(), 1).await, "begin");
    fenced(old.add_point(point(from, 7)).await, "point");
    let none = RetentionPolicy::hours(0);
    fenced(old.maintain(time_of(from), none).await, "maintain");
    fenced(old.state().await, "state");
    fenced(open(place, 1, &story[0].1).await, "open");
    fenced(
        delete_replica(&place.target, &place.key, Generation(1)).await,
        "delete",
    );
    let all = old.append(crate::JournalObject::Bytes(Bytes::from_static(b"x")));
    fenced(all.await, "append");

    for position in from.0 + 1..=LAST {
        send(&fresh, Position(position), &story[position as usize].0)
            .await
            .expect("the owner sends");
    }
    check(&reader, &story).await;
}

pub(super) async fn check(reader: &ReplicaReader, story: &[(Vec<Change>, Image)]) -> Vec<u64> {
    let mut kept = Vec::new();
    for point in reader.points().await.expect("points") {
        let view = reader
            .view(PointSelector::Id(point.id))
            .await
            .expect("view");
        let seen = image_of(&view).await.expect("readable");
        assert!(
            seen == story[point.position.0 as usize].1,
            "the point at {:?} differs",
            point.position
        );
        kept.push(point.position.0);
    }
    kept
}

/// Views that are read while base moves: right bytes, or `Expired`, or no such point any more.
pub async fn readers_during_maintenance(place: &Place) {
    const LAST: u64 = 9;
    let story = story(22, LAST);
    let writer = filled(place, &story, LAST).await;
    let reader = ReplicaReader::open(&place.target, &place.key)
        .await
        .expect("it is there");
    let pinned = reader
        .pinned_view(PointSelector::Id(point(Position(5), 0).id), "drill")
        .await
        .expect("pinned");
    let mut readers = tokio::task::JoinSet::new();
    for number in 0..=LAST {
        let (reader, expected) = (reader.clone(), story[number as usize].1.clone());
        readers.spawn(async move {
            let id = PointSelector::Id(point(Position(number), 0).id);
            let view = match reader.view(id).await {
                Ok(view) => view,
                Err(error) => {
                    assert!(is_retired(&error), "{error}");
                    return;
                }
            };
            for _ in 0..20 {
                match image_of(&view).await {
                    Ok(seen) => assert!(seen == expected, "point {number} differs"),
                    Err(error) => return assert!(is_retired(&error), "{error}"),
                }
            }
        });
    }
    for hours in [7, 3, 0] {
        let now = time_of(Position(LAST));
        let policy = RetentionPolicy::hours(hours);
        writer.maintain(now, policy).await.expect("maintenance");
    }
    while let Some(read) = readers.join_next().await {
        read.expect("no reader saw other bytes");
    }
    assert!(image_of(&pinned).await.expect("held") == story[5].1);
    assert_eq!(check(&reader, &story).await, [5, LAST]);
    reader.unpin("drill").await.expect("let go");
    let none = RetentionPolicy::hours(0);
    let now = time_of(Position(LAST));
    let report = writer.maintain(now, none).await.expect("maintenance");
    assert_eq!(report.base_position_after, Position(LAST));
    assert_eq!(check(&reader, &story).await, [LAST]);
}

fn is_retired(error: &StoreError) -> bool {
    matches!(error.kind(), ErrorKind::Expired | ErrorKind::NotFound)
}

/// A removed replica is gone, stays gone for everyone who is not newer, and is not removed while
/// somebody holds it or was promised to find it.
pub async fn removal(place: &Place) {
    let story = story(23, 2);
    let writer = filled(place, &story, 1).await;
    writer.set_immutability_hours(5);
    send(&writer, Position(2), &story[2].0)
        .await
        .expect("a cycle");
    let (target, key) = (&place.target, &place.key);
    let reader = ReplicaReader::open(target, key).await.expect("it is there");
    reader
        .pin(PointSelector::Newest, "drill")
        .await
        .expect("pin");
    let delete = async |generation, hours| {
        let now = time_of(Position(2)) + hours * HOUR_MS;
        delete_replica_at(target, key, Generation(generation), now).await
    };
    let refused = async |generation, hours| delete(generation, hours).await.unwrap_err().kind();
    assert_eq!(refused(1, 9).await, ErrorKind::Pinned);
    reader.unpin("drill").await.expect("unpin");
    assert_eq!(refused(0, 9).await, ErrorKind::Fenced);
    assert_eq!(refused(1, 4).await, ErrorKind::Immutable);
    writer.set_immutability_hours(0);
    let none = RetentionPolicy::hours(0);
    let far = time_of(Position(2)) + 1000 * HOUR_MS;
    writer.maintain(far, none).await.expect("maintenance");
    assert_eq!(check(&reader, &story).await, [2]);

    delete(1, 5).await.expect("nothing holds it");
    let gone = ReplicaReader::open(target, key).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    let gone = send(&writer, Position(3), &story[2].0).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound, "{gone}");
    fenced(
        open(place, 1, &story[0].1).await,
        "made anew by a stale engine",
    );
    delete(1, 5).await.expect("repeated");
    let next = open(place, 2, &story[0].1).await.expect("protected anew");
    assert_eq!(next.state().await.expect("state"), ReplicaState::Empty);
    fenced(
        send(&writer, Position(3), &story[2].0).await,
        "the old writer",
    );
}

/// A journal object that rotted: its ranges are named, everything else goes on, and once the ranges were
/// sent again the replica is whole.
pub async fn damage(place: &Place) {
    let story = story(24, 4);
    let writer = filled(place, &story, 4).await;
    let options = WriterOptions::default();
    let replica = options::replica(&place.target, &place.key, options).expect("a medium");
    let name = layout::journal_object(Generation(1), Position(2));
    let length = {
        let (replica, name) = (replica.clone(), name.clone());
        crate::blocking::blocking(move || {
            let (mut content, _) = replica.medium.get(&name)?.expect("the object is there");
            let middle = content.len() / 3;
            content[middle] ^= 0x55;
            replica.medium.remove(std::slice::from_ref(&name))?;
            replica.medium.put_new(&name, &content)?;
            Ok(content.len())
        })
        .await
        .expect("it can be damaged")
    };
    assert!(length > 1000);
    let now = time_of(Position(4));
    let none = RetentionPolicy::hours(0);
    let report = writer.maintain(now, none).await.expect("goes on");
    assert_eq!(report.expired_points.len(), 4);
    assert!(report.base_position_after < Position(4));
    assert!(!report.damage.is_empty(), "it is found");
    let mut healed = BTreeMap::new();
    let image = &story[4].1;
    let mut cycle = writer
        .begin_cycle(Position(5), time_of(Position(5)))
        .await
        .expect("newer cycles are taken");
    for found in &report.damage {
        assert_eq!(found.position, Position(2));
        assert!(found.place.ends_with(&name), "{}", found.place);
        let data = &image[&found.disk][found.offset as usize..][..found.length as usize];
        let data = Bytes::copy_from_slice(data);
        cycle
            .write(found.disk, found.offset, data)
            .await
            .expect("sent again");
        healed.insert((found.disk, found.offset), found.length);
    }
    cycle.commit().await.expect("committed");
    writer
        .add_point(point(Position(5), time_of(Position(5))))
        .await
        .expect("a point");
    let report = writer
        .maintain(time_of(Position(5)), none)
        .await
        .expect("maintenance");
    assert_eq!(report.damage, []);
    assert_eq!(report.base_position_after, Position(5));
    let reader = ReplicaReader::open(&place.target, &place.key)
        .await
        .expect("it is there");
    let view = reader.view(PointSelector::Newest).await.expect("view");
    assert!(image_of(&view).await.expect("whole") == *image);
}
