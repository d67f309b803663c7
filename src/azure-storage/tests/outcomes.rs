//! Every remote call with each of its ends: done, not done, unknown. What is repeated, what is not, and what is said.

use std::sync::Arc;
use std::time::Duration;

use azure_storage::clock::Clock as _;
use azure_storage::double::{Call, Double, DoubleOptions, Fault, ManualClock, Rule};
use azure_storage::{
    Condition, Container, ContainerOptions, Credential, CredentialHandle, ErrorKind, Integrity,
    Limits, Outcome, RetryPolicy, SequenceCondition,
};
use bytes::Bytes;
use tokio::sync::Semaphore;
use uuid::Uuid;

struct World {
    double: Double,
    container: Container,
    clock: Arc<ManualClock>,
}

async fn world_with(limits: Limits, retry: RetryPolicy) -> World {
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

async fn world() -> World {
    world_with(Limits::EMULATOR, RetryPolicy::default()).await
}

/// Gives up at the first failure.
async fn impatient() -> World {
    let retry = RetryPolicy {
        give_up_after: Duration::ZERO,
        ..RetryPolicy::default()
    };
    world_with(Limits::EMULATOR, retry).await
}

fn any(_: &Call) -> bool {
    true
}

/// Calls by name, each on a blob of its own that `prepare` made.
const CALLS: &[&str] = &[
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

const READS: &[&str] = &["get", "page_ranges", "list", "properties"];

fn id() -> Vec<Vec<u8>> {
    vec![vec![1; 4]]
}

async fn prepare(container: &Container, call: &str) {
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

async fn perform(container: &Container, call: &str) -> Result<(), azure_storage::Error> {
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
        "delete" => container.delete("b").await.map(drop),
        "snapshot" => container.snapshot("b").await.map(drop),
        "get" => container.get("b").await.map(drop),
        "page_ranges" => container.page_ranges("b", None, 0..4096).await.map(drop),
        "list" => container.list("", false).await.map(drop),
        "properties" => container.properties("b").await.map(drop),
        other => panic!("{other}"),
    }
}

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

#[tokio::test]
async fn an_expired_credential_waits_for_the_next_one() {
    let double = Double::start(DoubleOptions::default())
        .await
        .expect("the double starts");
    double.make_container("c");
    for bearer in [false, true] {
        let fresh = |double: &Double| {
            if bearer {
                double.token(3_600_000)
            } else {
                double.sas("c", azure_storage::sas::Permissions::REPLICATE, 3_600_000)
            }
        };
        let handle = CredentialHandle::new(fresh(&double));
        let options = ContainerOptions::new(double.endpoint(), "c", handle.clone());
        let container = Container::open(&options).expect("options are right");
        container
            .put_block_blob("b", Bytes::from_static(b"x"), &[], Condition::None)
            .await
            .expect("put");
        double.pass(2 * 3_600_000);
        handle.renew(Credential::sas("sig=worse", 1));
        let waiting = tokio::spawn(async move {
            container
                .put_block_blob("b", Bytes::from_static(b"y"), &[], Condition::None)
                .await
        });
        // It was refused once before the good one comes.
        while double.faults().calls().len() < 2 {
            tokio::task::yield_now().await;
        }
        handle.renew(fresh(&double));
        waiting
            .await
            .expect("no panic")
            .expect("it went on with the new one");
    }
}

#[tokio::test]
async fn without_a_newer_credential_the_call_ends_and_shows_no_secret() {
    let world = world().await;
    let options = {
        let mut options = ContainerOptions::new(
            world.double.endpoint(),
            "c",
            CredentialHandle::new(Credential::sas("sv=2022-11-02&sr=c&sig=TOPSECRET", 0)),
        );
        options.clock = Arc::clone(&world.clock) as _;
        options
    };
    let container = Container::open(&options).expect("options are right");
    let error = container.get("b").await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    let mut text = format!("{error} {error:?} {container:?}");
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text.push_str(&error.to_string());
        cause = error.source();
    }
    assert!(!text.contains("TOPSECRET"), "{text}");
}

#[tokio::test]
async fn a_connection_error_shows_no_secret() {
    let world = world().await;
    let endpoint = world.double.endpoint();
    drop(world.double);
    let mut options = ContainerOptions::new(
        endpoint,
        "c",
        CredentialHandle::new(Credential::sas("sig=TOPSECRET", 0)),
    );
    options.clock = Arc::clone(&world.clock) as _;
    let error = Container::open(&options)
        .expect("right")
        .get("b")
        .await
        .expect_err("nobody there");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    assert!(!format!("{error:?} {cause:?}").contains("TOPSECRET"));
}

#[tokio::test]
async fn rights_that_a_signature_lacks_are_refused() {
    let world = world().await;
    let read_only = world
        .double
        .sas("c", azure_storage::sas::Permissions::RECOVER, 60_000);
    let options = ContainerOptions::new(
        world.double.endpoint(),
        "c",
        CredentialHandle::new(read_only),
    );
    let container = Container::open(&options).expect("right");
    let error = perform(&container, "put_block_blob")
        .await
        .expect_err("it may only read");
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
    assert!(container.get("b").await.expect("it may read").is_none());
    let error = container
        .create()
        .await
        .expect_err("not with a container's signature");
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
}

#[tokio::test]
async fn the_pace_stays_below_the_limits_that_the_service_enforces() {
    let world = world_with(Limits::AZURE, RetryPolicy::default()).await;
    world
        .container
        .create_page_blob("b", 1 << 30, 1, &[], Condition::None)
        .await
        .expect("created");
    for n in 0..1200u64 {
        world
            .container
            .put_pages(
                "b",
                n * 512,
                Bytes::from(vec![1; 512]),
                SequenceCondition::AtMost(1),
            )
            .await
            .expect("written");
    }
    for n in 0..40u64 {
        world
            .container
            .put_pages(
                "b",
                n << 22,
                Bytes::from(vec![1; 4 << 20]),
                SequenceCondition::AtMost(1),
            )
            .await
            .expect("written");
    }
    assert_eq!(
        world.container.figures().repeated,
        0,
        "the service never had to refuse"
    );
}

#[tokio::test]
async fn no_more_calls_are_under_way_than_allowed() {
    let limits = Limits {
        in_flight: 3,
        ..Limits::EMULATOR
    };
    let world = world_with(limits, RetryPolicy::default()).await;
    let gate = Arc::new(Semaphore::new(0));
    world
        .double
        .faults()
        .add(Rule::once(Fault::Hold(Arc::clone(&gate)), any).times(10));
    let calls: Vec<_> = (0..10)
        .map(|n| {
            let container = world.container.clone();
            tokio::spawn(async move { container.get(&format!("b{n}")).await })
        })
        .collect();
    while world.double.faults().calls().len() < 3 {
        tokio::task::yield_now().await;
    }
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.double.faults().calls().len(), 3);
    gate.add_permits(10);
    for call in calls {
        call.await.expect("no panic").expect("answered");
    }
}

#[tokio::test]
async fn a_premium_account_takes_no_block_blobs() {
    let double = Double::start(DoubleOptions {
        premium: true,
        ..DoubleOptions::default()
    })
    .await
    .expect("the double starts");
    double.make_container("c");
    let options = ContainerOptions::new(double.endpoint(), "c", double.credential("c"));
    let container = Container::open(&options).expect("right");
    let error = perform(&container, "put_block_blob")
        .await
        .expect_err("page blobs only");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    prepare(&container, "snapshot").await;
    perform(&container, "snapshot")
        .await
        .expect("the first one");
    perform(&container, "snapshot")
        .await
        .expect_err("one in ten minutes");
}

#[tokio::test]
async fn what_changed_since_a_snapshot_is_told_exactly() {
    let world = world().await;
    let container = &world.container;
    container
        .create_page_blob("b", 1 << 20, 1, &[], Condition::None)
        .await
        .expect("created");
    let put = |offset: u64, byte: u8| {
        container.put_pages(
            "b",
            offset,
            Bytes::from(vec![byte; 512]),
            SequenceCondition::None,
        )
    };
    for n in 0..12 {
        put(n * 8192, 1).await.expect("written");
    }
    let older = container.snapshot("b").await.expect("taken");
    let mut written = Vec::new();
    let all = container
        .page_ranges("b", Some(&older), 0..1 << 20)
        .await
        .expect("ranges");
    assert_eq!(all.len(), 12);
    for n in (0..12).step_by(2) {
        put(n * 8192, 2).await.expect("written");
        written.push(n * 8192..n * 8192 + 512);
    }
    container
        .clear_pages("b", 8192..8704, SequenceCondition::None)
        .await
        .expect("cleared");
    put(16384 + 8192, 1).await.expect("the same bytes again");
    let changed = container
        .page_ranges_since("b", &older)
        .await
        .expect("told");
    assert_eq!(changed.written, written);
    assert_eq!(changed.cleared, vec![8192..8704]);
    let then = container
        .get_range("b", Some(&older), 8192..8704)
        .await
        .expect("as it was");
    assert_eq!(then.bytes, vec![1u8; 512]);
}

#[tokio::test]
async fn a_client_gets_its_token_and_a_wrong_secret_is_told() {
    let world = world().await;
    let http = azure_storage::http_client(None, &[]).expect("a client");
    let client = |secret: &str| {
        azure_storage::oauth::ClientCredentials::new(
            http.clone(),
            &world.double.authority(),
            "tenant",
            "client",
            secret,
        )
    };
    let token = client("secret")
        .token(&*world.clock)
        .await
        .expect("a token");
    let options = ContainerOptions::new(world.double.endpoint(), "c", CredentialHandle::new(token));
    Container::open(&options)
        .expect("right")
        .list("", false)
        .await
        .expect("accepted");
    let error = client("TOPSECRET")
        .token(&*world.clock)
        .await
        .expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(error.to_string().contains("invalid_client"), "{error}");
    assert!(!format!("{error:?} {:?}", client("TOPSECRET")).contains("TOPSECRET"));
}

#[test]
fn a_token_is_not_sent_without_tls() {
    let handle = CredentialHandle::new(Credential::bearer("t", 0));
    let error = Container::open(&ContainerOptions::new("http://blob.example", "c", handle))
        .expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Invalid);
}
