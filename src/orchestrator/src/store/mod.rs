//! The resource store: documents by key, with versions, changed in atomic batches.
//!
//! Everything the orchestrator knows is in here: resources, jobs with their saga state, clients, engines.
//! Memory holds caches only. A key is the lower-case ARM id of a resource, or begins with `~` for what
//! ARM has no word for. A change that expects another version fails as a whole with
//! [`StoreError::Conflict`] and leaves nothing.

pub mod former;
mod kept_life;
mod place;
pub mod records;
mod recovery_side;
pub mod sqlite;

#[cfg(test)]
mod conformance;

use async_trait::async_trait;
use serde_json::Value;

/// One stored document.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Key.
    pub key: String,
    /// Kind, for lists.
    pub kind: String,
    /// Version; grows with every change of any document.
    pub etag: u64,
    /// Contents.
    pub body: Value,
}

/// What a change expects to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Anything.
    Any,
    /// Nothing.
    Absent,
    /// Something.
    Present,
    /// Exactly this version.
    Etag(u64),
}

/// One change of a batch.
#[derive(Debug, Clone)]
pub enum Change {
    /// Writes a document.
    Put {
        /// Key.
        key: String,
        /// Kind.
        kind: &'static str,
        /// Contents.
        body: Value,
        /// Condition.
        expect: Expect,
    },
    /// Removes a document; removing what isn't there is fine unless `expect` says otherwise.
    Delete {
        /// Key.
        key: String,
        /// Condition.
        expect: Expect,
    },
    /// Only checks a document, so that a batch holds only while it stands.
    Check {
        /// Key.
        key: String,
        /// Condition.
        expect: Expect,
    },
}

/// Which documents to list, in the order of their keys.
#[derive(Debug, Clone)]
pub struct Query {
    /// Kind.
    pub kind: &'static str,
    /// Beginning of the key.
    pub prefix: String,
    /// Only keys after this one.
    pub after: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A condition of the batch didn't hold; nothing was changed.
    #[error("document `{key}` is not in the expected version")]
    Conflict {
        /// Document.
        key: String,
    },
    /// A document can't be read; another version of this program wrote it, or it is damaged.
    #[error("document `{key}` can't be read")]
    Malformed {
        /// Document.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The database failed. Whether the change was made is not known.
    #[error("metadata database failed")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
}

// === impl StoreError ===

impl StoreError {
    /// Whether somebody else changed the document.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }
}

// === impl Query ===

impl Query {
    /// All documents of a kind below a key.
    #[must_use]
    pub fn below(kind: &'static str, prefix: impl Into<String>) -> Self {
        Self {
            kind,
            prefix: prefix.into(),
            after: None,
            limit: usize::MAX,
        }
    }

    /// The first one only.
    #[must_use]
    pub fn first(mut self) -> Self {
        self.limit = 1;
        self
    }
}

/// Documents with versions. The conformance suite beside this file says what implementations promise.
#[async_trait]
pub trait ResourceStore: Send + Sync {
    /// One document.
    async fn get(&self, key: &str) -> Result<Option<Document>, StoreError>;
    /// Documents in the order of their keys.
    async fn list(&self, query: Query) -> Result<Vec<Document>, StoreError>;
    /// Makes all changes or none; durable when it returns. Gives the new versions of the documents put,
    /// in order.
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<u64>, StoreError>;
    /// Grows with every batch that changed something since the store was opened, however it was answered. Who takes
    /// the number and reads then, has read nothing older: what follows from the store alone is made anew only after it grew.
    fn revision(&self) -> u64;
}
