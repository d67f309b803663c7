//! Removals that sleep at the service while the VM is protected anew: what the next owner puts there stays.

mod support;

use std::sync::Arc;

use azure_storage::ContainerOptions;
use azure_storage::double::{Double, DoubleOptions, Fault, Rule};
use replica_store::{
    AzureTarget, ErrorKind, Generation, PointSelector, ReplicaKey, ReplicaReader, ReplicaState,
    ReplicaWriter, RetentionPolicy, StoreTarget, delete_replica,
};
use support::*;
use tokio::sync::Semaphore;

const SEED: u64 = 17;

async fn account() -> (Double, StoreTarget) {
    let double = Double::start(DoubleOptions {
        limits: false,
        ..DoubleOptions::default()
    })
    .await
    .expect("the double starts");
    double.make_container("replicas");
    let credential = double.credential("replicas");
    let options = ContainerOptions::new(double.endpoint(), "replicas", credential);
    let target = StoreTarget::Azure(AzureTarget::with_options(options));
    (double, target)
}

fn key() -> ReplicaKey {
    ReplicaKey::new("vault", "item-1").expect("a proper key")
}

async fn open(target: &StoreTarget, generation: u64) -> ReplicaWriter {
    ReplicaWriter::open(target, &key(), Generation(generation), &specs())
        .await
        .expect("opened")
}

/// A complete replica with points 0 and 1.
async fn filled(target: &StoreTarget, generation: u64) -> ReplicaWriter {
    let writer = open(target, generation).await;
    replicate_base(&writer, SEED).await.expect("base");
    send(&writer, SEED, 1).await.expect("a cycle");
    writer
}

/// Holds call number `place` of what runs from now on.
fn hold(double: &Double, place: u32) -> Arc<Semaphore> {
    let awake = Arc::new(Semaphore::new(0));
    let rule = Rule::once(Fault::Hold(awake.clone()), |_| true).after(place);
    double.faults().add(rule);
    awake
}

/// Until call `place` behind `before` was made, or the work is over.
async fn reached<T>(
    double: &Double,
    before: usize,
    place: u32,
    work: &tokio::task::JoinHandle<T>,
) -> bool {
    loop {
        if double.faults().calls().len() > before + place as usize {
            return true;
        }
        if work.is_finished() {
            return false;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_removal_that_sleeps_anywhere_takes_nothing_of_the_replica_that_is_made_anew() {
    let model = history(SEED, 2);
    let (mut slept, mut made_anew) = (0, 0);
    for place in 0.. {
        let (double, target) = account().await;
        drop(filled(&target, 1).await);
        let before = double.faults().calls().len();
        let awake = hold(&double, place);
        let removal = tokio::spawn({
            let target = target.clone();
            async move { delete_replica(&target, &key(), Generation(1)).await }
        });
        if !reached(&double, before, place, &removal).await {
            removal.await.expect("no panic").expect("removed");
            break;
        }
        slept += 1;
        let next = open(&target, 2).await;
        let newest = match next.state().await.expect("a state") {
            ReplicaState::Complete { .. } => {
                send(&next, SEED, 2).await.expect("it goes on");
                2
            }
            _ => {
                made_anew += 1;
                replicate_base(&next, SEED).await.expect("base");
                send(&next, SEED, 1).await.expect("a cycle");
                1
            }
        };
        awake.add_permits(1);
        let removed = removal.await.expect("no panic");
        if let Err(error) = removed {
            assert_eq!(error.kind(), ErrorKind::Fenced, "call {place}: {error}");
        }
        let reader = ReplicaReader::open(&target, &key())
            .await
            .unwrap_or_else(|error| panic!("call {place}: {error}"));
        let points = check_points(&reader, &model, &format!("call {place}")).await;
        assert_eq!(points, (0..=newest).collect::<Vec<_>>(), "call {place}");
    }
    assert!(slept > 10 && made_anew > 5, "{slept} {made_anew}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_opening_that_sleeps_anywhere_takes_nothing_of_what_a_later_one_completed() {
    let model = history(SEED, 1);
    for place in 0.. {
        let (double, target) = account().await;
        // Base is filled and its point is there; that it is complete was not noted.
        let cut = open(&target, 1).await;
        double.faults().add(
            Rule::once(
                Fault::Refuse {
                    status: 403,
                    code: "AuthorizationFailure",
                    retry_after_seconds: None,
                },
                |call| call.method == "PUT" && call.blob.ends_with("/manifest"),
            )
            // The first notes that base holds something.
            .after(1),
        );
        replicate_base(&cut, SEED).await.expect_err("it was cut");
        double.faults().clear();
        let before = double.faults().calls().len();
        let awake = hold(&double, place);
        let sleeper = tokio::spawn({
            let target = target.clone();
            async move { ReplicaWriter::open(&target, &key(), Generation(1), &specs()).await }
        });
        if !reached(&double, before, place, &sleeper).await {
            sleeper.await.expect("no panic").expect("opened");
            assert!(place > 5, "{place}");
            break;
        }
        drop(filled(&target, 1).await);
        awake.add_permits(1);
        // It may be refused, as one that was passed.
        let _ = sleeper.await.expect("no panic");
        let reader = ReplicaReader::open(&target, &key()).await.expect("there");
        let points = check_points(&reader, &model, &format!("call {place}")).await;
        assert_eq!(points, [0, 1], "call {place}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_round_that_sleeps_anywhere_takes_no_point_that_was_pinned_meanwhile() {
    let model = history(SEED, 6);
    let mut pinned = 0;
    for place in 0.. {
        let (double, target) = account().await;
        let writer = filled(&target, 1).await;
        for position in 2..=6 {
            send(&writer, SEED, position).await.expect("a cycle");
        }
        // A pin holds base where it is, so what goes lies in front of it.
        let first = ReplicaReader::open(&target, &key()).await.expect("there");
        let hold_base = point(0).id;
        first
            .pin(PointSelector::Id(hold_base), "base")
            .await
            .expect("pinned");
        let before = double.faults().calls().len();
        let awake = hold(&double, place);
        let round = tokio::spawn({
            let writer = writer.clone();
            async move {
                let policy = RetentionPolicy::hours(2);
                writer.maintain(point(6).time_unix_ms, policy).await
            }
        });
        if !reached(&double, before, place, &round).await {
            round.await.expect("no panic").expect("a round");
            break;
        }
        let reader = ReplicaReader::open(&target, &key()).await.expect("there");
        let pin = reader.pin(PointSelector::Id(point(2).id), "drill").await;
        awake.add_permits(1);
        round.await.expect("no panic").expect("a round");
        let points = check_points(&reader, &model, &format!("call {place}")).await;
        match pin {
            Ok(_) => {
                pinned += 1;
                assert!(points.contains(&2), "call {place}: {points:?}");
            }
            Err(error) => {
                let refused = [ErrorKind::Expired, ErrorKind::NotFound];
                assert!(refused.contains(&error.kind()), "call {place}: {error}");
            }
        }
        assert!(points.contains(&0), "call {place}: {points:?}");
    }
    assert!(pinned > 2, "{pinned}");
}
