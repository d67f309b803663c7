//! What every implementation of [`ResourceStore`] promises.

use serde_json::json;

use super::sqlite::SqliteStore;
use super::{Change, Expect, Query, ResourceStore};

const KIND: &str = "test";

fn put(key: &str, number: u64, expect: Expect) -> Change {
    Change::Put {
        key: key.to_owned(),
        kind: KIND,
        body: json!({ "number": number }),
        expect,
    }
}

async fn suite(store: &dyn ResourceStore) {
    what_is_put_is_read_with_a_growing_version(store).await;
    a_batch_with_a_broken_condition_changes_nothing(store).await;
    lists_are_ordered_and_paged_and_keep_to_kind_and_prefix(store).await;
    deletion_takes_away_and_repeats(store).await;
    the_revision_grows_with_changes_only(store).await;
}

async fn the_revision_grows_with_changes_only(store: &dyn ResourceStore) {
    let before = store.revision();
    store.get("r/1").await.expect("get");
    store.list(Query::below(KIND, "")).await.expect("list");
    store
        .apply(vec![put("r/1", 1, Expect::Present)])
        .await
        .expect_err("condition is broken");
    assert_eq!(store.revision(), before);
    store
        .apply(vec![put("r/1", 1, Expect::Absent)])
        .await
        .expect("put");
    assert!(store.revision() > before);
}

async fn what_is_put_is_read_with_a_growing_version(store: &dyn ResourceStore) {
    let first = store
        .apply(vec![put("a/1", 1, Expect::Absent)])
        .await
        .expect("put");
    let second = store
        .apply(vec![put("a/1", 2, Expect::Etag(first[0]))])
        .await
        .expect("put over the version read");
    assert!(second[0] > first[0]);
    let document = store.get("a/1").await.expect("get").expect("there");
    assert_eq!(document.etag, second[0]);
    assert_eq!(document.body, json!({ "number": 2 }));
    assert!(store.get("a/none").await.expect("get").is_none());
}

async fn a_batch_with_a_broken_condition_changes_nothing(store: &dyn ResourceStore) {
    for broken in [
        put("a/1", 9, Expect::Absent),
        put("a/absent", 9, Expect::Present),
        put("a/1", 9, Expect::Etag(u64::MAX >> 1)),
        Change::Delete {
            key: "a/absent".to_owned(),
            expect: Expect::Present,
        },
        Change::Check {
            key: "a/absent".to_owned(),
            expect: Expect::Present,
        },
    ] {
        let error = store
            .apply(vec![put("a/new", 1, Expect::Any), broken])
            .await
            .expect_err("condition is broken");
        assert!(error.is_conflict());
        assert!(store.get("a/new").await.expect("get").is_none());
        assert_eq!(
            store.get("a/1").await.expect("get").expect("there").body,
            json!({ "number": 2 })
        );
    }
}

async fn lists_are_ordered_and_paged_and_keep_to_kind_and_prefix(store: &dyn ResourceStore) {
    for key in ["l/c", "l/a", "l/b", "l%x", "m/a"] {
        store
            .apply(vec![put(key, 0, Expect::Any)])
            .await
            .expect("put");
    }
    let keys = |documents: Vec<super::Document>| {
        documents
            .into_iter()
            .map(|document| document.key)
            .collect::<Vec<_>>()
    };
    let all = store.list(Query::below(KIND, "l/")).await.expect("list");
    assert_eq!(keys(all), ["l/a", "l/b", "l/c"]);
    let mut query = Query::below(KIND, "l/").first();
    query.after = Some("l/a".to_owned());
    assert_eq!(keys(store.list(query).await.expect("list")), ["l/b"]);
    assert!(
        store
            .list(Query::below("other", "l/"))
            .await
            .expect("list")
            .is_empty()
    );
}

async fn deletion_takes_away_and_repeats(store: &dyn ResourceStore) {
    for _ in 0..2 {
        let delete = Change::Delete {
            key: "l/a".to_owned(),
            expect: Expect::Any,
        };
        store.apply(vec![delete]).await.expect("delete");
        assert!(store.get("l/a").await.expect("get").is_none());
    }
}

#[tokio::test]
async fn sqlite_keeps_the_promises() {
    let folder = tempfile::tempdir().expect("temporary folder");
    suite(&SqliteStore::open(&folder.path().join("metadata.db")).expect("open")).await;
}

#[tokio::test]
async fn sqlite_keeps_documents_and_versions_over_a_restart() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("metadata.db");
    let first = SqliteStore::open(&path)
        .expect("open")
        .apply(vec![put("k", 1, Expect::Absent)])
        .await
        .expect("put");
    let store = SqliteStore::open(&path).expect("open again");
    assert_eq!(
        store.get("k").await.expect("get").expect("there").etag,
        first[0]
    );
    assert!(
        store
            .apply(vec![put("k", 2, Expect::Any)])
            .await
            .expect("put")[0]
            > first[0]
    );
}

#[tokio::test]
async fn sqlite_refuses_a_file_of_a_newer_release() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("metadata.db");
    rusqlite::Connection::open(&path)
        .expect("open")
        .pragma_update(None, "user_version", 99)
        .expect("mark");
    assert!(SqliteStore::open(&path).is_err());
}
