//! Every call of the client, once against the double and once against Azurite: both must agree on what it does.

use azure_storage::double::{Double, DoubleOptions};
use azure_storage::emulator::{Azurite, AzuriteOptions};
use azure_storage::{
    Condition, Container, ContainerOptions, ErrorKind, Integrity, Newer, SequenceCondition,
};
use bytes::Bytes;
use uuid::Uuid;

/// A container to try things in, and what keeps it alive.
struct Place {
    container: Container,
    _double: Option<Double>,
    _azurite: Option<Azurite>,
}

async fn double() -> Place {
    let double = Double::start(DoubleOptions::default())
        .await
        .expect("the double starts");
    double.make_container("replicas");
    let mut options =
        ContainerOptions::new(double.endpoint(), "replicas", double.credential("replicas"));
    options.integrity = Some(Integrity::Crc64);
    Place {
        container: Container::open(&options).expect("options are right"),
        _double: Some(double),
        _azurite: None,
    }
}

async fn azurite() -> Option<Place> {
    let Some(azurite) = Azurite::start(AzuriteOptions::default())
        .await
        .expect("azurite starts")
    else {
        eprintln!("skipped: azurite is not installed (tests/lab/azurite.sh install)");
        return None;
    };
    let credential = azurite
        .make_container("replicas", &[])
        .await
        .expect("a container");
    let options = ContainerOptions::new(azurite.endpoint(), "replicas", credential);
    Some(Place {
        container: Container::open(&options).expect("options are right"),
        _double: None,
        _azurite: Some(azurite),
    })
}

async fn page_blobs(container: &Container) {
    let name = "vault/item/disk/base.vhd";
    container
        .create_page_blob(
            name,
            8 << 20,
            3,
            &[("unit", "1".to_owned())],
            Condition::NotExists,
        )
        .await
        .expect("created");
    let again = container
        .create_page_blob(name, 8 << 20, 3, &[], Condition::NotExists)
        .await
        .expect_err("it is there");
    assert_eq!(again.kind(), ErrorKind::AlreadyExists, "{again}");

    let data = Bytes::from(vec![7u8; 64 << 10]);
    container
        .put_pages(name, 4096, data.clone(), SequenceCondition::AtMost(3))
        .await
        .expect("written");
    for stale in [SequenceCondition::AtMost(2), SequenceCondition::Equal(2)] {
        let refused = container
            .put_pages(name, 0, data.clone(), stale)
            .await
            .expect_err("a stale writer");
        assert_eq!(
            refused.kind(),
            ErrorKind::SequenceNumberConditionNotMet,
            "{refused}"
        );
        let refused = container
            .clear_pages(name, 0..4096, stale)
            .await
            .expect_err("a stale writer");
        assert_eq!(
            refused.kind(),
            ErrorKind::SequenceNumberConditionNotMet,
            "{refused}"
        );
    }
    assert_eq!(
        container
            .raise_sequence_number(name, 9)
            .await
            .expect("raised"),
        9
    );
    assert_eq!(
        container
            .raise_sequence_number(name, 4)
            .await
            .expect("kept"),
        9
    );

    let read = container
        .get_range(name, None, 4096 - 512..4096 + 512)
        .await
        .expect("read");
    assert_eq!(read.blob_length, 8 << 20);
    assert_eq!(&read.bytes[..512], &[0; 512][..]);
    assert_eq!(&read.bytes[512..], &[7; 512][..]);

    // The emulator lets no signature of a container read a snapshot; the double's tests do.
    container.snapshot(name).await.expect("a snapshot");
    container
        .clear_pages(name, 4096..8192, SequenceCondition::Equal(9))
        .await
        .expect("cleared");
    assert_eq!(
        container
            .page_ranges(name, None, 0..8 << 20)
            .await
            .expect("ranges"),
        vec![8192..4096 + (64 << 10)]
    );
    container
        .copy(name, None, "vault/copy of it")
        .await
        .expect("copied");
    let copied = container
        .get_range("vault/copy of it", None, 8192..12288)
        .await
        .expect("read");
    assert_eq!(copied.bytes, vec![7u8; 4096]);

    let properties = container
        .properties(name)
        .await
        .expect("properties")
        .expect("there");
    assert_eq!(properties.length, 8 << 20);
    assert_eq!(properties.sequence_number, Some(9));
    assert_eq!(
        properties.metadata,
        vec![("unit".to_owned(), "1".to_owned())]
    );
    container
        .resize_page_blob(name, 16 << 20, Some(&properties.etag))
        .await
        .expect("grown");
    let stale = container
        .resize_page_blob(name, 32 << 20, Some(&properties.etag))
        .await
        .expect_err("another version");
    assert_eq!(stale.kind(), ErrorKind::ConditionNotMet, "{stale}");
    assert!(
        container
            .delete(name, Condition::None)
            .await
            .expect("removed with its snapshots")
    );
    assert!(
        !container
            .delete(name, Condition::None)
            .await
            .expect("gone already")
    );
    assert!(container.properties(name).await.expect("asked").is_none());
}

/// More ranges than one page of the answer holds.
async fn many_ranges(container: &Container) {
    container
        .create_page_blob("many", 1 << 20, 0, &[], Condition::None)
        .await
        .expect("created");
    let mut expected = Vec::new();
    for n in 0..17u64 {
        let offset = n * 8192;
        container
            .put_pages(
                "many",
                offset,
                Bytes::from(vec![1; 512]),
                SequenceCondition::None,
            )
            .await
            .expect("written");
        expected.push(offset..offset + 512);
    }
    let ranges = container
        .page_ranges("many", None, 0..1 << 20)
        .await
        .expect("ranges");
    assert_eq!(ranges, expected);
    let some = container
        .page_ranges("many", None, 8192..16384 + 512)
        .await
        .expect("ranges");
    assert_eq!(some, expected[1..3].to_vec());
}

/// A listing says the version that a removal asks for; another one stays.
async fn removals(container: &Container) {
    let put = |content: &'static [u8]| {
        let content = Bytes::from_static(content);
        container.put_block_blob("seen", content, &[], Condition::None)
    };
    put(b"one").await.expect("put");
    let listed = container.list("seen", false).await.expect("listed");
    let seen = listed[0].etag.clone();
    put(b"two").await.expect("put");
    let refused = container.delete("seen", Condition::Matches(&seen)).await;
    let refused = refused.expect_err("another version");
    assert_eq!(refused.kind(), ErrorKind::ConditionNotMet, "{refused}");
    let listed = container.list("seen", false).await.expect("listed");
    let seen = listed[0].etag.clone();
    let found = container.properties("seen").await.expect("asked");
    assert_eq!(found.expect("it is there").etag, seen);
    let removed = container.delete("seen", Condition::Matches(&seen)).await;
    assert!(removed.expect("the version that was seen"));
    let again = container.delete("seen", Condition::Matches(&seen)).await;
    // Services differ in what they call it.
    match again {
        Ok(removed) => assert!(!removed),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConditionNotMet, "{error}"),
    }
}

async fn block_blobs(container: &Container) {
    let name = "vault/item/manifest";
    assert!(container.get(name).await.expect("asked").is_none());
    let first = container
        .put_block_blob(name, Bytes::from_static(b"one"), &[], Condition::NotExists)
        .await
        .expect("put");
    let refused = container
        .put_block_blob(name, Bytes::from_static(b"two"), &[], Condition::NotExists)
        .await
        .expect_err("it is there");
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists, "{refused}");
    assert!(matches!(
        container.get_newer(name, &first).await.expect("asked"),
        Newer::Unchanged
    ));
    let second = container
        .put_block_blob(
            name,
            Bytes::from_static(b"two"),
            &[],
            Condition::Matches(&first),
        )
        .await
        .expect("replaced");
    assert_ne!(first, second);
    let stale = container
        .put_block_blob(
            name,
            Bytes::from_static(b"three"),
            &[],
            Condition::Matches(&first),
        )
        .await
        .expect_err("another version");
    assert_eq!(stale.kind(), ErrorKind::ConditionNotMet, "{stale}");
    match container.get_newer(name, &first).await.expect("asked") {
        Newer::Changed(content) => {
            assert_eq!(
                (content.bytes, content.etag),
                (Bytes::from_static(b"two"), second)
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        container.get_newer("none", &first).await.expect("asked"),
        Newer::Gone
    ));

    let ids: Vec<Vec<u8>> = (0..3u32).map(|n| n.to_be_bytes().to_vec()).collect();
    for (n, id) in ids.iter().enumerate() {
        container
            .stage_block("journal/1.hrl", id, Bytes::from(vec![n as u8; 1000]))
            .await
            .expect("staged");
    }
    assert!(
        container
            .get("journal/1.hrl")
            .await
            .expect("asked")
            .is_none(),
        "it has no name yet"
    );
    container
        .commit_blocks("journal/1.hrl", &ids, &[], Condition::NotExists)
        .await
        .expect("committed");
    let whole = container
        .get("journal/1.hrl")
        .await
        .expect("read")
        .expect("there");
    assert_eq!(whole.bytes.len(), 3000);
    assert_eq!(&whole.bytes[1000..2000], &[1; 1000][..]);
    let discarded = container
        .commit_blocks("journal/2.hrl", &ids, &[], Condition::NotExists)
        .await
        .expect_err("blocks of another blob");
    assert_eq!(discarded.code(), Some("InvalidBlockList"), "{discarded}");
}

async fn listings(container: &Container) {
    for n in 0..13 {
        let name = format!("list/{n:03} & <co>");
        container
            .put_block_blob(&name, Bytes::from(vec![0; n]), &[], Condition::None)
            .await
            .expect("put");
    }
    let listed = container.list("list/", false).await.expect("listed");
    assert_eq!(listed.len(), 13);
    assert_eq!(listed[12].name, "list/012 & <co>");
    assert_eq!(listed[12].length, 12);
    assert!(
        container
            .list("nothing/", false)
            .await
            .expect("listed")
            .is_empty()
    );
}

async fn leases(container: &Container) {
    container
        .put_block_blob("leased", Bytes::from_static(b"x"), &[], Condition::None)
        .await
        .expect("put");
    let (mine, yours) = (Uuid::new_v4(), Uuid::new_v4());
    assert!(
        container
            .acquire_lease("leased", mine, 15)
            .await
            .expect("asked")
    );
    assert!(
        container
            .acquire_lease("leased", mine, 15)
            .await
            .expect("asking twice is asking once")
    );
    assert!(
        !container
            .acquire_lease("leased", yours, 15)
            .await
            .expect("asked")
    );
    assert!(container.renew_lease("leased", mine).await.expect("asked"));
    assert!(!container.renew_lease("leased", yours).await.expect("asked"));
    let kept = container
        .delete("leased", Condition::None)
        .await
        .expect_err("somebody holds it");
    assert_eq!(kept.kind(), ErrorKind::ConditionNotMet, "{kept}");
    assert!(
        container
            .release_lease("leased", mine)
            .await
            .expect("asked")
    );
    assert!(
        container
            .acquire_lease("leased", yours, 15)
            .await
            .expect("asked")
    );
    assert!(container.break_lease("leased").await.expect("asked"));
    let removed = container.delete("leased", Condition::None).await;
    assert!(removed.expect("free again"));
}

macro_rules! on_both {
    ($($call:ident: $double:ident, $azurite:ident;)*) => {$(
        #[tokio::test]
        async fn $double() {
            let place = double().await;
            $call(&place.container).await;
        }

        #[tokio::test]
        async fn $azurite() {
            if let Some(place) = azurite().await {
                $call(&place.container).await;
            }
        }
    )*};
}

on_both! {
    page_blobs: page_blobs_on_the_double, page_blobs_on_azurite;
    many_ranges: all_ranges_come_however_many_on_the_double, all_ranges_come_however_many_on_azurite;
    block_blobs: block_blobs_on_the_double, block_blobs_on_azurite;
    listings: listings_on_the_double, listings_on_azurite;
    removals: only_the_version_that_was_seen_goes_on_the_double, only_the_version_that_was_seen_goes_on_azurite;
    leases: leases_on_the_double, leases_on_azurite;
}
