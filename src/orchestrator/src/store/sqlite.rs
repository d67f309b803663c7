//! The store in one SQLite file: write-ahead log, `synchronous=FULL`, so that an answered request survives
//! the loss of power. Calls run on the blocking pool; one connection, because SQLite has one writer anyway.

use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use serde_json::Value;

use super::{Change, Document, Expect, Query, ResourceStore, StoreError};

const PRIVATE: u32 = 0o600;
const BUSY: Duration = Duration::from_secs(10);
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS documents (
        key  TEXT PRIMARY KEY NOT NULL,
        kind TEXT NOT NULL,
        etag INTEGER NOT NULL,
        body TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS documents_by_kind ON documents (kind, key);
    CREATE TABLE IF NOT EXISTS sequence (only_row INTEGER PRIMARY KEY CHECK (only_row = 0), etag INTEGER NOT NULL);
    INSERT OR IGNORE INTO sequence VALUES (0, 0);
";
/// Version of the schema, in the file's header.
const SCHEMA_VERSION: i64 = 1;

/// See the module.
#[derive(Clone)]
pub struct SqliteStore {
    connection: Arc<Mutex<Connection>>,
    revision: Arc<AtomicU64>,
}

// === impl SqliteStore ===

impl SqliteStore {
    /// Opens or makes the file, for the owner's eyes only; SQLite gives its side files the same mode.
    ///
    /// # Errors
    /// When it can't be opened, is no database, or a newer release wrote it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(PRIVATE)
            .open(path)
            .and_then(|file| file.set_permissions(std::fs::Permissions::from_mode(PRIVATE)));
        file.map_err(backend)?;
        Self::prepare(Connection::open(path).map_err(backend)?)
    }

    fn prepare(connection: Connection) -> Result<Self, StoreError> {
        connection.busy_timeout(BUSY).map_err(backend)?;
        connection
            .execute_batch(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;",
            )
            .map_err(backend)?;
        let version: i64 = connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(backend)?;
        if version > SCHEMA_VERSION {
            return Err(StoreError::Backend(
                format!("schema version {version} was written by a newer release; this one knows {SCHEMA_VERSION}").into(),
            ));
        }
        connection.execute_batch(SCHEMA).map_err(backend)?;
        connection
            .pragma_update(None, "user_version", SCHEMA_VERSION)
            .map_err(backend)?;
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
            revision: Arc::default(),
        })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let connection = Arc::clone(&self.connection);
        let task = tokio::task::spawn_blocking(move || {
            // A panic between statements leaves an open transaction that the drop has rolled back.
            let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut connection)
        });
        task.await.map_err(backend)?
    }
}

#[async_trait]
impl ResourceStore for SqliteStore {
    async fn get(&self, key: &str) -> Result<Option<Document>, StoreError> {
        let key = key.to_owned();
        self.run(move |connection| {
            let row = connection
                .prepare_cached("SELECT key, kind, etag, body FROM documents WHERE key = ?1")
                .and_then(|mut statement| statement.query_row([&key], raw).optional())
                .map_err(backend)?;
            row.map(document).transpose()
        })
        .await
    }

    async fn list(&self, query: Query) -> Result<Vec<Document>, StoreError> {
        self.run(move |connection| {
            let mut statement = connection
                .prepare_cached(
                    "SELECT key, kind, etag, body FROM documents
                     WHERE kind = ?1 AND key >= ?2 AND key > ?3 AND substr(key, 1, length(?2)) = ?2
                     ORDER BY key LIMIT ?4",
                )
                .map_err(backend)?;
            let after = query.after.unwrap_or_default();
            let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
            let rows = statement
                .query_map(params![query.kind, query.prefix, after, limit], raw)
                .map_err(backend)?;
            rows.map(|row| document(row.map_err(backend)?)).collect()
        })
        .await
    }

    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<u64>, StoreError> {
        let revision = Arc::clone(&self.revision);
        self.run(move |connection| {
            // IMMEDIATE: conditions are read and changes written under one write lock.
            let transaction = connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(backend)?;
            let mut etags = Vec::new();
            for change in changes {
                if let Some(etag) = apply_one(&transaction, change)? {
                    etags.push(etag);
                }
            }
            let committed = transaction.commit();
            // A commit that failed may have been made. Counted here, because nobody may be waiting any more.
            revision.fetch_add(1, Ordering::SeqCst);
            committed.map_err(backend)?;
            Ok(etags)
        })
        .await
    }

    fn revision(&self) -> u64 {
        self.revision.load(Ordering::SeqCst)
    }
}

fn apply_one(transaction: &Transaction<'_>, change: Change) -> Result<Option<u64>, StoreError> {
    match change {
        Change::Put {
            key,
            kind,
            body,
            expect,
        } => {
            check(transaction, &key, expect)?;
            let etag: i64 = transaction
                .query_row(
                    "UPDATE sequence SET etag = etag + 1 RETURNING etag",
                    [],
                    |row| row.get(0),
                )
                .map_err(backend)?;
            transaction
                .prepare_cached(
                    "INSERT INTO documents (key, kind, etag, body) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (key) DO UPDATE SET kind = ?2, etag = ?3, body = ?4",
                )
                .and_then(|mut statement| {
                    statement.execute(params![key, kind, etag, body.to_string()])
                })
                .map_err(backend)?;
            Ok(u64::try_from(etag).ok())
        }
        Change::Delete { key, expect } => {
            check(transaction, &key, expect)?;
            transaction
                .execute("DELETE FROM documents WHERE key = ?1", [&key])
                .map_err(backend)?;
            Ok(None)
        }
        Change::Check { key, expect } => {
            check(transaction, &key, expect)?;
            Ok(None)
        }
    }
}

fn check(transaction: &Transaction<'_>, key: &str, expect: Expect) -> Result<(), StoreError> {
    if expect == Expect::Any {
        return Ok(());
    }
    let found: Option<i64> = transaction
        .query_row("SELECT etag FROM documents WHERE key = ?1", [key], |row| {
            row.get(0)
        })
        .optional()
        .map_err(backend)?;
    let found = found.and_then(|etag| u64::try_from(etag).ok());
    let holds = match expect {
        Expect::Any => true,
        Expect::Absent => found.is_none(),
        Expect::Present => found.is_some(),
        Expect::Etag(etag) => found == Some(etag),
    };
    if holds {
        Ok(())
    } else {
        Err(StoreError::Conflict {
            key: key.to_owned(),
        })
    }
}

fn raw(row: &rusqlite::Row<'_>) -> rusqlite::Result<(String, String, i64, String)> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
}

fn document(
    (key, kind, etag, body): (String, String, i64, String),
) -> Result<Document, StoreError> {
    let body: Value = serde_json::from_str(&body).map_err(|source| StoreError::Malformed {
        key: key.clone(),
        source,
    })?;
    Ok(Document {
        key,
        kind,
        etag: u64::try_from(etag).unwrap_or_default(),
        body,
    })
}

fn backend(error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Backend(Box::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_file_is_for_its_owner_only_even_where_an_older_one_was_not() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("metadata.db");
        std::fs::write(&path, "").expect("file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("mode");
        let store = SqliteStore::open(&path).expect("store");
        assert!(store.get("nothing").await.expect("read").is_none());
        for file in std::fs::read_dir(folder.path()).expect("folder") {
            let file = file.expect("entry");
            let mode = file.metadata().expect("metadata").permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}", file.path().display());
        }
    }
}
