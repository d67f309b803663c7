//! The conformance suite on a folder.

mod support;

use replica_store::conformance::{self, Effort, Place};
use support::Store;

fn place(store: &Store) -> Place {
    Place::new(store.target(), store.key())
}

#[tokio::test]
async fn lives_with_disks_that_come_grow_and_go_keep_every_point() {
    for seed in 0..40 {
        let store = Store::new();
        conformance::life(&place(&store), seed, 40).await;
    }
}

#[tokio::test]
async fn lives_whose_calls_fail_in_all_three_ways_keep_every_point() {
    for seed in 0..40 {
        let store = Store::new();
        conformance::hard_life(&place(&store), seed, 30, 5).await;
        let store = Store::new();
        conformance::hard_life(&place(&store), seed + 1000, 20, 30).await;
    }
}

#[tokio::test]
async fn a_life_that_is_cut_at_any_call_is_resumed() {
    for at in 0.. {
        let store = Store::new();
        if !conformance::killed(&place(&store), 1, at).await {
            assert!(at > 200, "the life has only {at} calls");
            break;
        }
    }
}

/// The same at each durable step: file written, synced, named, folder synced.
#[tokio::test]
async fn a_life_that_is_cut_at_any_durable_step_is_resumed() {
    for at in 0.. {
        let store = Store::new();
        if !conformance::killed(&place(&store).at_files(), 3, at).await {
            assert!(at > 200, "the life has only {at} steps");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_whole_suite_passes() {
    let stores: Vec<Store> = (0..4).map(|_| Store::new()).collect();
    let effort = Effort {
        seeds: 2,
        steps: 12,
        stride: 37,
    };
    conformance::run(effort, |number| {
        let store = &stores[number as usize % stores.len()];
        let key = replica_store::ReplicaKey::new("vault", format!("item-{number}")).unwrap();
        Place::new(store.target(), key)
    })
    .await;
}
