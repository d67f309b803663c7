//! A writer that is killed at any durable step loses nothing it was told was done.

mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use replica_store::fault::StepKind;
use replica_store::{
    ErrorKind, Generation, PointSelector, Position, ReplicaState, ReplicaWriter, RetentionPolicy,
    StoreError, WriterOptions, delete_replica, delete_replica_with_faults, take_over,
    take_over_with,
};
use support::*;

const SEED: u64 = 7;
const LAST: u64 = 5;

/// What the engine knows to be done, or to have been begun, when the cut comes.
#[derive(Debug, Default)]
struct Known {
    acknowledged: BTreeSet<u64>,
    /// Points that a round of maintenance may have retired.
    retirable: BTreeSet<u64>,
}

/// The life of a replica: created, filled, maintained, taken over, maintained again.
async fn life(faults: Arc<Striker>, store: &Store, known: &mut Known) -> Result<(), StoreError> {
    let open = async |generation| {
        ReplicaWriter::open_with_faults(
            faults.clone(),
            &store.target(),
            &store.key(),
            Generation(generation),
            &specs(),
        )
        .await
    };
    let writer = open(1).await?;
    replicate_base(&writer, SEED).await?;
    known.acknowledged.insert(0);
    for position in 1..=3 {
        send(&writer, SEED, position).await?;
        known.acknowledged.insert(position);
    }
    // Keeps the last two hours: 0 may go.
    known.retirable.insert(0);
    maintain(&writer, 3, 2).await?;
    let writer = open(2).await?;
    send(&writer, SEED, 4).await?;
    known.acknowledged.insert(4);
    known.retirable.extend([1, 2]);
    maintain(&writer, 4, 1).await?;
    send(&writer, SEED, 5).await?;
    known.acknowledged.insert(5);
    known.retirable.extend([3, 4]);
    maintain(&writer, 5, 0).await?;
    Ok(())
}

async fn maintain(writer: &ReplicaWriter, now: u64, hours: u32) -> Result<(), StoreError> {
    let now = point(now).time_unix_ms;
    writer
        .maintain(now, RetentionPolicy::hours(hours))
        .await
        .map(drop)
}

/// What a restarted engine does, until the replica is as if nothing had happened.
async fn resume(store: &Store, generation: u64, context: &str) -> ReplicaWriter {
    let model = history(SEED, LAST);
    let writer = store.writer(generation).await.unwrap();
    let head = match writer.state().await.unwrap() {
        ReplicaState::Empty | ReplicaState::Partial => {
            replicate_base(&writer, SEED).await.unwrap();
            0
        }
        ReplicaState::Complete { head_position, .. } => head_position.0,
    };
    let seen = image_of(&writer.head_view().await.unwrap()).await.unwrap();
    assert!(
        seen == model[head as usize],
        "{context}: head {head} differs"
    );
    // The point of the head may be missing: acknowledged cycle, cut before the point.
    writer.add_point(point(head)).await.unwrap();
    for position in head + 1..=LAST {
        send(&writer, SEED, position).await.unwrap();
    }
    writer
}

async fn cut_everywhere(mode: Mode) {
    let model = history(SEED, LAST);
    for at in 0.. {
        let store = Store::new();
        let faults = Arc::new(Striker::new(at, mode));
        let mut known = Known::default();
        let lived = life(faults.clone(), &store, &mut known).await;
        if !faults.has_struck() {
            lived.unwrap();
            assert!(at > 100, "the life has only {at} steps");
            return;
        }
        let step = faults.trace.lock().unwrap().last().cloned().unwrap();
        let context = format!("{mode:?} at step {at} {step:?}");
        if lived.is_ok() {
            // Only a step whose failure is no failure: sweeping away a temporary.
            assert_eq!(step.0, StepKind::Remove, "{context}");
        }

        // A reader that comes before any writer sees only whole points.
        if let Ok(reader) = store.reader().await {
            let kept: BTreeSet<u64> = check_points(&reader, &model, &context)
                .await
                .into_iter()
                .collect();
            for position in known.acknowledged.difference(&known.retirable) {
                assert!(kept.contains(position), "{context}: lost {position}");
            }
        } else {
            assert!(known.acknowledged.is_empty(), "{context}");
        }

        let writer = resume(&store, 3, &context).await;
        let reader = store.reader().await.unwrap();
        let kept = check_points(&reader, &model, &context).await;
        assert_eq!(kept.last(), Some(&LAST), "{context}");
        maintain(&writer, LAST, 0).await.unwrap();
        assert_eq!(
            check_points(&reader, &model, &context).await,
            [LAST],
            "{context}"
        );
        let state = writer.state().await.unwrap();
        let position = Position(LAST);
        assert_eq!(
            state,
            ReplicaState::Complete {
                base_position: position,
                head_position: position
            },
            "{context}"
        );
        let leftovers: Vec<PathBuf> = store
            .files()
            .into_iter()
            .filter(|path| {
                let name = path.to_string_lossy();
                name.contains(".tmp-") || name.ends_with(".hrl")
            })
            .collect();
        assert!(leftovers.is_empty(), "{context}: {leftovers:?}");
    }
}

#[tokio::test]
async fn a_kill_before_any_step_loses_nothing_acknowledged() {
    cut_everywhere(Mode::Kill).await;
}

#[tokio::test]
async fn a_kill_in_the_middle_of_any_write_loses_nothing_acknowledged() {
    cut_everywhere(Mode::Tear).await;
}

#[tokio::test]
async fn a_kill_after_any_step_loses_nothing_acknowledged() {
    cut_everywhere(Mode::KillAfter).await;
}

/// Repeats the operation that failed, as an engine does that was not killed.
#[tokio::test]
async fn a_writer_that_lives_on_after_any_failed_step_repeats_and_goes_on() {
    let model = history(SEED, LAST);
    for at in 0.. {
        let store = Store::new();
        let faults = Arc::new(Striker::new(at, Mode::Error(std::io::ErrorKind::TimedOut)));
        let open = async || {
            ReplicaWriter::open_with_faults(
                faults.clone(),
                &store.target(),
                &store.key(),
                Generation(1),
                &specs(),
            )
            .await
        };
        let writer = match open().await {
            Ok(writer) => writer,
            Err(_) => open().await.unwrap(),
        };
        if replicate_base(&writer, SEED).await.is_err() {
            match writer.state().await.unwrap() {
                ReplicaState::Complete { .. } => writer.complete_base(point(0)).await.unwrap(),
                _ => replicate_base(&writer, SEED).await.unwrap(),
            }
        }
        for position in 1..=LAST {
            if send(&writer, SEED, position).await.is_err() {
                send(&writer, SEED, position).await.unwrap();
            }
            if maintain(&writer, position, 2).await.is_err() {
                maintain(&writer, position, 2).await.unwrap();
            }
        }
        let reader = store.reader().await.unwrap();
        let kept = check_points(&reader, &model, &format!("step {at}")).await;
        assert_eq!(kept, [3, 4, 5], "step {at}");
        if !faults.has_struck() {
            return;
        }
    }
}

#[tokio::test]
async fn a_removal_that_was_cut_is_finished_by_the_next_one() {
    for mode in [Mode::Kill, Mode::KillAfter] {
        for at in 0.. {
            let store = Store::new();
            drop(store.filled(SEED, 2).await);
            let faults = Arc::new(Striker::new(at, mode));
            let (target, key) = (store.target(), store.key());
            let removed =
                delete_replica_with_faults(faults.clone(), &target, &key, Generation(1)).await;
            if !faults.has_struck() {
                removed.unwrap();
                assert!(at > 10);
                break;
            }
            if let Ok(reader) = store.reader().await {
                let model = history(SEED, 2);
                assert_eq!(check_points(&reader, &model, "removal").await, [0, 1, 2]);
            }
            delete_replica(&target, &key, Generation(1)).await.unwrap();
            assert!(store.is_removed(), "{:?}", store.files());
        }
    }
}

#[tokio::test]
async fn a_raised_fence_that_was_cut_is_raised_by_the_next_try() {
    let model = history(SEED, 3);
    for mode in [Mode::Kill, Mode::Tear, Mode::KillAfter] {
        for at in 0.. {
            let store = Store::new();
            let stale = store.filled(SEED, 2).await;
            let faults = Arc::new(Striker::new(at, mode));
            let options = WriterOptions {
                faults: Some(faults.clone()),
                ..WriterOptions::default()
            };
            let (target, key) = (store.target(), store.key());
            let raised = take_over_with(options, &target, &key, Generation(2)).await;
            if !faults.has_struck() {
                raised.unwrap();
                assert!(at > 6, "{mode:?}: only {at} steps");
                break;
            }
            let context = format!("{mode:?} at step {at}");
            let reader = store.reader().await.unwrap();
            assert_eq!(check_points(&reader, &model, &context).await, [0, 1, 2]);
            take_over(&target, &key, Generation(2)).await.unwrap();
            let refused = send(&stale, SEED, 3).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Fenced, "{context}: {refused}");
            let fresh = store.writer(3).await.unwrap();
            send(&fresh, SEED, 3).await.unwrap();
            assert_eq!(check_points(&reader, &model, &context).await, [0, 1, 2, 3]);
        }
    }
}

/// What a power loss may take: names are given only to synced content, and made durable at once;
/// journal objects go only when base is durable.
#[tokio::test]
async fn durable_steps_are_in_the_order_that_a_power_loss_needs() {
    let store = Store::new();
    let faults = Arc::new(Striker::new(u64::MAX, Mode::Kill));
    life(faults.clone(), &store, &mut Known::default())
        .await
        .unwrap();
    let trace = faults.trace.lock().unwrap();
    let mut unsynced = BTreeSet::new();
    let (mut renames, mut removals) = (0, 0);
    for (at, (kind, path)) in trace.iter().enumerate() {
        let is_base = path.ends_with("base.vhd");
        match kind {
            StepKind::Write | StepKind::Zero | StepKind::SetLength if is_base => {
                unsynced.insert(path.clone());
            }
            StepKind::Sync => {
                unsynced.remove(path);
            }
            StepKind::Rename => {
                renames += 1;
                let (before, temporary) = &trace[at - 1];
                assert_eq!(*before, StepKind::Sync, "{path:?} is named unsynced");
                assert_eq!(temporary.parent(), path.parent());
                let (after, folder) = &trace[at + 1];
                assert_eq!(
                    *after,
                    StepKind::SyncFolder,
                    "the name {path:?} is not durable"
                );
                assert_eq!(Some(folder.as_path()), path.parent());
                if path
                    .parent()
                    .is_some_and(|folder| folder.ends_with("points"))
                {
                    assert!(unsynced.is_empty(), "a point before its base is durable");
                }
            }
            StepKind::Remove if path.extension().is_some_and(|e| e == "hrl") => {
                removals += 1;
                assert!(unsynced.is_empty(), "{path:?} goes before base is durable");
            }
            _ => {}
        }
    }
    assert!(renames > 15 && removals == 5, "{renames} {removals}");
}

#[tokio::test]
async fn the_outcome_of_an_append_is_told_apart() {
    let mut seen = BTreeSet::new();
    for at in 0.. {
        let store = Store::new();
        drop(store.filled(SEED, 1).await);
        let faults = Arc::new(Striker::new(at, Mode::Error(std::io::ErrorKind::Other)));
        let writer = ReplicaWriter::open_with_faults(
            faults.clone(),
            &store.target(),
            &store.key(),
            Generation(1),
            &specs(),
        )
        .await;
        let Ok(writer) = writer else { continue };
        let sent = send_cycle(&writer, SEED, 2).await;
        let ReplicaState::Complete { head_position, .. } = writer.state().await.unwrap() else {
            panic!("the replica is complete");
        };
        match sent {
            Ok(()) if faults.has_struck() => continue,
            Ok(()) => break,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Io);
                if error.outcome() == replica_store::Outcome::NotDone {
                    assert_eq!(head_position, Position(1), "step {at}");
                }
                seen.insert(format!("{:?}", error.outcome()));
            }
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["NotDone", "Unknown"]);
}

#[tokio::test]
async fn a_view_of_a_point_survives_a_restart_of_its_reader() {
    let store = Store::new();
    drop(store.filled(SEED, 3).await);
    let reader = store.reader().await.unwrap();
    reader
        .pin(PointSelector::Id(point(1).id), "drill")
        .await
        .unwrap();
    drop(reader);
    let writer = store.writer(2).await.unwrap();
    maintain(&writer, 100, 0).await.unwrap();
    let reader = store.reader().await.unwrap();
    let kept = check_points(&reader, &history(SEED, 3), "pinned").await;
    assert_eq!(kept, [1, 3]);
}
