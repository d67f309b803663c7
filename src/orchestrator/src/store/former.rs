//! Hosts that were an item's source before another one: what the record keeps of them, and what is kept behind its end.

use protection::life::Former;
use serde::{Deserialize, Serialize};

use super::records::{Item, Record};

/// A host that was the source before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerSource {
    /// Its engine.
    pub engine_id: String,
    /// Under which numbers it holds the VM, and forgets it in the end.
    pub numbers: Former,
}

/// An item that has ended, for a host that was its source before and has not said yet that it let go of the VM, which stays off.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeftBehind {
    /// As it was.
    pub item: Item,
    /// The host.
    pub source: FormerSource,
}

impl Record for LeftBehind {
    const KIND: &'static str = "left-behind";
}

/// Key of a [`LeftBehind`], or what those of an engine begin with.
#[must_use]
pub fn left_behind_key(engine_id: &str, item_key: &str) -> String {
    format!("{}{engine_id}/{item_key}", left_behind_prefix())
}

/// What the keys of all [`LeftBehind`]s begin with.
#[must_use]
pub fn left_behind_prefix() -> &'static str {
    "~former/"
}

impl Item {
    /// What the record keeps of a host that was the source before.
    #[must_use]
    pub fn former(&self, engine_id: &str) -> Option<&FormerSource> {
        let mut formers = self.formers.iter();
        formers.find(|former| former.engine_id == engine_id)
    }
}
