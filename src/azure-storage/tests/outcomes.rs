//! Every remote call with each of its ends: done, not done, unknown. What is repeated, what is not, and what is said.

mod support;

use std::time::Duration;

use azure_storage::clock::Clock as _;
use azure_storage::double::{Fault, Rule};
use azure_storage::{Condition, ErrorKind, Outcome, RetryPolicy};
use bytes::Bytes;
use support::*;

#[tokio::test]
async fn a_refused_call_is_not_done_and_says_so() {
    for call in CALLS {
        let world = impatient().await;
        prepare(&world.container, call).await;
        world.double.faults().add(Rule::once(
            Fault::Refuse {
                status: 503,
                code: "ServerBusy",
                retry_after_seconds: None,
            },
            any,
        ));
        let error = perform(&world.container, call).await.expect_err(call);
        assert_eq!(error.kind(), ErrorKind::Throttled, "{call}: {error}");
        assert_eq!(error.outcome(), Outcome::NotDone, "{call}: {error}");
        assert!(error.is_retryable(), "{call}: {error}");
    }
}

#[tokio::test]
async fn a_write_whose_connection_is_lost_is_unknown_and_a_read_is_not_done() {
    for fault in [Fault::DropBefore, Fault::DropAfter] {
        for call in CALLS {
            let world = impatient().await;
            prepare(&world.container, call).await;
            world.double.faults().add(Rule::once(fault.clone(), any));
            let error = perform(&world.container, call).await.expect_err(call);
            let expected = if READS.contains(call) {
                Outcome::NotDone
            } else {
                Outcome::Unknown
            };
            assert_eq!(error.outcome(), expected, "{call} {fault:?}: {error}");
            assert_eq!(
                error.kind(),
                ErrorKind::Unavailable,
                "{call} {fault:?}: {error}"
            );
        }
    }
}

#[tokio::test]
async fn what_may_be_repeated_succeeds_after_lost_connections_and_errors() {
    let faults = [
        Fault::DropBefore,
        Fault::DropAfter,
        Fault::Refuse {
            status: 429,
            code: "TooManyRequests",
            retry_after_seconds: Some(2),
        },
        Fault::Refuse {
            status: 503,
            code: "ServerBusy",
            retry_after_seconds: None,
        },
        Fault::Refuse {
            status: 500,
            code: "InternalError",
            retry_after_seconds: None,
        },
        Fault::DoneBut {
            status: 500,
            code: "OperationTimedOut",
        },
    ];
    for fault in faults {
        for call in CALLS.iter().filter(|call| **call != "snapshot") {
            let world = world().await;
            prepare(&world.container, call).await;
            world
                .double
                .faults()
                .add(Rule::once(fault.clone(), any).times(2));
            let done = perform(&world.container, call).await;
            match (*call, done) {
                // The blocks were committed by the attempt whose answer was lost: the caller has to look.
                ("commit_blocks", Err(error)) => {
                    assert_eq!(error.outcome(), Outcome::Unknown, "{fault:?}: {error}");
                    assert!(world.container.get("b").await.expect("read").is_some());
                }
                (_, done) => done.unwrap_or_else(|error| panic!("{call} {fault:?}: {error}")),
            }
        }
    }
}

#[tokio::test]
async fn a_snapshot_is_not_taken_twice() {
    let world = world().await;
    prepare(&world.container, "snapshot").await;
    world.double.faults().add(Rule::once(Fault::DropAfter, any));
    let error = world.container.snapshot("b").await.expect_err("unknown");
    assert_eq!(error.outcome(), Outcome::Unknown);
    let asked = world.double.faults().calls();
    assert_eq!(
        asked.iter().filter(|call| call.comp == "snapshot").count(),
        1
    );
}

#[tokio::test]
async fn a_refusal_after_an_unknown_attempt_is_unknown() {
    let world = world().await;
    world.double.faults().add(Rule::once(Fault::DropAfter, any));
    let error = world
        .container
        .put_block_blob("b", Bytes::from_static(b"mine"), &[], Condition::NotExists)
        .await
        .expect_err("our own first attempt is in the way");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(error.outcome(), Outcome::Unknown);
}

#[tokio::test]
async fn the_service_is_obeyed_when_it_says_how_long_to_wait() {
    let world = world().await;
    world.double.faults().add(Rule::once(
        Fault::Refuse {
            status: 503,
            code: "ServerBusy",
            retry_after_seconds: Some(30),
        },
        any,
    ));
    let before = world.clock.monotonic();
    perform(&world.container, "put_block_blob")
        .await
        .expect("done in the end");
    assert!(world.clock.monotonic() - before >= Duration::from_secs(30));
}

#[tokio::test]
async fn an_outage_ends_in_an_error_within_the_time_allowed_and_passes() {
    let world = world().await;
    prepare(&world.container, "put_pages").await;
    world.double.faults().outage(true);
    let before = world.clock.monotonic();
    let error = perform(&world.container, "put_pages")
        .await
        .expect_err("the region is down");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let spent = world.clock.monotonic() - before;
    assert!(spent <= RetryPolicy::default().give_up_after, "{spent:?}");
    world.double.faults().outage(false);
    perform(&world.container, "put_pages")
        .await
        .expect("it is back");
}

#[tokio::test]
async fn damaged_bytes_are_refused_and_sent_again() {
    let world = world().await;
    prepare(&world.container, "put_pages").await;
    world
        .double
        .faults()
        .add(Rule::once(Fault::Damage, |call| call.comp == "page"));
    perform(&world.container, "put_pages")
        .await
        .expect("sent again");
    world
        .double
        .faults()
        .add(Rule::once(Fault::Damage, |call| call.method == "GET"));
    let read = world
        .container
        .get_range("b", None, 0..512)
        .await
        .expect("read again");
    assert_eq!(read.bytes, vec![5u8; 512]);
    assert!(world.double.faults().used_up());
}

#[tokio::test]
async fn an_answer_that_is_cut_is_asked_for_again() {
    let world = world().await;
    prepare(&world.container, "put_pages").await;
    perform(&world.container, "put_pages")
        .await
        .expect("written");
    world
        .double
        .faults()
        .add(Rule::once(Fault::CutBody, |call| call.method == "GET"));
    let read = world
        .container
        .get_range("b", None, 0..1024)
        .await
        .expect("read");
    assert_eq!(read.bytes.len(), 1024);
}
