//! What the journal says of changes between two positions, against the model's history.

mod support;

use std::ops::Range;

use proptest::prelude::*;
use replica_store::{
    Changed, ErrorKind, Generation, PointSelector, Position, ReplicaReader, ReplicaView,
    RetentionPolicy, RetentionTier, take_over,
};
use support::*;

const LAST: u64 = 8;
const OURS: Generation = Generation(1);

async fn newest(reader: &ReplicaReader) -> ReplicaView {
    reader.view(PointSelector::Newest).await.unwrap()
}

fn has(ranges: &[Range<u64>], at: u64) -> bool {
    ranges.iter().any(|range| range.contains(&at))
}

/// Nothing that differs is left out, and the ranges are in order.
fn check_covers(changed: &Changed, before: &Image, after: &Image, context: &str) {
    for n in 0..SIZES.len() {
        let ranges = &changed[&disk(n)];
        let in_order = ranges.windows(2).all(|pair| pair[0].end < pair[1].start);
        assert!(in_order, "{context}: sorted and joined");
        let mut at = 0;
        for range in ranges {
            let (from, to) = (range.start as usize, range.end as usize);
            assert!(
                before[n][at..from] == after[n][at..from],
                "{context}: disk {n}"
            );
            at = to;
        }
        assert!(before[n][at..] == after[n][at..], "{context}: disk {n}");
    }
}

/// Nothing but what these cycles wrote.
fn check_no_more(changed: &Changed, seed: u64, positions: Range<u64>) {
    let written: Vec<(usize, Range<u64>)> = positions
        .flat_map(|position| changes(seed, position))
        .map(|change| match change {
            Change::Write(n, at, data) => (n, at..at + data.len() as u64),
            Change::Zero(n, at, length) => (n, at..at + length),
        })
        .collect();
    for n in 0..SIZES.len() {
        for range in &changed[&disk(n)] {
            for at in [range.start, range.start.midpoint(range.end), range.end - 1] {
                let hit = |(of, range): &(usize, Range<u64>)| *of == n && range.contains(&at);
                assert!(written.iter().any(hit), "byte {at} of disk {n}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn what_is_told_is_what_the_cycles_between_wrote(seed in 0u64..1000) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let store = Store::new();
            drop(store.filled(seed, LAST).await);
            let model = history(seed, LAST);
            let reader = store.reader().await.unwrap();
            for to in 0..=LAST {
                let view = reader.view(PointSelector::Id(point(to).id)).await.unwrap();
                for from in 0..=to {
                    let changed = view.changed_since(Position(from), OURS).await.unwrap().unwrap();
                    let context = format!("seed {seed}, {from} to {to}");
                    check_covers(&changed, &model[from as usize], &model[to as usize], &context);
                    check_no_more(&changed, seed, from + 1..to + 1);
                }
                let later = view.changed_since(Position(to + 1), OURS).await.unwrap();
                assert_eq!(later, None, "the view is older than what we have");
            }
        });
    }
}

#[tokio::test]
async fn changes_that_went_into_base_are_not_known_and_younger_ones_are() {
    let store = Store::new();
    let writer = store.filled(5, LAST).await;
    let model = history(5, LAST);
    let reader = store.reader().await.unwrap();
    // Opened before, looked at afterwards.
    let view = newest(&reader).await;
    let now = point(LAST).time_unix_ms;
    let report = writer.maintain(now, RetentionPolicy::hours(3)).await;
    let base = report.unwrap().base_position_after.0;
    assert!(0 < base && base < LAST, "base went to {base}");
    for from in 0..=LAST {
        let changed = view.changed_since(Position(from), OURS).await.unwrap();
        assert_eq!(changed.is_some(), from >= base, "from {from}, base {base}");
        if let Some(changed) = changed {
            let (before, after) = (&model[from as usize], &model[LAST as usize]);
            check_covers(&changed, before, after, &format!("from {from}"));
        }
    }
}

#[tokio::test]
async fn changes_that_were_merged_are_told_wider_never_narrower() {
    let store = Store::new();
    let writer = store.filled(6, LAST).await;
    let model = history(6, LAST);
    let now = point(LAST).time_unix_ms;
    let tier = RetentionTier {
        every_seconds: 5 * 3600,
        for_seconds: 3_600_000,
    };
    let thinned = RetentionPolicy::hours(0).with_tiers(&[tier]).unwrap();
    let mut merged = 0;
    for _ in 0..60 {
        let report = writer.maintain(now, thinned).await.unwrap();
        merged += report.merged_journal_objects;
    }
    assert!(merged > 1, "nothing was merged");
    let reader = store.reader().await.unwrap();
    let view = newest(&reader).await;
    let mut known = 0;
    for from in 0..=LAST {
        let changed = view.changed_since(Position(from), OURS).await.unwrap();
        if let Some(changed) = changed {
            let (before, after) = (&model[from as usize], &model[LAST as usize]);
            check_covers(&changed, before, after, &format!("from {from}"));
            known += 1;
        }
    }
    assert!(known > 2, "known from {known} positions");
}

#[tokio::test]
async fn a_position_that_another_generation_wrote_is_not_ours() {
    let (seed, store) = (7, Store::new());
    drop(store.filled(seed, 4).await);
    let model = history(seed, LAST);
    let reader = store.reader().await.unwrap();
    assert_eq!(reader.newest_of(OURS).await.unwrap(), Some(point(4)));
    assert_eq!(reader.newest_of(Generation(2)).await.unwrap(), None);

    // A recovered VM takes the replica over and writes nothing yet: the head is not its own.
    take_over(&store.target(), &store.key(), Generation(2))
        .await
        .unwrap();
    assert_eq!(reader.newest_of(Generation(2)).await.unwrap(), None);
    let refused = reader.newest_of(OURS).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced);

    let writer = store.writer(2).await.unwrap();
    for position in 5..=LAST {
        send(&writer, seed, position).await.unwrap();
    }
    let own = reader.newest_of(Generation(2)).await.unwrap();
    assert_eq!(own, Some(point(LAST)));
    let view = newest(&reader).await;
    let since = |position, by| view.changed_since(Position(position), Generation(by));
    for from in 0..=4 {
        let changed = since(from, 1).await.unwrap().unwrap();
        let before = &model[from as usize];
        check_covers(
            &changed,
            before,
            &model[LAST as usize],
            &format!("from {from}"),
        );
    }
    // We believe to be at 5, which was never heard: what lies at 5 is the recovered VM's.
    assert_eq!(since(5, 1).await.unwrap(), None);
    assert!(since(5, 2).await.unwrap().is_some());
    // A point that is kept is what lies there, whoever wrote it.
    for at in [2, 5] {
        let changed = view.changed_behind(&point(at)).await.unwrap().unwrap();
        let whose = if at < 5 { 1 } else { 2 };
        assert_eq!(Some(changed), since(at, whose).await.unwrap());
    }
    let at_head = since(LAST, 2).await.unwrap().unwrap();
    assert!(at_head.values().all(Vec::is_empty) && at_head.len() == SIZES.len());
}

#[tokio::test]
async fn a_damaged_object_in_between_may_have_changed_anything() {
    let store = Store::new();
    drop(store.filled(8, LAST).await);
    let mut objects = store.files();
    objects.retain(|path| {
        path.to_string_lossy()
            .ends_with("-00000000000000000005.hrl")
    });
    assert_eq!(objects.len(), 1, "how objects are named has changed");
    let mut bytes = std::fs::read(&objects[0]).unwrap();
    let middle = bytes.len() - 9;
    bytes[middle] ^= 0x40;
    std::fs::write(&objects[0], bytes).unwrap();
    let reader = store.reader().await.unwrap();
    let view = newest(&reader).await;
    let changed = view.changed_since(Position(4), OURS).await.unwrap();
    assert_eq!(changed, None);
    let changed = view.changed_since(Position(5), OURS).await.unwrap();
    assert!(changed.is_some_and(|changed| !has(&changed[&disk(0)], u64::MAX)));
}
