//! Credentials, limits and the service's own rules, on the double that enforces them.

mod support;

use std::sync::Arc;

use azure_storage::double::{Double, DoubleOptions, Fault, Rule};
use azure_storage::{
    Condition, Container, ContainerOptions, Credential, CredentialHandle, ErrorKind, Limits, Older,
    RetryPolicy, SequenceCondition,
};
use bytes::Bytes;
use support::*;
use tokio::sync::Semaphore;

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
async fn a_signature_that_is_renewed_as_a_token_is_not_sent_without_tls() {
    let credential = CredentialHandle::new(Credential::sas("sig=x", i64::MAX));
    let options = ContainerOptions::new("http://account.invalid", "c", credential.clone());
    let container = Container::open(&options).expect("signatures may go there");
    credential.renew(Credential::bearer("TOPSECRET", i64::MAX));
    let error = container.get("b").await.expect_err("a token may not");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("without TLS"), "{error}");
    assert_eq!(container.figures().bytes_sent, 0);
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
    let id = [b"one".to_vec()];
    let staged = container.stage_block("b", &id[0], Bytes::from_static(b"x"));
    let staged = staged.await.expect_err("not even a block");
    assert_eq!(staged.kind(), ErrorKind::Unsupported, "{staged}");
    let listed = container.commit_blocks("b", &id, &[], Condition::None);
    let listed = listed.await.expect_err("nor a list of blocks");
    assert_eq!(listed.kind(), ErrorKind::Unsupported, "{listed}");
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
    container
        .copy("b", Some(&older), "copy")
        .await
        .expect("copied");
    let copied = container
        .get_range("copy", None, 8192..8704)
        .await
        .expect("read");
    assert_eq!(copied.bytes, vec![1u8; 512]);
}

#[tokio::test]
async fn snapshots_are_compared_by_name_or_by_address_and_removed_one_by_one() {
    let world = world().await;
    let container = &world.container;
    container
        .create_page_blob("b", 64 << 10, 0, &[], Condition::NotExists)
        .await
        .expect("made");
    let put = |offset: u64, byte: u8| {
        let bytes = Bytes::from(vec![byte; 512]);
        container.put_pages("b", offset, bytes, SequenceCondition::None)
    };
    put(0, 1).await.expect("put");
    put(8192, 1).await.expect("put");
    let first = container.snapshot("b").await.expect("a snapshot");
    let path = "c/b".to_owned();
    assert!(world.double.keep_blob(&path, "elsewhere/first"));
    put(4096, 2).await.expect("put");
    world.double.clear(&path, 8192..8704);
    let second = container.snapshot("b").await.expect("a snapshot");
    world.double.write(&path, 512, &[9; 512]);
    let expected = azure_storage::ChangedRanges {
        written: std::iter::once(4096..4608).collect(),
        cleared: std::iter::once(8192..8704).collect(),
    };
    let by_name = container
        .page_ranges_between("b", Some(&second), Older::Snapshot(&first))
        .await
        .expect("told");
    assert_eq!(by_name, expected, "the blob has gone on since");
    let address = format!(
        "{}/elsewhere/first?sv=1&sig=secret",
        world.double.endpoint()
    );
    let older = Older::Address(&address);
    assert!(!format!("{older:?}").contains("secret"));
    let by_address = container
        .page_ranges_between("b", Some(&second), older)
        .await
        .expect("told");
    assert_eq!(by_address, expected);
    let gone = container
        .page_ranges_between("b", None, Older::Address(&address.replace("first", "none")))
        .await
        .expect_err("not there");
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    assert!(!gone.to_string().contains("secret"), "{gone}");

    for _ in 0..2 {
        container
            .delete_snapshot("b", &first)
            .await
            .expect("gone, also twice");
    }
    assert_eq!(
        container.snapshots("b").await.expect("list"),
        std::slice::from_ref(&second)
    );
    // The disk of a VM: Compute leases it.
    world.double.lease(&path, true);
    let third = container.snapshot("b").await.expect("third");
    let keep = [third.clone()];
    container.delete_snapshots("b", &keep).await.expect("gone");
    assert_eq!(container.snapshots("b").await.expect("list"), keep);
    let refused = container.delete("b", Condition::None).await;
    assert_eq!(
        refused.expect_err("leased").kind(),
        ErrorKind::ConditionNotMet
    );
    world.double.lease(&path, false);
    container
        .delete_snapshots("b", &[])
        .await
        .expect("all gone");
    assert_eq!(world.double.snapshots(&path), 0);
    assert_eq!(container.snapshots("none").await.expect("list"), [""; 0]);
    let left = container.get_range("b", None, 0..512).await.expect("blob");
    assert_eq!(left.bytes, vec![1u8; 512], "the blob itself stays");
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
