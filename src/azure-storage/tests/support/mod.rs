//! The double with a client of it, and every call of the client by name.
#![allow(dead_code)] // each test program uses its part

use std::sync::Arc;
use std::time::Duration;

use azure_storage::double::{Call, Double, DoubleOptions, ManualClock};
use azure_storage::{
    Condition, Container, ContainerOptions, Integrity, Limits, RetryPolicy, SequenceCondition,
};
use bytes::Bytes;
use uuid::Uuid;

pub struct World {
    pub double: Double,
    pub container: Container,
    pub clock: Arc<ManualClock>,
}

pub async fn world_with(limits: Limits, retry: RetryPolicy) -> World {
    let clock = Arc::new(ManualClock::default());
    let double = Double::start(DoubleOptions {
        clock: Arc::clone(&clock) as _,
        ..DoubleOptions::default()
    })
    .await
    .expect("the double starts");
    double.make_container("c");
    let mut options = ContainerOptions::new(double.endpoint(), "c", double.credential("c"));
    options.integrity = Some(Integrity::Crc64);
    options.limits = Some(limits);
    options.retry = retry;
    options.clock = Arc::clone(&clock) as _;
    World {
        container: Container::open(&options).expect("options are right"),
        double,
        clock,
    }
}

pub async fn world() -> World {
    world_with(Limits::EMULATOR, RetryPolicy::default()).await
}

/// Gives up at the first failure.
pub async fn impatient() -> World {
    let retry = RetryPolicy {
        give_up_after: Duration::ZERO,
        ..RetryPolicy::default()
    };
    world_with(Limits::EMULATOR, retry).await
}

pub fn any(_: &Call) -> bool {
    true
}

/// Calls by name, each on a blob of its own that `prepare` made.
pub const CALLS: &[&str] = &[
    "create_page_blob",
    "put_pages",
    "clear_pages",
    "resize",
    "raise_sequence_number",
    "put_block_blob",
    "stage_block",
    "commit_blocks",
    "acquire_lease",
    "delete",
    "snapshot",
    "get",
    "page_ranges",
    "list",
    "properties",
];

pub const READS: &[&str] = &["get", "page_ranges", "list", "properties"];

pub fn id() -> Vec<Vec<u8>> {
    vec![vec![1; 4]]
}

pub async fn prepare(container: &Container, call: &str) {
    match call {
        "create_page_blob" | "put_block_blob" | "stage_block" => {}
        "commit_blocks" => container
            .stage_block("b", &id()[0], Bytes::from_static(b"block"))
            .await
            .expect("staged"),
        _ => container
            .create_page_blob("b", 4096, 1, &[], Condition::None)
            .await
            .expect("created"),
    }
}

pub async fn perform(container: &Container, call: &str) -> Result<(), azure_storage::Error> {
    match call {
        "create_page_blob" => {
            container
                .create_page_blob("b", 4096, 1, &[], Condition::None)
                .await
        }
        "put_pages" => {
            container
                .put_pages(
                    "b",
                    0,
                    Bytes::from(vec![5; 512]),
                    SequenceCondition::AtMost(1),
                )
                .await
        }
        "clear_pages" => {
            container
                .clear_pages("b", 0..512, SequenceCondition::AtMost(1))
                .await
        }
        "resize" => container.resize_page_blob("b", 8192, None).await,
        "raise_sequence_number" => container.raise_sequence_number("b", 7).await.map(drop),
        "put_block_blob" => container
            .put_block_blob("b", Bytes::from_static(b"whole"), &[], Condition::None)
            .await
            .map(drop),
        "stage_block" => {
            container
                .stage_block("b", &id()[0], Bytes::from_static(b"block"))
                .await
        }
        "commit_blocks" => container
            .commit_blocks("b", &id(), &[], Condition::NotExists)
            .await
            .map(drop),
        "acquire_lease" => container
            .acquire_lease("b", Uuid::from_u128(7), 30)
            .await
            .map(drop),
        "delete" => container.delete("b", Condition::None).await.map(drop),
        "snapshot" => container.snapshot("b").await.map(drop),
        "get" => container.get("b").await.map(drop),
        "page_ranges" => container.page_ranges("b", None, 0..4096).await.map(drop),
        "list" => container.list("", false).await.map(drop),
        "properties" => container.properties("b").await.map(drop),
        other => panic!("{other}"),
    }
}
